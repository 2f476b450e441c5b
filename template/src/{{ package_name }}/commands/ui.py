"""`ui`: look at the curves."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from typing import Annotated

import typer

from ..config import load
from ..engine.errors import pip_install
from ..sources import ProjectError
from .train import ConfigFile, Overrides, Presets

app = typer.Typer()


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens.")] = 5000,
    host: Annotated[str, typer.Option(help="0.0.0.0: other machines may look as well.")] = "127.0.0.1",
    config_file: ConfigFile = None,
    preset: Presets = None,
    override: Overrides = None,
) -> None:
    """Open the curves of all runs in a browser; Ctrl-C ends it."""
    config = load(config_file, preset or (), override or ())
    classes = [section.class_ or "" for section in config.loggers.values() if section is not None]
    trackers = [name.rpartition(".")[2] for name in classes]
    from ..tracking import tracking_uri

    address = tracking_uri(config)
    if "MLFlowLogger" in trackers and address.startswith("http"):
        print(
            f"This project's runs are tracked at {address} (MLFLOW_TRACKING_URI, or configs/tracking): "
            "open it in a browser."
        )
        return
    if "MLFlowLogger" in trackers:
        command = ["mlflow", "server", "--workers", "1", "--backend-store-uri", address]
    elif "TensorBoardLogger" in trackers:
        command = ["tensorboard.main", "--logdir", str(config.runs)]
    else:
        named = ", ".join(trackers) or "none but metrics.csv"
        raise ProjectError(f"`ui` opens MLflow or TensorBoard, and the loggers here are: {named}.")
    _require(command[0], config.runs.is_dir(), host, port)
    print(f"Open http://{host}:{port} in a browser; Ctrl-C ends it.", flush=True)
    # MLflow's server starts eight job workers unless told not to: 1.5 GB of memory for nothing here.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", *command, "--host", host, "--port", str(port)]
    raise typer.Exit(_serve(command, environment))


def _serve(command: list[str], environment: dict[str, str]) -> int:
    """Run a server until it ends, or until this process is stopped; return its exit code.

    It has a session of its own, because MLflow's server answers Ctrl-C in the terminal with a traceback.
    """
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        return server.wait()
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _require(module: str, has_runs: bool, host: str, port: int) -> None:
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ProjectError(f"`ui` needs {package}, which is not installed: {pip_install()} {package}")
    if not has_runs:
        raise ProjectError("There is nothing to look at yet: no run has been made here. Train first: fit.")
    if not host:  # which a server takes for every address there is
        raise ProjectError("--host is empty. Give 127.0.0.1 for this machine only, or 0.0.0.0 for others as well.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ProjectError(
                f"Port {port} on {host} cannot be used: {error.strerror}. Choose another --port or --host."
            ) from None
