"""A program in place of vLLM: `stub_server.py FOLDER DELAY MODEL NAME PORT`, which are noted in FOLDER."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from aiohttp import web

from tests.support.fake_server import FakeServer, ScriptedModel

if __name__ == "__main__":
    folder, delay, model, name, port = sys.argv[1:]
    gpus = os.environ["CUDA_VISIBLE_DEVICES"]
    Path(folder, f"served-{model}").write_text(json.dumps([model, name, port, gpus]), encoding="utf-8")
    app = FakeServer(ScriptedModel(), name=name, delay_seconds=float(delay)).application()
    web.run_app(app, host="127.0.0.1", port=int(port), print=None, shutdown_timeout=1)  # not 60 s
