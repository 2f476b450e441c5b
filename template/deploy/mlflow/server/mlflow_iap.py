"""MLflow's application behind a check of the header that Identity-Aware Proxy signs.

Defence in depth: who reaches the server around the proxy is refused. Started by `mlflow server --app-name iap`, see
`mlflow_start`. Health checks do not come through the proxy and are let in.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from google.auth import jwt
from mlflow.server.fastapi_app import app as mlflow_app

HEADER, ISSUER = b"x-goog-iap-jwt-assertion", "https://cloud.google.com/iap"
KEYS_URL = os.environ.get("MLFLOW_IAP_KEYS_URL", "https://www.gstatic.com/iap/verify/public_key")
OPEN_PATHS = ("/health",)
KEYS_LIVE_S, KEYS_REST_S = 3600.0, 10.0
CLOCKS_DIFFER_S = 30  # what Google says to allow for

Message = MutableMapping[str, Any]


class SignedByProxy:
    """An ASGI application that hands on what the proxy signed for `audience`, and answers 401 to the rest."""

    def __init__(self, app: Callable[..., Awaitable[None]], audience: str) -> None:
        self.app, self.audience = app, audience
        self._keys: dict[str, str] = {}
        self._fetched = float("-inf")
        self._lock = threading.Lock()

    async def __call__(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Serve one connection."""
        if scope["type"] != "lifespan" and scope.get("path") not in OPEN_PATHS:
            token = dict(scope["headers"]).get(HEADER, b"").decode("latin-1")
            problem = await asyncio.to_thread(self.problem_of, token)
            if problem and scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            if problem:
                body = json.dumps({"error_code": "UNAUTHENTICATED", "message": problem}).encode()
                headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
        await self.app(scope, receive, send)

    def problem_of(self, token: str) -> str:
        """Return why a header is not accepted; empty when it is."""
        if not token:
            return "This server is reached through Identity-Aware Proxy only."
        try:
            known = self._keys_for(jwt.decode_header(token).get("kid"))
            claims = jwt.decode(token, known, audience=self.audience, clock_skew_in_seconds=CLOCKS_DIFFER_S)
        except Exception as error:  # whatever is wrong with a header, the answer is no
            return f"The proxy's signature is not accepted ({type(error).__name__})."
        return "" if claims.get("iss") == ISSUER else "The signature is not the proxy's."

    def _keys_for(self, kid: str | None) -> dict[str, str]:
        """Return Google's public keys, fetched again when they are old or do not have this one.

        Old ones stay in use while new ones cannot be had.
        """
        with self._lock:
            age = time.monotonic() - self._fetched
            if age > KEYS_LIVE_S or (kid not in self._keys and age > KEYS_REST_S):
                self._fetched = time.monotonic()  # also of a failure: not every request is to wait for the next one
                try:
                    with urllib.request.urlopen(KEYS_URL, timeout=10) as answer:
                        self._keys = json.load(answer)
                except (OSError, ValueError) as error:
                    print(f"Google's keys at {KEYS_URL} cannot be had: {error}", file=sys.stderr)
            return self._keys


app = SignedByProxy(mlflow_app, os.environ.get("MLFLOW_IAP_EXPECTED_AUDIENCE", ""))
