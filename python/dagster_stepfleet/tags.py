"""What tags on ops and runs ask of stepfleet.

An op's tag goes before the run's (a job's tags are on its runs), that before the executor's
config, that before the default. Within one level our own tag goes before the ones users already
have for other executors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

QUEUE_TAG = "stepfleet/queue"
PRIORITY_TAG = "stepfleet/priority"
LOST_STEP_RETRIES_TAG = "stepfleet/lost_step_retries"

QUEUE_TAGS = (QUEUE_TAG, "dagster-celery/queue")
PRIORITY_TAGS = (PRIORITY_TAG, "dagster/priority", "dagster-celery/priority")
LOST_STEP_RETRIES_TAGS = (LOST_STEP_RETRIES_TAG,)

DEFAULT_QUEUE = "default"
# More attempts than this is a loop, not a retry.
MAX_LOST_STEP_RETRIES = 100
# The ledger keeps priorities in 32 bits.
_MAX_PRIORITY = 2**31 - 1
_QUEUE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,127}")


@dataclass(frozen=True)
class Defaults:
    """What the executor's config says."""

    queue: str = DEFAULT_QUEUE
    priority: int = 0
    lost_step_retries: int = 0


@dataclass(frozen=True)
class Placement:
    """Where a step goes, and what may follow it. Each warning names a tag that was not followed."""

    queue: str
    priority: int
    lost_step_retries: int
    warnings: list[str] = field(default_factory=list[str])


def _queue(value: str) -> str:
    if not _QUEUE_NAME.fullmatch(value):
        raise ValueError("not a queue name (letters, digits, '_', '-', '.', '@'; at most 128)")
    return value


def _priority(value: str) -> int:
    number = int(value)
    if abs(number) > _MAX_PRIORITY:
        raise ValueError("out of range")
    return number


def _retries(value: str) -> int:
    number = int(value)
    if not 0 <= number <= MAX_LOST_STEP_RETRIES:
        raise ValueError(f"not between 0 and {MAX_LOST_STEP_RETRIES}")
    return number


def place(
    step_tags: Mapping[str, str], run_tags: Mapping[str, str], defaults: Defaults
) -> Placement:
    """Reads a step's placement from its tags, the run's tags and the executor's config."""
    warnings: list[str] = []

    def pick(names: tuple[str, ...], parse: Callable[[str], object]) -> object | None:
        for level, tags in (("op", step_tags), ("run", run_tags)):
            for name in names:
                if name not in tags:
                    continue
                # Dagster's own run queue reads dagster/priority of a run, for runs. Steps of a
                # run that was urgent to start are urgent too, so it counts here as well.
                try:
                    return parse(tags[name].strip())
                except ValueError as err:
                    warnings.append(
                        f"The {level} tag {name}={tags[name]!r} is ignored: {err}. "
                        "stepfleet uses the next best setting instead."
                    )
        return None

    queue = pick(QUEUE_TAGS, _queue)
    priority = pick(PRIORITY_TAGS, _priority)
    retries = pick(LOST_STEP_RETRIES_TAGS, _retries)
    return Placement(
        queue=queue if isinstance(queue, str) else defaults.queue,
        priority=priority if isinstance(priority, int) else defaults.priority,
        lost_step_retries=retries if isinstance(retries, int) else defaults.lost_step_retries,
        warnings=warnings,
    )
