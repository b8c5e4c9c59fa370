"""What a case must show by itself, before it is compared."""

from dataclasses import replace

import pytest

from parity_jobs import CASES
from paritylib.record import Record
from run import Result, report, unshown

(JITTER,) = (case for case in CASES["retries"] if case.name == "retry_jitter")
CASE = replace(JITTER, counts={})


@pytest.mark.parametrize(
    ("waits", "words"),
    [
        ([(0.25, 0.3), (0.0, 0.1), (0.3, None)], ""),
        ([(0.25, 0.2)], "a retry began after 0.200 s, it was to wait 0.250 s"),
        ([(0.5, 0.6)], "a retry is to wait 0.5 s"),
        ([(-0.1, 0.6)], "a retry is to wait -0.1 s"),
    ],
)
def test_a_retry_waits_as_its_policy_says(
    waits: list[tuple[float, float | None]], words: str
) -> None:
    found = unshown(CASE, [Record(status="SUCCESS", waits=waits)])
    assert words in "".join(found) and bool(found) == bool(words)


def results(**seconds: float) -> list[Result]:
    return [
        Result(replace(CASE, name=name), "theme", seconds={"a": taken / 2, "b": taken / 2})
        for name, taken in seconds.items()
    ]


def test_a_whole_run_that_takes_too_long_fails_and_names_the_slowest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    took = results(a=1, b=90, c=2, d=300, e=5, f=4, g=3)
    assert not report(took, 1201, 1200)
    said = capsys.readouterr().out
    assert "took 1201 s, and may take 1200 s; the slowest cases: d 300 s, b 90 s, e 5 s" in said
    assert "a 1 s" not in said
    assert "parity: FAIL: too slow in 1201 s" in said


def test_a_run_within_its_time_or_of_some_cases_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(results(a=1), 1199, 1200)
    assert report(results(a=1), 1201, None)
    assert "PASS: 1 cases" in capsys.readouterr().out


def test_a_difference_fails_however_fast(capsys: pytest.CaptureFixture[str]) -> None:
    bad = [replace(result, differences=["x"]) for result in results(a=1)]
    assert not report(bad, 1, 1200)
    assert "differs: theme/a" in capsys.readouterr().out
