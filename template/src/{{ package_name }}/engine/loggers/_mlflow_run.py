"""One run on an MLflow server: found, made or taken up again, and what is sent to it.

Owns: the requests, and that sending something twice leaves it there once. Does not own: when they are made (`mlflow`),
what keeps entries meanwhile (`_sender`, `_spool`), and what a process that is gone has left (`_mlflow_left`).
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ..distributed import log
from ..errors import EngineError, require
from ._spool import unlink

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MAX_METRICS, MAX_PARAMS = 1000, 100  # MLflow's limits: of one request,
MAX_VALUE, MAX_KEY = 6000, 250  # and characters of one value and one name
PROCESS_TAG, KEY_TAG, PARENT_TAG = "engine.process", "engine.key", "mlflow.parentRunId"
FILES = ("artifact", "text", "dataset")  # what may take long, and may fail while numbers are taken
# MLflow's own defaults try seven times with two minutes each, wait as long as a server asks for, and print; here the
# sender does the trying and the talking.
MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",  # it would be drawn from the training's random numbers
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

_MAKING = threading.Lock()  # a sweep's run is made by itself or by its first trial, not by both


class Entry(NamedTuple):
    """Something on its way to the server; plain data, so that it can be kept in a file."""

    kind: Literal["metrics", "params", "tags", "text", "dataset", "artifact", "status"]
    values: dict[str, Any]
    step: int = 0
    time_ms: int = 0


class RemoteRun:
    """The run that a `head` describes, made when the first entry is sent.

    Args:
        uri: Where it is.
        head: What identifies it: `key` (random, survives restarts), `run_id` (None: not known yet), `experiment`,
            `tags`, `artifact_location`, `start_ms`, `parent` (None, or key and name of the run it is a child of), and
            `resumed`: True keeps points that it has from being doubled.
        is_live: This process goes on with the run; False: it only sends what another one left.
    """

    def __init__(self, uri: str, head: dict[str, Any], is_live: bool = True) -> None:
        self.uri, self.head, self.is_live = uri, head, is_live
        self.run_id: str | None = head["run_id"]
        self.experiment_id: str | None = None
        self.is_joined = False
        self._client: MlflowClient | None = None
        self._sent_params: dict[str, str] = {}
        self._steps: dict[str, set[int]] = {}
        self._refused: set[str] = set()
        self._names: dict[str, str] = {}  # of metrics: there -> as logged
        self._lock = threading.RLock()

    def connect(self) -> MlflowClient:
        """Return the client; importing MLflow takes seconds."""
        with self._lock:
            if self._client is None:
                for name, value in MANNERS.items():
                    os.environ.setdefault(name, value)
                logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # "Creating initial tables..."
                # MLflow puts the address into its errors: a name and a password in it go where MLflow reads them too.
                parts = urlsplit(self.uri)
                if parts.password and parts.scheme.startswith("http"):
                    os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(parts.username or ""))
                    os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(parts.password))
                    self.uri = without_password(self.uri)
                client = require("mlflow.tracking", "mlflow", "`MLFlowLogger`").MlflowClient
                if self.uri.startswith("sqlite:///"):
                    _make_database(self.uri, client)
                self._client = client(self.uri)
            return self._client

    def join(self) -> str:
        """Return the run's id, after making the run or taking it up again.

        Raises:
            EngineError: The server gives none.
        """
        with self._lock:
            if self.is_joined and self.run_id is not None:
                return self.run_id
            try:
                client = self.connect()
                with _MAKING:
                    self.run_id = self._take_up(client) or self._create(client)
            except EngineError:  # says it all
                raise
            except Exception as error:
                raise EngineError(
                    f"MLflow at {without_password(self.uri)!r} gave no run ({error}). Start the server, correct "
                    "MLFLOW_TRACKING_URI, or unset it to use a local database."
                ) from error
            self.is_joined = True
            return self.run_id

    def send(self, entries: list[Entry]) -> None:
        """Send entries in order; those of one kind go together. What the server refuses for good is left out.

        Raises:
            Exception: The server is away, or asks for a login; send the same again later.
        """
        run_id, client = self.join(), self.connect()
        for kind, same in groupby(entries, key=lambda entry: entry.kind):
            self._send_same(client, run_id, kind, list(same))

    def _send_same(self, client: MlflowClient, run_id: str, kind: str, entries: list[Entry]) -> None:
        try:
            getattr(self, f"_send_{kind}")(client, run_id, entries)
        except Exception as error:
            if not is_final(error):
                raise
            self._require_active(client, run_id)
            parts = _halves(kind, entries)  # one that is wrong must not take the others with it
            for part in parts:
                self._send_same(client, run_id, kind, part)
            if not parts:
                self._refuse(kind, entries[0], run_id, error)

    def _refuse(self, kind: str, entry: Entry, run_id: str, error: Exception) -> None:
        what = f"{kind} {entry.values.get('path') or next(iter(entry.values))!r}"
        if what not in self._refused:
            self._refused.add(what)
            log.warning("MLflow refused %s of run %s (%s). Training goes on without it.", what, run_id, error)

    def _require_active(self, client: MlflowClient, run_id: str) -> None:
        try:
            stage = client.get_run(run_id).info.lifecycle_stage
        except Exception as error:
            if is_final(error):
                self.is_joined = False  # gone for good: the next attempt makes it anew
            raise
        if stage != "active":
            raise _deleted(run_id) from None

    def _take_up(self, client: MlflowClient) -> str | None:
        run_id = self.run_id or self._find(client)
        if run_id is None:
            return None
        try:
            run = client.get_run(run_id)
        except Exception as error:
            if not is_final(error):
                raise
            log.info("MLflow has no run %s; a new one is made.", run_id)
            return None
        self.experiment_id, self._sent_params = run.info.experiment_id, dict(run.data.params)
        if run.info.lifecycle_stage != "active":
            raise _deleted(run_id)
        if self.is_live:
            client.update_run(run_id, status="RUNNING")
            client.set_tag(run_id, PROCESS_TAG, this_process())
        return run_id

    def _find(self, client: MlflowClient, key: str | None = None) -> str | None:
        """Find a run that was made, though this process has not heard its id."""
        experiment = client.get_experiment_by_name(self.head["experiment"])
        if experiment is None:
            return None
        found = client.search_runs([experiment.experiment_id], f"tags.`{KEY_TAG}` = '{key or self.head['key']}'")
        return str(found[0].info.run_id) if found else None

    def _create(self, client: MlflowClient) -> str:
        context = require("mlflow.tracking.context.registry", "mlflow", "`MLFlowLogger`")
        self.experiment_id = self._find_experiment(client)
        _close_dead_runs(client, self.experiment_id)
        own = {PROCESS_TAG: this_process(), KEY_TAG: self.head["key"]}
        # Without a name MLflow draws one from the global random numbers, which are the training's.
        name = {"mlflow.runName": time.strftime("%Y%m%d-%H%M%S", time.localtime(self.head["start_ms"] / 1000))}
        if parent := self.head.get("parent"):
            own[PARENT_TAG] = self._find(client, parent["key"]) or self._create_parent(client, parent)
        tags = context.resolve_tags({**name, **self.head["tags"], **own})
        return str(client.create_run(self.experiment_id, self.head["start_ms"], tags).info.run_id)

    def _create_parent(self, client: MlflowClient, parent: dict[str, str]) -> str:
        """Make the parent, which takes it up by its key as soon as it has something to send itself."""
        tags = {KEY_TAG: parent["key"], "mlflow.runName": parent["name"], PROCESS_TAG: this_process()}
        return str(client.create_run(str(self.experiment_id), self.head["start_ms"], tags).info.run_id)

    def _find_experiment(self, client: MlflowClient) -> str:
        name = self.head["experiment"]
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                tags = {"mlflow.experimentKind": "custom_model_development"}  # else the page shows what is for chat
                return str(client.create_experiment(name, self.head["artifact_location"], tags))
            except Exception:
                found = client.get_experiment_by_name(name)  # another process was faster
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise EngineError(
                f"MLflow's experiment {name!r} was deleted there; bring it back: mlflow experiments restore "
                f"--experiment-id {found.experiment_id}, or choose another name"
            )
        return str(found.experiment_id)

    def _send_metrics(self, client: MlflowClient, run_id: str, entries: list[Entry]) -> None:
        make = require("mlflow.entities", "mlflow", "`MLFlowLogger`").Metric
        metrics = [
            make(key, value, entry.time_ms, entry.step)
            for entry in entries
            for key, value in ((self._name(key), value) for key, value in entry.values.items())
            if not self.head["resumed"] or entry.step not in self._steps_of(client, run_id, key)
        ]
        for start in range(0, len(metrics), MAX_METRICS):
            client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS])

    def _name(self, key: str) -> str:
        """Return what a metric is called there; say so once when another one is called the same."""
        name = clean(key)
        if (first := self._names.setdefault(name, key)) not in (key, ""):
            log.warning(
                "MLflow has one curve for the metrics %r and %r: both are %r there. Rename one.", first, key, name
            )
            self._names[name] = ""
        return name

    def _steps_of(self, client: MlflowClient, run_id: str, key: str) -> set[int]:
        """Return the steps that had this metric before it was sent from here: a resumed fit repeats the last ones."""
        if key not in self._steps:
            self._steps[key] = {point.step for point in client.get_metric_history(run_id, key)}
        return self._steps[key]

    def _send_params(self, client: MlflowClient, run_id: str, entries: list[Entry]) -> None:
        values = {key: value for entry in entries for key, value in entry.values.items()}
        changed = sorted(key for key, value in values.items() if self._sent_params.get(key, value) != value)
        if changed:
            log.info("MLflow keeps the first value of a parameter; of run %s changed: %s", run_id, ", ".join(changed))
        make = require("mlflow.entities", "mlflow", "`MLFlowLogger`").Param
        new = [make(key, value) for key, value in values.items() if key not in self._sent_params]
        for start in range(0, len(new), MAX_PARAMS):
            client.log_batch(run_id, params=new[start : start + MAX_PARAMS])
        self._sent_params = {**values, **self._sent_params}

    def _send_tags(self, client: MlflowClient, run_id: str, entries: list[Entry]) -> None:
        for key, value in (item for entry in entries for item in entry.values.items()):
            client.set_tag(run_id, key, value)

    def _send_text(self, client: MlflowClient, run_id: str, entries: list[Entry]) -> None:
        for file, text in (item for entry in entries for item in entry.values.items()):
            client.log_text(run_id, text, file)

    def _send_dataset(self, client: MlflowClient, run_id: str, entries: list[Entry]) -> None:
        entities = require("mlflow.entities", "mlflow", "`MLFlowLogger`")
        for values in (entry.values for entry in entries):
            context = entities.InputTag("mlflow.data.context", values["context"])
            about = {key: value for key, value in values.items() if key != "context"}
            client.log_inputs(run_id, [entities.DatasetInput(entities.Dataset(**about), [context])])

    def _send_artifact(self, client: MlflowClient, run_id: str, entries: list[Entry]) -> None:
        for values in (entry.values for entry in entries):
            path, folder = values["path"], values["folder"]
            if not os.path.exists(path):  # a checkpoint may have been replaced by a better one meanwhile
                log.debug("%s is gone and not sent to MLflow", path)
                continue
            if values.get("about"):
                client.log_dict(run_id, values["about"], f"{folder}/metadata.yaml")
            if os.path.isdir(path):
                client.log_artifacts(run_id, path, folder or None)
            elif os.access(path, os.R_OK):
                client.log_artifact(run_id, path, folder or None)
            else:
                log.warning("%s cannot be read and is not sent to MLflow.", path)
            if values.get("is_link"):
                unlink(Path(path))

    def _send_status(self, client: MlflowClient, run_id: str, entries: list[Entry]) -> None:
        client.set_terminated(run_id, entries[-1].values["status"], entries[-1].time_ms)


def _make_database(uri: str, client: Callable[[str], Any]) -> None:
    """Make an SQLite file with MLflow's tables, whole or not at all: MLflow does not go on with one left half made."""
    file = Path(unquote(urlsplit(uri).path[1:]))
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() and ":" not in file.name:
        with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=file.parent) as folder:
            new = os.path.join(folder, file.name)
            client(f"sqlite:///{quote(new)}")
            with suppress(OSError):  # another process was faster; or no links here, and MLflow makes it in its place
                os.link(new, file)


def without_password(uri: str) -> str:
    """Return an address as it may be shown and written.

    Example:
        >>> without_password("https://me:secret@tracker.example.com:443/mlflow")
        'https://tracker.example.com:443/mlflow'
    """
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def clean(name: str) -> str:
    """Return `name` with the letters that MLflow takes, of any language, and as long as it takes; others become "_".

    Example:
        >>> clean("acc@5/train (%)")
        'acc_5/train _'
        >>> clean("検証/損失")
        '検証/損失'
    """
    return posixpath.normpath(re.sub(r"[^\w/. -]+", "_", name)).lstrip("/.")[:MAX_KEY].rstrip("/.") or "_"


def text_of(value: Any, length: int = MAX_VALUE) -> str:
    """Return a value as text that every database takes: no zero bytes, no halves of letters, not too long."""
    return str(value).replace("\0", "").encode("utf-8", "replace").decode()[:length]


def is_final(error: Exception) -> bool:
    """Return whether trying again cannot help: MLflow itself answered that the request is wrong.

    What stands before it may answer 400 or 404 as well, with a page of its own, and a server whose database broke off
    answers BAD_REQUEST: all that passes. So does a missing login (401, 403): someone logs in.
    """
    answer = getattr(error, "response", None)  # to a file, in an error of `requests`
    if answer is not None:
        return answer.status_code == 413 or (answer.status_code == 400 and '"error_code"' in answer.text)
    if isinstance(error, (TypeError, ValueError, ArithmeticError)) and not isinstance(error, OSError):
        return not isinstance(error, json.JSONDecodeError)  # a value that cannot be written at all
    return getattr(error, "error_code", None) in _FINAL


_FINAL = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")


def this_process() -> str:
    """Return the name of this process among those of all machines and all times."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def _deleted(run_id: str) -> EngineError:
    return EngineError(f"Run {run_id} was deleted there; bring it back: mlflow runs restore --run-id {run_id}")


def _halves(kind: str, entries: list[Entry]) -> list[list[Entry]]:
    """Return smaller lists that come to the same; none where there is a single value."""
    if len(entries) == 1 and kind in ("metrics", "params", "tags", "text"):
        entries = [entries[0]._replace(values={key: value}) for key, value in entries[0].values.items()]
    half = len(entries) // 2
    return [entries[:half], entries[half:]] if half else []


def _close_dead_runs(client: MlflowClient, experiment_id: str) -> None:
    """Set runs of this machine to KILLED whose process is gone: nobody else will."""
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'", max_results=100):
        host, pid, started = (*run.data.tags.get(PROCESS_TAG, "").rsplit(":", 2), "", "")[:3]
        if host == socket.gethostname() and pid.isdigit() and not _is_alive(int(pid), started):
            client.set_terminated(run.info.run_id, "KILLED")


def _is_alive(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _started(pid) == started  # in containers the next process often has the number of the last


def _started(pid: int) -> str:
    """Return when a process began, in ticks since the machine did; "" where Linux' /proc is not there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
