from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dagster_stepfleet import tags
from dagster_stepfleet.tags import CONTAINER_TAGS, Defaults, Router, place

CONFIG = Defaults(queue="cfg", priority=1, lost_step_retries=2, timeout_seconds=60)
REPOSITORY = Path(__file__).parents[2]


def read(step: dict[str, str], run: dict[str, str], defaults: Defaults = CONFIG):
    p = place(step, run, defaults)
    return (p.queue, p.priority, p.lost_step_retries, p.timeout_seconds), p.warnings


@pytest.mark.parametrize(
    ("step", "run", "expected"),
    [
        ({}, {}, ("cfg", 1, 2, 60)),
        ({"stepfleet/queue": "gpu"}, {"stepfleet/queue": "run"}, ("gpu", 1, 2, 60)),
        ({}, {"stepfleet/queue": "run"}, ("run", 1, 2, 60)),
        ({"dagster-celery/queue": "old"}, {"stepfleet/queue": "run"}, ("old", 1, 2, 60)),
        ({"dagster-celery/queue": "old", "stepfleet/queue": "new"}, {}, ("new", 1, 2, 60)),
        ({"stepfleet/priority": "7"}, {"stepfleet/priority": "9"}, ("cfg", 7, 2, 60)),
        ({"stepfleet/priority": "7"}, {"dagster/priority": "9"}, ("cfg", 7, 2, 60)),
        ({"dagster-celery/priority": "7"}, {"dagster/priority": "9"}, ("cfg", 7, 2, 60)),
        ({}, {"dagster/priority": "9"}, ("cfg", 9, 2, 60)),
        ({}, {"dagster/priority": "4", "stepfleet/priority": "9"}, ("cfg", 9, 2, 60)),
        ({}, {"stepfleet/priority": "9"}, ("cfg", 9, 2, 60)),
        ({"dagster/priority": "7", "stepfleet/priority": "-3"}, {}, ("cfg", -3, 2, 60)),
        ({}, {"dagster-celery/priority": "4"}, ("cfg", 4, 2, 60)),
        (
            {"stepfleet/lost_step_retries": "0"},
            {"stepfleet/lost_step_retries": "9"},
            ("cfg", 1, 0, 60),
        ),
        ({"stepfleet/timeout": "5"}, {"stepfleet/timeout": "9"}, ("cfg", 1, 2, 5)),
        ({}, {"stepfleet/timeout": "9"}, ("cfg", 1, 2, 9)),
        ({"stepfleet/timeout": "0"}, {"stepfleet/timeout": "9"}, ("cfg", 1, 2, 0)),
    ],
)
def test_op_goes_before_run_before_config(step, run, expected):
    assert read(step, run) == (expected, [])


def test_default_is_what_is_left():
    assert read({}, {}, Defaults()) == (("default", 0, 0, 0), [])


@pytest.mark.parametrize(
    ("step", "run", "priority"),
    [
        ({}, {"dagster-celery/run_priority": "3"}, 1 + 3),
        ({"dagster-celery/priority": "5"}, {"dagster-celery/run_priority": "3"}, 8),
        ({"dagster-celery/priority": "5"}, {"dagster-celery/run_priority": "-3"}, 2),
        ({"dagster/priority": "5"}, {"dagster-celery/run_priority": "3"}, 1 + 3 + 5),
        ({"stepfleet/priority": "5"}, {"dagster-celery/run_priority": "3"}, 5),
        # Celery's executor reads it of the run only.
        ({"dagster-celery/run_priority": "3"}, {}, 1),
        (
            {"dagster-celery/priority": str(tags.MAX_PRIORITY)},
            {"dagster-celery/run_priority": "3"},
            tags.MAX_PRIORITY,
        ),
    ],
)
def test_celerys_run_priority_is_added_to_celerys_priority(step, run, priority):
    assert place(step, run, CONFIG).priority == priority


@pytest.mark.parametrize(
    ("step", "run", "priority"),
    [
        ({"dagster/priority": "7"}, {}, 1 + 7),
        ({"dagster/priority": "1"}, {"dagster/priority": "5"}, 6),
        ({"dagster/priority": "-1"}, {"dagster/priority": "-3"}, -4),
        ({"dagster/priority": "1"}, {"stepfleet/priority": "5"}, 6),
        ({"dagster/priority": "1"}, {"dagster-celery/priority": "5"}, 6),
        ({"dagster/priority": "1", "dagster-celery/priority": "8"}, {"dagster/priority": "5"}, 6),
        ({"dagster/priority": "1", "stepfleet/priority": "8"}, {"dagster/priority": "5"}, 8),
        ({"dagster/priority": str(tags.MAX_PRIORITY)}, {"dagster/priority": "5"}, 2**31 - 1),
        ({"dagster/priority": str(-tags.MAX_PRIORITY)}, {"dagster/priority": "-5"}, 1 - 2**31),
    ],
)
def test_dagsters_priority_of_an_op_is_added_to_where_its_run_stands(step, run, priority):
    assert read(step, run) == (("cfg", priority, 2, 60), [])


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"dagster/priority": "5"},
        {"dagster/priority": "-3"},
        {"stepfleet/priority": "9"},
        {"dagster-celery/run_priority": "3"},
        {"dagster/priority": "high"},
    ],
)
def test_the_steps_of_a_run_have_the_order_that_dagster_gives_them(run):
    """By the op's own tag alone, an untagged op counting as 0."""
    own = [-2, -1, 0, 1, 2]
    steps = [{"dagster/priority": str(n)} if n else {} for n in own]
    assert sorted(own, key=lambda n: place(steps[own.index(n)], run, CONFIG).priority) == own


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stepfleet/queue", "no spaces please"),
        ("stepfleet/queue", "Upper"),
        ("stepfleet/queue", "with.dot"),
        ("stepfleet/queue", "default@2"),
        ("stepfleet/queue", "q" * 61),
        ("dagster-celery/queue", "A.B"),
        ("stepfleet/priority", "high"),
        ("stepfleet/priority", "1_000"),
        ("stepfleet/priority", str(2**40)),
        ("stepfleet/lost_step_retries", "-1"),
        ("stepfleet/timeout", "-1"),
        ("stepfleet/timeout", "1.5"),
        ("stepfleet/timeout", "10m"),
        ("stepfleet/timeout", str(2**31)),
    ],
)
def test_malformed_is_a_warning_and_the_next_best_counts(name, value):
    expected, (warning,) = read({name: value}, {})
    assert expected == ("cfg", 1, 2, 60)
    assert name in warning and value in warning
    assert read({}, {name: value})[0] == expected


def test_queue_names_are_those_of_the_server():
    schema = json.loads((REPOSITORY / "docs/schema/task.schema.json").read_text())
    assert schema["properties"]["queue"]["pattern"] == tags.QUEUE_NAME
    (server,) = re.findall(r"MustCompile\(`(.*)`\)", (REPOSITORY / "queue.go").read_text())
    assert server == tags.QUEUE_NAME


@pytest.mark.parametrize("name", CONTAINER_TAGS)
def test_a_tag_for_a_container_is_a_warning_that_says_what_to_use(name):
    _, (warning,) = read({name: "1024"}, {})
    assert f"{name}='1024'" in warning and "stepfleet/queue" in warning
    assert read({name: "1024", "stepfleet/queue": "big"}, {})[1] == []
    assert read({name: "1024"}, {"stepfleet/queue": "big"})[1] == []


@pytest.mark.parametrize("name", CONTAINER_TAGS)
def test_a_jobs_tag_for_a_container_is_the_run_launchers(name):
    assert read({}, {name: "1024"})[1] == []


def test_a_warning_shows_the_beginning_of_a_long_value():
    _, (warning,) = read({"dagster-k8s/config": "{" + "x" * 10_000 + "}"}, {})
    assert len(warning) < 600


def test_each_warning_is_said_once_a_run():
    router = Router({"stepfleet/priority": "high"}, CONFIG)
    said = []
    for n in range(1000):
        said += router.place({"ecs/cpu": "1024", "n": str(n % 10)}).warnings
    assert len(said) == 2
    (other,) = router.place({"ecs/cpu": "2048"}).warnings
    assert "2048" in other
    assert router.place({"stepfleet/queue": "gpu", "n": "1"}).queue == "gpu"


@pytest.mark.parametrize(
    "config",
    [
        {"queue": "With.Dot"},
        {"priority": 2**40},
        {"lost_step_retries": -1},
        {"timeout_seconds": -5},
    ],
)
def test_config_that_the_server_would_refuse_is_refused(config):
    with pytest.raises(ValueError, match="executor config has"):
        Defaults(**config)
