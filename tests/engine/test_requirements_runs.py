"""Requirements 39 to 60: what a Trainer does, and what is logged."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import Callback, seed_everything
from engine.callbacks import ModelCheckpoint
from engine.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader
from toys import BoringModel, Rows, loader, quiet_trainer

torchmetrics = pytest.importorskip("torchmetrics")


def test_r39_validate_without_arguments_uses_the_model_and_its_best_weights(tmp_path: Path) -> None:
    class GetsWorse(BoringModel):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 2:
                self.layer.weight.data += 5

        def val_dataloader(self) -> Any:
            return loader()

    model = GetsWorse()
    keep = ModelCheckpoint(tmp_path, monitor="val_loss")
    trainer = quiet_trainer(max_epochs=3, enable_checkpointing=True, callbacks=[keep])
    trainer.fit(model, loader())
    now = trainer.validate(model, verbose=False)[0]["val_loss"]
    best = trainer.validate(verbose=False)[0]["val_loss"]
    assert best == pytest.approx(float(keep.best_model_score), rel=1e-6)
    assert best < now


def test_r40_test_returns_a_list_of_dicts_and_takes_best(tmp_path: Path) -> None:
    model = BoringModel()
    keep = ModelCheckpoint(tmp_path, monitor="val_loss")
    trainer = quiet_trainer(max_epochs=2, enable_checkpointing=True, callbacks=[keep])
    trainer.fit(model, loader(), loader())
    result = trainer.test(model, loader(), ckpt_path="best", verbose=False)
    assert [list(one) for one in result] == [["test_loss"]]
    assert isinstance(result[0]["test_loss"], float)
    assert trainer.ckpt_path == keep.best_model_path


def test_r41_predict_returns_outputs_by_batch_and_by_loader() -> None:
    class Predicts(BoringModel):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return {"rows": batch.flatten().tolist(), "loader": dataloader_idx}

    one = DataLoader(Rows(3), batch_size=2)
    trainer = quiet_trainer()
    assert [o["rows"] for o in trainer.predict(Predicts(), one)] == [[0.0, 1.0], [2.0]]
    several = trainer.predict(Predicts(), [one, one])
    assert [[o["loader"] for o in outputs] for outputs in several] == [[0, 0], [1, 1]]
    assert trainer.predict(Predicts(), one, return_predictions=False) == []
    assert len(list(trainer.predict_iter(Predicts(), one))) == 2


def test_predict_iter_does_not_take_the_weights_that_an_earlier_call_began_with(tmp_path: Path) -> None:
    model, trainer = BoringModel(), quiet_trainer(max_epochs=1)
    trainer.fit(model, loader())
    trainer.save_checkpoint(tmp_path / "early.ckpt")
    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(model, loader(), ckpt_path=tmp_path / "early.ckpt")
    trained = model(loader().dataset[:][0])
    assert torch.equal(torch.cat(list(trainer.predict_iter(model, loader()))), trained)


def test_predict_iter_without_a_model_uses_the_weights_in_memory(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, monitor="train_loss", mode="max")
    trainer = quiet_trainer(max_epochs=3, callbacks=[saver], enable_checkpointing=True)
    trainer.fit(model := BoringModel(), loader())
    trained = model(loader().dataset[:][0])
    assert torch.equal(torch.cat(list(trainer.predict_iter(dataloaders=loader()))), trained)


def test_predict_reads_no_batch_beyond_its_limit() -> None:
    read: list[int] = []

    class Stream:
        def __iter__(self) -> Any:
            for number in range(5):
                read.append(number)
                yield [torch.ones(2, 4)]

    assert len(quiet_trainer(limit_predict_batches=2).predict(BoringModel(), Stream())) == 2
    assert read == [0, 1]


def test_r42_one_function_may_serve_validation_and_test() -> None:
    class Shared(BoringModel):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("loss", self.loss(batch))

        test_step = validation_step

    model, trainer = Shared(), quiet_trainer()
    assert trainer.validate(model, loader(10), verbose=False) == trainer.test(model, loader(10), verbose=False)


def _warm_up(optimizer: Any, steps: float) -> Any:
    lr = torch.optim.lr_scheduler
    warm = lr.LinearLR(optimizer, 0.1, total_iters=2)
    return lr.SequentialLR(optimizer, [warm, lr.CosineAnnealingLR(optimizer, int(steps) - 2)], [2])


SCHEDULES: dict[str, Any] = {
    "sequential": _warm_up,
    "lambda": lambda o, steps: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 - step / (2 * steps)),
    "one cycle": lambda o, steps: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=int(steps)),
}


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_r47_schedules_by_step_with_the_number_of_steps_to_come(name: str) -> None:
    class Scheduled(BoringModel):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            scheduler = SCHEDULES[name](optimizer, self.trainer.estimated_stepping_batches)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    rates: list[float] = []
    quiet_trainer(max_epochs=3, accumulate_grad_batches=2).fit(Scheduled(), loader(28), loader(4))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    scheduler, expected = SCHEDULES[name](optimizer, 12), []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 12:
            scheduler.step()
    assert rates == pytest.approx(expected)


def test_r50_the_same_seed_gives_equal_bits() -> None:
    class Random(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch) * (torch.rand(()) + random.random() + float(np.random.rand()))

    def train() -> torch.Tensor:
        seed_everything(7, workers=True)
        model = Random()
        quiet_trainer(max_epochs=2).fit(model, loader(shuffle=True), loader())
        return model.layer.weight.detach()

    assert torch.equal(train(), train())


def test_r51_a_fast_dev_run_touches_everything_and_writes_nothing(tmp_path: Path) -> None:
    model = BoringModel()
    trainer = quiet_trainer(
        fast_dev_run=2, max_epochs=9, enable_checkpointing=None, logger=True, default_root_dir=tmp_path
    )
    trainer.fit(model, loader(), loader())
    assert (trainer.global_step, trainer.current_epoch, trainer.num_val_batches) == (2, 1, [2])
    trainer.test(model, loader(), verbose=False)
    assert trainer.num_test_batches == [2]
    assert not list(tmp_path.iterdir())


def test_r51_overfitting_sees_the_same_rows_in_every_epoch() -> None:
    class Sees(BoringModel):
        rows: tuple[Any, ...] = ()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.rows = (*self.rows, batch.flatten().tolist())

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            pass

    model, data = Sees(), DataLoader(Rows(12), batch_size=2, shuffle=True)
    with pytest.warns(UserWarning, match="shuffling"):
        quiet_trainer(overfit_batches=1, max_epochs=3).fit(model, data, data)
    assert model.rows == ([0.0, 1.0],) * 3


class Logs(BoringModel):
    """Logs the index of each batch under the options it was made with."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.seen: list[dict[str, float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("x", float(batch_idx), **self.options)
        return self.loss(batch)

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen.append({name: float(value) for name, value in self.trainer.callback_metrics.items()})


def test_r52_a_short_run_leaves_points_everywhere() -> None:
    trainer = quiet_trainer()
    history = trainer.fit(Logs(), loader(), loader())
    assert history.points("x") == ([0, 2], [0.0, 2.0])
    assert trainer.logged_metrics["x"] == trainer.callback_metrics["x"] == 2


def test_r53_prog_bar_shows_a_value_in_the_bar_alone_where_asked() -> None:
    for shown in (True, False):
        trainer = quiet_trainer()
        trainer.fit(Logs(prog_bar=shown), loader(), loader())
        assert ("x" in trainer.progress_bar_metrics) is shown


def test_r54_logger_false_keeps_a_value_from_loggers_and_not_from_monitors() -> None:
    trainer = quiet_trainer()
    trainer.fit(Logs(logger=False), loader(), loader())
    assert "x" in trainer.callback_metrics
    assert "x" not in trainer.logged_metrics
    assert not any("x" in row for row in trainer.history_rows)


def test_r55_the_epochs_mean_is_weighted_by_batch_size() -> None:
    trainer = quiet_trainer()
    trainer.fit(Logs(on_step=False, on_epoch=True), loader(10), loader())
    assert float(trainer.callback_metrics["x"]) == pytest.approx((0 * 4 + 1 * 4 + 2 * 2) / 10)


def test_r56_both_give_three_names() -> None:
    model, trainer = Logs(on_step=True, on_epoch=True), quiet_trainer()
    trainer.fit(model, loader(), loader())
    assert {"x", "x_step", "x_epoch"} <= set(trainer.callback_metrics)
    assert [seen["x"] for seen in model.seen] == [0.0, 1.0, 2.0]
    assert float(trainer.callback_metrics["x"]) == float(trainer.callback_metrics["x_epoch"]) == 1.0
    assert {"x_step", "x_epoch"} <= set(trainer.logged_metrics)
    assert "x" not in trainer.logged_metrics


def test_r57_the_sample_of_the_articles_runs_as_it_stands() -> None:
    class Sample(BoringModel):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            self.log("test_loss", loss, on_step=True, on_epoch=True, prog_bar=True, logger=True)
            return loss

    result = quiet_trainer().test(Sample(), loader(), verbose=False)
    assert list(result[0]) == ["test_loss_epoch"]


class Classifies(BoringModel):
    """Logs torchmetrics objects and collections."""

    def __init__(self) -> None:
        super().__init__()
        made = {"mae": torchmetrics.MeanAbsoluteError(), "mse": torchmetrics.MeanSquaredError()}
        both = torchmetrics.MetricCollection(made, compute_groups=False)
        self.train_metrics, self.val_metrics = both.clone(prefix="train_"), both.clone(prefix="val_")
        self.largest = torchmetrics.MaxMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.train_metrics.update(self(batch[0]), batch[1])
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True)
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.val_metrics.update(self(batch[0]), batch[1])
        self.largest(batch[1].max())
        self.log_dict(self.val_metrics)
        self.log("largest", self.largest)


def test_r58_r59_torchmetrics_are_computed_over_the_epoch_and_reset() -> None:
    model, trainer, data = Classifies(), quiet_trainer(max_epochs=2), loader(10)
    trainer.fit(model, loader(), data)
    x, y = data.dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        error = (model(x) - y).abs().mean()
    assert torch.allclose(trainer.callback_metrics["val_mae"], error)
    assert float(trainer.callback_metrics["largest"]) == float(y.max())
    assert {"train_mae", "train_mse", "val_mse"} <= set(trainer.callback_metrics)
    assert model.val_metrics["mae"].total == 0


def test_a_callback_may_log_too() -> None:
    class Speaks(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            self.log("spoken", 1.0)  # type: ignore[attr-defined]

    trainer = quiet_trainer(callbacks=[Speaks()])
    trainer.fit(BoringModel(), loader(), loader())
    assert float(trainer.callback_metrics["spoken"]) == 1.0


def test_manual_accumulation_continues_exactly_from_the_middle_of_a_window(tmp_path: Path) -> None:
    class Manual(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            trainer.save_checkpoint(tmp_path / f"{batch_idx}.ckpt")

    def train(callbacks: Any = (), path: Any = None) -> Any:
        model = Manual()
        model.automatic_optimization = False
        trainer = quiet_trainer(accumulate_grad_batches=3, callbacks=list(callbacks))
        trainer.fit(model, loader(28), loader(4), ckpt_path=path)
        return model.layer.weight.detach(), trainer.global_step

    weight, steps = train([Save()])
    assert steps == 3
    for batch_idx in range(6):
        again = train(path=tmp_path / f"{batch_idx}.ckpt")
        assert torch.equal(again[0], weight)
        assert again[1] == steps


def test_r14_stage_hooks_come_in_order_around_the_epochs() -> None:
    seen: list[str] = []
    hooks = "setup on_fit_start on_train_start on_train_epoch_start on_train_epoch_end on_train_end on_fit_end teardown"
    methods = {name: lambda self, *args, name=name: seen.append(name) for name in hooks.split()}
    quiet_trainer(max_epochs=1, num_sanity_val_steps=0).fit(type("Tells", (BoringModel,), methods)(), loader())
    assert seen == hooks.split()


class Tunable(BoringModel):
    """A model with the attributes that the tuners set."""

    batch_size = 1

    def train_dataloader(self) -> Any:
        return loader(16, batch_size=self.batch_size)


def test_r43_the_batch_size_is_found_and_set() -> None:
    model = Tunable()
    found = Tuner(quiet_trainer()).scale_batch_size(model, max_trials=6, init_val=2)
    assert model.batch_size == found == 16


def test_r44_the_learning_rate_is_found_and_the_model_left_alone() -> None:
    model = Tunable()
    before = model.layer.weight.detach().clone()
    finder = Tuner(quiet_trainer()).lr_find(model, num_training=30)
    assert model.lr == finder.suggestion()
    assert torch.equal(model.layer.weight, before)


def test_r60_a_log_file_gets_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    quiet_trainer(max_epochs=2, enable_progress_bar=True).fit(BoringModel(), loader(40))
    captured = capsys.readouterr()
    lines = [line for line in (captured.out + captured.err).splitlines() if "Epoch" in line or "epoch" in line]
    assert 0 < len(lines) <= 8
    assert not any("\r" in line for line in lines)
