"""The engine's public names against those of lightning 2.6.6, as recorded in `tests/data/traces/names.json`."""

from __future__ import annotations

import fnmatch

import pytest

from tests.parity import names
from tests.parity.framework import load_framework, words
from tests.parity.gaps import GAPS

TRAINER_ATTRIBUTES = words(
    """
    callback_metrics logged_metrics progress_bar_metrics current_epoch global_step max_epochs max_steps should_stop
    is_global_zero global_rank local_rank world_size num_devices num_nodes device_ids strategy accelerator precision
    model lightning_module datamodule optimizers lr_scheduler_configs logger loggers log_dir default_root_dir callbacks
    checkpoint_callback checkpoint_callbacks early_stopping_callback early_stopping_callbacks progress_bar_callback
    ckpt_path train_dataloader val_dataloaders test_dataloaders predict_dataloaders num_training_batches
    num_val_batches num_test_batches num_predict_batches num_sanity_val_batches is_last_batch sanity_checking training
    validating testing predicting evaluating state accumulate_grad_batches gradient_clip_val gradient_clip_algorithm
    limit_train_batches limit_val_batches limit_test_batches limit_predict_batches fast_dev_run enable_validation
    interrupted received_sigterm scaler precision_plugin node_rank predict_loop fit_loop distributed_sampler_kwargs
    profiler min_epochs min_steps check_val_every_n_epoch val_check_interval log_every_n_steps overfit_batches
    reload_dataloaders_every_n_epochs num_sanity_val_steps barebones
    """
)


@pytest.fixture(scope="module")
def found() -> list[names.Gap]:
    return names.gaps(names.recorded(), names.surface("engine"))


def test_every_gap_has_a_reason(found: list[names.Gap]) -> None:
    without = [f"{name}: lacks {lacks}" for name, lacks, reason in found if not reason]
    assert not without, "close these gaps, or give a reason in tests/parity/gaps.py:\n" + "\n".join(without)


def test_every_reason_is_needed(found: list[names.Gap]) -> None:
    used = {next(p for p in GAPS if fnmatch.fnmatchcase(name, p)) for name, _, reason in found if reason}
    assert used == set(GAPS), "remove these from tests/parity/gaps.py"


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_page_holds_the_gaps_of_today(found: list[names.Gap], language: str) -> None:
    page = names.PAGES[language].read_text()
    assert page == names.table(found, language), "python -m tests.parity.names --write"


@pytest.mark.parametrize("name", TRAINER_ATTRIBUTES)
def test_a_fresh_trainer_has_the_attribute(name: str) -> None:
    trainer = load_framework("engine").Trainer(accelerator="cpu", devices=1, logger=False)
    assert hasattr(trainer, name)
