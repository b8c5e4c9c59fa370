"""Runs the cases in three variants, records what Dagster's log says of each, and compares."""
