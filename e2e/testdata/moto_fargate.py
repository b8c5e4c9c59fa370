"""moto's server, with a Fargate that takes what Dagster's EcsRunLauncher asks for.

moto adds up what the containers of a task need and fails where one names no memory. On Fargate the
task names it for all, and there is always room.
"""

import sys
from typing import Any

from moto.ecs.models import EC2ContainerServiceBackend
from moto.server import main


def _needs_nothing(task_definition: Any) -> dict[str, Any]:
    return {}


EC2ContainerServiceBackend._calculate_task_resource_requirements = staticmethod(
    _needs_nothing
)

if __name__ == "__main__":
    main(sys.argv[1:])
