"""A program in place of vLLM: `stub_server.py FOLDER DELAY MODEL NAME PORT`, which are noted in FOLDER.

So is whom it served, in asked-MODEL-NODE-GPUS; it is unhealthy once there is a file sick-MODEL.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from aiohttp import web
from aiohttp.typedefs import Handler

from tests.support.fake_server import FakeServer, ScriptedModel


def main(folder: str, delay: str, model: str, name: str, port: str) -> None:
    gpus, node = os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("SLURMD_NODENAME", "")
    Path(folder, f"served-{model}").write_text(json.dumps([model, name, port, gpus]), encoding="utf-8")
    app = FakeServer(ScriptedModel(), name=name, delay_seconds=float(delay)).application()

    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "POST":
            Path(folder, f"asked-{model}-{node}-{gpus}").touch()
        return await handler(request)

    async def health(_: web.Request) -> web.Response:
        return web.Response(status=503 if Path(folder, f"sick-{model}").exists() else 200)

    app.middlewares.append(note)
    app.add_routes([web.get("/health", health)])
    web.run_app(app, host="127.0.0.1", port=int(port), print=None, shutdown_timeout=1)  # not 60 s


if __name__ == "__main__":
    main(*sys.argv[1:])
