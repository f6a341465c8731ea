"""Attention of any kind, as pure functions.

`dot_product_attention` is that of the Transformer: many heads, masks, biases, memory linear in the length.
`multi_head_attention` puts projections around it. `attend`, from `seqjax.scores`, takes any score function: `dot`,
`scaled_dot`, `general`, `additive`, `cosine`, `location` or your own.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer, max_dim
from jax.sharding import PartitionSpec as P

from seqjax.errors import InputError
from seqjax.kernels.attention import BLOCK, Fixed, Inputs, Static, chunked, kept, scores
from seqjax.kernels.attention import softmax as softmax
from seqjax.kernels.rules import at_least, branch, spread
from seqjax.layers import affine, biased
from seqjax.scores import SCORES as SCORES
from seqjax.scores import Score as Score
from seqjax.scores import additive as additive
from seqjax.scores import attend as attend
from seqjax.scores import cosine as cosine
from seqjax.scores import dot as dot
from seqjax.scores import general as general
from seqjax.scores import location as location
from seqjax.scores import scaled_dot as scaled_dot
from seqjax.types import Array, Float, PRNGKey, wide

IMPLEMENTATIONS = ("reference", "chunked", "xla", "cudnn")


def dot_product_attention(
    q: Float[Array, "B T N D"],
    k: Float[Array, "B S K _"],
    v: Float[Array, "B _ K E"],
    *,
    causal: bool = False,
    window: int | None = None,
    mask: Array | None = None,
    bias: Array | None = None,
    segment_ids: Array | tuple[Array, Array] | None = None,
    q_offset: int | Array | None = None,
    score_mod: Callable | None = None,
    score_args: tuple = (),
    scale: float | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T N E"]:
    """Scaled dot-product attention with any number of heads (Vaswani et al., 2017).

        z = score_mod(q kᵀ / √D) + bias
        y = softmax over the kept keys (z) v

    Products run in the dtype of the inputs, sums and exponentials in float32 (float64 for float64, but with "xla" and
    "cudnn"). A query that keeps no key gives 0.

    Args:
      q: queries ``[B, T, N, D]``.
      k: keys ``[B, S, K, D]``; N is a multiple of K, query head n reads key head ``n // (N/K)`` (grouped queries:
        Ainslie et al., 2023).
      v: values ``[B, S, K, E]``.
      causal: query i sees keys j <= i. Needs T = S, unless ``q_offset`` says where the queries begin.
      window: query i sees the ``window`` keys i - window < j <= i; implies ``causal``.
      mask: bool ``[B|1, N|1, T|1, S|1]``, True = keep; ``[B, 1, 1, S]`` is padding.
      bias: ``[B|1, N|1, T|1, S|1]``, added to the scores; it has a gradient.
      segment_ids: ``[B, T]``, or a pair ``[B, T]`` and ``[B, S]``: a query sees the keys of its own segment.
      q_offset: the position of the first query among the keys, an integer, traced or not.
      score_mod: ``(z [B, N, t, s], q_positions [t], k_positions [s], *score_args) -> z``, such as
        `seqjax.positions.alibi`; called block by block. A function that closes over no traced value.
      score_args: floats or arrays of them for ``score_mod``; they have gradients.
      scale: instead of 1/√D.
      implementation: None to choose by size (for forward-mode or second derivatives, name "reference"), or
        "reference": all scores at once, differentiable in every mode;
        "chunked": block by block, memory linear in T and S, blocks skipped that causal or window empties; reverse mode
        only, first derivatives;
        "xla", "cudnn": `jax.nn.dot_product_attention`, without ``score_mod``; a query whose biases are all -inf gives
        NaN there.

    Raises:
      InputError: shapes or options that do not fit.

    >>> q = jnp.zeros((1, 3, 2, 4))
    >>> v = jnp.arange(3.0).reshape(1, 3, 1, 1)
    >>> print(dot_product_attention(q, jnp.zeros((1, 3, 1, 4)), v, causal=True)[0, :, 0, 0])
    [0.  0.5 1. ]
    """
    static, inputs, fixed = _problem(
        q, k, v, causal, window, mask, bias, segment_ids, q_offset, score_mod, score_args, scale
    )
    if implementation not in (None, *IMPLEMENTATIONS):
        raise InputError(f"implementation={implementation!r}; choose from {', '.join(IMPLEMENTATIONS)}, or None")
    if implementation in ("xla", "cudnn"):
        return _jax_nn(static, inputs, fixed, q, k, v, bias, q_offset is not None, implementation)
    by_blocks = _large(q, k) if implementation is None else implementation == "chunked"
    y = branch(by_blocks, lambda: _chunked(static, inputs, fixed), lambda: _reference(static, inputs, fixed))
    return jnp.moveaxis(y, 3, 1).reshape(*q.shape[:3], v.shape[-1])


def attention_weights(
    q: Float[Array, "B T N D"],
    k: Float[Array, "B S K D"],
    *,
    causal: bool = False,
    window: int | None = None,
    mask: Array | None = None,
    bias: Array | None = None,
    segment_ids: Array | tuple[Array, Array] | None = None,
    q_offset: int | Array | None = None,
    score_mod: Callable | None = None,
    score_args: tuple = (),
    scale: float | None = None,
) -> Float[Array, "B N T S"]:
    """The weights `dot_product_attention` gives the values: for pictures, at the cost of all T·S of them.

    >>> print(attention_weights(jnp.zeros((1, 2, 1, 4)), jnp.zeros((1, 2, 1, 4)), causal=True)[0, 0])
    [[1.  0. ]
     [0.5 0.5]]
    """
    static, inputs, fixed = _problem(
        q, k, k, causal, window, mask, bias, segment_ids, q_offset, score_mod, score_args, scale
    )
    weights = _weights(static, inputs, fixed)
    return weights.reshape(weights.shape[0], -1, *weights.shape[3:])


class MultiHead(NamedTuple):
    """Weights of multi-head attention; the biases are None where there are none.

    ``w_q [D, N, H]``, ``w_kv [E, 2, K, H]``, ``w_o [N, H, D]``, ``b_q [N, H]``, ``b_kv [2, K, H]``, ``b_o [D]``
    """

    w_q: Array
    w_kv: Array
    w_o: Array
    b_q: Array | None
    b_kv: Array | None
    b_o: Array | None


AXES = MultiHead._make(
    (
        P("embed", "heads", "head"),
        P("embed", None, "kv_heads", "head"),
        P("heads", "head", "embed"),
        P("heads", "head"),
        P(None, "kv_heads", "head"),
        P("embed"),
    )
)
"""What the axes mean, see `seqjax.nn.logical_axes`: each device has whole heads."""


def init_multi_head(
    key: PRNGKey,
    d_model: int,
    n_heads: int,
    *,
    n_kv_heads: int | None = None,
    d_head: int | None = None,
    d_source: int | None = None,
    bias: bool = True,
) -> MultiHead:
    """Matrices with variance 1/fan-in, biases of 0.

    Args:
      key: a typed key.
      d_model: D, the size of inputs and outputs.
      n_heads: N.
      n_kv_heads: K, by default N; fewer are grouped-query attention.
      d_head: H, by default D / N.
      d_source: E, the size of what the keys are made of, by default D.
      bias: whether there are biases.

    Raises:
      InputError: the heads do not divide.
    """
    n_kv_heads, d_source = n_kv_heads or n_heads, d_source or d_model
    if d_head is None and d_model % n_heads:
        raise InputError(f"d_model={d_model} is no multiple of n_heads={n_heads}; change one, or give d_head")
    if n_heads % n_kv_heads:
        raise InputError(f"n_heads={n_heads} is no multiple of n_kv_heads={n_kv_heads}")
    d_head = d_head or d_model // n_heads
    keys = jax.random.split(key, 3)

    def normal(key, fan_in, *shape):
        return jax.random.normal(key, shape) / math.sqrt(fan_in)

    return MultiHead(
        normal(keys[0], d_model, d_model, n_heads, d_head),
        normal(keys[1], d_source, d_source, 2, n_kv_heads, d_head),
        normal(keys[2], n_heads * d_head, n_heads, d_head, d_model),
        jnp.zeros((n_heads, d_head)) if bias else None,
        jnp.zeros((2, n_kv_heads, d_head)) if bias else None,
        jnp.zeros(d_model) if bias else None,
    )


def queries(params: MultiHead, x: Float[Array, "B T D"]) -> Float[Array, "B T N H"]:
    """q = x w_q + b_q."""
    return _split(x, params.w_q, params.b_q)


def keys_values(
    params: MultiHead, source: Float[Array, "B S E"]
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """k, v = source w_kv + b_kv: made once for a whole decoding."""
    kv = _split(source, params.w_kv, params.b_kv)
    return kv[:, :, 0], kv[:, :, 1]


def merged(params: MultiHead, y: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
    """Σ over heads y w_o, + b_o."""
    return affine(y.reshape(*y.shape[:2], -1), params.w_o.reshape(-1, params.w_o.shape[-1]), params.b_o)


def _split(x, w, b):
    """x w + b for a matrix [D, …] whose columns have several axes."""
    if spread():  # to merge the axes would undo how they are split over devices; on one it is faster
        y = jnp.tensordot(x, w.astype(x.dtype), 1)
        return y if b is None else biased(y, b)
    y = affine(x, w.reshape(w.shape[0], -1), None if b is None else b.reshape(-1))
    return y.reshape(*x.shape[:2], *w.shape[1:])


def multi_head_attention(
    params: MultiHead, x: Float[Array, "B T D"], source: Float[Array, "B S E"] | None = None, **options
) -> Float[Array, "B T D"]:
    """Multi-head attention (Vaswani et al., 2017): to ``x`` itself, or to ``source`` (cross-attention).

        y = merged(dot_product_attention(queries(x), *keys_values(source), **options))

    >>> params = init_multi_head(jax.random.key(0), 8, 2)
    >>> multi_head_attention(params, jnp.ones((1, 5, 8)), causal=True).shape
    (1, 5, 8)
    """
    k, v = keys_values(params, x if source is None else source)
    return merged(params, dot_product_attention(queries(params, x), k, v, **options))


def _large(q: Array, k: Array) -> bool | Array:
    """Whether to go by blocks: on a CPU even one of them is faster than the reference: its backward pass keeps less.

    A GPU runs few large operations better than loops: measured up to 4096² the reference is as fast or faster, by up
    to six times (`experiments/bench/attention.py`). There only memory speaks for blocks, that of 4 GiB of scores.
    """
    scores = q.shape[1] * k.shape[1]
    if jax.default_backend() == "cpu":
        return at_least(scores, 32**2)
    return at_least(q.shape[0] * q.shape[2] * scores, 2**30)


def _reference(static: Static, inputs: Inputs, fixed: Fixed) -> Array:
    weights = _weights(static, inputs, fixed).astype(inputs.v.dtype)
    return jnp.einsum("bkgts,bksd->bkgtd", weights, inputs.v)


def _weights(static: Static, inputs: Inputs, fixed: Fixed) -> Array:
    """Softmax of all scores, [B, K, G, T, S]."""
    q_at, k_at = _positions(inputs, fixed)
    z = scores(static, q_at, k_at, inputs.q, inputs.k, inputs.bias, inputs.score_args)
    return softmax(z, kept(static, fixed, q_at, k_at))


def _chunked(static: Static, inputs: Inputs, fixed: Fixed) -> Array:
    """By blocks of BLOCK queries and keys, or of all where there are fewer."""
    n_queries, n_keys = inputs.q.shape[3], inputs.k.shape[2]

    def by_blocks(block_q, block_k):
        cut = static._replace(block_q=block_q, block_k=block_k)
        _reject_closures(cut, inputs)
        return _in_blocks(cut, inputs, fixed)

    if jax.export.is_symbolic_dim(n_queries) or jax.export.is_symbolic_dim(n_keys):
        many = at_least(max_dim(n_queries, n_keys), BLOCK + 1)
        return branch(many, lambda: by_blocks(BLOCK, BLOCK), lambda: by_blocks(n_queries, n_keys))
    return by_blocks(min(BLOCK, n_queries), min(BLOCK, n_keys))


# jit, so that a call outside of jit compiles once and not at every call.
@partial(jax.jit, static_argnums=0)
def _in_blocks(static: Static, inputs: Inputs, fixed: Fixed) -> Array:
    """Pad to whole blocks, attend, cut."""
    n = inputs.q.shape[3]

    def pad(x, *axes):
        """Up to whole blocks of queries along the first of the axes, of keys along the second; None is left out."""
        widths = [(0, 0)] * x.ndim
        for axis, block in zip(axes, (static.block_q, static.block_k), strict=True):
            if axis is not None and x.shape[axis] != 1:
                widths[axis] = (0, -(-x.shape[axis] // block) * block - x.shape[axis])
        return jnp.pad(x, widths)

    inputs = Inputs(
        pad(inputs.q, 3, None),
        pad(inputs.k, None, 2),
        pad(inputs.v, None, 2),
        None if inputs.bias is None else pad(inputs.bias, 3, 4),
        inputs.score_args,
    )
    mask, segments = fixed.mask, fixed.segments
    if mask is not None:
        mask = pad(mask, 3, 4)
    if segments is not None:
        segments = pad(segments[0], 1, None), pad(segments[1], None, 1)
    y: Array = chunked(static, inputs, Fixed(mask, segments, fixed.q_offset))
    return y[..., :n, :]


def _reject_closures(static: Static, inputs: Inputs) -> None:
    """A traced value that score_mod closes over would get no gradient: say so instead."""
    if static.score_mod is None:
        return
    heads = inputs.q.shape[0], inputs.q.shape[1] * inputs.q.shape[2]
    q_at, k_at = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in (static.block_q, static.block_k))
    z = jax.ShapeDtypeStruct((*heads, static.block_q, static.block_k), wide(inputs.q.dtype))
    if any(isinstance(c, Tracer) for c in jax.make_jaxpr(static.score_mod)(z, q_at, k_at, *inputs.score_args).consts):
        raise InputError(
            "score_mod closes over a traced value, which implementation='chunked' cannot differentiate; pass it in "
            "score_args, or use implementation='reference'."
        )


def _jax_nn(static, inputs, fixed, q, k, v, bias, shifted, implementation):
    """JAX's own attention."""
    if static.score_mod is not None:
        raise InputError(f"implementation={implementation!r} has no score_mod; use 'chunked', 'reference' or None")
    keep = kept(static, fixed, *_positions(inputs, fixed))
    if keep is not None:
        keep = keep.reshape(keep.shape[0], -1, *keep.shape[3:])
    attend = partial(jax.nn.dot_product_attention, q, k, v, bias, scale=static.scale, implementation=implementation)
    if keep is None:
        return attend()
    if fixed.mask is None and fixed.segments is None and static.window is None and not shifted:
        return attend(is_causal=True)
    y = attend(mask=keep)
    # Where nothing is kept, jax.nn averages all values.
    some = jnp.moveaxis(jnp.any(keep, axis=-1, keepdims=True), 1, 2)
    return jnp.where(jnp.broadcast_to(some, y.shape), y, jnp.zeros_like(y))


def _positions(inputs: Inputs, fixed: Fixed) -> tuple[Array, Array]:
    n_queries, n_keys = inputs.q.shape[3], inputs.k.shape[2]
    return fixed.q_offset + jnp.arange(n_queries, dtype=jnp.int32), jnp.arange(n_keys, dtype=jnp.int32)


def _problem(
    q, k, v, causal, window, mask, bias, segment_ids, q_offset, score_mod, score_args, scale
) -> tuple[Static, Inputs, Fixed]:
    """The arguments, checked: batch and heads first, and the N query heads as K groups of G."""
    causal = causal or window is not None
    _check(q, k, v, causal, window, mask, bias, segment_ids, q_offset, scale, score_args)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    n_queries, n_keys = q.shape[1], k.shape[1]
    static = Static(causal, window, scale, score_mod, n_queries, n_keys, n_keys)
    n_groups = k.shape[2]

    def grouped(x):  # [B|1, N|1, T|1, S|1] -> [B|1, K|1, G|1, T|1, S|1]
        if x is None:
            return None
        return x[:, :, None] if x.shape[1] == 1 else x.reshape(x.shape[0], n_groups, -1, *x.shape[2:])

    q = jnp.moveaxis(q, 1, 2)
    q = q.reshape(q.shape[0], n_groups, -1, *q.shape[2:])
    inputs = Inputs(q, jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2), grouped(bias), tuple(score_args))
    segments = segment_ids if segment_ids is None or isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
    return static, inputs, Fixed(grouped(mask), segments, jnp.asarray(0 if q_offset is None else q_offset, jnp.int32))


def _check(q, k, v, causal, window, mask, bias, segment_ids, q_offset, scale, score_args):
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4 or 0 in (*q.shape, *k.shape):
        raise InputError(f"q {q.shape}, k {k.shape} and v {v.shape} must be [batch, length, heads, size], not empty")
    (b, t, n, d), (s, n_kv) = q.shape, k.shape[1:3]
    if k.shape[0] != b or k.shape[3] != d or v.shape[:3] != k.shape[:3]:
        raise InputError(
            f"q {q.shape}, k {k.shape} and v {v.shape} do not fit: pass q [B, T, N, D], k [B, S, K, D], v [B, S, K, E]"
        )
    if n % n_kv:
        raise InputError(f"q has {n} heads, no multiple of the {n_kv} of k")
    if causal and t != s and q_offset is None:
        raise InputError(f"causal attention of {t} queries to {s} keys: say with q_offset where the queries begin")
    if q_offset is not None and (jnp.ndim(q_offset) or not jnp.issubdtype(jnp.result_type(q_offset), jnp.integer)):
        raise InputError(f"q_offset must be one integer for all rows, not {q_offset}")
    if not (scale is None or isinstance(scale, int | float)):
        raise InputError(f"scale must be a Python number, not {scale}; scale q by what is traced")
    if not all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in jax.tree.leaves(score_args)):
        raise InputError("score_args must be floats, since they have gradients: cast integers before")
    if window is not None and window < 1:
        raise InputError(f"window must be at least 1, not {window}; None sees all keys")
    for name, x in (("mask", mask), ("bias", bias)):
        if x is not None and (
            x.ndim != 4 or any(has not in (1, to) for has, to in zip(x.shape, (b, n, t, s), strict=True))
        ):
            raise InputError(f"{name} {x.shape} does not fit scores {(b, n, t, s)}: each axis has that length, or 1")
    if mask is not None and mask.dtype != bool:
        raise InputError(
            f"mask must be bool (True = keep), not {mask.dtype}; numbers to add to the scores are the bias"
        )
    if segment_ids is not None:
        pair = segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
        shapes = tuple(x.shape for x in pair)
        if shapes != ((b, t), (b, s)):
            raise InputError(
                f"segment_ids {shapes} do not fit {(b, t)} queries and {(b, s)} keys; pass a pair for T ≠ S"
            )
