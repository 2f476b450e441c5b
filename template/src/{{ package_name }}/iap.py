"""The login at a tracking server behind Google's Identity-Aware Proxy: a fresh ID token on every request of MLflow.

MLflow finds it by the entry point in pyproject.toml when MLFLOW_TRACKING_AUTH names it. It works with a service
account's key file, a machine's own account (metadata server), workload identity and a person's login by impersonation
of MLFLOW_IAP_SERVICE_ACCOUNT, and a person's login made with an OAuth client that the proxy accepts.

Owns: where tokens are from, and when they are renewed. Does not own: any request. Imported by every `import mlflow` of
the environment, so it imports nothing that is heavy.
"""

from __future__ import annotations

import os
import threading
from typing import Any

NAME = f"{(__package__ or '').replace('_', '-')}-iap"
LOGIN = "gcloud auth application-default login"
_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]


class LoginError(Exception):
    """There is no login, or it is not accepted; the text says which command mends that."""


class ProxyLogin:
    """What MLflow asks for under the name `NAME`; see `mlflow.tracking.request_auth`."""

    def __init__(self) -> None:
        self._auth: Any = None

    def get_name(self) -> str:
        """Return the value of MLFLOW_TRACKING_AUTH that chooses this login."""
        return NAME

    def get_auth(self) -> Any:
        """Return the one `requests` authentication of this process; its token is shared by all threads."""
        self._auth = self._auth or Bearer(IdTokens())
        return self._auth


class Bearer:
    """Put the token of now on each request, and try a refused one again with a new token, once."""

    def __init__(self, tokens: IdTokens) -> None:
        self._tokens = tokens

    def __call__(self, request: Any) -> Any:
        """Add the token, beside MLflow's own user and password where those are in use."""
        name = "Proxy-Authorization" if os.environ.get("MLFLOW_TRACKING_USERNAME") else "Authorization"
        request.headers[name] = f"Bearer {self._tokens.get()}"
        request.register_hook("response", self._again)
        return request

    def _again(self, response: Any, **options: Any) -> Any:
        if not _is_refused(response):
            return response
        request = response.request.copy()
        if isinstance(request.body, (bytes, str, type(None))):  # a stream cannot be sent twice; the logger tries again
            response.content  # noqa: B018 (gives the connection back)
            self._tokens.forget()
            request.deregister_hook("response", self._again)
            again = response.connection.send(self(request), **options)
            if not _is_refused(again):
                again.history.append(response)
                return again
        raise LoginError(
            f"The proxy before {response.url.split('/api/')[0]} does not accept this login ({_said_by(response)}). "
            f"Ask for the role `IAP-secured Web App User`, compare MLFLOW_IAP_AUDIENCE, or log in anew: {LOGIN}"
        )


class IdTokens:
    """ID tokens for MLFLOW_IAP_AUDIENCE, renewed shortly before they expire. Threads share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._credentials: Any = None
        self._transport: Any = None

    def get(self) -> str:
        """Return a token that is valid now.

        Raises:
            LoginError: There is no login, or it has expired.
        """
        with self._lock:
            from google.auth import exceptions

            try:
                if self._credentials is None:
                    self._credentials = self._make()
                if not self._credentials.valid:
                    self._credentials.refresh(self._transport)
            except exceptions.DefaultCredentialsError as error:
                raise LoginError(f"There is no Google login here ({_first(error)}). Run: {LOGIN}") from None
            except exceptions.TransportError as error:
                raise LoginError(f"Google gives no token: it cannot be reached ({_first(error)}).") from None
            except exceptions.GoogleAuthError as error:  # of the many kinds, all but the two above refuse the login
                self._credentials = None
                raise LoginError(f"The Google login is not valid any more ({_first(error)}). Run: {LOGIN}") from None
            token = getattr(self._credentials, "id_token", None) or self._credentials.token
        return str(token)

    def forget(self) -> None:
        """Make a new token for the next request."""
        with self._lock:
            self._credentials = None

    def _make(self) -> Any:
        import google.auth
        from google.auth import external_account, external_account_authorized_user, impersonated_credentials
        from google.auth.transport.requests import Request
        from google.oauth2 import credentials as of_a_person
        from google.oauth2 import id_token

        audience = os.environ.get("MLFLOW_IAP_AUDIENCE")
        if not audience:
            raise LoginError("MLFLOW_IAP_AUDIENCE is not set: the client id of the proxy's OAuth client.")
        self._transport = Request()
        account = os.environ.get("MLFLOW_IAP_SERVICE_ACCOUNT")
        source, _ = google.auth.default(scopes=_SCOPES)
        if account:
            acting = impersonated_credentials.Credentials(source, target_principal=account, target_scopes=_SCOPES)
            return impersonated_credentials.IDTokenCredentials(acting, target_audience=audience, include_email=True)
        if isinstance(source, of_a_person.Credentials):
            return source
        if isinstance(source, external_account.Credentials | external_account_authorized_user.Credentials):
            raise LoginError(
                "A workload identity gets no token for the proxy itself. Name the account that it acts as: "
                "MLFLOW_IAP_SERVICE_ACCOUNT."
            )
        return id_token.fetch_id_token_credentials(audience, self._transport)


def _is_refused(response: Any) -> bool:
    """Tell the proxy's two ways to say no: 401, and a redirect to the page where people log in."""
    to = response.headers.get("Location", "")
    to_login = "accounts.google.com" in to or "gcp_iap" in to
    return bool(response.status_code == 401 or (response.is_redirect and to_login))


def _said_by(response: Any) -> str:
    return str(response.text[:200]).strip() if response.status_code == 401 else "it redirects to the login page"


def _first(error: Exception) -> str:
    return str(error.args[0] if error.args else error).splitlines()[0][:200]
