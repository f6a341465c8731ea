"""What the conformance suite in test_models.py does not see: caches that wrap around, documents, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seqjax
from seqjax import caching
from seqjax.errors import InputError
from seqjax.models.transformer_lm import TransformerConfig, TransformerLM
from tests import oracles

V, B, CONTEXT, T = 7, 2, 5, 13


def made(**options):
    config = TransformerConfig(**{"d_model": 8, "n_heads": 2, "n_layers": 2, "context": CONTEXT, **options})
    init, apply = seqjax.purify(lambda key: TransformerLM(config, V, rngs=nnx.Rngs(key)))
    return apply, oracles.random_like(np.random.default_rng(0), jax.eval_shape(init, jax.random.key(0)))


def some_tokens(seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, V, (B, T)), jnp.int32)


@pytest.mark.parametrize("positions", ["rotary", "t5"])
def test_decoding_goes_on_beyond_the_context(positions):
    """Prompts of different lengths, steps around the ring, another prompt, steps: all as one windowed forward pass."""
    apply, params = made(positions=positions)
    tokens = some_tokens()
    _, expected = apply(params, tokens)
    prefill, step = (jax.jit(lambda *a, method=m: apply(params, *a, method=method)) for m in ("prefill", "step"))
    at, rows = np.zeros(B, int), np.arange(B)

    def check(logits):
        np.testing.assert_allclose(logits, expected[rows, at - 1], atol=1e-5)

    def read(lengths):
        prompt = np.stack(
            [np.resize(np.asarray(tokens)[b, at[b] : at[b] + n], 4) for b, n in zip(rows, lengths, strict=True)]
        )
        return prefill(state, jnp.asarray(prompt), jnp.asarray(lengths, jnp.int32))

    state = apply(params, B, method="init_state")
    for lengths, n_steps in (((4, 1), 4), ((2, 4), 2)):
        state, logits = read(lengths)
        at += lengths
        check(logits)
        for _ in range(n_steps):
            state, logits = step(state, tokens[rows, at])
            at += 1
            check(logits)


def test_no_token_sees_another_document():
    apply, params = made()
    forward = jax.jit(lambda tokens, **options: apply(params, tokens, **options)[1])
    resets = jnp.asarray(np.arange(12) == np.array([[4], [8]]))
    tokens = some_tokens()[:, :12]
    logits = forward(tokens, resets=resets)
    for row, start, end in ((0, 0, 4), (0, 4, 12), (1, 0, 8), (1, 8, 12)):
        np.testing.assert_allclose(logits[row, start:end], forward(tokens[row : row + 1, start:end])[0], atol=1e-5)


def test_learned_positions_end():
    apply, params = made(positions="learned")
    with pytest.raises(InputError, match="13 tokens do not fit into learned positions for 5"):
        apply(params, some_tokens())
    state = apply(params, B, method="init_state")
    prefill, step = (jax.jit(lambda *a, method=m: apply(params, *a, method=method)) for m in ("prefill", "step"))
    state, logits = prefill(state, some_tokens()[:, :CONTEXT], jnp.array([CONTEXT, 2]))
    assert jnp.all(jnp.isfinite(logits))
    _, logits = step(state, jnp.zeros(B, jnp.int32))
    np.testing.assert_array_equal(jnp.all(jnp.isfinite(logits), axis=1), [False, True])


def test_padding_beyond_the_learned_positions_harms_nobody():
    apply, params = made(positions="learned", context=8)
    tokens = some_tokens()[:, :8]
    _, expected = apply(params, tokens)
    prefill = jax.jit(lambda *a: apply(params, *a, method="prefill"))
    state, _ = prefill(apply(params, B, method="init_state"), tokens[:, :4], jnp.array([4, 4]))
    _, logits = prefill(state, jnp.pad(tokens[:, 4:], ((0, 0), (0, 2))), jnp.array([4, 1]))
    np.testing.assert_allclose(logits, expected[np.arange(B), [7, 4]], atol=1e-5)


def test_a_state_is_for_decoding_and_can_be_donated():
    apply, params = made()
    state = apply(params, B, method="init_state")
    with pytest.raises(InputError, match="carries no state from call to call; use prefill"):
        apply(params, some_tokens(), state)
    jax.jit(lambda state: state, donate_argnums=0)(state)
    heads = jnp.ones((B, 3, 2, 4))
    with pytest.raises(InputError, match="a step reads one token a row, not 3"):
        caching.attend(caching.empty(B, 2, 4, 4, jnp.float32), caching.start(B), heads, heads, heads)


@pytest.mark.parametrize("options", [{"norm_place": "none"}, {"norm_place": "post"}, {"norm": "rms"}])
def test_no_weight_is_idle(options):
    apply, params = made(**options)
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(apply(p, some_tokens())[1]))))(params)
    # The table of tokens has rows for tokens that do not occur; everything else counts.
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients))


def test_a_step_writes_one_column():
    """In place: the compiled step makes no array of the size of the cache, when the old one is donated."""
    apply, params = made(context=4096, d_model=32)
    step = jax.jit(lambda p, state, tokens: apply(p, state, tokens, method="step"), donate_argnums=1)
    state = jax.eval_shape(lambda: apply(params, B, method="init_state"))
    compiled = step.lower(params, state, jnp.zeros(B, jnp.int32)).compile()
    cache = B * 4096 * 32 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < cache / 2


def test_number_of_weights():
    """nanoGPT's configuration for a CPU: 0.8 M weights."""
    config = TransformerConfig(positions="learned", bias=False)
    init, _ = seqjax.purify(lambda key: TransformerLM(config, 65, rngs=nnx.Rngs(key)))
    params = jax.eval_shape(init, jax.random.key(0))
    d = 128
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == (
        65 * d + 64 * d + 4 * (4 * d * d + 8 * d * d + 2 * d) + d
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 3}, "model.n_heads=3 must divide model.d_model=128"),
        ({"n_kv_heads": 3}, "model.n_kv_heads=3 must divide model.n_heads=4"),
        ({"d_model": 12}, "rotary positions need heads of even size, not 3"),
        ({"d_model": 9, "n_heads": 1, "positions": "sinusoidal"}, "sinusoidal positions need an even model.d_model"),
        ({"context": 0}, "model.context=0; it must be at least 1"),
    ],
)
def test_config_refuses(options, message):
    with pytest.raises(InputError, match=message):
        TransformerConfig(**options)
