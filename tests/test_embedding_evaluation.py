import gensim
import numpy as np
import pytest
import scipy.stats
from gensim.test.utils import datapath
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.embeddings.evaluation import pearson, ranks, read_analogies, read_similarity, spearman
from seqjax.embeddings.subwords import Subwords, compose
from seqjax.embeddings.vectors import WordVectors
from seqjax.errors import InputError

SIMILARITY = ("wordsim353.tsv", "simlex999.txt")


def gensims(words, vectors):
    theirs = gensim.models.KeyedVectors(vectors.shape[1])
    theirs.add_vectors(words, vectors)
    return WordVectors(words, vectors), theirs


@pytest.fixture(scope="module")
def real():
    theirs = gensim.models.KeyedVectors.load_word2vec_format(datapath("lee_fasttext.vec"))
    return WordVectors(theirs.index_to_key, theirs.vectors), theirs


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Every 25th question of Google's file."""
    kept, path = [], tmp_path_factory.mktemp("questions") / "questions.txt"
    with open(datapath("questions-words.txt")) as file:
        for number, line in enumerate(file):
            if line.startswith(":") or number % 25 == 0:
                kept.append(line)
    path.write_text("".join(kept))
    return path


@pytest.fixture(scope="module")
def planted(questions):
    """Words of the questions in several spellings, with offsets that answer about half of the questions."""
    rng = np.random.default_rng(1)
    vectors, offset = {}, rng.normal(size=12)
    for _, section in read_analogies(questions):
        for a, b, c, d in section:
            for x, y in ((a, b), (c, d)):
                vectors.setdefault(x, rng.normal(size=12))
                vectors.setdefault(y, vectors[x] + offset + rng.normal(size=12) * 0.6)
    words = [word for word in vectors if rng.random() < 0.9]
    spelled = [*words, *(word.swapcase() for word in words[::2])]
    order = rng.permutation(len(spelled))
    noise = rng.normal(size=(len(spelled), 12)) * 0.05
    table = np.array([vectors.get(w, vectors.get(w.swapcase())) for w in spelled]) + noise
    return gensims([spelled[i] for i in order], table[order].astype(np.float32))


def assert_equal_counts(found, expected):
    total, sections = expected
    assert [s.name for s in found.sections] == [s["section"] for s in sections[:-1]]
    for ours, theirs in zip(found.sections, sections[:-1], strict=True):
        assert ours.correct == len(theirs["correct"])
        assert ours.asked == len(theirs["correct"]) + len(theirs["incorrect"])
    assert found.accuracy == pytest.approx(total)


@pytest.mark.parametrize("oov", ["skip", "wrong"])
@pytest.mark.parametrize("case", [True, False])
@pytest.mark.parametrize("restrict", [300_000, 600])
def test_analogies_equal_gensim(planted, questions, oov, case, restrict):
    ours, theirs = planted
    options = {"restrict_vocab": restrict, "case_insensitive": case}
    found = ours.evaluate_analogies(questions, oov=oov, **options)
    expected = theirs.evaluate_word_analogies(questions, dummy4unknown=oov == "wrong", **options)
    assert_equal_counts(found, expected)
    assert found.correct > 5


def test_all_of_googles_questions_equal_gensim(real):
    ours, theirs = real
    found = ours.evaluate_analogies(datapath("questions-words.txt"))
    assert_equal_counts(found, theirs.evaluate_word_analogies(datapath("questions-words.txt")))
    assert found.asked + found.oov == 19_544


@pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")
def test_3cosmul_equals_gensim(planted, questions):
    ours, theirs = planted
    # by its queries: its evaluation takes similarity_function, but does not use it
    asked = [q for _, section in read_analogies(questions) for q in section if all(word in ours for word in q)]
    correct = sum(theirs.most_similar_cosmul([b, c], [a], topn=1)[0][0] == d for a, b, c, d in asked)
    found = ours.evaluate_analogies(questions, method="mul", case_insensitive=False)
    assert (found.correct, found.asked) == (correct, len(asked))
    assert correct > 5


@pytest.fixture
def capitals():
    words = ["paris", "france", "rome", "italy", "walk", "walks", "run", "runs"]
    place, form = np.eye(8)[:4], np.eye(8)[4:]
    vectors = [place[0] + place[1], place[1], place[0] + place[2], place[2], form[1], form[0] + form[1], form[2]]
    return WordVectors(words, np.array([*vectors, form[0] + form[2]]))


def test_the_table(tmp_path, capitals):
    path = tmp_path / "few.txt"
    path.write_text(
        ": capitals\nFrance Paris Italy Rome\nfrance paris spain madrid\nparis france paris italy\n\n"
        ": empty\n: gram1-verbs\nwalk walks run runs\n"
    )
    found = capitals.evaluate_analogies(path)
    assert (found.correct, found.asked, found.oov) == (2, 3, 1)
    assert (found.semantic, found.syntactic, found.accuracy) == (1 / 2, 1.0, 2 / 3)
    assert str(found) == (
        "section      correct   asked  accuracy     OOV\n"
        "capitals           1       2     50.0%       1\n"
        "empty              0       0         -       0\n"
        "gram1-verbs        1       1    100.0%       0\n"
        "----------------------------------------------\n"
        "semantic           1       2     50.0%       1\n"
        "syntactic          1       1    100.0%       0\n"
        "total              2       3     66.7%       1\n"
        "restrict_vocab 8, case ignored, questions with OOV words left out"
    )
    assert str(capitals.evaluate_analogies(path, oov="wrong", case_insensitive=False)).endswith(
        "restrict_vocab 8, case matters, questions with OOV words counted as wrong"
    )


def test_questions_that_are_all_unknown(tmp_path, capitals):
    path = tmp_path / "unknown.txt"
    path.write_text(": capitals\na b c d\n")
    found = capitals.evaluate_analogies(path)
    assert (found.asked, found.oov) == (0, 1)
    assert np.isnan(found.accuracy)


@pytest.mark.parametrize("name", SIMILARITY)
@pytest.mark.parametrize("oov", ["skip", "zero"])
@pytest.mark.parametrize("options", [{}, {"restrict_vocab": 900, "case_insensitive": False}])
def test_similarity_equals_gensim(real, name, oov, options):
    ours, theirs = real
    found = ours.evaluate_similarity(datapath(name), oov=oov, **options)
    expected = theirs.evaluate_word_pairs(datapath(name), dummy4unknown=oov == "zero", **options)
    assert found.pearson == pytest.approx(expected[0].statistic, abs=1e-6)
    assert found.spearman == pytest.approx(expected[1].statistic, abs=1e-6)
    assert 100 * found.oov == pytest.approx(expected[2])


def test_case_prefers_the_frequent_spelling(tmp_path):
    vectors = np.array([[1, 0], [0, 1], [1, 0.1], [0, 1]], np.float32)
    ours, theirs = gensims(["Up", "down", "UP", "left"], vectors)
    path = tmp_path / "pairs.tsv"
    path.write_text("up\tDown\t1\nup\tUP\t5\nleft\tdown\t4\nleft\tup\t2\n")
    expected = theirs.evaluate_word_pairs(path)
    assert ours.evaluate_similarity(path) == pytest.approx((expected[0].statistic, expected[1].statistic, 0))


def test_unknown_words_are_composed_from_subwords(tmp_path):
    words = ["cat", "dog", "bird"]
    subwords = Subwords(np.random.default_rng(1).normal(size=(3 + 50, 4)).astype(np.float32), None, 3, 3, 50)
    index = {word: row for row, word in enumerate(words)}
    vectors = WordVectors(words, compose(subwords, words, index=index), subwords=subwords)
    path = tmp_path / "pairs.txt"
    pairs = [("cats", "Dog", 3.0), ("dogs", "birds", 5.0), ("cat", "bird", 1.0)]
    path.write_text("\n".join(f"{a} {b} {score}" for a, b, score in pairs))
    found = vectors.evaluate_similarity(path)
    cosines = [vectors.similarity(a, b.lower()) for a, b, _ in pairs]
    assert found == pytest.approx((scipy.stats.pearsonr(cosines, [3, 5, 1]).statistic, found.spearman, 0))


FORMATS = {
    "tabs": "old\tnew\t1.58\nNew York\tcity\t6\n",
    "spaces": "old new 1.58\nNew_York   city 6\n",
    "commas": "Word 1,Word 2,Human (mean)\nold,new,1.58\nNew_York,city, 6\n",
    "comments": "\ufeff# a comment\n# Word 1\tWord 2\told\t7\n\nold\tnew\t1.58\nNew_York\tcity\t6\n",
    "simlex": "word1\tword2\tPOS\tSimLex999\tconc(w1)\nold\tnew\tA\t1.58\t2.72\nNew_York\tcity\tN\t6\t4\n",
    "simverb": "old\tnew\tV\t1.58\tANTONYMS\nNew_York\tcity\tV\t6\tNONE\n",
    "rw": "old\tnew\t1.58\t1\t2\t3\r\nNew_York\tcity\t6\t5\t5\r\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_of_similarity(tmp_path, name):
    path = tmp_path / "pairs"
    path.write_text(FORMATS[name], encoding="utf-8", newline="")
    city = "New York" if name == "tabs" else "New_York"
    assert read_similarity(path) == [("old", "new", 1.58), (city, "city", 6.0)]


def test_files_of_gensim_are_read_whole():
    assert [len(read_similarity(datapath(name))) for name in SIMILARITY] == [353, 999]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("old\tnew\t1\nold\tnew\n", "line 2: 'old.tnew' is no pair"),
        ("# x\n\nold new 1\nold new good\n", "line 4: 'old new good' is no pair"),
        ("old\tnew\t1\nold\t\t2\n", "line 2: .* is no pair"),
        ("old new nan\nold new inf\n", "line 2"),
        ("word1 word2 score\n", "no pairs in it"),
        ("", "no pairs in it"),
        (b"old new 1\nol\xff new 2\n", "not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_malformed_similarity(tmp_path, content, message):
    check_malformed(read_similarity, tmp_path / "pairs.txt", content, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a b c d\n", "line 1: no section yet"),
        (": x\na b c d\na b c\n", "line 3: 'a b c' is no question"),
        (": x\na b c d e\n", "line 2"),
        (": x\n", "no questions"),
        (None, "cannot be read"),
    ],
)
def test_malformed_analogies(tmp_path, content, message):
    check_malformed(read_analogies, tmp_path / "questions.txt", content, message)


def check_malformed(read, path, content, message):
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_options_are_checked(capitals):
    with pytest.raises(InputError, match="oov: 'zero'; choose 'skip' or 'wrong'"):
        capitals.evaluate_analogies("x", oov="zero")
    with pytest.raises(InputError, match="oov: 'wrong'; choose 'skip' or 'zero'"):
        capitals.evaluate_similarity("x", oov="wrong")
    with pytest.raises(InputError, match="method: 'cos'; choose 'add' or 'mul'"):
        capitals.evaluate_analogies("x", method="cos")
    with pytest.raises(InputError, match="restrict_vocab: 0; pass at least 1"):
        capitals.evaluate_similarity("x", restrict_vocab=0)


def test_similarity_is_printed(real):
    assert str(real[0].evaluate_similarity(datapath("wordsim353.tsv"))) == "Pearson -0.120, Spearman -0.059, OOV 87.3%"


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), min_size=2, max_size=20))
def test_correlations_equal_scipy(pairs):
    x, y = np.array(pairs, np.float64).T
    np.testing.assert_array_equal(ranks(x), scipy.stats.rankdata(x))
    if np.ptp(x) and np.ptp(y):
        assert pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-12)
        assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
    else:
        assert np.isnan(pearson(x, y))
        assert np.isnan(spearman(x, y))


def test_too_few_pairs_have_no_correlation():
    assert np.isnan(pearson(np.ones(1), np.ones(1)))
    assert np.isnan(spearman(np.empty(0), np.empty(0)))
