"""Every deliberate difference from the reference framework, with and without `parity="lightning"`.

Where a test trains twice, `parity` is its argument: the same code shows both behaviours.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import Callback
from engine.callbacks import ModelCheckpoint
from engine.callbacks.checkpoint import Checkpoint
from torch import Tensor, nn
from toys import BoringModel, loader, quiet_trainer

PARITY = pytest.mark.parametrize("parity", [None, "lightning"], ids=["ours", "parity"])


class TwoParts(BoringModel):
    """One loss, an optimizer for each of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.layer(x))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.layer.parameters(), 0.1), torch.optim.Adam(self.second.parameters(), 0.01)


class Manual(BoringModel):
    """Manual optimisation, one optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


@PARITY
def test_a_short_accumulation_window_is_divided_by_its_true_size(parity: str | None) -> None:
    model, by_hand, data = BoringModel(), BoringModel(), loader(12)
    quiet_trainer(accumulate_grad_batches=2, parity=parity).fit(model, data, loader(4))
    optimizer, batches = by_hand.configure_optimizers(), list(data)
    for window, divisor in ((batches[:2], 2), (batches[2:], 1 if parity is None else 2)):
        optimizer.zero_grad()
        for batch in window:
            (by_hand.loss(batch) / divisor).backward()
        optimizer.step()
    assert torch.equal(model.layer.weight, by_hand.layer.weight)


@PARITY
def test_resume_in_the_middle_of_an_epoch_is_exact(parity: str | None, tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.current_epoch == 0 and batch_idx == 3:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def train(callbacks: Any, path: Any = None) -> Tensor:
        torch.manual_seed(3)
        model = BoringModel()
        trainer = quiet_trainer(max_epochs=2, callbacks=callbacks, parity=parity, num_sanity_val_steps=0)
        if path is not None:
            torch.manual_seed(99)
        trainer.fit(model, loader(28, shuffle=True), loader(4), ckpt_path=path)
        return model.layer.weight.detach()

    whole = train([Save()])
    assert torch.equal(whole, train([], tmp_path / "middle.ckpt")) is (parity is None)


@PARITY
def test_last_is_the_last_state(parity: str | None, tmp_path: Path) -> None:
    class Worse(BoringModel):
        def on_validation_epoch_end(self) -> None:
            self.log("score", float(self.current_epoch))

    keep = ModelCheckpoint(tmp_path, monitor="score", save_last=True)
    trainer = quiet_trainer(max_epochs=3, callbacks=[keep], enable_checkpointing=True, parity=parity)
    trainer.fit(Worse(), loader(), loader())
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert stored["global_step"] == (9 if parity is None else 3)


@PARITY
def test_a_monitor_uses_fresh_values_only(parity: str | None, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, monitor="val_loss", every_n_train_steps=1, save_top_k=-1)
    trainer = quiet_trainer(max_epochs=3, callbacks=[keep], enable_checkpointing=True, parity=parity)
    trainer.fit(BoringModel(), loader(), loader())
    saved = list(tmp_path.glob("*.ckpt"))
    if parity is None:
        assert len(saved) < 6  # no file carries the value of an earlier epoch
    else:
        assert len(saved) >= 6


class Plateau(BoringModel):
    """A plateau scheduler that forgives nothing, on a value that never changes."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("flat", 1.0)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 1.0)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "flat", "strict": False}}


@PARITY
@pytest.mark.filterwarnings("ignore:The scheduler's monitor")
def test_a_plateau_scheduler_steps_on_fresh_values_only(parity: str | None) -> None:
    trainer = quiet_trainer(max_epochs=6, check_val_every_n_epoch=3, parity=parity)
    trainer.fit(Plateau(), loader(), loader())
    fresh, stale = 2, 4  # validations; epochs at whose end some value is there
    steps = fresh if parity is None else stale
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5 ** (steps - 1)


def test_a_plateau_scheduler_waits_for_its_first_metric() -> None:
    class Strict(Plateau):
        def configure_optimizers(self) -> Any:
            found = super().configure_optimizers()
            found["lr_scheduler"]["strict"] = True
            return found

    quiet_trainer(max_epochs=2, check_val_every_n_epoch=2).fit(Strict(), loader(), loader())
    with pytest.raises(ValueError, match="flat"):
        quiet_trainer(max_epochs=2, check_val_every_n_epoch=2, parity="lightning").fit(Strict(), loader(), loader())


def test_evaluation_counts_no_row_twice_and_keeps_the_users_order() -> None:
    from engine.sharding import shard
    from torch.utils.data import DataLoader
    from toys import Rows

    class Rank:
        is_distributed, world_size = True, 2

        def __init__(self, rank: int) -> None:
            self.global_rank = rank

        def broadcast(self, value: Any, src: int = 0) -> Any:
            return value

    def rows(stage: str, parity: bool) -> list[list[int]]:
        plain = DataLoader(Rows(5), batch_size=1)
        return [[int(b) for b in shard(plain, stage, Rank(rank), parity)] for rank in (0, 1)]  # type: ignore[arg-type]

    assert sorted(row for part in rows("val", False) for row in part) == [0, 1, 2, 3, 4]
    assert sorted(row for part in rows("val", True) for row in part) == [0, 0, 1, 2, 3, 4]
    ours = rows("train", False)
    assert all(part == sorted(part) or part[:-1] == sorted(part[:-1]) for part in ours)
    assert ours[0][0] == 0


@PARITY
def test_one_global_step_per_batch_however_many_optimizers(parity: str | None) -> None:
    class Both(TwoParts):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.manual_backward(self.loss(batch))
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    trainer = quiet_trainer(parity=parity)
    trainer.fit(Both(), loader(), loader())
    assert trainer.global_step == (3 if parity is None else 6)


@PARITY
def test_a_step_of_the_users_own_reference_counts(parity: str | None) -> None:
    class Kept(Manual):
        def configure_optimizers(self) -> Any:
            self.mine = super().configure_optimizers()
            return self.mine

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.manual_backward(self.loss(batch))
            self.mine.step()

    trainer = quiet_trainer(parity=parity)
    trainer.fit(Kept(), loader(), loader())
    assert trainer.global_step == (3 if parity is None else 0)


def test_r46_sgd_for_one_layer_adam_for_another_in_automatic_mode() -> None:
    model, by_hand, data = TwoParts(), TwoParts(), loader(12)
    by_hand.load_state_dict(model.state_dict())
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(model, data, loader(4))
    optimizers = by_hand.configure_optimizers()
    for _ in range(2):
        for batch in data:
            for optimizer in optimizers:
                optimizer.zero_grad()
            by_hand.loss(batch).backward()
            for optimizer in optimizers:
                optimizer.step()
    assert trainer.global_step == 6
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), by_hand.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="automatic_optimization = False"):
        quiet_trainer(parity="lightning").fit(TwoParts(), data, loader(4))


def test_clipping_works_in_manual_mode() -> None:
    model, by_hand, data = Manual(), BoringModel(), loader()
    quiet_trainer(gradient_clip_val=0.1).fit(model, data, loader(4))
    optimizer = by_hand.configure_optimizers()
    for batch in data:
        optimizer.zero_grad()
        by_hand.loss(batch).backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.1)
        optimizer.step()
    assert torch.equal(model.layer.weight, by_hand.layer.weight)
    with pytest.raises(ValueError, match="clip_gradients"):
        quiet_trainer(gradient_clip_val=0.1, parity="lightning").fit(Manual(), data, loader(4))


def test_accumulation_works_in_manual_mode() -> None:
    """The steps that a module asks for are taken once a window, and its gradients are averaged over the window."""
    model, by_hand, data = Manual(), BoringModel(), loader(20)
    trainer = quiet_trainer(accumulate_grad_batches=2)
    trainer.fit(model, data, loader(4))
    optimizer, batches = by_hand.configure_optimizers(), list(data)
    for start in (0, 2, 4):
        window = batches[start : start + 2]
        optimizer.zero_grad()
        for batch in window:
            (by_hand.loss(batch) / len(window)).backward()
        optimizer.step()
    assert trainer.global_step == 3
    assert torch.equal(model.layer.weight, by_hand.layer.weight)
    with pytest.raises(ValueError, match="accumulate_grad_batches"):
        quiet_trainer(accumulate_grad_batches=2, parity="lightning").fit(Manual(), data, loader(4))


class Breaks(BoringModel):
    """Fails or is interrupted in its second batch."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error, self.torn_down = error, 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            raise self.error
        return super().training_step(batch, batch_idx)

    def teardown(self, stage: str) -> None:
        self.torn_down += 1


@PARITY
def test_teardown_always_runs(parity: str | None) -> None:
    model = Breaks(RuntimeError("user's own"))
    with pytest.raises(RuntimeError, match="user's own"):
        quiet_trainer(parity=parity).fit(model, loader(), loader())
    assert model.torn_down == (1 if parity is None else 0)


@PARITY
def test_ctrl_c_returns_to_the_caller(parity: str | None) -> None:
    model, trainer = Breaks(KeyboardInterrupt()), quiet_trainer(parity=parity)
    if parity is None:
        trainer.fit(model, loader(), loader())
    else:
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            trainer.fit(model, loader(), loader())
        assert isinstance(caught.value, (KeyboardInterrupt, SystemExit))
    assert trainer.interrupted
    assert trainer.global_step == 1


@pytest.mark.parametrize("saves", [True, False])
def test_an_interrupt_says_where_to_resume_from(tmp_path: Path, caplog: pytest.LogCaptureFixture, saves: bool) -> None:
    callbacks = [ModelCheckpoint(tmp_path, save_last=True)] if saves else []
    trainer = quiet_trainer(callbacks=callbacks, enable_checkpointing=saves)
    trainer.fit(Breaks(KeyboardInterrupt()), loader(), loader())
    (record,) = [record for record in caplog.records if "Interrupted" in record.message]
    assert record.levelno == logging.WARNING, "seen without any set-up of logging"
    (file,) = tmp_path.iterdir() if saves else [None]
    assert (f"`ckpt_path={str(file)!r}`" if file else "saves one at the first Ctrl-C") in record.message


def test_an_interrupt_names_the_newest_file_of_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Later(Checkpoint):
        last_model_path = None  # as a callback may have it that has not saved
        ckpt_path = str(tmp_path / "later.ckpt")

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            Path(self.ckpt_path).touch()
            os.utime(self.ckpt_path, (2e9, 2e9))

    callbacks = [ModelCheckpoint(tmp_path / "other", save_last=True), Later()]
    quiet_trainer(callbacks=callbacks, enable_checkpointing=True).fit(Breaks(KeyboardInterrupt()), loader(), loader())
    assert f"`ckpt_path={Later.ckpt_path!r}`" in caplog.text


@PARITY
def test_a_second_fit_on_a_finished_trainer_says_so(parity: str | None, caplog: pytest.LogCaptureFixture) -> None:
    model, trainer = BoringModel(), quiet_trainer(parity=parity)
    trainer.fit(model, loader(), loader())
    with caplog.at_level(logging.INFO):
        trainer.fit(model, loader(), loader())
    assert ("trainer.max_epochs = 2" in caplog.text) is (parity is None)
    assert trainer.global_step == 3
    trainer.max_epochs = 2
    trainer.fit(model, loader(), loader())
    assert trainer.global_step == 6


@PARITY
def test_every_epoch_leaves_at_least_one_point(parity: str | None) -> None:
    trainer = quiet_trainer(max_epochs=2, parity=parity)
    trainer.fit(BoringModel(), loader(), loader())
    points = [row["step"] for row in trainer.history_rows if "train_loss" in row]
    assert points == ([0, 2, 3, 5] if parity is None else [])


@PARITY
def test_a_frequency_in_steps_counts_optimizer_steps(parity: str | None) -> None:
    class Stepped(BoringModel):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 1.0)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
            return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 2}]

    trainer = quiet_trainer(accumulate_grad_batches=2, parity=parity)
    trainer.fit(Stepped(), loader(32), loader(4))
    halvings = 2 if parity is None else 4
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5**halvings


@PARITY
def test_validation_never_changes_training(parity: str | None) -> None:
    class Noisy(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch) * torch.rand(())

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            torch.rand(7)

    def train(limit: int) -> Tensor:
        torch.manual_seed(5)
        model = Noisy()
        options = {"limit_val_batches": limit, "num_sanity_val_steps": 0, "parity": parity}
        quiet_trainer(max_epochs=2, **options).fit(model, loader(), loader())
        return model.layer.weight.detach()

    assert torch.equal(train(0), train(3)) is (parity is None)


@PARITY
@pytest.mark.parametrize("saver", [{"every_n_train_steps": 2}, {"every_n_epochs": 1, "save_on_train_epoch_end": False}])
def test_a_checkpoint_holds_what_the_module_does_in_the_hook_of_its_moment(
    parity: str | None, saver: dict[str, Any], tmp_path: Path
) -> None:
    class Student(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = nn.Linear(1, 1).requires_grad_(False)

        def follow(self) -> None:
            for old, new in zip(self.teacher.parameters(), self.layer.parameters(), strict=True):
                old.lerp_(new.detach().mean(), 0.5)

        def on_train_batch_end(self, *_: Any) -> None:
            self.follow()

        def on_validation_end(self) -> None:
            if not self.trainer.sanity_checking:
                self.follow()

    def run(ckpt_path: Path | None = None) -> list[float]:
        torch.manual_seed(1)
        module, saving = Student(), ModelCheckpoint(tmp_path, save_top_k=-1, **saver)
        options = {"parity": parity, "enable_checkpointing": True, "max_epochs": 2}
        trainer = quiet_trainer(callbacks=[saving], **options)
        trainer.fit(module, loader(8, 2), loader(4, 2), ckpt_path=ckpt_path)
        return [parameter.item() for parameter in module.teacher.parameters()]

    through = run()
    resumed = [run(path) for path in sorted(tmp_path.glob("*.ckpt"))[:-1]]
    assert resumed
    assert all(teacher == through for teacher in resumed) is (parity is None)


@PARITY
def test_what_is_logged_before_an_epoch_is_ended_by_minus_one_is_shown(parity: str | None) -> None:
    class Ending(BoringModel):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
            self.log("at", float(batch_idx))
            return -1 if batch_idx == 2 else None

    trainer = quiet_trainer(parity=parity)
    trainer.fit(Ending(), loader(8, 2))
    assert trainer.callback_metrics["at"] == 2.0
