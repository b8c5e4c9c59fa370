"""The comparison must be able to fail: a difference of each kind is seeded, and must be told."""

import copy
from collections import Counter
from collections.abc import Callable

import pytest

from paritylib.compare import compare
from paritylib.record import Record

OUTPUT = 'STEP_OUTPUT {"key": null, "output": "result"}'
RETRY = 'STEP_UP_FOR_RETRY {"error": [["E", "boom"]], "seconds_to_wait": 0.25}'
MATERIALIZATION = (
    'ASSET_MATERIALIZATION {"asset": ["a"], "metadata": {"rows": 3}, "partition": "p"}'
)


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
            "one": [("out> a\nout> b\n", "err> a\n"), ("out> a\n", "err> a\n")],
            "two": [("", "")],
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


def lose_line(record: Record) -> None:
    record.logs["one"][0] = ("out> a\n", "err> a\n")


def swap_lines(record: Record) -> None:
    record.logs["one"][0] = ("out> b\nout> a\n", "err> a\n")


def swap_captures(record: Record) -> None:
    record.logs["one"].reverse()


def lose_error_line(record: Record) -> None:
    record.logs["one"][1] = ("out> a\n", "")


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


@pytest.mark.parametrize("change", [lose_line, lose_error_line])
def test_in_process_miss_no_line(change: Callable[[Record], None]) -> None:
    assert len(differences(change, in_process=True)) == 1


def test_in_process_may_come_in_any_order_and_place() -> None:
    assert differences(swap_captures, in_process=True) == []


def test_dagsters_console_lines_are_not_the_users() -> None:
    def add(record: Record) -> None:
        record.logs["one"][0] = ("out> a\nout> b\n", "err> a\nTIME - dagster - DEBUG - x\n")

    assert differences(add, in_process=True) == []
    assert differences(add) != []


def test_the_order_counts_where_it_is_asked_for() -> None:
    def swap(record: Record) -> None:
        record.order.reverse()

    assert differences(swap) == []
    assert "order:" in differences(swap, ordered=True)[0]


def test_a_mask_hides_what_chance_decides_and_nothing_else() -> None:
    assert differences(wait_longer, masks=["retry_delay"]) == []
    assert differences(lose_event, masks=["retry_delay"]) != []


def test_only_the_framework_may_word_a_crash_differently() -> None:
    failure = 'STEP_FAILURE {"error": [["%s", "gone"]], "source": "%s"}'

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


def test_a_cancelled_run_need_not_say_what_it_will_not_run() -> None:
    def abandon(record: Record) -> None:
        record.events["two"]["LOG 40 Dependencies for step two failed: ['one']. Not executing."] = 1

    assert differences(abandon, masks=["interrupt"]) == []
    assert differences(abandon) != []
    assert differences(lose_event, masks=["interrupt"]) != []


def test_a_run_that_the_daemon_ends_need_not_say_that_it_is_cancelled() -> None:
    def cancel(record: Record) -> None:
        record.run_events["PIPELINE_CANCELED {}"] += 1

    def fail(record: Record) -> None:
        record.run_events["PIPELINE_FAILURE {}"] += 1

    assert differences(cancel, masks=["ended_by_daemon"]) == []
    assert differences(cancel) != []
    assert differences(fail, masks=["ended_by_daemon"]) != []
    assert differences(fail_run, masks=["ended_by_daemon"]) != []


def test_only_our_own_variables_are_hidden() -> None:
    def see(name: str) -> Callable[[Record], None]:
        def change(record: Record) -> None:
            record.logs["two"] = [(f"out> variable {name}\n", "")]

        return change

    assert differences(see("STEPFLEET_URL"), masks=["own_variables"]) == []
    assert differences(see("STEPFLEET_URL")) != []
    assert differences(see("PYTHONUNBUFFERED"), masks=["own_variables"]) != []


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


def test_ids_of_ticks_and_backfills_are_hidden_and_no_other_tag() -> None:
    def tag(name: str) -> Callable[[Record], None]:
        return lambda record: record.tags.update({name: "1"})

    assert differences(tag("dagster/tick")) == []
    assert differences(tag("dagster/run_key")) != []


def test_a_run_that_is_missing_is_told() -> None:
    two = [example(), example()]
    assert compare(two, two[:1], in_process=False) == ["number of runs: 2 expected, 1 found"]


def test_many_differences_are_cut() -> None:
    def flood(record: Record) -> None:
        record.events["one"].update(f"STEP_OUTPUT {n}" for n in range(50))

    found = differences(flood)
    assert len(found) < 20
    assert "... and 42 more" in found
