"""A code location of its own, whose assets are what a catalogue says when it is loaded."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetOut,
    AssetsDefinition,
    Definitions,
    Output,
    multi_asset,
)
from dagster._core.definitions.assets.definition.cacheable_assets_definition import (
    AssetsDefinitionCacheableData,
    CacheableAssetsDefinition,
)

from parity_jobs.assets import keys
from parity_jobs.case import VARIANTS, Case, asset_case, jobs_of
from parity_jobs.say import count, counted, say


class Tables(CacheableAssetsDefinition):
    """Asks somewhere else which assets there are, when the location is loaded, and only then."""

    def __init__(self, prefix: list[str]) -> None:
        super().__init__(unique_id=f"tables_{prefix[0]}")
        self._prefix = prefix

    @property
    def _counter(self) -> str:
        """Its name in each Dagster of the suite."""
        return f"catalogue-{self._prefix[0]}-{Path(os.environ.get('DAGSTER_HOME', '')).name}"

    def compute_cacheable_data(self) -> Sequence[AssetsDefinitionCacheableData]:
        count(self._counter)
        keys = {name: AssetKey([*self._prefix, name]) for name in ("orders", "items")}
        return [
            AssetsDefinitionCacheableData(
                keys_by_output_name=keys,
                internal_asset_deps={"orders": set(), "items": {keys["orders"]}},
                extra_metadata={"source": "a catalogue"},
            )
        ]

    def build_definitions(
        self, data: Sequence[AssetsDefinitionCacheableData]
    ) -> Sequence[AssetsDefinition]:
        return [self._build(entry) for entry in data]

    def _build(self, entry: AssetsDefinitionCacheableData) -> AssetsDefinition:
        outs = {
            name: AssetOut(key=key, is_required=False)
            for name, key in (entry.keys_by_output_name or {}).items()
        }

        @multi_asset(name=f"tables_{self._prefix[0]}", outs=outs, can_subset=True)
        def tables(context: AssetExecutionContext) -> Iterator[Output[str]]:
            asked = counted(self._counter)
            say(f"the catalogue was asked {asked} times")
            for name in sorted(context.op_execution_context.selected_output_names):
                say(f"table {name} of {dict(entry.extra_metadata or {})}")
                yield Output(name, name, metadata={"asked": asked})

        return tables


CASES: tuple[Case, ...] = (
    asset_case(
        "cacheable",
        keys("orders", "items"),
        counts={"ASSET_MATERIALIZATION": 2},
        # By the code server.
        prints=("out> the catalogue was asked 1 times",),
    ),
)

defs: Definitions = jobs_of(CASES, assets=[Tables([variant.token]) for variant in VARIANTS])
