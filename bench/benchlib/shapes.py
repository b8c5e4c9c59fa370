"""The graphs that are measured. Their ops do nothing: what is left is what a step costs."""

from dagster import ExecutorDefinition, JobDefinition, graph, op

CHAIN_STEPS = 50
FAN_OUT_STEPS = 100


@op
def noop_source() -> int:
    return 0


@op
def noop(number: int) -> int:
    return number


@graph
def single() -> None:
    """One step: what a run costs before there are many."""
    noop_source()


@graph
def chain50() -> None:
    """50 steps in a line."""
    number = noop_source()
    for i in range(1, CHAIN_STEPS):
        number = noop.alias(f"noop_{i}")(number)


@graph
def fanout100() -> None:
    """One step, and 99 that wait only for it."""
    number = noop_source()
    for i in range(1, FAN_OUT_STEPS):
        noop.alias(f"noop_{i}")(number)


STEPS = {"single": 1, "chain50": CHAIN_STEPS, "fanout100": FAN_OUT_STEPS}


def jobs(executor: ExecutorDefinition) -> list[JobDefinition]:
    """The graphs as jobs of one executor, under the same names in every mode."""
    return [
        single.to_job(name="single", executor_def=executor),
        chain50.to_job(name="chain50", executor_def=executor),
        fanout100.to_job(name="fanout100", executor_def=executor),
    ]
