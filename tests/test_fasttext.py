"""FastText: shared rows, the training program, the guard against divergence, and that gensim reads the models."""

import itertools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.embeddings import fasttext as module
from seqjax.embeddings import load_fasttext, ngram_table, save_fasttext
from seqjax.embeddings.fasttext import (
    FastTextConfig,
    add_steps,
    init_tables,
    make_summands,
    read_vectors,
    share_rows,
    train_chunk,
    train_fasttext,
)
from seqjax.embeddings.skipgram import Tiles, skipgram_update, window_weights
from seqjax.embeddings.word2vec import Tables, make_sampler
from seqjax.errors import InputError

SMALL = {
    "vector_size": 10,
    "min_count": 1,
    "window": 2,
    "block": 64,
    "tile": 16,
    "shared_negatives": 8,
    "bucket": 5000,
    "sample": 0.0,
}
# banana has an n-gram twice, </s> none; the many n-grams of nation are those of national too
WORDS = ["banana", "bananas", "ananas", "nation", "national", "as", "</s>", "día", "zero"]
V = len(WORDS)


def model(**options):
    """Configuration, layout, summands, guard, and which rows each word has where none is shared."""
    config = FastTextConfig(**SMALL | options)
    layout = share_rows(WORDS, np.full(V, 1 / V), config)
    flat, offsets = ngram_table(WORDS, min_n=3, max_n=6, bucket=config.bucket)
    ngrams = V + np.searchsorted(layout.buckets, flat)
    rows = [np.array([w, *ngrams[offsets[w] : offsets[w + 1]]]) for w in range(V)]
    return config, layout, *make_summands(layout, config), rows


def inflected(n=400, seed=0):
    """Sentences about one of two topics, each with stems of its own; both have the same endings."""
    rng = np.random.default_rng(seed)
    stems = np.array([["garden", "flower", "forest", "meadow"], ["engine", "wheel", "piston", "clutch"]])
    endings = np.array(["", "s", "ed", "ing", "less"])
    words = np.char.add(stems[:, :, None], endings).reshape(2, -1)
    return [words[rng.integers(2)][rng.integers(0, 20, rng.integers(4, 12))].tolist() for _ in range(n)]


@pytest.fixture(autouse=True, scope="module")
def small_chunks():
    """So that all trainings here compile one program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqjax.embeddings.streaming.CHUNK", 1 << 10)
        yield


CONFIG = FastTextConfig(**SMALL, epochs=10)


@pytest.fixture(scope="module")
def trained(small_chunks):
    """Vectors of the inflected words, and the reports of their training."""
    reports = []
    return train_fasttext(inflected(), CONFIG, key=jax.random.key(20), progress=reports.append), reports


@pytest.mark.parametrize("bucket", [2_000_000, 40])
def test_rows_are_shared_by_what_the_same_words_have(bucket):
    _, layout, summands, _, rows = model(bucket=bucket, guard=None)
    occurrences = {}
    for w, owners in enumerate(rows):
        for owner in owners:
            occurrences.setdefault(owner, []).append(w)
    groups = {}
    for owner, words in occurrences.items():
        groups.setdefault(tuple(words), set()).add(owner)
    assert {frozenset(np.flatnonzero(layout.of == row)) for row in range(len(layout.owners))} == {
        frozenset(group) for group in groups.values()
    }
    assert np.bincount(layout.of).tolist() == layout.owners.tolist()
    assert (np.diff(layout.frequency) <= 0).all()
    table = np.random.default_rng(0).normal(size=(len(layout.owners), 4)).astype(np.float32)
    expected = [table[layout.of][owners].mean(0) for owners in rows]
    np.testing.assert_allclose(read_vectors(jnp.asarray(table), summands, jnp.arange(V)), expected, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_the_expected_update_is_the_gradient_of_the_literal_objective(key):
    """Each row gets the gradient of the mean, as if it were a sum: that is Facebook's program."""
    window, negative = 2, 5
    _, layout, summands, _, rows = model(guard=None)
    weight = layout.owners[layout.rows] / np.repeat([len(r) for r in rows], np.diff(layout.offsets))
    np.testing.assert_allclose(summands.weights, weight, rtol=1e-6)
    summands = summands._replace(weights=jnp.asarray(weight))
    keys = jax.random.split(key, 3)
    table = jax.random.normal(keys[0], (len(layout.owners), 3), jnp.float64)
    w_out = jax.random.normal(keys[1], (V, 3), jnp.float64)
    p = jax.nn.softmax(jax.random.normal(keys[2], (V,), jnp.float64))
    words = np.random.default_rng(0).integers(0, V, 4 + 2 * window).astype(np.int32)
    centres = words[window:-window]
    weights = jnp.asarray(window_weights(4, window), jnp.float64)

    def objective(all_rows, w_out):
        sums = jnp.stack([all_rows[rows[w]].sum(0) for w in words])
        means = jnp.stack([all_rows[rows[w]].mean(0) for w in words])
        x = sums + jax.lax.stop_gradient(means - sums)
        own = jax.nn.log_sigmoid(x @ w_out[centres].T)
        differs = (jnp.arange(V, dtype=jnp.int32)[:, None] != centres[None]).astype(p.dtype)
        others = jnp.einsum("rv,v,vc->rc", jax.nn.log_sigmoid(-(x @ w_out.T)), p, differs)
        return jnp.sum(weights * (own + negative * others))

    d_rows, d_out = jax.jit(jax.grad(objective, argnums=(0, 1)))(table[layout.of], w_out)
    x = read_vectors(table, summands, jnp.asarray(words))

    @jax.jit
    def update(drawn):
        differs = (centres != drawn)[None, :, None]
        tiles = Tiles(x[None], w_out[centres][None], w_out[drawn][None, None])
        update = skipgram_update(tiles, weights[None], differs, negative=negative)
        d_out = jnp.zeros_like(w_out).at[centres].add(update.centres[0]).at[drawn].add(update.negatives[0, 0])
        return p[drawn] * update.contexts[0], p[drawn] * d_out

    # Linear in the draws, so one negative at a time is every case.
    steps, found = (sum(parts) for parts in zip(*map(update, range(V)), strict=True))
    moved = add_steps(table, summands, jnp.asarray(words), steps) - table
    np.testing.assert_allclose(moved[layout.of], d_rows, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found, d_out, rtol=1e-10, atol=1e-12)


def test_a_chunk_makes_the_pairs_of_its_sentences(key):
    """One block, whose only negative is word 8. Steps of rows with many pairs are scaled down."""
    config, layout, summands, scale, rows = model(guard=15.0)
    sentences = [[0, 1, 2, 3, 4, 5, 6], [2, 4], [7, 0, 7], [*range(8)] * 6]
    ids = np.concatenate([[~words[0], *words[1:]] for words in sentences]).astype(np.int32)
    shapes = (len(layout.owners), 10), (V, 10)
    w_in, w_out = (jax.random.normal(k, shape) for k, shape in zip(jax.random.split(key), shapes, strict=True))
    before_in, before_out = np.asarray(w_in, float) * scale[:, None], np.asarray(w_out, float)
    vectors = np.array([before_in[layout.of][r].mean(0) for r in rows])
    sampler = make_sampler(np.full(V, 10), config.word2vec)
    sampler = sampler._replace(accept=jnp.zeros(V), alias=jnp.full(V, 8), scale=jnp.ones(V))
    n, alphas = jnp.int32(len(ids)), jnp.array([0.01, 0.01])
    tables, kept, (_, pairs) = train_chunk(
        config, sampler, summands, Tables(w_in, w_out), np.pad(ids, (0, 4)), n, alphas, key
    )
    assert kept == n

    burst = np.minimum(1, 15 / 3 / np.bincount(np.concatenate(sentences), minlength=V).clip(1))
    guard = np.minimum(1, 15 / (64 * 3 * np.bincount(np.concatenate(rows)) / V))
    assert burst.min() < 1
    assert guard.min() < 1
    steps, d_in, d_out, total = np.zeros((V, 10)), np.zeros((len(guard), 10)), np.zeros((V, 10)), 0.0
    for words in sentences:
        for (i, context), (j, centre) in itertools.product(enumerate(words), repeat=2):
            if 0 < abs(i - j) <= config.window:
                weight = (config.window + 1 - abs(i - j)) / config.window
                for out, label, times in ((centre, 1, burst[centre]), (8, 0, 1)):
                    slope = label - 1 / (1 + np.exp(-vectors[context] @ before_out[out]))
                    step = 0.01 * weight * slope * (1 if label else config.negative)
                    steps[context] += burst[context] * step * before_out[out]
                    d_out[out] += times * step * vectors[context]
                total += weight
    for owners, step in zip(rows, steps, strict=True):
        np.add.at(d_in, owners, step)
    after_in = np.asarray(tables.w_in) * scale[:, None]
    np.testing.assert_allclose((after_in - before_in)[layout.of], d_in * guard[:, None], atol=3e-5)
    np.testing.assert_allclose(tables.w_out - before_out, d_out, atol=3e-5)
    np.testing.assert_allclose(pairs, total, rtol=1e-5)


def test_gensim_divides_by_one_less():
    _, layout, summands, _, rows = model(guard=None, average="gensim")
    total = np.add.reduceat(summands.weights, layout.offsets[:-1])
    np.testing.assert_allclose(total, [len(r) / max(len(r) - 1, 1) for r in rows], rtol=1e-6)


def test_inflected_forms_end_up_together(trained):
    vectors, reports = trained
    stems = {"wheely": ("engi", "whee", "pist", "clut"), "forestlike": ("gard", "flow", "fore", "mead")}
    for word, topic in stems.items():
        assert word not in vectors.index
        assert {found[:4] for found, _ in vectors.most_similar(word, topn=8)} <= set(topic)
    assert reports[-1].loss < reports[0].loss
    assert reports[-1].words == 10 * sum(map(len, inflected()))


def test_gensim_reads_the_model(trained, tmp_path):
    from gensim.models.fasttext import load_facebook_vectors

    vectors, _ = trained
    path = tmp_path / "model.bin"
    save_fasttext(vectors, path)
    theirs = load_facebook_vectors(str(path))
    assert theirs.index_to_key == vectors.words
    np.testing.assert_allclose(theirs.vectors, vectors.vectors, atol=1e-6)
    for word in ("wheely", "ungardened", "día", "x"):
        np.testing.assert_allclose(theirs[word], vectors[word], atol=1e-6)
    again = load_fasttext(path)
    np.testing.assert_array_equal(again.vectors, vectors.vectors)
    np.testing.assert_array_equal(again.context_vectors, vectors.context_vectors)
    assert again.subwords.header._replace(max_n=None) == vectors.subwords.header
    assert again.subwords.header.n_tokens == sum(map(len, inflected()))


def test_frequencies_are_shares_of_the_whole_text(key, monkeypatch):
    """Rare words count, as in Facebook's program; in gensim they do not."""
    seen = []
    monkeypatch.setattr(module, "run", lambda chunk, tables, *_, **__: seen.append(chunk) or tables)
    corpus = [["often"] * 60, ["seldom"] * 10, [f"rare{i}" for i in range(30)]]
    train_fasttext(corpus, FastTextConfig(vector_size=8, sample=0.1, bucket=100), key=key)
    sampler = seen[0].args[1]
    np.testing.assert_allclose(sampler.keep, [np.sqrt(0.1 / 0.6) + 0.1 / 0.6, 1], rtol=1e-6)


def test_the_same_key_gives_the_same_bytes(trained, tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(map(" ".join, inflected())))
    same, other = (train_fasttext(path, CONFIG, key=jax.random.key(seed)) for seed in (20, 1))
    assert same.vectors.tobytes() == trained[0].vectors.tobytes() != other.vectors.tobytes()


def test_an_interrupted_run_goes_on_to_the_same_bytes(trained, key, tmp_path):
    class Crash(Exception):
        pass

    def crash(progress):
        if progress.fraction > 0.6:
            raise Crash

    options = {"key": key, "checkpoints": tmp_path, "checkpoint_every": 5}
    with pytest.raises(Crash):
        train_fasttext(inflected(), CONFIG, progress=crash, **options)
    seen = []
    resumed = train_fasttext(inflected(), CONFIG, progress=seen.append, resume=True, **options)
    assert seen[0].fraction > 0.4
    np.testing.assert_array_equal(resumed.vectors, trained[0].vectors)
    np.testing.assert_array_equal(resumed.subwords.rows, trained[0].subwords.rows)


def test_the_guard_prevents_the_planted_divergence(key, monkeypatch):
    """Rare words, all with one ending: none of them occurs often in a block, but their n-grams do."""
    rng = np.random.default_rng(0)
    words = np.array(["".join(letters) + "isation" for letters in itertools.product("bdgklmnprs", "aeiou", "bdgkl")])
    corpus = [words[rng.integers(0, len(words), 500)].tolist() for _ in range(20)]
    config = FastTextConfig(vector_size=32, block=1024, epochs=2, sample=0.0, bucket=20_000)

    def longest(config):
        return np.linalg.norm(train_fasttext(corpus, config, key=key).vectors, axis=1).max()

    assert longest(config) < 10
    guarded = make_summands
    monkeypatch.setattr(module, "make_summands", lambda layout, config: guarded(layout, replace(config, guard=None)))
    assert not longest(config) < 100  # words are guarded, n-grams are not


def test_the_tables_are_not_copied_in_the_loop(key):
    """A copy costs as much as the work of many blocks; XLA makes one if a branch or a late read sees a table."""
    words, counts = [f"word{i}" for i in range(307)], np.arange(307) + 1
    config = FastTextConfig(vector_size=20)
    layout = share_rows(words, counts / counts.sum(), config)
    summands, scale = make_summands(layout, config)
    tables = init_tables(key, layout, scale, 20)
    args = make_sampler(counts, config.word2vec), summands, tables, jnp.zeros(4096, jnp.int32), jnp.int32(9)
    text = train_chunk.lower(config, *args, jnp.zeros(2), key).compile().as_text()
    for table in tables:
        assert table.shape[1] == 24
        assert not re.findall(rf"= f32\[{len(table)},24\]\S* copy\(", text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_n": 4, "max_n": 3}, "min_n=4, max_n=3; .* Without n-grams use train_word2vec"),
        ({"max_n": 0}, "min_n=3, max_n=0"),
        ({"bucket": 0}, "bucket=0; it must be at least 1"),
        ({"negative": 0}, "negative=0; it must be at least 1"),
        ({"block": 100}, "block=100; it must be a multiple of tile=32"),
        ({"alpha": 0.0}, "alpha=0.0 is out of range"),
    ],
)
def test_a_bad_option_is_named(options, message):
    with pytest.raises(InputError, match=message):
        FastTextConfig(**options)
