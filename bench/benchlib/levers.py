"""What makes a step cheap, lever by lever: how each is switched off, and the table of what that
costs.

A lever that is a setting of the product is switched off by it. For the others leverhooks, a
directory on the path of the stack's and the run worker's Python, holds a sitecustomize module that
replaces the function which is the lever; the product knows nothing of it.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchlib.report import align
from benchlib.settings import BENCH, CHAIN, FAN_OUT, SLOTS

HOOKS = BENCH / "leverhooks"
# Read by the hooks alone: which lever is off, and the file in which they say that it is.
OFF_VARIABLE = "STEPFLEET_BENCH_LEVER_OFF"
WITNESS_VARIABLE = "STEPFLEET_BENCH_LEVER_WITNESS"


@dataclass(frozen=True)
class Lever:
    """One of them. Without env and slots it is switched off by the hooks."""

    name: str
    off: str  # what is otherwise when it is off
    job: str = CHAIN
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    slots: int = SLOTS

    @property
    def hooked(self) -> bool:
        return not self.env and self.slots == SLOTS


# Those that the issue names and that had no figure of their own.
NAMED = (
    Lever("priming", "the template runs no step of ours before it forks"),
    Lever(
        "children-ahead",
        "a child is forked, copies its pages and connects when its task has come (it then costs one"
        " fork more than it would need)",
    ),
    Lever("inherited-instance", "each child builds the Dagster instance itself"),
    Lever(
        "relay",
        "connections are not handed on from step to step",
        env={"STEPFLEET_DATABASE_RELAY": "false"},
    ),
    Lever("kept-plan", "each child makes the plan of the whole job"),
    Lever("joined-events", "events that may wait for the next one are written by themselves"),
    Lever(
        "batch-submit", "one request and one payload a task, where the fan-out has 99", job=FAN_OUT
    ),
    Lever("pooled-executor", "the run worker opens a connection for each read and write"),
    Lever("catalogue-memo", "what the catalogue has said of migrations is asked again"),
)
# What else docs/adr/0004 lists.
FURTHER = (
    Lever("log-redirection", "Dagster's own log capture, with two helper processes a step"),
    Lever("pooled-steps", "a step opens a connection for each read and write"),
    Lever(
        "second-child",
        "one child waits instead of two; a chain takes one at a time",
        slots=1,
    ),
    Lever("hot-pages", "no memory is copied ahead of the step"),
    Lever("taught-tables", "a fresh server process learns the tables in the step"),
    Lever("driver-words", "each event is inserted by Dagster's store_event, with its NOTIFY"),
    Lever("early-start", "the start is recorded before the step is prepared, not meanwhile"),
    Lever("one-read", "the executor reads new events through Dagster's API"),
    Lever(
        "prepared-statements",
        "server and worker without STEPFLEET_PREPARE, as is their default",
        env={"STEPFLEET_PREPARE": "false"},
    ),
)
LEVERS = {lever.name: lever for lever in (*NAMED, *FURTHER)}


@dataclass(frozen=True)
class Turn:
    """One run: of a group of one or two levers, with one of them off, or with all of them on."""

    group: int
    rep: int
    job: str
    off: Lever | None


def plan(levers: Sequence[Lever], repetitions: int) -> Iterator[Turn]:
    """Every run, in order. Two levers share a run with all on, which lies between them, so that
    what is compared is a minute apart at most; the order within a group alternates."""
    groups = [
        own[i : i + 2]
        for job in (CHAIN, FAN_OUT)
        for own in [[lever for lever in levers if lever.job == job]]
        for i in range(0, len(own), 2)
    ]
    for rep in range(1, repetitions + 1):
        for number, group in enumerate(groups):
            turns: list[Lever | None] = [group[0], None, *group[1:]]
            for off in turns if rep % 2 else reversed(turns):
                yield Turn(number, rep, group[0].job, off)


# Title, field of a sample, factor, digits, and whether it differs from run to run by itself.
FIGURES = (
    ("wall ms", "wall_seconds", 1000.0, 1, True),
    ("cpu ms", "cpu_seconds", 1000.0, 1, True),
    ("connections", "pg_connections", 1.0, 2, False),
    ("commits", "pg_commits", 1.0, 1, False),
)


def rows(levers: Sequence[Lever], samples: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Per step, medians: with the lever on and off, and of times the differences of runs side by
    side with their range. A lever with a void run has the reason instead."""
    head = ["lever", "job", "runs"]
    for title, _, _, _, varies in FIGURES:
        head += [f"{title} on", "off", *(["off - on"] if varies else [])]
    table = [head]
    for lever in levers:
        pairs = _pairs(lever, samples)
        void = next((s["void"] for pair in pairs for s in pair if s["void"]), "")
        if void or not pairs:
            table.append([lever.name, lever.job, f"VOID: {void or 'not measured'}"])
            continue
        row = [lever.name, lever.job, str(len(pairs))]
        for _, name, factor, digits, varies in FIGURES:
            on, off = (
                [factor * s[name] / s["steps"] for s in side] for side in zip(*pairs, strict=True)
            )
            row += [f"{statistics.median(side):.{digits}f}" for side in (on, off)]
            if varies:
                apart = sorted(b - a for a, b in zip(on, off, strict=True))
                least, most = (f"{figure:+.{digits}f}" for figure in (apart[0], apart[-1]))
                row.append(f"{statistics.median(apart):+.{digits}f} ({least} to {most})")
        table.append(row)
    return table


def _pairs(
    lever: Lever, samples: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The runs with the lever on and off that lay side by side."""
    on = {(s["group"], s["rep"]): s for s in samples if not s["lever"]}
    return [
        (on[place], s)
        for s in samples
        if s["lever"] == lever.name and (place := (s["group"], s["rep"])) in on
    ]


def text(levers: Sequence[Lever], samples: Sequence[Mapping[str, Any]]) -> str:
    return align(rows(levers, samples), left=2)


NOT_SWITCHABLE = (
    "A task is settled when its process tells the result, not when it has ended: that is in the Go"
    " worker (internal/worker), which has no setting for it and no hook from outside.",
    "The wait after a run's last step that is left out (handler.py): it is not a thing beside the"
    " loop but a condition in it; its figure in docs/adr/0004 is of before and after the change.",
)
