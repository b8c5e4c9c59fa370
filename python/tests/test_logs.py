"""What a step prints, in the storage of dagster.yaml, also when nobody is left to put it there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from dagster import DagsterEventType, DagsterInstance
from dagster._core.code_pointer import ModuleCodePointer
from moto.server import ThreadedMotoServer

from dagster_stepfleet import logs, spool, uploader
from dagster_stepfleet.frames import FrameSocket
from tests import log_defs
from tests.fakes import Child, TemplateProcess, wait_dead
from tests.payloads import PYTHON, create_run, step

POINTER = ModuleCodePointer("tests.log_defs", "defs", PYTHON)
BUCKET = "logs"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="session")
def s3(credentials: None) -> Iterator[str]:
    """The URL of an S3 that has the bucket."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    _client(url).create_bucket(Bucket=BUCKET)
    yield url
    server.stop()


@pytest.fixture(scope="session", autouse=True)
def credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def spool_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spool")


@pytest.fixture(scope="session")
def loud(credentials: None, spool_directory: Path) -> Iterator[TemplateProcess]:
    template = TemplateProcess(
        [{"module": "tests.log_defs"}], **{spool.VARIABLE: str(spool_directory)}
    )
    yield template
    template.close()


@pytest.fixture(autouse=True)
def spooled(spool_directory: Path) -> Iterator[Path]:
    yield spool_directory
    for left in spool_directory.iterdir():
        left.unlink()


class Storage:
    """An instance with one of Dagster's log managers, and a reader of it on another machine."""

    def __init__(self, instance: DagsterInstance, reader: DagsterInstance | None) -> None:
        self.instance = instance
        self.reader = (reader or instance).compute_log_manager

    def keys(self, run) -> list[list[str]]:
        found = self.instance.get_records_for_run(
            run.run_id, of_type=DagsterEventType.LOGS_CAPTURED
        ).records
        events = [record.event_log_entry.dagster_event for record in found]
        return [[run.run_id, "compute_logs", e.logs_captured_data.file_key] for e in events]

    def read(self, run) -> tuple[str, str]:
        (key,) = self.keys(run)
        data = self.reader.get_log_data(key)
        return (data.stdout or b"").decode(), (data.stderr or b"").decode()

    def complete(self, run) -> bool:
        (key,) = self.keys(run)
        return self.reader.is_capture_complete(key)


def _instance(home: Path, compute_logs: str) -> DagsterInstance:
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n" + compute_logs)
    return DagsterInstance.from_config(str(home))


def _s3_yaml(s3: str, local: Path, bucket: str = BUCKET) -> str:
    return f"""
compute_logs:
  module: dagster_aws.s3.compute_log_manager
  class: S3ComputeLogManager
  config: {{bucket: {bucket}, endpoint_url: "{s3}", local_dir: "{local}", upload_interval: 1}}
"""


def _client(s3: str):
    return boto3.client("s3", endpoint_url=s3)


@pytest.fixture
def cloud(s3: str, tmp_path: Path) -> Iterator[Storage]:
    with (
        _instance(tmp_path / "home", _s3_yaml(s3, tmp_path / "worker")) as instance,
        _instance(tmp_path / "web", _s3_yaml(s3, tmp_path / "webserver")) as reader,
    ):
        yield Storage(instance, reader)


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "s3":
        yield request.getfixturevalue("cloud")
        return
    with _instance(tmp_path / "home", "") as instance:
        yield Storage(instance, None)


def _start(template: TemplateProcess) -> Child:
    child = template.fork()
    child.ready()
    return child


def _run(template: TemplateProcess, storage: Storage, op: str, **env: str):
    """Runs the op as a step of a run of its own. Returns the run, the child and the result."""
    run = create_run(storage.instance, "loud", pointer=POINTER)
    child = _start(template)
    result = child.run(*step(storage.instance, run, op), **env)
    return run, child, result


def _grant(child: Child) -> None:
    """Grants what the child asks until it ends."""
    while (frame := child.frames.receive()) is not None:
        if frame["op"] in ("start", "gate"):
            child.frames.send({"op": "granted"})


def _begin(template: TemplateProcess, storage: Storage, op: str, **env: str):
    """Starts the op and returns once its user code may run."""
    run = create_run(storage.instance, "loud", pointer=POINTER)
    child = _start(template)
    task, payload = step(storage.instance, run, op)
    child.frames.send({"op": "run", "v": 1, "task": task, "payload": payload, "env": env})
    assert child.frames.receive() == {"op": "start"}
    child.frames.send({"op": "granted"})
    return run, child


def _until(condition, seconds: float = 15.0):
    """Waits for another process to get there."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)
    return value


def _notes(spooled: Path) -> list[Path]:
    return [path for path in spooled.iterdir() if path.suffix == ".json"]


def _locked(path: Path) -> bool:
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _bury(spooled: Path) -> None:
    """Does what the worker does when it finds that a note's process is gone."""
    for path in _notes(spooled):
        assert not _locked(path)
        path.rename(path.with_suffix(".dead"))


def test_what_a_step_prints_is_stored(storage, loud, spooled):
    run, child, result = _run(loud, storage, "plain")
    assert result["success"]
    stdout, stderr = storage.read(run)
    assert stdout == "to stdout\n"
    assert "to stderr\n" in stderr and "STEP_SUCCESS" in stderr
    assert storage.complete(run)
    assert not _notes(spooled)
    assert wait_dead(child.pid)


def test_nothing_of_ours_runs_beside_user_code(storage, loud):
    run, _, _ = _run(loud, storage, "waits_alone")
    assert storage.read(run)[0] == "threads 1\nchildren 0\n"


def test_each_attempt_has_its_own_log(storage, loud):
    run = create_run(storage.instance, "loud", pointer=POINTER)
    for attempt in range(2):
        child = _start(loud)
        task, payload = step(storage.instance, run, "plain")
        assert child.run(task | {"attempt": attempt}, payload)["success"]
        child.close()
    first, second = storage.keys(run)
    assert first != second
    # In this order a webserver reads them: the first again after the second is a download before.
    for key in (first, second, first):
        assert storage.reader.get_log_data(key).stdout == b"to stdout\n"


def test_a_killed_step_leaves_all_it_has_printed(storage, loud, spooled):
    run, child, result = _run(loud, storage, "killed")
    assert result == {} and loud.exited(child.pid)["status"] == -signal.SIGKILL
    (path,) = _notes(spooled)
    note = spool.read(path)
    assert note is not None and note.log_key == storage.keys(run)[0]
    assert not storage.complete(run)
    if note.manager:
        _bury(spooled)
        uploader.Uploader(str(spooled)).look()
        assert list(spooled.iterdir()) == []
    else:
        Path(note.marker).touch()
    assert storage.complete(run)
    stdout, stderr = storage.read(run)
    assert stdout == "a line\nno line, by the descriptor, by a subprocess"
    assert "an error\n" in stderr


def test_an_interrupted_step_leaves_all_it_has_printed(cloud, loud, spooled):
    run, child, result = _run(loud, cloud, "interrupted")
    assert result["event"] == "STEP_FAILURE"
    assert loud.exited(child.pid)["status"] == 0
    if _notes(spooled):  # an exception that leaves the capture is not an end that uploads
        _bury(spooled)
        uploader.Uploader(str(spooled)).look()
    assert cloud.complete(run)
    stdout, stderr = cloud.read(run)
    assert stdout == "begun\n" and "STEP_FAILURE" in stderr


def test_a_note_is_locked_while_the_step_runs(cloud, loud, spooled, tmp_path):
    _, child = _begin(loud, cloud, "waits", RELEASE=str(tmp_path / "release"))
    (path,) = _until(lambda: _notes(spooled))
    assert _locked(path) and path.name.startswith(f"{child.pid}-")
    os.kill(child.pid, signal.SIGKILL)
    assert loud.exited(child.pid)["status"] == -signal.SIGKILL
    assert not _locked(path)


def test_a_running_step_is_shown(cloud, loud, spooled, tmp_path):
    release = tmp_path / "release"
    run, child = _begin(loud, cloud, "waits", RELEASE=str(release))
    _until(lambda: cloud.keys(run))
    service = uploader.Uploader(str(spooled))
    _until(lambda: service.look() and cloud.read(run)[0])
    assert cloud.read(run)[0] == "begun\n" and not cloud.complete(run)
    release.touch()
    _grant(child)
    assert cloud.complete(run) and cloud.read(run)[0] == "begun\nended\n"
    assert not service.look()


def test_a_late_upload_leaves_nothing_behind(cloud, loud, tmp_path):
    """The step has ended between the look and the upload."""
    run, _, _ = _run(loud, cloud, "plain")
    (key,) = cloud.keys(run)
    manager = cloud.instance.compute_log_manager
    uploader.upload_new(manager, key, {})
    uploader.finish(manager, key)
    assert not list((tmp_path / "worker").rglob("*.out"))
    assert cloud.read(run)[0] == "to stdout\n"


def test_a_long_log_is_cut_where_dagster_cuts_it(cloud, loud, spooled, monkeypatch):
    monkeypatch.setenv("DAGSTER_TRUNCATE_COMPUTE_LOGS_UPLOAD_BYTES", "4")
    run, child, _ = _run(loud, cloud, "killed")
    loud.exited(child.pid)
    manager = cloud.instance.compute_log_manager
    (key,) = cloud.keys(run)
    uploader.upload_new(manager, key, {})
    assert cloud.read(run)[0] == "a li"
    _bury(spooled)
    uploader.Uploader(str(spooled)).look()
    assert cloud.complete(run) and cloud.read(run)[0] == "a li"


def test_a_storage_that_is_away_gets_the_log_later(s3, loud, spooled, tmp_path, capfd):
    bucket = "made-later"
    yaml = _s3_yaml(s3, tmp_path / "worker", bucket)
    with _instance(tmp_path / "home", yaml) as instance:
        away = Storage(instance, None)
        run, child, result = _run(loud, away, "plain")
        assert result["success"], "a step does not fail for its log"
        loud.exited(child.pid)
        _bury(spooled)
        service = uploader.Uploader(str(spooled))
        service.look()
        assert "cannot be uploaded" in capfd.readouterr().err
        _client(s3).create_bucket(Bucket=bucket)
        service.look(last=True)
        assert list(spooled.iterdir()) == []
        assert away.complete(run) and away.read(run)[0] == "to stdout\n"


@contextlib.contextmanager
def _uploader(spooled: Path) -> Iterator[tuple[subprocess.Popen, FrameSocket]]:
    """The process that a worker starts."""
    ours, theirs = socket.socketpair()
    environ = {
        **os.environ,
        "STEPFLEET_HOST_FD": str(theirs.fileno()),
        spool.VARIABLE: str(spooled),
    }
    command = [sys.executable, "-m", "dagster_stepfleet.host", "uploader"]
    process = subprocess.Popen(command, env=environ, pass_fds=[theirs.fileno()])
    theirs.close()
    try:
        yield process, FrameSocket(ours)
    finally:
        ours.close()
        process.kill()
        process.wait()


def test_a_worker_that_stops_has_the_last_logs_uploaded(cloud, loud, spooled):
    run, child, _ = _run(loud, cloud, "killed")
    loud.exited(child.pid)
    _bury(spooled)
    with _uploader(spooled) as (process, frames):
        frames.send({"op": "stop"})
        assert process.wait(30) == 0
    assert cloud.complete(run) and not list(spooled.iterdir())


def test_the_uploader_goes_with_its_worker(spooled):
    with _uploader(spooled) as (process, frames):
        frames.close()
        assert process.wait(30) == 0


def test_fifty_megabytes(tmp_path, loud):
    with _instance(tmp_path / "home", "") as instance:
        run, _, result = _run(loud, Storage(instance, None), "huge")
        assert result["success"]
        (key,) = Storage(instance, None).keys(run)
        path = instance.compute_log_manager.get_captured_local_path(key, "out")
        assert os.path.getsize(path) == log_defs.HUGE_LINES * 50


def test_a_closed_stdout_costs_nothing_else(storage, loud):
    run, _, result = _run(loud, storage, "closes")
    assert result["success"] and storage.complete(run)
    assert storage.read(run)[0] == "before\n"


def test_a_reopened_stdout_is_captured(storage, loud):
    run, _, result = _run(loud, storage, "reopens")
    assert result["success"]
    assert storage.read(run)[0] == "before\nafter\n"


def test_a_writer_that_outlives_the_step_holds_nothing_up(storage, loud):
    run, child, result = _run(loud, storage, "leaves_a_writer")
    assert result["success"] and storage.complete(run)
    assert storage.read(run)[0] == "begun\n"
    assert wait_dead(child.pid)


def test_a_descriptor_that_is_another_s_now_is_left_alone(tmp_path):
    fd = os.open(tmp_path / "stdout", os.O_CREAT | os.O_RDWR)
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)
    with logs.redirected(fd, str(tmp_path / "log")):
        os.dup2(other, fd)
    assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / "other"))
    with logs.redirected(fd, str(tmp_path / "log")):
        os.write(fd, b"to the log")
        os.close(fd)
    assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / "other")), "free: put back"
    assert (tmp_path / "log").read_bytes() == b"to the log"


def test_a_spool_that_cannot_be_written_costs_the_note_only(cloud, tmp_path):
    template = TemplateProcess(
        [{"module": "tests.log_defs"}], **{spool.VARIABLE: str(tmp_path / "missing")}
    )
    try:
        run, _, result = _run(template, cloud, "plain")
        assert result["success"] and cloud.complete(run)
        assert cloud.read(run)[0] == "to stdout\n"
    finally:
        template.close()


def test_a_template_looks_for_no_credentials(s3, tmp_path, monkeypatch):
    """Where they come from a server, as on ECS, the connection to it would stay open."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with CredentialsServer() as server, _instance(tmp_path / "h", _s3_yaml(s3, tmp_path)) as home:
        template = TemplateProcess(
            [{"module": "tests.log_defs"}],
            DAGSTER_HOME=str(tmp_path / "h"),
            AWS_CONTAINER_CREDENTIALS_FULL_URI=server.url,
        )
        try:
            assert template.loaded["fork_safe"], template.loaded["reason"]
            assert server.asked == 0
            run, _, result = _run(template, Storage(home, None), "s3_client")
            assert result["success"] and server.asked == 1
            path = tmp_path / run.run_id / "compute_logs"
            assert not list(path.glob("*.out")), "it is uploaded"
        finally:
            template.close()


class CredentialsServer:
    """Answers as ECS does, and keeps its connections open."""

    def __init__(self) -> None:
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked += 1
                body = json.dumps(
                    {
                        "AccessKeyId": "a",
                        "SecretAccessKey": "b",
                        "Token": "c",
                        "Expiration": "2099-01-01T00:00:00Z",
                    }
                ).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/credentials"

    def __enter__(self) -> CredentialsServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_without_a_spool_the_manager_uploads_as_stock(cloud, template):
    run, _, result = _run(template, cloud, "plain", **CREDENTIALS)
    assert result["success"] and cloud.complete(run)
