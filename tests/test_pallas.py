"""The Pallas kernels, interpreted on the CPU, against ``implementation="scan"``."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import seqjax
from seqjax.kernels import pallas as module
from seqjax.kernels.linear import linear_recurrence
from seqjax.kernels.pallas import diagonal_recurrence, pallas
from seqjax.kernels.reference import scan
from tests import oracles

T, B, D, H = 7, 4, 3, 6
# All that has a kernel of its own; one stands for the linear ones, which share theirs.
CELLS = [name for name, cell in seqjax.CELLS.items() if cell.linear is None or name == "lru"]
VALID = jnp.arange(T)[:, None] < jnp.array([[T, 0, 3, 1]])
RESETS = jnp.asarray(np.random.default_rng(1).random((T, B)) < 0.4)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """Blocks of 3 steps, the last one cut short."""
    monkeypatch.setattr(module, "MAX_STEPS", 3)


def problem(name, dtype, seed=0):
    """The cell; params, start, carry and xs, all random."""
    cell, rng = seqjax.CELLS[name], np.random.default_rng(seed)
    params = oracles.random_like(rng, cell.init(jax.random.key(0), D, H, dtype=dtype))
    xs = jnp.asarray(rng.normal(size=(T, B, D)), dtype)
    initial = seqjax.initial_carry(cell, params, xs[0])
    return cell, (params, oracles.random_like(rng, initial), oracles.random_like(rng, initial), xs)


def gradient_of(run):
    """(params, start, carry, xs) -> outputs, and gradients of a scalar that touches them all."""

    def objective(params, start, carry, xs):
        carry, ys = run(params, start, carry, xs)
        leaves = jax.tree.leaves((carry, ys))
        total = sum(jnp.sum(jnp.sin((i + 1) * leaf.astype(carry.h.dtype))) for i, leaf in enumerate(leaves))
        return total, (carry, ys)

    return jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2, 3), has_aux=True))


def close(actual, expected, tolerance=1e-10):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), actual, expected)


def both(cell, *options):
    return (gradient_of(lambda *inputs, run=run: run(cell, *inputs, *options)) for run in (pallas, scan))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CELLS)
def test_equals_the_scan(name):
    cell, inputs = problem(name, jnp.float64)
    ours, reference = both(cell, VALID, RESETS, True)
    close(ours(*inputs), reference(*inputs))


@pytest.mark.fast
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "every"), [("lstm", None), ("gru_cho", 4), ("lru", 4)])
def test_without_masks(name, every):
    cell, inputs = problem(name, jnp.float64)
    ours, reference = both(cell, None, None, False, every)
    close(ours(*inputs), reference(*inputs))


def test_bfloat16():
    cell, (params, start, carry, xs) = problem("gru", jnp.float32)
    ours, reference = both(cell, VALID, RESETS, False)
    low = ours(params, start, carry, xs.astype(jnp.bfloat16))
    expected = reference(params, start, carry, xs.astype(jnp.bfloat16))
    assert jax.tree.map(lambda x: x.dtype, low) == jax.tree.map(lambda x: x.dtype, expected)
    for x, y in zip(*map(jax.tree.leaves, (low, expected)), strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_allclose(x, y, atol=0.05 * (1 + np.abs(y).max()))


@pytest.mark.parametrize("pair", [False, True])
def test_the_diagonal_recurrence_in_tiles_of_features(pair):
    keys = jax.random.split(jax.random.key(0), 6)
    a, u = (
        tuple(jax.random.uniform(key, (T, 2, 256), minval=-1, maxval=1) for key in pair_of_keys[: 1 + pair])
        for pair_of_keys in (keys[:2], keys[2:4])
    )
    h0 = tuple(x[0] for x in u)
    inputs = (a, u, h0) if pair else (a[0], u[0], h0[0])

    def loss(run, *inputs):
        return sum(jnp.sum(jnp.sin(h)) for h in jax.tree.leaves(linear_recurrence(*inputs, run=run)))

    ours, expected = (
        jax.jit(jax.value_and_grad(functools.partial(loss, run), argnums=(0, 1, 2)))(*inputs)
        for run in (diagonal_recurrence, None)
    )
    close(ours, expected, 1e-5)


@pytest.mark.parametrize("name", ["lstm", "rglru"])
def test_vmap_over_parameters(name):
    cell, (params, *others) = problem(name, jnp.float32)
    members = [params, problem(name, jnp.float32, 1)[1][0]]
    ours, reference = both(cell, VALID, RESETS, False)
    batched = jax.jit(jax.vmap(lambda params: ours(params, *others)))(jax.tree.map(lambda *p: jnp.stack(p), *members))
    for i, member in enumerate(members):
        close(jax.tree.map(lambda g, i=i: g[i], batched), reference(member, *others), 1e-4)


@pytest.mark.parametrize("name", ["lstm", "lru"])
def test_under_shard_map(name):
    cell, inputs = problem(name, jnp.float32)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rows, batch = P(None, "data"), P("data")

    def sharded(*inputs):
        run = jax.shard_map(
            lambda *inputs: pallas(cell, *inputs, False),
            mesh=mesh,
            in_specs=(P(), batch, batch, rows, rows, rows),
            out_specs=(batch, rows),
        )
        return run(*inputs, VALID, RESETS)

    reference = list(both(cell, VALID, RESETS, False))[1]
    close(gradient_of(sharded)(*inputs), reference(*inputs), 1e-4)


def test_nothing_is_read_that_was_not_written(monkeypatch):
    """The simulator of a TPU's memory fills what it allocates with NaN, and looks for races."""
    simulator = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    monkeypatch.setattr(
        pl, "pallas_call", lambda *a, call=pl.pallas_call, **options: call(*a, **options | {"interpret": simulator})
    )
    cell, inputs = problem("lstm", jnp.float32)
    ours, reference = both(cell, VALID, RESETS, False)
    close(ours(*inputs), reference(*inputs), 1e-4)


@pytest.mark.parametrize(("name", "dtype"), [("lstm", jnp.float32), ("gru_cho", jnp.bfloat16), ("lru", jnp.float32)])
def test_lowers_for_a_tpu(name, dtype, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    cell = seqjax.CELLS[name]
    params = cell.init(jax.random.key(0), D, 128)
    xs = jnp.ones((T, 16, D), dtype)
    start = seqjax.initial_carry(cell, params, xs[0])
    masks = jnp.ones((T, 16), bool)
    gradient = gradient_of(lambda *inputs: pallas(cell, *inputs, masks, masks, False))
    lowered = gradient.trace(params, start, start, xs).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") == 2


def test_errors_name_the_remedy(monkeypatch):
    cell, inputs = problem("lstm", jnp.float32)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params, start, carry, xs = inputs
        sharded = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P("data"))), carry)
        with pytest.raises(ValueError, match=r"the state is sharded.*inside jax\.shard_map"):
            pallas(cell, params, start, sharded, xs, None, None, False)
    for backend, message in (("gpu", "not for 'gpu'; use implementation='fused'"), ("tpu", r"\[B, H\] is \[4, 6\]")):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        with pytest.raises(ValueError, match=message):
            pallas(cell, *inputs, None, None, False)
