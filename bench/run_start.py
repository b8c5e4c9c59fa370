"""What the start of a run costs: Dagster's default run launcher, and stepfleet's.

    python bench/run_start.py                 # ten launches each
    python bench/run_start.py --reps 3 --out /tmp/run_start.json

Each repetition launches one run by each launcher, in an order that alternates; repetition 0 is
dropped. Both launchers work on one instance with one PostgreSQL on tmpfs (fsync and
synchronous_commit on) and launch the same job of one code location, as Dagster's daemon does: the
RUN_STARTING event, then the launcher. The code server, which the default launcher asks to start run
workers, and stepfleet's stack run side by side; a run is launched when the one before has ended.

- start_seconds: from Dagster's RUN_STARTING event to its RUN_START event, by their timestamps.
- launch_seconds: what the call of the launcher took, for which the daemon waits.

A run that does not succeed voids its sample; then, or when the bound is missed, the command exits
with 1.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.launcher import DefaultRunLauncher, LaunchRunContext, RunLauncher
from dagster._core.origin import get_python_environment_entry_point
from dagster._core.remote_origin import RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._grpc.client import DagsterGrpcClient
from dagster_stepfleet import StepfleetRunLauncher

from benchlib import postgres, process, report, stack
from benchlib.settings import READY_TIMEOUT_SECONDS

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
MODULE = "benchlib.jobs_run_start"
LOCATION = "bench"
LAUNCHERS = ("default", "stepfleet")
RUN_TIMEOUT_SECONDS = 60.0
# The bound that issue and README state, as a part of the default launcher's time.
BOUND = 1 / 8


@dataclass
class Sample:
    """One launch."""

    launcher: str
    rep: int
    start_seconds: float
    launch_seconds: float
    status: str
    load1: float

    @property
    def void(self) -> bool:
        return self.status != DagsterRunStatus.SUCCESS.value


class Bench:
    """One instance, a code server, a stepfleet stack, and a launcher of each kind."""

    def __init__(self, directory: Path, binary: Path, closing: ExitStack) -> None:
        self.postgres = postgres.Postgres(directory, directory / "postgres.log")
        closing.callback(self.postgres.stop)
        home = directory / "dagster_home"
        home.mkdir()
        (home / "dagster.yaml").write_text(
            "storage:\n  postgres:\n"
            f"    postgres_url: {self.postgres.dsn('dagster')}\n"
            "telemetry:\n  enabled: false\n"
        )
        kept = ("STEPFLEET_", "DAGSTER_", "AWS_")
        env = {k: v for k, v in os.environ.items() if not k.startswith(kept)}
        env |= {"DAGSTER_HOME": str(home), "PYTHONPATH": str(BENCH)}
        self.instance = closing.enter_context(DagsterInstance.from_config(str(home)))
        meter = process.make_meter("run-start")
        closing.callback(meter.close)
        port = process.free_port()
        server = process.start(
            [
                *(sys.executable, "-m", "dagster", "api", "grpc", "--module-name", MODULE),
                *("--host", "127.0.0.1", "--port", str(port), "--location-name", LOCATION),
                "--use-python-environment-entry-point",
            ],
            meter=meter,
            log=directory / "code-server.log",
            env=env,
            cwd=BENCH,
        )
        closing.callback(process.stop, server, meter)
        wait_for_code(port, directory / "code-server.log")
        fleet = stack.StepfleetStack(
            binary,
            ledger_dsn=self.postgres.dsn("stepfleet"),
            directory=directory,
            modules_path=BENCH,
            module=MODULE,
            env=env,
            meter=meter,
            run_slots=2,
        )
        closing.callback(fleet.stop)
        target = GrpcServerTarget(host="127.0.0.1", port=port, socket=None, location_name=LOCATION)
        self._origin = target.create_origins()[0]
        workspace = closing.enter_context(WorkspaceProcessContext(self.instance, target))
        self._workspace = workspace.create_request_context()
        self._launchers: dict[str, RunLauncher[Any]] = {
            "default": DefaultRunLauncher(),
            "stepfleet": StepfleetRunLauncher(server_url=fleet.url),
        }
        for launcher in self._launchers.values():
            launcher.register_instance(self.instance)

    def sample(self, launcher: str, rep: int) -> Sample:
        """Launches one run and waits for its end."""
        load1 = os.getloadavg()[0]
        run = self._create_run()
        starting = DagsterEvent(DagsterEventType.PIPELINE_STARTING.value, run.job_name)
        self.instance.report_dagster_event(starting, run.run_id)
        begun = time.monotonic()
        self._launchers[launcher].launch_run(LaunchRunContext(run, self._workspace))
        launch_seconds = time.monotonic() - begun
        status = self._wait(run.run_id)
        return Sample(
            launcher=launcher,
            rep=rep,
            start_seconds=round(self._start_seconds(run.run_id), 4),
            launch_seconds=round(launch_seconds, 4),
            status=status,
            load1=round(load1, 2),
        )

    def _create_run(self) -> DagsterRun:
        repository = ReconstructableRepository(
            ModuleCodePointer(MODULE, "defs", working_directory=str(BENCH)),
            executable_path=sys.executable,
            entry_point=get_python_environment_entry_point(sys.executable),
        )
        recon = repository.get_reconstructable_job("one")
        origin = RemoteJobOrigin(RemoteRepositoryOrigin(self._origin, "__repository__"), "one")
        return self.instance.create_run_for_job(
            recon.get_definition(),
            job_code_origin=recon.get_python_origin(),
            remote_job_origin=origin,
        )

    def _wait(self, run_id: str) -> str:
        deadline = time.monotonic() + RUN_TIMEOUT_SECONDS
        while True:
            run = self.instance.get_run_by_id(run_id)
            assert run is not None
            if run.is_finished or time.monotonic() > deadline:
                return run.status.value
            time.sleep(0.05)

    def _start_seconds(self, run_id: str) -> float:
        at = {
            entry.dagster_event.event_type: entry.timestamp
            for entry in self.instance.all_logs(run_id)
            if entry.dagster_event is not None
        }
        begun = at.get(DagsterEventType.RUN_START)
        return begun - at[DagsterEventType.RUN_STARTING] if begun else 0.0


def wait_for_code(port: int, log: Path) -> None:
    """Until the code server answers."""
    client = DagsterGrpcClient(host="127.0.0.1", port=port)
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while True:
        try:
            client.ping("")
            return
        except Exception as err:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the code server: {err}\n{process.tail(log)}") from err
            time.sleep(0.1)


def facts(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """What one must know to compare the figures with others."""
    git = ["git", "-C", str(ROOT)]
    names = ("dagster", "dagster-postgres", "sqlalchemy", "psycopg2-binary")
    return {
        "begun_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": postgres.output([*git, "rev-parse", "HEAD"]),
        "dirty": bool(postgres.output([*git, "status", "--porcelain"])),
        "versions": {
            "python": platform.python_version(),
            "postgres": bench.postgres.version(),
            **{name: metadata.version(name) for name in names},
        },
        "kernel": platform.release(),
        "cpu_count": os.cpu_count(),
        "load_before": os.getloadavg(),
        "fsync_us": {"data_directory": round(postgres.fsync_probe(options.tmp), 1)},
        "settings": {
            "postgres": postgres.SETTINGS,
            "postgres_directory": str(options.tmp),
            "launchers": LAUNCHERS,
            "repetitions": options.reps,
        },
        "notes": [
            "repetition 0 is dropped for both launchers",
            "code server and stepfleet's stack are both up all the time",
            "the job is one op that does nothing, under the in-process executor",
        ],
    }


def measure(bench: Bench, options: argparse.Namespace) -> list[Sample]:
    samples: list[Sample] = []
    for rep in range(options.reps + 1):
        for launcher in LAUNCHERS if rep % 2 else LAUNCHERS[::-1]:
            sample = bench.sample(launcher, rep)
            samples.append(sample)
            print(
                f"rep {rep}{' (dropped)' if rep == 0 else ''} {launcher}:"
                f" start {sample.start_seconds * 1000:.0f} ms,"
                f" launch {sample.launch_seconds * 1000:.0f} ms, {sample.status},"
                f" load {sample.load1}",
                flush=True,
            )
    return samples


def table(counted: Sequence[Sample]) -> str:
    """Medians of each launcher, and the bound."""
    rows = [["launcher", "runs", "start, ms", "least", "most", "launch, ms"]]
    for launcher in LAUNCHERS:
        starts = [s.start_seconds * 1000 for s in counted if s.launcher == launcher]
        calls = [s.launch_seconds * 1000 for s in counted if s.launcher == launcher]
        figures = (statistics.median(starts), min(starts), max(starts), statistics.median(calls))
        rows.append([launcher, str(len(starts)), *(f"{figure:.0f}" for figure in figures)])
    return report.align(rows, left=1)


def verdict(counted: Sequence[Sample]) -> report.Verdict:
    ours, theirs = (
        statistics.median(s.start_seconds for s in counted if s.launcher == launcher)
        for launcher in ("stepfleet", "default")
    )
    return report.Verdict("run start, stepfleet / default launcher", ours / theirs, BOUND, None)


def page(about: dict[str, Any], tables: Sequence[str]) -> str:
    """The result as a page, with the versions and settings that it was measured with."""
    parts = [
        "# The start of a run: from RUN_STARTING to RUN_START",
        report.written_by("bench/run_start.py", about),
        *(f"```\n{text}\n```" for text in tables),
        *report.measured_with(about),
    ]
    return "\n\n".join(parts) + "\n"


def show(about: dict[str, Any], samples: Sequence[Sample], out: Path) -> int:
    """Prints the medians, and writes them as a page. 1 when a sample is void or the bound was
    missed."""
    counted = [s for s in samples if s.rep > 0]
    judged = verdict(counted)
    tables = [table(counted), report.verdict_table([judged])]
    print("", *tables, sep="\n\n", end="\n\n")
    out.with_suffix(".md").write_text(page(about, tables))
    print(f"{out}\n{out.with_suffix('.md')}")
    void = [s for s in counted if s.void]
    for sample in void:
        print(f"VOID {sample}")
    return 0 if judged.ok and not void else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reps", type=int, default=10, help="repetitions that count")
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "run_start.json")
    parser.add_argument("--stepfleet", type=Path, default=ROOT / "bin" / "stepfleet")
    parser.add_argument("--tmp", type=Path, default=Path("/dev/shm"), help="where data goes")
    options = parser.parse_args(arguments)
    if options.reps < 1:
        parser.error("--reps: want at least 1")
    binary = stack.find_binary(options.stepfleet.resolve())
    process.become_reaper()
    # So that a termination cleans up as an interrupt does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    directory = Path(tempfile.mkdtemp(prefix="stepfleet-run-start-", dir=options.tmp))
    with ExitStack() as closing:
        closing.callback(shutil.rmtree, directory, ignore_errors=True)
        bench = Bench(directory, binary, closing)
        about = facts(bench, options)
        samples = measure(bench, options)
        about["load_after"] = os.getloadavg()
    result = {"meta": about, "samples": [asdict(sample) for sample in samples]}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    return show(about, samples, options.out)


if __name__ == "__main__":
    sys.exit(main())
