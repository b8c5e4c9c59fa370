"""Where results go. What lies in bench/results is published: it is of the whole benchmark and of a
commit that its page names, or it is not written there."""

import re
from collections.abc import Sequence
from pathlib import Path

from benchlib.settings import BENCH

RESULTS = BENCH / "results"


class Refused(SystemExit):
    """A result that must not be published; nothing has been measured yet."""

    def __init__(self, script: str, reasons: Sequence[str], advice: str) -> None:
        listed = "".join(f"\n  - {reason}" for reason in reasons)
        super().__init__(
            f"{script}: the result would be published in {RESULTS}, and must not be:{listed}\n"
            + advice
        )


def destination(
    script: str,
    name: str,
    out: Path | None,
    *,
    partial: Sequence[str],
    unclean: Sequence[str],
    forced: bool,
) -> Path:
    """The JSON file to write: `out`, or the published one of this name. `partial` says what of the
    benchmark is left out, `unclean` why the commit does not tell what is measured; each refuses to
    publish, the second one unless it is forced."""
    if out is not None:
        if out.resolve().parent == RESULTS:
            raise Refused(script, [f"{out} is among the published results"], _ADVICE_NAME)
        return out
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise SystemExit(f"--publish {name!r}: want small letters, digits, - and _")
    if partial:
        raise Refused(script, partial, _ADVICE_PARTIAL)
    if unclean and not forced:
        raise Refused(script, unclean, _ADVICE_UNCLEAN)
    return RESULTS / f"{name}.json"


_ADVICE_NAME = "Use --publish NAME for the whole benchmark, or name another file with --out."
_ADVICE_PARTIAL = "Run the whole, or name a file of your own for the result: --out /tmp/part.json"
_ADVICE_UNCLEAN = (
    "Commit and build first, or name a file of your own for the result: --out /tmp/mine.json\n"
    "(--publish-unclean publishes it all the same, and the page says so.)"
)
