"""Every misuse raises its kind of error, with the remedy in the text, and the traceback ends with the user's line."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import Callback, LightningDataModule, LightningModule, Trainer
from engine.callbacks import EarlyStopping, GradientAccumulationScheduler, LearningRateMonitor, ModelCheckpoint
from engine.errors import MisconfigurationException
from engine.utilities import CombinedLoader
from torch import nn
from torch.optim import SGD
from torch.optim import lr_scheduler as S
from torch.utils.data import DataLoader
from toys import BoringModel, loader, quiet_trainer

Misuse = Callable[[Path], Any]
CASES: dict[str, tuple[Misuse, type[BaseException], str]] = {}


def misuse(kind: type[BaseException], remedy: str) -> Callable[[Misuse], Misuse]:
    """Register a misuse with the error it must raise and words of the remedy."""

    def register(function: Misuse) -> Misuse:
        CASES[function.__name__] = (function, kind, remedy)
        return function

    return register


def fit(folder: Path, model: Any = None, *data: Any, **options: Any) -> None:
    """Fit a model for one epoch on the user's behalf."""
    quiet_trainer(default_root_dir=folder, **{"max_epochs": 1, **options}).fit(
        model or BoringModel(), *(data or (loader(), loader()))
    )


def model_with(**methods: Any) -> Any:
    """A model with some methods of its own."""
    return type("Model", (BoringModel,), methods)()


# ---------------------------------------------------------------- the module


@misuse(MisconfigurationException, "Define `training_step")
def no_training_step(folder: Path) -> None:
    class Empty(LightningModule):
        def configure_optimizers(self) -> Any:
            return SGD([nn.Parameter(torch.ones(1))], 0.1)

    fit(folder, Empty())


@misuse(MisconfigurationException, "Return an optimizer")
def no_configure_optimizers(folder: Path) -> None:
    class Empty(LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    fit(folder, Empty())


@misuse(MisconfigurationException, "Return the loss as a tensor")
def training_step_returns_a_number(folder: Path) -> None:
    fit(folder, model_with(training_step=lambda self, batch, batch_idx: 0.5))


@misuse(MisconfigurationException, "under 'loss'")
def training_step_returns_a_dict_without_loss(folder: Path) -> None:
    fit(folder, model_with(training_step=lambda self, batch, batch_idx: {"los": self.loss(batch)}))


@misuse(RuntimeError, "`dataloader_idx=0`")
def several_loaders_and_no_index(folder: Path) -> None:
    step = lambda self, batch, batch_idx: None  # noqa: E731
    fit(folder, model_with(validation_step=step), loader(), [loader(), loader()])


@misuse(RuntimeError, "`dataloader_idx=0`")
def one_loader_and_an_index(folder: Path) -> None:
    def step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        pass

    fit(folder, model_with(validation_step=step))


@misuse(MisconfigurationException, "call its closure")
def optimizer_step_without_closure(folder: Path) -> None:
    def optimizer_step(self: Any, *args: Any, **kwargs: Any) -> None:
        pass

    fit(folder, model_with(optimizer_step=optimizer_step))


@misuse(MisconfigurationException, "automatic_optimization = False")
def manual_backward_under_automatic(folder: Path) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.manual_backward(self.loss(batch))

    fit(folder, model_with(training_step=training_step))


@misuse(MisconfigurationException, "one of the two places")
def clipping_that_differs(folder: Path) -> None:
    def configure_gradient_clipping(self: Any, optimizer: Any, **clipping: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.1)

    fit(folder, model_with(configure_gradient_clipping=configure_gradient_clipping), gradient_clip_val=0.5)


@misuse(RuntimeError, "Pass it to")
def trainer_of_a_free_module(folder: Path) -> None:
    _ = BoringModel().trainer


@misuse(TypeError, "on the class")
def load_from_checkpoint_on_an_instance(folder: Path) -> None:
    BoringModel().load_from_checkpoint("x.ckpt")


# ---------------------------------------------------------------- optimizers


def _configured(returned: Callable[[Any], Any]) -> Misuse:
    def case(folder: Path) -> None:
        fit(folder, model_with(configure_optimizers=lambda self: returned(SGD(self.parameters(), 0.1))))

    return case


class Own:
    """A scheduler that is not torch's."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


for _name, _returned, _remedy in [
    ("a_text", lambda o: "sgd", "Accepted are"),
    ("plateau_without_monitor", lambda o: ([o], [S.ReduceLROnPlateau(o)]), "'monitor': 'val_loss'"),
    (
        "another_optimizers_scheduler",
        lambda o: ([o], [S.StepLR(SGD([nn.Parameter(torch.ones(1))], 1.0), 1)]),
        "Return that optimizer",
    ),
    ("own_scheduler", lambda o: ([o], [Own(o)]), "Override `lr_scheduler_step"),
    ("wrong_interval", lambda o: ([o], [{"scheduler": S.StepLR(o, 1), "interval": "batch"}]), "'epoch' and 'step'"),
    ("wrong_frequency", lambda o: ([o], [{"scheduler": S.StepLR(o, 1), "frequency": 0}]), "from 1"),
    (
        "plateau_of_an_unknown_metric",
        lambda o: {"optimizer": o, "lr_scheduler": S.ReduceLROnPlateau(o), "monitor": "nowhere"},
        "Log it",
    ),
]:
    CASES[f"configure_{_name}"] = (_configured(_returned), MisconfigurationException, _remedy)


# ---------------------------------------------------------------- self.log


def _logged(hook: str, *args: Any, **options: Any) -> Misuse:
    def case(folder: Path) -> None:
        def own(self: Any, *rest: Any) -> Any:
            self.log(*args, **options)
            return self.loss(rest[0]) if hook == "training_step" else None

        fit(folder, model_with(**{hook: own}))

    return case


for _name, _case, _error, _remedy in [
    ("a_text", _logged("training_step", "x", "text"), ValueError, "Accepted are"),
    ("a_dict", _logged("training_step", "x", {"a": 1}), ValueError, "flatten"),
    ("a_vector", _logged("training_step", "x", torch.ones(2)), ValueError, "value.mean()"),
    ("in_on_fit_start", _logged("on_fit_start", "x", 1.0), MisconfigurationException, "Log in training"),
    ("in_on_train_end", _logged("on_train_end", "x", 1.0), MisconfigurationException, "self.logger"),
    (
        "on_step_at_an_epochs_end",
        _logged("on_train_epoch_end", "x", 1.0, on_step=True),
        MisconfigurationException,
        "leave both out",
    ),
    (
        "neither_step_nor_epoch",
        _logged("training_step", "x", 1.0, on_step=False, on_epoch=False),
        MisconfigurationException,
        "Set one",
    ),
    ("own_reduction", _logged("training_step", "x", 1.0, reduce_fx=sorted), MisconfigurationException, "torchmetrics"),
    (
        "a_name_with_index",
        _logged("validation_step", "x/dataloader_idx_0", 1.0),
        MisconfigurationException,
        "Use another name",
    ),
]:
    CASES[f"log_{_name}"] = (_case, _error, _remedy)


@misuse(MisconfigurationException, "use two names")
def log_twice_differently(folder: Path) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("x", 1.0)
        self.log("x", 2.0, prog_bar=True)
        return self.loss(batch)

    fit(folder, model_with(training_step=training_step))


@misuse(MisconfigurationException, "its own name")
def log_two_loaders_under_one_name(folder: Path) -> None:
    def validation_step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("x", 1.0, add_dataloader_idx=False)

    fit(folder, model_with(validation_step=validation_step), loader(), [loader(), loader()])


@misuse(MisconfigurationException, "use two names")
def log_a_metric_and_a_number_under_one_name(folder: Path) -> None:
    from torchmetrics import MeanMetric

    model = model_with(on_train_start=lambda self: (self.log("x", self.metric), self.log("x", 1.0)))
    model.metric = MeanMetric()
    model.metric.update(1.0)
    fit(folder, model)


@misuse(MisconfigurationException, "as `self.accuracy")
def log_a_metric_that_is_no_attribute(folder: Path) -> None:
    from torchmetrics import MeanMetric

    fit(folder, model_with(on_train_start=lambda self: self.log("x", MeanMetric())))


# ---------------------------------------------------------------- the Trainer's arguments


def _made(**options: Any) -> Misuse:
    def case(folder: Path) -> None:
        Trainer(**{"logger": False, "default_root_dir": folder, "accelerator": "cpu", **options})

    return case


for _options, _error, _remedy in [
    ({"devices": 0}, MisconfigurationException, "devices"),
    ({"devices": []}, MisconfigurationException, "devices"),
    ({"accelerator": "gpux"}, MisconfigurationException, "Did you mean `gpu`"),
    ({"max_epochs": -2}, MisconfigurationException, "-1 for no limit"),
    ({"max_steps": -2}, MisconfigurationException, "accepted"),
    ({"min_epochs": []}, MisconfigurationException, "'10ep'"),
    ({"min_steps": 2.5}, MisconfigurationException, "'500ba'"),
    ({"log_every_n_steps": -3}, MisconfigurationException, "'50ba'"),
    ({"limit_train_batches": 1.5}, MisconfigurationException, "share"),
    ({"limit_val_batches": -1}, MisconfigurationException, "accepted"),
    ({"overfit_batches": 2.5}, MisconfigurationException, "accepted"),
    ({"val_check_interval": 1.5}, MisconfigurationException, "accepted"),
    ({"check_val_every_n_epoch": None, "val_check_interval": 0.5}, MisconfigurationException, "whole number"),
    ({"accumulate_grad_batches": 0}, MisconfigurationException, "from 1"),
    ({"gradient_clip_algorithm": "normal"}, MisconfigurationException, "'norm' and 'value'"),
    ({"gradient_clip_val": "big"}, TypeError, "number"),
    ({"fast_dev_run": -1}, MisconfigurationException, "accepted"),
    ({"fast_dev_run": "0ba"}, MisconfigurationException, "from 1"),
    ({"deterministic": "maybe"}, MisconfigurationException, "'warn'"),
    ({"matmul_precision": "tf32"}, MisconfigurationException, "'high' (TF32)"),
    ({"precision": "float8-mixed"}, MisconfigurationException, "emulate=True"),
    ({"precision": 7}, (MisconfigurationException, ValueError), "32"),
    ({"profiler": "fast"}, MisconfigurationException, "simple"),
    ({"strategy": "ddpp"}, (MisconfigurationException, ValueError), "ddp"),
    ({"barebones": True, "fast_dev_run": True}, ValueError, "Leave them out"),
    ({"enable_checkpointing": False, "callbacks": ModelCheckpoint()}, MisconfigurationException, "Leave one"),
    ({"max_epoch": 3}, TypeError, "Did you mean `max_epochs`"),
    ({"callbacks": [ModelCheckpoint(), ModelCheckpoint()]}, RuntimeError, "different settings"),
]:
    CASES["trainer_" + "_".join(_options) + f"_{len(CASES)}"] = (_made(**_options), _error, _remedy)  # type: ignore[assignment]


@misuse(TypeError, "keyword arguments only")
def trainer_with_positional_arguments(folder: Path) -> None:
    Trainer("cpu")  # type: ignore[misc]


# ---------------------------------------------------------------- data


@misuse(MisconfigurationException, "Pass one of them")
def loader_and_data_module(folder: Path) -> None:
    quiet_trainer(default_root_dir=folder).fit(BoringModel(), loader(), datamodule=LightningDataModule())


@misuse(MisconfigurationException, "Pass a loader")
def no_training_data(folder: Path) -> None:
    quiet_trainer(default_root_dir=folder).fit(BoringModel())


@misuse(MisconfigurationException, "Pass a loader")
def no_test_data(folder: Path) -> None:
    quiet_trainer(default_root_dir=folder).test(BoringModel())


@misuse(TypeError, "Return a loader")
def loader_method_returns_none(folder: Path) -> None:
    quiet_trainer(default_root_dir=folder).fit(model_with(train_dataloader=lambda self: None))


@misuse(TypeError, "Accepted are")
def a_number_for_a_loader(folder: Path) -> None:
    fit(folder, None, 3)


@misuse(MisconfigurationException, "batch_size=n")
def batches_without_a_tensor(folder: Path) -> None:
    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("x", 1.0)

    fit(folder, model_with(validation_step=validation_step), loader(), DataLoader(["a", "b"]))  # type: ignore[arg-type]


@misuse(MisconfigurationException, "Use at least")
def a_share_that_leaves_nothing(folder: Path) -> None:
    fit(folder, limit_train_batches=0.1)


@misuse(ValueError, "Use at most")
def an_interval_longer_than_the_epoch(folder: Path) -> None:
    fit(folder, val_check_interval=50)


@misuse(MisconfigurationException, "number of batches")
def a_share_of_an_unknown_length(folder: Path) -> None:
    fit(folder, None, iter(list(loader())), loader(), val_check_interval=0.5)


@misuse(ValueError, "accepted are")
def an_unknown_mode(folder: Path) -> None:
    CombinedLoader([loader()], "longest")


@misuse(ValueError, "max_size_cycle")
def training_one_loader_after_the_other(folder: Path) -> None:
    fit(folder, None, CombinedLoader([loader()], "sequential"), loader())


# ---------------------------------------------------------------- calls and callbacks


@misuse(FileNotFoundError, "Check the path")
def a_missing_checkpoint(folder: Path) -> None:
    quiet_trainer(default_root_dir=folder).test(BoringModel(), loader(), ckpt_path=folder / "none.ckpt")


@misuse(ValueError, "Add one")
def best_without_a_checkpoint_callback(folder: Path) -> None:
    quiet_trainer(default_root_dir=folder).test(BoringModel(), loader(), ckpt_path="best")


@misuse(TypeError, "Pass it")
def a_call_without_a_model(folder: Path) -> None:
    quiet_trainer(default_root_dir=folder).test(dataloaders=loader())


@misuse(TypeError, "subclassing")
def a_plain_module(folder: Path) -> None:
    quiet_trainer(default_root_dir=folder).fit(nn.Linear(1, 1), loader())


@misuse(RuntimeError, "Log it")
def early_stopping_without_its_metric(folder: Path) -> None:
    fit(folder, callbacks=[EarlyStopping("nowhere")])


@misuse(MisconfigurationException, "Log it")
def checkpoint_without_its_metric(folder: Path) -> None:
    fit(folder, callbacks=[ModelCheckpoint(folder, monitor="nowhere")], enable_checkpointing=True)


@misuse(MisconfigurationException, "Add a `monitor`")
def several_best_of_no_metric(folder: Path) -> None:
    ModelCheckpoint(save_top_k=3)


@misuse(MisconfigurationException, "Keep one")
def two_triggers(folder: Path) -> None:
    ModelCheckpoint(every_n_epochs=1, every_n_train_steps=2)


@misuse(MisconfigurationException, "Give the Trainer a logger")
def rates_without_a_logger(folder: Path) -> None:
    fit(folder, callbacks=[LearningRateMonitor()])


@misuse(MisconfigurationException, "accumulate_grad_batches")
def two_accumulations(folder: Path) -> None:
    fit(folder, callbacks=[GradientAccumulationScheduler({1: 2})], accumulate_grad_batches=2)


@misuse(KeyError, "load_from_checkpoint")
def resuming_from_weights_only(folder: Path) -> None:
    trainer = quiet_trainer(default_root_dir=folder, max_epochs=1)
    trainer.fit(BoringModel(), loader())
    trainer.save_checkpoint(folder / "w.ckpt", weights_only=True)
    quiet_trainer(default_root_dir=folder, max_epochs=2).fit(BoringModel(), loader(), ckpt_path=folder / "w.ckpt")


@misuse(MisconfigurationException, "Set `max_epochs`")
def resuming_beyond_max_epochs(folder: Path) -> None:
    trainer = quiet_trainer(default_root_dir=folder, max_epochs=2)
    trainer.fit(BoringModel(), loader())
    trainer.save_checkpoint(folder / "w.ckpt")
    quiet_trainer(default_root_dir=folder, max_epochs=1).fit(BoringModel(), loader(), ckpt_path=folder / "w.ckpt")


@pytest.mark.parametrize("name", CASES)
def test_misuse_says_what_to_do_and_ends_with_the_users_line(tmp_path: Path, name: str) -> None:
    case, kind, remedy = CASES[name]
    with pytest.raises(kind) as caught:
        case(tmp_path)
    assert remedy in str(caught.value)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert last.filename == __file__, last
    assert sys.gettrace() is None


def test_the_last_line_is_where_the_mistake_is(tmp_path: Path) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("x", "text")

    with pytest.raises(ValueError, match="Accepted") as caught:
        fit(tmp_path, model_with(training_step=training_step))
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "training_step"


def test_an_error_of_the_users_code_keeps_its_traceback(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            torch.ones(2) @ torch.ones(3)

    with pytest.raises(RuntimeError) as caught:
        fit(tmp_path, callbacks=[Fails()])
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "train_epoch" not in frames
    assert frames[-1] == "on_train_start"
    assert "_fit" in frames


def test_a_fault_of_the_engine_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = quiet_trainer(default_root_dir=tmp_path, max_epochs=1)
    monkeypatch.setattr(trainer, "progress", None)
    with pytest.raises(AttributeError) as caught:
        trainer.fit(BoringModel(), loader())
    assert "engine" in traceback.extract_tb(caught.value.__traceback__)[-1].filename


def test_what_a_callback_raises_says_whose_it_is_and_in_which_hook() -> None:
    class Careless(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as raised:
        quiet_trainer(callbacks=[Careless()]).fit(BoringModel(), loader())
    (note,) = raised.value.__notes__
    assert "Careless" in note
    assert "on_train_epoch_start" in note
