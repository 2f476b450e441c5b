"""What was asked of the rendered project's structure; each name says which row of the requirements it holds."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.template.conftest import Render

PACKAGE = Path("src/my_project")
OF_SCIENCE = {"torch", "torchmetrics", "sklearn", "torchvision", "timm", "transformers"}
OF_ENGINEERING = {"typer", "pydantic", "yaml", "rich", "mlflow", "requests", "google"}


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    return render(slack=True, deploy=["container", "vertex-ai", "cloud-run", "kubernetes", "slurm"])


def imported(path: Path) -> set[str]:
    """The packages that a file imports by name, its own left out."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


def test_r22_science_and_engineering_do_not_import_each_others_libraries(project: Path) -> None:
    science = {name for path in (project / PACKAGE / "science").glob("*.py") for name in imported(path)}
    assert "torch" in science
    assert not science & OF_ENGINEERING
    rest = [*(project / PACKAGE).glob("*.py"), *(project / PACKAGE / "commands").glob("*.py")]
    engineering = {name for path in rest for name in imported(path)}
    assert "typer" in engineering
    assert not engineering & (OF_SCIENCE - {"torch", "torchmetrics"})


def test_r27_the_task_says_its_parts_its_steps_and_its_optimizers_in_this_order(project: Path) -> None:
    parsed = ast.parse((project / PACKAGE / "science/task.py").read_text("utf-8"))
    task = next(node for node in parsed.body if isinstance(node, ast.ClassDef))
    methods = [node.name for node in task.body if isinstance(node, ast.FunctionDef)]
    order = ["__init__", "forward", "training_step", "validation_step", "test_step", "predict_step"]
    assert [name for name in methods if name in (*order, "configure_optimizers")] == [*order, "configure_optimizers"]


@pytest.mark.parametrize("readme", ["README.md", "README.ja.md"])
def test_r28_the_readme_says_in_both_languages_where_the_model_is_changed(readme: str, project: Path) -> None:
    text = (project / readme).read_text("utf-8")
    for name in ("data.py", "model.py", "task.py"):
        assert f"`src/my_project/science/{name}`" in text
    assert "my-project fit" in text


def test_r34_the_example_s_real_digits_need_no_network(project: Path) -> None:
    program = """
import socket
def refuse(*_): raise OSError("no network")
socket.socket.connect = socket.create_connection = refuse
from my_project.science import Data
data = Data()
data.prepare_data()
data.setup("fit")
images, labels = next(iter(data.train_dataloader()))
rows = sum(len(part) for part in (data.train_set, data.val_set, data.test_set))
print(rows, tuple(images.shape), sorted(set(labels.tolist()))[-1])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project / "src", capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[0].startswith("1797 (32, 1, 8, 8)"), done.stderr
