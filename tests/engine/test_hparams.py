"""Hyper-parameters: what `save_hyperparameters` finds, and what `load_from_checkpoint` builds again."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import enum
import functools
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.checkpoint_file import read, write
from engine.datamodule import LightningDataModule
from engine.errors import CheckpointError, EngineWarning, MisconfigurationException
from engine.hparams import AttributeDict, pack
from engine.module import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.engine.toys import quiet_trainer


class Mode(enum.Enum):
    """A choice."""

    FAST = "fast"


class Net(LightningModule):
    """The usual module."""

    def __init__(self, width: int = 4, lr: float = 0.1, *, act: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["act"])
        self.layer = nn.Linear(2, width)
        self.act = act


class WithBackbone(LightningModule):
    """Takes a module."""

    def __init__(self, backbone: nn.Module, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = backbone


def save(module: Any, path: Path, **more: Any) -> Path:
    """Write a checkpoint of a module or data module the way a run does."""
    prefix = "" if isinstance(module, nn.Module) else "datamodule_"
    checkpoint: dict[str, Any] = {f"{prefix}hyper_parameters": pack(module.hparams_to_save)}
    checkpoint[f"{prefix}hparams_name"] = module._hparams_name
    checkpoint |= {"state_dict": module.state_dict(), "epoch": 1, "pytorch-lightning_version": "2.6.0"} | more
    write(checkpoint, path)
    return path


def test_keeps_all_arguments_but_the_ignored() -> None:
    net = Net(8, act=print)
    assert net.hparams == {"width": 8, "lr": 0.1}
    assert net.hparams.width == 8
    assert net._log_hyperparams


def test_the_initial_values_are_a_copy_of_their_own() -> None:
    class Listed(LightningModule):
        def __init__(self, layers: list[int]) -> None:
            super().__init__()
            self.save_hyperparameters(logger=False)

    net = Listed([1])
    net.hparams.layers.append(2)
    net.hparams.lr = 0.5
    net.hparams_initial.layers.append(3)
    assert net.hparams_initial == {"layers": [1]}
    assert net.hparams == {"layers": [1, 2], "lr": 0.5}
    assert not net._log_hyperparams


def test_an_object_that_saved_nothing_has_none() -> None:
    assert LightningModule().hparams == {}
    assert LightningModule().hparams_initial == {}


def test_keeps_named_arguments_only() -> None:
    class Named(LightningModule):
        def __init__(self, a: int, b: int, *rest: int, c: int = 3, **others: int) -> None:
            self.save_hyperparameters("a", "c", "d")
            super().__init__()

    assert Named(1, 2, 9, d=4).hparams == {"a": 1, "c": 3, "d": 4}


def test_a_name_that_is_no_argument_is_an_error() -> None:
    class Misspelt(LightningModule):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.save_hyperparameters("widht")

    with pytest.raises(MisconfigurationException, match="Did you mean `width`"):
        Misspelt(1)


def test_flattens_keyword_arguments_and_leaves_positional_ones_out() -> None:
    class Open(LightningModule):
        def __init__(self, *layers: int, **options: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

    assert Open(1, 2, lr=0.1, depth=3).hparams == {"lr": 0.1, "depth": 3}


@pytest.mark.parametrize("saves_in", ["parent", "child", "both"])
def test_finds_arguments_of_the_whole_chain(saves_in: str) -> None:
    class Parent(LightningModule):
        def __init__(self, lr: float, depth: int = 2) -> None:
            super().__init__()
            if saves_in != "child":
                self.save_hyperparameters()
            nn.Linear(1, 1)

    class Child(Parent):
        def __init__(self, width: int, lr: float, name: str = "c") -> None:
            lr = lr / 2
            super().__init__(lr)
            if saves_in != "parent":
                self.save_hyperparameters()

    hparams = Child(3, 0.2).hparams
    assert {key: hparams[key] for key in ("width", "lr", "name")} == {"width": 3, "lr": 0.1, "name": "c"}
    assert ("depth" in hparams) == (saves_in != "child")


def test_a_module_made_inside_another_keeps_its_own() -> None:
    class Outer(LightningModule):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.inner = Net(width=2)
            self.save_hyperparameters()

    outer = Outer(5)
    assert outer.hparams == {"size": 5}
    assert outer.inner.hparams == {"width": 2, "lr": 0.1}


def test_finds_arguments_from_a_helper_and_under_another_name_for_self() -> None:
    class Helped(LightningModule):
        def __init__(this, rate: float) -> None:
            super().__init__()
            functools.partial(this._keep)()
            _ = lambda: this  # noqa: E731

        def _keep(self) -> None:
            self.save_hyperparameters()

    assert Helped(0.5).hparams == {"rate": 0.5}


@dataclasses.dataclass
class Rows(LightningDataModule):
    """A data module that is a dataclass."""

    folder: Path
    batch_size: int = 4
    columns: list[str] = dataclasses.field(default_factory=lambda: ["x"])
    count: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


def test_a_dataclass_gives_its_fields() -> None:
    assert Rows(Path("data")).hparams == {"folder": Path("data"), "batch_size": 4, "columns": ["x"]}


def test_outside_of_init_there_is_nothing_to_keep() -> None:
    with pytest.raises(MisconfigurationException, match="Call it in `__init__`"):
        LightningModule().save_hyperparameters()
    module = LightningModule()
    module.save_hyperparameters({"lr": 0.1})
    assert module.hparams == {"lr": 0.1}


@dataclasses.dataclass
class Config:
    """A typed configuration."""

    lr: float = 0.1
    depth: int = 2


@pytest.mark.parametrize("config", [{"lr": 0.1, "depth": 2}, argparse.Namespace(lr=0.1, depth=2), Config()])
def test_keeps_one_object_in_the_place_of_arguments(config: Any, tmp_path: Path) -> None:
    class Configured(LightningModule):
        def __init__(self, cfg: Any, extra: int = 0) -> None:
            super().__init__()
            self.save_hyperparameters(cfg)
            self.depth = self.hparams.depth

    net = Configured(config)
    assert net.hparams == {"lr": 0.1, "depth": 2}
    assert net._hparams_name == "cfg"
    path = save(net, tmp_path / "a.ckpt")
    assert Configured.load_from_checkpoint(path).hparams == net.hparams
    changed = Configured.load_from_checkpoint(path, depth=5, extra=1)
    assert changed.hparams == {"lr": 0.1, "depth": 5}


def test_keeps_pydantic_objects() -> None:
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")
    model = pydantic.create_model("Settings", lr=(float, 0.1))
    module = LightningModule()
    module.save_hyperparameters(model())
    assert module.hparams == {"lr": 0.1}


@pytest.mark.parametrize("objects", [(1,), ([1, 2],), ({"a": 1}, {"b": 2}), (Config,)])
def test_other_objects_are_refused(objects: tuple[Any, ...]) -> None:
    with pytest.raises(MisconfigurationException, match="Accepted: names of arguments, or one dict"):
        LightningModule().save_hyperparameters(*objects)


class _HoldsData(LightningModule):
    def __init__(
        self, layers: list[nn.Module], loader: DataLoader[Any], data: dict[str, Any], lr: float, *names: str
    ) -> None:
        super().__init__()
        self.save_hyperparameters(*names)


def test_modules_data_sets_and_loaders_are_left_out_with_one_note(caplog: pytest.LogCaptureFixture) -> None:
    data = TensorDataset(torch.ones(3))
    with caplog.at_level(logging.INFO):
        kept = _HoldsData([nn.ReLU()], DataLoader(data), {"train": data}, 0.1).hparams_to_save
    assert kept == {"lr": 0.1}
    assert [record.message.count("`layers`, `loader`, `data`") for record in caplog.records] == [1]
    assert "load_from_checkpoint" in caplog.text


def test_a_module_asked_for_by_name_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert set(_HoldsData([nn.ReLU()], None, {}, 0.1, "layers", "lr").hparams) == {"layers", "lr"}  # type: ignore[arg-type]
    assert caplog.text == ""


def test_a_backbone_is_stored_once_and_can_be_read(tmp_path: Path) -> None:
    backbone = nn.Linear(500, 500)
    net = WithBackbone(backbone)
    assert net.hparams.backbone is backbone
    assert net.hparams_initial == {"lr": 0.1}
    path = save(net, tmp_path / "a.ckpt")
    assert path.stat().st_size < 1.02 * 4 * 500 * 501


def test_modules_with_hparams_can_be_copied_and_pickled() -> None:
    net = Net(3)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        twin.hparams.width = 5
        assert type(twin.hparams) is AttributeDict
        assert twin.hparams_initial == {"width": 3, "lr": 0.1}
    assert net.hparams.width == 3


def test_load_restores_arguments_and_weights(tmp_path: Path) -> None:
    net = Net(8, lr=0.2)
    loaded = Net.load_from_checkpoint(save(net, tmp_path / "a.ckpt"))
    assert type(loaded) is Net
    assert loaded.hparams == {"width": 8, "lr": 0.2}
    assert torch.equal(loaded.layer.weight, net.layer.weight)
    loaded.layer.weight.data.zero_()
    assert torch.equal(Net.load_from_checkpoint(tmp_path / "a.ckpt").layer.weight, net.layer.weight)


def test_a_class_may_name_the_keys_of_its_hyper_parameters(tmp_path: Path) -> None:
    class Named(Net):
        CHECKPOINT_HYPER_PARAMS_KEY = "mine"
        CHECKPOINT_HYPER_PARAMS_NAME = "mine_as"

        def predict_step(self, batch: Any) -> Any:
            return batch

    path, trainer = tmp_path / "a.ckpt", quiet_trainer()
    trainer.predict(Named(8), [1])
    trainer.save_checkpoint(path)
    assert {"mine", "mine_as"} <= set(read(path))
    assert "hyper_parameters" not in read(path)
    assert Named.load_from_checkpoint(path).hparams["width"] == 8


def test_load_takes_overrides_and_refuses_unknown_ones(tmp_path: Path) -> None:
    path = save(Net(8), tmp_path / "a.ckpt")
    loaded = Net.load_from_checkpoint(path, lr=0.7, act="tanh")
    assert (loaded.hparams.lr, loaded.act) == (0.7, "tanh")
    with pytest.raises(MisconfigurationException, match="Did you mean `width`"):
        Net.load_from_checkpoint(path, widht=3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        Net.load_from_checkpoint(path, width=9)


def test_load_on_an_instance_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        Net().load_from_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        Rows(Path()).load_from_checkpoint(tmp_path / "a.ckpt")


def test_load_names_what_is_missing_and_takes_it(tmp_path: Path) -> None:
    path = save(WithBackbone(nn.Linear(2, 2)), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"`backbone` \(not saved\).*\(path, backbone=\.\.\.\)"):
        WithBackbone.load_from_checkpoint(path)
    backbone = nn.Linear(2, 2)
    assert WithBackbone.load_from_checkpoint(path, backbone=backbone).backbone is backbone


class WithPartial(LightningModule):
    """Takes what no plain data can hold."""

    def __init__(self, optimizer: Any, mode: Mode = Mode.FAST, root: Path | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(1, 1)


def test_load_names_what_it_could_not_restore_and_takes_it(tmp_path: Path) -> None:
    path = save(WithPartial(functools.partial(torch.optim.SGD, lr=0.1), root=Path("x")), tmp_path / "a.ckpt")
    assert set(read(path)["state_dict"]) == {"layer.weight", "layer.bias"}
    with pytest.raises(
        CheckpointError, match=r"`optimizer` \(functools.partial\).*optimizer=\.\.\..*weights_only=False"
    ):
        WithPartial.load_from_checkpoint(path)
    loaded = WithPartial.load_from_checkpoint(path, optimizer=torch.optim.Adam)
    assert (loaded.hparams.mode, loaded.hparams.root) == (Mode.FAST, Path("x"))
    assert WithPartial.load_from_checkpoint(path, weights_only=False).hparams.optimizer.keywords == {"lr": 0.1}


def test_load_ignores_what_the_constructor_no_longer_takes(tmp_path: Path) -> None:
    net = Net()
    net.hparams.gone = print
    assert Net.load_from_checkpoint(save(net, tmp_path / "a.ckpt")).hparams == {"width": 4, "lr": 0.1}


def test_load_passes_everything_to_a_constructor_with_kwargs(tmp_path: Path) -> None:
    class Open(LightningModule):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

    path = save(Open(a=1, b=2), tmp_path / "a.ckpt")
    assert Open.load_from_checkpoint(path, b=3, c=4).hparams == {"a": 1, "b": 3, "c": 4}


def test_load_calls_hooks_in_order_and_shows_them_readable_hparams(tmp_path: Path) -> None:
    calls: list[Any] = []

    class Hooked(LightningModule):
        def __init__(self, root: Path) -> None:
            super().__init__()
            self.save_hyperparameters()

        def configure_model(self) -> None:
            calls.append("configure_model")
            self.layer = nn.Linear(1, 1)

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            calls.append(checkpoint["hyper_parameters"])
            checkpoint["state_dict"]["layer.bias"] += 1

    net = Hooked(Path("r"))
    net.configure_model()
    calls.clear()
    loaded = Hooked.load_from_checkpoint(save(net, tmp_path / "a.ckpt"))
    assert calls == ["configure_model", {"root": Path("r")}]
    assert torch.equal(loaded.layer.bias, net.layer.bias + 1)


def test_load_strictly_or_not(tmp_path: Path) -> None:
    net = Net()
    state = {**net.state_dict(), "old": torch.ones(1)}
    del state["layer.bias"]
    path = save(net, tmp_path / "a.ckpt", state_dict=state)
    with pytest.raises(RuntimeError, match="Missing key"):
        Net.load_from_checkpoint(path)
    with pytest.warns(EngineWarning, match=r"lacks \['layer.bias'\] and has \['old'\]"):
        Net.load_from_checkpoint(path, strict=False)

    class Lenient(Net):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.strict_loading = False

    with pytest.warns(EngineWarning, match="lacks"):
        Lenient.load_from_checkpoint(path)


def test_load_of_a_data_module(tmp_path: Path) -> None:
    rows = Rows(Path("data"), 8)
    rows.count = 5
    path = save(rows, tmp_path / "a.ckpt", Rows=rows.state_dict())
    loaded = Rows.load_from_checkpoint(path, batch_size=2)
    assert (loaded.folder, loaded.batch_size, loaded.count) == (Path("data"), 2, 5)


def test_load_of_weights_alone_says_what_is_missing(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"no `state_dict`.*layer\.weight"):
        Net.load_from_checkpoint(tmp_path / "a.pt")


def test_load_moves_to_where_it_was_saved_or_is_told(tmp_path: Path) -> None:
    path = save(Net(), tmp_path / "a.ckpt")
    assert Net.load_from_checkpoint(path).layer.weight.device.type == "cpu"
    assert Net.load_from_checkpoint(path, map_location="cpu").layer.weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("name", "text"),
    [("h.yaml", "width: 6\nlr: 0.5\n"), ("h.csv", "key,value\nwidth,6\nlr,0.5\nnote,a word\n")],
)
def test_load_with_hyper_parameters_of_a_file(tmp_path: Path, name: str, text: str) -> None:
    path = save(Net(6), tmp_path / "a.ckpt", hyper_parameters={"width": 99})
    (tmp_path / name).write_text(text)
    assert Net.load_from_checkpoint(path, hparams_file=tmp_path / name).hparams == {"width": 6, "lr": 0.5}
    with pytest.raises(MisconfigurationException, match=r"\.yaml"):
        Net.load_from_checkpoint(path, hparams_file="h.toml")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("version", ["1.9.5", "2.6.6"])
def test_load_of_a_lightning_file_runs_nothing_in_it(tmp_path: Path, version: str) -> None:
    checkpoint = {"epoch": 1, "global_step": 7, "pytorch-lightning_version": version, "state_dict": Net(3).state_dict()}
    checkpoint |= {"loops": {}, "callbacks": {"Own": {"x": Payload(tmp_path / "proof")}}, "hparams_name": "kwargs"}
    checkpoint |= {"hyper_parameters": {"width": 3, "lr": 0.3, "act": Payload(tmp_path / "proof")}}
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"`act` \(posix\.system\)"):
        Net.load_from_checkpoint(tmp_path / "a.ckpt")
    assert Net.load_from_checkpoint(tmp_path / "a.ckpt", act=None).hparams == {"width": 3, "lr": 0.3}
    assert not (tmp_path / "proof").exists()


@pytest.mark.slow
def test_lightning_reads_ours_and_we_read_lightnings(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed: nothing to compare with")

    class Theirs(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 4, lr: float = 0.1, *, act: Any = None) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = nn.Linear(2, width)

    ours = Net(8, lr=0.2)
    theirs = Theirs.load_from_checkpoint(save(ours, tmp_path / "ours.ckpt"))
    assert theirs.hparams == {"width": 8, "lr": 0.2, "act": None}
    assert torch.equal(theirs.layer.weight, ours.layer.weight)

    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(accelerator="cpu", **quiet)
    trainer.strategy.connect(Theirs(6, lr=0.3, act=functools.partial(torch.relu)))
    trainer.save_checkpoint(tmp_path / "theirs.ckpt")
    with pytest.raises(CheckpointError, match=r"`act` \(functools.partial\)"):
        Net.load_from_checkpoint(tmp_path / "theirs.ckpt")
    loaded = Net.load_from_checkpoint(tmp_path / "theirs.ckpt", act=None)
    assert loaded.hparams == {"width": 6, "lr": 0.3}
    assert torch.equal(loaded.layer.weight, trainer.lightning_module.layer.weight)


class Backboned(LightningModule):
    """A module that is given one part, and knows how to make a smaller one."""

    def __init__(self, backbone: torch.nn.Module | None = None, width: int = 2, keeps: bool = True) -> None:
        super().__init__()
        if keeps:
            self.save_hyperparameters(ignore=["backbone"])
        self.backbone = backbone or torch.nn.Linear(4, width)


@pytest.mark.parametrize(("keeps", "missing"), [(True, "backbone=..."), (False, "backbone=..., width=..., keeps=...")])
def test_weights_of_an_argument_that_was_not_saved_name_it(tmp_path: Path, keeps: bool, missing: str) -> None:
    made = torch.nn.Sequential(torch.nn.Linear(4, 3))
    path = save(Backboned(made, keeps=keeps), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="Missing key") as caught:
        Backboned.load_from_checkpoint(path)
    assert f"`Backboned.load_from_checkpoint(path, {missing})`" in str(caught.value)
    Backboned.load_from_checkpoint(path, backbone=torch.nn.Sequential(torch.nn.Linear(4, 3)))


def test_an_error_that_is_not_about_the_weights_stays_what_it_is(tmp_path: Path) -> None:
    class Full(Backboned):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            raise torch.OutOfMemoryError("the device is full")

    path = save(Full(), tmp_path / "a.ckpt")
    with pytest.raises(torch.OutOfMemoryError, match=r"^the device is full$"):
        Full.load_from_checkpoint(path)
