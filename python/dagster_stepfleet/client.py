"""The client of the server's HTTP API: submits, and the run's stream of completions.

It speaks for one run, as its executor: it takes the run's epoch and names it in every call. Once
another executor has taken a later one, or one of a later resume has the run, everything raises
Superseded.

A call is repeated, with growing pauses, while the server cannot be reached or says that it takes
no more: submits, cancels and closes are idempotent. The pauses end when Dagster has received an
interrupt, so that a run that is terminated during an outage ends at once.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

DEFAULT_URL = "http://127.0.0.1:8630"
PROTOCOL_VERSION = 1
# The epoch of who asks and is no executor.
NO_EXECUTOR = 0

# The server answers in milliseconds; a call that hangs for longer than this is repeated.
_CALL_TIMEOUT_SECONDS = 10.0
# The server sends a ping every 5 s. Silence for three of them means the connection is gone.
STREAM_SILENCE_SECONDS = 15.0
# Pauses before repeats are anything up to these: those who failed together must not come back
# together. A stream tries sooner, since calls that wait go on once it is greeted.
_BACKOFF_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
_STREAM_BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# Of all calls a tenth may be repeats. Those beyond it are made as seldom as any.
_CALLS_PER_REPEAT = 10
_REPEATS_SAVED = 10
# After this many connections in a row that told nothing, the run's tasks are asked for instead.
_LOOK_AFTER_TRIES = 4
TERMINAL_STATES = frozenset({"succeeded", "failed", "cancelled", "lost", "dead"})
# How long a signal may go unnoticed in a pause or a wait.
_INTERRUPT_SLICE_SECONDS = 0.1
_RETRIED_STATUS = frozenset({429, 502, 503, 504})
# One line of the stream carries one task's result, whose message the server bounds at 16 KiB.
_MAX_LINE_BYTES = 1 << 20

_log = logging.getLogger("dagster.stepfleet")


class StepfleetError(Exception):
    """What stepfleet tells the user; the message says what to do."""


class ServerUnreachable(StepfleetError):
    """The server did not answer within the budget for outages."""


class Interrupted(StepfleetError):
    """The run was interrupted while a call waited. The call may or may not have had effect."""


class ServerRefused(StepfleetError):
    """The server answered with an error that repeating would not cure."""

    def __init__(self, code: str, status: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class Superseded(BaseException):
    """Another executor has taken over the run: this one must leave it alone, at once.

    Not an Exception: Dagster's loop, and user code, would report that as a failure of the run.
    """


@dataclass(frozen=True)
class Ended:
    """A task that has ended, as the stream or a receipt told it."""

    step_key: str
    attempt: int
    state: str
    task_id: int = 0
    reason: str = ""
    result: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Ended:
        """Reads a task as the stream or the list of a run's tasks has it."""
        return cls(
            step_key=str(told["step_key"]),
            attempt=int(told["attempt"]),
            state=str(told["state"]),
            task_id=int(told.get("task_id") or 0),
            reason=str(told.get("reason") or ""),
            result=told.get("result"),
        )

    def describe(self) -> str:
        """Says in one line how the task ended, for Dagster's UI."""
        parts = [self.reason] if self.reason else []
        if self.result:
            error = self.result.get("error") or {}
            if error.get("message"):
                code = error.get("code")
                parts.append(f"{error['message']} [{code}]" if code else error["message"])
            exit_code = self.result.get("exit_code")
            if isinstance(exit_code, int) and exit_code < 0:
                parts.append(f"the step's process was ended by signal {-exit_code}")
            elif exit_code:
                parts.append(f"the step's process exited with status {exit_code}")
            worker = self.result.get("worker")
            if worker:
                parts.append(f"on worker {worker}")
        return f"stepfleet task {self.task_id} ended as {self.state}" + (
            ": " + ", ".join(parts) if parts else ", without an ending event"
        )


# What take_token has taken.
_taken: str | None = None


def take_token(environ: MutableMapping[str, str] = os.environ) -> None:
    """Takes STEPFLEET_TOKEN out of the environment, for read_token in this process alone: user code
    looks there, and the processes that it starts inherit it."""
    global _taken
    _taken = environ.pop("STEPFLEET_TOKEN", None)


def read_token(environ: Mapping[str, str] = os.environ) -> str | None:
    """Returns the token from STEPFLEET_TOKEN, from the file STEPFLEET_TOKEN_FILE, or as it was
    taken."""
    token = environ.get("STEPFLEET_TOKEN")
    if token:
        return token.strip()
    path = environ.get("STEPFLEET_TOKEN_FILE")
    if not path:
        return _taken
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError as err:
        raise StepfleetError(
            f"STEPFLEET_TOKEN_FILE names {path}, which cannot be read: {err}"
        ) from err


def never() -> bool:
    return False


def _full_jitter(ceilings: Sequence[float], tries: int) -> float:
    """The pause after so many failed tries, counted from 0."""
    return random.uniform(0.0, ceilings[min(tries, len(ceilings) - 1)])


class _RepeatBudget:
    """Keeps a server that takes half of what it is asked from being asked twice as much."""

    def __init__(self) -> None:
        self._calls = _CALLS_PER_REPEAT * _REPEATS_SAVED

    def earn(self) -> None:
        """Counts a call."""
        self._calls = min(self._calls + 1, _CALLS_PER_REPEAT * _REPEATS_SAVED)

    def pause(self, tries: int, retry_after: float | None) -> float:
        """Spends a repeat and returns the pause before it."""
        if self._calls < _CALLS_PER_REPEAT:
            return (retry_after or 0.0) + _full_jitter(_BACKOFF_SECONDS, len(_BACKOFF_SECONDS))
        self._calls -= _CALLS_PER_REPEAT
        if retry_after is not None:
            return retry_after * random.uniform(1.0, 1.25)
        return _full_jitter(_BACKOFF_SECONDS, tries)


@dataclass
class _Endpoint:
    url: str
    token: str | None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise StepfleetError(
                f"The stepfleet server's URL {self.url!r} is not of the form http://host:port. "
                "Set server_url in the executor's config, or STEPFLEET_URL."
            )
        if parts.username or parts.password:
            raise StepfleetError(
                "The stepfleet server's URL must not carry a password; use STEPFLEET_TOKEN."
            )
        self.secure = parts.scheme == "https"
        self.host = parts.hostname
        self.port = parts.port
        self.prefix = parts.path.rstrip("/")

    def connect(self, timeout: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=timeout)
        connection.connect()
        if connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def headers(self, body: bool) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "dagster-stepfleet"}
        if body:
            headers["Content-Type"] = "application/json"
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        return headers


class _Caller:
    """One kept connection, and the answers on it in words of our own."""

    def __init__(
        self,
        endpoint: _Endpoint,
        path: str,
        run_id: str,
        timeout_seconds: float = _CALL_TIMEOUT_SECONDS,
    ) -> None:
        self._endpoint = endpoint
        self._timeout_seconds = timeout_seconds
        self.path = path
        self._run_id = run_id
        self._connection: http.client.HTTPConnection | None = None

    @property
    def url(self) -> str:
        return self._endpoint.url

    def another(self) -> _Caller:
        """Returns one for another thread."""
        return _Caller(self._endpoint, self.path, self._run_id, self._timeout_seconds)

    def once(self, method: str, path: str, data: bytes | None) -> dict[str, Any]:
        """One exchange, or two when a kept connection turns out to be closed."""
        kept = self._connection is not None
        try:
            status, headers, raw = self._exchange(method, path, data)
        except (OSError, http.client.HTTPException) as err:
            self.disconnect()
            if not kept:
                raise _Again(f"{type(err).__name__}: {err}") from err
            return self.once(method, path, data)
        return self.judge(status, headers, raw)

    def _exchange(
        self, method: str, path: str, data: bytes | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        if self._connection is None:
            self._connection = self._endpoint.connect(self._timeout_seconds)
        headers = self._endpoint.headers(data is not None)
        base = self._endpoint.prefix if path.startswith("/v1/") else self.path
        self._connection.request(method, base + path, data, headers)
        response = self._connection.getresponse()
        raw = response.read()
        if response.will_close:
            self.disconnect()
        return response.status, dict(response.headers.items()), raw

    def judge(self, status: int, headers: Mapping[str, str], raw: bytes) -> dict[str, Any]:
        try:
            answer: Any = json.loads(raw) if raw else {}
        except ValueError:
            answer = None
        if 200 <= status < 300:
            if not isinstance(answer, dict):
                raise StepfleetError(
                    f"{self.url} answered {status} with something that is not the stepfleet API: "
                    "check STEPFLEET_URL and the executor's server_url."
                )
            return answer
        error = answer.get("error") if isinstance(answer, dict) else None
        error = error if isinstance(error, dict) else {}
        code = str(error.get("code") or f"http_{status}")
        message = str(error.get("message") or raw[:200].decode(errors="replace") or "no message")
        if code == "superseded":
            raise Superseded(
                f"Another run worker has taken over run {self._run_id} ({message}). This one "
                "leaves it as it is."
            )
        if status in _RETRIED_STATUS or error.get("retry") is True:
            raise _Again(f"{status} {code}: {message}", _retry_after(headers))
        raise ServerRefused(code, status, self._explain(code, status, message))

    def _explain(self, code: str, status: int, message: str) -> str:
        advice = {
            "unauthorized": "Set STEPFLEET_TOKEN, or STEPFLEET_TOKEN_FILE, to the server's token "
            "in the run worker's environment.",
            "conflict": "The ledger knows this run id from another job or deployment; a run id "
            "must not be used twice.",
            "not_found": "The ledger does not know this run's executor: it was replaced, or "
            "restored from before the run began. Launch the run again.",
            "run_closed": "The run was closed, by its launcher, by `stepfleet`, or because "
            "Dagster shows it as ended. Launch a new run.",
        }.get(code, "")
        text = f"The stepfleet server at {self.url} refused ({status} {code}): {message}. {advice}"
        return text.strip()

    def disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Client:
    """Speaks for one run."""

    def __init__(
        self,
        url: str,
        run_id: str,
        *,
        token: str | None = None,
        outage_budget_seconds: float = 300.0,
        call_timeout_seconds: float | None = None,
        interrupted: Callable[[], bool] = never,
        resume: int = 0,
    ) -> None:
        self.url = url
        self.run_id = run_id
        self._endpoint = _Endpoint(url, token)
        self._budget = outage_budget_seconds
        self._repeats = _RepeatBudget()
        self._interrupted = interrupted
        path = f"{self._endpoint.prefix}/v1/runs/{quote(run_id, safe='')}"
        timeout_seconds = call_timeout_seconds or _CALL_TIMEOUT_SECONDS
        self._caller = _Caller(self._endpoint, path, run_id, timeout_seconds)
        # A request that an outage has delayed must not take the run from the one that followed it,
        # be that of this executor or of the one of a later resume.
        self._takeover: dict[str, Any] = {"v": PROTOCOL_VERSION, "executor": uuid.uuid4().hex}
        if resume:  # left out, it is 0, and a server of before it takes the request
            self._takeover["resume"] = resume
        self.completions = Completions()
        self._stream: _Stream | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def start(self) -> None:
        """Takes the run's epoch and opens its stream, in the background."""
        if self._stream is None:
            self._stream = _Stream(
                self._endpoint, self._caller.another(), self._takeover, self.completions
            )
            self._stream.start()

    def epoch(self) -> int:
        """Returns the run's epoch, waiting for it as for any answer of the server."""
        self.start()
        deadline = time.monotonic() + self._budget
        while True:
            completions = self.completions
            if completions.epoch:
                return completions.epoch
            if completions.refused is not None:
                raise completions.refused
            if self._interrupted():
                raise Interrupted("interrupted while waiting for the stepfleet server")
            if time.monotonic() > deadline:
                raise self._unreachable(self._budget, f"the last try: {completions.trouble}")
            completions.wait_for_epoch(_INTERRUPT_SLICE_SECONDS)

    def confirm(self) -> None:
        """Raises Superseded when another executor has taken over. An outage is no answer."""
        body = {**self._takeover, "epoch": self.epoch()}
        with contextlib.suppress(ServerUnreachable):
            self._call("POST", "/epoch", body, budget_seconds=0.0)

    def submit(
        self,
        identity: str,
        payloads: Mapping[str, str],
        tasks: Sequence[Mapping[str, Any]],
        *,
        as_executor: bool = True,
    ) -> list[dict[str, Any]]:
        """Submits one batch and returns its receipts, one a task, in order. Steps are submitted by
        the run's executor, under its epoch; run workers by nobody's."""
        answer = self._call(
            "POST",
            "/tasks",
            {
                "v": PROTOCOL_VERSION,
                "epoch": self.epoch() if as_executor else NO_EXECUTOR,
                "identity": identity,
                "payloads": dict(payloads),
                "tasks": list(tasks),
            },
        )
        receipts = answer.get("receipts")
        if not isinstance(receipts, list) or len(receipts) != len(tasks):
            raise StepfleetError(
                f"The stepfleet server at {self.url} answered {len(tasks)} tasks with "
                f"{len(receipts) if isinstance(receipts, list) else 'no'} receipts: "
                "install the plugin and the server of one release."
            )
        return receipts

    def tasks(self, kind: str = "", *, budget_seconds: float | None = None) -> list[dict[str, Any]]:
        """The run's tasks, by id: of a kind ("step", "run"), or all."""
        query = f"?kind={kind}" if kind else ""
        found = self._call("GET", f"/tasks{query}", None, budget_seconds=budget_seconds)
        tasks = found.get("tasks")
        return tasks if isinstance(tasks, list) else []

    def sessions(self) -> list[dict[str, Any]]:
        """The workers' sessions, of all runs."""
        sessions = self._call("GET", "/v1/sessions", None).get("sessions")
        return sessions if isinstance(sessions, list) else []

    def cancel(
        self,
        tasks: Sequence[tuple[str, int]] | None,
        reason: str,
        *,
        budget_seconds: float | None = None,
    ) -> None:
        """Cancels the tasks (step key, attempt), or all of the run's steps. Interrupts do not end
        it. For a client that has its epoch."""
        keys = None if tasks is None else [{"step_key": k, "attempt": a} for k, a in tasks]
        body = {
            "v": PROTOCOL_VERSION,
            "epoch": self.completions.epoch,
            "tasks": keys,
            "reason": reason,
        }
        self._call("POST", "/cancel", body, budget_seconds=budget_seconds, interruptible=False)

    def close_run(self, reason: str, *, budget_seconds: float | None = None) -> None:
        """Closes the run: what still waits is cancelled, nothing more is accepted. For a client
        that has its epoch."""
        body = {"v": PROTOCOL_VERSION, "epoch": self.completions.epoch, "reason": reason}
        self._call("POST", "/close", body, budget_seconds=budget_seconds, interruptible=False)

    def adjudicate(self, tasks: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        """Asks whether this executor may say how the attempts (step key, attempt) ended."""
        body = {
            "v": PROTOCOL_VERSION,
            "epoch": self.epoch(),
            "tasks": [{"step_key": k, "attempt": a} for k, a in tasks],
        }
        rulings = self._call("POST", "/adjudicate", body).get("rulings")
        return rulings if isinstance(rulings, list) else []

    def wait(self, version: int, timeout_seconds: float) -> bool:
        """Waits until `completions` is newer than version. Returns early upon an interrupt."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            left = deadline - time.monotonic()
            if self._interrupted() or left <= 0:
                return self.completions.version > version
            if self.completions.wait(version, min(left, _INTERRUPT_SLICE_SECONDS)):
                return True

    def shutdown(self) -> None:
        if self._stream is not None:
            self._stream.stop()
        self._caller.disconnect()

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        budget_seconds: float | None = None,
        interruptible: bool = True,
    ) -> dict[str, Any]:
        budget = self._budget if budget_seconds is None else budget_seconds
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        deadline = time.monotonic() + budget
        tries = 0
        while True:
            self._repeats.earn()
            greetings = self.completions.greetings
            try:
                return self._caller.once(method, path, data)
            except _Again as err:
                pause = self._repeats.pause(tries, err.retry_after)
                left = deadline - time.monotonic()
                tries += 1
                if left <= 0:
                    raise self._unreachable(budget, f"{tries} tries, the last: {err}") from err
                if tries == 1:
                    _log.warning("stepfleet server at %s: %s; trying again", self.url, err)
                # A server that says when to come back is there.
                awaited = greetings if err.retry_after is None else None
                self._pause(min(pause, left), awaited, interruptible)

    def _unreachable(self, budget: float, tried: str) -> ServerUnreachable:
        return ServerUnreachable(
            f"The stepfleet server at {self.url} could not take a call within "
            f"{budget:.0f} s ({tried}). Check that "
            "`stepfleet server` runs there and that STEPFLEET_URL or the executor's "
            "server_url is right; outage_budget_seconds sets how long a run waits."
        )

    def _pause(self, seconds: float, greetings: int | None, interruptible: bool) -> None:
        """Waits; given greetings, no longer than to the next: then the server is back."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if interruptible and self._interrupted():
                raise Interrupted("interrupted while waiting for the stepfleet server")
            left = min(left, _INTERRUPT_SLICE_SECONDS)
            if greetings is None:
                time.sleep(left)
            elif self.completions.wait_for_greeting(greetings, left):
                return


class _Again(Exception):
    """The exchange failed in a way that repeating may cure."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, value in headers.items():
        if name.lower() == "retry-after":
            try:
                return min(max(float(value), 0.1), 60.0)
            except ValueError:
                return None
    return None


@dataclass
class Completions:
    """The run's epoch and its ended tasks, fed by the stream's thread, read by the executor's."""

    version: int = 0
    # 0 until it has been taken.
    epoch: int = 0
    # How often the stream has been greeted.
    greetings: int = 0
    # What the stream's thread cannot cure; it has ended with it.
    refused: StepfleetError | Superseded | None = None
    # Why it has got nowhere so far.
    trouble: str = "no answer yet"
    _ended: dict[tuple[str, int], Ended] = field(default_factory=dict[tuple[str, int], Ended])
    _condition: threading.Condition = field(default_factory=threading.Condition)

    def add(self, ended: Ended) -> None:
        """Notes an ended task; a second telling changes nothing, since ends are for ever."""
        key = (ended.step_key, ended.attempt)
        with self._condition:
            if key in self._ended:
                return
            self._ended[key] = ended
            self.version += 1
            self._condition.notify_all()

    def add_ended(self, views: Iterable[Mapping[str, Any]]) -> None:
        """Notes those of the run's tasks that have ended."""
        for view in views:
            if view["state"] in TERMINAL_STATES:
                self.add(Ended.of(view))

    def take(self, epoch: int) -> None:
        with self._condition:
            self.epoch = epoch
            self._condition.notify_all()

    def wait_for_epoch(self, timeout_seconds: float) -> None:
        with self._condition:
            self._condition.wait_for(
                lambda: self.epoch or self.refused is not None, timeout_seconds
            )

    def greet(self) -> None:
        with self._condition:
            self.greetings += 1
            self._condition.notify_all()

    def wait_for_greeting(self, greetings: int, timeout_seconds: float) -> bool:
        with self._condition:
            return self._condition.wait_for(lambda: self.greetings > greetings, timeout_seconds)

    def refuse(self, error: StepfleetError | Superseded) -> None:
        with self._condition:
            self.refused = error
            self.version += 1
            self._condition.notify_all()

    def get(self, step_key: str, attempt: int) -> Ended | None:
        with self._condition:
            return self._ended.get((step_key, attempt))

    def lost_attempts(self, step_key: str) -> set[int]:
        """Which attempts of the step the ledger has lost, this run's whole life long."""
        with self._condition:
            return {a for (k, a), e in self._ended.items() if k == step_key and e.state == "lost"}

    def wait(self, version: int, timeout_seconds: float) -> bool:
        with self._condition:
            return self._condition.wait_for(lambda: self.version > version, timeout_seconds)


class _Stream(threading.Thread):
    """Takes the run's epoch, then holds its stream open until stopped. A daemon: it must not keep
    a run worker alive."""

    def __init__(
        self,
        endpoint: _Endpoint,
        caller: _Caller,
        takeover: Mapping[str, Any],
        completions: Completions,
    ) -> None:
        super().__init__(name="stepfleet-stream", daemon=True)
        self._endpoint = endpoint
        self._caller = caller
        self._path = caller.path
        self._takeover = json.dumps(takeover).encode()
        self._completions = completions
        self._stopped = threading.Event()
        self._socket: socket.socket | None = None

    def run(self) -> None:
        tries = 0
        while not self._stopped.is_set():
            try:
                if not self._completions.epoch:
                    self._take_epoch()
                if self._read():
                    tries = 0
            except (StepfleetError, Superseded) as err:
                self._completions.refuse(err)
                return
            except (_Again, OSError, http.client.HTTPException, ValueError) as err:
                self._completions.trouble = str(err)
                _log.debug("stepfleet stream: %s", err)
            if tries >= _LOOK_AFTER_TRIES and self._completions.epoch:
                self._look(warn=tries == _LOOK_AFTER_TRIES)
            self._stopped.wait(_full_jitter(_STREAM_BACKOFF_SECONDS, tries))
            tries += 1

    def _take_epoch(self) -> None:
        try:
            answer = self._caller.once("POST", "/epoch", self._takeover)
            self._completions.take(int(answer["epoch"]))
        finally:
            self._caller.disconnect()

    def _look(self, *, warn: bool) -> None:
        """Reads how the run's tasks stand where no stream comes through, as behind some proxies."""
        if warn:
            _log.warning(
                "stepfleet server at %s: the run's stream does not come through (a proxy that "
                "buffers?); asking for the run's tasks instead",
                self._endpoint.url,
            )
        try:
            connection = self._endpoint.connect(STREAM_SILENCE_SECONDS)
            with contextlib.closing(connection):
                path = self._path + "/tasks"
                connection.request("GET", path, headers=self._endpoint.headers(False))
                response = connection.getresponse()
                if response.status != 200:
                    return
                self._completions.add_ended(json.loads(response.read()).get("tasks", []))
        except (OSError, http.client.HTTPException, ValueError, KeyError) as err:
            _log.debug("stepfleet look: %s", err)

    def stop(self) -> None:
        self._stopped.set()
        sock = self._socket
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _read(self) -> bool:
        """Reads one connection to its end. Returns whether it was greeted on it."""
        connection = self._endpoint.connect(STREAM_SILENCE_SECONDS)
        self._socket = connection.sock
        greeted = False
        try:
            path = f"{self._path}/stream?epoch={self._completions.epoch}"
            connection.request("GET", path, headers=self._endpoint.headers(False))
            response = connection.getresponse()
            if response.status != 200:
                self._refused(response)
                return False
            while not self._stopped.is_set():
                line = response.readline(_MAX_LINE_BYTES)
                if not line:
                    return greeted
                greeted = self._take(line) or greeted
            return greeted
        finally:
            self._socket = None
            connection.close()

    def _refused(self, response: http.client.HTTPResponse) -> None:
        """Raises what ends the stream for good; a proxy's refusal does not."""
        try:
            self._caller.judge(response.status, dict(response.headers.items()), response.read())
        except ServerRefused as err:
            if err.code in ("unauthorized", "task_invalid", "not_found"):
                raise

    def _take(self, line: bytes) -> bool:
        message = json.loads(line)
        kind = message.get("type")
        if kind == "superseded":
            raise Superseded(
                f"Another run worker has taken over the run from epoch {self._completions.epoch}. "
                "This one leaves it as it is."
            )
        if kind == "task":
            self._completions.add(Ended.of(message))
        if kind == "hello":
            self._completions.greet()
        return kind == "hello"
