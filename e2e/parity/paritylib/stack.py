"""The stack that ours runs on: one `stepfleet dev`, with real Dagster and PostgreSQL."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from parity_jobs import LOCATIONS

START_TIMEOUT_SECONDS = 240.0
STOP_TIMEOUT_SECONDS = 40.0
_PR_SET_PDEATHSIG = 1
_TAIL_LINES = 12
_libc = ctypes.CDLL(None, use_errno=True)


class Stack:
    """`stepfleet dev` as a child that dies with this process; its warden ends the rest."""

    def __init__(
        self, binary: Path, directory: Path, *, project: Path, environ: Mapping[str, str]
    ) -> None:
        self.directory = directory
        self._dev = directory / "dev"
        self._output = directory / "dev.out"
        parent = os.getpid()

        def die_with_parent() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(str(binary), "dev", "--dir", str(self._dev), "--python", sys.executable),
                    *(part for module in LOCATIONS for part in ("-m", module)),
                    *("--workers", "1", "--max-runs", "12"),
                    *("--queue", "default:4", "--queue", "narrow:1"),
                    *("--port-dagster", "0", "--port-server", "0"),
                    *("--port-sqs", "0", "--port-postgres", "0"),
                ],
                cwd=project,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        try:
            self._await_ready()
        except BaseException:
            self.stop()
            raise

    @property
    def state(self) -> dict[str, Any]:
        """dev.json: addresses and process ids as they are now."""
        try:
            return json.loads((self._dev / "dev.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}

    @property
    def dagster_home(self) -> Path:
        return Path(self.state["dagster_home"])

    @property
    def dagster_url(self) -> str:
        """Of the database of Dagster's storage."""
        return Path(self.state["dagster_dsn_file"]).read_text().strip()

    @property
    def owner_url(self) -> str:
        """Of the same server, for a user that may create databases."""
        url = Path(self.state["ledger_dsn_file"]).read_text().strip()
        return url.replace("postgres://", "postgresql+psycopg2://", 1)

    def await_tasks(self, run_id: str, state: str, number: int, timeout_seconds: float) -> None:
        """Waits until the ledger has that many of the run's tasks in the state."""
        token = Path(self.state["token_file"]).read_text().strip()
        request = urllib.request.Request(
            f"{self.state['urls']['server']}/v1/runs/{run_id}/tasks",
            headers={"Authorization": f"Bearer {token}"},
        )
        deadline = time.monotonic() + timeout_seconds
        found: list[str] = []
        while found.count(state) < number:
            if time.monotonic() > deadline:
                raise RuntimeError(f"run {run_id} has tasks {found}, not {number} {state}")
            time.sleep(0.1)
            with contextlib.suppress(urllib.error.HTTPError):  # not submitted yet
                with urllib.request.urlopen(request, timeout=10) as response:
                    found = [task["state"] for task in json.load(response)["tasks"]]

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its warden ends the rest
            self._process.wait()

    def tails(self, others: Iterable[Path] = ()) -> str:
        """The ends of all logs, for a failure that the runs themselves do not explain."""
        paths = [*sorted((self._dev / "logs").glob("*.log")), self._output, *others]
        return "\n".join(
            f"--- {path.name}\n"
            + "\n".join(path.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
            for path in paths
            if path.exists() and path.stat().st_size
        )

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self.state.get("ready"):
            if self._process.poll() is not None:
                raise RuntimeError(f"stepfleet dev has ended:\n{self._output.read_text()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"stepfleet dev is not ready:\n{self.tails()}")
            time.sleep(0.1)
