"""Running a study: many members trained, measured and saved as one program."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from seqjax.checkpoint import Checkpoints
from seqjax.errors import InputError
from seqjax.reporting import Reporter
from seqjax.study import engine
from seqjax.study.engine import Member, Plan
from seqjax.study.standings import Result, Standings
from seqjax.train import Evaluation, Hyper, Loop, Setup, State, averages, check_hyper, sigterm
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
    max_loss: float = math.inf
    """A member whose mean training loss between two reports is above this has diverged, and ends."""
    eval_batches: int | None = None
    """Evaluate on the first batches of the validation split alone; by default on all."""

    def __post_init__(self):
        least = {"chunk": engine.NARROWEST, "devices": 1, "halving": 1, "rung": 1, "eval_batches": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise InputError(f"study.{name}={value}; it must be at least {bound}.")
        if self.chunk is not None and self.engine != "chunked":
            raise InputError(f"study.chunk={self.chunk} is for engine chunked, not {self.engine}; set study.engine.")
        if self.rung is not None and self.halving == 1:
            raise InputError(f"study.rung={self.rung} has no effect without halving; set study.halving to 2 or more.")
        if self.memory is not None and not self.memory > 0:
            raise InputError(f"study.memory={self.memory}; it must be above 0.")


class Outcome(NamedTuple):
    """What `run_study` returns."""

    results: list[Result]  # best first
    best: State | None  # of the first of them; None if none came to its end
    plan: Plan
    seconds: float


class _Now(NamedTuple):
    """Where a study is."""

    step: int
    members: Member
    best: State | None  # with patience, of each member's best evaluation
    rows: list[int]  # which member each row is; -1 for one that only fills
    seconds: float


def run_study(
    config: Study,
    hypers: Hyper,
    keys: jax.Array,
    *,
    setup: Setup,
    loop: Loop,
    batches: Sequence[Callable[[int, int], Iterable]] | None = None,
    directory: Path | None = None,
    resume: bool = False,
    console: bool = True,
    first: int = 0,
) -> Outcome:
    """Train K models, which differ in their numbers and their keys, as one program.

    Each member is as if it were alone: one that fails changes no bit of another, and with engine "vmap" or "chunked" no
    bits depend on K. With "map" they are those of `seqjax.train.fit`. Members that end, for whatever reason, are left
    out as soon as half of the program is idle: programs of K, K/2, K/4, … members are compiled.

    Args:
      config: the engine, and who goes on.
      hypers: each number a scalar for all members, or ``[K]``.
      keys: ``[K]``; a member trains as a run whose ``setup.init`` gets its key.
      setup: model, training step, data and evaluation.
      loop: steps, and when to report, evaluate and save; patience, of each member by itself. ``on_nan`` has no effect.
      batches: ``(start, stop) -> batches`` of each member; by default all members get the batches of ``setup``.
      directory: for metrics.jsonl and checkpoints; without one nothing is written.
      resume: go on from the newest intact checkpoint in ``directory``, with the same bits.
      console: show progress, if there is a ``directory``.
      first: the number of the first member, in a study of several parts.

    Raises:
      InputError: a number is out of range, K disagrees, or the members do not fit into memory: it tells what would.
      SystemExit: 143, after SIGTERM, once all is saved.
    """
    if jax.process_count() > 1:
        raise InputError("a study runs in one process; start one on each machine, each with its own part of the grid.")
    hypers, k = _checked(hypers, keys)
    if batches is not None and len(batches) != k:
        raise InputError(f"batches: there are {len(batches)} for {k} members; give one for each, or none at all.")
    if setup.evaluation is None and loop.patience is not None:
        raise InputError(f"loop.patience={loop.patience} without an evaluation; give setup one, or leave out patience.")
    rungs = rung_steps(config, k, loop.steps)
    stride = _stride(loop, rungs, evaluated=setup.evaluation is not None, saved=directory is not None)
    stream = _Stream(setup, batches, stride, loop.steps)
    plan = make_plan(config, setup, k, stream.example(), own=stream.own)
    results = [Result(first + i, {name: float(x[i]) for name, x in hypers._asdict().items()}) for i in range(k)]
    standings = Standings(results, loop, evaluated=setup.evaluation is not None, max_loss=config.max_loss)
    measure = None if setup.evaluation is None else _Measure(setup.evaluation, config.eval_batches)

    with ExitStack() as stack:
        stop, saved, checkpoints, reporter = stack.enter_context(sigterm()), None, None, None
        if directory is not None:
            checkpoints = stack.enter_context(Checkpoints(directory / "checkpoints", keep=loop.keep))
            if resume:
                saved = checkpoints.restore(lambda metadata: _template(metadata, plan, setup, stream, loop))
            resumed = None if saved is None else saved.step
            reporter = stack.enter_context(
                Reporter(directory, total_steps=loop.steps, resume_step=resumed, console=console)
            )
        if saved is None:
            now = _begin(plan, setup, hypers, keys, stream, loop)
        else:
            standings.restore(saved.metadata["results"])
            members, best = saved.tree
            now = _Now(saved.step, members, best, saved.metadata["rows"], saved.metadata["seconds"])
        began, logged = time.monotonic() - now.seconds, (time.monotonic(), now.step)

        while standings.running():
            step = min(loop.steps, (now.step // stride + 1) * stride)
            now = _train(plan, setup, stream, now, step)
            last, running = step == loop.steps, len(standings.running())
            if step % loop.log_every == 0 or last:
                values = _averages(now.members.meter)
                now = now._replace(members=now.members._replace(meter=jax.tree.map(jnp.zeros_like, now.members.meter)))
                failed_at = np.asarray(now.members.failed_at).tolist()
                shown = standings.train(step, _by_member(now, values), _by_member(now, failed_at))
                if reporter is not None:
                    rate = (step - logged[1]) * running / max(time.monotonic() - logged[0], 1e-9)
                    reporter.members(step, "train", _numbered(shown, first), time.monotonic() - began)
                    reporter.progress(step, {**standings.shown(), "member steps/s": rate})
                logged = time.monotonic(), step
            if measure is not None and (step % loop.eval_every == 0 or step in rungs or last):
                values = _by_member(now, measure(plan, now.members.state))
                shown = {i: values[i] for i in standings.running()}
                better = standings.validation(step, values)
                if now.best is not None:
                    where = np.isin(now.rows, better)
                    now = now._replace(best=engine.choose_all(plan, where, now.members.state, now.best))
                if reporter is not None:
                    reporter.members(step, "validation", _numbered(shown, first), time.monotonic() - began)
                logged = time.monotonic(), step
            if last:
                standings.finish()
            elif step in rungs:
                standings.halve(config.halving)
            ended = not standings.running()
            now = now if ended else _compacted(plan, now, standings.wanted(), k)
            stopping = stop.is_set() and not ended
            if checkpoints is not None and (step % loop.checkpoint_every == 0 or ended or stopping):
                now = now._replace(seconds=time.monotonic() - began)
                metadata = {"rows": now.rows, "seconds": now.seconds, "results": standings.saved()}
                checkpoints.save(step, (now.members, now.best), metadata)
            if stopping:
                if checkpoints is not None and reporter is not None:
                    checkpoints.wait()
                    reporter.note(f"stopped by SIGTERM; saved at step {step}, go on with --resume")
                raise SystemExit(143)
        seconds = time.monotonic() - began

    ranked, best = standings.ranked(), None
    if ranked[0].complete:
        row = now.rows.index(ranked[0].member - first)
        best = jax.tree.map(lambda a: a[row], now.members.state if now.best is None else now.best)
    return Outcome(ranked, best, plan, seconds)


def _by_member(now: _Now, values: Sequence) -> dict:
    return dict(zip(now.rows, values, strict=True))


def _numbered(shown: dict[int, dict], first: int) -> dict[int, dict]:
    return {first + i: values for i, values in shown.items()}


def _checked(hypers: Hyper, keys: jax.Array) -> tuple[Hyper, int]:
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


def rung_steps(config: Study, k: int, steps: int) -> tuple[int, ...]:
    """The steps at which members are compared and dropped.

    Rungs are at ``rung · halvingⁱ``, before the end (Karnin et al., 2013; Jamieson and Talwalkar, 2016).

    >>> rung_steps(Study(halving=2), 8, 1000), rung_steps(Study(halving=3, rung=50), 8, 1000)
    ((125, 250, 500), (50, 150, 450))
    """
    if config.halving == 1:
        return ()
    # As many rungs as leave one member: then every rung costs about the same.
    n = math.ceil(math.log(k, config.halving) - 1e-9)
    at = config.rung or max(steps // config.halving**n, 1)
    return tuple(itertools.takewhile(lambda step: step < steps, (at * config.halving**i for i in itertools.count())))


def _stride(loop: Loop, rungs: tuple[int, ...], *, evaluated: bool, saved: bool) -> int:
    """Steps a call: they divide every interval."""
    intervals = [loop.log_every, *rungs]
    intervals += [loop.eval_every] if evaluated else []
    intervals += [loop.checkpoint_every] if saved else []
    common = math.gcd(*intervals)
    return max(n for n in range(1, min(common, STEPS_PER_CALL) + 1) if common % n == 0)


# --- data


class _Stream:
    """The batches of a study, stacked so that one call makes several steps."""

    def __init__(self, setup: Setup, own: Sequence[Callable] | None, stride: int, steps: int):
        self._sources, self.own = own or [setup.batches], own is not None
        self._stride, self._steps = stride, steps
        self._next, self._iterators = -1, []

    def take(self, start: int, stop: int, rows: Sequence[int]) -> Iterator[PyTree]:
        """The batches of the steps start … stop-1 as ``[S, …]``, or ``[W, S, …]`` for own ones, in few pieces."""
        if start != self._next:
            self._iterators = [iter(source(start, self._steps)) for source in self._sources]
        read = [list(itertools.islice(iterator, stop - start)) for iterator in self._iterators]
        self._next = stop
        if not self.own:
            yield from _stacked(read[0])
            return
        try:
            yield jax.tree.map(lambda *a: np.stack(a), *[_stack(read[max(row, 0)]) for row in rows])
        except ValueError as error:
            raise InputError(
                "batches: those of members differ in shape, as buckets do; let all members have the same batches."
            ) from error

    def example(self) -> PyTree:
        """What the first call trains one member with, ``[S, …]``."""
        return next(_stacked(list(self._sources[0](0, min(self._stride, self._steps)))))


def _stacked(batches: list) -> Iterator[PyTree]:
    """All on top of each other if their shapes are the same, else each by itself: so few programs are compiled."""
    shapes = {tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch)) for batch in batches}
    for piece in [batches] if len(shapes) == 1 else [[batch] for batch in batches]:
        yield _stack(piece)


def _stack(batches: list) -> PyTree:
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
    need = engine.memory_of(plan, setup, -(-k // plan.unit) * plan.unit, batches, own=own)
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


# --- the parts of the loop


def _begin(plan: Plan, setup: Setup, hypers: Hyper, keys: jax.Array, stream: _Stream, loop: Loop) -> _Now:
    """All members before their first step."""
    rows = [*range(len(keys)), *[-1] * (-len(keys) % plan.unit)]
    at = np.maximum(rows, 0)
    batch = jax.tree.map(lambda a: a[0], stream.example())
    numbers = Hyper._make(np.asarray(x, np.float32)[at] for x in hypers)
    members = engine.start_all(plan, setup, keys[at], numbers, batch)
    best = jax.tree.map(jnp.copy, members.state) if loop.patience is not None else None
    return _Now(0, members, best, rows, 0.0)


def _template(metadata: dict, plan: Plan, setup: Setup, stream: _Stream, loop: Loop) -> PyTree:
    """The shapes of what was saved."""
    one = engine.abstract_member(setup, jax.tree.map(lambda a: a[0], stream.example()))
    members = engine.abstract_members(one, len(metadata["rows"]), plan)
    return members, members.state if loop.patience is not None else None


def _train(plan: Plan, setup: Setup, stream: _Stream, now: _Now, step: int) -> _Now:
    members = now.members
    for batches in stream.take(now.step, step, now.rows):
        members = engine.advance_all(plan, setup, members, batches, own=stream.own)
    return now._replace(step=step, members=members)


def _compacted(plan: Plan, now: _Now, wanted: list[int], k: int) -> _Now:
    """Only the wanted members, once a narrower program holds them."""
    widths = (-(-k // 2**i // plan.unit) * plan.unit for i in range(k.bit_length()))
    width = min(n for n in widths if n >= len(wanted))
    if width >= len(now.rows):
        return now
    kept = [now.rows.index(i) for i in wanted]
    kept += kept[:1] * (width - len(kept))
    members, best = engine.take((now.members, now.best), kept, plan)
    return now._replace(members=members, best=best, rows=[*wanted, *[-1] * (width - len(wanted))])


class _Measure:
    """An evaluation of all members; its batches are read once."""

    def __init__(self, evaluation: Evaluation, limit: int | None):
        self._evaluation = evaluation
        batches = itertools.islice(evaluation.batches(), limit)
        alike = itertools.groupby(batches, key=lambda batch: [np.shape(leaf) for leaf in jax.tree.leaves(batch)])
        self._pieces = [_stack(list(group)) for _, group in alike]

    def __call__(self, plan: Plan, states: State) -> list[dict[str, float]]:
        """The metrics of each."""
        sums = engine.measure_all(plan, self._evaluation, states, self._pieces)
        return [self._evaluation.finish(values) for values in _averages(sums)]


def _averages(metrics: dict) -> list[dict[str, float]]:
    """`seqjax.train.averages` of each member."""
    host = jax.device_get(metrics)
    rows = zip(*jax.tree.leaves(host), strict=True)
    return [averages(jax.tree.unflatten(jax.tree.structure(host), row)) for row in rows]
