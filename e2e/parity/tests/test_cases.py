"""What holds for all cases."""

from parity_jobs import CASES, catalogue, defs
from parity_jobs.case import VARIANTS, job_name
from paritylib.compare import MASKS
from paritylib.drives import DRIVES

ALL = [case for cases in CASES.values() for case in cases]


def test_every_case_can_be_run() -> None:
    jobs = {
        job.name
        for location in (defs, catalogue.defs)
        for job in location.get_repository_def().get_all_jobs()
    }
    for case in ALL:
        assert case.drive in DRIVES, case.name
        assert set(case.masks) <= set(MASKS), case.name
        assert {job_name(case.name, variant) for variant in case.variants} <= jobs


def test_there_are_as_many_as_promised() -> None:
    assert len({case.name for case in ALL}) == len(ALL) >= 40
    assert sum(case.quick for case in ALL) >= 12


def test_tokens_have_one_length() -> None:
    assert len({len(variant.token) for variant in VARIANTS}) == 1
