"""Sources by address: fsspec's memory and local file systems."""

import gzip
import json
import logging
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from megatron_mathcpt.config.corpus import Corpus, Source
from megatron_mathcpt.data.build import build_corpus, discard_stale_work, list_stages, open_build, run_locally
from megatron_mathcpt.data.sources import list_shards
from megatron_mathcpt.errors import DataError, ManifestError
from megatron_mathcpt.formats.corpus_folder import KIND, open_corpus
from megatron_mathcpt.formats.files import hash_file
from megatron_mathcpt.formats.output_folder import claim_folder
from tests.data.test_build import changed, hashes
from tests.support.corpus_factory import make_sentence
from tests.support.json_lines import read_json_lines, write_json_lines

FILES = ["a.jsonl", "deep/b.jsonl.gz", "deep/c.parquet"]


@pytest.fixture
def store(raw: Path) -> Path:
    """A folder of 60 documents in three files, a README, a hidden folder, and other things."""
    folder, random_ = raw / "store", random.Random(8)
    rows = [{"text": "\n".join(make_sentence(random_) for _ in range(4)), "n": n} for n in range(60)]
    write_json_lines(folder / "a.jsonl", rows[:20])
    (folder / "deep").mkdir()
    (folder / "deep/b.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps(r) + "\n" for r in rows[20:40]).encode(), mtime=0)
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[40:]), folder / "deep/c.parquet")
    (folder / "README.md").write_text("about")
    write_json_lines(folder / ".git" / "x.jsonl", rows)
    return folder


@pytest.fixture
def memory(store: Path) -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.put(str(store), "/bucket", recursive=True)
    yield system
    system.rm("/bucket", recursive=True)


def one_source(raw: Path, path: str, **more: object) -> Corpus:
    return changed(raw, sources={"general": {"pool": "general", "path": path, **more}})


def content(out: Path) -> list[bytes]:
    """What does not name the raw file."""
    names = [
        "documents/general.jsonl",
        "documents/general.places",
        "datasets/general/train.bin",
        "datasets/general/validation.idx",
    ]
    return [(out / name).read_bytes() for name in names]


def test_a_folder_by_address_gives_the_documents_of_the_path(
    raw: Path, store: Path, memory: Any, tmp_path: Path
) -> None:
    here = build_corpus(one_source(raw, str(store)), tmp_path / "here")
    urls = {"memory": "memory://bucket", "folder": "memory://bucket/", "file": store.as_uri()}
    for name, url in urls.items():
        found = build_corpus(one_source(raw, url), tmp_path / name, 1)
        assert content(tmp_path / name) == content(tmp_path / "here"), name
        assert found.counts == here.counts
        # The inputs have the hashes of the bytes, and what the store says of them.
        added = [f"general/{file} in its store" for file in FILES]
        assert [label for label in found.inputs if label not in here.inputs] == added
        assert {label: found.inputs[label] for label in here.inputs} == here.inputs
        assert build_corpus(one_source(raw, url), tmp_path / name, 1) == found
        file = open_corpus(tmp_path / name).shards[1].file
        assert file.startswith(url[:4]) and file.endswith("/deep/b.jsonl.gz")
    two = build_corpus(one_source(raw, urls["file"]), tmp_path / "two", 2)
    assert hashes(two) == hashes(build_corpus(one_source(raw, urls["file"]), tmp_path / "file"))


@pytest.mark.parametrize(
    ("path", "labels"),
    [
        ("", FILES),
        ("/", FILES),
        ("/a.jsonl", ["a.jsonl"]),
        ("/deep/c.parquet", ["c.parquet"]),
        ("/*/*.parquet", ["deep/c.parquet"]),
        ("/deep/*", ["b.jsonl.gz", "c.parquet"]),
        ("/**/*.p[a]rquet", ["deep/c.parquet"]),
        ("/README.md", ["README.md"]),
    ],
)
def test_an_address_names_what_a_path_would(store: Path, memory: Any, path: str, labels: list[str]) -> None:
    for base in ("memory://bucket", str(store)):
        shards = list_shards({"s": Source(pool="p", path=base + path)})
        assert [shard.label for shard in shards] == [f"s/{label}" for label in labels], base
        sizes = [next(store.rglob(Path(label).name)).stat().st_size for label in labels]
        assert [shard.bytes for shard in shards] == sizes


def test_text_files_of_a_folder_are_one_shard(raw: Path, store: Path, memory: Any, tmp_path: Path) -> None:
    random_ = random.Random(2)
    for name in ("one.txt", "two.txt", "sub/three.txt"):
        memory.pipe(f"/bucket/notes/{name}", "\n".join(make_sentence(random_) for _ in range(3)).encode())
    config = one_source(raw, "memory://bucket/notes")
    build_corpus(config, tmp_path / "out", 1)
    rows = read_json_lines(tmp_path / "out" / "documents" / "general.jsonl")
    assert [row["id"] for row in rows] == ["one.txt", "two.txt", "three.txt"]
    assert [shard.label for shard in list_shards(config.sources)] == ["general/notes", "general/sub"]


def test_a_fault_is_named_and_the_build_resumes(
    raw: Path, memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out, faults = one_source(raw, "memory://bucket"), tmp_path / "out", [200, 503]
    get_file = type(memory).get_file

    def faulty(self: Any, path: str, place: str, **more: Any) -> None:
        if path.endswith(".jsonl") and faults:
            if (status := faults.pop()) != 200:
                raise OSError(f"status {status}")
            Path(place).write_bytes(b'{"text": "cut')
        else:
            get_file(self, path, place, **more)

    monkeypatch.setattr(type(memory), "get_file", faulty)
    for fault in ("503", "13 of .* bytes"):
        with pytest.raises(DataError, match=rf"bucket/a\.jsonl: cannot be fetched \(.*{fault}.*run again"):
            build_corpus(config, out, 1)
        assert not list((out / ".work" / "fetched").iterdir())
    found = build_corpus(config, out, 1)
    assert faults == []
    assert found.inputs["general/a.jsonl"] == hash_file(raw / "store" / "a.jsonl")
    assert hashes(found) == hashes(build_corpus(config, tmp_path / "other", 1))


@pytest.mark.parametrize("before", ["prepare", "publish", "finish"])
def test_a_file_that_changes_in_its_store_is_found(
    raw: Path, memory: Any, tmp_path: Path, before: str
) -> None:
    config, out = one_source(raw, "memory://bucket"), tmp_path / "out"
    build = open_build(config, out)
    claim_folder(out, KIND)
    discard_stale_work(build)
    with pytest.raises(DataError, match=r"memory:///?bucket/a\.jsonl: changed while"):
        for stage in list_stages(build):
            if stage.name == before:
                data = memory.cat("/bucket/a.jsonl")
                memory.pipe("/bucket/a.jsonl", data.replace(b"apple1", b"apple2"))
            run_locally(stage, build, 1)
    found = build_corpus(config, out, 1)
    assert hashes(found) == hashes(build_corpus(config, tmp_path / "new", 1))
    memory.pipe("/bucket/a.jsonl", memory.cat("/bucket/a.jsonl") + b'{"text": "more"}\n')
    with pytest.raises(ManifestError, match=r"another input 'general/a\.jsonl in its store'"):
        build_corpus(config, out, 1)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("memory://bucket/nothing.jsonl", "nothing.jsonl: cannot be fetched (FileNotFoundError"),
        ("memory://bucket/*.txt", "*.txt: source 's' not found"),
        ("nosuch://bucket/a.jsonl", "nosuch://bucket/a.jsonl: Protocol not known: nosuch"),
        ("memory://empty/a.jsonl", "a.jsonl: cannot be fetched (FileNotFoundError"),
    ],
)
def test_an_address_without_files_is_refused(memory: Any, path: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        list_shards({"s": Source(pool="p", path=path)})
    assert message in str(error.value)


@pytest.mark.parametrize(("address", "extra"), [("s3://bucket/a.jsonl", "s3"), ("gs://bucket/*", "gs")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, address: str, extra: str) -> None:
    for package in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"^{address[:5]}.*pip install 'megatron_mathcpt\[{extra}\]'"):
        list_shards({"s": Source(pool="p", path=address)})


def test_an_address_with_secrets_or_of_a_web_server_is_refused_without_them() -> None:
    paths = {
        "https://host/a.jsonl?Signature=secret": "on a web server",
        "s3://a:secret@b/c": "has a password",
    }
    for path, problem in paths.items():
        with pytest.raises(ValueError, match=problem) as error:
            Source(pool="p", path=path)
        assert "secret" not in error.value.errors(include_input=False)[0]["msg"]  # type: ignore[attr-defined]


def test_a_store_is_listed_by_the_rules_for_a_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """D3 in a store: other spellings are data; hidden and unfinished folders are not; the rest is counted."""
    data = ["B.NDJSON", "a.jsonl", "train.parquet/part-0.parquet", "year=2024/_lang=en/c.JSONL.GZIP"]
    others = ["_temporary/a.jsonl", ".cache/a.jsonl", "__MACOSX/x.jsonl", "._a.jsonl", "t.csv", "README.md"]
    for name in data + others:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text('{"text": "a"}\n')
    globs = {"": data, "/*.jsonl": [data[1]], "/*.parquet": [data[2]], "/_temporary/*": [others[0]]}
    for end, found in globs.items():
        path, places = f"{tmp_path}/in{end}", [f"{tmp_path}/in/{name}" for name in found]
        with caplog.at_level(logging.INFO):
            shards = list_shards({"s": Source(pool="p", path=f"file://{path}")})
        assert [shard.url for shard in shards] == [f"file://{place}" for place in places]
        assert [str(shard.path) for shard in list_shards({"s": Source(pool="p", path=path)})] == places
    assert f"file://{tmp_path}/in: source 's': left out 1 .csv, 3 .jsonl, 1 .md, 1 hidden" in caplog.text
