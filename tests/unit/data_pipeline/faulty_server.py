"""A web server on the loopback that knows ranges and can be told to fail: the remote of the tests."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Request:
    """One request: path, first byte, bytes asked for; how many came before it for the same path and range."""

    path: str
    offset: int
    size: int
    earlier: int


Fault = Callable[["Handler", bytes], None]


def status(code: int) -> Fault:
    """Answer with an HTTP status and nothing else."""
    return lambda handler, content: handler.answer(code, b"")


def truncated(handler: "Handler", content: bytes) -> None:
    """Announce everything, send half, close."""
    handler.answer(206, content[: len(content) // 2], announced=len(content))


def short(handler: "Handler", content: bytes) -> None:
    """A well-formed answer of fewer bytes."""
    handler.answer(206, content[:-1])


def wrong_bytes(handler: "Handler", content: bytes) -> None:
    """As many bytes as were asked for, all others."""
    handler.answer(206, bytes(byte ^ 0x55 for byte in content))


def unless_authorized(handler: "Handler", content: bytes) -> None:
    """401 for who does not bring the secret, else the bytes."""
    if handler.headers.get("Authorization") == "Bearer s3cret":
        handler.answer(206, content)
    else:
        handler.answer(401, b"")


def ignoring_ranges(handler: "Handler", content: bytes) -> None:
    """The whole file, whatever was asked for."""
    if handler.file.is_file():
        handler.answer(200, handler.file.read_bytes())
    else:
        handler.answer(404, b"")


def reset(handler: "Handler", content: bytes) -> None:
    """Drop the connection without a word."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def hanging(handler: "Handler", content: bytes) -> None:
    """Never answer."""
    handler.server.remote.ended.wait()


def trickling(handler: "Handler", content: bytes) -> None:
    """A byte now and then, for ever."""
    handler.answer(206, b"", announced=len(content))
    for byte in content:
        if handler.server.remote.ended.wait(0.05):
            return
        handler.wfile.write(bytes([byte]))


class Handler(BaseHTTPRequestHandler):
    """Serves files; asks `FaultyServer.fault` what to do wrong."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        remote: FaultyServer = self.server.remote
        file = remote.folder / self.path.lstrip("/")
        self.file, self.num_bytes = file, file.stat().st_size if file.is_file() else 0
        offset, size = self._range()
        request = remote.note(self.path, offset, size)
        fault = remote.fault(request)
        content = self._content(offset, size)
        try:
            if fault is not None:
                fault(self, content)
            elif not file.is_file():
                self.answer(404, b"")
            elif not content:
                self.answer(416, b"")
            else:
                self.answer(206, content, headers={"Content-Range": f"bytes {offset}-{offset + len(content) - 1}/*"})
        except OSError:
            pass  # the client has left
        self.close_connection = self.close_connection or fault is not None

    def _content(self, offset: int, size: int) -> bytes:
        if not self.file.is_file():
            return b""
        with self.file.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def _range(self) -> tuple[int, int]:
        header = self.headers.get("Range")
        if header is None:
            return 0, self.num_bytes
        first, _, last = header.removeprefix("bytes=").partition("-")
        return int(first), int(last) + 1 - int(first)

    def answer(self, code: int, content: bytes, *, announced: int | None = None, headers: dict | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content) if announced is None else announced))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()
        if announced is not None and content:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class FaultyServer:
    """folder: what is served. fault: what goes wrong with a request (None: nothing). requests: all so far."""

    folder: Path
    url: str = ""
    fault: Callable[[Request], Fault | None] = lambda request: None
    requests: list[Request] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, path: str, offset: int, size: int) -> Request:
        with self.lock:
            earlier = sum((r.path, r.offset, r.size) == (path, offset, size) for r in self.requests)
            self.requests.append(Request(path, offset, size, earlier))
            return self.requests[-1]

    def of_shards(self) -> list[Request]:
        """The requests for shards so far."""
        return [request for request in self.requests if "/shards/" in request.path]


@contextmanager
def serving(folder: Path) -> Iterator[FaultyServer]:
    """Serve a folder until the end of the block."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.block_on_close = False
    remote = http.remote = FaultyServer(folder, f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield remote
    finally:
        remote.ended.set()
        http.shutdown()
        thread.join()
        http.server_close()
