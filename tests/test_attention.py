"""Every implementation of attention against plain loops in float64, values and gradients."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import seqjax.attention
from seqjax import positions
from seqjax.attention import attention_weights, dot_product_attention
from seqjax.errors import InputError
from tests.test_models import compilations

B, T, S, N, K, D, E = 2, 11, 7, 4, 2, 3, 5
RNG = np.random.default_rng(0)
SLOPES = np.array([0.5, 0.25, 0.125, 0.0625])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks that leave a rest, so that a few tokens are several of them."""
    monkeypatch.setattr(seqjax.attention, "BLOCK", 4)


def draw(*shape):
    return RNG.normal(size=shape)


def arrays(t=T, s=T):
    return draw(B, t, N, D), draw(B, s, K, D), draw(B, s, K, E)


def oracle(q, k, v, *, causal=False, window=None, mask=None, bias=None, segment_ids=None, q_offset=0, slopes=None):
    """One query of one head after the other."""
    (b, t, n, d), s = q.shape, k.shape[1]
    y = np.zeros((b, t, n, v.shape[-1]))
    weights = np.zeros((b, n, t, s))
    broadcast = lambda x: np.broadcast_to(x, (b, n, t, s))  # noqa: E731
    if segment_ids is not None and not isinstance(segment_ids, tuple):
        segment_ids = (segment_ids, segment_ids)
    for row, i, head in np.ndindex(b, t, n):
        kept, z = [], []
        for j in range(s):
            at = q_offset + i
            visible = not (causal or window) or j <= at
            visible &= window is None or j > at - window
            visible &= mask is None or bool(broadcast(mask)[row, head, i, j])
            visible &= segment_ids is None or segment_ids[0][row, i] == segment_ids[1][row, j]
            if visible:
                score = q[row, i, head] @ k[row, j, head // (n // k.shape[2])] / math.sqrt(d)
                score -= 0 if slopes is None else slopes[head] * abs(at - j)
                score += 0 if bias is None else broadcast(bias)[row, head, i, j]
                kept.append(j)
                z.append(score)
        if kept:
            e = np.exp(np.array(z) - max(z))
            weights[row, head, i, kept] = e / e.sum()
            y[row, i, head] = weights[row, head, i, kept] @ v[row, kept, head // (n // k.shape[2])]
    return y, weights


PADDING = np.arange(T) < np.array([4, 0])[:, None]  # the second row keeps nothing
OPTIONS = {
    "all": {},
    "causal": {"causal": True},
    "window": {"window": 3},
    "padding": {"mask": PADDING[:, None, None]},
    "mask": {"mask": RNG.random((B, N, T, T)) < 0.4, "bias": draw(1, 1, 1, T)},
    "bias": {"bias": draw(B, N, T, T), "causal": True},
    "head bias": {"bias": draw(1, N, T, 1), "window": 5},
    "segments": {"segment_ids": np.sort(RNG.integers(0, 3, (B, T)), axis=1), "causal": True},
    "score_mod": {"score_mod": positions.alibi, "score_args": (SLOPES,), "causal": True},
}
SOURCE = {
    "cross": {},
    "cross mask": {"mask": RNG.random((B, 1, T, S)) < 0.5},
    "cross segments": {"segment_ids": (RNG.integers(0, 3, (B, T)), RNG.integers(0, 2, (B, S)))},
    "offset": {"causal": True, "q_offset": -2},
    "offset window": {"window": 2, "q_offset": 3},
}


def on_device(tree, dtype=None):
    """NumPy arrays as JAX's; numbers in them as `dtype`."""
    cast = lambda x: jnp.asarray(x, dtype if np.issubdtype(x.dtype, np.floating) else None)  # noqa: E731
    return jax.tree.map(lambda x: cast(x) if isinstance(x, np.ndarray) else x, tree)


def run(implementation, inputs, options, loss):
    """(y, gradients of q, k, v, bias and score_args)."""

    def attend(q, k, v, more):
        return dot_product_attention(q, k, v, implementation=implementation, **fixed, **more)

    more = {name: options[name] for name in ("bias", "score_args") if name in options}
    fixed = on_device({name: value for name, value in options.items() if name not in more})
    f = jax.jit(
        lambda *inputs: (attend(*inputs), jax.grad(lambda *i: jnp.sum(loss * attend(*i)), (0, 1, 2, 3))(*inputs))
    )
    return f(*on_device((*inputs, more)))


@pytest.mark.fast
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [*OPTIONS, *SOURCE])
def test_equals_the_oracle(name):
    options = OPTIONS.get(name, SOURCE.get(name))
    inputs, loss = arrays(s=T if name in OPTIONS else S), draw(B, T, N, E)
    reference, chunked = (run(implementation, inputs, options, loss) for implementation in ("reference", "chunked"))
    plain = {key: value for key, value in options.items() if key not in ("score_mod", "score_args")}
    expected, weights = oracle(*inputs, **plain, slopes=SLOPES if "score_mod" in options else None)
    np.testing.assert_allclose(reference[0], expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(attention_weights(*on_device(inputs[:2]), **on_device(options)), weights, atol=1e-14)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), chunked, reference)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["padding", "mask", "bias"])
def test_gradients_of_the_reference_are_right(name):
    inputs = on_device(arrays())
    f = partial(dot_product_attention, implementation="reference", **on_device(OPTIONS[name]))
    check_grads(lambda *inputs: f(*map(jnp.asarray, inputs)), inputs, 1, eps=1e-5)


@pytest.mark.parametrize("name", ["causal", "window", "padding", "bias"])
def test_jax_nn_is_another_implementation(name):
    (q, k, v), options = on_device((arrays(), OPTIONS[name]), jnp.float32)
    inputs = q, k, v[..., :D]
    found, expected = (dot_product_attention(*inputs, implementation=name, **options) for name in ("xla", "reference"))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_offset_counts_with_jax_nn_too():
    (q, k, v), e = on_device(arrays(), jnp.float32), D
    for offset in (2, -2):
        found, expected = (
            dot_product_attention(q, k, v[..., :e], causal=True, q_offset=offset, implementation=name)
            for name in ("xla", "reference")
        )
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_low_precision(implementation):
    exact = on_device(arrays(), jnp.float32)
    low = [x.astype(jnp.bfloat16) for x in exact]
    f = jax.jit(partial(dot_product_attention, causal=True, implementation=implementation))
    assert f(*low).dtype == jnp.bfloat16
    np.testing.assert_allclose(f(*low).astype(jnp.float32), f(*exact), atol=0.05)
    grads = jax.eval_shape(jax.grad(lambda *inputs: jnp.sum(f(*inputs).astype(jnp.float32)), (0, 1, 2)), *low)
    assert {x.dtype for x in grads} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_minus_infinity_as_bias_masks(implementation):
    q, k, v = on_device(arrays(), jnp.float32)
    mask = jnp.asarray(OPTIONS["mask"]["mask"]).at[0, 0, 3].set(False)
    bias = jnp.where(mask, 0.0, -jnp.inf)
    f = jax.value_and_grad(
        lambda q, **options: jnp.sum(dot_product_attention(q, k, v, implementation=implementation, **options))
    )
    (value, grad), (expected, gradient) = f(q, bias=bias), f(q, mask=mask)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(grad, gradient, atol=1e-5)


def test_offset_may_be_traced_and_compiles_once():
    q, k, v = on_device(arrays(), jnp.float32)
    f = jax.jit(lambda q, offset: dot_product_attention(q, k, v, window=5, q_offset=offset, implementation="chunked"))
    for offset in (0, 4, 9):
        expected = dot_product_attention(q[:, :2], k, v, window=5, q_offset=offset, implementation="reference")
        np.testing.assert_allclose(f(q[:, :2], offset), expected, atol=1e-6)
    assert f._cache_size() == 1


def test_vmap_is_a_loop():
    inputs = [jnp.asarray(np.stack([x, 2 * x, -x]), jnp.float32) for x in arrays()]
    f = lambda *i: jnp.sum(dot_product_attention(*i, causal=True, implementation="chunked") ** 2)  # noqa: E731
    found = jax.jit(jax.vmap(jax.value_and_grad(f)))(*inputs)
    for i in range(3):
        expected = jax.jit(jax.value_and_grad(f))(*(x[i] for x in inputs))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_batches_may_be_sharded(kind, implementation):
    inputs = [jnp.asarray(np.concatenate([x, -x]), jnp.float32) for x in arrays()]
    f = jax.value_and_grad(
        lambda *i: jnp.sum(dot_product_attention(*i, causal=True, implementation=implementation) ** 2)
    )
    expected = f(*inputs)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        found = jax.jit(f)(*jax.device_put(inputs, NamedSharding(mesh, P("rows"))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def test_under_shard_map():
    inputs = [jnp.asarray(np.concatenate([x, -x]), jnp.float32) for x in arrays()]
    f = jax.grad(lambda *i: jnp.sum(dot_product_attention(*i, window=3, implementation="chunked") ** 2))
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
    found = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("rows"), out_specs=P("rows")))(*inputs)
    np.testing.assert_allclose(found, f(*inputs), atol=1e-5)


def temporary_memory(t, implementation):
    x = jax.ShapeDtypeStruct((1, t, 1, 8), jnp.float32)
    f = lambda *i: jnp.sum(dot_product_attention(*i, causal=True, implementation=implementation) ** 2)  # noqa: E731
    compiled = jax.jit(jax.grad(f, (0, 1, 2))).lower(x, x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_linear_and_an_eighth(monkeypatch):
    monkeypatch.setattr(seqjax.attention, "BLOCK", 256)
    half, whole = temporary_memory(4096, "chunked"), temporary_memory(8192, "chunked")
    assert whole < 2.2 * half
    assert whole < temporary_memory(8192, "reference") / 8


def test_small_ones_take_the_reference(monkeypatch):
    monkeypatch.setattr(seqjax.attention, "BLOCK", 256)
    q, k = jnp.zeros((2, 64, 3, 1)), jnp.zeros((2, 512, 3, 1))
    assert not seqjax.attention._large(q[:, :1], k)
    assert seqjax.attention._large(q, q)


# --- multi-head


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("n_kv_heads", "bias"), [(None, True), (2, False)])
def test_multi_head_attention_is_heads_side_by_side(n_kv_heads, bias):
    init = partial(
        seqjax.attention.init_multi_head, jax.random.key(0), 6, 4, n_kv_heads=n_kv_heads, d_head=3, d_source=5
    )
    params = jax.tree.map(lambda x: RNG.normal(size=x.shape), init(bias=bias))
    x, source = draw(B, T, 6), draw(B, S, 5)
    found = seqjax.attention.multi_head_attention(*on_device((params, x, source)))
    expected = np.zeros((B, T, 6)) + (params.b_o if bias else 0)
    for head in range(4):
        group = head // (4 // (n_kv_heads or 4))
        q = x @ params.w_q[:, head] + (params.b_q[head] if bias else 0)
        k, v = (source @ params.w_kv[:, i, group] + (params.b_kv[i, group] if bias else 0) for i in (0, 1))
        expected = expected + oracle(q[:, :, None], k[:, :, None], v[:, :, None])[0][:, :, 0] @ params.w_o[head]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_initial_variance_is_that_of_the_inputs(key):
    params = seqjax.attention.init_multi_head(key, 64, 8, n_kv_heads=4)
    x = jax.random.normal(key, (4, 32, 64))
    q, (k, v) = seqjax.attention.queries(params, x), seqjax.attention.keys_values(params, x)
    assert (q.shape, k.shape, v.shape) == ((4, 32, 8, 8), (4, 32, 4, 8), (4, 32, 4, 8))
    for y in (q, k, v, seqjax.attention.merged(params, q)):
        assert 0.8 < jnp.std(y) < 1.2


def test_a_call_outside_of_jit_compiles_once():
    q = jnp.ones((1, 40, 2, 4))
    attend = partial(dot_product_attention, q, q, q, causal=True, implementation="chunked")
    slope = jax.grad(lambda q: jnp.sum(dot_product_attention(q, q, q, implementation="chunked")))
    attend(), slope(q)
    with compilations() as compiled:
        attend(), slope(q)
    assert [event for event in compiled if "backend" in event] == []


# --- bad input


def test_a_traced_value_in_a_closure_is_refused():
    q = jnp.ones((1, 40, 2, 4))

    def loss(s):
        return jnp.sum(dot_product_attention(q, q, q, score_mod=lambda z, *_: z * s, implementation="chunked"))

    with pytest.raises(InputError, match=r"score_mod closes over a traced value.*score_args"):
        jax.grad(loss)(2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"q": (2, 5, 3, 4)}, "q has 3 heads, no multiple of the 2 of k"),
        ({"k": (2, 5, 2, 5)}, "do not fit: pass q"),
        (
            {"k": (2, 6, 2, 4), "v": (2, 6, 2, 4), "causal": True},
            "causal attention of 5 queries to 6 keys: say with q_offset",
        ),
        ({"window": 0}, "window must be at least 1, not 0"),
        ({"mask": jnp.ones((2, 1, 5, 4), bool)}, r"mask \(2, 1, 5, 4\) does not fit scores \(2, 4, 5, 5\)"),
        ({"mask": jnp.ones((2, 1, 5, 5))}, "mask must be bool"),
        ({"bias": jnp.ones((5, 5))}, r"bias \(5, 5\) does not fit"),
        ({"segment_ids": jnp.zeros((2, 4), int)}, "segment_ids .* do not fit"),
        ({"k": (2, 0, 2, 4), "v": (2, 0, 2, 4)}, "not empty"),
        ({"q_offset": jnp.zeros(2, int), "causal": True}, "q_offset must be one integer for all rows"),
        ({"q_offset": jnp.array(0.5)}, "q_offset must be one integer"),
        ({"score_mod": positions.soft_cap, "score_args": (50,)}, "score_args must be floats"),
        ({"implementation": "flash"}, "implementation='flash'; choose from reference, chunked, xla, cudnn"),
        ({"implementation": "xla", "score_mod": positions.soft_cap, "score_args": (3.0,)}, "'xla' has no score_mod"),
    ],
)
def test_bad_input(options, message):
    shapes = {"q": (2, 5, 4, 4), "k": (2, 5, 2, 4), "v": (2, 5, 2, 4)}
    inputs = [jnp.zeros(options.get(name, shape)) for name, shape in shapes.items()]
    with pytest.raises(InputError, match=message):
        dot_product_attention(*inputs, **{name: value for name, value in options.items() if name not in shapes})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 3}, "d_model=8 is no multiple of n_heads=3"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_heads=4 is no multiple of n_kv_heads=3"),
    ],
)
def test_heads_must_divide(key, options, message):
    with pytest.raises(InputError, match=message):
        seqjax.attention.init_multi_head(key, 8, **options)
