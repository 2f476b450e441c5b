"""Rendered projects: nothing left over, nothing dead, whatever the answers."""

from __future__ import annotations

import ast
import os
import re
import resource
import shlex
import subprocess
import sys
import tomllib
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, Render

MINIMAL: dict[str, Any] = {
    "presets": ["cpu"],
    "deploy": [],
    "author_email": "",
    "slack": False,
    "tracker": "local",
}
FULL: dict[str, Any] = {
    "project_name": "L'été des données",
    "package_name": "summer_of_data_ml",
    "project_description": "It's the team's model: 100 % of it, at #1.",
    "author_name": "O'Hara & Søn: データ科学部",
    "author_email": "team@example.com",
    "license": "Apache-2.0",
    "python_min": "3.12",
    "slack": True,
    "tracker": "app-engine",
    "google_project": "summer-42",
    "google_region": "europe-west1",
    "presets": ["cpu", "gpu", "gpu-ddp", "gpu-fsdp", "multi-node", "tpu", "apple", "notebook"],
    "deploy": ["container", "vertex-ai", "cloud-run", "kubernetes", "slurm"],
}
# Independent axes are gone through side by side: each value is met, and so are many pairs, without their product.
AXES: dict[str, list[Any]] = {
    "project_name": ["my-project", "不良検知", "Bob's 2nd model"],
    "license": ["Proprietary", "MIT", "Apache-2.0", "BSD-3-Clause"],
    "python_min": ["3.11", "3.12", "3.13"],
    "slack": [False, True],
    "tracker": ["local", "app-engine", "cloud-run"],
    "presets": [
        ["cpu"],
        ["gpu"],
        ["cpu", "gpu-ddp"],
        ["multi-node"],
        ["cpu", "gpu", "tpu"],
        ["tpu", "notebook"],
        ["gpu-fsdp"],
        ["apple"],
        ["gpu", "multi-node"],
    ],
    "deploy": [
        [],
        ["container"],
        ["vertex-ai"],
        ["cloud-run"],
        ["slurm"],
        ["cloud-run", "slurm"],
        ["kubernetes"],
        ["vertex-ai", "slurm"],
    ],
}
CYCLED = [dict(zip(AXES, values, strict=True)) for values in islice(zip(*map(cycle, AXES.values()), strict=False), 14)]
ANSWERS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "minimal": MINIMAL,
    "full": FULL,
    "long-names": {"package_name": "a" * 40, "project_name": "N" * 60, "project_description": "D" * 100, "slack": True},
    **{f"cycle-{i}": answers for i, answers in enumerate(CYCLED)},
}


@pytest.fixture(params=ANSWERS.values(), ids=ANSWERS.keys(), scope="module")
def answers(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture(scope="module")
def project(answers: dict[str, Any], render: Render) -> Path:
    return render(**answers)


def text_files(project: Path) -> list[Path]:
    return [path for path in sorted(project.rglob("*")) if path.is_file() and path.suffix != ".png"]


def package(project: Path) -> Path:
    (found,) = (project / "src").iterdir()
    return found


def pyproject(project: Path) -> dict[str, Any]:
    return tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]


def test_no_template_language_is_left(project: Path) -> None:
    for path in text_files(project):
        text = re.sub(r"\$\{\{ [a-z.|' -]+ \}\}", "", path.read_text("utf-8"))  # GitHub's own expressions
        if path.suffix not in {".py", ".ipynb"}:  # where doubled braces are Python's
            assert not re.search(r"\{\{|\}\}|\{%|%\}", text), path
        assert not path.name.endswith(".jinja")


def test_text_is_tidy(project: Path) -> None:
    for path in text_files(project):
        text = path.read_text("utf-8")
        assert not re.search(r"[ \t]+$", text, re.MULTILINE), f"blanks at a line's end in {path}"
        assert not text or (text.endswith("\n") and not text.endswith("\n\n")), f"end of {path}"
        if path.suffix != ".py":
            assert not re.search(r"\A\n|\n\n\n", text), f"empty lines in {path}"


def test_no_folder_is_empty(project: Path) -> None:
    empty = [path for path in project.rglob("*") if path.is_dir() and not any(path.iterdir())]
    assert not empty


def test_yaml_toml_and_python_can_be_read(project: Path) -> None:
    for path in text_files(project):
        text = path.read_text("utf-8")
        if path.suffix in {".yaml", ".yml"}:
            yaml.safe_load(text)
        elif path.suffix == ".toml":
            tomllib.loads(text)
        elif path.suffix == ".py":
            ast.parse(text, feature_version=(3, 11))


def test_ruff_of_the_project_finds_nothing(project: Path) -> None:
    for command in (["format", "--check"], ["check"]):
        ended = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."],
            cwd=project, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr


def test_names_arrive_unchanged(project: Path, answers: dict[str, Any]) -> None:
    table = pyproject(project)
    given = yaml.safe_load((project / ".copier-answers.yml").read_text("utf-8"))
    assert table["name"] == given["package_name"].replace("_", "-")
    assert table["description"] == given["project_description"]
    assert table["authors"][0]["name"] == given["author_name"]
    assert table["requires-python"] == f">={given['python_min']}"
    assert {key: given[key] for key in answers} == answers
    assert given["project_name"] in (project / "README.md").read_text("utf-8")


def test_slack_is_named_only_where_it_is_wanted(project: Path) -> None:
    wanted = yaml.safe_load((project / ".copier-answers.yml").read_text("utf-8"))["slack"]
    naming = {
        path.relative_to(project).as_posix()
        for path in text_files(project)
        if "slack" in path.as_posix().removeprefix(project.as_posix()).lower()
        or "slack" in path.read_text("utf-8").lower()
    }
    naming.discard(".copier-answers.yml")  # remembers that it was not wanted
    assert bool(naming) == wanted, naming
    if wanted:
        assert ".env.example" in naming


def test_the_tracker_on_google_is_named_only_where_it_is_wanted(project: Path) -> None:
    given = yaml.safe_load((project / ".copier-answers.yml").read_text("utf-8"))
    words = r"app.?engine|\biap\b|identity-aware|google.auth"
    if given["tracker"] == "cloud-run":
        words = r"app.?engine|app\.yaml"
    naming = {
        path.relative_to(project).as_posix()
        for path in text_files(project)
        if re.search(words, path.read_text("utf-8"), re.IGNORECASE)
    }
    assert bool(naming) == (given["tracker"] == "app-engine"), naming
    configs = {path.stem for path in (project / "configs" / "tracking").iterdir()}
    assert configs == {"local", given["tracker"]}
    extras = pyproject(project)["optional-dependencies"]
    assert ("google" in extras) == (given["tracker"] != "local")


def test_presets_and_deployments_are_those_chosen(project: Path) -> None:
    given = yaml.safe_load((project / ".copier-answers.yml").read_text("utf-8"))
    assert {path.stem for path in (project / "configs" / "presets").iterdir()} >= set(given["presets"])
    always = {path.stem for path in (project / "configs" / "presets").iterdir()} - set(given["presets"])
    assert not always & {"cpu", "gpu", "gpu-ddp", "gpu-fsdp", "multi-node", "tpu", "apple", "notebook"}
    needs_image = {"container", "vertex-ai", "cloud-run", "kubernetes"} & set(given["deploy"])
    expected = set(given["deploy"]) | ({"container"} if needs_image else set())
    expected |= {"mlflow"} if given["tracker"] != "local" else set()
    assert {path.name for path in (project / "deploy").glob("*")} == expected
    assert (project / ".dockerignore").exists() == bool(needs_image)


def test_presets_that_files_name_exist(project: Path) -> None:
    presets = {path.stem for path in (project / "configs" / "presets").iterdir()}
    for path in text_files(project):
        if path.suffix == ".py":
            continue
        named = re.findall(
            r"--preset[ =]([a-z][a-z-]*)", re.sub(r"--preset\n\s+- ", "--preset ", path.read_text("utf-8"))
        )
        assert set(named) <= presets, path


def test_secrets_are_named_and_never_given(project: Path) -> None:
    lines = (project / ".env.example").read_text("utf-8").splitlines()
    assert all(not line or line.startswith("#") or re.fullmatch(r"[A-Z][A-Z0-9_]*=", line) for line in lines)


def test_scripts_can_be_started(project: Path) -> None:
    scripts = [*project.glob("deploy/*/*.sh")]
    assert all(os.access(script, os.X_OK) for script in scripts)
    given = yaml.safe_load((project / ".copier-answers.yml").read_text("utf-8"))
    expected = {"vertex-ai", "cloud-run", "kubernetes"} & set(given["deploy"]) | (
        {"mlflow"} if given["tracker"] != "local" else set()
    )
    assert {script.parent.name for script in scripts} == expected


IMPORTED_AS = {"google-auth": "google", "scikit-learn": "sklearn", "pyyaml": "yaml", "comet-ml": "comet_ml"}
# Tools are run, not imported; stubs serve mypy; torch itself loads torch_tpu.
NEVER_IMPORTED = {"mypy", "nox", "pre-commit", "pytest", "ruff", "torch_tpu", "types-psutil", "types-pyyaml"}


def imports(folder: Path) -> set[str]:
    """Return the top-level names that Python files import, also by `require("name", ...)` of the engine."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                function = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if function in {"require", "import_module", "find_spec"} and not str(node.args[0].value).startswith(
                    "."
                ):
                    names.add(str(node.args[0].value).partition(".")[0])
    return names


def test_every_dependency_is_used_and_every_import_is_a_dependency(project: Path) -> None:
    table = pyproject(project)
    name_of = lambda requirement: re.split(r"[<>=\[ ]", requirement.lower())[0]  # noqa: E731
    needed = {name_of(requirement) for requirement in table["dependencies"]}
    optional = {name_of(requirement) for extra in table["optional-dependencies"].values() for requirement in extra}
    # The tracking server is an image of its own, with its own requirements.
    own_image = project / "deploy" / "mlflow"
    used = imports(project / "src").union(*(imports(path) for path in project.glob("deploy/*") if path != own_image))
    unused = {name for name in needed | optional if IMPORTED_AS.get(name, name) not in used} - NEVER_IMPORTED
    assert not unused
    own = {package(project).name}
    known = {IMPORTED_AS.get(name, name) for name in needed | optional} | set(sys.stdlib_module_names) | own
    assert used - known <= BROUGHT_BY_OTHERS


# numpy comes with scikit-learn, fastapi with litserve, click with typer; whether there is a pip is only asked.
BROUGHT_BY_OTHERS = {"numpy", "fastapi", "click", "IPython", "pip", "torch_xla", "torch_tpu"}


def test_extras_that_messages_name_exist(project: Path) -> None:
    table = pyproject(project)
    always = {re.split(r"[<>=\[ ]", item)[0] for item in table["dependencies"]}
    installed = {IMPORTED_AS.get(name, name) for name in always}
    extras = set(table["optional-dependencies"])
    for path in (project / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            is_asked = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("require", "require_later")
            if is_asked and all(isinstance(argument, ast.Constant) for argument in node.args[:2]):
                module, extra = (str(ast.literal_eval(argument)) for argument in node.args[:2])
                assert extra in extras or module.partition(".")[0] in installed, f"{path}: {ast.unparse(node)}"


def test_every_extra_is_explained_in_both_readmes(project: Path) -> None:
    extras = {*pyproject(project)["optional-dependencies"]} - {"dev"}
    for name in ("README.md", "README.ja.md"):
        table = (project / name).read_text("utf-8").partition("| extra |")[2].partition("\n\n")[0]
        first_cells = " ".join(re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE))
        assert set(re.findall(r"`(\w+)`", first_cells)) == extras, name


def test_paths_that_documents_name_exist(project: Path) -> None:
    for document in project.glob("*.md"):
        for name in re.findall(r"`((?:src|configs|deploy|tests|notebooks)/[\w./-]+)`", document.read_text("utf-8")):
            assert (project / name).exists(), f"{document.name} names {name}"


def test_agents_file_is_short(project: Path) -> None:
    assert len((project / "AGENTS.md").read_text("utf-8").splitlines()) < 40


def test_copy_asks_for_no_trust_and_costs_little_more_than_copier(template: Path, tmp_path: Path) -> None:
    """The budget is 1.5 s where starting Copier alone takes 0.4 s; a ratio, as other processes share the machine."""
    copies = (["copy", "--defaults", str(template), str(tmp_path / f"my-project-{i}")] for i in range(3))
    pairs = [(cpu_seconds_of_copier("--version"), cpu_seconds_of_copier(*copy)) for copy in copies]
    starts, renders = zip(*pairs, strict=True)
    assert min(renders) < 3.75 * min(starts)


def cpu_seconds_of_copier(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run([sys.executable, "-m", "copier", *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_message_after_the_copy_names_the_next_three_commands(template: Path, tmp_path: Path) -> None:
    command = ["copy", "--defaults", str(template), str(tmp_path / "my-project")]
    shown = subprocess.run(
        [sys.executable, "-m", "copier", *command], capture_output=True, text=True, check=True
    ).stderr
    commands = [line.strip() for line in shown.partition("Next:")[2].splitlines() if line.startswith("  ")]
    assert [command.split()[0] for command in commands] == ["cd", "uv", ".venv/bin/my-project"]


def test_message_after_the_copy_can_be_pasted_whatever_the_folder(template: Path, tmp_path: Path) -> None:
    folder = tmp_path / "猫's project"
    command = [sys.executable, "-m", "copier", "copy", "--defaults", str(template), str(folder)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    line = next(line for line in shown.splitlines() if line.startswith("  cd "))
    assert shlex.split(line)[:3] == ["cd", str(folder), "&&"]


def test_template_is_configured_to_need_no_trust() -> None:
    settings = yaml.safe_load((ROOT / "copier.yml").read_text("utf-8"))
    assert not {"_tasks", "_jinja_extensions"} & set(settings)
    assert all("version" in migration for migration in settings.get("_migrations", []))


@pytest.mark.parametrize(
    ("license", "phrase"),
    [
        ("MIT", "Permission is hereby granted"),
        ("BSD-3-Clause", "Neither the name of the copyright holder"),
        ("Apache-2.0", "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION"),
        ("Proprietary", "All rights reserved"),
    ],
)
def test_licence_is_the_one_chosen(license: str, phrase: str, render: Render) -> None:
    project = render(license=license, author_name="The author")
    text = (project / "LICENSE").read_text("utf-8")
    assert phrase in text
    assert license == "Apache-2.0" or "Copyright (c) The author" in text
    assert license in pyproject(project)["license"]
