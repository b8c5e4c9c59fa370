"""What a stepfleet worker starts: `python -m dagster_stepfleet.host template|child|uploader`.

The template imports Dagster and the user's code once and forks a child for each task, ahead of
need. It has one thread and no socket but its own, which it checks before every fork: a fork
copies locks that other threads hold, and shares sockets. A child, forked or started by itself
(`child`, the cold mode), runs one task and exits. The uploader is for the logs of steps that
cannot upload them themselves.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
import zlib
from typing import TYPE_CHECKING, Any, NoReturn

from dagster_stepfleet import pages, process
from dagster_stepfleet.frames import PROTOCOL_VERSION, Frame, FrameError, FrameSocket

if TYPE_CHECKING:
    from dagster import DagsterInstance

# What a child may write to the template at once without mixing with another's (POSIX PIPE_BUF).
_PIPE_BUF = 4096
# Instances that the template keeps ready. Deployments have one; tests and moves have two.
_MAX_INSTANCES = 4
# After an instance could not be built (its database is down) the template leaves it alone.
_INSTANCE_RETRY_SECONDS = 60.0
# Steps that tell which pages they have copied; what all of them have is copied ahead of need.
_PAGE_LESSONS = 2


def main(argv: list[str]) -> None:
    if argv not in (["template"], ["child"], ["uploader"]):
        raise SystemExit("usage: python -m dagster_stepfleet.host template|child|uploader")
    parent = os.getppid()
    process.die_with_parent(parent)
    process.lead_group()
    sock = process.host_socket()
    preload = os.environ.get("STEPFLEET_PRELOAD", "")
    process.drop_secrets()
    if argv == ["child"]:
        cold_child(sock)
    if argv == ["uploader"]:
        upload(sock)
        return
    Template(sock, preload).run()


def cold_child(sock: socket.socket) -> NoReturn:
    """A child without a template: pays for its imports itself."""
    _watch(sock)
    process.outlive_parent_thread()
    from dagster_stepfleet import child, gate

    child.serve(gate.Parent(FrameSocket(sock)), child.Warm())


def upload(sock: socket.socket) -> None:
    """Uploads logs until it is told to stop, or there are none; dies with its parent."""
    from dagster_stepfleet import spool, uploader

    uploader.Uploader(spool.directory()).serve(FrameSocket(sock))


def _watch(sock: socket.socket) -> None:
    """Kills the process group when the parent's end of the socket closes."""
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLRDHUP if hasattr(select, "POLLRDHUP") else 0)

    def watch() -> None:
        while True:
            for _, event in poller.poll():
                if event & (select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)):
                    process.kill_group(os.getpid())

    threading.Thread(target=watch, name="stepfleet-watch", daemon=True).start()


class Template:
    """Loads, then forks on request until its parent is gone or says stop."""

    def __init__(self, sock: socket.socket, preload: str) -> None:
        self._control = FrameSocket(sock)
        self._preload = preload
        self._children: dict[int, int] = {}  # pid -> the parent's number for it
        self._stopping = False
        self._instances: dict[str, DagsterInstance] = {}
        self._instance_failed_at: dict[str, float] = {}
        self._wanted: list[str] = []
        self._lessons: list[set[int]] = []  # pages that steps have copied
        self._lesson_read = -1  # the end of the pipe of the child that will tell of its pages
        self._lesson = b""
        self._hot = pages.Hot()
        self._wake_read, self._wake_write = _pipe()
        self._teach_read, self._teach_write = _pipe()

    def run(self) -> NoReturn:
        started = time.monotonic()
        locations, problem = self._load()
        reason = problem or self._unsafe()
        gc.collect()
        gc.freeze()
        self._send(
            {
                "op": "loaded",
                "v": PROTOCOL_VERSION,
                "pid": os.getpid(),
                "seconds": round(time.monotonic() - started, 3),
                "fork_safe": not reason,
                "reason": reason,
                "locations": locations,
            }
        )
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _note_signal)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent says stop; drain needs children
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # From here on the socket tells of the parent's death, and the children are killed then.
        process.outlive_parent_thread()
        while True:
            self._turn()

    def _load(self) -> tuple[list[dict[str, Any]], str]:
        """Imports and primes. Returns how the locations went, and what makes forking unsafe."""
        from dagster_stepfleet import plans, preload, priming

        plans.install()
        importlib.import_module("dagster_stepfleet.child")
        importlib.import_module("dagster_stepfleet.run_worker")
        for name in ("dagster_postgres", "psycopg2", "sqlalchemy.dialects.postgresql"):
            with contextlib.suppress(ImportError):
                __import__(name)
        try:
            specs = json.loads(self._preload) if self._preload else []
        except ValueError as err:
            return [], f"STEPFLEET_PRELOAD is not JSON: {err}"
        locations = [preload.load(spec).frame() for spec in specs]
        try:
            priming.prime()
        except Exception as err:
            # Children work all the same, only slower.
            print(f"stepfleet: priming failed: {type(err).__name__}: {err}", file=sys.stderr)
        self._learn_home()
        return locations, ""

    def _learn_home(self) -> None:
        """Guesses the instance before the first task: the one of DAGSTER_HOME."""
        if os.environ.get("DAGSTER_HOME"):
            from dagster._core.instance import InstanceRef
            from dagster._serdes import serialize_value

            with contextlib.suppress(Exception):
                ref = InstanceRef.from_dir(os.environ["DAGSTER_HOME"])
                self._build(serialize_value(ref))

    def _unsafe(self) -> str:
        """Says why a fork would not be safe now, or nothing."""
        threads = process.threads()
        if len(threads) > 1:
            return f"the template has {len(threads)} threads: {', '.join(sorted(threads))}"
        known = {0, 1, 2, self._control.sock.fileno()}
        sockets = process.sockets(known)
        if sockets:
            return f"the template holds {len(sockets)} sockets of loaded code (fd {sockets})"
        return ""

    def _turn(self) -> None:
        """Waits for the parent, a child's death or a child's lesson, and acts on it."""
        control = self._control.sock.fileno()
        watched = [control, self._wake_read, self._teach_read]
        if self._lesson_read >= 0:
            watched.append(self._lesson_read)
        readable, _, _ = select.select(watched, [], [])
        if self._wake_read in readable:
            _drain(self._wake_read)
            self._reap()
        if self._teach_read in readable:
            self._take_lessons()
        if self._lesson_read in readable:
            self._take_pages()
        if control in readable:
            self._read_control()
        elif self._wanted:
            # Only when the parent wants nothing: building an instance takes tens of ms.
            self._build(self._wanted.pop())
        if self._stopping and not self._children:
            os._exit(0)

    def _read_control(self) -> None:
        try:
            more = self._control.fill()
            while (frame := self._control.take()) is not None:
                self._obey(frame)
        except FrameError as err:
            print(f"stepfleet: {err}", file=sys.stderr)
            more = False
        if not more:
            self._abandon()

    def _obey(self, frame: Frame) -> None:
        if frame["op"] == "stop":
            self._stopping = True
        elif frame["op"] == "fork":
            number = int(frame["child"])
            fd = self._control.take_fd()
            reason = (
                "the frame carried no socket"
                if fd is None
                else "the template is stopping"
                if self._stopping
                else self._unsafe_with(fd)
            )
            if reason or fd is None:
                if fd is not None:
                    os.close(fd)
                self._send({"op": "refused", "child": number, "reason": reason})
            else:
                self._fork(number, fd)

    def _unsafe_with(self, fd: int) -> str:
        pending = {fd, *self._control.fds}
        threads = process.threads()
        if len(threads) > 1:
            return f"the template has {len(threads)} threads: {', '.join(sorted(threads))}"
        known = {0, 1, 2, self._control.sock.fileno()} | pending
        sockets = process.sockets(known)
        return f"the template holds sockets of loaded code (fd {sockets})" if sockets else ""

    def _fork(self, number: int, fd: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        template = os.getpid()
        telling = self._ask_for_pages()
        pid = os.fork()
        if pid == 0:
            try:
                self._become_child(template, fd, telling)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        # Both sides set the group: whoever is first, it is there when it is needed.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        os.close(fd)
        if telling >= 0:
            os.close(telling)
        self._children[pid] = number
        self._send({"op": "forked", "child": number, "pid": pid})

    def _become_child(self, template: int, fd: int, telling: int) -> NoReturn:
        process.lead_group()
        process.die_with_parent(template)
        lesson = None
        if telling < 0:
            self._hot.populate()
        else:
            lesson = pages.Lesson(telling)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        for other in (
            self._control.sock.detach(),
            *self._control.fds,
            self._wake_read,
            self._wake_write,
            self._teach_read,
            self._lesson_read,
        ):
            if other >= 0:
                os.close(other)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)

        from dagster_stepfleet import child, gate, logs, storage

        child.reseed()
        for instance in self._instances.values():
            with contextlib.suppress(Exception):  # the task will meet it, and say so
                storage.warm(instance)
                logs.install(instance)
        warm = child.Warm(dict(self._instances), self._teach, lesson)
        child.serve(gate.Parent(FrameSocket(socket.socket(fileno=fd))), warm)

    # Pages: the first children tell which ones their steps have copied, those to come begin with
    # them. One tells at a time, on a pipe of its own, which ends with it.

    def _ask_for_pages(self) -> int:
        """Returns the pipe to tell on, -1 when there is nothing to ask."""
        if self._lesson_read >= 0 or len(self._lessons) >= _PAGE_LESSONS:
            return -1
        self._lesson_read, telling = os.pipe()
        os.set_blocking(self._lesson_read, False)
        return telling

    def _take_pages(self) -> None:
        """Reads what there is. At its end the lesson counts, if it is whole."""
        try:
            while chunk := os.read(self._lesson_read, 1 << 16):
                self._lesson += chunk
        except BlockingIOError:
            return
        told = pages.unpack(self._lesson)
        os.close(self._lesson_read)
        self._lesson_read, self._lesson = -1, b""
        if told:
            self._lessons.append(told)
            self._hot = pages.Hot(set.intersection(*self._lessons))

    # Instances: a child that met a new one tells, the template builds it for those to come.

    def _teach(self, ref: str) -> None:
        """In a child: writes the serialised instance_ref in one piece, if it fits into one."""
        packed = zlib.compress(ref.encode())
        lesson = len(packed).to_bytes(2, "big") + packed
        if len(lesson) <= _PIPE_BUF:
            with contextlib.suppress(OSError):
                os.write(self._teach_write, lesson)

    def _take_lessons(self) -> None:
        data = _drain(self._teach_read)
        while len(data) >= 2:
            length = int.from_bytes(data[:2], "big")
            packed, data = data[2 : 2 + length], data[2 + length :]
            with contextlib.suppress(zlib.error, UnicodeDecodeError):
                ref = zlib.decompress(packed).decode()
                if ref not in self._instances and ref not in self._wanted:
                    self._wanted.append(ref)

    def _build(self, ref: str) -> None:
        """Builds the instance and leaves it without a connection."""
        if ref in self._instances:
            return
        failed_at = self._instance_failed_at.get(ref)
        if failed_at is not None and time.monotonic() - failed_at < _INSTANCE_RETRY_SECONDS:
            return
        from dagster import DagsterInstance
        from dagster._core.instance import InstanceRef
        from dagster._serdes import deserialize_value

        from dagster_stepfleet import logs, storage

        try:
            instance = DagsterInstance.from_ref(deserialize_value(ref, InstanceRef))
            storage.pool(instance)
            storage.prime(instance)
            storage.dispose(instance)
            logs.warm(instance)
        except Exception as err:
            self._instance_failed_at[ref] = time.monotonic()
            print(
                f"stepfleet: the Dagster instance could not be built ahead of need "
                f"({type(err).__name__}: {err}); children build it themselves",
                file=sys.stderr,
            )
            return
        if len(self._instances) >= _MAX_INSTANCES:
            self._instances.pop(next(iter(self._instances)))
        self._instances[ref] = instance
        gc.collect()
        gc.freeze()

    # Ends.

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            number = self._children.pop(pid, None)
            if number is not None:
                # What the step has started and left behind goes with it.
                process.kill_group(pid)
                self._send(
                    {
                        "op": "exited",
                        "child": number,
                        "pid": pid,
                        "status": os.waitstatus_to_exitcode(status),
                    }
                )

    def _send(self, frame: Frame) -> None:
        try:
            self._control.send(frame)
        except OSError:
            self._abandon()

    def _abandon(self) -> NoReturn:
        """The parent is gone: nobody settles what the children do, so they must not do it."""
        for pid in self._children:
            process.kill_group(pid)
        os._exit(1)


def _note_signal(number: int, frame: object) -> None:
    """Present so that the signal is written to the wake-up pipe."""


def _pipe() -> tuple[int, int]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    return read, write


def _drain(fd: int) -> bytes:
    data = b""
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(fd, 1 << 16):
            data += chunk
    return data


if __name__ == "__main__":
    main(sys.argv[1:])
