"""`ModelCheckpoint`: save during training, keep the best k, and always know the last.

Owns: when to save and what to keep. Does not own: what a checkpoint holds and how its bytes reach the disk
(`trainer.save_checkpoint`), nor the names of files (`_checkpoint_names`).

Three things may happen at a moment of the run (a trigger, a validation's end, an epoch's end):

    the monitored value is fresh and among the best k  ->  a file of its own; what falls out of the k is deleted
    it is not computed yet for these weights           ->  the save waits for a validation or the epoch's end
    `save_last`                                        ->  `last.ckpt` becomes the state of this moment
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..distributed import log, rank_zero_info, rank_zero_warn
from ..errors import CheckpointError, EndsAtCaller, MisconfigurationException
from . import _checkpoint_names as names
from ._every import one_trigger
from ._monitor import Monitor, one_validation_per_epoch, validates, waits_for_validation
from .checkpoint import Checkpoint

if TYPE_CHECKING:
    from ..module import LightningModule
    from ..trainer import Trainer

_KEPT = """monitor best_model_score best_model_path current_score dirpath best_k_models kth_best_model_path kth_value
    last_model_path"""


class ModelCheckpoint(Checkpoint):
    """Save checkpoints by time and by metric.

    Args:
        dirpath: Folder; None: `<logger's folder>/checkpoints`, without a logger `<default_root_dir>/checkpoints`.
        filename: Template without ending, e.g. `"{epoch}-{val_loss:.2f}"`: any metric, `epoch` and `step`
            (`global_step`); None: `"{epoch}-{step}"`. A "/" makes folders.
        monitor: Metric that decides what is best; None: the newest is kept.
        verbose: Log every save, not only a new best.
        save_last: True: `last.ckpt` is the state of the last trigger, epoch end, end of training or interrupt; a run
            resumed from it continues exactly. The state in the middle of a batch, at an exception, gets a file of its
            own. "link": a symbolic link where that state has a file already.
        save_top_k: Files to keep by `monitor`; -1: all; 0: none.
        save_on_exception: Save a file of its own when training raises.
        save_weights_only: Leave out what resuming needs (optimizers, schedulers, callbacks).
        mode: "min" or "max".
        auto_insert_metric_name: Write `name=` before each value of the file name.
        every_n_train_steps: Optimizer steps, or a duration ("500ba", "1e6sp", "10m"). 0: off.
        train_time_interval: `timedelta` or duration string.
        every_n_epochs: Epochs (or "2ep"); 1 when no trigger is given.
        save_on_train_epoch_end: Whether the epoch trigger fires at the training epoch's end or after validation; None:
            at the epoch's end if validation runs once in every epoch or never.
        enable_version_counter: Add `-v1`, `-v2`... where a file of that name exists; False: overwrite, but never a
            kept file by a worse one.

    All ranks take part in a save; rank 0 decides, and its file system is asked.

    A save that the file system refuses (a full disk) is reported and does not end training: older files stay, and the
    next trigger tries again.

    Raises:
        CheckpointError: The last save of a run failed; or something cannot be pickled, which is raised at once.
        MisconfigurationException: Two triggers, an unknown mode, a `save_top_k` that needs a monitor; in a run: a
            monitored metric that nobody logs.
    """

    CHECKPOINT_JOIN_CHAR = "-"
    CHECKPOINT_EQUALS_CHAR = "="
    CHECKPOINT_NAME_LAST = "last"
    FILE_EXTENSION = ".ckpt"
    STARTING_VERSION = 1

    @EndsAtCaller()
    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | str | None = None,
        train_time_interval: timedelta | str | dict[str, int] | None = None,
        every_n_epochs: int | str | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
    ) -> None:
        super().__init__()
        self._watch = Monitor(monitor or "", mode, type(self).__name__)
        self.monitor = monitor
        self.mode = mode
        self.filename = filename
        self.verbose = verbose
        self.save_last = save_last
        self.save_top_k = save_top_k
        self.save_on_exception = save_on_exception
        self.save_weights_only = save_weights_only
        self.auto_insert_metric_name = auto_insert_metric_name
        self.dirpath: str | None = None if dirpath is None else names.absolute(dirpath)
        self._decided_dirpath: str | None = None
        self._enable_version_counter = enable_version_counter
        self._save_on_train_epoch_end = save_on_train_epoch_end
        self._every_n_epochs, self._every = one_trigger(every_n_train_steps, train_time_interval, every_n_epochs)
        self._trigger_key = {
            "every_n_train_steps": every_n_train_steps or 0,
            "every_n_epochs": self._every_n_epochs, "train_time_interval": train_time_interval,
        }  # fmt: skip
        if save_top_k < -1 or (monitor is None and save_top_k > 1):
            raise MisconfigurationException(
                f"`ModelCheckpoint(save_top_k={save_top_k}, monitor={monitor!r})`: accepted are -1 (all), 0 (none), 1 "
                "(the newest) and, with a `monitor`, any number of best ones. Add a `monitor` or change `save_top_k`."
            )
        self.current_score: Tensor | None = None
        self.best_k_models: dict[str, Tensor] = {}
        self.best_model_path = self.kth_best_model_path = self.last_model_path = self.newest_model_path = ""
        self.kth_value = torch.tensor(self._watch.worst)
        self.best_model_score: Tensor | None = None
        self._last_global_step_saved = -1
        self._last_state: tuple[int, int] | None = None
        self._failure: CheckpointError | None = None
        self._pending = self._started = False

    @property
    def state_key(self) -> str:
        """Name of this callback's state: several with other monitors or triggers may be used together."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode, **self._trigger_key)

    @property
    def every_n_epochs(self) -> int:
        """Epochs between two saves; 0: the trigger is another one."""
        return self._every_n_epochs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Decide the folder, the same on all ranks (collective); anew in every call, for loggers make new ones."""
        if self.dirpath in (None, self._decided_dirpath):
            self.dirpath = self._decided_dirpath = names.agreed(trainer, lambda: names.folder_for(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count for the trigger."""
        self._started = True
        if trainer.ckpt_path == self.last_model_path and not trainer.parity:
            self._last_state = _state_of(trainer)  # if no more is to be trained, the file stays as it is
        if self._every is not None:
            self._every.start(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when the trigger of steps, batches, samples or seconds is due."""
        if self._every is None or not self._every.is_due(trainer):
            return
        is_active = self._is_active(trainer)
        may_wait = trainer.parity and (is_active or pl_module.automatic_optimization)
        if may_wait and waits_for_validation(self.monitor, trainer, pl_module, self._acts_at_epoch_end(trainer)):
            self._pending = True
        elif is_active:
            self._save(trainer, best=True, last=True, at_trigger=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after validation, if that is when this callback acts or a save waited for fresh values."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._watch.after_validation(trainer)
        if not self._is_active(trainer):
            return
        at_epoch_end = self._acts_at_epoch_end(trainer)
        is_due = not at_epoch_end and self._is_epoch_due(trainer)
        if is_due or (self._pending and not (trainer.parity and at_epoch_end)):
            self._save(trainer, best=True, last=True, after_validation=True, at_trigger=self._pending)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the epoch's end; the last state is written here always."""
        at_epoch_end = self._acts_at_epoch_end(trainer)
        if not self._is_active(trainer) or (trainer.parity and not at_epoch_end):
            return
        is_due = at_epoch_end and self._is_epoch_due(trainer)
        self._save(trainer, best=is_due or (self._pending and not trainer.parity), last=True)
        if self._pending and self.monitor not in trainer.callback_metrics and self._watch.is_due(trainer):
            raise MisconfigurationException(self._watch.unknown(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last state, unless it is on the disk already."""
        is_first = self._last_state is None and self._last_global_step_saved == -1
        is_due = is_first if trainer.parity else self._last_state != _state_of(trainer)
        if is_due and (self._is_active(trainer) or trainer.parity):
            self._save(trainer, best=False, last=True, at_trigger=True)
        self._started = False
        if self._failure is not None:
            raise self._failure

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the state at an error or an interrupt of training."""
        last = bool(self.save_last) and not trainer.parity and self._last_state != _state_of(trainer)
        is_whole = trainer.is_between_batches
        own_file = self.save_on_exception or (last and not is_whole)
        own_file = own_file and self._last_global_step_saved != trainer.global_step
        if not (own_file or last) or not self._started or not self._is_active(trainer):
            return
        if not self.may_save_at_exception(trainer):
            return
        self._started = False
        try:
            if own_file:
                metrics = self._metrics(trainer)
                self._write(trainer, names.agreed(trainer, lambda: self._free_path(metrics, always_count=True)))
            if is_whole:
                self._save(trainer, best=False, last=True, at_trigger=True)
        except Exception as failure:  # the user must see the error that came first
            log.warning("The checkpoint at %s could not be saved: %s", type(exception).__name__, failure)

    def _is_active(self, trainer: Trainer) -> bool:
        if trainer.parity and trainer.global_step == max(self._last_global_step_saved, 0):
            return False  # the reference writes nothing twice at a step, and begins as if it had written at step 0
        return not trainer.fast_dev_run and not trainer.sanity_checking and trainer.state.fn == "fit"

    def _is_epoch_due(self, trainer: Trainer) -> bool:
        return self._every_n_epochs >= 1 and (trainer.current_epoch + 1) % self._every_n_epochs == 0

    def _acts_at_epoch_end(self, trainer: Trainer) -> bool:
        if self._save_on_train_epoch_end is not None:
            return self._save_on_train_epoch_end
        if trainer.parity and (trainer.check_val_every_n_epoch != 1 or trainer.val_check_seconds is not None):
            return False
        return one_validation_per_epoch(trainer) or not validates(trainer)

    def _save(
        self, trainer: Trainer, best: bool, last: bool, after_validation: bool = False, at_trigger: bool = False
    ) -> None:
        """Do what one moment asks for; what the file system refuses is reported, and left to the next moment."""
        last = last and bool(self.save_last)
        if not best and not last:
            return
        before = {**vars(self), "best_k_models": dict(self.best_k_models)}
        try:
            self._save_now(trainer, best, last, after_validation, at_trigger)
        except CheckpointError as error:
            vars(self).update(before)
            self._failure = error
            if not error.may_pass:
                raise
            log.error("%s Training goes on, and the next trigger tries again.", error)

    def _save_now(self, trainer: Trainer, best: bool, last: bool, after_validation: bool, at_trigger: bool) -> None:
        metrics = self._metrics(trainer)
        previous = self.last_model_path
        if last:  # Before any file is written, for its state must know the name.
            last_name = self.CHECKPOINT_NAME_LAST
            self.last_model_path = names.agreed(trainer, lambda: self._free_path(metrics, previous, last_name))
        saved = self._save_best(trainer, metrics, after_validation) if best else ""
        is_missing = best and self.monitor is not None and self.monitor not in metrics
        follows = at_trigger or (self.save_last == "link" and bool(self.newest_model_path))  # with parity
        if last and trainer.parity and not saved and (is_missing or not follows):
            self.last_model_path = previous
        elif last:
            self._save_last(trainer, saved, previous)
        self._failure = None

    def _save_best(self, trainer: Trainer, metrics: dict[str, Any], after_validation: bool) -> str:
        """Save for `monitor` and return the file's path, or an empty string if nothing was to be saved."""
        if self.save_top_k == 0 or self._last_global_step_saved == trainer.global_step:
            return ""
        if self.monitor is None:
            path = names.agreed(trainer, lambda: self._free_path(metrics, self.best_model_path))
            previous, self.best_model_path = self.best_model_path, path
            self._write(trainer, path)
            if self.save_top_k == 1:
                self._discard(trainer, previous, path)
            return path
        self._pending = self.monitor not in metrics or not self._watch.is_fresh(trainer, after_validation)
        if self._pending:
            if trainer.parity and self._watch.validated:
                raise MisconfigurationException(self._watch.unknown(trainer))
            return ""
        current = metrics[self.monitor]
        plan = names.agreed(trainer, lambda: self._plan(trainer, current, metrics))
        if plan is None:
            if self.verbose:
                rank_zero_info("%s %.5g is not among the best %d", self.monitor, current, self.save_top_k)
            return ""
        path, pushed_out = plan
        self._take(path, pushed_out, current)
        self._write(trainer, path)
        self._discard(trainer, pushed_out, path)
        return path

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether `current` belongs to the best k; None does not."""
        if current is None:
            return False
        if self.save_top_k == -1 or len(self.best_k_models) < self.save_top_k:
            return True
        return self._watch.is_better(current, self.best_k_models[self.kth_best_model_path])

    def _plan(self, trainer: Trainer, current: Tensor, metrics: dict[str, Any]) -> tuple[str, str] | None:
        """Return (path to write, path that falls out of the best k), or None when nothing is to be saved."""
        if not self.check_monitor_top_k(trainer, current):
            return None
        is_full = self.save_top_k != -1 and len(self.best_k_models) >= self.save_top_k
        pushed_out = self.kth_best_model_path if is_full else ""
        path = self._free_path(metrics, pushed_out)
        if path == pushed_out or path not in self.best_k_models or trainer.parity:
            return path, pushed_out
        # A fixed name without version counter: the better one keeps the file.
        return (path, "") if self._watch.is_better(current, self.best_k_models[path]) else None

    def _take(self, path: str, pushed_out: str, current: Tensor) -> None:
        """Enter a new file into the best k, before it is written, for its state must know of it."""
        was, current = self.best_model_score, current if current == current else torch.tensor(self._watch.worst)
        self.best_k_models.pop(pushed_out, None)
        self.best_k_models[path] = self.current_score = current
        self._rank()
        if self.best_model_path == path:
            before = "" if was is None else f", was {float(was):.5g}"
            rank_zero_info("saved %s: %s %.5g (best%s)", os.path.basename(path), self.monitor, float(current), before)
        elif self.verbose:
            rank_zero_info("saved %s: %s %.5g", os.path.basename(path), self.monitor, float(current))

    def _rank(self) -> None:
        """Find the best and the worst of the kept files."""
        best_of, worst_of = (min, max) if self.mode == "min" else (max, min)
        scores = {path: float(score) for path, score in self.best_k_models.items()}
        self.best_model_path = best_of(scores, key=scores.__getitem__)
        self.best_model_score = self.best_k_models[self.best_model_path]
        if self.save_top_k == -1 or len(scores) >= self.save_top_k:
            self.kth_best_model_path = worst_of(scores, key=scores.__getitem__)
            self.kth_value = self.best_k_models[self.kth_best_model_path]

    def _save_last(self, trainer: Trainer, saved: str, previous: str) -> None:
        """Make `last_model_path` the state of now: another name of `saved` where that was written just now."""
        path, symbolic = self.last_model_path, self.save_last == "link"
        if symbolic and trainer.parity and self.save_top_k:
            saved = self.newest_model_path  # though a later state was not among the best
        may_share = saved not in ("", path) and (symbolic or (names.writes_beside(trainer) and not trainer.parity))
        if not (may_share and names.agreed(trainer, lambda: names.link(saved, path, symbolic))):
            self._write(trainer, path, is_last=True)
        self._last_state = _state_of(trainer)
        self._discard(trainer, previous, path)

    def _write(self, trainer: Trainer, path: str, is_last: bool = False) -> None:
        if is_last and not names.writes_beside(trainer) and os.path.islink(path):
            trainer.strategy.remove_checkpoint(path)
        try:
            trainer.save_checkpoint(path, self.save_weights_only)
        except CheckpointError as error:
            if error.path in ("", path) or not error.may_pass:
                raise
            log.error("%s Training goes on.", error)  # one of the background; that of now has begun
            self._forget(error.path)
        if not is_last or trainer.parity:
            self._last_global_step_saved, self.newest_model_path = trainer.global_step, path
        if trainer.is_global_zero:
            trainer.tell_loggers("after_save_checkpoint", self)

    def _forget(self, path: str) -> None:
        """Take a file that could not be written out of the best."""
        if self.best_k_models.pop(path, None) is not None and self.best_k_models:
            self._rank()
        elif self.best_model_path == path:
            self.best_model_path, self.best_model_score = "", None

    def _discard(self, trainer: Trainer, path: str, kept: str) -> None:
        """Delete a file that is not needed any more: only inside `dirpath`, and never the one resumed from."""
        if not path or path == kept or not names.is_inside(path, self.dirpath or ""):
            return
        if trainer.ckpt_path is None or Path(trainer.ckpt_path).absolute() != Path(path).absolute():
            trainer.strategy.remove_checkpoint(path)

    def format_checkpoint_name(
        self, metrics: Mapping[str, Any], filename: str | None = None, ver: int | None = None, prefix: str | None = None
    ) -> str:
        """Return the path for these metrics.

        Args:
            metrics: Name -> value; missing ones count as 0.
            filename: Template; None: that of the callback.
            ver: Version suffix, `-v<ver>`.
            prefix: Put before the name.
        """
        join = self.CHECKPOINT_JOIN_CHAR
        template = filename or self.filename or f"{{epoch}}{join}{{step}}"
        name = names.fill(template, metrics, self.auto_insert_metric_name, self.CHECKPOINT_EQUALS_CHAR)
        parts = [prefix, name, None if ver is None else f"v{ver}"]
        name = join.join(part for part in parts if part is not None) + self.FILE_EXTENSION
        return os.path.join(self.dirpath, name) if self.dirpath else name

    def file_exists(self, filepath: str | Path, trainer: Trainer) -> bool:
        """Return whether rank 0 sees the file (collective)."""
        return names.agreed(trainer, lambda: os.path.lexists(filepath))

    def find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """Return the files in this callback's folder that are named like the last one, for `ckpt_path="last"`."""
        folder = self.dirpath or names.folder_for(trainer)
        return names.versions(folder, self.CHECKPOINT_NAME_LAST, self.FILE_EXTENSION)

    def _free_path(
        self, metrics: Mapping[str, Any], replacing: str = "", template: str | None = None, always_count: bool = False
    ) -> str:
        path, version = self.format_checkpoint_name(metrics, template), self.STARTING_VERSION
        while (self._enable_version_counter or always_count) and os.path.lexists(path) and path != replacing:
            path, version = self.format_checkpoint_name(metrics, template, version), version + 1
        return path

    def _metrics(self, trainer: Trainer) -> dict[str, Any]:
        found = names.metrics_of(trainer)
        return names.agreed(trainer, lambda: found)

    def to_yaml(self, filepath: str | Path | None = None) -> None:
        """Write the kept files and their scores as YAML; None: `best_k_models.yaml` beside them."""
        target = Path(filepath) if filepath is not None else Path(self.dirpath or ".") / "best_k_models.yaml"
        target.write_text("".join(f"{path}: {float(score)}\n" for path, score in self.best_k_models.items()))

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept and how good it is."""
        state = {key: getattr(self, key) for key in _KEPT.split()}
        return {**state, "pending": self._pending, "from_validation": self._watch.from_validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what was kept; files that are gone by now are forgotten, files in another folder never deleted."""
        self.best_model_path, self.best_model_score = state_dict["best_model_path"], state_dict["best_model_score"]
        self.current_score = state_dict.get("current_score")
        self.last_model_path = state_dict.get("last_model_path", "")
        self._pending = state_dict.get("pending", False)
        self._watch.from_validation = state_dict.get("from_validation", False)
        kept = state_dict.get("best_k_models", {})
        self.best_k_models = {path: score for path, score in kept.items() if os.path.exists(path)}
        if len(self.best_k_models) < len(kept):
            gone = sorted(set(kept) - set(self.best_k_models))
            rank_zero_warn(f"Checkpoints of the run that is continued are gone and will not be compared with: {gone}.")
        if self.best_k_models:
            self._rank()


def _state_of(trainer: Trainer) -> tuple[int, int]:
    return trainer.global_step, trainer.total_batches
