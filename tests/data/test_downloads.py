"""The download command against a server of this process that speaks the hub's protocol."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote, urlparse

import pytest

from megatron_mathcpt.config.corpus import ProblemAdapter, TextAdapter
from megatron_mathcpt.data.downloads import NOTE, PUBLISHED

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "1" * 40
FILES = {
    "data/train-00000-of-00002.parquet": os.urandom(24_000_000),  # the library writes 10 MB at a time
    "data/train-00001-of-00002.parquet": os.urandom(100_000),
    "data/test-00000-of-00001.parquet": b"not wanted",
    "README.md": b"# a card",
}


class Hub(BaseHTTPRequestHandler):
    """Dataset info with checksums, and files with ranges; notes what was asked for."""

    asked: list[tuple[str, str, str | None]]
    wrong: bool
    broken: bool
    status: int

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlparse(self.path).path)
        type(self).asked.append((self.command, path, self.headers.get("Range")))
        if self.status != 200:
            self._send(self.status, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}, body)
        elif path.startswith("/api/datasets/") and "/tree/" in path:
            self._send(200, json.dumps(self._tree()).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith("/api/datasets/"):
            self._send(200, json.dumps(self._info()).encode(), {"Content-Type": "application/json"}, body)
        elif (match := re.search(r"/resolve/[^/]+/(.*)$", path)) and match[1] in FILES:
            self._file(FILES[match[1]], body)
        else:
            self._send(404, b"{}", {}, body)

    def _info(self) -> dict[str, Any]:
        files = []
        for name, data in FILES.items():
            digest = "0" * 64 if self.wrong else hashlib.sha256(data).hexdigest()
            lfs = {"sha256": digest, "size": len(data), "pointerSize": 134}
            files.append({"rfilename": name, "size": len(data), "blobId": "b", "lfs": lfs})
        return {"id": "AI-MO/NuminaMath-CoT", "sha": COMMIT, "siblings": files, "tags": [], "private": False}

    def _tree(self) -> list[dict[str, Any]]:
        rows = []
        for name, data in FILES.items():
            lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            rows.append({"type": "file", "path": name, "size": len(data), "oid": "b", "lfs": lfs})
        return rows

    def _file(self, data: bytes, body: bool) -> None:
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        first = int((self.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self._send(206 if first else 200, data[first:], headers, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body and self.broken and len(data) > 1_000_000:
            type(self).broken = False
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    handler = type("OneHub", (Hub,), {"asked": [], "wrong": False, "broken": False, "status": 200})
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


def test_files_come_whole_are_verified_and_mended(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, handler = hub
    out = tmp_path / "numinamath"
    handler.broken = True  # half of one file, then the connection closes
    first = run(endpoint, "numinamath", "--out", str(out))
    assert first.returncode == 0, first.stderr
    assert f"2 files fetched; 2 files, 0.02 GB, revision {COMMIT}" in first.stdout
    wanted = {name: data for name, data in FILES.items() if name.startswith("data/train")}
    assert {name: (out / name).read_bytes() for name in wanted} == wanted
    assert not (out / "README.md").exists() and not (out / "data" / "test-00000-of-00001.parquet").exists()
    note = json.loads((out / NOTE).read_bytes())
    assert {name: file["sha256"] for name, file in note["files"].items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in wanted.items()
    }

    assert any(begins and not begins.startswith("bytes=0") for *_, begins in handler.asked), "not resumed"

    handler.asked.clear()
    again = run(endpoint, "numinamath", "--out", str(out))
    assert "complete, verified" in again.stdout and handler.asked == []

    damaged = out / "data" / "train-00001-of-00002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    mended = run(endpoint, "numinamath", "--out", str(out))
    assert "train-00001-of-00002.parquet: missing or damaged" in mended.stdout
    assert "1 files fetched; 2 files" in mended.stdout
    assert damaged.read_bytes() == wanted["data/train-00001-of-00002.parquet"]

    other = run(endpoint, "lila", "--out", str(out))
    assert other.returncode == 2 and "holds AI-MO/NuminaMath-CoT" in other.stderr


def test_what_goes_wrong_is_one_line(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, handler = hub
    handler.wrong = True
    wrong = run(endpoint, "numinamath", "--out", str(tmp_path / "a"))
    assert "not the hub's SHA-256" in wrong.stderr and not (tmp_path / "a" / NOTE).exists()
    handler.status = 403
    gated = run(endpoint, "starcoder", "--out", str(tmp_path / "b"))
    assert "bigcode/starcoderdata: gated; accept its terms" in gated.stderr
    gone = run("http://127.0.0.1:9", "numinamath", "--out", str(tmp_path / "c"))
    assert "AI-MO/NuminaMath-CoT: the hub cannot be reached" in gone.stderr
    unknown = run(endpoint, "nothing", "--out", str(tmp_path / "d"))
    assert "no source 'nothing'; known are numinamath," in unknown.stderr
    for result in (wrong, gated, gone, unknown):
        assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr


def test_list_shows_every_adapter() -> None:
    shown = run("http://127.0.0.1:9", "--list")
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in PUBLISHED)
    adapters = {*get_args(TextAdapter), *get_args(ProblemAdapter)}
    assert {found.adapter for found in PUBLISHED.values()} == adapters
