"""The comparison must be able to fail: a difference of each kind is seeded, and must be told."""

import copy
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from paritylib.compare import compare
from paritylib.record import Record

OUTPUT = 'STEP_OUTPUT {"key": null, "output": "result"}'
RETRY = 'STEP_UP_FOR_RETRY {"error": null, "message": "in 0.25 seconds", "seconds_to_wait": 0.25}'
MATERIALIZATION = (
    'ASSET_MATERIALIZATION {"asset": ["a"], "metadata": {"rows": 3}, "partition": "p", "tags": {}}'
)


def console(step: str, kind: str = "STEP_START") -> str:
    """A line that Dagster writes to stderr."""
    return f"TIME - dagster - DEBUG - job_on_VARIANT - RUN - PID - {step} - {kind} - x\n"


def example() -> Record:
    return Record(
        status="SUCCESS",
        run_events=Counter({'ASSET_MATERIALIZATION_PLANNED {"asset": ["a"]}': 1}),
        states={"one": "SUCCESS", "two": "SUCCESS"},
        attempts={"one": 2, "two": 1},
        events={
            "one": Counter({OUTPUT: 1, RETRY: 1}),
            "two": Counter({OUTPUT: 1, MATERIALIZATION: 1, "HOOK_COMPLETED {}": 1}),
        },
        logs={
            "one": [
                ("out> a\nout> b\n", console("one") + "err> a\n"),
                ("out> a\n", console("one", "STEP_RESTARTED") + "err> a\nerr> b\n"),
            ],
            "two": [("", console("two"))],
        },
        tags={"team": "x"},
        order=["one", "one", "two"],
    )


def differences(change: Callable[[Record], None], **kwargs: object) -> list[str]:
    changed = example()
    change(changed)
    settings: dict[str, object] = {"in_process": False, **kwargs}
    return compare([example()], [changed], **settings)  # type: ignore[arg-type]


def test_equal_runs_have_no_difference() -> None:
    assert compare([example()], [copy.deepcopy(example())], in_process=False) == []
    assert compare([example()], [copy.deepcopy(example())], in_process=True, ordered=True) == []


def fail_run(record: Record) -> None:
    record.status = "FAILURE"


def fail_step(record: Record) -> None:
    record.states["two"] = "FAILURE"


def lose_step(record: Record) -> None:
    del record.states["two"]


def retry_more(record: Record) -> None:
    record.attempts["one"] = 3


def lose_event(record: Record) -> None:
    del record.events["one"][OUTPUT]


def double_event(record: Record) -> None:
    record.events["one"][OUTPUT] = 2


def change_metadata(record: Record) -> None:
    del record.events["two"][MATERIALIZATION]
    record.events["two"][MATERIALIZATION.replace("3", "4")] = 1


def change_partition(record: Record) -> None:
    del record.events["two"][MATERIALIZATION]
    record.events["two"][MATERIALIZATION.replace('"p"', '"q"')] = 1


def lose_hook(record: Record) -> None:
    del record.events["two"]["HOOK_COMPLETED {}"]


def wait_longer(record: Record) -> None:
    del record.events["one"][RETRY]
    record.events["one"][RETRY.replace("0.25", "0.5")] = 1


def lose_planned(record: Record) -> None:
    record.run_events.clear()


def change_tag(record: Record) -> None:
    record.tags["team"] = "y"


def lose_capture(record: Record) -> None:
    record.logs["one"].pop()


def change_log(record: Record, attempt: int, old: str, new: str) -> None:
    out, err = record.logs["one"][attempt]
    record.logs["one"][attempt] = (out.replace(old, new), err.replace(old, new))


def lose_line(record: Record) -> None:
    change_log(record, 0, "out> b\n", "")


def swap_lines(record: Record) -> None:
    change_log(record, 0, "out> a\nout> b\n", "out> b\nout> a\n")


def swap_captures(record: Record) -> None:
    record.logs["one"].reverse()


def lose_error_line(record: Record) -> None:
    change_log(record, 1, "err> a\n", "")


def swap_error_lines(record: Record) -> None:
    change_log(record, 1, "err> a\nerr> b\n", "err> b\nerr> a\n")


def say_in_another_attempt(record: Record) -> None:
    change_log(record, 1, "err> b\n", "")
    change_log(record, 0, "err> a\n", "err> a\nerr> b\n")


def say_in_another_step(record: Record) -> None:
    change_log(record, 1, "err> b\n", "")
    record.logs["two"] = [("", console("two") + "err> b\n")]


def lose_console_line(record: Record) -> None:
    change_log(record, 1, console("one", "STEP_RESTARTED"), "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fail_run, "run status: SUCCESS expected, FAILURE found"),
        (fail_step, "step state of two: SUCCESS expected, FAILURE found"),
        (lose_step, "step state of two: SUCCESS expected, none found"),
        (retry_more, "attempts of one: 2 expected, 3 found"),
        (lose_event, f"one: missing 1 x {OUTPUT}"),
        (double_event, f"one: 1 more x {OUTPUT}"),
        (change_metadata, f"two: missing 1 x {MATERIALIZATION}"),
        (change_partition, f"two: missing 1 x {MATERIALIZATION}"),
        (lose_hook, "two: missing 1 x HOOK_COMPLETED {}"),
        (wait_longer, f"one: missing 1 x {RETRY}"),
        (lose_planned, 'run: missing 1 x ASSET_MATERIALIZATION_PLANNED {"asset": ["a"]}'),
        (change_tag, "run tag of team: x expected, y found"),
        (lose_capture, "logs of one: 2 expected, 1 found"),
        (lose_line, "stdout of one, capture 0: missing 1 x out> b"),
        (swap_lines, "stdout of one, capture 0: the same lines in another order"),
        (swap_captures, "stdout of one, capture 0: missing 1 x out> b"),
        (lose_error_line, "stderr of one, capture 1: missing 1 x err> a"),
    ],
)
def test_a_seeded_difference_is_told(change: Callable[[Record], None], words: str) -> None:
    assert words in differences(change)


def as_in_process(record: Record) -> Record:
    """The same steps with one log for all, as in_process captures them."""
    captures = [capture for of_step in record.logs.values() for capture in of_step]
    out, err = ("".join(stream) for stream in zip(*captures, strict=True))
    return replace(record, logs={"one,two": [(out, err)]})


def differences_in_process(change: Callable[[Record], None]) -> list[str]:
    changed = example()
    change(changed)
    return compare([as_in_process(example())], [changed], in_process=True)


def test_one_log_for_all_is_the_same_as_one_for_each() -> None:
    assert differences_in_process(lambda _: None) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lose_line, "stdout: missing 1 x out> b"),
        (lose_error_line, "stderr of one, attempt 2: missing 1 x err> a"),
        (swap_error_lines, "stderr of one, attempt 2: the same lines in another order"),
        (say_in_another_attempt, "stderr of one, attempt 1: 1 more x err> b"),
        (say_in_another_step, "stderr of two, attempt 1: 1 more x err> b"),
        (lose_console_line, "stderr of no step, attempt 0: 1 more x err> a"),
    ],
)
def test_in_process_says_which_step_has_written_to_stderr(
    change: Callable[[Record], None], words: str
) -> None:
    assert words in differences_in_process(change)


def test_the_run_workers_console_lines_are_no_steps() -> None:
    """In process the run worker writes into the log of the steps."""

    def ours(*lines: str) -> list[str]:
        whole = as_in_process(example())
        whole.events["three"] = Counter()
        ((out, err),) = whole.logs["one,two"]
        whole.logs["one,two"] = [(out, err + "".join(lines))]
        other = example()
        other.events["three"] = Counter()
        return compare([whole], [other], in_process=True)

    assert ours(console("three", "STEP_SKIPPED")) == []
    assert ours(console("two", "RESOURCE_INIT_SUCCESS")) == []
    assert ours(console("two", "HANDLED_OUTPUT")) != []
    assert ours("err> a\n") != []


def test_the_order_counts_where_it_is_asked_for() -> None:
    def swap(record: Record) -> None:
        record.order.reverse()

    assert differences(swap) == []
    assert "order:" in differences(swap, ordered=True)[0]


def test_a_mask_hides_what_chance_decides_and_nothing_else() -> None:
    assert differences(wait_longer, masks=["retry_delay"]) == []
    assert differences(lose_event, masks=["retry_delay"]) != []


def test_only_the_framework_may_word_a_crash_differently() -> None:
    failure = 'STEP_FAILURE {"error": {"class": "%s", "message": "gone"}, "source": "%s"}'

    def crashed(error: str, source: str) -> Record:
        record = example()
        record.events["one"][failure % (error, source)] = 1
        return record

    def told(source: str) -> list[str]:
        return compare(
            [crashed("A", source)], [crashed("B", source)], in_process=False, masks=["crash"]
        )

    assert told("FRAMEWORK_ERROR") == []
    assert told("USER_CODE_ERROR") != []


def run_ends(kind: str, **detail: object) -> Callable[[Record], None]:
    """With an event like that."""

    def change(record: Record) -> None:
        record.run_events[f"{kind} {json.dumps(detail, sort_keys=True)}"] = 1

    return change


def told_of_ends(kind: str, first: object, second: object, *masks: str) -> list[str]:
    changed, reference = example(), example()
    for record, error in ((reference, first), (changed, second)):
        run_ends(kind, error=error, reason="RUN_EXCEPTION", message="m", first=None)(record)
    return compare([reference], [changed], in_process=False, masks=masks)


def error(cls: str = "E", message: str = "m", stack: str = "s") -> dict[str, object]:
    return {"class": cls, "message": message, "stack": [stack], "cause": None, "context": None}


@pytest.mark.parametrize(
    ("kind", "mask"), [("PIPELINE_FAILURE", "resources"), ("PIPELINE_CANCELED", "interrupt")]
)
def test_an_executors_own_exception_has_its_words_but_not_its_class(kind: str, mask: str) -> None:
    assert told_of_ends(kind, error(), error(stack="another")) == []
    assert told_of_ends(kind, error(), error(message="another")) != []
    assert told_of_ends(kind, error(), error(message="another"), mask) == []
    assert told_of_ends(kind, error(), error(cls="F"), mask) != []
    assert told_of_ends(kind, error(), None, mask) != []


def test_how_a_run_with_a_crash_ends_is_the_executors_to_say() -> None:
    assert told_of_ends("PIPELINE_FAILURE", error(), None, "crash") == []
    assert told_of_ends("PIPELINE_FAILURE", error(), None) != []


def test_the_stack_of_a_steps_error_counts_in_the_runs_end() -> None:
    changed, reference = example(), example()
    for record, stack in ((reference, "a"), (changed, "b")):
        run_ends("PIPELINE_FAILURE", error=error(stack=stack), reason="STEP_FAILURE")(record)
    assert compare([reference], [changed], in_process=False) != []


def test_a_cancelled_run_need_not_say_what_it_will_not_run() -> None:
    def abandon(record: Record) -> None:
        record.events["two"]["LOG 40 Dependencies for step two failed: ['one']. Not executing."] = 1

    assert differences(abandon, masks=["interrupt"]) == []
    assert differences(abandon) != []
    assert differences(lose_event, masks=["interrupt"]) != []


def test_a_run_that_the_daemon_ends_need_not_say_that_it_is_cancelled() -> None:
    def cancel(record: Record) -> None:
        run_ends("PIPELINE_CANCELED", error=None)(record)

    def fail(record: Record) -> None:
        run_ends("PIPELINE_FAILURE", error=None)(record)

    assert differences(cancel, masks=["ended_by_daemon"]) == []
    assert differences(cancel) != []
    assert differences(fail, masks=["ended_by_daemon"]) != []
    assert differences(fail_run, masks=["ended_by_daemon"]) != []


def test_only_our_own_variables_are_hidden() -> None:
    def see(name: str) -> Callable[[Record], None]:
        def change(record: Record) -> None:
            record.logs["two"] = [(f"out> variable {name}\n", console("two"))]

        return change

    assert differences(see("STEPFLEET_URL"), masks=["own_variables"]) == []
    assert differences(see("STEPFLEET_URL")) != []
    for name in ("TOKEN", "TOKEN_FILE", "DATABASE_URL", "URLS"):
        assert differences(see(f"STEPFLEET_{name}"), masks=["own_variables"]) != []
    assert differences(see("PYTHONUNBUFFERED"), masks=["own_variables"]) != []


def test_chance_may_choose_the_last_event_of_an_inputs_asset_and_not_the_asset() -> None:
    pointer = 'ASSET_MATERIALIZATION {"tags": {"dagster/input_event_pointer/a/b": "%s"}}'

    def told(first: str, second: str) -> list[str]:
        reference, changed = example(), example()
        reference.events["two"][pointer % first] = changed.events["two"][pointer % second] = 1
        return compare([reference], [changed], in_process=False, masks=["backfill_order"])

    of_b = "ASSET_MATERIALIZATION of ['a', 'b']"
    assert told(f"{of_b} red, number 1 of RUN", f"{of_b} blue, number 1 of RUN1") == []
    assert told(f"{of_b} red, number 1 of RUN", "ASSET_MATERIALIZATION of ['c'] red") != []
    assert told(f"{of_b} red, number 1 of RUN", "NULL") != []


@pytest.mark.parametrize(
    ("kind", "hidden", "hidden_in_process"),
    [
        ("STEP_WORKER_STARTED", True, True),
        ("ENGINE_EVENT", True, True),
        ("LOGS_CAPTURED", False, True),
        ("RESOURCE_INIT_SUCCESS", False, True),
        ("RESOURCE_INIT_FAILURE", False, False),
        ("STEP_START", False, False),
    ],
)
def test_events_of_processes(kind: str, hidden: bool, hidden_in_process: bool) -> None:
    def add(record: Record) -> None:
        record.events["one"][kind + " {}"] = 1

    assert (differences(add) == []) == hidden
    assert (differences(add, in_process=True) == []) == hidden_in_process


def test_who_was_asked_to_launch_is_hidden_and_no_other_tag() -> None:
    def tag(name: str) -> Callable[[Record], None]:
        return lambda record: record.tags.update({name: "1"})

    assert differences(tag(".dagster/grpc_info")) == []
    assert differences(tag("dagster/tick")) != []


def test_a_run_that_is_missing_is_told() -> None:
    two = [example(), example()]
    assert compare(two, two[:1], in_process=False) == ["number of runs: 2 expected, 1 found"]


def test_many_differences_are_cut() -> None:
    def flood(record: Record) -> None:
        record.events["one"].update(f"STEP_OUTPUT {n}" for n in range(50))

    found = differences(flood)
    assert len(found) < 20
    assert "... and 42 more" in found
