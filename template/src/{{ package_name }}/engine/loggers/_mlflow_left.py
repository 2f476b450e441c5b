"""What processes that are gone have left for MLflow: it is sent, and their runs end there.

Owns: which files are sent, and how the run ends. Does not own: the file (`_spool`), and the requests (`_mlflow_run`).
"""

from __future__ import annotations

from pathlib import Path

from ..distributed import log
from ._mlflow_run import Entry, RemoteRun, without_password
from ._spool import Spool, left_in


def deliver(spool: Spool, uri: str) -> str:
    """Send what a process that is gone has left, and end its run: as it said, or KILLED. Return the run's id.

    Args:
        spool: Its file, which is removed when all has arrived.
        uri: The server.

    Raises:
        EngineError: The server gives no run.
        Exception: It went away in between; what has arrived is not sent again.
    """
    run = RemoteRun(uri, spool.head, is_live=False)
    killed = ["status", {"status": "KILLED"}, 0, int(spool.path.stat().st_mtime * 1000)]
    last = spool.last()
    try:
        run_id = run.join()
        while not spool.is_sent:
            lines, position = spool.waiting()
            run.send([Entry(*line) for line in lines])
            spool.mark_sent(position)
        if not spool.head.get("is_of_files"):
            run.send([Entry(*(last if last[:1] == ["status"] else killed))])
    except BaseException:
        spool.close(keep=True)
        raise
    spool.close()
    return run_id


def deliver_all(folder: Path, uri: str, of_files: bool | None = None) -> list[str]:
    """Deliver every spool in `folder` that was meant for `uri`; return the ids of the runs.

    `of_files`: True: only those of files; False: only those of numbers; None: both, numbers first.
    """
    runs = []
    for spool in sorted(left_in(folder), key=lambda spool: bool(spool.head.get("is_of_files"))):
        is_meant = spool.head.get("uri") == without_password(uri)
        if not is_meant or of_files not in (None, bool(spool.head.get("is_of_files"))):
            spool.close(keep=True)
            continue
        try:
            runs.append(deliver(spool, uri))
        except (ValueError, TypeError, KeyError) as error:  # a damaged file must not hold up the others
            log.warning("%s cannot be read (%r) and stays where it is.", spool.path, error)
    return runs
