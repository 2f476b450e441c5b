"""Runs commands of a project one after the other in one process: read from stdin, answered on stdout, as JSON."""

import contextlib
import importlib
import io
import json
import sys

package, commands = json.load(sys.stdin)
main = importlib.import_module(f"{package}.cli").main
answers = []
for arguments in commands:
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main(arguments)
        except SystemExit as end:
            answers.append([end.code or 0, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
