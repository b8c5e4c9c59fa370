"""What may be published, and what is refused with which words."""

from pathlib import Path

import pytest

import dagster_bench
import levers as levers_script
from benchlib import facts, publish, settings


def destination(
    *,
    name: str = "dagster",
    out: Path | None = None,
    partial: str = "",
    unclean: str = "",
    forced: bool = False,
) -> Path:
    return publish.destination(
        "x.py",
        name,
        out,
        partial=[partial] if partial else [],
        unclean=[unclean] if unclean else [],
        forced=forced,
    )


def test_the_whole_benchmark_of_a_clean_tree_is_published_under_its_name() -> None:
    assert destination() == publish.RESULTS / "dagster.json"
    assert destination(name="dagster-2") == publish.RESULTS / "dagster-2.json"
    with pytest.raises(SystemExit, match="small letters"):
        destination(name="../dagster")


def test_a_part_is_not_published_even_when_forced(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"(?s)without mode celery.*--out"):
        destination(partial="without mode celery", forced=True)
    out = tmp_path / "part.json"
    assert destination(out=out, partial="without mode celery") == out
    with pytest.raises(SystemExit, match="among the published results"):
        destination(out=publish.RESULTS / "dagster.json", partial="without mode celery")


def test_a_tree_with_changes_is_published_only_when_forced() -> None:
    with pytest.raises(SystemExit, match=r"(?s)not committed.*--publish-unclean"):
        destination(unclean="changes that are not committed")
    assert destination(unclean="changes", forced=True) == publish.RESULTS / "dagster.json"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("", ""),
        ("--modes in_process,stepfleet", "without mode multiprocess_forkserver, "),
        ("--jobs chain50", "without job single, fanout100"),
        ("--repetitions 4", "4 repetitions"),
        ("--quick", "1 repetitions"),
        ("--no-prepare", "--no-prepare"),
        ("--no-run-start", "--no-run-start"),
    ],
)
def test_what_makes_a_benchmark_a_part(arguments: str, reason: str) -> None:
    reasons = dagster_bench.left_out(dagster_bench.parse(arguments.split()))
    assert len(reasons) == bool(reason) and all(reason in told for told in reasons)


def test_some_levers_are_a_part() -> None:
    parse, left_out = levers_script.parse, levers_script.left_out
    assert left_out(parse([])) == left_out(parse(["--levers", "all"])) == []
    assert "priming" in left_out(parse(["--levers", "relay"]))[0]


def test_a_part_is_refused_before_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dagster_bench, "steps", lambda *_: pytest.fail("it was measured"))
    with pytest.raises(SystemExit, match="must not be"):
        dagster_bench.main(["--modes", "in_process"])


def of_git(answers: dict[str, str]) -> object:
    """Answers as git would, by the first argument."""
    return lambda *arguments: answers.get(arguments[0], "")


def test_what_speaks_against_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    binary = settings.ROOT / "bin" / "stepfleet"
    version = "0123456"
    monkeypatch.setattr(facts, "binary_version", lambda _: version)
    about = {"commit": "a" * 40, "dirty": False}

    def objections() -> str:
        return "; ".join(facts.objections(about, binary))

    monkeypatch.setattr(facts, "git", of_git({"rev-parse": "a" * 40}))
    assert objections() == ""
    about["dirty"] = True
    assert "not committed" in objections()
    about["dirty"] = False
    monkeypatch.setattr(facts, "git", of_git({"rev-parse": "b" * 40}))
    assert "is of 0123456, not of this one (make build)" in objections()
    assert facts.objections(about, None) == []
    # Its changes may be results of the run before; without any now, they were of code.
    version = "0123456-dirty"
    monkeypatch.setattr(facts, "git", of_git({"rev-parse": "a" * 40}))
    assert "before its changes were committed" in objections()
    monkeypatch.setattr(
        facts, "git", of_git({"rev-parse": "a" * 40, "status": " M bench/results/dagster.md"})
    )
    assert objections() == ""
    about["commit"] = ""
    assert "no git work tree" in objections()


def test_results_do_not_make_a_tree_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "ROOT", tmp_path)
    run = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    facts.git("init", "-q")
    (tmp_path / "code").write_text("1")
    facts.git("add", ".")
    facts.git(*run, "commit", "-q", "-m", "one")
    (tmp_path / facts.RESULTS).mkdir(parents=True)
    (tmp_path / facts.RESULTS / "dagster.json").write_text("{}")
    first = facts.source()
    assert len(first["commit"]) == 40 and not first["dirty"]
    assert facts.built_from(first["commit"][:7]) == first["commit"]
    assert facts.built_from(first["commit"][:7] + "-dirty") == first["commit"]
    assert facts.built_from("dev") == facts.built_from("") == ""
    (tmp_path / "code").write_text("2")
    assert facts.source()["dirty"]
