"""The bounds of a step's cost, all of them, and what a run has to say of each.

A bound that a run has not measured is listed as such: a page without it would look as if all were
kept.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchlib import phases
from benchlib.samples import Cell, Cells, good, step_cpu_seconds
from benchlib.settings import CHAIN, FAN_OUT, OURS, SINGLE

STEP_CPU = "cpu_seconds per step"


@dataclass(frozen=True)
class Bound:
    """What stepfleet may take at most of a quantity, as a share of another mode's in the same run.
    `aim` is what we would like."""

    job: str
    name: str  # a field of Sample, or STEP_CPU
    mode: str
    must: float
    aim: float | None = None

    @property
    def quantity(self) -> str:
        return f"{self.job}: {self.name}, {OURS} / {self.mode}"

    @property
    def jobs(self) -> set[str]:
        return {self.job, SINGLE} if self.name == STEP_CPU else {self.job}


BOUNDS = (
    Bound(CHAIN, "wall_seconds", "in_process", 1.2, 0.8),
    Bound(CHAIN, "wall_seconds", "multiprocess_forkserver", 1 / 5, 1 / 10),
    Bound(CHAIN, "wall_seconds", "celery", 1 / 17, 1 / 34),
    Bound(FAN_OUT, "wall_seconds", "in_process", 1.0, 0.6),
    Bound(CHAIN, STEP_CPU, "in_process", 1.5, 1.0),
    Bound(FAN_OUT, STEP_CPU, "in_process", 1.5, 1.0),
    Bound(CHAIN, "pg_connections", "in_process", 1 / 3),
    Bound(FAN_OUT, "pg_connections", "in_process", 1 / 3),
    Bound(CHAIN, "pg_commits", "in_process", 1.0, 0.5),
    Bound(FAN_OUT, "pg_commits", "in_process", 1.0, 0.5),
)


@dataclass(frozen=True)
class Verdict:
    """A quantity that has a bound, and what was measured of it, if it was."""

    quantity: str
    value: float | None
    must: float
    aim: float | None = None
    note: str = ""  # what one should know beside the value

    @property
    def ok(self) -> bool:
        return self.value is not None and self.value <= self.must

    @property
    def missed(self) -> bool:
        return self.value is not None and not self.ok

    @property
    def word(self) -> str:
        return "not measured" if self.value is None else "PASS" if self.ok else "FAIL"


# In a chain no step waits for a slot, so what lies between submit and process is all ours.
OWN_P50 = Verdict(f"{CHAIN}: our own part of a step, ms, p50", None, 15.0, 8.0)
OWN_P99 = Verdict(f"{CHAIN}: our own part of a step, ms, p99", None, 50.0, 25.0)
RUN_START = Verdict("run start, stepfleet / default launcher", None, 1 / 8)
RUN_START_AIM_MS = 200
IDLE_MEMORY = Verdict("private memory, idle child / fresh interpreter", None, 0.25, 0.12)
# The executor now and then reads a step's end before it hears of it. Of fewer than these the times
# say nothing of the step.
TIMED_SHARE = 0.9


def judge(measured: Iterable[Cell], starts: Sequence[dict[str, Any]] = ()) -> list[Verdict]:
    """A verdict on every bound, from the cells and from the samples of run_start.py."""
    found = good(measured)
    ratios = [_ratio(bound, found) for bound in BOUNDS]
    return [*ratios, *_own(found.get((CHAIN, OURS))), run_start(starts)]


def expected(modes: Sequence[str], jobs: Sequence[str], run_start: bool) -> list[str]:
    """The quantities that a run of these modes and jobs must measure."""
    if OURS not in modes:
        return []
    names = [b.quantity for b in BOUNDS if b.jobs <= set(jobs) and b.mode in modes]
    if CHAIN in jobs:
        names += [OWN_P50.quantity, OWN_P99.quantity, IDLE_MEMORY.quantity]
    return names + ([RUN_START.quantity] if run_start else [])


def _ratio(bound: Bound, found: Cells) -> Verdict:
    value, note = None, ""
    ours, theirs = found.get((bound.job, OURS)), found.get((bound.job, bound.mode))
    if ours and theirs:
        if bound.name == STEP_CPU:
            own = step_cpu_seconds(found, bound.job, OURS)
            other = step_cpu_seconds(found, bound.job, bound.mode)
            value = own / other if own is not None and other else None
            total = ours.median("cpu_seconds") / theirs.median("cpu_seconds")
            note = f"whole runs, with the run worker's start: {total:.3f}"
        else:
            # Steps are the same in both, so a ratio of totals is one of figures per step.
            value = ours.median(bound.name) / theirs.median(bound.name)
        if bound.name == "pg_connections":
            a_step = ours.median(bound.name) / ours.median("steps")
            note = f"{a_step:.2f} a step; the aim is at most 1"
    return Verdict(bound.quantity, value, bound.must, bound.aim, note)


def _own(ours: Cell | None) -> list[Verdict]:
    """What is measured of stepfleet alone."""
    counted = ours.counted if ours else []
    own = sorted(1000 * seconds for s in counted if s.phases for seconds in phases.own(s.phases))
    timed = own and len(own) >= TIMED_SHARE * sum(s.steps for s in counted)
    shares = [s.idle_memory_share for s in counted if s.idle_memory_share is not None]
    known = counted and len(shares) == len(counted)
    return [
        _measured(OWN_P50, statistics.median(own) if timed else None),
        _measured(OWN_P99, p99(own) if timed else None),
        _measured(IDLE_MEMORY, statistics.median(shares) if known else None),
    ]


def _measured(bound: Verdict, value: float | None, note: str = "") -> Verdict:
    return Verdict(bound.quantity, value, bound.must, bound.aim, note)


def run_start(starts: Sequence[dict[str, Any]]) -> Verdict:
    """From samples as run_start.py writes them. One run that failed voids it."""
    seconds = {
        launcher: [s["start_seconds"] for s in starts if s["launcher"] == launcher and s["rep"] > 0]
        for launcher in ("stepfleet", "default")
    }
    if not all(seconds.values()) or any(s["status"] != "SUCCESS" for s in starts):
        return RUN_START
    ours, theirs = (statistics.median(figures) for figures in seconds.values())
    note = f"p50 {1000 * ours:.0f} ms; the aim is {RUN_START_AIM_MS}"
    return _measured(RUN_START, ours / theirs, note)


def p99(ordered: Sequence[float]) -> float:
    """Of figures in ascending order."""
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
