"""The learning rate finder: curve, suggestion, what is set, and what is not changed."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import engine
import pytest
import torch
from engine.callbacks import LearningRateFinder
from engine.errors import EngineWarning, MisconfigurationException, MissingExtraError
from engine.tuner import LRFinder, Tuner

from tests.engine.callbacks.scripted import Scripted, names, rows, trainer

SWEEP: dict[str, Any] = {"min_lr": 1e-4, "max_lr": 1.0, "num_training_steps": 30, "early_stop_threshold": None}


def curve(losses: list[float], mode: str = "exponential") -> LRFinder:
    finder = LRFinder(mode, 1e-4, 1.0, len(losses))
    finder.results = {"lr": [finder.lr_of(i) for i in range(len(losses))], "loss": losses}
    return finder


def test_rates_go_from_the_smallest_to_the_largest() -> None:
    exponential, linear = LRFinder("exponential", 1e-3, 1.0, 3), LRFinder("linear", 0.1, 1.0, 9)
    assert [exponential.lr_of(i) for i in range(3)] == pytest.approx([0.001, 0.1, 1.0])
    assert [linear.lr_of(i) for i in range(9)] == pytest.approx([0.1, *(0.1 * i for i in range(3, 11))])


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    losses = [1.0] * 20 + [1.0 - 0.1 * i for i in range(5)] + [0.6] * 15
    finder = curve(losses, "linear")
    assert finder.suggestion() in finder.results["lr"][19:25]


def test_noise_at_the_smallest_rates_does_not_win_over_the_slope() -> None:
    losses = [2.3 + (0.0, 0.02, 0.0, -0.02)[i % 4] - 1.5 / (1 + math.exp(10 - 0.4 * i)) for i in range(40)]
    finder = curve(losses)
    assert finder.suggestion() in finder.results["lr"][22:29]
    finder.parity = True
    assert finder.suggestion() in finder.results["lr"][10:15]


def test_points_that_are_not_finite_do_not_count() -> None:
    finder = curve([1.0] * 20 + [0.5] + [math.nan] * 5 + [math.inf] * 5, "linear")
    assert finder.suggestion() in finder.results["lr"][19:21]


def test_too_few_points_give_no_suggestion() -> None:
    with pytest.warns(EngineWarning, match="num_training"):
        assert curve([1.0] * 11).suggestion() is None


def test_the_curve_can_be_drawn() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    finder = curve([1.0] * 20 + [0.5] * 10)
    figure = finder.plot(suggest=True)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "Learning rate"
    assert len(axes.lines) == 2
    assert f"suggestion: {finder.suggestion():.3g}" in [text.get_text() for text in axes.get_legend().get_texts()]
    assert finder.plot(ax=axes) is figure


def test_the_picture_leaves_out_the_steps_of_which_the_mean_is_not_settled() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    long, short = curve([0.1] * 10 + [2.0] * 30), curve([1.0] * 12)
    assert min(long.plot().axes[0].lines[0].get_ydata()) == 2.0
    assert len(short.plot().axes[0].lines[0].get_ydata()) == 12
    long.parity = True
    assert len(long.plot().axes[0].lines[0].get_ydata()) == 40


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingExtraError, match="plot"):
        curve([1.0] * 20).plot()


class Rates(engine.Callback):
    """Notes the learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_training_goes_on_with_the_suggestion(tmp_path: Path) -> None:
    finder, rates, net = LearningRateFinder(**SWEEP), Rates(), Scripted(lr=123.0)
    fitted = trainer(tmp_path, rates, finder, max_epochs=1)
    fitted.fit(net, rows(), rows())
    assert finder.optimal_lr is not None
    assert len(finder.optimal_lr.results["lr"]) == 30
    assert net.lr == finder.optimal_lr.suggestion()
    assert rates.seen == [net.lr] * 7
    assert fitted.global_step == 7


def test_the_weights_trained_are_those_of_a_run_with_that_rate(tmp_path: Path) -> None:
    tuned = Scripted(lr=0.5)
    trainer(tmp_path, LearningRateFinder(**SWEEP), max_epochs=2).fit(tuned, rows(), rows())
    plain = Scripted(lr=tuned.lr)
    trainer(tmp_path, max_epochs=2).fit(plain, rows(), rows())
    assert torch.equal(tuned.layer.weight, plain.layer.weight)


def test_a_schedule_starts_from_the_suggestion(tmp_path: Path) -> None:
    class Scheduled(Scripted):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)]

    rates, net = Rates(), Scheduled(lr=9.0)
    trainer(tmp_path, rates, LearningRateFinder(**SWEEP), max_epochs=2).fit(net, rows())
    assert rates.seen == pytest.approx([net.lr] * 7 + [net.lr / 2] * 7)


def test_a_sweep_in_the_middle_of_training_scales_the_schedule(tmp_path: Path) -> None:
    class Milestone(LearningRateFinder):
        def on_fit_start(self, *_: Any) -> None:
            return

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                self.lr_find(trainer, pl_module)

    class Scheduled(Scripted):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)]

    rates, net = Rates(), Scheduled(lr=0.02)
    trainer(tmp_path, rates, Milestone(**SWEEP), max_epochs=3).fit(net, rows())
    assert rates.seen[:7] == [0.02] * 7
    assert rates.seen[7:] == pytest.approx([net.lr] * 7 + [net.lr / 2] * 7)


def test_divergence_ends_the_sweep(tmp_path: Path) -> None:
    stopped, whole = (
        LearningRateFinder(1e-3, 1e3, 40, early_stop_threshold=limit, update_attr=False) for limit in (4.0, None)
    )
    for finder in (stopped, whole):
        trainer(tmp_path, finder, max_epochs=1).fit(Scripted(), rows())
    assert stopped.optimal_lr is not None
    assert whole.optimal_lr is not None
    assert len(stopped.optimal_lr.results["lr"]) < len(whole.optimal_lr.results["lr"])


def test_a_short_training_is_no_limit_but_with_parity(tmp_path: Path) -> None:
    for parity, steps in ((None, 200), ("lightning", 100)):  # an epoch has 100 batches
        finder = LearningRateFinder(1e-6, 1e-3, 200, update_attr=False, early_stop_threshold=None)
        trainer(tmp_path, finder, max_epochs=1, parity=parity).fit(Scripted(), rows(200, 2))
        assert finder.optimal_lr is not None
        assert len(finder.optimal_lr.results["lr"]) == steps


def test_steps_are_counted_not_batches(tmp_path: Path) -> None:
    finder = LearningRateFinder(1e-4, 0.1, 12, update_attr=False)
    trainer(tmp_path, finder, max_epochs=1, accumulate_grad_batches=3).fit(Scripted(), rows())
    assert finder.optimal_lr is not None
    assert len(finder.optimal_lr.results["lr"]) == len(finder.optimal_lr.results["loss"]) == 12


def test_a_hyper_parameter_is_set_too(tmp_path: Path) -> None:
    class WithHparams(engine.LightningModule):
        def __init__(self, learning_rate: float = 3.0) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(3, 1)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return (self.layer(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.hparams.learning_rate)

    net = WithHparams()
    finder = Tuner(trainer(tmp_path)).lr_find(net, rows(), min_lr=1e-4, num_training=30)
    assert finder is not None
    assert net.hparams.learning_rate == finder.suggestion()


def test_another_attribute_can_be_named(tmp_path: Path) -> None:
    net = Scripted()
    net.speed = 1.0  # type: ignore[assignment]
    finder = Tuner(trainer(tmp_path)).lr_find(net, rows(), min_lr=1e-4, num_training=30, attr_name="speed")
    assert finder is not None
    assert (net.speed, net.lr) == (finder.suggestion(), 0.05)


def test_the_attribute_must_exist(tmp_path: Path) -> None:
    net = Scripted()
    del net.lr
    net.configure_optimizers = lambda: torch.optim.SGD(net.parameters(), lr=0.1)  # type: ignore[method-assign]
    with pytest.raises(MisconfigurationException, match="update_attr=False"):
        Tuner(trainer(tmp_path)).lr_find(net, rows(), num_training=30)
    assert Tuner(trainer(tmp_path)).lr_find(net, rows(), num_training=30, update_attr=False) is not None


def test_several_optimizers_are_refused(tmp_path: Path) -> None:
    class Two(Scripted):
        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD([p], lr=0.1) for p in self.parameters()]

    with pytest.raises(MisconfigurationException, match="gave 2"):
        Tuner(trainer(tmp_path)).lr_find(Two(), rows())


def test_a_continued_run_keeps_its_rate(tmp_path: Path) -> None:
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(Scripted(lr=0.03), rows())
    fitted.save_checkpoint(tmp_path / "x.ckpt")
    finder, rates = LearningRateFinder(**SWEEP), Rates()
    trainer(tmp_path, finder, rates, max_epochs=2).fit(Scripted(), rows(), ckpt_path=str(tmp_path / "x.ckpt"))
    assert finder.optimal_lr is None
    assert rates.seen == [0.03] * 7


def test_nothing_is_written(tmp_path: Path) -> None:
    Tuner(trainer(tmp_path, logger=None)).lr_find(Scripted(), rows(), num_training=12, update_attr=False)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "exp"}, "linear"),
        ({"min_lr": 1.0, "max_lr": 0.1}, "min_lr < max_lr"),
        ({"num_training": 0}, "one step"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        Tuner(trainer(tmp_path)).lr_find(Scripted(), rows(), **options)
