import json
import math
import sys
from collections import Counter
from itertools import pairwise, product, repeat

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqjax.errors import InputError
from seqjax.text import (
    EOS,
    SPECIALS,
    UNK,
    BPETokenizer,
    ByteTokenizer,
    Tokenizer,
    load_tokenizer,
    save_tokenizer,
    split_words,
    train_tokenizer,
)
from seqjax.text.tokenizers import _join

KINDS = ("char", "byte", "word", "space", "bpe")
ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too


@given(ANY_TEXT)
def test_char_decode_inverts_encode(text):
    tokenizer = train_tokenizer("char", [text])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unknown(text) == []


@given(st.text())
def test_byte_decode_inverts_encode(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(text.encode())


@given(text=st.text(), seen=st.text())
def test_bpe_decode_inverts_encode(text, seen):
    """Whatever it was trained on."""
    tokenizer = train_tokenizer("bpe", [seen])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unknown(text) == []


@given(text=st.text(), kind=st.sampled_from(("word", "space")))
def test_word_spacing_settles_after_one_decode(text, kind):
    tokenizer = train_tokenizer(kind, [text])
    ids = tokenizer.encode(text)
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(ids)), ids)


@given(text=ANY_TEXT, kind=st.sampled_from(KINDS))
def test_saved_tokenizer_is_the_same(tmp_path_factory, text, kind):
    path = tmp_path_factory.mktemp("tokenizer") / "run" / "tokenizer.json"
    tokenizer = train_tokenizer(kind, [text])
    save_tokenizer(tokenizer, path)
    assert load_tokenizer(path) == tokenizer
    assert [entry.name for entry in path.parent.iterdir()] == ["tokenizer.json"]


@given(pieces=st.lists(st.text()), kind=st.sampled_from(KINDS), data=st.data())
def test_vocabulary_does_not_depend_on_the_order_of_the_texts(pieces, kind, data):
    shuffled = data.draw(st.permutations(pieces))
    assert train_tokenizer(kind, pieces) == train_tokenizer(kind, iter(shuffled))


@given(text=st.text(), seen=st.text())
def test_unknown_characters_are_those_that_encode_as_unk(text, seen):
    tokenizer = train_tokenizer("char", [seen])
    ids = tokenizer.encode(text)
    assert [char for char, i in zip(text, ids, strict=True) if i == UNK] == [char for char in text if char not in seen]
    assert tokenizer.unknown(text) == list(dict.fromkeys(char for char in text if char not in seen))


@pytest.mark.parametrize("kind", KINDS)
def test_interface(kind):
    tokenizer = train_tokenizer(kind, ["To be, or not to be"])
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.kind == kind
    assert tokenizer.vocab[:4] == SPECIALS
    assert tokenizer.vocab_size == len(tokenizer.vocab) == len(set(tokenizer.vocab))
    ids = tokenizer.encode("to be")
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == tokenizer.decode(jnp.asarray(ids)) == "to be"
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_cannot_be_typed(kind):
    text = "<eos> <pad> <unk>"
    tokenizer = train_tokenizer(kind, [text])
    if kind == "space":  # there "<unk>" is how a file spells an unknown word
        assert tokenizer.encode(text).tolist() == [UNK] * 3
        assert tokenizer.vocab == SPECIALS
    else:
        assert min(tokenizer.encode(text)) > EOS


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("char", "a\ufffdb"),
        ("byte", "a\ufffdb"),
        ("word", "a <unk> b"),
        ("space", "a <unk> b"),
        ("bpe", "a\ufffdb"),
    ],
)
def test_decode_drops_specials_and_shows_unk(kind, expected):
    tokenizer = train_tokenizer(kind, ["a b"])
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    assert tokenizer.decode([2, 0, a, 1, b, 3]) == expected


def test_byte_decode_replaces_broken_characters():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


def test_byte_vocabulary_is_readable():
    vocab = ByteTokenizer().vocab
    assert (len(vocab), vocab[4 + ord("A")], vocab[4 + 10]) == (260, "A", "<0x0A>")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I don't.", ["I", "don't", "."]),
        ("don’t rock-n-roll", ["don’t", "rock", "-", "n", "-", "roll"]),
        ("a\r\n\n  b\t c", ["a", "\n", "\n", "b", "c"]),
        ("हिन्दी cafe\u0301!", ["हिन्दी", "cafe\u0301", "!"]),
    ],
)
def test_split_words(text, words):
    assert split_words(text) == words


def test_word_spacing():
    text = 'JULIET:\nO Romeo, (wherefore) art thou "Romeo"?\n\nDon\'t!'
    tokenizer = train_tokenizer("word", [text])
    assert tokenizer.decode(tokenizer.encode(text)) == 'JULIET:\nO Romeo, (wherefore) art thou " Romeo "?\n\nDon\'t!'


def test_text_between_spaces_is_kept_as_it_is():
    text = "mr. <unk> is n't \n  chairman of N.V.\n\n"
    tokenizer = train_tokenizer("space", [text])
    assert [tokenizer.vocab[i] for i in tokenizer.encode(text)] == [
        *("mr.", "<unk>", "is", "n't", "\n", "chairman", "of", "N.V.", "\n", "\n")
    ]
    assert tokenizer.decode(tokenizer.encode(text)) == "mr. <unk> is n't\nchairman of N.V.\n\n"


def plain_bpe(word, merges):
    """Join the pair that was learned first, wherever it stands, until none is left."""
    parts = list(word)
    while pairs := [pair for pair in merges if pair in pairwise(parts)]:
        left, right = pairs[0]
        joined, i = [], 0
        while i < len(parts):
            both = parts[i : i + 2] == [left, right]
            joined.append(left + right if both else parts[i])
            i += 2 if both else 1
        parts = joined
    return parts


@pytest.mark.fast
def test_bpe_joins_pairs_in_the_order_of_its_merges():
    text = "she sells sea shells on the sea shore, the shells she sells are sea shells"
    tokenizer = train_tokenizer("bpe", [text], max_size=275)
    assert tokenizer.vocab_size == 275
    for word in ("she", "shells", "shellsea", "ashore", "thesis"):
        assert [tokenizer.vocab[i] for i in tokenizer.encode(word)] == plain_bpe(word, tokenizer.merges)
    # The most frequent pair comes first; the words of the text have become single tokens, their spaces with them.
    assert tokenizer.merges[0] == ("Ġ", "s")
    assert tokenizer.decode(tokenizer.encode(" shells")[:1]) == " shells"


def test_bpe_bounds():
    assert train_tokenizer("bpe", ["ab ab ab cd"], min_count=3).merges == (("a", "b"),)
    assert len(train_tokenizer("bpe", ["abcdefgh"], max_size=262).merges) == 2


def test_bpe_merges_that_make_the_same_token():
    tokenizer = BPETokenizer((("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")))
    assert tokenizer.vocab[260:] == ("ab", "bc", "abc")
    assert tokenizer.decode(tokenizer.encode("abcbc")) == "abcbc"


def test_bpe_replaces_what_utf8_cannot_spell():
    tokenizer = train_tokenizer("bpe", ["a\ud800b"])
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_bpe_without_its_package(monkeypatch, tmp_path):
    path = tmp_path / "tokenizer.json"
    save_tokenizer(train_tokenizer("bpe", ["ab"]), path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for call in (lambda: train_tokenizer("bpe", ["ab"]), lambda: load_tokenizer(path)):
        with pytest.raises(InputError, match=r'run: pip install "seqjax\[text\]"'):
            call()


def test_vocabulary_order():
    assert train_tokenizer("char", ["zza", "é"]).vocab[4:] == ("a", "z", "é")
    assert train_tokenizer("word", ["b a", "c b"]).vocab[4:] == ("b", "a", "c")
    assert train_tokenizer("word", "b a").vocab[4:] == ("a", "b")


def test_min_count_and_max_size():
    assert train_tokenizer("char", ["aab"], min_count=2).vocab[4:] == ("a",)
    assert train_tokenizer("char", ["zzyx"], max_size=6).vocab[4:] == ("x", "z")
    assert train_tokenizer("word", ["z z y x"], max_size=6).vocab[4:] == ("z", "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "unigram"}, "kind: no tokenizer 'unigram'; choose one of char, byte, word, space, bpe"),
        (
            {"kind": "bpe", "max_size": 260},
            "max_size: 260 leaves no room beside the 4 special tokens and the 256 bytes",
        ),
        ({"kind": "char", "min_count": 0}, "min_count: 0"),
        ({"kind": "word", "max_size": 4}, "max_size: 4"),
    ],
)
def test_bad_training_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        train_tokenizer(arguments.pop("kind"), ["a"], **arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ids", [[-1], [4, 10_000], [[4, 4]]])
def test_bad_ids(kind, ids):
    with pytest.raises(InputError, match="ids"):
        train_tokenizer(kind, ["a"]).decode(np.array(ids))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a tokenizer file"),
        (b"\xff\xfe", "not a tokenizer file"),
        (b"[1]", "not a tokenizer file"),
        (b'{"version": 2}', "of version 2, this seqjax reads version 1"),
        (b'{"version": 1, "kind": "char"}', "damaged"),
        (b'{"version": 1, "kind": "bpe", "vocab": ["<pad>", "<unk>", "<sos>", "<eos>"]}', "damaged"),
        (b'{"version": 1, "kind": "bpe", "vocab": ["a", "b"], "merges": [["a", "b"]]}', "damaged"),
        (b'{"version": 1, "kind": "bpe", "vocab": ["a"], "merges": [["a", "b"]]}', "damaged"),
        (b'{"version": 1, "kind": "bpe", "vocab": ["a"], "merges": [["a"], "aa"]}', "damaged"),
        (b'{"version": 1, "kind": "char", "vocab": ["a"]}', "damaged"),
        (b'{"version": 1, "kind": "char", "vocab": ["<pad>", "<unk>", "<sos>", "<eos>", "ab"]}', "damaged"),
        (b'{"version": 1, "kind": "word", "vocab": ["<pad>", "<unk>", "<sos>", "<eos>", "a", "a"]}', "damaged"),
        (b'{"version": 1, "kind": "byte", "vocab": ["<pad>", "<unk>", "<sos>", "<eos>", "a"]}', "damaged"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        load_tokenizer(path)
    assert str(path) in str(raised.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot read the tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="cannot read the tokenizer"):
        load_tokenizer(tmp_path)


def test_file_content(tmp_path):
    tokenizer = train_tokenizer("char", ["é"])
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert content == tokenizer.to_json() == {"version": 1, "kind": "char", "vocab": [*SPECIALS, "é"]}


# --- BPE dropout


def exact_dropout(parts, merges, dropout):
    """Cuts of a word and their probabilities: Algorithm 1 of Provilkov et al., over every set of dropped pairs."""
    places = [i for i, pair in enumerate(pairwise(parts)) if pair in merges]
    found = Counter()
    for kept in product((False, True), repeat=len(places)):
        probability = math.prod(1 - dropout if keep else dropout for keep in kept)
        left = [i for i, keep in zip(places, kept, strict=True) if keep]
        if not left:
            found[parts] += probability
            continue
        i = min(left, key=lambda i: (merges.index((parts[i], parts[i + 1])), i))
        joined = (*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :])
        for cut, share in exact_dropout(joined, merges, dropout).items():
            found[cut] += probability * share
    return found


@pytest.mark.parametrize("dropout", [0.1, 0.6])
def test_bpe_dropout_cuts_words_as_often_as_the_paper_says(dropout):
    tokenizer = train_tokenizer("bpe", ["banana bandana ananas"] * 2, max_size=270)
    n_words = 4000
    ids = tokenizer.encode(" banana" * n_words, dropout=dropout, rng=np.random.default_rng(0))
    cuts = "".join(f"|{tokenizer.vocab[i]}" for i in ids).split("|Ġ")[1:]
    found = Counter(tuple(f"Ġ{cut}".split("|")) for cut in cuts)
    expected = exact_dropout(tuple("Ġbanana"), tokenizer.merges, dropout)
    assert sum(expected.values()) == pytest.approx(1)
    assert found.keys() <= expected.keys()
    assert len(expected) > 10
    for cut, probability in expected.items():
        deviation = math.sqrt(n_words * probability * (1 - probability))
        assert abs(found[cut] - n_words * probability) < 4 * deviation + 1, cut


@pytest.mark.fast
@given(text=st.text(), seen=st.text(), seed=st.integers(0, 2**32), dropout=st.floats(0, 1))
def test_bpe_dropout_keeps_the_text(text, seen, seed, dropout):
    tokenizer = train_tokenizer("bpe", [text, seen], max_size=300)
    ids = tokenizer.encode(text, dropout=dropout, rng=np.random.default_rng(seed))
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    # The same ids from the same generator, also from a tokenizer that remembers nothing yet.
    again = BPETokenizer(tokenizer.merges).encode(text, dropout=dropout, rng=np.random.default_rng(seed))
    np.testing.assert_array_equal(ids, again)


@given(text=st.text(), seen=st.text())
def test_bpe_dropout_of_everything_gives_bytes(text, seen):
    tokenizer = train_tokenizer("bpe", [text, seen], max_size=300)
    ids = tokenizer.encode(text, dropout=1.0, rng=np.random.default_rng(0))
    assert len(ids) == len(text.encode())
    np.testing.assert_array_equal(ids, BPETokenizer(()).encode(text))


@given(word=st.text("ab", min_size=1, max_size=12), data=st.data())
def test_bpe_dropout_of_nothing_joins_as_encode_does(word, data):
    """With any merges, among them such that make the same token or come before those they need."""
    tokens, merges = ["a", "b"], []
    for _ in range(data.draw(st.integers(0, 8))):
        merges.append(tuple(data.draw(st.sampled_from(tokens)) for _ in range(2)))
        tokens.append("".join(merges[-1]))
    tokenizer = BPETokenizer(tuple(data.draw(st.permutations(merges))))
    letters = BPETokenizer(()).encode(word).tolist()
    joined = _join(letters, tokenizer._ranks, 0.0, repeat(0.0))
    assert joined == tokenizer.encode(word).tolist() == tokenizer.encode(word, dropout=0.0).tolist()
    assert _join(letters, tokenizer._ranks, 1.0, repeat(0.9)) == letters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropout": -0.1}, "dropout: -0.1 is not between 0 and 1"),
        ({"dropout": float("nan")}, "dropout: nan"),
        ({"dropout": 0.1}, "rng: dropout=0.1 needs a generator"),
    ],
)
def test_bpe_dropout_rejects(arguments, message):
    with pytest.raises(InputError, match=message):
        BPETokenizer(()).encode("a", **arguments)
