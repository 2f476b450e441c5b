"""Mistakes of the user: what is raised, that the text holds the remedy, and where the traceback ends."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import Callback, LightningDataModule, LightningModule, Trainer
from engine.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar
from engine.errors import EngineWarning, MisconfigurationException
from engine.verify import closest_hook
from torch.optim.lr_scheduler import StepLR
from toys import BoringModel, loader, quiet_trainer


class Bare(LightningModule):
    """Has nothing."""


def with_step(step: Callable[[Any], Any]) -> BoringModel:
    """Return a model whose `training_step` is `step(model)`."""

    class Model(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            returned = step(self)
            return loss if returned is None else returned

    return Model()


def with_optimizers(make: Callable[[Any], Any]) -> BoringModel:
    """Return a model whose `configure_optimizers` is `make(model)`."""

    class Model(BoringModel):
        def configure_optimizers(self) -> Any:
            return make(self)

    return Model()


def fit(model: Any, **options: Any) -> None:
    quiet_trainer(**options).fit(model, loader(), loader(4))


def sgd(model: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


def plateau(model: Any) -> Any:
    optimizer = sgd(model)
    return [optimizer], [torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)]


def of_another(model: Any) -> Any:
    return [sgd(model)], [torch.optim.lr_scheduler.StepLR(sgd(model), 1)]


class OwnScheduler:
    """Not one of torch's."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Never(BoringModel):
    """An `optimizer_step` that forgets its closure."""

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        pass


class NeedsIndex(BoringModel):
    """Requires an index that one loader does not give."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> Any:
        pass


def in_setup() -> BoringModel:
    model = BoringModel()
    model.setup = lambda stage: model.log("x", 1.0)  # type: ignore[method-assign]
    return model


def log(*args: Any, **kwargs: Any) -> BoringModel:
    return with_step(lambda model: model.log(*args, **kwargs))


M = MisconfigurationException
MISUSES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no training_step": (lambda: fit(Bare()), M, r"Define `training_step\(self, batch, batch_idx\)`"),
    "no configure_optimizers": (
        lambda: fit(type("Half", (Bare,), {"training_step": lambda self, batch: None})()), M, r"torch\.optim\.AdamW",
    ),
    "no test_step": (lambda: quiet_trainer().test(Bare(), loader()), M, "Define `test_step"),
    "no validation_step": (lambda: quiet_trainer().validate(Bare(), loader()), M, "Define `validation_step"),
    "no training data": (lambda: quiet_trainer().fit(BoringModel()), M, "train_dataloader"),
    "no test data": (lambda: quiet_trainer().test(BoringModel()), M, "test_dataloader"),
    "no data to predict": (lambda: quiet_trainer().predict(BoringModel()), M, "predict_dataloader"),
    "no model": (lambda: quiet_trainer().test(), TypeError, r"trainer\.test\(model\)"),
    "a plain nn.Module": (lambda: fit(torch.nn.Linear(1, 1)), TypeError, "LightningModule"),
    "loaders and data module": (
        lambda: quiet_trainer().fit(BoringModel(), loader(), datamodule=LightningDataModule()), M, "Pass one of them",
    ),
    "the class of a loader": (lambda: quiet_trainer().fit(BoringModel(), 3), TypeError, "cannot be walked"),
    "step returns a list": (lambda: fit(with_step(lambda m: [1])), M, "Return the loss as a tensor"),
    "step returns a dict without loss": (lambda: fit(with_step(lambda m: {"a": 1})), M, "under 'loss'"),
    "several loaders, no dataloader_idx": (
        lambda: quiet_trainer().validate(BoringModel(), [loader(), loader()]), RuntimeError, "Add `dataloader_idx=0`",
    ),
    "one loader, dataloader_idx required": (lambda: fit(NeedsIndex()), RuntimeError, "dataloader_idx=0"),
    "optimizers of no kind": (lambda: fit(with_optimizers(lambda m: 3)), M, "Accepted are an optimizer"),
    "plateau without monitor": (lambda: fit(with_optimizers(plateau)), M, "'monitor': 'val_loss'"),
    "scheduler of another optimizer": (lambda: fit(with_optimizers(of_another)), M, "Return that optimizer as well"),
    "own scheduler": (
        lambda: fit(with_optimizers(lambda m: ([sgd(m)], [OwnScheduler()]))), M, "Override `lr_scheduler_step",
    ),
    "closure not called": (lambda: fit(Never()), M, r"optimizer\.step\(closure=optimizer_closure\)"),
    "manual_backward in automatic mode": (
        lambda: fit(with_step(lambda m: m.manual_backward(torch.ones(())))), M, "automatic_optimization = False",
    ),
    "clip value differs": (
        lambda: fit(with_step(lambda m: m.clip_gradients(sgd(m), 0.3)), gradient_clip_val=0.5), M, "one of the two",
    ),
    "vector logged": (lambda: fit(log("x", torch.ones(3))), ValueError, r"value\.mean\(\)"),
    "dict logged": (lambda: fit(log("x", {"a": 1})), ValueError, "flatten"),
    "text logged": (lambda: fit(log("x", "a")), ValueError, "Accepted are numbers"),
    "neither step nor epoch": (lambda: fit(log("x", 1.0, on_step=False, on_epoch=False)), M, "Set one of them"),
    "own reduction": (lambda: fit(log("x", 1.0, reduce_fx=lambda v: v)), M, r"torchmetrics\.Metric"),
    "reserved name": (lambda: fit(log("x/dataloader_idx_0", 1.0)), M, "add_dataloader_idx=False"),
    "logged in setup": (lambda: fit(in_setup()), M, "Log in"),
    "limit above one": (lambda: quiet_trainer(limit_train_batches=1.5), M, "share from 0.0 to 1.0"),
    "negative epochs": (lambda: quiet_trainer(max_epochs=-2), M, "-1 for no limit"),
    "interval above the epoch": (
        lambda: fit(BoringModel(), val_check_interval=99), ValueError, "check_val_every_n_epoch=None",
    ),
    "accumulate nothing": (lambda: quiet_trainer(accumulate_grad_batches=0), M, "GradientAccumulationScheduler"),
    "unknown clipping": (lambda: quiet_trainer(gradient_clip_algorithm="x"), M, "'norm' and 'value'"),
    "checkpoint refused and given": (
        lambda: quiet_trainer(callbacks=[ModelCheckpoint()], enable_checkpointing=False), M, "Leave one of them out",
    ),
    "barebones with a logger": (
        lambda: Trainer(barebones=True, logger=True, accelerator="cpu"), ValueError, "leave barebones out",
    ),
    "no devices": (lambda: quiet_trainer(devices=0), M, "devices"),
    "a device that is not there": (lambda: quiet_trainer(accelerator="tpu"), M, "cpu"),
    "best without checkpoints": (
        lambda: quiet_trainer().test(BoringModel(), loader(), ckpt_path="best"), ValueError, "ModelCheckpoint",
    ),
    "a file that is not there": (
        lambda: quiet_trainer().test(BoringModel(), loader(), ckpt_path="no.ckpt"), FileNotFoundError, r"no\.ckpt",
    ),
    "positional arguments": (lambda: Trainer(3), TypeError, r"Trainer\(max_epochs=10\)"),  # type: ignore[misc]
    "no nodes": (lambda: quiet_trainer(num_nodes=0), M, "from 1"),
    "a plugin of no kind": (lambda: quiet_trainer(plugins="ddp_sharded"), M, r"plugins\.Precision"),
    "loaders reloaded backwards": (lambda: quiet_trainer(reload_dataloaders_every_n_epochs=-1), M, "0 for never"),
    "two progress bars": (
        lambda: Trainer(callbacks=[TQDMProgressBar(), RichProgressBar()], logger=False, max_epochs=1), M, "Keep one",
    ),
    "nothing that predicts": (lambda: quiet_trainer().predict(Bare(), loader()), M, "Define one of them"),
    "scheduler in place of an optimizer": (
        lambda: fit(with_optimizers(lambda m: (lambda o: (o, StepLR(o, 1)))(sgd(m)))), M, "a list of optimizers",
    ),
    "nothing to save": (lambda: quiet_trainer().save_checkpoint("x"), AttributeError, "first"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", list(MISUSES))
def test_a_misuse_raises_its_kind_of_error_with_the_remedy(name: str) -> None:
    call, kind, remedy = MISUSES[name]
    with pytest.raises(kind, match=remedy):
        call()


SPELLINGS = {
    "trainning_step": "training_step", "val_dataloder": "val_dataloader", "valid_step": "validation_step",
    "validaton_step": "validation_step", "configure_optimizer": "configure_optimizers",
    "on_train_epoch_ends": "on_train_epoch_end", "on_validation_epoch_strat": "on_validation_epoch_start",
    "train_step": "training_step", "predict_dataloders": "predict_dataloader", "setupp": "setup",
    "my_own_method": None, "accuracy": None, "encode": None, "training_loss": None, "sample": None, "load_data": None,
    "step": None, "set_up": "setup", "test": None, "tear_down": "teardown", "on_batch_end": "on_train_batch_end",
}  # fmt: skip


@pytest.mark.parametrize("name", list(SPELLINGS))
def test_r21_misspelt_hooks_are_reported_and_others_are_not(name: str) -> None:
    model = type("Mine", (BoringModel,), {name: lambda self, *args: None})()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer(fast_dev_run=True).fit(model, loader(), loader(4))
    texts = [str(w.message) for w in caught if name in str(w.message)]
    meant = SPELLINGS[name]
    assert len(texts) == (meant is not None)
    assert all(f"Did you mean `{meant}`" in text for text in texts)


def test_r21_callbacks_and_data_modules_are_looked_at_too() -> None:
    old = {"on_epoch_end": lambda self, *args: None}
    callback = type("Mine", (Callback,), {"on_train_batch_ends": lambda self: None, **old})()
    data = type("Data", (LightningDataModule,), {"train_dataloader": lambda s: loader(), "val_loader": None,
                                                 "test_dataloder": lambda s: None})()  # fmt: skip
    with pytest.warns(EngineWarning) as caught:
        quiet_trainer(callbacks=[callback]).fit(BoringModel(), data)
    text = " ".join(str(w.message) for w in caught)
    assert "`Mine.on_train_batch_ends` is never called. Did you mean `on_train_batch_end`?" in text
    assert "Did you mean `test_dataloader`?" in text
    assert "`Mine.on_epoch_end` is never called. Did you mean `on_train_epoch_end`?" in text


def test_no_hook_is_a_misspelling_of_another() -> None:
    hooks = [name for name in dir(LightningModule) if name.startswith("on_")]
    assert all(closest_hook(name, hooks) == name for name in hooks)


PLACES = (
    "training_step", "validation_step", "configure_optimizers", "setup", "on_train_start", "on_train_epoch_end",
    "on_before_optimizer_step", "train_dataloader", "forward", "on_after_batch_transfer",
)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_the_last_frame_of_a_users_error_is_the_users_line(place: str) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("mine")

    model = type("Mine", (BoringModel,), {place: fails})()
    with pytest.raises(RuntimeError, match="mine") as caught:
        quiet_trainer().fit(model, None if place == "train_dataloader" else loader(), loader(4))
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert Path(frames[-1].filename) == Path(__file__)
    assert frames[-1].line == 'raise RuntimeError("mine")'
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ is False


@pytest.mark.parametrize("value", ["x", torch.ones(2), {"a": 1.0}])
def test_a_wrong_call_of_log_shows_the_users_line(value: Any) -> None:
    with pytest.raises(ValueError, match=r"self\.log") as caught:
        fit(log("metric", value))
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert any(Path(frame.filename) == Path(__file__) and "model.log(" in (frame.line or "") for frame in frames)
