"""The entrypoint on real PostgreSQL: two at once, an older database, a newer one, hosts, origins, the signed header."""

from __future__ import annotations

import base64
import hmac
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import jwt
import pytest

from tests.mlflow.parts import PASSWORD, Database, Server, wait_for
from tests.mlflow.proxy import IAP, Google, Guard, Proxy, pem

OLDER = "3.10.1"


def ask(address: str, path: str, body: object = None, **headers: str) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json", **names})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_two_at_once_on_an_empty_database_both_come_up(
    image: Path, database: Database, google: Google, tmp_path: Path
) -> None:
    database.sql("CREATE DATABASE empty")
    both = [Server(image, tmp_path / name, database.uri("empty"), google) for name in ("one", "two")]
    try:
        for server in both:
            server.wait()
        tables = database.sql("SELECT count(*) FROM information_schema.tables WHERE table_schema='public'", "empty")
        assert int(tables) > 40
        assert not any("Error" in server.log for server in both)
    finally:
        for server in both:
            server.kill()


def test_a_database_of_an_older_mlflow_is_upgraded_with_its_runs(
    image: Path, database: Database, google: Google, tmp_path: Path
) -> None:
    database.sql("CREATE DATABASE older")
    old = tmp_path / "old"
    environment = {**os.environ, "PGPASSWORD": PASSWORD}
    for command in (
        ["uv", "venv", "-q", "--python", sys.executable, str(old)],
        ["uv", "pip", "install", "-q", "--python", str(old), f"mlflow=={OLDER}", "psycopg2-binary", "setuptools<81"],
    ):
        subprocess.run(command, check=True, env=environment)
    code = (
        f"import mlflow; client = mlflow.MlflowClient({database.uri('older')!r})\n"
        "run = client.create_run(client.create_experiment('kept', 'mlflow-artifacts:/1')).info.run_id\n"
        "client.log_metric(run, 'a', 1.5, step=3); client.log_param(run, 'lr', '0.1'); print(run)"
    )
    ended = subprocess.run(
        [str(old / "bin" / "python"), "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    run_id = ended.stdout.split()[-1]
    before = database.sql("SELECT version_num FROM alembic_version", "older")
    server = Server(image, tmp_path / "server", database.uri("older"), google).wait()
    try:
        status, text = ask(f"http://127.0.0.1:{server.port}", f"/api/2.0/mlflow/runs/get?run_id={run_id}")
        assert status == 200, text
        data = json.loads(text)["run"]["data"]
        assert (data["metrics"][0]["value"], data["metrics"][0]["step"], data["params"][0]["value"]) == (1.5, 3, "0.1")
        assert database.sql("SELECT version_num FROM alembic_version", "older") != before, "there was something to do"
    finally:
        server.kill()


def test_a_database_of_a_newer_mlflow_is_left_alone_and_said(
    image: Path, database: Database, google: Google, server: Server, tmp_path: Path
) -> None:
    database.sql("CREATE DATABASE newer")
    database.sql("CREATE TABLE alembic_version (version_num varchar(32)); CREATE TABLE experiments (a int)", "newer")
    database.sql("CREATE TABLE runs (a int); INSERT INTO alembic_version VALUES ('ffffffffffff')", "newer")
    late = Server(image, tmp_path, database.uri("newer"), google)
    wait_for(lambda: late.process.poll() is not None, 120, "the end of the process")
    assert late.process.returncode == 1
    assert "newer MLflow" in late.log
    assert "restore the backup" in late.log
    assert PASSWORD not in late.log


def test_a_setting_that_is_missing_is_one_sentence(image: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    ended = subprocess.run(
        [sys.executable, "-m", "mlflow_start"],
        env={**environment, "PYTHONPATH": str(image)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.startswith("MLFLOW_BACKEND_STORE_URI is not set")


def test_the_password_is_in_no_log_and_no_list_of_processes(server: Server) -> None:
    assert PASSWORD not in server.log
    command = Path(f"/proc/{server.process.pid}/cmdline").read_bytes().decode()
    assert "mlflow" in command
    assert PASSWORD not in command


def test_hosts_and_origins_are_those_of_the_answers(server: Server, guard: Guard) -> None:
    address, search = f"http://127.0.0.1:{server.port}", "/api/2.0/mlflow/experiments/search"
    signed = {"X_Goog_IAP_JWT_Assertion": guard.assertion()}
    ours = {"Host": "my-team.an.r.appspot.com", "Origin": "https://my-team.an.r.appspot.com"}
    body = {"max_results": 1}
    assert ask(address, search, body, **signed, **ours)[0] == 200
    assert ask(address, search, body, **signed, **{**ours, "Host": "evil.example.com"})[0] == 403
    assert ask(address, search, body, **signed, **{**ours, "Origin": "https://evil.example.com"})[0] == 403


@pytest.mark.parametrize("path", ["/", "/api/2.0/mlflow/experiments/search", "/api/2.0/mlflow-artifacts/artifacts/x"])
def test_who_comes_around_the_proxy_is_refused(server: Server, path: str) -> None:
    status, text = ask(f"http://127.0.0.1:{server.port}", path)
    assert (status, "Identity-Aware Proxy" in text) == (401, True)


def test_forged_and_foreign_signatures_are_refused(server: Server, guard: Guard) -> None:
    now = int(time.time())
    body = {"iss": IAP, "aud": guard.server_audience, "iat": now, "exp": now + 600}
    forged = {
        "another key": Guard(server_audience=guard.server_audience).assertion(),
        "another audience": guard.assertion(aud="/projects/9/apps/other"),
        "another issuer": guard.assertion(iss="https://accounts.google.com"),
        "no issuer": guard.assertion(iss=None),
        "no audience": guard.assertion(aud=None),
        "no end": guard.assertion(exp=None),
        "expired": guard.assertion(iat=now - 900, exp=now - 300),
        "of tomorrow": guard.assertion(iat=now + 86_400, exp=now + 90_000),
        "no token": "x.y.z",
        "cut": guard.assertion()[:-4],
        "unsigned": jwt.encode(body, None, "none", {"kid": "iap"}),
        "signed with the public key as a password": _with_hmac(body, pem(guard.iap_key)),
        "another way to sign": jwt.encode(body, guard.google_key, "RS256", {"kid": "iap"}),
    }
    address = f"http://127.0.0.1:{server.port}"
    said = {name: ask(address, "/", X_Goog_IAP_JWT_Assertion=token)[0] for name, token in forged.items()}
    assert said == dict.fromkeys(forged, 401)
    assert ask(address, "/", X_Goog_IAP_JWT_Assertion=guard.assertion(iat=now + 20))[0] == 200, "clocks differ"
    assert ask(address, "/health") == (200, "OK")
    assert ask(address, "/version")[0] == 401


def _with_hmac(body: dict[str, object], password: str) -> str:
    """What PyJWT refuses to make: a token whose HMAC key is the public key that everyone can read."""
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "kid": "iap", "typ": "JWT"}, body)]
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = hmac.digest(password.encode(), text, "sha256")
    return (text + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def test_the_proxy_itself_refuses_what_iap_refuses(proxy: Proxy, guard: Guard) -> None:
    search = "/api/2.0/mlflow/experiments/search?max_results=1"
    good = guard.id_token(guard.audience, 60)
    assert ask(proxy.address, search, Authorization=f"Bearer {good}")[0] == 200
    for token in (
        guard.id_token(guard.audience, -10),
        guard.id_token("another-audience", 60),
        Guard(audience=guard.audience).id_token(guard.audience, 60),
        "",
    ):
        assert ask(proxy.address, search, Authorization=f"Bearer {token}")[0] == 401
