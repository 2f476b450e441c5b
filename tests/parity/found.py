"""Jobs that once told the engine and lightning 2.6.6 apart, each under the name of its cause.

`python -m tests.parity.record --framework lightning.pytorch --kind found --out tests/data/traces/own/found` records
them, so that the ordinary tests replay them without Lightning.
"""

from __future__ import annotations

from typing import Any

from tests.parity.random_job import Job, Log, Sched


def _trainer(epochs: int = 2, **options: Any) -> dict[str, Any]:
    return {"max_epochs": epochs, **options}


FOUND: dict[str, Job] = {
    # Not found by chance: many rules in one job.
    "everything_by_step": Job(
        train=(21, 9),
        val=(9, 17),
        trainer=_trainer(val_check_interval=2, accumulate_grad_batches=2),
        logs=(
            Log("on_train_batch_end", "a", by="callback", flags={"on_step": True, "on_epoch": True}),
            Log("validation_step", "va", value="loss", flags={"on_step": True, "on_epoch": True}),
            Log("on_validation_epoch_end", "va", flags={"prog_bar": True}),
        ),
        watch_hooks=True,
        then=("validate", "predict"),
    ),
    "no_validation_loader_means_no_validation": Job(val=(), source="module", trainer=_trainer()),
    "optimizer_toggles_its_own_model": Job(manual=True, optimizers=("sgd", "adamw"), trainer=_trainer()),
    "flags_of_log_are_compared_by_meaning": Job(
        trainer=_trainer(1),
        logs=(
            Log("on_train_start", "a", by="callback", flags={"logger": True}),
            Log("on_train_start", "a", by="callback", flags={"on_epoch": True, "batch_size": 3}),
        ),
    ),
    "two_metric_objects_under_one_name": Job(
        trainer=_trainer(1),
        logs=(Log("on_train_start", "a", value="MeanMetric"), Log("on_train_start", "a", value="MeanMetric")),
    ),
    "two_metric_objects_under_one_name_in_validation": Job(
        trainer=_trainer(1),
        logs=(
            Log("on_validation_batch_start", "a", value="MaxMetric"),
            Log("on_validation_batch_start", "a", value="MaxMetric"),
        ),
    ),
    "checkpoint_waits_for_validation_that_counts_batches": Job(
        train=(9,),
        val=(),
        trainer=_trainer(1, check_val_every_n_epoch=None, val_check_interval=7, accumulate_grad_batches=4),
        callbacks=("checkpoint",),
    ),
    "no_checkpoint_before_the_first_step": Job(
        train=(26,), val=(), trainer=_trainer(accumulate_grad_batches=4), stop_at=(0, 0), callbacks=("checkpoint",)
    ),
    "no_checkpoint_at_a_validation_before_the_first_step": Job(
        trainer=_trainer(val_check_interval=2, accumulate_grad_batches=4), callbacks=("checkpoint_at_val",)
    ),
    "monitor_may_be_missing_until_a_validation_ran": Job(
        val=(), trainer=_trainer(3), skip_at=(0, 0), callbacks=("checkpoint",)
    ),
    "fast_dev_run_takes_a_checkpoint_callback": Job(
        trainer=_trainer(fast_dev_run=True), callbacks=("checkpoint_plain",)
    ),
    "schedulers_step_at_a_skipped_epoch": Job(
        trainer=_trainer(3), schedulers=(Sched("step", "step"), Sched("exponential")), skip_at=(0, 2)
    ),
    "frequency_counts_the_skipped_batch": Job(
        trainer=_trainer(3), schedulers=(Sched("cosine", "step", 2),), skip_at=(1, 1)
    ),
    "validation_counts_all_batches_by_default_too": Job(trainer=_trainer(3, check_val_every_n_epoch=None)),
    "transfer_hooks_are_those_of_the_call": Job(
        source="datamodule", trainer=_trainer(1), watch_hooks=True, then=("test_loaders", "validate_loaders")
    ),
    "bar_shows_step_values_of_validation": Job(
        trainer=_trainer(1),
        logs=(
            Log("on_validation_batch_end", "va", flags={"on_step": True, "on_epoch": False, "prog_bar": True}),
            Log("on_validation_batch_end", "vb", flags={"on_step": True, "prog_bar": True}),
        ),
    ),
    "epoch_end_leaves_step_values_alone": Job(
        trainer=_trainer(),
        logs=(
            Log("on_validation_epoch_end", "a", by="callback"),
            Log("on_before_optimizer_step", "a", value="MaxMetric", flags={"on_step": True}),
        ),
    ),
    "averaging_configures_the_model_first": Job(trainer=_trainer(1), callbacks=("ema",), watch_hooks=True),
    "loaders_are_reloaded_by_their_age_after_a_resume": Job(
        source="module",
        trainer=_trainer(3, reload_dataloaders_every_n_epochs=2),
        watch_hooks=True,
        resume_after=2,
    ),
    "callbacks_load_the_checkpoint_of_a_test": Job(
        trainer=_trainer(), callbacks=("checkpoint",), watch_hooks=True, then=("test_best",)
    ),
    "one_name_for_two_loaders": Job(
        val=(9, 4),
        trainer=_trainer(1),
        logs=(Log("on_validation_batch_start", "a", flags={"on_step": True, "add_dataloader_idx": False}),),
    ),
    "a_metric_object_and_a_number_under_one_name": Job(
        trainer=_trainer(1), logs=(Log("on_train_start", "b", value="MaxMetric"), Log("on_train_start", "b"))
    ),
    "an_average_goes_on_from_a_finished_fit": Job(trainer=_trainer(), callbacks=("ema",), resume_after=1),
    "a_test_after_averaging_uses_the_weights": Job(
        trainer=_trainer(), callbacks=("ema", "checkpoint"), then=("test_again",)
    ),
    "validation_loaders_walked_together": Job(val=(9, 17), trainer=_trainer(1), odd=("val_min_size",)),
    "loader_is_opened_though_nothing_is_trained": Job(trainer=_trainer(), odd=("timer_0",)),
    "overfitting_in_a_dry_run": Job(trainer=_trainer(1, fast_dev_run=2, overfit_batches=1)),
    "metrics_are_read_one_by_one": Job(trainer=_trainer(), odd=("raises_in_on_train_epoch_end",)),
    "a_loader_method_returns_none": Job(source="datamodule", trainer=_trainer(1), odd=("val_none",)),
    "no_batches_means_no_loader": Job(
        source="datamodule", trainer=_trainer(1, limit_test_batches=0), watch_hooks=True, then=("test",)
    ),
    "a_skipped_batch_counts_for_validation": Job(trainer=_trainer(3, check_val_every_n_epoch=None), skip_at=(1, 0)),
    "gradients_stay_on_in_validation": Job(
        trainer=_trainer(1), odd=("takes_gradients_in_validation",), watch_hooks=True
    ),
    "every_batch_of_an_evaluation_counts": Job(trainer=_trainer(1), odd=("logs_at_some_batches",), then=("validate",)),
    "optimizer_step_logs_after_its_closure": Job(trainer=_trainer(1), odd=("logs_opt_in_optimizer_step_on_epoch",)),
    "checkpoint_of_validations_by_time": Job(
        trainer=_trainer(1), checkpoint={}, odd=("validate_by_time",), watch_hooks=True
    ),
    "reading_metrics_computes_them": Job(
        trainer=_trainer(),
        schedulers=(Sched("step", "step"),),
        logs=(Log("on_train_start", "a", by="callback"),),
        callbacks=("lr_monitor",),
    ),
    "an_error_at_the_end_leaves_the_average": Job(
        trainer=_trainer(), callbacks=("ema",), odd=("raises_in_on_train_end",)
    ),
    "a_validation_between_two_fits": Job(trainer=_trainer(3), stop_at=(1, 1), then=("validate", "fit")),
    "a_negative_min_delta": Job(trainer=_trainer(3), early={"monitor": "train_loss", "min_delta": -0.1, "patience": 0}),
    "samplers_of_evaluations_hear_of_the_epoch": Job(
        val=(9, 17), trainer=_trainer(), odd=("val_samplers_with_epochs", "val_min_size"), then=("validate",)
    ),
    "predictions_keep_the_last_batch": Job(trainer=_trainer(1), odd=("val_drop_last",), then=("predict_loaders",)),
    "the_last_checkpoint_after_a_resume_that_saved_none": Job(
        trainer=_trainer(), skip_at=(1, 0), callbacks=("checkpoint",), resume_after=1
    ),
    "a_linked_last_follows_the_newest_file": Job(
        trainer=_trainer(4),
        checkpoint={"monitor": "train_loss", "mode": "max", "every_n_train_steps": 2, "save_last": "link"},
    ),
    "last_is_not_written_twice_at_a_step": Job(
        trainer=_trainer(3, accumulate_grad_batches=2), checkpoint={"every_n_train_steps": 2, "save_last": True}
    ),
    "clipping_is_configured_by_keywords": Job(trainer=_trainer(), odd=("unclipped",), watch_hooks=True),
    "an_epoch_that_is_stopped_at_its_start_has_its_iterator": Job(
        val=(), shuffle=True, trainer=_trainer(3), odd=("stops_in_on_train_epoch_start",)
    ),
    "an_average_of_a_module_that_grows": Job(trainer=_trainer(), callbacks=("ema",), odd=("adds_a_group",)),
    "plain_iterables_are_tried_first": Job(trainer=_trainer(), odd=("train_loaders_without_length",)),
}
