"""The client against a real HTTP server of the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from dagster_stepfleet import client as client_module
from dagster_stepfleet.client import (
    Client,
    Interrupted,
    ServerRefused,
    ServerUnreachable,
    StepfleetError,
    Superseded,
    read_token,
)
from tests.fakes import TOKEN, FakeServer

RUN = "run-1"


def task(step: str, queue: str = "default", attempt: int = 0) -> dict:
    return {
        "run_id": RUN,
        "step_key": step,
        "attempt": attempt,
        "queue": queue,
        "payload": "p",
        "kind": "step",
    }


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client_module, "_BACKOFF_SECONDS", (0.05, 0.1))


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    client = Client(server.url, RUN, token=TOKEN, outage_budget_seconds=5)
    yield client
    client.shutdown()


def until(condition) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_submit_keeps_one_connection(client, server):
    for n in range(3):
        (receipt,) = client.submit("id", {"p": "{}"}, [task(f"s{n}")])
        assert receipt["state"] == "queued" and receipt["task_id"] == n + 1
    assert len(server.bodies("/tasks")) == 3


def test_retry_after_is_honoured(client, server):
    client.epoch()
    busy = {"v": 1, "error": {"code": "busy", "message": "later", "retry": True}}
    server.fail_next = [(429, busy, {"Retry-After": "0.5"}), (503, busy, {})]
    started = time.monotonic()
    client.submit("id", {"p": "{}"}, [task("s")])
    assert 0.4 < time.monotonic() - started < 3
    assert len(server.bodies("/tasks")) == 3


def test_pauses_are_full_jitter_below_their_ceilings(monkeypatch):
    monkeypatch.undo()
    assert client_module._BACKOFF_SECONDS == (1, 2, 4, 8, 16)
    for tries, ceiling in enumerate((1, 2, 4, 8, 16, 16)):
        pauses = [client_module._RepeatBudget().pause(tries, None) for _ in range(500)]
        assert 0 <= min(pauses) < ceiling / 10 and ceiling * 0.9 < max(pauses) <= ceiling
    asked = [client_module._RepeatBudget().pause(4, 2.0) for _ in range(100)]
    assert min(asked) >= 2.0 and max(asked) <= 2.5


def test_a_tenth_of_the_calls_may_be_repeats(monkeypatch):
    monkeypatch.setattr(client_module, "_full_jitter", lambda ceilings, tries: 1000.0 + tries)
    budget = client_module._RepeatBudget()
    quick = 0
    for _ in range(500):
        budget.earn()
        quick += budget.pause(0, 1.0) < 2
    assert quick == 10 + 500 // 10 - 1 or quick == 10 + 500 // 10
    for _ in range(10):
        budget.earn()
    assert budget.pause(0, 1.0) < 2


def test_a_greeted_stream_ends_the_pause_of_a_call(client, server, monkeypatch):
    client.submit("id", {"p": "{}"}, [task("a")])
    until(lambda: client.completions.greetings)
    monkeypatch.setattr(client_module, "_full_jitter", lambda ceilings, tries: 60.0)
    down = {"v": 1, "error": {"code": "unavailable", "message": "down", "retry": True}}
    server.fail_next = [(503, down, {})]
    threading.Timer(0.2, client.completions.greet).start()
    started = time.monotonic()
    client.submit("id", {"p": "{}"}, [task("b")])
    assert 0.1 < time.monotonic() - started < 4


def test_refusal_is_not_repeated(client, server):
    client.epoch()
    conflict = {"v": 1, "error": {"code": "conflict", "message": "another", "retry": False}}
    server.fail_next = [(409, conflict, {})]
    with pytest.raises(ServerRefused, match="conflict") as info:
        client.submit("id", {"p": "{}"}, [task("s")])
    assert info.value.code == "conflict"
    assert len(server.bodies("/tasks")) == 1


def test_wrong_token(server):
    client = Client(server.url, RUN, token="wrong")
    with pytest.raises(ServerRefused, match="STEPFLEET_TOKEN"):
        client.tasks()
    with pytest.raises(ServerRefused, match="STEPFLEET_TOKEN"):
        client.submit("id", {}, [task("s")])


def test_tasks_of_a_kind(client, server):
    client.submit("id", {"p": "{}"}, [task("a")])
    server.tasks[(RUN, "@run", 0)] = {**task("@run"), "kind": "run", "state": "queued"}
    names = {kind: [t["step_key"] for t in client.tasks(kind)] for kind in ("", "step", "run")}
    assert names == {"": ["a", "@run"], "step": ["a"], "run": ["@run"]}
    with pytest.raises(ServerRefused, match="task_invalid"):
        client.tasks("runs")


def test_budget_ends_an_outage():
    client = Client("http://127.0.0.1:9", RUN, outage_budget_seconds=0.3)
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:9.*stepfleet server"):
        client.submit("id", {}, [task("s")])


def test_interrupt_ends_a_wait():
    started = time.monotonic()
    client = Client(
        "http://127.0.0.1:9",
        RUN,
        outage_budget_seconds=60,
        interrupted=lambda: time.monotonic() - started > 0.2,
    )
    with pytest.raises(Interrupted):
        client.submit("id", {}, [task("s")])
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("url", ["localhost:8630", "ftp://x", "http://u:p@host"])
def test_bad_urls(url):
    with pytest.raises(StepfleetError):
        Client(url, RUN)


def test_token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text("abc\n")
    assert read_token({"STEPFLEET_TOKEN_FILE": str(path)}) == "abc"
    assert read_token({"STEPFLEET_TOKEN": "x", "STEPFLEET_TOKEN_FILE": str(path)}) == "x"
    assert read_token({}) is None
    with pytest.raises(StepfleetError, match="TOKEN_FILE"):
        read_token({"STEPFLEET_TOKEN_FILE": str(tmp_path / "none")})


def test_a_token_that_was_taken_is_in_no_environment(monkeypatch):
    monkeypatch.setattr(client_module, "_taken", None)
    environ = {"STEPFLEET_TOKEN": "abc"}
    client_module.take_token(environ)
    assert environ == {} and read_token(environ) == "abc"
    client_module.take_token(environ)
    assert read_token(environ) is None


def test_stream_tells_of_ends_and_wakes(client, server):
    client.submit("id", {"p": "{}"}, [task("a"), task("b")])
    server.finish(task("a"), "succeeded")
    client.start()
    until(lambda: client.completions.get("a", 0))
    version = client.completions.version
    assert not client.wait(version, 0.05)
    server.finish(task("b"), "lost", "worker-1's session died")
    started = time.monotonic()
    assert client.wait(version, 3)
    assert time.monotonic() - started < 1
    ended = client.completions.get("b", 0)
    assert ended.state == "lost" and "worker-1's session died" in ended.describe()
    assert client.completions.lost_attempts("b") == {0}


def test_stream_reconnects_and_knows_what_it_was_told(client, server):
    client.submit("id", {"p": "{}"}, [task("a"), task("b")])
    server.finish(task("a"), "succeeded")
    client.start()
    until(lambda: client.completions.get("a", 0))
    version = client.completions.version
    with server.lock:  # the server drops the stream
        server.streams += 1
        server.lock.notify_all()
    until(lambda: server.streams >= 3)
    assert client.completions.version == version
    server.finish(task("b"), "failed")
    until(lambda: client.completions.get("b", 0))
    assert client.completions.version == version + 1


def test_silent_stream_is_replaced(client, server, monkeypatch):
    monkeypatch.setattr(client_module, "STREAM_SILENCE_SECONDS", 0.3)
    server.ping_seconds = 60
    client.submit("id", {"p": "{}"}, [task("a")])
    client.start()
    until(lambda: server.streams >= 2)


def test_cancel_and_close(client, server):
    client.submit("id", {"p": "{}"}, [task("a"), task("b")])
    client.cancel([("a", 0)], "why")
    assert server.bodies("/cancel") == [
        {"v": 1, "epoch": 1, "tasks": [{"step_key": "a", "attempt": 0}], "reason": "why"}
    ]
    client.close_run("done")
    with pytest.raises(ServerRefused, match="run_closed"):
        client.submit("id", {"p": "{}"}, [task("c")])


def test_without_a_stream_the_tasks_are_asked_for(client, server, monkeypatch):
    monkeypatch.setattr(client_module, "_STREAM_BACKOFF_SECONDS", (0.01,))
    server.no_streams = True
    client.submit("id", {"p": "{}"}, [task("a")])
    client.start()
    with server.lock:
        ours = next(iter(server.tasks.values()))
    server.finish(ours, "lost", "its session died")
    until(lambda: client.completions.get("a", 0) is not None)
    assert client.completions.get("a", 0).state == "lost"


def test_a_lost_answer_to_the_takeover_costs_no_epoch(client, server):
    server.fail_next = [(503, {"v": 1, "error": {"code": "unavailable"}}, {})]
    server.take(RUN, "the one before")
    assert client.epoch() == 2
    assert len({body["executor"] for body in server.bodies("/epoch")}) == 1


def test_an_executor_of_an_earlier_resume_is_superseded(server):
    server.take(RUN, "the one that followed it", resume=2)
    for resume in (0, 1):
        late = Client(server.url, RUN, token=TOKEN, resume=resume)
        with late, pytest.raises(Superseded, match="Another run worker"):
            late.epoch()
    with Client(server.url, RUN, token=TOKEN, resume=2) as twin:
        assert twin.epoch() == 2
    assert [body.get("resume") for body in server.bodies("/epoch")] == [None, 1, 2]


def test_superseded_ends_every_call(client, server):
    client.submit("id", {"p": "{}"}, [task("a")])
    client.confirm()
    server.take(RUN, "another")
    for call in (
        lambda: client.submit("id", {"p": "{}"}, [task("b")]),
        lambda: client.cancel(None, "why"),
        lambda: client.close_run("done"),
        lambda: client.adjudicate([("a", 0)]),
        client.confirm,
    ):
        with pytest.raises(Superseded, match="Another run worker"):
            call()
    assert server.closed == {} and server.adjudicated == {}


def test_the_stream_tells_of_a_takeover(client, server):
    client.submit("id", {"p": "{}"}, [task("a")])
    until(lambda: server.streams == 1)
    server.take(RUN, "another")
    until(lambda: client.completions.refused is not None)
    assert isinstance(client.completions.refused, Superseded)


def test_a_stream_that_was_away_is_told_too(client, server, monkeypatch):
    monkeypatch.setattr(client_module, "_STREAM_BACKOFF_SECONDS", (0.01,))
    server.no_streams = True
    client.submit("id", {"p": "{}"}, [task("a")])
    server.take(RUN, "another")
    server.no_streams = False
    until(lambda: isinstance(client.completions.refused, Superseded))


def test_adjudication(client, server):
    client.submit("id", {"p": "{}"}, [task("a"), task("b")])
    server.finish(task("a"), "lost")
    a, b = client.adjudicate([("a", 0), ("b", 0)])
    assert a["granted"] and a["earlier_epoch"] == 0 and not b["granted"]
