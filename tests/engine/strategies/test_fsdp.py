"""FSDP2 on the CPU: the weights of one process, checkpoints that any number of processes reads, an ordinary module."""

from __future__ import annotations

import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import Callback
from engine.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from engine.errors import CheckpointError, MisconfigurationException
from engine.strategies import FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from tests.engine.strategies.nets import Block, IsSharded, Stack, weights
from tests.engine.toys import dataset, loader, quiet_trainer


def fit(processes: int, strategy: Any, folder: Path | None = None, **options: Any) -> tuple[Stack, Any]:
    """Train 48 rows in batches of 12 over all processes, twice."""
    module, ckpt_path = Stack(), options.pop("ckpt_path", None)
    callbacks: list[Callback] = [ModelCheckpoint(folder, monitor="val", save_last=True)] if folder is not None else []
    callbacks += [IsSharded()] if "fsdp" in str(strategy).lower() and processes > 1 else []
    settings: dict[str, Any] = {"max_epochs": 2, "enable_checkpointing": folder is not None, **options}
    settings["callbacks"] = [*callbacks, *settings.get("callbacks", [])]
    trainer = quiet_trainer(devices=processes, strategy=strategy, **settings)
    torch.manual_seed(5)
    train = DataLoader(dataset(48), batch_size=12 // processes, shuffle=True)
    trainer.fit(module, train, loader(7, 2), ckpt_path=ckpt_path)
    return module, trainer


def test_activations_are_computed_again_only_where_that_is_asked_for() -> None:
    calls: list[int] = []

    class Counting(Callback):
        def on_fit_start(self, trainer: Any, module: Any) -> None:
            for block in module.blocks:
                block.linear.register_forward_hook(lambda *_: calls.append(1))

        def on_train_batch_start(self, *_: Any) -> None:
            calls.clear()

        def on_train_batch_end(self, *_: Any) -> None:
            assert len(calls) == 4  # two blocks, twice

    alone, _ = fit(1, "auto")
    several, _ = fit(2, FSDPStrategy(activation_checkpointing_policy={Block}), callbacks=[Counting()])
    torch.testing.assert_close(weights(several), weights(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["full", "sharded"])
def test_a_checkpoint_is_resumed_by_any_number_of_processes(kind: str, tmp_path: Path) -> None:
    whole, _ = fit(2, "ddp", max_epochs=3)
    fit(3, FSDPStrategy(state_dict_type=kind), tmp_path, max_epochs=2)
    last = tmp_path / "last.ckpt"
    assert last.is_dir() == (kind == "sharded")
    for processes, strategy in ((1, "auto"), (2, FSDPStrategy(state_dict_type=kind)), (2, "ddp")):
        resumed, _ = fit(processes, strategy, max_epochs=3, ckpt_path=last)
        torch.testing.assert_close(weights(resumed), weights(whole), rtol=1e-4, atol=1e-5)


AVERAGES = {
    "ema": lambda: EMAWeightAveraging(decay=0.8),
    "swa": lambda: StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_weights_are_averaged_and_resumed_as_by_one_process(name: str, tmp_path: Path) -> None:
    alone, _ = fit(1, "auto", max_epochs=3, callbacks=[AVERAGES[name]()])
    saver = ModelCheckpoint(tmp_path, save_top_k=-1)
    whole, _ = fit(2, "fsdp", max_epochs=3, callbacks=[AVERAGES[name](), saver], enable_checkpointing=True)
    torch.testing.assert_close(weights(whole), weights(alone), rtol=1e-4, atol=1e-5)
    middle = next(tmp_path.glob("epoch=1-*.ckpt"))
    resumed, _ = fit(3, "fsdp", max_epochs=3, callbacks=[AVERAGES[name]()], ckpt_path=middle)
    torch.testing.assert_close(weights(resumed), weights(alone), rtol=1e-4, atol=1e-5)


def test_after_training_the_module_is_an_ordinary_one(tmp_path: Path) -> None:
    class StillThere(Callback):
        """In the process that trained, where the module was sharded."""

        def on_fit_end(self, trainer: Any, module: Any) -> None:
            assert type(module.blocks[0]) is Block
            assert all(type(parameter) is nn.Parameter for parameter in module.parameters())
            assert not any(child._forward_hooks or child._state_dict_pre_hooks for child in module.modules())
            assert module.first.bias is module.blocks[0].linear.bias
            assert module.noted == 3
            module(torch.zeros(1, 4))

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            module.noted = 3

    class Tied(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.first.bias = self.blocks[0].linear.bias

    trainer = quiet_trainer(devices=2, strategy=FSDPStrategy(auto_wrap_policy=()), callbacks=[StillThere()])
    trainer.fit(Tied(), loader(8, 2))


def test_manual_optimisation_is_refused_with_what_to_use_instead() -> None:
    class ByHand(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(MisconfigurationException, match="strategy='ddp'"):
        quiet_trainer(devices=2, strategy="fsdp").fit(ByHand(), loader(8, 2))


def test_a_sharded_checkpoint_runs_no_code(tmp_path: Path) -> None:
    fit(2, FSDPStrategy(state_dict_type="sharded"), tmp_path, max_epochs=1)

    class Evil:
        def __reduce__(self) -> Any:
            return (tmp_path / "owned").touch, ()

    (tmp_path / "last.ckpt" / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="does not belong there"):
        Stack.load_from_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "owned").exists()


def test_members_of_an_enumeration_are_read_as_older_pythons_pickle_them(tmp_path: Path) -> None:
    """Python 3.11.0 to 3.11.3, Debian 12's among them, write `getattr(kind, name)`."""
    module, _ = fit(2, FSDPStrategy(state_dict_type="sharded"), tmp_path, max_epochs=1)
    file = tmp_path / "last.ckpt" / ".metadata"

    class Older(pickle._Pickler):
        def reducer_override(self, value: Any) -> Any:
            return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented

    metadata = pickle.loads(file.read_bytes())
    with file.open("wb") as target:
        Older(target).dump(metadata)
    assert b"getattr" in file.read_bytes()
    torch.testing.assert_close(weights(Stack.load_from_checkpoint(tmp_path / "last.ckpt")), weights(module))
