"""What a step costs on Dagster: in process, multiprocess, Celery, step delegating, stepfleet.

    python bench/dagster_bench.py                 # everything; make bench-dagster
    python bench/dagster_bench.py --quick --modes in_process,multiprocess_forkserver
    python bench/dagster_bench.py --show bench/results/dagster.json

Each repetition runs every job once in every mode, in an order that rotates; repetition 0 is
dropped. The slow modes, which start Python or sleep a second for every step and find nothing warm,
run in the first repetitions after it only. All modes use one PostgreSQL on tmpfs with fsync and
synchronous_commit on, and every run worker is a fresh process, `python -m dagster api
execute_run`, as Dagster's default run launcher starts it. What a mode needs besides (the stack of
stepfleet; Redis and a Celery worker) lives only while its own cells are measured.

- wall_seconds: from Dagster's RUN_START event to its RUN_SUCCESS event, by their timestamps.
- process_seconds: from the start of the run worker to its exit, with the imports, which are the
  same in every mode.
- cpu_seconds: of the run worker and all its descendants, PostgreSQL, and what the mode needs
  besides (local AWS, server, worker with all its processes; Redis, Celery), while the run worker
  lives.
- pg_connections, pg_commits: of Dagster's and stepfleet's databases together, from
  pg_stat_database; in the stepfleet modes they include the end of the stack, after which the
  counters of its connections are complete.

A run that does not succeed, or whose steps are not each started and ended exactly once, voids its
cell. The bounds that the medians must keep stand in benchlib/report.py; the exit status is 1 when
one is missed or could not be judged, or a cell is void. A --quick run tells and does not judge.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from dagster import DagsterEventType, DagsterInstance
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.origin import get_python_environment_entry_point
from dagster._grpc.types import ExecuteRunArgs

from benchlib import phases, postgres, process, report, settings, shapes, stack
from benchlib.report import Sample

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent

# PostgreSQL counts the work of an idle connection at the latest after 10 s, so the counters
# before a run are complete only then.
COUNTERS_SETTLE_SECONDS = 11.0
QUICK_SETTLE_SECONDS = 2.0
# Processes of a run worker that outlive it (fork server, resource tracker) end soon after it.
LINGER_SECONDS = 5.0


class Bench:
    """One PostgreSQL, one Dagster instance, and runs on them."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.directory = directory
        self._options = options
        self.postgres = postgres.Postgres(directory, directory / "postgres.log")
        self._run_meter = process.make_meter("run", takes_orphans=True)
        self._stack_meter = process.make_meter("stack")
        home = directory / "dagster_home"
        home.mkdir()
        (home / "dagster.yaml").write_text(
            "storage:\n  postgres:\n"
            f"    postgres_url: {self.postgres.dsn('dagster')}\n"
            "telemetry:\n  enabled: false\n"
        )
        self._env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("STEPFLEET_", "DAGSTER_", "AWS_"))
        }
        self._env |= {"DAGSTER_HOME": str(home), "PYTHONPATH": python_path()}
        self._broker = f"redis://127.0.0.1:{process.free_port()}/0"
        # To record a run, Dagster reads the executor's config, which names the broker.
        os.environ[settings.BROKER_VARIABLE] = self._broker
        self.instance = DagsterInstance.from_config(str(home))

    def close(self) -> None:
        for pid in self._run_meter.pids():  # only when a run was interrupted
            os.kill(pid, signal.SIGKILL)
        self.instance.dispose()
        self.postgres.stop()
        self._run_meter.close()
        self._stack_meter.close()

    def sample(self, job: str, mode: str, rep: int) -> Sample:
        """One run of a job in a mode."""
        running = self._start_stack(mode)
        try:
            if running and running.holds_connections:
                quick = self._options.quick
                time.sleep(QUICK_SETTLE_SECONDS if quick else COUNTERS_SETTLE_SECONDS)
            return self._measure(job, mode, rep, running)
        finally:
            if running:
                running.stop()

    def _start_stack(self, mode: str) -> stack.Stack | None:
        where: dict[str, Any] = {
            "module": settings.module_of(mode),
            "directory": self.directory,
            "modules_path": BENCH,
            "env": self._env,
            "meter": self._stack_meter,
        }
        if mode in ("stepfleet", "stepfleet_polled"):
            dsn = self.postgres.dsn("stepfleet")
            return stack.StepfleetStack(self._options.stepfleet, ledger_dsn=dsn, **where)
        if mode == "celery":
            return stack.CeleryStack(self._broker, **where)
        return None

    def _measure(self, job: str, mode: str, rep: int, running: stack.Stack | None) -> Sample:
        env = self._env | (running.run_env() if running else {})
        trace = self.directory / "trace.json"
        trace.unlink(missing_ok=True)
        if mode == report.OURS:
            env[phases.TRACE_VARIABLE] = str(trace)
        run_id, arguments = self._create_run(job, mode)
        log = self.directory / "run-worker.log"
        log.unlink(missing_ok=True)
        load1 = os.getloadavg()[0]
        self._wait_for_lingerers()  # whatever the last stack has left is not this run's
        pg_before = self.postgres.counters()
        cpu_before = self._cpu()

        begun = time.monotonic()
        worker = process.start(arguments, meter=self._run_meter, log=log, env=env, cwd=BENCH)
        code = process.wait(worker, self._run_meter, settings.RUN_TIMEOUT_SECONDS)
        process_seconds = time.monotonic() - begun
        timed_out = code is None
        if timed_out:
            process.stop(worker, self._run_meter)
        self._wait_for_lingerers()

        cpu_after = self._cpu()
        own: dict[str, Any] = {}
        if isinstance(running, stack.StepfleetStack) and trace.exists():
            own["phases"] = phases.read(running.url, run_id, trace)
            own["idle_memory_share"] = running.idle_memory_share()
        if running:
            running.stop()
        self._wait_for_backends()
        pg_after = self.postgres.counters()
        cpu = {name: round(cpu_after[name] - cpu_before[name], 4) for name in cpu_after}
        log_facts = self._facts(run_id, shapes.STEPS[job])
        if log_facts["void"]:
            keep = self.directory / f"run-worker-{job}-{mode}-{rep}.log"
            shutil.copy(log, keep)
            log_facts["void"] += f"; exit {code}; {process.tail(log, 1)[:200]}"
        if timed_out:
            log_facts["void"] = f"not ended after {settings.RUN_TIMEOUT_SECONDS:.0f} s"
        return Sample(
            job=job,
            mode=mode,
            rep=rep,
            process_seconds=round(process_seconds, 4),
            cpu_seconds=round(sum(cpu.values()), 4),
            cpu=cpu,
            pg_connections=pg_after.connections - pg_before.connections,
            pg_commits=pg_after.commits - pg_before.commits,
            load1=round(load1, 2),
            **log_facts,
            **own,
        )

    def _create_run(self, job: str, mode: str) -> tuple[str, Sequence[str]]:
        """Record the run on the instance, as the webserver or the daemon does before a launch."""
        repository = ReconstructableRepository(
            ModuleCodePointer(settings.module_of(mode), "defs", working_directory=str(BENCH)),
            executable_path=sys.executable,
            entry_point=get_python_environment_entry_point(sys.executable),
        )
        recon = repository.get_reconstructable_job(job)
        run = self.instance.create_run_for_job(
            job_def=recon.get_definition(), job_code_origin=recon.get_python_origin()
        )
        arguments = ExecuteRunArgs(
            job_origin=recon.get_python_origin(),
            run_id=run.run_id,
            instance_ref=self.instance.get_ref(),
            set_exit_code_on_failure=True,
        )
        return run.run_id, arguments.get_command_args()

    def _facts(self, run_id: str, want_steps: int) -> dict[str, Any]:
        """What Dagster's event log says of a run."""
        at: dict[str, float] = {}
        starts: Counter[str] = Counter()
        ends: Counter[str] = Counter()
        entries = self.instance.all_logs(run_id)
        for entry in entries:
            event = entry.dagster_event
            if event is None:
                continue
            if event.event_type in (DagsterEventType.RUN_START, DagsterEventType.RUN_SUCCESS):
                at[event.event_type.value] = entry.timestamp
            elif event.event_type == DagsterEventType.STEP_START:
                starts[str(event.step_key)] += 1
            elif event.event_type == DagsterEventType.STEP_SUCCESS:
                ends[str(event.step_key)] += 1
        run = self.instance.get_run_by_id(run_id)
        status = run.status.value if run else "MISSING"
        void = ""
        if status != "SUCCESS" or len(at) != 2:
            void = f"run ended as {status}"
        elif len(ends) != want_steps or len(starts) != want_steps:
            void = f"{len(starts)} steps started and {len(ends)} ended of {want_steps}"
        elif max(starts.values()) > 1 or max(ends.values()) > 1:
            void = "a step was started or ended more than once"
        wall = at.get("PIPELINE_SUCCESS", 0.0) - at.get("PIPELINE_START", 0.0)
        return {
            "status": status,
            "void": void,
            "steps": len(ends),
            "events": len(entries),
            "wall_seconds": round(wall, 4) if not void else 0.0,
        }

    def _cpu(self) -> dict[str, float]:
        meters = (self._run_meter, self.postgres.meter, self._stack_meter)
        return {meter.name: meter.seconds() for meter in meters}

    def _wait_for_lingerers(self) -> None:
        """Until every process of the run has gone, so that its CPU time is complete."""
        deadline = time.monotonic() + LINGER_SECONDS
        while True:
            process.reap_orphans()
            alive = self._run_meter.pids()
            if not alive:
                return
            if time.monotonic() > deadline:
                for pid in alive:
                    os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.02)

    def _wait_for_backends(self) -> None:
        """Until all connections are closed: only then has PostgreSQL counted all of their work."""
        deadline = time.monotonic() + LINGER_SECONDS
        while self.postgres.backends() and time.monotonic() < deadline:
            time.sleep(0.05)


def python_path() -> str:
    """The benchmark's own modules, before what the caller has."""
    given = os.environ.get("PYTHONPATH", "")
    return f"{BENCH}{os.pathsep}{given}" if given else str(BENCH)


SETTINGS_OF_MODES: dict[str, Any] = {
    "in_process": {},
    "multiprocess_forkserver": {
        "max_concurrent": settings.SLOTS,
        "start_method": "forkserver",
        "preload_modules": "the code location, dagster_postgres, SQLAlchemy's dialect",
    },
    "multiprocess_spawn": {"max_concurrent": settings.SLOTS, "start_method": "spawn"},
    "celery": {
        "broker and backend": "redis-server "
        + " ".join(part or "''" for part in stack.REDIS_OPTIONS),
        "worker": " ".join(stack.CELERY_OPTIONS),
        "include": "the code location",
    },
    "step_delegating": {
        "max_concurrent": settings.SLOTS,
        "sleep_seconds": 1.0,
        "step": "dagster api execute_step, a process on this machine",
    },
    "stepfleet_polled": {
        "worker": f"default:{settings.SLOTS}",
        "host_mode": "auto",
        "sleep_seconds": 1.0,
    },
    "stepfleet": {"worker": f"default:{settings.SLOTS}", "host_mode": "auto"},
}


def meta(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """What one must know to compare the figures with others."""
    versions = {"python": platform.python_version(), "postgres": bench.postgres.version()}
    packages = ["dagster", "dagster-postgres", "sqlalchemy", "psycopg2-binary"]
    if "celery" in options.modes:
        packages += ["dagster-celery", "celery", "redis"]
        versions["redis-server"] = postgres.output([stack.find_redis(), "--version"])
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "?"
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    git = ["git", "-C", str(ROOT)]
    return {
        "begun_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": postgres.output([*git, "rev-parse", "HEAD"]),
        "dirty": bool(postgres.output([*git, "status", "--porcelain"])),
        "versions": versions,
        "kernel": platform.release(),
        "cpu_count": os.cpu_count(),
        "cpu_usable": len(os.sched_getaffinity(0)),
        "cpu_model": model[0] if model else platform.machine(),
        "load_before": os.getloadavg(),
        "fsync_us": {
            "data_directory": round(postgres.fsync_probe(options.tmp), 1),
            "repository": round(postgres.fsync_probe(ROOT), 1),
        },
        "cpu_account": "cgroup" if process.cgroup_root() else "/proc",
        "settings": {
            "postgres": postgres.SETTINGS,
            "postgres_directory": str(options.tmp),
            "slots": settings.SLOTS,
            "modes": options.modes,
            "jobs": options.jobs,
            "repetitions": options.repetitions,
            "slow_modes": [mode for mode in options.modes if mode in settings.SLOW_MODES],
            "slow_repetitions": options.slow_repetitions,
            "counters_settle_seconds": (
                QUICK_SETTLE_SECONDS if options.quick else COUNTERS_SETTLE_SECONDS
            ),
            "quick": options.quick,
            "by_mode": {mode: SETTINGS_OF_MODES[mode] for mode in options.modes},
        },
        "notes": [
            "repetition 0 is dropped in every mode; slow modes have none and fewer repetitions",
            "a run worker is a fresh process in every mode; its start is in process_seconds only",
            "pg counters of stepfleet include the end of its stack",
        ],
    }


def plan(options: argparse.Namespace) -> Iterator[tuple[int, str, str]]:
    """Repetition, job and mode of every run; the order of the modes rotates."""
    for rep in range(options.repetitions + 1):
        modes = [
            mode
            for mode in options.modes
            if mode not in settings.SLOW_MODES or 1 <= rep <= options.slow_repetitions
        ]
        shift = rep % max(len(modes), 1)
        for job in options.jobs:
            for mode in modes[shift:] + modes[:shift]:
                yield rep, job, mode


def measure(bench: Bench, options: argparse.Namespace) -> list[Sample]:
    """All samples."""
    samples: list[Sample] = []
    runs = list(plan(options))
    for rep, job, mode in runs:
        sample = bench.sample(job, mode, rep)
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
    or a bound was missed."""
    measured = report.cells(report.from_json(result["samples"]))
    verdicts = report.verdicts(measured)
    tables = [report.table(measured), report.phase_table(measured)]
    tables = [table for table in tables if table]
    if verdicts:
        tables.append(report.verdict_table(verdicts))
    print()
    print(*tables, sep="\n\n", end="\n\n")
    page, picture = out.with_suffix(".md"), out.with_suffix(".svg")
    page.write_text(report.page(result["meta"], measured, picture.name))
    picture.write_text(report.svg(measured, picture_subtitle(result["meta"])))
    print(f"{out}\n{page}\n{picture}")
    if any(cell.void for cell in measured):
        return 1
    missed = sum(not verdict.ok for verdict in verdicts)
    config = result["meta"]["settings"]
    found = {verdict.quantity for verdict in verdicts}
    unjudged = [q for q in report.expected(config["modes"], config["jobs"]) if q not in found]
    for quantity in unjudged:
        print(f"not measured: {quantity}")
    if config["quick"]:
        print(f"quick: {missed} of {len(verdicts)} bounds missed, and not judged")
        return 0
    return 1 if missed or unjudged else 0


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
    parser.add_argument("--repetitions", type=int, default=5, help="that count, in each mode")
    parser.add_argument(
        "--slow-repetitions", type=int, default=1, help=f"of {', '.join(settings.SLOW_MODES)}"
    )
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "dagster.json")
    parser.add_argument("--quick", action="store_true", help="one repetition: does it work?")
    parser.add_argument("--stepfleet", type=Path, default=ROOT / "bin" / "stepfleet")
    parser.add_argument("--tmp", type=Path, default=Path("/dev/shm"), help="where data goes")
    parser.add_argument("--keep", action="store_true", help="keep logs and databases")
    parser.add_argument("--show", type=Path, help="print and draw a result file again")
    options = parser.parse_args(arguments)
    options.stepfleet = options.stepfleet.resolve()
    if options.quick:
        options.repetitions = options.slow_repetitions = 1
    if not 1 <= options.slow_repetitions <= options.repetitions:
        parser.error("want at least 1 repetition, and no more slow ones than others")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.show:
        return show(json.loads(options.show.read_text()), options.show)
    if any(mode.startswith("stepfleet") for mode in options.modes):
        stack.find_binary(options.stepfleet)
    if "celery" in options.modes:
        stack.find_redis()
    process.become_reaper()
    # So that a termination cleans up as an interrupt does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    directory = Path(tempfile.mkdtemp(prefix="stepfleet-bench-", dir=options.tmp))
    with ExitStack() as closing:
        if options.keep:
            print(f"keeping {directory}")
        else:
            closing.callback(shutil.rmtree, directory, ignore_errors=True)
        bench = Bench(directory, options)
        closing.callback(bench.close)
        facts = meta(bench, options)
        samples = measure(bench, options)
        facts["load_after"] = os.getloadavg()
    result = {"meta": facts, "samples": [asdict(sample) for sample in samples]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    return show(result, options.out)


if __name__ == "__main__":
    sys.exit(main())
