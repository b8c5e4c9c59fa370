"""Names of data versions and of rows, on runs that Dagster has made in this process."""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dagster import (
    AssetExecutionContext,
    DagsterInstance,
    StaticPartitionsDefinition,
    asset,
    materialize,
)

from paritylib.normal import Normaliser
from paritylib.record import records
from paritylib.versions import asset_value

COLOURS = StaticPartitionsDefinition(["green", "red"])


@asset
def source() -> int:
    return 1


@asset(code_version="7")
def coded() -> int:
    return 2


@asset
def made(source: int, coded: int) -> int:
    return source + coded


@asset(partitions_def=COLOURS)
def colour(context: AssetExecutionContext) -> str:
    return context.partition_key


@asset(partitions_def=COLOURS)
def shade(colour: str) -> str:
    return colour


@asset
def palette(colour: dict[str, str]) -> int:
    return len(colour)


def run(instance: DagsterInstance, assets: Sequence[Any], name: str, **kwargs: Any) -> str:
    chosen = [a for a in assets if a.key.path == [name]]
    return materialize(assets, instance=instance, selection=chosen, **kwargs).run_id


def tags_of(instance: DagsterInstance, run_ids: Sequence[str]) -> tuple[list[str], list[str]]:
    """The tags of the runs' asset events, as Dagster has them and as they are compared."""
    home = Path(instance.storage_directory()).parent
    raw = [
        str(sorted((value.tags or {}).items()))
        for run_id in run_ids
        for entry in instance.all_logs(run_id)
        if entry.dagster_event and (value := asset_value(entry.dagster_event))
    ]
    named = [
        text
        for found in records(instance, run_ids, Normaliser(run_ids, home))
        for events in found.events.values()
        for text in events
        if text.startswith("ASSET_MATERIALIZATION ")
    ]
    return raw, named


def test_two_runs_differ_and_have_the_same_names() -> None:
    assets = [source, coded, made]
    found: list[tuple[list[str], list[str]]] = []
    for before in range(2):
        with DagsterInstance.ephemeral() as instance:
            for _ in range(before):  # so that rows have other ids
                run(instance, assets, "source")
            run_ids = [run(instance, assets, name) for name in ("source", "coded", "made")]
            found.append(tags_of(instance, run_ids))
    (first_raw, first), (second_raw, second) = found
    assert all(a != b for a, b in zip(first_raw, second_raw, strict=True) if "'7'" not in a)
    assert first == second
    last = first[-1]
    assert '"dagster/data_version": "hash of [\'RUN2\', \\"hash of [\'7\']\\", ' in last
    assert '"dagster/input_data_version/source": "hash of [\'RUN\']"' in last
    assert "ASSET_MATERIALIZATION of ['coded'] None, number 1 of RUN1" in last


def test_what_is_made_of_another_version_or_points_elsewhere_has_another_name() -> None:
    assets = [source, coded, made]
    found: list[list[str]] = []
    for again in range(2):
        with DagsterInstance.ephemeral() as instance:
            run_ids = [run(instance, assets, name) for name in ("source", "coded")]
            run_ids += [run(instance, assets, "source") for _ in range(again)]
            run_ids.append(run(instance, assets, "made"))
            found.append(tags_of(instance, run_ids)[1])
    assert "ASSET_MATERIALIZATION of ['source'] None, number 1 of RUN\"" in found[0][-1]
    assert "ASSET_MATERIALIZATION of ['source'] None, number 1 of RUN2\"" in found[1][-1]
    assert '"dagster/input_data_version/source": "hash of [\'RUN2\']"' in found[1][-1]


def test_what_is_made_of_partitions_has_their_versions() -> None:
    assets = [colour, shade, palette]
    with DagsterInstance.ephemeral() as instance:
        run_ids = [
            *(run(instance, assets, "colour", partition_key=key) for key in ("red", "green")),
            run(instance, assets, "shade", partition_key="red"),
            run(instance, assets, "palette"),
        ]
        named = tags_of(instance, run_ids)[1]
    of_red, of_green = "hash of ['RUN']", "hash of ['RUN1']"
    assert f'"dagster/input_data_version/colour": "hash of [\\"{of_red}\\"]"' in named[2]
    both = f'hash of [\\"{of_green}\\", \\"{of_red}\\"]'
    assert f'"dagster/input_data_version/colour": "{both}"' in named[3]


def test_a_hash_of_something_unknown_stays_itself() -> None:
    assets = [source, coded, made]
    with DagsterInstance.ephemeral() as instance:
        run(instance, assets, "source")
        run_ids = [run(instance, assets, "coded"), run(instance, assets, "made")]
        raw, named = tags_of(instance, run_ids)
    (version,) = (
        v for k, v in ast.literal_eval(raw[-1]) if k == "dagster/input_data_version/source"
    )
    assert len(version) == 64
    assert f'"dagster/input_data_version/source": "{version}"' in named[-1]
