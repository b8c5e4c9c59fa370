"""The template and its children, as a worker meets them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from dagster import DagsterEventType

from dagster_stepfleet import gate
from tests.fakes import Child, TemplateProcess, killed_at_exit, wait_dead
from tests.payloads import create_run, file_pointer, step


def kinds(instance, run) -> list[str]:
    records = instance.get_records_for_run(run.run_id, of_type=set(DagsterEventType)).records
    return [r.event_log_entry.dagster_event.event_type_value for r in records]


@pytest.fixture(params=["forked", "cold"])
def child(request, template):
    child = template.fork() if request.param == "forked" else Child.cold()
    child.ready()
    yield child
    child.close()


def test_step_succeeds(instance, child):
    run = create_run(instance, "chain")
    result = child.run(*step(instance, run, "one"))
    assert result["outcome"] == "succeeded" and result["success"]
    assert (result["event"], result["outputs"]) == ("STEP_SUCCESS", ["result"])
    assert result["worker"] == "worker-1"
    assert child.asked == ["start", "STEP_OUTPUT", "STEP_SUCCESS"]
    assert wait_dead(child.pid)


def test_a_process_runs_one_task(instance, child):
    """What one step has left in a process is no other step's."""
    run = create_run(instance, "chain")
    assert child.run(*step(instance, run, "one"))["success"]
    task, payload = step(instance, run, "one")
    with contextlib.suppress(OSError):  # it has gone
        child.frames.send({"op": "run", "v": 1, "task": task, "payload": payload, "env": {}})
    with contextlib.suppress(OSError):
        assert child.frames.receive() is None


@pytest.mark.parametrize("refused", ["start", "STEP_OUTPUT", "STEP_SUCCESS"])
def test_refused_child_ends_without_writing(instance, template, refused):
    child = template.fork()
    child.ready()
    run = create_run(instance, "chain")
    before = kinds(instance, run)
    assert child.run(*step(instance, run, "one"), refuse={refused}) == {}
    assert template.exited(child.pid)["status"] == gate.REFUSED_STATUS
    written = kinds(instance, run)[len(before) :]
    assert not {"STEP_SUCCESS", "STEP_FAILURE", refused} & set(written)
    if refused == "start":
        assert written == []


def test_parent_gone_at_the_gate(instance, template):
    child = template.fork()
    child.ready()
    run = create_run(instance, "chain")
    task, payload = step(instance, run, "one")
    child.frames.send({"op": "run", "v": 1, "task": task, "payload": payload, "env": {}})
    assert child.frames.receive() == {"op": "start"}
    child.close()
    assert template.exited(child.pid)["status"] == gate.REFUSED_STATUS
    assert "STEP_START" not in kinds(instance, run)


def test_framework_error_is_told(instance, child):
    run = create_run(instance, "chain")
    result = child.run(*step(instance, run, "no_such_step"))
    assert result["outcome"] == "failed" and result["event"] == ""
    assert result["error"]["code"] == "no_ending_event"
    assert "no_such_step" in result["error"]["message"]
    assert child.ended == {}


def test_run_that_is_unknown(instance, child):
    run = create_run(instance, "chain")
    task, payload = step(instance, run, "one")
    instance.delete_run(run.run_id)
    result = child.run(task, payload)
    assert result["error"]["code"] == "prepare" and child.asked == ["start"]


def test_logs_are_captured(instance, child):
    run = create_run(instance, "chain")
    child.run(*step(instance, run, "one"))
    (event,) = [
        r.event_log_entry.dagster_event
        for r in instance.get_records_for_run(
            run.run_id, of_type=DagsterEventType.LOGS_CAPTURED
        ).records
    ]
    manager = instance.compute_log_manager
    key = manager.build_log_key_for_run(run.run_id, event.logs_captured_data.file_key)
    data = manager.get_log_data(key)
    assert b"hello from one" in data.stdout
    assert b"oops from one" in data.stderr and b"STEP_SUCCESS" in data.stderr
    assert manager.is_capture_complete(key)


def test_logs_survive_a_kill(instance, template):
    child = template.fork()
    child.ready()
    run = create_run(instance, "printing")
    assert child.run(*step(instance, run, "forks")) == {}
    assert template.exited(child.pid)["status"] == -signal.SIGKILL
    base = Path(instance.storage_directory()) / run.run_id / "compute_logs"
    assert "before the kill" in "".join(p.read_text() for p in base.glob("*.out"))


def test_secrets_do_not_reach_user_code(instance, template):
    child = template.fork()
    child.ready()
    run = create_run(instance, "environment")
    child.run(*step(instance, run, "environ"))
    import pickle

    path = Path(instance.storage_directory()) / run.run_id / "environ" / "result"
    names = pickle.loads(path.read_bytes()).split(",")
    assert "STEPFLEET_FENCE" in names
    secrets = {"STEPFLEET_TOKEN", "STEPFLEET_TOKEN_FILE", "STEPFLEET_DATABASE_URL"}
    assert not {*secrets, "STEPFLEET_HOST_FD", "STEPFLEET_PRELOAD"} & set(names)


def test_sigterm_is_dagsters_interrupt(instance, template, tmp_path):
    child, mark, _ = _sleeping(instance, template, tmp_path)
    os.kill(child.pid, signal.SIGTERM)
    while (frame := child.frames.receive())["op"] == "gate":
        child.frames.send({"op": "granted"})
    assert (frame["op"], frame["result"]["event"]) == ("ended", "STEP_FAILURE")
    frame = child.frames.receive()
    assert (frame["op"], frame["result"]["event"]) == ("result", "STEP_FAILURE")
    assert template.exited(child.pid)["status"] == 0
    assert wait_dead(mark[1]), "what the step left behind goes with it"


def test_the_end_is_told_before_the_hooks(instance, child):
    """So that a process that dies in one does not take with it what the log says."""
    run = create_run(instance, "slow_hook")
    child.on_ended.append(lambda: os.kill(child.pid, signal.SIGKILL))
    assert child.run(*step(instance, run, "quick")) == {}
    assert (child.ended["event"], child.ended["outcome"]) == ("STEP_SUCCESS", "succeeded")
    assert kinds(instance, run)[-1] == "STEP_SUCCESS", "in the log, and no hook has completed"


@pytest.mark.parametrize("key", ["leaves_a_thread", "leaves_a_pool"])
def test_threads_that_outlive_the_op_are_waited_for(instance, child, key):
    run = create_run(instance, "leaving_threads")
    result = child.run(*step(instance, run, key))
    assert child.asked[-1] == "ASSET_MATERIALIZATION", "after its success, before its result"
    assert (result["event"], result["outcome"]) == ("STEP_SUCCESS", "succeeded")
    assert child.lingers["event"] == "STEP_SUCCESS"
    assert result["phases"]["ended"] - child.lingers["phases"]["ended"] > 0.5
    assert logged(instance, run) == ["a thread logs later"]
    assert kinds(instance, run)[-1] == "ASSET_MATERIALIZATION"


def test_an_interrupt_does_not_end_the_wait_for_threads(instance, child):
    """It is the worker that ends the process when its grace is over."""
    run = create_run(instance, "leaving_threads")
    for number in (signal.SIGTERM, signal.SIGINT):
        child.on_lingers.append(lambda number=number: os.kill(child.pid, number))
    assert child.run(*step(instance, run, "leaves_a_thread"))["event"] == "STEP_SUCCESS"
    assert logged(instance, run) == ["a thread logs later"]


def test_a_thread_that_ends_the_process_leaves_the_result(instance, template):
    child = template.fork()
    child.ready()
    run = create_run(instance, "leaving_threads")
    assert child.run(*step(instance, run, "leaves_a_deadly_thread")) == {}
    assert template.exited(child.pid)["status"] == 7
    assert child.lingers["outcome"] == "succeeded"
    assert logged(instance, run) == ["a thread logs later"]


@pytest.mark.parametrize(("job", "key"), [("chain", "one"), ("leaving_threads", "leaves_a_daemon")])
def test_a_step_without_such_threads_does_not_linger(instance, child, job, key):
    run = create_run(instance, job)
    assert child.run(*step(instance, run, key))["success"]
    assert child.lingers == {}


def logged(instance, run) -> list[str]:
    """What user code has logged."""
    entries = (r.event_log_entry for r in instance.get_records_for_run(run.run_id).records)
    return [entry.user_message for entry in entries if entry.dagster_event is None]


def _sleeping(instance, template, tmp_path):
    child = template.fork()
    child.ready()
    run = create_run(instance, "sleeping")
    task, payload = step(instance, run, "sleeper")
    mark = tmp_path / "mark"
    env = {"MARK": str(mark)}
    child.frames.send({"op": "run", "v": 1, "task": task, "payload": payload, "env": env})
    assert child.frames.receive() == {"op": "start"}
    child.frames.send({"op": "granted"})
    deadline = time.monotonic() + 20
    while not (mark.exists() and len(mark.read_text().split()) == 2):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pids = [int(p) for p in mark.read_text().split()]
    return child, pids, run


def test_children_die_with_the_parent(instance, tmp_path):
    """The worker is killed: its end of the template's socket closes, and all groups are killed."""
    template = TemplateProcess([{"module": "tests.defs"}])
    child, pids, _ = _sleeping(instance, template, tmp_path)
    idle = template.fork()
    idle.ready()
    with killed_at_exit(template.proc.pid, child.pid, *pids):
        template.frames.close()
        assert wait_dead(child.pid, idle.pid, *pids)
        template.proc.wait(5)


def test_children_die_with_the_template(instance, tmp_path):
    template = TemplateProcess([{"module": "tests.defs"}])
    child, pids, _ = _sleeping(instance, template, tmp_path)
    with killed_at_exit(*pids):
        template.proc.kill()
        template.proc.wait()
        assert wait_dead(child.pid)


def test_cold_child_dies_with_its_group(instance, tmp_path):
    """A helper process starts a cold child and is killed."""
    run = create_run(instance, "sleeping")
    task, payload = step(instance, run, "sleeper")
    (tmp_path / "payload").write_text(payload)
    script = textwrap.dedent(f"""
        import pathlib, time
        from tests.fakes import Child, tie_to_parent
        tie_to_parent()
        child = Child.cold()
        child.ready()
        task, payload = {task!r}, pathlib.Path({str(tmp_path / "payload")!r}).read_text()
        child.run(task, payload, MARK={str(tmp_path / "mark")!r})
    """)
    helper = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parent.parent)
    mark = tmp_path / "mark"
    deadline = time.monotonic() + 30
    try:
        while not (mark.exists() and len(mark.read_text().split()) == 2):
            assert time.monotonic() < deadline and helper.poll() is None
            time.sleep(0.05)
    finally:
        helper.kill()
        helper.wait()
    pids = [int(p) for p in mark.read_text().split()]
    with killed_at_exit(*pids):
        assert wait_dead(*pids)


def test_template_reports_locations(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("raise RuntimeError('no such luck')\n")
    template = TemplateProcess([{"module": "tests.defs"}, {"file": str(bad)}])
    try:
        good, failed = template.loaded["locations"]
        assert good["ok"] and good["pointer"] == "module tests.defs"
        assert not failed["ok"] and "no such luck" in failed["error"]
        assert template.loaded["fork_safe"], template.loaded
    finally:
        template.close()


@pytest.mark.parametrize("hazard", ["thread", "socket"])
def test_template_is_unsafe_with(tmp_path, hazard):
    code = {
        "thread": "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n",
        "socket": "import socket\nkept = socket.socketpair()\n",
    }[hazard]
    file = tmp_path / "hazard.py"
    file.write_text(code + "from dagster import Definitions\ndefs = Definitions()\n")
    template = TemplateProcess([{"file": str(file)}])
    try:
        assert not template.loaded["fork_safe"]
        assert hazard in template.loaded["reason"]
        frame, child = template.try_fork()
        assert child is None and hazard in frame["reason"]
    finally:
        template.close()


def test_file_locations_are_executed_once(instance, tmp_path):
    count = tmp_path / "count"
    file = tmp_path / "filedefs.py"
    file.write_text(
        textwrap.dedent(f"""
        from dagster import Definitions, job, op
        with open({str(count)!r}, "a") as f:
            f.write("x")
        @op
        def only(): return 1
        @job
        def single(): only()
        defs = Definitions(jobs=[single])
        """)
    )
    run = create_run(instance, "single", pointer=file_pointer(file))
    count.write_text("")
    template = TemplateProcess([{"file": str(file), "working_directory": str(tmp_path)}])
    try:
        for _ in range(2):
            child = template.fork()
            child.ready()
            assert child.run(*step(instance, run, "only"))["success"]
            child.close()
        assert count.read_text() == "x"
    finally:
        template.close()


def test_the_template_leaves_it_to_the_code_server_to_ask_which_assets_there_are(
    instance, tmp_path
):
    asked = tmp_path / "asked"
    asked.write_text("")
    file = tmp_path / "catalogue.py"
    file.write_text(
        textwrap.dedent(f"""
        from dagster import AssetKey, Definitions, asset, define_asset_job
        from dagster._core.definitions.assets.definition.cacheable_assets_definition import (
            AssetsDefinitionCacheableData,
            CacheableAssetsDefinition,
        )
        class Catalogue(CacheableAssetsDefinition):
            def compute_cacheable_data(self):
                with open({str(asked)!r}, "a") as f:
                    f.write("x")
                found = len(open({str(asked)!r}).read())
                return [AssetsDefinitionCacheableData(extra_metadata={{"answer": found}})]
            def build_definitions(self, data):
                answer = data[0].extra_metadata["answer"]
                @asset
                def table():
                    assert answer == 1, f"answer {{answer}}"
                return [table]
        defs = Definitions(assets=[Catalogue("c")], jobs=[define_asset_job("tables")])
        """)
    )
    run = create_run(instance, "tables", pointer=file_pointer(file))
    assert asked.read_text() == "x"
    template = TemplateProcess([{"file": str(file), "working_directory": str(tmp_path)}])
    try:
        assert template.loaded["locations"][0]["ok"]
        child = template.fork()
        child.ready()
        assert child.run(*step(instance, run, "table"))["success"]
        child.close()
        assert asked.read_text() == "x"
    finally:
        template.close()


def test_child_of_a_template_that_could_not_import_tells_the_cause(instance, tmp_path):
    file = tmp_path / "only_elsewhere.py"
    file.write_text(
        textwrap.dedent("""
            import sys
            from dagster import Definitions, job, op
            if sys.argv[0].endswith("dagster_stepfleet/host.py"):
                raise ImportError("not in this image")
            @op
            def only():
                pass
            @job
            def single():
                only()
            defs = Definitions(jobs=[single])
        """)
    )
    run = create_run(instance, "single", pointer=file_pointer(file))
    template = TemplateProcess([{"file": str(file), "working_directory": str(tmp_path)}])
    try:
        assert [location["ok"] for location in template.loaded["locations"]] == [False]
        child = template.fork()
        child.ready()
        result = child.run(*step(instance, run, "only"))
        assert result["error"]["code"] == "no_ending_event"
        assert "not in this image" in result["error"]["message"]
        child.close()
    finally:
        template.close()


def test_stop_waits_for_children(template):
    own = TemplateProcess([])
    child = own.fork()
    child.ready()
    own.frames.send({"op": "stop"})
    frame, none = own.try_fork()
    assert none is None and "stopping" in frame["reason"]
    assert own.proc.poll() is None
    child.close()
    assert own.proc.wait(5) == 0


def test_template_learns_the_instance_from_a_child(instance):
    template = TemplateProcess([{"module": "tests.defs"}])
    try:
        run = create_run(instance, "chain")
        first = template.fork()
        first.ready()
        assert first.run(*step(instance, run, "one"))["success"]
        template.exited(first.pid)
        second = template.fork()
        second.ready()
        assert second.run(*step(instance, run, "one"))["success"]
        assert template.loaded["fork_safe"]
    finally:
        template.close()
