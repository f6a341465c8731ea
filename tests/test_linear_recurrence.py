"""The linear recurrence against a plain loop, and linear cells against ``implementation="scan"``."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import seqjax
from seqjax.kernels import linear as module
from seqjax.kernels.linear import linear, linear_recurrence
from seqjax.kernels.reference import scan
from tests import oracles

T, B, D, H = 7, 4, 3, 5
# A real and a complex one; tests/test_recurrence.py has them all.
CELLS = [seqjax.CELLS[name] for name in ("rglru", "lru")]
each_form = pytest.mark.parametrize("pair", [False, True], ids=["real", "pair"])
each_way = pytest.mark.parametrize("way", [module.loop, module.associative], ids=["loop", "associative"])
each_direction = pytest.mark.parametrize("reverse", [False, True])


def problem(pair, dtype, steps=T, seed=0):
    """Random a in (-1, 1), u and h0, and the cotangent of all h."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        made = tuple(jnp.asarray(rng.uniform(-1, 1, size=shape), dtype) for _ in range(1 + pair))
        return made if pair else made[0]

    return draw((steps, B, H)), draw((steps, B, H)), draw((B, H)), draw((steps, B, H))


def loop(a, u, h0, reverse=False):
    """The equation, a step at a time; pairs as complex numbers."""
    pair = isinstance(u, tuple)
    a, u, h = (jax.lax.complex(*x) if pair else x for x in (a, u, h0))
    hs = [h] * len(u)
    for t in reversed(range(len(u))) if reverse else range(len(u)):
        h = a[t] * h + u[t]
        hs[t] = h
    hs = jnp.stack(hs)
    return (hs.real, hs.imag) if pair else hs


def gradient_of(run):
    """(inputs, the cotangent) -> (value, all h), gradients of a scalar that touches every h."""

    def objective(a, u, h0, weights):
        hs = run(a, u, h0)
        return sum(jnp.sum(jnp.sin(h) * w) for h, w in zip(*map(jax.tree.leaves, (hs, weights)), strict=True)), hs

    return jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True)


def close(actual, expected, tolerance=1e-10):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), actual, expected)


@pytest.mark.fast
@pytest.mark.usefixtures("x64")
@each_form
@each_direction
@each_way
def test_equals_a_plain_loop(pair, reverse, way):
    inputs = problem(pair, jnp.float64)
    ours = functools.partial(linear_recurrence, reverse=reverse, run=way)
    oracle = functools.partial(loop, reverse=reverse)
    close(*(jax.jit(gradient_of(run))(*inputs) for run in (ours, oracle)))


@pytest.mark.usefixtures("x64")
@each_way
def test_second_derivatives(way):
    inputs = problem(True, jnp.float64, steps=4)

    def curvature(run):
        def norm(*inputs):
            return sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient_of(run)(*inputs)[1]))

        return jax.jit(jax.grad(norm, argnums=(0, 1, 2)))(*inputs)

    close(curvature(functools.partial(linear_recurrence, run=way)), curvature(loop))


@each_way
def test_vmap(way):
    members = [problem(True, jnp.float32, seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    gradient = gradient_of(functools.partial(linear_recurrence, run=way))
    batched, alone = jax.jit(jax.vmap(gradient))(*stacked), jax.jit(gradient)
    for i, member in enumerate(members):
        close(jax.tree.map(lambda g, i=i: g[i], batched), alone(*member), 1e-5)


def sharded_problem(way):
    """a [H] is the same everywhere, as that of ``lru``; u and h0 are split by rows."""
    a, *others = problem(True, jnp.float32)

    def run(a, u, h0):
        a = jax.tree.map(lambda a, u: jnp.broadcast_to(a, u.shape), a, u)
        return linear_recurrence(a, u, h0, run=way)

    inputs = (jax.tree.map(lambda a: a[0, 0], a), *others)
    specs = (P(), P(None, "data"), P("data"), P(None, "data"))
    return run, inputs, tuple((spec, spec) for spec in specs), jax.jit(gradient_of(run))(*inputs)


@each_way
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(way, axis_type):
    run, inputs, specs, expected = sharded_problem(way)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        placed = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), inputs, specs)
        close(jax.jit(gradient_of(run))(*placed), expected, 1e-5)


@each_way
def test_under_shard_map(way):
    run, inputs, specs, expected = sharded_problem(way)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.shard_map(run, mesh=mesh, in_specs=specs[:3], out_specs=specs[3])
    close(jax.jit(gradient_of(sharded))(*inputs), expected, 1e-5)


def test_low_precision_is_computed_in_float32():
    a, u, h0, _ = problem(False, jnp.float32)
    low = linear_recurrence(a, u.astype(jnp.bfloat16), h0)
    assert low.dtype == jnp.float32
    close(low, linear_recurrence(a, u.astype(jnp.bfloat16).astype(jnp.float32), h0))


def test_errors_name_argument_value_and_remedy():
    a, u, h0, _ = problem(False, jnp.float32)
    # Without the annotation checks of the test session, which would speak first.
    with pytest.raises(ValueError, match=r"a is \(7, 4, 5\) and u is \(6, 4, 5\).*broadcast_to"):
        linear_recurrence.__wrapped__(a, u[:6], h0)
    cell = seqjax.CELLS["gru"]
    params = cell.init(jax.random.key(0), D, H)
    with pytest.raises(ValueError, match=r"'gru' has no linear form.*use 'fused'"):
        linear(cell, params, None, None, jnp.zeros((T, B, D)), None, None, False)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("cell", CELLS, ids=[cell.name for cell in CELLS])
@each_way
@pytest.mark.parametrize(("masked", "reverse"), [(False, False), (True, True)])
def test_cells_equal_the_scan(cell, masked, way, reverse):
    rng = np.random.default_rng(0)
    params = oracles.random_like(rng, cell.init(jax.random.key(0), D, H, dtype=jnp.float64))
    xs = jnp.asarray(rng.normal(size=(T, B, D)))
    initial = seqjax.initial_carry(cell, params, xs[0])
    start, carry = (oracles.random_like(rng, initial) for _ in range(2))
    valid = resets = None
    if masked:
        valid = jnp.arange(T)[:, None] < jnp.array([[T, 0, 3, 1]])
        resets = jnp.asarray(rng.random((T, B)) < 0.4)

    def loss(run, params, start, carry, xs):
        carry, ys = run(cell, params, start, carry, xs, valid, resets, reverse)
        weights = jnp.cos(jnp.arange(ys.size, dtype=ys.dtype)).reshape(ys.shape)
        return jnp.sum(ys * weights) + sum(jnp.sum(jnp.sin(leaf)) for leaf in carry), (carry, ys)

    ours, reference = (
        jax.jit(jax.value_and_grad(functools.partial(loss, run), argnums=(0, 1, 2, 3), has_aux=True))
        for run in (functools.partial(linear, run=way), scan)
    )
    close(ours(params, start, carry, xs), reference(params, start, carry, xs))


@pytest.mark.parametrize("cell", CELLS, ids=[cell.name for cell in CELLS])
def test_cells_in_bfloat16_and_with_carries(cell):
    rng = np.random.default_rng(0)
    params = oracles.random_like(rng, cell.init(jax.random.key(0), D, H))
    xs = jnp.asarray(rng.normal(size=(T, B, D)), jnp.bfloat16)
    start = seqjax.initial_carry(cell, params, xs[0])
    emitting = cell._replace(pointwise=seqjax.recurrence._emitting_carry(cell.pointwise))
    valid = jnp.arange(T)[:, None] < jnp.array([[T, 0, 3, 1]])
    last, (ys, carries) = linear(emitting, params, start, start, xs, valid, None, False)
    expected = scan(emitting, params, start, start, xs, valid, None, False)
    assert ys.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((last, carries)))
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), ((last, (ys, carries)), expected))
    close(*low, 2e-2)
