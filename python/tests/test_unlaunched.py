"""Runs that a dead daemon has left between their start and their launch."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from dagster import DagsterEventType, DagsterInstance, QueuedRunCoordinator
from dagster._core.run_coordinator import DefaultRunCoordinator

from dagster_stepfleet import seams, unlaunched
from dagster_stepfleet.client import Interrupted
from dagster_stepfleet.unlaunched import MIN_AGE_SECONDS, Lookout
from tests.payloads import create_run
from tests.test_launcher import (
    event,
    launch,
    launcher_of,
    messages,
    started,
    starting,
    the_task,
    unused_url,
)

BUDGET = 120.0
START_TIMEOUT = 180  # Dagster's default
DAEMON = "/usr/bin/dagster-daemon"
WEBSERVER = "/usr/bin/dagster-webserver"


class Clock(threading.Event):
    """Stands `after` seconds past now when the first wait is over. Waits take no time, and what may
    happen meanwhile is given by number of the wait."""

    def __init__(self, after: float = 30.0, **meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self.now = time.time() + after - MIN_AGE_SECONDS
        self.waits: list[float] = []
        self._meanwhile = meanwhile

    def time(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now += timeout
        self.waits.append(timeout)
        self._meanwhile.get(f"in_wait_{len(self.waits)}", lambda: None)()
        return self.is_set()


class Launches:
    """Notes what is launched and within how long. A launch takes some seconds of the clock's."""

    def __init__(self, clock: Clock, takes: float = 0.0, then: Callable[..., None] | None = None):
        self.of: list[tuple[str, float]] = []
        self._clock, self._takes, self._then = clock, takes, then

    def __call__(self, run, budget_seconds: float, interrupted: Callable[[], bool]) -> None:
        self.of.append((run.run_id, budget_seconds))
        self._clock.now += self._takes
        if self._then:
            self._then(run)

    @property
    def runs(self) -> list[str]:
        return [run_id for run_id, _ in self.of]


def watch(instance, clock: Clock, **launching) -> Launches:
    launches = Launches(clock, **launching)
    Lookout(instance, launches, BUDGET, clock=clock.time, stopped=clock).watch()
    return launches


def taken(instance, run) -> None:
    instance.report_engine_event("another launcher has started a container", run)


def test_what_a_dead_daemon_left_is_launched_once(instance, server):
    run = starting(instance)
    for _ in range(2):  # two daemons may look
        clock, launcher = Clock(), launcher_of(instance)
        Lookout(instance, launcher._launch, BUDGET, clock=clock.time, stopped=clock).watch()
    launch(launcher_of(instance), run)  # nor does one that has been slow to launch it
    assert the_task(server)["run_id"] == run.run_id
    assert sum("Run worker submitted" in m for m in messages(instance, run)) == 1


def test_a_run_of_which_more_is_heard_is_not_left(instance):
    left, has_a_launcher, canceling = (starting(instance) for _ in range(3))
    started(instance)
    create_run(instance, "chain")  # still in the queue
    taken(instance, has_a_launcher)
    instance.report_run_canceling(canceling)
    assert watch(instance, Clock()).runs == [left.run_id]


@pytest.mark.parametrize(
    ("age", "timeout", "launched"),
    [
        (START_TIMEOUT - 10, None, True),
        (START_TIMEOUT + 10, None, False),
        (14 * 86400, None, False),
        (START_TIMEOUT + 10, 3600, True),
        (50, 40, False),
    ],
)
@pytest.mark.parametrize("monitoring", [True, False])
def test_a_run_that_is_too_old_is_not_launched(
    instance, monkeypatch, caplog, monitoring, age, timeout, launched
):
    monkeypatch.setattr(type(instance), "run_monitoring_enabled", monitoring)
    if timeout:
        name = "run_monitoring_start_timeout_seconds"
        monkeypatch.setattr(type(instance), name, timeout)
    starting(instance)
    assert bool(watch(instance, Clock(after=age)).of) is launched
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == [], "of an old run nobody wants to hear at each start"


def test_a_run_that_is_too_young_is_looked_at_again(instance):
    left, launched_meanwhile = starting(instance), starting(instance)
    clock = Clock(after=5, in_wait_2=lambda: taken(instance, launched_meanwhile))
    assert watch(instance, clock).runs == [left.run_id]
    assert clock.waits == [MIN_AGE_SECONDS] * 2


def test_there_is_no_third_look(instance):
    """Or a daemon would look for ever: it always has runs that have just started."""
    starting(instance)
    clock = Clock(after=5 - 2 * MIN_AGE_SECONDS)  # another host's clock is ahead
    assert watch(instance, clock).of == []
    assert clock.waits == [MIN_AGE_SECONDS] * 2
    clock = Clock()
    watch(instance, clock)
    assert clock.waits == [MIN_AGE_SECONDS], "none was too young"


def test_each_run_is_looked_at_right_before_its_launch(instance):
    first, ended, launched_elsewhere = (starting(instance) for _ in range(3))

    def meanwhile(run) -> None:
        end = event(ended, DagsterEventType.RUN_FAILURE)
        instance.run_storage.handle_run_event(ended.run_id, end)  # its log does not say it yet
        taken(instance, launched_elsewhere)

    assert watch(instance, Clock(), then=meanwhile).runs == [first.run_id]


def test_all_launches_share_one_deadline(instance, caplog):
    runs = [starting(instance) for _ in range(3)]
    launches = watch(instance, Clock(), takes=70.0)
    assert launches.runs == [run.run_id for run in runs[:2]], "the oldest first"
    first, second = (budget for _, budget in launches.of)
    assert first == pytest.approx(BUDGET + MIN_AGE_SECONDS)
    assert second == pytest.approx(first - 70)
    assert f"run {runs[2].run_id} was left" in caplog.text


def test_no_launch_goes_on_when_its_run_is_too_old(instance):
    starting(instance)
    ((_, budget),) = watch(instance, Clock(after=START_TIMEOUT - 20)).of
    assert budget == pytest.approx(20, abs=5)


def test_what_cannot_be_launched_keeps_no_other_run_waiting(instance, server, caplog):
    refused, left = starting(instance), starting(instance)
    server.closed[refused.run_id] = "by somebody"
    clock = Clock()
    launcher = launcher_of(instance)
    Lookout(instance, launcher._launch, BUDGET, clock=clock.time, stopped=clock).watch()
    assert the_task(server)["run_id"] == left.run_id
    assert f"run {refused.run_id} was left without a run worker, and gets none" in caplog.text


def test_one_that_is_stopped_looks_no_more(instance):
    starting(instance)
    clock = Clock()
    clock._meanwhile["in_wait_1"] = clock.set
    assert watch(instance, clock).of == []

    starting(instance)
    clock = Clock()
    assert len(watch(instance, clock, then=lambda run: clock.set()).of) == 1


def test_a_launch_that_waits_for_the_server_ends_with_its_process(instance):
    run, stopped = starting(instance), threading.Event()
    stopped.set()
    launcher = launcher_of(instance, server_url=unused_url())
    with pytest.raises(Interrupted):
        launcher._launch(run, BUDGET, stopped.is_set)


def test_what_is_not_known_is_said(instance, monkeypatch, caplog):
    def away(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the storage is away")

    monkeypatch.setattr(instance, "get_runs", away)
    clock = Clock()
    lookout = Lookout(instance, Launches(clock), BUDGET, clock=clock.time, stopped=clock)
    lookout.start()
    lookout._thread.join()
    assert "is not known: the storage is away" in caplog.text


def lookouts() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "stepfleet-lookout"]


def test_a_daemons_launcher_looks_until_it_is_disposed_of(instance, monkeypatch):
    idle = launcher_of(instance)
    assert lookouts() == [], "this process launches no runs"
    idle.dispose()
    monkeypatch.setattr(sys, "argv", [DAEMON, "run"])
    launcher = launcher_of(instance)
    assert len(lookouts()) == 1
    launcher.dispose()
    assert lookouts() == []


def test_a_process_that_ends_waits_for_no_look():
    script = (
        "import atexit, threading\n"
        "from dagster_stepfleet.unlaunched import Lookout\n"
        "atexit.register(lambda: print(threading.active_count()))\n"  # runs last
        "Lookout(None, None, 0).start()\n"
        "print(threading.active_count())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=50
    )
    assert (done.stdout.split(), done.stderr) == (["2", "1"], "")


PYTHON_M = "/venv/lib/dagster"


def without_queue(monkeypatch) -> None:
    coordinator = DefaultRunCoordinator()
    monkeypatch.setattr(DagsterInstance, "run_coordinator", property(lambda self: coordinator))


@pytest.mark.parametrize(
    ("argv", "launches"),
    [
        ((DAEMON, "run"), True),
        ((DAEMON, "run", "--workspace", "w.yaml"), True),
        ((f"{PYTHON_M}/_daemon/__main__.py", "run"), True),
        ((DAEMON, "liveness-check"), False),
        ((DAEMON, "wipe"), False),
        ((DAEMON, "debug", "heartbeat"), False),
        ((DAEMON,), False),
        ((WEBSERVER,), True),
        ((f"{PYTHON_M}_webserver/__main__.py", "-p", "3000"), True),
        ((WEBSERVER, "--read-only"), False),
        (("/usr/bin/dagster", "dev"), False),
        (("/usr/bin/dagster", "run", "list"), False),
        (("/dagster-daemon/venv/bin/dagster", "run", "list"), False),
        (("",), False),
    ],
)
def test_processes_that_live_to_launch_runs(instance, monkeypatch, argv, launches):
    monkeypatch.setattr(sys, "argv", list(argv))
    without_queue(monkeypatch)
    assert unlaunched.launches_runs(instance) is launches


def test_a_webserver_whose_runs_wait_in_a_queue_launches_none(instance, monkeypatch):
    assert isinstance(instance.run_coordinator, QueuedRunCoordinator), "Dagster's default"
    monkeypatch.setattr(sys, "argv", [WEBSERVER])
    assert not unlaunched.launches_runs(instance)
    monkeypatch.setattr(sys, "argv", [DAEMON, "run"])
    assert unlaunched.launches_runs(instance)


def test_a_webserver_that_is_read_only_by_its_environment_launches_none(instance, monkeypatch):
    without_queue(monkeypatch)
    monkeypatch.setattr(sys, "argv", [WEBSERVER])
    assert unlaunched.launches_runs(instance)
    monkeypatch.setenv(seams.READ_ONLY_VARIABLE, "true")
    assert not unlaunched.launches_runs(instance)


def test_dagsters_command_lines_are_as_we_read_them():
    from dagster._daemon.cli import cli
    from dagster_webserver.cli import dagster_webserver

    assert set(cli.commands) == {"run", "liveness-check", "wipe", "debug"}
    (option,) = [p for p in dagster_webserver.params if p.name == "read_only"]
    assert option.opts == ["--read-only"] and option.is_flag
