"""Every check of the template, by name. `nox` runs those that CI runs; `nox -l` lists all; `nox -s demo` shows it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests", "project", "rendered", "deploy", "docs"]

ROOT = Path(__file__).parent
ENGINE_HOME = ROOT / "template" / "src" / "{{ package_name }}"
DEMO = ROOT / "demo" / "my-project"


def give_uv_the_wheels_of_pip() -> None:
    """Let uv find what pip finds in PIP_FIND_LINKS, and take the torch that lies there.

    uv reads none of pip's settings, and without a constraint it prefers the newest torch, with gigabytes of CUDA,
    to a CPU wheel in a folder. On the open internet UV_TORCH_BACKEND=cpu asks for the CPU build.
    """
    folder = os.environ.get("PIP_FIND_LINKS", "")
    if not folder:
        return
    os.environ.setdefault("UV_FIND_LINKS", folder)
    wheels = sorted(Path(folder).glob("torch-*.whl"))
    if wheels and "UV_CONSTRAINT" not in os.environ:
        version = wheels[-1].name.split("-")[1].partition("+")[0]
        constraint = ROOT / ".nox" / "constraint.txt"
        constraint.parent.mkdir(exist_ok=True)
        constraint.write_text(f"torch=={version}\n", encoding="utf-8")
        os.environ["UV_CONSTRAINT"] = os.environ["PIP_CONSTRAINT"] = str(constraint)


give_uv_the_wheels_of_pip()


def install(session: nox.Session, *groups: str) -> None:
    """Install dependency groups of pyproject.toml."""
    session.install(*nox.project.dependency_groups(nox.project.load_toml(ROOT / "pyproject.toml"), *groups))


@nox.session
def demo(session: nox.Session) -> None:
    """Render the default project into demo/, install it, train the real example, say where to look."""
    install(session, "render")
    shutil.rmtree(DEMO, ignore_errors=True)
    session.run("copier", "copy", "--quiet", "--defaults", "--vcs-ref=HEAD", str(ROOT), str(DEMO))
    session.install("-e", str(DEMO))
    session.chdir(DEMO)
    session.run("my-project", "fit", *session.posargs)
    folder = DEMO.relative_to(ROOT)
    session.log(f"The project is in {folder}. Its curves: cd {folder} && {session.bin}/my-project ui")


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting, import order and common mistakes, in the template's Python too."""
    install(session, "lint")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Strict static types of the engine."""
    install(session, "types")
    session.chdir(ENGINE_HOME)
    session.run("mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "engine")


@nox.session
def tests(session: nox.Session) -> None:
    """Fast tests: rendering, the engine, and the examples in its docstrings."""
    install(session, "tests")
    paths = session.posargs or ["tests/engine", "tests/durability", "tests/template"]
    session.run("pytest", "-n", "2", "--dist", "loadfile", *paths)
    if not session.posargs:
        session.run("pytest", "--doctest-modules", str(ENGINE_HOME / "engine"))


@nox.session
def killing(session: nox.Session) -> None:
    """Trainings killed 200 times at random moments end as if nothing had happened; `-- 1000` kills more often."""
    install(session, "tests")
    kills = session.posargs[0] if session.posargs else "200"
    session.run("pytest", "-s", "tests/durability/test_killing.py", env={"KILLS": kills})


@nox.session
def project(session: nox.Session) -> None:
    """The rendered project's command line: training, configuration, resuming, mistakes."""
    install(session, "tests")
    session.run("pytest", "-n", "2", "--dist", "loadgroup", *(session.posargs or ["tests/project"]))


@nox.session
def rendered(session: nox.Session) -> None:
    """Three rendered projects, installed: their own lint, types, tests and pre-commit, training, notebook, server."""
    install(session, "rendered")
    session.run("pytest", "-v", "-n", "2", "--dist", "loadgroup", *(session.posargs or ["tests/rendered"]))


@nox.session
def deploy(session: nox.Session) -> None:
    """What deploy/ renders, judged by the validators of each format."""
    install(session, "deploy")
    session.run("pytest", *(session.posargs or ["tests/deploy"]))


@nox.session
def mlflow(session: nox.Session) -> None:
    """The tracker with its real parts: PostgreSQL, the entrypoint of deploy/mlflow, a proxy that plays IAP, outages.

    Needs PostgreSQL and, for the page, Chromium: apt-get install postgresql chromium
    """
    install(session, "mlflow")
    session.run("pytest", "-v", *(session.posargs or ["tests/mlflow"]))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation in both languages into docs/site/."""
    install(session, "docs")
    for language in ("en", "ja"):
        session.run("zensical", "build", "--strict", "--config-file", f"docs/zensical.{language}.toml")


@nox.session
def parity(session: nox.Session) -> None:
    """Names and random jobs on lightning 2.6.6 and on the engine: what they leave behind agrees."""
    install(session, "parity")
    if not session.posargs:
        session.run("python", "-m", "tests.parity.names", "--write")
    session.run("python", "-m", "pytest", *(session.posargs or ["tests/parity"]))


@nox.session
def bench(session: nox.Session) -> None:
    """The table of costs beside a hand-written loop and lightning; `-- --quick` for a rough one."""
    install(session, "parity")
    session.run("python", "-m", "tests.benchmarks", *session.posargs)


@nox.session
def slurm(session: nox.Session) -> None:
    """Jobs under a real Slurm of one node, installed from Debian's packages where it is missing (needs root)."""
    install(session, "tests")
    if not shutil.which("slurmctld"):
        packages = ("slurmctld", "slurmd", "slurm-client", "munge")
        session.run("apt-get", "install", "-y", "--no-install-recommends", *packages, external=True)
    session.run("pytest", *(session.posargs or ["tests/cluster"]))


@nox.session
def xla(session: nox.Session) -> None:
    """accelerator="xla" on torch_xla's CPU device, alone and as two; installs 7 GB: it comes with CUDA only."""
    wanted = ("torch==2.9.*", "torch_xla==2.9.*", "numpy", "packaging", "pytest", "pytest-timeout", "torchmetrics")
    unconstrained = {"UV_CONSTRAINT": "", "PIP_CONSTRAINT": ""}
    session.install(*wanted, env=unconstrained)
    session.run("pytest", *(session.posargs or ["tests/xla"]))
