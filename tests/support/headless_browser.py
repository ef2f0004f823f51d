"""A page in headless Chromium, driven over the DevTools protocol, with its log and network requests."""

import asyncio
import itertools
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

OFF = ("gpu", "quic", "background-networking", "component-update", "sync")
ON = ("headless", "no-sandbox", "no-first-run", "remote-debugging-port=0")
FLAGS = [f"--{name}" for name in (*ON, *(f"disable-{name}" for name in OFF))]
COMPLAINTS = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
Check = Callable[["Page"], Awaitable[None]]


class Page:
    """An open page; `complaints` collects exceptions and log entries, `requests` every address."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []
        self.requests: list[str] = []

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=30)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            if message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            elif message["method"] in COMPLAINTS:
                self.complaints.append(str(message["params"]))

    async def evaluate(self, expression: str) -> Any:
        found = await self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def hover(self, selector: str, across: float = 0.5) -> str:
        """Move the mouse to `across` of an element's width; return the text of the tip if one is shown."""
        element = f"document.querySelector({selector!r})"
        await self.evaluate(f"{element}.scrollIntoView({{behavior: 'instant', block: 'center'}})")
        box = await self.evaluate(f"{element}.getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + across * box["width"], "y": box["y"] + box["height"] / 2}
        await self.send("Input.dispatchMouseEvent", type="mouseMoved", **at)
        tip = "document.getElementById('tip')"
        return await self.evaluate(f"{tip}.style.visibility === 'visible' ? {tip}.textContent : ''")


def check_in_browser(chromium: str, page: Path, check: Check, width: int = 1280) -> None:
    """Run `check` on the open page; the page must have logged nothing and requested nothing but itself."""

    async def run(socket: aiohttp.ClientWebSocketResponse) -> None:
        opened = Page(socket)
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        await opened.send("Emulation.setDeviceMetricsOverride", **metrics)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await opened.send(f"{domain}.enable")
        await opened.send("Page.navigate", url=page.as_uri())
        while await opened.evaluate("document.readyState") != "complete":
            await asyncio.sleep(0.02)
        await check(opened)
        await asyncio.sleep(0.1)
        await opened.evaluate("1")
        assert opened.complaints == []
        # the icon is an empty data address
        assert [url for url in opened.requests if not url.startswith("data:")] == [page.as_uri()]

    async def connect(profile: Path) -> None:
        async with aiohttp.ClientSession() as session:
            address = await _debugger_address(session, profile / "DevToolsActivePort")
            async with session.ws_connect(address) as socket:
                await run(socket)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},900", "about:blank")
        with subprocess.Popen([chromium, *options], stderr=subprocess.DEVNULL) as process:
            try:
                asyncio.run(connect(Path(profile)))
            finally:
                process.terminate()


async def _debugger_address(session: aiohttp.ClientSession, port_file: Path) -> str:
    for _ in range(600):
        if port_file.is_file() and (port := port_file.read_text().partition("\n")[0]):
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                pages = [target for target in await response.json() if target["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
        await asyncio.sleep(0.05)
    raise TimeoutError("Chromium gave no debugging port within 30 s")
