"""Concurrency limits, tags, and what Dagster's daemon starts, repeats and ends."""

import time
from typing import Any

from dagster import (
    Config,
    Definitions,
    In,
    Nothing,
    OpExecutionContext,
    Out,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    graph,
    op,
)

from parity_jobs.case import VARIANTS, Case, Variant, graph_case, in_one_slot, job_name, jobs_of
from parity_jobs.say import first_time, say

POOL = "parity_pool"
KEY = "parity_key"
BUSY_SECONDS = 0.3


@op
def busy() -> int:
    time.sleep(BUSY_SECONDS)
    return 1


@op(pool=POOL)
def pooled() -> int:
    time.sleep(BUSY_SECONDS)
    return 1


@op(tags={"dagster/concurrency_key": KEY})
def pooled_by_tag() -> int:
    time.sleep(BUSY_SECONDS)
    return 1


@op(tags={"resource": "scarce"})
def scarce() -> int:
    time.sleep(BUSY_SECONDS)
    return 1


@op
def adds(numbers: list[int]) -> int:
    say(f"total {sum(numbers)}")
    return sum(numbers)


@graph
def pools():
    adds([pooled.alias(f"pooled_{i}")() for i in range(3)])


@graph
def concurrency_key():
    adds([pooled_by_tag.alias(f"pooled_{i}")() for i in range(3)])


@graph
def max_concurrent():
    adds([busy.alias(f"busy_{i}")() for i in range(5)])


@graph
def tag_concurrency_limits():
    adds([scarce.alias(f"scarce_{i}")() for i in range(4)])


def ranked(name: str, priority: int) -> Any:
    @op(name=name, tags={"dagster/priority": str(priority)})
    def made() -> int:
        return priority

    return made


low, high, negative, middling = (
    ranked(name, priority)
    for name, priority in (("low", 1), ("high", 9), ("negative", -3), ("middling", 5))
)


@graph
def priority():
    adds([low(), high(), negative(), middling()])


@op
def untagged() -> int:
    return 0


@graph
def priority_in_tagged_run():
    """The run's own tag orders runs, and leaves the order of its steps alone."""
    adds([untagged(), low(), negative()])


@op(tags={"team": "of the op"})
def tells_tags(context: OpExecutionContext) -> None:
    tags = {k: v for k, v in context.run.tags.items() if not k.startswith((".", "dagster/"))}
    say(f"run tags {dict(sorted(tags.items()))}")
    say(f"job {context.job_name}, op {context.op.name}, tags {dict(context.op.tags)}")


@graph
def run_tags():
    tells_tags()


@op
def never_ends() -> None:
    say("sleeps")
    time.sleep(300)


@graph
def max_runtime():
    never_ends()


@op
def steady() -> int:
    return 1


@op
def fails_before_retry(context: OpExecutionContext, number: int) -> int:
    if first_time(context.run.root_run_id or context.run_id, "retry"):
        raise RuntimeError("the first run fails")
    say(f"number {number}")
    return number


@graph
def run_retries():
    adds([fails_before_retry(steady())])


class Note(Config):
    text: str


@op
def notes(context: OpExecutionContext, config: Note) -> None:
    say(f"{config.text}, tagged {context.run.tags.get('from')}")


@graph
def sensor_run():
    notes()


@graph
def schedule_run():
    notes()


def note(text: str) -> dict[str, Any]:
    return {"ops": {"notes": {"config": {"text": text}}}}


def sensor_of(variant: Variant) -> SensorDefinition:
    def evaluate(_: SensorEvaluationContext):
        return RunRequest(run_key="once", run_config=note("sensed"), tags={"from": "a sensor"})

    return SensorDefinition(
        name=f"sensor_{variant.token}",
        job_name=job_name("sensor_run", variant),
        evaluation_fn=evaluate,
        minimum_interval_seconds=1,
    )


def schedule_of(variant: Variant) -> ScheduleDefinition:
    def evaluate(_: ScheduleEvaluationContext):
        if not first_time("schedule", variant.token):
            return SkipReason("once is enough")
        return RunRequest(run_config=note("scheduled"), tags={"from": "a schedule"})

    return ScheduleDefinition(
        name=f"schedule_{variant.token}",
        job_name=job_name("schedule_run", variant),
        cron_schedule="* * * * *",
        execution_fn=evaluate,
    )


@op(out=Out(Nothing))
def held() -> None:
    say("its last events are held between INSERT and COMMIT")


@op(ins={"after": In(Nothing)}, out=Out(Nothing))
def passes() -> None:
    time.sleep(0.05)


@op(ins={"a": In(Nothing), "b": In(Nothing)})
def meets() -> None:
    say("both are there")


@op(out=Out(Nothing))
def begins() -> None:
    say("begins")


@graph
def late_events():
    line = begins()
    for i in range(5):
        line = passes.alias(f"passes_{i}")(line)
    meets(a=passes.alias("after_held")(held()), b=line)


def at_once(number: int) -> dict[str, Any]:
    """Of the executors that run several steps at once."""
    config = {"execution": {"config": {"max_concurrent": number}}}
    return {"multiprocess": config, "stepfleet": config}


_LIMIT = {
    "execution": {
        "config": {"tag_concurrency_limits": [{"key": "resource", "value": "scarce", "limit": 1}]}
    }
}

CASES: tuple[Case, ...] = (
    graph_case(pools, drive="in_pool", options={"pool": POOL, "slots": 1}, at_most=1),
    graph_case(concurrency_key, drive="in_pool", options={"pool": KEY, "slots": 2}, at_most=2),
    graph_case(max_concurrent, config_of=at_once(2), at_most=2),
    graph_case(
        tag_concurrency_limits,
        config_of={"multiprocess": _LIMIT, "stepfleet": _LIMIT},
        at_most=1,
    ),
    graph_case(priority, config_of=at_once(1), ordered=True, quick=True),
    graph_case(
        priority_in_tagged_run,
        config_of=in_one_slot(),
        tags={"dagster/priority": "5"},
        ordered=True,
    ),
    graph_case(run_tags, tags={"team": "of the run", "from": "a launch"}),
    graph_case(
        max_runtime,
        status="FAILURE",
        tags={"dagster/max_runtime": "15"},
        counts={"STEP_START": 1, "STEP_FAILURE": 1},
        masks=frozenset({"ended_by_daemon"}),
        options={"quiet_seconds": 3.0},
    ),
    graph_case(
        run_retries,
        drive="retried_by_daemon",
        tags={"dagster/max_retries": "1"},
        counts={"STEP_SUCCESS": 3, "STEP_FAILURE": 1},
        launched=True,
    ),
    graph_case(sensor_run, drive="sensed", counts={"STEP_SUCCESS": 1}),
    graph_case(schedule_run, drive="scheduled", counts={"STEP_SUCCESS": 1}),
    graph_case(
        late_events,
        drive="held_writer",
        options={"held": "held", "until": "passes_4"},
        counts={"STEP_SUCCESS": 9},
        quick=True,
    ),
)


def definitions() -> Definitions:
    return jobs_of(
        CASES,
        sensors=[sensor_of(variant) for variant in VARIANTS],
        schedules=[schedule_of(variant) for variant in VARIANTS],
    )
