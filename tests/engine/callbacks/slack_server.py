"""A real server on a local port that answers as Slack does, or as a network does on a bad day."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "T00000000/B00000000/sEcReTsEcReTsEcReTsEcReT"


class WebhookServer:
    """Answers each POST with the next of `answers`; the last one goes on for ever.

    An answer is a status, a (status, body, headers), or one of "hang", "reset", "drip headers", "drip body", "garble".
    """

    def __init__(self, *answers: Any, certificate: tuple[Path, Path] | None = None) -> None:
        self.answers = list(answers or [200])
        self.posts: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.stop = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.answer(self)

            def do_GET(self) -> None:
                server.paths.append(f"GET {self.path}")
                self.send_error(404)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self.http.server_port}/services/{TOKEN}"

    def __enter__(self) -> WebhookServer:
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.http.shutdown()
        self.http.server_close()

    def texts(self) -> list[str]:
        """Return the short text of every message that was posted."""
        return [post.get("text", "") for post in self.posts]

    def wait_for(self, count: int, timeout_s: float = 10.0) -> None:
        until = time.monotonic() + timeout_s
        while len(self.times) < count:
            assert time.monotonic() < until, f"{len(self.times)} of {count} posts came within {timeout_s} s"
            time.sleep(0.01)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        self.posts.append(json.loads(body))
        self.headers.append(dict(handler.headers))
        self.paths.append(handler.path)
        self.times.append(time.monotonic())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        with suppress(OSError):
            if isinstance(answer, str):
                getattr(self, answer.replace(" ", "_"))(handler)
            else:
                self.say(handler, *(answer if isinstance(answer, tuple) else (answer,)))

    def say(self, handler: Any, status: int, body: str = "ok", headers: dict[str, str] | None = None) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body.encode())

    def hang(self, handler: Any) -> None:
        self.stop.wait()

    def reset(self, handler: Any) -> None:
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()

    def garble(self, handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nthis is no header\r\n\r\nok")

    def drip_headers(self, handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not self.stop.wait(0.1):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    def drip_body(self, handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 100000\r\n\r\n")
        while not self.stop.wait(0.1):
            handler.wfile.write(b"n")
            handler.wfile.flush()
