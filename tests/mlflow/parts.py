"""What the tests share: a database of its own, and the entrypoint of deploy/mlflow as a process."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mlflow.proxy import Google

ROOT = Path(__file__).parents[2]
PASSWORD = "p%40 ss/word-of-the-database"
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*_cache")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(done: Callable[[], Any], timeout_s: float, what: str) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := done()):
        assert time.monotonic() < end, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.1)
    return found


class Database:
    """A PostgreSQL of its own that listens on a unix socket only, as Cloud SQL does in a container."""

    def __init__(self, place: Path) -> None:
        self.data, self.socket = place / "data", place / "socket"
        self.socket.mkdir()
        place.chmod(0o777)
        self.socket.chmod(0o777)
        self.bin = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
        if self.bin is None:
            pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
        secret = place / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._run("initdb", "-D", str(self.data), "-U", "mlflow", "-A", "scram-sha-256", "--pwfile", str(secret))
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self.socket} -c fsync=off"
        log = str(self.data.parent / "log")
        self._run("pg_ctl", "-w", "-t", "120", "-D", str(self.data), "-l", log, "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-w", "-t", "120", "-D", str(self.data), "-m", mode, "stop")

    def uri(self, name: str) -> str:
        return f"postgresql+psycopg2://mlflow@/{name}?host={self.socket}"

    def sql(self, statement: str, name: str = "postgres") -> str:
        command = ["psql", "-h", str(self.socket), "-U", "mlflow", "-d", name, "-tAc", statement]
        return self._run(*command).stdout.strip()

    def _run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        assert self.bin is not None
        line = [str(self.bin / command), *arguments]
        options: dict[str, Any] = {"user": "postgres"} if os.geteuid() == 0 else {}  # it refuses to run as root
        environment = {**os.environ, "PGPASSWORD": PASSWORD, "LC_ALL": "C.UTF-8"}
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if command != "pg_ctl" else {}
        if command == "pg_ctl":  # the server would hold a pipe open
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        ended = subprocess.run(line, env=environment, text=True, check=False, cwd="/", **quiet, **options)
        assert ended.returncode == 0, f"{line}: {ended.stdout}"
        return ended


class Server:
    """The entrypoint of the Dockerfile, started as a process."""

    def __init__(self, image: Path, place: Path, uri: str, google: Google, **more: str) -> None:
        self.port, self.place = free_port(), place
        place.mkdir(parents=True, exist_ok=True)
        hosts = "my-team.*.r.appspot.com,*-dot-my-team.*.r.appspot.com,localhost:*,127.0.0.1:*"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PG"))}
        self.environment = {
            **kept,
            "PYTHONPATH": str(image),
            "PORT": str(self.port),
            "MLFLOW_BACKEND_STORE_URI": uri,
            "MLFLOW_ARTIFACTS_DESTINATION": str(place / "bucket"),
            "MLFLOW_SERVER_ALLOWED_HOSTS": hosts,
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "https://my-team.*.r.appspot.com",
            "MLFLOW_DB_PASSWORD_SECRET": "projects/my-team/secrets/mlflow-db-password/versions/latest",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": f"http://{google.place}/",
            "GCE_METADATA_HOST": google.place,
            "GCE_METADATA_IP": google.place,
            "MLFLOW_IAP_KEYS_URL": f"http://{google.place}/keys",
            **more,
        }
        self.start()

    def start(self) -> None:
        log = (self.place / "server.log").open("a")
        command = [sys.executable, "-m", "mlflow_start"]
        self.process = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, cwd=self.place, start_new_session=True
        )

    @property
    def log(self) -> str:
        return (self.place / "server.log").read_text()

    @property
    def is_healthy(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return bool(answer.read() == b"OK")
        except OSError:
            return False

    def wait(self) -> Server:
        wait_for(lambda: self.is_healthy, 240, "a healthy server")
        return self

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
