"""Google's storage and its signing service, as far as the server's files need them.

Small files come through the server by the JSON interface; large ones in parts, each to an address that was signed, and
nothing is taken without a signature that this service has made. `redirect` sends a process here instead of to Google.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

GOOGLES = ("https://storage.googleapis.com", "https://iamcredentials.googleapis.com")
ACCOUNT = "trainer@my-team.iam.gserviceaccount.com"


class Storage(ThreadingHTTPServer):
    """One bucket in memory."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files: dict[str, bytes] = {}
        self.parts: dict[int, bytes] = {}
        self.signatures: set[str] = set()
        self.key = rsa.generate_private_key(65537, 2048)
        self.fails = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def redirect(place: Path, storage: Storage) -> None:
    """Write a module into a folder of PYTHONPATH that turns requests to Google's storage into requests to this one."""
    (place / "sitecustomize.py").write_text(
        "import requests\n"
        "ask = requests.Session.request\n"
        "def here(self, method, url, *args, **options):\n"
        f"    for google in {GOOGLES!r}:\n"
        f"        url = url.replace(google, {storage.address!r})\n"
        "    return ask(self, method, url, *args, **options)\n"
        "requests.Session.request = here\n"
    )


class _Answer(BaseHTTPRequestHandler):
    server: Storage
    protocol_version = "HTTP/1.1"

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        self._route(unquote(parts.path), {k: v[0] for k, v in parse_qs(parts.query, True).items()}, body)

    do_GET = do_POST = do_PUT = do_DELETE = _do

    def _route(self, path: str, query: dict[str, str], body: bytes) -> None:
        here = self.server
        if path.endswith(":generateAccessToken"):
            self._say({"accessToken": "ya29.of-the-server", "expireTime": "2099-01-01T00:00:00Z"})
        elif path.endswith(":signBlob"):
            signature = here.key.sign(
                base64.b64decode(json.loads(body)["payload"]), padding.PKCS1v15(), hashes.SHA256()
            )
            here.signatures.add(signature.hex())
            self._say({"keyId": "1", "signedBlob": base64.b64encode(signature).decode()})
        elif "partNumber" in query:
            if query.get("X-Goog-Signature") not in here.signatures or here.fails > 0:
                here.fails -= 1
                return self._say({"error": "no"}, 403)
            here.parts[int(query["partNumber"])] = body
            self._say({}, etag=f'"{query["partNumber"]}"')
        elif self.headers.get("Authorization") != "Bearer ya29.of-the-server":
            self._say({"error": "who are you?"}, 401)
        elif "uploads" in query:
            here.parts = {}
            self._say(b"<R xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><UploadId>u</UploadId></R>")
        elif "uploadId" in query and self.command == "POST":
            numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)", body)]
            here.files[path.split("/", 2)[2]] = b"".join(here.parts[number] for number in numbers)
            self._say(b"<R/>")
        elif path.startswith("/upload/"):
            head, content = re.split(rb"\r\n\r\n", body, maxsplit=2)[1:]
            name = json.loads(re.search(rb"\{.*?\}", head)[0])["name"]  # type: ignore[index]
            here.files[name] = content.rpartition(b"\r\n--")[0]
            self._say({"name": name})
        else:
            names = [name for name in here.files if name.startswith(query.get("prefix", ""))]
            self._say({"items": [{"name": name, "size": len(here.files[name])} for name in names]})

    def _say(self, content: dict[str, Any] | bytes, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""
