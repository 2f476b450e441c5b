"""A proxy on loopback before the real server: it can break like a network, and play Identity-Aware Proxy.

With a `Guard` it does what IAP does: verifies the ID token's RS256 signature, audience, issuer and expiry, answers 401
with IAP's words or redirects a browser to a login page, and adds the ES256-signed header to what it lets in.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

GOOGLE, IAP = "https://accounts.google.com", "https://cloud.google.com/iap"


def pem(key: Any) -> str:
    """The public half, as text."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


@dataclass
class Guard:
    """The keys and the audiences of a pretended Google."""

    audience: str = "1234-client.apps.googleusercontent.com"
    server_audience: str = "/projects/1234/apps/my-team"
    google_key: Any = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    iap_key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    life_s: float = 3.0
    made: int = 0
    browser_token: str = ""

    def id_token(self, audience: str, life_s: float | None = None, **claims: Any) -> str:
        """A token as Google's servers give it to a machine."""
        self.made += 1
        now = time.time()
        body = {"iss": GOOGLE, "aud": audience, "email": "trainer@my-team.iam.gserviceaccount.com", "iat": int(now)}
        body["exp"] = now + (self.life_s if life_s is None else life_s)
        return jwt.encode({**body, **claims}, self.google_key, "RS256", {"kid": "google"})

    def problem_of(self, token: str) -> str:
        """What IAP says of a token; empty: it is good."""
        if not token:
            return "Invalid IAP credentials: empty token"
        try:
            jwt.decode(token, self.google_key.public_key(), ["RS256"], audience=self.audience, issuer=GOOGLE)
        except jwt.ExpiredSignatureError:
            return "OpenID Connect token expired: JWT has expired"
        except jwt.PyJWTError as error:
            return f"Invalid IAP credentials: {error}"
        return ""

    def assertion(self, **claims: Any) -> str:
        """The header that IAP signs for the server behind it; a claim that is None is left out."""
        now = int(time.time())
        body = {"iss": IAP, "aud": self.server_audience, "iat": now, "exp": now + 600, "email": "trainer@my-team"}
        body = {name: value for name, value in {**body, **claims}.items() if value is not None}
        return jwt.encode(body, self.iap_key, "ES256", {"kid": "iap"})


class Proxy(ThreadingHTTPServer):
    """Forwards to `upstream`; `mode` is ok, refuse, hang, page, or an HTTP status to answer with."""

    daemon_threads = True

    def __init__(self, upstream: int, guard: Guard | None = None, host: str = "my-team.an.r.appspot.com") -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.upstream, self.guard, self.host = upstream, guard, host
        self.mode: str | int = "ok"
        self.answers: Counter[int] = Counter()
        self.paths: list[str] = []
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


class _Forward(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy, mode = self.server, self.server.mode
        if mode == "refuse":
            self.close_connection = True
            return
        if mode == "hang":
            proxy.released.wait(120)
            self.close_connection = True
            return
        if mode == "page":
            return self._answer(200, b"<html>We will be back soon.</html>", {"Content-Type": "text/html"})
        if isinstance(mode, int):
            return self._answer(mode, b"broken", {"Retry-After": "1"} if mode == 429 else {})
        headers = {key: value for key, value in self.headers.items() if key.lower() not in {"connection", "host"}}
        headers.pop("X-Goog-IAP-JWT-Assertion", None)  # nobody but the proxy may say this
        if proxy.guard is not None and self.path != "/health":
            given = self.headers.get("Proxy-Authorization") or self.headers.get("Authorization") or ""
            token = given.removeprefix("Bearer ") or proxy.guard.browser_token
            problem = proxy.guard.problem_of(token)
            if problem and "text/html" in self.headers.get("Accept", ""):
                return self._answer(302, b"", {"Location": f"{GOOGLE}/o/oauth2/v2/auth?client_id=x"})
            if problem:
                return self._answer(401, problem.encode(), {"X-Goog-IAP-Generated-Response": "true"})
            headers["X-Goog-IAP-JWT-Assertion"] = proxy.guard.assertion()
        self._forward(body, headers)

    def _forward(self, body: bytes, headers: dict[str, str]) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        try:
            upstream.request(self.command, self.path, body, {**headers, "Host": self.server.host})
            answer = upstream.getresponse()
            content = answer.read()
        except OSError:
            return self._answer(502, b"no upstream", {})
        left_out = {"connection", "transfer-encoding", "content-length", "date", "server"}
        kept = {key: value for key, value in answer.getheaders() if key.lower() not in left_out}
        self._answer(answer.status, content, kept)

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.server.answers[status] += 1
        self.server.paths.append(f"{self.command} {self.path.split('?')[0]} {status}")
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _do

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class Google(ThreadingHTTPServer):
    """The metadata server of a machine on Google Cloud, Secret Manager, and the page with IAP's public keys."""

    daemon_threads = True

    def __init__(self, guard: Guard, password: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Metadata)
        self.guard, self.password = guard, password
        self.refuses = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Metadata(BaseHTTPRequestHandler):
    server: Google

    def do_GET(self) -> None:
        guard, path = self.server.guard, self.path
        home = "/computeMetadata/v1/instance/service-accounts"
        if self.server.refuses and path != "/":
            return self._answer("no", 403)
        if "/identity" in path:
            audience = dict(part.split("=", 1) for part in path.split("?")[1].split("&"))["audience"]
            self._answer(guard.id_token(audience))
        elif path.startswith(home) and "/token" in path:
            self._answer(json.dumps({"access_token": "ya29.test", "expires_in": 3600, "token_type": "Bearer"}))
        elif path.startswith(home):
            about = {"email": "trainer@my-team.iam.gserviceaccount.com", "scopes": ["x"], "aliases": ["default"]}
            self._answer(json.dumps(about))
        elif path.endswith("project-id"):
            self._answer("my-team")
        elif path.endswith(":access"):
            import base64

            data = base64.b64encode(self.server.password.encode()).decode()
            self._answer(json.dumps({"payload": {"data": data}}))
        elif path.startswith("/v1/projects/"):
            self._answer(json.dumps({"error": "may not be seen"}), 403)
        elif path == "/keys":
            self._answer(json.dumps({"iap": pem(guard.iap_key)}))
        else:
            self._answer("", 200)

    def do_POST(self) -> None:
        """Google's tokens for a key, a person's login, a foreign identity, and for whoever may act as another."""
        guard, body = self.server.guard, self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if self.server.refuses:
            return self._answer(json.dumps({"error": "invalid_grant", "error_description": "Token has expired"}), 400)
        if self.path.endswith(":generateIdToken"):
            assert self.headers["Authorization"] == "Bearer ya29.test", "the role allows ID tokens only"
            return self._answer(json.dumps({"token": guard.id_token(json.loads(body)["audience"])}))
        form = {name: values[0] for name, values in parse_qs(body).items()}
        answer = {"access_token": "ya29.test", "expires_in": 3600, "token_type": "Bearer"}
        if "assertion" in form:
            claims = jwt.decode(form["assertion"], options={"verify_signature": False})
            answer = {"id_token": guard.id_token(claims["target_audience"])}
        elif form.get("refresh_token"):
            answer["id_token"] = guard.id_token(form["client_id"])
        elif form.get("subject_token"):
            answer["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
        self._answer(json.dumps(answer))

    def _answer(self, text: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Metadata-Flavor", "Google")
        kind = "application/json" if text.startswith("{") else "application/text"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: Any) -> None:
        """Say nothing."""
