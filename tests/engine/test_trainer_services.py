"""What a Trainer is outside of a run: copied, pickled, asked for the counts of the last one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine.toys import BoringModel, loader, quiet_trainer


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda trainer: pickle.loads(pickle.dumps(trainer))])
def test_a_copied_trainer_knows_how_long_the_training_was_and_holds_no_loaders(twin_of: Callable[[Any], Any]) -> None:
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(BoringModel(), loader(), loader(4))
    twin = twin_of(trainer)
    assert (twin.num_training_batches, twin.global_step, twin.current_epoch) == (3, 6, 2)
    assert twin.train_dataloader is None
    assert trainer.train_dataloader is not None
    twin.fit(BoringModel(), loader(8))
    assert twin.num_training_batches == 2
