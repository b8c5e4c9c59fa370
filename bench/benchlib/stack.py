"""The stack of mode stepfleet: local AWS, server and one worker, from the built binary."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from benchlib import process
from benchlib.settings import READY_TIMEOUT_SECONDS, SLOTS


class Stack:
    """Started before a cell and stopped after it, so that no other mode runs beside it."""

    def __init__(
        self,
        binary: Path,
        *,
        ledger_dsn: str,
        directory: Path,
        modules_path: Path,
        module: str,
        env: Mapping[str, str],
        meter: process.Meter,
    ) -> None:
        self._binary = binary
        self._directory = directory
        self._modules_path = modules_path
        self._meter = meter
        self._processes: list[subprocess.Popen[bytes]] = []
        aws, server, probes = (process.free_port() for _ in range(3))
        self.url = f"http://127.0.0.1:{server}"
        self._env = {
            **env,
            "STEPFLEET_URL": self.url,
            "STEPFLEET_DATABASE_URL": ledger_dsn,
            "STEPFLEET_PREPARE": "true",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{aws}",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        try:
            self._run("migrate")
            self._start("aws", "--listen", f"127.0.0.1:{aws}")
            self._wait_for_port(aws)
            self._start(
                "server",
                *("--listen", f"127.0.0.1:{server}", "--queue", "default", "--create-queues"),
            )
            self._wait_until_ready(f"{self.url}/readyz")
            self._start(
                "worker",
                *("--queue", f"default:{SLOTS}", "--name", "w1"),
                *("--listen", f"127.0.0.1:{probes}"),
                *("-m", module, "--python", sys.executable),
            )
            self._wait_until_ready(f"http://127.0.0.1:{probes}/readyz")
        except BaseException:
            self.stop()
            raise

    def run_env(self) -> dict[str, str]:
        """What the run worker needs to know."""
        return {"STEPFLEET_URL": self.url}

    def stop(self) -> None:
        """The worker first, so that it can close its session."""
        while self._processes:
            process.stop(self._processes.pop(), self._meter, signal.SIGTERM)

    def _log(self, name: str) -> Path:
        return self._directory / f"stepfleet-{name}.log"

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        started = process.start(
            [str(self._binary), name, *arguments],
            meter=self._meter,
            log=self._log(name),
            env=self._env,
            cwd=self._modules_path,
        )
        self._processes.append(started)
        return started

    def _run(self, name: str) -> None:
        done = self._start(name)
        self._processes.remove(done)
        if process.wait(done, self._meter, READY_TIMEOUT_SECONDS) != 0:
            raise RuntimeError(f"stepfleet {name}: {process.tail(self._log(name))}")

    def _check_alive(self) -> None:
        for started in self._processes:
            if started.poll() is not None:
                name = str(started.args[1])  # type: ignore[index]
                raise RuntimeError(
                    f"stepfleet {name} exited with {started.returncode}:"
                    f"\n{process.tail(self._log(name))}"
                )

    def _wait_for_port(self, port: int) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        while True:
            self._check_alive()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing listens on port {port}")
            time.sleep(0.02)

    def _wait_until_ready(self, url: str) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        answer = ""
        while True:
            self._check_alive()
            try:
                with urllib.request.urlopen(url, timeout=2) as response:
                    response.read()
                    return
            except urllib.error.HTTPError as err:
                answer = err.read().decode(errors="replace")
            except OSError as err:
                answer = str(err)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{url} is not ready: {answer}")
            time.sleep(0.05)


def find_binary(path: Path) -> Path:
    """The built binary, or the reason why mode stepfleet cannot run."""
    if not os.access(path, os.X_OK):
        raise SystemExit(
            f"{path} is not there. Build it with `go build -o bin/stepfleet ./cmd/stepfleet`, or"
            " leave mode stepfleet out: --modes in_process,multiprocess_forkserver"
        )
    return path
