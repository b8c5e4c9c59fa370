from __future__ import annotations

import pytest

from dagster_stepfleet.tags import Defaults, place

CONFIG = Defaults(queue="cfg", priority=1, lost_step_retries=2)


@pytest.mark.parametrize(
    ("step", "run", "expected"),
    [
        ({}, {}, ("cfg", 1, 2)),
        ({"stepfleet/queue": "gpu"}, {"stepfleet/queue": "run"}, ("gpu", 1, 2)),
        ({}, {"stepfleet/queue": "run"}, ("run", 1, 2)),
        ({"dagster-celery/queue": "old"}, {"stepfleet/queue": "run"}, ("old", 1, 2)),
        ({"dagster-celery/queue": "old", "stepfleet/queue": "new"}, {}, ("new", 1, 2)),
        ({"dagster/priority": "7"}, {}, ("cfg", 7, 2)),
        ({"dagster/priority": "7", "stepfleet/priority": "-3"}, {}, ("cfg", -3, 2)),
        ({}, {"dagster-celery/priority": "4"}, ("cfg", 4, 2)),
        ({"stepfleet/lost_step_retries": "0"}, {"stepfleet/lost_step_retries": "9"}, ("cfg", 1, 0)),
    ],
)
def test_order(step, run, expected):
    placement = place(step, run, CONFIG)
    assert (placement.queue, placement.priority, placement.lost_step_retries) == expected
    assert placement.warnings == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stepfleet/queue", "no spaces please"),
        ("stepfleet/priority", "high"),
        ("stepfleet/priority", str(2**40)),
        ("stepfleet/lost_step_retries", "-1"),
    ],
)
def test_malformed_is_a_warning_and_the_next_best_counts(name, value):
    placement = place({name: value}, {}, CONFIG)
    assert placement == place({}, {}, CONFIG).__class__("cfg", 1, 2, placement.warnings)
    (warning,) = placement.warnings
    assert name in warning and value in warning
