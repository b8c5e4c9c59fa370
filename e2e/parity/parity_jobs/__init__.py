"""The code locations of the parity suite: every job in three variants, one for each executor."""

from dagster import Definitions

from parity_jobs import assets, catalogue, daemons, dynamic, interrupts, processes, retries
from parity_jobs.case import Case

_THEMES = {
    "retries": retries,
    "dynamic": dynamic,
    "assets": assets,
    "processes": processes,
    "daemons": daemons,
    "interrupts": interrupts,
}

# The modules that are code locations.
LOCATIONS = ("parity_jobs", "parity_jobs.catalogue")

CASES: dict[str, tuple[Case, ...]] = {
    "catalogue": catalogue.CASES,
    **{name: module.CASES for name, module in _THEMES.items()},
}

defs = Definitions.merge(*(module.definitions() for module in _THEMES.values()))
