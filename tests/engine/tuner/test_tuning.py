"""Tuner: the searches as calls; the Trainer is as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine
import pytest
from engine.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint
from engine.errors import EngineWarning, MisconfigurationException
from engine.loggers import CSVLogger
from engine.tuner import Tuner

from tests.engine.callbacks.scripted import Scripted, names, rows, trainer


class Loud(engine.Callback):
    """Notes which hooks of the run itself were called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.called.append("setup")

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.called.append("on_fit_start")

    def on_train_batch_end(self, *_: Any) -> None:
        self.called.append("on_train_batch_end")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.called.append("teardown")


def test_the_trainer_is_as_before(tmp_path: Path) -> None:
    loud, net = Loud(), Scripted()
    fitted = trainer(tmp_path, loud, max_epochs=2)
    before = {**vars(fitted), "loaders": dict(fitted.loaders)}
    assert Tuner(fitted).lr_find(net, rows(), num_training=20) is not None
    assert dict(vars(fitted)) == before
    assert loud.called == ["setup", "teardown"]
    assert fitted.global_step == 0
    fitted.fit(net, rows())
    assert fitted.global_step == 14


def test_files_and_folders_of_the_real_run_are_not_touched(tmp_path: Path) -> None:
    saver = ModelCheckpoint(save_last=True)
    fitted = trainer(tmp_path, saver, logger=CSVLogger(tmp_path), max_epochs=1)
    Tuner(fitted).lr_find(Scripted(), rows(), num_training=15, update_attr=False)
    assert names(tmp_path) == []
    fitted.fit(Scripted(), rows())
    assert names(tmp_path / "lightning_logs" / "version_0" / "checkpoints") == ["epoch=0-step=7.ckpt", "last.ckpt"]


def test_tuning_after_training_keeps_what_was_trained(tmp_path: Path) -> None:
    net = Scripted()
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(net, rows())
    before = net.layer.weight.clone()
    Tuner(fitted).lr_find(net, rows(), num_training=15)
    assert bool((net.layer.weight == before).all())
    assert (fitted.global_step, fitted.current_epoch) == (7, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tuner: tuner.lr_find(Scripted(), rows(), method="test"), "only training"),
        (lambda tuner: tuner.scale_batch_size(Scripted(), method="train"), "accepted are fit"),
        (lambda tuner: tuner.scale_batch_size(Scripted(), dataloaders=rows()), "`train_dataloaders`"),
        (lambda tuner: tuner.scale_batch_size(Scripted(), rows(), method="validate"), "`dataloaders`"),
    ],
)
def test_calls_that_cannot_work(tmp_path: Path, call: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        call(Tuner(trainer(tmp_path)))


@pytest.mark.parametrize("finder", [LearningRateFinder, BatchSizeFinder])
def test_a_finder_in_the_trainer_is_enough(tmp_path: Path, finder: Any) -> None:
    tuner = Tuner(trainer(tmp_path, finder()))
    search = tuner.lr_find if finder is LearningRateFinder else tuner.scale_batch_size
    with pytest.raises(MisconfigurationException, match=finder.__name__):
        search(Scripted(), rows())


def test_a_trial_run_does_not_search(tmp_path: Path) -> None:
    net = Scripted()
    fitted = trainer(tmp_path, fast_dev_run=True)
    with pytest.warns(EngineWarning, match="fast_dev_run"):
        assert Tuner(fitted).lr_find(net, rows()) is None
    with pytest.warns(EngineWarning, match="fast_dev_run"):
        assert Tuner(fitted).scale_batch_size(net, rows()) is None
    assert net.lr == 0.05


def test_the_older_arguments_search_before_training(tmp_path: Path) -> None:
    net = Scripted(lr=77.0)
    with pytest.warns((EngineWarning, FutureWarning)):
        fitted = trainer(tmp_path, max_epochs=1, auto_lr_find=True)
    fitted.fit(net, rows())
    assert net.lr < 1.0
    assert fitted.global_step == 7


def test_both_paths_give_the_same_classes() -> None:
    from engine.tuner import lr_finder, tuning

    assert LearningRateFinder is lr_finder.LearningRateFinder
    assert engine.callbacks.lr_finder.LearningRateFinder is LearningRateFinder
    assert engine.callbacks.batch_size_finder.BatchSizeFinder is BatchSizeFinder
    assert tuning.Tuner is Tuner
