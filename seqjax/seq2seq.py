"""Parts of recurrent encoder-decoders, as pure functions: memory, coverage, copying, scheduled sampling."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from seqjax import pooling
from seqjax.layers import affine
from seqjax.types import Array, Float, Int, PRNGKey, PyTree, Scalar, wide


def last_output(
    ys: Float[Array, "B S H"], lengths: Int[Array, "B"], *, bidirectional: bool = False
) -> Float[Array, "B 1 H"]:
    """What an encoder put out when it had read everything, the fixed-size memory of a text (Cho et al., 2014).

    That is its output at the last token; of the half of ``bidirectional`` outputs that goes back, at the first.

    >>> ys = jnp.arange(6.0).reshape(1, 3, 2)
    >>> print(last_output(ys, jnp.array([2])), last_output(ys, jnp.array([2]), bidirectional=True))
    [[[2. 3.]]] [[[2. 1.]]]
    """
    return pooling.last(ys, lengths, bidirectional=bidirectional)[:, None]


def covered_additive(
    q: Float[Array, "B T D"],
    keys: Float[Array, "B S A"],
    coverage: Float[Array, "B T S"],
    *,
    w_q: Float[Array, "D A"],
    b: Float[Array, "A"],
    w_coverage: Float[Array, "A"],
    w_score: Float[Array, "A"],
) -> Float[Array, "B T S"]:
    """The additive score of keys that know how much attention they have had (See et al., 2017).

        tanh(q w_q + keys + coverage w_coverage + b) · w_score

    Args:
      q: queries.
      keys: projected already: k w_k.
      coverage: the sum of a query's earlier attention to each key.
      w_q: matrix of the queries.
      b: bias.
      w_coverage: a vector; with zeros this is `scores.additive`.
      w_score: a vector.

    >>> q, keys, one = jnp.ones((1, 1, 1)), jnp.zeros((1, 2, 1)), jnp.ones(1)
    >>> z = covered_additive(q, keys, jnp.array([[[0.0, 1.0]]]), w_q=one[None], b=0 * one, w_coverage=-one, w_score=one)
    >>> print(z.round(2))
    [[[0.76 0.  ]]]
    """
    h = affine(q, w_q, b)[:, :, None] + keys[:, None]
    h = h + coverage[..., None].astype(q.dtype) * w_coverage.astype(q.dtype).reshape(1, 1, 1, -1)
    return jnp.tanh(h) @ w_score.astype(q.dtype)


def pointer_generator(
    logits: Float[Array, "B T V"],
    gate: Float[Array, "B T"],
    weights: Float[Array, "B T S"],
    source: Int[Array, "B S"],
    *,
    n_extra: int = 0,
) -> Float[Array, "B T W"]:
    """Log-probabilities of words that are either generated or copied from the source (See et al., 2017).

        log(σ(gate) softmax(logits)_v + (1 - σ(gate)) Σ_{s: source_s = v} weights_s)

    Of W = V + n_extra words, in at least float32. To copy a word that is nowhere in the source counts as having
    probability 1e-30: so a word that cannot be generated either has the finite log-probability -69.

    Args:
      logits: scores of the V words that can be generated.
      gate: how sure to generate.
      weights: attention to the source, 0 at padding.
      source: ids of its words; those from V on stand for words outside of the vocabulary.
      n_extra: how many of the latter there may be.

    >>> logits, weights = jnp.zeros((1, 1, 2)), jnp.array([[[0.25, 0.25, 0.5]]])
    >>> p = jnp.exp(pointer_generator(logits, jnp.zeros((1, 1)), weights, jnp.array([[1, 1, 2]]), n_extra=1))
    >>> print(p.round(3))
    [[[0.25 0.5  0.25]]]
    """
    dtype = wide(logits.dtype)
    gate = gate.astype(dtype)[..., None]
    generated = jax.nn.log_sigmoid(gate) + jax.nn.log_softmax(logits.astype(dtype), axis=-1)
    generated = jnp.pad(generated, ((0, 0), (0, 0), (0, n_extra)), constant_values=-jnp.inf)
    nothing = jnp.zeros_like(generated)
    copied = jax.vmap(lambda p, ids, a: p.at[:, ids].add(a))(nothing, source, weights.astype(dtype))
    some = copied > 1e-30
    copied = jnp.where(some, jnp.log(jnp.where(some, copied, 1)), math.log(1e-30))
    return jnp.logaddexp(generated, jax.nn.log_sigmoid(-gate) + copied)


def scheduled_inputs(
    step: Callable[[PyTree, Array], tuple[PyTree, Array]],
    state: PyTree,
    inputs: Int[Array, "B T"],
    rate: Scalar,
    key: PRNGKey,
) -> Int[Array, "B T"]:
    """Inputs of a decoder some of which it wrote itself: scheduled sampling (Bengio et al., 2015).

        logits_t = step(x_t);  x_{t+1} ~ softmax(logits_t) with probability rate, else inputs_{t+1}

    A coin for each token. A token is drawn, where the paper allows the likeliest one as well. No gradient passes
    through a draw: so training on what comes back is training within this loop, but may be parallel in t.

    Args:
      step: ``(state, tokens [B]) -> (state, logits [B, V])``.
      state: the decoder's before the first input.
      inputs: the true ones; the first always stays.
      rate: how many to replace, from 0 to 1; may be traced.
      key: randomness of coins and draws.

    >>> table = jnp.log(jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    >>> step = lambda state, tokens: (state, table[tokens])
    >>> print(scheduled_inputs(step, (), jnp.zeros((1, 5), jnp.int32), 1.0, jax.random.key(0)))
    [[0 1 2 0 1]]
    """

    def body(carry, following):
        (state, token), (t, true) = carry, following
        state, logits = lax.stop_gradient(step(state, token))  # here, or the backward pass would keep every state
        key_coin, key_token = jax.random.split(jax.random.fold_in(key, t))
        logits = logits.astype(wide(logits.dtype))
        drawn = jax.random.categorical(key_token, logits).astype(true.dtype)
        token = jnp.where(jax.random.bernoulli(key_coin, jnp.asarray(rate, jnp.float32), true.shape), drawn, true)
        return (state, token), token

    following = jnp.arange(inputs.shape[1] - 1), inputs[:, 1:].T
    _, tokens = lax.scan(body, (lax.stop_gradient(state), inputs[:, 0]), following)
    return jnp.concatenate([inputs[:, :1], tokens.T], axis=1)
