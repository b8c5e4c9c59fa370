"""Values that are normalised differ between two runs of stock Dagster, and are the same afterwards;
what is next to them stays a difference."""

from pathlib import Path

import pytest

from paritylib.normal import NAMES, RULES, Normaliser

RUNS = ("4bbc1e2c-be49-4408-997c-50dc3bcb2cb5", "0d2b6a0e-6a1f-4f0c-9a0b-7a5d4f7a3c11")
HOMES = (Path("/tmp/one"), Path("/tmp/two"))
LINE = "2026-11-25 01:52:07 +0000 - dagster - DEBUG - job"

# By rule: what two runs have said in one place, and what two runs must not both say.
SAID: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "VARIANT": (("job_on_inprocess", "job_on_multiproc"), ("job_on_inprocess", "job_on_itself")),
    "UUID": (
        (
            "backfill 5f9c9bd6-8f0e-4a8e-8a6c-0a3c7a8f6b1d",
            "backfill 9b1f1a52-12aa-4b6a-8b43-6f4d4a0f3c55",
        ),
        ("backfill 5f9c9bd6", "backfill 9b1f1a52"),
    ),
    "TIME": (
        ("at 2026-11-25 01:52:07 +0000", "at 2026-11-25 01:58:43 +0000"),
        ("partition 2026-11-25", "partition 2026-11-26"),
    ),
    "DURATION": (
        ("in 34ms, 59.99s, 2.1s.", "in 1.02s, 1m0s, 1h4m."),
        ("a retry in 0.2 seconds", "a retry in 0.3 seconds"),
    ),
    "ADDRESS": (
        ("<object object at 0x7f1c2a7d4f50>", "<object object at 0x7f9e5f2b4f50>"),
        ("0x", "0y"),
    ),
    "PID": (
        ("Capturing logs for process (pid 1018).", "Capturing logs for process (pid 977)."),
        ("1018 rows", "977 rows"),
    ),
    "RESOURCES": (
        (
            "Initialization of resources [a, b] failed.",
            "Initialization of resources [b, a] failed.",
        ),
        ("Initialization of resources [a, b] failed.", "Initialization of resources [a] failed."),
    ),
}


def normal(text: str, of: int = 0) -> str:
    return Normaliser([RUNS[of]], HOMES[of]).text(text)


def test_every_rule_is_shown() -> None:
    assert set(SAID) == set(RULES)


@pytest.mark.parametrize("rule", list(RULES))
def test_what_differs_between_two_runs_is_the_same_afterwards(rule: str) -> None:
    (first, second), others = SAID[rule]
    assert first != second
    assert normal(first) == normal(second)
    assert rule in normal(first)
    assert normal(others[0]) != normal(others[1])


def test_a_process_in_a_console_line() -> None:
    first, second = (f"{LINE} - {RUNS[0]} - {pid} - a - STEP_START - x" for pid in (1018, 977))
    assert (
        normal(first)
        == normal(second)
        == "TIME - dagster - DEBUG - job - RUN - PID - a" + (" - STEP_START - x")
    )
    first, second = (f"{LINE} - {RUNS[0]} - {rows} rows" for rows in (3, 4))
    assert normal(first) != normal(second)


def test_where_dagster_keeps_its_files() -> None:
    first, second = (f"Writing {home}/storage/a" for home in HOMES)
    assert normal(first, 0) == normal(second, 1) == "Writing HOME/storage/a"
    assert normal(first, 1) == first


def test_ids_of_runs_keep_the_runs_apart() -> None:
    normaliser = Normaliser(RUNS)
    assert [normaliser.text(f"of {run}") for run in RUNS] == ["of RUN", "of RUN1"]


@pytest.mark.parametrize(
    ("tag", "name"), [("dagster/backfill", "BACKFILL"), ("dagster/tick", "TICK")]
)
def test_ids_in_tags_keep_apart_what_is_apart(tag: str, name: str) -> None:
    assert name in NAMES
    one, other = Normaliser([]), Normaliser([])
    assert [one.tag(tag, value) for value in ("7", "9", "7")] == [name, f"{name}1", name]
    assert [other.tag(tag, value) for value in ("12", "15", "12")] == [name, f"{name}1", name]
    assert one.tag("dagster/run_key", "7") == "7"
