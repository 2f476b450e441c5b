"""MLflow with its local store, read back with MlflowClient; and with a server that does not answer."""

from __future__ import annotations

import json
import pickle
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import yaml
from engine.errors import EngineWarning
from engine.loggers import MLFlowLogger
from engine.loggers import mlflow as module
from engine.loggers._mlflow_run import PROCESS_TAG, RemoteRun, clean, is_final, this_process

from tests.engine.toys import BoringModel, loader, quiet_trainer

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all tests of the module: making its database takes seconds."""
    return tmp_path_factory.mktemp("mlruns")


@pytest.fixture(autouse=True)
def _no_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def client(store: Path) -> Any:
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{store}/mlflow.db")


def test_training_s_random_numbers_are_left_alone(store: Path, client: Any) -> None:
    before = random.getstate()
    logger = MLFlowLogger("nameless", save_dir=store)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    assert re.fullmatch(r"\d{8}-\d{6}", client.get_run(logger.run_id).info.run_name)
    assert random.getstate() == before


def test_metrics_params_tags_status_and_place(
    store: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = MLFlowLogger("first", run_name="blue", tags={"team": "vision"}, save_dir=store, prefix="run")
    logger.log_hyperparams({"lr": 0.1, "net": {"width": 3}, "long": "x" * 10_000})
    for step in range(5):
        logger.log_metrics({"loss": 1.0 / (step + 1), "acc@1 (%)": 50.0, "epoch": 0}, step)
    logger.finalize("success")

    run = client.get_run(logger.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "blue"
    assert run.data.tags["team"] == "vision"
    assert run.data.params["net/width"] == "3"
    assert len(run.data.params["long"]) == 6000
    points = client.get_metric_history(logger.run_id, "run-loss")
    assert [(point.step, point.value) for point in points] == [(i, 1.0 / (i + 1)) for i in range(5)]
    assert run.data.metrics["run-acc_1 _"] == 50.0
    experiment = client.get_experiment(logger.experiment_id)
    assert experiment.artifact_location == f"file://{store}/artifacts/first"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development", "the page of training, not of chats"
    assert logger.save_dir == str(store)
    assert (logger.name, logger.version) == ("first", logger.run_id)
    assert list(tmp_path.iterdir()) == [], "nothing is left in the working directory"


@pytest.mark.parametrize(("status", "expected"), [("failed", "FAILED"), ("interrupted", "KILLED")])
def test_status_of_a_run_that_did_not_finish(store: Path, client: Any, status: str, expected: str) -> None:
    logger = MLFlowLogger("status", save_dir=store)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize(status)
    assert client.get_run(logger.run_id).info.status == expected


def test_points_are_visible_while_the_run_goes_on(store: Path, client: Any) -> None:
    logger = MLFlowLogger("live", save_dir=store)
    logger.log_metrics({"a": 1.0}, 0)
    end = time.monotonic() + 30
    while not client.get_run(logger.run_id).data.metrics and time.monotonic() < end:
        time.sleep(0.1)
    run = client.get_run(logger.run_id)
    assert run.data.metrics == {"a": 1.0}
    assert run.info.status == "RUNNING"
    logger.finalize("success")


def test_many_values_are_sent_in_parts(store: Path, client: Any) -> None:
    logger = MLFlowLogger("many", save_dir=store)
    logger.log_hyperparams({f"p{i}": i for i in range(250)})
    for step in range(30):
        logger.log_metrics({f"m{i}": float(i) for i in range(50)}, step)
    logger.finalize("success")
    run = client.get_run(logger.run_id)
    assert len(run.data.params) == 250
    assert len(client.get_metric_history(logger.run_id, "m49")) == 30


def test_a_resumed_fit_continues_its_run(store: Path, client: Any) -> None:
    first = MLFlowLogger("resume", save_dir=store)
    first.log_hyperparams({"lr": 0.1, "max_epochs": 5})
    first.log_metrics({"a": 1.0}, 0)
    first.finalize("failed")
    state = json.loads(json.dumps(first.state_dict()))

    second = MLFlowLogger("resume", save_dir=store)
    second.load_state_dict(state)
    second.log_hyperparams({"lr": 0.1, "max_epochs": 10, "new": 1})
    second.log_metrics({"a": 2.0}, 1)
    assert second.run_id == first.run_id
    second.finalize("success")
    run = client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1", "max_epochs": "5", "new": "1"}
    assert [point.step for point in client.get_metric_history(first.run_id, "a")] == [0, 1]


def test_a_run_that_the_store_does_not_know_is_made_anew(store: Path) -> None:
    logger = MLFlowLogger("moved", save_dir=store)
    logger.load_state_dict({"run_id": "0" * 32})
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    assert logger.run_id != "0" * 32


def test_checkpoints_are_uploaded_at_the_end_or_each(store: Path, client: Any, tmp_path: Path) -> None:
    best, last = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    best.write_text("weights")
    last.write_text("weights")
    callback: Any = SimpleNamespace(
        best_model_path=str(best),
        best_model_score=0.5,
        last_model_path=str(last),
        monitor="val_loss",
        save_top_k=1,
    )
    at_end = MLFlowLogger("checkpoints", save_dir=store, log_model=True)
    at_end.after_save_checkpoint(callback)
    at_end.log_metrics({"a": 1.0}, 0)
    assert client.list_artifacts(at_end.run_id, "model/checkpoints") == []
    at_end.finalize("success")
    each = MLFlowLogger("checkpoints", save_dir=store, log_model="all")
    each.after_save_checkpoint(callback)
    best.unlink()  # a better one replaces it before anything was sent
    each.finalize("success")
    assert not (store / "unsent").exists()
    for logger in (at_end, each):
        folders = [item.path for item in client.list_artifacts(logger.run_id, "model/checkpoints")]
        assert sorted(folders) == ["model/checkpoints/best", "model/checkpoints/last"]
        path = client.download_artifacts(logger.run_id, "model/checkpoints/best")
        assert (Path(path) / "best.ckpt").read_text() == "weights"
        about = yaml.safe_load((Path(path) / "metadata.yaml").read_text())
        assert about == {"filename": "best.ckpt", "monitor": "val_loss", "score": 0.5, "alias": "best"}


def test_artifacts_and_the_client_itself(store: Path, client: Any, tmp_path: Path) -> None:
    logger = MLFlowLogger("artifacts", save_dir=store)
    (tmp_path / "curves.svg").write_text("<svg/>")
    logger.log_artifact(tmp_path / "curves.svg", "pictures")
    logger.experiment.log_text(logger.run_id, "hello", "note.txt")
    logger.finalize("success")
    paths = [item.path for item in client.list_artifacts(logger.run_id)]
    assert sorted(paths) == ["note.txt", "pictures"]


def test_a_run_left_by_a_killed_process_is_closed_by_the_next(store: Path, client: Any) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    experiment = client.create_experiment("killed")
    host, pid, began = this_process().rsplit(":", 2)
    names = [f"{host}:{dead.pid}:1", f"another:{dead.pid}:1", f"{host}:{pid}:{began}", f"{host}:{pid}:1"]
    runs = [client.create_run(experiment, tags={PROCESS_TAG: name}).info.run_id for name in names]
    logger = MLFlowLogger("killed", save_dir=store)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    assert [client.get_run(run).info.status for run in runs] == ["KILLED", "RUNNING", "RUNNING", "KILLED"], (
        "the last has the number of a living process, which began later: as in containers, where all have 1"
    )


def test_a_process_that_ends_without_finalize_leaves_killed(store: Path, client: Any) -> None:
    engine = Path(module.__file__).parents[2]
    code = (
        f"import sys; sys.path.insert(0, {str(engine)!r})\n"
        "from engine.loggers import MLFlowLogger\n"
        f"logger = MLFlowLogger('exit', save_dir={str(store)!r})\n"
        "logger.log_metrics({'a': 1.0}, 0); print(logger.run_id); sys.exit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    run = client.get_run(done.stdout.split()[-1])
    assert (run.info.status, run.data.metrics) == ("KILLED", {"a": 1.0})
    assert "Creating initial" not in done.stderr


def test_a_logger_that_took_nothing_leaves_no_run(tmp_path: Path) -> None:
    MLFlowLogger("none", save_dir=tmp_path / "mlruns").finalize("success")
    assert not (tmp_path / "mlruns").exists()


def test_a_server_that_is_away_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")  # so that what the logger puts there goes with the test
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    monkeypatch.setattr(module, "FLUSH_S", 3.0)
    logger = MLFlowLogger("away", tracking_uri="http://me:secret@127.0.0.1:9", spool_dir=tmp_path / "unsent")
    start = time.perf_counter()
    for step in range(100):
        logger.log_metrics({"a": 1.0}, step)
    assert time.perf_counter() - start < 1.0, "training does not wait for the network"
    with pytest.warns(EngineWarning, match="gave no run"):
        assert logger.version is None
    logger.finalize("success")
    text = caplog.text
    assert text.count("takes nothing now") == 1
    (kept,) = (tmp_path / "unsent").iterdir()
    assert text.count(f"The rest waits in {kept.parent}") == 1
    assert len(kept.read_text().splitlines()) == 1 + 100 + 1, "the run, its points, its end"
    assert "secret" not in text + kept.read_text()


def test_a_long_parameter_is_whole_in_an_artifact(store: Path, client: Any) -> None:
    logger = MLFlowLogger("long", save_dir=store)
    logger.log_hyperparams({"net": {"text": "x" * 10_000}})
    logger.log_tags({"preset": "gpu"})
    logger.log_dataset("digits", "0123abc", "training", '{"rows": 1437}')
    logger.finalize("success")
    run = client.get_run(logger.run_id)
    assert run.data.params == {"net/text": "x" * 6000}
    assert Path(client.download_artifacts(logger.run_id, "params/net/text.txt")).read_text() == "x" * 10_000
    assert run.data.tags["preset"] == "gpu"
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, used.tags[0].value) == ("digits", "0123abc", "training")


def test_a_resumed_run_doubles_no_point_and_takes_the_new_ones(store: Path, client: Any) -> None:
    first = MLFlowLogger("doubles", save_dir=store)
    for step in range(10):
        first.log_metrics({"a": float(step)}, step)
    state = first.state_dict()
    first.finalize("interrupted")
    second = MLFlowLogger("doubles", save_dir=store)
    second.load_state_dict(state)
    for step in range(6, 15):  # the checkpoint was written at step 6
        second.log_metrics({"a": float(step)}, step)
    second.finalize("success")
    points = client.get_metric_history(first.run_id, "a")
    assert sorted((point.step, point.value) for point in points) == [(i, float(i)) for i in range(15)]


def test_what_a_killed_process_left_is_sent_by_the_run_that_goes_on(store: Path, client: Any, tmp_path: Path) -> None:
    code = (
        f"import os, sys; sys.path.insert(0, {str(Path(module.__file__).parents[2])!r})\n"
        "from engine.loggers import MLFlowLogger\n"
        f"logger = MLFlowLogger('left', save_dir={str(store)!r}, spool_dir={str(tmp_path)!r})\n"
        "logger._numbers._send = None  # no server\n"
        "for step in range(10): logger.log_metrics({'a': step}, step)\n"
        "print(logger.state_dict()['key']); sys.stdout.flush(); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    second = MLFlowLogger("left", save_dir=store, spool_dir=tmp_path)
    second.load_state_dict({"run_id": None, "key": done.stdout.strip()})
    for step in range(8, 12):
        second.log_metrics({"a": float(step)}, step)
    second.finalize("success")
    (run,) = client.search_runs([client.get_experiment_by_name("left").experiment_id])
    assert run.info.status == "FINISHED"
    assert sorted(p.step for p in client.get_metric_history(run.info.run_id, "a")) == list(range(12))
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def test_a_process_killed_while_the_database_is_made_leaves_a_place_where_all_is_taken(tmp_path: Path) -> None:
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(module.__file__).parents[2])!r})\n"
        "from engine.loggers import MLFlowLogger\n"
        f"MLFlowLogger('killed', save_dir={str(tmp_path)!r}).log_metrics({{'a': 1.0}}, 0)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not any(file.stat().st_size > 200_000 for file in tmp_path.rglob("mlflow.db")):  # half its tables
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    logger = MLFlowLogger("next", save_dir=tmp_path)
    logger.log_metrics({"a": 2.0}, 0)
    logger.finalize("success")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert sorted(run.data.metrics["a"] for run in runs) == [1.0, 2.0]
    assert not (tmp_path / "unsent").exists()


def test_a_database_s_address_may_need_escapes(tmp_path: Path) -> None:
    logger = MLFlowLogger("odd", tracking_uri=f"sqlite:///{tmp_path}/50%25%3F/runs.db", save_dir=tmp_path / "here")
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    assert [path.name for path in (tmp_path / "50%?").iterdir()] == ["runs.db"]


def test_one_refused_point_takes_no_other_with_it(store: Path, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    logger = MLFlowLogger("refused", save_dir=store)
    run_id = logger.run_id
    client.log_param(run_id, "lr", "1")  # by someone else
    logger.log_hyperparams({"lr": 2, "width": 3})
    logger.log_metrics({"a": 0.0}, 0)
    logger.log_metrics({"a": 1.0, "b": 10**400}, 1)
    logger.log_metrics({"a": 2.0, "b": 10**400}, 2)
    logger.log_metrics({"x" * 300: 3.0}, 3)
    logger.finalize("success")
    assert [point.step for point in client.get_metric_history(run_id, "a")] == [0, 1, 2]
    assert len(client.get_metric_history(run_id, "x" * 250)) == 1
    assert client.get_run(run_id).data.params == {"lr": "1", "width": "3"}
    assert caplog.text.count("MLflow refused metrics 'b'") == 1
    assert caplog.text.count("MLflow refused params 'lr'") == 1


def test_environment_and_argument_name_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert MLFlowLogger(save_dir=tmp_path).tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://a")
    assert MLFlowLogger(save_dir=tmp_path).tracking_uri == "http://a"
    logger = MLFlowLogger(save_dir=tmp_path, tracking_uri="http://b")
    assert (logger.tracking_uri, logger.save_dir) == ("http://b", None)


def test_it_can_be_pickled(store: Path) -> None:
    logger = MLFlowLogger("pickle", save_dir=store)
    logger.log_metrics({"a": 1.0}, 0)
    run_id = logger.run_id
    copy = pickle.loads(pickle.dumps(logger))
    copy.log_metrics({"a": 2.0}, 1)
    copy.finalize("success")
    assert copy.run_id == run_id
    logger.finalize("success")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train/loss", "train/loss"),
        ("acc@5", "acc_5"),
        ("//a//b/", "a/b"),
        ("../up", "up"),
        ("損失", "損失"),
        (".", "_"),
    ],
)
def test_names_are_cleaned(name: str, expected: str) -> None:
    assert clean(name) == expected


def test_two_metrics_that_become_one_are_told_once(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = MLFlowLogger("same", save_dir=store)
    long = "x" * 300
    for step in range(3):
        logger.log_metrics({"acc@5": 1.0, "acc_5": 2.0, f"{long}a": 3.0, f"{long}b": 4.0, "loss": 5.0}, step)
    logger.finalize("success")
    assert caplog.text.count("MLflow has one curve for the metrics") == 2
    assert caplog.text.count("'acc@5' and 'acc_5': both are 'acc_5' there") == 1


def test_fit_begins_without_waiting_and_its_resume_goes_on_in_the_run(store: Path, client: Any, tmp_path: Path) -> None:
    def fit(**options: Any) -> Any:
        logger = MLFlowLogger("trainer", save_dir=store)
        trainer = quiet_trainer(logger=logger, log_every_n_steps=1, **options)
        model = BoringModel()
        model.save_hyperparameters({"max_epochs": trainer.max_epochs})
        trainer.fit(model, loader(), ckpt_path=tmp_path / "last.ckpt" if (tmp_path / "last.ckpt").exists() else None)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return logger

    first, second = fit(max_epochs=1), fit(max_epochs=3)
    assert second.run_id == first.run_id
    steps = [point.step for point in client.get_metric_history(first.run_id, "train_loss")]
    assert steps == list(range(9))
    assert client.get_run(first.run_id).info.status == "FINISHED"


def test_an_error_in_training_is_a_failed_run(store: Path, client: Any) -> None:
    class Fails(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise ValueError("mine")

    logger = MLFlowLogger("fails", save_dir=store)
    model = Fails()
    model.save_hyperparameters({"lr": 0.1})
    with pytest.raises(ValueError, match="mine"):
        quiet_trainer(logger=logger).fit(model, loader())
    assert client.get_run(logger.run_id).info.status == "FAILED"


def test_looking_at_the_client_imports_nothing(tmp_path: Path) -> None:
    root = str(Path(module.__file__).parents[2])
    code = (
        f"import sys; sys.path.insert(0, {root!r})\n"
        "from engine.loggers import MLFlowLogger\n"
        f"_ = MLFlowLogger(save_dir={str(tmp_path)!r}).experiment; assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def answer(status: int, body: str) -> Any:
    response = requests.Response()
    response.status_code, response._content = status, body.encode()
    return response


@pytest.mark.parametrize("status", [200, 400, 403, 404, 405, 413, 500])
def test_a_page_of_something_before_the_server_is_no_refusal(status: int) -> None:
    """A load balancer without a backend says 404, and what was sent to it is not lost for that."""
    from mlflow.utils.rest_utils import verify_rest_response

    with pytest.raises(mlflow.MlflowException) as caught:
        verify_rest_response(answer(status, "<html>Error: Page not found</html>"), "/api/2.0/mlflow/runs/log-batch")
    assert not is_final(caught.value)
    page = requests.HTTPError("to a file", response=answer(status, "<html>no</html>"))
    assert is_final(page) == (status == 413), "a file too large for what stands before the server stays too large"


@pytest.mark.parametrize(
    ("code", "final"),
    [
        ("INVALID_PARAMETER_VALUE", True),
        ("RESOURCE_DOES_NOT_EXIST", True),
        ("BAD_REQUEST", False),
        ("INTERNAL_ERROR", False),
        ("UNAUTHENTICATED", False),
    ],
)
def test_what_mlflow_itself_refuses_is_final(code: str, final: bool) -> None:
    error = mlflow.exceptions.RestException({"error_code": code, "message": "no"})
    assert is_final(error) == final


def test_a_run_deleted_in_the_middle_is_one_sentence_and_whole_when_it_is_brought_back(
    store: Path, client: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    logger = MLFlowLogger("deleted", save_dir=store, spool_dir=tmp_path / "unsent")
    logger.log_metrics({"a": 0.0}, 0)
    run_id = logger.run_id
    client.delete_run(run_id)
    for step in range(1, 50):
        logger.log_metrics({"a": float(step)}, step)
    logger.finalize("success")
    assert caplog.text.count("mlflow runs restore --run-id") == 1
    assert "MLflow refused" not in caplog.text
    client.restore_run(run_id)
    logger.log_metrics({"a": 50.0}, 50)
    deadline = time.monotonic() + 60  # a second end waits for seconds only, and this machine may be busy
    while len(client.get_metric_history(run_id, "a")) < 51 and time.monotonic() < deadline:
        logger.finalize("success")
    assert sorted(point.step for point in client.get_metric_history(run_id, "a")) == list(range(51))
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_deleted_experiment_is_one_sentence(store: Path, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    number = client.create_experiment("deleted before")
    client.delete_experiment(number)
    logger = MLFlowLogger("deleted before", save_dir=store, spool_dir=store / "of deleted")
    logger.log_metrics({"a": 0.0}, 0)
    logger.finalize("success")
    assert f"mlflow experiments restore --experiment-id {number}" in caplog.text


def test_numbers_go_on_while_files_wait_or_are_refused(
    store: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise requests.HTTPError("500 Server Error: no access to the bucket")

    monkeypatch.setattr(RemoteRun, "_send_artifact", broken)
    monkeypatch.setattr(module, "FLUSH_S", 10.0)
    logger = MLFlowLogger("files", save_dir=store, spool_dir=tmp_path / "unsent")
    (tmp_path / "a.txt").write_text("a")
    logger.log_artifact(tmp_path / "a.txt")
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    run = client.get_run(logger.run_id)
    assert (run.data.metrics, run.info.status) == ({"a": 1.0}, "FINISHED")
    assert caplog.text.count("no access to the bucket") == 1
    assert "The rest waits in" in caplog.text
    monkeypatch.undo()
    logger.log_artifact(tmp_path / "a.txt")
    logger.finalize("success")
    assert [item.path for item in client.list_artifacts(logger.run_id)] == ["a.txt"]
    assert client.get_run(logger.run_id).info.status == "FINISHED"


def test_odd_files_and_texts_arrive_and_what_is_missing_holds_up_nothing(
    store: Path, client: Any, tmp_path: Path
) -> None:
    logger = MLFlowLogger("odd", save_dir=store)
    (tmp_path / "空.txt").touch()
    (tmp_path / "folder" / "曲線").mkdir(parents=True)
    (tmp_path / "folder" / "曲線" / "a b#c.txt").write_text("a")
    for name in ("never there", "空.txt", "folder"):
        logger.log_artifact(tmp_path / name, move=name == "folder")
    assert not (tmp_path / "folder").exists()
    logger.log_hyperparams({"zero": "a\0b", "half": "\udc80", "empty": "", "学習率": 0.1})
    logger.log_metrics({"損失": 1.0, "精度": 2.0, "nan": float("nan"), "inf": float("inf")}, 0)
    logger.finalize("success")
    run = client.get_run(logger.run_id)
    assert run.data.params == {"zero": "ab", "half": "?", "empty": "", "学習率": "0.1"}
    assert (run.data.metrics["損失"], run.data.metrics["精度"]) == (1.0, 2.0), "two names, two curves"
    assert str(run.data.metrics["nan"]) == "nan"
    assert {item.path for item in client.list_artifacts(logger.run_id)} == {"空.txt", "曲線"}
    assert not (store / "unsent").exists(), "what was moved is gone when it has arrived"


def test_a_child_is_shown_below_its_parent_whichever_arrives_first(store: Path, client: Any) -> None:
    sweep = MLFlowLogger("parent", "the sweep", save_dir=store)
    child = MLFlowLogger("parent", "trial", save_dir=store)
    child.parent = (sweep.key, "the sweep")
    child.log_metrics({"a": 1.0}, 0)
    child.finalize("success")
    sweep.log_metrics({"best": 1.0}, 0)
    sweep.finalize("success")
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == sweep.run_id
    assert client.get_run(sweep.run_id).info.run_name == "the sweep"
    assert client.get_run(sweep.run_id).info.status == "FINISHED"


def test_a_run_named_by_its_id_gets_no_point_twice(store: Path, client: Any) -> None:
    first = MLFlowLogger("by id", save_dir=store)
    first.log_metrics({"a": 1.0}, 0)
    first.finalize("success")
    second = MLFlowLogger("by id", save_dir=store, run_id=first.run_id)
    second.log_metrics({"a": 1.0}, 0)
    second.log_metrics({"a": 2.0}, 1)
    second.finalize("success")
    assert sorted(point.step for point in client.get_metric_history(first.run_id, "a")) == [0, 1]


def test_what_could_not_be_sent_after_the_training_delays_the_end_of_the_test_little(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes the connection and says nothing."""
    monkeypatch.setattr(module, "FLUSH_S", 3.0)
    monkeypatch.setattr(module, "AGAIN_S", 0.1)
    monkeypatch.setattr(RemoteRun, "send", lambda *_: time.sleep(60))
    logger = MLFlowLogger("hangs", save_dir=store, spool_dir=tmp_path / "unsent")
    took = []
    for stage in ("fit", "test", "model"):
        logger.log_metrics({stage: 1.0}, 0)
        began = time.monotonic()
        logger.finalize("success")
        took.append(time.monotonic() - began)
    assert took[0] >= 3.0
    assert max(took[1:]) < 3.0
