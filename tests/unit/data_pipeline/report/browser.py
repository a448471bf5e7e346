"""A real browser without a window: Chromium over its debugging pipe. Also a command that photographs a page:

python -m tests.unit.data_pipeline.report.browser PAGE.html PICTURE.png [WIDTH] [light|dark] [HEIGHT]
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One tab. `complaints`: errors of scripts, of the console and of the page's content policy, and requests."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._write = os.fdopen(to_browser, "wb")
        self._read = os.fdopen(from_browser, "rb")
        self._number, self._session, self._rest = 0, "", b""
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, page: Path, width: int, scheme: str = "light") -> None:
        """Load a file in a window of `width` pixels, `scheme` light or dark."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.complaints.clear()
        self._call("Page.navigate", url=page.absolute().as_uri())
        while self._message().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, which runs whatever the content policy says."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def photograph(self, picture: Path, height: int | None = None) -> None:
        """The whole page as PNG, or its first `height` pixels."""
        width, whole = self.evaluate("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height or whole, "scale": 1}
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        picture.write_bytes(base64.b64decode(answer["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while (answer := self._message()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            content = self._read.read1(1 << 20)
            assert content, "the browser has ended"
            self._rest += content
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        if message.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(json.dumps(message["params"]))
        if message.get("method") == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if message["params"].get("type") != "Document" and not url.startswith("data:"):
                self.complaints.append(f"request: {url}")
        return message


@contextmanager
def started() -> Iterator[Browser]:
    """Start Chromium; it is gone when the block ends."""
    assert CHROMIUM is not None
    in_browser, to_browser = os.pipe()
    from_browser, out_browser = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = (
            f"--headless --hide-scrollbars --no-sandbox --disable-gpu --remote-debugging-pipe --user-data-dir={profile}"
        )
        process = subprocess.Popen(  # the pipe is file descriptors 3 and 4
            ["bash", "-c", f"exec {CHROMIUM} {flags} 3<&{in_browser} 4>&{out_browser}"],
            pass_fds=(in_browser, out_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(in_browser)
        os.close(out_browser)
        try:
            yield Browser(to_browser, from_browser)
        finally:
            process.terminate()
            process.wait(timeout=30)


if __name__ == "__main__":
    page, picture, width, scheme, height = (*sys.argv[1:], *("1280", "light", "0")[len(sys.argv) - 3 :])
    with started() as browser:
        browser.open(Path(page), int(width), scheme)
        browser.photograph(Path(picture), int(height) or None)
