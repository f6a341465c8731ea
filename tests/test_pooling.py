"""Pooling and convolution over time, against loops; padding that holds NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import pooling
from seqjax.convolution import Filters, max_over_time
from seqjax.seq2seq import last_output

B, T, D = 4, 5, 4
LENGTHS = np.array([5, 2, 0, 1])
WIDTHS = (1, 3)


def batch(dtype, padding=np.nan):
    """Sequences, scores and lengths; sequence 2 is empty."""
    rng = np.random.default_rng(0)
    xs, scores = rng.normal(size=(B, T, D)), rng.normal(size=(B, T))
    place = np.arange(T)[None] >= LENGTHS[:, None]
    xs[place], scores[place] = padding, padding
    return jnp.asarray(xs, dtype), jnp.asarray(scores, dtype), jnp.asarray(LENGTHS, jnp.int32)


def some_filters(dtype):
    rng = np.random.default_rng(1)
    return [Filters(*(jnp.asarray(rng.normal(size=s), dtype) for s in ((k, D, 2), (2,)))) for k in WIDTHS]


def oracle(xs, scores, filters):
    """Every pooling of one sequence [n, D], as loops."""
    n, d = xs.shape
    if n == 0:
        nothing = np.zeros(d)
        relu_b = np.concatenate([np.maximum(f.b, 0) for f in filters])
        return {name: nothing for name in ("last", "both", "mean", "maximum", "attention")} | {"convolution": relu_b}
    a = np.exp(scores) / sum(np.exp(scores))
    responses = []
    for w, b in filters:
        k = len(w)
        z = [b + sum(xs[p - k + 1 + i] @ w[i] for i in range(k) if 0 <= p - k + 1 + i < n) for p in range(n + k - 1)]
        responses += [max(0, *(z_p[f] for z_p in z)) for f in range(len(b))]
    return {
        "last": xs[n - 1],
        "both": np.concatenate([xs[n - 1][: d // 2], xs[0][d // 2 :]]),
        "mean": sum(xs) / n,
        "maximum": np.array([max(x[i] for x in xs) for i in range(d)]),
        "attention": sum(a_t * x for a_t, x in zip(a, xs, strict=True)),
        "convolution": np.array(responses),
    }


@jax.jit
def pooled(xs, scores, lengths, filters):
    attended, weights = pooling.attention(xs, scores, lengths)
    return {
        "last": pooling.last(xs, lengths),
        "both": pooling.last(xs, lengths, bidirectional=True),
        "mean": pooling.mean(xs, lengths),
        "maximum": pooling.maximum(xs, lengths),
        "attention": attended,
        "convolution": max_over_time(xs, filters, lengths),
    }, weights


@pytest.mark.fast
def test_every_pooling_is_that_of_a_loop_whatever_padding_holds(x64):
    xs, scores, lengths = batch(jnp.float64)
    filters = some_filters(jnp.float64)
    found, weights = pooled(xs, scores, lengths, filters)
    as_numpy = [Filters(*map(np.asarray, f)) for f in filters]
    for b, n in enumerate(LENGTHS):
        for name, expected in oracle(np.asarray(xs[b, :n]), np.asarray(scores[b, :n]), as_numpy).items():
            np.testing.assert_allclose(found[name][b], expected, rtol=1e-12, atol=1e-12, err_msg=f"{name} of {n}")
    np.testing.assert_allclose(np.sum(weights, axis=1), LENGTHS > 0, rtol=1e-12)
    np.testing.assert_array_equal(last_output(xs, lengths)[:, 0], found["last"])


def test_gradients_are_finite_and_none_goes_to_padding(x64):
    @jax.jit
    @jax.grad
    def gradient(xs, scores, filters):
        found, _ = pooled(xs, scores, jnp.asarray(LENGTHS, jnp.int32), filters)
        return sum(jnp.sum(jnp.sin(value)) for value in found.values())

    filters = some_filters(jnp.float64)
    poisoned, clean = (gradient(*batch(jnp.float64, padding)[:2], filters) for padding in (np.nan, 0.0))
    np.testing.assert_array_equal(poisoned, clean)
    assert np.all(poisoned[np.arange(T)[None] >= LENGTHS[:, None]] == 0)
    xs, scores, _ = batch(jnp.float64, 0.0)
    direction = np.random.default_rng(2).normal(size=xs.shape) * (np.arange(T)[None] < LENGTHS[:, None])[..., None]

    def value(step):
        found, _ = pooled(xs + step * direction, scores, jnp.asarray(LENGTHS, jnp.int32), filters)
        return sum(np.sum(np.sin(part)) for part in found.values())

    numerical = (value(1e-6) - value(-1e-6)) / 2e-6
    np.testing.assert_allclose(np.sum(clean * direction), numerical, rtol=1e-7)


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_lengths_of_any_type(dtype):
    xs, lengths = jnp.arange(300.0).reshape(1, 300, 1), jnp.array([5], dtype)
    assert pooling.kept(lengths, 300).sum() == 5
    assert [pooling.last(xs, lengths).item(), pooling.mean(xs, lengths).item()] == [4, 2]
    assert max_over_time(xs, [Filters(jnp.ones((3, 1, 1)), jnp.zeros(1))], lengths) == 2 + 3 + 4
    beyond = jnp.array([400], jnp.int32)
    assert [pooling.last(xs, beyond).item(), pooling.mean(xs, beyond).item()] == [299, 149.5]


def test_bfloat16_stays_and_statistics_are_wider():
    xs, lengths = jnp.ones((1, 300, 2), jnp.bfloat16), jnp.array([300])
    mean, weights = jax.jit(lambda xs: (pooling.mean(xs, lengths), pooling.attention(xs, xs[..., 0], lengths)[1]))(xs)
    assert mean.dtype == jnp.bfloat16
    assert mean.tolist() == [[1, 1]]  # a sum of 300 ones in bfloat16 is 256
    assert weights.dtype == jnp.float32
