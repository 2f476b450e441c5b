"""What `doctor` looks at: each function returns findings, and a finding that is not fine says what mends it.

Owns: the checks. Does not own: the rules they check against (pyproject.toml, `config`, `build`, the engine).
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from .build import complete
from .config import Config, find_root, load, preset_names
from .engine import LightningModule, Trainer
from .engine.errors import EngineError, pip_install
from .record import git
from .sources import ProjectError
from .tracking import tracking_uri

_ROOM_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        what: What was looked at.
        found: How it is.
        state: `fine`; `note`: works, but worth knowing; `wrong`: will not work.
        fix: A command, or what to do; empty when it is fine.
    """

    what: str
    found: str
    state: Literal["fine", "note", "wrong"] = "fine"
    fix: str = ""


def diagnose(accelerator: str = "auto") -> list[Finding]:
    """Look at everything; the trial training takes at most five seconds once torch is loaded.

    Args:
        accelerator: What the trial training runs on.
    """
    root = find_root()
    return [*_versions(root), *_devices(), *_project(root), *_folders(root), _training(accelerator)]


def show(findings: list[Finding]) -> None:
    """Print a table of the findings, and below it what mends those that are not fine."""
    marks = {"fine": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[red]wrong[/]"}
    table = Table("", "what", "found", "to do")
    for finding in findings:
        table.add_row(marks[finding.state], finding.what, finding.found, finding.fix)
    Console(soft_wrap=False).print(table)


def _versions(root: Path) -> Iterator[Finding]:
    wanted_python, requirements = _requirements(root)
    python = platform.python_version()
    fine = SpecifierSet(wanted_python).contains(python, prereleases=True)
    fix = f"uv venv --python '{wanted_python}'"
    yield Finding("python", f"{python} ({wanted_python})", "fine" if fine else "wrong", "" if fine else fix)
    for requirement in requirements:
        yield _version(requirement)


def _version(requirement: Requirement) -> Finding:
    fix = f"{pip_install()} '{requirement}'"
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(requirement.name, f"not installed ({requirement.specifier})", "wrong", fix)
    fine = requirement.specifier.contains(found, prereleases=True)
    line = f"{found} ({requirement.specifier})"
    return Finding(requirement.name, line, "fine" if fine else "wrong", "" if fine else fix)


def _requirements(root: Path) -> tuple[str, list[Requirement]]:
    """Return the supported pythons and the requirements: pyproject.toml's, or what was installed without it."""
    file = root / "pyproject.toml"
    if file.is_file():
        project: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
        return project.get("requires-python", ""), [Requirement(text) for text in project.get("dependencies", [])]
    package = __name__.partition(".")[0]
    installed = metadata.packages_distributions().get(package, [])
    if not installed:
        return "", []
    all_of_them = [Requirement(text) for text in metadata.requires(installed[0]) or []]
    wanted_python = str(metadata.metadata(installed[0]).json.get("requires_python", ""))
    return wanted_python, [item for item in all_of_them if item.marker is None]


def _devices() -> Iterator[Finding]:
    yield Finding("cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("gpu", f"{', '.join(names)} (CUDA {torch.version.cuda})")
    elif shutil.which("nvidia-smi"):
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
        fix = "uv pip install --reinstall torch --torch-backend=auto"
        yield Finding("gpu", f"there is a driver, but torch is {build}", "wrong", fix)
    elif torch.backends.mps.is_available():
        yield Finding("gpu", "Apple (mps)")
    else:
        yield Finding("gpu", "none")
    if any(find_spec(module) for module in ("torch_tpu", "torch_xla")):
        yield Finding("tpu", "a driver library is installed")


def _project(root: Path) -> Iterator[Finding]:
    name = "configuration"
    try:
        complete(load())
        for preset in preset_names(root):
            name = f"preset {preset}"
            load(presets=[preset])
        yield Finding("configuration", f"fits the science; presets: {', '.join(preset_names(root)) or 'none'}")
    except ProjectError as error:
        yield Finding(name, str(error), "wrong", "correct that line")
    if not shutil.which("git"):
        yield Finding("git", "not installed: runs cannot say which code they ran", "note", "install git")
    elif not (commit := git(root, "rev-parse", "--short", "HEAD").strip()):
        fix = "git init -b main && git add . && git commit -m 'Start'"
        yield Finding("git", "no commit yet: runs cannot say which code they ran", "note", fix)
    else:
        yield Finding("git", f"commit {commit}")


def _folders(root: Path) -> Iterator[Finding]:
    try:
        config = load()
    except ProjectError:
        config = Config()
    try:
        config.runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=config.runs):
            free = shutil.disk_usage(config.runs).free
    except OSError as error:
        fix = "make it writable, or -o runs_dir=PATH"
        yield Finding("runs", f"{config.runs}: {error.strerror}", "wrong", fix)
    else:
        state: Literal["fine", "note"] = "fine" if free > _ROOM_BYTES else "note"
        yield Finding("runs", f"writable, {free / 1024**3:.0f} GiB free", state, "" if state == "fine" else "make room")
    try:
        address = tracking_uri(config)
    except ProjectError as error:
        yield Finding("tracking server", str(error), "wrong", "see configs/tracking")
        return
    if address.startswith("http"):
        yield _server(address)


def _server(address: str) -> Finding:
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=5):
            return Finding("tracking server", f"{address} answers")
    except (OSError, ValueError) as error:
        fix = "check MLFLOW_TRACKING_URI and the network; unset it to track in a local file"
        return Finding("tracking server", f"{address}: {error}", "wrong", fix)


class _Line(LightningModule):
    """Learns `y = 3 x` from noise-free points: a training whose end is known."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(1))
        self.last_loss = torch.tensor(torch.inf)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        loss = (self.slope * x - 3 * x).square().mean()
        self.last_loss = loss.detach()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _training(accelerator: str) -> Finding:
    """Train a toy for at most five seconds with the engine itself, and see whether it learns what it must."""
    points = DataLoader(TensorDataset(torch.linspace(-1, 1, 512)), batch_size=16)
    module = _Line()
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                accelerator=accelerator,
                devices=1,
                max_epochs=20,
                max_time="00:00:00:05",
                default_root_dir=folder,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, points)
    except EngineError as error:
        return Finding("training", str(error), "wrong", "doctor --accelerator cpu tells whether it is the device")
    took = time.perf_counter() - began
    found = f"{trainer.global_step} steps in {took:.1f} s on {trainer.strategy.root_device}"
    if float(module.last_loss) < 1e-3:
        return Finding("training", found)
    return Finding("training", f"{found}, but the loss is still {float(module.last_loss):.3g}", "wrong", "report this")
