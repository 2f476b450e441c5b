"""A training behind the proxy: tokens that live for seconds, outages, kills, a late login, secrets, the page."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import mlflow
import pytest

from tests.mlflow.parts import PASSWORD, Database, Server, wait_for
from tests.mlflow.proxy import Google, Guard, Proxy

ALWAYS = ["callbacks.early_stopping=null", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1"]
pytestmark = pytest.mark.timeout(1500)  # each starts a server's half dozen processes, on whatever else the machine does
NO_MODEL = "loggers.mlflow.log_model=false"
MODES: list[str | int] = ["refuse", "hang", 500, 429, 404, "page"]
NOISE = 0.7  # of the speed beside, of which a slow machine that others share may lose so much


class Job:
    """A copy of the project and its command line, aimed at the proxy."""

    def __init__(self, project: Path, place: Path, proxy: Proxy, google: Google, guard: Guard) -> None:
        self.folder = place / "my-project"
        shutil.copytree(project, self.folder)
        self.log = place / "log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "GOOGLE_"))}
        self.environment = {
            **kept,
            "PYTHONPATH": str(self.folder / "src"),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": proxy.address,
            "MLFLOW_IAP_AUDIENCE": guard.audience,
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
            "GCE_METADATA_HOST": google.place,
            "GCE_METADATA_IP": google.place,
            "CLOUDSDK_CONFIG": str(place / "no-gcloud"),
        }

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "my_project", *arguments]
        with self.log.open("a") as log:
            return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)

    def fit(self, *overrides: str) -> subprocess.Popen[bytes]:
        given = [item for override in (*ALWAYS, NO_MODEL, *overrides) for item in ("-o", override)]
        return self.start("fit", *given)

    def run(self, *arguments: str) -> str:
        before = len(self.log.read_text()) if self.log.exists() else 0
        assert self.start(*arguments).wait(300) == 0, self.log.read_text()
        return self.log.read_text()[before:]

    @property
    def run_folder(self) -> Path:
        (found,) = (file.parent for file in self.folder.glob("runs/*/*/status.json"))
        return found

    @property
    def steps(self) -> int:
        files = list(self.folder.glob("runs/*/*/metrics.csv"))
        return len(files[0].read_text().splitlines()) if files else 0

    def csv(self) -> dict[str, list[tuple[int, float]]]:
        found: dict[str, list[tuple[int, float]]] = {}
        with (self.run_folder / "metrics.csv").open() as file:
            for row in csv.DictReader(file):
                step = int(row.pop("step"))
                for key, value in row.items():
                    if value not in ("", None):
                        found.setdefault(key, []).append((step, float(value)))
        return {key: sorted(points) for key, points in found.items()}


@pytest.fixture
def job(project: Path, tmp_path: Path, proxy: Proxy, google: Google, guard: Guard) -> Iterator[Job]:
    google.refuses = False
    yield Job(project, tmp_path, proxy, google, guard)
    google.refuses = False


@pytest.fixture(scope="session")
def store(database: Database) -> Any:
    """What the server has, read behind its back."""
    os.environ["PGPASSWORD"] = PASSWORD
    return mlflow.MlflowClient(database.uri("mlflow"))


def find(store: Any, job: Job) -> Any:
    experiment = store.get_experiment_by_name("my_project")
    (run,) = store.search_runs([experiment.experiment_id], f"tags.run_folder = '{job.run_folder.name}'")
    return run


def assert_same_as_csv(store: Any, job: Job) -> int:
    run, count = find(store, job), 0
    for key, points in job.csv().items():
        tracked = sorted((p.step, p.value) for p in store.get_metric_history(run.info.run_id, key))
        assert tracked == points, key
        count += len(points)
    return count


def test_a_training_across_many_expiries_loses_no_point_and_no_request(
    job: Job, store: Any, proxy: Proxy, guard: Guard
) -> None:
    made, began = guard.made, time.monotonic()
    minutes = int(os.environ.get("TRAINING_MINUTES", "3"))
    process = job.fit("trainer.max_epochs=-1", f"trainer.max_time=00:00:{minutes:02}:00")
    assert process.wait(1500) == 0, job.log.read_text()
    took = time.monotonic() - began
    count = assert_same_as_csv(store, job)
    print(
        f"{took:.0f} s, {guard.made - made} tokens of {guard.life_s:g} s, {proxy.answers}, {count} points as in the CSV"
    )
    assert count > 60 * 34
    assert set(proxy.answers) <= {200, 404}, "404 says that the experiment is new"
    assert guard.made - made > 20 * minutes
    assert took > 60 * minutes
    run = find(store, job)
    assert run.info.status == "FINISHED"
    assert run.data.params["batch_size"] == "32"
    assert {"host", "run_folder", "accelerator"} <= set(run.data.tags)
    assert {used.tags[0].value for used in run.inputs.dataset_inputs} == {"training", "validation"}
    files = {path for path in proxy.paths if "mlflow-artifacts" in path and path.startswith("PUT")}
    assert any("environment.json" in path for path in files), "artifacts carry the token as well"


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_breaks_in_the_middle_costs_no_point_and_no_time(
    job: Job, store: Any, proxy: Proxy, mode: str | int
) -> None:
    process = job.fit("trainer.max_epochs=-1")
    wait_for(lambda: job.steps > 300 or process.poll() is not None, 240, "some steps")
    windows: list[tuple[float, float, bool]] = []
    for broken in (False, True, False, True, False):
        assert process.poll() is None, job.log.read_text()
        proxy.mode = mode if broken else "ok"
        began = time.time()
        time.sleep(6)
        windows.append((began, time.time(), broken))
    proxy.mode = "ok"
    proxy.released.set()
    process.send_signal(signal.SIGINT)
    process.wait(240)
    job.run("sync")
    assert_same_as_csv(store, job)
    run = find(store, job)
    assert run.info.status == "KILLED", "it was interrupted"
    times = [point.timestamp / 1000 for point in store.get_metric_history(run.info.run_id, "train_loss")]
    speed = {broken: [sum(a < t < b for t in times) / (b - a) for a, b, is_broken in windows if is_broken == broken]
             for broken in (True, False)}  # fmt: skip
    ratio = median(speed[True]) / median(speed[False])
    print(f"{mode}: {ratio:.2f} of the speed beside, {speed}")
    assert ratio > NOISE, f"training under an outage ran at {ratio:.2f} of its speed: {speed}"


def test_thirty_seconds_without_a_server_and_a_restarted_database(
    job: Job, store: Any, server: Server, database: Database
) -> None:
    process = job.fit("trainer.max_epochs=-1", "trainer.max_time=00:00:01:20")
    wait_for(lambda: job.steps > 100 or process.poll() is not None, 240, "some steps")
    database.stop("immediate")
    time.sleep(5)
    database.start()
    time.sleep(5)
    server.kill()
    database.stop("immediate")
    time.sleep(30)
    assert process.poll() is None, job.log.read_text()
    database.start()
    server.start()
    server.wait()
    assert process.wait(300) == 0, job.log.read_text()
    job.run("sync")
    store.search_experiments()  # its connections died with the database
    assert assert_same_as_csv(store, job) > 1000
    assert find(store, job).info.status == "FINISHED"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which root may")
def test_a_full_disk_without_a_server_costs_no_point(job: Job, store: Any, proxy: Proxy, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], check=True)
    try:
        process = job.fit("trainer.max_epochs=-1", f"loggers.mlflow.spool_dir={small / 'unsent'}")
        wait_for(lambda: job.steps > 100 or process.poll() is not None, 240, "some steps")
        proxy.mode = "refuse"
        wait_for(lambda: "kept in memory only" in job.log.read_text(), 120, "a full disk")
        at = job.steps
        wait_for(lambda: job.steps > at + 300 or process.poll() is not None, 240, "more steps")
        proxy.mode = "ok"
        process.send_signal(signal.SIGINT)
        process.wait(240)
        assert "No space left on device" in job.log.read_text()
        assert "on no disk" not in job.log.read_text()
        assert assert_same_as_csv(store, job) > 400
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_started_offline_ends_in_time_and_is_synced_later(job: Job, store: Any, proxy: Proxy) -> None:
    proxy.mode = "refuse"
    process = job.fit("trainer.max_epochs=2")
    assert process.wait(300) == 0, job.log.read_text()
    assert "takes nothing now" in job.log.read_text()
    assert list(job.run_folder.glob("unsent/*.spool.jsonl"))
    proxy.mode = "ok"
    assert "1 sent, 0 left" in job.run("sync")
    assert_same_as_csv(store, job)
    assert find(store, job).info.status == "FINISHED"
    assert not (job.run_folder / "unsent").exists()
    assert "Nothing waits" in job.run("sync")


def test_killed_without_a_server_it_is_synced_as_killed_and_resumed_without_doubles(
    job: Job, store: Any, proxy: Proxy
) -> None:
    process = job.fit("trainer.max_epochs=1000")
    wait_for(lambda: job.steps > 200 or process.poll() is not None, 240, "some steps")
    proxy.mode = "refuse"
    at = job.steps
    wait_for(lambda: job.steps > at + 100 or process.poll() is not None, 240, "more steps")
    process.kill()
    process.wait()
    proxy.mode = "ok"
    assert "1 sent, 0 left" in job.run("sync")
    assert find(store, job).info.status == "KILLED"
    job.run("fit", "--resume", "auto", *[i for o in ALWAYS for i in ("-o", o)], "-o", "trainer.max_time=00:00:00:08")
    run = find(store, job)
    assert run.info.status == "FINISHED"
    steps = [point.step for point in store.get_metric_history(run.info.run_id, "train_loss_step")] or [
        point.step for point in store.get_metric_history(run.info.run_id, "train_loss")
    ]
    assert len(steps) == len(set(steps)), "no point twice"
    assert sorted(steps)[: len(steps)] == sorted(set(steps))


def test_without_a_login_training_goes_on_and_says_the_command(job: Job, store: Any, google: Google) -> None:
    google.refuses = True
    process = job.fit("trainer.max_epochs=2")
    assert process.wait(400) == 0, job.log.read_text()
    assert "gcloud auth application-default login" in job.log.read_text()
    google.refuses = False
    assert "1 sent, 0 left" in job.run("sync")
    assert_same_as_csv(store, job)


def test_no_token_and_no_password_is_in_what_a_run_leaves(job: Job, server: Server, image: Path) -> None:
    process = job.fit("trainer.max_epochs=1")
    assert process.wait(300) == 0, job.log.read_text()
    token = re.compile(rb"eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.|ya29\.")
    looked = 0
    for path in (*job.folder.rglob("*"), job.log, *server.place.rglob("*"), *image.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            assert PASSWORD.encode() not in content, path
            assert not token.search(content), path
            looked += 1
    assert looked > 100


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium to look at the page")
def test_the_page_of_a_run_is_shown_in_a_browser(
    job: Job, store: Any, proxy: Proxy, guard: Guard, tmp_path: Path
) -> None:
    process = job.fit("trainer.max_epochs=3")
    assert process.wait(300) == 0, job.log.read_text()
    run = find(store, job)
    guard.browser_token = guard.id_token(guard.audience, 600)  # as the cookie of a person who has logged in
    address = f"{proxy.address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    picture = Path(os.environ.get("SCREENSHOT", tmp_path / "run.png"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000", "--virtual-time-budget=60000"]
    try:
        shown = subprocess.run(
            ["chromium", *options, f"--user-data-dir={tmp_path / 'chromium'}", "--dump-dom", address],
            capture_output=True, text=True, check=False, timeout=240,
        ).stdout  # fmt: skip
        subprocess.run(
            ["chromium", *options, f"--user-data-dir={tmp_path / 'chromium'}", f"--screenshot={picture}", address],
            capture_output=True, check=False, timeout=240,
        )  # fmt: skip
    finally:
        guard.browser_token = ""
    assert run.info.run_name in shown
    assert "val_accuracy" in shown
    assert "cross-origin" not in shown.lower()
    assert picture.stat().st_size > 20_000
    assert 403 not in proxy.answers


def test_only_a_better_model_becomes_champion_and_serving_loads_it_by_its_alias(
    job: Job, store: Any, proxy: Proxy
) -> None:
    short = ["-o", "trainer.max_epochs=1", "-o", "trainer.accelerator=cpu"]
    assert job.start("fit", *short).wait(300) == 0, job.log.read_text()
    run = find(store, job)
    puts = (path.rpartition(" ")[0] for path in proxy.paths if path.startswith("PUT"))
    held = {path.split(f"{run.info.run_id}/artifacts/")[-1] for path in puts}
    assert {"model/MLmodel", "model/input_example.json"} <= held
    assert any(path.startswith("model/checkpoints/") for path in held)
    assert "Version 1 of my_project, now `champion`." in job.run("register", "--alias", "champion")
    assert job.start("register", "--alias", "champion").wait(300) == 1
    assert "The gate is shut" in job.log.read_text()
    assert "now `champion`" in job.run("register", "--alias", "champion", "--force")
    assert "is version 1 again" in job.run("rollback")
    assert job.start("promote", "--version", "2").wait(300) == 1
    assert "is version 2" in job.run("promote", "--version", "2", "--force")
    code = (
        "import mlflow; model = mlflow.pyfunc.load_model('models:/my_project@champion'); "
        "print(model.predict(model.input_example).shape, model.metadata.signature is not None)"
    )
    environment = {**job.environment, "MLFLOW_TRACKING_AUTH": "my-project-iap"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, cwd=job.folder
    )
    assert "(2, 10) True" in done.stdout, done.stderr


@pytest.mark.parametrize("mode", ["refuse", 500, 404, "page"])
def test_what_needs_the_tracker_says_in_one_sentence_that_it_is_away(job: Job, proxy: Proxy, mode: str | int) -> None:
    (job.folder / "runs").mkdir()
    proxy.mode = mode
    assert job.start("rollback").wait(300) in (1, 2)
    said = job.log.read_text()
    assert "Traceback" not in said
    assert proxy.address in said
