"""Interleaved measurement: a machine that slows down for a while slows all competitors equally.

Each round runs every competitor once, in a random order. A ratio compares two runs of the same
round, and the result is the median over the rounds.
"""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

ROLES = ("ours", "peer", "other", "limit")
MIN_ROUNDS = 3
SHORTEST = 0.02  # seconds: anything shorter is repeated, and the time divided


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and how all suites run."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    compile: bool = False

    def autocast(self) -> AbstractContextManager:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device, self.dtype)

    def compiled(self, model: nn.Module) -> nn.Module:
        return torch.compile(model) if self.compile else model


@dataclass(frozen=True, kw_only=True)
class Built:
    """A competitor that is ready to run; parameters counts tied ones once."""

    run: Callable[[], object]
    parameters: int = 0


@dataclass(frozen=True, kw_only=True)
class Competitor:
    """One way to do the work of a case, built when the case begins.

    Args:
        make: builds it, checks it and returns it; an ImportError means that it is not installed.
        role: "ours", once in each case; "peer"; "other" for a variant that is not ranked;
            "limit" for the part of the work that no implementation can leave out.
        note: how its work differs.
    """

    name: str
    make: Callable[[], Built]
    role: str = "peer"
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Some work, and the competitors that do it.

    Args:
        work: tokens that one run reads or generates; 0 if only time counts.
        flops: operations of the matrix multiplications of one run, to compare with the peak.
        memory: whether to measure peak memory.
    """

    suite: str
    name: str
    competitors: list[Competitor]
    work: int = 0
    flops: int = 0
    memory: bool = False


@dataclass(kw_only=True)
class Row:
    """The result of one competitor; a ratio above 1 means that ours was faster."""

    suite: str
    case: str
    name: str
    role: str
    note: str
    parameters: int
    seconds: float
    work: int
    flops: int
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    peak_bytes: int


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], object], repeats: int = 1) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize()
    return (time.perf_counter() - start) / repeats


def peak_bytes(run: Callable[[], object]) -> int:
    """Peak memory of one run beyond what was allocated before, as PyTorch's allocator counts it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def build(case: Case) -> tuple[dict[str, Built], dict[str, str]]:
    """Build all competitors and say why a peer is missing; ours must not be missing."""
    built, missing = {}, {}
    for one in case.competitors:
        torch.manual_seed(0)
        try:
            ready = one.make()
            ready.run()  # warm-up; a peer that fails, fails here
        except Exception as error:
            if one.role == "ours":
                raise
            missing[one.name] = f"{type(error).__name__}: {error}"
        else:
            built[one.name] = ready
    return built, missing


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running during a measurement."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def take_turns(
    built: dict[str, Built], *, rounds: int, end: float, repeats: int, seed: int
) -> dict[str, list[float]]:
    """Time all of them in each round, in a new random order, while a round ends before `end`."""
    shuffle = random.Random(seed)
    taken: dict[str, list[float]] = {name: [] for name in built}
    with no_collection():
        for n in range(rounds):
            round_takes = sum(repeats * times[-1] for times in taken.values()) if n else 0.0
            if n >= MIN_ROUNDS and time.perf_counter() + round_takes > end:
                break
            for name in shuffle.sample(list(built), len(built)):
                taken[name].append(seconds_of(built[name].run, repeats))
    return taken


def measure(
    case: Case, *, rounds: int = 25, budget: float = math.inf, seed: int = 0
) -> tuple[list[Row], dict[str, str]]:
    """Measure all competitors of a case.

    Args:
        rounds: the largest number of rounds.
        budget: seconds in total; at least MIN_ROUNDS rounds are run.

    Returns:
        A row for each competitor, and why the others are missing.
    """
    roles = [one.role for one in case.competitors]
    if roles.count("ours") != 1 or not set(roles) <= set(ROLES):
        raise ValueError(f'measure: roles must be among {ROLES}, with "ours" once, got {roles}')
    if rounds < 1:
        raise ValueError(f"measure: rounds must be at least 1, got {rounds}")
    end = time.perf_counter() + budget
    built, missing = build(case)
    memory = {name: peak_bytes(one.run) if case.memory else 0 for name, one in built.items()}
    ours = next(one.name for one in case.competitors if one.role == "ours")
    repeats = math.ceil(SHORTEST / max(seconds_of(built[ours].run), SHORTEST / 100))
    taken = take_turns(built, rounds=rounds, end=end, repeats=repeats, seed=seed)
    rows = []
    for one in case.competitors:
        if one.name not in built:
            continue
        low, middle, high = quartiles(
            [theirs / own for theirs, own in zip(taken[one.name], taken[ours], strict=True)]
        )
        row = Row(
            suite=case.suite, case=case.name, name=one.name, role=one.role, note=one.note,
            parameters=built[one.name].parameters, seconds=statistics.median(taken[one.name]),
            work=case.work, flops=case.flops, ratio=middle, ratio_low=low, ratio_high=high,
            rounds=len(taken[one.name]), peak_bytes=memory[one.name],
        )  # fmt: skip
        rows.append(row)
    return rows, missing


def run_suite(
    cases: Iterable[Case], *, rounds: int, budget: float, seed: int = 0
) -> Iterator[tuple[Case, list[Row], dict[str, str]]]:
    """Measure cases one after the other; later cases get the time that a case leaves."""
    waiting = list(cases)
    end = time.perf_counter() + budget
    while waiting:
        seconds = (end - time.perf_counter()) / len(waiting)
        case = waiting.pop(0)
        yield case, *measure(case, rounds=rounds, budget=seconds, seed=seed)
        gc.collect()


def best_peer(rows: list[Row]) -> Row | None:
    """The fastest peer of a case, if it has any."""
    peers = [row for row in rows if row.role == "peer"]
    return min(peers, key=lambda row: row.ratio, default=None)


def standing(rows: list[Row]) -> list[tuple[float, str, str, str]]:
    """Each case's ratio to its fastest peer, its suite, its name and the peer, worst first."""
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cases.setdefault((row.suite, row.case), []).append(row)
    found = []
    for (suite, case), group in cases.items():
        best = best_peer(group)
        if best is not None:
            found.append((best.ratio, suite, case, best.name))
    return sorted(found)


def as_dicts(rows: list[Row]) -> list[dict[str, object]]:
    return [asdict(row) for row in rows]
