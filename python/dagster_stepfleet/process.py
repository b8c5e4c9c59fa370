"""What a process of ours must do to be good to its parent: die with it, and know itself."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import MutableMapping
from typing import NoReturn

_PR_SET_PDEATHSIG = 1

# stepfleet's own secrets: children get neither the server's token nor the ledger's address.
_SECRET = re.compile(r"STEPFLEET_(TOKEN|TOKEN_FILE|.*DATABASE_URL|.*DSN)")
# Ours too, and of no use to user code.
_INTERNAL = ("STEPFLEET_HOST_FD", "STEPFLEET_PRELOAD")


# How `dagster` is called to be the worker of one run.
_RUN_WORKER_COMMANDS = (["api", "execute_run"], ["api", "resume_run"])
# Set by whoever starts a process for one run in another way.
own_run = False
# Which resume of a run this process was launched for, by run id; 0: its first start. Set by whoever
# starts a process for a run and knows it.
launched: dict[str, int] = {}


def is_run_worker() -> bool:
    """Whether this process is nothing but the worker of one run, and may end with it."""
    return own_run or sys.argv[1:3] in _RUN_WORKER_COMMANDS


def leave() -> NoReturn:
    """Ends the process without another word: whatever Dagster would still write is another's."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def clock_seconds() -> float:
    """A clock that goes on while this process, or its machine, is stopped."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def drop_secrets(environ: MutableMapping[str, str] = os.environ) -> None:
    for name in list(environ):
        if _SECRET.fullmatch(name) or name in _INTERNAL:
            del environ[name]


def die_with_parent(parent: int, death_signal: int = signal.SIGKILL) -> None:
    """Has the kernel end this process when its parent dies (Linux; elsewhere the socket tells).

    The kernel means the thread that forked it, which is why a child of a Go process must not rely
    on this for longer than its start.
    """
    if not sys.platform.startswith("linux"):
        return
    _prctl(death_signal)
    if death_signal and os.getppid() != parent:
        # It died before the call.
        os.kill(os.getpid(), death_signal)


def outlive_parent_thread() -> None:
    if sys.platform.startswith("linux"):
        _prctl(0)


def _prctl(death_signal: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def lead_group() -> None:
    """Makes the process the leader of its own group, if it is not yet."""
    if os.getpgid(0) != os.getpid():
        with contextlib.suppress(PermissionError):  # a session's leader is a group's already
            os.setpgid(0, 0)


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def host_socket(environ: MutableMapping[str, str] = os.environ) -> socket.socket:
    """Takes the socket to the parent that STEPFLEET_HOST_FD names."""
    text = environ.get("STEPFLEET_HOST_FD", "")
    try:
        sock = socket.socket(fileno=int(text))
    except (ValueError, OSError) as err:
        raise SystemExit(
            f"STEPFLEET_HOST_FD={text!r} names no socket ({err}). This program is started by a "
            "stepfleet worker, which hands it a socket; it does nothing by itself."
        ) from err
    sock.setblocking(True)
    sock.set_inheritable(False)
    return sock


def threads() -> list[str]:
    """Returns the names of all threads of this process, native ones included."""
    try:
        ids = os.listdir("/proc/self/task")
    except OSError:  # not Linux: Python's own threads are all that can be known
        return [t.name for t in threading.enumerate()]
    names: list[str] = []
    for tid in ids:
        with contextlib.suppress(OSError), open(f"/proc/self/task/{tid}/comm") as file:
            names.append(file.read().strip())
    return names


def sockets(known: set[int]) -> list[int]:
    """Returns the descriptors of sockets that are open and not among the known ones."""
    directory = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    found: list[int] = []
    for name in os.listdir(directory):
        fd = int(name)
        if fd in known:
            continue
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                found.append(fd)
    return found
