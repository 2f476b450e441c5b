"""What is out of the ordinary in a training: None for a batch, metrics of several numbers, late requests to stop."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torchmetrics
from engine import Callback, LightningDataModule
from engine.callbacks import EarlyStopping, LambdaCallback, ModelCheckpoint
from engine.loggers import CSVLogger
from engine.utilities import grad_norm
from torch.utils.data import DataLoader
from toys import BoringModel, dataset, loader, quiet_trainer


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("window", [1, 2])
def test_a_batch_that_is_none_is_skipped(window: int) -> None:
    given = iter(range(5))

    def collate(rows: Any) -> Any:
        return None if next(given) == 2 else torch.utils.data.default_collate(rows)

    calls: list[Any] = []

    class Notes(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            calls.append(batch_idx)
            return super().training_step(batch, batch_idx)

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            assert batch is not None

    trainer = quiet_trainer(accumulate_grad_batches=window)
    trainer.fit(Notes(), DataLoader(dataset(20), 4, collate_fn=collate))
    assert calls == [0, 1, 3, 4]
    assert trainer.global_step == {1: 4, 2: 3}[window]


class ByClass(BoringModel):
    """Logs a torchmetrics object that computes one number for each class."""

    def __init__(self, **flags: Any) -> None:
        super().__init__()
        self.flags = flags
        self.recall = torchmetrics.classification.MulticlassRecall(3, average=None)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.recall.update(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2]))
        self.log("recall", self.recall, on_step=False, on_epoch=True, **self.flags)


@pytest.mark.parametrize("flags", [{}, {"logger": False}])
def test_a_metric_of_several_numbers_can_be_read_where_no_logger_writes_it(
    flags: dict[str, Any], tmp_path: Any
) -> None:
    trainer = quiet_trainer(logger=CSVLogger(tmp_path) if flags else False)
    trainer.fit(ByClass(**flags), loader(), loader())
    assert trainer.callback_metrics["recall"].tolist() == [1.0, 0.5, 1.0]
    assert trainer.validate(ByClass(**flags), loader(), verbose=False) == [{}]


def test_a_logger_refuses_a_metric_of_several_numbers(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"`recall` has the shape \(3,\).*under its own name"):
        quiet_trainer(logger=CSVLogger(tmp_path)).fit(ByClass(), loader(), loader())


def test_a_nan_is_not_hidden_by_max_and_min() -> None:
    class Logs(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for name in ("max", "min"):
                value = float("nan") if batch_idx == 1 else float(batch_idx)
                self.log(name, value, on_step=False, on_epoch=True, reduce_fx=name)
            return super().training_step(batch, batch_idx)

    trainer = quiet_trainer()
    trainer.fit(Logs(), loader(12))
    assert all(torch.isnan(trainer.callback_metrics[name]) for name in ("max", "min"))


def test_a_stop_asked_for_as_an_epoch_starts_trains_no_batch() -> None:
    def stop(trainer: Any, module: Any) -> None:
        trainer.should_stop = trainer.current_epoch == 1

    ends: list[int] = []
    callback = LambdaCallback(on_train_epoch_start=stop, on_train_epoch_end=lambda t, m: ends.append(t.current_epoch))
    trainer = quiet_trainer(max_epochs=3, callbacks=[callback])
    trainer.fit(BoringModel(), loader(12))
    assert (trainer.global_step, ends) == (3, [0, 1])


@pytest.mark.parametrize("up", [0.0, 1e6])
def test_the_first_validation_by_the_clock_comes_after_its_interval(up: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + up)  # a machine that has been up for long
    validations: list[int] = []
    callback = LambdaCallback(on_validation_start=lambda t, m: validations.append(t.global_step))
    trainer = quiet_trainer(val_check_interval="00:01:00:00", num_sanity_val_steps=0, callbacks=[callback])
    trainer.fit(BoringModel(), loader(), loader())
    assert validations == []


def test_reloaded_loaders_are_those_of_the_epoch() -> None:
    seen: list[tuple[int, int]] = []

    class Grows(BoringModel):
        def train_dataloader(self) -> Any:
            return loader(4 * (self.current_epoch + 1))

        def val_dataloader(self) -> Any:
            return loader(4 * (self.current_epoch + 1))

        def on_train_epoch_end(self) -> None:
            seen.append((self.global_step, self.trainer.num_val_batches[0]))

    quiet_trainer(max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(Grows())
    assert seen == [(1, 1), (3, 2), (6, 3)]


def test_every_loader_has_its_dictionary_the_empty_ones_too() -> None:
    class Logs(BoringModel):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("loss", self.loss(batch))

    trainer = quiet_trainer()
    found = trainer.validate(Logs(), [loader(0), loader(), loader(0)], verbose=False)
    assert [list(values) for values in found] == [[], ["loss/dataloader_idx_1"], []]


def test_a_list_of_plain_values_is_one_loader() -> None:
    seen: list[Any] = []

    class Numbers(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(batch)
            return self.layer.weight.sum()

    quiet_trainer().fit(Numbers(), [1, 2.5])
    quiet_trainer().fit(Numbers(), [[1, 2], ["a", "b"]])
    assert seen == [1, 2.5, [1, "a"], [2, "b"]]


class Patient(EarlyStopping):
    """A subclass of the team's."""


def test_callbacks_of_the_module_replace_those_of_their_class_and_of_its_parents() -> None:
    class Brings(BoringModel):
        def configure_callbacks(self) -> list[Callback]:
            return [Patient("train_loss"), LambdaCallback()]

    given = [EarlyStopping("train_loss"), LambdaCallback(), Callback()]
    trainer = quiet_trainer(callbacks=given)
    trainer.fit(Brings(), loader())
    assert [type(callback) for callback in trainer.callbacks] == [Callback, Patient, LambdaCallback]

    class BringsTheParent(BoringModel):
        def configure_callbacks(self) -> Callback:
            return EarlyStopping("train_loss", patience=9)

    trainer = quiet_trainer(callbacks=[Patient("train_loss")])
    trainer.fit(BringsTheParent(), loader())
    assert [type(callback) for callback in trainer.callbacks] == [Patient, EarlyStopping]


def test_extras_of_a_step_reach_callbacks_as_they_are() -> None:
    class Returns(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self.loss(batch), "output": self(batch[0])}

    outputs: list[Any] = []
    callback = LambdaCallback(on_train_batch_end=lambda t, m, outs, batch, index: outputs.append(outs))
    quiet_trainer(callbacks=[callback], accumulate_grad_batches=3).fit(Returns(), loader(4))
    assert outputs[0]["output"].requires_grad
    assert not outputs[0]["loss"].requires_grad


def test_module_and_data_module_must_agree_on_a_hyper_parameter(tmp_path: Any) -> None:
    class Data(LightningDataModule):
        def __init__(self, lr: float = 0.5) -> None:
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self) -> Any:
            return loader()

    class Model(BoringModel):
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()

    with pytest.raises(RuntimeError, match="different values of the hyper-parameter"):
        quiet_trainer(logger=CSVLogger(tmp_path)).fit(Model(), datamodule=Data())
    quiet_trainer(logger=CSVLogger(tmp_path), callbacks=[ModelCheckpoint(tmp_path)], enable_checkpointing=True).fit(
        Model(lr=0.5), datamodule=Data()
    )


@pytest.mark.parametrize(("order", "name"), [(2, "2.0"), ("inf", "inf"), (1.0, "1.0")])
def test_norms_of_gradients_have_the_names_of_the_reference(order: Any, name: str) -> None:
    layer = torch.nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    norms = grad_norm(layer, order)
    assert list(norms) == [f"grad_{name}_norm/weight", f"grad_{name}_norm/bias", f"grad_{name}_norm_total"]
    weight, bias = (norms[f"grad_{name}_norm/{part}"] for part in ("weight", "bias"))
    assert norms[f"grad_{name}_norm_total"] == torch.stack([weight, bias]).norm(float(order))


@pytest.mark.parametrize("parity", [None, "lightning"])
def test_an_anomaly_is_detected_where_it_arises(parity: str | None) -> None:
    class Spoils(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return (self.layer.weight * 0).sqrt().sum()  # a sound loss; its gradient is 0 * inf

    with pytest.raises(RuntimeError, match=r"MulBackward0.*nan"):
        quiet_trainer(detect_anomaly=True, parity=parity).fit(Spoils(), loader())
    assert not torch.is_anomaly_enabled()
    quiet_trainer(parity=parity).fit(Spoils(), loader(4))
