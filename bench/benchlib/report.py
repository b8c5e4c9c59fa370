"""Samples to medians, tables, verdicts, and a picture."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

from benchlib import phases
from benchlib.settings import JOBS, MODES

OURS = "stepfleet"
COLORS = {"stepfleet": "#2f7f79", "stepfleet_polled": "#8fbfba", "in_process": "#5b6875"}
COLOR_OF_OTHERS = "#e0a458"


@dataclass(frozen=True)
class Bound:
    """What stepfleet may take at most of a quantity, as a share of another mode's in the same run.
    `aim` is what we would like."""

    job: str
    name: str  # a field of Sample
    mode: str
    must: float
    aim: float | None = None


BOUNDS = (
    Bound("chain50", "wall_seconds", "in_process", 1.2, 0.8),
    Bound("chain50", "wall_seconds", "multiprocess_forkserver", 1 / 5, 1 / 10),
    Bound("chain50", "wall_seconds", "celery", 1 / 17, 1 / 34),
    Bound("fanout100", "wall_seconds", "in_process", 1.0, 0.6),
    Bound("chain50", "cpu_seconds", "in_process", 1.5, 1.0),
    Bound("fanout100", "cpu_seconds", "in_process", 1.5, 1.0),
    Bound("chain50", "pg_connections", "in_process", 1 / 3),
    Bound("fanout100", "pg_connections", "in_process", 1 / 3),
    Bound("chain50", "pg_commits", "in_process", 1.0, 0.5),
    Bound("fanout100", "pg_commits", "in_process", 1.0, 0.5),
)


@dataclass(frozen=True)
class Verdict:
    """A measured quantity that has a bound. Figures from elsewhere can be judged beside those of
    the samples: what is needed is a name, a value and what it must be."""

    quantity: str
    value: float
    must: float
    aim: float | None

    @property
    def ok(self) -> bool:
        return self.value <= self.must


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

    def median(self, name: str) -> float:
        return float(statistics.median(getattr(s, name) for s in self.samples if s.rep > 0))


def cells(samples: Iterable[Sample]) -> list[Cell]:
    """The cells that were measured, jobs and modes in their own order."""
    table: dict[tuple[str, str], Cell] = {}
    for sample in samples:
        key = (sample.job, sample.mode)
        table.setdefault(key, Cell(*key)).samples.append(sample)
    return [table[job, mode] for job in JOBS for mode in MODES if (job, mode) in table]


def expected(modes: Sequence[str], jobs: Sequence[str]) -> list[str]:
    """The quantities that a run of these modes and jobs must judge."""
    if OURS not in modes:
        return []
    names = [_quantity(b) for b in BOUNDS if b.job in jobs and b.mode in modes]
    return names + ([OWN_P50, OWN_P99, IDLE_MEMORY] if CHAIN in jobs else [])


def _quantity(bound: Bound) -> str:
    return f"{bound.job}: {bound.name}, {OURS} / {bound.mode}"


def verdicts(measured: Sequence[Cell]) -> list[Verdict]:
    """The bounds of which both sides were measured."""
    good = {(cell.job, cell.mode): cell for cell in measured if not cell.void}
    judged: list[Verdict] = []
    for bound in BOUNDS:
        ours, theirs = good.get((bound.job, OURS)), good.get((bound.job, bound.mode))
        if ours and theirs:
            # Steps are the same in both, so a ratio of totals is one of figures per step.
            value = ours.median(bound.name) / theirs.median(bound.name)
            judged.append(Verdict(_quantity(bound), value, bound.must, bound.aim))
    return judged + _own_verdicts(good.get((CHAIN, OURS)))


# In a chain no step waits for a slot, so what lies between submit and process is all ours.
CHAIN = "chain50"
OWN_P50 = f"{CHAIN}: our own part of a step, ms, p50"
OWN_P99 = f"{CHAIN}: our own part of a step, ms, p99"
IDLE_MEMORY = "private memory, idle child / fresh interpreter"
# The executor now and then reads a step's end before it hears of it. Of fewer than these the times
# say nothing of the step.
TIMED_SHARE = 0.9


def _own_verdicts(ours: Cell | None) -> list[Verdict]:
    """What is measured of stepfleet alone."""
    counted = [s for s in ours.samples if s.rep > 0] if ours else []
    own = sorted(1000 * seconds for s in counted if s.phases for seconds in phases.own(s.phases))
    judged: list[Verdict] = []
    if own and len(own) >= TIMED_SHARE * sum(s.steps for s in counted):
        judged.append(Verdict(OWN_P50, statistics.median(own), 15.0, 8.0))
        judged.append(Verdict(OWN_P99, p99(own), 50.0, 25.0))
    shares = [s.idle_memory_share for s in counted if s.idle_memory_share is not None]
    if counted and len(shares) == len(counted):
        judged.append(Verdict(IDLE_MEMORY, statistics.median(shares), 0.25, 0.12))
    return judged


def phase_table(measured: Sequence[Cell]) -> str:
    """Medians of the phases of a chain's step under stepfleet; nothing where there are none."""
    cell = next((c for c in measured if (c.job, c.mode) == (CHAIN, OURS) and not c.void), None)
    counted = (
        [s.phases for s in cell.samples if s.rep > 0 and any(s.phases.values())] if cell else []
    )
    if not counted:
        return ""
    rows = [["phase of a step of the chain", "whose", "p50 ms", "p99 ms"]]
    for name, _, _ in phases.PHASES:
        values = sorted(1000 * seconds for sample in counted for seconds in sample[name])
        whose = "stepfleet" if name in phases.OURS else "Dagster"
        rows.append([name, whose, f"{statistics.median(values):.1f}", f"{p99(values):.1f}"])
    return align(rows, left=2)


def verdict_table(judged: Sequence[Verdict]) -> str:
    rows = [["", "quantity", "measured", "must be <=", "aim"]]
    for verdict in judged:
        aim = "-" if verdict.aim is None else f"{verdict.aim:.3f}"
        word = "PASS" if verdict.ok else "FAIL"
        rows.append([word, verdict.quantity, f"{verdict.value:.3f}", f"{verdict.must:.3f}", aim])
    return align(rows, left=2)


def _rows(measured: Sequence[Cell]) -> list[list[str]]:
    """Medians, and the wall time of each mode as a multiple of stepfleet's (else in_process's)."""
    base = OURS if any(cell.mode == OURS for cell in measured) else "in_process"
    bases = {cell.job: cell for cell in measured if cell.mode == base and not cell.void}
    head = ["job", "mode", "runs", "wall s", f"x {base}", "process s", "cpu s", "ms cpu/step"]
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
                str(sum(sample.rep > 0 for sample in cell.samples)),
                f"{wall:.2f}",
                ratio,
                f"{cell.median('process_seconds'):.2f}",
                f"{cpu:.2f}",
                f"{1000 * cpu / steps:.0f}",
                f"{cell.median('pg_connections') / steps:.1f}",
                f"{cell.median('pg_commits') / steps:.1f}",
            ]
        )
    return rows


def table(measured: Sequence[Cell]) -> str:
    return align(_rows(measured), left=2)


def align(rows: Sequence[Sequence[str]], left: int) -> str:
    """Columns of one width, the first ones to the left. A row that is too short, a void one, may
    run over."""
    columns = len(rows[0])
    widths = [max(len(row[i]) for row in rows if len(row) == columns) for i in range(columns)]
    lines: list[str] = []
    for row in rows:
        parts = [
            text.ljust(widths[i]) if i < left or len(row) < columns else text.rjust(widths[i])
            for i, text in enumerate(row)
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def p99(ordered: Sequence[float]) -> float:
    """Of figures in ascending order."""
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def written_by(script: str, meta: dict[str, Any]) -> str:
    """The sentence below a page's title."""
    changed = " with changes" if meta["dirty"] else ""
    return (
        f"Written by `{script}`; every sample is in the JSON file beside it."
        f" Begun {meta['begun_at']}, commit {meta['commit'][:10]}{changed}. Medians."
    )


def measured_with(meta: dict[str, Any]) -> list[str]:
    """A page's last section: versions, the machine as far as it was looked at, notes, settings."""
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    load = f"load before {meta['load_before'][0]:.2f}, after {meta['load_after'][0]:.2f}"
    probe = ", ".join(f"{where} {us} us" for where, us in meta["fsync_us"].items())
    model = f" ({meta['cpu_model']})" if "cpu_model" in meta else ""
    account = f"; CPU from {meta['cpu_account']}" if "cpu_account" in meta else ""
    facts = [
        f"{versions}; Linux {meta['kernel']}",
        f"{meta['cpu_count']} CPUs{model}; {load}; fsync of 8 KiB: {probe}{account}",
        *meta["notes"],
    ]
    return [
        "## Measured with",
        "\n".join(f"- {fact}" for fact in facts),
        "```json\n" + json.dumps(meta["settings"], indent=1) + "\n```",
    ]


def page(meta: dict[str, Any], measured: Sequence[Cell], picture: str) -> str:
    """The result as a page: tables, and the versions and settings that they were measured with."""
    rows = _rows(measured)
    void = [row for row in rows if len(row) < len(rows[0])]
    parts = [
        "# No-op steps on Dagster: what the execution of a step costs",
        written_by("bench/dagster_bench.py", meta),
        f"![bars of the table]({picture})",
        _markdown([row for row in rows if row not in void]),
        *(f"{row[0]} {row[1]}: {row[2]}" for row in void),
    ]
    judged = verdicts(measured)
    if judged:
        bounds = verdict_table(judged)
        parts += ["## Bounds", f"```\n{bounds}\n```"]
    table_of_phases = phase_table(measured)
    if table_of_phases:
        parts += ["## Phases", f"```\n{table_of_phases}\n```"]
    parts += measured_with(meta)
    return "\n\n".join(parts) + "\n"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def svg(measured: Sequence[Cell], subtitle: str) -> str:
    """A bar for each mode, wall and CPU seconds side by side; void cells are named, not drawn."""
    row, top, label = 20, 66, 190
    jobs = [job for job in JOBS if any(cell.job == job for cell in measured)]
    height = top + 30 + sum(36 + row * sum(c.job == job for c in measured) for job in jobs)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 {height}"'
        f' width="920" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="920" height="{height}" fill="#ffffff"/>',
        '<text x="20" y="24" font-size="16" font-weight="bold">No-op steps on Dagster:'
        " what the execution of a step costs</text>",
        f'<text x="20" y="42" fill="#555555">{escape(subtitle)}</text>',
    ]
    panels = (("wall_seconds", "wall, s", label), ("cpu_seconds", "CPU, all processes, s", 560))
    for _, title, left in panels:
        parts.append(f'<text x="{left}" y="{top + 4}" font-weight="bold">{title}</text>')
    y = top
    for job in jobs:
        y += 36
        cells_of_job = [cell for cell in measured if cell.job == job]
        parts.append(f'<text x="20" y="{y - 8}" font-weight="bold">{escape(job)}</text>')
        for i, cell in enumerate(cells_of_job):
            base = y + i * row + 14
            parts.append(f'<text x="{label - 8}" y="{base}" text-anchor="end">{cell.mode}</text>')
        for name, _, left in panels:
            parts += _bars(cells_of_job, name, left, y, row, 290)
        y += row * len(cells_of_job)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _bars(row: Sequence[Cell], name: str, left: int, top: int, step: int, width: int) -> list[str]:
    """One job's bars of one quantity, below each other; the longest has the width."""
    longest = max((cell.median(name) for cell in row if not cell.void), default=0.0) or 1.0
    parts: list[str] = []
    for i, cell in enumerate(row):
        y = top + i * step
        length = 0.0 if cell.void else width * cell.median(name) / longest
        text = "void" if cell.void else f"{cell.median(name):.1f}"
        color = COLORS.get(cell.mode, COLOR_OF_OTHERS)
        parts.append(
            f'<rect x="{left}" y="{y + 3}" width="{length:.1f}" height="{step - 6}"'
            f' fill="{color}"/>'
        )
        parts.append(f'<text x="{left + length + 5:.1f}" y="{y + 14}">{text}</text>')
    return parts


def from_json(samples: Iterable[dict[str, Any]]) -> list[Sample]:
    """Samples of a result file, to print or draw it again."""
    return [Sample(**sample) for sample in samples]
