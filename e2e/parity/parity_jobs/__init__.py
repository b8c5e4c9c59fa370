"""The code location of the parity suite: every job in three variants, one for each executor."""

from dagster import Definitions

from parity_jobs import assets, daemons, dynamic, interrupts, processes, retries
from parity_jobs.case import Case

_THEMES = {
    "retries": retries,
    "dynamic": dynamic,
    "assets": assets,
    "processes": processes,
    "daemons": daemons,
    "interrupts": interrupts,
}

CASES: dict[str, tuple[Case, ...]] = {name: module.CASES for name, module in _THEMES.items()}

defs = Definitions.merge(*(module.definitions() for module in _THEMES.values()))
