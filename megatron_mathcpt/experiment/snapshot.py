"""A copy of the code that a job runs, so that edits made while it waits or runs do not reach it."""

import shutil
import subprocess
from pathlib import Path

from megatron_mathcpt.errors import ConfigError, one_line
from megatron_mathcpt.formats.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
COMMIT_FILE = "COMMIT"
_PARTS = ("megatron_mathcpt", "tools", "configs")


def snapshot_code(target: Path, *, allow_dirty: bool, root: Path = ROOT) -> str:
    """Copy the code of the checkout `root` to `target` (replaced if there) and return its commit.

    The commit gets `+dirty` and the changes go along when `allow_dirty`; else uncommitted changes, or no
    checkout at all, raise `ConfigError`.
    """
    commit = _git(root, "rev-parse", "HEAD").strip()
    changes = _git(root, "status", "--porcelain", "--", *_PARTS).splitlines()
    if changes and not allow_dirty:
        raise ConfigError(
            f"{root}: {len(changes)} uncommitted changes ({one_line(changes[0])}, ...); "
            "commit them or give --allow-dirty"
        )
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *_PARTS)
    if target.exists():
        shutil.rmtree(target)
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():  # a deleted file is still listed until the deletion is committed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    commit += "+dirty" if changes else ""
    write_atomically(target / COMMIT_FILE, f"{commit}\n".encode())
    return commit


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise ConfigError("git: not found; it tells which code a job runs") from error
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"{root}: {one_line(error.stderr)}; submit from a git checkout") from error
