"""`science/` is all a team writes: another one needs no edit elsewhere, and its own errors are shown as they are."""

from __future__ import annotations

import csv
import shutil

from conftest import Project

SMALL = '''"""A line through points, in as few words as there are."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from ..engine import LightningModule


class Task(LightningModule):
    def __init__(self, slope: float = 0.0):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(slope))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = ((self.slope * x - y) ** 2).mean()
        self.log("loss", loss)
        return loss

    def train_dataloader(self):
        x = torch.linspace(-1, 1, 64)
        return DataLoader(TensorDataset(x, 3 * x), batch_size=8)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)
'''


TEXTS = '''"""Texts of two kinds, told apart by their letters: batches are dicts, of lists and of tensors."""

import torch
from torch.utils.data import DataLoader

from ..engine import LightningDataModule, LightningModule

ROWS = [{"text": text, "label": label} for label, texts in enumerate(["abab", "xyzz"]) for text in texts * 8]


class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(ROWS, batch_size=4, shuffle=True)

    def test_dataloader(self):
        return DataLoader(ROWS, batch_size=4)

    def predict_dataloader(self):
        return DataLoader(["a", "ü, 猫", "z"], batch_size=2)


class Task(LightningModule):
    def __init__(self):
        super().__init__()
        self.letters = torch.nn.Embedding(128, 2)

    def forward(self, texts):
        return torch.stack([self.letters(torch.tensor([ord(c) % 128 for c in text])).mean(0) for text in texts])

    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self(batch["text"]), batch["label"])
        self.log("loss", loss)
        return loss

    def test_step(self, batch, batch_idx):
        right = (self(batch["text"]).argmax(1) == batch["label"]).float().mean()
        self.log("accuracy", right)
        self.log("tiny", right * 0 + 3e-7)

    def predict_step(self, batch, batch_idx):
        return {"text": batch, "label": self(batch).argmax(1)}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.3)
'''


def replace_science(project: Project, code: str) -> None:
    science = project.folder / "src" / project.package / "science"
    shutil.rmtree(science)
    science.mkdir()
    (science / "__init__.py").write_text(code)


def test_another_small_model_needs_no_edit_elsewhere(project: Project) -> None:
    replace_science(project, SMALL)
    printed = project.succeed("fit", "-o", "loggers.mlflow=null")

    assert project.status()["status"] == "finished"
    assert (project.runs()[0] / "checkpoints" / "last.ckpt").is_file()
    assert "runs/my_project/" in printed
    assert "slope: 0.0" in project.succeed("fit", "--print-config")


def test_a_model_of_texts_needs_no_edit_elsewhere(project: Project) -> None:
    replace_science(project, TEXTS)
    quick = ["-o", "loggers.mlflow=null", "-o", "trainer.max_epochs=1"]
    (code, fitted, error), (_, predicted, _) = project.answer([["fit", *quick], ["predict", *quick]])

    assert code == 0, error
    assert "1 epoch, 16 steps" in fitted
    assert "3e-07" in fitted
    assert "curves:" not in fitted + predicted
    with (project.runs()[-1] / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == ["text", "a", "ü, 猫", "z"]
    assert {row[1] for row in rows[1:]} <= {"0", "1"}


def test_a_stage_that_the_science_does_not_have_is_one_sentence(project: Project) -> None:
    replace_science(project, SMALL)
    missing = {"validate": "validation_step", "test": "test_step", "predict": "predict_step"}
    quick = ["-o", "loggers.mlflow=null", "-o", "trainer.max_epochs=1"]
    fitted, *answers = project.answer([[command, *quick] for command in ("fit", *missing)])

    assert fitted[0] == 0, fitted
    for (code, _, error), name in zip(answers, missing.values(), strict=True):
        assert code == 2
        assert name in error
        assert "Traceback" not in error


def test_another_class_is_chosen_by_its_name(project: Project) -> None:
    science = project.folder / "src" / "my_project" / "science"
    (science / "other.py").write_text(SMALL.replace("class Task", "class Line"))
    project.succeed("fit", "-o", "task.class=science.other.Line", "-o", "loggers.mlflow=null")

    assert project.status()["status"] == "finished"


def test_without_a_task_the_convention_is_said(project: Project) -> None:
    replace_science(project, "")
    result = project.run("fit")

    assert result.returncode == 2
    assert "no class `Task` in science" in result.stderr


def test_an_error_in_the_science_keeps_its_traceback_without_ours(project: Project) -> None:
    replace_science(project, SMALL.replace("x, y = batch", "x, y, z = batch"))
    result = project.run("fit", "-o", "loggers.mlflow=null")
    lines = result.stderr.splitlines()
    frames = [line for line in lines if line.lstrip().startswith("File ")]

    assert result.returncode == 1
    assert any("x, y, z = batch" in line for line in lines)
    assert any("ValueError: not enough values to unpack" in line for line in lines)
    assert ["science/__init__.py" in line for line in frames] == [True] * len(frames)
    assert "/engine/" in (project.runs()[0] / "traceback.txt").read_text()
    assert project.status()["status"] == "failed"


def test_an_error_before_the_training_leaves_no_folder(project: Project) -> None:
    replace_science(
        project, SMALL.replace("super().__init__()", "super().__init__()\n        raise OSError('no data')")
    )
    result = project.run("fit")

    assert result.returncode == 1
    assert "OSError: no data" in result.stderr
    assert not (project.folder / "runs").exists()
