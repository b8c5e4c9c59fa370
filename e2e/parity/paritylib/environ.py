"""The environment of a user, in which both the stack and stock Dagster are started."""

import os
from pathlib import Path

from parity_jobs.say import SECRET

_CREDENTIALS = """[default]
aws_access_key_id = of-no-profile
aws_secret_access_key = x

[parity]
aws_access_key_id = of-the-profile
aws_secret_access_key = x
"""
_CONFIG = """[default]
region = us-east-1

[profile parity]
region = ap-south-1
"""


def user_environment(directory: Path, project: Path) -> dict[str, str]:
    """This process's own environment, with what the cases look for and nothing of a shell in which
    stepfleet or Dagster were set up."""
    marks = directory / "marks"
    marks.mkdir()
    credentials, config = directory / "aws-credentials", directory / "aws-config"
    credentials.write_text(_CREDENTIALS)
    config.write_text(_CONFIG)
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STEPFLEET_", "DAGSTER_", "AWS_", "PYTHON"))
    }
    return environ | {
        "PYTHONPATH": str(project),
        "PARITY_MARKS": str(marks),
        "PARITY_SECRET": SECRET,
        "AWS_PROFILE": "parity",
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
        "AWS_CONFIG_FILE": str(config),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
