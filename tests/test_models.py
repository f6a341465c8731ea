"""The conformance suite of the language models: one row a model. A new model joins by a row in MODELS."""

import contextlib
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seqjax
from seqjax import losses, train
from seqjax.errors import InputError
from seqjax.models import fixed_window_lm, rnn_lm, transformer_lm
from tests import oracles

V, B, T = 11, 3, 6
LENGTHS = np.array([T, 2, 4], np.int32)


def rnn(cell, tied, n_layers, **options):
    def build(dtype):
        config = rnn_lm.Config(cell, 8 if tied else 6, 8, n_layers, tied, dtype, **options)
        return lambda key: rnn_lm.RNNLM(config, V, rngs=nnx.Rngs(key))

    return build


def fixed_window(**options):
    def build(dtype):
        config = fixed_window_lm.Config(d_embed=6, d_hidden=16, dtype=dtype, **options)
        return lambda key: fixed_window_lm.FixedWindowLM(config, V, rngs=nnx.Rngs(key))

    return build


def transformer(**options):
    def build(dtype):
        config = transformer_lm.TransformerConfig(
            d_model=12, context=T, dtype=dtype, **{"n_heads": 2, "n_layers": 2, **options}
        )
        return lambda key: transformer_lm.TransformerLM(config, V, rngs=nnx.Rngs(key))

    return build


# name -> (dtype -> (key -> module)). A module has __call__(tokens, state, lengths=, dropout=, key=) -> (state, logits),
# init_state(batch), prefill(state, tokens, lengths) and step(state, tokens).
MODELS = {
    f"rnn_lm-{cell}{'-tied' * tied}-{n_layers}": rnn(cell, tied, n_layers)
    for cell in seqjax.CELLS
    for tied in (False, True)
    for n_layers in (1, 2)
    if cell == "lstm" or (n_layers == 2 and not tied)
} | {
    "rnn_lm-awd": rnn("lstm", True, 2, variational=True, word_dropout=0.1, weight_drop=0.3),
    "fixed_window-bigram": fixed_window(n_layers=0),
    "fixed_window-mlp": fixed_window(fuse=4),
    "fixed_window-tree": fixed_window(fuse=2, n_layers=2, norm=True),
    "transformer-rotary": transformer(n_kv_heads=1),
    "transformer-learned": transformer(positions="learned", tied=False, bias=False),
    "transformer-sinusoidal": transformer(positions="sinusoidal", norm_place="post"),
    "transformer-alibi": transformer(positions="alibi", norm="rms"),
    "transformer-t5": transformer(positions="t5", residual=False),
    "transformer-none": transformer(positions="none", norm_place="none", n_layers=1),
}
# A few cells, and every value of the options; the rest is left to the full run.
QUICK = (
    *("rnn_lm-lstm-1", "rnn_lm-lstm-tied-2", "rnn_lm-gru-2", "rnn_lm-gru_cho-2", "rnn_lm-elman-2"),
    *("fixed_window-bigram", "fixed_window-tree", "transformer-rotary", "transformer-learned"),
)


# Training and studies take seconds a row: one row for each way to read a sequence. Biases of keys have no gradient but
# rounding noise, which Adam scales up, so no two programs train them alike: no rows with such biases, but for the
# rotary one, which turns keys by their positions.
TRAINED = ("rnn_lm-lstm-tied-2", "rnn_lm-elman-2", "fixed_window-tree", "transformer-rotary", "transformer-learned")


def each(quick, names=tuple(MODELS)):
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[] if name in quick else [pytest.mark.full]) for name in names]
    )


each_model = each(QUICK)


@cache
def model(name, dtype="float32"):
    """The model's compiled functions and its weights; compiled once for all tests."""
    init, apply = seqjax.purify(MODELS[name](dtype))
    # Not larger: without norms the scores of the second layer would be hundreds, and so would what rounding does there.
    params = oracles.random_like(np.random.default_rng(0), jax.eval_shape(init, jax.random.key(0)), 0.4)
    return SimpleNamespace(
        apply=apply,
        params=params,
        forward=jax.jit(lambda params, tokens, lengths: apply(params, tokens, lengths=lengths)),
        init_state=lambda batch: apply(params, batch, method="init_state"),
        prefill=jax.jit(lambda *arguments: apply(*arguments, method="prefill")),
        step=jax.jit(lambda *arguments: apply(*arguments, method="step")),
    )


@contextlib.contextmanager
def compilations():
    """The names of what JAX traces and compiles meanwhile."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: events.append(event) if "compile" in event else None
    )
    try:
        yield events
    finally:
        jax.monitoring.clear_event_listeners()


def random_tokens(seed=0, shape=(B, T)):
    return jnp.asarray(np.random.default_rng(seed).integers(0, V, shape), jnp.int32)


def close(actual, expected, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), actual, expected)


@each_model
def test_no_output_sees_the_future(name):
    m, tokens, whole = model(name), random_tokens(), jnp.full(B, T)
    _, before = m.forward(m.params, tokens, whole)
    assert before.shape == (B, T, V)
    for t in (0, 3, T - 1):
        _, after = m.forward(m.params, tokens.at[:, t].set((tokens[:, t] + 1) % V), whole)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert np.all(np.any(after[:, t:] != before[:, t:], axis=-1)[:, 0])


@each_model
def test_padding_does_not_matter(name):
    m, lengths = model(name), jnp.asarray(LENGTHS)
    padding = np.arange(T) >= LENGTHS[:, None]
    tokens = random_tokens()
    state, logits = m.forward(m.params, tokens, lengths)
    other, changed = m.forward(m.params, jnp.where(padding, random_tokens(1), tokens), lengths)
    np.testing.assert_array_equal(changed[~padding], logits[~padding])
    jax.tree.map(np.testing.assert_array_equal, other, state)


@each_model
def test_decoding_step_by_step_is_the_forward_pass(name):
    m, tokens = model(name), random_tokens()
    _, expected = m.forward(m.params, tokens, jnp.full(B, T))
    # Row b has read LENGTHS[b] tokens when it begins to step: the rows are at different places.
    state, logits = m.prefill(m.params, m.init_state(B), tokens, jnp.asarray(LENGTHS))
    close(logits, expected[np.arange(B), LENGTHS - 1])
    for i in range(T - min(LENGTHS)):
        places = np.minimum(LENGTHS + i, T - 1)
        state, logits = m.step(m.params, state, tokens[np.arange(B), places])
        unfinished = LENGTHS + i < T
        close(logits[unfinished], expected[np.arange(B), places][unfinished])


@each_model
def test_the_second_step_compiles_nothing(name):
    m, token = model(name), jnp.zeros(B, jnp.int32)
    state, _ = m.prefill(m.params, m.init_state(B), random_tokens(), jnp.asarray(LENGTHS))
    state, _ = m.step(m.params, state, token)
    with compilations() as compiled:
        m.step(m.params, state, token)
    assert compiled == []


@each_model
def test_a_prompt_in_a_batch_is_that_prompt_alone(name):
    m, tokens = model(name), random_tokens()
    state, logits = m.prefill(m.params, m.init_state(B), tokens, jnp.asarray(LENGTHS))
    for b, length in enumerate(LENGTHS):
        alone = m.prefill(m.params, m.init_state(1), tokens[b : b + 1, :length], jnp.asarray([length]))
        row = jax.tree.map(lambda a: a[b : b + 1] if a.ndim else a, state)  # noqa: B023
        close((row, logits[b : b + 1]), alone)


@each_model
def test_bfloat16_compute(name):
    exact, m = model(name), model(name, "bfloat16")
    assert jax.tree.structure(m.params) == jax.tree.structure(exact.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(m.params)} == {jnp.dtype("float32")}
    tokens, whole = random_tokens(), jnp.full(B, T)
    _, logits = m.forward(m.params, tokens, whole)
    assert logits.dtype == jnp.bfloat16
    _, expected = exact.forward(m.params, tokens, whole)
    # States of linear cells have no bound, and bfloat16 has a relative precision: so has the tolerance above 1.
    np.testing.assert_allclose(logits.astype(jnp.float32), expected, atol=0.05 * max(1.0, float(jnp.std(expected))))
    grads = jax.jit(jax.grad(lambda p: jnp.sum(m.apply(p, tokens)[1].astype(jnp.float32) ** 2)))(m.params)
    assert all(leaf.dtype == jnp.float32 and np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


def memorise(name):
    """(train_step, initial state of a seed, batch): to repeat four sequences that no rule gives."""
    init, apply = seqjax.purify(MODELS[name]("float32"))
    init = jax.jit(init)
    tokens = random_tokens(5, (4, 7))

    def loss_fn(params, extra, batch, key, hyper):
        _, logits = apply(params, batch[:, :-1], dropout=hyper.dropout, key=key)
        return losses.cross_entropy(logits, batch[:, 1:]), (extra, {})

    optimizer = train.make_optimizer()

    def start(seed):
        return train.init_state(init(jax.random.key(seed)), (), jax.random.key(seed), optimizer(train.Hyper()))

    return train.make_step(loss_fn, optimizer), start, tokens


@each(("rnn_lm-lstm-tied-2",), TRAINED)
def test_overfits_a_toy_batch(name):
    train_step, start, tokens = memorise(name)

    @jax.jit
    def run(state, hyper):
        return jax.lax.scan(lambda state, _: train_step(state, tokens, hyper), state, None, length=250)

    _, metrics = run(start(0), train.Hyper(lr=0.03))
    total, weight = metrics["loss"]
    curve = total / weight
    assert curve[0] > 2
    # The first token of a row tells the row apart from all but those that begin alike.
    assert curve[-1] < 0.35, curve[-1]
    assert not np.any(metrics["skipped"][0])


@each(("rnn_lm-elman-2",), ("rnn_lm-elman-2", "fixed_window-tree", "transformer-learned"))
def test_a_vmapped_study_is_single_runs(name):
    """Three seeds, each with hyperparameters of its own, in one program."""
    train_step, start, tokens = memorise(name)
    hypers = [
        train.Hyper(lr=0.01, weight_decay=0.1, clip=0.2, dropout=0.0),
        train.Hyper(lr=0.02, b1=0.5, clip=float("inf"), dropout=0.3),
        train.Hyper(lr=0.005, b2=0.9, dropout=0.6),
    ]
    hypers = [jax.tree.map(jnp.float32, hyper) for hyper in hypers]
    states = [start(seed) for seed in range(3)]

    def run(state, hyper):
        return jax.lax.scan(lambda state, _: train_step(state, tokens, hyper), state, None, length=5)

    together = jax.jit(jax.vmap(run))(*(jax.tree.map(lambda *a: jnp.stack(a), *x) for x in (states, hypers)))
    alone = jax.jit(run)
    for i, (state, hyper) in enumerate(zip(states, hypers, strict=True)):
        after, metrics = alone(state, hyper)
        member = jax.tree.map(lambda a: a[i], together)  # noqa: B023
        close((after.params, metrics["loss"]), (member[0].params, member[1]["loss"]), 2e-4)
        assert after.step == member[0].step == 5


@pytest.mark.parametrize("name", ["rnn_lm-lstm-tied-2"])
def test_dropout_acts_only_with_a_key_and_its_rate_is_traced(name):
    m, tokens = model(name), random_tokens()
    drop = jax.jit(lambda rate, key: m.apply(m.params, tokens, dropout=rate, key=key)[1])
    _, expected = m.forward(m.params, tokens, jnp.full(B, T))
    close(m.apply(m.params, tokens, dropout=0.9)[1], expected)
    one, two = jax.random.key(1), jax.random.key(2)
    close(drop(0.0, one), expected)
    with compilations() as compiled:
        first, again, other = drop(0.5, one), drop(0.5, one), drop(0.5, two)
    assert compiled == []
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.fast
@pytest.mark.parametrize("tied", [False, True])
def test_number_of_weights(tied):
    """Mikolov (2010), with the sizes of this model: E, four gates with one bias, and the output layer if not tied."""
    params = model(f"rnn_lm-lstm{'-tied' * tied}-1").params
    d, h = (8, 8) if tied else (6, 8)
    expected = V * d + 4 * h * (d + h + 1) + (0 if tied else (h + 1) * V)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.fast
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "lstmm"}, "model.cell='lstmm' is unknown; choose from elman, gru, gru_cho, indrnn"),
        ({"tied": True}, "model.tied needs d_embed = d_hidden, not 128 and 256"),
        ({"d_hidden": 0}, "model.d_hidden=0; it must be at least 1"),
        ({"d_embed": -1}, "model.d_embed=-1; it must be at least 1"),
        ({"n_layers": 0}, "model.n_layers=0; it must be at least 1"),
    ],
)
def test_config_refuses(options, message):
    with pytest.raises(InputError, match=message):
        rnn_lm.Config(**options)
