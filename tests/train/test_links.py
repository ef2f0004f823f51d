"""X7: a link where a run writes is refused or replaced, never written through."""

from pathlib import Path

import pytest

from megatron_mathcpt.formats.output_folder import MARKER, claim_folder
from megatron_mathcpt.formats.run_folder import RUN, WRITTEN
from megatron_mathcpt.train.process import watchdog
from tests.support.training_runs import ConfigOf, train


@pytest.mark.parametrize("name", [*WRITTEN, "manifest.json", MARKER])
def test_a_link_in_a_run_folder_is_refused_and_its_target_left(
    config_of: ConfigOf, tmp_path: Path, name: str
) -> None:
    out, mine = tmp_path / "run", tmp_path / "mine"
    claim_folder(out, RUN)
    (out / "config.yaml").write_text("")
    mine.mkdir()
    (mine / "thesis.txt").write_text("run\nthree years")
    (out / name).unlink(missing_ok=True)
    is_file = "." in name[1:] or name == MARKER
    (out / name).symlink_to(mine / "thesis.txt" if is_file else mine)
    said = train(config_of(), out, status=2)
    assert said.startswith(f"error: {out}") and said.count("\n") == 1
    assert name in said
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    assert (mine / "thesis.txt").read_text() == "run\nthree years"


def test_a_run_writes_nothing_but_what_is_checked_for_links(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} - {MARKER, "manifest.json"} <= {*WRITTEN}
    assert {".tensorboard", ".profile"} <= {*WRITTEN}


def test_a_link_in_the_place_of_stacks_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    mine, place = tmp_path / "thesis.txt", tmp_path / ".stacks" / "rank_00000.txt"
    mine.write_text("three years")
    place.parent.mkdir()
    place.symlink_to(mine)
    with watchdog(tmp_path, 60):
        assert not place.is_symlink()
    assert mine.read_text() == "three years"
