"""`download benchmarks` from a server in place of GitHub and of the hub: every format, resuming, refusals.

The originals have the fields of the real ones and rows of our own; the package's table with their checksums.
"""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_mathcpt.data.benchmark_formats import FORMATS
from megatron_mathcpt.data.benchmark_sources import load_table
from megatron_mathcpt.evaluation.tasks import TASKS_FOLDER
from megatron_mathcpt.formats.benchmark import STUDY_SETS, choose_sets, examples_for, load_items

ROOT = Path(__file__).resolve().parents[2]
TABLE = load_table()
SHARES = {"question": "A pie is cut in $8$ and $2$ are eaten. Which share?", "solution": "It is $2/8$."}
MATH = {"problem": "What share is 2 of 8?", "level": "Level 3", "type": "Counting & Probability"}
HALF = r"We have 2/8. That is \frac{1}{4}, or $\boxed{\frac{1}{4}}$."
PAGE = r"""Question: What is $2 + 2$?
Answer: Let's think step by step
Counting gives $\boxed{4}$.
The answer is 4


Question: Add $z$ and $z$.
Answer: Let's think step by step
It is $2z$.
The answer is 2z}


Question: What is $3 - 1$?
Answer: Let's think step by step
From $3$ take $1$:
$\boxed{2}$.
The answer is 2
"""


def olympiad(**fields: Any) -> dict[str, Any]:
    known = {"id": 7, "subfield": "Algebra", "context": None, "question": "Find all x.", "unit": None}
    known |= {
        "solution": ["Square.\n\nSo x is 1 or 2."],
        "final_answer": ["$1$,$2$"],
        "is_multiple_answer": True,
    }
    return known | {"answer_type": "Numerical", "error": None} | fields


def tal(problem: str, **fields: Any) -> dict[str, Any]:
    options = [[{"aoVal": letter, "content": f"$${n}$$ "}] for n, letter in enumerate("ABC", 3)]
    known = {
        "qid": "1",
        "competition_source_list": ["2019年初二竞赛第3题"],
        "difficulty": "2",
        "problem": problem,
    }
    known |= {
        "answer_option_list": options,
        "answer_value": "C",
        "answer_analysis": ["$$2+3=5$$．  故选C． "],
    }
    return known | {"knowledge_point_routes": ["课内体系->知识点->数->加法"]} | fields


def bench(question: str, answer: Any) -> dict[str, Any]:
    known = {"year": "2010", "category": "（新课标）", "question": question, "answer": answer, "score": 5}
    return known | {"analysis": "解: 两边平方.\n\n应选 D.\n", "index": 0}


ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k-test": [
        {
            "question": "3 bags of 400 nuts lose 190.",
            "answer": "3*400=<<3*400=1200>>1200\nSo 1,010 nuts\n#### 1,010",
        }
    ],
    "gsm8k-train": [
        {"question": "3 bags of 400 nuts lose 190.", "answer": "As in the test.\n#### 1,010"},
        {"question": "One and one?", "answer": "1+1=<<1+1=2>>2\n#### 2"},
    ],
    "math-test": [MATH | {"solution": HALF, "idx": 0}],
    "math500": [
        MATH | {"solution": HALF, "answer": r"\frac{1}{4}", "subject": "Algebra", "level": 2, "type": None}
    ],
    "aime24": [
        {
            "id": 60,
            "problem": "Find n.",
            "solution": "a\nb",
            "answer": "033",
            "url": "",
            "question": "Find n.",
        }
    ],
    "aime25": [{"id": 90, "problem": "Find m.", "solution": "7", "answer": "7", "question": "Find m."}],
    "amc23": [{"id": 0, "problem": "How far?", "answer": 27.0, "url": "", "question": "How far?"}],
    "olympiadbench-en": [olympiad(context="Let x be real.")],
    "olympiadbench-zh-comp": [olympiad(question="求x。"), olympiad(question="证。", final_answer=None)],
    "olympiadbench-zh-cee": [olympiad(question="求y。", final_answer=["3"])],
    "cmath-dev": [
        {"grade": 2, "input": "3个5是多少？", "golden": "15", "reasoning_step": 1, "num_digits": 1}
    ],
    "gkb-I-choice": [
        bench("1. （5 分) 若 $x^2=4$, 则\nA. 1\nB. 2\n", ["B"]),
        bench("7.选\nA. 1\nB. 2", ["A", "B"]),
    ],
    "gkb-II-choice": [bench("3. (5 分) 若 $x^2=4$,  则\nA. 1\nB. 2\n", ["B"])],
    "gkb-I-cloze": [bench("13. (5 分) 求 $x$ 和 $y$.\n", "$1$;$2$\n")],
    "gkb-II-cloze": [bench("14. 求 $z$.", "$\frac{1}{2}$")],  # with a lost backslash, as in two real rows
    "gaokao-mathqa": [
        {
            "passage": None,
            "question": "选 $a$\\\\\n",
            "options": ["(A)$-1$", "(B)1"],
            "label": "B",
            "answer": None,
        }
        | {"other": {"source": "2021年"}},
        {
            "passage": None,
            "question": "多选",
            "options": ["(A)1", "(B)2"],
            "label": "A B",
            "answer": None,
            "other": None,
        },
    ],
    "gaokao-mathcloze": [
        {
            "passage": None,
            "question": "求 $a$, $b$",
            "options": None,
            "label": None,
            "answer": "$5$;$10$",
            "other": None,
        }
    ],
    "sat-math": [
        {"passage": "", "question": "Which?", "options": ["(A)2", "(B)3"], "label": "A"}
        | {"other": {"solution": "It is 2. So A."}}
    ],
    "mmlu-stem": [{"question": "Why?", "type": "astronomy", "choices": ["a", "b", "c", "d"], "answer": 2}]
    * 2,
    "talen-test": [tal("What is $$2+3$$? "), tal("Ten options", answer_value="F")],
    "talen-train": [tal("What is $$2+3$$?"), tal("Sum of $$1$$ and $$4$$?")],
    "talcn-test": [
        tal("$$2+3$$是（~ ）．"),
        tal("如图，求$$x$$．"),
        tal("小学题", competition_source_list=["六年级竞赛"], answer_analysis=None),
        tal("课外题", knowledge_point_routes=["拓展思维->计算模块->加法"]),
    ],
    "talcn-train": [tal("$$1+4$$是")],
    "gaokao2023en": [
        {"source": "2023BJ_2023年/01Q.en", "question": "Find $M$.", "lang": "en", "answer": "$\\{1\\}$"},
        {"source": "part1.en_zh.json", "question": "SAT", "lang": "en", "answer": ""},
    ],
    "gaokao2024I": [
        {
            "question": "请完成下面一道选择题，选出所有正确的。\n设 $f$，则：\nA. a\nB. b",
            "answer": "AB",
            "type": "multi",
        },
        {"question": "单选", "answer": "A", "type": "single"},
    ],
    "gaokao2024II": [{"question": "求 $S$", "answer": "95", "type": "blank"}],
    "gaokao2024zh": [
        {"idx": 0, "question": "则 x A. 1 B. 2", "answer": "B. 2", "choice_answer": "B"},
        {"idx": 1, "question": "则 x  A. 1 B. 2", "answer": "2", "choice_answer": "B"},
    ],
    "cnms24": [{"idx": 0, "question": "若 x \neq 0, 求 x", "answer": "7/12 ", "choice_answer": ""}],
}
# Of each set: id, answer, type, and some of question, choices, solution, steps, level, subject, stage.
EXPECTED: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [
        {"id": "gsm8k-test-000", "answer": "1010", "type": "number", "steps": 2}
        | {"solution": "3*400=1200\nSo 1,010 nuts"}
    ],
    "math": [
        {"id": "math-test-000", "answer": r"\frac{1}{4}", "type": "latex", "level": 3, "steps": 2}
        | {"subject": "counting_and_probability", "solution": HALF}
    ],
    "math500": [{"id": "math500-000", "answer": r"\frac{1}{4}", "level": 2, "subject": "algebra"}],
    "aime24": [{"id": "aime24-000", "answer": "033", "type": "number", "solution": None, "stage": "high"}],
    "aime25": [{"id": "aime25-000", "answer": "7", "solution": None}],
    "amc23": [{"id": "amc23-000", "answer": "27", "question": "How far?"}],
    "olympiadbench_en": [
        {"question": "Let x be real.\nFind all x.", "answer": "1,2", "subject": "Algebra", "steps": 2}
    ],
    "olympiadbench_zh": [
        {"id": "olympiadbench-zh-comp-000", "question": "求x。", "lang": "zh"},
        {"id": "olympiadbench-zh-cee-000", "answer": "3", "type": "latex"},
    ],
    "cmath": [{"id": "cmath-dev-000", "answer": "15", "level": 2, "steps": 1, "stage": "primary"}],
    "gaokao_bench": [
        {"id": "gkb-I-choice-000", "question": "若 $x^2=4$, 则\nA. 1\nB. 2", "answer": "B", "type": "choice"},
        {"id": "gkb-I-choice-001", "question": "选\nA. 1\nB. 2", "answer": "AB", "type": "multichoice"},
        {"id": "gkb-I-cloze-000", "question": "求 $x$ 和 $y$.", "answer": "$1$;$2$", "type": "cloze"},
        {"id": "gkb-II-cloze-000", "answer": r"$\frac{1}{2}$", "steps": 2, "stage": "high"},
    ],
    "agieval_gaokao_mathqa": [
        {"question": "选 $a$\\\\", "choices": ("$-1$", "1"), "answer": "B", "type": "choice"},
        {"choices": ("1", "2"), "answer": "AB", "type": "multichoice"},
    ],
    "agieval_gaokao_mathcloze": [{"answer": "$5$;$10$", "type": "cloze", "lang": "zh"}],
    "agieval_sat_math": [{"choices": ("2", "3"), "answer": "A", "solution": "It is 2. So A.", "steps": 2}],
    "mmlu_stem": [{"answer": "C", "choices": ("a", "b", "c", "d"), "subject": "astronomy"}],
    "tal_scq5k_en": [
        {
            "question": "What is $2+3$?",
            "choices": ("$3$", "$4$", "$5$"),
            "answer": "C",
            "level": 2,
            "subject": "数",
        }
    ],
    "tal_scq5k_zh": [
        {"id": "talcn-test-000", "question": "$2+3$是（ ）．", "solution": "$2+3=5$．\n故选C．", "steps": 1},
        {"question": "如图，求$x$．"},
        {"question": "小学题", "solution": None},
        {"question": "课外题", "subject": "加法"},
    ],
    "gaokao_public": [
        {"id": "gaokao2023en-000", "lang": "en", "answer": "$\\{1\\}$", "type": "latex"},
        {
            "id": "gaokao2024I-000",
            "question": "设 $f$，则：\nA. a\nB. b",
            "answer": "AB",
            "type": "multichoice",
        },
        {"id": "gaokao2024zh-000", "answer": "B", "answer_text": "2", "type": "choice", "lang": "zh"},
    ],
    "zhongkao_public": [
        {"id": "cnms24-000", "question": r"若 x \neq 0, 求 x", "answer": "2/3", "stage": "middle"},
        {"id": "talcn-test-000", "level": "grade 8", "type": "choice"},
    ],
}
DROPPED = {
    "olympiadbench_zh": {"no_final_answer": 1},
    "gaokao_bench": {"duplicate": 1},
    "mmlu_stem": {"duplicate": 1},
    "tal_scq5k_en": {"options": 1},
    "gaokao_public": {"duplicate": 1, "in_gaokao2024_mix": 2, "not_gaokao": 1},
    "zhongkao_public": {"figure": 1, "not_in_class_of_grades_7_to_9": 2},
}


def content(path: str, name: str) -> bytes:
    if path.endswith(".md"):
        return PAGE.encode()
    rows = ROWS[name]
    if path.endswith(".parquet"):
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file.getvalue()
    if path.endswith(".json"):
        return json.dumps({"keywords": "2010-2022", "example": rows}, ensure_ascii=False).encode()
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FILES = {
    file.label(): content(file.path, "talcn-test" if file.format == "tal_middle" else file.name)
    for one in TABLE.values()
    for file in (*one.test, *one.fewshot)
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The package's table with the checksums of our files; the one without a checksum keeps none."""
    tree = {name: one.model_dump(mode="json") for name, one in TABLE.items()}
    for name, one in TABLE.items():
        for part in ("test", "fewshot"):
            for row, file in zip(tree[name][part], getattr(one, part), strict=True):
                if file.sha256:
                    row["sha256"] = hashlib.sha256(FILES[file.label()]).hexdigest()
                if file.drop:
                    row["drop"] = {"duplicate": [1]}
                if file.answers:
                    row["answers"] = {0: file.answers[25]}
    path = tmp_path / "table.yaml"
    path.write_text(json.dumps(tree))
    return path


class Homes(BaseHTTPRequestHandler):
    """Raw files of GitHub, and files of the hub's datasets with its headers; notes what was asked for."""

    asked: list[str]
    files: dict[str, bytes]
    gated = False
    stalled = ""  # a file whose second half does not come

    def do_HEAD(self) -> None:
        path = unquote(self.path)
        self.asked.append(path)
        hub = re.match(r"/datasets/(.+?)/resolve/([0-9a-f]{40})/(.+)", path)
        raw = re.match(r"/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path)
        match = hub or raw
        data = self.files.get(f"{match[1]}/{match[3]}") if match else None
        if hub and self.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        elif match is None or data is None:
            self._send(404, b"", {})
        else:
            etag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": match[2]}
            self._send(200, data, etag if hub else {})

    do_GET = do_HEAD

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            stalls = self.stalled and self.path.endswith(self.stalled)
            self.wfile.write(data[: len(data) // 2] if stalls else data)
            self.wfile.flush()
            while stalls and self.stalled:
                time.sleep(0.02)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def homes() -> Iterator[tuple[str, type[Homes]]]:
    handler = type("OneHomes", (Homes,), {"asked": [], "files": dict(FILES)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    handler.stalled = ""
    server.shutdown()
    server.server_close()


def start(endpoint: str, out: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "GITHUB_RAW_ENDPOINT": endpoint, "COLUMNS": "200"}
    offline = "1" if endpoint.endswith(":9") else "0"  # else the hub's library tries for 25 s
    environment |= {"HF_HUB_OFFLINE": offline, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [
        sys.executable,
        str(ROOT / "tools" / "download.py"),
        "benchmarks",
        "--out",
        str(out),
        *arguments,
    ]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(endpoint: str, out: Path, table: Path, sets: str = "") -> tuple[int, str, list[str]]:
    process = start(endpoint, out, "--table", str(table), *(["--sets", sets] if sets else []))
    shown, errors = process.communicate(timeout=120)
    return process.returncode, shown, errors.splitlines()


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.glob("*/*.jsonl")}


def test_every_set_is_converted_and_a_second_run_asks_for_nothing(
    homes: tuple[str, type[Homes]], tmp_path: Path, table: Path
) -> None:
    endpoint, handler = homes
    out = tmp_path / "sets"
    code, shown, errors = run(endpoint, out, table)
    assert (code, errors) == (0, [])
    assert EXPECTED.keys() == TABLE.keys() == choose_sets(str(out), "all").keys()
    for name, path in choose_sets(str(out), "all").items():
        items = load_items(path).items
        found = [
            {key: getattr(item, key) for key in row} for item, row in zip(items, EXPECTED[name], strict=True)
        ]
        assert found == EXPECTED[name]
        manifest = json.loads(path.with_name("manifest.json").read_bytes())
        test = manifest["counts"]["test"]
        assert test["dropped"] == DROPPED.get(name, {})
        assert test["kept"] + sum(test["dropped"].values()) == test["read"]
        assert f"│ {test['read']} │" in re.sub(" +", " ", shown)
        assert manifest["config"]["licence"] == TABLE[name].licence
        files = (*TABLE[name].test, *TABLE[name].fewshot)
        assert manifest["inputs"] == {
            one.label(): hashlib.sha256(FILES[one.label()]).hexdigest() for one in files
        }
        assert all(item.model_dump() and row["src"] for item, row in zip(items, rows(path), strict=True))
    fewshot = {path.parent.name: load_items(path).items for path in out.glob("*/fewshot.jsonl")}
    assert {
        name: [(item.id, item.answer, item.steps) for item in items] for name, items in fewshot.items()
    } == {
        "gsm8k": [("gsm8k-train-001", "2", 1)],
        "math": [("math-train-000", "4", 1), ("math-train-002", "2", 1)],
        "math500": [("math-train-000", "4", 1), ("math-train-002", "2", 1)],
        "tal_scq5k_en": [("talen-train-001", "C", 1)],
        "tal_scq5k_zh": [("talcn-train-000", "C", 1)],
    }
    shot = examples_for(load_items(out / "tal_scq5k_en/test.jsonl").items, out / "tal_scq5k_en/test.jsonl", 1)
    assert shot["en"][0].question == "Sum of $1$ and $4$?\nA. $3$\nB. $4$\nC. $5$"

    first = contents(out)
    handler.asked.clear()
    assert run(endpoint, out, table)[::2] == (0, [])
    (out / "math" / "test.jsonl").unlink()
    code, shown, errors = run("http://127.0.0.1:9", out, table)
    assert (code, errors, handler.asked) == (0, [], [])
    assert "math/test.jsonl: missing, manifest says" in shown and contents(out) == first


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_killed_and_resumed_it_fetches_only_what_is_missing(
    homes: tuple[str, type[Homes]], tmp_path: Path, table: Path
) -> None:
    endpoint, handler = homes
    assert run(endpoint, tmp_path / "whole", table, "gsm8k,cmath")[0] == 0
    handler.asked.clear()
    handler.stalled = "cmath_dev.jsonl"
    process = start(endpoint, tmp_path / "killed", "--table", str(table), "--sets", "gsm8k,cmath")
    deadline = time.monotonic() + 60
    while not any(path.endswith(handler.stalled) for path in handler.asked):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not (tmp_path / "killed" / "cmath" / "manifest.json").exists()
    handler.stalled = ""
    handler.asked.clear()
    assert run(endpoint, tmp_path / "killed", table, "gsm8k,cmath")[0] == 0
    assert [path.rpartition("/")[2] for path in handler.asked] == ["cmath_dev.jsonl"]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_wrong_checksum_and_a_gated_set_are_refused_and_the_others_come(
    homes: tuple[str, type[Homes]], tmp_path: Path, table: Path
) -> None:
    endpoint, handler = homes
    handler.gated = True
    label = TABLE["gsm8k"].test[0].label()
    handler.files[label] += b"\n"
    del handler.files[TABLE["amc23"].test[0].label()]
    (tmp_path / "aime24").mkdir()
    (tmp_path / "aime24" / "test.jsonl").write_text("my own")
    code, _, errors = run(endpoint, tmp_path, table)
    assert code == 2 and len(errors) == 4
    assert re.fullmatch(
        r"error: gsm8k: http\S+test\.jsonl: SHA-256 is \w{64}, not \w{64}: .*run .* again", errors[0]
    )
    assert re.fullmatch(r"error: aime24: \S+aime24: contains test\.jsonl, no output of kind .*", errors[1])
    assert re.fullmatch(r"error: amc23: \S+amc23/test\.jsonl: refused \(HTTP Error 404.*", errors[2])
    gated = "Hothan/OlympiadBench: gated; accept its terms on its page, then `hf auth login`"
    assert errors[3] == f"error: olympiadbench_zh: {gated}"
    complete = {path.parent.name for path in tmp_path.glob("*/manifest.json")}
    missing = {"gsm8k", "aime24", "amc23", "olympiadbench_zh"}
    assert complete == {one.folder or name for name, one in TABLE.items() if name not in missing}
    assert not (tmp_path / ".originals" / label).exists()
    assert (tmp_path / "aime24" / "test.jsonl").read_text() == "my own"


def test_what_came_first_is_the_checksum_of_a_file_without_one(
    homes: tuple[str, type[Homes]], tmp_path: Path, table: Path
) -> None:
    endpoint, handler = homes
    assert run(endpoint, tmp_path, table, "olympiadbench_zh")[0] == 0
    label = next(one.label() for one in TABLE["olympiadbench_zh"].test if one.sha256 is None)
    handler.files[label] = handler.files[TABLE["olympiadbench_zh"].test[1].label()]
    (tmp_path / ".originals" / label).unlink()
    (tmp_path / "olympiadbench_zh" / "test.jsonl").unlink()
    code, _, errors = run(endpoint, tmp_path, table, "olympiadbench_zh")
    assert code == 2 and len(errors) == 1
    assert f"SHA-256 is {hashlib.sha256(handler.files[label]).hexdigest()}, not " in errors[0]


def test_offline_it_says_which_files_to_put_where(tmp_path: Path, table: Path) -> None:
    code, _, errors = run("http://127.0.0.1:9", tmp_path, table)
    assert code == 2 and len(errors) == 1
    assert errors[0].startswith(f"error: {tmp_path / '.originals'}: ")
    assert "put these files into that folder" in errors[0]
    assert not list(tmp_path.glob("*/*.jsonl"))
    for one in (file for part in TABLE.values() for file in (*part.test, *part.fewshot)):
        assert f"{one.label()} (from http://127.0.0.1:9/" in errors[0]
        path = tmp_path / ".originals" / one.label()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(FILES[one.label()])
    assert run("http://127.0.0.1:9", tmp_path, table)[::2] == (0, [])
    assert len(list(tmp_path.glob("*/test.jsonl"))) == len(TABLE)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'{"question": "1+1?"}\n', r"row 1: not of the format gsm8k \(KeyError: 'answer'\)"),
        (b'{"question": 5, "answer": "1\\n#### 2"}\n', "row 1: not of the format gsm8k .*valid string"),
        (b'{"question": "1+1?", "answer": "2"}\n', "test.jsonl: no item of 1 rows is left"),
        (b'{"question": "1+1?", "answer": "\n', "row 0: not of the format gsm8k .*not JSON"),
        (b"\xff\xfe", "row 0: not of the format gsm8k"),
        (b"[]", "row 0: not of the format gsm8k"),
    ],
)
def test_a_file_of_another_format_is_one_line(
    homes: tuple[str, type[Homes]], tmp_path: Path, row: bytes, message: str
) -> None:
    endpoint, handler = homes
    one = TABLE["gsm8k"].model_dump(mode="json") | {"fewshot": []}
    one["test"][0]["sha256"] = None
    table = tmp_path / "table.yaml"
    table.write_text(json.dumps({"gsm8k": one}))
    handler.files[TABLE["gsm8k"].test[0].label()] = row
    code, _, errors = run(endpoint, tmp_path / "out", table)
    assert code == 2 and len(errors) == 1 and re.search(message, errors[0])


def test_the_table_is_pinned_and_every_set_has_a_task() -> None:
    files = [file for one in TABLE.values() for file in (*one.test, *one.fewshot)]
    assert {file.format for file in files} == FORMATS.keys()
    assert all(re.fullmatch(r"(hub:)?[\w.-]+/[\w.-]+@[0-9a-f]{40}", file.at) for file in files)
    assert [file.name for file in files if not file.sha256] == ["olympiadbench-zh-comp"]
    assert all(file.at.startswith("hub:") for file in files if not file.sha256)
    tasks = {path.name for path in TASKS_FOLDER.iterdir() if path.is_dir()}
    assert tasks == TABLE.keys() | {"gaokao_study", "zhongkao_study"}
    study = {name: f"{TABLE[name].folder or name}/test.jsonl" for name in STUDY_SETS}
    assert study == STUDY_SETS
