"""How configuration, presets and overrides become one, as `--print-config` shows it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from conftest import Project

OVERRIDES = {
    "short": ["-o", "trainer.max_epochs=3"],
    "long": ["--override", "trainer.max_epochs=3"],
    "as an option": ["--trainer.max_epochs=3"],
    "as an option and a value": ["--trainer.max_epochs", "3"],
    "bare": ["trainer.max_epochs=3"],
}
CASES = {
    **OVERRIDES,
    "devices": ["--accelerator", "gpu", "--devices", "2"],
    "values": ["-o", "task.lr=1e-3", "-o", "name=no", "-o", "trainer.max_time=00:12:30:00"],
    "bare, of one word": ["seed=7"],
    "science": ["-o", "data.batch_size=8"],
    "callbacks": [
        *("-o", "callbacks.slow={class: Timer, duration: 00:01:00:00}"),
        *("-o", "callbacks.early_stopping=null"),
    ],
    "monitor": ["-o", "monitor.metric=val_accuracy", "-o", "monitor.mode=max"],
}


def resolved(project: Project, *cases: list[str]) -> list[dict[str, Any]]:
    """Return the configurations that `fit --print-config` shows, one for each list of options."""
    answers = project.answer([["fit", "--print-config", *options] for options in cases])
    assert [error for code, _, error in answers if code != 0] == []
    return [yaml.safe_load(out) for _, out, _ in answers]


@pytest.fixture(scope="session")
def configs(untouched: Project) -> dict[str, dict[str, Any]]:
    """Return the resolved configuration of every case."""
    return dict(zip(CASES, resolved(untouched, *CASES.values()), strict=True))


@pytest.mark.parametrize("spelling", OVERRIDES)
def test_an_override_can_be_spelt_in_several_ways(configs: dict[str, dict[str, Any]], spelling: str) -> None:
    assert configs[spelling]["trainer"]["max_epochs"] == 3


def test_a_key_of_one_word_can_be_bare(configs: dict[str, dict[str, Any]]) -> None:
    assert configs["bare, of one word"]["seed"] == 7


def test_devices_have_options_of_their_own(configs: dict[str, dict[str, Any]]) -> None:
    trainer = configs["devices"]["trainer"]

    assert (trainer["accelerator"], trainer["devices"]) == ("gpu", 2)


def test_values_are_read_as_they_are_written(configs: dict[str, dict[str, Any]]) -> None:
    config = configs["values"]

    assert (config["task"]["lr"], config["name"]) == (0.001, "no")
    assert config["trainer"]["max_time"] == "00:12:30:00"


def test_arguments_of_the_science_are_shown_with_their_defaults(configs: dict[str, dict[str, Any]]) -> None:
    assert configs["science"]["data"] == {"batch_size": 8, "num_workers": 0, "split_seed": 0}


def test_the_task_names_the_metric_to_monitor_unless_the_configuration_does(configs: dict[str, dict[str, Any]]) -> None:
    assert configs["science"]["monitor"] == {"metric": "val_loss", "mode": "min"}
    assert configs["monitor"]["monitor"] == {"metric": "val_accuracy", "mode": "max"}


def test_a_callback_can_be_added_and_taken_away(configs: dict[str, dict[str, Any]]) -> None:
    callbacks = configs["callbacks"]["callbacks"]

    assert callbacks["slow"] == {"class": "Timer", "duration": "00:01:00:00"}
    assert callbacks["early_stopping"] is None


def test_presets_add_up_in_order_and_overrides_come_last(project: Project) -> None:
    presets = project.folder / "configs" / "presets"
    (presets / "one.yaml").write_text("seed: 1\nexperiment: one\ntrainer: {max_epochs: 1, min_epochs: 1}\n")
    (presets / "two.yaml").write_text("seed: 2\ntrainer: {max_epochs: 2}\n")
    (config,) = resolved(project, ["-p", "one", "-p", "two", "-o", "seed=3"])

    assert (config["seed"], config["experiment"]) == (3, "one")
    assert config["trainer"] == {"accelerator": "auto", "devices": "auto", "max_epochs": 2, "min_epochs": 1}


def test_presets_are_listed_with_what_they_are_for(rendered_project: Callable[..., Project]) -> None:
    presets = ["cpu", "gpu", "gpu-ddp", "gpu-fsdp", "multi-node", "tpu", "apple", "notebook"]
    project = rendered_project("all-of-them", presets=presets)
    lines = project.succeed("presets").splitlines()

    assert [line.split()[0] for line in lines] == sorted([*presets, "debug"])
    assert all(len(line.split()) > 3 for line in lines)
    configs = resolved(project, *(["--preset", line.split()[0]] for line in lines))
    assert [config["trainer"]["accelerator"] for config in configs] == [
        *("mps", "cpu", "cpu", "gpu", "gpu", "gpu", "gpu", "auto", "tpu")
    ]


def test_a_project_with_slack_has_its_callback(rendered_project: Callable[..., Project]) -> None:
    project = rendered_project("with-slack", slack=True)

    (config,) = resolved(project, [])

    assert config["callbacks"]["slack"]["class"].endswith("SlackProgress")


def test_help_answers_without_torch(untouched: Project) -> None:
    program = (
        "import sys\n"
        "from my_project.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print('HEAVY', [name for name in ('torch', 'rich', 'mlflow', 'sklearn') if name in sys.modules])\n"
    )

    result = subprocess.run(
        [sys.executable, "-c", program], env=untouched.environment, capture_output=True, text=True, check=True
    )

    assert "HEAVY []" in result.stdout
    assert all(
        command in result.stdout for command in ("fit", "validate", "test", "predict", "doctor", "ui", "presets")
    )
