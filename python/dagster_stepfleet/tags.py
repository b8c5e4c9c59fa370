"""What tags on ops and runs ask of stepfleet.

An op's tag goes before the run's (a job's tags are on its runs), that before the executor's
config, that before the default. Within one level our own tag goes before the ones users already
have for other executors. One tag adds instead: dagster/priority on an op ranks it among the steps
of its run, in which Dagster takes an op without it for 0; so it counts from where the run stands.
Tags of other executors that say how large a step's container is cannot
be followed, since a step runs in a worker that is there already; the user is told what to use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

QUEUE_TAG = "stepfleet/queue"
PRIORITY_TAG = "stepfleet/priority"
DAGSTER_PRIORITY_TAG = "dagster/priority"
TIMEOUT_TAG = "stepfleet/timeout"
LOST_STEP_RETRIES_TAG = "stepfleet/lost_step_retries"
CELERY_QUEUE_TAG = "dagster-celery/queue"
CELERY_PRIORITY_TAG = "dagster-celery/priority"
# Celery's executor adds it to the priority of each step of the run.
CELERY_RUN_PRIORITY_TAG = "dagster-celery/run_priority"

QUEUE_TAGS = (QUEUE_TAG, CELERY_QUEUE_TAG)
PRIORITY_TAGS = (PRIORITY_TAG, DAGSTER_PRIORITY_TAG, CELERY_PRIORITY_TAG)
TIMEOUT_TAGS = (TIMEOUT_TAG,)
LOST_STEP_RETRIES_TAGS = (LOST_STEP_RETRIES_TAG,)

# Op tags by which the executors of dagster-aws and dagster-k8s shape a step's own container. On a
# job they shape the run worker's, through the run launcher, and that still holds.
CONTAINER_TAGS = (
    "ecs/cpu",
    "ecs/memory",
    "ecs/ephemeral_storage",
    "ecs/run_task_kwargs",
    "ecs/task_overrides",
    "ecs/container_overrides",
    "dagster-k8s/config",
    "dagster-k8s/resource_requirements",
)

DEFAULT_QUEUE = "default"
# More attempts than this is a loop, not a retry.
MAX_LOST_STEP_RETRIES = 100
# The ledger keeps priorities, timeouts and retry budgets in 32 bits.
MAX_PRIORITY = 2**31 - 1
MAX_TIMEOUT_SECONDS = 2**31 - 1
MAX_RETRIES = 2**31 - 1
# As in queue.go and docs/schema/task.schema.json: it becomes part of an SQS queue's name.
QUEUE_NAME = "^[a-z0-9][a-z0-9_-]{0,59}$"
# How much of a tag's value a warning shows.
_SHOWN_CHARACTERS = 80

T = TypeVar("T")


@dataclass(frozen=True)
class Defaults:
    """What the executor's config says. Raises ValueError for what the server would refuse."""

    queue: str = DEFAULT_QUEUE
    priority: int = 0
    lost_step_retries: int = 0
    timeout_seconds: int = 0

    def __post_init__(self) -> None:
        for name, value, parse in (
            ("queue", self.queue, _queue),
            ("priority", str(self.priority), _priority),
            ("lost_step_retries", str(self.lost_step_retries), _retries),
            ("step_timeout_seconds", str(self.timeout_seconds), _timeout),
        ):
            try:
                parse(value)
            except ValueError as err:
                raise ValueError(
                    f"stepfleet's executor config has {name}: {value!r}, which is {err}"
                ) from err


@dataclass(frozen=True)
class Placement:
    """Where a step goes, and what may follow it. Each warning names a tag that was not followed."""

    queue: str
    priority: int
    lost_step_retries: int
    timeout_seconds: int = 0
    warnings: list[str] = field(default_factory=list[str])


class Router:
    """Places the steps of one run. Steps with the same tags are placed the same, and what is
    wrong with a tag is said once: a fan-out of a thousand steps has one warning, not a thousand."""

    def __init__(self, run_tags: Mapping[str, str], defaults: Defaults) -> None:
        self._run_tags = run_tags
        self._defaults = defaults
        self._placed: dict[frozenset[tuple[str, str]], Placement] = {}
        self._said: set[str] = set()

    def place(self, step_tags: Mapping[str, str]) -> Placement:
        known = frozenset(step_tags.items())
        placement = self._placed.get(known)
        if placement is not None:
            return placement
        placement = place(step_tags, self._run_tags, self._defaults)
        self._placed[known] = replace(placement, warnings=[])
        news = [text for text in placement.warnings if text not in self._said]
        self._said.update(news)
        return replace(placement, warnings=news)


def place(
    step_tags: Mapping[str, str], run_tags: Mapping[str, str], defaults: Defaults
) -> Placement:
    """Reads a step's placement from its tags, the run's tags and the executor's config."""
    reader = _Reader(step_tags, run_tags)
    queue, _ = reader.pick(QUEUE_TAGS, _queue, defaults.queue)
    priority = _read_priority(reader, defaults.priority)
    timeout, _ = reader.pick(TIMEOUT_TAGS, _timeout, defaults.timeout_seconds)
    retries, _ = reader.pick(LOST_STEP_RETRIES_TAGS, _retries, defaults.lost_step_retries)
    return Placement(
        queue=queue,
        priority=priority,
        lost_step_retries=retries,
        timeout_seconds=timeout,
        warnings=reader.warnings + _container_warnings(step_tags, run_tags),
    )


def _read_priority(reader: _Reader, default: int) -> int:
    """Returns the priority of a step: its op's own, or where its run stands. A sum that goes beyond
    what the ledger keeps is cut to it."""
    own, source = reader.pick(PRIORITY_TAGS, _priority, 0, levels=("op",))
    if source == PRIORITY_TAG:
        return own
    if source == CELERY_PRIORITY_TAG:
        return _cut(own + _celerys_run_priority(reader))
    run, of_run = reader.pick(PRIORITY_TAGS, _priority, default, levels=("run",))
    if of_run in ("", CELERY_PRIORITY_TAG):
        run += _celerys_run_priority(reader)
    return _cut(run + own)


def _celerys_run_priority(reader: _Reader) -> int:
    priority, _ = reader.pick((CELERY_RUN_PRIORITY_TAG,), _priority, 0, levels=("run",))
    return priority


def _cut(priority: int) -> int:
    return max(-MAX_PRIORITY, min(priority, MAX_PRIORITY))


def cut_retries(retries: int) -> int:
    """Returns a number of retries cut to what the ledger keeps. There it is for people to read:
    Dagster itself counts retries, and knows no limit."""
    return max(0, min(retries, MAX_RETRIES))


class _Reader:
    """Reads tags by rank, and notes those that cannot be read."""

    def __init__(self, step_tags: Mapping[str, str], run_tags: Mapping[str, str]) -> None:
        self._levels = {"op": step_tags, "run": run_tags}
        self.warnings: list[str] = []

    def pick(
        self,
        names: tuple[str, ...],
        parse: Callable[[str], T],
        default: T,
        levels: tuple[str, ...] = ("op", "run"),
    ) -> tuple[T, str]:
        """Returns the value that goes before all others, and the tag it is from; "" is none."""
        for level in levels:
            tags = self._levels[level]
            for name in names:
                if name not in tags:
                    continue
                # Dagster's own run queue reads dagster/priority of a run, for runs. Steps of a
                # run that was urgent to start are urgent too, so it counts here as well.
                try:
                    return parse(tags[name].strip()), name
                except ValueError as err:
                    self.warnings.append(
                        f"The {level} tag {name}={_shown(tags[name])} is ignored: {err}. "
                        "stepfleet uses the next best setting instead."
                    )
        return default, ""


def _container_warnings(step_tags: Mapping[str, str], run_tags: Mapping[str, str]) -> list[str]:
    """A step with a queue of ours needs no advice: the tag may wait there for the way back."""
    if QUEUE_TAG in step_tags or QUEUE_TAG in run_tags:
        return []
    return [
        f"The op tag {name}={_shown(step_tags[name])} is not followed: a step has no container of "
        "its own, it runs in a worker that is there already. Start workers of the size it needs "
        "on a queue of their own, and send the op there with the tag "
        f"{QUEUE_TAG}; any value of that tag also ends this warning."
        for name in CONTAINER_TAGS
        if name in step_tags
    ]


def _shown(value: str) -> str:
    return repr(value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "...")


def _queue(value: str) -> str:
    if not re.fullmatch(QUEUE_NAME, value):
        raise ValueError(
            "not a queue name (use 1 to 60 of a-z, 0-9, - and _, starting with a letter or digit)"
        )
    return value


def _number(value: str, least: int, most: int) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", value) or not least <= int(value) <= most:
        raise ValueError(f"not a whole number between {least} and {most}")
    return int(value)


def _priority(value: str) -> int:
    return _number(value, -MAX_PRIORITY, MAX_PRIORITY)


def _timeout(value: str) -> int:
    return _number(value, 0, MAX_TIMEOUT_SECONDS)


def _retries(value: str) -> int:
    return _number(value, 0, MAX_LOST_STEP_RETRIES)
