import subprocess
from pathlib import Path

import pytest

from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.experiment.submit import snapshot_code


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "megatron_mathcpt").mkdir(parents=True)
    (root / "tools").mkdir()
    (root / "megatron_mathcpt" / "a.py").write_text("1")
    (root / "tools" / "b.py").write_text("2")
    (root / ".gitignore").write_text("ignored.py\nruns/\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "x")
    return root


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()
    }


def test_a_clean_checkout_is_copied_whole_and_an_old_copy_replaced(checkout: Path) -> None:
    target = checkout / "runs" / "code"
    target.mkdir(parents=True)
    (target / "old.py").touch()
    (checkout / "megatron_mathcpt" / "ignored.py").touch()
    commit = snapshot_code(target, allow_dirty=False, root=checkout)
    assert commit == git(checkout, "rev-parse", "HEAD")
    assert files(target) == {"megatron_mathcpt/a.py": "1", "tools/b.py": "2", "COMMIT": f"{commit}\n"}


@pytest.mark.parametrize("change", ["edited", "new", "deleted"])
def test_a_dirty_checkout_is_refused_unless_told(checkout: Path, tmp_path: Path, change: str) -> None:
    path = checkout / "megatron_mathcpt" / ("new.py" if change == "new" else "a.py")
    path.unlink() if change == "deleted" else path.write_text("changed")
    target = tmp_path / "code"
    with pytest.raises(ConfigError, match=f"1 uncommitted changes .*{path.name}.*--allow-dirty"):
        snapshot_code(target, allow_dirty=False, root=checkout)
    assert not target.exists()
    commit = snapshot_code(target, allow_dirty=True, root=checkout)
    assert commit.endswith("+dirty")
    assert files(target).get(f"megatron_mathcpt/{path.name}") == (None if change == "deleted" else "changed")


def test_outside_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="submit from a git checkout"):
        snapshot_code(tmp_path / "code", allow_dirty=True, root=tmp_path)
