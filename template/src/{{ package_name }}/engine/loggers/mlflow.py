"""Tracking with MLflow: a local SQLite file unless a server is named.

Owns: what a run is told and when it ends. Does not own: the requests (`_mlflow_run`), the queue (`_sender`), the file
that keeps what waits (`_spool`), the server, nor its authentication: MLflow reads that from the environment.

Everything is sent from threads: importing MLflow and making the database take seconds, a server that is away hours,
and training waits for neither. What is logged is first put on disk: a killed process or a dead server loses nothing.
Numbers and files go by ways of their own, so that a curve goes on while gigabytes are sent, or when no file is taken.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import time
import uuid
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..distributed import log, rank_zero_only, rank_zero_warn
from ..errors import EngineError
from ..hooks import Callback
from ._mlflow_left import deliver_all
from ._mlflow_run import FILES, MAX_VALUE, Entry, RemoteRun, clean, text_of, without_password
from ._sender import BackgroundSender
from ._spool import SUFFIX, Spool, link
from .logger import Logger, flat, new_checkpoints, plain, rank_zero_experiment, require_later, scalars

FLUSH_S, AGAIN_S = 30.0, 5.0  # what an end waits; and the end of a test after a training that could not be sent
KEEP_S = 5.0
MOST_LINKS = 2

_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}


class MLFlowLogger(Logger):
    """Log to MLflow. Nothing here raises into training: errors of the server are warned about and tried again.

    Args:
        experiment_name: Experiment; made when it does not exist.
        run_name: Name shown in the list of runs; None: the time. (MLflow's own names are drawn from python's global
            random numbers, which are the training's.)
        tracking_uri: Server or file. None: MLFLOW_TRACKING_URI, else `mlflow.set_tracking_uri`, else
            `sqlite:///<save_dir>/mlflow.db`.
        tags: Tags of the run.
        save_dir: Directory of the local database and its artifacts; not used with another `tracking_uri`.
        log_model: True: upload the checkpoints that are left at the end; "all": each when it is written.
        prefix: Put before every metric's name, with "-" between.
        artifact_location: Where a new experiment keeps its artifacts; None: the server decides (locally: `save_dir`).
        run_id: Continue this run, doubling no point. A resumed `fit` continues its own run without it.
        synchronous: True: wait for every write.
        spool_dir: Directory of what the server has not taken yet, removed when it has; None: in `save_dir`. A run's own
            directory is best: a run resumed there first sends what was left.

    Attributes:
        parent: Another logger's `key` and a name: the run that this one is shown below, such as a sweep. Set it before
            anything is logged.

    Raises:
        MissingExtraError: MLflow is not installed.
    """

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
        save_dir: str | os.PathLike[str] | None = "./mlruns",
        log_model: bool | Literal["all"] = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = None,
        spool_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        require_later("mlflow", "mlflow", "`MLFlowLogger`")
        self._experiment_name = experiment_name
        self._tags = {**(tags or {}), **({"mlflow.runName": run_name} if run_name else {})}
        self._tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._save_dir = os.path.abspath(os.path.expanduser(save_dir or "./mlruns"))
        self._log_model = log_model
        self._prefix = prefix
        self._artifact_location = artifact_location
        self._run_id = run_id
        self._synchronous = bool(synchronous)
        self._spool_dir = Path(spool_dir or os.path.join(self._save_dir, "unsent")).expanduser().absolute()
        self.parent: tuple[str, str] | None = None
        self._key = uuid.uuid4().hex
        self._resumed = run_id is not None
        self._start()

    def _start(self) -> None:
        self._remote: RemoteRun | None = None
        self._checkpoints: Any = None
        self._seen: dict[str, float] = {}
        self._looked: set[bool] = set()  # which of the earlier processes' leftovers are sent
        self._has_logged = False
        self._said = ""
        where = f"MLflow ({without_password(self.tracking_uri)})"
        troubles: dict[BackgroundSender, str] = {}
        self._numbers, self._files = (
            BackgroundSender(
                partial(self._send, is_of_files), partial(self._open_spool, is_of_files), where, 1.0, troubles
            )
            for is_of_files in (False, True)
        )

    def __getstate__(self) -> dict[str, Any]:
        self._numbers.flush(FLUSH_S)
        self._run_id = self._known_run_id()
        return {key: value for key, value in self.__dict__.items() if key not in {"_remote", "_numbers", "_files"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    @property
    def tracking_uri(self) -> str:
        """Where the run is kept, e.g. `sqlite:////home/me/project/mlruns/mlflow.db`."""
        mlflow = sys.modules.get("mlflow")
        if self._tracking_uri is None and mlflow is not None and mlflow.is_tracking_uri_set():
            self._tracking_uri = mlflow.get_tracking_uri()
        return self._tracking_uri or f"sqlite:///{os.path.join(self._save_dir, 'mlflow.db')}"

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._experiment_name

    @property
    def version(self) -> str | None:
        """The run's id, or None while the server has not given one."""
        try:
            return self.run_id
        except EngineError as error:
            rank_zero_warn(str(error))
            return None

    @property
    def save_dir(self) -> str | None:
        """Directory of the local database, or None with a server."""
        return self._save_dir if self._tracking_uri is None else None

    @property
    def takes_models(self) -> bool:
        """Whether checkpoints are uploaded: `log_model`."""
        return bool(self._log_model)

    @property
    def key(self) -> str:
        """What finds the run when the server has not given an id yet; see `parent`."""
        return self._key

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `mlflow.tracking.MlflowClient`: `logger.experiment.log_text(logger.run_id, "hello", "note.txt")`."""
        return _LateClient(lambda: self._run().connect())

    @property
    def run_id(self) -> str | None:
        """Id of the run, which is made when it does not exist yet; None on ranks other than 0.

        Raises:
            EngineError: The server cannot be reached.
        """
        return self._run().join() if getattr(rank_zero_only, "rank", 0) == 0 else None

    @property
    def experiment_id(self) -> str | None:
        """Id of the experiment; see `run_id`."""
        self.run_id  # noqa: B018 (makes the run)
        return self._remote.experiment_id if self._remote else None

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Send parameters; of a value longer than MLflow takes, the whole is an artifact. What was sent once stays."""
        values = {clean(key): text_of(value, sys.maxsize) for key, value in flat(params).items()}
        self._put(Entry("params", {key: value[:MAX_VALUE] for key, value in values.items()}))
        if long := {f"params/{key}.txt": value for key, value in values.items() if len(value) > MAX_VALUE}:
            self._put(Entry("text", long))

    @rank_zero_only
    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run."""
        self._put(Entry("tags", {clean(key): text_of(value) for key, value in tags.items()}))

    @rank_zero_only
    def log_dataset(self, name: str, digest: str, context: str, profile: str = "", source: str = "code") -> None:
        """Say what data the run uses, as MLflow's dataset.

        Args:
            name: Its name.
            digest: Its fingerprint, at most 36 characters.
            context: What for: "training", "validation" or "test".
            profile: Its sizes, as JSON.
            source: Where it is from; a location or a few words.
        """
        values = {"name": name, "digest": digest, "context": context, "profile": profile}
        self._put(Entry("dataset", {**values, "source_type": "local", "source": source}))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Queue the metrics of one step."""
        values = scalars(metrics, self._prefix, self.LOGGER_JOIN_CHAR)
        self._put(Entry("metrics", values, int(step or 0), _now_ms()))

    @rank_zero_only
    def log_artifact(self, path: str | os.PathLike[str], folder: str = "", *, move: bool = False) -> None:
        """Upload a file or a directory to `folder` of the run's artifacts; `move`: it is gone when it has arrived."""
        second = link(Path(path), self._spool_dir / "files") if move else None
        if second:
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        self._put_file(path, second, folder)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Callback) -> None:
        """Upload the new files with `log_model="all"`; with True, remember the callback until the end."""
        self._checkpoints = checkpoint_callback
        if self._log_model == "all" or (self._log_model and getattr(checkpoint_callback, "save_top_k", 1) == -1):
            self._upload_checkpoints()

    @rank_zero_only
    def save(self) -> None:
        """Nothing to do: entries are sent every second."""

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Send what is left, within half a minute, and set the run's status.

        "success" gives FINISHED, "failed" FAILED, anything else ("interrupted") KILLED.
        """
        if not self._has_logged and (self._remote is None or not self._remote.is_joined):
            return
        if self._log_model:
            self._upload_checkpoints()
        self._put(_ending(_STATUS.get(status, "KILLED")))
        self._close(FLUSH_S)
        atexit.unregister(self._end_at_exit)
        self._has_logged = False

    def state_dict(self) -> dict[str, Any]:
        """Return the run's id, or what finds it later; waits until what was logged is on disk, as the checkpoint is."""
        if not self._has_logged and not self._known_run_id():
            return {}
        self._numbers.keep(KEEP_S)
        return {"run_id": self._known_run_id(), "key": self._key}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the run that wrote the checkpoint, unless another was asked for or begun."""
        if state_dict and self._known_run_id() is None and not self._has_logged:
            self._run_id = state_dict.get("run_id")
            self._key = state_dict.get("key") or self._key
            self._resumed = True

    def _end_at_exit(self) -> None:
        self._put(_ending("KILLED"))
        self._close(FLUSH_S / 3)

    def _close(self, timeout_s: float) -> None:
        end = time.monotonic() + (min(timeout_s, AGAIN_S) if self._said else timeout_s)
        kept = [sender.close(max(0.0, end - time.monotonic())) for sender in (self._numbers, self._files)]
        places = ", ".join(sorted({*kept} - {""}))
        if places and places != self._said:
            log.warning(
                "MLflow (%s) did not take everything in time. The rest waits in %s; the next run in that folder sends "
                "it, or `sync`.", without_password(self.tracking_uri), places,
            )  # fmt: skip
        self._said = places  # a test after the training need not say it again

    def _put(self, entry: Entry) -> None:
        if not self._has_logged:
            self._has_logged = True
            atexit.register(self._end_at_exit)
        sender = self._files if entry.kind in FILES else self._numbers
        sender.put(entry)
        if self._synchronous:
            sender.flush(FLUSH_S)

    def _upload_checkpoints(self) -> None:
        if self._checkpoints is None:
            return
        monitor = getattr(self._checkpoints, "monitor", None)
        for file in new_checkpoints(self._checkpoints, self._seen):
            name = os.path.basename(file.path)
            about = {"filename": name, "monitor": monitor, "score": file.score, "alias": file.alias}
            folder = f"model/checkpoints/{os.path.splitext(name)[0]}"
            self._put_file(file.path, self._second_name(Path(file.path)), folder, about=plain(about))

    def _put_file(self, path: str | os.PathLike[str], second: Path | None, folder: str, **more: Any) -> None:
        values = {"path": os.fspath(second or path), "folder": folder, "is_link": bool(second), **more}
        self._put(Entry("artifact", values))

    def _second_name(self, path: Path) -> Path | None:
        """Keep a checkpoint until it is sent, though a better one replaces it; two, lest a disk fills up meanwhile."""
        folder = self._spool_dir / "files"
        return link(path, folder) if not folder.is_dir() or len(os.listdir(folder)) < MOST_LINKS else None

    def _run(self) -> RemoteRun:
        if self._remote is None:
            self._remote = RemoteRun(self.tracking_uri, self._head())
        return self._remote

    def _known_run_id(self) -> str | None:
        return self._run_id if self._remote is None else self._remote.run_id

    def _head(self) -> dict[str, Any]:
        location = self._artifact_location
        if location is None and self._tracking_uri is None:
            location = "file://" + os.path.join(self._save_dir, "artifacts", clean(self._experiment_name))
        return {
            "uri": without_password(self.tracking_uri),
            "experiment": self._experiment_name,
            "tags": {key: str(value) for key, value in self._tags.items()},
            "artifact_location": location,
            "run_id": self._known_run_id(),
            "key": self._key,
            "resumed": self._resumed,
            "parent": self.parent and {"key": self.parent[0], "name": self.parent[1]},
            "start_ms": _now_ms(),
        }

    def _open_spool(self, is_of_files: bool) -> Spool:
        name = f"{_now_ms()}-{uuid.uuid4().hex[:8]}{SUFFIX}"
        head = {**self._run().head, "run_id": self._known_run_id(), "is_of_files": is_of_files}
        return Spool(self._spool_dir / name, head)

    def _send(self, is_of_files: bool, entries: list[Any]) -> None:
        """Send entries, from a sender's thread; before the first, what an earlier process left in the directory."""
        remote = self._run()
        if is_of_files not in self._looked:
            for run_id in deliver_all(self._spool_dir, self.tracking_uri, is_of_files):
                log.info("What an earlier process left for MLflow run %s is sent.", run_id)
                remote.is_joined = is_of_files and remote.is_joined  # to deliver numbers has ended the run
            self._looked.add(is_of_files)
        remote.send([Entry(*entry) for entry in entries])


class _LateClient:
    """The client, made when first used: the trainer looks at `experiment` before training, which need not wait."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connect(), name)


def _ending(status: str) -> Entry:
    return Entry("status", {"status": status}, time_ms=_now_ms())


def _now_ms() -> int:
    return int(time.time() * 1000)
