"""word2vec, GloVe and fastText files: against gensim and its files, against loops, and damaged in every way."""

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.embeddings.formats import (
    load_fasttext,
    load_glove,
    load_vectors,
    load_word2vec,
    save_fasttext,
    save_glove,
    save_word2vec,
)
from seqjax.embeddings.subwords import FastTextHeader, Subwords, compose, ngram_table
from seqjax.embeddings.vectors import WordVectors
from seqjax.errors import InputError

WORDS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" \n"), min_size=1, max_size=5),
    min_size=1,
    max_size=4,
    unique=True,
)
# Every finite float32, by its bits: subnormals, -0, and bytes that are spaces and newlines.
FLOATS = st.integers(0, 2**32 - 1).map(lambda bits: np.uint32(bits).view(np.float32)).filter(np.isfinite)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """One for all examples of a property."""
    return tmp_path_factory.mktemp("formats")


@pytest.fixture
def write(tmp_path):
    def write(data, name="vectors"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def test_exponents_of_any_kind_are_text(write):
    for one in ("1E-5", "1e-5", "+1.0E-05"):
        path = write(f"2 3\nthe {one} 0.2 0.3\na 0.3 0.2 0.1\n".encode())
        np.testing.assert_allclose(load_vectors(path).vectors, [[1e-5, 0.2, 0.3], [0.3, 0.2, 0.1]], rtol=1e-6)


def test_words_of_glove_may_hold_spaces(write):
    path = write(b"the 0.1 0.2 0.3\n. . . 0.3 0.2 0.1\nat name@domain.com 1 2 3\n")
    assert load_glove(path).words == ["the", ". . .", "at name@domain.com"]
    with pytest.raises(InputError, match="line 2, byte 16: expected a word and 3 numbers, found 6"):
        load_glove(write(b"the 0.1 0.2 0.3\na 0.3 0.2 0.1b 1 2 3\n"))  # a newline is missing


def datapath(name):
    from gensim.test.utils import datapath

    return Path(datapath(name))


def same_bits(a, b):
    np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


# ---------------------------------------------------------------- word2vec and GloVe


@settings(max_examples=60)
@given(words=WORDS, d=st.integers(1, 4), data=st.data(), name=st.sampled_from(["text", "binary", "glove", "text.gz"]))
def test_saved_vectors_are_the_same_to_the_bit(directory, words, d, data, name):
    row = st.lists(FLOATS, min_size=d, max_size=d)
    rows = data.draw(st.lists(row, min_size=len(words), max_size=len(words)))
    vectors, path = WordVectors(words, np.array(rows, np.float32)), directory / name
    if name == "glove":
        save_glove(vectors, path)
        loaded = load_glove(path)
    else:
        save_word2vec(vectors, path, binary=name == "binary")
        loaded = load_word2vec(path, binary=name == "binary")
    assert loaded.words == words
    same_bits(loaded.vectors, vectors.vectors)
    assert [p.name for p in directory.iterdir() if p.name.endswith(".tmp")] == []


def test_text_is_the_shortest_that_gives_the_number_back(tmp_path):
    save_word2vec(WordVectors(["a", "é"], np.array([[0.1, 1], [1e-8, -3.4028235e38]], np.float32)), tmp_path / "x")
    assert (tmp_path / "x").read_text() == "2 2\na 0.1 1.0\né 1e-08 -3.4028235e+38\n"


@pytest.mark.parametrize(
    "text",
    [
        "2 2\na 1 2\nb -3 4e0\n",
        "2 2 \na 1.0 2.000000 \nb -3.0 4.0 \n",  # word2vec.c and fastText leave a space
        "2 2\r\na 1 2\r\nb -3 4\r\n",
        "2 2\na 1 2\nb -3 4",
        "2 2\na 1 2\n\nb -3 4\n\n",
    ],
)
def test_text_variants(write, text):
    loaded = load_word2vec(write(text.encode()))
    assert loaded.words == ["a", "b"]
    np.testing.assert_array_equal(loaded.vectors, [[1, 2], [-3, 4]])
    loaded = load_glove(write(text.split("\n", 1)[1].encode()))
    assert loaded.words == ["a", "b"]
    np.testing.assert_array_equal(loaded.vectors, [[1, 2], [-3, 4]])


@pytest.mark.parametrize("newline", [b"\n", b""])
def test_binary_with_and_without_newlines(write, newline):
    spaces = np.frombuffer(b" \n \n\n\n  ", "<f4")  # numbers that look like separators
    rows = [(b"</s>", spaces), (b"b", spaces[::-1]), ("\u00a0\u0085".encode(), np.ones(2, "<f4"))]
    data = b"3 2\n" + b"".join(word + b" " + row.tobytes() + newline for word, row in rows)
    loaded = load_word2vec(write(data), binary=True)
    assert loaded.words == ["</s>", "b", "\u00a0\u0085"]
    same_bits(loaded.vectors, np.stack([row for _, row in rows]))


def test_a_binary_file_larger_than_what_is_read_at_once(tmp_path):
    rng = np.random.default_rng(0)
    vectors = WordVectors([f"w{i}" for i in range(3000)], rng.normal(size=(3000, 200)).astype(np.float32))
    save_word2vec(vectors, tmp_path / "x", binary=True)
    loaded = load_word2vec(tmp_path / "x", binary=True)
    assert loaded.words == vectors.words
    same_bits(loaded.vectors, vectors.vectors)


def test_only_spaces_and_newlines_separate(write):
    words = ["a\u00a0b", "\u0085", "\u2028", "\t", "\u3000x"]
    loaded = load_word2vec(write("".join(["5 1\n", *(f"{word} 1\n" for word in words)]).encode()))
    assert loaded.words == words


def test_of_repeated_words_the_first_counts(write):
    with pytest.warns(UserWarning, match="vectors: 2 words come again, the first is 'a'"):
        loaded = load_word2vec(write(b"4 1\na 1\nb 2\na 3\nb 4\n"))
    assert loaded.words == ["a", "b"]
    np.testing.assert_array_equal(loaded.vectors, [[1], [2]])


def test_limit(write):
    path = write(b"3 1\na 1\nb 2\nc 3\n")
    assert load_word2vec(path, limit=2).words == ["a", "b"]
    assert load_word2vec(path, limit=9).words == ["a", "b", "c"]
    with pytest.raises(InputError, match="limit=0"):
        load_word2vec(path, limit=0)
    assert load_glove(write(b"a 1\nb 2\nc x\n"), limit=2).words == ["a", "b"]


def test_words_cut_within_a_character(write):
    path = write(b"2 1\na\xc3 1\nb 2\n")
    with pytest.raises(InputError, match=r"byte 4: expected a word in UTF-8, found b'a\\xc3'.*errors='replace'"):
        load_word2vec(path)
    assert load_word2vec(path, errors="replace").words == ["a\ufffd", "b"]
    assert load_word2vec(path, errors="ignore").words == ["a", "b"]
    again = load_word2vec(path, errors="surrogateescape")
    save_word2vec(again, path.with_name("again"))
    assert path.with_name("again").read_bytes() == b"2 1\na\xc3 1.0\nb 2.0\n"


def test_header_of_glove_is_skipped(write):
    loaded = load_glove(write(b"2 3\na 1 2 3\nb 4 5 6\n<unk> 7 8 9\n"))  # it does not count <unk>
    assert loaded.words == ["a", "b", "<unk>"]
    assert load_glove(write(b"7 3\n8 1\n")).words == ["7", "8"]


DAMAGED = {
    "empty": (b"", "byte 0: expected the header"),
    "glove": (b"a 1 2\nb 3 4\n", "load_glove"),
    "no newline": (b"1 1", "byte 0: expected the header"),
    "no words": (b"0 3\n", "promises 0 words"),
    "no dimensions": (b"3 0\na\nb\nc\n", "of 0 dimensions"),
    "huge": (b"123456789012345678 300\na 1\n", "no room"),
    "long": (b"1 123456789012345678\na 1\n", "no room"),
    "short row": (b"2 2\na 1 2\nb 3\n", "line 3, byte 10: expected a word and 2 numbers, found 1"),
    "long row": (b"2 2\na 1 2 3\nb 3 4\n", "line 2, byte 4: .*found 3"),
    "two spaces": (b"2 2\na 1  2\nb 3 4\n", "line 2, byte 4: .*found 3"),
    "tab": (b"2 2\na 1 2\nb 1\t2\n", "line 3, byte 10: .*found 1"),
    "words": (b"2 2\na 1 2\nb 1 x\n", "line 3, byte 10: expected 2 numbers.*b'x'"),
    "joined": (b"2 2\na 1 2\nb 1.5.3 2\n", "line 3, byte 10: expected 2 numbers"),
    "nothing": (b"2 2\na 1 2\nb  2\n", "line 3, byte 10: expected 2 numbers"),
    "zeros": (b"2 2\na 1 2\nb 1\0 2\n", "line 3, byte 10: expected 2 numbers"),
    "nan": (b"2 2\na 1 2\nb -nan 2\n", "vector of 'b' is not finite"),
    "large": (b"2 2\na 1 2\nb 1e99 2\n", "vector of 'b' is not finite"),
    "fewer": (b"3 1\na 1\nb 2\n", "expected 3 words as its header says, found the end of the file after 2"),
    "more": (b"1 1\na 1\nb 2\n", "expected 1 words as its header says, found another word at byte 8"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_text(write, damage):
    data, message = DAMAGED[damage]
    with pytest.raises(InputError, match=f"vectors: .*{message}"):
        load_word2vec(write(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"2 1\na 1234", "promises 2 words of 1 dimensions, which the file has no room for"),
        (b"2 1\na 1234\nb_______ 12", "byte 10: expected a word, a space and 4 bytes of numbers, found 12 bytes"),
        (b"2 1\na 1234\nb_________", "byte 10: expected a word"),
        (b"1 1\na 1234\nb 1234", "found another word at byte 10"),
        (b"3 1\na 1234\nbbbbbbb 1234\n", "found the end of the file after 2"),
        (b"1 1\na \xff\xff\xff\xff", "vector of 'a' is not finite"),
        (b"1 9999999\na " + bytes(100), "no room"),
        (b"1 1\n" + bytes(3 << 20), "byte 4: expected a word"),
    ],
)
def test_damaged_binary(write, data, message):
    with pytest.raises(InputError, match=f"vectors: .*{message}"):
        load_word2vec(write(data), binary=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "byte 0: expected a word and numbers"),
        (b"word\n", "byte 0: expected a word and numbers"),
        (b"a 1 2\nb 1\n", "line 2, byte 6"),
        (b"a 1 2\nb 1 inf\n", "vector of 'b' is not finite"),
    ],
)
def test_damaged_glove(write, data, message):
    with pytest.raises(InputError, match=f"vectors: .*{message}"):
        load_glove(write(data))


def test_text_and_binary_confused(write, tmp_path):
    save_word2vec(WordVectors(["a", "b"], np.full((2, 20), 0.1, np.float32)), tmp_path / "x", binary=True)
    with pytest.raises(InputError, match="binary=True"):
        load_word2vec(tmp_path / "x")


@pytest.mark.parametrize("binary", [False, True])
def test_a_cut_file_is_noticed(tmp_path, binary):
    path = tmp_path / "x"
    save_word2vec(
        WordVectors(["a", "éa", "c"], np.array([[0.5, 1.25], [3, 4e-9], [5, 6]], np.float32)), path, binary=binary
    )
    whole = path.read_bytes()
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        # Only the last newline may be missing; in text, digits of the very last number cannot be missed without it.
        if n >= len(whole) - (1 if binary else len(".0\n")):
            assert load_word2vec(path, binary=binary).words == ["a", "éa", "c"]
        else:
            with pytest.raises(InputError, match=str(path)):
                load_word2vec(path, binary=binary)


def test_compressed_files(tmp_path):
    rng = np.random.default_rng(0)
    vectors, path = WordVectors(["a", "b"], rng.normal(size=(2, 50)).astype(np.float32)), tmp_path / "x.gz"
    for binary in (False, True):
        save_word2vec(vectors, path, binary=binary)
        same_bits(load_word2vec(path, binary=binary).vectors, vectors.vectors)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(InputError, match=r"x\.gz: cannot be read"):
            load_word2vec(path, binary=binary)
    path.write_bytes(b"2 1\na 1\nb 1\n")
    with pytest.raises(InputError, match=r"x\.gz: cannot be read"):
        load_word2vec(path)


@pytest.mark.parametrize("load", [load_word2vec, load_glove, load_fasttext])
def test_files_that_cannot_be_read(tmp_path, load):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=f"{path}: cannot be read"):
            load(path)


@pytest.mark.parametrize("save", [save_word2vec, save_glove, lambda v, path: save_word2vec(v, path, binary=True)])
@pytest.mark.parametrize("word", ["a b", "a\nb", "\n", "a\ud800"])
def test_a_word_that_would_break_the_file_leaves_the_old_one(tmp_path, save, word):
    path = tmp_path / "new" / "x"
    save(WordVectors(["a"], np.ones((1, 2), np.float32)), path)
    old = path.read_bytes()
    with pytest.raises(InputError, match="word"):
        save(WordVectors(["b", word], np.ones((2, 2), np.float32)), path)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "name",
    [
        "euclidean_vectors.bin",
        "poincare_vectors.bin",
        "high_precision.kv.bin",
        "high_precision.kv.txt",
        "word2vec_pre_kv_c",
    ],
)
def test_gensim_reads_the_same_and_what_is_written(tmp_path, name):
    from gensim.models import KeyedVectors

    binary = name.endswith(".bin")
    ours = load_word2vec(datapath(name), binary=binary)
    theirs = KeyedVectors.load_word2vec_format(datapath(name), binary=binary)
    assert ours.words == theirs.index_to_key
    same_bits(ours.vectors, theirs.vectors)
    for binary in (False, True):
        save_word2vec(ours, tmp_path / "x", binary=binary)
        again = KeyedVectors.load_word2vec_format(tmp_path / "x", binary=binary)
        assert again.index_to_key == ours.words
        same_bits(again.vectors, ours.vectors)
        again.save_word2vec_format(str(tmp_path / "y"), binary=binary)
        same_bits(load_word2vec(tmp_path / "y", binary=binary).vectors, ours.vectors)


def test_glove_equals_gensim(tmp_path):
    from gensim.models import KeyedVectors

    text = datapath("test_glove.txt").read_bytes()
    (tmp_path / "x").write_bytes(b"%d 50\n" % text.count(b"\n") + text)  # gensim leaves headerless files open
    ours, theirs = load_glove(datapath("test_glove.txt")), KeyedVectors.load_word2vec_format(tmp_path / "x")
    assert ours.words == theirs.index_to_key
    same_bits(ours.vectors, theirs.vectors)


# ---------------------------------------------------------------- fastText

FASTTEXT = {  # name -> version, n-grams
    "crime-and-punishment": (12, (3, 6)),
    "toy-model": (12, (3, 6)),
    "toy-model-pretrained": (12, (3, 6)),
    "lee_fasttext_new": (11, (3, 6)),
    "lee_fasttext": (0, (3, 6)),
    "non_ascii_fasttext": (0, (2, 4)),
}


@pytest.mark.parametrize("name", FASTTEXT)
def test_fasttext_equals_gensim(tmp_path, name):
    from gensim.models.fasttext import load_facebook_model

    path = datapath(f"{name}.bin")
    ours, theirs = load_fasttext(path), load_facebook_model(str(path))
    version, ngrams = FASTTEXT[name]
    assert ours.subwords is not None
    assert ours.subwords.header is not None
    assert (ours.subwords.header.version, ours.subwords.min_n, ours.subwords.max_n) == (version, *ngrams)
    assert ours.words == theirs.wv.index_to_key
    assert ours.counts is not None
    assert ours.counts.tolist() == [theirs.wv.get_vecattr(word, "count") for word in ours.words]
    known = [i for i, word in enumerate(ours.words) if word != "</s>"]  # has n-grams in gensim, none in fastText
    np.testing.assert_allclose(ours.vectors[known], theirs.wv.vectors[known], rtol=0, atol=1e-6)
    for word in ("unseen", "слово", "日本", "ab"):
        np.testing.assert_allclose(ours[word], theirs.wv[word], rtol=0, atol=1e-6)
    same_bits(ours.context_vectors, theirs.syn1neg)
    save_fasttext(ours, tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["crime-and-punishment", "toy-model", "pang_lee_polarity_fasttext"])
def test_fasttext_text_is_that_of_fasttext(tmp_path, name):
    model = load_fasttext(datapath(f"{name}.bin"), errors="surrogateescape")
    save_fasttext(model, tmp_path / "x.vec")
    assert (tmp_path / "x.vec").read_bytes() == datapath(f"{name}.vec").read_bytes()
    text = load_word2vec(tmp_path / "x.vec", errors="surrogateescape")
    assert text.words == model.words
    np.testing.assert_allclose(text.vectors, model.vectors, rtol=0, atol=5e-6)


def test_supervised_model(tmp_path):
    path = datapath("pang_lee_polarity_fasttext.bin")
    with pytest.raises(InputError, match="byte 2,173: expected a word in UTF-8"):
        load_fasttext(path)
    model = load_fasttext(path, errors="surrogateescape")
    header = model.subwords.header
    assert sorted(header.labels) == ["__label__neg", "__label__pos"]
    assert not set(header.labels) & set(model.words)
    assert header.output.shape == (2, 100)
    assert model.context_vectors is None
    save_fasttext(model, tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == path.read_bytes()


class Quantised:
    """Random codes of a matrix, as bytes and decoded by a loop."""

    def __init__(self, rng, m, n, dsub, *, norms):
        nsubq = -(-n // dsub)
        codes, centroids = rng.integers(0, 256, (m, nsubq), np.uint8), rng.normal(size=256 * n).astype("<f4")
        last = n - (nsubq - 1) * dsub
        self.data = struct.pack("<Bqqi", norms, m, n, m * nsubq) + codes.tobytes()
        self.data += struct.pack("<4i", n, nsubq, dsub, last) + centroids.tobytes()
        self.matrix = np.zeros((m, n), np.float32)
        for i in range(m):
            for s in range(nsubq):
                width = last if s == nsubq - 1 else dsub
                begin = 256 * s * dsub + width * int(codes[i, s])
                self.matrix[i, s * dsub : s * dsub + width] = centroids[begin : begin + width]
        if norms:
            codes, centroids = rng.integers(0, 256, m, np.uint8), rng.normal(size=256).astype("<f4")
            self.data += codes.tobytes() + struct.pack("<4i", 1, 1, 1, 1) + centroids.tobytes()
            self.matrix *= centroids[codes][:, None]


class Dense:
    def __init__(self, rng, m, n):
        self.matrix = rng.normal(size=(m, n)).astype("<f4")
        self.data = struct.pack("<qq", m, n) + self.matrix.tobytes()


V, D, BUCKET = 4, 5, 7
NAMES = ["the", "naïve", "日本", "fox", "__label__a", "__label__b", "__label__c"]
VARIANTS = {  # version, loss, model, input, pruned rows, output
    "dense": (12, 2, 2, "dense", None, "dense"),
    "version 11": (11, 2, 1, "dense", None, "dense"),
    "old": (0, 2, 2, "dense", None, "dense"),
    "tree": (12, 1, 2, "dense", None, "dense"),
    "supervised": (12, 3, 3, "dense", None, "dense"),
    "supervised 11": (11, 3, 3, "dense", None, "dense"),
    "plain": (12, 3, 3, "codes", None, "dense"),
    "norms": (12, 3, 3, "norms", None, "dense"),
    "both": (12, 3, 3, "norms", None, "norms"),
    "pruned": (12, 3, 3, "norms", [5, 0, 3], "dense"),
    "all pruned": (12, 3, 3, "codes", [], "dense"),
}


def fasttext_file(variant):
    """The bytes of a small model, its input and output matrices."""
    version, loss, model, kind, pruned, output_kind = VARIANTS[variant]
    rng = np.random.default_rng(0)

    def matrix(kind, m):
        return Dense(rng, m, D) if kind == "dense" else Quantised(rng, m, D, 2, norms=kind == "norms")

    n_labels = 3 if model == 3 else 0
    source = matrix(kind, V + (BUCKET if pruned is None else len(pruned)))
    output = matrix(output_kind, n_labels if model == 3 else V)
    data = struct.pack("<2i", 793712314, version) if version else b""
    data += struct.pack("<12id", D, 5, 1, 1, 5, 2, loss, model, BUCKET, 2, 4, 100, 1e-4)
    data += struct.pack("<3iq", V + n_labels, V, n_labels, 99)
    data += struct.pack("<q", -1 if pruned is None else len(pruned)) if version else b""
    for i, name in enumerate(NAMES[: V + n_labels]):
        data += name.encode() + struct.pack("<xqb", 50 - i, i >= V)
    for row, bucket in enumerate(pruned or []):
        data += struct.pack("<2i", bucket, row)
    data += (bytes([kind != "dense"]) if version else b"") + source.data
    data += (bytes([output_kind != "dense"]) if version else b"") + output.data
    return data, source.matrix, output.matrix


@pytest.mark.parametrize("variant", VARIANTS)
def test_fasttext_variants(write, tmp_path, variant):
    _, loss, model, kind, pruned, _ = VARIANTS[variant]
    data, rows, output = fasttext_file(variant)
    loaded = load_fasttext(write(data))
    subwords, header = loaded.subwords, loaded.subwords.header
    assert loaded.words == NAMES[:V]
    assert loaded.counts.tolist() == [50, 49, 48, 47]
    same_bits(subwords.rows, rows)
    of_words = model < 3 and loss == 2
    same_bits(loaded.context_vectors if of_words else header.output, output)
    assert (header.output is None) == of_words == (loaded.context_vectors is not None)
    assert header.labels == (tuple(NAMES[V:]) if model == 3 else ())
    assert (header.loss, header.model, header.n_tokens, header.word_ngrams) == (loss, model, 99, 2)

    max_n = 0 if variant == "supervised 11" else 4
    for word in (*NAMES[:V], "unknown", "日"):
        buckets, _ = ngram_table([word], min_n=2, max_n=max_n, bucket=BUCKET)
        kept = buckets.tolist() if pruned is None else [pruned.index(b) for b in buckets if b in pruned]
        own = [NAMES.index(word)] if word in NAMES else []
        summands = rows[own + [V + slot for slot in kept]]
        expected = summands.mean(0, dtype=np.float64) if len(summands) else np.zeros(D)
        np.testing.assert_allclose(loaded[word], expected, rtol=0, atol=1e-6)

    again = tmp_path / "again.bin"
    if pruned is not None:
        with pytest.raises(InputError, match="pruned"):
            save_fasttext(loaded, again)
        return
    save_fasttext(loaded, again)
    if kind == "dense":
        assert again.read_bytes() == data
    else:  # is written decoded
        same_bits(load_fasttext(again).vectors, loaded.vectors)


@settings(max_examples=150)
@given(variant=st.sampled_from(list(VARIANTS)), share=st.floats(0, 1, exclude_max=True))
def test_a_cut_model_is_noticed(directory, variant, share):
    data, _, _ = fasttext_file(variant)
    path = directory / "cut.bin"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=str(path)):
        load_fasttext(path)


@settings(max_examples=200)
@given(
    at=st.integers(0, 159), byte=st.integers(0, 255), variant=st.sampled_from(["dense", "old", "supervised", "norms"])
)
def test_a_damaged_model_is_noticed_or_harmless(directory, at, byte, variant):
    data = bytearray(fasttext_file(variant)[0])
    data[at] = byte  # in the options, the dictionary, or the first numbers
    path = directory / "damaged.bin"
    path.write_bytes(data)
    try:
        shape = load_fasttext(path).vectors.shape
    except InputError:  # and nothing else
        return
    assert shape == (V, D)


def patched(variant, **fields):
    """A model file whose header says something else."""
    data = bytearray(fasttext_file(variant)[0])
    offsets = {"version": 4, "d": 8, "loss": 32, "bucket": 40, "max_n": 48, "size": 64, "v": 68, "n_pruned": 84}
    for field, value in fields.items():
        struct.pack_into("<q" if field == "n_pruned" else "<i", data, offsets[field], value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read"),
        (b"2 3\na 1 2 3\nb 1 2 3\n" * 9, "byte 0: expected the options of the training"),
        (gzip.compress(b"x" * 99, mtime=0), "gunzip"),
        (patched("dense", version=13), "byte 0: expected version 11 or 12, found 13"),
        (patched("dense", d=2**31 - 1), "found.*byte|byte .*expected a matrix of 11 x 2,147,483,647"),
        (patched("dense", d=0), "byte 8: expected the options of the training"),
        (patched("dense", loss=9), "byte 8: expected the options of the training"),
        (patched("dense", bucket=0), "byte 8: expected the options of the training"),
        (patched("dense", bucket=2**31 - 1), "expected a matrix of 2,147,483,651 x 5, found"),
        (patched("dense", size=5), "byte 64: expected the sizes of the dictionary"),
        (patched("dense", size=2**31 - 1, v=2**31 - 1), "byte 92: expected a dictionary of 2,147,483,647 words"),
        (patched("dense", n_pruned=2**62), "the buckets of 4,611,686,018,427,387,904 rows"),
        (patched("pruned", bucket=2**31 - 1), "a bucket, of 2,147,483,647, for each of 3 rows"),
        (patched("pruned", bucket=5), "a bucket, of 5, for each of 3 rows"),
        (fasttext_file("dense")[0] + b"\0", "expected the end of the file"),
        (fasttext_file("dense")[0].replace(b"fox\0", b"the\0"), "a word comes twice"),
    ],
)
def test_errors_of_fasttext_files(write, data, message):
    path = write(data)
    tracemalloc.start()
    with pytest.raises(InputError, match=message):
        load_fasttext(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def trained(bucket=200_000, **options):
    """A model as training leaves it: rows only for buckets that occur."""
    rng = np.random.default_rng(0)
    words = ["</s>", "cat", "été", "cats"]
    used = np.unique(ngram_table(words, min_n=3, max_n=6, bucket=bucket)[0])
    slots = np.full(bucket, -1, np.int32)
    slots[used] = rng.permutation(len(used))
    rows = rng.normal(size=(len(words) + len(used), 8)).astype(np.float32)
    subwords = Subwords(rows, slots, 3, 6, bucket, header=FastTextHeader(window=3, n_tokens=100))
    vectors = compose(subwords, words, index={word: i for i, word in enumerate(words)})
    arrays = {"counts": np.array([9, 7, 5, 5]), "context_vectors": rng.normal(size=(4, 8)).astype(np.float32)}
    return WordVectors(words, vectors, subwords=subwords, **{**arrays, **options})


def test_a_trained_model_is_written_for_fasttext(tmp_path):
    from gensim.models.fasttext import load_facebook_model

    model, path = trained(), tmp_path / "model.bin"
    save_fasttext(model, path)
    loaded, theirs = load_fasttext(path), load_facebook_model(str(path))
    assert loaded.words == model.words == theirs.wv.index_to_key
    assert (theirs.window, theirs.corpus_total_words) == (3, 100)
    unknown = ["catssss", "concatenate", "zzz"]  # some of their n-grams have rows, some have none
    same_bits(loaded.vectors, model.vectors)
    same_bits(loaded[unknown], model[unknown])
    same_bits(loaded.context_vectors, model.context_vectors)
    np.testing.assert_allclose([theirs.wv[word] for word in unknown], model[unknown], rtol=0, atol=1e-6)


def test_large_matrices_are_neither_built_nor_loaded(tmp_path):
    model, path = trained(), tmp_path / "model.bin"
    tracemalloc.start()
    save_fasttext(model, path)
    saving = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    load_fasttext(path)
    loading = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 6_400_000
    assert saving < 1_500_000
    assert loading < 500_000


def test_vectors_without_subwords_become_a_model(tmp_path):
    model = trained()
    plain = WordVectors(model.words, model.vectors, counts=model.counts, context_vectors=model.context_vectors)
    save_fasttext(plain, tmp_path / "x.bin")
    loaded = load_fasttext(tmp_path / "x.bin")
    same_bits(loaded.vectors, model.vectors)
    assert loaded.subwords.bucket == loaded.subwords.max_n == 0


def test_what_a_model_needs(tmp_path):
    for lacking in ("counts", "context_vectors"):
        with pytest.raises(InputError, match=f"{lacking} is None"):
            save_fasttext(trained(**{lacking: None}), tmp_path / "x.bin")
    with pytest.raises(InputError, match=r"'a\\x00'.*rename"):
        save_fasttext(
            WordVectors(["a\0"], np.ones((1, 2)), counts=np.ones(1, int), context_vectors=np.ones((1, 2))),
            tmp_path / "x.bin",
        )
    assert list(tmp_path.iterdir()) == []


def test_every_format_is_recognised(tmp_path):
    words = WordVectors(["gold", "tea"], np.array([[1.0, -2.0], [3.0, 4e-5]], np.float32))
    save_word2vec(words, tmp_path / "text.txt")
    save_word2vec(words, tmp_path / "vectors.bin", binary=True)
    save_word2vec(words, tmp_path / "text.vec.gz")
    save_glove(words, tmp_path / "glove.txt")
    for name in ("text.txt", "vectors.bin", "text.vec.gz", "glove.txt"):
        same_bits(load_vectors(tmp_path / name).vectors, words.vectors)
    assert load_vectors(datapath("crime-and-punishment.bin")).vectors.shape == (291, 5)
    with pytest.raises(InputError, match="none: cannot be read"):
        load_vectors(tmp_path / "none")
