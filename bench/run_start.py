"""What the start of a run costs: Dagster's default run launcher, and stepfleet's.

    python bench/run_start.py                 # ten launches each, printed
    python bench/run_start.py --reps 3 --out /tmp/run_start.json

dagster_bench.py runs it after its own runs, and its result is a part of that one's: only there is
it published.

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
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
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

from benchlib import bounds, facts, postgres, process, report, settings, stack
from benchlib.settings import BENCH, READY_TIMEOUT_SECONDS, ROOT

MODULE = "benchlib.jobs_run_start"
LOCATION = "bench"
LAUNCHERS = ("default", "stepfleet")
RUN_TIMEOUT_SECONDS = 60.0
RUN_SLOTS = 2
REPETITIONS = 10


@dataclass
class Sample:
    """One launch."""

    launcher: str
    rep: int
    start_seconds: float
    launch_seconds: float
    status: str
    load1: float


class Bench:
    """One instance, a code server, a stepfleet stack, and a launcher of each kind."""

    def __init__(self, directory: Path, binary: Path, prepare: bool, closing: ExitStack) -> None:
        self.postgres = postgres.Postgres(directory, directory / "postgres.log")
        closing.callback(self.postgres.stop)
        home = directory / "dagster_home"
        home.mkdir()
        (home / "dagster.yaml").write_text(settings.dagster_yaml(self.postgres.dsn("dagster")))
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(settings.FOREIGN_VARIABLES)
        }
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
            prepare=prepare,
            run_slots=RUN_SLOTS,
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


def settings_of(prepare: bool, repetitions: int) -> dict[str, Any]:
    """What launchers and stack are given beside their defaults."""
    return {
        "repetitions": repetitions,
        "default": {
            "launcher": {},
            "code server": "dagster api grpc --use-python-environment-entry-point, kept up",
        },
        "stepfleet": {
            "launcher": {"server_url": "the stack's"},
            **stack.fleet_settings(prepare, RUN_SLOTS),
        },
    }


def measure(bench: Bench, repetitions: int) -> list[Sample]:
    samples: list[Sample] = []
    for rep in range(repetitions + 1):
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


def run(
    binary: Path, tmp: Path, *, prepare: bool = True, repetitions: int = REPETITIONS
) -> dict[str, Any]:
    """Measures: samples and settings, as a result file keeps them."""
    directory = Path(tempfile.mkdtemp(prefix="stepfleet-run-start-", dir=tmp))
    with ExitStack() as closing:
        closing.callback(shutil.rmtree, directory, ignore_errors=True)
        bench = Bench(directory, binary, prepare, closing)
        server = bench.postgres.version()
        samples = measure(bench, repetitions)
    return {
        "postgres": server,
        "settings": settings_of(prepare, repetitions),
        "samples": [asdict(sample) for sample in samples],
    }


def table(counted: Sequence[dict[str, Any]]) -> str:
    """Medians of each launcher."""
    rows = [["launcher", "runs", "start, ms", "least", "most", "launch, ms"]]
    for launcher in LAUNCHERS:
        own = [s for s in counted if s["launcher"] == launcher]
        starts = [s["start_seconds"] * 1000 for s in own]
        calls = [s["launch_seconds"] * 1000 for s in own]
        figures = (statistics.median(starts), min(starts), max(starts), statistics.median(calls))
        rows.append([launcher, str(len(starts)), *(f"{figure:.0f}" for figure in figures)])
    return report.align(rows, left=1)


ABOUT = (
    "From Dagster's RUN_STARTING event to its RUN_START event, by Dagster's default launcher and by"
    " stepfleet's in turn, on one instance; a dropped repetition first. Code server and stepfleet's"
    " stack are both up all the time. The job is one op that does nothing, under the in-process"
    " executor. `launch` is what the call of the launcher took."
)


def part_of_page(result: dict[str, Any]) -> report.RunStart:
    """What dagster_bench.py shows of it."""
    counted = [s for s in result["samples"] if s["rep"] > 0]
    return report.RunStart(
        samples=result["samples"],
        table=table(counted),
        about=ABOUT,
        settings=result["settings"],
    )


def void(result: dict[str, Any]) -> list[str]:
    """The launches whose run did not succeed."""
    return [
        f"{s['launcher']}, rep {s['rep']}: {s['status']}"
        for s in result["samples"]
        if s["status"] != DagsterRunStatus.SUCCESS.value
    ]


def show(result: dict[str, Any]) -> int:
    """Prints the medians and the bound. 1 when a sample is void or the bound was missed."""
    shown = part_of_page(result)
    judged = bounds.run_start(shown.samples)
    print("", shown.table, report.verdict_table([judged]), sep="\n\n", end="\n\n")
    for sample in void(result):
        print(f"VOID {sample}")
    return 0 if judged.ok else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reps", type=int, default=REPETITIONS, help="repetitions that count")
    parser.add_argument("--out", type=Path, help="JSON file for the samples")
    parser.add_argument("--no-prepare", action="store_true", help="without STEPFLEET_PREPARE")
    parser.add_argument("--stepfleet", type=Path, default=ROOT / "bin" / "stepfleet")
    parser.add_argument("--tmp", type=Path, default=Path("/dev/shm"), help="where data goes")
    options = parser.parse_args(arguments)
    if options.reps < 1:
        parser.error("--reps: want at least 1")
    binary = stack.find_binary(options.stepfleet.resolve())
    process.become_reaper()
    # So that a termination cleans up as an interrupt does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    meta = facts.source() | facts.machine(options.tmp)
    result = run(binary, options.tmp, prepare=not options.no_prepare, repetitions=options.reps)
    meta["versions"] = facts.versions(result["postgres"], celery=False, binary=binary)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"meta": meta, **result}, indent=1) + "\n")
        print(options.out)
    return show(result)


if __name__ == "__main__":
    sys.exit(main())
