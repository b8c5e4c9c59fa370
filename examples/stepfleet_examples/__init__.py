"""A Dagster project like a user's own, running its steps on stepfleet.

Start with definitions.py: the two lines that concern stepfleet are the import of
``stepfleet_executor`` and ``executor=stepfleet_executor``.
"""
