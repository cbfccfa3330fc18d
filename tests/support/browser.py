"""A headless Chromium, driven over the DevTools protocol. Skips, by name, where none is installed."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

import aiohttp
import pytest

from support.waiting import wait_until

T = TypeVar("T")
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = (
    "--headless", "--remote-debugging-port=0", "--no-first-run", "--disable-gpu", "--disable-extensions",
    "--disable-background-networking", "--disable-dev-shm-usage", "--disable-component-update", "--mute-audio",
)  # fmt: skip


class Browser:
    """One browser with one tab. Use as a context manager."""

    def __init__(self) -> None:
        program = next(filter(None, map(shutil.which, _NAMES)), None)
        if program is None:
            pytest.skip("chromium is not installed")
        self.console: list[str] = []
        self._folder = tempfile.TemporaryDirectory(prefix="avapd-test-browser-", ignore_cleanup_errors=True)
        self._runner = asyncio.Runner()
        self._calls = 0
        # Its sandbox is for pages of strangers, and cannot be had by root.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        self._process = subprocess.Popen(
            [program, *_OPTIONS, *sandbox, f"--user-data-dir={self._folder.name}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0,
        )  # fmt: skip

    def __enter__(self) -> Self:
        port_file = Path(self._folder.name, "DevToolsActivePort")
        port = int(wait_until(port_file.read_text, 60, "the browser is up").split()[0])
        self._run(self._connect(port))
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._leave())
        self._runner.close()
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def open(self, url: str) -> None:
        """Load a page, whole."""
        self.console.clear()
        self.call("Page.navigate", url=url)
        wait_until(lambda: self.script("document.readyState") == "complete" and self.script("location.href") == url)

    def script(self, expression: str) -> Any:
        """The value of an expression, or of its promise, in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol. What the browser complains of meanwhile is in `console`."""
        return self._run(self._call(method, parameters))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(asyncio.wait_for(work, 30))

    async def _connect(self, port: int) -> None:
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            tabs = await answer.json()
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        self._socket = await self._session.ws_connect(address, max_msg_size=0)

    async def _leave(self) -> None:
        await self._socket.close()
        await self._session.close()

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._calls += 1
        await self._socket.send_json({"id": self._calls, "method": method, "params": parameters})
        while True:
            said: dict[str, Any] = await self._socket.receive_json()
            if said.get("method") == "Log.entryAdded":
                self.console.append(said["params"]["entry"]["text"])
            elif said.get("method") == "Runtime.exceptionThrown":
                self.console.append(str(said["params"]["exceptionDetails"]))
            elif said.get("id") == self._calls:
                assert "error" not in said, said
                result: dict[str, Any] = said["result"]
                return result
