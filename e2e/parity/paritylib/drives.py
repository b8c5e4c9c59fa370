"""How the cases are run: each drive makes a case's runs in one variant and returns their ids."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dagster import DagsterEventType, DagsterInstance, DagsterRun, RunsFilter
from dagster._core.execution.stats import StepEventStatus
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from sqlalchemy.engine import make_url

from parity_jobs.case import VARIANTS, Case, Variant, job_name
from paritylib.dagster_api import DagsterApi
from paritylib.faults import frozen_children, held_inserts
from paritylib.stack import Stack

# Each look is a new connection to PostgreSQL: more of them would slow what is looked for.
POLL_SECONDS = 0.3
# After the end of a run its log must be quiet for so long before it is read.
QUIET_SECONDS = 0.5


@dataclass(frozen=True)
class Context:
    """What drives work with: the Dagster that launches the variant's runs."""

    stack: Stack
    api: DagsterApi
    instance: DagsterInstance
    # DAGSTER_HOME.
    home: Path
    # Of both, by whether it is the stock one.
    apis: Mapping[bool, DagsterApi]


class TookTooLong(Exception):
    """A case did not come to where its drive waits for it."""


def await_that(what: str, timeout_seconds: float, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TookTooLong(f"waited {timeout_seconds:.0f} s for {what}")
        time.sleep(POLL_SECONDS)


def await_end(
    context: Context, run_id: str, timeout_seconds: float, quiet_seconds: float = QUIET_SECONDS
) -> None:
    """Waits until the run has ended and nothing is written to its log any more."""
    instance = context.instance

    def ended() -> bool:
        run = instance.get_run_by_id(run_id)
        return run is not None and run.status in FINISHED_STATUSES

    await_that(f"the end of run {run_id}", timeout_seconds, ended)
    count, since = -1, time.monotonic()
    while time.monotonic() - since < quiet_seconds:
        found = len(instance.get_records_for_run(run_id).records)
        if found != count:
            count, since = found, time.monotonic()
        time.sleep(POLL_SECONDS)


def await_events(
    context: Context, run_id: str, kind: DagsterEventType, number: int, timeout_seconds: float
) -> None:
    """Waits until the run has that many events of the type."""

    def there() -> bool:
        page = context.instance.get_records_for_run(run_id, of_type=kind)
        return len(page.records) >= number

    await_that(f"{number} {kind.value} of run {run_id}", timeout_seconds, there)


def config_of(case: Case, variant: Variant) -> dict[str, Any]:
    """The case's config, and what it has for this variant alone."""
    return merged(case.config, case.config_of.get(variant.name, {}))


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(first)
    for key, value in second.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def start(context: Context, case: Case, variant: Variant, **kwargs: Any) -> str:
    return context.api.launch(
        job_name(case.name, variant),
        config=config_of(case, variant),
        tags=case.tags,
        ops=case.options.get("ops"),
        assets=[[variant.token, *path] for path in case.options["assets"]]
        if "assets" in case.options
        else None,
        **kwargs,
    )


def launch(context: Context, case: Case, variant: Variant) -> list[str]:
    """Launches the job once, to its end."""
    run_id = start(context, case, variant)
    quiet = case.options.get("quiet_seconds", QUIET_SECONDS)
    await_end(context, run_id, case.timeout_seconds, quiet)
    return [run_id]


def reexecute_from_failure(context: Context, case: Case, variant: Variant) -> list[str]:
    first = start(context, case, variant)
    await_end(context, first, case.timeout_seconds)
    second = context.api.reexecute_from_failure(first)
    await_end(context, second, case.timeout_seconds)
    return [first, second]


def reexecute_steps(context: Context, case: Case, variant: Variant) -> list[str]:
    """Runs some steps again; their inputs come from the first run."""
    first = start(context, case, variant)
    await_end(context, first, case.timeout_seconds)
    second = start(context, case, variant, parent_run_id=first, step_keys=case.options["step_keys"])
    await_end(context, second, case.timeout_seconds)
    return [first, second]


def after_another(context: Context, case: Case, variant: Variant) -> list[str]:
    """Launches the job of another case, and then its own: cases run at once."""
    first = context.api.launch(job_name(case.options["first"], variant))
    await_end(context, first, case.timeout_seconds)
    return [first, *launch(context, case, variant)]


def in_pool(context: Context, case: Case, variant: Variant) -> list[str]:
    """Gives the case's pool its slots, then launches."""
    context.instance.event_log_storage.set_concurrency_slots(
        case.options["pool"], case.options["slots"]
    )
    return launch(context, case, variant)


def dynamic_partition(context: Context, case: Case, variant: Variant) -> list[str]:
    context.instance.add_dynamic_partitions(
        case.options["partitions_def"], [case.options["partition"]]
    )
    return launch(context, case, variant)


def backfill(context: Context, case: Case, variant: Variant) -> list[str]:
    """Launches a backfill, whose runs the daemon makes, and then a job that needs all of them."""
    partitions = case.options["partitions"]
    backfill_id = context.api.backfill(job_name(case.name, variant), partitions, case.tags)
    runs = _await_runs(context, {"dagster/backfill": backfill_id}, len(partitions), case)
    by_partition = {run.tags["dagster/partition"]: run.run_id for run in runs}
    last = context.api.launch(job_name(case.options["then"], variant))
    await_end(context, last, case.timeout_seconds)
    return [*(by_partition[partition] for partition in partitions), last]


def retried_by_daemon(context: Context, case: Case, variant: Variant) -> list[str]:
    """The first run fails, and the daemon launches it again."""
    first = start(context, case, variant)
    await_end(context, first, case.timeout_seconds)
    (second,) = _await_runs(context, {"dagster/parent_run_id": first}, 1, case)
    return [first, second.run_id]


def sensed(context: Context, case: Case, variant: Variant) -> list[str]:
    name = f"sensor_{variant.token}"
    context.api.start_sensor(name)
    return [r.run_id for r in _await_runs(context, {"dagster/sensor_name": name}, 1, case)]


def scheduled(context: Context, case: Case, variant: Variant) -> list[str]:
    """Starts the schedules of all variants, so that one minute has all their ticks."""
    for each in VARIANTS:
        context.apis[each.stock].start_schedule(f"schedule_{each.token}")
    tags = {"dagster/schedule_name": f"schedule_{variant.token}"}
    return [run.run_id for run in _await_runs(context, tags, 1, case)]


def _await_runs(
    context: Context, tags: Mapping[str, str], number: int, case: Case
) -> Sequence[DagsterRun]:
    """Waits for runs that Dagster makes by itself, and for their ends."""
    runs: Sequence[DagsterRun] = []

    def made() -> bool:
        nonlocal runs
        runs = context.instance.get_runs(RunsFilter(tags=dict(tags)))
        return len(runs) >= number

    await_that(f"{number} runs tagged {dict(tags)}", case.timeout_seconds, made)
    for run in runs:
        await_end(context, run.run_id, case.timeout_seconds)
    return runs


def cancel(context: Context, case: Case, variant: Variant) -> list[str]:
    """Cancels the run when it has come to where the case wants it."""
    run_id = start(context, case, variant)
    for kind, number in case.options["at"].items():
        await_events(context, run_id, DagsterEventType(kind), number, case.timeout_seconds)
    return _terminate(context, run_id, case)


def cancel_pooled(context: Context, case: Case, variant: Variant) -> list[str]:
    """Cancels a run whose steps hold all slots of a pool, with one more waiting for a slot, and
    launches another, which needs the slots."""
    pool = case.options["pool"]
    context.instance.event_log_storage.set_concurrency_slots(pool, case.options["slots"])
    first = cancel(context, case, variant)
    _expect_free(context, pool)
    second = launch(context, replace(case, tags={"run": "second"}), variant)
    return [*first, *second]


def _expect_free(context: Context, pool: str) -> None:
    """Nobody may hold a slot of the pool, or wait for one."""
    info = context.instance.event_log_storage.get_concurrency_info(pool)
    if info.claimed_slots or info.pending_steps:
        raise RuntimeError(
            f"pool {pool} is not free: held {info.claimed_slots}, waiting {info.pending_steps}"
        )


def cancel_leased(context: Context, case: Case, variant: Variant) -> list[str]:
    """Cancels the run when its steps are with a worker and have not begun.

    Everywhere they wait for a slot of their pool first. Ours get one when the idle processes stand
    still, so that the tasks they are given stay leased. Under a stock executor nothing is like
    that; the nearest is a step that still waits for its slot.
    """
    storage = context.instance.event_log_storage
    storage.set_concurrency_slots(case.options["pool"], 0)
    run_id = start(context, case, variant)
    for kind, number in case.options["at"].items():
        await_events(context, run_id, DagsterEventType(kind), number, case.timeout_seconds)
    if variant.name != "stepfleet":
        return _terminate(context, run_id, case)
    # The run worker is forked from the same template, and must go on.
    with frozen_children(context.stack, but=_run_worker(context, run_id)):
        storage.set_concurrency_slots(case.options["pool"], case.options["leased"])
        context.stack.await_tasks(run_id, "leased", case.options["leased"], case.timeout_seconds)
        ids = _terminate(context, run_id, case)
    _expect_free(context, case.options["pool"])
    return ids


def _run_worker(context: Context, run_id: str) -> int:
    """The process that runs the run's executor, as Dagster tells it."""
    records = context.instance.get_records_for_run(run_id, of_type=DagsterEventType.ENGINE_EVENT)
    for record in records.records:
        if found := re.search(
            r"Started process for run \(pid: (\d+)\)", record.event_log_entry.message
        ):
            return int(found[1])
    raise RuntimeError(f"Dagster's log does not say which process runs run {run_id}")


def _terminate(context: Context, run_id: str, case: Case) -> list[str]:
    context.api.terminate(run_id, case.options.get("policy", "SAFE_TERMINATE"))
    await_end(context, run_id, case.timeout_seconds, case.options["quiet_seconds"])
    return [run_id]


def held_writer(context: Context, case: Case, variant: Variant) -> list[str]:
    """Holds the writer of a step's success between INSERT and COMMIT while others go on.

    Only ours reads the log to learn how steps end; the stock executors run undisturbed.
    """
    if variant.name != "stepfleet":
        return launch(context, case, variant)
    instance = context.instance
    # SQLAlchemy's URL names the driver, which the driver itself does not take.
    url = make_url(context.stack.dagster_url)
    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with held_inserts(dsn, case.options["held"]) as release:
        run_id = start(context, case, variant)

        def passed() -> bool:
            """The executor has acted upon events that came after the held one."""
            stats = instance.get_run_step_stats(run_id, [case.options["until"]])
            return any(s.status == StepEventStatus.SUCCESS for s in stats)

        await_that(f"step {case.options['until']} beside the held writer", 60, passed)
        before = {r.storage_id for r in instance.get_records_for_run(run_id).records}
        release()
    await_end(context, run_id, case.timeout_seconds)
    after = {r.storage_id for r in instance.get_records_for_run(run_id).records}
    if not any(late < max(before) for late in after - before):
        raise TookTooLong("no event became visible below ids that were read already")
    return [run_id]


DRIVES: dict[str, Callable[[Context, Case, Variant], list[str]]] = {
    "launch": launch,
    "reexecute_from_failure": reexecute_from_failure,
    "reexecute_steps": reexecute_steps,
    "after_another": after_another,
    "in_pool": in_pool,
    "dynamic_partition": dynamic_partition,
    "backfill": backfill,
    "retried_by_daemon": retried_by_daemon,
    "sensed": sensed,
    "scheduled": scheduled,
    "held_writer": held_writer,
    "cancel": cancel,
    "cancel_leased": cancel_leased,
    "cancel_pooled": cancel_pooled,
}
