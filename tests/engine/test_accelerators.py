"""What a machine has, what is asked for, and kinds of devices that a project adds; torch_tpu as it was recorded."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine
import pytest
import torch
from engine import accelerators
from engine.accelerators import Accelerator, register, select_accelerator
from engine.errors import MisconfigurationException
from engine.strategies import collectives, select_strategy

from tests.engine.toys import BoringModel, loader, quiet_trainer

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "torch_tpu.json").read_text())


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register what it likes."""
    monkeypatch.setattr(accelerators, "_REGISTRY", dict(accelerators._REGISTRY))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ipu", "ended in 2023"),
        ("hpu", "no longer served"),
        ("cuda", "pytorch.org/get-started"),
        ("mps", "Apple computers only"),
        ("tpu", "pip install torch_tpu"),
        ("xla", "torch_xla[tpu]==2.9"),
        ("gpux", "Did you mean `gpu`"),
    ],
)
def test_what_is_not_there_is_one_sentence_with_what_is(name: str, words: str) -> None:
    if name in accelerators.available():
        pytest.skip(f"this machine has {name}")
    with pytest.raises(MisconfigurationException) as caught:
        quiet_trainer(accelerator=name)
    said = str(caught.value)
    assert words in said
    assert "cpu" in said  # what is there
    assert "\n" not in said


def test_a_project_adds_a_kind_of_device(registry: None) -> None:
    register(
        Accelerator(
            name="meta",
            device_type="meta",
            is_available=lambda: True,
            count=lambda: 2,
            missing="It is part of torch.",
        )
    )
    assert "meta" in accelerators.available()
    assert select_strategy(accelerator="meta", devices=1).root_device == torch.device("meta", 0)
    strategy = select_strategy(accelerator="meta", devices="auto")
    assert (strategy.strategy_name, strategy.world_size) == ("ddp", 2)  # type: ignore[attr-defined]
    with pytest.raises(MisconfigurationException, match="has 2 meta device"):
        select_strategy(accelerator="meta", devices=3)
    with pytest.raises(MisconfigurationException, match="no backend for 'meta'"):
        collectives.default_backend("meta")
    assert pickle.loads(pickle.dumps(select_accelerator("meta"))) is select_accelerator("meta")


def test_a_kind_that_has_nothing_to_do_before_its_processes_start_says_none(registry: None) -> None:
    mine = dataclasses.replace(accelerators.registered("cpu"), name="mine", count=lambda: 2, before_launch=None)
    register(mine)
    strategy = select_strategy(accelerator="mine", devices=2)
    strategy.before_launch()  # type: ignore[attr-defined]
    assert strategy.world_size == 2


def test_a_kind_that_a_new_process_does_not_know_says_what_to_do(registry: None) -> None:
    with pytest.raises(MisconfigurationException, match="top of the module"):
        accelerators.registered("nowhere")


@pytest.mark.parametrize(
    ("options", "words"), [({"devices": 2}, "devices=1"), ({"strategy": "ddp"}, "strategy='auto'")]
)
def test_an_accelerator_with_one_strategy_names_it(
    options: dict[str, Any], words: str, registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mps = dataclasses.replace(accelerators.registered("mps"), is_available=lambda: True, count=lambda: 2)
    register(mps)
    assert select_strategy(accelerator="mps", devices=1).root_device == torch.device("mps")
    with pytest.raises(MisconfigurationException, match=words):
        select_strategy(accelerator="mps", **options)


# torch_tpu, which no test can run: what is asked of it, beside what version 0.2.0 has.


@pytest.fixture
def tpus(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Four TPUs, as torch reports them with torch_tpu; return the calls of its launcher."""
    calls: list[tuple[str, dict[str, Any]]] = []
    distributed = SimpleNamespace(set_tpu_launch_env=lambda **given: calls.append(("set_tpu_launch_env", given)))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: SimpleNamespace(type="tpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setitem(sys.modules, "torch.tpu.distributed", distributed)
    return calls


def test_the_calls_to_torch_tpu_are_those_it_has(tpus: list[Any]) -> None:
    assert select_accelerator("auto").name == "tpu"
    assert select_accelerator("tpu").device_type == RECORDED["device"]
    assert accelerators.select_devices("auto", select_accelerator("tpu")) == [0, 1, 2, 3]
    launch = accelerators.registered("tpu").before_launch
    assert launch is not None
    launch(4)
    ((name, given),) = tpus
    assert name in RECORDED["torch.tpu.distributed"]
    assert set(given) <= set(RECORDED["torch.tpu.distributed"][name])
    assert {"get_rng_state", "set_rng_state"} <= set(RECORDED["torch.tpu"])  # what `seed` calls


SCRIPT = """
import sys
from types import SimpleNamespace
sys.path[:0] = {path!r}
import torch
import torch.utils.backend_registration as registration
registration._setup_privateuseone_for_python_backend("tpu")
for name in {backends}:
    torch.distributed.Backend.register_backend(name, lambda *_: None, devices=["tpu"])
from engine import Trainer
from engine.strategies.collectives import default_backend
from tests.engine.toys import BoringModel, loader, quiet_trainer
trainer = quiet_trainer(accelerator="auto", devices="auto")
print(trainer.strategy.root_device, trainer.accelerator.name, default_backend("tpu"))
"""


def test_a_backend_that_registers_itself_as_tpu_is_found() -> None:
    root = Path(__file__).parents[2]
    path = [str(root), str(Path(engine.__file__).parents[1])]
    script = SCRIPT.format(path=path, backends=RECORDED["backends"])
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.stdout == "tpu tpu cpu:gloo,tpu:tpu_dist\n", ended.stderr


def test_training_on_the_cpu_asks_no_other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1 / 0)
    quiet_trainer(accelerator="cpu").fit(BoringModel(), loader())
