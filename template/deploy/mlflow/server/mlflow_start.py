"""The entrypoint of the image: upgrade the database, one server at a time, and become the MLflow server.

Read from the environment:
    MLFLOW_BACKEND_STORE_URI    the database, without its password
    MLFLOW_DB_PASSWORD          its password; or
    MLFLOW_DB_PASSWORD_SECRET   the secret that holds it: projects/PROJECT/secrets/NAME/versions/latest
    MLFLOW_ARTIFACTS_DESTINATION, MLFLOW_SERVER_ALLOWED_HOSTS, MLFLOW_SERVER_CORS_ALLOWED_ORIGINS: see MLflow
    MLFLOW_IAP_EXPECTED_AUDIENCE   refuse requests that did not come through Identity-Aware Proxy; unset: no check
    PORT, WEB_CONCURRENCY       8080 and 1 unless set
"""

from __future__ import annotations

import base64
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOCK = 7_305_198_624  # any number that nothing else in this database locks
DATABASE_WAIT_S = 120


def main() -> None:
    """Prepare the database, then replace this process by the server."""
    for name in ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION", "MLFLOW_SERVER_ALLOWED_HOSTS"):
        if not os.environ.get(name):
            sys.exit(f"{name} is not set; see README.md beside the Dockerfile.")
    # In the environment and not in the address: libpq reads it there, and no log or list of processes shows it.
    password = os.environ.pop("MLFLOW_DB_PASSWORD", "") or _from_secret(os.environ.get("MLFLOW_DB_PASSWORD_SECRET"))
    if password:
        os.environ["PGPASSWORD"] = password
    upgrade(os.environ["MLFLOW_BACKEND_STORE_URI"])
    # The job workers take 1.5 GB and do nothing for tracking. Large files go to the bucket in parts.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "0.0.0.0", "--port", os.environ.get("PORT", "8080")]
    command += ["--workers", os.environ.get("WEB_CONCURRENCY", "1")]
    if os.environ.get("MLFLOW_IAP_EXPECTED_AUDIENCE"):
        command += ["--app-name", "iap"]
    os.execv(sys.executable, command)


def upgrade(uri: str) -> None:
    """Bring the database to this MLflow's schema; servers that start together do it one after the other."""
    from alembic.util import CommandError
    from mlflow.db import commands

    with _locked(uri):
        try:
            commands.main(["upgrade", uri], prog_name="mlflow db", standalone_mode=False)
        except CommandError as error:
            sys.exit(
                f"The database was written by a newer MLflow than this one ({error}). Deploy that version again, or "
                "restore the backup taken before the upgrade (README.md)."
            )


@contextmanager
def _locked(uri: str) -> Iterator[None]:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    if engine.dialect.name != "postgresql":
        yield
        return
    end = time.monotonic() + DATABASE_WAIT_S
    while True:
        try:
            connection = engine.connect()
            break
        except sqlalchemy.exc.OperationalError as error:
            if time.monotonic() > end:
                sys.exit(f"The database does not answer: {error.orig}")
            time.sleep(1)
    with connection:  # the lock goes with the connection, also when this process is killed
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
        yield


def _from_secret(name: str | None) -> str:
    if not name:
        return ""
    import google.auth
    from google.auth.transport.requests import AuthorizedSession

    # gcloud's own variable for another address of the service
    home = os.environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER", "https://secretmanager.googleapis.com/")
    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    answer = AuthorizedSession(credentials).get(f"{home}v1/{name}:access", timeout=30)
    if not answer.ok:
        sys.exit(f"The secret {name} cannot be read (HTTP {answer.status_code}); may this service account access it?")
    return base64.b64decode(answer.json()["payload"]["data"]).decode()


if __name__ == "__main__":
    main()
