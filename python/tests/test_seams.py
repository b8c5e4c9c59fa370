"""Each seam's check says what has changed, in which version, and what is supported."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster._cli import api, utils
from dagster._core.code_pointer import FileCodePointer
from dagster._core.definitions.definitions_load_context import DefinitionsLoadContext
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.executor.base import Executor
from dagster._core.executor.step_delegating.step_delegating_executor import (
    StepDelegatingExecutor,
)
from dagster._core.executor.step_delegating.step_handler.base import StepHandler
from dagster._core.launcher import RunLauncher
from dagster._core.launcher.base import ResumeRunContext
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.base import EventLogStorage
from dagster._grpc.types import ExecuteStepArgs, ResumeRunArgs
from dagster._utils import interrupts
from dagster_postgres.event_log.event_log import PostgresEventLogStorage

from dagster_stepfleet import seams


def drifted(self, other):
    """What a seam may look like one day."""


@pytest.mark.parametrize(
    ("check", "owner", "name", "value"),
    [
        (seams.check_constructor, StepDelegatingExecutor, "__init__", drifted),
        (seams.check_pop_events, StepDelegatingExecutor, "_pop_events", drifted),
        (seams.check_loop, StepDelegatingExecutor, "execute", drifted),
        (seams.check_step_handler, StepHandler, "__abstractmethods__", frozenset({"name"})),
        (seams.check_crash_helper, Executor, seams.crash_helper_name(), drifted),
        (seams.check_step_args, ExecuteStepArgs, "__new__", drifted),
        (seams.check_interrupts, interrupts, "check_captured_interrupt", None),
        (seams.check_replay, ActiveExecution, "rebuild_from_events", drifted),
        (seams.check_replay, ActiveExecution, "__init__", drifted),
        (seams.check_replay, StepDelegatingExecutor, "execute", drifted),
        (seams.check_slots, InstanceConcurrencyContext, "__init__", drifted),
        (seams.check_step_body, api, "_execute_step_command_body", drifted),
        (seams.check_threads, threading, "_shutdown", drifted),
        (seams.check_cli_instance, utils, "get_instance_for_cli", drifted),
        (seams.check_run_bodies, api, "_execute_run_command_body", drifted),
        (seams.check_run_bodies, api, "_resume_run_command_body", drifted),
        (seams.check_run_args, ResumeRunArgs, "__new__", drifted),
        (seams.check_run_launcher, RunLauncher, "__abstractmethods__", frozenset({"launch_run"})),
        (seams.check_run_launcher, ResumeRunContext, "resume_attempt_number", None),
        (seams.check_event_storage, EventLogStorage, "store_event", lambda self, entry: None),
        (seams.check_file_pointer, FileCodePointer, "load_target", lambda this: None),
        (seams.check_load_context, DefinitionsLoadContext, "_instance", None),
        (seams.check_event_ids, SqlEventLogStorage, "run_connection", drifted),
        (seams.check_postgres, PostgresEventLogStorage, "store_event", drifted),
        (seams.check_postgres, SqlEventLogStorage, "prepare_insert_event", drifted),
        (seams.check_postgres, SqlEventLogStorage, "_event_to_row", None),
    ],
)
def test_drift_is_named(check, owner, name, value, monkeypatch):
    check()
    if value is None:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, value)
    with pytest.raises(ImportError) as info:
        check()
    text = str(info.value)
    assert seams.dagster_version() in text and seams.SUPPORTED in text
    assert "has changed" in text


def test_missing_crash_helper(monkeypatch):
    monkeypatch.delattr(Executor, seams.crash_helper_name())
    with pytest.raises(ImportError, match="crash-retry helper"):
        seams.verify(seams.EXECUTOR_CHECKS)


def test_sleep_is_read_once(monkeypatch):
    source = inspect.getsource(StepDelegatingExecutor.execute)
    doubled = source.replace("time.sleep(self._sleep_seconds)", "x = self._sleep_seconds\n" * 2)
    monkeypatch.setattr(inspect, "getsource", lambda _: doubled)
    with pytest.raises(ImportError, match="_sleep_seconds"):
        seams.check_loop()


def test_crash_helper_is_called_by_the_loop(monkeypatch):
    source = inspect.getsource(StepDelegatingExecutor.execute)
    renamed = source.replace(f"self.{seams.crash_helper_name()}(", "self.end_it(")
    assert renamed != source
    monkeypatch.setattr(inspect, "getsource", lambda _: renamed)
    with pytest.raises(ImportError, match=seams.crash_helper_name()):
        seams.check_loop()


@pytest.mark.parametrize(
    ("module", "name"), [(m, name) for m, names in seams.NAMES.items() for name in names]
)
def test_missing_name_is_named(module, name, monkeypatch):
    monkeypatch.delattr(importlib.import_module(module), name)
    with pytest.raises(seams.SeamError) as info:
        seams.check_names()
    assert f"{module}.{name} has changed" in str(info.value)


@pytest.mark.parametrize("shape", seams.SHAPES, ids=lambda shape: shape.path)
def test_changed_shape_is_named(shape, monkeypatch):
    """Something else in its place, with other parameters and nothing of its attributes."""
    module, _, path = shape.path.partition(":")
    owner = importlib.import_module(module)
    *owners, name = path.split(".")
    for part in owners:
        owner = getattr(owner, part)
    monkeypatch.setattr(owner, name, drifted)
    with pytest.raises(seams.SeamError) as info:
        seams.check_shapes()
    assert shape.path.replace(":", ".") in str(info.value)
    assert "has changed" in str(info.value)


# What a module of Dagster's may be like one day, and what of ours fails then, with which name.
DRIFTS = {
    "executor": (
        "from dagster._core.executor.step_delegating import step_delegating_executor as m;"
        "m.StepDelegatingExecutor._pop_events = lambda self, cursor: []",
        "import dagster_stepfleet.executor",
        "StepDelegatingExecutor._pop_events",
    ),
    "executor by its public name": (
        "import dagster._core.execution.retries as m; del m.get_retries_config",
        "from dagster_stepfleet import stepfleet_executor",
        "dagster._core.execution.retries.get_retries_config",
    ),
    "a module is gone": (
        "import sys; sys.modules['dagster._core.workspace.autodiscovery'] = None",
        "import dagster_stepfleet.preload",
        "dagster._core.workspace.autodiscovery.loadable_targets_from_python_file",
    ),
    "child": (
        "import dagster._cli.api as m; m._execute_step_command_body = lambda args: []",
        "import dagster_stepfleet.child",
        "dagster._cli.api._execute_step_command_body",
    ),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_import_fails_and_names_the_seam(drift):
    change, imports, seam = DRIFTS[drift]
    done = subprocess.run(
        [sys.executable, "-c", f"{change}\n{imports}"], capture_output=True, text=True, timeout=50
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "SeamError" in last, done.stderr
    assert seam in last and seams.dagster_version() in last and seams.SUPPORTED in last


PACKAGE = Path(seams.__file__).parent


def private_imports(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Line, module and name of what is taken out of Dagster's private modules at run time."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dagster._"):
            yield from ((node.lineno, str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            yield from ((node.lineno, n, "") for n in names if n.startswith("dagster._"))
        else:
            yield from private_imports(node)


# What seams.py and its part import in a check is checked by that.
SEAMS = ("seams.py", "seams_io.py")
MODULES = sorted(path for path in PACKAGE.glob("*.py") if path.name not in SEAMS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_every_private_import_is_a_known_seam(path):
    """Add what is missing to NAMES in seams.py, and to SHAPES what you rely on of it."""
    tree = ast.parse(path.read_text())
    unknown = {
        f"{module}.{name} (line {line})"
        for line, module, name in private_imports(tree)
        if name not in seams.NAMES.get(module, ())
    }
    assert not unknown


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_seams_are_imported_before_what_they_check(path):
    """Otherwise Dagster's bare ImportError comes first, without what to do."""
    ours: list[int] = []
    private: list[int] = []
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.module == "dagster_stepfleet" and "seams" in {a.name for a in node.names}:
            ours.append(node.lineno)
        elif (node.module or "").startswith("dagster._"):
            private.append(node.lineno)
    assert not private or (ours and min(ours) < min(private))


def test_resumes_are_announced_in_these_words():
    from dagster._daemon.monitoring.run_monitoring import RESUME_RUN_LOG_MESSAGE

    assert seams.RESUME_MESSAGE == RESUME_RUN_LOG_MESSAGE
