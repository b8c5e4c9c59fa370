"""The verdict on logs that no healthy system writes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stepfleet_examples import verdict
from stepfleet_examples.verdict import Effect, Key, Step

STEP = Step("run", "step")


def effect(event: str, at: float, attempt: int = 0, step: str = "step") -> Effect:
    return Effect(event, Key("run", step, attempt), "1", 10, "w1", at, "op")


def test_an_empty_log_proves_nothing_and_misses_what_was_expected() -> None:
    assert verdict.judge([]).ok
    assert verdict.judge([], [STEP]).missing == [STEP]


def test_one_attempt_begun_and_ended_is_well() -> None:
    found = verdict.judge([effect("begin", 1), effect("end", 2)], [STEP])
    assert found.ok
    assert (found.attempts, found.steps_done) == (1, 1)


def test_an_attempt_begun_twice_is_doubled() -> None:
    found = verdict.judge([effect("begin", 1), effect("begin", 2), effect("end", 3)])
    assert found.doubled == [Key("run", "step", 0)]
    assert not found.ok


def test_an_attempt_that_ended_twice_is_doubled() -> None:
    found = verdict.judge([effect("begin", 1), effect("error", 2), effect("end", 3)])
    assert found.doubled == [Key("run", "step", 0)]


def test_an_attempt_cut_short_and_made_anew_is_no_violation() -> None:
    found = verdict.judge(
        [effect("begin", 1), effect("begin", 5, attempt=1), effect("end", 6, attempt=1)], [STEP]
    )
    assert found.cut == [Key("run", "step", 0)]
    assert found.ok


def test_an_error_is_not_a_good_end() -> None:
    found = verdict.judge([effect("begin", 1), effect("error", 2)], [STEP])
    assert found.missing == [STEP]


def test_two_attempts_that_ended_well_are_a_repetition() -> None:
    found = verdict.judge(
        [effect(event, 2 * attempt, attempt) for attempt in (0, 1) for event in ("begin", "end")]
    )
    assert found.repeated == [STEP]
    assert found.doubled == []


def test_an_attempt_that_outlives_the_next_ones_begin_overlaps() -> None:
    log = [
        effect("begin", 1),
        effect("begin", 5, attempt=1),
        effect("error", 7),
        effect("end", 9, attempt=1),
    ]
    assert verdict.judge(log).overlapping == [Key("run", "step", 0)]


def test_an_end_without_a_begin_is_an_orphan() -> None:
    assert verdict.judge([effect("end", 1)]).orphans == [Key("run", "step", 0)]


def test_a_line_that_is_no_effect_is_an_error_with_its_number() -> None:
    good = json.dumps(
        {
            "event": "begin",
            "run_id": "run",
            "step_key": "step",
            "attempt": 0,
            "fence": "",
            "pid": 1,
            "worker": "",
            "at": 1.0,
            "op": "op",
        }
    )
    assert len(verdict.parse([good, "", good])) == 2
    with pytest.raises(ValueError, match="line 2"):
        verdict.parse([good, "{"])
    with pytest.raises(ValueError, match="line 1"):
        verdict.parse([good.replace("begin", "began")])


WRITER = """
import os, sys
from stepfleet_examples.effects import _append
for i in range(2000):
    _append(sys.argv[1], (sys.argv[2] * 300 + "\\n").encode())
os.kill(os.getpid(), 9)
"""


def test_lines_of_many_processes_never_mix(tmp_path: Path) -> None:
    log = tmp_path / "log"
    root = Path(__file__).parent.parent
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(log), letter],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        for letter in "abcd"
    ]
    assert [writer.wait() for writer in writers] == [-signal.SIGKILL] * 4
    lines = log.read_text().splitlines()
    assert sorted(set(lines)) == [letter * 300 for letter in "abcd"]
    assert len(lines) == 4 * 2000


def test_the_command_exits_with_1_when_something_ran_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(event: str) -> str:
        return json.dumps(
            {"run_id": "r", "step_key": "s", "attempt": 0, "fence": "", "pid": 1, "worker": ""}
            | {"at": 1.0, "op": "op", "event": event}
        )

    log = tmp_path / "log"
    log.write_text(line("begin") + "\n" + line("end") + "\n")
    assert verdict.main([str(log)]) == 0
    assert "1 attempts, 1 steps ended well" in capsys.readouterr().out

    with log.open("a") as more:
        more.write(line("begin") + "\n")
    assert verdict.main([str(log), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["doubled"] == [["r", "s", 0]]
    assert verdict.main([str(log), "--run", "other"]) == 0
