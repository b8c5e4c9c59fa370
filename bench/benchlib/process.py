"""Processes that die with the benchmark, in groups whose CPU time can be told apart.

Two ways to count CPU. `CgroupMeter` (root, cgroup v1 or v2) counts all that ever ran in a cgroup.
`ProcMeter` works everywhere on Linux: the benchmark makes itself the reaper of orphans, so every
process of a group is either alive in /proc or has been waited for, by its parent or by us.
"""

import ctypes
import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from benchlib.settings import STOP_TIMEOUT_SECONDS

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CGROUP_V1 = Path("/sys/fs/cgroup/cpuacct")
CGROUP_V2 = Path("/sys/fs/cgroup")

_libc = ctypes.CDLL(None, use_errno=True)
# Every process that `start` started: the others among our children are orphans.
_started: set[int] = set()
_ticks_per_second = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def become_reaper() -> None:
    """Orphans of our children become ours, so that none is lost to the account."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def orphans(table: Mapping[int, tuple[int, str, float]]) -> set[int]:
    """Children of ours that we did not start."""
    me = os.getpid()
    return {pid for pid, (parent, _, _) in table.items() if parent == me and pid not in _started}


def reap_orphans() -> None:
    """Wait for orphans that have ended, and account for them."""
    table = processes()
    for pid in orphans(table):
        if table[pid][1] == "Z":
            try:
                _, _, usage = os.wait4(pid, os.WNOHANG)
            except ChildProcessError:
                continue
            ProcMeter.orphan_seconds += usage.ru_utime + usage.ru_stime


def processes() -> dict[int, tuple[int, str, float]]:
    """pid -> (parent, state, CPU seconds of it and of the children it has waited for)."""
    table: dict[int, tuple[int, str, float]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            text = Path("/proc", entry, "stat").read_text()
        except OSError:
            continue  # it has gone
        fields = text.rpartition(")")[2].split()
        ticks = sum(int(field) for field in fields[11:15])
        table[int(entry)] = (int(fields[1]), fields[0], ticks / _ticks_per_second)
    return table


def private_bytes(pid: int) -> int:
    """Memory that is the process's alone; 0 when it has gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            return sum(int(line.split()[1]) << 10 for line in rollup if line.startswith("Private_"))
    except OSError:
        return 0


def descendants(table: Mapping[int, tuple[int, str, float]], roots: Sequence[int]) -> set[int]:
    """The roots and everything below them."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _, _) in table.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    todo = [root for root in roots if root in table]
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo.extend(children.get(pid, []))
    return found


class Meter(Protocol):
    """CPU seconds of a group of processes."""

    name: str

    def adopt(self) -> None:
        """Called in a forked child before exec: count me and mine."""

    def add(self, process: "subprocess.Popen[bytes]") -> None:
        """Called in the benchmark when a process of the group has started."""

    def seconds(self) -> float:
        """All CPU time of the group so far; never falls."""
        ...

    def pids(self) -> set[int]:
        """Its processes that are alive."""
        ...

    def close(self) -> None: ...


class CgroupMeter:
    """A cgroup of its own."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self._path = root / f"stepfleet-bench-{os.getpid()}-{name}"
        self._path.mkdir()
        self._procs = str(self._path / "cgroup.procs")

    def adopt(self) -> None:
        fd = os.open(self._procs, os.O_WRONLY)
        os.write(fd, b"0")
        os.close(fd)

    def add(self, process: "subprocess.Popen[bytes]") -> None:
        """Nothing to do: it has put itself here."""

    def seconds(self) -> float:
        usage = self._path / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text()) / 1e9
        for line in (self._path / "cpu.stat").read_text().splitlines():
            if line.startswith("usage_usec "):
                return int(line.split()[1]) / 1e6
        raise OSError(f"{self._path}: no CPU time in it")

    def pids(self) -> set[int]:
        return {int(line) for line in Path(self._procs).read_text().split()}

    def close(self) -> None:
        for _ in range(50):
            try:
                self._path.rmdir()
                return
            except OSError:
                time.sleep(0.1)


class ProcMeter:
    """The trees below the processes of the group, from /proc."""

    # CPU of orphans that became ours; only run workers make any.
    orphan_seconds = 0.0

    def __init__(self, name: str, takes_orphans: bool) -> None:
        self.name = name
        self._takes_orphans = takes_orphans
        self._roots: list[subprocess.Popen[bytes]] = []
        self._gone = 0.0

    def adopt(self) -> None:
        """Nothing to do."""

    def add(self, process: "subprocess.Popen[bytes]") -> None:
        self._roots.append(process)

    def seconds(self) -> float:
        self._roots = [root for root in self._roots if root.returncode is None]
        table = processes()
        live = sum(table[pid][2] for pid in self.pids_of(table))
        return self._gone + live + (ProcMeter.orphan_seconds if self._takes_orphans else 0.0)

    def exited(self, seconds: float) -> None:
        """A process of the group was waited for, and its rusage said this."""
        self._gone += seconds

    def pids_of(self, table: Mapping[int, tuple[int, str, float]]) -> set[int]:
        roots = {root.pid for root in self._roots}
        return descendants(table, list(roots | orphans(table) if self._takes_orphans else roots))

    def pids(self) -> set[int]:
        return self.pids_of(processes())

    def close(self) -> None:
        """Nothing to do."""


def cgroup_root() -> Path | None:
    """Where cgroups can be made that count CPU time, or None."""
    for root in (CGROUP_V1, CGROUP_V2):
        if not (root / "cgroup.procs").exists():
            continue
        probe = root / f"stepfleet-bench-{os.getpid()}-probe"
        try:
            probe.mkdir()
            usable = (probe / "cpuacct.usage").exists() or (probe / "cpu.stat").exists()
            probe.rmdir()
        except OSError:
            continue
        if usable:
            return root
    return None


def make_meter(name: str, *, takes_orphans: bool = False) -> Meter:
    root = cgroup_root()
    return CgroupMeter(name, root) if root else ProcMeter(name, takes_orphans)


def preexec(meter: Meter, user: str | None, death_signal: int) -> Callable[[], None]:
    """What a child does between fork and exec: group, account, user, and death with its parent."""
    parent = os.getpid()
    entry = pwd.getpwnam(user) if user else None

    def prepare() -> None:
        meter.adopt()
        if entry:
            os.setgroups([])
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
        # After setuid, which clears it.
        _libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def start(
    arguments: Sequence[str],
    *,
    meter: Meter,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: str | None = None,
    death_signal: int = signal.SIGKILL,
) -> "subprocess.Popen[bytes]":
    """Start a process in a session of its own; its output goes to the log."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=preexec(meter, user, death_signal),
        )
    _started.add(process.pid)
    meter.add(process)
    return process


def wait(process: "subprocess.Popen[bytes]", meter: Meter, timeout_seconds: float) -> int | None:
    """Wait for a process and account for it; None when it is still running after the time."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        # wait4 rather than Popen.wait: it tells the CPU time of what the process has waited for.
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            if isinstance(meter, ProcMeter):
                meter.exited(usage.ru_utime + usage.ru_stime)
            return process.returncode
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def stop(process: "subprocess.Popen[bytes]", meter: Meter, sent: int = signal.SIGTERM) -> None:
    """Ask the process to end, then end its group."""
    if process.returncode is not None:
        return
    process.send_signal(sent)
    if wait(process, meter, STOP_TIMEOUT_SECONDS) is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        wait(process, meter, STOP_TIMEOUT_SECONDS)


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, for an error message."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
