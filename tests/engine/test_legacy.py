"""Names of Lightning 1.x work, each with one notice of today's spelling."""

from __future__ import annotations

import inspect
import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import Callback, Trainer
from engine.callbacks import ModelCheckpoint
from engine.errors import MisconfigurationException
from engine.legacy import RENAMED
from torch import Tensor, nn
from toys import BoringModel, loader, quiet_trainer


@pytest.mark.parametrize("value", [0, None, []])
def test_no_gpus_is_the_cpu(value: Any) -> None:
    with pytest.warns(FutureWarning, match="accelerator='gpu'"):
        trainer = Trainer(gpus=value, max_epochs=1, logger=False)  # type: ignore[call-arg]
    assert trainer.strategy.root_device.type == "cpu"


@pytest.mark.parametrize(("name", "value", "names"), [("tpu_cores", 8, "tpu"), ("ipus", 4, "ipu")])
def test_a_missing_device_is_the_only_error(name: str, value: int, names: str) -> None:
    with pytest.warns(FutureWarning, match=name), pytest.raises(MisconfigurationException, match=names):
        Trainer(max_epochs=1, **{name: value})


def test_gpus_become_accelerator_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(FutureWarning), pytest.raises(MisconfigurationException, match=r"gpu|cuda"):
        Trainer(gpus=2, max_epochs=1)  # type: ignore[call-arg]


def test_one_notice_for_each_name() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer(weights_summary=None, replace_sampler_ddp=False)
    notices = [str(w.message) for w in caught if w.category is FutureWarning]
    assert len(notices) == 2
    assert any("enable_model_summary" in notice for notice in notices)
    assert any("use_distributed_sampler" in notice for notice in notices)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", sorted(set(RENAMED) - {"gpus", "tpu_cores", "ipus", "distributed_backend"}))
def test_every_old_name_is_taken(name: str) -> None:
    values = {"num_processes": 1, "resume_from_checkpoint": None}
    Trainer(accelerator="cpu", max_epochs=1, logger=False, **{name: values.get(name, False)})


def test_a_name_that_never_was_is_refused_with_the_nearest() -> None:
    with pytest.raises(TypeError, match="Did you mean `max_epochs`"):
        Trainer(max_epoch=3)  # type: ignore[call-arg]


def test_the_signature_is_honest() -> None:
    parameters = inspect.signature(Trainer.__init__).parameters
    kinds = {p.kind for name, p in parameters.items() if name != "self"}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}
    assert "max_epochs" in parameters
    assert not set(RENAMED) & set(parameters)
    defaults = {name: p.default for name, p in parameters.items() if name not in ("self", "accelerator")}
    Trainer(accelerator="cpu", **{**defaults, "max_epochs": 1, "logger": False})


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_progress_bars_refresh_rate() -> None:
    common = {"accelerator": "cpu", "max_epochs": 1, "logger": False}
    assert Trainer(progress_bar_refresh_rate=0, **common).progress_bar_callback is None
    assert Trainer(progress_bar_refresh_rate=7, **common).progress_bar_callback.refresh_rate == 7


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_checkpoint_callback_is_a_switch_or_a_callback(tmp_path: Path) -> None:
    common = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "default_root_dir": tmp_path}
    assert Trainer(checkpoint_callback=False, **common).checkpoint_callbacks == []
    assert len(Trainer(checkpoint_callback=True, **common).checkpoint_callbacks) == 1
    mine = ModelCheckpoint(tmp_path)
    assert Trainer(checkpoint_callback=mine, **common).checkpoint_callbacks == [mine]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_resume_from_checkpoint(tmp_path: Path) -> None:
    trainer = quiet_trainer()
    trainer.fit(BoringModel(), loader(), loader())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again = quiet_trainer(max_epochs=3, resume_from_checkpoint=str(tmp_path / "one.ckpt"))
    again.fit(BoringModel(), loader(), loader())
    assert (again.current_epoch, again.global_step, again.total_batches) == (3, 9, 9)
    assert again.total_batches - trainer.total_batches == 6


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_auto_lr_find_sets_the_rate() -> None:
    model = BoringModel(lr=1e-9)
    trainer = quiet_trainer(auto_lr_find=True, max_epochs=1)
    trainer.fit(model, loader(400), loader())
    assert model.lr > 1e-8
    assert trainer.optimizers[0].param_groups[0]["lr"] == model.lr


class Collects(BoringModel):
    """The three epoch ends of 1.x."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[str, Any]] = []

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return {"rows": len(batch[0])}

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def training_epoch_end(self, outputs: Any) -> None:
        self.ends.append(("train", outputs))
        self.log("mean", torch.stack([output["loss"] for output in outputs]).mean())

    def validation_epoch_end(self, outputs: Any) -> None:
        self.ends.append(("val", outputs))

    def test_epoch_end(self, outputs: Any) -> Any:
        self.ends.append(("test", outputs))
        return {"log": {"test_mean": torch.stack(outputs).mean()}}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_r11_r13_epoch_ends_get_all_outputs_and_may_log() -> None:
    model, trainer = Collects(), quiet_trainer(max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(model, loader(), [loader(8), loader(4)])
    assert [name for name, _ in model.ends] == ["val", "train"] * 2
    val, train = model.ends[0][1], model.ends[1][1]
    assert val == [[{"rows": 4}, {"rows": 4}], [{"rows": 4}]]
    assert len(train) == 3
    assert all(not output["loss"].requires_grad for output in train)
    assert "mean" in trainer.callback_metrics
    result = trainer.test(model, loader(8), verbose=False)
    assert [list(one) for one in result] == [["test_mean"]]
    with pytest.warns(FutureWarning, match="on_\\*_epoch_end"):
        quiet_trainer(num_sanity_val_steps=0).fit(Collects(), loader(), loader(4))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_step_ends_and_epoch_hooks_of_1_x_are_called_once_in_every_run() -> None:
    class Old(BoringModel):
        calls: tuple[str, ...] = ()

        def validation_step_end(self, output: Any) -> Any:
            self.calls = (*self.calls, "validation_step_end")

        def on_epoch_end(self) -> None:
            self.calls = (*self.calls, "on_epoch_end")

    model = Old()
    for _ in range(2):
        model.calls = ()
        quiet_trainer(num_sanity_val_steps=0).fit(model, loader(), loader(4))
        assert model.calls == ("validation_step_end", "on_epoch_end")


class Adversaries(BoringModel):
    """Two optimizers in the automatic way of 1.x."""

    frequencies: tuple[int, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(4, 1)
        self.turns: list[tuple[int, int, bool, bool]] = []

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:  # type: ignore[override]
        flags = self.layer.weight.requires_grad, self.other.weight.requires_grad
        self.turns.append((batch_idx, optimizer_idx, *flags))
        return ((self.layer if optimizer_idx == 0 else self.other)(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> Any:
        found = torch.optim.SGD(self.layer.parameters(), 0.1), torch.optim.Adam(self.other.parameters(), 0.01)
        if self.frequencies:
            return [{"optimizer": o, "frequency": f} for o, f in zip(found, self.frequencies, strict=True)]
        return list(found)


def test_r45_optimizer_idx_gives_each_optimizer_its_pass() -> None:
    model, trainer = Adversaries(), quiet_trainer()
    before = [p.detach().clone() for p in model.parameters()]
    trainer.fit(model, loader(8), loader(4))
    assert model.turns == [(0, 0, True, False), (0, 1, False, True), (1, 0, True, False), (1, 1, False, True)]
    assert trainer.global_step == 2
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.requires_grad for p in model.parameters())


def test_an_optimizer_step_of_1_x_decides_whose_turn_it_is() -> None:
    class Skips(Adversaries):
        stepped: tuple[int, ...] = ()

        def optimizer_step(  # type: ignore[override]
            self, epoch: int, batch_idx: int, optimizer: Any, optimizer_idx: int, optimizer_closure: Any = None
        ) -> None:
            if optimizer_idx == 0 or batch_idx % 2:
                self.stepped = (*self.stepped, optimizer_idx)
                optimizer.step(closure=optimizer_closure)

    model = Skips()
    quiet_trainer().fit(model, loader(16), loader(4))
    assert model.stepped == (0, 0, 1, 0, 0, 1)


def test_optimizers_with_a_frequency_take_turns() -> None:
    class Turns(Adversaries):
        frequencies = (2, 1)

    model = Turns()
    quiet_trainer().fit(model, loader(24), loader(4))
    assert [index for _, index, *_ in model.turns] == [0, 0, 1, 0, 0, 1]


def test_optimizer_idx_works_under_autocast() -> None:
    class Half(Adversaries):
        kinds: tuple[torch.dtype, ...] = ()

        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:  # type: ignore[override]
            self.kinds = (*self.kinds, self.layer(batch[0]).dtype)
            return super().training_step(batch, batch_idx, optimizer_idx)

    model = Half()
    quiet_trainer(precision="bf16-mixed").fit(model, loader(4), loader(4))
    assert model.kinds == (torch.bfloat16,) * 2


def test_optimizer_idx_with_a_default_is_filled_only_when_there_are_several() -> None:
    class One(BoringModel):
        got: tuple[Any, ...] = ()

        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: Any = "none") -> Any:
            self.got = (*self.got, optimizer_idx)
            return self.loss(batch)

    model = One()
    quiet_trainer().fit(model, loader(), loader(4))
    assert model.got == ("none",) * 3


def test_optimizer_idx_under_manual_optimisation_is_refused() -> None:
    model = Adversaries()
    model.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="optimizer_idx"):
        quiet_trainer().fit(model, loader(), loader(4))


def test_environment_variables_are_arguments_and_code_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "7")
    monkeypatch.setenv("PL_TRAINER_PRECISION", "bf16-mixed")
    monkeypatch.setenv("PL_TRAINER_PARITY", "lightning")
    monkeypatch.setenv("PL_TRAINER_LIMIT_TRAIN_BATCHES", "0.5")
    trainer = quiet_trainer()
    assert (trainer.max_steps, trainer.precision, trainer.parity) == (7, "bf16-mixed", True)
    assert trainer.limit_train_batches == 0.5
    assert quiet_trainer(max_steps=3).max_steps == 3
    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "many")
    with pytest.raises(ValueError, match="many"):
        quiet_trainer()


def test_callbacks_may_end_in_a_required_dataloader_idx() -> None:
    class Old(Callback):
        seen: tuple[int, ...] = ()

        def on_train_batch_end(  # type: ignore[override]
            self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int
        ) -> None:
            self.seen = (*self.seen, dataloader_idx)

        def on_validation_batch_end(  # type: ignore[override]
            self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int
        ) -> None:
            self.seen = (*self.seen, 10 + dataloader_idx)

    callback = Old()
    quiet_trainer(callbacks=[callback], num_sanity_val_steps=0).fit(BoringModel(), loader(), loader(4))
    assert callback.seen == (0, 0, 0, 10)


def test_optimizer_step_and_lr_scheduler_step_in_the_order_of_1_x() -> None:
    class Old(BoringModel):
        calls: tuple[str, ...] = ()

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            self.calls = (*self.calls, "optimizer")
            super().optimizer_step(*args, **kwargs)

        def lr_scheduler_step(self, scheduler: Any, optimizer_idx: Any, metric: Any) -> None:  # type: ignore[override]
            self.calls = (*self.calls, "scheduler")
            scheduler.step()

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    model = Old()
    quiet_trainer().fit(model, loader(4), loader(4))
    assert model.calls == ("optimizer", "scheduler")


@pytest.mark.parametrize("has_defaults", [False, True])
def test_optimizer_step_has_the_arguments_of_1_x(has_defaults: bool) -> None:
    calls: list[tuple[Any, ...]] = []

    class Old(BoringModel):
        def optimizer_step(  # type: ignore[override]
            self, epoch, batch_idx, optimizer, optimizer_idx, optimizer_closure, on_tpu, using_native_amp, using_lbfgs
        ) -> None:
            calls.append((optimizer_idx, on_tpu, using_lbfgs))
            optimizer.step(closure=optimizer_closure)

    class Defaults(Old):
        def optimizer_step(  # type: ignore[override]
            self, epoch, batch_idx, optimizer, optimizer_idx=None, optimizer_closure=None, on_tpu=False, **kwargs
        ) -> None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_idx, optimizer_closure, on_tpu, False, False)

    model, plain = Defaults() if has_defaults else Old(), BoringModel()
    quiet_trainer().fit(model, loader(8))
    quiet_trainer().fit(plain, loader(8))
    assert calls == [(0, False, False)] * 2
    assert torch.equal(model.layer.weight, plain.layer.weight)


def test_gradient_clipping_is_configured_by_keywords_and_had_an_index() -> None:
    calls: list[Any] = []

    class Keywords(BoringModel):
        def configure_gradient_clipping(self, optimizer: Any, **options: Any) -> None:  # type: ignore[override]
            calls.append(options)

    class Old(BoringModel):
        def configure_gradient_clipping(  # type: ignore[override]
            self, optimizer: Any, optimizer_idx: int, gradient_clip_val: float, gradient_clip_algorithm: str
        ) -> None:
            calls.append((optimizer_idx, gradient_clip_val))

    for model in (Keywords(), Old()):
        quiet_trainer(gradient_clip_val=1).fit(model, loader(4))
    assert calls == [{"gradient_clip_val": 1, "gradient_clip_algorithm": None}, (0, 1)]


def test_the_optimizer_wrapper_is_an_optimizer() -> None:
    class Manual(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            assert isinstance(optimizer, torch.optim.SGD)
            assert optimizer.param_groups[0]["lr"] == 0.1
            optimizer.step()
            torch.optim.lr_scheduler.StepLR(optimizer, 1)

    model = Manual()
    model.automatic_optimization = False
    quiet_trainer().fit(model, loader(), loader(4))


def test_a_module_can_be_copied_and_pickled_after_training() -> None:
    import copy
    import io

    model = BoringModel()
    quiet_trainer().fit(model, loader(), loader(4))
    again = copy.deepcopy(model)
    assert torch.equal(again.layer.weight, model.layer.weight)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    read: BoringModel = torch.load(buffer, weights_only=False)
    x: Tensor = torch.ones(1, 4)
    assert torch.equal(read(x), model(x))


def test_a_subclass_may_set_attributes_after_init() -> None:
    class Mine(Trainer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.extra = 3

    trainer = Mine(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(BoringModel(), loader(), loader(4))
    assert (trainer.extra, trainer.global_step) == (3, 3)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["ddp", "ddp_cpu", "dp"])
def test_a_strategy_was_an_accelerator(name: str) -> None:
    trainer = Trainer(accelerator=name, devices=2, max_epochs=1, logger=False)
    assert type(trainer.strategy).__name__ == "DDPStrategy"


def test_a_reload_was_asked_for_by_a_flag() -> None:
    with pytest.warns(FutureWarning, match="reload_dataloaders_every_n_epochs=1"):
        trainer = quiet_trainer(reload_dataloaders_every_epoch=True)
    assert trainer.reload_dataloaders_every_n_epochs == 1


@pytest.mark.parametrize("flag", [True, False])
def test_its_name_of_today_takes_a_flag_too(flag: bool) -> None:
    assert quiet_trainer(reload_dataloaders_every_n_epochs=flag).reload_dataloaders_every_n_epochs == int(flag)


def test_accumulation_by_epoch_was_an_argument() -> None:
    steps: list[int] = []

    class Counting(BoringModel):
        def on_train_epoch_end(self) -> None:
            steps.append(self.global_step)

    quiet_trainer(max_epochs=2, accumulate_grad_batches={1: 2}).fit(Counting(), loader(16))
    assert steps == [4, 6]


def test_several_training_loaders_had_their_mode_in_the_trainer() -> None:
    trainer = quiet_trainer(multiple_trainloader_mode="min_size")

    class Two(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch[0], batch_idx)

    trainer.fit(Two(), [loader(20), loader(8)])
    assert trainer.global_step == 2


@pytest.mark.parametrize(("call", "name"), [("validate", "val_dataloaders"), ("test", "test_dataloaders")])
def test_loaders_had_other_names(call: str, name: str) -> None:
    with pytest.warns(FutureWarning, match=name):
        getattr(quiet_trainer(), call)(BoringModel(), **{name: loader(8)})
    assert name not in inspect.signature(getattr(Trainer, call)).parameters


@pytest.mark.parametrize("value", [None, "dp", "ddp2", "ddp_cpu"])
def test_strategies_of_1_x(value: Any) -> None:
    expected = "SingleDeviceStrategy" if value is None else "DDPStrategy"
    assert type(quiet_trainer(accelerator="cpu", devices=1, strategy=value).strategy).__name__ == expected


def test_a_command_line_of_1_x_makes_a_trainer() -> None:
    parser = ArgumentParser()
    parser.add_argument("--max_epochs", type=int, default=7)  # the program's own stays
    parser.add_argument("--lr", type=float, default=0.1)
    parser = Trainer.add_argparse_args(parser)
    args = parser.parse_args(["--gpus", "0", "--limit_train_batches", "0.5", "--fast_dev_run", "--precision", "64"])
    trainer = Trainer.from_argparse_args(args, logger=False, fast_dev_run=False)
    assert (trainer.max_epochs, trainer.limit_train_batches, trainer.precision) == (7, 0.5, "64-true")
    assert (trainer.fast_dev_run, trainer.loggers) == (False, [])
    assert Trainer.from_argparse_args(Namespace(max_steps=3, other=1)).max_steps == 3


def test_tune_and_tuner_were_the_trainers() -> None:
    model = BoringModel()
    model.lr = 1.0
    tuned = quiet_trainer(auto_lr_find=True).tune(model, loader(40), lr_find_kwargs={"num_training": 30})
    assert len(tuned["lr_find"].results["lr"]) == 30
    assert model.lr != 1.0
    found = quiet_trainer().tuner.lr_find(model, loader(40), num_training=20)
    assert found is not None
    assert len(found.results["lr"]) == 20
