"""Each seam's check says what has changed, in which version, and what is supported."""

from __future__ import annotations

import inspect

import pytest
from dagster._cli import api
from dagster._core.code_pointer import FileCodePointer
from dagster._core.definitions.definitions_load_context import DefinitionsLoadContext
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.executor.base import Executor
from dagster._core.executor.step_delegating.step_delegating_executor import (
    StepDelegatingExecutor,
)
from dagster._core.executor.step_delegating.step_handler.base import StepHandler
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.base import EventLogStorage
from dagster._grpc.types import ExecuteStepArgs
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
        (seams.check_event_storage, EventLogStorage, "store_event", lambda self, entry: None),
        (seams.check_file_pointer, FileCodePointer, "load_target", lambda this: None),
        (seams.check_load_context, DefinitionsLoadContext, "_instance", None),
        (seams.check_event_ids, SqlEventLogStorage, "run_connection", drifted),
        (seams.check_postgres, PostgresEventLogStorage, "store_event", drifted),
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


def test_resumes_are_announced_in_these_words():
    from dagster._daemon.monitoring.run_monitoring import RESUME_RUN_LOG_MESSAGE

    assert seams.RESUME_MESSAGE == RESUME_RUN_LOG_MESSAGE
