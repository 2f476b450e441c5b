"""What happened, for other programs: an event log in JSON lines and a small status file that can be polled.

Owns: `events.jsonl` (only ever added to) and `status.json` (replaced as a whole) in the run's directory. Does not own:
the metrics of every step, which the loggers write.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..distributed import rank_zero_warn
from ..hooks import Callback
from .logger import append_whole, replace_whole

if TYPE_CHECKING:
    from ..module import LightningModule
    from ..trainer import Trainer

EVENTS_FILE, STATUS_FILE = "events.jsonl", "status.json"
# Of a stage, and none of a sanity check.
_RESULTS = {"train": "epoch_end", "validate": "validation_end", "test": "test_end"}


class EventLog(Callback):
    """Tell other programs how a run goes. Rank 0 writes; `fast_dev_run` leaves nothing; a full disk costs lines only.

    `events.jsonl` gets one object for each event: "start", "epoch_end", "validation_end", "test_end", "checkpoint",
    "exception", "end"; each with `time` (seconds since 1970), `call`, `epoch`, `step`.
    `status.json` holds `state` ("running", "finished", "failed", "interrupted"), `call`, `stage`, `epoch`, `step`,
    `batch`, `batches`, `metrics`, `error`, `pid`, `host`, `started`, `updated`. A run is dead when its state is
    "running" and `updated` is older than a few times `every_s`, unless one batch takes that long.

    Args:
        directory: Where to write; None: the run's directory (`trainer.log_dir`).
        every_s: Seconds between two updates of the status during an epoch.
        publish: Called with the status in place of writing `status.json`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        every_s: float = 5.0,
        publish: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.directory = None if directory is None else os.fspath(directory)
        self.every_s = every_s
        self._publish = publish or self._write
        self._active = False
        self._next = math.inf
        self._status: dict[str, Any] = {}

    @property
    def events_file(self) -> str:
        """Path of the event log."""
        return os.path.join(self.directory or ".", EVENTS_FILE)

    @property
    def status_file(self) -> str:
        """Path of the status file."""
        return os.path.join(self.directory or ".", STATUS_FILE)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the directory (read on every rank, because it may be broadcast) and write the first event."""
        self.directory = os.fspath(self.directory or trainer.log_dir or trainer.default_root_dir)
        self._active = trainer.is_global_zero and not trainer.fast_dev_run
        if not self._active:
            return
        os.makedirs(self.directory, exist_ok=True)
        about = {"pid": os.getpid(), "host": socket.gethostname(), "world_size": trainer.world_size}
        self._status = {**about, "state": "running", "started": time.time(), "error": None}
        self._event(trainer, "start", module=type(pl_module).__name__, **about)
        self._update(trainer, 0)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the status when it is time."""
        if time.monotonic() >= self._next:
            self._update(trainer, batch_idx + 1)

    on_train_batch_end = on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics of an epoch, a validation or a test."""
        metrics = trainer.callback_metrics  # on every rank: a torchmetrics object is computed together
        if event := _RESULTS.get(str(trainer.state.stage)):
            self._event(trainer, event, metrics=_numbers(metrics) if self._active else {})

    on_validation_end = on_test_end = on_train_epoch_end

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write that a checkpoint is being saved."""
        self._event(trainer, "checkpoint")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the error, with its traceback."""
        text = "".join(traceback.format_exception(exception))
        stopped = isinstance(exception, (KeyboardInterrupt, SystemExit))
        self._status["state"] = "interrupted" if stopped else "failed"
        self._status["error"] = {"type": type(exception).__name__, "message": str(exception)}
        self._event(trainer, "exception", **self._status["error"], traceback=text)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the last event and the final status."""
        if self._status.get("state") == "running":
            self._status["state"] = "interrupted" if trainer.interrupted else "finished"
        checkpoint = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
        self._event(trainer, "end", state=self._status.get("state"), best_checkpoint=checkpoint)
        if self._active:
            self._update(trainer, 0)
        self._active, self._next = False, math.inf

    def _event(self, trainer: Trainer, event: str, **values: Any) -> None:
        if not self._active:
            return
        where = {"call": str(trainer.state.fn), "epoch": trainer.current_epoch, "step": trainer.global_step}
        line = json.dumps({"time": time.time(), "event": event, **where, **values}, default=str)
        with self._tolerant():
            append_whole(self.events_file, line + "\n")
        if event.endswith("_end"):
            self._status["metrics"] = values["metrics"]
            self._update(trainer, 0)

    def _update(self, trainer: Trainer, batch: int) -> None:
        self._next = time.monotonic() + self.every_s
        total = trainer.num_training_batches if trainer.training else math.inf
        self._status.update(
            call=str(trainer.state.fn),
            stage=str(trainer.state.stage or ""),
            epoch=trainer.current_epoch,
            max_epochs=trainer.max_epochs,
            step=trainer.global_step,
            batch=trainer.progress.batch_idx if trainer.training else batch,
            batches=total if math.isfinite(total) else None,
            metrics=_numbers(trainer.callback_metrics) or self._status.get("metrics", {}),
            updated=time.time(),
        )
        with self._tolerant():
            self._publish(dict(self._status))

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            rank_zero_warn(f"`EventLog` could not write to {self.directory!r} ({error}). Training goes on without.")

    def _write(self, status: dict[str, Any]) -> None:
        replace_whole(self.status_file, json.dumps(status, default=str))


def _numbers(metrics: dict[str, Any]) -> dict[str, float | str]:
    """Return the metrics as JSON knows them, "nan" and "inf" as text. Reading them is a device sync."""
    values = {name: float(value) for name, value in metrics.items()}
    return {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
