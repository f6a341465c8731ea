"""Spans equal conlleval's and seqeval's, classes scikit-learn's, answers those of SQuAD's rules."""

import string

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import example, given, settings
from seqeval.metrics import sequence_labeling, v1
from seqeval.scheme import IOB2, IOBES

from seqjax import metrics
from seqjax.errors import InputError

STRICT = {"BIO": IOB2, "BIOES": IOBES}


def corpora(letters):
    """Tags of some sentences twice, the second time with some changed. Most of them are malformed."""
    tag = st.sampled_from(["O", "O", *(f"{letter}-{kind}" for letter in letters for kind in ("X", "Y", "X-Y"))])
    word = st.tuples(tag, st.one_of(st.none(), st.none(), tag)).map(lambda pair: (pair[0], pair[1] or pair[0]))
    sentence = st.lists(word, min_size=1, max_size=8).map(lambda words: tuple(zip(*words, strict=True)))
    return st.lists(sentence, min_size=1, max_size=3)


def chunks(tags):
    """The chunks by the rules of conlleval for B, I and O: all stretches of words are tried."""

    def kind(i):
        return tags[i][2:]

    def begins(i):
        if tags[i][0] == "B":
            return True
        return tags[i][0] == "I" and (i == 0 or tags[i - 1] == "O" or kind(i - 1) != kind(i))

    found = set()
    for start in range(len(tags)):
        for stop in range(start + 1, len(tags) + 1):
            goes_on = all(tags[i] != "O" and not begins(i) for i in range(start + 1, stop))
            ends = stop == len(tags) or tags[stop] == "O" or begins(stop)
            if begins(start) and goes_on and ends:
                found.add((kind(start), start, stop))
    return found


@pytest.mark.fast
@settings(max_examples=200)
@given(corpora("BI"))
def test_spans_are_the_chunks_of_conlleval(corpus):
    gold, predicted = ([list(tags[side]) for tags in corpus] for side in (0, 1))
    counts = {}
    for tags, others in zip(gold, predicted, strict=True):
        right, found = chunks(tags), chunks(others)
        assert metrics.spans(tags) == sorted(right, key=lambda chunk: chunk[1])
        for place, listed in enumerate((right & found, found, right)):
            for kind, _, _ in listed:
                counts.setdefault(kind, [0, 0, 0])[place] += 1
    report = metrics.span_report(gold, predicted)
    assert list(report.types) == sorted(counts)
    for scores, (correct, found, right) in zip(
        (*report.types.values(), report.micro),
        (*(counts[kind] for kind in sorted(counts)), [sum(row[i] for row in counts.values()) for i in range(3)]),
        strict=True,
    ):
        precision, recall = correct / found if found else 0, correct / right if right else 0
        f1 = 2 * precision * recall / (precision + recall) if correct else 0
        assert scores == pytest.approx((precision, recall, f1, right))
    assert metrics.span_f1(gold, predicted) == report.micro[:3]


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
@settings(max_examples=100)
@given(st.data())
def test_spans_are_the_entities_of_seqeval(scheme, data):
    corpus = data.draw(corpora(scheme.replace("O", "")))
    gold, predicted = ([list(tags[side]) for tags in corpus] for side in (0, 1))
    for strict in (False, True):
        # seqeval's f1_score calls the former for mode="strict", the latter by default.
        measure = (v1 if strict else sequence_labeling).precision_recall_fscore_support
        options = {"zero_division": 0} | ({"scheme": STRICT[scheme]} if strict else {})
        report = metrics.span_report(gold, predicted, scheme=scheme, strict=strict)
        if report.types:
            theirs = measure(gold, predicted, **options)
            np.testing.assert_allclose(np.array(list(report.types.values())).T, theirs, rtol=1e-12)
            assert report.micro == pytest.approx(measure(gold, predicted, average="micro", **options))
        assert metrics.span_f1(gold, predicted, scheme=scheme, strict=strict) == report.micro[:3]


def test_spans_of_iob1_and_of_hyphens():
    assert metrics.spans(["I-A", "B-A", "I-A-B", "O"]) == [("A", 0, 1), ("A", 1, 2), ("A-B", 2, 3)]
    assert metrics.spans(["B-A", "E-A", "E-A", "S-B"], scheme="BIOES", strict=True) == [("A", 0, 2), ("B", 3, 4)]
    assert metrics.spans([]) == []
    assert metrics.span_f1([["O"]], [["O"]]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("gold", "predicted", "options", "message"),
    [
        ([["O"]], [["E-A"]], {}, "tag 'E-A': is none of BIO"),
        ([["O"]], [["B"]], {}, "tag 'B': is none of BIO"),
        ([["O"]], [["B-"]], {}, "tag 'B-': is none of BIO"),
        ([["O"]], [["BI-A"]], {}, "tag 'BI-A'"),
        ([["O-A"]], [["O"]], {"scheme": "BIOES"}, "tag 'O-A': is none of BIOES"),
        ([["O"]], [["O"]], {"scheme": "BILOU"}, "scheme='BILOU'.*choose one of BIO, BIOES"),
        ([["O"], ["O"]], [["O"], []], {}, r"gold\[1\] has 1 tags, predicted\[1\] 0"),
        ([["O"]], [], {}, "gold has 1 sentences, predicted 0"),
        ([], [], {}, "nothing to measure"),
    ],
)
def test_wrong_tags(gold, predicted, options, message):
    with pytest.raises(InputError, match=message):
        metrics.span_f1(gold, predicted, **options)


def same_as_scikit_learn(report, gold, predicted, labels):
    ids = list(range(len(labels)))
    for average, found in ((None, report.classes.values()), ("micro", 0), ("macro", 0), ("weighted", 0)):
        theirs = sklearn.metrics.precision_recall_fscore_support(
            gold, predicted, labels=ids, average=average, zero_division=0
        )
        if average is None:
            np.testing.assert_allclose(np.array(list(found)).T, theirs, rtol=1e-12)
        else:
            np.testing.assert_allclose(getattr(report, average)[:3], theirs[:3], rtol=1e-12)
            assert getattr(report, average).support == sum(scores.support for scores in report.classes.values())
    assert list(report.classes) == labels
    assert report.accuracy == pytest.approx(sklearn.metrics.accuracy_score(gold, predicted))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1))
def test_one_label_a_text(rows):
    gold, predicted = np.array(rows).T
    report = metrics.classification_report(gold, predicted, list("abcde"))
    same_as_scikit_learn(report, gold, predicted, list("abcde"))
    assert report.micro[:3] == (report.accuracy,) * 3
    table = metrics.confusion_matrix(gold, predicted, 5)
    for i in range(5):
        for j in range(5):
            assert table[i, j] == sum(row == (i, j) for row in rows)


@settings(max_examples=40)
@given(st.lists(st.tuples(*[st.booleans()] * 6), min_size=1))
def test_several_labels_a_text(rows):
    gold, predicted = np.split(np.array(rows), 2, axis=1)
    report = metrics.classification_report(gold, predicted, list("abc"))
    same_as_scikit_learn(report, gold, predicted, list("abc"))


@pytest.mark.fast
def test_classes_on_the_device():
    gold, predicted = jnp.array([0, 1, 1], jnp.int8), jnp.array([0, 1, 0], jnp.int8)
    report = metrics.classification_report(gold, predicted, ["a", "b"])
    assert report.classes["b"] == (1.0, 0.5, pytest.approx(2 / 3), 2)
    unsigned = np.array([0, 1], np.uint64), np.array([1, 1], np.uint64)
    assert metrics.confusion_matrix(*unsigned, 2).tolist() == [[0, 1], [0, 1]]
    wide = metrics.confusion_matrix(gold, predicted, 200)  # more cells than an int8 has numbers
    assert (wide.shape, wide.sum(), wide[1, 0]) == ((200, 200), 3, 1)


@pytest.mark.parametrize(
    ("gold", "predicted", "message"),
    [
        ([0, 1], [0], r"gold \(2,\) and predicted \(1,\)"),
        ([], [], "nothing to measure"),
        ([0, 2], [0, 1], "gold: has ids from 0 to 2, but there are 2 classes"),
        ([0, 1], [-1, 1], "predicted: has ids from -1 to 1"),
        ([0.0], [0.0], r"gold: float64 \(1,\) are no ids"),
        ([[1, 0]], [[1, 0]], r"are not bool \[N, 2\]"),
        ([[True]], [[True]], r"are not bool \[N, 2\]"),
        ([[[True]]], [[[True]]], r"are not both \[N\] or both"),
    ],
)
def test_wrong_classes(gold, predicted, message):
    with pytest.raises(InputError, match=message):
        metrics.classification_report(gold, predicted, ["a", "b"])


def test_classes_of_one_name():
    with pytest.raises(InputError, match="two are equal"):
        metrics.classification_report([0], [0], ["a", "a"])
    with pytest.raises(InputError, match="are no ids"):
        metrics.confusion_matrix([[True]], [[True]], 1)


def slow_answer(text):
    """The words of an answer, letter by letter."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    # An article is cut out between whatever is no letter, digit or underscore.
    words, word = [], ""
    for letter in [*kept, " "]:
        if letter.isalnum() or letter == "_":
            word += letter
            continue
        words += [" " if word in ("a", "an", "the") else word, letter]
        word = ""
    return "".join(words).split()


def slow_f1(words, other):
    common, left = 0, list(other)
    for word in words:
        if word in left:
            left.remove(word)
            common += 1
    if common == 0:
        return 0
    precision, recall = common / len(words), common / len(other)
    return 2 * precision * recall / (precision + recall)


PARTS = [
    "a",
    "an",
    "the",
    "The",
    "cat",
    "Cat's",
    "dog",
    "a-b",
    "“the”",
    "the_",
    "U.S.",
    "é",
    "$12",
    "!",
    "\u00a0",
    "\n",
]
ANSWERS = st.lists(st.sampled_from(PARTS), max_size=6).map(" ".join)


@settings(max_examples=200)
@given(st.lists(st.tuples(ANSWERS, st.lists(ANSWERS, min_size=1, max_size=3)), min_size=1, max_size=4))
@example([("the", ["a"])])  # no words on both sides: exact, but F1 0
def test_answers(corpus):
    exact, f1 = [], []
    for text, references in corpus:
        words, others = slow_answer(text), [slow_answer(reference) for reference in references]
        exact.append(any(words == other for other in others))
        f1.append(max(slow_f1(words, other) for other in others))
    found = metrics.squad_scores(*([row[i] for row in corpus] for i in (0, 1)))
    assert found.exact_match == pytest.approx(np.mean(exact))
    assert found.f1 == pytest.approx(np.mean(f1))


def test_wrong_answers():
    with pytest.raises(InputError, match="nothing to measure"):
        metrics.squad_scores([], [])
    with pytest.raises(InputError, match=r"references\[0\]=\[\]"):
        metrics.squad_scores(["a"], [[]])
