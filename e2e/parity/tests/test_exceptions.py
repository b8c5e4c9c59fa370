"""docs/dagster.md must name all that the suite leaves out, and nothing else."""

import re
from pathlib import Path

from parity_jobs import CASES
from paritylib.compare import ALWAYS, IN_PROCESS, MASKS, Mask

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "dagster.md"
MOST = 5
_KIND = re.compile(r"[A-Z_]{6,}|\.?dagster/\w+")


def quoted(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def rows() -> dict[str, tuple[int, set[str], str]]:
    """Of each mask: its number, what it leaves out, and the cases."""
    section = DOCUMENT.read_text().split("## Named exceptions", 1)[1].split("\n## ", 1)[0]
    found: dict[str, tuple[int, set[str], str]] = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].isdigit():
            (name,) = quoted(cells[1])
            assert name not in found
            left_out = {text for text in quoted(cells[2]) if _KIND.fullmatch(text)}
            found[name] = (int(cells[0]), left_out, cells[3])
    return found


def cases_of(name: str) -> set[str]:
    return {case.name for cases in CASES.values() for case in cases if name in case.masks}


def test_the_document_names_every_mask_and_nothing_else() -> None:
    masks: dict[str, Mask] = {**ALWAYS, **IN_PROCESS, **MASKS}
    assert len(masks) == len(ALWAYS) + len(IN_PROCESS) + len(MASKS)
    assert set(rows()) == set(masks)
    for name, (number, left_out, cases) in rows().items():
        assert number == masks[name].exception, name
        assert left_out == masks[name].events | masks[name].tags, name
        if name in MASKS:
            assert quoted(cases) == cases_of(name) != set(), name
        else:
            assert cases == ("all" if name in ALWAYS else "all, against in_process alone")


def test_there_are_few() -> None:
    numbers = {number for number, _, _ in rows().values()}
    assert numbers == set(range(1, len(numbers) + 1)) and len(numbers) <= MOST


def test_no_mask_hides_what_an_asset_or_a_step_has_come_to() -> None:
    for mask in (*ALWAYS.values(), *IN_PROCESS.values(), *MASKS.values()):
        assert not any(kind.startswith(("ASSET_", "STEP_OUTPUT")) for kind in mask.events)
        assert not mask.events & {"STEP_SUCCESS", "STEP_FAILURE", "STEP_UP_FOR_RETRY"}
