"""Where a step's time goes: the phases that the worker keeps, and the executor's two ends of them.

The ledger says when an attempt was queued and settled, and the worker's result when it came to each
of its phases. When its executor submitted it and when it noticed its end is known in the run worker
alone, which writes it to the file that TRACE_VARIABLE names. All are of one machine's clock.
"""

import json
import os
import time
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

TRACE_VARIABLE = "STEPFLEET_BENCH_TRACE"

# Each phase, from and to which of a step's times it goes.
PHASES = (
    ("submit", "submitted", "queued"),
    ("bell", "queued", "bell"),
    ("claim", "bell", "claimed"),
    ("process ready", "claimed", "process"),
    ("preparation", "process", "prepared"),
    ("wait for the start's record", "prepared", "started"),
    ("plan", "started", "plan"),
    ("resources and logs", "plan", "user_code"),
    ("inputs and user code", "user_code", "outputs"),
    ("outputs", "outputs", "ended"),
    ("settle", "ended", "settled"),
    ("notify", "settled", "noticed"),
)
# What of these is ours; the rest is Dagster's code, or the user's.
OURS = frozenset(
    {"submit", "bell", "claim", "process ready", "wait for the start's record", "settle", "notify"}
)


def trace_executor() -> None:
    """In a run worker that is asked to: notes when steps are submitted and their ends noticed."""
    path = os.environ.get(TRACE_VARIABLE)
    if not path:
        return
    from dagster_stepfleet.handler import StepfleetStepHandler as Handler

    submitted: dict[str, float] = {}
    noticed: dict[str, float] = {}
    flush, wait, end = Handler.flush, Handler.wait, Handler.end

    def traced_flush(self: Any) -> None:
        now = time.time()
        for launch in self.buffer:
            submitted.setdefault(launch.step_key, now)
        flush(self)

    def traced_wait(self: Any) -> None:
        wait(self)
        now = time.time()
        for key, step in self.open.items():
            if key not in noticed and self.client.completions.get(key, step.attempt) is not None:
                noticed[key] = now

    def traced_end(self: Any, **options: Any) -> None:
        Path(path).write_text(json.dumps({"submitted": submitted, "noticed": noticed}))
        end(self, **options)

    Handler.flush, Handler.wait, Handler.end = (  # type: ignore[method-assign]
        traced_flush,
        traced_wait,
        traced_end,
    )


def read(url: str, run_id: str, trace: Path) -> dict[str, list[float]]:
    """Seconds of each phase, a figure for each step of a run that has ended."""
    with urllib.request.urlopen(f"{url}/v1/runs/{run_id}/tasks", timeout=10) as response:
        tasks = json.load(response)["tasks"]
    executor = json.loads(trace.read_text())
    found: dict[str, list[float]] = {name: [] for name, _, _ in PHASES}
    for task in tasks:
        key = task["step_key"]
        times: dict[str, float] = dict(task["result"].get("phases") or {})
        for name, column in (("queued", "submitted_at"), ("settled", "ended_at")):
            times[name] = datetime.fromisoformat(task[column]).timestamp()
        for name in ("submitted", "noticed"):
            if key in executor[name]:
                times[name] = executor[name][key]
        if all(begin in times and end in times for _, begin, end in PHASES):
            for name, begin, end in PHASES:
                found[name].append(round(times[end] - times[begin], 6))
    return found


def own(phases: Mapping[str, list[float]]) -> list[float]:
    """Our own part of each step, in seconds."""
    return [sum(parts) for parts in zip(*(phases[name] for name in OURS), strict=True)]
