"""Whose folder an output goes to: an empty one or one of ours, never a user's, and one process at a time."""

import os
import threading
from pathlib import Path

import pytest

from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats import output_folder
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.formats.output_folder import MARKER, claim_folder, locked_folder, write_own_file


def tree_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "names",
    [
        ["documents/a.jsonl"],
        ["tokenizer.json"],
        [".work/x"],
        [".git/config"],
        [MARKER + "/x"],
        ["manifest.json"],
    ],
)
def test_a_users_folder_is_refused_untouched(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"kind": "Deployment"}')
    before = tree_of(tmp_path)
    with pytest.raises(ConfigError, match=r"give a new or an empty folder|remove .* in its place"):
        claim_folder(tmp_path, "corpus")
    assert tree_of(tmp_path) == before


def test_a_marker_of_another_program_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text("locked\n")
    (tmp_path / "a.txt").write_text("theirs")
    with pytest.raises(ConfigError, match="is a folder of kind 'locked', no output of kind 'corpus'"):
        claim_folder(tmp_path, "corpus")


def test_our_folder_is_found_again_by_its_kind_only(tmp_path: Path) -> None:
    claimed, complete = tmp_path / "claimed", tmp_path / "complete"
    claim_folder(claimed, "run")
    (claimed / "metrics.jsonl").write_text("{}")
    claim_folder(claimed, "run")
    complete.mkdir()
    write_manifest(complete, "run", inputs={}, counts={}, config={})
    claim_folder(complete, "run")
    for folder in (claimed, complete):
        with pytest.raises(ConfigError, match="is a folder of kind 'run', no output of kind 'corpus'"):
            claim_folder(folder, "corpus")


def test_a_link_to_a_folder_is_followed_and_links_in_it_are_not(tmp_path: Path) -> None:
    disk, elsewhere = tmp_path / "disk", tmp_path / "elsewhere"
    disk.mkdir()
    elsewhere.mkdir()
    (tmp_path / "out").symlink_to(disk)
    claim_folder(tmp_path / "out", "corpus", ["documents"])
    assert (disk / MARKER).read_text() == "corpus\n"
    (disk / "documents").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="documents: is a link, and would be written through; remove it"):
        claim_folder(tmp_path / "out", "corpus", ["documents"])
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("path", ["file", "file/out", "dangling"])
def test_a_path_that_is_no_folder_is_refused_in_a_line(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("theirs")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    with pytest.raises(
        ConfigError, match=f"{path}: cannot be written .*remove what is in its place, or give another --out"
    ):
        claim_folder(tmp_path / path, "run")
    assert (tmp_path / "file").read_text() == "theirs"
    assert not (tmp_path / "none").exists()


def test_only_a_file_of_ours_is_replaced(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "page.html", tmp_path / "notes.html"
    theirs.write_bytes(b"<html>notes</html>")
    write_own_file(mine, b"<ours>1", b"<ours>")
    write_own_file(mine, b"<ours>22", b"<ours>")
    assert mine.read_bytes() == b"<ours>22"
    with pytest.raises(ConfigError, match=r"notes\.html: is there and not of this command; give another"):
        write_own_file(theirs, b"<ours>1", b"<ours>")
    assert theirs.read_bytes() == b"<html>notes</html>"
    with pytest.raises(ConfigError, match="cannot be written"):
        write_own_file(theirs / "page.html", b"<ours>1", b"<ours>")


def test_a_second_process_in_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_folder, "_PATIENCE_SECONDS", 0.2)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    refused = pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on .*, job 7; wait for it")
    with locked_folder(tmp_path, "run"), refused, locked_folder(tmp_path, "run"):
        pass
    with locked_folder(tmp_path, "run"):
        pass


def test_processes_that_claim_a_folder_at_once_all_succeed(tmp_path: Path) -> None:
    """As the ranks of a run do; each writes into it afterwards."""
    errors: list[Exception] = []

    def rank(out: Path, number: int) -> None:
        try:
            claim_folder(out, "run")
            (out / f"{number}.txt").write_text("")
        except ConfigError as error:
            errors.append(error)

    for trial in range(50):
        threads = [threading.Thread(target=rank, args=(tmp_path / str(trial), n)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
