"""Precision: names, dtypes inside and after steps, batches, scaler state."""

from __future__ import annotations

import json
import warnings
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from engine import Callback
from engine.errors import EngineWarning, MisconfigurationException
from engine.precision import (
    DoublePrecision,
    Float8Precision,
    HalfPrecision,
    MixedPrecision,
    Precision,
    select_precision,
)
from torch import nn
from torch.utils.data import DataLoader

from tests.engine.toys import BoringModel, dataset, quiet_trainer

TRACE = Path(__file__).parents[1] / "data" / "traces" / "jobs" / "precision.json"


@pytest.mark.parametrize(
    ("given", "name", "kind"),
    [
        (None, "32-true", Precision),
        (32, "32-true", Precision),
        ("32", "32-true", Precision),
        ("64-true", "64-true", DoublePrecision),
        (64, "64-true", DoublePrecision),
        (16, "16-mixed", MixedPrecision),
        ("16", "16-mixed", MixedPrecision),
        ("bf16", "bf16-mixed", MixedPrecision),
        ("bf16-mixed", "bf16-mixed", MixedPrecision),
        ("16-true", "16-true", HalfPrecision),
        ("bf16-true", "bf16-true", HalfPrecision),
    ],
)
def test_every_spelling(given: str | int | None, name: str, kind: type[Precision]) -> None:
    precision = select_precision(given, "xpu")
    assert (precision.precision, type(precision)) == (name, kind)
    assert (precision.scaler is not None) == (name == "16-mixed")


def test_an_object_is_taken_as_it_is() -> None:
    precision = HalfPrecision("bf16-true")
    assert select_precision(precision, "cpu") is precision


def test_half_mixed_on_the_cpu_becomes_bfloat16_with_a_warning() -> None:
    with pytest.warns(EngineWarning, match="bf16-mixed"):
        assert select_precision(16, "cpu").precision == "bf16-mixed"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select_precision("bf16-mixed", "cpu")


@pytest.mark.parametrize("given", ["fp16", "bf16-mixd", 8, 16.5, ["16"], b"16"])
def test_other_names_are_refused_with_the_accepted_ones(given: Any) -> None:
    with pytest.raises(MisconfigurationException, match="Accepted: '32-true', '64-true'"):
        select_precision(given, "cpu")


def test_constructors_refuse_what_does_not_fit() -> None:
    with pytest.raises(MisconfigurationException, match="HalfPrecision"):
        MixedPrecision("16-true", "cpu")
    with pytest.raises(MisconfigurationException, match="bf16-true"):
        HalfPrecision("64-true")
    with pytest.raises(MisconfigurationException, match="Leave the scaler out"):
        MixedPrecision("bf16-mixed", "cpu", torch.amp.GradScaler("cpu"))


@pytest.mark.parametrize("name", ["bf16-mixed", "bf16-true", "64-true", "32-true"])
def test_dtypes_are_those_of_the_recorded_run(name: str) -> None:
    recorded = json.loads(TRACE.read_text())["result"][name]
    precision = select_precision(name, "cpu")
    net = precision.convert_module(nn.Linear(6, 3))
    x, y = precision.convert_input((torch.randn(4, 6), torch.tensor([0, 1, 2, 0])))
    with precision.forward_context():
        out = net(x)
        loss = F.cross_entropy(out, y)
        default = torch.get_default_dtype()
    seen = {"out": out.dtype, "x": x.dtype, "w": net.weight.dtype, "default": default, "loss": loss.dtype}
    assert {key: str(dtype) for key, dtype in seen.items()} == recorded["dtypes"]
    loss.backward()
    assert (str(net.weight.dtype), y.dtype) == (recorded["after_dtype"], torch.int64)
    assert torch.get_default_dtype() == torch.float32


class Pair(NamedTuple):
    """A named tuple as batches have them."""

    image: torch.Tensor
    label: torch.Tensor


def test_converts_floats_anywhere_in_a_batch_and_nothing_else() -> None:
    batch = {"pair": Pair(torch.ones(2), torch.tensor([1])), "list": [torch.ones(1), "text", (torch.tensor(True),)]}
    half = HalfPrecision("bf16-true").convert_input(batch)
    assert type(half["pair"]) is Pair
    assert half["pair"].image.dtype == half["list"][0].dtype == torch.bfloat16
    assert (half["pair"].label.dtype, half["list"][2][0].dtype) == (torch.int64, torch.bool)
    assert half["list"][1] == "text"
    assert batch["list"][0].dtype == torch.float32
    assert Precision().convert_input(batch) is batch


def test_complex_and_integer_buffers_keep_their_dtype() -> None:
    module = nn.BatchNorm1d(2)
    module.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
    assert HalfPrecision("bf16-true").convert_module(module) is module
    assert (module.weight.dtype, module.phase.dtype) == (torch.bfloat16, torch.complex64)
    assert module.num_batches_tracked.dtype == torch.int64


def test_new_layers_and_the_default_dtype_after_an_error() -> None:
    precision = DoublePrecision()
    with suppress(KeyError), precision.init_context():
        assert nn.Linear(1, 1).weight.dtype == torch.float64
        raise KeyError
    assert torch.get_default_dtype() == torch.float32


def test_a_context_of_ones_own_holds_for_the_layers_that_are_made_too() -> None:
    class Halved(DoublePrecision):
        def forward_context(self) -> AbstractContextManager[None]:
            return HalfPrecision("bf16-true").forward_context()

    with Halved().init_context():
        assert nn.Linear(1, 1).weight.dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
def test_a_module_made_in_the_trainers_context_has_the_dtype_of_training(name: Any, dtype: torch.dtype) -> None:
    with quiet_trainer(precision=name).init_module():
        assert BoringModel().layer.weight.dtype == dtype
    assert BoringModel().layer.weight.dtype == torch.float32


def test_the_plain_precision_asks_nothing_of_the_loop() -> None:
    precision = Precision()
    assert not precision.autocasts
    assert not precision.converts_input
    assert precision.state_dict() == {}
    with precision.forward_context(), precision.init_context():
        assert torch.ones(1).dtype == torch.float32


def test_the_scaler_continues_where_it_was() -> None:
    first = MixedPrecision("16-mixed", "cpu")
    assert first.scaler is not None
    scaled = first.scaler.scale(torch.ones((), requires_grad=True) * 1.0)
    assert scaled.item() == 65536.0
    first.scaler.update(512.0)
    second = MixedPrecision("16-mixed", "cpu")
    second.load_state_dict({})
    second.load_state_dict(first.state_dict())
    assert second.scaler is not None
    assert second.scaler.get_scale() == 512.0


class Wide(BoringModel):
    def __init__(self) -> None:
        super().__init__(16)
        self.layer = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))  # type: ignore[assignment]


class Kinds(Callback):
    """Notes what the layers are while they are trained."""

    names: tuple[str, ...] = ()

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.names = tuple(type(layer).__name__ for layer in module.layer)


def test_float8_trains_layers_that_fit_and_leaves_an_ordinary_module() -> None:
    pytest.importorskip("torchao")
    data = DataLoader(dataset(64, features=16), batch_size=16)
    losses, noted = [], Kinds()
    for precision in (Float8Precision("cpu", emulate=True), MixedPrecision("bf16-mixed", "cpu")):
        trainer, module = quiet_trainer(max_epochs=5, plugins=precision, callbacks=[noted]), Wide()
        kinds, names = [type(layer) for layer in module.layer], list(module.state_dict())
        trainer.fit(module, data)
        if trainer.precision == "float8-mixed":
            assert noted.names == ("Float8Linear", "Tanh", "Linear")  # one output: no multiple of 16
        assert [type(layer) for layer in module.layer] == kinds
        assert list(module.state_dict()) == names
        losses.append(trainer.callback_metrics["train_loss"].item())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_the_precision_of_products_is_set_for_the_process() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        quiet_trainer(matmul_precision="medium")
        assert torch.get_float32_matmul_precision() == "medium"
        quiet_trainer()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("device_type", ["tpu", "xla"])
def test_half_mixed_on_a_tpu_becomes_bfloat16_with_a_warning(device_type: str) -> None:
    with pytest.warns(EngineWarning, match=device_type.upper()):
        assert select_precision(16, device_type).precision == "bf16-mixed"
