"""The conformance suite of the encoder-decoders: one row a model. A new model joins by a row in MODELS."""

import itertools
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seqjax
from seqjax import losses, train
from seqjax.caching import Shared
from seqjax.errors import InputError
from seqjax.models.rnn_seq2seq import RNNSeq2Seq, RNNSeq2SeqConfig
from seqjax.models.transformer_seq2seq import TransformerSeq2Seq, TransformerSeq2SeqConfig
from seqjax.scores import SCORES
from seqjax.text import SOS
from tests import oracles
from tests.test_models import close, compilations

V, SOURCE_V, B, S, T = 11, 13, 3, 5, 4
LENGTHS = np.array([S, 2, 3], np.int32)
SMALL = {"cell": "gru", "d_embed": 6, "d_hidden": 6, "d_attention": 5, "longest": S}


def rnn(**options):
    def build(dtype):
        config = RNNSeq2SeqConfig(**{**SMALL, "dtype": dtype, **options})
        source_vocab = V if config.copy or config.tied == "all" else SOURCE_V
        return lambda key: RNNSeq2Seq(config, source_vocab, V, rngs=nnx.Rngs(key))

    return build


def transformer(tied="output", **options):
    def build(dtype):
        sizes = {"d_model": 8, "n_heads": 2, "n_layers": 2, "d_ff": 12, "context": 9}
        config = TransformerSeq2SeqConfig(**{**sizes, "dtype": dtype, "tied": tied, **options})
        source_vocab = V if tied == "all" else SOURCE_V
        return lambda key: TransformerSeq2Seq(config, source_vocab, V, rngs=nnx.Rngs(key))

    return build


# name -> (dtype -> (key -> module)), with the methods that `model` compiles.
POINTER = {"coverage": True, "copy": True, "n_extra": 2, "input_feeding": True, "bridge": "dense"}
MODELS = {
    "rnn-none": rnn(cell="lstm", attention="none", bidirectional=False, n_layers=2),
    "rnn-additive": rnn(d_embed=4, bridge="dense"),
    "rnn-pointer": rnn(cell="lstm", **POINTER),
    "rnn-dot": rnn(cell="elman", attention="dot", tied="output", bridge="zero"),
    "rnn-feeding": rnn(attention="general", input_feeding=True, tied="all", n_layers=2),
    "rnn-none-bidirectional": rnn(attention="none", input_feeding=True),
    "rnn-scaled_dot": rnn(attention="scaled_dot", copy=True, tied="all"),
    "rnn-cosine": rnn(cell="lru", attention="cosine"),
    "rnn-location": rnn(attention="location", bidirectional=False),
    "rnn-coverage": rnn(coverage=True, tied="output"),
    "transformer-sinusoidal": transformer(n_decoder_layers=1, norm_place="post"),
    "transformer-rotary": transformer("all", positions="rotary", n_kv_heads=1),
    "transformer-learned": transformer("none", positions="learned", bias=False),
    "transformer-alibi": transformer(positions="alibi", norm="rms"),
    "transformer-t5": transformer(positions="t5"),
    "transformer-none": transformer(positions="none", norm_place="none", n_layers=1),
}
QUICK = "rnn-none", "rnn-additive", "rnn-pointer", "transformer-rotary"
EVERY_VALUE = *QUICK, "rnn-dot", "rnn-feeding", "transformer-learned"


def each(quick=QUICK, names=tuple(MODELS)):
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[] if name in quick else [pytest.mark.full]) for name in names]
    )


def compiled(build):
    """A model's compiled functions, its weights, and how many words it tells apart."""
    init, apply = seqjax.purify(build)
    params = oracles.random_like(np.random.default_rng(0), jax.eval_shape(init, jax.random.key(0)))

    def loss(params, *batch):
        attention, logits = apply(params, *batch)
        return losses.cross_entropy(logits, jnp.roll(batch[2], 1))[0], (attention, logits)

    @jax.jit
    def forward(params, *batch):
        gradients, outputs = jax.grad(loss, has_aux=True)(params, *batch)
        return *outputs, gradients

    return SimpleNamespace(
        apply=apply,
        params=params,
        words=jax.eval_shape(apply, params, *batch(V))[1].shape[-1],
        forward=forward,  # (attention, logits, gradients)
        init_state=lambda batch: apply(params, batch, 9, method="init_state"),
        prefill=jax.jit(lambda *arguments: apply(*arguments, method="prefill")),
        step=jax.jit(lambda *arguments: apply(*arguments, method="step")),
    )


@cache
def model(name, dtype="float32"):
    return compiled(MODELS[name](dtype))


def batch(words, seed=0):
    """(source, source_lengths, inputs)"""
    rng = np.random.default_rng(seed)
    inputs = jnp.asarray(rng.integers(4, words, (B, T)), jnp.int32).at[:, 0].set(SOS)
    return jnp.asarray(rng.integers(4, words, (B, S)), jnp.int32), jnp.asarray(LENGTHS), inputs


def repeated(state, n):
    """Rows of n hypotheses for each source, as beam search makes them."""
    one = lambda a: a if isinstance(a, Shared) or a.ndim == 0 else jnp.repeat(a, n, axis=0)  # noqa: E731
    return jax.tree.map(one, state, is_leaf=lambda a: isinstance(a, Shared))


def check_steps(m, n=2):
    """Steps of n hypotheses a source, each with other tokens, are what teacher forcing says."""
    source, lengths, inputs = batch(m.words)
    texts = [inputs, *(batch(m.words, seed)[2] for seed in range(1, n))]
    expected = [m.forward(m.params, source, lengths, text) for text in texts]
    attention, logits = (np.stack(rows, 1).reshape(B * n, T, -1) for rows in list(zip(*expected, strict=True))[:2])
    texts = jnp.stack(texts, 1).reshape(B * n, T)
    state, first = m.prefill(m.params, m.init_state(B), source, lengths)
    assert state.attention.dtype == jnp.float32
    close((state.attention, first), (attention[::n, 0], logits[::n, 0]))
    state = repeated(state, n)
    for t in range(1, T):
        state, scores = m.step(m.params, state, texts[:, t])
        close((state.attention, scores), (attention[:, t], logits[:, t]))


@each(EVERY_VALUE)
def test_steps_are_teacher_forcing(name):
    check_steps(model(name))


@each()
def test_a_single_hypothesis_is_one_of_several(name):
    m = model(name)
    source, lengths, inputs = batch(m.words)
    state, _ = m.prefill(m.params, m.init_state(B), source, lengths)
    close(
        m.step(m.params, state, inputs[:, 1])[1],
        m.step(m.params, repeated(state, 2), jnp.repeat(inputs[:, 1], 2))[1][::2],
    )


@each(EVERY_VALUE)
def test_padding_does_not_matter_and_gradients_are_finite(name):
    m = model(name)
    source, lengths, inputs = batch(m.words)
    padding = np.arange(S) >= LENGTHS[:, None]
    attention, logits, gradients = m.forward(m.params, source, lengths, inputs)
    other = m.forward(m.params, jnp.where(padding, batch(m.words, 1)[0], source), lengths, inputs)
    np.testing.assert_array_equal(logits, other[1])
    np.testing.assert_array_equal(attention, other[0])
    jax.tree.map(np.testing.assert_array_equal, gradients, other[2])
    assert attention.shape == (B, T, S)
    assert attention.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(attention)[np.broadcast_to(padding[:, None], attention.shape)], 0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


@each(EVERY_VALUE)
def test_every_weight_has_a_gradient(name):
    m = model(name)
    gradients = m.forward(m.params, *batch(m.words))[2]
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.any(leaf), jax.tree_util.keystr(path)


@each()
def test_a_source_in_a_batch_is_that_source_alone(name):
    m = model(name)
    source, lengths, inputs = batch(m.words)
    attention, logits, _ = m.forward(m.params, source, lengths, inputs)
    b, n = 1, LENGTHS[1]
    alone = jax.jit(m.apply)(m.params, source[b : b + 1, :n], lengths[b : b + 1], inputs[b : b + 1])
    close((attention[b : b + 1, :, :n], logits[b : b + 1]), alone)


@each()
def test_no_output_sees_the_future(name):
    m = model(name)
    source, lengths, inputs = batch(m.words)
    attention, logits, _ = m.forward(m.params, source, lengths, inputs)
    for t in (1, T - 1):
        later = inputs.at[:, t].set(4 + (inputs[:, t] - 3) % (V - 4))
        changed = m.forward(m.params, source, lengths, later)
        np.testing.assert_array_equal(changed[1][:, :t], logits[:, :t])
        np.testing.assert_array_equal(changed[0][:, :t], attention[:, :t])
        assert np.all(np.any(changed[1][:, t:] != logits[:, t:], axis=-1)[:, 0])


@each()
def test_the_second_step_compiles_nothing(name):
    m, tokens = model(name), jnp.zeros(2 * B, jnp.int32)
    state, _ = m.prefill(m.params, m.init_state(B), *batch(m.words)[:2])
    state, _ = m.step(m.params, repeated(state, 2), tokens)
    with compilations() as events:
        m.step(m.params, state, tokens)
    assert events == []


@each(("rnn-pointer",), EVERY_VALUE)
def test_bfloat16_compute(name):
    exact, m = model(name), model(name, "bfloat16")
    assert jax.tree.structure(m.params) == jax.tree.structure(exact.params)
    arguments = batch(m.words)
    attention, logits, gradients = m.forward(m.params, *arguments)
    expected = exact.forward(m.params, *arguments)
    assert attention.dtype == jnp.float32
    np.testing.assert_allclose(attention, expected[0], atol=0.05)
    np.testing.assert_allclose(logits.astype(jnp.float32), expected[1], atol=0.1)
    assert all(leaf.dtype == jnp.float32 and np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


# Without "scaled_dot", whose scores of so few dimensions cannot be far apart: it cannot point at one word.
@each(("rnn-pointer",), ("rnn-pointer", "rnn-dot", "transformer-rotary"))
def test_overfits_a_copy_task(name):
    init, apply = seqjax.purify(MODELS[name]("float32"))
    source, _, inputs = batch(V, 5)
    inputs = inputs.at[:, 1:].set(source[:, : T - 1])

    def loss_fn(params, extra, batch, key, hyper):
        _, logits = apply(params, source, jnp.full(B, S), inputs)
        return losses.cross_entropy(logits, source[:, :T]), (extra, {})

    optimizer = train.make_optimizer()
    train_step = train.make_step(loss_fn, optimizer)
    start = train.init_state(jax.jit(init)(jax.random.key(0)), (), jax.random.key(0), optimizer(train.Hyper()))
    hyper = train.Hyper(lr=0.03)
    _, metrics = jax.jit(
        lambda state: jax.lax.scan(lambda state, _: train_step(state, (), hyper), state, None, length=200)
    )(start)
    total, weight = metrics["loss"]
    curve = total / weight
    assert curve[0] > 1.5
    assert curve[-1] < 0.05, curve[-1]


@each(("rnn-additive",))
def test_dropout_acts_only_with_a_key_and_its_rate_is_traced(name):
    m = model(name)
    arguments = batch(m.words)
    drop = jax.jit(lambda rate, key: m.apply(m.params, *arguments, dropout=rate, key=key)[1])
    one, two = jax.random.key(1), jax.random.key(2)
    close(drop(0.0, one), m.forward(m.params, *arguments)[1])
    with compilations() as events:
        first, again, other = drop(0.5, one), drop(0.5, one), drop(0.5, two)
    assert events == []
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    plain, keyless = (jax.make_jaxpr(partial(m.apply, dropout=rate))(m.params, *arguments) for rate in (0.0, 0.9))
    assert str(plain) == str(keyless)


# The recurrent model alone.


def looped(config, params, source, inputs):
    """The equations of one source and its target as loops in float64: (attention [T, S], logits [T, V])."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    cell, size = oracles.EQUATIONS[config.cell], config.d_hidden
    fields = seqjax.CELLS[config.cell].init(jax.random.key(0), 1, 1)
    zeros = jax.tree.map(lambda a: 0, seqjax.initial_carry(seqjax.CELLS[config.cell], fields, jnp.ones((1, 1))))

    def run(weights, carry, xs):
        ys = []
        for x in xs:
            carry, y = cell(weights._asdict(), carry, x)
            ys.append(y)
        return carry, ys

    def fresh(n):
        return {name: np.zeros(n) for name in zeros._fields}

    def embed(table, token):
        return table["w"][token if token < len(table["w"]) else 1]

    ys, carries = [embed(p["source"], token) for token in source], []
    for layer in p["encoder"]["layers"].values():
        if config.bidirectional:
            forward, forward_ys = run(layer[0], fresh(size // 2), ys)
            backward, backward_ys = run(layer[1], fresh(size // 2), ys[::-1])
            ys = [np.concatenate(pair) for pair in zip(forward_ys, backward_ys[::-1], strict=True)]
            carries.append({name: np.concatenate([forward[name], backward[name]]) for name in forward})
        else:
            carry, ys = run(layer, fresh(size), ys)
            carries.append(carry)
    if config.bridge == "dense":
        maps = iter(p["bridge"].values())
        carries = [{name: carry[name] @ m["w"] + m["b"] for name, m in zip(carry, maps)} for carry in carries]  # noqa: B905
    last = ys[-1]

    coverage, feed, attention, logits = np.zeros(len(source)), np.zeros(size), [], []
    for token in inputs:
        h = x = embed(p["target"], token)
        if config.input_feeding:
            h = np.concatenate([x, feed])
        for i, layer in enumerate(p["decoder"]["layers"].values()):
            carries[i], h = cell(layer._asdict(), carries[i], h)
        if config.attention == "none":
            context, weights = last, np.zeros(len(source))
        else:
            a, z = p["attention"], []
            for y, c in zip(ys, coverage, strict=True):
                z.append(np.tanh(h @ a["w_q"] + y @ a["w_k"] + c * a["w_coverage"] + a["b"]) @ a["w_score"])
            weights = np.exp(z) / np.sum(np.exp(z))
            context = sum(w * y for w, y in zip(weights, ys, strict=True))
        coverage = coverage + weights
        feed = np.tanh(np.concatenate([context, h]) @ p["merge"]["w"] + p["merge"]["b"])
        z = feed @ p["out"]["w"] + p["out"]["b"]
        if config.copy:
            gate = oracles.sigmoid(np.concatenate([context, h, x]) @ p["gate"]["w"] + p["gate"]["b"])
            probabilities = np.pad(gate * np.exp(z) / np.sum(np.exp(z)), (0, config.n_extra))
            for weight, word in zip(weights, source, strict=True):
                probabilities[word] += (1 - gate[0]) * weight
            z = np.log(np.maximum(probabilities, (1 - gate) * 1e-30))
        attention.append(weights)
        logits.append(z)
    return np.array(attention), np.array(logits)


@pytest.mark.fast
@pytest.mark.parametrize("name", ["rnn-none", "rnn-pointer"])
def test_outputs_are_those_of_loops(name):
    m = model(name)
    source, lengths, inputs = batch(m.words)
    attention, logits, _ = m.forward(m.params, source, lengths, inputs)
    config = nnx.eval_shape(MODELS[name]("float32"), jax.random.key(0)).config
    assert name != "rnn-pointer" or np.any(source >= V)
    for b, n in enumerate(LENGTHS):
        expected = looped(config, m.params, np.asarray(source[b, :n]), np.asarray(inputs[b]))
        close((attention[b, :, :n], logits[b]), expected, 2e-5)


def test_padding_may_be_nan():
    m = model("rnn-none")
    source, lengths, inputs = batch(V)
    source = jnp.where(np.arange(S) < LENGTHS[:, None], source, V + 1)  # a word that stands nowhere else
    params = {**m.params, "source": {"w": m.params["source"]["w"].at[V + 1].set(jnp.nan)}}
    expected, poisoned = (m.forward(p, source, lengths, inputs) for p in (m.params, params))
    jax.tree.map(np.testing.assert_array_equal, poisoned, expected)


def test_sampling_feeds_the_models_own_tokens():
    """With scores so far apart that a draw is the likeliest token, it is greedy search."""
    m = model("rnn-additive")
    source, lengths, inputs = batch(V)
    params = {**m.params, "out": jax.tree.map(lambda a: 1e4 * a, m.params["out"])}
    sampled = jax.jit(lambda rate, key: m.apply(params, source, lengths, inputs, sampling=rate, key=key))
    state, logits = m.prefill(params, m.init_state(B), source, lengths)
    own = [inputs[:, 0]]
    for _ in range(T - 1):
        own.append(jnp.argmax(logits, axis=-1).astype(jnp.int32))
        state, logits = m.step(params, state, own[-1])
    greedy = m.forward(params, source, lengths, jnp.stack(own, axis=1))
    taught = m.forward(params, source, lengths, inputs)
    relative = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1.0)  # noqa: E731
    relative(sampled(1.0, jax.random.key(0))[1], greedy[1])
    assert not np.allclose(greedy[1], taught[1], rtol=1e-2)
    with compilations() as events:
        result = sampled(0.0, jax.random.key(0))
    assert events == []
    relative(result[1], taught[1])


def count(name):
    return sum(leaf.size for leaf in jax.tree.leaves(model(name).params))


@pytest.mark.fast
def test_number_of_weights():
    """Tables; gates of two directions, of the decoder; bridge; attention; h̃; output layer; the gate to copy."""
    d, h, a = 6, 6, 5
    lstm = lambda d, h: 4 * h * (d + h + 1)  # noqa: E731
    affine = lambda d, h: (d + 1) * h  # noqa: E731
    two_layers = 2 * (lstm(d, h) + lstm(h, h))
    assert count("rnn-none") == (SOURCE_V + V) * d + two_layers + affine(2 * h, h) + affine(h, V)
    encoder, decoder = 2 * lstm(d, h // 2), lstm(d + h, h)
    attention = 2 * h * a + 3 * a
    rest = 2 * affine(h, h) + affine(2 * h, h) + affine(h, V) + affine(2 * h + d, 1)
    assert count("rnn-pointer") == 2 * V * d + encoder + decoder + attention + rest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "lstmm"}, "model.cell='lstmm' is unknown; choose from"),
        ({"attention": "bilinear"}, "model.attention='bilinear' is unknown; choose from dot, scaled_dot"),
        ({"d_attention": 0}, "model.d_attention=0; it must be at least 1"),
        ({"n_layers": 0}, "model.n_layers=0; it must be at least 1"),
        ({"d_hidden": 7}, "model.d_hidden=7: two directions have half of it each; make it even"),
        ({"coverage": True, "attention": "dot"}, "model.coverage needs model.attention='additive', not 'dot'"),
        ({"copy": True, "attention": "none"}, "choose a model.attention other than 'none'"),
        ({"n_extra": 2}, "model.n_extra=2; it must be at least 0, and 0 without model.copy"),
        ({"copy": True, "n_extra": -1}, "model.n_extra=-1; it must be at least 0"),
        ({"tied": "output", "d_embed": 4}, "model.tied needs d_embed = d_hidden, not 4 and 6"),
    ],
)
def test_config_refuses(options, message):
    with pytest.raises(InputError, match=message):
        RNNSeq2SeqConfig(**{**SMALL, **options})


@pytest.mark.parametrize("options", [{"copy": True}, {"tied": "all"}])
def test_one_vocabulary_where_ids_are_shared(options):
    config = RNNSeq2SeqConfig(**SMALL, **options)
    with pytest.raises(InputError, match="need one vocabulary, not two of 13 and 11 tokens"):
        jax.eval_shape(lambda key: RNNSeq2Seq(config, 13, 11, rngs=nnx.Rngs(key)), jax.random.key(0))


def test_a_source_longer_than_the_location_score():
    m = model("rnn-location")
    source, lengths, inputs = batch(V)
    with pytest.raises(InputError, match="made for 5 keys, not 10"):
        jax.eval_shape(partial(m.apply, m.params), jnp.tile(source, (1, 2)), lengths, inputs)


def combinations():
    """All of attention, input feeding and copying that go together, the other options changing from row to row."""
    rows = []
    for attention, feeding, copy in itertools.product((*SCORES, "none"), (False, True), (False, True)):
        if copy and attention == "none":
            continue
        i = len(rows)
        rows.append(
            {
                "attention": attention,
                "input_feeding": feeding,
                "copy": copy,
                "n_extra": 2 * copy,
                "coverage": attention == "additive" and feeding == copy,
                "cell": ("gru", "lstm", "elman", "lru", "gru_cho")[i % 5],
                "n_layers": 1 + i // 2 % 2,
                "bidirectional": i // 3 % 2 == 0,
                "bridge": ("copy", "dense", "zero")[i % 3],
                "tied": ("none", "output", "all")[i // 3 % 3],
            }
        )
    return rows


@pytest.mark.full
@pytest.mark.parametrize("options", combinations(), ids=lambda row: "-".join(map(str, row.values())))
def test_options_go_together(options):
    check_steps(compiled(rnn(**options)("float32")))


# The Transformer alone.


def normed(x, g, b):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * g + b


def perceptron(layer, x):
    z = x @ layer.w_in + layer.b_in
    return (0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))) @ layer.w_out + layer.b_out


def attended(heads, x, source):
    """One vector's attention to a list of them, head by head: (y, mean weights)."""
    y, mean = np.array(heads.b_o), 0.0
    n_heads = heads.w_q.shape[1]
    for n in range(n_heads):
        q = x @ heads.w_q[:, n] + heads.b_q[n]
        keys, values = ([s @ heads.w_kv[:, i, n] + heads.b_kv[i, n] for s in source] for i in (0, 1))
        weights = np.exp([q @ k / np.sqrt(len(q)) for k in keys])
        weights /= weights.sum()
        y += sum(w * v for w, v in zip(weights, values, strict=True)) @ heads.w_o[n]
        mean += weights / n_heads
    return y, mean


def transformed(params, source, inputs):
    """The post-norm Transformer with sinusoidal positions, vector by vector in float64: (attention, logits)."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def embedded(table, tokens):
        d = table.shape[1]
        angles = [[t / 10000 ** (2 * (i // 2) / d) for i in range(d)] for t in range(len(tokens))]
        waves = [[np.cos(a) if i % 2 else np.sin(a) for i, a in enumerate(row)] for row in angles]
        return [np.sqrt(d) * table[token] + wave for token, wave in zip(tokens, np.array(waves), strict=True)]

    memory = embedded(p["source"]["w"], source)
    for layer in p["encoder"].values():
        after = [x + attended(layer.attention, x, memory)[0] for x in memory]
        after = [normed(x, layer.g_attention, layer.b_attention) for x in after]
        memory = [normed(x + perceptron(layer, x), layer.g_mlp, layer.b_mlp) for x in after]
    xs = embedded(p["target"]["w"], inputs)
    for layer in p["decoder"].values():
        own = layer.own
        xs = [x + attended(own.attention, x, xs[: t + 1])[0] for t, x in enumerate(xs)]
        xs = [normed(x, own.g_attention, own.b_attention) for x in xs]
        looks = [attended(layer.cross, x, memory) for x in xs]
        xs = [normed(x + y, layer.g_cross, layer.b_cross) for x, (y, _) in zip(xs, looks, strict=True)]
        xs = [normed(x + perceptron(own, x), own.g_mlp, own.b_mlp) for x in xs]
    return np.array([weights for _, weights in looks]), np.array([x @ p["target"]["w"].T for x in xs])


@pytest.mark.fast
def test_the_transformer_is_that_of_loops():
    m = model("transformer-sinusoidal")
    source, lengths, inputs = batch(V)
    found = m.forward(m.params, source, lengths, inputs)[:2]
    for b, n in enumerate(LENGTHS):
        expected = transformed(m.params, source[b, :n].tolist(), inputs[b].tolist())
        close((found[0][b, :, :n], found[1][b]), expected, 1e-4)
        assert not np.any(found[0][b, :, n:])


def test_number_of_weights_of_the_transformer():
    """9 M: the size published for Multi30k, here with one vocabulary of 8,000."""
    config = TransformerSeq2SeqConfig(d_model=256, n_heads=8, n_layers=3, d_ff=512, tied="all")
    init, _ = seqjax.purify(lambda key: TransformerSeq2Seq(config, 8000, 8000, rngs=nnx.Rngs(key)))
    params = jax.eval_shape(init, jax.random.key(0))
    d, ff = 256, 512
    attention, mlp, norm = 4 * d * (d + 1), 2 * d * ff + d + ff, 2 * d
    layers = 3 * (attention + mlp + 2 * norm) + 3 * (2 * attention + mlp + 3 * norm)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 8000 * d + layers + 2 * norm


def test_the_transformer_refuses():
    for options, message in (
        ({"n_heads": 3}, "model.n_heads=3 must divide model.d_model=256"),
        ({"n_decoder_layers": 0}, "model.n_decoder_layers=0; it must be at least 1"),
        ({"positions": "rotary", "d_model": 12, "n_heads": 4}, "rotary positions need heads of even size, not 3"),
    ):
        with pytest.raises(InputError, match=message):
            TransformerSeq2SeqConfig(**options)
    with pytest.raises(InputError, match=r"model.tied='all' needs one vocabulary, not 5 and 6 tokens"):
        TransformerSeq2Seq(TransformerSeq2SeqConfig(tied="all"), 5, 6, rngs=nnx.Rngs(0))
    m = model("transformer-learned")
    with pytest.raises(InputError, match="10 tokens do not fit into learned positions for 9"):
        m.apply(m.params, jnp.zeros((1, 10), jnp.int32), jnp.array([3]), jnp.zeros((1, 2), jnp.int32))
