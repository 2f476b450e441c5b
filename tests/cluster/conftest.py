"""A real Slurm of one node, from Debian's packages `slurmctld slurmd slurm-client munge`; needs root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.template.conftest import render, template

__all__ = ["render", "template"]

PACKAGES = "slurmctld slurmd slurm-client munge"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def poll(what: str, ready: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:.0f} s"
        time.sleep(0.2)


def answer(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:  # slurmd waits for the steps of cancelled jobs
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start munge, the controller and the node's daemon; return a folder that jobs may write to."""
    if os.geteuid() or not all(map(shutil.which, ("slurmctld", "slurmd", "srun", "munged"))):
        pytest.fail(f"needs root, and `apt-get install {PACKAGES}`")
    folder = tmp_path_factory.mktemp("slurm")
    host = socket.gethostname().partition(".")[0]
    configuration = folder / "slurm.conf"
    configuration.write_text(
        f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ReturnToService=2
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
    )
    os.environ["SLURM_CONF"] = str(configuration)
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    munge = answer("munge", "-n")
    started = []
    if not munge:
        started.append(subprocess.Popen(["su", "-s", "/bin/sh", "munge", "-c", "exec munged --force --foreground"]))
        poll("munge", lambda: bool(answer("munge", "-n")))
    with (folder / "daemons.log").open("w") as log:
        for daemon in ("slurmctld", "slurmd"):
            started.append(subprocess.Popen([daemon, "-D"], stdout=log, stderr=log))
        try:
            poll("an idle node", lambda: "idle" in answer("sinfo", "-h", "-o", "%T"))
            yield folder
        finally:
            answer("scancel", "--user=root")
            for process in reversed(started):
                process.terminate()
            for process in reversed(started):
                end(process)
            del os.environ["SLURM_CONF"]
