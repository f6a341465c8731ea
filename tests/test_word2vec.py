"""Word2Vec: sampling, the training program, the guard against divergence, and what the vectors learn."""

import itertools
import os
import re
import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from seqjax.embeddings import (
    Word2VecConfig,
    WordVectors,
    count_words,
    encode,
    make_vocabulary,
    train_word2vec,
    train_word2vec_study,
)
from seqjax.embeddings.sampling import alias_table, draw, keep_probability, subsample
from seqjax.embeddings.streaming import in_shards
from seqjax.embeddings.word2vec import Tables, check_memory, column_sharding, init_tables, make_sampler, train_chunk
from seqjax.errors import InputError, TrainingError

SMALL = {"vector_size": 16, "min_count": 1, "window": 2, "block": 64, "tile": 16, "shared_negatives": 8}


def topics(n=800, seed=0):
    """Sentences about one of two topics: words of a topic occur together."""
    rng = np.random.default_rng(seed)
    words = np.array([[f"a{i}" for i in range(20)], [f"b{i}" for i in range(20)]])
    return [words[rng.integers(2)][rng.integers(0, 20, rng.integers(2, 12))].tolist() for _ in range(n)]


def test_keep_probability_is_gensims():
    counts = np.array([600, 300, 90, 9, 1])
    from gensim.models import Word2Vec

    corpus = [[str(i)] * int(count) for i, count in enumerate(counts)]
    model = Word2Vec(min_count=1, sample=0.05)
    model.build_vocab(corpus)
    theirs = [model.wv.get_vecattr(str(i), "sample_int") / 2**32 for i in range(5)]
    np.testing.assert_allclose(keep_probability(counts, 0.05), theirs, atol=1e-6)
    assert keep_probability(counts, 0.0).tolist() == [1] * 5


def test_alias_table_holds_the_distribution():
    p = np.random.default_rng(0).dirichlet(np.full(50, 0.3))
    accept, alias = alias_table(p)
    made = accept / 50 + np.bincount(alias, (1 - accept) / 50, 50)
    np.testing.assert_allclose(made, p, atol=1e-12)


def test_negatives_are_drawn_by_frequency(key):
    counts = np.array([1000, 300, 90, 30, 9])
    sampler = make_sampler(counts, Word2VecConfig())
    drawn = draw(sampler.accept, sampler.alias, key, (20_000,))
    p = counts**0.75 / (counts**0.75).sum()
    expected = 20_000 * p
    assert np.sum((np.bincount(drawn, minlength=5) - expected) ** 2 / expected) < 25  # χ² of 4 degrees: p < 1e-4


def test_subsampling_moves_what_stays_together(key):
    sentences = [[0, 1, 2], [3], [4, 5, 6, 7]]
    ids = np.concatenate([[~words[0], *words[1:]] for words in sentences]).astype(np.int32)
    keep = jnp.asarray([1, 0, 1, 0, 0, 1, 1, 0], jnp.float32)  # the first word of the third sentence goes
    text = subsample(jnp.asarray(np.pad(ids, (0, 5))), jnp.int32(len(ids)), keep, key, window=2, block=4)
    assert int(text.n) == 4
    assert text.ids[2:6].tolist() == [0, 2, 5, 6]
    assert text.sentence.tolist() == [-1, -1, 1, 1, 3, 3] + [-1] * (len(text.sentence) - 6)


@pytest.mark.fast
def test_a_chunk_makes_the_pairs_of_its_sentences(key):
    """One block; its only negative is word 8, whose vector is 0, so that the pairs are all there is."""
    config = Word2VecConfig(**SMALL, sample=0.0, guard=None)
    sentences = [[0, 1, 2, 3, 4, 5, 6], [2, 4], [7, 0, 7], [*range(8)] * 6]
    ids = np.concatenate([[~words[0], *words[1:]] for words in sentences]).astype(np.int32)
    w_in, w_out = (jax.random.normal(k, (9, 16)) for k in jax.random.split(key))
    w_out = w_out.at[8].set(0.0)
    sampler = make_sampler(np.full(9, 10), config)
    sampler = sampler._replace(accept=jnp.zeros(9), alias=jnp.full(9, 8), scale=jnp.ones(9))
    before = np.asarray(w_in, float), np.asarray(w_out, float)
    alphas = jnp.array([0.01, 0.01])
    n = jnp.int32(len(ids))
    tables, kept, (_, pairs) = train_chunk(config, sampler, Tables(w_in, w_out), np.pad(ids, (0, 4)), n, alphas, key)
    assert int(kept) == len(ids)
    d_in, d_out, total = np.zeros((9, 16)), np.zeros((9, 16)), 0.0
    for words in sentences:
        for (i, context), (j, centre) in itertools.product(enumerate(words), repeat=2):
            if 0 < abs(i - j) <= config.window:
                weight = (config.window + 1 - abs(i - j)) / config.window
                x, o = before[0][context], before[1][centre]
                step = 0.01 * weight / (1 + np.exp(x @ o))
                d_in[context] += step * o
                d_out[centre] += step * x
                total += weight
    np.testing.assert_allclose(tables.w_in - before[0].astype(np.float32), d_in, atol=1e-5)
    np.testing.assert_allclose((tables.w_out - before[1].astype(np.float32))[:8], d_out[:8], atol=1e-5)
    np.testing.assert_allclose(pairs, total, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"windows": "random"},
        {"windows": "fixed"},
        {"architecture": "cbow"},
        {"objective": "hierarchical_softmax"},
        {"objective": "hierarchical_softmax", "architecture": "cbow"},
        {"objective": "softmax"},
        {"objective": "softmax", "architecture": "cbow", "cbow_mean": False, "cbow_gradient": "exact"},
        {"objective": "sampled_softmax"},
        {"objective": "sampled_softmax", "architecture": "cbow"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_words_of_a_topic_end_up_together(options, key):
    reports = []
    config = Word2VecConfig(**SMALL, **options, sample=0.0, epochs=12, alpha=0.08)
    vectors = train_word2vec(topics(), config, key=key, progress=reports.append)
    for word in ("a3", "b7"):
        assert {found[0] for found, _ in vectors.most_similar(word, topn=10)} == {word[0]}
    assert [report.step for report in reports] == [*range(1, len(reports) + 1)]
    assert reports[-1].step == reports[-1].steps
    assert reports[-1].fraction == 1
    assert reports[-1].words == 12 * sum(map(len, topics()))
    assert reports[-1].loss < reports[0].loss


@pytest.mark.fast
def test_the_same_key_gives_the_same_bytes(key, tmp_path):
    corpus = topics(300)
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(map(" ".join, corpus)))
    config = Word2VecConfig(**SMALL, epochs=1)
    first, second, other = (
        train_word2vec(source, config, key=k).vectors.tobytes()
        for source, k in ((corpus, key), (path, key), (corpus, jax.random.key(1)))
    )
    assert first == second
    assert first != other


def test_an_interrupted_run_goes_on_to_the_same_bytes(key, tmp_path, monkeypatch):
    monkeypatch.setattr("seqjax.embeddings.streaming.CHUNK", 1 << 10)
    config = Word2VecConfig(**SMALL, epochs=2)
    whole = train_word2vec(topics(400), config, key=key)

    class Crash(Exception):
        pass

    def crash(progress):
        if progress.fraction > 0.6:
            raise Crash

    with pytest.raises(Crash):
        train_word2vec(topics(400), config, key=key, checkpoints=tmp_path, checkpoint_every=2, progress=crash)
    seen = []
    options = {"checkpoints": tmp_path, "checkpoint_every": 2, "resume": True}
    resumed = train_word2vec(topics(400), config, key=key, progress=seen.append, **options)
    assert seen[0].fraction > 0.4
    np.testing.assert_array_equal(resumed.vectors, whole.vectors)
    np.testing.assert_array_equal(resumed.context_vectors, whole.context_vectors)
    with pytest.raises(InputError, match="resume=True needs checkpoints="):
        train_word2vec(topics(20), config, key=key, resume=True)
    with pytest.raises(InputError, match="holds the checkpoints of another run"):
        train_word2vec(topics(400), config, key=key, checkpoints=tmp_path)


@pytest.mark.parametrize("objective", ["negative_sampling", "hierarchical_softmax"])
@pytest.mark.parametrize("architecture", ["skipgram", "cbow"])
def test_float64_elsewhere_changes_nothing(key, architecture, objective):
    config = Word2VecConfig(**SMALL, epochs=1, architecture=architecture, objective=objective)
    expected = train_word2vec(topics(20), config, key=key)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        found = train_word2vec(topics(20), config, key=key)
    assert found.vectors.dtype == np.float32
    assert found.words == expected.words
    assert np.all(np.isfinite(found.vectors))


def test_words_that_were_never_counted_stay(key):
    start = WordVectors(["a", "z"], np.ones((2, 8), np.float32), counts=np.array([1, 0]))
    config = Word2VecConfig(**SMALL | {"vector_size": 8}, epochs=1)
    assert {"a", "z"} <= set(train_word2vec(topics(20), config, key=key, start=start).words)


def test_sigterm_saves_first(key, tmp_path, monkeypatch):
    monkeypatch.setattr("seqjax.embeddings.streaming.CHUNK", 1 << 10)
    config = Word2VecConfig(**SMALL, epochs=2)

    def stop(progress):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit, match="143"):
        train_word2vec(topics(400), config, key=key, checkpoints=tmp_path, progress=stop)
    assert [int(path.name) for path in tmp_path.iterdir()] in ([2], [3])


def test_the_guard_prevents_the_planted_divergence(key):
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(400)])
    corpus = [words[np.minimum(rng.zipf(1.3, 500) - 1, 399)].tolist() for _ in range(150)]
    config = Word2VecConfig(vector_size=32, sample=0.0, block=2048, epochs=2, min_count=1)
    assert np.linalg.norm(train_word2vec(corpus, config, key=key).vectors, axis=1).max() < 10
    with pytest.raises(TrainingError, match="some vectors are not finite"):
        train_word2vec(corpus, replace(config, guard=None), key=key)


def test_a_burst_of_a_rare_word_does_not_diverge(key):
    """A hundred times in a row, in a corpus where it is not frequent: what is expected of it says nothing."""
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(2000)])
    corpus = [words[rng.integers(0, 2000, 100)].tolist() for _ in range(200)]
    corpus[50:52] = [["agave", word] * 50 for word in ("w1", "w2")]
    norms = {}
    for guard in (None, 64.0):
        config = Word2VecConfig(vector_size=32, guard=guard, epochs=30, min_count=1, sample=0.0)
        norms[guard] = np.linalg.norm(train_word2vec(corpus, config, key=key)["agave"])
    assert norms[64.0] < 10 < norms[None]


def test_training_goes_on_with_a_grown_vocabulary(key):
    config = Word2VecConfig(**SMALL, epochs=1)
    old = train_word2vec(topics(300), config, key=key)
    new = train_word2vec([["a1", "new", "a2"]] * 50, config, key=key, start=old)
    assert set(new.words) == {*old.words, "new"}
    assert new.counts[new.index["a1"]] == old.counts[old.index["a1"]] + 50
    np.testing.assert_array_equal(new["b3"], old["b3"])  # does not occur, so it stays, unless drawn as a negative
    assert np.abs(new["a1"] - old["a1"]).max() > 0
    with pytest.raises(InputError, match="start has vectors of size 16: set vector_size"):
        train_word2vec(topics(20), Word2VecConfig(min_count=1), key=key, start=old)


@pytest.mark.parametrize("options", [{}, {"architecture": "cbow"}, {"objective": "hierarchical_softmax"}])
def test_columns_over_four_devices_give_what_one_device_gives(options, key):
    config = Word2VecConfig(**SMALL, **options, epochs=1)
    mesh = jax.make_mesh((4,), ("columns",), axis_types=(AxisType.Auto,))
    one, four = (train_word2vec(topics(100), config, key=key, mesh=m) for m in (None, mesh))
    np.testing.assert_allclose(four.vectors, one.vectors, atol=1e-5)
    with pytest.raises(InputError, match="vector_size=18 is not a multiple of the 4 devices"):
        train_word2vec(topics(9), Word2VecConfig(vector_size=18, min_count=1), key=key, mesh=mesh)


@pytest.mark.parametrize("shape", [{"data": 2}, {"data": 2, "columns": 2}], ids=str)
def test_shards_of_the_text_add_what_each_has_learned(shape, key, monkeypatch):
    for name, value in {"SHARDED": 1 << 10, "PART": 32, "FREQUENT": 4}.items():
        monkeypatch.setattr(f"seqjax.embeddings.streaming.{name}", value)
    mesh = jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))
    config, reports = Word2VecConfig(**SMALL, sample=0.0, epochs=12, alpha=0.08), []
    vectors = train_word2vec(topics(), config, key=key, mesh=mesh, progress=reports.append)
    assert reports[-1].words == 12 * sum(map(len, topics()))
    for word in ("a3", "b7"):
        assert {found[0] for found, _ in vectors.most_similar(word, topn=10)} == {word[0]}

    tables = init_tables(key, 9, 16)
    sampler = make_sampler(np.full(9, 10), config)
    ids = jax.random.randint(key, (2, 64), 0, 9).at[:, 0].set(~3)
    n, alphas = jnp.array([64, 30]), jnp.array([[0.1, 0.05], [0.1, 0.05]])
    first, shards = tables, [tables, tables]
    for i in range(2):  # the first 4 rows are exchanged after each part of 32 ids
        for s in range(2):
            args = jnp.clip(n[s] - 32 * i, 0, 32), jnp.array([[0.1, 0.075], [0.075, 0.05]])[i]
            k = jax.random.fold_in(jax.random.fold_in(key, s), i)
            copy = jax.tree.map(jnp.copy, shards[s])
            shards[s], *_ = train_chunk(config, sampler, copy, ids[s, 32 * i : 32 * i + 32], *args, k)
        added = jax.tree.map(lambda old, a, b: (a + b - old)[:4], first, *shards)
        shards = [jax.tree.map(lambda table, rows: table.at[:4].set(rows), shard, added) for shard in shards]
        first = jax.tree.map(lambda table, rows: table.at[:4].set(rows), first, added)
    expected = jax.tree.map(lambda old, a, b, rows: (a + b - old).at[:4].set(rows), tables, *shards, added)
    found, words, _ = in_shards(train_chunk, config, mesh)(sampler, tables, ids, n, alphas, key)
    assert int(words) == 94
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.fast
def test_shards_do_not_copy_their_tables_for_each_part(key):
    config, v = Word2VecConfig(), 9001
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    tables = jax.device_put(init_tables(key, v, 100), column_sharding(mesh, 100))
    chunk = in_shards(train_chunk, config, mesh)
    args = jnp.zeros((2, 1 << 17), jnp.int32), jnp.full(2, 9), jnp.zeros((2, 2))
    text = chunk.lower(make_sampler(np.arange(v) + 1, config), tables, *args, key).compile().as_text()
    assert len(re.findall(rf"= f32\[{v},100\]\S* copy\(", text)) <= 4  # two before the loop, two after it


@pytest.mark.parametrize("options", [{}, {"architecture": "cbow", "objective": "hierarchical_softmax"}], ids=str)
def test_each_member_of_a_study_is_as_if_it_were_alone(options, key):
    corpus, alphas = topics(100), [0.02, 0.1]
    members = train_word2vec_study(corpus, Word2VecConfig(**SMALL, **options, epochs=2), alphas=alphas, key=key)
    for alpha, member in zip(alphas, members, strict=True):
        alone = train_word2vec(corpus, Word2VecConfig(**SMALL, **options, epochs=2, alpha=alpha), key=key)
        np.testing.assert_allclose(member.vectors, alone.vectors, atol=1e-5)
    with pytest.raises(InputError, match=r"alphas=\[0.0\]; give step sizes above 0"):
        train_word2vec_study(corpus, alphas=[0.0], key=key)


@pytest.mark.fast
def test_devices_exchange_scores_and_no_vectors(key):
    config, v = Word2VecConfig(vector_size=128), 5003
    mesh = jax.make_mesh((4,), ("columns",), axis_types=(AxisType.Auto,))
    tables = jax.device_put(init_tables(key, v, 128), column_sharding(mesh, 128))
    args = make_sampler(np.arange(v) + 1, config), tables, jnp.zeros(4096, jnp.int32), jnp.int32(9), jnp.zeros(2), key
    text = train_chunk.lower(config, *args).compile().as_text()
    exchanged = re.findall(r"= \(?(f32\[[\d,]*\]).* (all-reduce|all-gather|all-to-all|collective-permute)\(", text)
    shapes = {tuple(map(int, shape[4:-1].split(","))) for shape, _ in exchanged}
    tiles, contexts, out = config.block // 32, 32 + 2 * config.window, 32 + config.shared_negatives
    assert all(np.prod(shape) <= tiles * contexts * out for shape in shapes), exchanged
    assert {kind for _, kind in exchanged} == {"all-reduce"}


@pytest.mark.fast
def test_the_tables_are_not_copied_in_the_loop(key):
    """A copy costs as much as the work of a thousand blocks; XLA makes one if a branch or a late read sees a table."""
    config, v = Word2VecConfig(), 5003
    args = make_sampler(np.arange(v) + 1, config), init_tables(key, v, 100), jnp.zeros(4096, jnp.int32), jnp.int32(9)
    text = train_chunk.lower(config, *args, jnp.zeros(2), key).compile().as_text()
    assert not re.findall(rf"= f32\[{v},100\]\S* copy\(", text)


def test_a_second_chunk_compiles_nothing(key):
    config = Word2VecConfig(**SMALL, epochs=3)
    train_word2vec(topics(200), config, key=key)
    before = train_chunk._cache_size()
    train_word2vec(topics(210, seed=3), config, key=key)
    assert train_chunk._cache_size() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negative": 0}, "negative=0; it must be at least 1"),
        ({"block": 100}, "block=100; it must be a multiple of tile=32"),
        ({"alpha": 0.0}, "alpha=0.0 is out of range"),
        ({"min_alpha": 0.1}, "min_alpha=0.1 is out of range"),
        ({"sample": -1.0}, "sample=-1.0 is out of range"),
    ],
)
def test_a_bad_option_is_named(options, message):
    with pytest.raises(InputError, match=message):
        Word2VecConfig(**options)


def test_a_bad_corpus_is_told(key):
    with pytest.raises(InputError, match="min_count=50 leaves no word: the most frequent of 1 words, 'a', occurs 3"):
        train_word2vec([["a"] * 3], Word2VecConfig(min_count=50), key=key)
    vocabulary = make_vocabulary(count_words([["z"] * 9]))
    with pytest.raises(InputError, match="holds no word of the vocabulary"):
        train_word2vec([["a"] * 3], key=key, vocabulary=vocabulary)
    assert list(encode([["a"]], vocabulary)) == []
    with pytest.raises(InputError, match=r"need 7450.6 GiB for two tables"):
        check_memory(1_000_000_000, 1000)
