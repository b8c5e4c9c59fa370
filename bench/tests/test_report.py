"""Voids, medians and the picture, on samples made up; and the CPU account on a real process."""

import os
import signal
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchlib import process, report
from benchlib.report import Sample


def sample(mode: str, rep: int, wall: float, void: str = "") -> Sample:
    return Sample(
        job="chain50",
        mode=mode,
        rep=rep,
        status="SUCCESS",
        void=void,
        steps=50,
        events=400,
        wall_seconds=wall,
        process_seconds=wall + 2,
        cpu_seconds=wall,
        cpu={"run": wall},
        pg_connections=100,
        pg_commits=500,
        load1=0.5,
    )


def test_repetition_0_is_in_no_median() -> None:
    samples = [sample("stepfleet", rep, wall) for rep, wall in enumerate([90.0, 3.0, 1.0, 2.0])]
    (cell,) = report.cells(samples)
    assert cell.median("wall_seconds") == 2.0


def test_one_bad_run_voids_the_cell_and_is_told() -> None:
    samples = [
        *(sample("in_process", rep, 1.0) for rep in range(3)),
        sample("stepfleet", 0, 1.0),
        sample("stepfleet", 1, 1.0, void="49 steps started and 49 ended of 50"),
    ]
    table = report.table(report.cells(samples))
    assert "VOID: rep 1: 49 steps started and 49 ended of 50" in table
    drawn = report.svg(report.cells(samples), "subtitle <&>")
    ElementTree.fromstring(drawn)
    assert "void" in drawn


def test_ratios_are_to_stepfleet() -> None:
    samples = [
        *(sample("in_process", rep, 1.0) for rep in range(2)),
        *(sample("multiprocess_forkserver", rep, 8.0) for rep in range(2)),
        *(sample("stepfleet", rep, 2.0) for rep in range(2)),
    ]
    rows = report.table(report.cells(samples)).splitlines()
    assert [row.split()[1:4] for row in rows[1:]] == [
        ["in_process", "1.00", "0.50"],
        ["multiprocess_forkserver", "8.00", "4.00"],
        ["stepfleet", "2.00", "1.00"],
    ]


# Half a second of CPU in a grandchild that its parent waits for.
BURN = """
import os, time
if os.fork() == 0:
    while time.process_time() < 0.5:
        pass
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize("account", ["proc", "cgroup"])
def test_cpu_of_grandchildren_is_counted(account: str, tmp_path: Path) -> None:
    root = process.cgroup_root()
    meter: process.Meter
    if account == "proc":
        meter = process.ProcMeter("test", takes_orphans=False)
    elif root is None:
        pytest.skip("no cgroup can be made here")
    else:
        meter = process.CgroupMeter("test", root)
    try:
        before = meter.seconds()
        child = process.start([sys.executable, "-c", BURN], meter=meter, log=tmp_path / "log")
        assert process.wait(child, meter, 60) == 0
        assert 0.45 < meter.seconds() - before < 2.0
        assert meter.pids() == set()
    finally:
        meter.close()


def test_cpu_of_an_orphan_is_counted_once(tmp_path: Path) -> None:
    process.become_reaper()
    meter = process.ProcMeter("test", takes_orphans=True)
    before = meter.seconds()
    left = BURN.replace("os.wait()", "os._exit(0)")
    child = process.start([sys.executable, "-c", left], meter=meter, log=tmp_path / "log")
    assert process.wait(child, meter, 60) == 0
    while meter.pids():
        process.reap_orphans()
    assert 0.45 < meter.seconds() - before < 0.8


def test_a_process_that_will_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "STOP_TIMEOUT_SECONDS", 0.2)
    meter = process.ProcMeter("test", takes_orphans=False)
    log = tmp_path / "log"
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        " print('up', flush=True); time.sleep(60)"
    )
    child = process.start([sys.executable, "-c", code], meter=meter, log=log)
    while "up" not in process.tail(log):
        assert child.returncode is None
    process.stop(child, meter)
    assert child.returncode == -signal.SIGKILL
    assert not os.path.exists(f"/proc/{child.pid}")


@pytest.mark.parametrize(("ours", "expected"), [(4.9, 0), (5.1, 1)])
def test_a_missed_bound_is_said(ours: float, expected: int) -> None:
    samples = [
        *(sample("multiprocess_forkserver", rep, 10.0) for rep in range(3)),
        *(sample("stepfleet", rep, ours) for rep in range(3)),
    ]
    assert len(report.missed(report.cells(samples))) == expected
