"""Single runs, gathered to cells of one job in one mode."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchlib.settings import JOBS, MODES, SINGLE


@dataclass
class Sample:
    """One run. Repetition 0 warms caches and is not in any median."""

    job: str
    mode: str
    rep: int
    status: str
    void: str  # why the sample does not count; empty when it does
    steps: int
    events: int
    wall_seconds: float
    process_seconds: float
    cpu_seconds: float
    cpu: dict[str, float]  # of the run worker and its children, postgres, stack
    pg_connections: int
    pg_commits: int
    load1: float
    # Of stepfleet: the seconds of each phase of each step (phases.py), and the private memory of
    # an idle child as a share of a fresh interpreter's with the project imported.
    phases: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    idle_memory_share: float | None = None


@dataclass
class Cell:
    """One job in one mode."""

    job: str
    mode: str
    samples: list[Sample] = field(default_factory=list[Sample])

    @property
    def void(self) -> str:
        """The first reason for which the cell does not count; one bad run is enough."""
        return next((f"rep {s.rep}: {s.void}" for s in self.samples if s.void), "")

    @property
    def counted(self) -> list[Sample]:
        return [s for s in self.samples if s.rep > 0]

    def median(self, name: str) -> float:
        return float(statistics.median(getattr(s, name) for s in self.counted))


Cells = Mapping[tuple[str, str], Cell]


def cells(samples: Iterable[Sample]) -> list[Cell]:
    """The cells that were measured, jobs and modes in their own order."""
    table: dict[tuple[str, str], Cell] = {}
    for sample in samples:
        key = (sample.job, sample.mode)
        table.setdefault(key, Cell(*key)).samples.append(sample)
    return [table[job, mode] for job in JOBS for mode in MODES if (job, mode) in table]


def good(measured: Iterable[Cell]) -> Cells:
    """The cells that count, by job and mode."""
    return {(cell.job, cell.mode): cell for cell in measured if not cell.void and cell.counted}


def step_cpu_seconds(found: Cells, job: str, mode: str) -> float | None:
    """What one step more costs: of each repetition the CPU time of the job, less that of the job
    of one step, by the steps between them; the median of that.

    The start of the run worker and its imports are the same in every mode and have nothing to do
    with steps; so they are in neither. None where one of the jobs was not measured.
    """
    many, one = found.get((job, mode)), found.get((SINGLE, mode))
    if many is None or one is None:
        return None
    fixed = {s.rep: s for s in one.counted}
    figures = [
        (s.cpu_seconds - fixed[s.rep].cpu_seconds) / (s.steps - fixed[s.rep].steps)
        for s in many.counted
        if s.rep in fixed and s.steps > fixed[s.rep].steps
    ]
    return statistics.median(figures) if figures else None


def from_json(samples: Iterable[dict[str, Any]]) -> list[Sample]:
    """Samples of a result file, to print or draw it again."""
    return [Sample(**sample) for sample in samples]
