"""What stock Dagster has started must not outlive the suite."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
# A process whose child leaves the group and the session.
PROGRAM = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def is_there(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_the_keeper_leaves_nothing_not_even_orphans(tmp_path: Path) -> None:
    log = tmp_path / "log"
    keeper = subprocess.Popen(
        [sys.executable, "-m", "paritylib.keeper"], cwd=PROJECT, stdin=subprocess.PIPE
    )
    assert keeper.stdin
    try:
        command = {
            "args": [sys.executable, "-c", PROGRAM],
            "env": dict(os.environ),
            "cwd": str(tmp_path),
            "log": str(log),
        }
        keeper.stdin.write(json.dumps(command).encode() + b"\n")
        keeper.stdin.flush()
        while not (log.exists() and log.read_text().endswith("\n")):
            assert keeper.poll() is None
        parent, child = map(int, log.read_text().split())
        os.kill(parent, signal.SIGKILL)
        assert is_there(child)
    finally:
        keeper.stdin.close()
        keeper.wait(20)
    assert not is_there(parent)
    assert not is_there(child)
