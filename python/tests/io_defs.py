"""A code location whose steps hand values on, each job in its own way."""

from dagster import (
    Definitions,
    DynamicOut,
    DynamicOutput,
    EnvVar,
    FilesystemIOManager,
    In,
    IOManager,
    Nothing,
    Out,
    asset,
    define_asset_job,
    fs_io_manager,
    io_manager,
    job,
    mem_io_manager,
    op,
)

from dagster_stepfleet import stepfleet_executor


@op
def one() -> int:
    return 1


@op
def add(n: int) -> int:
    return n + 1


@op(tags={"stepfleet/queue": "gpu"})
def add_on_gpu(n: int) -> int:
    return n + 1


@job(executor_def=stepfleet_executor)
def by_default():
    add(one())


@job(executor_def=stepfleet_executor)
def over_queues():
    add_on_gpu(one())


@job(executor_def=stepfleet_executor, resource_defs={"io_manager": fs_io_manager})
def by_definition():
    add(one())


@job(
    executor_def=stepfleet_executor,
    resource_defs={"io_manager": fs_io_manager.configured({"base_dir": "/somewhere"})},
)
def by_configured():
    add(one())


@job(
    executor_def=stepfleet_executor,
    resource_defs={"io_manager": FilesystemIOManager(base_dir="/elsewhere")},
)
def by_class():
    add(one())


@job(
    executor_def=stepfleet_executor,
    resource_defs={"io_manager": FilesystemIOManager(base_dir="s3://bucket/values")},
)
def in_a_bucket():
    add(one())


@job(
    executor_def=stepfleet_executor,
    resource_defs={"io_manager": FilesystemIOManager(base_dir=EnvVar("STEPFLEET_TEST_BASE"))},
)
def by_variable():
    add(one())


@op(out=Out(io_manager_key="disk"))
def one_on_disk() -> int:
    return 1


@io_manager
def elsewhere() -> IOManager:
    raise AssertionError("not initialised in a run worker")


@job(
    executor_def=stepfleet_executor,
    resource_defs={"io_manager": elsewhere, "disk": FilesystemIOManager()},
)
def by_another_key():
    add(one_on_disk())


@job(
    executor_def=stepfleet_executor,
    resource_defs={"io_manager": elsewhere, "disk": FilesystemIOManager()},
)
def of_the_users_own():
    add(one())


@op(ins={"before": In(Nothing)})
def after() -> None:
    pass


@job(executor_def=stepfleet_executor)
def loads_nothing():
    after([one(), one.alias("other")()])


@op(out=DynamicOut(int))
def split():
    for n in range(3):
        yield DynamicOutput(n, mapping_key=str(n))


@op
def collect(values: list[int]) -> int:
    return sum(values)


@job(executor_def=stepfleet_executor)
def dynamic():
    collect(split().map(add).collect())


@job(executor_def=stepfleet_executor, resource_defs={"io_manager": mem_io_manager})
def in_memory():
    add(one())


@asset
def raw() -> int:
    return 3


@asset
def cooked(raw: int) -> int:
    return raw * 2


defs = Definitions(
    assets=[raw, cooked],
    jobs=[
        by_default,
        over_queues,
        by_definition,
        by_configured,
        by_class,
        in_a_bucket,
        by_variable,
        by_another_key,
        of_the_users_own,
        loads_nothing,
        dynamic,
        in_memory,
        define_asset_job("makes_raw", selection="raw", executor_def=stepfleet_executor),
        define_asset_job("makes_cooked", selection="cooked", executor_def=stepfleet_executor),
    ],
)
