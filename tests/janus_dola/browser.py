"""A headless Chromium that is talked to through pipes, by the DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_THEIRS = 3, 4  # file descriptors that Chromium reads and writes
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """One page in a browser.

    Args:
        profile: a folder for what it keeps.
    """

    def __init__(self, profile: Path, url: str, width: int, height: int, dark: bool = False) -> None:
        reads, self._to = os.pipe()
        self._from, writes = os.pipe()
        script = f'exec "$@" {_THEIRS[0]}<&{reads} {_THEIRS[1]}>&{writes}'
        command = ["bash", "-c", script, "browser", CHROMIUM, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(reads)
        os.close(writes)
        self._read, self._count, self._session = b"", 0, None
        (target,) = (each for each in self._call("Target.getTargets")["targetInfos"] if each["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=features)
        self._call("Page.navigate", url=url)

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def value(self, script: str):
        """What an expression of JavaScript is, in the page."""
        result = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, script: str, seconds: float = 30):
        """Waits till an expression is true."""
        end = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < end, f"not true: {script}"
            time.sleep(0.02)

    def type(self, text: str) -> None:
        """Types where the focus is."""
        self._call("Input.insertText", text=text)

    def press_enter(self) -> None:
        """Presses the key."""
        for kind in ("rawKeyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)

    def screenshot(self, path: Path) -> None:
        """Writes a picture of the whole page."""
        result = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(result["data"]))

    def _call(self, method: str, **arguments):
        self._count += 1
        message = {"id": self._count, "method": method, "params": arguments}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._read:
                more = os.read(self._from, 2**20)
                assert more, "the browser has ended"
                self._read += more
            answer, _, self._read = self._read.partition(b"\0")
            result = json.loads(answer)
            if result.get("id") == self._count:
                assert "error" not in result, result
                return result["result"]
