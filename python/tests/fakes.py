"""A server and a worker small enough to read, for tests of the Python side alone.

The server keeps tasks in a dict and answers like the API of docs/protocol.md. The worker runs each
task in a real child process over a socketpair, as the Go worker does.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dagster_stepfleet.frames import Frame, FrameSocket
from dagster_stepfleet.process import die_with_parent

TOKEN = "test-token"
KNOWN_QUEUES = {"default", "gpu", "runs", "runs-big"}
TERMINAL = {"succeeded", "failed", "cancelled", "lost", "dead"}


class FakeServer:
    """The API over a dict. `on_submit` receives each new task with its payload."""

    def __init__(self, on_submit: Callable[[dict, str], None] | None = None) -> None:
        self.on_submit = on_submit
        self.lock = threading.Condition()
        self.tasks: dict[tuple[str, str, int], dict] = {}
        self.calls: list[tuple[str, str, Any]] = []
        self.closed: dict[str, str] = {}
        # Why tasks are dead at submit; "" while they are not.
        self.poisoned = ""
        # Status codes to answer before anything else, and what to do in their stead.
        self.fail_next: list[tuple[int, dict, dict[str, str]]] = []
        # Who speaks for each run: (epoch, executor); and what was adjudicated, by which epochs.
        self.epochs: dict[str, tuple[int, str]] = {}
        # Which resume of each run its executor is of.
        self.resumes: dict[str, int] = {}
        self.adjudicated: dict[tuple[str, str, int], list[int]] = {}
        self.streams = 0
        self.no_streams = False
        self.knows_no_kinds = False
        self.sessions: list[dict] = []
        self.ping_seconds = 0.5
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}"
        self.thread = threading.Thread(target=self.httpd.serve_forever, args=(0.02,), daemon=True)
        self.stopped = False

    def __enter__(self) -> FakeServer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.stopped = True
            self.lock.notify_all()
        self.httpd.shutdown()
        self.httpd.server_close()

    def finish(self, task: dict, state: str, reason: str = "", result: dict | None = None) -> None:
        with self.lock:
            view = self.tasks[(task["run_id"], task["step_key"], task["attempt"])]
            if view["state"] in TERMINAL:
                return
            view.update(state=state, reason=reason, result=result)
            self.lock.notify_all()

    def bodies(self, path_end: str) -> list[Any]:
        with self.lock:
            return [body for _, path, body in self.calls if path.endswith(path_end)]

    def take(self, run_id: str, executor: str, resume: int = 0) -> int:
        """Makes somebody the run's executor."""
        with self.lock:
            self.resumes[run_id] = resume
            epoch, before = self.epochs.get(run_id, (0, ""))
            if before != executor:
                self.epochs[run_id] = (epoch + 1, executor)
                self.lock.notify_all()
            return self.epochs[run_id][0]

    def _superseded(self, run_id: str, epoch: int) -> bool:
        return epoch != 0 and self.epochs.get(run_id, (0, ""))[0] != epoch

    def _epoch(self, run_id: str, body: dict) -> tuple[int, dict]:
        if body.get("epoch"):
            return 200, {"v": 1, "epoch": body["epoch"]}
        resume = body.get("resume", 0)
        if resume < self.resumes.get(run_id, 0):
            return 409, _error("superseded", "an executor of a later resume")
        if run_id in self.closed:
            return 410, _error("run_closed", "the run is closed")
        return 200, {"v": 1, "epoch": self.take(run_id, body["executor"], resume)}

    def _adjudicate(self, run_id: str, body: dict) -> tuple[int, dict]:
        rulings = []
        with self.lock:
            for key in body["tasks"]:
                task = self.tasks.get((run_id, key["step_key"], key["attempt"]))
                granted = task is None or task["state"] in TERMINAL
                by = self.adjudicated.setdefault((run_id, key["step_key"], key["attempt"]), [])
                if granted and body["epoch"] not in by:
                    by.append(body["epoch"])
                earlier = by[-2] if len(by) > 1 else 0
                rulings.append({**key, "granted": granted, "earlier_epoch": earlier})
        return 200, {"v": 1, "rulings": rulings}

    def _submit(self, run_id: str, body: dict) -> tuple[int, dict]:
        receipts, fresh = [], []
        with self.lock:
            if run_id in self.closed:
                return 410, _error("run_closed", "the run is closed")
            for task in body["tasks"]:
                key = (run_id, task["step_key"], task["attempt"])
                receipt = {k: task[k] for k in ("run_id", "step_key", "attempt")}
                if task["queue"] not in KNOWN_QUEUES:
                    receipt["error"] = _error("unknown_queue", f"no queue {task['queue']}")["error"]
                else:
                    known = key in self.tasks
                    if not known:
                        self.tasks[key] = {
                            **task,
                            "task_id": len(self.tasks) + 1,
                            "state": "dead" if self.poisoned else "queued",
                            "submitted_at": "2026-01-02T03:04:05Z",
                            "reason": self.poisoned,
                            "result": None,
                        }
                        fresh.append(self.tasks[key])
                    receipt |= {
                        "task_id": self.tasks[key]["task_id"],
                        "state": self.tasks[key]["state"],
                        "known": known,
                    }
                receipts.append(receipt)
        for task in fresh:
            if self.on_submit:
                self.on_submit(task, body["payloads"][task["payload"]])
        return 200, {"v": 1, "receipts": receipts}

    def _cancel(self, run_id: str, keys: list | None, body: dict) -> None:
        """Of an executor, which names its epoch, the steps alone."""
        reason, epoch = body["reason"], body.get("epoch", 0)
        wanted = None if keys is None else {(k["step_key"], k["attempt"]) for k in keys}
        with self.lock:
            for (run, step, attempt), task in self.tasks.items():
                mine = run == run_id and (wanted is None or (step, attempt) in wanted)
                mine = mine and not (epoch and task["kind"] == "run")
                if mine and task["state"] == "running":
                    task["cancel_requested"] = True
                elif mine and task["state"] not in TERMINAL:
                    task.update(state="cancelled", reason=reason)
            self.lock.notify_all()

    def _handler(server: FakeServer) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def answer(self, status: int, body: dict, headers: dict[str, str] | None = None):
                raw = json.dumps(body).encode()
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def admitted(self) -> bool:
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    self.answer(401, _error("unauthorized", "the token is missing or wrong"))
                    return False
                return True

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                body = json.loads(raw)
                with server.lock:
                    server.calls.append(("POST", self.path, body))
                    failure = server.fail_next.pop(0) if server.fail_next else None
                if not self.admitted():
                    return
                if failure:
                    self.answer(*failure)
                    return
                _, _, _, run_id, verb = self.path.split("/")
                if server._superseded(run_id, body.get("epoch", 0)):
                    self.answer(409, _error("superseded", "another executor"))
                    return
                calls = {
                    "epoch": server._epoch,
                    "adjudicate": server._adjudicate,
                    "tasks": server._submit,
                }
                if verb in calls:
                    self.answer(*calls[verb](run_id, body))
                    return
                if verb == "close":
                    with server.lock:
                        server.closed[run_id] = body["reason"]
                    server._cancel(run_id, None, body)
                else:
                    server._cancel(run_id, body["tasks"], body)
                self.answer(200, {"v": 1, "changes": []})

            def do_GET(self) -> None:
                with server.lock:
                    server.calls.append(("GET", self.path, None))
                if not self.admitted():
                    return
                if self.path == "/v1/sessions":
                    self.answer(200, {"v": 1, "sessions": server.sessions})
                    return
                path, _, query = self.path.partition("?")
                _, _, _, run_id, verb = path.split("/")
                if verb == "stream" and server.no_streams:
                    self.answer(502, {})
                    return
                if verb == "stream":
                    epoch = int(query.removeprefix("epoch="))
                    if server._superseded(run_id, epoch):
                        self.answer(409, _error("superseded", "another executor"))
                        return
                    with contextlib.suppress(OSError):
                        self.stream(run_id, epoch)
                    return
                kind = "" if server.knows_no_kinds else query.removeprefix("kind=")
                if kind not in ("", "step", "run"):
                    self.answer(400, _error("task_invalid", query))
                    return
                with server.lock:
                    tasks = [t for (r, _, _), t in server.tasks.items() if r == run_id]
                    tasks = [t for t in tasks if kind in ("", t["kind"])]
                    body = json.loads(json.dumps({"v": 1, "tasks": tasks}))
                self.answer(200, body)

            def stream(self, run_id: str, epoch: int) -> None:
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.close_connection = True
                self.line({"v": 1, "type": "hello", "run_id": run_id, "epoch": epoch})
                told: set[int] = set()
                with server.lock:
                    server.streams += 1
                    mine = server.streams
                first = True
                while not server.stopped and mine == server.streams:
                    if server._superseded(run_id, epoch):
                        self.line({"type": "superseded"})
                        return
                    with server.lock:
                        news = [
                            dict(t)
                            for (r, _, _), t in server.tasks.items()
                            if r == run_id and t["state"] in TERMINAL and t["task_id"] not in told
                        ]
                        if not news and not first and not server.lock.wait(server.ping_seconds):
                            news = [{"ping": True}]
                    for task in news:
                        if task.get("ping"):
                            self.line({"type": "ping"})
                            continue
                        told.add(task["task_id"])
                        names = ("task_id", "step_key", "attempt", "state", "reason", "result")
                        self.line({"type": "task"} | {n: task[n] for n in names})
                    if first:
                        self.line({"type": "snapshot_end"})
                        first = False

            def line(self, body: dict) -> None:
                raw = json.dumps(body).encode() + b"\n"
                self.wfile.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
                self.wfile.flush()

        return Handler


def _error(code: str, message: str) -> dict:
    return {"v": 1, "error": {"code": code, "message": message, "retry": False}}


def _clean_environ(**more: str) -> dict[str, str]:
    # Unbuffered, as a worker starts its processes: a killed step loses none of its words.
    return {**os.environ, "DAGSTER_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1", **more}


class Child:
    """The worker's side of one child."""

    def __init__(self, frames: FrameSocket, pid: int, proc: subprocess.Popen | None = None) -> None:
        self.frames = frames
        self.pid = pid
        self.proc = proc
        # The result of a step whose end is in the log, and what to do then.
        self.ended: dict = {}
        self.on_ended: list[Callable[[], None]] = []
        # The result of a step that goes on for its threads, and what to do then.
        self.lingers: dict = {}
        self.on_lingers: list[Callable[[], None]] = []

    @classmethod
    def cold(cls, **env: str) -> Child:
        ours, theirs = socket.socketpair()
        proc = subprocess.Popen(
            [sys.executable, "-m", "dagster_stepfleet.host", "child"],
            env=_clean_environ(STEPFLEET_HOST_FD=str(theirs.fileno()), **env),
            pass_fds=[theirs.fileno()],
            cwd=os.path.dirname(os.path.dirname(__file__)),
        )
        theirs.close()
        return cls(FrameSocket(ours), proc.pid, proc)

    def ready(self) -> Frame:
        frame = self.frames.receive()
        assert frame is not None and frame["op"] == "ready", frame
        return frame

    def run(self, task: dict, payload: str, refuse: set[str] = frozenset(), **env: str) -> dict:
        """Runs the task; returns its result, {} when the child ended without one."""
        self.asked: list[str] = []
        self.frames.send(
            {
                "op": "run",
                "v": 1,
                "task": task,
                "task_id": task.get("task_id", 1),
                "fence": 1,
                "payload": payload,
                "env": {
                    "STEPFLEET_FENCE": "1",
                    "STEPFLEET_WORKER": "worker-1",
                    "STEPFLEET_STEP_KEY": task["step_key"],
                    **env,
                },
            }
        )
        while (frame := self.frames.receive()) is not None:
            if frame["op"] == "result":
                return frame["result"]
            if frame["op"] == "ended":
                self.ended = frame["result"]
                for call in self.on_ended:
                    call()
            if frame["op"] == "lingers":
                self.lingers = frame["result"]
                for call in self.on_lingers:
                    call()
            if frame["op"] in ("start", "gate"):
                name = frame.get("event", "start")
                self.asked.append(name)
                if name in refuse:
                    self.frames.send({"op": "refused", "code": "fenced", "message": "not yours"})
                else:
                    self.frames.send({"op": "granted"})
        return {}

    def close(self) -> None:
        self.frames.close()
        if self.proc is not None:
            try:
                self.proc.wait(5)
            except subprocess.TimeoutExpired:
                self.proc.kill()
                self.proc.wait()


class TemplateProcess:
    """The worker's side of a template."""

    def __init__(self, preload: list[dict], **env: str) -> None:
        ours, theirs = socket.socketpair()
        self.proc = subprocess.Popen(
            [sys.executable, "-m", "dagster_stepfleet.host", "template"],
            env=_clean_environ(
                STEPFLEET_HOST_FD=str(theirs.fileno()),
                STEPFLEET_PRELOAD=json.dumps(preload),
                STEPFLEET_TOKEN="secret",
                STEPFLEET_TOKEN_FILE="/secret",
                STEPFLEET_DATABASE_URL="postgres://secret",
                **env,
            ),
            pass_fds=[theirs.fileno()],
            cwd=os.path.dirname(os.path.dirname(__file__)),
        )
        theirs.close()
        self.frames = FrameSocket(ours)
        self.loaded = self._expect("loaded")
        self.number = 0
        self.other: queue.Queue[Frame] = queue.Queue()

    def _expect(self, *ops: str) -> Frame:
        while True:
            frame = self.frames.receive()
            assert frame is not None, "the template has gone"
            if frame["op"] in ops:
                return frame
            self.other.put(frame)

    def fork(self) -> Child:
        frame, child = self.try_fork()
        assert child is not None, frame
        return child

    def try_fork(self) -> tuple[Frame, Child | None]:
        self.number += 1
        ours, theirs = socket.socketpair()
        body = json.dumps({"op": "fork", "child": self.number}).encode()
        self.frames.sock.sendmsg(
            [len(body).to_bytes(4, "big") + body],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))],
        )
        theirs.close()
        frame = self._expect("forked", "refused")
        assert frame["child"] == self.number
        if frame["op"] == "refused":
            ours.close()
            return frame, None
        return frame, Child(FrameSocket(ours), frame["pid"])

    def exited(self, pid: int) -> Frame:
        while not self.other.empty():
            frame = self.other.get()
            if frame["op"] == "exited" and frame["pid"] == pid:
                return frame
        while True:
            frame = self._expect("exited")
            if frame["pid"] == pid:
                return frame

    def close(self) -> None:
        self.frames.close()
        try:
            self.proc.wait(5)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()


class Worker:
    """Runs submitted tasks in forked children, `slots` at a time, in threads of the test."""

    def __init__(self, server: FakeServer, template: TemplateProcess, slots: int = 2, **env: str):
        self.server, self.template, self.env = server, template, env
        self.tasks: queue.Queue[tuple[dict, str] | None] = queue.Queue()
        self.lock = threading.Lock()
        self.ran: list[str] = []
        self.results: list[dict] = []
        self.state_of_dead = "failed"
        server.on_submit = lambda task, payload: self.tasks.put((task, payload))
        self.threads = [threading.Thread(target=self._loop, daemon=True) for _ in range(slots)]

    def __enter__(self) -> Worker:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for _t in self.threads:
            self.tasks.put(None)
        for thread in self.threads:
            thread.join(10)

    def _idle(self) -> Child:
        with self.lock:
            child = self.template.fork()
        child.ready()
        return child

    def _loop(self) -> None:
        idle = self._idle()
        while (item := self.tasks.get()) is not None:
            task, payload = item
            result = idle.run(task, payload, **self.env)
            self.ran.append(task["step_key"])
            self.results.append(result)
            idle.close()
            if result:
                self.server.finish(task, result["outcome"], "", result)
            else:
                self.server.finish(task, self.state_of_dead, "worker-1's session died")
            idle = self._idle()
        idle.close()


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_dead(*pids: int, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


@contextlib.contextmanager
def killed_at_exit(*pids: int) -> Iterator[None]:
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def tie_to_parent() -> None:
    """For processes that tests start: they die with the test."""
    die_with_parent(os.getppid())
