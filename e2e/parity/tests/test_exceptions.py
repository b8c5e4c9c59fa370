"""docs/dagster.md must name all that the suite leaves out, and nothing else."""

import re
from pathlib import Path

from parity_jobs import CASES
from paritylib import record, versions
from paritylib.compare import EXCEPTIONS, MASKS, NORMALISATIONS, OWN_VARIABLES, Mask
from paritylib.normal import NAMES, RULES

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "dagster.md"
MOST = 5
_KIND = re.compile(r"[A-Z_]{6,}|\.?dagster/\w+")
WHERE = {"all": "all", "in_process": "all, against in_process alone"}
ALL = [case for cases in CASES.values() for case in cases]


def quoted(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def table(heading: str) -> list[list[str]]:
    """The cells of each row of the section's table."""
    section = DOCUMENT.read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return rows[2:]


def check(mask: Mask, name: str, left_out: str, cases: str) -> None:
    found = {text for text in quoted(left_out) if _KIND.fullmatch(text)} - OWN_VARIABLES
    assert found == mask.events | mask.tags | mask.parts_of, name
    if mask.scope in WHERE:
        assert cases == WHERE[mask.scope], name
    else:
        assert quoted(cases) == {c.name for c in ALL if name in c.masks} != set(), name


def test_the_document_names_every_exception_and_nothing_else() -> None:
    rows = table("Named exceptions")
    assert sorted(row[1] for row in rows) == sorted(f"`{name}`" for name in EXCEPTIONS)
    for number, name, left_out, cases, _ in rows:
        mask = EXCEPTIONS[name.strip("`")]
        assert int(number) == mask.number, name
        check(mask, name.strip("`"), left_out, cases)


def test_there_are_few() -> None:
    numbers = {mask.number for mask in EXCEPTIONS.values()}
    assert numbers == set(range(1, len(numbers) + 1)) and len(numbers) <= MOST


def test_the_document_names_every_normalisation_and_nothing_else() -> None:
    rows = table("Normalisations")
    values = {*RULES, *NAMES, *versions.NAMES, *record.NAMES}
    assert sorted(row[0] for row in rows) == sorted(f"`{n}`" for n in {*values, *NORMALISATIONS})
    for name, what, cases, _ in rows:
        if (name := name.strip("`")) in NORMALISATIONS:
            check(NORMALISATIONS[name], name, what, cases)
        else:
            assert cases == "all"


def test_no_mask_has_two_meanings() -> None:
    assert len(MASKS) == len(EXCEPTIONS) + len(NORMALISATIONS)
    assert all(mask.number == 0 for mask in NORMALISATIONS.values())


def test_no_exception_hides_what_an_asset_or_a_step_has_come_to() -> None:
    for mask in EXCEPTIONS.values():
        assert not any(kind.startswith(("ASSET_", "STEP_OUTPUT")) for kind in mask.events)
        assert not any(kind.startswith("ASSET_") for kind in mask.parts_of)
        assert not mask.events & {"STEP_SUCCESS", "STEP_FAILURE", "STEP_UP_FOR_RETRY"}
    for mask in NORMALISATIONS.values():
        assert not any(kind.startswith(("ASSET_", "STEP_")) for kind in mask.events)


def test_the_document_names_our_variables() -> None:
    (row,) = (row for row in table("Named exceptions") if row[1] == "`own_variables`")
    assert quoted(row[2]) == OWN_VARIABLES


def test_the_document_says_what_each_case_is_compared_with() -> None:
    words = " ".join(DOCUMENT.read_text().split())
    both = sum(len(case.references) == 2 for case in ALL)
    alone = {
        name: sum(case.references == (name,) for case in ALL)
        for name in ("multiprocess", "in_process")
    }
    assert (
        f"{len(ALL)} cases {both} are compared with both, {alone['multiprocess']} with"
        f" `multiprocess_executor` alone and {alone['in_process']} with `in_process_executor` alone"
    ) in words
