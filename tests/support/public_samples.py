"""Small samples of every set of config/public_sources.yaml, in its schema and file layout, made up here.

    python tests/support/public_samples.py FOLDER [RECORDS]

The problems are those of our generator, the texts are made of its solutions and of Python's documentation.
FOLDER/corpora/NAME is what `mathcpt download NAME --out corpora/NAME` would bring, of a few hundred records;
FOLDER/benchmarks has other problems, to be scored on.
"""

import gzip
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from megatron_mathcpt.data.corpora import evaluation_item, package
from megatron_mathcpt.data.problems import ProblemMix, evaluation_problems, training_problems
from megatron_mathcpt.records import Language, Problem

Row = dict[str, Any]
SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra")
SUBJECTS += ("number_theory", "prealgebra", "precalculus")


def numinamath(p: Problem) -> Row:
    solution = f"{p.solution}\nThus we have $\\boxed{{{p.answer}}}$."
    said = [{"content": p.question, "role": "user"}, {"content": solution, "role": "assistant"}]
    return {"source": "cn_k12", "problem": p.question, "solution": solution, "messages": said}


def numinamath_1_5(p: Problem) -> Row:
    kinds = {"problem_type": "Algebra", "question_type": "math-word-problem", "source": "olympiads"}
    flags = {"problem_is_valid": "Yes", "solution_is_valid": "Yes", "synthetic": False}
    return {"problem": p.question, "solution": p.solution, "answer": p.answer, "uuid": p.id, **kinds, **flags}


def gsm8k(p: Problem) -> Row:
    noted = p.solution.replace(f"= {p.answer}", f"= <<1*{p.answer}={p.answer}>>{p.answer}")
    return {"question": p.question, "answer": f"{noted}\n#### {p.answer}"}


def hendrycks(p: Problem) -> Row:
    solution = f"{p.solution}\nThe result is $\\boxed{{{p.answer}}}$."
    return {"problem": p.question, "level": "Level 2", "type": "Algebra", "solution": solution}


def metamathqa(p: Problem) -> Row:
    return {
        "type": "GSM_Rephrased",
        "query": p.question,
        "original_question": p.question,
        "response": f"{p.solution}\nThe answer is: {p.answer}",
    }


def orca_math(p: Problem) -> Row:
    return {"question": p.question, "answer": f"{p.solution}\nTherefore, the result is {p.answer}."}


def openmathinstruct(p: Problem) -> Row:
    solution = f"{p.solution}\nSo we get $\\boxed{{{p.answer}}}$."
    known = {"expected_answer": p.answer, "problem_source": "augmented_gsm8k"}
    return {"problem": p.question, "generated_solution": solution, **known}


def openmathreasoning(p: Problem) -> Row:
    thought = (
        f"<think>\nLet me see. {p.solution} Wait, again.\n</think>\n\n{p.solution}\n\\boxed{{{p.answer}}}"
    )
    kinds = {"problem_type": "has_answer_extracted", "problem_source": "aops_c6_high_school_olympiads"}
    made = {"generation_model": "DeepSeek-R1", "pass_rate_72b_tir": "0.9", "inference_mode": "cot"}
    return {
        "expected_answer": p.answer,
        **kinds,
        **made,
        "problem": p.question,
        "generated_solution": thought,
    }


def nemotron_math(p: Problem) -> Row:
    said = [{"role": "user", "content": p.question}, {"role": "assistant", "content": p.solution}]
    return {"problem": p.question, "messages": said, "expected_answer": p.answer}


def lila(p: Problem) -> Row:
    program = f"# {p.solution.splitlines()[0]}\nanswer = {p.answer}\nprint(answer)"
    return {"input": p.question, "output_program": program, "output_answer": p.answer, "dataset": "asdiv"}


def tal_scq5k(p: Problem) -> Row:
    values = [p.answer, f"{p.answer}0", f"1{p.answer}", f"{p.answer}7"]
    order = random.Random(p.id).sample(range(4), 4)
    options = [[{"aoVal": "ABCD"[place], "content": f"$${values[n]}$$ "}] for place, n in enumerate(order)]
    made = {"dataset_name": "prime_math_competition_single_choice_8K_dev", "dataset_version": "2023-07-07"}
    kinds = {
        "qid": "1",
        "queId": p.id,
        "competition_source_list": [],
        "difficulty": "2",
        "qtype": "single_choice",
    }
    found = {"answer_analysis": [p.solution], "answer_value": "ABCD"[order.index(0)]}
    return {
        **made,
        **kinds,
        "problem": p.question,
        "answer_option_list": options,
        "knowledge_point_routes": [],
        **found,
    }


def ape210k(p: Problem) -> Row:
    known = {
        "id": p.id,
        "question": "a translation",
        "question_chinese": p.question,
        "chain": "<gadget>…</gadget>",
    }
    return {**known, "result": p.answer, "result_float": 0.0, "equation": f"x={p.solution.splitlines()[-1]}"}


def cmm_math(p: Problem) -> Row:
    known = {"id": p.id, "image": "[]", "answer": p.answer, "solution": None, "level": "七年级"}
    return {**known, "question": p.question, "options": "", "subject": "算术", "analysis": p.solution}


def belle(p: Problem) -> Row:
    return {"instruction": p.question, "input": "", "output": f"{p.solution}\n答案是{p.answer}"}


Writer = Callable[[Path, list[Row]], None]


def parquet(path: Path, rows: list[Row]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def lines(path: Path, rows: list[Row]) -> None:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix)
    path.write_bytes(packed(data) if packed else data)


def array(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps(rows, indent=4, ensure_ascii=False), encoding="utf-8")


# For each set: its files, how they are written, and how a problem of which language becomes a row.
PROBLEMS: Mapping[str, tuple[Sequence[str], Writer, Callable[[Problem], Row], Language]] = {
    "numinamath": (["data/train-00000-of-00005.parquet"], parquet, numinamath, "en"),
    "numinamath_1_5": (["data/train-00000-of-00003.parquet"], parquet, numinamath_1_5, "en"),
    "gsm8k_train": (["main/train-00000-of-00001.parquet"], parquet, gsm8k, "en"),
    "math_train": ([f"{name}/train-00000-of-00001.parquet" for name in SUBJECTS], parquet, hendrycks, "en"),
    "metamathqa": (["MetaMathQA-395K.json"], array, metamathqa, "en"),
    "orca_math": (["data/train-00000-of-00001.parquet"], parquet, orca_math, "en"),
    "openmathinstruct_2": (
        [f"data/train-{n:05d}-of-00032.parquet" for n in (0, 1)],
        parquet,
        openmathinstruct,
        "en",
    ),
    "openmathreasoning": (["data/cot-00000-of-00144.parquet"], parquet, openmathreasoning, "en"),
    "nemotron_math": (["data/low.jsonl"], lines, nemotron_math, "en"),
    "lila": (["iid/train/0000.parquet"], parquet, lila, "en"),
    "tal_scq5k_en": (["TAL-SCQ5K-EN/train.jsonl"], lines, tal_scq5k, "en"),
    "tal_scq5k_zh": (["TAL-SCQ5K-CN/train.jsonl"], lines, tal_scq5k, "zh"),
    "ape210k": (["data/train-00000-of-00001-b9f022a8492442e4.parquet"], parquet, ape210k, "zh"),
    "cmm_math": (["train_data.parquet"], parquet, cmm_math, "zh"),
    "belle_school_math": (["school_math_0.25M.json"], lines, belle, "zh"),
}


def web(text: str, url: str) -> Row:
    return {"url": url, "text": text, "date": "2023-01-01 00:00:00", "metadata": '{"extraction_info": {}}'}


def with_images(text: str, url: str) -> Row:
    first, _, rest = text.partition("\n\n")
    return {
        "URL": url,
        "text_list": [first, None, rest],
        "image_list": [None, "http://example.org/i.png", None],
    }


def arxiv(text: str, url: str) -> Row:
    return {
        "text": text,
        "meta": {"timestamp": "2020-01-01", "yymm": "2001", "arxiv_id": url, "language": "en", "url": url},
    }


def code(text: str, url: str) -> Row:
    return {
        "max_stars_repo_path": "a.py",
        "max_stars_repo_name": url,
        "max_stars_count": 3,
        "id": url,
        "content": text,
    }


TEXTS: Mapping[str, tuple[Sequence[str], Writer, Callable[[str, str], Row], str]] = {
    "open_web_math": (["data/train-00000-of-00114.parquet"], parquet, web, "math"),
    "infimm_webmath": (["part-00000.parquet"], parquet, with_images, "math"),
    "finemath_4plus": (["finemath-4plus/train-00000-of-00064.parquet"], parquet, web, "math"),
    "finemath_3plus": (["finemath-3plus/train-00000-of-00128.parquet"], parquet, web, "math"),
    "megamath_web_pro": (["megamath-web-pro/000_00000.parquet"], parquet, web, "math"),
    "nemotron_cc_math": (
        ["4plus/part_000000.parquet"],
        parquet,
        lambda text, url: {"id": url, "text": text, "metadata": "{}"},
        "math",
    ),
    "c4": (
        ["en/c4-train.00000-of-01024.json.gz"],
        lines,
        lambda text, url: {"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": url},
        "general",
    ),
    "wikipedia_en": (
        ["20231101.en/train-00000-of-00041.parquet"],
        parquet,
        lambda text, url: {
            "id": url,
            "url": f"https://en.wikipedia.org/wiki/{url}",
            "title": url,
            "text": text,
        },
        "general",
    ),
    "wikipedia_zh": (
        ["20231101.zh/train-00000-of-00006.parquet"],
        parquet,
        lambda text, url: {
            "id": url,
            "url": f"https://zh.wikipedia.org/wiki/{url}",
            "title": url,
            "text": text,
        },
        "chinese",
    ),
    "fineweb_2_zh": (
        ["data/cmn_Hani/train/000_00000.parquet"],
        parquet,
        lambda text, url: {"text": text, "id": url},
        "chinese",
    ),
    "proof_pile_arxiv": (["arxiv/train/arXiv_000.jsonl.zst"], lines, arxiv, "math"),
    "algebraic_stack": (
        ["algebraic-stack/train/lean0000.jsonl.zst"],
        lines,
        lambda text, url: {"text": text, "meta": {"hexsha": url, "lang": "Lean"}},
        "general",
    ),
    "starcoder": (["python/train-00000-of-00059.parquet"], parquet, code, "general"),
}


def lessons(problems: Sequence[Problem]) -> Iterator[str]:
    """Texts of three solved problems each."""
    for first in range(0, len(problems) - 2, 3):
        yield "\n\n".join(f"{p.question}\n{p.solution}" for p in problems[first : first + 3])


def write_samples(out: Path, count: int = 200, seed: int = 5) -> dict[str, list[Problem]]:
    """Write `count` records of every set; returns the problems of each."""
    mix = ProblemMix(train_problems=60 * count, chinese_share=0.5)
    problems = training_problems(mix, seed)
    pools = {language: iter([p for p in problems if p.language == language]) for language in ("en", "zh")}
    written: dict[str, list[Problem]] = {}
    for name, (paths, write, row, language) in PROBLEMS.items():
        written[name] = list(islice(pools[language], count))
        for number, path in enumerate(paths):
            (out / name / path).parent.mkdir(parents=True, exist_ok=True)
            write(out / name / path, [row(p) for p in written[name][number :: len(paths)]])
    texts = {
        "math": cycle(
            [*lessons([*islice(pools["en"], 9 * count)]), *(row["text"] for row in package("mpmath"))]
        ),
        "chinese": cycle(lessons([*islice(pools["zh"], 6 * count)])),
        "general": cycle(row["text"] for row in package("huggingface_hub")),
    }
    for name, (paths, write, made, kind) in TEXTS.items():
        for path in paths:
            (out / name / path).parent.mkdir(parents=True, exist_ok=True)
            found = enumerate(islice(texts[kind], count))
            write(out / name / path, [made(text, f"http://example.org/{name}/{n}") for n, text in found])
    return written


def write_benchmarks(out: Path, count: int = 60, seed: int = 5) -> None:
    """Held-out problems of both languages, which share no numbers of a template with the samples."""
    for language in ("en", "zh"):
        mix = ProblemMix(evaluation_problems={language: count})
        rows = [evaluation_item(problem) for problem in evaluation_problems(mix, language, seed)]
        path = out / f"samples_{language}" / "test.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines(path, rows)


if __name__ == "__main__":
    write_samples(Path(sys.argv[1], "corpora"), *map(int, sys.argv[2:3]))
    write_benchmarks(Path(sys.argv[1], "benchmarks"))
