"""Starts the commands that come on stdin, and at its end kills all that they have started.

A line is a JSON object: name, args, env, cwd, log. The end comes when whoever holds the other
end of stdin closes it or is gone, however it went.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    # Whatever loses its parent below becomes a child of this process, and so can be found.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A handler, which ends with exec: to ignore it would be inherited by the commands.
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    for line in sys.stdin:
        start(json.loads(line))
    while kill_all(os.getpid()):
        _reap()


def start(command: dict[str, Any]) -> None:
    with Path(command["log"]).open("ab") as log:
        subprocess.Popen(
            command["args"],
            env=command["env"],
            cwd=command["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def kill_all(parent: int) -> int:
    """Kills all below the process and returns how many there were."""
    below = children({parent})
    number = len(below)
    for pid in below:
        number += kill_all(pid)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return number


def children(parents: set[int]) -> list[int]:
    """The processes whose parent is one of them, without those that have ended."""
    processes = (path for path in Path("/proc").iterdir() if path.name.isdigit())
    return [int(path.name) for path in processes if _parent(path) in parents]


def _parent(process: Path) -> int:
    try:
        # The name in parentheses may have spaces.
        state, parent = (process / "stat").read_text().rsplit(")", 1)[1].split()[:2]
    except (OSError, ValueError):
        return 0
    return 0 if state == "Z" else int(parent)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main()
