"""A mistake is one clear sentence on stderr and exit code 2: no traceback, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Project

MISTAKES = {
    "unknown key": (["fit", "-o", "trainer.max_epoch=3"], ["`trainer.max_epoch`", "`max_epochs`", "-o trainer"]),
    "unknown section": (["fit", "-o", "trianer.max_epochs=3"], ["`trianer`", "`trainer`"]),
    "key without its section": (["fit", "max_epochs=3"], ["`max_epochs`", "`trainer.max_epochs`"]),
    "list as key": (["fit", "-o", "task={[a, b]: 1}"], ["plain word", "-o task="]),
    "unlike any key": (["fit", "-o", "zzz=3"], ["`zzz`", "experiment, name, seed"]),
    "wrong type": (["fit", "-o", "trainer.max_epochs=many"], ["`trainer.max_epochs`", "valid integer", "'many'"]),
    "number as text": (["fit", "-o", "trainer.max_epochs='3'"], ["`trainer.max_epochs`", "valid integer", "'3'"]),
    "no mapping": (["fit", "-o", "trainer=3"], ["`trainer`", "mapping", "the number 3"]),
    "out of range": (["fit", "-o", "seed=-1"], ["`seed`", "greater than or equal to 0", "-1"]),
    "not one of": (["fit", "-o", "monitor.mode=big"], ["`monitor.mode`", "'min' or 'max'"]),
    "path as name": (["fit", "-o", "experiment=../up"], ["`experiment`", "folder name"]),
    "no override": (["fit", "-o", "trainer.max_epochs"], ["-o trainer.max_epochs", "dotted.key=value"]),
    "broken value": (["fit", "-o", "trainer.devices=[0"], ["-o trainer.devices=[0", "YAML"]),
    "unknown preset": (["fit", "--preset", "cpus"], ["`cpus`", "`cpu`", "debug"]),
    "missing file": (["fit", "--config", "configs/confg.yaml"], ["configs/confg.yaml", "`config.yaml`"]),
    "missing folder": (["fit", "--config", "nowhere/config.yaml"], ["no folder nowhere"]),
    "folder as file": (["fit", "--config", "configs"], ["configs", "irectory"]),
    "unknown task argument": (["fit", "-o", "task.learning_rat=1"], ["`task.learning_rat`", "It takes:", "lr"]),
    "near task argument": (["fit", "-o", "task.chanels=1"], ["`task.chanels`", "`channels`", "DigitsTask"]),
    "wrong task type": (["fit", "-o", "task.lr=fast"], ["`task.lr`", "valid number", "'fast'"]),
    "unknown class": (["fit", "-o", "callbacks.x={class: EarlyStoping}"], ["`EarlyStoping`", "`EarlyStopping`"]),
    "no class": (["fit", "-o", "callbacks.x={patience: 3}"], ["`callbacks.x`", "`class`"]),
    "unknown module": (["fit", "-o", "task.class=nowhere.Task"], ["`nowhere`", "-o task.class"]),
    "not a task": (["fit", "-o", "task.class=science.Data"], ["`task`", "LightningModule", "science.Data"]),
    "unknown callback argument": (
        ["fit", "-o", "callbacks.early_stopping.patiense=3"],
        ["`patience`", "EarlyStopping"],
    ),
    "metric without mode": (["fit", "-o", "monitor.metric=val_accuracy"], ["`monitor.mode`"]),
    "no training yet": (["test"], ["runs/my_project", "Train first"]),
    "nothing to resume": (["fit", "--resume", "last"], ["runs/my_project", "Train first"]),
    "missing checkpoint": (["test", "--checkpoint", "best.ckpt"], ["best.ckpt", "`best`"]),
    "missing checkpoint folder": (["fit", "--resume", "no/last.ckpt"], ["no/last.ckpt", "folder no "]),
    "checkpoint that looks like an override": (["test", "--checkpoint", "epoch=0.ckpt"], ["checkpoint epoch=0.ckpt"]),
    "nearly best": (["test", "--checkpoint", "bset"], ["`best`"]),
    "empty resume": (["fit", "--resume", ""], ["no checkpoint", "`last`"]),
    "number with zeros": (["fit", "-o", "seed=010"], ["`seed`", "valid integer", "'010'"]),
    "alias of itself": (["fit", "-o", "data.batch_size=&a [*a]"], ["contains itself", "-o data.batch_size"]),
    "missing device": (["fit", "--accelerator", "gpu"], ["gpu", "cpu"]),
    "unknown device": (["fit", "--accelerator", "gqu"], ["gqu"]),
    "nothing to look at": (["ui"], ["Train first"]),
}


@pytest.fixture(scope="session")
def answers(untouched: Project) -> dict[str, tuple[int, str, str]]:
    """Return exit code, stdout and stderr of every mistake."""
    return dict(zip(MISTAKES, untouched.answer([arguments for arguments, _ in MISTAKES.values()]), strict=True))


def the_sentence(stderr: str) -> str:
    """Return the one sentence that stderr must hold."""
    lines = [line for line in stderr.splitlines() if line]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("Error: ")
    assert lines[0].rstrip(" `)")[-1] in ".?"
    return lines[0]


def one_sentence(project: Project, *arguments: str, exit_code: int = 2, cwd: Path | None = None) -> str:
    """Run a command that must fail with one sentence; return the sentence."""
    result = project.run(*arguments, cwd=cwd or project.folder)
    assert result.returncode == exit_code, result.stdout + result.stderr
    return the_sentence(result.stderr)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_that_helps(answers: dict[str, tuple[int, str, str]], name: str) -> None:
    exit_code, _, stderr = answers[name]
    sentence = the_sentence(stderr)

    assert exit_code == 2
    assert [word for word in MISTAKES[name][1] if word not in sentence] == []


def test_a_mistake_leaves_no_file(answers: dict[str, tuple[int, str, str]], untouched: Project) -> None:
    assert not (untouched.folder / "runs").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("trainer: {max_epoch: 3}\n", ["line 2", "`max_epochs`"]),
        ("task:\n  chanels: 3\n", ["line 3", "`channels`"]),
        ("seed: 1\n", ["`seed`", "twice", "line 1", "line 2"]),
        ("trainer: {max_epochs: 3\n", ["not valid YAML", "line"]),
        ("data: [1, 2]\n", ["`data`", "a mapping", "a list", "line 2"]),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(project: Project, line: str, words: list[str]) -> None:
    (project.folder / "mine.yaml").write_text(f"seed: 3\n{line}")
    sentence = one_sentence(project, "fit", "--config", "mine.yaml")

    assert [word for word in ["mine.yaml", *words] if word not in sentence] == []


@pytest.mark.parametrize("content", ["- 1\n- 2\n", "just text\n"])
def test_a_file_that_holds_no_keys_is_refused(project: Project, content: str) -> None:
    (project.folder / "mine.yaml").write_text(content)

    assert "`key: value`" in one_sentence(project, "fit", "--config", "mine.yaml")


def test_a_preset_names_its_own_line(project: Project) -> None:
    (project.folder / "configs" / "presets" / "mine.yaml").write_text("# Mine.\ntrainer:\n  precison: 16-mixed\n")
    sentence = one_sentence(project, "fit", "--preset", "mine")

    assert "configs/presets/mine.yaml, line 3" in sentence
    assert "`precision`" in sentence


def test_a_folder_that_cannot_be_made_is_named(project: Project) -> None:
    (project.folder / "taken").write_text("a file")
    sentence = one_sentence(project, "fit", "-o", "runs_dir=taken")

    assert "taken" in sentence
    assert "-o runs_dir=PATH" in sentence


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(project: Project) -> None:
    (project.folder / "locked").mkdir(mode=0o555)

    assert "locked" in one_sentence(project, "fit", "-o", "runs_dir=locked")


def test_a_read_only_file_system_is_named(project: Project) -> None:
    assert "/proc/runs" in one_sentence(project, "fit", "-o", "runs_dir=/proc/runs")


def test_a_broken_checkpoint_is_one_sentence(project: Project) -> None:
    (project.folder / "torn.ckpt").write_bytes(b"PK\x03\x04 and then nothing")
    sentence = one_sentence(project, "test", "--checkpoint", "torn.ckpt", "-o", "loggers.mlflow=null", exit_code=1)

    assert "torn.ckpt" in sentence


def test_a_metric_that_nobody_logs_is_one_sentence(project: Project) -> None:
    one_epoch = ["-o", "trainer.max_epochs=1", "-o", "loggers.mlflow=null"]
    misspelt = ["-o", "monitor.metric=val_los", "-o", "monitor.mode=min"]
    sentence = one_sentence(project, "fit", *one_epoch, *misspelt, exit_code=1)

    assert "Did you mean `val_loss`?" in sentence
    assert project.status()["status"] == "failed"


def test_outside_of_a_project_the_command_says_where_to_go(untouched: Project, tmp_path: Path) -> None:
    assert "Run from the project" in one_sentence(untouched, "fit", cwd=tmp_path)


@pytest.mark.parametrize("port", ["0", "99999"])
def test_a_port_that_cannot_be_is_refused(untouched: Project, port: str) -> None:
    result = untouched.run("ui", "--port", port)

    assert result.returncode == 2
    assert "equal to" in result.stderr
    assert "--port" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_configuration_says_where_the_project_is(project: Project, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    config = str(project.folder / "configs" / "config.yaml")
    sentence = one_sentence(project, "test", "--config", config, "--preset", "cpu", cwd=elsewhere)

    assert f"{project.folder}/runs/my_project" in sentence


def test_an_unknown_option_is_refused_by_name(untouched: Project) -> None:
    result = untouched.run("fit", "--max-epochs", "3")

    assert result.returncode == 2
    assert "--max-epochs" in result.stderr
    assert "Traceback" not in result.stderr
