"""The template's own repository: commands, languages and files agree with each other."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from .conftest import ROOT, Render

HERE = "tests/template/test_repository.py"
START = "python3 -m venv .venv && .venv/bin/pip install -q nox uv && .venv/bin/nox"
COMMANDS = [f"{START} -s demo", START]


def blocks(document: Path) -> list[str]:
    """Return the code blocks of a Markdown file, without comments and without words in another script."""
    found = re.findall(r"```\w*\n(.*?)```", document.read_text("utf-8"), re.DOTALL)
    return [re.sub(r"\s+#.*| \S*[^\x00-\x7f]\S*| [A-Z_]{10,}", "", block) for block in found]


def test_readme_has_the_two_commands_and_ci_runs_them() -> None:
    assert [block.strip() for block in blocks(ROOT / "README.md")][:2] == COMMANDS
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    run = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in run
    assert COMMANDS[0] in run
    assert COMMANDS[1] in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


@pytest.mark.parametrize(
    "document", ["README.md", *[f"docs/en/{page.name}" for page in (ROOT / "docs/en").glob("*.md")]]
)
def test_both_languages_show_the_same_commands(document: str) -> None:
    other = document.replace("docs/en/", "docs/ja/") if "/" in document else "README.ja.md"
    assert blocks(ROOT / document) == blocks(ROOT / other)


def test_both_languages_of_the_rendered_readme_show_the_same_commands(render: Render) -> None:
    project = render(slack=True, deploy=["container", "vertex-ai", "cloud-run", "kubernetes", "slurm"])
    assert blocks(project / "README.md") == blocks(project / "README.ja.md")


def test_every_page_is_in_the_navigation_of_its_language() -> None:
    for language in ("en", "ja"):
        folder = ROOT / "docs" / language
        settings = tomllib.loads((ROOT / f"docs/zensical.{language}.toml").read_text("utf-8"))
        listed = set(re.findall(r"[\w/-]+\.md", str(settings["project"]["nav"])))
        assert listed == {page.relative_to(folder).as_posix() for page in folder.rglob("*.md")}


def test_agents_file_is_short() -> None:
    assert len((ROOT / "AGENTS.md").read_text("utf-8").splitlines()) < 40


def test_every_hook_is_used() -> None:
    text = "".join(path.read_text("utf-8") for path in [ROOT / "copier.yml", *(ROOT / "hooks").glob("*.jinja")])
    for hook in (ROOT / "hooks").glob("*.jinja"):
        assert f"hooks/{hook.name}" in text
    licences = {path.stem for path in (ROOT / "hooks" / "licenses").iterdir()}
    assert licences == set(yaml.safe_load((ROOT / "copier.yml").read_text("utf-8"))["license"]["choices"].values())


def test_documents_count_the_questions_and_name_every_session() -> None:
    questions = [key for key in yaml.safe_load((ROOT / "copier.yml").read_text("utf-8")) if not key.startswith("_")]
    assert len(questions) - 1 == 13  # one is not asked
    for document, words in {
        "README.md": "thirteen questions",
        "README.ja.md": "13 の質問",
        "CHANGELOG.md": "thirteen questions",
    }.items():
        assert words in (ROOT / document).read_text("utf-8")
    sessions = re.findall(r"@nox.session\ndef (\w+)", (ROOT / "noxfile.py").read_text("utf-8"))
    contributing = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", contributing, re.MULTILINE)) == set(sessions)
    assert [path for path in re.findall(r"tests/[\w/]+\.py", contributing) if not (ROOT / path).is_file()] == []


def test_nothing_else_is_at_the_top() -> None:
    expected = set(
        "copier.yml template hooks tests docs README.md README.ja.md noxfile.py pyproject.toml LICENSE CHANGELOG.md "
        "CONTRIBUTING.md AGENTS.md .pre-commit-config.yaml .ci .github .gitignore .gitattributes".split()
    )
    assert {Path(path).parts[0] for path in committed()} <= expected


def committed() -> list[str]:
    command = ["git", "ls-files", "-z"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")[:-1]


def test_no_file_names_a_machine() -> None:
    for path in committed():
        content = (ROOT / path).read_bytes() if (ROOT / path).is_file() else b""
        assert path == HERE or not re.search(rb"(?<![\w/.])/(root|Users)/\w|/opt/(wheels|pypi)|/tmp/k/", content), path
