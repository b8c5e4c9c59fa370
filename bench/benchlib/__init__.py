"""The parts of the Dagster benchmark; dagster_bench.py puts them together."""
