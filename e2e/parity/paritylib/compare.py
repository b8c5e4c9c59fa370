"""Compares two records of one case: a list of differences, empty when there is none."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parity_jobs.say import ERR
from paritylib.record import Record

# More of one kind would only hide the others.
MAX_LINES = 8
_MAX_CHARS = 600


@dataclass(frozen=True)
class Mask:
    """What is not compared: events, run tags, and parts of events' texts. docs/dagster.md names
    each under the number of its exception."""

    exception: int
    events: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    # An empty text is no event.
    text: Callable[[str], str] = str
    # A line of a compute log that is not compared.
    line: re.Pattern[str] | None = None


def _without_crash(text: str) -> str:
    """Hides the words of an error that the framework has written, not the step."""
    if text.startswith("STEP_UP_FOR_RETRY") or '"source": "FRAMEWORK_ERROR"' in text:
        return re.sub(r'"error": \[\[.*?\]\]', '"error": ANY', text)
    return text


def _without_abandoned(text: str) -> str:
    """Drops the line that an executor logs about a step that it will not run."""
    return "" if re.match(r"LOG 40 Dependencies for step .* failed: ", text) else text


# Of every case.
ALWAYS: dict[str, Mask] = {
    # The stock executors differ from each other in them.
    "process": Mask(
        3, events=frozenset({"STEP_WORKER_STARTING", "STEP_WORKER_STARTED", "ENGINE_EVENT"})
    ),
    # New in every run, of whatever executor.
    "ids": Mask(4, tags=frozenset({"dagster/backfill", "dagster/tick", ".dagster/grpc_info"})),
}
# Of every comparison with in_process.
IN_PROCESS: dict[str, Mask] = {
    "once_a_run": Mask(
        3, events=frozenset({"RESOURCE_INIT_STARTED", "RESOURCE_INIT_SUCCESS", "LOGS_CAPTURED"})
    ),
}
# Of the cases that name them.
MASKS: dict[str, Mask] = {
    # A process that is gone says nothing itself; each executor words what it has seen, and
    # multiprocess ends its run with that exception.
    "crash": Mask(1, tags=frozenset({"dagster/failure_reason"}), text=_without_crash),
    # multiprocess goes through its loop once more when the run is cancelled, and logs that the
    # steps downstream will not run. Nothing else becomes of them.
    "interrupt": Mask(2, text=_without_abandoned),
    # A run that the daemon has ended: it interrupts the run worker, and writes the run's end itself
    # while that one is still at it. Whether the run worker then finds the run cancelling, and says
    # that it is cancelled, or finds it failed, is a race of Dagster's own in every executor.
    "ended_by_daemon": Mask(2, events=frozenset({"PIPELINE_CANCELED"})),
    # Steps are told where they are, and by whom.
    "own_variables": Mask(5, line=re.compile(r"(out|err)> variable STEPFLEET_\w+\n")),
    # Chance decides how long.
    "retry_delay": Mask(
        4, text=lambda text: re.sub(r'"seconds_to_wait": [\d.]+', '"seconds_to_wait": ANY', text)
    ),
}


def compare(
    reference: Sequence[Record],
    ours: Sequence[Record],
    *,
    in_process: bool,
    masks: Iterable[str] = (),
    ordered: bool = False,
) -> list[str]:
    """Compares the runs of a case. `in_process`: the reference has one process, and one log, for
    the whole run, and the other has not."""
    hidden = [
        *ALWAYS.values(),
        *(IN_PROCESS.values() if in_process else ()),
        *(MASKS[name] for name in masks),
    ]
    if len(reference) != len(ours):
        return [f"number of runs: {len(reference)} expected, {len(ours)} found"]
    found: list[str] = []
    for number, (expected, actual) in enumerate(zip(reference, ours, strict=True), 1):
        prefix = f"run {number}: " if len(ours) > 1 else ""
        found += [prefix + line for line in _compare_run(expected, actual, in_process, hidden)]
        if ordered and expected.order != actual.order:
            found.append(f"{prefix}order: {expected.order} expected, {actual.order} found")
    return found


def _compare_run(
    expected: Record, actual: Record, in_process: bool, masks: Sequence[Mask]
) -> list[str]:
    found: list[str] = []
    if expected.status != actual.status:
        found.append(f"run status: {expected.status} expected, {actual.status} found")
    found += _compare_values("step state", expected.states, actual.states)
    found += _compare_values("attempts", expected.attempts, actual.attempts)
    hidden = {tag for mask in masks for tag in mask.tags}
    found += _compare_values(
        "run tag",
        {tag: value for tag, value in expected.tags.items() if tag not in hidden},
        {tag: value for tag, value in actual.tags.items() if tag not in hidden},
    )
    found += _compare_counters("run", expected.run_events, actual.run_events, masks)
    for step in sorted({*expected.events, *actual.events}):
        found += _compare_counters(
            step,
            expected.events.get(step, Counter()),
            actual.events.get(step, Counter()),
            masks,
        )
    return found + (
        _compare_whole_logs(expected, actual)
        if in_process
        else _compare_logs(expected, actual, masks)
    )


def _compare_values(what: str, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    return _limited(
        f"{what} of {key}: {expected.get(key, 'none')} expected, {actual.get(key, 'none')} found"
        for key in sorted({*expected, *actual})
        if expected.get(key) != actual.get(key)
    )


def _compare_counters(
    where: str,
    expected: Counter[str],
    actual: Counter[str],
    masks: Sequence[Mask] = (),
) -> list[str]:
    expected, actual = _masked(expected, masks), _masked(actual, masks)
    missing = [f"{where}: missing {n} x {text}" for text, n in (expected - actual).items()]
    extra = [f"{where}: {n} more x {text}" for text, n in (actual - expected).items()]
    return _limited(sorted(missing)) + _limited(sorted(extra))


def _masked(counter: Counter[str], masks: Sequence[Mask]) -> Counter[str]:
    result: Counter[str] = Counter()
    for text, number in counter.items():
        for mask in masks:
            text = "" if text.split(" ", 1)[0] in mask.events else mask.text(text)
        if text:
            result[text] += number
    return result


def _compare_logs(expected: Record, actual: Record, masks: Sequence[Mask]) -> list[str]:
    """By step and attempt, line by line: both have a process for each step."""
    found: list[str] = []
    for step in sorted({*expected.logs, *actual.logs}):
        want, have = expected.logs.get(step, []), actual.logs.get(step, [])
        if len(want) != len(have):
            found.append(f"logs of {step}: {len(want)} expected, {len(have)} found")
            continue
        for attempt, (wanted, had) in enumerate(zip(want, have, strict=True)):
            for stream, w, h in zip(("stdout", "stderr"), wanted, had, strict=True):
                found += _compare_lines(
                    f"{stream} of {step}, capture {attempt}", _lines(w, masks), _lines(h, masks)
                )
    return found


def _lines(text: str, masks: Sequence[Mask]) -> list[str]:
    return [
        line
        for line in text.splitlines(keepends=True)
        if not any(mask.line and mask.line.fullmatch(line) for mask in masks)
    ]


def _compare_lines(where: str, expected: list[str], actual: list[str]) -> list[str]:
    want, have = (Counter(line.rstrip("\n") for line in lines) for lines in (expected, actual))
    if want == have:
        # The order within a stream is the program's.
        return [] if expected == actual else [f"{where}: the same lines in another order"]
    return _compare_counters(where, want, have)


def _compare_whole_logs(expected: Record, actual: Record) -> list[str]:
    """All lines that users have printed, wherever they were captured."""
    return _compare_counters("stdout", _stdout(expected), _stdout(actual)) + _compare_counters(
        "stderr", _stderr(expected), _stderr(actual)
    )


def _stdout(record: Record) -> Counter[str]:
    return Counter(
        line
        for captures in record.logs.values()
        for out, _ in captures
        for line in out.splitlines()
    )


def _stderr(record: Record) -> Counter[str]:
    return Counter(
        line
        for captures in record.logs.values()
        for _, err in captures
        for line in err.splitlines()
        if line.startswith(ERR)
    )


def _limited(lines: Iterable[str]) -> list[str]:
    all_lines = [line if len(line) <= _MAX_CHARS else line[:_MAX_CHARS] + "..." for line in lines]
    rest = len(all_lines) - MAX_LINES
    return all_lines[:MAX_LINES] + ([f"... and {rest} more"] if rest > 0 else [])
