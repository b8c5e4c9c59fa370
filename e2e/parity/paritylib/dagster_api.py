"""What the suite asks of Dagster's webserver, as its UI does."""

import json
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from parity_jobs import LOCATIONS

REPOSITORY = "__repository__"
_ERRORS = "... on PythonError { message stack }"
_RUN = "... on LaunchRunSuccess { run { runId } }"


class Refused(Exception):
    """Dagster takes the request and says no."""


class DagsterApi:
    def __init__(self, url: str) -> None:
        self._url = url + "/graphql"
        self._location_of = self._jobs()

    def launch(
        self,
        job: str,
        *,
        config: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        ops: Sequence[str] | None = None,
        assets: Sequence[Sequence[str]] | None = None,
        step_keys: Sequence[str] | None = None,
        parent_run_id: str | None = None,
    ) -> str:
        selector: dict[str, Any] = {**self._repository(job), "jobName": job}
        if ops is not None:
            selector["solidSelection"] = list(ops)
        if assets is not None:
            selector["assetSelection"] = [{"path": list(path)} for path in assets]
        metadata: dict[str, Any] = {"tags": _pairs(tags)}
        params: dict[str, Any] = {
            "selector": selector,
            "runConfigData": dict(config or {}),
            "executionMetadata": metadata,
        }
        mutation = "launchRun"
        if parent_run_id is not None:
            metadata |= {"parentRunId": parent_run_id, "rootRunId": parent_run_id}
            mutation = "launchRunReexecution"
        if step_keys is not None:
            params["stepKeys"] = list(step_keys)
        return self._run_of(mutation, "executionParams: $params", "ExecutionParams!", params)

    def reexecute_from_failure(self, parent_run_id: str) -> str:
        params = {
            "parentRunId": parent_run_id,
            "strategy": "FROM_FAILURE",
            "useParentRunTags": True,
        }
        return self._run_of(
            "launchRunReexecution", "reexecutionParams: $params", "ReexecutionParams", params
        )

    def terminate(self, run_id: str, policy: str = "SAFE_TERMINATE") -> None:
        data = self._ask(
            "mutation($run: String!, $policy: TerminateRunPolicy) {"
            " terminateRun(runId: $run, terminatePolicy: $policy) { __typename"
            " ... on TerminateRunFailure { message } ... on PythonError { message } } }",
            {"run": run_id, "policy": policy},
        )["terminateRun"]
        if data["__typename"] != "TerminateRunSuccess":
            raise Refused(f"terminate {run_id}: {data}")

    def backfill(self, job: str, partitions: Sequence[str], tags: Mapping[str, str]) -> str:
        repository = self._repository(job)
        params = {
            "selector": {
                "partitionSetName": f"{job}_partition_set",
                "repositorySelector": repository,
            },
            "partitionNames": list(partitions),
            "tags": _pairs(tags),
        }
        data = self._ask(
            "mutation($params: LaunchBackfillParams!) {"
            " launchPartitionBackfill(backfillParams: $params) { __typename"
            f" ... on LaunchBackfillSuccess {{ backfillId }} {_ERRORS} }} }}",
            {"params": params},
        )["launchPartitionBackfill"]
        if "backfillId" not in data:
            raise Refused(f"backfill of {job}: {data}")
        return data["backfillId"]

    def start_sensor(self, name: str) -> None:
        selector = {**self._repository(), "sensorName": name}
        self._instigate("startSensor", "sensorSelector", "SensorSelector!", selector)

    def start_schedule(self, name: str) -> None:
        selector = {**self._repository(), "scheduleName": name}
        self._instigate("startSchedule", "scheduleSelector", "ScheduleSelector!", selector)

    def _instigate(self, mutation: str, argument: str, kind: str, selector: dict[str, Any]) -> None:
        data = self._ask(
            f"mutation($s: {kind}) {{ {mutation}({argument}: $s) {{ __typename {_ERRORS} }} }}",
            {"s": selector},
        )[mutation]
        if data["__typename"] not in ("Sensor", "ScheduleStateResult"):
            raise Refused(f"{mutation} {selector}: {data}")

    def _repository(self, job: str = "") -> dict[str, str]:
        """The job's; without one, that of the sensors and schedules."""
        location = self._location_of.get(job, LOCATIONS[0])
        return {"repositoryLocationName": location, "repositoryName": REPOSITORY}

    def _run_of(self, mutation: str, argument: str, kind: str, params: Mapping[str, Any]) -> str:
        data = self._ask(
            f"mutation($params: {kind}) {{ {mutation}({argument}) {{ __typename {_RUN} {_ERRORS}"
            " ... on RunConfigValidationInvalid { errors { message } }"
            " ... on PipelineNotFoundError { message } } }",
            {"params": params},
        )[mutation]
        if "run" not in data:
            raise Refused(json.dumps(data))
        return data["run"]["runId"]

    def _jobs(self) -> dict[str, str]:
        """Of each job, the name of its code location."""
        nodes = self._ask(
            "{ workspaceOrError { ... on Workspace { locationEntries { name"
            " locationOrLoadError { __typename ... on PythonError { message stack }"
            " ... on RepositoryLocation { repositories { jobs { name } } } } } } } }",
            {},
        )["workspaceOrError"]["locationEntries"]
        for node in nodes:
            error = node["locationOrLoadError"]
            if error["__typename"] == "PythonError":
                raise RuntimeError(f"{node['name']} did not load: {error['message']}")
        return {
            job["name"]: node["name"]
            for node in nodes
            for repository in node["locationOrLoadError"]["repositories"]
            for job in repository["jobs"]
            if not job["name"].startswith("__")
        }

    def _ask(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self._url,
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            answer = json.load(response)
        if answer.get("errors"):
            raise RuntimeError(f"graphql: {json.dumps(answer['errors'])[:2000]}")
        return answer["data"]


def _pairs(tags: Mapping[str, str] | None) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in (tags or {}).items()]
