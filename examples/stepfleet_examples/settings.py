"""What the environment can change about the examples.

Two kinds, because step processes are forked from a template that imported this project long
before: what shapes a job is read once, at import; what an op does is read when the op runs.

| variable | default | meaning |
|---|---|---|
| STEPFLEET_TIME_SCALE | 1.0 | factor on every duration, read when an op runs |
| STEPFLEET_EFFECT_LOG | | file of the effect log, read when an op runs; see effects.py |
| STEPFLEET_EXAMPLE_SINK_URL | | PostgreSQL that `to_postgres` writes to, read when an op runs |
| STEPFLEET_EXAMPLE_SCHEDULES | off | "on": the three schedules run as soon as a daemon does |
| STEPFLEET_EXAMPLE_CRON | */10 * * * * | when they tick |
| STEPFLEET_EXAMPLE_FAST_OPS | 6 | ops of `fast`, and fast ops of `mixed` |
| STEPFLEET_EXAMPLE_SLOW_OPS | 3 | ops of `slow`, and slow ops of `mixed` |
| STEPFLEET_EXAMPLE_CHAIN_STEPS | 10 | steps of `chain` |
| STEPFLEET_EXAMPLE_FAN_OUT_STEPS | 20 | parallel steps of `fan_out`, without source and fan-in |
| STEPFLEET_EXAMPLE_RECOVER_STEPS | 6 | parallel steps of `recover` |
"""

import os

MAX_STEPS = 10_000  # a typing error must not make a graph that takes minutes to load


def time_scale() -> float:
    """The factor on every duration; 0 makes all ops instant."""
    text = os.environ.get("STEPFLEET_TIME_SCALE", "") or "1.0"
    scale = float(text)
    if not 0 <= scale <= 1000:
        raise ValueError(f"STEPFLEET_TIME_SCALE={text}: want a number from 0 to 1000")
    return scale


def steps(name: str, default: int) -> int:
    """The number of steps that STEPFLEET_EXAMPLE_<name> asks for."""
    variable = f"STEPFLEET_EXAMPLE_{name}"
    text = os.environ.get(variable, "") or str(default)
    if not text.isdigit() or not 1 <= int(text) <= MAX_STEPS:
        raise ValueError(f"{variable}={text}: want a whole number from 1 to {MAX_STEPS}")
    return int(text)


def schedules_on() -> bool:
    return os.environ.get("STEPFLEET_EXAMPLE_SCHEDULES", "").lower() == "on"


def cron() -> str:
    return os.environ.get("STEPFLEET_EXAMPLE_CRON", "") or "*/10 * * * *"
