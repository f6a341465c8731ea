from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from seqjax.errors import InputError
from seqjax.normalization import BatchStats, batch_norm, batch_stats, layer_norm, rms_norm


def layer_loop(x, g, b, epsilon=1e-5):
    y = np.zeros(x.shape)
    for index in np.ndindex(*x.shape[:-1]):
        row = x[index]
        mean = sum(row) / len(row)
        var = sum((entry - mean) ** 2 for entry in row) / len(row)
        for d, entry in enumerate(row):
            y[(*index, d)] = g[d] * (entry - mean) / np.sqrt(var + epsilon) + b[d]
    return y


def rms_loop(x, g, b, epsilon=1e-6):
    y = np.zeros(x.shape)
    for index in np.ndindex(*x.shape[:-1]):
        square = sum(entry**2 for entry in x[index]) / x.shape[-1]
        for d, entry in enumerate(x[index]):
            y[(*index, d)] = g[d] * entry / np.sqrt(square + epsilon)
    return y


def batch_loop(x, g, b, where, epsilon=1e-5):
    """y, the mean, and the sum of the squared deviations."""
    y, mean, squares = np.zeros(x.shape), np.zeros(x.shape[-1]), np.zeros(x.shape[-1])
    for d in range(x.shape[-1]):
        kept = [x[(*index, d)] for index in np.ndindex(*where.shape) if where[index]]
        if not kept:
            continue
        mean[d] = sum(kept) / len(kept)
        squares[d] = sum((entry - mean[d]) ** 2 for entry in kept)
        for index in np.ndindex(*where.shape):
            if where[index]:
                y[(*index, d)] = g[d] * (x[(*index, d)] - mean[d]) / np.sqrt(squares[d] / len(kept) + epsilon) + b[d]
    return y, mean, squares


def gradients(function, arrays, step=1e-5):
    """Central differences of a function of NumPy arrays."""
    found = []
    for i, array in enumerate(arrays):
        slope = np.zeros(array.shape)
        for index in np.ndindex(*array.shape):
            moved = np.zeros(array.shape)
            moved[index] = step
            up, down = (function(*arrays[:i], array + sign * moved, *arrays[i + 1 :]) for sign in (1, -1))
            slope[index] = (up - down) / (2 * step)
        found.append(slope)
    return found


@pytest.fixture
def arrays(key):
    """x [4, 6, 3], g, b, and weights of a loss."""
    keys = jax.random.split(key, 4)
    x = 1 + 2 * jax.random.normal(keys[0], (4, 6, 3))
    return x, 1 + jax.random.normal(keys[1], 3), jax.random.normal(keys[2], 3), jax.random.normal(keys[3], x.shape)


WHERE = np.arange(24).reshape(4, 6) % 5 > np.array([[0], [3], [1], [9]])  # the last row keeps nothing

ROW_NORMS = {
    "layer": (layer_norm, layer_loop),
    "layer without b": (lambda x, g, b: layer_norm(x, g), lambda x, g, b: layer_loop(x, g, 0 * b)),
    "layer epsilon": (partial(layer_norm, epsilon=0.5), partial(layer_loop, epsilon=0.5)),
    "rms": (lambda x, g, b: rms_norm(x, g), rms_loop),
    "rms epsilon": (lambda x, g, b: rms_norm(x, g, epsilon=0.5), partial(rms_loop, epsilon=0.5)),
}


@pytest.mark.fast
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ROW_NORMS)
def test_row_norms_equal_the_loop_in_value_and_gradient(arrays, name):
    function, loop = ROW_NORMS[name]
    x, g, b, weights = (array.astype(jnp.float64) for array in arrays)

    @jax.jit
    def run(x, g, b):
        return jax.value_and_grad(lambda *inputs: jnp.sum(weights * function(*inputs)), (0, 1, 2))(x, g, b)

    y = function(x, g, b)
    assert y.dtype == jnp.float64
    np.testing.assert_allclose(y, loop(*map(np.asarray, (x, g, b))), rtol=1e-12, atol=1e-12)
    small = (x[:1, :2], g, b)
    weights = weights[:1, :2]
    _, found = run(*small)
    expected = gradients(lambda *inputs: (np.asarray(weights) * loop(*inputs)).sum(), [*map(np.asarray, small)])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), list(found), expected)


@pytest.mark.parametrize("name", ["layer", "rms"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_statistics_of_low_precision_are_float32(key, name, dtype):
    function, loop = ROW_NORMS[name]
    x = (20 + jax.random.normal(key, (2, 500))).astype(dtype)  # float16 could not hold the sum of squares
    g, b = jnp.linspace(0.5, 2, 500), jnp.linspace(-1, 1, 500)
    y = function(x, g, b)
    assert y.dtype == dtype
    expected = loop(*(np.asarray(array, np.float64) for array in (x, g, b)))
    half_unit = float(jnp.finfo(dtype).eps) / 2
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=1.01 * half_unit, atol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_norms_of_sharded_batches(arrays, kind):
    where = jnp.asarray(WHERE)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def run(x, g, b, where, weights):
        y, stats = batch_norm(rms_norm(layer_norm(x, g, b), g), g, b, batch_stats(3), train=True, where=where)
        return jnp.sum(weights * y), stats

    x, g, b, weights = arrays
    expected = run(x, g, b, where, weights)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        x, where, weights = jax.device_put((x, where, weights), NamedSharding(mesh, P("rows")))
        found = run(x, *jax.device_put((g, b), P()), where, weights)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.fast
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("masked", [False, True])
def test_batch_norm_equals_the_loop_in_value_and_gradient(arrays, masked):
    x, g, b, weights = (array.astype(jnp.float64) for array in arrays)
    keep = WHERE if masked else np.ones_like(WHERE)
    stats = BatchStats(jnp.array([0.5, -1.0, 2.0]), jnp.array([0.5, 1.0, 2.0]))
    options = {"where": jnp.asarray(WHERE) if masked else None, "momentum": 0.7, "epsilon": 0.01}

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def run(x, g, b):
        y, new = batch_norm(x, g, b, stats, train=True, **options)
        return jnp.sum(weights * y), (y, new)

    (_, (y, new)), found = run(x, g, b)
    inputs = [*map(np.asarray, (x, g, b))]
    expected, mean, squares = batch_loop(*inputs, keep, 0.01)
    n = keep.sum()
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(new.mean, 0.7 * stats.mean + 0.3 * mean, rtol=1e-12)
    np.testing.assert_allclose(new.var, 0.7 * stats.var + 0.3 * squares / (n - 1), rtol=1e-12)
    slopes = gradients(lambda *inputs: (np.asarray(weights) * batch_loop(*inputs, keep, 0.01)[0]).sum(), inputs)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), list(found), slopes)


def test_running_statistics_normalize_in_evaluation(arrays):
    x, g, b, _ = arrays
    stats = BatchStats(jnp.array([0.5, -1.0, 2.0]), jnp.array([0.5, 1.0, 2.0]))
    y, same = jax.jit(partial(batch_norm, train=False))(x, g, b, stats, where=jnp.asarray(WHERE))
    jax.tree.map(np.testing.assert_array_equal, same, stats)
    expected = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        if WHERE[index[:-1]]:
            d = index[-1]
            expected[index] = g[d] * (x[index] - stats.mean[d]) / np.sqrt(stats.var[d] + 1e-5) + b[d]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def masked_run():
    @partial(jax.jit, static_argnames="train")
    def run(x, g, b, where, weights, train=True):
        def loss(x, g, b):
            y, stats = batch_norm(x, g, b, batch_stats(3), train=train, where=where)
            return jnp.sum(weights * y), (y, stats)

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, g, b)

    return run


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_padding_may_hold_anything(arrays, masked_run, junk, train):
    x, g, b, weights = arrays
    where = jnp.asarray(WHERE)
    expected = masked_run(x, g, b, where, weights, train=train)
    spoilt = jnp.where(where[..., None], x, junk)
    found = masked_run(spoilt, g, b, where, weights, train=train)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    (_, (y, _)), (d_x, _, _) = found
    assert not np.any(y[~WHERE])
    assert not np.any(d_x[~WHERE])


def test_a_batch_of_padding_changes_nothing(arrays, masked_run):
    x, g, b, weights = arrays
    (_, (y, stats)), grads = masked_run(jnp.full_like(x, jnp.nan), g, b, jnp.zeros((4, 6), bool), weights)
    jax.tree.map(np.testing.assert_array_equal, stats, batch_stats(3))
    assert not any(np.any(array) for array in (y, *grads))


def test_one_entry_has_a_mean_and_no_variance(arrays, masked_run):
    x, g, b, weights = arrays
    (_, (y, stats)), _ = masked_run(x, g, b, jnp.zeros((4, 6), bool).at[2, 3].set(True), weights)
    np.testing.assert_allclose(stats.mean, 0.1 * x[2, 3], rtol=1e-5)
    np.testing.assert_array_equal(stats.var, 1)
    np.testing.assert_array_equal(y[2, 3], b)


@pytest.mark.parametrize("axes", ["shard_map", "vmap"])
def test_parts_of_a_batch_share_statistics(arrays, masked_run, axes):
    x, g, b, weights = arrays
    where = jnp.asarray(WHERE)  # every part keeps another number of entries, the last one none
    normalize = partial(batch_norm, train=True, axis_name="rows")
    if axes == "shard_map":
        mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
        parts = jax.shard_map(
            lambda x, g, b, stats, where: normalize(x, g, b, stats, where=where),
            mesh=mesh,
            in_specs=(P("rows"), P(), P(), P(), P("rows")),
            out_specs=(P("rows"), P()),
        )
    else:

        def parts(x, g, b, stats, where):
            mapped = jax.vmap(lambda x, where: normalize(x, g, b, stats, where=where), axis_name="rows")
            y, stats = mapped(x, where)
            return y, jax.tree.map(lambda leaf: leaf[3], stats)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def run(x, g, b):
        y, stats = parts(x, g, b, batch_stats(3), where)
        return jnp.sum(weights * y), (y, stats)

    found, expected = run(x, g, b), masked_run(x, g, b, where, weights)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


def test_low_precision_batches_have_float32_statistics(arrays):
    x, g, b, _ = arrays
    x = (100 + x).astype(jnp.bfloat16)
    y, stats = jax.jit(partial(batch_norm, train=True))(x, g, b, batch_stats(3))
    assert y.dtype == jnp.bfloat16
    assert stats.mean.dtype == stats.var.dtype == jnp.float32
    expected, mean, squares = batch_loop(*(np.asarray(a, np.float64) for a in (x, g, b)), np.ones((4, 6), bool))
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=5e-3, atol=1e-4)
    np.testing.assert_allclose(stats.mean, 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(stats.var, 0.9 + 0.1 * squares / 23, rtol=1e-5)


X, ONES = jnp.zeros((2, 3)), jnp.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layer_norm(X, jnp.ones(1)), r"g \(1,\) does not fit x \(2, 3\): pass \[D\]"),
        (lambda: layer_norm(X, ONES, jnp.ones(2)), r"b \(2,\) does not fit"),
        (lambda: rms_norm(X, jnp.ones((1, 3))), r"g \(1, 3\) does not fit"),
        (lambda: batch_norm(X, ONES, jnp.ones(2), batch_stats(3), train=True), r"b \(2,\) does not fit"),
        (lambda: batch_norm(X, ONES, ONES, batch_stats(1), train=True), r"stats.mean \(1,\) does not fit"),
        (lambda: batch_norm(X, ONES, ONES, batch_stats(3), train=True, where=X > 0), r"where \(2, 3\) bool does not"),
        (lambda: batch_norm(X, ONES, ONES, batch_stats(3), train=True, where=ONES[:2]), "pass bool"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
