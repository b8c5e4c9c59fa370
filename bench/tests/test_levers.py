"""The plan of the levers, their table, and that each hook finds what it changes."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import levers as script
from benchlib import bench, levers
from benchlib.levers import LEVERS, NAMED, Lever
from benchlib.samples import Sample
from benchlib.settings import SLOTS


def test_each_lever_has_a_neighbour_with_all_on() -> None:
    turns = list(levers.plan(list(NAMED), 5))
    off = Counter(turn.off.name for turn in turns if turn.off)
    assert off == {lever.name: 5 for lever in NAMED}
    for here, turn in enumerate(turns):
        if turn.off:
            near = [t for t in turns[max(0, here - 1) : here + 2] if t.off is None]
            assert any(
                (t.group, t.rep, t.job) == (turn.group, turn.rep, turn.off.job) for t in near
            )
    first = [turn.off for turn in turns if turn.group == 0]
    assert first[:3] == [NAMED[0], None, NAMED[1]] and first[3:6] == first[:3][::-1]


def run_of(lever: str, group: int, rep: int, wall: float, void: str = "") -> dict[str, Any]:
    return {
        "lever": lever,
        "group": group,
        "rep": rep,
        "void": void,
        "steps": 50,
        "wall_seconds": wall,
        "cpu_seconds": 5.0,
        "pg_connections": 50,
        "pg_commits": 500,
    }


def test_the_difference_is_of_neighbours() -> None:
    a, b, c = Lever("a", "no a"), Lever("b", "no b"), Lever("c", "no c")
    samples = [
        *(run_of("", 0, rep, wall) for rep, wall in enumerate([1.0, 2.0, 9.0], 1)),
        *(run_of("a", 0, rep, wall) for rep, wall in enumerate([1.5, 2.25, 8.5], 1)),
        run_of("b", 0, 1, 0.0, void="a run failed"),
    ]
    head, of_a, of_b, of_c = levers.rows([a, b, c], samples)
    assert of_a[:6] == ["a", "chain50", "3", "40.0", "45.0", "+5.0 (-10.0 to +10.0)"]
    assert head[9:] == ["connections on", "off", "commits on", "off"]
    assert of_a[9:] == ["1.00", "1.00", "10.0", "10.0"]
    assert of_b[2:] == ["VOID: a run failed"] and of_c[2:] == ["VOID: not measured"]
    assert "VOID: a run failed" in levers.text([a, b, c], samples)


def test_what_switches_a_lever_off(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    on = script.change(None, witness)
    assert list(on.env) == ["PYTHONPATH"] and on.slots == SLOTS
    relay = script.change(LEVERS["relay"], witness)
    assert relay.env["STEPFLEET_DATABASE_RELAY"] == "false"
    assert levers.OFF_VARIABLE not in relay.env
    assert script.change(LEVERS["second-child"], witness).slots == 1
    plan = script.change(LEVERS["kept-plan"], witness)
    assert plan.env[levers.OFF_VARIABLE] == "kept-plan"
    assert plan.env["PYTHONPATH"] == on.env["PYTHONPATH"]


def python(code: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={k: v for k, v in os.environ.items() if not k.startswith("STEPFLEET_")} | env,
        capture_output=True,
        text=True,
        timeout=60,
    )


# Imports what template, children and executor do.
IMPORT = "import dagster_stepfleet.child, dagster_stepfleet.priming, dagster_stepfleet.preload\n"
IMPORT += "import dagster_stepfleet.executor, dagster_stepfleet.run_worker\n"


@pytest.mark.parametrize("name", [lever.name for lever in LEVERS.values() if lever.hooked])
def test_the_hooks_find_what_they_change(name: str, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    env = dict(script.change(LEVERS[name], witness).env)
    done = python(IMPORT + "import sitecustomize as s; print(*s.CHANGES[s.LEVER])", env)
    assert done.returncode == 0, done.stderr
    changed = [line.split()[1] for line in witness.read_text().splitlines()]
    assert sorted(changed) == sorted(done.stdout.split())


def test_the_hooks_change_nothing_by_themselves(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    env = dict(script.change(None, witness).env)
    code = (
        "import sys, sitecustomize as s; print(any(isinstance(f, s.Finder) for f in sys.meta_path))"
    )
    done = python(code, env)
    assert done.stdout == "False\n", done.stderr
    assert not witness.exists()


def test_a_lever_that_was_not_switched_off_voids_its_run(tmp_path: Path) -> None:
    class On:
        directory = tmp_path

        def sample(self, job: str, mode: str, rep: int, change: bench.Change) -> Sample:
            counts: dict[str, Any] = dict.fromkeys(("pg_connections", "pg_commits", "events"), 1)
            times: dict[str, Any] = dict.fromkeys(
                ("wall_seconds", "process_seconds", "cpu_seconds", "load1"), 1.0
            )
            return Sample(
                job=job,
                mode=mode,
                rep=rep,
                status="SUCCESS",
                void="",
                steps=50,
                cpu={},
                **counts,
                **times,
            )

    on: Any = On()
    hooked = script.take(on, levers.Turn(0, 1, "chain50", LEVERS["priming"]))
    assert "the lever was on" in hooked["void"]
    assert script.take(on, levers.Turn(0, 1, "chain50", LEVERS["relay"]))["void"] == ""
    assert script.take(on, levers.Turn(0, 1, "chain50", None))["void"] == ""
