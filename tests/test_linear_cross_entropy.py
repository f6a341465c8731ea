import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from seqjax.errors import InputError
from seqjax.kernels import linear_cross_entropy as kernel
from seqjax.losses import cross_entropy, linear_cross_entropy
from tests.test_losses import oracle

B, T, D, V = 4, 8, 5, 11


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """32 tokens in 6 chunks, four of them padded, and 11 words in 3 blocks, of which the last overlaps."""
    monkeypatch.setattr(kernel, "_CHUNK", 6)
    monkeypatch.setattr(kernel, "_BLOCK", 4)
    monkeypatch.setattr(kernel, "_SMALL", 0)


def make(key, dtype=jnp.float32):
    keys = jax.random.split(key, 5)
    hidden, table = jax.random.normal(keys[0], (B, T, D), dtype), jax.random.normal(keys[1], (V, D), dtype)
    bias, where = jax.random.normal(keys[2], (V,), dtype), jax.random.uniform(keys[3], (B, T), dtype, 0.1, 2)
    return hidden, table, bias, where, jax.random.randint(keys[4], (B, T), 0, V)


def materialised(hidden, table, targets, *, bias=None, **options):
    logits = hidden @ table.T.astype(hidden.dtype)
    return cross_entropy(logits if bias is None else logits + jnp.broadcast_to(bias, logits.shape), targets, **options)


def derivatives(loss, *, masked):
    """The mean loss of all that can be differentiated, and its gradients."""

    def mean(hidden, table, bias, where, smoothing, z, targets):
        where = where > 0.7 if masked else where
        options = {"where": where, "label_smoothing": smoothing, "z_loss": z}
        total, weight = loss(hidden, table, targets, bias=bias, **options)
        return total / weight

    return jax.jit(jax.value_and_grad(mean, argnums=tuple(range(6))))


@pytest.mark.fast
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", ["plain", "masked", "weighted"])
def test_equals_cross_entropy_of_all_logits(key, options):
    hidden, table, bias, where, targets = make(key, jnp.float64)
    smoothing, z = (0.0, 0.0) if options == "plain" else (0.1, 0.01)
    arguments = hidden, table, bias, where, jnp.asarray(smoothing), jnp.asarray(z), targets
    found = derivatives(linear_cross_entropy, masked=options == "masked")(*arguments)
    expected = derivatives(materialised, masked=options == "masked")(*arguments)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-14), found, expected)
    keep = where > 0.7 if options == "masked" else where
    logits = np.einsum("btd,vd->btv", hidden, table) + np.asarray(bias)
    total, weight = oracle(logits, targets, keep, smoothing, z)
    np.testing.assert_allclose(found[0], total / weight, rtol=1e-12)


@pytest.mark.full
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("tokens", "vocabulary"), [((), 9), ((1,), 1), ((5,), 4), ((13,), 5), ((13,), 8), ((3, 2, 2), 3), ((0,), 9)]
)
def test_any_number_of_tokens_and_words(key, tokens, vocabulary):
    keys = jax.random.split(key, 3)
    hidden = jax.random.normal(keys[0], (*tokens, D), jnp.float64)
    table = jax.random.normal(keys[1], (vocabulary, D), jnp.float64)
    targets = jax.random.randint(keys[2], tokens, 0, vocabulary)

    @functools.partial(jax.jit, static_argnums=2)
    def run(hidden, table, loss):
        return loss(hidden, table, targets), jax.grad(lambda *a: loss(*a, targets)[0], argnums=(0, 1))(hidden, table)

    found, expected = run(hidden, table, linear_cross_entropy), run(hidden, table, materialised)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-14), found, expected)


def test_masked_tokens_may_hold_anything(key):
    hidden, table, bias, where, targets = make(key)
    keep = where > 0.7
    spoilt, ids = jnp.where(keep[..., None], hidden, jnp.nan), jnp.where(keep, targets, -100)
    # An excluded word: the target that stands in for the masked ones, too.
    bias = bias.at[0].set(-jnp.inf)
    ids, targets = jnp.where(keep & (targets == 0), 1, ids), jnp.where(targets == 0, 1, targets)

    @jax.jit
    def loss(hidden, ids):
        def total(hidden, table, bias):
            return linear_cross_entropy(hidden, table, ids, bias=bias, where=keep, z_loss=1e-3)[0]

        return jax.value_and_grad(total, argnums=(0, 1, 2))(hidden, table, bias)

    found, expected = loss(spoilt, ids), loss(hidden, targets)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("target", [-1, V])
def test_a_target_outside_the_vocabulary_gives_nan(key, target):
    hidden, table, _, _, targets = make(key)
    assert jnp.isnan(jax.jit(linear_cross_entropy)(hidden, table, targets.at[2, 3].set(target))[0])


def test_low_precision_products_add_up_in_float32(key):
    hidden, table, bias, _, targets = make(key)
    low = hidden.astype(jnp.bfloat16)

    def total(hidden, table, bias):
        return linear_cross_entropy(hidden, table, targets, bias=bias, label_smoothing=0.1)[0]

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
    value, (dhidden, dtable, dbias) = run(low, table, bias)
    assert (value.dtype, dhidden.dtype, dtable.dtype, dbias.dtype) == (jnp.float32, jnp.bfloat16, *2 * (jnp.float32,))
    rounded = table.astype(jnp.bfloat16).astype(jnp.float32)
    expected, (_, expected_table, expected_bias) = run(low.astype(jnp.float32), rounded, bias)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(dbias, expected_bias, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dtable, expected_table, atol=0.02)


def products(compiled) -> int:
    return len(re.findall(r"= \S+ dot\(", compiled.as_text()))


def test_no_array_holds_all_logits(monkeypatch):
    monkeypatch.setattr(kernel, "_CHUNK", 16)
    monkeypatch.setattr(kernel, "_BLOCK", 64)
    tokens, width, words = (8, 32), 128, 2000
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((*tokens, width), (words, width))]
    targets = jax.ShapeDtypeStruct(tokens, jnp.int32)

    def largest(compiled):
        return max(math.prod(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", compiled.as_text()))

    def mean(hidden, table, targets, loss=linear_cross_entropy):
        total, weight = loss(hidden, table, targets)
        return total / weight

    both, first = (jax.jit(jax.grad(mean, argnums)).lower(*shapes, targets).compile() for argnums in ((0, 1), 0))
    value = jax.jit(mean).lower(*shapes, targets).compile()
    rival = jax.jit(jax.grad(functools.partial(mean, loss=materialised), (0, 1))).lower(*shapes, targets).compile()
    assert largest(rival) >= 256 * words
    assert largest(both) == largest(value) == words * width
    # The logits of a chunk and little else: not even a copy of the table.
    for program in (value, both):
        assert program.memory_analysis().temp_size_in_bytes < 4 * words * (16 + width // 2)
    # No gradient that was not asked for is computed.
    assert (products(value), products(first), products(both), products(rival)) == (1, 2, 3, 3)


def test_maps_over_parameters_and_options(key):
    tables = jax.random.normal(jax.random.fold_in(key, 1), (3, V, D))
    smoothings = jnp.array([0.0, 0.1, 0.3])
    hidden, _, bias, _, targets = make(key)

    def total(hidden, table, bias, smoothing):
        return linear_cross_entropy(hidden, table, targets, bias=bias, label_smoothing=smoothing)[0]

    run = jax.value_and_grad(total, argnums=(0, 1, 2, 3))
    found = jax.jit(jax.vmap(run, in_axes=(None, 0, None, 0)))(hidden, tables, bias, smoothings)
    single = jax.jit(run)
    for i in range(3):
        expected = single(hidden, tables[i], bias, smoothings[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5), found, expected)


def total_of(hidden, table, bias, where, targets):
    return linear_cross_entropy(hidden, table, targets, bias=bias, where=where, label_smoothing=0.1, z_loss=1e-3)[0]


@pytest.mark.parametrize(("kind", "chunk"), [(AxisType.Auto, 6), (AxisType.Auto, 8), (AxisType.Explicit, 6)])
def test_batches_may_be_sharded(key, kind, chunk, monkeypatch):
    monkeypatch.setattr(kernel, "_CHUNK", chunk)
    kernel._compiled_total.clear_cache()  # of programs for other chunks
    arguments = make(key)
    loss = jax.jit(jax.value_and_grad(total_of, argnums=(0, 1, 2, 3)))
    expected = loss(*arguments)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        rows, whole = NamedSharding(mesh, P("rows")), NamedSharding(mesh, P())
        found = loss(*jax.device_put(arguments, (rows, whole, whole, rows, rows)))
    # Under Auto axes a chunk that no number of devices divides is right, but not divided.
    assert (chunk == 6 and kind == AxisType.Auto) or found[1][0].sharding.spec[0] == "rows"
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


def test_under_shard_map_gradients_are_summed_once(key):
    arguments = make(key)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
    rows = P("rows")

    def total(*arguments):
        return jax.lax.psum(total_of(*arguments), "rows")

    mapped = jax.shard_map(total, mesh=mesh, in_specs=(rows, P(), P(), rows, rows), out_specs=P())
    run = jax.jit(jax.value_and_grad(mapped, argnums=(0, 1, 2, 3))).lower(*arguments).compile()
    rows, whole = NamedSharding(mesh, rows), NamedSharding(mesh, P())
    found = run(*jax.device_put(arguments, (rows, whole, whole, rows, rows)))
    expected = jax.jit(jax.value_and_grad(total_of, argnums=(0, 1, 2, 3)))(*arguments)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)
    sums = [line for line in run.as_text().splitlines() if " all-reduce" in line]
    assert sums
    assert not any("while" in line for line in sums)


@pytest.mark.parametrize(
    ("hidden", "table", "targets", "options", "message"),
    [
        ((2, 3, 5), (7, 5), jnp.zeros((2, 3)), {}, "targets must be integers, not float32"),
        ((2, 3, 5), (7, 5), jnp.zeros((2, 4), int), {}, r"hidden \(2, 3, 5\) does not fit targets \(2, 4\)"),
        ((2, 3, 5), (5, 7), jnp.zeros((2, 3), int), {}, r"table \(5, 7\) does not fit hidden"),
        ((2, 3, 5), (7, 5), jnp.zeros((2, 3), int), {"bias": jnp.zeros(5)}, r"bias \(5,\) does not fit table"),
        ((2, 3, 5), (7, 5), jnp.zeros((2, 3), int), {"where": jnp.ones((2, 1))}, r"where \(2, 1\) must have the shape"),
    ],
)
def test_bad_input(hidden, table, targets, options, message):
    with pytest.raises(InputError, match=message):
        linear_cross_entropy(jnp.zeros(hidden), jnp.zeros(table), targets, **options)
