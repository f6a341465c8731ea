import gensim
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gensim.test.utils import datapath
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from seqjax.embeddings import queries
from seqjax.embeddings.plots import export_projector, plot_words
from seqjax.embeddings.subwords import Subwords, compose
from seqjax.embeddings.vectors import WordVectors
from seqjax.errors import InputError

close = {"rtol": 1e-6, "atol": 1e-6}
# gensim calls what it deprecates
old_calls = pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")


@pytest.fixture(scope="module", params=["real", "random"])
def both(request):
    """Ours and gensim's, of the same words and vectors."""
    theirs = gensim.models.KeyedVectors.load_word2vec_format(datapath("word2vec_pre_kv_c"))
    if request.param == "random":
        theirs.vectors = np.random.default_rng(3).normal(size=theirs.vectors.shape).astype(np.float32)
    return WordVectors(theirs.index_to_key, theirs.vectors), theirs


@pytest.fixture
def small():
    """Two words alike, one their opposite, one without direction."""
    return WordVectors(["up", "above", "down", "nil"], np.array([[0, 2, 0], [0, 3, 1], [0, -1, 0], [0, 0, 0]]))


def same_answers(ours, theirs):
    assert [word for word, _ in ours] == [word for word, _ in theirs]
    np.testing.assert_allclose([x for _, x in ours], [x for _, x in theirs], **close)


QUERIES = [
    ("the", []),
    (["police", "fire"], []),
    (["australia", "minister"], ["police"]),
    ([], ["police"]),
    (["the", "the", "of"], ["of"]),
    (["war", np.arange(10, dtype=np.float32)], [np.ones(10, np.float32)]),
    ([np.arange(10, dtype=np.float32)], []),
]


@pytest.mark.parametrize(("topn", "restrict"), [(10, None), (1, 300), (0, None)])
@pytest.mark.parametrize("query", QUERIES)
def test_most_similar_equals_gensim(both, query, topn, restrict):
    ours, theirs = both
    positive, negative = query
    expected = theirs.most_similar(positive, negative, topn=topn, restrict_vocab=restrict)
    same_answers(ours.most_similar(positive, negative, topn, restrict_vocab=restrict), expected)


def test_weights_equal_gensim(both):
    ours, theirs = both
    for positive in [("war", 0.5), "the"], [("war", 2.0), ("police", -0.5), (np.ones(10, np.float32), 0.1)]:
        same_answers(ours.most_similar(positive, ["of"]), theirs.most_similar(positive, ["of"]))
    same_answers(ours.most_similar(("war", 0.5)), theirs.most_similar([("war", 0.5)]))


@old_calls
@pytest.mark.parametrize("query", [(p, n) for p, n in QUERIES if p])
def test_3cosmul_equals_gensim(both, query):
    ours, theirs = both
    # gensim takes a vector as it is: its cosine may exceed 1
    positive, negative = ([x / np.linalg.norm(x) if len(x) == 10 else x for x in side] for side in map(listed, query))
    same_answers(
        ours.most_similar(positive, negative, method="mul"), theirs.most_similar_cosmul(list(positive), list(negative))
    )


def listed(side):
    return [side] if isinstance(side, str) else side


@old_calls
def test_all_similarities_equal_gensim(both):
    ours, theirs = both
    for restrict in None, 100:
        found = ours.most_similar(["war", "the"], "of", topn=None, restrict_vocab=restrict)
        expected = theirs.most_similar(["war", "the"], "of", topn=None, restrict_vocab=restrict)
        np.testing.assert_allclose(found, expected, **close)
    found = ours.most_similar(["war", "the"], "of", topn=None, method="mul")
    np.testing.assert_allclose(found, theirs.most_similar_cosmul(["war", "the"], "of", topn=None), **close)


def test_similar_by_vector_equals_gensim(both):
    ours, theirs = both
    for vector in np.linspace(-1, 2, 10, dtype=np.float32), theirs["war"]:
        same_answers(ours.similar_by_vector(jnp.asarray(vector), 5), theirs.similar_by_vector(vector, topn=5))
    expected = theirs.similar_by_vector(vector, restrict_vocab=50)
    same_answers(ours.similar_by_vector(vector, restrict_vocab=50), expected)


PAIRS = [("war", "police"), ("the", "of"), ("fire", "fire"), ("minister", "australia")]


def test_pairs_of_words_equal_gensim(both):
    ours, theirs = both
    for a, b in PAIRS:
        assert ours.similarity(a, b) == pytest.approx(float(theirs.similarity(a, b)), abs=1e-6)
        assert ours.distance(a, b) == pytest.approx(float(theirs.distance(a, b)), abs=1e-6)
        found, expected = (v.relative_cosine_similarity(a, b, topn=7) for v in both)
        assert found == pytest.approx(expected, abs=1e-6)
        if a != b:
            assert ours.closer_than(a, b) == theirs.closer_than(a, b)
            assert ours.rank(a, b) == theirs.rank(a, b)


def test_groups_of_words_equal_gensim(both):
    ours, theirs = both
    groups = ["war", "police", "fire"], ["the", "of", "to", "minister"], ["australia"]
    for group in groups:
        assert ours.doesnt_match(group) == theirs.doesnt_match(group)
        same_answers(*([(w, x) for x, w in v.rank_by_centrality(group)] for v in both))
        for other in groups:
            expected = float(theirs.n_similarity(group, other))
            assert ours.n_similarity(group, other) == pytest.approx(expected, abs=1e-6)


def test_distances_equal_gensim(both):
    ours, theirs = both
    for key in "war", theirs["war"] + 1:
        np.testing.assert_allclose(ours.distances(key), theirs.distances(key), **close)
        np.testing.assert_allclose(ours.distances(key, ["the", "of"]), theirs.distances(key, ["the", "of"]), **close)


@pytest.mark.parametrize("pre", [True, False])
@pytest.mark.parametrize("post", [True, False])
def test_mean_vector_equals_gensim(both, pre, post):
    ours, theirs = both
    keys = ["war", theirs["the"], "police"]
    for weights in None, np.array([1.0, -2.0, 0.5]):
        expected = theirs.get_mean_vector(keys, weights, pre, post)
        np.testing.assert_allclose(ours.mean_vector(keys, weights, pre, post), expected, **close)


@pytest.mark.parametrize("method", ["add", "mul"])
@pytest.mark.parametrize("restrict", [None, 400])
def test_a_batch_equals_its_queries(both, method, restrict):
    ours, _ = both
    batch = ["the", *((positive, negative) for positive, negative in QUERIES)]
    found = ours.most_similar_batch(batch, 12, restrict_vocab=restrict, method=method)
    assert len(found) == len(batch)
    for query, answer in zip([("the", ()), *QUERIES], found, strict=True):
        same_answers(answer, ours.most_similar(*query, 12, restrict_vocab=restrict, method=method))
    assert ours.most_similar_batch([]) == []


def test_batches_of_words_equal_their_words(both):
    ours, _ = both
    expected = [ours.similarity(*pair) for pair in PAIRS]
    np.testing.assert_allclose(ours.similarity_batch(PAIRS), expected, **close)
    pairs = [pair for pair in PAIRS if pair[0] != pair[1]]
    assert ours.rank_batch(pairs).tolist() == [ours.rank(*pair) for pair in pairs]
    groups = [["war", "police", "fire"], ["the", "of", "to", "minister"], ["australia"]]
    assert ours.doesnt_match_batch(groups) == [ours.doesnt_match(group) for group in groups]


@pytest.fixture(scope="module")
def table():
    """Vectors along the axes, of many lengths, zeros too: cosines are exactly -1, 0 and 1, and mostly equal."""
    rng = np.random.default_rng(0)
    axes = np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))]).astype(np.float32)
    return jnp.asarray(axes[rng.integers(0, 7, 300)] * 2.0 ** rng.integers(-5, 5, (300, 1)).astype(np.float32))


@pytest.mark.parametrize("chunk", [64, 100, 8192])
def test_neighbours_do_not_depend_on_the_chunks(table, chunk):
    excluded = np.array([[0, 5], [-1, -1], [7, 7]], np.int32)
    scores, ids = queries.nearest(table, table[:3], k=70, excluded=excluded, restrict_vocab=290, chunk=chunk)
    cosines = np.sign(table[:3]) @ np.sign(table[:290]).T
    for row, out in zip(cosines, excluded, strict=True):
        row[out[out >= 0]] = -2
    expected = np.argsort(-cosines, axis=1, kind="stable")[:, :70]  # of equal ones the first come first
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(cosines, expected, 1))


def test_ranks_do_not_depend_on_the_chunks(table):
    targets = np.array([9, 120, 0], np.int32)
    cosines = np.sign(table[:3]) @ np.sign(table).T
    cosines[0, :50] = -2
    expected = 1 + (cosines > np.take_along_axis(cosines, targets[:, None], 1)).sum(1)
    expected[0] = 1 + (cosines[0] > float(np.sign(table[0]) @ np.sign(table[9]))).sum()
    excluded = np.stack([np.arange(50), *np.full((2, 50), -1)]).astype(np.int32)
    for chunk in 100, 8192:
        found = queries.rank(table, table[:3], targets, excluded=excluded, chunk=chunk)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("x64")
def test_float64_stays_float64(table):
    wide, ids = table[:20].astype(jnp.float64), jnp.array([[0], [1]])
    found = queries.nearest(wide, wide[:2], k=3, excluded=ids)
    assert (found.scores.dtype, found.ids.dtype) == (jnp.float64, jnp.int32)
    assert queries.rank(wide, wide[:2], ids[::-1, 0], excluded=ids).dtype == jnp.int32


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 100]))
def test_top_k_in_two_steps_equals_top_k(seed, values):
    scores = np.random.default_rng(seed).integers(0, values, (5, 512)).astype(np.float32)
    for found, expected in zip(top_k(scores), lax.top_k(scores, 9), strict=True):
        np.testing.assert_array_equal(found, expected)


top_k = jax.jit(lambda scores: queries._top_k(scores, 9))


def test_memory_does_not_grow_with_queries_times_vocabulary():
    table, batch = jax.ShapeDtypeStruct((100_000, 8), jnp.float32), jax.ShapeDtypeStruct((256, 8), jnp.float32)
    needed = queries.nearest.lower(table, batch, chunk=1024).compile().memory_analysis().temp_size_in_bytes
    assert needed < 256 * 100_000 * 4 / 8


def test_where_too_few_words_are_left(table):
    scores, ids = queries.nearest(table, table[:1], k=15, excluded=jnp.arange(8)[None], restrict_vocab=10)
    assert sorted(ids[0].tolist()) == [*[-1] * 8, 8, 9]
    assert np.isneginf(scores[0, 2:]).all()


def test_tables_of_low_precision_are_lifted(table):
    low = table.astype(jnp.bfloat16)
    found, expected = (queries.nearest(x, x[:3], k=70, restrict_vocab=290) for x in (low, table))
    assert found.scores.dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("option", [{"k": 0}, {"restrict_vocab": 0}, {"chunk": 0}])
def test_numbers_below_one_are_refused(table, option):
    with pytest.raises(InputError, match=f"{next(iter(option))} is 0: pass at least 1"):
        queries.nearest(table, table[:1], **option)


def test_blocks_are_joined():
    seen = []

    def double(x):
        seen.append(x.shape)
        return {"y": 2 * x}

    x = np.arange(2 * 21, dtype=np.float32).reshape(21, 2)
    np.testing.assert_array_equal(queries.in_blocks(double, x, block=16)["y"], 2 * x)
    assert seen == [(16, 2), (8, 2)]
    assert queries.in_blocks(double, x[:0])["y"].shape == (0, 2)


def test_vectors_of_zeros_have_similarity_zero(small):
    assert small.similarity("nil", "up") == small.similarity("nil", "nil") == 0
    assert small.n_similarity(["nil"], ["up", "down"]) == 0
    assert small.most_similar("nil") == [("up", 0), ("above", 0), ("down", 0)]
    assert small.most_similar(["up"], ["up"]) == [("above", 0), ("down", 0), ("nil", 0)]
    assert dict(small.most_similar("up", method="mul"))["nil"] == pytest.approx(0.5)
    assert small.relative_cosine_similarity("nil", "up") == 0
    assert small.distances("nil").tolist() == [1, 1, 1, 1]
    assert not small.mean_vector(["up"], [0.0], post_normalize=True).any()
    assert small.doesnt_match(["up", "nil", "above"]) == "nil"
    assert small.most_similar_batch(["nil"]) == [small.most_similar("nil")]
    assert dict(small.most_similar_batch(["up"], method="mul")[0])["nil"] == pytest.approx(0.5)
    assert small.similarity_batch([("nil", "up")]).tolist() == [0]
    assert small.rank_batch([("nil", "up")]).tolist() == [1]
    assert small.doesnt_match_batch([["up", "nil", "above"]]) == ["nil"]


def test_words_are_looked_up(small):
    assert len(small) == 4
    assert list(small) == small.words
    assert repr(small) == "WordVectors(4 words, 3 dimensions)"
    assert "up" in small
    assert "nowhere" not in small
    assert 0 not in small
    assert small.get_index("down") == 2
    assert small["up"].tolist() == [0, 2, 0]
    assert small[["down", "up"]].tolist() == [[0, -1, 0], [0, 2, 0]]
    assert small[[]].shape == (0, 3)
    small["up"][:] = 7  # a copy
    assert small["up"].tolist() == [0, 2, 0]


def test_memory_maps_are_not_copied(tmp_path):
    stored = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (2, 3))
    assert np.shares_memory(WordVectors(["a", "b"], stored).vectors, stored)


def test_copies(small):
    counted = WordVectors(small.words, small.vectors, counts=np.array([9, 8, 7, 6]))
    chosen = counted.subset(["down", "up"])
    assert chosen.words == ["down", "up"]
    assert chosen.counts.tolist() == [7, 9]
    np.testing.assert_array_equal(chosen.vectors, [[0, -1, 0], [0, 2, 0]])
    lengths = np.linalg.norm(counted.normalized().vectors, axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 1, 0], rtol=1e-6)
    assert counted.normalized().counts.tolist() == [9, 8, 7, 6]


@pytest.fixture
def composed():
    """Two words and n-grams of three characters in 50 buckets."""
    words, rng = ["cat", "dog"], np.random.default_rng(1)
    subwords = Subwords(rng.normal(size=(2 + 50, 4)).astype(np.float32), None, 3, 3, 50)
    index = {word: row for row, word in enumerate(words)}
    return WordVectors(words, compose(subwords, words, index=index), subwords=subwords, counts=np.array([2, 1]))


def test_unknown_words_are_composed_from_subwords(composed):
    expected = compose(composed.subwords, ["cats", "catty"], index=composed.index)
    assert "cats" in composed
    np.testing.assert_array_equal(composed["cats"], expected[0])
    np.testing.assert_array_equal(composed[["cats", "dog", "catty"]], [expected[0], composed.vectors[1], expected[1]])
    assert {word for word, _ in composed.most_similar("cats")} == {"cat", "dog"}
    assert [word for word, _ in composed.most_similar("cats", "cat")] == ["dog"]
    assert composed.most_similar_batch([("cats", "cat")])[0][0][1] == pytest.approx(
        composed.most_similar("cats", "cat")[0][1], abs=1e-6
    )
    assert composed.rank("cats", "dog") == composed.rank_batch([("cats", "dog")])[0]
    assert composed.subset(["cats", "dog"]).words == ["cats", "dog"]
    assert composed.subset(["cats", "dog"]).counts is None
    assert repr(composed) == "WordVectors(2 words, 4 dimensions, subwords)"
    with pytest.raises(InputError, match="'dogs' is not among the 2 words"):
        composed.rank("cats", "dogs")


def test_unknown_words_get_suggestions(small):
    with pytest.raises(InputError, match=r"word 'Up' is not among the 4 words; did you mean 'up'\?"):
        small["Up"]
    with pytest.raises(InputError, match="did you mean 'above'"):
        small["abvoe"]
    with pytest.raises(InputError, match="no frequent word is spelled like it"):
        small.most_similar(["up"], ["zzz"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: v.most_similar(), "positive and negative are empty"),
        (lambda v: v.most_similar("up", topn=-1), "topn: -1; pass at least 0"),
        (lambda v: v.most_similar_batch(["up"], topn=0), "topn: 0; pass at least 1"),
        (lambda v: v.most_similar("up", restrict_vocab=0), "restrict_vocab: 0; pass at least 1"),
        (lambda v: v.most_similar("up", method="cos"), "method: 'cos'; choose 'add'"),
        (lambda v: v.most_similar("up", [("down", 0.5)]), "pairs .* go into positive"),
        (lambda v: v.most_similar([("up", 0.5)], method="mul"), "with method='add'"),
        (lambda v: v.most_similar([np.ones(2)]), "neither a word nor a vector of 3 numbers"),
        (lambda v: v.mean_vector([]), "pass at least one key"),
        (lambda v: v.mean_vector(["up"], [1.0, 2.0]), r"keys: 1 with weights \(2,\)"),
        (lambda v: v.doesnt_match([]), "pass a list of words"),
        (lambda v: v.doesnt_match("up"), "pass a list of words"),
        (lambda v: v.doesnt_match_batch([["up"], []]), "groups: number 1 is empty"),
        (lambda v: WordVectors(["a", "b", "a"], np.ones((3, 2))), "'a' occurs more than once"),
        (lambda v: WordVectors(["a"], np.ones(2)), "pass \\[V, D\\]"),
        (lambda v: WordVectors(["a"], np.ones((2, 2))), "does not fit 1 words"),
        (lambda v: WordVectors(["a"], np.ones((1, 2)), counts=np.ones(2)), "counts: shape"),
        (lambda v: WordVectors(["a"], np.ones((1, 2)), context_vectors=np.ones((1, 3))), "context_vectors: shape"),
        (lambda v: plot_words(v, ["up"], "x.png"), "at least two words"),
    ],
)
def test_bad_input(small, call, message):
    with pytest.raises(InputError, match=message):
        call(small)


def test_words_are_plotted(tmp_path):
    words = [f"word{i}" for i in range(20)] + ["war"]
    vectors = WordVectors(words, np.random.default_rng(5).normal(size=(21, 4)))
    path = plot_words(vectors, words, tmp_path / "map.svg")
    drawn = path.read_text()
    assert drawn.count("<!-- ") >= 21
    assert "<!-- war -->" in drawn


def test_equal_words_are_plotted(tmp_path):
    vectors = WordVectors(["a$b$", "c"], np.ones((2, 3)))
    assert plot_words(vectors, ["a$b$", "c"], tmp_path / "map.png").stat().st_size > 0


def test_projector_files(tmp_path, small):
    vectors = WordVectors(["a\tb", "\u00a0"], np.array([[0.5, -1.25], [1e-9, 3]]), counts=np.array([5, 4]))
    directory = export_projector(vectors, tmp_path / "new")
    assert (directory / "vectors.tsv").read_text() == "0.5\t-1.25\n1e-09\t3\n"
    assert (directory / "metadata.tsv").read_text(encoding="utf-8") == "word\tcount\na b\t5\n\u00a0\t4\n"
    config = (directory / "projector_config.pbtxt").read_text()
    assert config.startswith("embeddings {")
    assert 'tensor_path: "vectors.tsv"' in config
    assert (export_projector(small, tmp_path) / "metadata.tsv").read_text().splitlines()[1] == "up\t1"
