"""Promises of a whole run: a hostile server, an API key that is echoed, a damaged store, a full disk."""

import base64
import json
import random
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from megatron_mathcpt.config.api_key import ApiKey
from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.errors import DataError, ServerError
from megatron_mathcpt.formats.files import MAX_LINE_BYTES
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis import method, synthesize
from megatron_mathcpt.synthesis.client import _retry_after
from megatron_mathcpt.synthesis.seeds import check_seeds
from megatron_mathcpt.synthesis.store import Store, trace
from megatron_mathcpt.synthesis.tags import OUR_TAG, make_record
from tests.support.fake_server import ScriptedModel, make_seeds
from tests.support.synthesis_runs import FIRST_SHARD, METHOD, ROOT, Trial, outcome_seeds, read_outcomes

KEY = "sk-Very+secret/1234-ZYXw"


def in_base64(before: bytes = b"") -> str:
    return base64.b64encode(before + KEY.encode() + b"..").decode()


def spelled(pattern: str) -> str:
    return "".join(pattern.format(ord(sign), sign) for sign in KEY)


ECHOES = {
    "plain": KEY,
    "other case": KEY.upper(),
    "JSON": spelled("\\u{0:04x}"),
    "Python": spelled("\\x{0:02X}"),
    "braces": spelled("\\u{{{0:x}}}"),
    "zero width": spelled("{1}\u200b"),
    "marks": spelled("{1}\u034f\u0301"),
    "fillers": spelled("{1}\u3164"),
    "wide": "".join(chr(ord(sign) + 0xFEE0) for sign in KEY),
    "lines": KEY[:9] + "\n" + KEY[9:],
    "URL": spelled("%{0:02x}"),
    "URL twice": spelled("%25{0:02X}"),
    "HTML": spelled("&#{0};"),
    "base64": in_base64(),
    "base64 + 1": in_base64(b"u"),
    "base64 + 2": in_base64(b"Bearer: "),
    "base64 for URLs": in_base64().replace("+", "-").replace("/", "_"),
    "hexadecimal": KEY.encode().hex().upper(),
}
OTHERS = [
    "",
    "sk-Very",
    "2 + 3 = 5\nThe answer is 5.",
    "\\u0073\\u00",
    "%",
    "&#;",
    "&#1234567;",
    "\\u{fffff}",
]
OTHERS += [
    text * 10**6 for text in ("x", "\\", "\u0315\u0300", "&#", "&#x0", "9%", "\\u{0")
]  # in seconds, too
OTHERS += ["&#" + "9" * 10**6, "\\u{" + "0" * 10**6]


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_an_echoed_key_is_recognised(echo: str) -> None:
    key = ApiKey(KEY)
    assert key.is_in(f"12 + 7 {echo} = 19")
    assert key.is_in(json.dumps({"a": [echo]}))
    assert key.quote(f"bad key {echo}", 20) == "withheld, as it contains the API key"[:40]


def test_other_text_is_not_taken_for_the_key() -> None:
    key, placeholder = ApiKey(KEY), ApiKey("EMPTY")
    assert not any(map(key.is_in, OTHERS))
    assert not placeholder.is_in("the set is EMPTY")
    assert placeholder.quote("bad EMPTY\x1b[2J\n key", 99) == "bad *** [2J key"
    assert ApiKey("").quote("some text", 4) == "some"


@pytest.mark.parametrize("echo", [KEY, ECHOES["zero width"], ECHOES["JSON"], ECHOES["base64 + 1"]])
def test_a_reply_with_the_key_is_not_accepted_and_not_kept(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], echo: str
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    key = ApiKey(KEY)
    server = trial.config().servers["student"].model_dump() | {"key_variable": "TEST_KEY"}
    servers = {"servers": json.loads(json.dumps(dict.fromkeys(("student", "teacher"), server)))}
    scripted = trial.server.model
    trial.server.model = lambda prompt: f"Take {echo}.\n{scripted(prompt)}"
    assert trial.run(6, **servers)["rejected"] == {"reply contains the API key": 6}
    trial.server.name = f"{echo}-model"
    with pytest.raises(ServerError, match="serves withheld, as it contains the API key, not 'test-model'"):
        trial.run(6, out="other", **servers)
    said = "".join(capfd.readouterr())
    files = [
        path.read_bytes().decode("utf-8", "replace") for path in trial.folder.rglob("*") if path.is_file()
    ]
    assert len(files) > 5
    assert not any(map(key.is_in, (said, *files)))


def test_retry_after_in_any_form() -> None:
    far = ("9" * 400, "1" + "0" * 30)
    assert all(_retry_after(value) > 1e9 for value in far)
    others = [
        "²",
        "٣",
        "３",
        "1e999",
        "nan",
        "inf",
        "-5",
        "1,2",
        " ",
        "\udcff",
        "- - -",
        "0x10",
        "9" * 30 + " GMT",
    ]
    others += [
        f"Fri, 31 Dec {year} 23:59:59 {zone}" for year in ("0", "9" * 30) for zone in ("GMT", "+99999999999")
    ]
    assert {_retry_after(value) for value in others} == {0.0}
    chance = random.Random(1)
    signs = "0123456789 :,+-.eGMTFriDecJan²\t\udc80"
    for _ in range(2000):
        assert _retry_after("".join(chance.choices(signs, k=chance.randrange(40)))) >= 0


def test_a_hostile_text_is_searched_in_linear_time() -> None:
    assert not OUR_TAG.search("<" + " " * 10**6 + "x")
    (seed,) = make_seeds(1)
    case = method.Case(None, METHOD, 0, seed)  # type: ignore[arg-type]
    text = "The answer is " * 10**5 + "\nx"
    assert make_record(case, "prose", [("attempt", text)]).solution == text


def test_a_fault_of_ours_is_of_one_seed(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    def grade(prompt: str) -> str:
        text = ScriptedModel()(prompt)
        return text.replace("The answer", "BROKEN The answer") if "is 3 +" in prompt else text

    trial.server.model = grade
    check = synthesize.CONVERSATIONS[METHOD]

    def raising(case: method.Case) -> method.Conversation:
        replies = yield from _first_round(check(case))
        if "BROKEN" in replies[0].text:
            raise RecursionError("too deep")
        return method.Outcome((), "fine")

    monkeypatch.setitem(synthesize.CONVERSATIONS, METHOD, raising)
    assert trial.run(6)["rejected"] == {"fine": 5, "reply cannot be checked": 1}
    (row,) = [row for row in read_outcomes(trial.out, "rejected") if row["reason"] != "fine"]
    assert (row["seed"], row["detail"]) == ("seed-000003", "RecursionError: too deep")
    assert "BROKEN" in row["raw"]


def _first_round(conversation: method.Conversation) -> method.Conversation:
    return (yield next(conversation))  # type: ignore[return-value]


def command(trial: Trial, seeds: int = 20) -> list[str]:
    path = trial.folder / "config.yaml"
    path.write_text(dump_yaml(trial.config(seeds)), encoding="utf-8")
    return [sys.executable, "-m", "megatron_mathcpt", "synthesize", str(path), "--out", str(trial.out)]


def start(
    trial: Trial, before: Callable[[], None] | None = None, seeds: int = 20
) -> tuple[int, list[str], str]:
    """Start the command; return its status, the lines of its error, and its output."""
    done = subprocess.run(
        command(trial, seeds), cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=before
    )
    assert "Traceback" not in done.stderr
    return (
        done.returncode,
        [line for line in done.stderr.splitlines() if line.startswith("error: ")],
        done.stdout,
    )


def test_a_seed_that_only_got_server_errors_is_asked_again(trial: Trial) -> None:
    trial.server.faults = lambda prompt, _: "503" if int(prompt.split(" + 7")[0].split()[-1]) % 2 else None
    status, (error,), table = start(trial)
    assert status == 2
    assert f"cases without a reply ({METHOD}: 10 server: status 503); start again" in error
    assert "server: status 503" in table
    assert len(outcome_seeds(trial.out)) == 10
    trial.server.faults = lambda _p, _a: None
    asked = trial.server.answered.total()
    assert start(trial)[0] == 0
    assert trial.server.answered.total() == asked + 20  # of the ten others only
    assert sorted(outcome_seeds(trial.out)) == [seed.id for seed in make_seeds(20)]


@pytest.mark.parametrize(
    ("fault", "said"),
    [("503", "3 server: status 503"), ("HTML", "3 server: reply is not JSON"), ("quota", "no quota")],
)
def test_a_run_that_no_server_answered_is_not_complete(trial: Trial, fault: str, said: str) -> None:
    trial.server.faults = lambda _p, _a: fault
    status, (error,), _ = start(trial, seeds=3)
    assert status == 2
    assert said in error
    assert not (trial.out / FIRST_SHARD / "manifest.json").exists()
    trial.server.faults = lambda _p, _a: None
    assert start(trial, seeds=3)[0] == 0
    assert len(outcome_seeds(trial.out)) == 3


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_refused_prompt_is_a_rejection_and_a_server_that_refuses_all_an_error(
    trial: Trial, concurrency: int
) -> None:
    trial.server.faults = lambda prompt, _: "400" if "is 0 +" in prompt else None
    found = trial.run(8, concurrency=concurrency)
    assert (found["rejected"]["refused with status 400"], found["outcomes"], found["unanswered"]) == (
        1,
        8,
        {},
    )
    trial.server.faults = lambda _p, _a: "400"
    with pytest.raises(ServerError, match=r"refused with status 400 \(no\); check model"):
        trial.run(20, "all", concurrency=concurrency)
    assert trial.run(3, "few", concurrency=concurrency)["unanswered"] == {
        "server: refused with status 400": 3
    }


@pytest.mark.parametrize("seeds", [30, 90])  # few and many that are refused
def test_what_is_refused_since_the_last_reply_stays_open(trial: Trial, seeds: int) -> None:
    trial.server.faults = lambda _p, _a: "400" if trial.server.answered.total() >= 20 else None
    status, (error,), _ = start(trial, seeds=seeds)
    assert status == 2
    assert "refused with status 400" in error
    assert start(trial, seeds=seeds)[0] == 2
    trial.server.faults = lambda prompt, _: "403" if "is 5 +" in prompt else None
    assert start(trial, seeds=seeds)[0] == 0
    assert sorted(outcome_seeds(trial.out)) == [seed.id for seed in make_seeds(seeds)]
    assert sum("refused" in str(row["reason"]) for row in read_outcomes(trial.out, "rejected")) <= 1


def limit_file_size(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_is_one_line_and_the_run_resumes(trial: Trial) -> None:
    status, (error,), _ = start(trial, partial(limit_file_size, 120_000))
    assert trial.server.requests
    assert (status, error.count("synthesis.sqlite: ")) == (2, 1)
    assert "free space and start again" in error
    assert start(trial)[0] == 0
    (trial.out / FIRST_SHARD / "manifest.json").unlink()
    status, (error,), _ = start(trial, partial(limit_file_size, 9000))
    assert f"{FIRST_SHARD}: cannot be written (File too large)" in error
    asked = trial.server.requests
    assert start(trial)[0] == 0
    assert trial.server.requests == asked
    assert sorted(outcome_seeds(trial.out)) == [seed.id for seed in make_seeds(20)]


@pytest.mark.parametrize("name", [METHOD, ".store", "summary.json", ".store/synthesis.sqlite"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_in_the_place_of_ours_is_named_before_anything_is_asked(
    trial: Trial, name: str, kind: str
) -> None:
    path = trial.out / FIRST_SHARD / name
    path.parent.mkdir(parents=True)
    for folder in (trial.out, trial.out / FIRST_SHARD):
        (folder / ".lock").write_text("synthesis\n")
    if kind == "link":
        path.symlink_to(trial.folder / "nothing")
    elif (kind == "folder") is ("." in name[1:]):
        path.mkdir() if kind == "folder" else path.write_text("mine")
    else:
        return
    with pytest.raises(ValueError, match=path.name):
        trial.run()
    assert trial.server.requests == 0
    assert not (trial.folder / "nothing").exists()


def damaged(trial: Trial, file: str, chance: random.Random) -> None:
    path = trial.out / FIRST_SHARD / file
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def test_a_flipped_bit_of_the_store_changes_no_output(trial: Trial) -> None:
    trial.run(10)
    folder, chance = trial.out / FIRST_SHARD, random.Random(3)
    names = (f"{METHOD}/accepted.jsonl", f"{METHOD}/rejected.jsonl", "summary.json")
    files = {name: (folder / name).read_bytes() for name in names}
    record = read_outcomes(trial.out)[0]["id"]
    store, manifest = (folder / Store.FILE).read_bytes(), (folder / "manifest.json").read_bytes()
    refused = 0
    for _ in range(60):
        (folder / Store.FILE).write_bytes(store)
        (folder / "manifest.json").unlink(missing_ok=True)
        damaged(trial, Store.FILE, chance)
        try:
            trial.run(10)
        except DataError as error:
            assert str(folder / Store.FILE) in str(error)
            refused += 1
            continue
        assert {name: (folder / name).read_bytes() for name in files} == files
    assert refused
    (folder / "manifest.json").write_bytes(manifest)
    (folder / Store.FILE).write_bytes(b"garbage" * 100)
    with pytest.raises(DataError, match=r"file is not a database; .* or delete its folder"):
        trial.run(10, budget={"maximum_tokens": 10**9})
    load_manifest(folder, "synthesis")  # what is complete stays so
    (folder / Store.FILE).write_bytes(store)
    (folder / "manifest.json").unlink(missing_ok=True)
    with closing(sqlite3.connect(folder / Store.FILE)) as base:
        base.execute("UPDATE requests SET text = text || ' ' WHERE rowid IN (3, 5)")
        base.commit()
    asked = trial.server.requests
    trial.run(10)
    assert trial.server.requests == asked + 2  # the damaged ones only
    for name, data in files.items():  # a damaged output of a complete run is written again, from the store
        (folder / "manifest.json").write_bytes(manifest)
        damaged(trial, name, chance)
        asked = trial.server.requests
        with pytest.raises(ValueError, match=f"{name}: checksum differs"):
            trace(trial.out, record)
        trial.run(10)
        assert (folder / name).read_bytes() == data
        assert trial.server.requests == asked
    load_manifest(folder, "synthesis")


def test_a_long_seed_is_named(trial: Trial) -> None:
    first, second = make_seeds(2)
    long = Problem.model_validate(vars(second) | {"question": "x" * 2**20})
    with pytest.raises(DataError, match=r"seeds.jsonl:2: seed of over 1 MiB"):
        check_seeds(trial.config([first, long]))
    config = trial.config([first, second])
    with Path(config.seeds.paths[0]).open("ab") as file:
        file.write(b'{"question": "' + b"x" * (MAX_LINE_BYTES + (1 << 24)) + b'"}\n')
    with pytest.raises(DataError, match=r"seeds.jsonl:3: line longer than 32 MiB"):
        check_seeds(config)


def test_two_starts_at_once_end_in_one_run_or_one_line(trial: Trial) -> None:
    trial.server.delay_seconds = 3.5  # in two rounds, so longer than a lock is waited for
    words = command(trial)
    both = [subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    (error,) = [line for text in said for line in text.splitlines() if line.startswith("error: ")]
    assert f"{FIRST_SHARD}: in use by process" in error
    assert "Traceback" not in "".join(said)
    assert sorted(outcome_seeds(trial.out)) == [seed.id for seed in make_seeds(20)]
    assert Path(trial.out / FIRST_SHARD / "manifest.json").is_file()
