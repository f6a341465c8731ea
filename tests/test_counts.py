"""Corpora, vocabularies, counts and their factors, beside slow loops, scikit-learn and SciPy."""

import gzip
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from sklearn.feature_extraction.text import TfidfTransformer

from seqjax import embeddings
from seqjax.embeddings import vocabulary as corpora
from seqjax.errors import InputError

SENTENCES = [["b", "a", "x", "b"], ["y"], [], ["a", "b", "b", "c", "c", "b", "a"], ["c"]]
VOCABULARY = embeddings.make_vocabulary(embeddings.count_words(SENTENCES), min_count=2)


def random_corpus(n, *, seed=0):
    rng = np.random.default_rng(seed)
    words = np.array([*"abcdefghij"])
    return [words[np.minimum(rng.geometric(0.3, rng.integers(0, 12)) - 1, 9)].tolist() for _ in range(n)]


def test_vocabulary_is_ranked_by_count():
    assert VOCABULARY.words == ["b", "a", "c"]
    assert VOCABULARY.counts.tolist() == [5, 3, 3]
    assert VOCABULARY.n_tokens == 13
    assert VOCABULARY.index == {"b": 0, "a": 1, "c": 2}


def test_words_of_one_count_stay_or_go_together():
    counts = {"a": 9, "b": 5, "c": 5, "d": 1}
    assert embeddings.make_vocabulary(counts, min_count=1, max_final_vocab=2).words == ["a"]
    assert embeddings.make_vocabulary(counts, min_count=1, max_final_vocab=3).words == ["a", "b", "c"]


def test_an_empty_vocabulary_says_the_largest_count():
    with pytest.raises(InputError, match=r"min_count=6.*'b', occurs 5 times; lower min_count"):
        embeddings.make_vocabulary(embeddings.count_words(SENTENCES), min_count=6)
    with pytest.raises(InputError, match="the corpus is empty"):
        embeddings.make_vocabulary({})


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.fast
def test_encode_marks_where_sentences_begin(chunk):
    pieces = list(embeddings.encode(SENTENCES, VOCABULARY, chunk=chunk))
    assert all(len(piece) == chunk for piece in pieces[:-1])
    assert np.concatenate(pieces).tolist() == [~0, 1, 0, ~1, 0, 0, 2, 2, 0, 1, ~2]
    assert pieces[0].dtype == np.int32


@pytest.mark.parametrize("suffix", [".txt", ".gz"])
@pytest.mark.parametrize("text", ["", "a", "a b\nc", " a  b \n\n c\t\u00e9d\n", "a\r\nb c", "ab cd " * 400_000])
def test_a_file_gives_its_lines(tmp_path, text, suffix):
    path = tmp_path / f"corpus{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix == ".gz" else text.encode())
    found = list(embeddings.sentences(path))
    assert max(map(len, found), default=0) <= corpora.MAX_SENTENCE
    if len(text) < 100:
        assert [words for words in found if words] == [line.split() for line in text.split("\n") if line.split()]
    assert Counter(word for words in found for word in words) == Counter(text.split())


def test_a_corpus_that_cannot_be_read(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "bad.gz").write_bytes(b"no gzip")
    for name in ("bad.txt", "bad.gz", "missing.txt"):
        with pytest.raises(InputError, match=name):
            list(embeddings.sentences(tmp_path / name))
    with pytest.raises(InputError, match="begins anew each time"):
        list(embeddings.sentences(iter(SENTENCES)))
    with pytest.raises(InputError, match="split it"):
        list(embeddings.sentences(["a b c"]))


@pytest.mark.parametrize("weights", ["flat", "harmonic"])
@pytest.mark.parametrize("contexts", ["both", "left", "right"])
@pytest.mark.parametrize("max_records", [1, 20, 1 << 20])
def test_cooccurrence_equals_a_double_loop(weights, contexts, max_records):
    corpus = random_corpus(40)
    vocabulary = embeddings.make_vocabulary(embeddings.count_words(corpus), min_count=8)
    n, window = len(vocabulary.words), 3
    dense = np.zeros((n, n))
    for sentence in corpus:
        ids = [vocabulary.index[word] for word in sentence if word in vocabulary.index]
        for i, w in enumerate(ids):
            for j, c in enumerate(ids):
                if 0 < abs(i - j) <= window and (contexts == "both" or (j < i) == (contexts == "left")):
                    dense[w, c] += 1 if weights == "flat" else 1 / abs(i - j)
    found = embeddings.cooccurrence(
        corpus, vocabulary, window=window, weights=weights, contexts=contexts, max_records=max_records
    )
    assert (np.diff(found.rows.astype(np.int64) * n + found.cols) > 0).all()
    made = np.zeros((n, n))
    made[found.rows, found.cols] = found.values
    np.testing.assert_allclose(made, dense, rtol=1e-12)
    assert len(found.rows) == np.count_nonzero(dense)


@pytest.mark.parametrize(("smoothing", "shift"), [(0.75, 0.0), (1.0, 0.5)])
def test_ppmi_equals_its_definition(smoothing, shift):
    corpus = random_corpus(60)
    vocabulary = embeddings.make_vocabulary(embeddings.count_words(corpus), min_count=1)
    counts = embeddings.cooccurrence(corpus, vocabulary)
    dense = np.zeros(counts.shape)
    dense[counts.rows, counts.cols] = counts.values
    context = dense.sum(0) ** smoothing
    with np.errstate(divide="ignore"):
        pmi = np.log(dense / dense.sum() / (dense.sum(1, keepdims=True) / dense.sum()) / (context / context.sum()))
    expected = np.maximum(pmi - shift, 0)
    found = embeddings.ppmi(counts, smoothing=smoothing, shift=shift)
    made = np.zeros(counts.shape)
    made[found.rows, found.cols] = found.values
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)
    assert (found.values > 0).all()


@pytest.mark.fast
def test_svd_equals_scipy_and_at_full_rank_gives_the_matrix_back(key):
    corpus = random_corpus(200)
    vocabulary = embeddings.make_vocabulary(embeddings.count_words(corpus), min_count=1)
    sparse = embeddings.ppmi(embeddings.cooccurrence(corpus, vocabulary))
    dense = np.zeros(sparse.shape, np.float32)
    dense[sparse.rows, sparse.cols] = sparse.values
    words, contexts = embeddings.svd_embeddings(sparse, len(dense), key=key)
    np.testing.assert_allclose(words @ contexts.T, dense, atol=1e-5)

    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, 40)))[0] for n in (60, 50))
    matrix = ((u * 0.7 ** np.arange(40)) @ v.T).astype(np.float32)
    found = embeddings.truncated_svd(jnp.asarray(matrix), 5, key=key)
    u, s, vt = scipy.sparse.linalg.svds(matrix.astype(float), 5)
    np.testing.assert_allclose(found.s, s[::-1], rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(np.asarray(found.u) * u[:, ::-1], 0)), 1, atol=1e-3)
    np.testing.assert_allclose(np.abs(np.sum(np.asarray(found.v) * vt[::-1].T, 0)), 1, atol=1e-3)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("sublinear", [True, False])
@pytest.mark.parametrize("norm", ["l2", "l1", None])
def test_tf_idf_equals_scikit_learn(smooth, sublinear, norm):
    counts = np.random.default_rng(0).poisson(0.7, (8, 5)).astype(np.float32)
    counts[:, 0] += 1
    oracle = TfidfTransformer(norm=norm, smooth_idf=smooth, sublinear_tf=sublinear).fit_transform(counts).toarray()
    array = jnp.asarray(counts)
    found = embeddings.tf_idf(array, embeddings.idf(array, smooth=smooth), sublinear=sublinear, norm=norm)
    np.testing.assert_allclose(found, oracle, rtol=1e-5)


def test_bag_of_words_is_the_sum_of_one_hot_vectors():
    ids = jax.random.randint(jax.random.key(0), (3, 7), 0, 5)
    lengths = jnp.array([7, 0, 4])
    kept = jnp.arange(7)[None] < lengths[:, None]
    expected = jnp.sum(embeddings.one_hot(ids, 5) * kept[:, :, None].astype(jnp.float32), 1)
    np.testing.assert_array_equal(embeddings.bag_of_words(ids, 5, lengths=lengths), expected)
    np.testing.assert_array_equal(embeddings.bag_of_words(ids, 5, where=kept), expected)


def test_pca_of_a_plane():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(30, 2)) @ rng.normal(size=(2, 6)) + 3, jnp.float32)
    found = embeddings.pca(x, 2)
    np.testing.assert_allclose(found.mean[None] + found.projected @ found.components, x, atol=1e-5)
    np.testing.assert_allclose(jnp.var(found.projected, 0, ddof=1), found.variances, rtol=1e-5)
    assert found.variances[0] >= found.variances[1]
