"""`copier update`: it asks for no trust, never touches the team's files, and ends where a fresh copy would be."""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCIENCE = Path("src/my_project/science")


def git(folder: Path, *arguments: str) -> str:
    """Run git with an identity of its own, and return what it prints."""
    identity = ["-c", "user.name=Tests", "-c", "user.email=tests@example.com", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def copier(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line, as a user does; never with --trust."""
    command = [sys.executable, "-m", "copier", *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended


def release(repository: Path, version: str) -> None:
    git(repository, "add", "--all", "--force")
    git(repository, "commit", "--quiet", "-m", version)
    git(repository, "tag", version)


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Path:
    """Release 1.0.0 of the template in a repository of its own."""
    copy = tmp_path / "template.git.d"
    shutil.copytree(template, copy)
    git(copy, "init", "--quiet", "-b", "main")
    release(copy, "1.0.0")
    return copy


@pytest.fixture
def project(repository: Path, tmp_path: Path) -> Path:
    """Render a project from release 1.0.0, and commit it."""
    copier(tmp_path, "copy", "--defaults", "--vcs-ref", "1.0.0", str(repository), "my-project")
    folder = tmp_path / "my-project"
    git(folder, "init", "--quiet", "-b", "main")
    commit(folder)
    return folder


def commit(project: Path) -> None:
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "-m", "state")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change_template(repository: Path) -> None:
    """Change what the template owns, and the example in science/ as well; release it."""
    home = repository / "template"
    science = home / "src" / "{{ package_name }}" / "science"
    for file in [*science.glob("*.py")]:
        file.write_text(f"# changed\n{file.read_text('utf-8')}", "utf-8")
    (science / "new_idea.py").write_text("# new\n", "utf-8")
    agents = home / "AGENTS.md.jinja"
    agents.write_text(agents.read_text("utf-8") + "- A trap that 1.1.0 knows.\n", "utf-8")
    (home / "added.txt").write_text("added\n", "utf-8")
    release(repository, "1.1.0")


def test_update_leaves_the_science_alone_and_brings_the_rest(repository: Path, project: Path) -> None:
    (project / SCIENCE / "model.py").write_text("our_model = 1\n", "utf-8")
    (project / SCIENCE / "task.py").unlink()
    (project / SCIENCE / "ideas.py").write_text("ours = True\n", "utf-8")
    commit(project)
    before = snapshot(project / SCIENCE)
    change_template(repository)

    shown = copier(project, "update", "--defaults").stderr

    assert snapshot(project / SCIENCE) == before
    assert (project / "AGENTS.md").read_text("utf-8").endswith("- A trap that 1.1.0 knows.\n")
    assert (project / "added.txt").read_text("utf-8") == "added\n"
    assert "git diff" in shown


def test_update_keeps_the_teams_edits_elsewhere(repository: Path, project: Path) -> None:
    contributing = project / "CONTRIBUTING.md"
    contributing.write_text("Our first line.\n" + contributing.read_text("utf-8"), "utf-8")
    commit(project)
    change_template(repository)

    copier(project, "update", "--defaults")

    assert contributing.read_text("utf-8").startswith("Our first line.\n")
    assert not conflicts(project)


def conflicts(project: Path) -> list[str]:
    status = git(project, "status", "--porcelain").splitlines()
    return [line for line in status if line.startswith("UU") or line.endswith(".rej")]


def test_update_without_edits_equals_a_fresh_copy(repository: Path, project: Path, tmp_path: Path) -> None:
    change_template(repository)
    copier(project, "update", "--defaults")
    copier(tmp_path, "copy", "--defaults", "-d", "project_name=my-project", str(repository), "fresh")
    compared = filecmp.dircmp(project, tmp_path / "fresh", ignore=[".git", "science", "__pycache__"])
    assert not different(compared)
    assert not conflicts(project)


def different(compared: filecmp.dircmp[str]) -> list[str]:
    here = [*compared.left_only, *compared.right_only, *compared.diff_files, *compared.funny_files]
    return here + [name for below in compared.subdirs.values() for name in different(below)]


def test_answers_can_be_changed_by_an_update(repository: Path, project: Path) -> None:
    change_template(repository)
    copier(project, "update", "--defaults", "-d", "slack=true", "-d", "deploy=[slurm]")
    assert (project / "src/my_project/engine/callbacks/slack.py").exists()
    assert (project / "deploy/slurm/train.sbatch").exists()
    assert not (project / "deploy/container").exists()
    assert not conflicts(project)


def test_rendering_again_over_the_project_keeps_the_science(repository: Path, project: Path) -> None:
    (project / SCIENCE / "model.py").write_text("our_model = 1\n", "utf-8")
    commit(project)
    copier(project, "recopy", "--defaults", "--overwrite")
    assert (project / SCIENCE / "model.py").read_text("utf-8") == "our_model = 1\n"
