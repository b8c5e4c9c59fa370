"""What some modes need beside Dagster and PostgreSQL: stepfleet's local AWS, server and worker, or
Redis and a Celery worker."""

import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchlib import process
from benchlib.settings import BROKER_VARIABLE, READY_TIMEOUT_SECONDS, SLOTS


class Stack:
    """Processes that are started before a cell and stopped after it, so that no other mode runs
    beside them."""

    # Whether its processes keep connections to PostgreSQL, whose work is counted late.
    holds_connections = False

    def __init__(
        self, *, directory: Path, modules_path: Path, env: Mapping[str, str], meter: process.Meter
    ) -> None:
        self._directory = directory
        self._modules_path = modules_path
        self._env = dict(env)
        self._meter = meter
        self._processes: list[subprocess.Popen[bytes]] = []

    def run_env(self) -> dict[str, str]:
        """What the run worker needs to know."""
        return {}

    def stop(self) -> None:
        """In the reverse order of the start: a worker first, so that it can close its session."""
        while self._processes:
            process.stop(self._processes.pop(), self._meter, signal.SIGTERM)

    def _log(self, name: str) -> Path:
        return self._directory / f"stack-{name}.log"

    def _start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        started = process.start(
            command,
            meter=self._meter,
            log=self._log(name),
            env=self._env,
            cwd=self._modules_path,
        )
        self._processes.append(started)
        return started

    def _check_alive(self) -> None:
        for started in self._processes:
            if started.poll() is not None:
                command = " ".join(str(part) for part in started.args)  # type: ignore[union-attr]
                logs = sorted(self._directory.glob("stack-*.log"))
                raise RuntimeError(
                    f"{command} exited with {started.returncode}:\n"
                    + "\n".join(f"{log.name}: {process.tail(log)}" for log in logs)
                )

    def _wait(self, what: str, ready: Callable[[], str]) -> None:
        """Until ready returns nothing; what it returns says what is still missing."""
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        while missing := ready():
            self._check_alive()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} is not ready: {missing}")
            time.sleep(0.05)

    def _wait_for_port(self, port: int) -> None:
        def ready() -> str:
            with socket.socket() as probe:
                refused = probe.connect_ex(("127.0.0.1", port))
            return os.strerror(refused) if refused else ""

        self._wait(f"port {port}", ready)

    def _wait_until_ready(self, url: str) -> None:
        def ready() -> str:
            try:
                with urllib.request.urlopen(url, timeout=2) as response:
                    response.read()
                    return ""
            except urllib.error.HTTPError as err:
                return err.read().decode(errors="replace")
            except OSError as err:
                return str(err)

        self._wait(url, ready)


# What differs from the defaults of server and worker. Prepared statements are off by default, for
# some poolers do not track them. Here is none, as in most installations.
PREPARE = {"STEPFLEET_PREPARE": "true"}


def server_options(run_slots: int = 0) -> tuple[str, ...]:
    """Of `stepfleet server`, its address aside."""
    return ("--queue", "default", *(("--queue", "runs") if run_slots else ()), "--create-queues")


def worker_options(slots: int = SLOTS, run_slots: int = 0) -> tuple[str, ...]:
    """Of `stepfleet worker`, without the address of its probes, the module and the Python."""
    runs = ("--queue", f"runs:{run_slots}") if run_slots else ()
    return ("--queue", f"default:{slots}", *runs, "--name", "w1")


def fleet_settings(prepare: bool, run_slots: int = 0) -> dict[str, Any]:
    """All that a stack of stepfleet is given, addresses aside, for a result's settings."""
    return {
        "environment of server and worker": PREPARE if prepare else {},
        "server": " ".join(server_options(run_slots)),
        "worker": " ".join((*worker_options(run_slots=run_slots), "-m", "the code location")),
        "SQS": "stepfleet aws, on this machine",
        "ledger": "a database of the same PostgreSQL",
    }


class StepfleetStack(Stack):
    """Local AWS, server and one worker, from the built binary."""

    holds_connections = True

    def __init__(
        self,
        binary: Path,
        *,
        ledger_dsn: str,
        module: str,
        directory: Path,
        modules_path: Path,
        env: Mapping[str, str],
        meter: process.Meter,
        prepare: bool = True,
        slots: int = SLOTS,
        run_slots: int = 0,
    ) -> None:
        super().__init__(directory=directory, modules_path=modules_path, env=env, meter=meter)
        self._binary = str(binary)
        self._module = module
        aws, server, probes = (process.free_port() for _ in range(3))
        self.url = f"http://127.0.0.1:{server}"
        self._env |= {
            "STEPFLEET_URL": self.url,
            "STEPFLEET_DATABASE_URL": ledger_dsn,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{aws}",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        if prepare:
            self._env = PREPARE | self._env
        try:
            self._run("migrate")
            self._start_part("aws", "--listen", f"127.0.0.1:{aws}")
            self._wait_for_port(aws)
            self._start_part(
                "server",
                *("--listen", f"127.0.0.1:{server}", *server_options(run_slots)),
            )
            self._wait_until_ready(f"{self.url}/readyz")
            self._start_part(
                "worker",
                *worker_options(slots, run_slots),
                *("--listen", f"127.0.0.1:{probes}"),
                *("-m", module, "--python", sys.executable),
            )
            self._wait_until_ready(f"http://127.0.0.1:{probes}/readyz")
        except BaseException:
            self.stop()
            raise

    def run_env(self) -> dict[str, str]:
        return {"STEPFLEET_URL": self.url}

    def idle_memory_share(self) -> float | None:
        """Private memory of a child that waits, as a share of what a fresh interpreter needs that
        has imported the project. None when no child waits."""
        table = process.processes()
        templates = {
            pid
            for pid in self._meter.pids()
            if _command(pid)[-2:] == ["dagster_stepfleet.host", "template"]
        }
        children = [pid for pid, (parent, _, _) in table.items() if parent in templates - {pid}]
        sizes = [size for pid in children if (size := process.private_bytes(pid))]
        if not sizes:
            return None
        code = (
            f"import {self._module}, dagster_postgres, psycopg2\n"
            "from benchlib import process\nimport os\nprint(process.private_bytes(os.getpid()))"
        )
        fresh = subprocess.run(
            [sys.executable, "-c", code],
            env=self._env,
            cwd=self._modules_path,
            capture_output=True,
            check=True,
            timeout=READY_TIMEOUT_SECONDS,
        )
        return round(statistics.median(sizes) / int(fresh.stdout), 4)

    def _start_part(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        return self._start(f"stepfleet-{name}", self._binary, name, *arguments)

    def _run(self, name: str) -> None:
        done = self._start_part(name)
        self._processes.remove(done)
        if process.wait(done, self._meter, READY_TIMEOUT_SECONDS) != 0:
            raise RuntimeError(f"stepfleet {name}: {process.tail(self._log(f'stepfleet-{name}'))}")


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    except OSError:
        return []


# Redis as a broker that loses its queue when it dies: the fastest setting.
REDIS_OPTIONS = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
# What `dagster-celery worker start` passes on, and its users then add; -O fair is Celery's default
# since 4.0. The worker has imported the code before its first step.
CELERY_OPTIONS = ("--prefetch-multiplier=1", "-O", "fair", "--concurrency", str(SLOTS))
CELERY_LOGGING = ("--loglevel", "INFO")  # which tells when it is ready


def celery_settings() -> dict[str, Any]:
    """What Redis and the Celery worker are given, addresses aside, for a result's settings."""
    return {
        "broker and backend": "redis-server " + " ".join(part or "''" for part in REDIS_OPTIONS),
        "worker": " ".join((*CELERY_OPTIONS, *CELERY_LOGGING, "-I", "the code location")),
    }


class CeleryStack(Stack):
    """redis-server and one Celery worker, as `dagster-celery worker start` starts it.

    That command is itself only a parent that waits: the worker is started without it, so that it
    dies with the benchmark. Its own processes ask to be killed when it dies. (SIGQUIT, on which
    it should end with them, now and then leaves it waiting for itself.)
    """

    def __init__(
        self,
        broker: str,
        *,
        module: str,
        directory: Path,
        modules_path: Path,
        env: Mapping[str, str],
        meter: process.Meter,
    ) -> None:
        super().__init__(directory=directory, modules_path=modules_path, env=env, meter=meter)
        self._broker = broker
        port = broker.rpartition(":")[2].partition("/")[0]
        config = directory / "celery_config"
        config.mkdir(exist_ok=True)
        # The module in which dagster_celery.app looks for its settings.
        (config / "dagster_celery_config.py").write_text(
            f"broker_url = {broker!r}\nresult_backend = {broker!r}\n"
        )
        self._env["PYTHONPATH"] = f"{self._env['PYTHONPATH']}{os.pathsep}{config}"
        self._env[BROKER_VARIABLE] = broker
        try:
            self._start(
                "redis", find_redis(), *REDIS_OPTIONS, "--port", port, "--dir", str(directory)
            )
            self._wait_for_port(int(port))
            log = self._log("celery")
            log.unlink(missing_ok=True)
            self._start(
                "celery",
                *(sys.executable, "-m", "celery", "-A", "dagster_celery.app", "worker"),
                *(*CELERY_OPTIONS, "-I", module, "-n", "w1@%h", *CELERY_LOGGING),
            )
            self._wait(
                "the Celery worker",
                lambda: "" if " ready." in process.tail(log, 200) else process.tail(log, 1) or "?",
            )
        except BaseException:
            self.stop()
            raise

    def run_env(self) -> dict[str, str]:
        return {BROKER_VARIABLE: self._broker}


def find_redis() -> str:
    """The redis-server program, or the reason why mode celery cannot run."""
    found = shutil.which("redis-server")
    if not found:
        raise SystemExit(
            "There is no redis-server, which mode celery needs (Debian's package redis-server)."
            " Install it, or leave the mode out with --modes."
        )
    return found


def find_binary(path: Path) -> Path:
    """The built binary, or the reason why mode stepfleet cannot run."""
    if not os.access(path, os.X_OK):
        raise SystemExit(
            f"{path} is not there. Build it with `go build -o bin/stepfleet ./cmd/stepfleet`, or"
            " leave the stepfleet modes out: --modes in_process,multiprocess_forkserver"
        )
    return path
