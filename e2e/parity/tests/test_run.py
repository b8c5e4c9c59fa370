"""What a case must show by itself, before it is compared."""

from dataclasses import replace

import pytest

from parity_jobs import CASES
from paritylib.record import Record
from run import unshown

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
