"""How ``losses.linear_cross_entropy`` is made: never more than a chunk of tokens has logits.

    logits = hidden_c tableᵀ + bias                                        one chunk c of tokens at a time
    dlogits = where ((1 + 2 z lse) exp(logits - lse) - s/V - (1 - s) onehot(target))
    dhidden_c = dlogits table;   dtable += dlogitsᵀ hidden_c;   dbias += Σ dlogits

The loss is a sum, so its cotangent is one number, which can multiply the gradients afterwards. Where gradients are
asked for they are therefore computed in the forward pass, while a chunk's logits are there: three products, as with
the logits kept, instead of the four of a backward pass that computes them again (Liger Kernel, Hsu et al., 2024).
Without gradients there is one product.

``dlogits`` and the update of ``dtable`` go through the vocabulary in blocks: then no temporary array is as large as the
table, and a block is still in the cache when it is needed for the second product. On two CPU cores that took 0.9 of the
time of whole rows. A token's chunk is its number modulo the number of chunks: so a batch that is sharded over devices
keeps all of them busy in every chunk.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from seqjax.errors import InputError
from seqjax.kernels.rules import spread
from seqjax.types import Array, wide

# Measured on two cores with the shapes of experiments/bench/linear_cross_entropy.py: 64 tokens a chunk took 9 % longer
# than 128, since every chunk reads and writes all of dtable; 256 took 5 % less, and twice the memory. Blocks of 256 to
# 4096 words took the same time within 3 %.
_CHUNK, _BLOCK = 128, 512
# As many logits, 4 MB, stay in the cache.
_SMALL = 2**20
# On accelerators: fewer and larger products, which take the sum into dtable along. Chosen, not measured.
_ACCELERATOR_CHUNK = 1024


def linear_cross_entropy(
    hidden: Array,
    table: Array,
    targets: Array,
    *,
    bias: Array | None = None,
    where: Array | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
) -> tuple[Array, Array]:
    """`cross_entropy` of ``hidden tableᵀ + bias``, without an array of all these logits.

        logits = hidden tableᵀ + bias
        loss   = lse - (1 - s) logits_target - s mean_v(logits_v) + z lse²,   lse = log Σ_v exp(logits_v)

    Tokens go through the vocabulary a chunk at a time, and where gradients are asked for, they are computed there and
    then (Liger Kernel, Hsu et al. 2024): three products, and memory for the logits of 128 tokens. The products run in
    the dtype of ``hidden`` and add up in float32 at least, as does everything else. All of it can be mapped and
    sharded, and there are gradients of every argument, ``where`` included, but no forward mode (jvp). Over a batch that
    is sharded, the gradient of the table is summed for each chunk; under ``shard_map``, once. The words of the table,
    too, can be on several devices (``jax.set_mesh``): of each token a few sums and a vector [D] are exchanged.

    Args:
      hidden: ``[..., D]``. Where ``where`` is 0 it may be anything, NaN included.
      table: ``[V, D]``, such as an embedding table.
      targets: integers in ``[0, V)``, ``[...]``; one outside of it gives NaN, unless its ``where`` is 0.
      bias: ``[V]``.
      where: ``[...]``, bool (True = keep) or weights.
      label_smoothing: s, a scalar, traced or not.
      z_loss: z, a scalar, traced or not.

    Returns:
      ``(Σ where·loss, Σ where)``.

    Raises:
      InputError: targets are not integers, or the shapes do not fit.

    >>> total, weight = linear_cross_entropy(jnp.zeros((2, 3, 4)), jnp.ones((8, 4)), jnp.zeros((2, 3), int))
    >>> print(f"{total / weight:.4f} = log 8 = {np.log(8):.4f}")
    2.0794 = log 8 = 2.0794
    """
    check(targets, where)
    check_linear(hidden, table, targets, bias)
    dtype = wide(hidden.dtype)
    weight, index = weights(targets, where, len(table), dtype)
    smoothing, z = jnp.asarray(label_smoothing, dtype), jnp.asarray(z_loss, dtype)
    flat = hidden.reshape(index.size, hidden.shape[-1]), table, bias, weight.reshape(-1), smoothing, z
    return _compiled_total(index.reshape(-1), *_alike(*flat)), jnp.sum(weight)


def count_chunks(tokens: int, vocabulary: int) -> tuple[int, int]:
    """Into how many chunks of tokens and blocks of the vocabulary the work is cut.

    >>> count_chunks(1024, 32768), count_chunks(256, 32768), count_chunks(768, 65)
    ((8, 64), (3, 64), (1, 1))
    """
    if tokens * vocabulary <= _SMALL:
        return 1, 1
    if jax.default_backend() != "cpu":
        return -(-tokens // _ACCELERATOR_CHUNK), 1
    # Thirds of a short batch: one chunk would save no memory.
    chunk = min(max(-(-tokens // 3), _CHUNK // 2), _CHUNK)
    n = -(-tokens // chunk)
    # Rather a few chunks more than padding, and as many tokens of each on every one of up to 8 devices.
    n = next((more for more in range(n, n + n // 4 + 1) if tokens % (8 * more) == 0), n)
    return n, -(-vocabulary // _BLOCK)


def _cut(hidden: Array, table: Array) -> tuple[int, int]:
    """`count_chunks`, with as many tokens of each chunk on every device of a mesh with Explicit axes.

    On a mesh with Auto axes, words may be on several devices: they are not cut further.
    """
    n, blocks = count_chunks(len(hidden), len(table))
    blocks = 1 if spread() else blocks
    sharding = jax.typeof(hidden).sharding
    axes = sharding.spec[0]
    if axes is not None:
        names = axes if isinstance(axes, tuple) else (axes,)
        local = len(hidden) // math.prod(sharding.mesh.shape[name] for name in names)
        n = next((more for more in range(n, local) if local % more == 0), local)
    return n, blocks


def _alike(*arrays: Array | None) -> list[Array | None]:
    """The arrays plus a zero that is made of all: under shard_map they then vary over the same axes.

    The derivative of that sum adds up gradients over the devices. XLA removes it elsewhere.
    """
    zero = sum((jnp.sum(jnp.zeros_like(a, dtype=jnp.float32)) for a in arrays if a is not None), jnp.float32(0))
    return [None if a is None else a + jnp.broadcast_to(zero.astype(a.dtype), a.shape) for a in arrays]


def statistics(logits: Array, index: Array) -> tuple[Array, Array, Array]:
    """What the loss needs of each token: ``lse``, the target's logit (NaN for an index above V), the mean logit."""
    target = jnp.take_along_axis(logits, index[..., None], axis=-1, mode="fill", fill_value=jnp.nan).squeeze(-1)
    return jax.nn.logsumexp(logits, axis=-1), target, jnp.mean(logits, axis=-1)


def weighted_sum(stats: tuple[Array, Array, Array], weight: Array, smoothing: Array, z: Array) -> Array:
    """Σ weight · loss, of the statistics of each token."""
    lse, target, mean = stats
    # Without smoothing, a logit of -inf must not meet 0 · -inf.
    uniform = jnp.where((smoothing == 0) & ~jnp.isfinite(mean), 0, mean)
    loss = lse - (1 - smoothing) * target - smoothing * uniform + z * jnp.square(lse)
    return jnp.sum(weight * loss)


# jit, so that a call outside of jit compiles once and not at every call.
@jax.jit
def _compiled_total(*arguments: Array | None) -> Array:
    return _total(*arguments)


@jax.custom_vjp
def _total(
    index: Array, hidden: Array, table: Array, bias: Array | None, weight: Array, smoothing: Array, z: Array
) -> Array:
    """Σ weight · loss for index and weight [N], hidden [N, D], table [V, D], bias [V]."""
    n, _ = _cut(hidden, table)
    matrix = table.astype(hidden.dtype)

    def chunk(inputs):
        hidden, index, weight = inputs
        return kept(weight, statistics(_scores(kept(weight, hidden), matrix, bias), index))

    stats = lax.map(chunk, _deal((hidden, index, weight), n))
    return weighted_sum(_collect(stats, len(index)), weight, smoothing, z)


def _forward(index, hidden, table, bias, weight, smoothing, z):
    n, blocks = _cut(hidden, table)
    matrix = table.astype(hidden.dtype)

    def chunk(gradients, inputs):
        hidden, index, weight = inputs
        hidden = kept(weight, hidden)
        logits = _scores(hidden, matrix, bias)
        stats = statistics(logits, index)
        dhidden, gradients = _gradients(
            logits, stats[0], hidden, matrix, gradients, index, weight, smoothing, z, blocks=blocks
        )
        return gradients, (kept(weight, stats), dhidden.astype(hidden.dtype))

    dtable, dbias = jax.tree.map(lambda a: jnp.zeros_like(a, dtype=weight.dtype), (table, bias))
    (dtable, dbias), (stats, dhidden) = lax.scan(chunk, (dtable, dbias), _deal((hidden, index, weight), n))
    stats, dhidden = _collect((stats, dhidden), len(index))
    total = weighted_sum(stats, weight, smoothing, z)
    # Zero-size arrays tell the backward pass the dtypes.
    like = jax.tree.map(lambda a: a[:0], (table, bias))
    return total, (dhidden, dtable, dbias, like, stats, weight, smoothing, z)


def _backward(residuals, cotangent):
    dhidden, dtable, dbias, (table, bias), stats, *rest = residuals

    def scaled(gradient, like):
        return (cotangent * gradient.astype(cotangent.dtype)).astype(like.dtype)

    _, pull = jax.vjp(lambda *rest: weighted_sum(stats, *rest), *rest)
    dbias = None if dbias is None else scaled(dbias, bias)
    return None, scaled(dhidden, dhidden), scaled(dtable, table), dbias, *pull(cotangent)


_total.defvjp(_forward, _backward)


def _gradients(logits, lse, hidden, matrix, gradients, index, weight, smoothing, z, *, blocks: int):
    """One chunk: ``dhidden`` and ``gradients = (dtable, dbias)`` with what the chunk adds, block by block."""
    vocabulary = len(matrix)
    size = -(-vocabulary // blocks)
    scale = (weight * (1 + 2 * z * lse))[:, None]
    true, uniform = (weight * (1 - smoothing))[:, None], (weight * smoothing / vocabulary)[:, None]

    def of_block(begin, fresh, logits, rows, state):
        """What a block of words adds to the gradients, from the word ``fresh`` on."""
        dhidden, dtable, dbias = state
        words = (begin + jnp.arange(len(rows), dtype=jnp.int32))[None]
        p = jnp.exp(logits - lse[:, None])
        dlogits = scale * p - uniform - jnp.where(words == index[:, None], true, 0)
        dlogits = jnp.where(words >= fresh, dlogits, 0)
        low = dlogits.astype(matrix.dtype)
        dhidden = dhidden + _dot(low, rows, 1, 0, dhidden)
        dtable = _add(dtable, _dot(low, hidden, 0, 0, dtable), begin)
        dbias = None if dbias is None else _add(dbias, jnp.sum(dlogits, 0), begin)
        return dhidden, dtable, dbias

    def block(i, state):
        # The last block may begin inside the one before it: its first words are then done.
        begin = jnp.minimum(i * size, vocabulary - size)
        logits_i, rows = lax.dynamic_slice_in_dim(logits, begin, size, 1), lax.dynamic_slice_in_dim(matrix, begin, size)
        return of_block(begin, i * size, logits_i, rows, state)

    start = jnp.zeros_like(hidden, dtype=logits.dtype)
    if blocks == 1:  # nothing is cut: a table whose words are on several devices would have to be gathered
        dhidden, *gradients = of_block(0, 0, logits, matrix, (start, *gradients))
        return dhidden, tuple(gradients)
    dhidden, *gradients = lax.fori_loop(np.int32(0), np.int32(blocks), block, (start, *gradients))
    return dhidden, tuple(gradients)


def _scores(hidden: Array, matrix: Array, bias: Array | None) -> Array:
    """``hidden matrixᵀ + bias``, at least float32."""
    scores = lax.dot_general(hidden, matrix, (((1,), (1,)), ((), ())), preferred_element_type=wide(hidden.dtype))
    return scores if bias is None else scores + jnp.broadcast_to(bias.astype(scores.dtype), scores.shape)


def _dot(a: Array, b: Array, axis_a: int, axis_b: int, like: Array) -> Array:
    """The product over these axes, in the dtype of ``like`` and, on a mesh with Explicit axes, sharded as it is."""
    explicit = any(axis is not None for axis in (*jax.typeof(a).sharding.spec, *jax.typeof(b).sharding.spec))
    return lax.dot_general(
        a,
        b,
        (((axis_a,), (axis_b,)), ((), ())),
        preferred_element_type=like.dtype,
        out_sharding=jax.typeof(like).sharding.spec if explicit else None,
    )


def _add(whole: Array, part: Array, begin: Array | int) -> Array:
    if len(part) == len(whole):
        return whole + part
    old = lax.dynamic_slice_in_dim(whole, begin, len(part))
    return lax.dynamic_update_slice_in_dim(whole, old + part, begin, 0)


def _deal(tree, n: int):
    """Rows dealt out to n hands, and rows of zeros to fill up the last ones: ``[N, …]`` to ``[n, N/n, …]``."""

    def deal(a):
        short = -len(a) % n
        if short:
            a = jnp.pad(a, ((0, short),) + ((0, 0),) * (a.ndim - 1))
        return jnp.moveaxis(a.reshape(len(a) // n, n, *a.shape[1:]), 1, 0)

    return jax.tree.map(deal, tree)


def _collect(tree, tokens: int):
    """The inverse of `_deal`."""
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(a.shape[0] * a.shape[1], *a.shape[2:])[:tokens], tree)


def check(targets: Array, where: Array | None, name: str = "targets") -> None:
    """Reject targets that are no class ids, and a mask of another shape."""
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise InputError(f"{name} must be integers, not {targets.dtype}: pass class ids, not one-hot vectors")
    if where is not None and where.shape != targets.shape:
        raise InputError(f"where {where.shape} must have the shape of targets {targets.shape}: broadcast it first")


def check_linear(hidden: Array, table: Array, targets: Array, bias: Array | None) -> None:
    """Reject shapes that do not fit."""
    if hidden.ndim == 0 or hidden.shape[:-1] != targets.shape:
        raise InputError(
            f"hidden {hidden.shape} does not fit targets {targets.shape}: pass hidden [..., D] and targets [...]"
        )
    if table.ndim != 2 or table.shape[1] != hidden.shape[-1]:
        raise InputError(f"table {table.shape} does not fit hidden {hidden.shape}: pass table [V, D], a row a word")
    if bias is not None and bias.shape != table.shape[:1]:
        raise InputError(f"bias {bias.shape} does not fit table {table.shape}: pass bias [V]")


def weights(targets: Array, where: Array | None, vocabulary: int, dtype) -> tuple[Array, Array]:
    """Each token's weight, and the class to look up: 0 where the weight is 0, V (which gives NaN) for negative ones."""
    weight = jnp.ones_like(targets, dtype) if where is None else where.astype(dtype)
    targets = targets.astype(jnp.int32)  # a narrow type may not hold the size of the vocabulary
    # A negative index would count from the end.
    return weight, jnp.where(weight != 0, jnp.where(targets < 0, vocabulary, targets), 0)


def kept(weight: Array, tree):
    """Arrays ``[..., *n]`` with 0 for the tokens of weight 0, which may hold NaN."""

    def keep(a):
        mask = (weight != 0).reshape(weight.shape + (1,) * (a.ndim - weight.ndim))
        return jnp.where(mask, a, jnp.zeros_like(a))

    return jax.tree.map(keep, tree)
