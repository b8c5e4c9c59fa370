"""Voids, medians, bounds, page and picture, on samples made up; the CPU account and the death of
what a mode starts, on real processes."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import dagster_bench
from benchlib import phases, process, report, settings
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
    assert [row.split()[1:5] for row in rows[1:]] == [
        ["in_process", "1", "1.00", "0.50"],
        ["multiprocess_forkserver", "1", "8.00", "4.00"],
        ["stepfleet", "1", "2.00", "1.00"],
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


@pytest.mark.parametrize(("ours", "ok"), [(1.9, True), (2.0, True), (2.1, False)])
def test_a_bound_is_judged_by_the_medians_of_both(ours: float, ok: bool) -> None:
    samples = [
        *(sample("multiprocess_forkserver", rep, wall) for rep, wall in enumerate([99, 9, 10, 11])),
        *(sample("stepfleet", rep, ours) for rep in range(3)),
    ]
    measured = report.cells(samples)
    (verdict,) = report.verdicts(measured)
    assert verdict.ok == ok and verdict.must == 0.2
    line = report.verdict_table([verdict]).splitlines()[1]
    assert line.startswith("PASS" if ok else "FAIL")
    assert f"{ours / 10:.3f}" in line and "multiprocess_forkserver" in line


def test_every_bound_is_judged_when_all_is_measured_and_none_of_a_void_cell() -> None:
    samples = [
        replace(sample(mode, rep, 1.0), job=job)
        for rep in range(2)
        for job in settings.JOBS
        for mode in settings.MODES
    ]
    measured = report.cells(samples)
    assert len(report.verdicts(measured)) == len(report.BOUNDS)
    samples[0].void = "broken"  # chain50 in process
    judged = report.verdicts(report.cells(samples))
    assert judged and not any(
        verdict.quantity.startswith("chain50") and verdict.quantity.endswith("in_process")
        for verdict in judged
    )


def test_ratios_of_connections_and_commits_are_per_step() -> None:
    ours = [replace(sample("stepfleet", rep, 1.0), pg_connections=30) for rep in range(2)]
    theirs = [replace(sample("in_process", rep, 1.0), pg_connections=100) for rep in range(2)]
    judged = {v.quantity: v for v in report.verdicts(report.cells(ours + theirs))}
    connections = judged["chain50: pg_connections, stepfleet / in_process"]
    assert connections.value == pytest.approx(0.3) and connections.ok


META: dict[str, Any] = {
    "begun_at": "2026-01-01T00:00:00+00:00",
    "commit": "0123456789abcdef",
    "dirty": False,
    "versions": {"dagster": "1.13.27", "postgres": "15.1"},
    "kernel": "6.1",
    "cpu_count": 2,
    "cpu_model": "some",
    "load_before": [0.1, 0.2, 0.3],
    "load_after": [1.1, 0.2, 0.3],
    "fsync_us": {"data_directory": 3.0},
    "cpu_account": "cgroup",
    "settings": {"slots": 2, "repetitions": 1, "slow_repetitions": 1, "quick": False},
    "notes": ["a note"],
}


def test_the_page_has_table_bounds_versions_and_settings() -> None:
    samples = [
        *(sample("in_process", rep, 1.0) for rep in range(2)),
        *(sample("stepfleet", rep, 2.0) for rep in range(2)),
        sample("celery", 1, 1.0, void="a run failed"),
    ]
    text = report.page(META, report.cells(samples), "dagster.svg")
    assert "| chain50 | stepfleet | 1 | 2.00 | 1.00 |" in text
    assert "chain50 celery: VOID: rep 1: a run failed" in text
    assert "FAIL  chain50: wall_seconds, stepfleet / in_process" in text
    assert "dagster 1.13.27, postgres 15.1" in text and '"slots": 2' in text
    assert "\n- a note\n" in text


def test_slow_modes_run_in_the_first_repetitions_that_count() -> None:
    options = dagster_bench.parse(
        ["--modes", "in_process,multiprocess_spawn,stepfleet", "--repetitions", "3"]
    )
    runs = list(dagster_bench.plan(options))
    count = Counter((mode, rep) for rep, _, mode in runs)
    jobs = len(settings.JOBS)
    assert {rep for mode, rep in count if mode == "multiprocess_spawn"} == {1}
    assert all(count[mode, rep] == jobs for mode in ("in_process", "stepfleet") for rep in range(4))
    firsts = [next(mode for rep, _, mode in runs if rep == wanted) for wanted in range(4)]
    assert len(set(firsts)) > 1, "the order of the modes does not rotate"


def test_each_mode_has_a_code_location_and_settings() -> None:
    for mode in settings.MODES:
        defs = importlib.import_module(settings.module_of(mode)).defs
        assert {job.name for job in defs.jobs} == set(settings.JOBS)
        assert mode in dagster_bench.SETTINGS_OF_MODES


def find_process(text: str) -> set[int]:
    found: set[int] = set()
    for pid in process.processes():
        try:
            if text.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
        except OSError:
            continue
    return found - {os.getpid()}


def alive(pids: set[int]) -> set[int]:
    table = process.processes()
    return {pid for pid in pids if pid in table and table[pid][1] != "Z"}


# Starts the stack, says so, and is killed.
CELERY = """
import os, sys
from pathlib import Path
from benchlib import process, stack
directory = Path(sys.argv[1])
env = dict(os.environ, DAGSTER_HOME=sys.argv[1])
stack.CeleryStack(sys.argv[2], module="benchlib.jobs_celery", directory=directory,
    modules_path=Path.cwd(), env=env, meter=process.ProcMeter("test", takes_orphans=False))
print("up", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(
    not shutil.which("redis-server") and "CI" not in os.environ, reason="there is no redis-server"
)
def test_redis_and_celery_die_with_the_benchmark(tmp_path: Path) -> None:
    broker = f"redis://127.0.0.1:{process.free_port()}/0"
    bench = subprocess.Popen(
        [sys.executable, "-c", CELERY, str(tmp_path), broker],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": dagster_bench.python_path()},
    )
    with bench:
        assert bench.stdout and bench.stdout.readline() == b"up\n"
        port = broker.rpartition(":")[2].partition("/")[0]
        redis = find_process(f":{port}")
        workers = {
            pid
            for pid in find_process("dagster_celery.app")
            if str(tmp_path).encode() in Path(f"/proc/{pid}/environ").read_bytes()
        }
        assert redis and len(workers) == 1 + settings.SLOTS
        bench.kill()
    deadline = time.monotonic() + 20
    while alive(redis | workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(redis | workers)


def test_our_own_part_is_what_is_not_dagsters() -> None:
    steps = {name: [0.5, 0.5, 0.5] for name, _, _ in phases.PHASES}
    for name, seconds in zip(sorted(phases.OURS), [0.001] * 7, strict=True):
        steps[name] = [seconds, seconds, 10 * seconds]
    assert phases.own(steps) == pytest.approx([0.007, 0.007, 0.07])
    ours = [replace(sample("stepfleet", rep, 1.0), steps=3, phases=steps) for rep in range(2)]
    ours[1] = replace(ours[1], idle_memory_share=0.3)
    judged = {v.quantity: v for v in report.verdicts(report.cells(ours))}
    p50, p99, memory = judged.values()
    assert (p50.value, p50.ok) == (pytest.approx(7.0), True)
    assert (p99.value, p99.ok) == (pytest.approx(70.0), False)
    assert (memory.value, memory.ok) == (0.3, False)
    table = report.phase_table(report.cells(ours))
    assert "notify  " in table and "500.0" in table
    assert report.phase_table(report.cells([sample("stepfleet", 1, 1.0)])) == ""
    untimed = replace(sample("stepfleet", 1, 1.0), phases={name: [] for name in steps})
    assert report.phase_table(report.cells([untimed])) == ""


def test_what_a_run_must_judge_is_known_when_it_was_not_measured() -> None:
    wanted = report.expected(settings.MODES, settings.JOBS)
    assert len(wanted) == len(set(wanted)) == len(report.BOUNDS) + 3
    assert report.expected(["in_process", "celery"], settings.JOBS) == []
    some = report.expected(["in_process", "stepfleet"], ["fanout100"])
    assert "fanout100: wall_seconds, stepfleet / in_process" in some and len(some) == 4
    assert set(report.expected(["stepfleet"], ["chain50"])) == {
        report.OWN_P50,
        report.OWN_P99,
        report.IDLE_MEMORY,
    }
    # Half of the steps have no times: they say nothing of the others.
    steps = {name: [0.5] * 25 for name, _, _ in phases.PHASES}
    half = [replace(sample("stepfleet", rep, 1.0), steps=50, phases=steps) for rep in range(2)]
    assert report.verdicts(report.cells(half)) == []


def test_an_executor_is_traced_and_its_steps_read(tmp_path: Path) -> None:
    """On a server that answers as ours does."""
    at = {
        "bell": 1.5,
        "claimed": 1.75,
        "process": 2.0,
        "prepared": 2.5,
        "started": 3.0,
        "plan": 3.5,
        "user_code": 4.0,
    }
    at |= {"outputs": 4.5, "ended": 5.0}
    ledger = {
        "submitted_at": "1970-01-01T00:00:01.25Z",
        "ended_at": "1970-01-01T00:00:05.125+00:00",
    }
    told = {"tasks": [{"step_key": "a", "result": {"phases": at}, **ledger}]}
    told["tasks"].append({"step_key": "b", "result": {"phases": {}}, **ledger})
    trace = tmp_path / "trace.json"
    trace.write_text('{"submitted": {"a": 1.0, "b": 1.0}, "noticed": {"a": 5.25}}')

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/v1/runs/run-1/tasks"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(told).encode())

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        found = phases.read(f"http://127.0.0.1:{server.server_port}", "run-1", trace)
    quarter, half, eighth = [0.25], [0.5], [0.125]
    assert list(found.values()) == [quarter] * 4 + [half] * 6 + [eighth] * 2
