"""The project's Definitions. The two lines marked with (1) and (2) are all that stepfleet needs."""

from dagster import DefaultScheduleStatus, Definitions, ScheduleDefinition
from dagster_stepfleet import stepfleet_executor  # (1)

from stepfleet_examples import assets, jobs, settings, sink


def _schedules() -> list[ScheduleDefinition]:
    running = DefaultScheduleStatus.RUNNING
    stopped = DefaultScheduleStatus.STOPPED
    return [
        ScheduleDefinition(
            name=f"{job.name}_schedule",
            job=job,
            cron_schedule=settings.cron(),
            default_status=running if settings.schedules_on() else stopped,
        )
        for job in jobs.SCHEDULED
    ]


defs = Definitions.merge(
    assets.defs,
    Definitions(
        jobs=[*jobs.ALL, sink.to_postgres],
        schedules=_schedules(),
        executor=stepfleet_executor,  # (2)
    ),
)
