"""fastText's character n-grams, beside gensim's hashes and a plain mean."""

import numpy as np
import pytest
from gensim.models.fasttext import ft_ngram_hashes

from seqjax.embeddings.subwords import Subwords, compose, ngram_table

WORDS = ["a", "at", "hello", "где", "日本語", "naïve", "x" * 20, "𝒳y"]


@pytest.mark.parametrize(("min_n", "max_n"), [(3, 6), (1, 2), (2, 2)])
def test_buckets_equal_gensims(min_n, max_n):
    flat, offsets = ngram_table(WORDS, min_n=min_n, max_n=max_n, bucket=1009)
    assert offsets[0] == 0
    assert offsets[-1] == len(flat)
    for i, word in enumerate(WORDS):
        assert sorted(flat[offsets[i] : offsets[i + 1]]) == sorted(ft_ngram_hashes(word, min_n, max_n, 1009))


def test_a_vector_is_the_mean_of_its_rows():
    rng = np.random.default_rng(0)
    known, bucket = ["hello", "at"], 50
    subwords = Subwords(rng.normal(size=(2 + bucket, 4)).astype(np.float32), None, 3, 6, bucket)
    found = compose(subwords, ["at", "unknown", "hello"], index={word: i for i, word in enumerate(known)})
    for vector, word in zip(found, ["at", "unknown", "hello"], strict=True):
        rows = [2 + h for h in ft_ngram_hashes(word, 3, 6, bucket)] + [i for i in range(2) if known[i] == word]
        np.testing.assert_allclose(vector, subwords.rows[rows].mean(0), rtol=1e-5, atol=1e-6)
