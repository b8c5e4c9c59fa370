"""Runs whose run worker is killed or cut off, and that another one takes on.

Run workers are processes of their own here, forked from the test; the server and the workers live
on in the test. With STEPFLEET_TEST_POSTGRES_URL the event log is on PostgreSQL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRunStatus
from dagster._core.definitions.dependency import NodeHandle
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.api import execute_run_iterator
from dagster._core.execution.plan.handle import StepHandle
from dagster._core.execution.plan.objects import StepSuccessData
from dagster._core.instance import InstanceRef
from dagster._utils import interrupts

from dagster_stepfleet import attempts, seams, verdicts
from dagster_stepfleet.client import Client
from dagster_stepfleet.process import die_with_parent
from tests.defs import DELAY_SECONDS, POOL
from tests.fakes import FakeServer, TemplateProcess, Worker
from tests.payloads import create_run, recon

URL = os.environ.get("STEPFLEET_TEST_POSTGRES_URL", "")
PATIENCE_SECONDS = 60
# What ends an attempt or a run: never twice.
ENDS = {
    DagsterEventType.STEP_SUCCESS,
    DagsterEventType.STEP_FAILURE,
    DagsterEventType.STEP_SKIPPED,
    DagsterEventType.RUN_SUCCESS,
    DagsterEventType.RUN_FAILURE,
    DagsterEventType.RUN_CANCELED,
}


@pytest.fixture
def instance(tmp_path) -> Iterator[DagsterInstance]:
    storage = f"storage: {{postgres: {{postgres_url: '{URL}'}}}}\n" if URL else ""
    (tmp_path / "dagster.yaml").write_text(f"telemetry: {{enabled: false}}\n{storage}")
    with DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path))) as instance:
        yield instance


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


class Bench:
    """A run, its run workers, and the steps that the test holds back."""

    def __init__(self, instance: DagsterInstance, server: FakeServer, worker: Worker) -> None:
        self.instance, self.server, self.worker = instance, server, worker
        self.held: dict[str, tuple[dict, str]] = {}
        self.holding: set[str] = set()
        self.pids: list[int] = []
        server.on_submit = self._submitted

    def _submitted(self, task: dict, payload: str) -> None:
        if task["step_key"] in self.holding:
            self.held[task["step_key"]] = task, payload
        else:
            self.worker.tasks.put((task, payload))

    def create(self, job: str, config: dict | None = None, hold: tuple[str, ...] = ()) -> None:
        self.job, self.holding = job, set(hold)
        self.run_id = create_run(self.instance, job, config).run_id

    def start(self, resume: bool = False, before: Callable[[], None] | None = None) -> int:
        """Starts a run worker."""
        if resume:
            self.instance.report_engine_event(seams.RESUME_MESSAGE, self.run)
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                die_with_parent(parent)
                if before:
                    before()
                with DagsterInstance.from_ref(self.instance.get_ref()) as instance:
                    run = instance.get_run_by_id(self.run_id)
                    with interrupts.capture_interrupts():
                        list(
                            execute_run_iterator(
                                recon(self.job), run, instance, resume_from_failure=resume
                            )
                        )
                status = 0
            os._exit(status)
        self.pids.append(pid)
        return pid

    def start_until_held(self, *steps: str, before: Callable[[], None] | None = None) -> int:
        pid = self.start(before=before)
        self.until_held(*steps)
        return pid

    def until_held(self, *steps: str) -> None:
        until(lambda: set(steps) <= set(self.held), f"the submit of {steps}")

    def release(self, *steps: str) -> None:
        for step in steps:
            self.worker.tasks.put(self.held.pop(step))

    def resume(self) -> None:
        """Has another run worker take the run on, to its end."""
        self.join(self.start(resume=True))

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.join(pid)

    def join(self, pid: int) -> int:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.pids.remove(pid)
                return status
            time.sleep(0.02)
        pytest.fail(f"the run worker does not end; the run is {self.run.status}: {self.ends()}")

    def close(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    @property
    def run(self):
        run = self.instance.get_run_by_id(self.run_id)
        assert run is not None
        return run

    def events(self, *kinds: DagsterEventType) -> list[tuple[str, str | None]]:
        logs = self.instance.all_logs(self.run_id, of_type=set(kinds))
        found = [e.dagster_event for e in logs if e.dagster_event is not None]
        return [(e.event_type_value, e.step_key) for e in found]

    def ends(self) -> Counter[tuple[str, str | None]]:
        return Counter(self.events(*ENDS))

    def until_event(self, kind: DagsterEventType, step: str) -> None:
        until(lambda: (kind.value, step) in self.events(kind), f"{kind.value} of {step}")

    def check(self, status: DagsterRunStatus, *ran: str) -> None:
        """Checks how the run ended, what ran, and that nothing was doubled."""
        ends = self.ends()
        assert self.run.status == status, ends
        assert sorted(self.worker.ran) == sorted(ran), "each attempt runs once"
        assert max(ends.values()) == 1, ends
        assert sum(n for (kind, _), n in ends.items() if kind.startswith("PIPELINE")) == 1, ends


@pytest.fixture
def bench(instance, server: FakeServer, template: TemplateProcess) -> Iterator[Bench]:
    with Worker(server, template) as worker:
        bench = Bench(instance, server, worker)
        yield bench
        bench.close()


SUCCESS, FAILURE = DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE


def test_killed_while_a_step_waits(bench):
    bench.create("chain", hold=("b",))
    bench.kill(bench.start_until_held("b"))
    second = bench.start(resume=True)
    until(lambda: bench.server.epochs[bench.run_id][0] == 2, "the takeover")
    bench.release("b")
    bench.join(second)
    bench.check(SUCCESS, "one", "b", "c")
    submitted = [t["step_key"] for b in bench.server.bodies("/tasks") if b for t in b["tasks"]]
    assert submitted == ["one", "b", "c"], "what the ledger has is adopted, not submitted again"


def test_killed_while_a_step_runs_that_ends_before_the_resume(bench):
    bench.create("chain", hold=("b",))
    bench.kill(bench.start_until_held("b"))
    bench.release("b")
    bench.until_event(DagsterEventType.STEP_SUCCESS, "b")
    bench.resume()
    bench.check(SUCCESS, "one", "b", "c")


@pytest.mark.parametrize("last", ["one", "c"])
def test_killed_after_a_success_that_it_did_not_see(bench, last):
    """Between two steps, and after the last."""
    bench.create("chain", hold=(last,))
    first = bench.start_until_held(last)
    os.kill(first, signal.SIGSTOP)
    bench.release(last)
    bench.until_event(DagsterEventType.STEP_SUCCESS, last)
    bench.kill(first)
    bench.resume()
    bench.check(SUCCESS, "one", "b", "c")
    assert bench.server.closed == {bench.run_id: "the run's steps have ended"}


def test_killed_when_it_had_closed_the_run(bench):
    """It has yet to write that the run has ended; a closed run needs no new executor."""
    bench.create("chain", hold=("c",))
    first = bench.start_until_held("c")
    os.kill(first, signal.SIGSTOP)
    bench.release("c")
    bench.until_event(DagsterEventType.STEP_SUCCESS, "c")
    bench.kill(first)
    bench.server.closed[bench.run_id] = "the run's steps have ended"
    bench.resume()
    bench.check(SUCCESS, "one", "b", "c")


def test_killed_in_a_fan_out(bench):
    bench.create("dynamic", hold=("add[k1]", "add[k2]"))
    bench.kill(bench.start_until_held("add[k1]", "add[k2]"))
    bench.release("add[k2]")
    second = bench.start(resume=True)
    bench.release("add[k1]")
    bench.join(second)
    bench.check(SUCCESS, "split", "add[k0]", "add[k1]", "add[k2]", "collect")


def test_killed_with_more_events_than_dagster_reads_at_once(bench):
    bench.create("chain", hold=("b",))
    bench.kill(bench.start_until_held("b"))
    (first,) = (
        e
        for e in bench.instance.all_logs(bench.run_id, of_type=DagsterEventType.ENGINE_EVENT)
        if "Starting execution" in e.message
    )
    for _ in range(1000):
        bench.instance.event_log_storage.store_event(first)
    bench.release("b")
    bench.until_event(DagsterEventType.STEP_SUCCESS, "b")
    bench.resume()
    bench.check(SUCCESS, "one", "b", "c")


def test_killed_after_a_skip_and_what_follows_it(bench):
    bench.create("skip_join", hold=("join",))
    bench.kill(bench.start_until_held("join"))
    bench.release("join")
    bench.until_event(DagsterEventType.STEP_SUCCESS, "join")
    bench.resume()
    bench.check(SUCCESS, "only_a", "after_a", "join")


def test_killed_under_max_concurrent(bench):
    """The steps that were in flight are adopted, not others within the limit."""
    bench.create("wide", {"max_concurrent": 2}, hold=("w1", "w2"))
    bench.kill(bench.start_until_held("w1", "w2"))  # w0 has ended, w3 waits for the limit
    second = bench.start(resume=True)
    until(lambda: bench.server.epochs[bench.run_id][0] == 2, "the takeover")
    bench.release("w2")
    bench.until_event(DagsterEventType.STEP_SUCCESS, "w3")
    bench.release("w1")
    bench.join(second)
    bench.check(SUCCESS, "w0", "w1", "w2", "w3", "collect", "add")


def test_killed_with_a_slot_of_a_pool(bench):
    log = bench.instance.event_log_storage
    log.set_concurrency_slots(POOL, 1)
    bench.create("pooled", hold=("in_pool",))
    bench.kill(bench.start_until_held("in_pool"))
    assert log.get_concurrency_info(POOL).active_slot_count == 1
    second = bench.start(resume=True)
    until(lambda: bench.server.epochs[bench.run_id][0] == 2, "the takeover")
    bench.release("in_pool")
    bench.join(second)
    bench.check(SUCCESS, "in_pool", "add")
    assert log.get_concurrency_info(POOL).active_slot_count == 0


def test_killed_before_it_gave_a_slot_back(bench):
    log = bench.instance.event_log_storage
    log.set_concurrency_slots(POOL, 1)
    bench.create("pooled", hold=("in_pool",))
    bench.kill(bench.start_until_held("in_pool"))
    bench.release("in_pool")
    bench.until_event(DagsterEventType.STEP_SUCCESS, "in_pool")
    bench.resume()
    bench.check(SUCCESS, "in_pool", "add")
    assert log.get_concurrency_info(POOL).active_slot_count == 0


def test_killed_when_another_run_has_the_slot_of_a_step_that_has_ended(bench):
    log = bench.instance.event_log_storage
    log.set_concurrency_slots(POOL, 1)
    bench.create("pooled", hold=("add",))
    bench.kill(bench.start_until_held("add"))
    assert log.claim_concurrency_slot(POOL, "another run", "step").is_claimed
    second = bench.start(resume=True)
    bench.release("add")
    bench.join(second)
    bench.check(SUCCESS, "in_pool", "add")
    assert log.get_concurrency_info(POOL).active_run_ids == {"another run"}
    log.free_concurrency_slots_for_run("another run")


def test_killed_in_a_retrys_delay(bench):
    """The delay counts from the failure: neither lost nor begun anew."""
    bench.create("delayed")
    first = bench.start()
    bench.until_event(DagsterEventType.STEP_UP_FOR_RETRY, "flaky_later")
    bench.kill(first)
    (retry,) = bench.instance.all_logs(bench.run_id, of_type=DagsterEventType.STEP_UP_FOR_RETRY)
    until(lambda: time.time() > retry.timestamp + DELAY_SECONDS / 2, "half of the delay")
    bench.resume()
    bench.check(SUCCESS, "flaky_later", "flaky_later")
    (again,) = bench.instance.all_logs(bench.run_id, of_type=DagsterEventType.STEP_RESTARTED)
    assert again.timestamp - retry.timestamp > DELAY_SECONDS - 0.5
    (looked,) = (
        e
        for e in bench.instance.all_logs(bench.run_id, of_type=DagsterEventType.ENGINE_EVENT)
        if "Resuming execution" in e.message
    )
    assert again.timestamp - looked.timestamp < DELAY_SECONDS, "it was begun anew"


def test_killed_before_its_verdict_on_a_failed_resource(bench):
    bench.create("broken_resource", hold=("needs_broken",))
    first = bench.start_until_held("needs_broken")
    os.kill(first, signal.SIGSTOP)
    bench.release("needs_broken")
    bench.until_event(DagsterEventType.RESOURCE_INIT_FAILURE, "needs_broken")
    bench.kill(first)
    bench.resume()
    assert bench.run.status == FAILURE
    assert max(bench.ends().values()) == 1
    if not seams.resource_init_failure_ends_step():
        (failure,) = bench.instance.all_logs(bench.run_id, of_type=DagsterEventType.STEP_FAILURE)
        assert "no such database" in str(failure.dagster_event.step_failure_data.error)


@pytest.mark.skipif(
    seams.resource_init_failure_ends_step(), reason="before Dagster 1.12 there is no retry"
)
def test_killed_after_a_resource_had_failed(bench):
    bench.create("mended_resource", hold=("add",))
    bench.kill(bench.start_until_held("add"))
    second = bench.start(resume=True)
    bench.release("add")
    bench.join(second)
    bench.check(FAILURE, "needs_mended", "needs_mended", "add")


def test_killed_while_a_step_is_lost(bench):
    bench.create("chain", hold=("b",))
    bench.kill(bench.start_until_held("b"))
    bench.server.finish(bench.held["b"][0], "lost", "worker-1's session died")
    bench.resume()
    bench.check(FAILURE, "one")
    assert bench.server.adjudicated == {(bench.run_id, "b", 0): [2]}


@pytest.mark.parametrize("killed", ["before", "after"])
def test_killed_beside_a_grant_of_lost_step_retries(bench, killed):
    """Attempt 0 is the policy's to retry, attempt 1 has the one grant."""
    bench.worker.env["DEATHS"] = "0"
    bench.create("dying_often", {"lost_step_retries": 1}, hold=("dies",))
    first = bench.start_until_held("dies")
    lose(bench, 0)
    bench.until_held("dies")
    if killed == "before":
        bench.kill(first)
        lose(bench, 1)
        first = bench.start(resume=True)
        bench.until_held("dies")
    else:
        lose(bench, 1)
        bench.until_held("dies")
        bench.kill(first)
        first = bench.start(resume=True)
    bench.release("dies")
    bench.join(first)
    bench.check(SUCCESS, "dies")


def test_a_resumed_run_grants_no_more_than_the_first(bench):
    bench.create("dying_often", {"lost_step_retries": 1}, hold=("dies",))
    first = bench.start_until_held("dies")
    for attempt in (0, 1):
        lose(bench, attempt)
        bench.until_held("dies")
    bench.kill(first)
    lose(bench, 2)
    bench.resume()
    bench.check(FAILURE)


@pytest.mark.parametrize("killed", [False, True])
def test_a_late_end_is_not_the_next_attempts(bench, killed):
    """The process of attempt 0 was given up, and writes while attempt 1 waits, which is lost."""
    bench.create("dying_often", hold=("dies",))
    first = bench.start_until_held("dies")
    lose(bench, 0)
    bench.until_held("dies")
    if killed:
        bench.kill(first)
    write_late_success(bench, attempt=0)
    lose(bench, 1)
    bench.join(bench.start(resume=True) if killed else first)
    assert bench.run.status == FAILURE
    assert bench.ends()["STEP_FAILURE", "dies"] == 1, bench.ends()


def write_late_success(bench, attempt: int) -> None:
    event = DagsterEvent(
        DagsterEventType.STEP_SUCCESS.value,
        bench.job,
        step_handle=StepHandle(NodeHandle("dies", None)),
        event_specific_data=StepSuccessData(1.0),
    )
    entry = EventLogEntry(
        None, "debug", "late", bench.run_id, time.time(), "dies", bench.job, event
    )
    bench.instance.event_log_storage.store_event(attempts.mark(entry, attempt))


def lose(bench, attempt: int) -> None:
    """Loses the attempt of `dies` that is held back."""
    task, _ = bench.held.pop("dies")
    assert task["attempt"] == attempt
    bench.server.finish(task, "lost", "worker-1's session died")


def stop_self_before_the_write() -> None:
    """The run worker stops between its grant and its write."""

    def stopped(self, *args):
        os.kill(os.getpid(), signal.SIGSTOP)
        return stock(self, *args)

    name = "_write_once" if URL else "_store_event"
    stock = getattr(verdicts.VerdictGate, name)

    def only_within(self, event, *args):
        return stopped(self, event, *args) if self._expected else stock(self, event, *args)

    setattr(verdicts.VerdictGate, name, only_within)


def test_stopped_between_the_grant_and_the_verdict(bench):
    """The old run worker wakes when the new one has written it."""
    bench.create("chain", hold=("b",))
    first = bench.start_until_held("b", before=stop_self_before_the_write)
    bench.server.finish(bench.held["b"][0], "lost", "worker-1's session died")
    os.waitpid(first, os.WUNTRACED)  # it has been granted, and stopped
    bench.resume()
    os.kill(first, signal.SIGCONT)
    bench.join(first)
    bench.check(FAILURE, "one")
    assert bench.server.adjudicated == {(bench.run_id, "b", 0): [1, 2]}


@pytest.mark.parametrize("wakes", ["while the new one works", "when the new one has ended"])
def test_old_run_worker_that_was_stopped_leaves_the_run_alone(bench, wakes):
    bench.create("chain", hold=("b", "c"))
    first = bench.start_until_held("b")
    os.kill(first, signal.SIGSTOP)
    second = bench.start(resume=True)
    bench.release("b")
    bench.until_held("c")
    if wakes == "while the new one works":
        os.kill(first, signal.SIGCONT)
        bench.join(first)
        assert bench.run.status == DagsterRunStatus.STARTED
    bench.release("c")
    bench.join(second)
    if wakes == "when the new one has ended":
        os.kill(first, signal.SIGCONT)
        bench.join(first)
    bench.check(SUCCESS, "one", "b", "c")
    assert bench.server.closed == {bench.run_id: "the run's steps have ended"}
    assert bench.server.bodies("/cancel") == []


@pytest.mark.parametrize("resumes", [1, 2])
def test_old_run_worker_whose_first_request_comes_late_leaves_the_run_alone(
    bench, tmp_path, resumes
):
    """Which start of the run it is of was fixed before it was held up."""
    wakes = tmp_path / "wakes"

    def ask_late() -> None:
        stock = Client.start

        def start(self) -> None:
            until(wakes.exists, "the new run worker's request")
            stock(self)

        Client.start = start

    bench.create("chain", hold=("b", "c"))
    first = bench.start(before=ask_late)
    until(lambda: bench.run.status == DagsterRunStatus.STARTED, "the first run worker")
    last = bench.start(resume=True)
    bench.until_held("b")
    for _ in range(1, resumes):
        bench.kill(last)
        last = bench.start(resume=True)
    until(lambda: bench.server.resumes[bench.run_id] == resumes, "the last run worker's request")
    wakes.touch()
    bench.join(first)
    assert bench.run.status == DagsterRunStatus.STARTED
    bench.release("b")
    bench.until_held("c")
    bench.release("c")
    bench.join(last)
    bench.check(SUCCESS, "one", "b", "c")
    assert any("resume" not in body for body in bench.server.bodies("/epoch")), "it has asked"


def test_old_run_worker_whose_server_is_away_leaves_the_run_to_the_new_one(bench, monkeypatch):
    """It cannot ask; Dagster's log says that another was launched."""
    bench.create("chain", {"outage_budget_seconds": 2}, hold=("b", "c"))
    first = bench.start_until_held("b")
    with FakeServer(bench._submitted) as elsewhere:
        # The same ledger at another address; the first run worker loses its way to it.
        elsewhere.tasks, elsewhere.epochs = bench.server.tasks, bench.server.epochs
        elsewhere.closed = bench.server.closed
        bench.worker.server = elsewhere
        bench.server.httpd.shutdown()
        bench.server.httpd.server_close()
        with bench.server.lock:
            bench.server.stopped = True
            bench.server.lock.notify_all()
        monkeypatch.setenv("STEPFLEET_URL", elsewhere.url)
        second = bench.start(resume=True)
        bench.release("b")
        bench.join(first)
        assert bench.run.status == DagsterRunStatus.STARTED
        bench.until_held("c")
        bench.release("c")
        bench.join(second)
    bench.check(SUCCESS, "one", "b", "c")
