"""PostgreSQL from the system's packages, the entrypoint of deploy/mlflow as a process, and a proxy before it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import copier
import pytest

from tests.mlflow.parts import LEFT_OUT, PASSWORD, ROOT, Database, Server
from tests.mlflow.proxy import Google, Guard, Proxy


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose tracker is on App Engine; its login is found by MLflow as if it were installed."""
    place = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "copier.yml", place)
    for folder in ("hooks", "template"):
        shutil.copytree(ROOT / folder, place / folder, ignore=LEFT_OUT)
    answers = {"tracker": "app-engine", "google_project": "my-team", "deploy": []}
    copier.run_copy(str(place), place / "my-project", data=answers, defaults=True, quiet=True)
    installed = place / "my-project" / "src" / "my_project-0.1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-project\nVersion: 0.1.0\n")
    table = (place / "my-project" / "pyproject.toml").read_text()
    line = next(line for line in table.splitlines() if line.startswith("my-project-iap"))
    name, _, target = line.partition(" = ")
    (installed / "entry_points.txt").write_text(f"[mlflow.request_auth_provider]\n{name} = {target.strip(chr(34))}\n")
    return place / "my-project"


@pytest.fixture(scope="session")
def image(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install ./server` of the Dockerfile puts into the image."""
    place = tmp_path_factory.mktemp("image")
    server = project / "deploy" / "mlflow" / "server"
    for file in server.glob("*.py"):
        shutil.copy(file, place)
    installed = place / "mlflow_start-1.0.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mlflow-start\nVersion: 1.0.0\n")
    (installed / "entry_points.txt").write_text(
        "[mlflow.app]\niap = mlflow_iap:app\n[mlflow.artifact_repository]\ngs = mlflow_bucket:Bucket\n"
    )
    return place


@pytest.fixture(scope="session")
def database() -> Iterator[Database]:
    import tempfile

    place = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path may have 107 characters
    found = Database(place)
    yield found
    found.stop("immediate")
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="session")
def guard() -> Guard:
    return Guard()


@pytest.fixture(scope="session")
def google(guard: Guard) -> Iterator[Google]:
    found = Google(guard, PASSWORD)
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture(scope="session")
def server(
    image: Path, database: Database, google: Google, guard: Guard, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The server on an empty database, which also checks the header that IAP signs."""
    database.sql("CREATE DATABASE mlflow")
    place = tmp_path_factory.mktemp("server")
    found = Server(image, place, database.uri("mlflow"), google, MLFLOW_IAP_EXPECTED_AUDIENCE=guard.server_audience)
    yield found.wait()
    found.kill()


@pytest.fixture
def proxy(server: Server, guard: Guard) -> Iterator[Proxy]:
    """Identity-Aware Proxy before the server."""
    found = Proxy(server.port, guard)
    yield found
    found.stop()
