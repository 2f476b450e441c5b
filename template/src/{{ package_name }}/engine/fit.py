"""The training loop.

Owns: the order of epochs, batches, schedulers, validation and stopping. Does not own: what happens to one batch
(`step`) and to a validation (`evaluate`).

    sanity check
    on_train_start
    for each epoch:
        on_train_epoch_start
        for each batch:
            on_train_batch_start · step · schedulers · on_train_batch_end · log · validate if due
        on_train_epoch_end · plateau schedulers · log
    on_train_end
"""

from __future__ import annotations

import time
from typing import Any

import torch

from .distributed import rank_zero_info, rank_zero_warn
from .errors import MisconfigurationException, did_you_mean
from .evaluate import load_evaluation, sanity_check, validate_in_fit, validates_this_epoch
from .loading import load_training
from .optimizer import LRSchedulerConfig
from .run import Run
from .states import RunningStage
from .step import batch_end_outputs
from .strategies.agreement import Agreement
from .transfer import first_size

INFINITE = float("inf")


def fit(run: Run) -> None:
    """Train until a limit is reached or somebody asks to stop."""
    torch.set_grad_enabled(True)
    if not run.resumed:
        run.module.zero_grad()
    sanity_check(run)
    run.enter(RunningStage.TRAINING, run.train_results)
    if run.trainer.limit_train_batches == 0:
        return
    if run.feed is None:  # else somebody has counted the steps of the fit already
        load_training(run)
    if run.saved_feed is not None:
        run.feed.load_state_dict(run.saved_feed)
    if not run.resumed and (run.parity or not is_done(run)):
        run.hooks.wrap("train_dataloader_next", run.feed.open)()
    if nothing_to_do(run):
        return
    if validates_this_epoch(run):
        run.state.stage = RunningStage.VALIDATING
        load_evaluation(run)
        run.state.stage = RunningStage.TRAINING
    if run.strategy.is_distributed:
        run.agreement = Agreement(run.strategy, run.trainer, run.val_check_seconds)
    run.last_validation_s = time.monotonic()
    finish_tail(run)
    run.hooks.call("on_train_start")
    if not run.progress.inside_epoch:
        run.feed.start()
    if run.agreement is not None:
        run.agreement.at_boundary()
    if run.progress.inside_epoch and is_done(run):  # the checkpoint was written after the last step
        run.feed.restore_global()
        end_epoch(run, skipped=False)
    while not is_done(run):
        train_epoch(run)
    run.hooks.call("on_train_end")


def train_epoch(run: Run) -> None:
    """Train one epoch, or the rest of one that was interrupted."""
    progress, results, trainer = run.progress, run.train_results, run.trainer
    start_epoch(run)
    feed = run.feed
    hook_start, hook_end = run.hooks["on_train_batch_start"], run.hooks["on_train_batch_end"]
    step, transfer, window, size = run.step, run.transfer, run.window, feed.size()
    rows, skipped = feed.rows_per_batch(), trainer.should_stop and can_stop(run)
    if skipped and run.parity:  # the reference makes the epoch's iterator all the same
        feed.open()
    batches = run.hooks.waiting("train_dataloader_next", feed.batches(progress.batch_idx)) if not skipped else ()
    for batch, is_last in batches:
        batch_idx = progress.batch_idx
        position = batch_idx % window
        due = is_last or position + 1 == window
        run.is_last_batch = is_last
        if window > 1:
            enter_window(run, position, window, size - batch_idx, is_last)
        batch = transfer(batch, 0)
        results.start_batch(batch)
        if batch is not None and hook_start is not None and hook_start(batch, batch_idx) == -1:
            skipped = run.is_last_batch = True
            progress.batch_idx = batch_idx + 1
            progress.total_batches += 1
            step_schedulers(run, due=True)
            break
        output = step(run, batch, batch_idx, due) if batch is not None else no_batch()
        progress.batch_idx = batch_idx + 1
        progress.total_batches += 1
        progress.samples += rows if rows and not is_last else first_size(batch)
        if run.schedulers:
            step_schedulers(run, due)
        progress.is_last_batch, progress.tail = is_last, "validate"
        if hook_end is not None:
            hook_end(batch_end_outputs(run, output), batch, batch_idx)
        end_batch(run, due)
        if (trainer.should_stop and can_stop(run)) or reached(progress.global_step, trainer.max_steps):
            break
    end_epoch(run, skipped)


def no_batch() -> Any:
    """Say that a loader gave None, as a `collate_fn` may that finds nothing to keep; nothing is trained on it."""
    rank_zero_warn("The training loader gave None in place of a batch, which is skipped. Check its `collate_fn`.")
    return None


def enter_window(run: Run, position: int, window: int, left: float, is_last: bool) -> None:
    """Set by how much this batch's loss is divided: by the batches that its accumulation window really has.

    Args:
        run: The fit in progress.
        position: Of the batch in the window.
        window: Batches of a full window.
        left: Batches of the epoch from this one on; `inf` when unknown.
        is_last: Whether this is the epoch's last batch.
    """
    run.starts_window = position == 0
    run.window_size = window if run.parity else int(min(window, position + left))
    if is_last and not run.parity and left == INFINITE:
        # The window turns out to be short: the gradients so far were divided by too much.
        run.window_size = position + 1
        for parameter in run.module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(window / run.window_size)


def start_epoch(run: Run) -> None:
    """Begin an epoch, or go back into one."""
    progress, begins = run.progress, not run.progress.inside_epoch
    if begins:
        progress.inside_epoch, progress.batch_idx, progress.is_last_batch = True, 0, False
        progress.epoch_first_log_step = progress.log_step
        reload_loaders(run)
    run.feed.set_epoch(progress.epoch)
    if begins:
        run.hooks.call("on_train_epoch_start")
    run.strategy.start_epoch()
    run.window = progress.window = run.trainer.accumulate_grad_batches
    run.window_size, run.starts_window, run.validates = 1, True, validates_this_epoch(run)


def reload_loaders(run: Run) -> None:
    """Ask for the training loaders again every `reload_dataloaders_every_n_epochs`."""
    every, epoch = run.trainer.reload_dataloaders_every_n_epochs, run.progress.epoch
    if every and epoch - run.train_loaded_at >= every:
        load_training(run)
        if run.parity:  # The reference makes an iterator when it loads, and another for the epoch.
            run.feed.open()
            run.feed.close()


def end_batch(run: Run, due: bool) -> None:
    """Do what follows a batch's hooks: loggers, validation, plateau schedulers, the logging step."""
    progress = run.progress
    if run.agreement is not None:
        run.agreement.after_batch(progress.total_batches)
    if due and run.train_results.any_step and run.log_due():
        run.send(run.train_results.collect(on_step=True).log)
    if run.validates and validation_due(run):
        validate_in_fit(run, zero_grad=due)
        if run.agreement is not None:
            run.agreement.at_boundary()
    if run.schedulers and due:
        update_schedulers(run, "step", plateau=True)
    progress.log_step += due
    progress.tail = ""
    if run.trainer.signals.received is not None:
        run.trainer.check_signals()


def finish_tail(run: Run) -> None:
    """After a resume, do what was left of the batch or the epoch in which the checkpoint was written."""
    tail, progress = run.progress.tail, run.progress
    if not tail:
        return
    run.feed.restore_global()
    if tail == "epoch_end":
        finish_epoch(run)
        return
    run.is_last_batch = progress.is_last_batch
    run.train_results.in_batches = True
    due = progress.is_last_batch or progress.batch_idx % progress.window == 0
    if tail == "validate":
        run.validates = validates_this_epoch(run)
        end_batch(run, due)
        return
    if run.schedulers and due:
        update_schedulers(run, "step", plateau=True)
    progress.log_step += due
    progress.tail = ""


def end_epoch(run: Run, skipped: bool) -> None:
    """Run the epoch's end hooks, then close it."""
    progress, results, trainer = run.progress, run.train_results, run.trainer
    if run.refreshed_at != progress.total_batches:  # else a validation came between, and its values are newer
        trainer.metrics.refresh(results)
    results.in_batches, results.batch = False, None
    if progress.batch_idx == 0 and not skipped and not progress.is_last_batch:
        rank_zero_warn(
            "The training loader gave no batch in this epoch. Check its data set, sampler and `limit_train_batches`."
        )
    progress.tail = "epoch_end"
    run.reduce_epoch(results)
    run.hooks.call("on_train_epoch_end")
    finish_epoch(run)


def finish_epoch(run: Run) -> None:
    """Close an epoch: plateau schedulers, the epoch's metrics, the counters."""
    progress, results, trainer = run.progress, run.train_results, run.trainer
    run.feed.close()
    run.reduce_epoch(results)
    trainer.metrics.refresh(results)
    if run.schedulers and (run.is_last_batch or progress.is_last_batch):
        update_schedulers(run, "epoch", plateau=True)
    progress.log_step -= 1  # Loggers expect the epoch's values at its last step.
    run.send(results.collect(on_step=False).log)
    progress.log_step += 1
    trainer.tell_loggers("save")
    results.reset()
    progress.epoch += 1
    progress.inside_epoch, progress.batch_idx, progress.tail = False, 0, ""
    if run.agreement is not None:
        run.agreement.at_boundary()
    trainer.check_signals()


# Stopping.


def reached(count: int, limit: int | None) -> bool:
    """Return whether a maximum is reached; None and -1 are no limit."""
    return limit is not None and limit != -1 and count >= limit


def can_stop(run: Run) -> bool:
    """Return whether the minima allow `should_stop` to act."""
    trainer, progress = run.trainer, run.progress
    epochs_met = not trainer.min_epochs or progress.epoch >= trainer.min_epochs
    return epochs_met and (not trainer.min_steps or progress.global_step >= trainer.min_steps)


def is_done(run: Run) -> bool:
    """Return whether no further epoch is to be started."""
    trainer, progress = run.trainer, run.progress
    if reached(progress.global_step, trainer.max_steps) or reached(progress.epoch, trainer.max_epochs):
        return not progress.inside_epoch or reached(progress.global_step, trainer.max_steps)
    return bool(trainer.should_stop) and can_stop(run)


def nothing_to_do(run: Run) -> bool:
    """Return whether this fit is over before it began, and say so."""
    trainer, progress = run.trainer, run.progress
    size = run.feed.size()
    if size == 0:
        rank_zero_warn("The training loader is empty, so nothing is trained. Check its data set.")
        return True
    if not is_done(run) or (run.resumed and progress.inside_epoch and not run.parity):
        return False
    if not run.parity and trainer.max_epochs != 0 and progress.global_step:
        rank_zero_info(
            f"Nothing to train: this Trainer is at epoch {progress.epoch} of {trainer.max_epochs}, step "
            f"{progress.global_step}. Set `trainer.max_epochs = {progress.epoch + 1}` or more, or make a new Trainer."
        )
    return True


# Validation.


def validation_due(run: Run) -> bool:
    """Return whether to validate after the batch just done, in an epoch that validates."""
    trainer, progress = run.trainer, run.progress
    if run.agreement is not None and run.val_check_seconds is not None:
        return run.agreement.is_time_to_validate
    if run.val_check_seconds is not None:
        return time.monotonic() - run.last_validation_s >= run.val_check_seconds
    if (progress.is_last_batch and run.val_check_batch == INFINITE) or (trainer.should_stop and can_stop(run)):
        return True
    if isinstance(trainer.limit_train_batches, int) and run.val_check_batch == INFINITE:
        return progress.batch_idx % trainer.limit_train_batches == 0
    batches = progress.total_batches if trainer.check_val_every_n_epoch is None else progress.batch_idx
    return run.val_check_batch != INFINITE and batches % run.val_check_batch == 0


# Schedulers.


def step_schedulers(run: Run, due: bool) -> None:
    """Step the schedulers that watch no metric: by step when one was due, by epoch after the last batch."""
    if due:
        update_schedulers(run, "step", plateau=False)
    if run.is_last_batch:
        update_schedulers(run, "epoch", plateau=False)


def update_schedulers(run: Run, interval: str, *, plateau: bool) -> None:
    """Step the schedulers of one kind whose turn it is.

    A frequency in steps counts optimizer steps (with parity: batches of the epoch, tested only where a step was due).
    """
    if not run.module.automatic_optimization:
        return
    progress = run.progress
    by_step = max(progress.batch_idx, 1) if run.parity else progress.log_step + 1
    count = by_step if interval == "step" else progress.epoch + 1
    step = run.hooks.method("lr_scheduler_step")
    for config in run.schedulers:
        if config.reduce_on_plateau is not plateau or config.interval != interval or count % config.frequency:
            continue
        value = monitored(run, config) if plateau else None
        if value is not None or not plateau:
            step(config.scheduler, value)


def monitored(run: Run, config: LRSchedulerConfig) -> Any:
    """Return the value a plateau scheduler waits for; None when there is no fresh one.

    Raises:
        MisconfigurationException: No metric of that name can come any more, and the scheduler is strict.
    """
    metrics, name = run.trainer.callback_metrics, str(config.monitor)
    value = metrics.get(name)
    if value is not None:
        return value if run.parity or run.is_fresh(config) else None
    if not config.strict:
        rank_zero_warn(f"The scheduler's monitor `{name}` was not logged yet, so it does not step.")
        return None
    if not run.parity and run.trainer.enable_validation and run.progress.validations == 0:
        return None  # A first validation is still to come, so its metrics cannot be there yet.
    raise MisconfigurationException(
        f"`ReduceLROnPlateau` watches `{name}`, which was not logged.{did_you_mean(name, metrics)} "
        f"Logged: {', '.join(metrics) or 'nothing'}. Log it, or change 'monitor' in `configure_optimizers`."
    )
