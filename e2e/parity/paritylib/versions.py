"""Names what asset events say of other events: data versions that are hashes, and pointers to the
events that made an input.

Both differ between any two runs: an asset without a code version has the run's id for one, a
version is a hash of the code version and the versions of the inputs, and a pointer is the id of a
row. So a hash is named by what was hashed, and a row by the event that it holds: what is equal has
one name, and what is made of something else, or points elsewhere, has another.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dagster import AssetKey, DagsterEvent, EventLogRecord

from paritylib.normal import Normaliser

# What the two are called in docs/dagster.md.
NAMES = ("VERSION", "ROW")

_VERSION_TAG = "dagster/data_version"
_CODE_TAG = "dagster/code_version"
_INPUT_TAG = "dagster/input_data_version/"
POINTER_TAG = "dagster/input_event_pointer/"


class Versions:
    """Of the asset events of a case's runs."""

    def __init__(self, runs: Iterable[Sequence[EventLogRecord]], normaliser: Normaliser) -> None:
        self._rows: dict[str, str] = {}
        # Of a version: what was hashed.
        self._hashed: dict[str, list[str]] = {}
        # Of an asset: the last version of each partition.
        self._partitions: dict[AssetKey, dict[str, str]] = {}
        for records in runs:
            numbers: Counter[str] = Counter()
            for row in records:
                event = row.event_log_entry.dagster_event
                if event is None or (value := asset_value(event)) is None:
                    continue
                name = f"{event.event_type_value} of {value.asset_key.path} {value.partition}"
                numbers[name] += 1
                self._rows[str(row.storage_id)] = normaliser.text(
                    f"{name}, number {numbers[name]} of {row.event_log_entry.run_id}"
                )
                self._note_version(value.tags or {})
                if value.partition and _VERSION_TAG in (value.tags or {}):
                    of_asset = self._partitions.setdefault(value.asset_key, {})
                    of_asset[value.partition] = value.tags[_VERSION_TAG]
        for versions in self._partitions.values():
            # What is made of one partition, or of all, has the hash of their versions.
            for partitions in (*([p] for p in versions), sorted(versions)):
                parts = [versions[partition] for partition in partitions]
                self._hashed[_hash(parts)] = parts

    def _note_version(self, tags: Mapping[str, str]) -> None:
        inputs = {
            str(AssetKey.from_user_string(tag.removeprefix(_INPUT_TAG))): version
            for tag, version in tags.items()
            if tag.startswith(_INPUT_TAG)
        }
        parts = [tags.get(_CODE_TAG, ""), *(inputs[key] for key in sorted(inputs))]
        if _hash(parts) == tags.get(_VERSION_TAG):
            self._hashed[tags[_VERSION_TAG]] = parts

    def version(self, version: str) -> str:
        """A version that is no hash, or of something that is not known, is itself."""
        parts = self._hashed.get(version)
        return version if parts is None else f"hash of {[self.version(part) for part in parts]}"

    def row(self, storage_id: str) -> str:
        """A row that is not of these runs is itself."""
        return self._rows.get(storage_id, storage_id)

    def tags(self, tags: Mapping[str, str] | None) -> dict[str, str]:
        """The tags of an asset event, with names."""
        result = dict(tags or {})
        for tag, value in result.items():
            if tag == _VERSION_TAG or tag.startswith(_INPUT_TAG):
                result[tag] = self.version(value)
            elif tag.startswith(POINTER_TAG):
                result[tag] = self.row(value)
        return result


def _hash(parts: Sequence[str]) -> str:
    """As Dagster makes it."""
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def asset_value(event: DagsterEvent) -> Any:
    """The materialisation or the observation in an event."""
    if event.is_step_materialization:
        return event.step_materialization_data.materialization
    if event.is_asset_observation:
        return event.asset_observation_data.asset_observation
    return None
