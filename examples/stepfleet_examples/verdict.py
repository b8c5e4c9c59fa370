"""Read an effect log and say what it proves. Pure functions; standard library only.

    python -m stepfleet_examples.verdict effects.jsonl

prints a summary and exits with 1 when an attempt ran twice. The key of an attempt is (run_id,
step_key, attempt), the same as the ledger's.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Key(NamedTuple):
    """One attempt of one step of one run."""

    run_id: str
    step_key: str
    attempt: int


class Step(NamedTuple):
    """One step of one run, whatever the number of its attempts."""

    run_id: str
    step_key: str


@dataclass(frozen=True)
class Effect:
    """One line of the log."""

    event: str
    key: Key
    fence: str
    pid: int
    worker: str
    at: float
    op: str


@dataclass
class Attempt:
    """What the log knows of one attempt, each list in the log's order."""

    begins: list[Effect] = field(default_factory=list[Effect])
    ends: list[Effect] = field(default_factory=list[Effect])
    errors: list[Effect] = field(default_factory=list[Effect])

    @property
    def doubled(self) -> bool:
        """User code was started, or came to an end, more than once."""
        return len(self.begins) > 1 or len(self.ends) + len(self.errors) > 1

    @property
    def cut(self) -> bool:
        """It began and came to no end: killed, or still running."""
        return bool(self.begins) and not self.ends and not self.errors

    @property
    def orphan(self) -> bool:
        """It ended without a begin: the log is damaged, or was changed."""
        return not self.begins


Attempts = Mapping[Key, Attempt]


def parse(lines: Iterable[str]) -> list[Effect]:
    """The effects of a log; a line that is none is a ValueError with its number."""
    return [_effect(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def read(path: str | Path) -> list[Effect]:
    """The effects of the log at path; a log that was never written has none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return parse(text.splitlines())


def attempts(effects: Iterable[Effect]) -> dict[Key, Attempt]:
    """The log by attempt."""
    table: dict[Key, Attempt] = {}
    for effect in effects:
        attempt = table.setdefault(effect.key, Attempt())
        {"begin": attempt.begins, "end": attempt.ends, "error": attempt.errors}[
            effect.event
        ].append(effect)
    return table


def doubled(table: Attempts) -> list[Key]:
    """Attempts whose code ran more than once. stepfleet promises that there are none."""
    return sorted(key for key, attempt in table.items() if attempt.doubled)


def cut(table: Attempts) -> list[Key]:
    """Attempts that began and came to no end. Killing a worker makes them, and is no violation."""
    return sorted(key for key, attempt in table.items() if attempt.cut)


def orphans(table: Attempts) -> list[Key]:
    """Attempts that ended without having begun."""
    return sorted(key for key, attempt in table.items() if attempt.orphan)


def done(table: Attempts) -> set[Step]:
    """Steps with an attempt that ended well."""
    return {Step(key.run_id, key.step_key) for key, attempt in table.items() if attempt.ends}


def missing(table: Attempts, expected: Iterable[Step]) -> list[Step]:
    """The expected steps, say those that Dagster calls successful, that never ended well."""
    return sorted(set(expected) - done(table))


def repeated(table: Attempts) -> list[Step]:
    """Steps with more than one attempt that ended well: a result was made, then made again."""
    count: dict[Step, int] = {}
    for key, attempt in table.items():
        if attempt.ends:
            step = Step(key.run_id, key.step_key)
            count[step] = count.get(step, 0) + 1
    return sorted(step for step, number in count.items() if number > 1)


def overlapping(table: Attempts) -> list[Key]:
    """Attempts that still did something after a later attempt of their step had begun.

    This is the worker that was taken for dead and was not.
    """
    by_step: dict[Step, list[Key]] = {}
    for key in table:
        by_step.setdefault(Step(key.run_id, key.step_key), []).append(key)
    found: list[Key] = []
    for keys in by_step.values():
        for key in keys:
            attempt = table[key]
            last = max(e.at for e in [*attempt.begins, *attempt.ends, *attempt.errors])
            later = (begin for k in keys if k.attempt > key.attempt for begin in table[k].begins)
            if any(begin.at < last for begin in later):
                found.append(key)
    return sorted(found)


@dataclass(frozen=True)
class Verdict:
    """Everything the log says, for a report."""

    attempts: int
    steps_done: int
    doubled: list[Key]
    repeated: list[Step]
    overlapping: list[Key]
    orphans: list[Key]
    cut: list[Key]
    missing: list[Step]

    @property
    def ok(self) -> bool:
        """Nothing ran twice and nothing expected is missing. Attempts cut short are allowed."""
        return not (
            self.doubled or self.repeated or self.overlapping or self.orphans or self.missing
        )


def judge(effects: Iterable[Effect], expected: Iterable[Step] = ()) -> Verdict:
    """The verdict on a log, given the steps that should have ended well."""
    table = attempts(effects)
    return Verdict(
        attempts=len(table),
        steps_done=len(done(table)),
        doubled=doubled(table),
        repeated=repeated(table),
        overlapping=overlapping(table),
        orphans=orphans(table),
        cut=cut(table),
        missing=missing(table, expected),
    )


def _effect(number: int, line: str) -> Effect:
    try:
        record: dict[str, Any] = json.loads(line)
        if record["event"] not in ("begin", "end", "error"):
            raise ValueError(f"event {record['event']!r}")
        return Effect(
            event=record["event"],
            key=Key(str(record["run_id"]), str(record["step_key"]), int(record["attempt"])),
            fence=str(record["fence"]),
            pid=int(record["pid"]),
            worker=str(record["worker"]),
            at=float(record["at"]),
            op=str(record["op"]),
        )
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError(f"effect log line {number}: {err!r}") from err


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Judge an effect log.")
    parser.add_argument("log", help="the file that STEPFLEET_EFFECT_LOG named")
    parser.add_argument("--run", help="only this run id")
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")
    options = parser.parse_args(arguments)

    effects = [e for e in read(options.log) if options.run in (None, e.key.run_id)]
    verdict = judge(effects)
    if options.json:
        print(json.dumps({"ok": verdict.ok, **verdict.__dict__}))
    else:
        print(f"{verdict.attempts} attempts, {verdict.steps_done} steps ended well")
        for name in ("doubled", "repeated", "overlapping", "orphans", "cut"):
            keys: list[Any] = getattr(verdict, name)
            print(f"{name}: {len(keys)}")
            for key in keys:
                print("   ", "/".join(map(str, key)))
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main())
