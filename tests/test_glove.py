"""GloVe: a step beside a plain loop and autodiff, the order of the records, and what the vectors learn."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.embeddings import cooccurrence, count_words, make_vocabulary
from seqjax.embeddings.counts import Cooccurrence
from seqjax.embeddings.glove import (
    BLOCK,
    GloVeConfig,
    GloVeParams,
    GloVeState,
    _chunks,
    _train_chunk,
    fit_glove,
    glove_loss,
    glove_step,
    init_glove,
    train_glove,
)
from seqjax.errors import InputError

SMALL = {"vector_size": 8, "window": 3, "min_count": 1, "x_max": 10.0, "batch_size": 128}
HYPER = {"x_max": 2.0, "alpha": 0.6}
STEP = jax.jit(glove_step)


def topics(n=300, seed=0):
    """Sentences about one of two topics, in which every tenth word is from the other one."""
    rng = np.random.default_rng(seed)
    words = np.array([[f"a{i}" for i in range(10)], [f"b{i}" for i in range(10)]])
    return [words[(rng.random(10) < 0.1) ^ rng.integers(2), rng.integers(0, 10, 10)].tolist() for _ in range(n)]


def random_counts(v, seed=0, share=0.5):
    """A matrix with empty cells; the third word has no records as a word, the fourth none as a context."""
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random((v, v)) < share, rng.gamma(0.5, 5.0, (v, v)) + 0.01, 0)
    dense[2], dense[:, 3] = 0, 0
    rows, cols = np.nonzero(dense)
    return Cooccurrence(rows.astype(np.int32), cols.astype(np.int32), dense[rows, cols], (v, v))


@pytest.fixture
def batch(x64):
    """A state in the middle of training, and 4 blocks of 5 records that share words and contexts; some are empty."""
    rng = np.random.default_rng(0)
    v, d = 5, 3
    shapes = (v, d), (v, d), (v,), (v,)
    params = GloVeParams(*(jnp.asarray(rng.normal(size=shape)) for shape in shapes))
    squares = GloVeParams(*(jnp.asarray(rng.gamma(2.0, size=shape)) for shape in shapes))
    rows, cols = jnp.array([0, 3, 0, 4]), jnp.asarray(rng.integers(0, v, (4, 5)))
    values = rng.gamma(0.5, 4.0, (4, 5))
    values[1, 3:], values[3, 0] = 0, 0
    return GloVeState(params, squares), rows, cols, jnp.asarray(values)


def test_a_step_equals_a_plain_loop(batch):
    state, rows, cols, values = batch
    new, (loss, weight) = STEP(*batch, **HYPER)
    old, squares = ([np.array(x) for x in part] for part in state)
    sums, total, n = [np.zeros_like(x) for x in old], 0.0, 0
    for b, row in enumerate(rows):
        for col, x in zip(cols[b], values[b], strict=True):
            if x > 0:
                f = 1 if x > HYPER["x_max"] else (x / HYPER["x_max"]) ** HYPER["alpha"]
                error = old[0][row] @ old[1][col] + old[2][row] + old[3][col] - np.log(x)
                gradients = f * error * old[1][col], f * error * old[0][row], f * error, f * error
                for i, (at, gradient) in enumerate(zip((row, col, row, col), gradients, strict=True)):
                    sums[i][at] += gradient
                    squares[i][at] += gradient**2
                total += f * error**2 / 2
                n += 1
    for found, expected in zip(new.squares, squares, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    for found, before, step, square in zip(new.params, old, sums, squares, strict=True):
        np.testing.assert_allclose(found, before - step / np.sqrt(square), rtol=1e-12)
    np.testing.assert_allclose((loss, weight), (total, n), rtol=1e-12)


def test_a_step_goes_along_the_gradient_of_the_loss(batch):
    state, rows, cols, values = batch
    new, loss = STEP(*batch, **HYPER)
    flat = jnp.repeat(rows, cols.shape[1]), cols.ravel(), values.ravel()
    expected_loss, backward = jax.vjp(lambda params: glove_loss(params, *flat, **HYPER), state.params)
    (gradient,) = backward((jnp.ones(()), jnp.zeros(())))
    np.testing.assert_allclose(loss, expected_loss)
    for after, before, squares, expected in zip(new.params, state.params, new.squares, gradient, strict=True):
        np.testing.assert_allclose((before - after) * jnp.sqrt(squares), expected, atol=1e-12)


def test_every_record_is_trained_on_once(monkeypatch):
    monkeypatch.setattr("seqjax.embeddings.glove._BATCHES", 3)
    monkeypatch.setattr("seqjax.embeddings.glove._RECORDS", 50)
    counts = random_counts(40)
    rows, cols, values = _chunks(counts, 2, np.array([7]))
    n_chunks, n_batches, _, _ = values.shape
    assert n_chunks > 3
    assert n_batches <= 3
    present = values > 0
    found = sorted(zip(np.repeat(rows, BLOCK)[present.ravel()], cols[present], values[present], strict=True))
    assert found == [*zip(counts.rows, counts.cols, counts.values.astype(np.float32), strict=True)]
    assert (rows != 2).all()  # it has no records
    for word in set(counts.rows):  # whose blocks are filled alike
        assert np.ptp(present.sum(-1)[(rows == word) & present.any(-1)]) <= 1


def test_the_products_become_the_logarithms_of_the_counts(key):
    """With as many dimensions as words nothing stands in the way."""
    counts = random_counts(8, share=0.7)
    config = GloVeConfig(**SMALL, alpha=0.0, eta=1.0, epochs=300)
    reports = []
    params = jax.tree.map(np.asarray, fit_glove(counts, config, key=key, progress=reports.append))
    fitted = params.words @ params.contexts.T + params.b_words[:, None] + params.b_contexts[None]
    np.testing.assert_allclose(fitted[counts.rows, counts.cols], np.log(counts.values), atol=0.05)
    start = init_glove(jax.random.split(key, 3)[0], 8, 8).params
    np.testing.assert_array_equal(params.words[2], start.words[2])  # without records
    np.testing.assert_array_equal(params.b_contexts[3], start.b_contexts[3])
    assert [(report.epoch, report.words) for report in reports[:2]] == [
        (0, len(counts.rows)),
        (1, 2 * len(counts.rows)),
    ]
    assert reports[-1].fraction == 1
    assert reports[-1].loss < 1e-3 < reports[0].loss


def test_words_of_a_topic_end_up_together(key):
    reports = []
    vectors = train_glove(topics(), GloVeConfig(**SMALL, epochs=20), key=key, progress=reports.append)
    for word in ("a3", "b7"):
        assert {found[0] for found, _ in vectors.most_similar(word, topn=9)} == {word[0]}
    assert reports[-1].loss < 0.1 * reports[0].loss


def test_it_trains_on_harmonic_counts(key):
    corpus, config = topics(), GloVeConfig(**SMALL, epochs=1)
    vocabulary = make_vocabulary(count_words(corpus), min_count=1)
    counts = cooccurrence(corpus, vocabulary, window=3, weights="harmonic")
    params = fit_glove(counts, config, key=key)
    vectors = train_glove(corpus, config, key=key)
    assert vectors.words == vocabulary.words
    np.testing.assert_array_equal(vectors.vectors, params.words + params.contexts)
    np.testing.assert_array_equal(vectors.context_vectors, params.contexts)
    words_alone = train_glove(corpus, GloVeConfig(**SMALL, epochs=1, add_contexts=False), key=key)
    np.testing.assert_array_equal(words_alone.vectors, params.words)


def test_the_same_key_gives_the_same_bytes(key, tmp_path):
    corpus, config = topics(), GloVeConfig(**SMALL, epochs=2)
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(map(" ".join, corpus)))
    vocabulary = make_vocabulary(count_words(corpus), min_count=1)
    first, second, other = (
        train_glove(source, config, key=k, vocabulary=given).vectors.tobytes()
        for source, k, given in ((corpus, key, None), (path, key, vocabulary), (corpus, jax.random.key(1), None))
    )
    assert first == second
    assert first != other


def test_an_interrupted_run_goes_on_to_the_same_bytes(key, tmp_path):
    counts, config = random_counts(8), GloVeConfig(**SMALL, epochs=4)
    whole = fit_glove(counts, config, key=key)

    class Crash(Exception):
        pass

    def crash(progress):
        if progress.epoch == 2:
            raise Crash

    with pytest.raises(Crash):
        fit_glove(counts, config, key=key, checkpoints=tmp_path, progress=crash)
    seen = []
    resumed = fit_glove(counts, config, key=key, checkpoints=tmp_path, progress=seen.append, resume=True)
    assert [report.step for report in seen] == [3, 4]
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    with pytest.raises(InputError, match="resume=True needs checkpoints="):
        fit_glove(counts, config, key=key, resume=True)


def test_one_record(key):
    counts = Cooccurrence(np.array([1], np.int32), np.array([0], np.int32), np.array([7.0]), (8, 8))
    params = fit_glove(counts, GloVeConfig(**SMALL, eta=1.0, epochs=50), key=key)
    fitted = params.words[1] @ params.contexts[0] + params.b_words[1] + params.b_contexts[0]
    np.testing.assert_allclose(fitted, np.log(7), atol=1e-3)


def test_without_records(key):
    with pytest.raises(InputError, match="no word occurs near another"):
        train_glove([["a"], ["b"], ["a"]], GloVeConfig(min_count=1), key=key)


def test_the_tables_are_not_copied_in_the_loop(key):
    """A copy costs as much as the work of many batches; XLA makes one if the old table is read after the write."""
    v, n = 5003, 300
    rows, cols, values = jnp.zeros((n, 64), jnp.int32), jnp.zeros((n, 64, BLOCK), jnp.int32), jnp.ones((n, 64, BLOCK))
    text = _train_chunk.lower(init_glove(key, v, 100), key, rows, cols, values, 100.0, 0.75).compile().as_text()
    assert f"f32[{v},100]" in text
    assert not re.findall(rf"= f32\[{v}[,\d]*\]\S* copy\(", text)


def test_other_hyperparameters_compile_nothing(key):
    counts = random_counts(8)
    fit_glove(counts, GloVeConfig(**SMALL, epochs=1), key=key)
    before = _train_chunk._cache_size()
    fit_glove(counts, GloVeConfig(**SMALL | {"x_max": 50.0}, alpha=0.5, eta=0.1, epochs=2), key=key)
    assert _train_chunk._cache_size() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window=0; it must be at least 1"),
        ({"x_max": 0.0}, "x_max=0.0; it must be above 0"),
        ({"eta": float("nan")}, "eta=nan; it must be above 0"),
        ({"alpha": -1.0}, "alpha=-1.0; it must be at least 0"),
        ({"batch_size": 1000}, "batch_size=1000; it must be a multiple of 16"),
    ],
)
def test_a_bad_option_is_named(options, message):
    with pytest.raises(InputError, match=message):
        GloVeConfig(**options)
