"""Files in a bucket of Google's: small ones through the server, large ones in signed parts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mlflow.bucket import Storage, redirect
from tests.mlflow.parts import Server
from tests.mlflow.proxy import Google


@pytest.fixture
def storage() -> Iterator[Storage]:
    found = Storage()
    yield found
    found.shutdown()
    found.server_close()


def test_a_large_file_goes_to_the_bucket_in_parts_that_google_signs(
    image: Path, google: Google, storage: Storage, tmp_path: Path
) -> None:
    place = tmp_path / "image"
    shutil.copytree(image, place)
    redirect(place, storage)
    uri = f"sqlite:///{tmp_path}/a.db"
    server = Server(place, tmp_path, uri, google, MLFLOW_ARTIFACTS_DESTINATION="gs://my-team-mlflow-artifacts")
    (tmp_path / "small.txt").write_text("small")
    large = os.urandom(25_000_000)
    (tmp_path / "大きい.ckpt").write_bytes(large)
    code = (
        "import mlflow\n"
        "client = mlflow.MlflowClient()\n"
        "run = client.create_run(client.create_experiment('large')).info.run_id\n"
        f"client.log_artifact(run, {str(tmp_path / 'small.txt')!r})\n"
        f"client.log_artifact(run, {str(tmp_path / '大きい.ckpt')!r}, 'checkpoints')\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(place),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.port}",
        "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE": "20000000",
    }
    try:
        server.wait()
        command = [sys.executable, "-c", code]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr + server.log
    finally:
        server.kill()
    found = {name.split("/artifacts/")[1]: content for name, content in storage.files.items()}
    assert found == {"small.txt": b"small", "checkpoints/大きい.ckpt": large}
    assert len(storage.parts) == 3
    assert len(storage.signatures) == 3
