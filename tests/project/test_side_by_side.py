"""Two projects with different names live in one environment and train at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from conftest import Project, warm


def test_two_projects_train_side_by_side(rendered_project: Callable[..., Project]) -> None:
    first, second = rendered_project("first-team"), rendered_project("second-team")
    both = os.pathsep.join(str(project.folder / "src") for project in (first, second))
    options = ("-o", "trainer.max_epochs=2", "-o", "loggers.mlflow=null")
    processes = [
        project.start("fit", *options, env={**project.environment, "PYTHONPATH": both}) for project in (first, second)
    ]
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, out + err

    for project in (first, second):
        (run,) = project.runs()
        assert run.parent.name == project.package
        assert project.status()["results"]["test_accuracy"] > 0.8


def test_two_projects_train_in_one_process(rendered_project: Callable[..., Project], tmp_path: Path) -> None:
    first, second = rendered_project("first-team"), rendered_project("second-team")
    (tmp_path / "together.py").write_text(
        "from first_team.engine import Trainer as A\n"
        "from second_team.engine import Trainer as B\n"
        "from first_team import science as a\n"
        "from second_team import science as b\n"
        "assert A is not B and a.Task is not b.Task\n"
        "quiet = dict(fast_dev_run=True, accelerator='cpu', enable_progress_bar=False, enable_model_summary=False)\n"
        "A(**quiet).fit(a.Task(), datamodule=a.Data())\n"
        "B(**quiet).fit(b.Task(), datamodule=b.Data())\n"
    )
    paths = os.pathsep.join(map(str, (first.folder / "src", second.folder / "src", tmp_path)))
    first.succeed(command=[*warm(), "together"], env={**first.environment, "PYTHONPATH": paths})
