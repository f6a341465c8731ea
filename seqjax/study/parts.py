"""What a study is made of: its options, when things happen, its data, how it is run and how members are measured."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from seqjax.checkpoint import Checkpoints
from seqjax.errors import InputError, check_least
from seqjax.reporting import Reporter
from seqjax.study import engine
from seqjax.study.engine import Member, Plan
from seqjax.study.standings import Result
from seqjax.train import Evaluation, Hyper, Loop, Setup, State, averages, check_hyper
from seqjax.types import PyTree

STEPS_PER_CALL = 100  # at most; more would gain nothing and delay reports


@dataclass(frozen=True)
class Study:
    """How the members of a study run, and which of them go on."""

    engine: Literal["auto", "vmap", "map", "chunked"] = "auto"
    """vmap: all at once. map: one after the other, with the bits of runs of their own. chunked: some at once. auto:
    vmap or chunked, whichever is faster and fits into memory."""
    chunk: int | None = None
    """Members at once on a device, for chunked; at least 4."""
    devices: int | None = None
    """Devices that share the members; by default all."""
    memory: float | None = None
    """Gigabytes that may be used on a device; by default nine tenths of what is free."""
    halving: int = 1
    """Successive halving: at every rung the best 1/halving of the members go on. 1: all do."""
    rung: int | None = None
    """The step of the first rung; each further one is at ``halving`` times the step of the one before. By default such
    that the members would be used up at the end."""
    slots: int | None = None
    """Asynchronous successive halving: so many members train at a time, and who is not good enough at a rung, compared
    with all that have come to it before, gives its place to the next. By default all train together."""
    max_loss: float = math.inf
    """A member whose mean training loss between two reports is above this has diverged, and ends."""
    eval_batches: int | None = None
    """Evaluate on the first batches of the validation split alone; by default on all."""

    def __post_init__(self):
        check_least(self, "study.", chunk=engine.NARROWEST, devices=1, halving=1, rung=1, slots=1, eval_batches=1)
        if self.chunk is not None and self.engine != "chunked":
            raise InputError(f"study.chunk={self.chunk} is for engine chunked, not {self.engine}; set study.engine.")
        if self.rung is not None and self.halving == 1:
            raise InputError(f"study.rung={self.rung} has no effect without halving; set study.halving to 2 or more.")
        if self.slots is not None and self.halving == 1:
            raise InputError(f"study.slots={self.slots} is for successive halving; set study.halving to 2 or more.")
        if self.memory is not None and not self.memory > 0:
            raise InputError(f"study.memory={self.memory}; it must be above 0.")


class Outcome(NamedTuple):
    """What `run_study` returns."""

    results: list[Result]  # best first
    best: State | None  # of the first of them; None if none came to its end
    plan: Plan
    seconds: float


def numbered(shown: dict[int, dict], first: int) -> dict[int, dict]:
    """By the numbers that members have in the whole study."""
    return {first + i: values for i, values in shown.items()}


def checked(hypers: Hyper, keys: jax.Array) -> tuple[Hyper, int]:
    """Numbers of all members, ``[K]`` each, and K."""
    if np.ndim(keys) != 1 or not len(keys):
        raise InputError(f"keys: shape {np.shape(keys)}; give one key for each member, as jax.random.split does.")
    k = len(keys)
    for name, value in hypers._asdict().items():
        if np.shape(value) not in ((), (k,)):
            raise InputError(f"hypers.{name}: shape {np.shape(value)}; give a number, or one for each of the {k} keys.")
    full = [np.broadcast_to(np.asarray(value, float), k) for value in hypers]
    for member in zip(*full, strict=True):
        check_hyper(Hyper(*map(float, member)))
    return Hyper._make(full), k


# --- when


def rung_steps(config: Study, k: int, steps: int, *, every: int = 1) -> tuple[int, ...]:
    """The steps at which members are compared and dropped.

    Rungs are at ``rung · halvingⁱ``, before the end (Karnin et al., 2013; Jamieson and Talwalkar, 2016). A first rung
    that is not given is a multiple of ``every`` or divides it: otherwise calls of one or two steps would have to meet
    both the rungs and what happens every so many steps.

    >>> rung_steps(Study(halving=2), 8, 1000), rung_steps(Study(halving=3, rung=50), 8, 1000)
    ((125, 250, 500), (50, 150, 450))
    >>> rung_steps(Study(halving=2), 8, 1000, every=50)
    (100, 200, 400, 800)
    """
    if config.halving == 1:
        return ()
    # As many rungs as leave one member: then every rung costs about the same.
    n = math.ceil(math.log(k, config.halving) - 1e-9)
    at = config.rung or max(steps // config.halving**n, 1)
    if config.rung is None:
        at = at - at % every if at >= every else largest_divisor(every, at)
    return tuple(itertools.takewhile(lambda step: step < steps, (at * config.halving**i for i in itertools.count())))


def common_interval(loop: Loop, *, evaluated: bool, saved: bool) -> int:
    """The most steps after which anything may have to be reported, evaluated or saved."""
    intervals = [loop.log_every]
    intervals += [loop.eval_every] if evaluated else []
    intervals += [loop.checkpoint_every] if saved else []
    return math.gcd(*intervals)


def largest_divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most so large."""
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)


# --- data


class Stream:
    """The batches of a study, stacked so that one call makes several steps."""

    def __init__(self, setup: Setup, own: Sequence[Callable] | None, stride: int, steps: int):
        self._sources, self.own = own or [setup.batches], own is not None
        self.steps_per_call, self._steps = stride, steps
        self._next, self._iterators = -1, []

    def take(self, start: int, stop: int, rows: Sequence[int]) -> Iterator[PyTree]:
        """The batches of the steps start … stop-1 as ``[S, …]``, or ``[W, S, …]`` for own ones, in few pieces."""
        if start != self._next:
            self._iterators = [iter(source(start, self._steps)) for source in self._sources]
        self._next = stop
        # A member that is no longer in a row never comes back: its batches need not be read.
        read = {i: list(itertools.islice(self._iterators[i], stop - start)) for i in self._read_for(rows)}
        if not self.own:
            yield from _stacked(read[0])
            return
        try:
            yield stack_all([stack_all(read[max(row, 0)]) for row in rows])
        except ValueError as error:
            raise InputError(
                "batches: those of members differ in shape, as buckets do; let all members have the same batches."
            ) from error

    def _read_for(self, rows: Sequence[int]) -> set[int]:
        return {max(row, 0) for row in rows} if self.own else {0}

    def example(self) -> PyTree:
        """What the first call trains one member with, ``[S, …]``."""
        return next(_stacked(list(self._sources[0](0, min(self.steps_per_call, self._steps)))))


def _stacked(batches: list) -> Iterator[PyTree]:
    """All on top of each other if their shapes are the same, else each by itself: so few programs are compiled."""
    shapes = {tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch)) for batch in batches}
    for piece in [batches] if len(shapes) == 1 else [[batch] for batch in batches]:
        yield stack_all(piece)


def stack_all(batches: list) -> PyTree:
    """Trees of arrays, one on top of the other."""
    return jax.tree.map(lambda *a: np.stack(a), *batches)


# --- how

CACHE = 1.5e6
"""Bytes of states that a CPU core trains at once, measured: with more they would leave its cache at every step."""


def make_plan(config: Study, setup: Setup, k: int, batches: PyTree, *, own: bool = False) -> Plan:
    """How K members run: on which devices, and how many at once.

    Args:
      config: what is asked for.
      setup: model and training step.
      k: the number of members.
      batches: what one call trains a member with, ``[S, …]``.
      own: each member has others of these.

    Raises:
      InputError: there are not so many devices, or not so much memory: it tells what would do.
    """
    there = jax.local_device_count()
    if config.devices is not None and config.devices > there:
        hint = " In the environment JAX_NUM_CPU_DEVICES makes several of a CPU." * (jax.default_backend() == "cpu")
        raise InputError(f"study.devices={config.devices}: there are {there}; ask for fewer.{hint}")
    devices = min(config.devices or there, max(k if config.engine == "map" else k // engine.NARROWEST, 1))
    mesh = Mesh(np.array(jax.local_devices()[:devices]), ("member",)) if devices > 1 else None
    if config.engine == "map":
        return Plan(1, mesh)
    share = -(-k // devices)
    member = engine.abstract_member(setup, jax.tree.map(lambda a: a[0], batches))
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(member))
    chunk = config.chunk
    if config.engine == "auto" and jax.default_backend() == "cpu":
        chunk = max(engine.NARROWEST, int(CACHE / state))
    plan = Plan(_even(share, chunk), mesh)
    budget = engine.available_memory() if config.memory is None else 1e9 * config.memory
    need = engine.memory_of(plan, setup, plan.rows(k), batches, own=own)
    if need <= budget:
        return plan
    memory = engine.predict_memory(setup, batches, own=own)
    most = int((budget - memory.fixed - share * state) / (memory.each - state))
    where = f"{need / 1e9:.3g} GB on each of {devices} devices" if devices > 1 else f"{need / 1e9:.3g} GB"
    have = f"{budget / 1e9:.3g} GB are free" if config.memory is None else f"study.memory={config.memory}"
    if most < engine.NARROWEST:
        raise InputError(
            f"{k} members take {where}, and {have}: {max(memory.most(budget), 0) * devices} would fit; take so many, "
            "more devices, or a smaller model or batch."
        )
    if config.engine == "vmap" or config.chunk is not None:
        raise InputError(f"{k} members take {where}, and {have}: use study.engine chunked with study.chunk {most}.")
    return Plan(_even(share, most), mesh)


def _even(share: int, chunk: int | None) -> int | None:
    """The size of chunks at most so large, such that few rows are left over; None for all at once."""
    return None if chunk is None or chunk >= share else -(-share // -(-share // chunk))


def begin(plan: Plan, setup: Setup, hypers: Hyper, keys: jax.Array, batch: PyTree, members: Sequence[int]) -> Member:
    """The members of these numbers before their first step; for -1, which only fills a row, those of number 0."""
    at = np.maximum(members, 0)
    numbers = Hyper._make(np.asarray(x, np.float32)[at] for x in hypers)
    return engine.start_all(plan, setup, keys[at], numbers, batch)


def report(members: Member) -> tuple[Member, list[dict[str, float]], list[int]]:
    """The members with an empty meter; what was in it, row by row; and when each of them failed."""
    values, failed_at = averages_of(members.meter), np.asarray(members.failed_at).tolist()
    return members._replace(meter=jax.tree.map(jnp.zeros_like, members.meter)), values, failed_at


def stop_after_saving(checkpoints: Checkpoints | None, reporter: Reporter | None, where: str) -> NoReturn:
    """What SIGTERM asks for."""
    if checkpoints is not None and reporter is not None:
        checkpoints.wait()
        reporter.note(f"stopped by SIGTERM; saved {where}, go on with --resume")
    raise SystemExit(143)


class Measure:
    """An evaluation of all members; its batches are read once."""

    def __init__(self, evaluation: Evaluation, limit: int | None):
        self._evaluation = evaluation
        batches = itertools.islice(evaluation.batches(), limit)
        alike = itertools.groupby(batches, key=lambda batch: [np.shape(leaf) for leaf in jax.tree.leaves(batch)])
        self._pieces = [stack_all(list(group)) for _, group in alike]

    def __call__(self, plan: Plan, states: State) -> list[dict[str, float]]:
        """The metrics of each."""
        sums = engine.measure_all(plan, self._evaluation, states, self._pieces)
        return [self._evaluation.finish(values) for values in averages_of(sums)]


def averages_of(metrics: dict) -> list[dict[str, float]]:
    """`seqjax.train.averages` of each member."""
    host = jax.device_get(metrics)
    rows = zip(*jax.tree.leaves(host), strict=True)
    return [averages(jax.tree.unflatten(jax.tree.structure(host), row)) for row in rows]
