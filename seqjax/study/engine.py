"""How members become one program: each of them as if it were alone, mapped over a leading axis.

A function of one member is mapped by a `Plan`: all members at once by ``vmap``, one after the other by ``lax.map``, or
in chunks, ``lax.map`` over ``vmap``; and on several devices with an equal share for each, which exchange nothing.

The bits of a member that is mapped by ``vmap`` do not depend on how many members there are, nor on how many devices;
``lax.map`` gives the bits of a run of its own. Between the two they differ by rounding.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from seqjax.train import Evaluation, Hyper, Setup, State, averaged_params
from seqjax.types import PyTree


class Member(NamedTuple):
    """A model in training. With a leading axis on every leaf: several."""

    state: State
    hyper: Hyper
    meter: dict  # metrics, summed since the last report
    failed_at: jax.Array  # int32: the step whose loss or gradient was not finite for the first time; -1 for none


class Plan(NamedTuple):
    """How a function of one member is mapped over all of them."""

    chunk: int | None  # members of a vmap; 1 maps without vmap; None takes all that a device has
    mesh: Mesh | None = None  # with the one axis "member"; None is the default device

    @property
    def devices(self) -> int:
        """The number of shares."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def unit(self) -> int:
        """What the number of members is a multiple of. In a vmap of one or two a member would have other bits."""
        return self.devices * (NARROWEST if self.chunk is None else self.chunk)

    def rows(self, k: int) -> int:
        """The rows of a program for k members: some may only fill."""
        return -(-k // self.unit) * self.unit

    @property
    def sharding(self) -> NamedSharding | None:
        """Where members are."""
        return None if self.mesh is None else NamedSharding(self.mesh, P("member"))


NARROWEST = 4
"""Members of the narrowest vmap. XLA:CPU treats axes of one and of two in ways of their own."""


def over_members(function: Callable, plan: Plan, mapped: int = 1) -> Callable:
    """``function(*of_one_member, *shared) -> result`` for all members of a device.

    The first ``mapped`` arguments and the result have a leading axis, of members.
    """

    def of_all(*arguments):
        members, shared = arguments[:mapped], arguments[mapped:]
        n = jax.tree.leaves(members)[0].shape[0]

        def of_one(members):
            return function(*members, *shared)

        if plan.chunk == 1:
            return lax.map(of_one, members)
        if plan.chunk is None or plan.chunk == n:
            return jax.vmap(of_one)(members)
        chunks = jax.tree.map(lambda a: a.reshape(-1, plan.chunk, *a.shape[1:]), members)
        return jax.tree.map(lambda a: a.reshape(n, *a.shape[2:]), lax.map(jax.vmap(of_one), chunks))

    return of_all


# --- functions of one member


def start(init: Callable, train_step: Callable, key: jax.Array, hyper: Any, batch: PyTree) -> Member:
    """The member before its first step."""
    state = init(key)
    metrics = jax.eval_shape(train_step, state, batch, hyper)[1]
    meter = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics)
    return Member(state, hyper, meter, jnp.full((), -1, jnp.int32))


def advance(train_step: Callable, member: Member, batches: PyTree) -> Member:
    """Train on batches that are stacked along a leading axis, one after the other."""

    def step(member, batch):
        state, metrics = train_step(member.state, batch, member.hyper)
        first = (metrics["skipped"][0] > 0) & (member.failed_at < 0)
        failed_at = jnp.where(first, state.step, member.failed_at)
        return Member(state, member.hyper, jax.tree.map(jnp.add, member.meter, metrics), failed_at), None

    return lax.scan(step, member, batches)[0]


def measure_first(evaluation: Evaluation, state: State) -> PyTree:
    """What an evaluation carries, before its first batch."""
    return evaluation.init(averaged_params(state))


def measure(evaluation: Evaluation, state: State, carried: PyTree, batches: PyTree) -> tuple[PyTree, dict]:
    """What is carried, and the sums of the metrics, after stacked batches."""
    params = averaged_params(state)

    def step(carried, batch):
        carried, metrics = evaluation.step(params, carried, batch)
        return carried, metrics

    carried, metrics = lax.scan(step, carried, batches)
    return carried, jax.tree.map(lambda m: jnp.sum(m, axis=0), metrics)


def choose(where: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """``new`` where True, else ``old``."""
    return jax.tree.map(lambda a, b: jnp.where(where, a, b), new, old)


# --- all members


class Program(NamedTuple):
    """A function of all members, compiled for each device by itself.

    One program for all devices would be partitioned by XLA, and rewritten for that: members would have other bits than
    on a single device.
    """

    executables: tuple
    mesh: Mesh | None
    mapped: int

    def __call__(self, *arguments: PyTree) -> PyTree:
        """Start the program on all devices."""
        if self.mesh is None:
            return self.executables[0](*arguments)
        leaves, tree = jax.tree.flatten(arguments[: self.mapped])
        shares = zip(*(_shares(leaf, self.mesh) for leaf in leaves), strict=True)
        results = [
            run(*jax.tree.unflatten(tree, share), *arguments[self.mapped :])
            for run, share in zip(self.executables, shares, strict=True)
        ]
        return jax.tree.map(partial(_joined, NamedSharding(self.mesh, P("member"))), *results)


def _shares(leaf: jax.Array, mesh: Mesh) -> list[jax.Array]:
    by_device = {shard.device: shard.data for shard in leaf.addressable_shards}
    return [by_device[device] for device in mesh.devices.flat]


def _joined(sharding: NamedSharding, *shares: jax.Array) -> jax.Array:
    shape = (len(shares) * shares[0].shape[0], *shares[0].shape[1:])
    return jax.make_array_from_single_device_arrays(shape, sharding, list(shares))


@lru_cache(maxsize=256)
def _compile(function: Callable, bound: tuple, plan: Plan, mapped: int, donate: bool, tree: Any, leaves: tuple):
    program = over_members(partial(function, *bound), plan, mapped)

    def on(device) -> Any:
        place = None if device is None else SingleDeviceSharding(device)
        # Results that depend on no argument must know their device, too.
        jitted = jax.jit(program, donate_argnums=0 if donate else (), out_shardings=place)
        shapes = (jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place) for a in leaves)
        return jitted.lower(*jax.tree.unflatten(tree, shapes)).compile()

    if plan.mesh is None:
        return Program((on(None),), None, mapped)
    with ThreadPoolExecutor() as threads:
        return Program(tuple(threads.map(on, plan.mesh.devices.flat)), plan.mesh, mapped)


def compiled(
    function: Callable, bound: tuple, plan: Plan, *arguments: PyTree, mapped: int = 1, donate: bool = False
) -> Program:
    """The program of ``function(*bound, *of_one_member, *shared)`` for arguments of these shapes, compiled once.

    ``bound`` are hashable; arguments are arrays or `jax.ShapeDtypeStruct`; the first may be donated.
    """
    leaves, tree = jax.tree.flatten(arguments)
    n = len(jax.tree.leaves(arguments[:mapped]))
    shares = ((a.shape[0] // plan.devices, *a.shape[1:]) if i < n else a.shape for i, a in enumerate(leaves))
    shapes = (jax.ShapeDtypeStruct(shape, a.dtype) for shape, a in zip(shares, leaves, strict=True))
    return _compile(function, bound, plan, mapped, donate, tree, tuple(shapes))


def start_all(plan: Plan, setup: Setup, keys: jax.Array, hypers: Any, batch: PyTree) -> Member:
    """Each member before its first step, with the bits of a run of its own."""
    alone = Plan(1)
    shares = [
        compiled(start, (setup.init, setup.train_step), alone, *share, batch, mapped=2)(*share, batch)
        for share in _split((keys, hypers), plan.devices)
    ]
    if plan.mesh is None:
        return shares[0]
    # All from the program of one device, since it runs only once: a program for each would take longer to compile.
    placed = map(jax.device_put, shares, plan.mesh.devices.flat)
    return jax.tree.map(partial(_joined, NamedSharding(plan.mesh, P("member"))), *placed)


def _split(tree: PyTree, n: int) -> list[PyTree]:
    """n equal parts of the leading axis."""
    size = jax.tree.leaves(tree)[0].shape[0] // n
    return [jax.tree.map(lambda a, i=i: a[i * size : (i + 1) * size], tree) for i in range(n)]


def advance_all(plan: Plan, setup: Setup, members: Member, batches: PyTree, *, own: bool) -> Member:
    """Train all on stacked batches, the same or, ``[W, S, …]``, their own; ``members`` are donated."""
    program = compiled(advance, (setup.train_step,), plan, members, batches, mapped=1 + own, donate=True)
    return program(members, jax.device_put(batches, plan.sharding) if own else batches)


def measure_all(plan: Plan, evaluation: Evaluation, states: State, pieces: list[PyTree]) -> dict:
    """The sums of the metrics of each member, over pieces of stacked batches."""
    carried = compiled(measure_first, (evaluation,), plan, states)(states)
    total: Any = None
    for batches in pieces:
        program = compiled(measure, (evaluation,), plan, states, carried, batches, mapped=2)
        carried, sums = program(states, carried, batches)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    return total


def choose_all(plan: Plan, where: np.ndarray, new: PyTree, old: PyTree) -> PyTree:
    """Member by member ``new`` where True, else ``old``."""
    where = jax.device_put(where, plan.sharding)
    return compiled(choose, (), plan, where, new, old, mapped=3)(where, new, old)


def take(members: PyTree, rows: Sequence[int], plan: Plan) -> PyTree:
    """The members in these rows, as many as that."""
    return _taking(plan.sharding)(members, np.asarray(rows, np.int32))


@cache
def _taking(sharding):
    return jax.jit(lambda members, rows: jax.tree.map(lambda a: a[rows], members), out_shardings=sharding)


# --- shapes and memory


def abstract_member(setup: Setup, batch: PyTree) -> Member:
    """The shapes of a member that trains on such a batch."""
    hyper = Hyper._make(jax.ShapeDtypeStruct((), np.float32) for _ in Hyper._fields)
    return jax.eval_shape(partial(start, setup.init, setup.train_step), jax.random.key(0), hyper, batch)


def abstract_members(member: Member, n: int, plan: Plan) -> Member:
    """The shapes of n of them."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((n, *a.shape), a.dtype, sharding=plan.sharding), member)


class Memory(NamedTuple):
    """Bytes that a device needs for n members: ``fixed + n * each``."""

    fixed: float
    each: float

    def __call__(self, n: int) -> int:
        """The bytes."""
        return int(self.fixed + n * self.each)

    def most(self, budget: float) -> int:
        """The most members that fit into so many bytes."""
        return int((budget - self.fixed) / self.each)


def memory_of(plan: Plan, setup: Setup, n: int, batches: PyTree, *, own: bool = False) -> int:
    """Bytes that training n members takes on a device: arguments, results, temporary memory. Compiles the program."""
    members = abstract_members(abstract_member(setup, jax.tree.map(lambda a: a[0], batches)), n, plan)
    if own:
        batches = jax.tree.map(lambda a: jax.ShapeDtypeStruct((n, *a.shape), a.dtype), batches)
    program = compiled(advance, (setup.train_step,), plan, members, batches, mapped=1 + own, donate=True)
    m = program.executables[0].memory_analysis()
    return m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes


def predict_memory(setup: Setup, batches: PyTree, *, own: bool = False) -> Memory:
    """What engine "vmap" takes for any number of members on a device, from programs of 4 and of 12 that are not run.

    ``batches`` are those of one call, ``[S, …]``.
    """
    small, large = (memory_of(Plan(None), setup, n, batches, own=own) for n in (4, 12))
    each = (large - small) / 8
    return Memory(small - 4 * each, each)


def available_memory() -> float:
    """Bytes that a study may use on each device: nine tenths of what is free."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return 0.9 * (stats["bytes_limit"] - stats["bytes_in_use"])
    return 0.9 * _host_memory() / jax.local_device_count()


def _host_memory() -> float:
    """Bytes that are free on this machine, or left to this container; infinite where neither can be found out."""
    free = math.inf
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024.0 * int(lines["MemAvailable"].split()[0])
        limit, used = (float(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        statistics = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        free = min(free, limit - used + float(statistics.get("inactive_file", 0)))  # cached files make room
    except (OSError, ValueError, KeyError):  # "max" is no number: there is no limit
        pass
    return free
