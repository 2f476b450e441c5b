"""One call of the Trainer, from setup to teardown, whatever happens in between.

Owns: the order before and after the loops, and what an exception or an interrupt becomes. Does not own: the loops.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from . import checkpoint as checkpoints
from .acceleration import compile_module, prefer_fused
from .dispatch import HookTable, overrides
from .distributed import log, rank_zero_only
from .errors import SIGTERMException, _TunerExitException
from .hooks import Callback, DataHooks
from .legacy import step_in_turns, takes_turns
from .module import LightningModule
from .optimizer import parse_optimizers
from .results import Results
from .run import Run, make_transfer
from .signals import requeue
from .states import RunningStage, TrainerFn, TrainerState, TrainerStatus
from .step import prepare_steps


@contextlib.contextmanager
def session(
    trainer: Any, fn: TrainerFn, module: Any, datamodule: Any, *, ckpt_path: Any, weights_only: bool | None
) -> Iterator[Run]:
    """Set everything up for one function, yield the run, and tear down.

    Args:
        trainer: Whose settings.
        fn: The function.
        module: The user's module.
        datamodule: The user's data module, or None.
        ckpt_path: A file to restore, already resolved, or None.
        weights_only: False allows arbitrary pickle in that file.
    """
    watch = trainer.signals.watching() if fn is TrainerFn.FITTING else contextlib.nullcontext()
    with watch:  # until all is saved and closed: a launcher may send SIGTERM twice
        yield from _guarded_session(make_run(trainer, fn, module, datamodule), ckpt_path, weights_only)
    if fn is TrainerFn.FITTING and trainer.received_sigterm:  # it came when training was over already
        trainer.signals.act()


def _guarded_session(run: Run, ckpt_path: Any, weights_only: bool | None) -> Iterator[Run]:
    trainer = run.trainer
    trainer.interrupted = is_set_up = False
    try:
        set_up(run, ckpt_path, weights_only)
        is_set_up = True
        yield run
        finish(run)
    except _TunerExitException:
        tear_down(run, "success")
        trainer.state.status = TrainerStatus.FINISHED
        if not is_set_up:  # A context manager cannot skip its body: the caller suppresses this.
            raise
    except BaseException as error:
        fail(run, error)
        if isinstance(error, KeyboardInterrupt) and not run.parity:
            how = _how_to_resume(trainer) if trainer.state.fn is TrainerFn.FITTING else ""
            rank_zero_only(log.warning)("Interrupted.%s", how)
            if is_set_up:
                return
            raise _TunerExitException from error
        raise
    finally:
        run.enter_nothing()


def _how_to_resume(trainer: Any) -> str:
    kinds = ("last_model_path", "newest_model_path", "ckpt_path")
    files = [getattr(callback, kind, None) or "" for kind in kinds for callback in trainer.checkpoint_callbacks]
    file = max(filter(os.path.exists, files), key=os.path.getmtime, default=None)
    advice = " No checkpoint was saved; `ModelCheckpoint(save_last=True)` saves one at the first Ctrl-C."
    return f" Resume with `ckpt_path={file!r}`." if file else advice


def make_run(trainer: Any, fn: TrainerFn, module: Any, datamodule: Any) -> Run:
    """Attach module and data module to the trainer, and make the run."""
    if not isinstance(module, LightningModule):
        raise TypeError(
            f"`Trainer.{fn.value}()` got a `{type(module).__name__}`. A `LightningModule` of this engine is accepted; "
            "a plain `nn.Module` becomes one by subclassing, a Lightning one by changing its import."
        )
    stage = RunningStage("train" if fn is TrainerFn.FITTING else fn.value)
    trainer.state = state = TrainerState(fn, stage, TrainerStatus.RUNNING)
    module.trainer = trainer
    if datamodule is not None:
        datamodule.trainer = trainer
    strategy, precision, progress = trainer.strategy, trainer.precision_plugin, trainer.progress
    loggers, parity = trainer.loggers, trainer.parity
    profiler = trainer.profiler if trainer.profiler.is_on else None
    hooks = HookTable(trainer, module, trainer.data_source, (), base=LightningModule, profiler=profiler)
    train, evaluation = (Results(training, progress) for training in (True, False))
    for results in (train, evaluation):
        results.on_rank_zero = strategy.is_global_zero or parity
        # In evaluation ranks may have different numbers of batches, so a batch's values stay with their rank.
        if strategy.is_distributed and (results.training or parity):
            results.sync_step = lambda value, op: strategy.reduce(torch.as_tensor(value), reduce_op=op)
    run = Run(
        trainer, module, datamodule, state, strategy, precision, hooks, progress, loggers, parity, train, evaluation
    )
    if fn is not TrainerFn.FITTING and trainer.run is not None and trainer.run.module is module:
        trained = trainer.run  # what it has can still be saved, and trained on from there
        run.optimizers, run.step_optimizers = trained.optimizers, trained.step_optimizers
        run.schedulers, run.feed = trained.schedulers, trained.feed
    trainer.attach(run)
    trainer.metrics.clear()
    return run


def set_up(run: Run, ckpt_path: Any, weights_only: bool | None) -> None:
    """Do what precedes the loops, in the order that `hooks` draws."""
    trainer, module, strategy = run.trainer, run.module, run.strategy
    fitting = run.state.fn is TrainerFn.FITTING
    merge_callbacks(run)
    strategy.setup_environment()
    prepare_data(run)
    ckpt_path = strategy.broadcast(ckpt_path)  # which rank 0 may have looked for alone
    checkpoint = trainer.load_checkpoint(ckpt_path, weights_only) if ckpt_path is not None else None
    if checkpoint is not None and fitting:
        checkpoints.restore_loggers(run, checkpoint)  # first of all: a tracker goes on in its run, or begins another
    call_setup(run, str(run.state.fn))
    run.hooks.wrap("configure_model", module.configure_model)()
    run.precision.convert_module(module)  # first: weights of 64 bits would lose half of them
    if checkpoint is not None:
        checkpoints.restore_model(run, checkpoint)
    strategy.sync_batchnorm = trainer.sync_batchnorm
    strategy.setup(module, training=fitting)
    run.transfer = run.hooks.wrap("batch_to_device", make_transfer(run.hooks, strategy, run.precision))
    if fitting:
        if trainer.compile_options is not None:
            compile_module(module, LightningModule, trainer.compile_options)
        configure_optimizers(run)
        if strategy.root_device.type == "cuda" and not run.parity:
            prefer_fused(run.optimizers)
        prepare_steps(run)
        if takes_turns(run):
            run.step = step_in_turns
        run.hooks.call("on_fit_start")
    send_hparams(run)
    if checkpoint is not None and fitting:
        checkpoints.restore_training(run, checkpoint)


def merge_callbacks(run: Run) -> None:
    """Add the module's own callbacks and build the hook table.

    A callback of the module replaces the trainer's of its own class or of a class that it derives from.
    """
    trainer, module = run.trainer, run.module
    own = module.configure_callbacks()
    own = [own] if isinstance(own, Callback) else list(own or [])
    if own:
        replaced = {base for callback in own for base in type(callback).__mro__} - {Callback}
        kept = [callback for callback in trainer.callbacks if type(callback) not in replaced]
        trainer.callbacks = trainer.ordered([*kept, *own])
    trainer.check_callbacks()
    run.hooks.callbacks = tuple(trainer.callbacks)
    for callback in run.hooks.callbacks:
        callback.__dict__["log"], callback.__dict__["log_dict"] = module.log, module.log_dict


def prepare_data(run: Run) -> None:
    """Call `prepare_data` on one process of each node, or on one alone."""
    strategy = run.strategy
    for owner, base in ((run.datamodule, DataHooks), (run.module, LightningModule)):
        if owner is None:
            continue
        alone = strategy.local_rank == 0 if owner.prepare_data_per_node else strategy.global_rank == 0
        if alone and overrides(owner, "prepare_data", base):
            owner.prepare_data()
    strategy.barrier("prepare_data")


def call_setup(run: Run, stage: str) -> None:
    """Make the loggers' experiments, then call every `setup`."""
    for logger in run.loggers:
        _ = getattr(logger, "experiment", None)
    profiler = run.hooks.profiler
    if profiler is not None:
        profiler.setup(stage=stage, local_rank=run.strategy.local_rank, log_dir=run.trainer.log_dir)
    if run.datamodule is not None:
        run.hooks.wrap("setup", run.datamodule.setup, run.datamodule)(stage)
    for callback in [each for each in run.trainer.callbacks if overrides(each, "setup", Callback)]:
        run.hooks.wrap("setup", callback.setup, callback)(run.trainer, run.module, stage)
    run.hooks.wrap("setup", run.module.setup)(stage)
    run.strategy.barrier("setup")
    if tuple(run.trainer.callbacks) != run.hooks.callbacks:
        merge_callbacks(run)


def configure_optimizers(run: Run) -> None:
    """Ask the module for its optimizers and schedulers."""
    module = run.module
    run.optimizers, run.schedulers, run.frequencies = parse_optimizers(
        run.hooks.wrap("configure_optimizers", module.configure_optimizers)(),
        automatic=module.automatic_optimization,
        custom_scheduler_step=run.hooks.module_overrides("lr_scheduler_step"),
    )
    if run.parity and module.automatic_optimization and len(run.optimizers) > 1:
        raise RuntimeError(
            f"`configure_optimizers` returned {len(run.optimizers)} optimizers, which the reference framework takes "
            "under manual optimisation only. Set `self.automatic_optimization = False`, or leave `parity` out."
        )


def send_hparams(run: Run) -> None:
    """Send the hyper-parameters of module and data module to the loggers, once.

    Raises:
        RuntimeError: Both have a value of one name, and they differ.
    """
    module, datamodule, trainer = run.module, run.datamodule, run.trainer
    if not run.loggers or not trainer.enable_autolog_hparams:
        return
    merged: dict[str, Any] = {}
    for owner in (module, datamodule):
        if owner is None or not owner._log_hyperparams:
            continue
        initial = owner.hparams_initial
        clashes = [name for name in initial if name in merged and not _same(merged[name], initial[name])]
        if clashes:
            raise RuntimeError(
                f"Module and data module have different values of the hyper-parameter(s) {clashes}. "
                "Rename one of them, or leave it out with `save_hyperparameters(ignore=...)`."
            )
        merged.update(initial)
    if run.strategy.is_global_zero:
        for logger in run.loggers:
            if merged:
                logger.log_hyperparams(merged)
            logger.log_graph(module)
            logger.save()


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except (TypeError, ValueError, RuntimeError):
        return a is b


# Afterwards.


def finish(run: Run) -> None:
    """End a run that went well."""
    if run.state.fn is TrainerFn.FITTING:
        release(run)
        run.hooks.call("on_fit_end")
    tear_down(run, "success")
    run.state.status = TrainerStatus.FINISHED


def release(run: Run) -> None:
    """Move the module and the optimizers' states back to the host, and end the loader's workers."""
    if run.feed is not None:
        run.feed.close()
    run.strategy.unwrap()
    run.precision.restore_module(run.module)
    if run.strategy.root_device.type == "cpu":
        return
    states = [state for optimizer in run.optimizers for state in optimizer.state.values()]
    for state in states:
        state.update({name: value.cpu() for name, value in state.items() if type(value) is torch.Tensor})
    run.module.cpu()


def tear_down(run: Run, status: str) -> None:
    """Call every `teardown` and finalise the loggers; one that fails does not keep the others from running."""
    if run.is_torn_down:  # the error that ends the run came from here
        return
    run.is_torn_down = True
    stage = str(run.state.fn)
    errors: list[BaseException] = []
    if run.datamodule is not None:
        _guarded(errors, run.datamodule.teardown, stage)
    for callback in run.trainer.callbacks:
        _guarded(errors, callback.teardown, run.trainer, run.module, stage)
    _guarded(errors, run.module.teardown, stage)
    _guarded(errors, run.strategy.teardown)
    _guarded(errors, run.strategy.checkpoint_io.teardown)
    _end_outputs(run, status, errors)
    for callback in run.trainer.callbacks:
        callback.__dict__.pop("log", None)
        callback.__dict__.pop("log_dict", None)
    if errors and status == "success":
        raise errors[0]
    for error in errors:
        log.warning("While tearing down after an error: %s: %s", type(error).__name__, error)


def _end_outputs(run: Run, status: str, errors: list[BaseException]) -> None:
    if run.strategy.is_global_zero:
        run.trainer.tell_loggers("finalize", status)
    if run.hooks.profiler is not None:
        _guarded(errors, run.hooks.profiler.describe)
        _guarded(errors, run.hooks.profiler.teardown, str(run.state.fn))


def _guarded(errors: list[BaseException], function: Any, *args: Any) -> None:
    try:
        function(*args)
    except Exception as error:
        errors.append(error)


def fail(run: Run, error: BaseException) -> None:
    """Tell callbacks and loggers that the run ends by an exception or an interrupt, which then goes on."""
    trainer = run.trainer
    stopped = isinstance(error, (KeyboardInterrupt, SIGTERMException))
    trainer.interrupted = True
    trainer.state.status = TrainerStatus.INTERRUPTED
    errors: list[BaseException] = []
    run.strategy.on_exception(error)
    run.hooks.results = None
    for callback in run.hooks.callbacks:
        _guarded(errors, callback.on_exception, trainer, run.module, error)
    if run.datamodule is not None:
        _guarded(errors, run.datamodule.on_exception, error)
    if trainer.signals.is_leaving and trainer.signals.asks_to_requeue:
        _guarded(errors, trainer.save_checkpoint, checkpoints.next_hpc(trainer))
        if run.strategy.is_global_zero:
            requeue()
    for problem in errors:
        error.add_note(f"Besides, `on_exception` failed: {type(problem).__name__}: {problem}")
    status = "interrupted" if stopped and not run.parity else "failed"
    torch.set_grad_enabled(True)
    if run.parity:
        _end_outputs(run, status, [])
    else:
        if run.feed is not None:
            run.feed.close()
        tear_down(run, status)
