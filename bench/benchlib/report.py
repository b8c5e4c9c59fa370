"""Samples to medians, a table, and a picture."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

from benchlib.settings import JOBS, MODES

COLORS = {
    "in_process": "#9aa5b1",
    "multiprocess_forkserver": "#e0a458",
    "stepfleet": "#2f7f79",
}


# What stepfleet's wall may be at most, as a share of another mode's in the same run.
BOUNDS = {("chain50", "multiprocess_forkserver"): 0.5}


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

    def median(self, name: str) -> float:
        return float(statistics.median(getattr(s, name) for s in self.samples if s.rep > 0))


def cells(samples: Iterable[Sample]) -> list[Cell]:
    """The cells that were measured, jobs and modes in their own order."""
    table: dict[tuple[str, str], Cell] = {}
    for sample in samples:
        key = (sample.job, sample.mode)
        table.setdefault(key, Cell(*key)).samples.append(sample)
    return [table[job, mode] for job in JOBS for mode in MODES if (job, mode) in table]


def missed(measured: Sequence[Cell]) -> list[str]:
    """The bounds that were measured and not met, as sentences."""
    walls = {(c.job, c.mode): c.median("wall_seconds") for c in measured if not c.void}
    sentences: list[str] = []
    for (job, mode), bound in BOUNDS.items():
        ours, theirs = walls.get((job, "stepfleet")), walls.get((job, mode))
        if ours is not None and theirs is not None and ours > bound * theirs:
            sentences.append(
                f"{job}: stepfleet took {ours:.2f} s, {ours / theirs:.2f} of {mode}'s"
                f" {theirs:.2f} s; at most {bound} is wanted"
            )
    return sentences


def table(measured: Sequence[Cell]) -> str:
    """Medians, and the wall time of each mode as a multiple of stepfleet's (else in_process's)."""
    base = "stepfleet" if any(cell.mode == "stepfleet" for cell in measured) else "in_process"
    bases = {cell.job: cell for cell in measured if cell.mode == base and not cell.void}
    head = ["job", "mode", "wall s", f"x {base}", "process s", "cpu s", "ms cpu/step"]
    head += ["pg conn/step", "commits/step"]
    rows = [head]
    for cell in measured:
        if cell.void:
            rows.append([cell.job, cell.mode, f"VOID: {cell.void}"])
            continue
        steps = cell.median("steps")
        wall, cpu = cell.median("wall_seconds"), cell.median("cpu_seconds")
        ratio = f"{wall / bases[cell.job].median('wall_seconds'):.2f}" if cell.job in bases else "-"
        rows.append(
            [
                cell.job,
                cell.mode,
                f"{wall:.2f}",
                ratio,
                f"{cell.median('process_seconds'):.2f}",
                f"{cpu:.2f}",
                f"{1000 * cpu / steps:.0f}",
                f"{cell.median('pg_connections') / steps:.1f}",
                f"{cell.median('pg_commits') / steps:.1f}",
            ]
        )
    widths = [max(len(row[i]) for row in rows if len(row) > 3) for i in range(len(head))]
    lines: list[str] = []
    for row in rows:
        parts = [
            text.ljust(widths[i]) if i < 2 or len(row) == 3 else text.rjust(widths[i])
            for i, text in enumerate(row)
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def svg(measured: Sequence[Cell], subtitle: str) -> str:
    """Grouped bars, wall and CPU seconds side by side; void cells are named, not drawn."""
    width, height, top, bottom = 920, 400, 84, 56
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<text x="20" y="24" font-size="16" font-weight="bold">No-op steps on Dagster:'
        " what the execution of a step costs</text>",
        f'<text x="20" y="42" fill="#555555">{escape(subtitle)}</text>',
    ]
    x = 20
    for mode in MODES:
        if any(cell.mode == mode for cell in measured):
            parts.append(f'<rect x="{x}" y="52" width="12" height="12" fill="{COLORS[mode]}"/>')
            parts.append(f'<text x="{x + 17}" y="62">{mode}</text>')
            x += 40 + 7 * len(mode)
    for panel, (name, title) in enumerate(
        (("wall_seconds", "wall time, s"), ("cpu_seconds", "CPU of all processes, s"))
    ):
        left = 20 + panel * 450
        parts += _panel(measured, name, title, left, top, 430, height - bottom)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _panel(
    measured: Sequence[Cell], name: str, title: str, left: int, top: int, width: int, floor: int
) -> list[str]:
    """One group of bars for each job."""
    highest = max((cell.median(name) for cell in measured if not cell.void), default=0.0) or 1.0
    scale = (floor - top - 36) / highest
    jobs = [job for job in JOBS if any(cell.job == job for cell in measured)]
    parts = [
        f'<text x="{left}" y="{top + 12}" font-weight="bold">{title}</text>',
        f'<line x1="{left}" y1="{floor}" x2="{left + width}" y2="{floor}" stroke="#333333"/>',
    ]
    group = width / max(len(jobs), 1)
    for i, job in enumerate(jobs):
        row = [cell for cell in measured if cell.job == job]
        bar = min(44.0, group * 0.8 / max(len(row), 1))
        middle = left + group * (i + 0.5)
        for j, cell in enumerate(row):
            x = middle + (j - len(row) / 2) * bar
            value = 0.0 if cell.void else cell.median(name)
            label = "void" if cell.void else f"{value:.1f}"
            y = floor - value * scale
            parts.append(
                f'<rect x="{x + 2:.1f}" y="{y:.1f}" width="{bar - 4:.1f}"'
                f' height="{value * scale:.1f}" fill="{COLORS[cell.mode]}"/>'
            )
            parts.append(
                f'<text x="{x + bar / 2:.1f}" y="{y - 4:.1f}" text-anchor="middle">{label}</text>'
            )
        parts.append(
            f'<text x="{middle:.1f}" y="{floor + 18}" text-anchor="middle">{escape(job)}</text>'
        )
    return parts


def from_json(samples: Iterable[dict[str, Any]]) -> list[Sample]:
    """Samples of a result file, to print or draw it again."""
    return [Sample(**sample) for sample in samples]
