"""Kill a training again and again, until it has finished: one process after another, each forked from this one.

    python lives.py PROJECT JOB KILLS SEED

A life is `fit --resume auto` in a process group of its own. It ends by SIGKILL at a random time; or by its own hand, at
a random write, fsync or rename of a checkpoint; or, with two processes, one of them is killed. This process has
everything imported, so that a life takes a fraction of a second; it never starts a thread or touches a run itself.
Prints what happened as JSON. Exit code 1: a life ended by itself in another way than finishing.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

KINDS = ("write", "fsync", "replace")
LIFE_S = 300.0  # a life that takes longer hangs


JOBS: dict[str, list[str]] = {
    "plain": ["task.job=plain"],
    "accumulated": ["task.job=plain", "trainer.accumulate_grad_batches=4"],
    "workers": ["task.job=workers"],
    "two_loaders": ["task.job=two_loaders"],
    "manual": ["task.job=manual"],
    "ddp": ["task.job=plain", "trainer.devices=2", "trainer.strategy=ddp_fork"],
}


class Lives:
    """One job, and how it was killed.

    Args:
        project: A rendered project whose science is `science/task.py`.
        job: A key of `JOBS`.
        seed: Of the moments.
    """

    def __init__(self, project: Path, job: str, seed: int) -> None:
        self.project, self.job, self.random = project, job, random.Random(f"{job} {seed}")
        self.kills: Counter[str] = Counter()

    def arguments(self, folder: Path) -> list[str]:
        """The command line; what training sees goes into `folder`."""
        short = ["trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.devices=1", "seed=7"]
        saves = ["callbacks.checkpoint.every_n_train_steps=2", "callbacks.checkpoint.save_top_k=2"]
        off = ["loggers.mlflow=null", "test_after_fit=false", "trainer.enable_progress_bar=false"]
        keys = [*short, *saves, *off, f"runs_dir={folder / 'runs'}", f"task.folder={folder}", *JOBS[self.job]]
        return ["fit", "--resume", "auto", *(part for key in keys for part in ("-o", key))]

    def live(self, folder: Path, at: tuple[str, int] | None = None, within_s: float | None = None) -> int | None:
        """Live once; return the exit code, or None if it was killed."""
        pid = os.fork()
        if pid == 0:
            self._be_the_training(folder, at)
        began = time.monotonic()
        victim = 0
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                if os.WIFSIGNALED(status) or victim:
                    return None
                return os.waitstatus_to_exitcode(status)
            age_s = time.monotonic() - began
            if age_s > LIFE_S:
                os.killpg(pid, signal.SIGKILL)
                raise SystemExit(f"a life of the job {self.job} hangs; see {folder / 'output.txt'}")
            if within_s is not None and age_s > within_s and not victim:
                victim = self._kill(pid)
            time.sleep(0.002)

    def _kill(self, group: int) -> int:
        """Kill the whole group, or one of the processes in it."""
        ranks = psutil.Process(group).children() if self.job == "ddp" and self.random.random() < 0.5 else []
        with contextlib.suppress(psutil.NoSuchProcess):
            if ranks:
                victim = self.random.choice(ranks)
                victim.kill()
                self.kills["one process of two"] += 1
                return int(victim.pid)
        os.killpg(group, signal.SIGKILL)
        self.kills["at a random time"] += 1
        return group

    def _be_the_training(self, folder: Path, at: tuple[str, int] | None) -> None:
        os.setsid()
        folder.mkdir(parents=True, exist_ok=True)
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(self.project)
        if at is not None:
            die_at(*at)
        from my_project.cli import main

        code = 1
        try:
            main(self.arguments(folder))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def until_finished(self, folder: Path, kills: int, typical_s: float) -> int:
        """Live again and again until a life finishes, and return how many there were; `kills` are killed at most."""
        for life in range(1000):
            at = within_s = None
            if sum(self.kills.values()) < kills:
                if self.random.random() < 0.4:
                    at = (self.random.choice(KINDS), self.random.randrange(1, 60))
                else:
                    within_s = self.random.uniform(0.0, 0.7 * typical_s)
            code = self.live(folder, at, within_s)
            if code is None and at is not None:
                self.kills[f"in a save, at a {at[0]}"] += 1
            if code == 0 or is_finished(folder):  # it may be killed when all is done already
                return life + 1
            if code is not None:
                raise SystemExit(f"a life of the job {self.job} ended with {code}; see {folder / 'output.txt'}")
        raise SystemExit("no life finished")


def is_finished(folder: Path) -> bool:
    """Return whether a run in the folder has finished."""
    return any(json.loads(file.read_text())["status"] == "finished" for file in folder.glob("runs/*/*/status.json"))


def die_at(kind: str, number: int) -> None:
    """Make the `number`-th write, fsync or rename of a checkpoint the end of this process group."""
    from my_project.engine import checkpoint_file

    left = number

    def counted(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if kind == "write":  # half of it arrives
                    args[0].file.write(bytes(args[1])[: len(args[1]) // 2])
                    args[0].file.flush()
                os.killpg(os.getpgid(0), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    if kind == "write":
        checkpoint_file._Sink.write = counted(checkpoint_file._Sink.write)  # type: ignore[method-assign]
    else:
        setattr(checkpoint_file.os, kind, counted(getattr(os, kind)))


def main(project: Path, job: str, kills: int, seed: int) -> None:
    """Live once undisturbed in `whole`, then be killed in `killed`, as many rounds as it takes for `kills` kills."""
    sys.path.insert(0, str(project / "src"))
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch._dynamo  # noqa: F401  # what every life would import
    from my_project import report, workflow  # noqa: F401
    from my_project.cli import _application

    _application()
    lives = Lives(project, job, seed)
    began = time.monotonic()
    if lives.live(project / "whole" / job) != 0:
        raise SystemExit(f"the undisturbed life failed; see {project / 'whole' / job / 'output.txt'}")
    typical_s = time.monotonic() - began
    rounds = []
    while not rounds or sum(lives.kills.values()) < kills:  # a life may finish before its time
        rounds.append(lives.until_finished(project / "killed" / job / str(len(rounds)), kills, typical_s))
    print(json.dumps({"job": job, "lives": rounds, "kills": dict(lives.kills)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
