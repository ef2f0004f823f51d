"""A small Hugging Face hub of models on this machine: files by commit, one commit per upload, one token."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

TOKEN, COMMIT = "hf_thisIsTheSecretToken", "c" * 40


class ModelHub(BaseHTTPRequestHandler):
    """Repositories by id; notes what is created and which paths are asked for."""

    repositories: dict[str, dict[str, bytes]]
    created: list[dict[str, Any]]

    def do_GET(self) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "whoami-v2"]:
            known = self.headers["Authorization"] == f"Bearer {TOKEN}"
            self._send({"name": "owner", "type": "user"} if known else {}, 200 if known else 401)
            return
        files = self.repositories.get("/".join(parts[2:4] if parts[0] == "api" else parts[:2]))
        if files is None:
            self._send({}, 404, {"X-Error-Code": "RepoNotFound"})
        elif parts[0] == "api" and "tree" in parts:
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": "b"} for name, data in files.items()
            ]
            self._send(rows)
        elif parts[0] == "api":
            self._send(
                {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
            )
        else:
            data = files["/".join(parts[4:])]
            self._send(data, headers={"ETag": hashlib.sha256(data).hexdigest(), "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._send({}, 401)
        elif parts[1] == "repos":
            self.created.append(json.loads(body))
            self.repositories.setdefault(f"owner/{self.created[-1]['name']}", {})
            self._send({"url": f"{self._own()}/owner/{self.created[-1]['name']}"})
        elif parts[1] == "validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif "preupload" in parts:
            names = [file["path"] for file in json.loads(body)["files"]]
            kept = {"uploadMode": "regular", "shouldIgnore": False}
            self._send({"files": [{"path": name} | kept for name in names]})
        else:
            rows = [json.loads(line) for line in body.splitlines()]
            files = [row["value"] for row in rows if row["key"] == "file"]
            found = {file["path"]: base64.b64decode(file["content"]) for file in files}
            name = "/".join(parts[2:4])
            self.repositories[name] |= found
            url = f"{self._own()}/{name}/commit/{COMMIT}"
            self._send({"commitUrl": url, "commitOid": COMMIT, "success": True})

    def _own(self) -> str:
        return f"http://{self.headers['Host']}"

    def _send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        given = {"Content-Length": str(len(data)), "Content-Type": "application/json"} | (headers or {})
        for key, value in given.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def model_hub() -> Iterator[tuple[dict[str, str], type[ModelHub]]]:
    """The environment of a program that is logged in to a new hub, and that hub."""
    handler = type("OneModelHub", (ModelHub,), {"repositories": {}, "created": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": TOKEN}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    yield environment, handler
    server.shutdown()
    server.server_close()
