"""Packing for fine-tuning: borders, cuts, the same bytes for any workers and after a kill, and the fill."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from megatron_mathcpt.data import pack_sft
from megatron_mathcpt.data.pack_sft import Packing, fill_samples, list_blocks, pack_pool
from megatron_mathcpt.errors import ConfigError, DataError, ManifestError
from megatron_mathcpt.formats.manifest import Manifest
from megatron_mathcpt.formats.tokenizer_folder import load_tokenizer
from megatron_mathcpt.records import Problem, cpt_text, prompt_text
from tests.support.corpus_factory import make_problem
from tests.support.json_lines import read_json_lines
from tests.support.tokenized_corpus import complete_corpus, write_pool
from tests.support.tokenizers import save_llama2, save_llama3

POOL = "problem_solving"
CHINESE = {"question": "求 x 的值，x+1=2。", "solution": "（1）移项得 x=2-1。\n所以 x=1。", "language": "zh"}


def save_bytes(folder: Path) -> None:
    """A tokenizer with a token for each byte, so that lengths can be counted by hand."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({name: n for n, name in enumerate([*alphabet, "</s>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def problem_row(problem: Problem) -> dict[str, Any]:
    fields = problem.model_dump(exclude={"id", "source"})
    return {"id": problem.id, "source": "made", "text": cpt_text(problem), "problem": fields}


def make_corpus(folder: Path, save: Callable[[Path], None], rows: list[dict[str, Any]]) -> Path:
    """A corpus of one pool of `rows`, each ninth of which is for validation if there are so many."""
    save(folder / "tokenizer")
    counts = write_pool(folder, POOL, rows, range(8, len(rows), 9))
    return complete_corpus(folder, load_tokenizer(folder / "tokenizer")[1].vocab_size, {POOL: counts})


def made_problems(count: int) -> list[Problem]:
    rows = [make_problem(n) | {"language": "en"} for n in range(count)]
    for row in rows[1::5]:
        row.update(CHINESE | {"question": f"{row['answer']}，求 x 的值。"})
    for row in rows[2::7]:
        row["solution"] += " and so on." * (row["steps"] + int(row["answer"]) % 9)
    names = Problem.model_fields
    return [Problem(**{key: value for key, value in row.items() if key in names}) for row in rows]


def records_of(out: Path) -> dict[str, tuple[list[int], list[bool]]]:
    """Tokens and flags of each record of a folder."""
    tokens, trained, lengths = (np.load(out / f"{name}.npy") for name in ("tokens", "trained", "lengths"))
    ids: list[Any] = read_json_lines(out / "records.jsonl")
    ends = np.cumsum(lengths).tolist()
    names = [name for sample in ids for name in sample]
    parts = zip(names, [0, *ends[:-1]], ends, strict=True)
    return {name: (tokens[a:b].tolist(), trained[a:b].tolist()) for name, a, b in parts}


def outputs(manifest: Manifest) -> dict[str, str]:
    return {name: file.sha256 for name, file in manifest.outputs.items()}


def test_samples_are_filled_best_fit_by_hand() -> None:
    """Of capacity 10: 8 and 2; 7 and 3; 5, 4 and 1; next fit in order would need four."""
    assert fill_samples([4, 8, 3, 7, 5, 2, 1], 10) == [[0, 4, 6], [1, 5], [2, 3]]
    assert fill_samples([10, 10], 10) == [[0], [1]]
    assert fill_samples([], 10) == []
    random = np.random.default_rng(3)
    lengths = random.integers(1, 300, 5000).tolist()
    samples = fill_samples(lengths, 512)
    assert sorted(n for sample in samples for n in sample) == list(range(5000))
    assert max(sum(lengths[n] for n in sample) for sample in samples) <= 512
    assert sum(lengths) / (512 * len(samples)) > 0.99


@pytest.mark.parametrize("save", [save_llama2, save_llama3, save_bytes])
def test_the_border_is_where_the_offsets_of_tokenizers_say(tmp_path: Path, save: Any) -> None:
    """Also where a token spans it; begin token and prompt are never trained."""
    problems = made_problems(40)
    corpus = make_corpus(tmp_path / "corpus", save, [*map(problem_row, problems)])
    counts = pack_pool(corpus, POOL, tmp_path / "sft", Packing(4096)).counts
    found, (tokenizer, info) = records_of(tmp_path / "sft"), load_tokenizer(corpus / "tokenizer")
    tokenizer.encode_special_tokens = True
    assert len(found) == counts["records"] == 36
    for problem in (one for n, one in enumerate(problems) if n % 9 != 8):
        encoded = tokenizer.encode(cpt_text(problem), add_special_tokens=False)
        border = len(prompt_text(problem.question, problem.language))
        begin = [] if info.bos_id is None else [info.bos_id]
        trained = [*(False for _ in begin), *(start >= border for start, _ in encoded.offsets), True]
        assert found[problem.id] == ([*begin, *encoded.ids, info.eos_id], trained)
    assert counts["tokens"] == counts["corpus_tokens"] == sum(len(ids) for ids, _ in found.values())
    assert counts["trained_tokens"] == sum(sum(flags) for _, flags in found.values())


SOLUTION = "2 + 2 = 4. Then 4 + 1 = 5.\nSo it is $5. x$ here."
# "Question: Why?\nSolution:" has 24 bytes; a space; steps end after 10, 26 and 48 bytes of the solution, not
# within its formula; "\nThe answer is 5." has 17; the end of text is one. A sample takes one more than its
# length, as the last token of a record is only predicted.
WHOLE, WITHOUT_END, THREE, TWO, ONE = 91, 90, 73, 51, 35


@pytest.mark.parametrize(
    ("length", "kept"),
    [(90, WHOLE), (89, WITHOUT_END), (88, THREE), (72, THREE), (71, TWO), (50, TWO), (49, ONE), (33, 0)],
)
def test_a_long_record_is_cut_at_a_step_by_hand(tmp_path: Path, length: int, kept: int) -> None:
    problem = Problem(id="a", question="Why?", solution=SOLUTION, answer="5")
    rows = [problem_row(problem), problem_row(problem.model_copy(update={"id": "b", "solution": "y"}))]
    corpus = make_corpus(tmp_path / "corpus", save_bytes, rows)
    counts = pack_pool(corpus, POOL, tmp_path / "cut", Packing(length, too_long="cut")).counts
    found = records_of(tmp_path / "cut")
    if kept:
        tokens, trained = found["a"]
        assert trained == [False] * 24 + [True] * (kept - 24)
        decoded = load_tokenizer(corpus / "tokenizer")[0].decode(tokens, skip_special_tokens=False)
        assert decoded == cpt_text(problem)[:kept] + ("</s>" if kept == WHOLE else "")
    assert len(found) == counts["records"] == (2 if kept else 1)
    lost = WHOLE - kept if kept else 18  # of the other record, its answer and the end
    assert (counts["cut"], counts["cut_tokens"]) == (int(lost > 0), lost)
    assert counts["dropped_too_long_tokens"] == (0 if kept else WHOLE)
    if 44 <= length < 90:
        dropped = pack_pool(corpus, POOL, tmp_path / "drop", Packing(length)).counts
        assert (dropped["dropped_too_long"], dropped["dropped_too_long_tokens"]) == (1, WHOLE)


def small_blocks(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setattr(pack_sft, "_TOKENS", tokens)
    monkeypatch.setattr(pack_sft, "_SAMPLES", 1)


def recorded_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the blocks that are packed from now on."""
    run, original = list[int](), pack_sft.pack_block

    def recorded(pack: Any, number: int) -> None:
        run.append(number)
        original(pack, number)

    monkeypatch.setattr(pack_sft, "pack_block", recorded)
    return run


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A corpus of 400 problems, of which 44 are for validation, and 20 texts."""
    rows = [problem_row(problem) for problem in made_problems(400)]
    rows[::20] = [{"id": f"text {n}", "source": "made", "text": f"text {n}"} for n in range(20)]
    return make_corpus(tmp_path / "corpus", save_llama3, rows)


def test_blocks_are_cut_by_tokens_and_lose_no_document(many: Path) -> None:
    documents, dataset = many / "documents" / f"{POOL}.jsonl", many / "datasets" / POOL / "train"
    for size in (100, 3000, 10**9):
        blocks = list(list_blocks(documents, dataset, size))
        assert sum(block.count for block in blocks) == 400
        assert sum(block.train_count for block in blocks) == 356
        for before, after in pairwise(blocks):
            assert after.first == before.first + before.count
            assert after.train_first == before.train_first + before.train_count
            assert before.tokens <= size + 300
        with documents.open("rb") as file:
            for block in blocks:
                file.seek(block.offset)
                row = json.loads(file.readline())
                assert row["id"] in (f"p{block.first}", f"text {block.first // 20}")
    assert len(blocks) == 1


def test_the_bytes_are_the_same_for_any_workers(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch, 4000)
    manifests = [pack_pool(many, POOL, tmp_path / f"{n}", Packing(512), n) for n in (1, 2)]
    assert outputs(manifests[0]) == outputs(manifests[1])
    counts = manifests[0].counts
    assert counts == manifests[1].counts
    assert (counts["documents"], counts["records"], counts["not_problems"]) == (356, 338, 18)
    assert not (tmp_path / "2" / ".work").exists()
    small_blocks(monkeypatch, 10**9)
    whole = pack_pool(many, POOL, tmp_path / "whole", Packing(512))
    assert records_of(tmp_path / "whole") == records_of(tmp_path / "1")
    assert whole.counts["samples"] < counts["samples"], "every block ends with a sample that is not full"


KILLED = """
import sys
from pathlib import Path
from megatron_mathcpt.data import pack_sft
if __name__ == "__main__":
    pack_sft._TOKENS, pack_sft._SAMPLES = 1000, 1
    corpus, out, workers = sys.argv[1:]
    pack_sft.pack_pool(Path(corpus), "problem_solving", Path(out), pack_sft.Packing(512), int(workers))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_resumes_with_the_same_bytes(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    script, out = tmp_path / "killed.py", tmp_path / "out"
    script.write_text(KILLED)
    with subprocess.Popen([sys.executable, str(script), str(many), str(out), str(workers)]) as process:
        while len([*out.glob(".work/*.part")]) < 3:
            assert process.poll() is None
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    assert not psutil.wait_procs(children, timeout=10)[1]
    done = {path: path.stat().st_mtime_ns for path in out.glob(".work/*.part")}
    assert not (out / "manifest.json").exists() and not list(out.glob("*.npy"))
    (out / ".work" / ".tokens.1234.tmp").touch()
    small_blocks(monkeypatch, 1000)
    documents, dataset = many / "documents" / f"{POOL}.jsonl", many / "datasets" / POOL / "train"
    assert len(done) < len(list(list_blocks(documents, dataset, 1000)))
    run, packed = list[int](), pack_sft.pack_block
    monkeypatch.setattr(
        pack_sft, "pack_block", lambda pack, number: (run.append(number), packed(pack, number))
    )
    resumed = pack_pool(many, POOL, out, Packing(512), 1)
    assert not {f"{number:06d}.part" for number in run} & {path.name for path in done}
    assert outputs(resumed) == outputs(pack_pool(many, POOL, tmp_path / "whole", Packing(512), 1))
    assert sorted(path.name for path in out.iterdir())[:2] == [".lock", "lengths.npy"]


def test_parts_of_other_settings_are_not_used(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch, 4000)
    out, packed, finish = tmp_path / "out", pack_sft.pack_block, pack_sft._finish
    monkeypatch.setattr(pack_sft, "_finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pack_pool(many, POOL, out, Packing(512))
    run = list[int]()
    monkeypatch.setattr(pack_sft, "_finish", finish)
    monkeypatch.setattr(
        pack_sft, "pack_block", lambda pack, number: (run.append(number), packed(pack, number))
    )
    changed = pack_pool(many, POOL, out, Packing(256, too_long="cut"), 1)
    assert run == [*range(len(run))] and len(run) > 3
    fresh = pack_pool(many, POOL, tmp_path / "fresh", Packing(256, too_long="cut"), 1)
    assert outputs(changed) == outputs(fresh)
    assert pack_pool(many, POOL, out, Packing(256, too_long="cut")) == changed
    with pytest.raises(ManifestError, match="another config 'seq_length'"):
        pack_pool(many, POOL, out, Packing(512))


def test_what_cannot_be_packed_is_refused(many: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pool 'x': not in .*; there is problem_solving"):
        pack_pool(many, "x", tmp_path / "out", Packing(512))
    with pytest.raises(ConfigError, match="loss roles: robot; give some of system, user"):
        Packing(512, loss_roles=("assistant", "robot"))
    with pytest.raises(DataError, match=r"no problems or chats to pack .*dropped_too_long 338"):
        pack_pool(many, POOL, tmp_path / "short", Packing(4))
