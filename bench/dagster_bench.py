"""What a step costs on Dagster: in process, multiprocess, Celery, step delegating, stepfleet.

    python bench/dagster_bench.py                     # everything; make bench-dagster
    python bench/dagster_bench.py --publish dagster-2 # a second run, kept beside the first
    python bench/dagster_bench.py --quick --modes in_process,stepfleet --out /tmp/quick.json
    python bench/dagster_bench.py --show bench/results/dagster.json

Each repetition runs every job once in every mode, in an order that rotates; repetition 0 is
dropped. The slow modes, which start Python or sleep a second for every step, run in the first
repetitions after it only. All modes use one PostgreSQL on tmpfs with fsync and synchronous_commit
on, and every run worker is a fresh process, `python -m dagster api execute_run`, as Dagster's
default run launcher starts it. What a mode needs besides (the stack of stepfleet; Redis and a
Celery worker) lives only while its own cells are measured. After all that, run_start.py measures
the start of a run.

- wall_seconds: from Dagster's RUN_START event to its RUN_SUCCESS event, by their timestamps.
- process_seconds: from the start of the run worker to its exit, with the imports, which are the
  same in every mode.
- cpu_seconds: of the run worker and all its descendants, PostgreSQL, and what the mode needs
  besides (local AWS, server, worker with all its processes; Redis, Celery), while the run worker
  lives.
- cpu_seconds per step: what one step more costs. From the CPU of a job that of a run of one step in
  the same mode and repetition is taken off; the rest is divided by the steps less one.
- pg_connections, pg_commits: of Dagster's and stepfleet's databases together, from
  pg_stat_database; in the stepfleet modes they include the end of the stack, after which the
  counters of its connections are complete.

A run that does not succeed, or whose steps are not each started and ended exactly once, voids its
cell. The bounds stand in benchlib/bounds.py; the exit status is 1 when one is missed, or could not
be judged though its modes were asked for, or a cell is void. A --quick run tells and does not
judge. Without --out the result is published in bench/results: only the whole benchmark, and only
from a work tree without changes.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import run_start
from benchlib import bench, bounds, facts, postgres, process, publish, report, settings, stack
from benchlib.samples import Sample, cells, from_json
from benchlib.settings import OURS, ROOT

NAME = "dagster"


def settings_of(mode: str, prepare: bool) -> dict[str, Any]:
    """All that differs from defaults in a mode."""
    found: dict[str, Any] = {"executor": settings.executor_config(mode)}
    if mode in (OURS, "stepfleet_polled"):
        found |= stack.fleet_settings(prepare)
    if mode == OURS:
        found["traced"] = "the executor notes submits and ends (benchlib/phases.py)"
    if mode == "celery":
        found |= stack.celery_settings()
    return found


def settings_used(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "postgres": postgres.described(),
        "postgres_directory": str(options.tmp),
        "dagster.yaml": settings.DAGSTER_SETTINGS,
        "slots": settings.SLOTS,
        "modes": options.modes,
        "jobs": options.jobs,
        "repetitions": options.repetitions,
        "slow_modes": [mode for mode in options.modes if mode in settings.SLOW_MODES],
        "slow_repetitions": options.slow_repetitions,
        "counters_settle_seconds": settle_seconds(options),
        "quick": options.quick,
        "run_start": options.run_start,
        "by_mode": {mode: settings_of(mode, options.prepare) for mode in options.modes},
    }


NOTES = (
    "repetition 0 is dropped; slow modes and celery, of which nothing stays warm, have none",
    "a run worker is a fresh process in every mode; its start is in process_seconds, not in wall",
    "pg counters of stepfleet include the end of its stack",
    "every setting of a mode that is not a default is listed below",
)


def settle_seconds(options: argparse.Namespace) -> float:
    return bench.QUICK_SETTLE_SECONDS if options.quick else bench.COUNTERS_SETTLE_SECONDS


def meta(options: argparse.Namespace, about: dict[str, Any], server: str) -> dict[str, Any]:
    """What one must know to compare the figures with others."""
    ours = any(mode.startswith(OURS) for mode in options.modes)
    return {
        **about,
        **facts.machine(options.tmp),
        "versions": facts.versions(
            server, celery="celery" in options.modes, binary=options.stepfleet if ours else None
        ),
        "settings": settings_used(options),
        "notes": NOTES,
    }


def plan(options: argparse.Namespace) -> Iterator[tuple[int, str, str]]:
    """Repetition, job and mode of every run; the order of the modes rotates."""
    for rep in range(options.repetitions + 1):
        modes = [
            mode
            for mode in options.modes
            if (rep > 0 or mode not in settings.MODES_WITHOUT_WARM_UP)
            and (rep <= options.slow_repetitions or mode not in settings.SLOW_MODES)
        ]
        shift = rep % max(len(modes), 1)
        for job in options.jobs:
            for mode in modes[shift:] + modes[:shift]:
                yield rep, job, mode


def measure(on: bench.Bench, options: argparse.Namespace) -> list[Sample]:
    """All samples."""
    samples: list[Sample] = []
    runs = list(plan(options))
    for rep, job, mode in runs:
        sample = on.sample(job, mode, rep)
        samples.append(sample)
        print(
            f"[{len(samples)}/{len(runs)}] rep {rep}{' (dropped)' if rep == 0 else ''}"
            f" {job} {mode}: wall {sample.wall_seconds:.2f} s,"
            f" process {sample.process_seconds:.2f} s, cpu {sample.cpu_seconds:.2f} s,"
            f" {sample.pg_connections} connections, {sample.pg_commits} commits,"
            f" load {sample.load1}{'  VOID: ' + sample.void if sample.void else ''}",
            flush=True,
        )
    return samples


def picture_subtitle(facts: dict[str, Any]) -> str:
    versions, config = facts["versions"], facts["settings"]
    return (
        f"medians of {config['repetitions']}; {config['slots']} steps at a time;"
        f" {facts['cpu_count']} CPUs; dagster {versions['dagster']},"
        f" PostgreSQL {versions['postgres'].split()[0]} on tmpfs; commit {facts['commit'][:10]}"
    )


def show(result: dict[str, Any], out: Path) -> int:
    """Print a result, and write it as a page and a picture beside its file. 1 when a cell is void
    or a bound was missed, or was not measured though its modes were."""
    about = result["meta"]
    config = about["settings"]
    measured = cells(from_json(result["samples"]))
    starts = run_start.part_of_page(result["run_start"]) if "run_start" in result else None
    judged = bounds.judge(measured, starts.samples if starts else ())
    tables = [report.table(measured), report.phase_table(measured), starts.table if starts else ""]
    tables += [report.verdict_table(judged)]
    print("", *(table for table in tables if table), sep="\n\n", end="\n\n")
    page, picture = out.with_suffix(".md"), out.with_suffix(".svg")
    page.write_text(report.page(about, measured, picture.name, starts))
    picture.write_text(report.svg(measured, picture_subtitle(about)))
    print(f"{out}\n{page}\n{picture}")
    print(report.summary(judged))
    void = [f"{cell.job} {cell.mode}: {cell.void}" for cell in measured if cell.void]
    void += run_start.void(result["run_start"]) if starts else []
    if void:
        print("VOID", *void, sep="\n  ")
        return 1
    wanted = bounds.expected(config["modes"], config["jobs"], config.get("run_start", False))
    unmeasured = [v.quantity for v in judged if v.value is None and v.quantity in wanted]
    if unmeasured:
        print("not measured, though its modes were asked for:", *unmeasured, sep="\n  ")
    if config["quick"]:
        print("quick: told, and not judged")
        return 0
    return 1 if unmeasured or any(verdict.missed for verdict in judged) else 0


def left_out(options: argparse.Namespace) -> list[str]:
    """What makes a run less than the whole benchmark, whose page is published."""
    reasons = [
        f"without {kind} {', '.join(missing)}"
        for kind, every, chosen in (
            ("mode", settings.MODES, options.modes),
            ("job", settings.JOBS, options.jobs),
        )
        if (missing := [name for name in every if name not in chosen])
    ]
    if options.repetitions < settings.REPETITIONS:
        reasons.append(f"{options.repetitions} repetitions, not {settings.REPETITIONS}")
    if not options.prepare:
        reasons.append("with --no-prepare")
    if not options.run_start:
        reasons.append("with --no-run-start")
    return reasons


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    def names(allowed: Sequence[str]) -> Any:
        def split(text: str) -> list[str]:
            chosen = text.split(",")
            unknown = set(chosen) - set(allowed)
            if unknown:
                raise argparse.ArgumentTypeError(f"{unknown}: want some of {','.join(allowed)}")
            return chosen

        return split

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modes", type=names(settings.MODES), default=list(settings.MODES))
    parser.add_argument("--jobs", type=names(settings.JOBS), default=list(settings.JOBS))
    parser.add_argument(
        "--repetitions", type=int, default=settings.REPETITIONS, help="that count, in each mode"
    )
    parser.add_argument(
        "--slow-repetitions", type=int, default=1, help=f"of {', '.join(settings.SLOW_MODES)}"
    )
    parser.add_argument(
        "--no-run-start", dest="run_start", action="store_false", help="without run_start.py"
    )
    parser.add_argument(
        "--no-prepare",
        dest="prepare",
        action="store_false",
        help="server and worker with their default, without prepared statements",
    )
    parser.add_argument(
        "--publish",
        metavar="NAME",
        default=NAME,
        help="write bench/results/NAME.json, .md and .svg; default: %(default)s",
    )
    parser.add_argument(
        "--publish-unclean", action="store_true", help="also from a work tree with changes"
    )
    parser.add_argument(
        "--out", type=Path, help="write this file, .md and .svg beside it, and publish nothing"
    )
    parser.add_argument("--quick", action="store_true", help="one repetition: does it work?")
    parser.add_argument("--stepfleet", type=Path, default=ROOT / "bin" / "stepfleet")
    parser.add_argument("--tmp", type=Path, default=Path("/dev/shm"), help="where data goes")
    parser.add_argument("--keep", action="store_true", help="keep logs and databases")
    parser.add_argument("--show", type=Path, help="print and draw a result file again")
    options = parser.parse_args(arguments)
    options.stepfleet = options.stepfleet.resolve()
    if options.quick:
        options.repetitions = options.slow_repetitions = 1
    options.run_start = options.run_start and OURS in options.modes
    if not 1 <= options.slow_repetitions <= options.repetitions:
        parser.error("want at least 1 repetition, and no more slow ones than others")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.show:
        return show(json.loads(options.show.read_text()), options.show)
    ours = any(mode.startswith(OURS) for mode in options.modes)
    if ours:
        stack.find_binary(options.stepfleet)
    if "celery" in options.modes:
        stack.find_redis()
    about = facts.source()
    unclean = facts.objections(about, options.stepfleet if ours else None)
    out = publish.destination(
        "dagster_bench.py",
        options.publish,
        options.out,
        partial=left_out(options),
        unclean=unclean,
        forced=options.publish_unclean,
    )
    process.become_reaper()
    # So that a termination cleans up as an interrupt does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    begun = time.monotonic()
    result = steps(options, about | {"unclean": unclean})
    write(result, out)
    if options.run_start:
        result["run_start"] = run_start.run(
            options.stepfleet,
            options.tmp,
            prepare=options.prepare,
            repetitions=2 if options.quick else run_start.REPETITIONS,
        )
    result["meta"]["elapsed_seconds"] = round(time.monotonic() - begun)
    write(result, out)
    return show(result, out)


def steps(options: argparse.Namespace, about: dict[str, Any]) -> dict[str, Any]:
    """Measures all that is in the samples."""
    directory = Path(tempfile.mkdtemp(prefix="stepfleet-bench-", dir=options.tmp))
    setup = bench.Setup(
        options.stepfleet, prepare=options.prepare, settle_seconds=settle_seconds(options)
    )
    with ExitStack() as closing:
        if options.keep:
            print(f"keeping {directory}")
        else:
            closing.callback(shutil.rmtree, directory, ignore_errors=True)
        on = bench.Bench(directory, setup)
        closing.callback(on.close)
        found = meta(options, about, on.postgres.version())
        samples = measure(on, options)
        found["load_after"] = os.getloadavg()
    return {"meta": found, "samples": [asdict(sample) for sample in samples]}


def write(result: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
