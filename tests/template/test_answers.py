"""Questions: every bad answer is refused in one sentence, and every default is a good answer."""

from __future__ import annotations

import keyword
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import copier
import jinja2
import pytest
import yaml
from copier.errors import UserMessageError
from jinja2_ansible_filters import AnsibleCoreFiltersExtension

from .conftest import ROOT, Render

BAD_ANSWERS = [
    ("project_name", "", "write at least one letter"),
    ("project_name", "   ", "write at least one letter"),
    ("project_name", "x" * 61, "at most 60"),
    ("project_name", "two\nlines", "Leave line breaks"),
    ("project_name", "two\u2028lines", "Leave line breaks"),
    ("project_name", "blank ", "leave that out"),
    ("project_name", 'quo"te', "Leave line breaks"),
    ("project_name", "{{ 7 * 7 }}", "Leave line breaks"),
    ("project_description", "back\\slash", "Leave line breaks"),
    ("project_description", "x" * 101, "at most 100"),
    ("author_name", "a\tb", "Leave line breaks"),
    ("author_email", "nobody", "team@example.com"),
    ("author_email", "a@b", "team@example.com"),
    ("author_email", 'a"@example.com', "team@example.com"),
    ("package_name", "", "my_project"),
    ("package_name", "My-Project", "such as my_project"),
    ("package_name", "Class", "such as class_ml"),
    ("package_name", "1st", "such as project_1st"),
    ("package_name", "_x", "Begin with a letter"),
    ("package_name", "x_", "Begin with a letter"),
    ("package_name", "a.b", "such as a_b"),
    ("package_name", "不良検知", "such as my_project"),
    ("package_name", "a" * 41, "at most 40"),
    ("package_name", "class", "word of the Python language"),
    ("package_name", "json", "standard library"),
    ("package_name", "torch", "torch_ml"),
    ("package_name", "click", "click_ml"),
    ("package_name", "science", "science_ml"),
    ("package_name", "python", "python_ml"),
    ("package_name", "null", "null_ml"),
    ("license", "GPL", "MIT"),
    ("python_min", "3.10", "3.11, 3.12, 3.13"),
    ("slack", "maybe", "true or false"),
    ("tracker", "azure", "app-engine"),
    ("google_project", "X", "my-team-mlflow"),
    ("google_region", "tokyo", "asia-northeast1"),
    ("presets", "cpu", "presets=[cpu, gpu]"),
    ("presets", "[cpu, cow]", "multi-node"),
    ("presets", [], "at least one"),
    ("deploy", ["aws"], "cloud-run"),
    ("licence", "MIT", "the questions are project_name"),
]


@pytest.mark.parametrize(("question", "answer", "remedy"), BAD_ANSWERS)
def test_bad_answer_given_as_data_is_one_sentence(
    question: str, answer: object, remedy: str, template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserMessageError, match="nothing_was_rendered"):
        copier.run_copy(str(template), tmp_path / "project", data={question: answer}, defaults=True)
    sentence = capsys.readouterr().err.strip()
    assert remedy in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert not (tmp_path / "project").exists()


@pytest.mark.parametrize(
    ("question", "answer", "remedy"), [bad for bad in BAD_ANSWERS if bad[0] not in {"licence", "slack"}]
)
def test_bad_answer_is_refused_in_a_quiet_copy_too(
    question: str, answer: object, remedy: str, template: Path, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, TypeError)):
        copier.run_copy(str(template), tmp_path / "project", data={question: answer}, defaults=True, quiet=True)


def test_text_that_is_no_unicode_is_refused(template: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Leave line breaks"):
        copier.run_copy(str(template), tmp_path / "p", data={"author_name": "half \ud83d"}, defaults=True, quiet=True)


def test_bad_answer_on_the_command_line_ends_without_a_traceback(template: Path, tmp_path: Path) -> None:
    command = ["copy", "--defaults", "-d", "package_name=class", str(template), str(tmp_path / "project")]
    ended = subprocess.run([sys.executable, "-m", "copier", *command], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Choose another name, such as class_ml: `class` is a word of the Python language.")
    assert "Traceback" not in ended.stderr + ended.stdout
    assert not (tmp_path / "project").exists()


def test_bad_answer_typed_at_the_prompt_is_refused_there(template: Path, tmp_path: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        termios.tcsetwinsize(0, (24, 120))
        os.execv(sys.executable, [sys.executable, "-m", "copier", "copy", str(template), str(tmp_path / "my-project")])
    shown = read_until(terminal, "my-project")
    os.write(terminal, b'"\r')
    shown = read_until(terminal, "Leave line breaks")
    os.write(terminal, b"\x03")
    read_until(terminal, "Execution stopped")
    _, status = os.waitpid(child, 0)
    assert "TOML" in shown
    assert os.waitstatus_to_exitcode(status) == 1


def read_until(terminal: int, expected: str, timeout_s: float = 20.0) -> str:
    """Read a terminal's output until a text appears in it; fails with what came instead."""
    shown, end = "", time.monotonic() + timeout_s
    while expected not in shown and time.monotonic() < end:
        try:
            if select.select([terminal], [], [], 0.2)[0]:
                shown += os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # the other side has closed
            break
    assert expected in shown, shown
    return shown


@pytest.mark.parametrize(
    ("project", "folder", "package"),
    [
        ("Defect Finder", "x", "defect_finder"),
        ("defect-finder 2", "x", "defect_finder_2"),
        ("2026 sales", "x", "project_2026_sales"),
        ("Torch", "x", "torch_ml"),
        ("Class", "x", "class_ml"),
        ("Off", "x", "off_ml"),
        ("Ä", "demand", "demand"),
        ("不良検知", "defect-finder", "defect_finder"),
        ("不良検知", "不良検知", "my_project"),
        ("不良検知 v2", "x", "v2"),
        ("X", "x", "x_ml"),
        (("a very long name " * 3).strip(), "x", "a_very_long_name_a_very_long_name_a"),
    ],
)
def test_package_name_follows_from_the_project_name(project: str, folder: str, package: str) -> None:
    assert macros()["package_name_default"](project, folder) == package
    assert package.isidentifier()


@pytest.mark.parametrize(
    ("folder", "name", "package"),
    [("tmp.Ab1", "tmp.Ab1", "tmp_ab1"), ("不良検知", "不良検知", "my_project"), ('a"b', "my-project", "my_project")],
)
def test_project_takes_its_names_from_the_folder(folder: str, name: str, package: str, render: Render) -> None:
    answers = yaml.safe_load((render(folder) / ".copier-answers.yml").read_text("utf-8"))
    assert (answers["project_name"], answers["package_name"]) == (name, package)


def macros() -> dict[str, Any]:
    """Return the macros and lists of hooks/validators.jinja."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT), extensions=[AnsibleCoreFiltersExtension], autoescape=False
    )
    return vars(environment.get_template("hooks/validators.jinja").module)


def test_choices_are_the_same_in_the_questions_and_in_their_check() -> None:
    questions = yaml.safe_load((ROOT / "copier.yml").read_text("utf-8"))
    for name, accepted in macros()["choices"].items():
        choices = questions[name]["choices"]
        assert list(choices.values() if isinstance(choices, dict) else choices) == accepted
    asked = [name for name in questions if not name.startswith("_") and name != "answers_given"]
    assert asked == macros()["questions"]


def test_every_question_has_help_of_one_line_and_a_default() -> None:
    questions = yaml.safe_load((ROOT / "copier.yml").read_text("utf-8"))
    for name in macros()["questions"]:
        assert "default" in questions[name], name
        assert "\n" not in questions[name]["help"].strip(), name
        assert len(questions[name]["help"]) <= 76, name  # the prompt cuts the rest in a terminal of 80 columns
        assert "validator" in questions[name] or "choices" in questions[name] or questions[name]["type"] == "bool"


def test_names_that_python_takes_are_known() -> None:
    lists = macros()
    standard = {name for name in sys.stdlib_module_names if re.fullmatch(r"[a-z][a-z0-9_]*", name)}
    assert standard <= set(lists["standard_library"]) | set(lists["keywords"])
    assert set(keyword.kwlist) <= set(lists["keywords"])


def test_names_of_the_dependencies_are_known(render: Render) -> None:
    lists = macros()
    imported_as = {"scikit-learn": "sklearn", "pyyaml": "yaml", "comet-ml": "comet_ml", "pre-commit": "pre_commit"}
    project = render(slack=True, presets=["cpu", "tpu"], deploy=["cloud-run"])
    pyproject = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]
    required = [*pyproject["dependencies"], *chain.from_iterable(pyproject["optional-dependencies"].values())]
    names = {re.split(r"[<>=\[ ]", requirement.lower())[0] for requirement in required}
    imports = {imported_as.get(name, name) for name in names if not name.startswith("types-")}
    assert imports <= set(lists["dependencies"])
