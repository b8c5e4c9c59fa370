"""Takes out of a text what differs between any two runs: ids, times, paths, processes.

docs/dagster.md lists RULES and NAMES; a test holds it to that.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


def _in_order(found: re.Match[str]) -> str:
    return f"{found[1]} RESOURCES[{', '.join(sorted(found[2].split(', ')))}]"


# What a pattern of each kind becomes.
RULES: Mapping[str, tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = {
    "VARIANT": (re.compile(r"on_(?:inprocess|multiproc|delegated|stepfleet)"), "on_VARIANT"),
    "UUID": (
        re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"),
        "UUID",
    ),
    "TIME": (
        re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?(?: ?[+-]\d\d:?\d\d|Z)?"),
        "TIME",
    ),
    # As Dagster writes them: 0.83ms, 2.1s, 4m52s, 1h4m.
    "DURATION": (re.compile(r"\b(?:\d+(?:\.\d+)?(?:ms|s|µs)|\d+m\d+s|\d+h\d+m)\b"), "DURATION"),
    "ADDRESS": (re.compile(r"\b0x[0-9a-f]+\b"), "ADDRESS"),
    "PID": (re.compile(r"(\bpid:? )\d+|( - RUN\d* - )\d+(?= - )"), r"\1\2PID"),
    # Dagster has them in a set.
    "RESOURCES": (re.compile(r"\b(initialization of resources) \[([^]]*)\]", re.I), _in_order),
}
# What ids and paths are called. Of several runs of a case the second is RUN1, and so on.
NAMES = ("RUN", "HOME", "BACKFILL", "TICK")
_ID_TAGS = {"dagster/backfill": "BACKFILL", "dagster/tick": "TICK"}


class Normaliser:
    """Knows the ids of one case's runs, and where their Dagster keeps its files."""

    def __init__(self, run_ids: Iterable[str], home: Path | None = None) -> None:
        self._names = {run_id: _numbered("RUN", n) for n, run_id in enumerate(run_ids)}
        self._tags: dict[str, list[str]] = {}
        if home is not None:
            self._names[str(home)] = "HOME"

    def text(self, text: str) -> str:
        for run_id, name in self._names.items():
            text = text.replace(run_id, name)
        for pattern, replacement in RULES.values():
            text = pattern.sub(replacement, text)
        return text

    def tag(self, tag: str, value: str) -> str:
        """The value of a run's tag."""
        if tag not in _ID_TAGS:
            return self.text(value)
        seen = self._tags.setdefault(tag, [])
        if value not in seen:
            seen.append(value)
        return _numbered(_ID_TAGS[tag], seen.index(value))

    def value(self, value: Any) -> Any:
        """The same for every text in a plain structure."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(k)): self.value(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(v) for v in value]
        return value


def _numbered(name: str, number: int) -> str:
    return f"{name}{number or ''}"
