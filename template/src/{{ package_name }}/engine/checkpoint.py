"""What a checkpoint holds, and how a run takes it back.

Owns: the keys and the order of saving and restoring. Does not own: bytes on disk (`checkpoint_file`) and when to save
(`ModelCheckpoint`). The keys are those of Lightning 2.x, so that files travel both ways; what only an exact resume
needs is under "kagaku".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint_file import newest_intact
from .data import flattened
from .distributed import rank_zero_info, rank_zero_warn
from .errors import CheckpointError, MisconfigurationException
from .hparams import pack
from .position import own_states
from .results import LogOptions, MetricRecord, Record, is_metric, is_metric_collection
from .run import Run
from .transfer import move_data_to_device

FORMAT_VERSION = "2.6.0"
"""The version of the reference's format that these keys follow; its loader asks for it."""


# Saving.


def dump(run: Run, weights_only: bool = False) -> dict[str, Any]:
    """Return the checkpoint of a run. A collective for sharded modules.

    Args:
        run: The run in progress, or the last one.
        weights_only: Leave optimizers, callbacks and the exact position out.
    """
    module, datamodule, progress = run.module, run.datamodule, run.progress
    checkpoint: dict[str, Any] = {
        "epoch": progress.epoch,
        "global_step": progress.global_step,
        "pytorch-lightning_version": FORMAT_VERSION,
        "state_dict": run.strategy.module_state_dict() if run.strategy.module is not None else module.state_dict(),
        "loops": progress.state_dict(),
    }
    if not weights_only:
        states = {callback.state_key: callback.state_dict() for callback in run.hooks.callbacks}
        checkpoint["callbacks"] = {key: state for key, state in states.items() if state}
        checkpoint["optimizer_states"] = [run.strategy.optimizer_state_dict(optimizer) for optimizer in run.optimizers]
        checkpoint["lr_schedulers"] = [config.scheduler.state_dict() for config in run.schedulers]
        precision = run.precision.state_dict()
        if precision:
            checkpoint[type(run.precision).__qualname__] = precision
        if not run.parity:
            checkpoint["kagaku"] = exact_state(run)
    _dump_hparams(checkpoint, module, datamodule)
    state = datamodule.state_dict() if datamodule is not None else None
    if state:
        checkpoint[type(datamodule).__qualname__] = state
    if weights_only and run.parity:
        module.on_save_checkpoint(checkpoint)
    else:  # of weights only, too: a callback that averages them has others to give than the module
        run.hooks.call("on_save_checkpoint", checkpoint)
    return checkpoint


def _dump_hparams(checkpoint: dict[str, Any], module: Any, datamodule: Any) -> None:
    for owner in (module, datamodule):
        if owner is not None and owner.hparams_to_save:
            checkpoint[owner.CHECKPOINT_HYPER_PARAMS_NAME] = owner._hparams_name
            checkpoint[owner.CHECKPOINT_HYPER_PARAMS_KEY] = pack(owner.hparams_to_save)


def exact_state(run: Run) -> dict[str, Any]:
    """Return what an exact resume needs: generators, position in the data, metrics and gradients in progress.

    A collective. What processes have each for itself is there once for every rank: rank 0's, and the rest in "ranks".
    """
    own = {
        "feed": run.feed.state_dict(run.outer_rng) if run.feed is not None else None,
        "val_states": val_states(run),
        "loaded_at": [run.train_loaded_at, run.val_loaded_at],
        "results": [_dump_record(run.module, key, record) for key, record in run.train_results.records.items()],
        "torchmetrics": torchmetrics_states(run),
        "gradients": gradients(run),
        "seen_batches": dict(run.seen_batches),
        "metrics": {
            name: torch.as_tensor(value).detach().cpu() for name, value in run.trainer.callback_metrics.items()
        },
        "metric_steps": dict(run.trainer.metric_steps),
    }
    ranks = run.strategy.gather_objects(move_data_to_device(own, "cpu")) if run.strategy.is_distributed else [own]
    writing = run.loggers if run.strategy.is_global_zero else []
    loggers: list[Any] = [getattr(logger, "state_dict", dict)() for logger in writing]
    exact = run.trainer.is_between_batches
    return {**ranks[0], "ranks": ranks[1:], "loggers": loggers, "is_between_batches": exact}


def val_states(run: Run) -> dict[str, Any] | None:
    """Return what the next validation begins with: the states that its loaders keep."""
    if run.val is None or (run.val_states is not None and run.progress.tail != "plateau"):
        return run.val_states
    return own_states(flattened(run.val.nest))


def gradients(run: Run) -> dict[str, Tensor]:
    """Return the gradients a later step may use: in an accumulation window, or where the module clears them."""
    pending = run.progress.inside_epoch and not run.progress.is_last_batch and run.progress.batch_idx % run.window != 0
    if not run.parity:
        pending |= not run.module.automatic_optimization or run.hooks.module_overrides("optimizer_zero_grad")
    named = run.module.named_parameters() if pending else ()
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


def _dump_record(module: Any, key: tuple[Any, ...], record: Record) -> dict[str, Any]:
    options = dict(record.options._asdict(), sync_dist_group=None)
    state = {n: getattr(record, n) for n in Record.__slots__ if n not in ("options", "metric", "sync", "computed")}
    if record.metric is not None and not isinstance(record.step_value, (Tensor, float, int)):
        state["step_value"] = None  # of a metric that gives several values, which no reader takes
    metric = next((name for name, child in module.named_modules() if child is record.metric), None)
    return {"key": list(key), "options": options, "state": state, "metric": metric}


def torchmetrics_states(run: Run) -> dict[str, dict[str, Any]]:
    """Return the states of the module's torchmetrics objects that hold values, save those a validation will reset."""
    for collection in filter(is_metric_collection, run.module.modules()):
        collection.values(copy_state=False)  # only the first of several metrics with one state is kept up to date
    over = [id(record.metric) for record in run.eval_results.records.values() if not record.is_reset]
    found = {name: child for name, child in run.module.named_modules() if is_metric(child) and id(child) not in over}
    return {
        name: {"count": metric._update_count, "values": {key: getattr(metric, key) for key in metric._defaults}}
        for name, metric in found.items()
        if metric._update_count
    }


# Restoring.


def restore_model(run: Run, checkpoint: dict[str, Any]) -> None:
    """Take the weights back, then the states of the data module and the callbacks."""
    module, datamodule = run.module, run.datamodule
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)
    if datamodule is not None and type(datamodule).__qualname__ in checkpoint:
        datamodule.load_state_dict(checkpoint[type(datamodule).__qualname__])
    if "callbacks" in checkpoint:
        restore_callbacks(run, checkpoint)


def restore_loggers(run: Run, checkpoint: Mapping[str, Any]) -> None:
    """Tell every logger which run it was writing."""
    states = (checkpoint.get("kagaku") or {}).get("loggers", [])
    for logger, state in zip(run.loggers, states, strict=False):
        if state and hasattr(logger, "load_state_dict"):
            logger.load_state_dict(state)


def restore_callbacks(run: Run, checkpoint: dict[str, Any]) -> None:
    """Give every callback its state back; outside of `fit` those of a Trainer that has trained keep their own."""
    states = checkpoint["callbacks"]
    for callback in run.hooks.callbacks:
        callback.on_load_checkpoint(run.trainer, run.module, checkpoint)
    if run.state.fn != "fit" and run.progress.total_batches and not run.parity:
        return
    keys = {callback.state_key for callback in run.hooks.callbacks}
    lost = [key for key in states if key not in keys]
    if lost and run.state.fn == "fit":
        rank_zero_warn(
            f"The checkpoint holds states of callbacks that this Trainer does not have: {', '.join(map(str, lost))}."
        )
    for callback in run.hooks.callbacks:
        if callback.state_key in states:
            callback.load_state_dict(states[callback.state_key])


def restore_training(run: Run, checkpoint: dict[str, Any]) -> None:
    """Take back counters, optimizers, schedulers and everything else that training continues from.

    Raises:
        KeyError: The file holds weights only.
        MisconfigurationException: It is further than `max_epochs`, or has other optimizers.
    """
    if "optimizer_states" not in checkpoint:
        raise KeyError(
            "This checkpoint holds weights only (saved with `save_weights_only=True`), so training cannot be resumed "
            "from it. Load the weights with `load_from_checkpoint`, or resume from a full checkpoint."
        )
    progress, trainer = run.progress, run.trainer
    progress.load_state_dict(checkpoint.get("loops", {}), checkpoint["epoch"], checkpoint["global_step"])
    if trainer.max_epochs not in (None, -1) and progress.epoch > trainer.max_epochs:
        raise MisconfigurationException(
            f"The checkpoint is at epoch {progress.epoch}, beyond `Trainer(max_epochs={trainer.max_epochs})`. "
            f"Set `max_epochs` to {progress.epoch + 1} or more."
        )
    run.precision.load_state_dict(checkpoint.get(type(run.precision).__qualname__, {}))
    restore_optimizers(run, checkpoint)
    run.resumed = True
    state = checkpoint.get("kagaku")
    if state is not None:
        _restore_exactly(run, state)
    else:
        rank_zero_info(
            "The checkpoint was written by another framework: random states are not in it, so the resume is not exact."
        )


def restore_optimizers(run: Run, checkpoint: Mapping[str, Any]) -> None:
    """Load optimizer and scheduler states.

    Raises:
        CheckpointError: Their number or their groups differ from what `configure_optimizers` returned.
    """
    states, schedulers = checkpoint["optimizer_states"], checkpoint.get("lr_schedulers", [])
    if len(states) != len(run.optimizers) or len(schedulers) != len(run.schedulers):
        raise CheckpointError(
            f"The checkpoint has {len(states)} optimizer(s) and {len(schedulers)} scheduler(s); "
            "`configure_optimizers` returned "
            f"{len(run.optimizers)} and {len(run.schedulers)}. Return the same ones, or start from the weights alone."
        )
    for optimizer, state in zip(run.optimizers, states, strict=True):
        try:
            run.strategy.load_optimizer_state_dict(optimizer, state)
        except ValueError as error:
            raise CheckpointError(
                f"The state of `{type(optimizer).__name__}` does not fit its parameters ({error}). "
                "Was the model or `configure_optimizers` changed since the checkpoint? Start from the weights alone."
            ) from error
    for config, state in zip(run.schedulers, schedulers, strict=True):
        config.scheduler.load_state_dict(state)


def _restore_exactly(run: Run, state: dict[str, Any]) -> None:
    trainer, device = run.trainer, run.strategy.root_device
    ranks, world_size = [state, *state.get("ranks", [])], run.strategy.world_size
    if len(ranks) != world_size:
        rank_zero_warn(
            f"The checkpoint was written by {len(ranks)} process(es) and training goes on with {world_size}: rows of "
            "the epoch in progress may come twice or not at all, later epochs are whole. The resume is exact with "
            f"`devices` and `num_nodes` as they were."
        )
    if not state.get("is_between_batches", True):
        rank_zero_info("The checkpoint was written in the middle of a batch, which is trained again: not exact.")
    state = ranks[min(run.strategy.global_rank, len(ranks) - 1)]
    run.saved_feed, run.val_states = state["feed"], state["val_states"]
    if run.train_loaded_at != state["loaded_at"][0]:
        run.feed = None  # type: ignore[assignment]  # to count the steps, loaders of another epoch were made
    run.train_loaded_at, run.val_loaded_at = state["loaded_at"]
    trainer.metrics.callback.update(state["metrics"])
    trainer.metrics.steps.update(state["metric_steps"])
    run.seen_batches.update(state["seen_batches"])
    modules = dict(run.module.named_modules())
    for saved in state["results"]:
        _restore_record(run, saved, modules, device)
    for name, saved in state["torchmetrics"].items():
        if name in modules:
            _restore_metric(modules[name], saved, device)
    parameters = dict(run.module.named_parameters())
    for name, gradient in state["gradients"].items():
        if name in parameters:
            parameters[name].grad = gradient.to(parameters[name].device, parameters[name].dtype)


def _restore_record(run: Run, saved: dict[str, Any], modules: dict[str, Any], device: torch.device) -> None:
    state = {name: move_data_to_device(value, device) for name, value in saved["state"].items()}
    if saved["metric"] is None:
        record = Record(options=LogOptions(**saved["options"]), **state)
    elif is_metric(modules.get(saved["metric"])):  # whose state comes back by itself
        record = MetricRecord(options=LogOptions(**saved["options"]), metric=modules[saved["metric"]], **state)
    else:
        return  # the model has no such metric any more
    record.sync = run.train_results.sync_step if record.options.sync_dist else None
    hook, index, name = saved["key"]
    run.train_results.records[hook, index, name] = record
    run.train_results.any_step = run.train_results.any_step or record.on_step


def _restore_metric(metric: Any, saved: dict[str, Any], device: torch.device) -> None:
    for key, value in saved["values"].items():
        setattr(metric, key, move_data_to_device(value, device))
    metric._update_count, metric._computed = saved["count"], None


# Which file.


def resolve(trainer: Any, fn: str, ckpt_path: Any, *, model_given: bool) -> str | None:
    """Return the file that `ckpt_path=` means: a path, "best", "last", "hpc" or None.

    Raises:
        ValueError: "best" without a checkpoint callback, or before anything was saved.
        FileNotFoundError: The file does not exist.
    """
    if ckpt_path is None and trainer._ckpt_path_is_set:
        return str(trainer.ckpt_path)
    trainer._ckpt_path_is_set = False
    callback = trainer.checkpoint_callback
    has_best = trainer.parity or getattr(callback, "best_model_path", "")
    if ckpt_path is None and fn == "fit":
        ckpt_path = _left_behind(trainer)
    if ckpt_path is None and fn != "fit" and not model_given and has_best:
        rank_zero_info(f"`trainer.{fn}()` without a model uses the best checkpoint.")
        ckpt_path = "best"
    if ckpt_path is None:
        return None
    if ckpt_path == "best":
        if callback is None:
            raise ValueError(
                f'`trainer.{fn}(ckpt_path="best")`: there is no `ModelCheckpoint`. Add one, or give a path.'
            )
        if not callback.best_model_path:
            raise ValueError(
                f'`trainer.{fn}(ckpt_path="best")`: `ModelCheckpoint` has not saved anything yet. Call `fit` first, '
                "or give a path."
            )
        return str(callback.best_model_path)
    if ckpt_path == "last":
        return _newest(trainer, resumable=fn == "fit" and not trainer.parity)
    if ckpt_path == "hpc" and not (ckpt_path := newest_intact(_hpc(trainer), fn == "fit")):
        raise ValueError(f'`ckpt_path="hpc"`: there is no hpc_ckpt_*.ckpt in {trainer.default_root_dir}. Give a path.')
    path = str(ckpt_path)
    if "://" not in path and not Path(path).exists():
        raise FileNotFoundError(
            f'Checkpoint file not found: {path}. Check the path; `ckpt_path="last"` finds the newest one.'
        )
    return path


def _newest(trainer: Any, resumable: bool) -> str | None:
    callbacks = trainer.checkpoint_callbacks
    finders = [callback.find_last_checkpoints for callback in callbacks if hasattr(callback, "find_last_checkpoints")]
    known = [getattr(callback, name, "") for callback in callbacks for name in ("last_model_path", "ckpt_path")]
    last = {str(path) for path in (*known, *(path for find in finders for path in find(trainer))) if path}
    found = newest_intact(last, resumable)
    if found is None:  # the best ones beside it may be whole
        folders = {Path(path).parent for path in last if os.path.lexists(path)}
        found = newest_intact({file for folder in folders for file in folder.glob("*.ckpt")} - set(map(Path, last)))
    if found is None:
        rank_zero_warn('`ckpt_path="last"`: no checkpoint was found, so this is a fresh start.')
        return None
    return str(found)


def _left_behind(trainer: Any) -> str | None:
    """Return what `fit` goes on from unasked: the file of an `OnExceptionCheckpoint`, or of a requeued Slurm job."""
    left = {path for callback in trainer.checkpoint_callbacks if (path := getattr(callback, "ckpt_path", ""))}
    found = newest_intact(left, resumable=False)
    if found is None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        found = newest_intact(_hpc(trainer))
    if found is not None:
        rank_zero_info(f"`fit` goes on from {found}, which the run before left. Delete it to start anew.")
    return str(found) if found is not None else None


def _hpc(trainer: Any) -> list[Path]:
    return list(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))


def next_hpc(trainer: Any) -> Path:
    """Return where the next checkpoint of a Slurm job that is requeued goes; numbers are the reference framework's."""
    numbers = [int(path.stem[9:]) for path in _hpc(trainer) if path.stem[9:].isdigit()]
    return Path(trainer.default_root_dir) / f"hpc_ckpt_{max(numbers, default=0) + 1}.ckpt"
