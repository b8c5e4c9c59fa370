"""What a case is, and the variants in which each is run."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dagster import (
    AssetSelection,
    BetaWarning,
    Definitions,
    ExecutorDefinition,
    GraphDefinition,
    JobDefinition,
    Permissive,
    define_asset_job,
    in_process_executor,
    multiprocess_executor,
)
from dagster_stepfleet import stepfleet_executor

# Parts of Dagster that are beta are part of what is compared.
warnings.filterwarnings("ignore", category=BetaWarning)

# The fastest setting of Dagster's own multiprocess executor: its processes have all imports.
_MULTIPROCESS: dict[str, Any] = {
    "max_concurrent": 4,
    "start_method": {
        "forkserver": {
            "preload_modules": [
                "parity_jobs",
                "dagster_postgres",
                "sqlalchemy.dialects.postgresql.psycopg2",
            ]
        }
    },
}


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    return {**_MULTIPROCESS, **config}


@dataclass(frozen=True)
class Variant:
    """An executor, and who launches its runs. The token is in the names of its jobs and assets;
    tokens have one length, so that nothing that is cut or hashed by length differs between
    variants."""

    name: str
    token: str
    executor: ExecutorDefinition
    # Whether the runs are launched by Dagster's own launcher, in a Dagster without stepfleet.
    stock: bool

    @property
    def label(self) -> str:
        """As the suite's output names it."""
        return self.name if self.stock or self.name == "stepfleet" else f"launched {self.name}"


IN_PROCESS = Variant("in_process", "on_inprocess", in_process_executor, stock=True)
MULTIPROCESS = Variant(
    "multiprocess",
    "on_multiproc",
    multiprocess_executor.configured(
        _with_defaults, name="multiprocess_parity", config_schema=Permissive()
    ),
    stock=True,
)
STEPFLEET = Variant("stepfleet", "on_stepfleet", stepfleet_executor, stock=False)
VARIANTS = (IN_PROCESS, MULTIPROCESS, STEPFLEET)

# The same jobs of the stock executors, launched by StepfleetRunLauncher.
LAUNCHED = {v.name: replace(v, stock=False) for v in VARIANTS if v.stock}


@dataclass(frozen=True)
class Case:
    """One job, and how it is run, in every variant the same.

    `status` and `counts` say what the case shows (how its last run ends, and how many events of a
    type all its runs have together): a job that fails before it comes to its point would be the
    same everywhere, and prove nothing.
    """

    name: str
    job: Callable[[Variant], Any]
    status: str = "SUCCESS"
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    # More config for one variant, by its name: executors have settings of their own.
    config_of: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    # Stock executors that the case can be compared with. `why` says why one is left out.
    references: tuple[str, ...] = ("in_process", "multiprocess")
    why: str = ""
    # The function of paritylib.drives that runs it, and what that function is told.
    drive: str = "launch"
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    # What chance decides, by its name in paritylib.compare.MASKS.
    masks: frozenset[str] = frozenset()
    # A line that the stdout of some step must have, after normalisation.
    prints: tuple[str, ...] = ()
    # A message that some step, or the run, must have logged through Dagster.
    logs: tuple[str, ...] = ()
    # The most steps that may be between begin and end at once; 0 is no limit.
    at_most: int = 0
    # The least and the most seconds that a retry may be told to wait; empty is whatever.
    delays: tuple[float, ...] = ()
    # Whether the order in which steps begin is compared too.
    ordered: bool = False
    # Whether it must not run beside others, which it would disturb.
    alone: bool = False
    # Whether the stock executors are compared under our run launcher as well.
    launched: bool = False
    # One of the dozen that `make test` runs.
    quick: bool = False
    timeout_seconds: float = 120.0

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Those that it is run in."""
        stock = [v for v in VARIANTS if v.name in self.references]
        launched = [LAUNCHED[v.name] for v in stock] if self.launched else []
        return (*stock, STEPFLEET, *launched)

    def __post_init__(self) -> None:
        if len(self.references) < 2 and not self.why:
            raise ValueError(f"case {self.name} leaves out a reference and does not say why")


def job_name(case: str, variant: Variant) -> str:
    return f"{case}_{variant.token}"


def graph_case(
    graph: GraphDefinition, *, job: Mapping[str, Any] | None = None, **kwargs: Any
) -> Case:
    """A case whose job is a graph; `job` goes to to_job."""

    def build(variant: Variant) -> JobDefinition:
        return graph.to_job(
            name=job_name(graph.name, variant), executor_def=variant.executor, **(job or {})
        )

    return Case(name=graph.name, job=build, **kwargs)


def asset_case(
    name: str,
    selection: Callable[[Variant], AssetSelection],
    *,
    job: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Case:
    """A case whose job is of assets; `job` goes to define_asset_job."""

    def build(variant: Variant) -> Any:
        return define_asset_job(
            job_name(name, variant),
            selection=selection(variant),
            executor_def=variant.executor,
            **(job or {}),
        )

    return Case(name=name, job=build, **kwargs)


def in_one_slot() -> dict[str, Any]:
    """A case's `config_of` for one step at a time: by the executor's limit, or by the slots of the
    queue, where the ledger says which step is next."""
    return {
        "multiprocess": {"execution": {"config": {"max_concurrent": 1}}},
        "stepfleet": {"execution": {"config": {"queue": "narrow"}}},
    }


def jobs_of(cases: Iterable[Case], **kwargs: Any) -> Definitions:
    """The jobs of the cases, each in its variants."""
    jobs = [case.job(v) for case in cases for v in VARIANTS if v in case.variants]
    return Definitions(jobs=jobs, **kwargs)
