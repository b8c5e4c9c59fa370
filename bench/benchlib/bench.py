"""One PostgreSQL, one Dagster instance, and runs on them that are measured."""

import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dagster import DagsterEventType, DagsterInstance
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.origin import get_python_environment_entry_point
from dagster._grpc.types import ExecuteRunArgs

from benchlib import phases, postgres, process, settings, shapes, stack
from benchlib.samples import Sample
from benchlib.settings import BENCH, CHAIN, OURS, SLOTS

# PostgreSQL counts the work of an idle connection at the latest after 10 s, so the counters
# before a run are complete only then.
COUNTERS_SETTLE_SECONDS = 11.0
QUICK_SETTLE_SECONDS = 2.0
# Processes of a run worker that outlive it (fork server, resource tracker) end soon after it.
LINGER_SECONDS = 5.0


@dataclass(frozen=True)
class Setup:
    """How all runs of a benchmark are measured."""

    stepfleet: Path
    prepare: bool = True
    settle_seconds: float = COUNTERS_SETTLE_SECONDS
    # Whether the figures that only stepfleet has are taken: phases, memory of an idle child.
    details: bool = True
    # Whether PostgreSQL's work is counted from before the stack's start, not from the run's. Then
    # nothing need settle, and what the stack does at its start is among it.
    counts_stack: bool = False


@dataclass(frozen=True)
class Change:
    """What one run under stepfleet has otherwise than the others: variables of its stack and its
    run worker, and steps at a time."""

    env: Mapping[str, str] = field(default_factory=dict[str, str])
    slots: int = SLOTS


NO_CHANGE = Change()


class Bench:
    """Runs, one after the other, each in a mode."""

    def __init__(self, directory: Path, setup: Setup) -> None:
        self.directory = directory
        self._setup = setup
        self.postgres = postgres.Postgres(directory, directory / "postgres.log")
        self._run_meter = process.make_meter("run", takes_orphans=True)
        self._stack_meter = process.make_meter("stack")
        home = directory / "dagster_home"
        home.mkdir()
        (home / "dagster.yaml").write_text(settings.dagster_yaml(self.postgres.dsn("dagster")))
        self._env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(settings.FOREIGN_VARIABLES)
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

    def sample(self, job: str, mode: str, rep: int, change: Change = NO_CHANGE) -> Sample:
        """One run of a job in a mode."""
        env = self._env | dict(change.env)
        before = self.postgres.counters() if self._setup.counts_stack else None
        running = self._start_stack(mode, env, change.slots)
        try:
            if running and running.holds_connections:
                time.sleep(self._setup.settle_seconds)
            return self._measure(job, mode, rep, running, env, before)
        finally:
            if running:
                running.stop()

    def _start_stack(self, mode: str, env: Mapping[str, str], slots: int) -> stack.Stack | None:
        where: dict[str, Any] = {
            "module": settings.module_of(mode),
            "directory": self.directory,
            "modules_path": BENCH,
            "env": env,
            "meter": self._stack_meter,
        }
        if mode in (OURS, "stepfleet_polled"):
            return stack.StepfleetStack(
                self._setup.stepfleet,
                ledger_dsn=self.postgres.dsn("stepfleet"),
                prepare=self._setup.prepare,
                slots=slots,
                **where,
            )
        if mode == "celery":
            return stack.CeleryStack(self._broker, **where)
        return None

    def _measure(
        self,
        job: str,
        mode: str,
        rep: int,
        running: stack.Stack | None,
        env: Mapping[str, str],
        before: postgres.Counters | None,
    ) -> Sample:
        env = dict(env) | (running.run_env() if running else {})
        trace = self.directory / "trace.json"
        trace.unlink(missing_ok=True)
        if mode == OURS and self._setup.details:
            env[phases.TRACE_VARIABLE] = str(trace)
        run_id, arguments = self._create_run(job, mode)
        log = self.directory / "run-worker.log"
        log.unlink(missing_ok=True)
        load1 = os.getloadavg()[0]
        self._wait_for_lingerers()  # whatever the last stack has left is not this run's
        pg_before = before or self.postgres.counters()
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
            if job == CHAIN:
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
