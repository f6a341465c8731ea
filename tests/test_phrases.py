"""Phrases beside gensim's, and as a corpus."""

import jax
import pytest
from gensim.models import phrases as gensim_phrases
from gensim.test.utils import datapath

from seqjax.embeddings import Word2VecConfig, count_words, train_word2vec
from seqjax.embeddings.phrases import PhraseCorpus, find_phrases, join_phrases
from seqjax.errors import InputError

CORPUS = datapath("lee_background.cor")
CONNECTORS = gensim_phrases.ENGLISH_CONNECTOR_WORDS
CITY = [["new", "york", "city", "is", "new"], ["in", "new", "york", "city"], ["york", "is", "in", "england"]]


@pytest.mark.parametrize(
    ("scoring", "threshold", "min_count"),
    [("default", 10.0, 1), ("default", 0.5, 5), ("npmi", 0.5, 1), ("npmi", -1.0, 5)],
)
@pytest.mark.parametrize("connector_words", [frozenset(), CONNECTORS], ids=["plain", "connectors"])
def test_equals_gensim(scoring, threshold, connector_words, min_count):
    options = {"scoring": scoring, "threshold": threshold, "min_count": min_count, "connector_words": connector_words}
    with open(CORPUS, encoding="utf-8") as file:
        corpus = [line.split() for line in file]
    theirs = gensim_phrases.Phrases(corpus, **options).freeze()
    ours = find_phrases(corpus, **options)
    assert {"_".join(phrase): score for phrase, score in ours.scores.items()} == pytest.approx(theirs.phrasegrams)
    assert len(ours.scores) > 100
    assert [join_phrases(ours, sentence) for sentence in corpus] == [theirs[sentence] for sentence in corpus]


def test_a_path_and_lists_give_the_same(tmp_path):
    path = tmp_path / "city.txt"
    path.write_text("\n".join(map(" ".join, CITY)))
    assert find_phrases(path, min_count=1, threshold=1.0) == find_phrases(CITY, min_count=1, threshold=1.0)


def test_a_joined_corpus_can_be_read_again_and_gives_longer_phrases():
    phrases = find_phrases(CITY, min_count=1, threshold=1.0, delimiter=" ")
    assert phrases.scores == {("new", "york"): pytest.approx(14 / 9), ("york", "city"): pytest.approx(14 / 6)}
    corpus = PhraseCorpus(phrases, CITY)
    assert list(corpus) == list(corpus)
    assert next(iter(corpus)) == ["new york", "city", "is", "new"]
    longer = PhraseCorpus(find_phrases(corpus, min_count=1, threshold=1.0, delimiter=" "), corpus)
    assert list(longer)[1] == ["in", "new york city"]


def test_connectors_belong_to_the_phrase_between_their_neighbours():
    corpus = [["the", "bank", "of", "the", "west", "of"]] * 3
    phrases = find_phrases(corpus, min_count=1, threshold=0.1, connector_words={"of", "the"})
    assert phrases.scores == {("bank", "of", "the", "west"): 2 / 9 * 3}
    assert join_phrases(phrases, corpus[0]) == ["the", "bank_of_the_west", "of"]
    assert join_phrases(phrases, []) == []


def test_phrases_get_vectors():
    corpus = PhraseCorpus(find_phrases(CITY * 9, min_count=9, threshold=0.1), CITY * 9)
    vectors = train_word2vec(corpus, Word2VecConfig(vector_size=8, epochs=1), key=jax.random.key(0))
    assert "new_york" in vectors
    assert vectors.counts.sum() == count_words(corpus).total()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_count": 0}, "min_count=0; it must be at least 1"),
        ({"threshold": 0.0}, "threshold=0.0; with scoring='default' it must be above 0"),
        ({"scoring": "npmi"}, "threshold=10.0; scores of npmi lie between -1 and 1: try 0.5"),
    ],
)
def test_a_bad_option_is_named(options, message):
    with pytest.raises(InputError, match=message):
        find_phrases(CITY, **options)
