"""One throw-away PostgreSQL on tmpfs, and what it says about the work it was given."""

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psycopg2

from benchlib import process
from benchlib.settings import READY_TIMEOUT_SECONDS

# Databases whose work is counted. The benchmark's own look-ups go to "postgres".
DATABASES = ("dagster", "stepfleet")

SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "256MB",
    "max_connections": "200",
    "autovacuum": "on",
}


INITDB = ("-A", "trust", "-E", "UTF8", "--locale=C")


class Counters(NamedTuple):
    """Of all counted databases together, since the server started."""

    connections: int
    commits: int


def described() -> dict[str, object]:
    """What it is started with, for a result's settings. The rest is PostgreSQL's default."""
    return {
        "options": SETTINGS | {"listen_addresses": "127.0.0.1", "unix_socket_directories": ""},
        "initdb": " ".join(INITDB),
    }


class Postgres:
    """initdb and postgres as children of the benchmark; nobody runs it when we are root."""

    def __init__(self, directory: Path, log: Path) -> None:
        self.port = process.free_port()
        self.meter = process.make_meter("postgres")
        self._user = "nobody" if os.geteuid() == 0 else None
        self.data = directory / "pg"
        self._log = log
        self.data.mkdir()
        if self._user:
            directory.chmod(0o755)
            shutil.chown(self.data, "nobody", "nogroup")
        self.data.chmod(0o700)
        self._bin = binaries()
        arguments = [str(self._bin / "initdb"), "-D", str(self.data), "-U", "postgres"]
        initdb = process.start(
            [*arguments, *INITDB, "--no-sync"],
            meter=self.meter,
            log=log,
            cwd=directory,
            user=self._user,
        )
        if process.wait(initdb, self.meter, READY_TIMEOUT_SECONDS) != 0:
            raise RuntimeError(f"initdb: see {log}\n{process.tail(log)}")
        options = {**SETTINGS, "port": str(self.port), "listen_addresses": "127.0.0.1"}
        options["unix_socket_directories"] = ""
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._server = process.start(
            [str(self._bin / "postgres"), "-D", str(self.data), *flags],
            meter=self.meter,
            log=log,
            cwd=directory,
            user=self._user,
            death_signal=signal.SIGQUIT,
        )
        self._wait_until_ready()
        for database in DATABASES:
            self.execute(f"CREATE DATABASE {database}")

    def dsn(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        connection = psycopg2.connect(self.dsn("postgres"))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def version(self) -> str:
        return str(self.execute("SHOW server_version")[0][0])

    def counters(self) -> Counters:
        names = ", ".join(f"'{name}'" for name in DATABASES)
        ((connections, commits),) = self.execute(
            "SELECT coalesce(sum(sessions), 0)::bigint, coalesce(sum(xact_commit), 0)::bigint"
            f" FROM pg_stat_database WHERE datname IN ({names})"
        )
        return Counters(int(str(connections)), int(str(commits)))

    def backends(self) -> int:
        """Connections that are open now in the counted databases."""
        names = ", ".join(f"'{name}'" for name in DATABASES)
        ((number,),) = self.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            f" AND datname IN ({names})"
        )
        return int(str(number))

    def stop(self) -> None:
        process.stop(self._server, self.meter, signal.SIGINT)
        self.meter.close()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg2.OperationalError as err:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"PostgreSQL is not up: see {self._log}\n{process.tail(self._log)}"
                    ) from err
                time.sleep(0.05)


def binaries() -> Path:
    """The directory of initdb and postgres: $POSTGRES_BIN, PATH, Debian's place, a wheel's."""
    candidates = [Path(os.environ["POSTGRES_BIN"])] if "POSTGRES_BIN" in os.environ else []
    found = shutil.which("postgres")
    if found:
        candidates.append(Path(found).resolve().parent)
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for candidate in candidates:
        if (candidate / "postgres").exists() and (candidate / "initdb").exists():
            return candidate
    raise SystemExit("No PostgreSQL found. Set POSTGRES_BIN to the directory of its binaries.")


def fsync_probe(directory: Path, number: int = 100) -> float:
    """Median microseconds of appending 8 KiB and fsync in the directory."""
    times: list[float] = []
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        for _ in range(number):
            begun = time.perf_counter()
            file.write(b"\0" * 8192)
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begun)
    return sorted(times)[number // 2] * 1e6
