"""The login on every request: of a machine, a key, a person, a foreign identity, and of who acts as another."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives import serialization

from tests.mlflow.proxy import Google, Guard, Proxy

SERVICES = re.compile(r"https://(iamcredentials|oauth2|cloudresourcemanager)\.googleapis\.com")


@pytest.fixture
def iap(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, google: Google, guard: Guard) -> Any:
    """The project's module, in an environment that knows no login."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "GOOGLE_", "GCE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_IAP_AUDIENCE", guard.audience)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "no-gcloud"))
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:9")
    monkeypatch.setenv("GCE_METADATA_TIMEOUT", "1")
    ask = requests.Session.request

    def here(self: Any, method: str, url: str, *args: Any, **options: Any) -> Any:
        return ask(self, method, SERVICES.sub(f"http://{google.place}", url), *args, **options)

    monkeypatch.setattr(requests.Session, "request", here)
    monkeypatch.setattr(google, "refuses", False)
    monkeypatch.syspath_prepend(str(project / "src"))
    yield importlib.import_module("my_project.iap")
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_project"]:
        del sys.modules[name]


@pytest.fixture
def log_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, google: Google, guard: Guard) -> Callable[[str], None]:
    """Make the login of one kind, as the tools of that kind leave it."""

    def log_in(kind: str) -> None:
        token_uri = f"http://{google.place}/token"
        private = guard.google_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        person = {"type": "authorized_user", "client_secret": "s", "refresh_token": "r", "token_uri": token_uri}
        (tmp_path / "identity").write_text("of another cloud")
        files: dict[str, dict[str, Any]] = {
            "key": {"type": "service_account", "client_email": "a@b", "private_key": private, "token_uri": token_uri},
            "person": {**person, "client_id": guard.audience},
            "person who acts as the trainer": {**person, "client_id": "gcloud"},
            "workload identity": {
                "type": "external_account",
                "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
                "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                "token_url": token_uri,
                "credential_source": {"file": str(tmp_path / "identity")},
            },
        }
        if kind in ("workload identity", "person who acts as the trainer"):
            monkeypatch.setenv("MLFLOW_IAP_SERVICE_ACCOUNT", "mlflow-trainer@my-team.iam.gserviceaccount.com")
        if kind == "machine":
            monkeypatch.setenv("GCE_METADATA_HOST", google.place)
            monkeypatch.setenv("GCE_METADATA_IP", google.place)
        else:
            (tmp_path / "login.json").write_text(json.dumps(files[kind]))
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "login.json"))

    return log_in


KINDS = ["machine", "key", "person", "person who acts as the trainer", "workload identity"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_of_each_login_is_let_in_and_renewed_shortly_before_it_expires(
    iap: Any, log_in: Callable[[str], None], guard: Guard, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(kind)
    tokens = iap.IdTokens()
    monkeypatch.setattr(guard, "life_s", 3600.0)
    assert guard.problem_of(tokens.get()) == ""
    made = guard.made
    assert guard.problem_of(tokens.get()) == ""
    assert guard.made == made, "a good token is used again"
    tokens.forget()
    monkeypatch.setattr(guard, "life_s", 200.0)  # google-auth renews what has less than 225 seconds left
    tokens.get()
    made = guard.made
    assert guard.problem_of(tokens.get()) == ""
    assert guard.made == made + (kind != "person"), "a person's is renewed with the access token, by whose life it goes"


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_login_that_has_ended_is_one_sentence_with_the_command(
    iap: Any, log_in: Callable[[str], None], google: Google, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(kind)
    monkeypatch.setattr(google, "refuses", True)
    with pytest.raises(
        iap.LoginError, match=r"login is not valid any more.*Run: gcloud auth application-default login"
    ):
        iap.IdTokens().get()


def test_no_login_is_one_sentence_with_the_command(iap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(iap.LoginError, match=r"no Google login here.*Run: gcloud auth application-default login"):
        iap.IdTokens().get()


def test_workload_identity_without_an_account_says_what_is_missing(
    iap: Any, log_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in("workload identity")
    monkeypatch.delenv("MLFLOW_IAP_SERVICE_ACCOUNT")
    with pytest.raises(iap.LoginError, match="MLFLOW_IAP_SERVICE_ACCOUNT"):
        iap.IdTokens().get()


def test_a_refused_token_is_replaced_once_and_a_refused_login_says_what_to_do(
    iap: Any, log_in: Callable[[str], None], guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of this machine goes wrong, or keys were changed: the token looks good here and is refused there."""
    log_in("machine")
    monkeypatch.setattr(guard, "life_s", 3600.0)
    proxy = Proxy(9, guard)
    try:
        bearer = iap.Bearer(iap.IdTokens())
        assert requests.get(f"{proxy.address}/x", auth=bearer).status_code == 502, "let in; there is no server behind"
        stale = guard.id_token(guard.audience, -10)
        monkeypatch.setattr(bearer._tokens._credentials, "token", stale)
        assert requests.post(f"{proxy.address}/x", json={}, auth=bearer).status_code == 502
        monkeypatch.setenv("MLFLOW_IAP_AUDIENCE", "another")
        with pytest.raises(iap.LoginError, match="compare MLFLOW_IAP_AUDIENCE"):
            requests.get(f"{proxy.address}/x", auth=iap.Bearer(iap.IdTokens()))
    finally:
        proxy.stop()
