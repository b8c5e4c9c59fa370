"""A code location that takes as long to import as the test wants."""

import os
import time

from dagster import Definitions

while not os.path.exists(os.environ["STEPFLEET_E2E_RELEASE"]):
    time.sleep(0.02)

defs = Definitions()
