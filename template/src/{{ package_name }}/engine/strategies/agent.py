"""torchrun, as `launch.run_again` starts it: when a rank fails, one sentence says which, below what the rank printed.

Owns: what torchrun says at its end, and its exit code, which is that of the rank. Does not own: anything before. It is
run as a script and imports nothing of the engine.
"""

from __future__ import annotations

import logging
import signal
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def run() -> int:
    """Be torchrun with this process's arguments; return the exit code."""
    # "failed (exitcode: 1) local_rank: ...", and twenty lines for those who write error files
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            print(f"Rank {rank} failed; what it printed says why.", file=sys.stderr)
            return max(1, int(failure.exitcode))
        name = signal.Signals(-failure.exitcode).name
        cause = " SIGKILL mostly means that memory ran out." if name == "SIGKILL" else ""
        print(f"Rank {rank} was killed by {name} before it could say why.{cause}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
