"""The conformance suite of the classifiers: every type that experiments.classify knows, and rows for their options."""

from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seqjax
from experiments.classify import KINDS
from experiments.text_runs import Batch
from seqjax import losses, nn, train
from seqjax.data import padded
from seqjax.embeddings import idf
from seqjax.errors import InputError
from seqjax.models import fasttext_classifier, linear_classifier
from seqjax.models.cnn_classifier import CNNClassifierConfig
from seqjax.models.fasttext_classifier import FastTextClassifierConfig
from seqjax.models.linear_classifier import LinearClassifierConfig
from seqjax.models.rnn_classifier import RNNClassifierConfig
from seqjax.models.text_parts import drop_words
from seqjax.models.transformer_classifier import TransformerClassifierConfig
from seqjax.text import UNK
from tests import oracles

V, C, B, T = 11, 3, 4, 6
LENGTHS = np.array([T, 2, 0, 4], np.int32)
RNN = {"d_embed": 4, "d_hidden": 6}
TRANSFORMER = {"d_model": 8, "n_heads": 2, "n_layers": 1, "d_ff": 8, "context": 9}

SMALL = {
    "cnn": CNNClassifierConfig(d_embed=4, widths=(1, 3), n_filters=5),
    "rnn-max": RNNClassifierConfig("elman", **RNN),
    "rnn-attention": RNNClassifierConfig("gru", **RNN, pooling="attention"),
    "rnn-concat": RNNClassifierConfig("min_gru", **RNN, pooling="concat", bidirectional=False, n_layers=2),
    "rnn-last": RNNClassifierConfig("lstm", **RNN, pooling="last"),
    "rnn-mean": RNNClassifierConfig("lru", **RNN, pooling="mean"),
    "transformer-mean": TransformerClassifierConfig(**TRANSFORMER),
    "transformer-attention": TransformerClassifierConfig(
        **TRANSFORMER, positions="learned", norm_place="post", pooling="attention"
    ),
    "transformer-causal": TransformerClassifierConfig(**TRANSFORMER, positions="t5", causal=True, pooling="last"),
    "linear-tf_idf": LinearClassifierConfig(),
    "linear-counts": LinearClassifierConfig("counts"),
    "linear-binary": LinearClassifierConfig("binary", n_grams=2, bucket=5),
    "linear-nb": LinearClassifierConfig("nb"),
    "fasttext": FastTextClassifierConfig(d_embed=4, n_grams=2, bucket=5),
}
# A type that has no row here yet is tested with the sizes it comes with.
MODELS = SMALL | {k.__name__: k() for k in KINDS if k not in map(type, SMALL.values())}
QUICK = "cnn", "rnn-attention", "transformer-mean", "linear-tf_idf", "fasttext"

each = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] * (name in SMALL and name not in QUICK)) for name in MODELS]
)


def make(name):
    config = MODELS[name]
    return lambda key: KINDS[type(config)].module(config, V, C, rngs=nnx.Rngs(key))


@cache
def model(name):
    """A model's weights, and its scores with the gradient of their loss."""
    init, apply = seqjax.purify(make(name))
    params = oracles.random_like(np.random.default_rng(0), jax.eval_shape(init, jax.random.key(0)), 0.4)

    def loss(params, tokens, lengths, labels):
        logits = apply(params, tokens, lengths)
        return losses.cross_entropy(logits, labels)[0], logits

    forward = jax.jit(jax.grad(loss, has_aux=True))
    return SimpleNamespace(apply=apply, params=params, forward=forward, scores=jax.jit(apply))


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32), jnp.asarray(LENGTHS), jnp.array([2, 0, 1, 0])


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), a, b)


@each
def test_a_batch_is_its_texts_one_by_one_in_whatever_shape(name):
    m, (tokens, lengths, labels) = model(name), batch()
    gradients, logits = m.forward(m.params, tokens, lengths, labels)
    assert logits.shape == (B, C)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((gradients, logits)))
    for row, n in enumerate(LENGTHS):
        longer = np.full((1, T + 3), V - 1, np.int32)  # another bucket, and other words where it is padded
        longer[0, :n] = tokens[row, :n]
        close(m.scores(m.params, jnp.asarray(longer), lengths[row : row + 1])[0], logits[row])
    tokens = jnp.where(np.arange(T)[None] < LENGTHS[:, None], tokens, 0)  # other words where it is padded
    close(m.forward(m.params, tokens, lengths, labels), (gradients, logits))


@each
def test_the_order_of_labels_and_of_texts_changes_nothing_else(name):
    m, (tokens, lengths, labels) = model(name), batch()
    gradients, logits = m.forward(m.params, tokens, lengths, labels)
    order, texts = np.array([2, 0, 1]), np.array([3, 1, 0, 2])

    def renamed(tree):  # label i becomes label order⁻¹(i)
        head = {name: tree[name] for name in (("out",) if "out" in tree else ("w", "b", "g_ratio")) if name in tree}
        return {**tree, **jax.tree.map(lambda w: w[..., order], head)}

    given = tokens[texts], lengths[texts], jnp.asarray(np.argsort(order))[labels[texts]]
    gradients_after, logits_after = m.forward(renamed(m.params), *given)
    close(logits_after, logits[texts][:, order])
    close(gradients_after, renamed(gradients))


@each
def test_dropout_acts_with_a_key_only_and_all_axes_have_names(name):
    m, (tokens, lengths, _) = model(name), batch()
    shapes = jax.eval_shape(lambda p: m.apply(p, tokens, lengths, dropout=0.5, key=jax.random.key(0)), m.params)
    assert shapes.shape == (B, C)
    nn.logical_axes(make(name))
    random = str(jax.make_jaxpr(lambda p: m.apply(p, tokens, lengths, dropout=0.5))(m.params)).count("random_bits")
    assert random == 0


@pytest.mark.parametrize("name", ["rnn-attention", pytest.param("transformer-attention", marks=pytest.mark.full)])
def test_attention_is_to_the_words_of_a_text(name):
    m, (tokens, lengths, _) = model(name), batch()
    weights = jax.jit(lambda *arguments: m.apply(*arguments, method="weights"))(m.params, tokens, lengths)
    np.testing.assert_allclose(jnp.sum(weights, axis=1), LENGTHS > 0, rtol=1e-5)
    assert np.all(weights[np.arange(T)[None] >= LENGTHS[:, None]] == 0)


def test_word_dropout_makes_unknown_words(key):
    tokens = jnp.full((50, 40), 7)
    dropped = drop_words(tokens, 0.3, key)
    assert set(np.unique(dropped)) == {UNK, 7}
    assert np.mean(dropped == UNK) == pytest.approx(0.3, abs=0.03)
    assert drop_words(tokens, 0.3, None) is tokens


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (CNNClassifierConfig, {"widths": (3, 0)}, r"model.widths=\(3, 0\); there must be"),
        (CNNClassifierConfig, {"word_dropout": 1.0}, "model.word_dropout=1.0; it must be at least 0 and below 1"),
        (RNNClassifierConfig, {"cell": "rnn"}, "model.cell='rnn' is unknown; choose from elman"),
        (RNNClassifierConfig, {"d_hidden": 5}, "model.d_hidden=5: two directions have half of it each"),
        (TransformerClassifierConfig, {"n_heads": 3}, "model.n_heads=3 must divide model.d_model=128"),
        (FastTextClassifierConfig, {"n_grams": 0}, "model.n_grams=0; it must be at least 1"),
        (FastTextClassifierConfig, {"bucket": 2**30}, "it must be below"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, options, message):
    with pytest.raises(InputError, match=message):
        config(**options)


# --- what is special to one of them


def test_statistics_are_idf_and_log_count_ratios():
    rows = [np.array(ids, np.int32) for ids in ([4, 5, 4], [5], [6, 5, 4])]
    labels = np.array([[1, 0], [1, 1], [0, 1]], bool)
    counts = np.array([np.bincount(ids, minlength=V) for ids in rows], np.float32)
    found = linear_classifier.statistics(LinearClassifierConfig(), rows, labels, V)["g_idf"]
    np.testing.assert_allclose(found, idf(jnp.asarray(counts)), rtol=1e-6)
    found = linear_classifier.statistics(LinearClassifierConfig("nb"), rows, labels, V)["g_ratio"]
    for label in range(2):
        with_label = [
            1 + sum(v in ids for ids, has in zip(rows, labels[:, label], strict=True) if has) for v in range(V)
        ]
        without = [
            1 + sum(v in ids for ids, has in zip(rows, labels[:, label], strict=True) if not has) for v in range(V)
        ]
        expected = [
            np.log(p / sum(with_label)) - np.log(q / sum(without)) for p, q in zip(with_label, without, strict=True)
        ]
        np.testing.assert_allclose(found[:, label], expected, rtol=1e-5)
    assert linear_classifier.statistics(LinearClassifierConfig("counts"), rows, labels, V) == {}


@pytest.mark.parametrize("n_grams", [1, 2, 3])
def test_features_are_words_and_hashed_ngrams(n_grams):
    ids, bucket, expected = [5, 9, 5, 9, 7], 1000, []
    for n in range(1, n_grams + 1):
        for start in range(len(ids) - n + 1):
            h = ids[start]
            for i in ids[start + 1 : start + n]:
                h = (h * 116049371 + i) % 2**32
            expected.append(h if n == 1 else V + h % bucket)
    config = FastTextClassifierConfig(n_grams=n_grams, bucket=bucket, distinct=False)
    found = fasttext_classifier.features(np.array(ids, np.int32), config, V)
    assert found.tolist() == expected
    assert found.dtype == np.int32
    distinct = FastTextClassifierConfig(n_grams=n_grams, bucket=bucket)
    assert fasttext_classifier.features(np.array(ids), distinct, V).tolist() == sorted(set(expected))
    assert fasttext_classifier.features(np.array([], np.int32), distinct, V).tolist() == []


def test_a_step_of_fasttext_is_sgd_on_the_rows_of_its_texts():
    texts, labels, lr, d, v = [[4, 5, 4], [6], []], np.array([1, 0, 2]), 0.5, 3, 9
    rng = np.random.default_rng(0)
    table, w = rng.normal(size=(v, d)).astype(np.float32), rng.normal(size=(d, C)).astype(np.float32)
    expected, w_expected = table.astype(np.float64), w.astype(np.float64)
    for ids, label in zip(texts, labels, strict=True):
        x = sum(table[i] for i in ids) / len(ids) if ids else np.zeros(d)
        p = np.exp(x @ w) / sum(np.exp(x @ w))
        p[label] -= 1
        for i in ids:
            expected[i] -= lr * 0.5 * (w @ p) / len(ids)  # at half of the rate of its schedule
        w_expected -= lr * np.outer(x, p)

    init, apply = seqjax.purify(
        lambda key: KINDS[FastTextClassifierConfig].module(FastTextClassifierConfig(d), v, C, rngs=nnx.Rngs(key))
    )
    assert not init(jax.random.key(0))["w"].any()
    params = {"embed": {"w": jnp.asarray(table)}, "w": jnp.asarray(w)}
    state = train.State(jnp.array(0), params, (), jax.random.key(0), ())
    lengths = jnp.asarray([len(ids) for ids in texts], jnp.int32)
    given = Batch((jnp.asarray(padded(texts, (3, 4), fill=8)), lengths), jnp.asarray(labels), None)

    def loss(logits, batch, hyper):
        return losses.cross_entropy(logits * hyper.clip, batch.targets)

    step = jax.jit(fasttext_classifier.make_step(apply, loss, lambda step: 1.0))
    after, metrics = step(state, given, train.Hyper(lr=lr, embed_lr=0.5))
    np.testing.assert_allclose(after.params["embed"]["w"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after.params["w"], w_expected, rtol=1e-5, atol=1e-6)
    assert after.step == 1
    assert metrics["skipped"][0] == 0
    after, metrics = step(state, given, train.Hyper(lr=lr, clip=np.nan))  # a loss that is not finite changes nothing
    jax.tree.map(np.testing.assert_array_equal, after.params, params)
    assert metrics["skipped"][0] == 1
    assert metrics["loss"][1] == 0
