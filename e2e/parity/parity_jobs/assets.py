"""Assets: partitions, subsets, checks, observable sources, backfills, cacheable definitions."""

from collections.abc import Iterable, Iterator
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    AssetOut,
    AssetSelection,
    BackfillPolicy,
    DailyPartitionsDefinition,
    DataVersion,
    Definitions,
    DynamicPartitionsDefinition,
    MaterializeResult,
    MetadataValue,
    MultiPartitionKey,
    MultiPartitionsDefinition,
    OpExecutionContext,
    Out,
    Output,
    StaticPartitionsDefinition,
    asset,
    asset_check,
    define_asset_job,
    graph,
    graph_asset,
    multi_asset,
    observable_source_asset,
    op,
)

from parity_jobs.case import (
    VARIANTS,
    Case,
    Variant,
    asset_case,
    graph_case,
    job_name,
    jobs_of,
)
from parity_jobs.say import say

COLOURS = StaticPartitionsDefinition(["red", "green", "blue"])
DAYS = DailyPartitionsDefinition(start_date="2024-03-01", end_date="2024-03-08")
CUSTOMERS = DynamicPartitionsDefinition(name="parity_customers")
GRID = MultiPartitionsDefinition({"colour": COLOURS, "day": DAYS})


def own(prefix: list[str]) -> dict[str, Any]:
    """Where a variant's assets are: their names are looked up in their group."""
    return {"key_prefix": prefix, "group_name": prefix[0]}


@op
def halves(number: int) -> float:
    return number / 2


@op
def rounds(number: float) -> int:
    return round(number)


def plain_assets(prefix: list[str]) -> list[Any]:
    @asset(**own(prefix), code_version="7", tags={"team": "x"}, owners=["a@example.org"])
    def raw(context: AssetExecutionContext) -> Output[int]:
        say("raw")
        context.add_output_metadata({"early": True})
        return Output(
            3, metadata={"rows": 3, "text": MetadataValue.md("**three**")}, tags={"kind": "raw"}
        )

    @asset(**own(prefix))
    def versioned(raw: int) -> Output[int]:
        return Output(raw + 1, data_version=DataVersion("fixed"))

    @asset(**own(prefix), deps=[versioned])
    def without_value(context: AssetExecutionContext) -> MaterializeResult:
        say(f"{context.op_execution_context.op_def.name} has no value")
        return MaterializeResult(metadata={"path": "/somewhere"})

    @graph_asset(**own(prefix))
    def from_graph(versioned: int) -> int:
        return rounds(halves(versioned))

    return [raw, versioned, without_value, from_graph]


def partitioned_assets(prefix: list[str]) -> list[Any]:
    @asset(**own(prefix), partitions_def=COLOURS)
    def colour(context: AssetExecutionContext) -> str:
        say(f"colour {context.partition_key}")
        return context.partition_key

    @asset(**own(prefix), partitions_def=COLOURS)
    def shade(context: AssetExecutionContext, colour: str) -> str:
        return f"dark {colour}"

    @asset(**own(prefix), partitions_def=COLOURS)
    def hue(context: AssetExecutionContext) -> str:
        say(f"hue {context.partition_key}")
        return context.partition_key

    @asset(**own(prefix), partitions_def=COLOURS)
    def tint(hue: str) -> str:
        return f"light {hue}"

    @asset(**own(prefix))
    def palette(hue: dict[str, str]) -> int:
        say(f"palette {sorted(hue.items())}")
        return len(hue)

    @asset(**own(prefix), partitions_def=DAYS, backfill_policy=BackfillPolicy.single_run())
    def daily(context: AssetExecutionContext) -> MaterializeResult:
        keys = list(context.partition_keys)
        window = context.partition_time_window
        say(f"days {keys} from {window.start.date()} to {window.end.date()}")
        return MaterializeResult(metadata={"days": len(keys)})

    @asset(**own(prefix), partitions_def=CUSTOMERS)
    def customer(context: AssetExecutionContext) -> str:
        say(f"customer {context.partition_key}")
        return context.partition_key

    @asset(**own(prefix), partitions_def=GRID)
    def cell(context: AssetExecutionContext) -> str:
        key = context.partition_key
        assert isinstance(key, MultiPartitionKey)
        say(f"cell {dict(sorted(key.keys_by_dimension.items()))}")
        return str(key)

    return [colour, shade, hue, tint, palette, daily, customer, cell]


def multi_assets(prefix: list[str]) -> list[Any]:
    @multi_asset(
        name=f"several_{prefix[0]}",
        outs={
            name: AssetOut(key_prefix=prefix, is_required=False, metadata={"at": name})
            for name in ("one", "two", "three")
        },
        can_subset=True,
        group_name=prefix[0],
        internal_asset_deps={"one": set(), "two": {AssetKey([*prefix, "one"])}, "three": set()},
    )
    def several(context: AssetExecutionContext) -> Iterator[Output[int]]:
        chosen = sorted(context.op_execution_context.selected_output_names)
        say(f"selected {chosen}")
        for name in chosen:
            yield Output(len(name), name, metadata={"length": len(name)})

    @asset(**own(prefix))
    def after_two(two: int) -> int:
        return two

    return [several, after_two]


def checked_assets(prefix: list[str]) -> list[Any]:
    @asset(
        **own(prefix),
        check_specs=[AssetCheckSpec("inline", asset=AssetKey([*prefix, "checked"]))],
    )
    def checked() -> Iterator[Any]:
        yield Output(5)
        yield AssetCheckResult(check_name="inline", passed=True, metadata={"seen": 5})

    @asset_check(asset=AssetKey([*prefix, "checked"]))
    def is_small(checked: int) -> AssetCheckResult:
        say("the check fails, and blocks nothing")
        return AssetCheckResult(
            passed=checked < 3, severity=AssetCheckSeverity.WARN, metadata={"number": checked}
        )

    @asset_check(asset=AssetKey([*prefix, "checked"]))
    def is_positive() -> AssetCheckResult:
        return AssetCheckResult(passed=True, description="it is")

    @asset(**own(prefix))
    def after_checked(checked: int) -> int:
        return checked

    @asset(**own(prefix))
    def guarded() -> int:
        return 6

    @asset_check(asset=AssetKey([*prefix, "guarded"]), blocking=True)
    def is_odd(guarded: int) -> AssetCheckResult:
        return AssetCheckResult(passed=guarded % 2 == 1)

    @asset(**own(prefix))
    def after_guarded(guarded: int) -> int:
        say("never comes here")
        return guarded

    return [checked, is_small, is_positive, after_checked, guarded, is_odd, after_guarded]


def source_assets(prefix: list[str]) -> list[Any]:
    @observable_source_asset(key=[*prefix, "outside"])
    def outside() -> DataVersion:
        say("looked outside")
        return DataVersion("2024")

    @asset(**own(prefix), deps=[AssetKey([*prefix, "outside"])])
    def from_outside() -> None:
        say("from outside")

    return [outside, from_outside]


def failing_assets(prefix: list[str]) -> list[Any]:
    @asset(**own(prefix))
    def fails() -> int:
        raise RuntimeError("the asset fails")

    @asset(**own(prefix))
    def after_fails(fails: int) -> int:
        return fails

    @asset(**own(prefix))
    def beside() -> int:
        return 1

    return [fails, after_fails, beside]


@op(out=Out(int))
def tells_about_assets(context: OpExecutionContext) -> Iterator[Any]:
    """An op that is no asset's, and reports on some."""
    yield AssetMaterialization("table", description="written", metadata={"rows": 2.5})
    context.log_event(AssetMaterialization("table", partition="p1", tags={"a": "b"}))
    context.log_event(AssetObservation("table", metadata={"age": 4}))
    yield AssetObservation("other", partition="p2")
    yield Output(1, metadata={"note": MetadataValue.json({"a": [1, 2]})})


@graph
def materializations_of_ops():
    tells_about_assets()


def keys(*names: str) -> Any:
    return lambda variant: AssetSelection.assets(*([variant.token, name] for name in names))


def range_of(first: str, last: str) -> dict[str, str]:
    return {
        "dagster/asset_partition_range_start": first,
        "dagster/asset_partition_range_end": last,
    }


PARTITION = "dagster/partition"
# The job of one asset that is made of all partitions of another, after their backfill.
PALETTE = "palette"

CASES: tuple[Case, ...] = (
    asset_case(
        "assets",
        keys("raw", "versioned", "without_value", "from_graph"),
        counts={"ASSET_MATERIALIZATION": 4, "STEP_SUCCESS": 5},
        launched=True,
        quick=True,
    ),
    graph_case(
        materializations_of_ops, counts={"ASSET_MATERIALIZATION": 2, "ASSET_OBSERVATION": 2}
    ),
    asset_case(
        "assets_that_fail",
        keys("fails", "after_fails", "beside"),
        status="FAILURE",
        counts={"ASSET_MATERIALIZATION": 1, "STEP_FAILURE": 1},
    ),
    asset_case(
        "partitions_static",
        keys("colour", "shade"),
        tags={PARTITION: "green"},
        counts={"ASSET_MATERIALIZATION": 2},
    ),
    asset_case(
        "partitions_range",
        keys("daily"),
        tags=range_of("2024-03-02", "2024-03-05"),
        counts={"ASSET_MATERIALIZATION": 4},
    ),
    asset_case(
        "partitions_daily",
        keys("daily"),
        tags={PARTITION: "2024-03-03"},
        counts={"ASSET_MATERIALIZATION": 1},
    ),
    asset_case(
        "partitions_dynamic",
        keys("customer"),
        drive="dynamic_partition",
        options={"partitions_def": "parity_customers", "partition": "acme"},
        tags={PARTITION: "acme"},
        counts={"ASSET_MATERIALIZATION": 1},
    ),
    asset_case(
        "partitions_multi",
        keys("cell"),
        tags={
            PARTITION: "red|2024-03-04",
            "dagster/partition/colour": "red",
            "dagster/partition/day": "2024-03-04",
        },
        counts={"ASSET_MATERIALIZATION": 1},
    ),
    asset_case("multi_asset_whole", keys("one", "two", "three", "after_two")),
    asset_case(
        "multi_asset_subset",
        keys("one", "two", "three", "after_two"),
        options={"assets": [["three"], ["one"]]},
        counts={"ASSET_MATERIALIZATION": 2, "STEP_SUCCESS": 1},
    ),
    asset_case(
        "checks",
        lambda v: AssetSelection.assets([v.token, "checked"], [v.token, "after_checked"]),
        counts={"ASSET_CHECK_EVALUATION": 3, "ASSET_MATERIALIZATION": 2},
        quick=True,
    ),
    asset_case(
        "checks_blocking",
        lambda v: AssetSelection.assets([v.token, "guarded"], [v.token, "after_guarded"]),
        status="FAILURE",
        counts={"ASSET_CHECK_EVALUATION": 1, "ASSET_MATERIALIZATION": 1},
    ),
    asset_case("observable_source", keys("outside"), counts={"ASSET_OBSERVATION": 1}),
    asset_case(
        "after_observable_source",
        keys("from_outside"),
        drive="after_another",
        options={"first": "observable_source"},
        counts={"ASSET_OBSERVATION": 1, "ASSET_MATERIALIZATION": 1},
        prints=("out> looked outside", "out> from outside"),
    ),
    asset_case(
        "backfill",
        keys("hue", "tint"),
        drive="backfill",
        options={"partitions": ["red", "green", "blue"], "then": PALETTE},
        masks=frozenset({"backfill_order"}),
        counts={"ASSET_MATERIALIZATION": 7},
        prints=("out> palette [('blue', 'blue'), ('green', 'green'), ('red', 'red')]",),
    ),
)

_MAKERS = (
    plain_assets,
    partitioned_assets,
    multi_assets,
    checked_assets,
    source_assets,
    failing_assets,
)


def assets_of(variant: Variant) -> Iterable[Any]:
    prefix = [variant.token]
    for make in _MAKERS:
        yield from make(prefix)


def definitions() -> Definitions:
    all_assets = [found for variant in VARIANTS for found in assets_of(variant)]
    checks = [a for a in all_assets if type(a).__name__ == "AssetChecksDefinition"]
    jobs = jobs_of(CASES, assets=[a for a in all_assets if a not in checks], asset_checks=checks)
    return Definitions.merge(jobs, Definitions(jobs=[palette_job(v) for v in VARIANTS]))


def palette_job(variant: Variant) -> Any:
    return define_asset_job(
        job_name(PALETTE, variant),
        selection=keys(PALETTE)(variant),
        executor_def=variant.executor,
    )
