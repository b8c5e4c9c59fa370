"""Compares two records of one case: a list of differences, empty when there is none.

What is left out is in two tables. EXCEPTIONS are where ours differs from a stock executor.
NORMALISATIONS are where two runs under stock executors differ from each other; those of values are
in paritylib.normal and paritylib.versions. docs/dagster.md lists all, and a test holds it to that.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paritylib.record import Record
from paritylib.versions import POINTER_TAG

# More of one kind would only hide the others.
MAX_LINES = 8
_MAX_CHARS = 600

_Text = Callable[[str], str]
# Changes what is in an event of a kind.
_Change = Callable[[str, dict[str, Any]], None]


def _not_at_all(_: str, detail: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Mask:
    """What is not compared."""

    # Events, and run tags.
    events: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    # Events that are compared without a part of what is in them.
    parts_of: frozenset[str] = frozenset()
    without: _Change = _not_at_all
    # What is left of a line that was logged through Dagster, and of one of a compute log. An empty
    # one is none.
    logged: _Text = str
    line: _Text = str
    # Where it holds: in the cases that name it, in all, or in all against in_process.
    scope: str = "case"
    # Of an exception.
    number: int = 0


def _words_of_crash(kind: str, detail: dict[str, Any]) -> None:
    """The words of an error that the framework has written, not the step."""
    if kind == "PIPELINE_FAILURE":
        detail |= dict.fromkeys(("message", "error", "reason", "first"), "ANY")
    elif kind == "STEP_UP_FOR_RETRY" or detail["source"] == "FRAMEWORK_ERROR":
        detail["error"] = "ANY"


def _executors_words(_: str, detail: dict[str, Any]) -> None:
    """How the executor words what it has raised itself."""
    if isinstance(detail["error"], dict) and detail.get("reason") != "STEP_FAILURE":
        detail["error"]["message"] = "ANY"


def _executors_stack(_: str, detail: dict[str, Any]) -> None:
    """Where the executor has raised it."""
    if isinstance(detail["error"], dict) and detail.get("reason") != "STEP_FAILURE":
        detail["error"]["stack"] = "ANY"


def _not_abandoned(line: str) -> str:
    """Drops the line that an executor logs about a step that it will not run."""
    return "" if re.match(r"LOG 40 Dependencies for step .* failed: ", line) else line


def _last_row(_: str, detail: dict[str, Any]) -> None:
    """Which event was the last one of an input's asset, but not of which asset."""
    for tag, row in detail["tags"].items():
        if tag.startswith(POINTER_TAG):
            detail["tags"][tag] = re.sub(r"(?<=\]) .*", " ANY", row)


def _delay(_: str, detail: dict[str, Any]) -> None:
    detail["seconds_to_wait"] = "ANY"
    detail["message"] = _delay_in_line(detail["message"])


def _delay_in_line(line: str) -> str:
    return re.sub(r"\bin \d+\.\d+ seconds", "in ANY seconds", line)


# Of the step, and of the worker and the stack that it is in.
OWN_VARIABLES = frozenset(
    f"STEPFLEET_{name}"
    for name in (
        *("RUN_ID", "STEP_KEY", "ATTEMPT", "IDEMPOTENCY_KEY", "FENCE", "WORKER"),
        *("URL", "DEV_ID", "DEV_LIFE", "PREPARE", "SPOOL", "DATABASE_SOCKET"),
        *("STATEMENT_TIMEOUT", "OUTAGE_SECONDS", "FENCED_EVENTS", "CONNECTION_NAME"),
    )
)


def _not_own_variable(line: str) -> str:
    found = re.fullmatch(r"(?:out|err)> variable (\w+)\n?", line)
    return "" if found and found[1] in OWN_VARIABLES else line


EXCEPTIONS: dict[str, Mask] = {
    # A process that is gone says nothing itself; each executor words what it has seen, and
    # multiprocess ends its run with that exception.
    "crash": Mask(
        number=1,
        tags=frozenset({"dagster/failure_reason"}),
        parts_of=frozenset({"STEP_FAILURE", "STEP_UP_FOR_RETRY", "PIPELINE_FAILURE"}),
        without=_words_of_crash,
    ),
    # A step that cannot make its resources fails the run as well, with one exception for all.
    "resources": Mask(number=1, parts_of=frozenset({"PIPELINE_FAILURE"}), without=_executors_words),
    # multiprocess goes through its loop once more when the run is cancelled, logs that the steps
    # downstream will not run, and leaves with another exception of the same class. Nothing else
    # becomes of them.
    "interrupt": Mask(
        number=2,
        parts_of=frozenset({"PIPELINE_CANCELED"}),
        without=_executors_words,
        logged=_not_abandoned,
    ),
    # The stock executors, and the launchers, differ from each other in them.
    "process": Mask(
        number=3,
        scope="all",
        events=frozenset({"STEP_WORKER_STARTING", "STEP_WORKER_STARTED", "ENGINE_EVENT"}),
        tags=frozenset({".dagster/grpc_info"}),
        parts_of=frozenset({"PIPELINE_FAILURE", "PIPELINE_CANCELED"}),
        without=_executors_stack,
    ),
    # Steps are told where they are, and by whom.
    "own_variables": Mask(number=4, line=_not_own_variable),
}
NORMALISATIONS: dict[str, Mask] = {
    # in_process has one process for all steps, which makes its resources and captures its log once.
    # Against multiprocess they are compared.
    "once_a_run": Mask(
        scope="in_process",
        events=frozenset({"RESOURCE_INIT_STARTED", "RESOURCE_INIT_SUCCESS", "LOGS_CAPTURED"}),
    ),
    # A run that the daemon has ended: it interrupts the run worker, and writes the run's end itself
    # while that one is still at it. Whether the run worker then finds the run cancelling, and says
    # that it is cancelled, or finds it failed, is a race of Dagster's own in every executor.
    "ended_by_daemon": Mask(events=frozenset({"PIPELINE_CANCELED"})),
    # The runs of a backfill go on at once, and an input points to the last event of its asset, of
    # whatever partition.
    "backfill_order": Mask(parts_of=frozenset({"ASSET_MATERIALIZATION"}), without=_last_row),
    # Chance decides how long.
    "retry_delay": Mask(
        parts_of=frozenset({"STEP_UP_FOR_RETRY"}), without=_delay, line=_delay_in_line
    ),
}
MASKS: dict[str, Mask] = {**EXCEPTIONS, **NORMALISATIONS}


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
    scopes = {"all", "in_process"} if in_process else {"all"}
    hidden = [mask for name, mask in MASKS.items() if mask.scope in scopes or name in set(masks)]
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
        _compare_whole_logs(expected, actual, masks)
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
        kind, _, rest = text.partition(" ")
        if any(kind in mask.events for mask in masks):
            continue
        if parts := [mask.without for mask in masks if kind in mask.parts_of]:
            detail = json.loads(rest)
            for without in parts:
                without(kind, detail)
            text = f"{kind} {json.dumps(detail, sort_keys=True, ensure_ascii=False)}"
        if kind == "LOG":
            for mask in masks:
                text = mask.logged(text)
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


def _compare_whole_logs(expected: Record, actual: Record, masks: Sequence[Mask]) -> list[str]:
    """Against one log for the whole run. Its stdout does not say which step has printed a line; of
    its stderr Dagster's console lines say it."""
    found = _compare_counters("stdout", _stdout(expected, masks), _stdout(actual, masks))
    want, have = _by_step(expected, masks), _by_step(actual, masks)
    for step, attempt in sorted({*want, *have}):
        found += _compare_lines(
            f"stderr of {step or 'no step'}, attempt {attempt}",
            want.get((step, attempt), []),
            have.get((step, attempt), []),
        )
    return found


def _stdout(record: Record, masks: Sequence[Mask]) -> Counter[str]:
    return Counter(
        line.rstrip("\n")
        for captures in record.logs.values()
        for out, _ in captures
        for line in _lines(out, masks)
    )


def _by_step(record: Record, masks: Sequence[Mask]) -> dict[tuple[str, int], list[str]]:
    """The lines of stderr that each attempt of a step has written. One begins with the console line
    of its start; the steps of a process come one after the other.

    Console lines of steps that never began are the run worker's, not a step's.
    """
    hidden = {kind for mask in masks for kind in mask.events}
    attempts: Counter[str] = Counter()
    result: dict[tuple[str, int], list[str]] = {}
    for captures in record.logs.values():
        for _, err in captures:
            current = ("", 0)
            for line in _lines(err, masks):
                step, kind = _console(line, record)
                if kind in hidden or (step and step not in record.order):
                    continue
                if kind in ("STEP_START", "STEP_RESTARTED"):
                    attempts[step] += 1
                    current = (step, attempts[step])
                result.setdefault(current, []).append(line)
    return result


_CONSOLE_LINE = re.compile(r"TIME - dagster - [A-Z]+ - \S+ - RUN\d* - (?:PID - )?(.*)\n?")


def _console(line: str, record: Record) -> tuple[str, str]:
    """Of a line that Dagster has written to the console: its step, and the kind of its event."""
    if not (found := _CONSOLE_LINE.fullmatch(line)):
        return "", ""
    first, _, rest = found[1].partition(" - ")
    if first in record.states or first in record.events:
        return first, rest.split(" - ", 1)[0]
    return "", first


def _lines(text: str, masks: Sequence[Mask]) -> list[str]:
    lines = text.splitlines(keepends=True)
    for mask in masks:
        if mask.line is not str:
            lines = [left for line in lines if (left := mask.line(line))]
    return lines


def _compare_lines(where: str, expected: list[str], actual: list[str]) -> list[str]:
    want, have = (Counter(line.rstrip("\n") for line in lines) for lines in (expected, actual))
    if want == have:
        # The order within a stream is the program's.
        return [] if expected == actual else [f"{where}: the same lines in another order"]
    return _compare_counters(where, want, have)


def _limited(lines: Iterable[str]) -> list[str]:
    all_lines = [line if len(line) <= _MAX_CHARS else line[:_MAX_CHARS] + "..." for line in lines]
    rest = len(all_lines) - MAX_LINES
    return all_lines[:MAX_LINES] + ([f"... and {rest} more"] if rest > 0 else [])
