"""Rows in the schemas of the public sources; their download from a server that speaks the hub's protocol."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from megatron_mathcpt.config.corpus import Source, public_sources
from megatron_mathcpt.data.benchmark_sources import load_table
from megatron_mathcpt.data.public_sources import ADAPTERS, FOUND, NOTE, download, find_source
from megatron_mathcpt.data.sources import Document, Skipped, list_shards, read_documents
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.records import Problem
from tests.support.public_samples import write_samples

PUBLISHED = public_sources()
ARXIV = {"yymm": "0704", "arxiv_id": "0704.0001", "language": "en", "url": "https://arxiv.org/abs/0704.0001"}
WIKI = json.dumps({"title": "Pi", "url": "https://en.wikipedia.org/wiki/Pi", "language": "en"})
CODE = "<reponame>me/repo<filename>src/a.py<gh_stars>1-10\nx = 1 < 2\n"
STARRED = {"max_stars_repo_path": "src/a.py", "max_stars_repo_name": "me/repo", "max_stars_count": 3}
WEB = {"url": "http://a", "text": "T", "date": "2023-01-01 00:00:00", "metadata": '{"extraction_info": {}}'}
MIXED = {"text_list": ["One", None, "Two"], "image_list": [None, "http://i.png", None], "URL": "http://b"}
NUMINA = {"problem": "1+1?", "solution": r"\boxed{1} is wrong: $\boxed{\frac{4}{2}}$.", "source": "cn_k12"}
LILA = {"input": "1+1?", "output_program": "answer=1+1\nprint(answer)", "split": "train", "dataset": "asdiv"}
VALID = {"problem_type": "Algebra", "problem_is_valid": "Yes", "solution_is_valid": "Yes", "synthetic": False}
ADDED = {"Input": "1+1?", "Output Program": ["print(1+1)"], "Output Answer": ["2"], "Split": "train"}
SOLVED = ("1+1?", NUMINA["solution"], r"\frac{4}{2}", "cn_k12")
ROWS: list[tuple[str, dict[str, Any], tuple[str, ...] | str]] = [
    ("redpajama", {"text": "T", "meta": ARXIV}, ("0704.0001", "T")),
    ("redpajama", {"text": "T", "meta": {"source": "c4", "url": "http://a.b"}}, ("http://a.b", "T")),
    ("redpajama", {"text": "T", "meta": WIKI}, ("https://en.wikipedia.org/wiki/Pi", "T")),
    ("algebraic_stack", {"text": "T", "meta": {"hexsha": "ab12", "lang": "Lean"}}, ("ab12", "T")),
    ("starcoder", {**STARRED, "id": "17", "content": CODE}, ("me/repo/src/a.py", "x = 1 < 2")),
    ("starcoder", {"id": "17", "content": "<html>\n</html>"}, ("17", "<html>\n</html>")),
    ("open_web_math", WEB, ("http://a", "T")),
    ("infimm_webmath", MIXED, ("http://b", "One\n\nTwo")),
    ("numinamath", {**NUMINA, "messages": [{"role": "user", "content": "1+1?"}]}, SOLVED),
    ("numinamath", {**NUMINA, **VALID, "answer": r"\frac{4}{2}"}, SOLVED),
    ("numinamath", {**NUMINA, "answer": "proof"}, "no_answer"),
    ("numinamath", {**NUMINA, "solution": "Clear."}, "no_answer"),
    ("numinamath", {**NUMINA, "solution": r"\boxed{1"}, "no_answer"),
    ("numinamath", {**NUMINA, "answer": "2", "problem_is_valid": "Incomplete"}, "invalid_at_source"),
    ("lila", {**LILA, "output_answer": "2"}, ("1+1?", "answer=1+1\nprint(answer)", "2", "asdiv")),
    ("lila", ADDED, ("1+1?", "print(1+1)", "2", "made")),
    ("lila", {**LILA, "output_answer": ""}, "no_answer"),
    ("lila", {**ADDED, "Output Program": []}, "no_solution"),
]


def read_one(tmp_path: Path, adapter: str, row: dict[str, Any]) -> Any:
    kind = PUBLISHED[adapter].kind
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    source = Source.model_validate({"pool": "p", "path": str(path), "kind": kind, "adapter": adapter})
    (shard,) = list_shards({"made": source})
    ((record,),) = read_documents(shard, source)
    return record


@pytest.mark.parametrize(("adapter", "row", "expected"), ROWS)
def test_a_row_becomes_a_document_or_a_named_drop(
    tmp_path: Path, adapter: str, row: dict[str, Any], expected: tuple[str, ...] | str
) -> None:
    record = read_one(tmp_path, adapter, row)
    if isinstance(expected, str):
        assert record == Skipped(1, expected, "made/a.jsonl#1")
    elif record.problem is None:
        assert (record.id, record.text) == expected
    else:
        problem = record.problem
        assert (problem.question, problem.solution, problem.answer, problem.source) == expected
        assert set(problem.extra) <= {"problem_type", "question_type", "synthetic", FOUND}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("value", [None, 1, [], [None], {}, "{", float("nan")])
def test_wrong_types_are_rejects_or_named_drops(tmp_path: Path, adapter: str, value: Any) -> None:
    names = {"meta", "content", "URL", "text_list", "image", "options", "answer_option_list", "messages"}
    names |= {column for one in PUBLISHED.values() for column in one.fields.values()}
    record = read_one(tmp_path, adapter, dict.fromkeys(names, value))
    assert type(record).__name__ in ("Skipped", "Document")


ROOT = Path(__file__).resolve().parents[2]
COMMIT = "1" * 40
FILES = {
    "data/train-00000-of-00002.parquet": os.urandom(240_000),
    "data/train-00001-of-00002.parquet": os.urandom(100_000),
    "data/test-00000-of-00001.parquet": b"not wanted",
    "README.md": b"# a card",
}


class Hub(BaseHTTPRequestHandler):
    """Dataset info with checksums, and files; notes what was asked for."""

    asked: list[str]
    wrong = False
    status = 200

    def do_HEAD(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.asked.append(path)
        if self.status != 200:
            self._send(self.status, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        elif path.startswith("/api/datasets/"):
            files = [self._row(name, data) for name, data in FILES.items()]
            info = {"id": "AI-MO/NuminaMath-CoT", "sha": COMMIT, "siblings": files}
            answer = json.dumps(files if "/tree/" in path else info).encode()
            self._send(200, answer, {"Content-Type": "application/json"})
        else:
            data = FILES[re.sub(r".*?/resolve/[^/]+/", "", path)]
            self._send(200, data, {"ETag": hashlib.sha256(data).hexdigest(), "X-Repo-Commit": COMMIT})

    do_GET = do_HEAD

    def _row(self, name: str, data: bytes) -> dict[str, Any]:
        sha256 = "0" * 64 if self.wrong else hashlib.sha256(data).hexdigest()
        row = {"type": "file", "path": name, "rfilename": name, "size": len(data), "oid": "b", "blobId": "b"}
        return row | {"lfs": {"oid": sha256, "sha256": sha256, "size": len(data), "pointerSize": 134}}

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    handler = type("OneHub", (Hub,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def run(endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "COLUMNS": "200"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, str(ROOT / "tools" / "download.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_files_are_complete_verified_and_downloaded_again(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, handler = hub
    out = tmp_path / "numinamath"
    first = run(endpoint, "numinamath", "--out", str(out))
    assert first.returncode == 0, first.stderr
    assert f"2 files downloaded; 2 files, 0.00 GB, revision {COMMIT}" in first.stdout
    wanted = {name: data for name, data in FILES.items() if name.startswith("data/train")}
    assert {name: (out / name).read_bytes() for name in wanted} == wanted
    assert not (out / "README.md").exists() and not (out / "data" / "test-00000-of-00001.parquet").exists()
    note = {name: file["sha256"] for name, file in json.loads((out / NOTE).read_bytes())["files"].items()}
    assert note == {name: hashlib.sha256(data).hexdigest() for name, data in wanted.items()}

    handler.asked.clear()
    assert "complete, verified" in run(endpoint, "numinamath", "--out", str(out)).stdout
    assert handler.asked == []

    damaged = out / "data" / "train-00001-of-00002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    repaired = run(endpoint, "numinamath", "--out", str(out)).stdout
    assert "train-00001-of-00002.parquet: missing or damaged" in repaired
    assert "1 files downloaded; 2 files" in repaired
    assert damaged.read_bytes() == wanted["data/train-00001-of-00002.parquet"]

    other = run(endpoint, "lila", "--out", str(out))
    assert other.returncode == 2 and "contains AI-MO/NuminaMath-CoT" in other.stderr
    more = run(endpoint, "AI-MO/NuminaMath-CoT", "--files", "data/*", "--out", str(out))
    assert "1 files downloaded; 3 files" in more.stdout, more.stderr
    assert (out / "data" / "test-00000-of-00001.parquet").read_bytes() == b"not wanted"


def test_any_dataset_of_the_hub_is_downloaded_by_its_name(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, handler = hub
    done = run(endpoint, "some/one", "--revision", "v1", "--out", str(tmp_path / "one"))
    assert "4 files downloaded" in done.stdout and "its columns go under `fields`" in done.stdout, done.stderr
    assert (tmp_path / "one" / "README.md").read_bytes() == FILES["README.md"]
    assert any("some/one/revision/v1" in path for path in handler.asked)
    none = run(endpoint, "some/one", "--files", "*.json", "--out", str(tmp_path / "none"))
    assert none.returncode == 2
    assert "no file matches *.json" in none.stderr
    assert "there are data/*.parquet (3), *.md (1)" in none.stderr
    wrong = run(endpoint, "benchmarks", "--files", "x", "--out", str(tmp_path / "none"))
    assert wrong.returncode == 2 and "--files and --revision: not for `download benchmarks`" in wrong.stderr


@pytest.mark.parametrize(
    ("name", "served", "message"),
    [
        ("numinamath", {"wrong": True}, "SHA-256 is not the hub's"),
        ("starcoder", {"status": 403}, "bigcode/starcoderdata: gated; accept its terms"),
        ("numinamath", None, "AI-MO/NuminaMath-CoT: the hub cannot be reached"),
        ("nothing", {}, "no source 'nothing'; give a dataset of the hub as OWNER/NAME"),
    ],
)
def test_errors_are_one_line(
    hub: tuple[str, type[Hub]], tmp_path: Path, name: str, served: dict[str, Any] | None, message: str
) -> None:
    endpoint, handler = hub
    for key, value in (served or {}).items():
        setattr(handler, key, value)
    done = run("http://127.0.0.1:9" if served is None else endpoint, name, "--out", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr and not (tmp_path / NOTE).exists()


def test_list_shows_every_adapter() -> None:
    shown = run("http://127.0.0.1:9", "--list")
    assert all(name in shown.stdout for name in (*PUBLISHED, *load_table()))
    sets = run("http://127.0.0.1:9", "benchmarks", "--list").stdout
    assert all(name in sets for name in load_table())
    assert not any(name in sets for name in ("numinamath", "open_web_math", "starcoder"))
    assert {found.adapter or name for name, found in PUBLISHED.items()} == {*ADAPTERS}
    with pytest.raises(ValueError, match="adapter: no 'c5'; known are numinamath, gsm8k_train"):
        Source.model_validate({"pool": "p", "path": "a", "adapter": "c5"})
    for found in PUBLISHED.values():
        assert found.kind == "text" or found.licence


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Problem]]]:
    """Every set in its own schema and layout."""
    out = tmp_path_factory.mktemp("corpora")
    return out, write_samples(out, 24)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "redpajama"])
def test_every_set_is_read_from_its_own_files(
    name: str, samples: tuple[Path, dict[str, list[Problem]]]
) -> None:
    """Its pattern finds them; each record has the question, solution and answer that were written."""
    out, written = samples
    one = PUBLISHED[name]
    files = [path.relative_to(out / name).as_posix() for path in (out / name).rglob("*") if path.is_file()]
    assert files and all(fnmatch(file, one.pattern) for file in files)
    path = f"{out / name}/{one.pattern}"
    tree = {"pool": "p", "path": path, "kind": one.kind, "adapter": one.adapter or name}
    source = Source.model_validate(tree)
    shards = list_shards({name: source})
    records = [record for shard in shards for block in read_documents(shard, source) for record in block]
    assert len(records) == 24 and all(isinstance(record, Document) for record in records)
    if one.kind == "text":
        assert all(len(record.text) > 20 for record in records if isinstance(record, Document))
        return
    ours = {p.question.splitlines()[0]: p for p in written[name]}
    for record in records:
        assert isinstance(record, Document) and record.problem
        made, problem = record.problem, ours[record.problem.question.splitlines()[0]]
        assert made.language == problem.language
        letter = re.search(rf"\n([A-D])\. \$\${re.escape(problem.answer)}\$\$$", made.question, re.M)
        assert made.answer == (letter[1] if letter else problem.answer)
        # Where the set has a field for it, or the rule that found it, and never a second statement of it.
        assert made.extra[FOUND] == _FOUND_BY.get(name, "column")
        assert "####" not in made.solution and "<<" not in made.solution and "<think>" not in made.solution
        assert record.text.count("The answer is") + record.text.count("答案是") == 1
        kept = problem.solution.splitlines()[0 if name in ("lila", "numinamath") else -1]
        assert kept in made.solution


_FOUND_BY = {
    **dict.fromkeys(("numinamath", "math_train"), "box"),
    **dict.fromkeys(("gsm8k_train", "metamathqa", "belle_school_math"), "phrase"),
    "orca_math": "last_number",
}


def test_an_item_with_an_image_or_without_a_solution_is_dropped_by_name() -> None:
    item = {"id": "1", "image": "['1.png']", "question": "q", "analysis": "s", "answer": "a"}
    assert ADAPTERS["cmm_math"](item) == "needs_image"
    assert ADAPTERS["cmm_math"](item | {"image": "[]", "analysis": None}) == "no_solution"
    assert ADAPTERS["orca_math"]({"question": "q", "answer": "It cannot be said."}) == "no_answer"
    unfinished = {"problem": "q", "generated_solution": "<think>so far", "expected_answer": "1"}
    assert ADAPTERS["openmathreasoning"](unfinished) == "no_solution"


@pytest.mark.parametrize("note", [b"", b"[" * 5000, b"[]", b'{"repository": 5}', b"\xff"])
def test_a_damaged_note_of_a_download_is_named(tmp_path: Path, note: bytes) -> None:
    (tmp_path / NOTE).write_bytes(note)
    with pytest.raises(DataError, match=r"download\.json: .*; remove it to download all files again"):
        download(find_source("numinamath"), tmp_path, print)
