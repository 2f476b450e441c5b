"""Replay what lightning 2.6.6 was recorded doing: order of hooks, numbers of small jobs, facts, two processes.

The engine runs with `Trainer(parity="lightning")`, which turns its deliberate differences off. Fields that name the
framework may differ. `PARITY_FRAMEWORK=lightning.pytorch` proves the harness against the reference itself.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.parity import facts, hook_recorder, jobs, more_jobs
from tests.parity.compare import describe, differences, first_event_difference
from tests.parity.differential import as_json, parted
from tests.parity.found import FOUND
from tests.parity.framework import TRACES, Framework, load_framework
from tests.parity.play import play

FRAMEWORK = os.environ.get("PARITY_FRAMEWORK", "engine")
RECORDED_FACTS: dict[str, Any] = json.loads((TRACES / "facts.json").read_text())

# What the engine answers otherwise on purpose, also in parity mode: name of the fact -> (its answer, why).
FACTS_OF_OURS: dict[str, tuple[Any, str]] = {
    "arg_gpus": ("ok", "1.x names are translated"),
    "arg_tpu_cores": ("ok", "1.x names are translated"),
    "arg_ipus": ("ok", "1.x names are translated"),
    "arg_auto_lr_find": ("ok", "1.x names are translated"),
    "arg_resume_from_checkpoint": ("ok", "1.x names are translated"),
    "arg_progress_bar_refresh_rate": ("ok", "1.x names are translated"),
    "ckpt_loops": (
        {"fit_loop": ["epoch_loop.batch_progress", "epoch_loop.state_dict", "epoch_progress", "kagaku", "state_dict"]},
        "the smallest state from which a run goes on alike; Lightning's own is read",
    ),
    "defines_training_epoch_end": ("ok", "1.x hooks work"),
    "defines_validation_epoch_end": ("ok", "1.x hooks work"),
    "tpu_missing": ("MisconfigurationException: ", "says what is missing like any other absent device"),
}


ROUNDING = {"lbfgs": 1e-4, "rng": 1e-4}  # 1e-5 elsewhere: here processors' vector instructions leave up to 5e-5
DIVERGES = {"tuner": ".lr_linear.loss"}  # at learning rates of up to 1 the loss multiplies what was rounded


@pytest.fixture(scope="module")
def fw() -> Framework:
    return load_framework(FRAMEWORK)


def recorded(kind: str) -> list[Path]:
    return sorted([*(TRACES / kind).glob("*.json"), *(TRACES / "own" / kind).glob("*.json")])


def name_of(path: Path) -> str:
    return path.stem.removeprefix("hook_order_")


@pytest.mark.parametrize("path", recorded("hooks"), ids=name_of)
def test_hooks_come_in_the_recorded_order(fw: Framework, path: Path) -> None:
    expected = json.loads(path.read_text())
    got = hook_recorder.record(fw, expected["case"])
    for call, events in expected["segments"].items():
        parted = first_event_difference(events, json.loads(json.dumps(got["segments"][call])))
        assert parted is None, f"{expected['case']}.{call}: event {parted[0]}: expected {parted[1]}, got {parted[2]}"
    for key in ("callbacks_order", "returned_keys", "raised", "final"):
        assert got.get(key) == expected.get(key), key


@pytest.mark.parametrize("path", recorded("jobs"), ids=name_of)
def test_jobs_leave_the_recorded_numbers(fw: Framework, path: Path) -> None:
    expected = json.loads(path.read_text())
    name = expected["job"]
    got = jobs.record(fw, name, {**jobs.JOBS, **more_jobs.JOBS}[name])
    left, expected = without_brand(json.loads(json.dumps(got["result"]))), without_brand(expected["result"])
    found = differences(expected, left, rtol=ROUNDING.get(name, 1e-5))
    diverging = [difference for difference in found if DIVERGES.get(name, "-") in difference[0]]
    assert found == diverging, f"{name}:\n{describe(found)}"
    if diverging:
        found = differences(expected, left, rtol=0.02)
        assert not found, f"{name}:\n{describe(found)}"


@pytest.mark.parametrize("path", recorded("found"), ids=name_of)
def test_jobs_that_once_differed_leave_the_recorded_numbers(fw: Framework, path: Path) -> None:
    found = parted(json.loads(path.read_text()), as_json(play(fw, FOUND[path.stem])))
    assert not found, f"{FOUND[path.stem]}\n{found}"


@pytest.mark.parametrize("name", list(facts.FACTS))
def test_facts_are_the_recorded_ones(fw: Framework, name: str) -> None:
    for key, answer in facts.record(fw, [name]).items():
        expected = RECORDED_FACTS[key]
        if FRAMEWORK == "engine" and key in FACTS_OF_OURS:
            expected = FACTS_OF_OURS[key][0]
        error = kind_of_error(expected)
        if error is not None:
            assert error in getattr(answer, "classes", ()), f"{key}: {answer!r}, recorded: {expected!r}"
        else:
            assert json.loads(json.dumps(answer)) == expected, key


@pytest.mark.parametrize(("name", "arguments"), [("ddp", []), ("ddp_acc2", ["--accumulate", "2"])])
def test_two_processes_leave_the_recorded_numbers(tmp_path: Path, name: str, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "tests.parity.ddp_job", "--framework", FRAMEWORK, "--out", str(tmp_path / name)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=180, check=False)
    assert (tmp_path / f"{name}.rank1.json").exists(), done.stderr[-2000:]
    for rank in (0, 1):
        file = f"{name}.rank{rank}.json"
        folder = TRACES / "ddp" if name == "ddp" else TRACES / "own" / "ddp"
        found = differences(json.loads((folder / file).read_text()), json.loads((tmp_path / file).read_text()))
        assert not found, f"{file}:\n{describe(found)}"


def without_brand(value: Any) -> Any:
    """Blank what names the framework: the key of its version, the arguments inside a callback's state key."""
    if isinstance(value, dict):
        return {without_brand(k): without_brand(v) for k, v in value.items()}
    if isinstance(value, list):
        return sorted(map(without_brand, value)) if _is_words(value) else [without_brand(v) for v in value]
    if isinstance(value, str):
        return re.sub(r"^(ModelCheckpoint)\{.*\}$", r"\1", re.sub(r"^[\w-]+_version$", "<version>", value))
    return value


def _is_words(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(v, str) for v in value)


def kind_of_error(answer: Any) -> str | None:
    """The class of the exception that a fact holds; the text is each framework's own."""
    found = re.match(r"^(\w+(Error|Exception|Exit|Interrupt)): ", answer) if isinstance(answer, str) else None
    return found.group(1) if found else None
