"""Voids, medians, bounds, page and picture, on samples made up; the CPU account and the death of
what a mode starts, on real processes."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import dagster_bench
import run_start
from benchlib import bench, bounds, phases, process, report, settings, stack
from benchlib.bounds import Verdict
from benchlib.samples import Cell, Sample, cells, good, step_cpu_seconds


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


def measured(*cells_of: Cell) -> list[Verdict]:
    """The verdicts that have a value."""
    return [verdict for verdict in bounds.judge(cells_of) if verdict.value is not None]


def test_repetition_0_is_in_no_median() -> None:
    samples = [sample("stepfleet", rep, wall) for rep, wall in enumerate([90.0, 3.0, 1.0, 2.0])]
    (cell,) = cells(samples)
    assert cell.median("wall_seconds") == 2.0


def test_one_bad_run_voids_the_cell_and_is_told() -> None:
    samples = [
        *(sample("in_process", rep, 1.0) for rep in range(3)),
        sample("stepfleet", 0, 1.0),
        sample("stepfleet", 1, 1.0, void="49 steps started and 49 ended of 50"),
    ]
    table = report.table(cells(samples))
    assert "VOID: rep 1: 49 steps started and 49 ended of 50" in table
    drawn = report.svg(cells(samples), "subtitle <&>")
    ElementTree.fromstring(drawn)
    assert "void" in drawn


def test_ratios_are_to_stepfleet() -> None:
    samples = [
        *(sample("in_process", rep, 1.0) for rep in range(2)),
        *(sample("multiprocess_forkserver", rep, 8.0) for rep in range(2)),
        *(sample("stepfleet", rep, 2.0) for rep in range(2)),
    ]
    rows = report.table(cells(samples)).splitlines()
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
    (verdict,) = measured(*cells(samples))
    assert verdict.ok == ok and verdict.missed != ok and verdict.must == 0.2
    line = report.verdict_table([verdict]).splitlines()[1]
    assert line.startswith("PASS" if ok else "FAIL")
    assert f"{ours / 10:.3f}" in line and "multiprocess_forkserver" in line


def everything(reps: int = 2) -> list[Sample]:
    """A sample of every job and mode; the job of one step costs a tenth."""
    return [
        replace(
            sample(mode, rep, 1.0),
            job=job,
            steps=1 if job == settings.SINGLE else 50,
            cpu_seconds=0.1 if job == settings.SINGLE else 1.0,
        )
        for rep in range(reps)
        for job in settings.JOBS
        for mode in settings.MODES
    ]


def test_every_bound_has_a_verdict_and_none_a_value_from_a_void_cell() -> None:
    samples = everything()
    judged = bounds.judge(cells(samples))
    assert len(judged) == len(bounds.BOUNDS) + 4  # own part twice, memory, start of a run
    assert [v.quantity for v in judged if v.value is not None] == [
        b.quantity for b in bounds.BOUNDS
    ]
    samples[len(settings.MODES)].void = "broken"  # chain50 in process
    judged = bounds.judge(cells(samples))
    assert len(judged) == len(bounds.BOUNDS) + 4
    void = {
        v.quantity
        for v in judged
        if v.quantity.startswith("chain50") and v.quantity.endswith("in_process")
    }
    assert len(void) == 4
    assert all((v.value is None) for v in judged if v.quantity in void)


def test_the_issues_table_is_in_the_bounds() -> None:
    """Each line of it, and no bound that is weaker."""
    must = {v.quantity: v.must for v in bounds.judge([])}
    of = "stepfleet / in_process"
    assert must == {
        f"chain50: wall_seconds, {of}": 1.2,
        "chain50: wall_seconds, stepfleet / multiprocess_forkserver": 1 / 5,
        "chain50: wall_seconds, stepfleet / celery": 1 / 17,
        f"fanout100: wall_seconds, {of}": 1.0,
        f"chain50: cpu_seconds per step, {of}": 1.5,
        f"fanout100: cpu_seconds per step, {of}": 1.5,
        "chain50: our own part of a step, ms, p50": 15.0,
        "chain50: our own part of a step, ms, p99": 50.0,
        f"chain50: pg_connections, {of}": 1 / 3,
        f"fanout100: pg_connections, {of}": 1 / 3,
        f"chain50: pg_commits, {of}": 1.0,
        f"fanout100: pg_commits, {of}": 1.0,
        "run start, stepfleet / default launcher": 1 / 8,
        "private memory, idle child / fresh interpreter": 0.25,
    }


def test_ratios_of_connections_and_commits_are_per_step() -> None:
    ours = [replace(sample("stepfleet", rep, 1.0), pg_connections=30) for rep in range(2)]
    theirs = [replace(sample("in_process", rep, 1.0), pg_connections=100) for rep in range(2)]
    judged = {v.quantity: v for v in measured(*cells(ours + theirs))}
    connections = judged["chain50: pg_connections, stepfleet / in_process"]
    assert connections.value == pytest.approx(0.3) and connections.ok
    assert connections.note.startswith("0.60 a step")


def with_cpu(mode: str, job: str, *seconds: float) -> list[Sample]:
    steps = 1 if job == settings.SINGLE else 51
    return [
        replace(sample(mode, rep, 1.0), job=job, steps=steps, cpu_seconds=cpu)
        for rep, cpu in enumerate(seconds)
    ]


def test_the_cpu_of_a_step_is_what_one_more_costs() -> None:
    samples = [
        *with_cpu("in_process", settings.SINGLE, 99, 2.0, 3.0, 2.0),
        *with_cpu("in_process", settings.CHAIN, 99, 7.0, 8.0, 17.0),  # 0.1, 0.1, 0.3 a step
        *with_cpu("stepfleet", settings.SINGLE, 99, 2.0, 2.0, 2.0),
        *with_cpu("stepfleet", settings.CHAIN, 99, 12.0, 12.0, 12.0),  # 0.2
    ]
    found = good(cells(samples))
    assert step_cpu_seconds(found, settings.CHAIN, "in_process") == pytest.approx(0.1)
    assert step_cpu_seconds(found, settings.SINGLE, "in_process") is None
    assert step_cpu_seconds(found, settings.FAN_OUT, "in_process") is None
    judged = {v.quantity: v for v in measured(*cells(samples))}
    cpu = judged["chain50: cpu_seconds per step, stepfleet / in_process"]
    # The whole runs would have passed: 12 / 8.
    assert cpu.value == pytest.approx(2.0) and cpu.missed
    assert cpu.note.endswith("1.500")
    table = report.table(cells(samples)).splitlines()
    chain = next(line for line in table if line.startswith("chain50") and "in_process" in line)
    assert chain.split()[7:9] == ["157", "100"]  # of the whole run, of one step more


def test_cpu_is_not_judged_without_the_run_of_one_step() -> None:
    samples = [
        *with_cpu("in_process", settings.CHAIN, 9, 9),
        *with_cpu("stepfleet", settings.CHAIN, 9, 9),
    ]
    assert not any("cpu" in verdict.quantity for verdict in measured(*cells(samples)))


def launches(default: float, ours: float, status: str = "SUCCESS") -> list[dict[str, Any]]:
    return [
        {
            "launcher": launcher,
            "rep": rep,
            "start_seconds": seconds if rep else 99.0,
            "launch_seconds": 0.1,
            "status": status,
            "load1": 0.0,
        }
        for rep in range(3)
        for launcher, seconds in (("default", default), ("stepfleet", ours))
    ]


@pytest.mark.parametrize(("ours", "word"), [(0.1, "PASS"), (0.2, "FAIL")])
def test_the_start_of_a_run_is_judged_with_the_rest(ours: float, word: str) -> None:
    verdict = bounds.judge([], launches(1.0, ours))[-1]
    assert (verdict.quantity, verdict.word) == (bounds.RUN_START.quantity, word)
    assert f"p50 {1000 * ours:.0f} ms" in verdict.note
    failed = {"samples": launches(1.0, ours, status="FAILURE")}
    assert bounds.run_start(failed["samples"]).word == "not measured"
    assert len(run_start.void(failed)) == 6
    shown = run_start.part_of_page({"samples": launches(1.0, ours), "settings": {}})
    assert shown.table.splitlines()[1].split() == ["default", "2", "1000", "1000", "1000", "100"]


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
    "settings": {
        "slots": 2,
        "repetitions": 1,
        "slow_repetitions": 1,
        "quick": False,
        "modes": ["in_process", "celery", "stepfleet"],
        "jobs": ["chain50"],
    },
    "notes": ["a note"],
}


def test_the_page_has_table_bounds_versions_and_settings() -> None:
    samples = [
        *(sample("in_process", rep, 1.0) for rep in range(2)),
        *(sample("stepfleet", rep, 2.0) for rep in range(2)),
        sample("celery", 1, 1.0, void="a run failed"),
    ]
    text = report.page(META, cells(samples), "dagster.svg")
    assert "| chain50 | stepfleet | 1 | 2.00 | 1.00 |" in text
    assert "chain50 celery: VOID: rep 1: a run failed" in text
    assert re.search(r"\nFAIL +chain50: wall_seconds, stepfleet / in_process ", text)
    assert "dagster 1.13.27, postgres 15.1" in text and '"slots": 2' in text
    assert "\n- a note\n" in text


def test_the_page_lists_bounds_that_were_not_measured() -> None:
    samples = [
        *(sample("in_process", rep, 1.0) for rep in range(2)),
        *(sample("stepfleet", rep, 0.5) for rep in range(2)),
    ]
    text = report.page(META, cells(samples), "dagster.svg")
    assert text.count("\nnot measured  ") == 11 and text.count("\nPASS ") == 2
    assert "Of 14 bounds 2 were kept, 1 missed and 11 not measured in this run." in text
    assert "not measured  chain50: wall_seconds, stepfleet / celery" in text
    assert "not measured  run start, stepfleet / default launcher" in text


def test_the_page_says_which_modes_ran_less_often() -> None:
    samples = [
        *(sample("stepfleet", rep, 1.0) for rep in range(6)),
        *(sample("celery", rep, 1.0) for rep in range(1, 6)),
        sample("multiprocess_spawn", 1, 1.0),
    ]
    told = report.fewer_repetitions(cells(samples), 5)
    assert "no bound compares: multiprocess_spawn 1." in told and "celery" not in told
    assert report.fewer_repetitions(cells(samples[:11]), 5) == ""
    assert not {bound.mode for bound in bounds.BOUNDS} & set(settings.SLOW_MODES)


def result(samples: list[Sample], **config: Any) -> dict[str, Any]:
    return {
        "meta": META | {"settings": META["settings"] | config},
        "samples": [asdict(s) for s in samples],
    }


def test_a_run_that_has_not_measured_what_it_was_asked_for_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [
        replace(s, cpu_seconds=s.cpu_seconds / 100, wall_seconds=s.wall_seconds / 100)
        if s.mode == "stepfleet"
        else s
        for s in everything()
    ]
    samples = [replace(s, pg_connections=1) if s.mode == "stepfleet" else s for s in samples]
    whole = result(samples, modes=settings.MODES, jobs=settings.JOBS, run_start=True)
    out = tmp_path / "some.json"
    assert dagster_bench.show(whole, out) == 1  # no phases, no memory, no start of a run
    told = capsys.readouterr().out
    assert "10 were kept, 0 missed and 4 not measured" in told
    assert told.count("\n  ") >= 4 and f"\n  {bounds.RUN_START.quantity}" in told
    steps = {name: [0.0001] * 50 for name, _, _ in phases.PHASES}
    for s in whole["samples"]:
        if s["mode"] == "stepfleet" and s["job"] == settings.CHAIN:
            s["phases"], s["idle_memory_share"] = steps, 0.1
    whole["run_start"] = {"samples": launches(1.0, 0.1), "settings": {}}
    assert dagster_bench.show(whole, out) == 0
    assert "14 were kept" in capsys.readouterr().out
    # A part that was asked for as a part is judged as one.
    part = result([s for s in samples if s.mode != "celery" and s.job != settings.SINGLE])
    part["meta"]["settings"] |= {"modes": ["in_process", "stepfleet"], "jobs": ["fanout100"]}
    assert dagster_bench.show(part, out) == 0
    assert "not measured in this run" in capsys.readouterr().out
    whole["samples"][-1]["void"] = "broken"
    whole["samples"][-1]["rep"] = 1
    assert dagster_bench.show(whole, out) == 1


def test_slow_modes_run_in_the_first_repetitions_that_count() -> None:
    options = dagster_bench.parse(
        ["--modes", "in_process,multiprocess_spawn,celery,stepfleet", "--repetitions", "3"]
    )
    runs = list(dagster_bench.plan(options))
    count = Counter((mode, rep) for rep, _, mode in runs)
    jobs = len(settings.JOBS)
    assert {rep for mode, rep in count if mode == "multiprocess_spawn"} == {1}
    assert {rep for mode, rep in count if mode == "celery"} == {1, 2, 3}
    assert all(count[mode, rep] == jobs for mode in ("in_process", "stepfleet") for rep in range(4))
    firsts = [next(mode for rep, _, mode in runs if rep == wanted) for wanted in range(4)]
    assert len(set(firsts)) > 1, "the order of the modes does not rotate"


def test_each_mode_of_a_bound_has_five_repetitions() -> None:
    count = Counter(
        (job, mode) for rep, job, mode in dagster_bench.plan(dagster_bench.parse([])) if rep
    )
    for bound in bounds.BOUNDS:
        for job in bound.jobs:
            assert count[job, bound.mode] >= 5 and count[job, settings.OURS] >= 5


def test_each_mode_has_a_code_location_and_settings() -> None:
    for mode in settings.MODES:
        defs = importlib.import_module(settings.module_of(mode)).defs
        assert {job.name for job in defs.jobs} == set(settings.JOBS)
        assert "executor" in dagster_bench.settings_of(mode, prepare=True)


def test_what_a_mode_is_given_is_in_its_settings() -> None:
    told = json.dumps(dagster_bench.settings_of("stepfleet", prepare=True))
    for given in (*stack.server_options(), *stack.worker_options(), *stack.PREPARE):
        assert given in told
    assert "STEPFLEET_PREPARE" not in json.dumps(dagster_bench.settings_of("stepfleet", False))
    told = json.dumps(dagster_bench.settings_of("celery", prepare=True))
    assert all(given in told for given in (*stack.CELERY_OPTIONS, *stack.REDIS_OPTIONS) if given)
    used = dagster_bench.settings_used(dagster_bench.parse([]))
    assert set(used["by_mode"]) == set(settings.MODES)
    assert used["postgres"]["options"]["shared_buffers"] == "256MB"


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
    starter = subprocess.Popen(
        [sys.executable, "-c", CELERY, str(tmp_path), broker],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": bench.python_path()},
    )
    with starter:
        assert starter.stdout and starter.stdout.readline() == b"up\n"
        port = broker.rpartition(":")[2].partition("/")[0]
        redis = find_process(f":{port}")
        workers = {
            pid
            for pid in find_process("dagster_celery.app")
            if str(tmp_path).encode() in Path(f"/proc/{pid}/environ").read_bytes()
        }
        assert redis and len(workers) == 1 + settings.SLOTS
        starter.kill()
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
    p50, p99, memory = measured(*cells(ours))
    assert (p50.value, p50.ok) == (pytest.approx(7.0), True)
    assert (p99.value, p99.ok) == (pytest.approx(70.0), False)
    assert (memory.value, memory.ok) == (0.3, False)
    table = report.phase_table(cells(ours))
    assert "notify  " in table and "500.0" in table
    assert report.phase_table(cells([sample("stepfleet", 1, 1.0)])) == ""
    untimed = replace(sample("stepfleet", 1, 1.0), phases={name: [] for name in steps})
    assert report.phase_table(cells([untimed])) == ""


def test_what_a_run_must_judge_is_known_when_it_was_not_measured() -> None:
    wanted = bounds.expected(settings.MODES, settings.JOBS, run_start=True)
    assert set(wanted) == {verdict.quantity for verdict in bounds.judge([])}
    assert bounds.expected(["in_process", "celery"], settings.JOBS, run_start=False) == []
    some = bounds.expected(["in_process", "stepfleet"], ["fanout100"], run_start=False)
    assert "fanout100: wall_seconds, stepfleet / in_process" in some and len(some) == 3
    assert set(bounds.expected(["stepfleet"], ["chain50"], run_start=True)) == {
        bounds.OWN_P50.quantity,
        bounds.OWN_P99.quantity,
        bounds.IDLE_MEMORY.quantity,
        bounds.RUN_START.quantity,
    }
    # Half of the steps have no times: they say nothing of the others.
    steps = {name: [0.5] * 25 for name, _, _ in phases.PHASES}
    half = [replace(sample("stepfleet", rep, 1.0), steps=50, phases=steps) for rep in range(2)]
    assert measured(*cells(half)) == []


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
