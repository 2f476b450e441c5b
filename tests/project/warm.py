"""Command lines that start at once: forks of a process that has imported torch and MLflow, which takes seconds.

    python warm.py ADDRESS                             the server: imports, then waits for the word to fork
    python -I -S warm.py ADDRESS MODULE ARGUMENTS ...  what a test starts in place of `python -m MODULE ARGUMENTS ...`

The second hands its folder, environment and files to the first, passes signals on, and ends as the fork has ended. The
project itself is never in the server: each fork imports its own, and torchrun starts processes of the usual kind.
"""

import array
import contextlib
import json
import os
import signal
import socket
import sys
import threading

PRELOADED = """torch torchmetrics torch._dynamo mlflow.tracking mlflow.store.tracking.sqlalchemy_store
mlflow.store.artifact.local_artifact_repo sklearn.datasets sklearn.model_selection matplotlib.pyplot
matplotlib.backends.backend_agg matplotlib.backends.backend_svg typer rich.progress rich.table rich.traceback
pydantic yaml""".split()
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def serve(address: str) -> str:
    """Import, fork once for each request, and return in the fork, as what was asked for: the name of its module.

    Ends when stdin does, that is with the tests.
    """
    import gc
    import importlib
    import select

    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen()
    os.rename(f"{address}.new", address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return become(connection)
        connection.close()
    os.unlink(address)
    os._exit(0)


def become(connection: socket.socket) -> str:
    """Fork once more: one process tells how the other ends, the other takes the place of the one that asked."""
    message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    asked = json.loads(message)
    child = os.fork()
    if child:
        for file in files:
            os.close(file)
        connection.sendall(array.array("q", [child]).tobytes())
        threading.Thread(target=end_with, args=[connection, child], daemon=True).start()
        _, status = os.waitpid(child, 0)
        connection.sendall(array.array("q", [status]).tobytes())
        os._exit(0)
    connection.close()
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = asked["arguments"]
    sys.orig_argv[:] = [sys.executable, "-m", *sys.argv]
    sys.path[0] = asked["folder"]
    sys.path[1:1] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return asked["arguments"][0]


def end_with(connection: socket.socket, child: int) -> None:
    """Kill the fork when the one that asked for it is gone, as when it was killed itself."""
    if not connection.recv(1):
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            os.kill(child, signal.SIGKILL)


def ask(address: str, arguments: list[str]) -> int:
    """Let the server run a module here, and return how it ended, as `os.wait` does."""
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    asked = {"folder": os.getcwd(), "environment": dict(os.environ), "arguments": arguments}
    socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
    child = number_from(server)
    for name in SIGNALS:
        signal.signal(name, lambda number, _: os.kill(child, number))
    return number_from(server)


def number_from(server: socket.socket) -> int:
    received = b""
    while len(received) < 8:
        part = server.recv(8 - len(received))
        if not part:
            sys.exit("the server of warm.py is gone")
        received += part
    return int(array.array("q", received)[0])


if __name__ == "__main__":
    if len(sys.argv) == 2:
        import runpy

        runpy.run_module(serve(sys.argv[1]), run_name="__main__", alter_sys=True)
    else:
        status = ask(sys.argv[1], sys.argv[2:])
        if os.WIFSIGNALED(status):  # end by the same signal
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
            os.kill(os.getpid(), os.WTERMSIG(status))
        sys.exit(os.waitstatus_to_exitcode(status))
