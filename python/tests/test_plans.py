"""Plans that are made once are the plans that Dagster makes."""

from __future__ import annotations

import pytest
from dagster import DagsterInvariantViolationError
from dagster._cli.api import recon_job_from_origin
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.plan.state import KnownExecutionState

from dagster_stepfleet import plans, seams
from tests.payloads import MODULE


@pytest.fixture
def jobs(monkeypatch):
    """The tests' jobs by name, as a run's origin leads to them; their plans are kept."""
    monkeypatch.setattr(plans, "_kept", {})
    repository = ReconstructableRepository(MODULE)
    found = {}
    for job in repository.get_definition().get_all_jobs():
        recon = repository.get_reconstructable_job(job.name)
        plans.learn(recon)
        found[job.name] = recon
    return found


def _as_a_step_finds_it(job: ReconstructableJob) -> ReconstructableJob:
    recon = recon_job_from_origin(job.get_python_origin())
    return recon.with_repository_load_data(None).get_subset(
        op_selection=None, asset_selection=None, asset_check_selection=None
    )


def _plan_or_error(make, recon, key) -> object:
    """A step whose key is not known yet has no plan."""
    try:
        return make(recon, run_config={}, step_keys_to_execute=[key])
    except DagsterInvariantViolationError as err:
        assert "Unresolved ExecutionStep" in str(err)
        return str(err)


def test_every_step_gets_the_plan_that_dagster_makes(jobs):
    compared = 0
    for job in jobs.values():
        recon = _as_a_step_finds_it(job)
        assert id(recon.get_definition()) in plans._kept, "the step will not find the kept plan"
        for key in create_execution_plan(recon).step_keys_to_execute:
            made = _plan_or_error(plans.make, recon, key)
            assert made == _plan_or_error(create_execution_plan, recon, key)
            compared += 1
    assert compared > 10


def test_a_mapped_step(jobs):
    recon = _as_a_step_finds_it(jobs["dynamic"])
    known = KnownExecutionState(dynamic_mappings={"split": {"result": ["k0", "k1"]}})
    key = "add[k1]"
    made = plans.make(recon, run_config={}, step_keys_to_execute=[key], known_state=known)
    assert made == create_execution_plan(recon, {}, [key], known)
    assert made.step_keys_to_execute == [key] and made.known_state == known


def test_with_run_config_dagster_makes_it(jobs, monkeypatch):
    asked = []
    monkeypatch.setattr(plans, "create_execution_plan", lambda *args, **_: asked.append(args[1]))
    recon = _as_a_step_finds_it(jobs["chain"])
    plans.make(recon, run_config={}, step_keys_to_execute=["one"])
    assert asked == []
    config = {"execution": {"config": {"max_concurrent": 1}}}
    plans.make(recon, run_config=config, step_keys_to_execute=["one"])
    plans.make(recon, run_config={}, step_keys_to_execute=None)
    assert asked == [config, {}]


def test_a_step_that_is_not_there(jobs):
    with pytest.raises(Exception, match="no_such_step"):
        plans.make(_as_a_step_finds_it(jobs["chain"]), {}, ["no_such_step"])


def test_steps_take_their_plan_here(monkeypatch):
    from dagster._cli import api

    stock = api.create_execution_plan
    monkeypatch.setattr(api, "create_execution_plan", stock)  # puts it back
    plans.install()
    assert api.create_execution_plan is plans.make
    seams.verify(seams.PLAN_CHECKS)
