"""A Dagster without anything of stepfleet: what the references run on.

Its runs are launched by Dagster's own DefaultRunLauncher below code servers of its own, whose
environment is the user's. It has its own database on the PostgreSQL of the stack, since two daemons
on one database would take each other's runs. Its dagster.yaml is the stack's, without the run
launcher and what that needs.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import psycopg2
import yaml
from dagster import DagsterInstance
from sqlalchemy.engine import make_url

from parity_jobs import LOCATIONS

START_TIMEOUT_SECONDS = 120.0
STOP_TIMEOUT_SECONDS = 20.0
_DATABASE = "stock"
_URL_VARIABLE = "DAGSTER_DATABASE_URL"


class Stock:
    """Code servers, webserver and daemon, below a keeper that ends with this process."""

    def __init__(
        self, directory: Path, *, project: Path, environ: Mapping[str, str], home: Path, url: str
    ) -> None:
        """`home` is the stack's DAGSTER_HOME, `url` that of its server, for a user that may create
        databases there."""
        self.directory = directory
        self._project = project
        directory.mkdir()
        database_url = _create_database(url)
        _write_home(directory, home)
        # First, so that the tables are there before several processes want to create them.
        self.instance = open_instance(directory, database_url, directory / "harness")
        self._environ = {
            **environ,
            # As in an activated virtual environment.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environ.get('PATH', '')}",
            "DAGSTER_HOME": str(directory),
            _URL_VARIABLE: database_url,
        }
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "paritylib.keeper"],
            cwd=project,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        web, ports = _free_port(), {module: _free_port() for module in LOCATIONS}
        self.url = f"http://127.0.0.1:{web}"
        servers = [
            {"grpc_server": {"host": "127.0.0.1", "port": port, "location_name": module}}
            for module, port in ports.items()
        ]
        workspace_file = self.directory / "workspace.yaml"
        workspace_file.write_text(yaml.safe_dump({"load_from": servers}))
        workspace = ("--workspace", str(workspace_file))
        for module, port in ports.items():
            self._run(
                f"code-{module}",
                *("dagster", "api", "grpc", "--lazy-load-user-code"),
                *("--use-python-environment-entry-point", "--host", "127.0.0.1"),
                *("--port", str(port), "--location-name", module),
                *("--working-directory", str(self._project), "-m", module),
            )
        self._await("a code server", lambda: all(_listens(port) for port in ports.values()))
        self._run(
            "webserver",
            *("dagster_webserver", "--host", "127.0.0.1", "--port", str(web), *workspace),
        )
        self._run("daemon", "dagster._daemon", "run", *workspace)
        self._await("the webserver", lambda: _answers(self.url + "/server_info"))

    def _run(self, name: str, module: str, *args: str) -> None:
        command = {
            "args": [sys.executable, "-m", module, *args],
            "env": self._environ,
            "cwd": str(self._project),
            "log": str(self.directory / f"stock-{name}.log"),
        }
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(json.dumps(command).encode() + b"\n")
        self._keeper.stdin.flush()

    def _await(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not condition():
            if time.monotonic() > deadline or self._keeper.poll() is not None:
                logs = "\n".join(path.read_text() for path in self.logs)
                raise RuntimeError(f"stock Dagster: {what} is not there:\n{logs}")
            time.sleep(0.1)

    @property
    def logs(self) -> list[Path]:
        return sorted(self.directory.glob("stock-*.log"))

    def stop(self) -> None:
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        try:
            self._keeper.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
            raise


def open_instance(home: Path, url: str, into: Path) -> DagsterInstance:
    """Opens the instance of a DAGSTER_HOME for this process, which has two of them and so cannot
    have the URL of each in the variable that dagster.yaml names."""
    settings = yaml.safe_load((home / "dagster.yaml").read_text())
    settings["storage"] = {"postgres": {"postgres_url": url}}
    into.mkdir(mode=0o700)
    (into / "dagster.yaml").write_text(yaml.safe_dump(settings))
    return DagsterInstance.from_config(str(into))


def _write_home(directory: Path, home: Path) -> None:
    settings = yaml.safe_load((home / "dagster.yaml").read_text())
    del settings["run_launcher"], settings["run_monitoring"]["max_resume_run_attempts"]
    for key in ("local_artifact_storage", "compute_logs"):
        config = settings[key]["config"]
        config["base_dir"] = str(directory / Path(config["base_dir"]).relative_to(home))
    (directory / "dagster.yaml").write_text(yaml.safe_dump(settings))


def _create_database(url: str) -> str:
    """Returns the URL of a new database on the server of another."""
    parsed = make_url(url)
    # SQLAlchemy's URL names the driver, which the driver itself does not take.
    dsn = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {_DATABASE}")
    connection.close()
    return parsed.set(database=_DATABASE).render_as_string(hide_password=False)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
