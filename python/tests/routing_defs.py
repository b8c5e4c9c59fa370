"""A code location whose steps say where they want to run."""

from dagster import Definitions, DynamicOut, DynamicOutput, job, op

from dagster_stepfleet import stepfleet_executor


@op(out=DynamicOut(int))
def split():
    for n in range(50):
        yield DynamicOutput(n, mapping_key=str(n))


@op(tags={"ecs/cpu": "1024", "ecs/memory": "2048"})
def sized(n: int) -> int:
    return n


@job(executor_def=stepfleet_executor)
def fan_of_sized():
    split().map(sized)


@op
def plain() -> None:
    pass


@op(
    tags={
        "stepfleet/queue": "gpu",
        "stepfleet/priority": "7",
        "stepfleet/timeout": "30",
        "stepfleet/lost_step_retries": "3",
    }
)
def tagged() -> None:
    pass


@job(executor_def=stepfleet_executor)
def untagged():
    plain()
    tagged()


@job(
    executor_def=stepfleet_executor,
    tags={
        "stepfleet/queue": "default",
        "stepfleet/priority": "4",
        "stepfleet/timeout": "60",
        "stepfleet/lost_step_retries": "2",
    },
)
def tagged_job():
    plain()
    tagged()


defs = Definitions(jobs=[fan_of_sized, untagged, tagged_job])
