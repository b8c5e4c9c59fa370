"""Tables, page and picture of a result."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from benchlib import phases
from benchlib.bounds import Verdict, judge, p99
from benchlib.samples import Cell, good, step_cpu_seconds
from benchlib.settings import CHAIN, JOBS, OURS, SINGLE

COLORS = {"stepfleet": "#2f7f79", "stepfleet_polled": "#8fbfba", "in_process": "#5b6875"}
COLOR_OF_OTHERS = "#e0a458"


def phase_table(measured: Sequence[Cell]) -> str:
    """Medians of the phases of a chain's step under stepfleet; nothing where there are none."""
    cell = next((c for c in measured if (c.job, c.mode) == (CHAIN, OURS) and not c.void), None)
    counted = [s.phases for s in cell.counted if any(s.phases.values())] if cell else []
    if not counted:
        return ""
    rows = [["phase of a step of the chain", "whose", "p50 ms", "p99 ms"]]
    for name, _, _ in phases.PHASES:
        values = sorted(1000 * seconds for sample in counted for seconds in sample[name])
        whose = "stepfleet" if name in phases.OURS else "Dagster"
        rows.append([name, whose, f"{statistics.median(values):.1f}", f"{p99(values):.1f}"])
    return align(rows, left=2)


def verdict_table(judged: Sequence[Verdict]) -> str:
    rows = [["", "quantity", "measured", "must be <=", "aim", ""]]
    for verdict in judged:
        value, aim = (
            "-" if figure is None else f"{figure:.3f}" for figure in (verdict.value, verdict.aim)
        )
        figures = [value, f"{verdict.must:.3f}", aim]
        rows.append([verdict.word, verdict.quantity, *figures, verdict.note])
    return align(rows, left=2, last_left=True)


def summary(judged: Sequence[Verdict]) -> str:
    """The sentence above the bounds: all of them, whatever the run has measured."""
    missed = sum(verdict.missed for verdict in judged)
    unmeasured = sum(verdict.value is None for verdict in judged)
    kept = len(judged) - missed - unmeasured
    return (
        f"Of {len(judged)} bounds {kept} were kept, {missed} missed"
        f" and {unmeasured} not measured in this run."
    )


def fewer_repetitions(measured: Sequence[Cell], repetitions: int) -> str:
    """Says which modes ran fewer repetitions than the others, and how many; nothing when none."""
    runs: dict[str, int] = {}
    for cell in measured:
        runs[cell.mode] = min(len(cell.counted), runs.get(cell.mode, repetitions))
    fewer = ", ".join(f"{mode} {n}" for mode, n in runs.items() if n < repetitions)
    if not fewer:
        return ""
    return (
        f"Medians of {repetitions} repetitions, except of these modes, which no bound compares:"
        f" {fewer}. Theirs are single figures, not to be relied upon."
    )


def _rows(measured: Sequence[Cell]) -> list[list[str]]:
    """Medians, and the wall time of each mode as a multiple of stepfleet's (else in_process's)."""
    base = OURS if any(cell.mode == OURS for cell in measured) else "in_process"
    found = good(measured)
    head = [
        "job",
        "mode",
        "runs",
        "wall s",
        f"x {base}",
        "process s",
        "cpu s",
        "cpu ms/step, whole run",
    ]
    head += ["cpu ms/step, marginal", "pg conn/step", "commits/step"]
    rows = [head]
    for cell in measured:
        if (cell.job, cell.mode) not in found:
            rows.append([cell.job, cell.mode, f"VOID: {cell.void or 'no repetition that counts'}"])
            continue
        steps = cell.median("steps")
        wall, cpu = cell.median("wall_seconds"), cell.median("cpu_seconds")
        other = found.get((cell.job, base))
        more = step_cpu_seconds(found, cell.job, cell.mode)
        rows.append(
            [
                cell.job,
                cell.mode,
                str(len(cell.counted)),
                f"{wall:.2f}",
                f"{wall / other.median('wall_seconds'):.2f}" if other else "-",
                f"{cell.median('process_seconds'):.2f}",
                f"{cpu:.2f}",
                f"{1000 * cpu / steps:.0f}",
                "-" if more is None else f"{1000 * more:.0f}",
                f"{cell.median('pg_connections') / steps:.1f}",
                f"{cell.median('pg_commits') / steps:.1f}",
            ]
        )
    return rows


def table(measured: Sequence[Cell]) -> str:
    return align(_rows(measured), left=2)


def align(rows: Sequence[Sequence[str]], left: int, last_left: bool = False) -> str:
    """Columns of one width, the first ones to the left, and the last one if it is to be. A row that
    is too short, a void one, may run over."""
    columns = len(rows[0])
    widths = [max(len(row[i]) for row in rows if len(row) == columns) for i in range(columns)]
    lines: list[str] = []
    for row in rows:
        parts = [
            text.ljust(widths[i])
            if i < left or len(row) < columns or (last_left and i == columns - 1)
            else text.rjust(widths[i])
            for i, text in enumerate(row)
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


@dataclass(frozen=True)
class RunStart:
    """What run_start.py has measured in the same run: its samples, and how a page shows them."""

    samples: Sequence[dict[str, Any]]
    table: str
    about: str
    settings: dict[str, Any]


CPU_EXPLAINED = (
    "CPU is that of all processes from the start of the run worker to its end: run worker and"
    " descendants; PostgreSQL with all its processes; local AWS, server, worker, template and"
    " children of stepfleet; Redis and the Celery worker. `whole run` divides it by the"
    " number of steps, and so has in it what a run costs before its first step: the start of an"
    " interpreter, its imports, loading the code location. `marginal` has not: in each"
    f" repetition the CPU of the job `{SINGLE}`, one step, in the same mode is taken off, and the"
    " rest divided by the number of steps less one. The bounds are on this."
)


def written_by(script: str, meta: dict[str, Any]) -> str:
    """The sentence below a page's title."""
    changed = " with changes" if meta["dirty"] else ""
    changed += "".join(f"; {reason}" for reason in meta.get("unclean", ()))
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
    if "elapsed_seconds" in meta:
        facts.append(f"it took {meta['elapsed_seconds'] / 60:.0f} minutes")
    return [
        "## Measured with",
        "\n".join(f"- {fact}" for fact in facts),
        "```json\n" + json.dumps(meta["settings"], indent=1) + "\n```",
    ]


def page(
    meta: dict[str, Any], measured: Sequence[Cell], picture: str, starts: RunStart | None = None
) -> str:
    """The result as a page: tables, and the versions and settings that they were measured with."""
    rows = _rows(measured)
    void = [row for row in rows if len(row) < len(rows[0])]
    judged = judge(measured, starts.samples if starts else ())
    parts = [
        "# No-op steps on Dagster: what the execution of a step costs",
        written_by("bench/dagster_bench.py", meta),
        f"![bars of the table]({picture})",
        _markdown([row for row in rows if row not in void]),
        *(f"{row[0]} {row[1]}: {row[2]}" for row in void),
        CPU_EXPLAINED,
        fewer_repetitions(measured, meta["settings"]["repetitions"]),
        "## Bounds",
        summary(judged),
        f"```\n{verdict_table(judged)}\n```",
    ]
    table_of_phases = phase_table(measured)
    if table_of_phases:
        parts += ["## Phases", f"```\n{table_of_phases}\n```"]
    if starts:
        parts += ["## The start of a run", starts.about, f"```\n{starts.table}\n```"]
        parts += ["```json\n" + json.dumps(starts.settings, indent=1) + "\n```"]
    parts += measured_with(meta)
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def svg(measured: Sequence[Cell], subtitle: str) -> str:
    """A bar for each mode, wall and CPU seconds side by side; void cells are named, not drawn."""
    row, top, label = 20, 66, 190
    jobs = [job for job in JOBS[1:] if any(cell.job == job for cell in measured)]
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
