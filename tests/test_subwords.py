"""fastText's character n-grams, beside loops and gensim's hashes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.embeddings.subwords import Subwords, compose, ngram_table
from seqjax.errors import InputError

NO_SURROGATES = st.characters(exclude_categories=["Cs"])
LOST_BYTES = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)  # of errors="surrogateescape"
WORDS = st.lists(st.text(NO_SURROGATES | st.sampled_from("aé日😀<>"), max_size=7), max_size=6)


def fnv1a(data):
    h = 2166136261
    for byte in data:
        h ^= (byte - 256 if byte > 127 else byte) % 2**32
        h = h * 16777619 % 2**32
    return h


def buckets(word, min_n, max_n, bucket):
    if word == "</s>":
        return []
    chars = f"<{word}>"
    found = []
    for i in range(len(chars)):
        for n in range(max(min_n, 1), max_n + 1):
            gram = chars[i : i + n]
            if len(gram) == n and not (n == 1 and i in (0, len(chars) - 1)):
                found.append(fnv1a(gram.encode()) % bucket)
    return found


def composed(subwords, word, index):
    """One row after the other, in float32."""
    rows = [subwords.rows[index[word]]] if word in index else []
    for b in buckets(word, subwords.min_n, subwords.max_n, subwords.bucket):
        slot = b if subwords.slots is None else subwords.slots[b]
        if slot >= 0:
            rows.append(subwords.rows[len(index) + slot])
        elif not subwords.pruned:
            rows.append(np.zeros_like(subwords.rows[0]))
    total = np.zeros(subwords.rows.shape[1], np.float32)
    for row in rows:
        total = total + row
    return total * np.float32(1 / max(len(rows), 1))


@given(words=WORDS, min_n=st.integers(0, 3), max_n=st.integers(0, 9), bucket=st.sampled_from([1, 7, 2_000_000]))
def test_ngrams_equal_the_loop(words, min_n, max_n, bucket):
    flat, offsets = ngram_table(words, min_n=min_n, max_n=max_n, bucket=bucket)
    assert (flat.dtype, offsets.dtype, offsets.shape) == (np.int32, np.int64, (len(words) + 1,))
    expected = [buckets(word, min_n, max_n, bucket) for word in words]
    assert [flat[a:b].tolist() for a, b in itertools.pairwise(offsets)] == expected
    assert offsets[-1] == len(flat)


@pytest.mark.parametrize(("min_n", "max_n"), [(3, 6), (1, 2), (2, 2)])
def test_ngrams_equal_gensims(min_n, max_n):
    from gensim.models.fasttext import ft_ngram_hashes

    words = ["a", "at", "naïve", "где", "日本語テキスト", "𝒳y", "electroencephalographically"]
    flat, offsets = ngram_table(words, min_n=min_n, max_n=max_n, bucket=1009)
    for i, word in enumerate(words):
        assert flat[offsets[i] : offsets[i + 1]].tolist() == ft_ngram_hashes(word, min_n, max_n, 1009)


@given(st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0x2FF) | LOST_BYTES, max_size=5))
def test_a_damaged_word_is_hashed_by_its_bytes(word):
    data = f"<{word}>".encode("utf-8", "surrogateescape")
    starts = [i for i, byte in enumerate(data) if byte & 0xC0 != 0x80] + [len(data)]
    expected = [fnv1a(data[a:b]) % 1000 for a, b in zip(starts[:-2], starts[2:], strict=True)]
    assert ngram_table([word], min_n=2, max_n=2, bucket=1000)[0].tolist() == expected


def test_a_large_vocabulary_is_that_of_its_words():
    words = [f"{i:x}" for i in range(17_000)]  # more than are hashed at once
    flat, offsets = ngram_table(words, min_n=2, max_n=3, bucket=1000)
    for i in (0, 16_383, 16_384, 16_999):
        assert flat[offsets[i] : offsets[i + 1]].tolist() == buckets(words[i], 2, 3, 1000)


def test_the_longest_ngram_is_the_word():
    assert len(ngram_table(["abc"], min_n=5, max_n=10**9, bucket=10)[0]) == 1
    assert len(ngram_table(["abc"], min_n=6, max_n=10**9, bucket=10)[0]) == 0


def make(key, *, slots, pruned=False, max_n=4, bucket=50, d=5):
    rng = np.random.default_rng(key)
    words = ["</s>", "cat", "été", "cats", "x"]
    if slots:
        slots = np.where(rng.random(bucket) < 0.5, -1, 0).astype(np.int32)
        slots[slots == 0] = rng.permutation((slots == 0).sum())
    else:
        slots = None
    n = bucket if slots is None else (slots >= 0).sum()
    rows = rng.normal(size=(len(words) + n, d)).astype(np.float32)
    return Subwords(rows, slots, 2, max_n, bucket, pruned), {word: i for i, word in enumerate(words)}


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("slots", [False, True])
def test_vectors_are_the_mean_of_rows(slots, pruned):
    subwords, index = make(0, slots=slots, pruned=pruned)
    words = [*index, "unknown", "cat", "", "日本", "</s>"]
    vectors = compose(subwords, words, index=index)
    assert vectors.dtype == np.float32
    expected = np.array([composed(subwords, word, index) for word in words])
    np.testing.assert_array_equal(vectors, expected)  # to the bit: the order of the sum is fastText's
    many = [words[i % len(words)] for i in range(600)]  # more than are composed at once
    np.testing.assert_array_equal(compose(subwords, many, index=index), expected[np.arange(600) % len(words)])


def test_missing_buckets_count_as_zeros_unless_pruned():
    rows = np.array([[6.0]], np.float32)
    kept = Subwords(rows, np.full(10, -1, np.int32), 3, 3, 10)
    assert compose(kept, ["abc"], index={"abc": 0}).item() == 1.5  # itself, and <ab, abc, bc>
    assert compose(kept._replace(pruned=True), ["abc"], index={"abc": 0}).item() == 6


def test_a_word_without_rows_has_zeros():
    subwords, index = make(0, slots=False)
    unknown = {word: i for word, i in index.items() if word != "</s>"}
    assert not compose(subwords._replace(max_n=0), ["new", "</s>"], index=unknown).any()
    assert not compose(subwords._replace(max_n=0, bucket=0), ["new"], index=index).any()
    assert compose(subwords, [], index=index).shape == (0, 5)


@settings(max_examples=30)
@given(words=WORDS, pruned=st.booleans(), key=st.integers(0, 9))
def test_all_unknown_words_have_finite_vectors(words, pruned, key):
    subwords, index = make(key, slots=True, pruned=pruned)
    expected = [composed(subwords, word, index) for word in words]
    np.testing.assert_array_equal(compose(subwords, words, index=index), np.reshape(expected, (len(words), 5)))


def test_rows_may_be_unaligned_and_read_only():
    subwords, index = make(0, slots=False)
    data = b"x" + subwords.rows.tobytes()
    rows = np.frombuffer(data, np.float32, offset=1).reshape(subwords.rows.shape)
    assert not rows.flags.aligned
    words = ["cats", "dogs"]
    np.testing.assert_array_equal(
        compose(subwords._replace(rows=rows), words, index=index), compose(subwords, words, index=index)
    )


def test_errors_name_the_value():
    with pytest.raises(InputError, match=r"bucket=0.*max_n=6"):
        ngram_table(["a"], min_n=3, max_n=6, bucket=0)
    with pytest.raises(InputError, match=r"\\ud800.*surrogate"):
        ngram_table(["a\ud800"], min_n=3, max_n=6, bucket=10)
