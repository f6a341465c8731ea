import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from seqjax.errors import InputError
from seqjax.positions import (
    alibi,
    alibi_slopes,
    rotary,
    sinusoidal,
    sinusoidal_at,
    sinusoidal_shift,
    soft_cap,
    t5_bias,
    t5_buckets,
)

LAYOUTS = ("half", "interleaved")
rotate = jax.jit(rotary, static_argnames=("layout", "base"))


def encodings(positions, dim):
    rows = np.zeros((len(positions), dim))
    for row, t in enumerate(positions):
        for i in range(dim // 2):
            angle = int(t) * 10000 ** (-2 * i / dim)
            rows[row, 2 * i], rows[row, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return rows


@pytest.mark.fast
@pytest.mark.parametrize("shape", [(1, 2), (50, 6), (7, 16)])
def test_sinusoidal_encodings_equal_the_loop(shape):
    found = sinusoidal(*shape)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, encodings(range(shape[0]), shape[1]), rtol=0, atol=6e-8)


def test_a_shift_moves_every_position_of_a_table():
    length, dim = 64, 16
    table = np.asarray(sinusoidal(length, dim), np.float64)
    for k in range(length):
        shift = np.asarray(sinusoidal_shift(k, dim), np.float64)
        np.testing.assert_allclose(table[: length - k] @ shift, table[k:], rtol=0, atol=1e-6)
        back = np.asarray(sinusoidal_shift(-k, dim), np.float64)
        np.testing.assert_allclose(table[k:] @ back, table[: length - k], rtol=0, atol=1e-6)


def test_encodings_of_traced_positions_are_exact_far_away():
    rng = np.random.default_rng(0)
    edges = [0, 1, 255, 256, 2**16 - 1, 2**16, 10**5, -1, -256, -(2**16), -(10**5)]
    near, far = rng.integers(0, 10**5, 1000), rng.integers(-(10**8), 10**8, 989)
    positions = np.concatenate([edges, near, far])
    found = jax.jit(sinusoidal_at, static_argnums=1)(jnp.asarray(positions.reshape(2, -1), jnp.int32), 10)
    assert found.shape == (2, 1000, 10)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found.reshape(2000, 10), encodings(positions, 10), rtol=0, atol=4e-7)


@pytest.mark.usefixtures("x64")
def test_float64_positions_are_those_of_the_table():
    found = sinusoidal_at(jnp.arange(7), 6)  # int64
    assert found.dtype == sinusoidal(7, 6).dtype == jnp.float32
    np.testing.assert_allclose(found, sinusoidal(7, 6), rtol=0, atol=4e-7)


def rotated(x, positions, layout, base):
    batch, time, heads, dim = x.shape
    y = np.zeros(x.shape)
    for b, t, n, i in np.ndindex(batch, time, heads, dim // 2):
        first, second = (i, i + dim // 2) if layout == "half" else (2 * i, 2 * i + 1)
        position = int(np.broadcast_to(positions, (batch, time))[b, t])
        pair = complex(x[b, t, n, first], x[b, t, n, second]) * np.exp(1j * position * base ** (-2 * i / dim))
        y[b, t, n, first], y[b, t, n, second] = pair.real, pair.imag
    return y


@pytest.mark.fast
@pytest.mark.parametrize("base", [10000.0, 500.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotation_equals_complex_products(key, layout, base):
    x = jax.random.normal(key, (2, 5, 3, 8))
    rows = np.array([[0, 1, 2, 3, 4], [70_000, 3, 3, 99_999, -12]])
    for positions in (rows, rows[1]):
        found = rotate(x, jnp.asarray(positions), layout=layout, base=base)
        np.testing.assert_allclose(found, rotated(np.asarray(x), positions, layout, base), rtol=0, atol=3e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_depend_on_the_difference_of_positions_only(key, layout):
    q, k = jax.random.normal(key, (2, 1, 6, 2, 8), jnp.float64)
    start = jnp.arange(6)

    def scores(shift, dtype):
        a, b = (rotate(x.astype(dtype), start + shift, layout=layout) for x in (q, k))
        np.testing.assert_allclose(jnp.linalg.norm(a, axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-6)
        return jnp.einsum("btnd,bsnd->bnts", a, b)

    for shift in (1, 1000, -7):
        np.testing.assert_allclose(scores(shift, jnp.float64), scores(0, jnp.float64), rtol=0, atol=1e-11)
    # Exact angles: float32 holds this at any position.
    np.testing.assert_allclose(scores(10**7, jnp.float32), scores(0, jnp.float32), rtol=0, atol=1e-5)


def test_the_layouts_are_the_same_up_to_a_permutation(key):
    x = jax.random.normal(key, (2, 5, 3, 8))
    order = np.arange(8).reshape(4, 2).T.reshape(-1)  # 0 2 4 6 1 3 5 7: interleaved to half
    half = rotate(x[..., order], jnp.arange(5), layout="half")
    np.testing.assert_allclose(half, rotate(x, jnp.arange(5), layout="interleaved")[..., order], rtol=0, atol=1e-7)


def test_bfloat16_is_rotated_in_float32(key):
    x = jax.random.normal(key, (1, 4, 2, 8)).astype(jnp.bfloat16)
    positions = jnp.array([0, 300, 5001, 90_001])
    found = rotate(x, positions)
    assert found.dtype == jnp.bfloat16
    expected = rotate(x.astype(jnp.float32), positions).astype(jnp.bfloat16)
    np.testing.assert_array_equal(found.astype(jnp.float32), expected.astype(jnp.float32))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_batches_and_heads_may_be_sharded(key, kind):
    x = jax.random.normal(key, (2, 5, 4, 6))
    rows = jnp.arange(10).reshape(2, 5)
    table, pos = jax.random.normal(key, (8, 4)), jnp.arange(5)

    @jax.jit
    def run(x, rows, table):
        x = rotary(rotary(x, rows), pos, layout="interleaved")
        scores = jnp.einsum("btnd,bsnd->bnts", x, x)
        return t5_bias(alibi(scores, pos, pos, alibi_slopes(4)), pos, pos, table)

    expected = run(x, rows, table)
    mesh = jax.make_mesh((2, 2), ("rows", "heads"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, P("rows", None, "heads")))
        found = run(x, jax.device_put(rows, NamedSharding(mesh, P("rows"))), jax.device_put(table, P()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_heads", [1, 2, 3, 8, 12, 20])
def test_slopes(n_heads):
    expected, power = [], 1
    while 2 * power <= n_heads:
        power *= 2
    for n in range(1, power + 1):
        expected.append(2 ** (-8 * n / power))
    for n in range(1, n_heads - power + 1):
        expected.append(2 ** (-8 * (2 * n - 1) / (2 * power)))
    np.testing.assert_allclose(alibi_slopes(n_heads), expected, rtol=1e-7)


def test_slopes_of_eight_heads_are_those_of_the_paper():
    np.testing.assert_array_equal(alibi_slopes(8), [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256])


def bucket_of(distance, bidirectional, n_buckets, max_distance):
    count = n_buckets // 2 if bidirectional else n_buckets
    first = count if bidirectional and distance > 0 else 0
    n = abs(distance) if bidirectional else max(-distance, 0)
    exact = count // 2
    if n < exact:
        return first + n
    # 1e-9: what is on a border belongs to the bucket that begins there.
    steps = math.log(n / exact) / math.log(max_distance / exact) * (count - exact)
    return first + min(exact + math.floor(steps + 1e-9), count - 1)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (64, 1000), (10, 6), (4, 3), (32, 17)])
def test_buckets_equal_the_loop(bidirectional, n_buckets, max_distance):
    distances = np.arange(-1100, 1101)
    options = {"bidirectional": bidirectional, "n_buckets": n_buckets, "max_distance": max_distance}
    found = t5_buckets(jnp.asarray(distances), **options)
    np.testing.assert_array_equal(found, [bucket_of(d, **options) for d in distances.tolist()])


def test_buckets_begin_where_the_logarithm_says():
    # 8 (128/8)^(j/8) = 8 2^(j/2): every second border is an integer, on which rounded logarithms may fail.
    buckets = t5_buckets(-jnp.arange(200), bidirectional=True)
    assert (1 + np.flatnonzero(np.diff(buckets))).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]


MODIFIERS = {
    "alibi": (alibi, (3,), lambda x, d, n, slopes: x - slopes[n] * abs(d)),
    "t5": (t5_bias, (8, 3), lambda x, d, n, table: x + table[bucket_of(d, False, 8, 128), n]),
    "t5 both": (
        partial(t5_bias, bidirectional=True, max_distance=9),
        (8, 3),
        lambda x, d, n, table: x + table[bucket_of(d, True, 8, 9), n],
    ),
    "cap": (soft_cap, (), lambda x, d, n, cap: cap * math.tanh(x / cap)),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", MODIFIERS)
def test_score_modifiers_equal_the_loop_in_value_and_gradient(key, name, dtype):
    score_mod, shape, equation = MODIFIERS[name]
    keys = jax.random.split(key, 3)
    scores = 2 * jax.random.normal(keys[0], (1, 3, 3, 4), dtype)
    weights = jax.random.normal(keys[1], scores.shape, dtype)
    argument = 1 + jnp.abs(jax.random.normal(keys[2], shape, jnp.float32))
    q_positions, k_positions = jnp.array([5, 7, 40]), jnp.array([0, 3, 7, 60])

    def loop(scores, argument):
        total = np.zeros(scores.shape)
        for b, n, t, s in np.ndindex(*scores.shape):
            total[b, n, t, s] = equation(scores[b, n, t, s], int(k_positions[s] - q_positions[t]), n, argument)
        return total

    @partial(jax.jit, static_argnums=0)  # as attention takes them
    def run(score_mod, scores, argument, q_positions, k_positions):
        def total(scores, argument):
            modified = score_mod(scores, q_positions, k_positions, argument)
            return jnp.sum(weights * modified), modified

        return jax.grad(total, argnums=(0, 1), has_aux=True)(scores, argument)

    (d_scores, d_argument), modified = run(score_mod, scores, argument, q_positions, k_positions)
    assert modified.dtype == d_scores.dtype == dtype
    assert d_argument.dtype == jnp.float32
    tolerance = {"rtol": 2e-6, "atol": 2e-5} if dtype == jnp.float32 else {"rtol": 1e-12, "atol": 1e-12}
    scores, argument = np.asarray(scores, np.float64), np.asarray(argument, np.float64)
    np.testing.assert_allclose(modified, loop(scores, argument), **tolerance)

    # Differences of the loop; the modifiers are linear in slopes and table, and smooth in the rest.
    step = 1e-4
    slope = (loop(scores + step, argument) - loop(scores - step, argument)) / (2 * step)
    np.testing.assert_allclose(d_scores, slope * np.asarray(weights), rtol=1e-5, atol=1e-6)
    for index in np.ndindex(*shape):
        moved = np.zeros(shape)
        moved[index] = step
        change = (loop(scores, argument + moved) - loop(scores, argument - moved)) / (2 * step)
        np.testing.assert_allclose(d_argument[index], (change * np.asarray(weights)).sum(), rtol=1e-5, atol=1e-4)


SCORES, POSITION = jnp.zeros((1, 2, 3, 3)), jnp.arange(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sinusoidal(0, 4), "length=0 must be at least 1"),
        (lambda: sinusoidal(4, 5), "dim=5 must be even"),
        (lambda: sinusoidal_shift(1, 0), "dim=0 must be even and at least 2"),
        (lambda: sinusoidal_at(POSITION, 3), "dim=3 must be even"),
        (lambda: sinusoidal_at(jnp.zeros(3), 4), "positions must be integers, not float32"),
        (lambda: rotary(jnp.zeros((1, 3, 1, 3)), POSITION), "dim=3 must be even"),
        (lambda: rotary(jnp.zeros((1, 3, 1, 4)), jnp.zeros(3)), "positions must be integers"),
        (lambda: rotary(jnp.zeros((2, 3, 1, 4)), jnp.arange(2)), r"positions \(2,\) do not fit x \(2, 3, 1, 4\)"),
        (lambda: alibi_slopes(0), "n_heads=0 must be at least 1"),
        (lambda: t5_buckets(jnp.zeros(3), bidirectional=False), "distances must be integers"),
        (lambda: t5_buckets(POSITION, bidirectional=True, n_buckets=5), "n_buckets=5 must be even and at least 4"),
        (lambda: t5_buckets(POSITION, bidirectional=True, n_buckets=2), "n_buckets=2 must be even and at least 4"),
        (lambda: t5_buckets(POSITION, bidirectional=False, n_buckets=1), "n_buckets=1 must be at least 2"),
        (lambda: t5_buckets(POSITION, bidirectional=False, max_distance=16), "max_distance=16 must exceed 16"),
        (lambda: alibi(SCORES, POSITION, POSITION, jnp.ones(1)), r"slopes \(1,\) do not fit scores"),
        (lambda: t5_bias(SCORES, POSITION, POSITION, jnp.ones((32, 1))), r"table \(32, 1\) does not fit scores"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_an_unknown_layout_names_the_choices():
    unchecked = getattr(rotary, "__wrapped__", rotary)  # jaxtyping's own check comes first otherwise
    with pytest.raises(InputError, match="layout='llama' is unknown: choose half or interleaved"):
        unchecked(jnp.zeros((1, 3, 1, 4)), POSITION, layout="llama")
