"""Takes out of a text what differs between any two runs: ids, times, paths, processes."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"on_(?:inprocess|multiproc|delegated|stepfleet)"), "on_VARIANT"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "UUID"),
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?(?: ?[+-]\d\d:?\d\d|Z)?"), "TIME"),
    (re.compile(r"\b\d+(?:\.\d+)?(?:ms|s|µs)\b"), "DURATION"),
    # A retry's delay is in its event.
    (re.compile(r"in \d+\.\d+ seconds"), "in DURATION"),
    (re.compile(r"\b0x[0-9a-f]+\b"), "ADDRESS"),
    (re.compile(r"\bpid:? \d+"), "pid PID"),
    (re.compile(r" - (RUN\d*) - \d+ - "), r" - \1 - PID - "),
)


class Normaliser:
    """Knows the ids of one case's runs, and where their Dagster keeps its files."""

    def __init__(self, run_ids: Iterable[str], home: Path | None = None) -> None:
        self._names = {run_id: f"RUN{n or ''}" for n, run_id in enumerate(run_ids)}
        if home is not None:
            self._names[str(home)] = "HOME"

    def text(self, text: str) -> str:
        for run_id, name in self._names.items():
            text = text.replace(run_id, name)
        for pattern, replacement in _RULES:
            text = pattern.sub(replacement, text)
        return text

    def value(self, value: Any) -> Any:
        """The same for every text in a plain structure."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(k)): self.value(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(v) for v in value]
        return value
