import importlib.metadata
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqjax.data import BPTTWindows, TextRange, batches, cache_dir, evaluation_windows, text_file, tokens
from seqjax.data import shakespeare as module
from seqjax.data.shakespeare import TEST, VALIDATION, plain_script, shakespeare
from seqjax.errors import InputError
from seqjax.text import EOS, ByteTokenizer, train_tokenizer


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- files


@given(text=st.text(st.sampled_from(" \n\raé€😀")), chunk=st.integers(4, 40))
def test_text_range_loses_nothing_at_chunk_borders(tmp_path_factory, text, chunk):
    path = write(tmp_path_factory.mktemp("text") / "a.txt", text)
    pieces = TextRange(path, 0, len(text.encode()), chunk)
    texts = [piece for piece, _ in pieces]
    assert "".join(texts) == text
    assert all(0 < len(piece.encode()) <= chunk for piece in texts)
    assert not any(last for _, last in pieces)
    assert list(pieces) == list(pieces)


def test_text_range_cuts_after_white_space(tmp_path):
    path = write(tmp_path / "a.txt", "to be or\nnot to be")
    assert [piece for piece, _ in TextRange(path, 0, 18, 8)] == ["to be ", "or\nnot ", "to be"]


def test_line_ends_and_byte_order_mark_are_kept(tmp_path):
    text = "\ufeffa\r\nb\rc\n"
    path = write(tmp_path / "a.txt", text)
    corpus = text_file(path, fraction=0.5)
    assert "".join(piece for split in corpus.values() for piece, _ in split) == text


@given(text=st.text(min_size=1), fraction=st.floats(0.01, 0.99))
def test_text_file_splits_between_characters(tmp_path_factory, text, fraction):
    path = write(tmp_path_factory.mktemp("text") / "a.txt", text)
    size = len(text.encode())
    try:
        corpus = text_file(path, fraction=fraction)
    except InputError:
        assert int(size * fraction) == 0 or int(size * fraction) > size - len(text[-1].encode())
        return
    train, validation = ("".join(piece for piece, _ in corpus[split]) for split in ("train", "validation"))
    assert train + validation == text
    assert 0 <= len(train.encode()) - int(size * fraction) < 4
    if text.isascii():
        assert train == text[: int(len(text) * fraction)]


@pytest.mark.parametrize(
    ("content", "fraction", "message"),
    [
        (None, 0.9, "cannot read the text"),
        (b"", 0.9, "0 bytes are too few to split at fraction=0.9"),
        (b"a", 0.9, "1 bytes are too few"),
        (b"abc", 0.0, "fraction: 0.0 is not between 0 and 1"),
        (b"abc", 1.0, "fraction: 1.0 is not between 0 and 1"),
        (b"abc", float("nan"), "fraction: nan"),
    ],
)
def test_text_file_rejects(tmp_path, content, fraction, message):
    path = tmp_path / "a.txt"
    if content is not None:
        write(path, content)
    with pytest.raises(InputError, match=message):
        text_file(path, fraction=fraction)


def test_text_file_rejects_a_directory(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the text \(Is a directory\)"):
        text_file(tmp_path)


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"abc def " * 4 + b"\xff", 32),  # not in the first chunk
        (b"x" * 21 + b"\xc3(" + b"x" * 9, 21),  # after a cut without white space
        (b"x" * 15 + b"\xe2\x82", 15),  # a character that the end cuts short
        (b"\x80" * 40, 0),
        ("日本".encode("utf-16"), 0),
    ],
)
def test_invalid_utf8_names_file_and_offset(tmp_path, content, offset):
    path = write(tmp_path / "a.txt", content)
    with pytest.raises(InputError, match=f"a.txt: byte {offset} is not valid UTF-8"):
        list(TextRange(path, 0, len(content), 8))


def test_file_that_shrinks_is_an_error(tmp_path):
    path = write(tmp_path / "a.txt", "abc")
    with pytest.raises(InputError, match="ends at byte 3, expected 9"):
        list(TextRange(path, 0, 9))


def test_chunk_too_small(tmp_path):
    with pytest.raises(InputError, match="chunk: 3 bytes"):
        TextRange(tmp_path / "a.txt", 0, 9, 3)


# --- tokens on disk


@pytest.mark.parametrize(
    ("size", "dtype"), [(250, np.uint8), (256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.uint32)]
)
def test_tokens_use_the_smallest_dtype(tmp_path, size, dtype):
    text = "".join(chr(0x10000 + i) for i in range(size - 4))
    encoded = tokens([(text, False)], train_tokenizer("char", [text]), tmp_path / "a.npy")
    assert encoded.dtype == dtype
    np.testing.assert_array_equal(encoded, np.arange(4, size))


def test_tokens_end_documents_with_eos(tmp_path):
    path = tmp_path / "cache" / "a.npy"
    tokenizer = train_tokenizer("char", "ab")
    encoded = tokens([("ab", False), ("a", True), ("", True), ("b", False)], tokenizer, path)
    assert encoded.tolist() == [4, 5, 4, EOS, EOS, 5]
    assert isinstance(encoded, np.memmap)
    assert not encoded.flags.writeable
    assert [entry.name for entry in path.parent.iterdir()] == ["a.npy"]
    np.testing.assert_array_equal(np.load(path), encoded)


@given(st.lists(st.tuples(st.text(), st.booleans()), min_size=1))
def test_tokens_are_the_encoded_pieces(tmp_path_factory, pieces):
    tokenizer = ByteTokenizer()
    expected = [i for text, last in pieces for i in [*tokenizer.encode(text).tolist(), *[EOS] * last]]
    path = tmp_path_factory.mktemp("tokens") / "a.npy"
    if expected:
        assert tokens(pieces, tokenizer, path).tolist() == expected
    else:
        with pytest.raises(InputError, match="no tokens"):
            tokens(pieces, tokenizer, path)


def test_failed_encoding_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.npy"
    tokens([("abc", False)], ByteTokenizer(), path)
    before = path.read_bytes()
    text = write(tmp_path / "a.txt", b"abcdefgh \xff")
    with pytest.raises(InputError, match="byte 9"):
        tokens(TextRange(text, 0, 10, 8), ByteTokenizer(), path)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.npy", "a.txt"]


@pytest.mark.parametrize("word", ["word ", "wordé"])
def test_memory_is_bounded_by_the_chunk(tmp_path, word):
    text = word * 800_000
    size = len(text.encode())
    path = write(tmp_path / "a.txt", text)
    tracemalloc.start()
    try:
        encoded = tokens(TextRange(path, 0, size, 1 << 14), ByteTokenizer(), tmp_path / "a.npy")
        windows = BPTTWindows(encoded, batch_size=4, window=8, seed=0)
        last = windows[windows.steps_per_epoch - 1]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(encoded) == size
    assert last.inputs.shape == (4, 8)
    assert peak < 1 << 19 < size


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("SEQJAX_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("SEQJAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "seqjax"


# --- windows

CORPORA = st.lists(st.integers(EOS, 9), min_size=2, max_size=60).map(lambda ids: np.array(ids, np.uint8))


def one_by_one(corpus, start, count):
    """The transitions from `start` on, one at a time: (input, target, reset)."""
    for place in range(start, start + count):
        i = place % (len(corpus) - 1)
        yield int(corpus[i]), int(corpus[i + 1]), i == 0 or corpus[i - 1] == EOS


def rows(batch):
    """The transitions of each row that count."""
    transitions = np.stack(batch[:3], axis=-1)
    return [[tuple(t) for t in row[keep].tolist()] for row, keep in zip(transitions, batch.where, strict=True)]


@given(corpus=CORPORA, batch_size=st.integers(1, 4), window=st.integers(1, 6), seed=st.integers(0, 2**64))
def test_windows_walk_the_streams(corpus, batch_size, window, seed):
    if len(corpus) <= batch_size * window:
        with pytest.raises(InputError, match="lower batch_size"):
            BPTTWindows(corpus, batch_size=batch_size, window=window, seed=seed)
        return
    windows = BPTTWindows(corpus, batch_size=batch_size, window=window, seed=seed)
    steps = windows.steps_per_epoch
    assert steps == (len(corpus) - 1) // (batch_size * window)
    stream = steps * window
    for epoch in range(3):
        epoch_batches = [windows[epoch * steps + w] for w in range(steps)]
        for batch in epoch_batches:
            assert [leaf.dtype for leaf in batch] == [np.int32, np.int32, bool, bool]
            assert {leaf.shape for leaf in batch} == {(batch_size, window)}
            assert batch.where.all()
        offsets = [0] if epoch == 0 else range(len(corpus) - 1)
        streams = [[t for batch in epoch_batches for t in rows(batch)[b]] for b in range(batch_size)]

        def expected(offset):
            walked = [list(one_by_one(corpus, offset + b * stream, stream)) for b in range(batch_size)]
            return [[(*row[0][:2], True), *row[1:]] for row in walked]

        assert any(streams == expected(offset) for offset in offsets)


def test_offsets_move_with_seed_and_epoch_and_never_change():
    corpus = np.arange(1000, 2001)

    def first(seed, epoch):
        windows = BPTTWindows(corpus, batch_size=2, window=5, seed=seed)
        return int(windows[epoch * windows.steps_per_epoch].inputs[0, 0])

    assert [first(0, epoch) for epoch in range(4)] == [1000, 1719, 1897, 1902]
    assert [first(1, epoch) for epoch in range(4)] == [1000, 1579, 1131, 1097]


def test_every_transition_is_seen_over_the_epochs():
    corpus = np.arange(4, 30)
    windows = BPTTWindows(corpus, batch_size=2, window=7, seed=0)
    seen = {int(i) for step in range(20 * windows.steps_per_epoch) for i in windows[step].inputs.ravel()}
    assert seen == set(range(4, 29))


def test_too_short_a_corpus_says_what_to_do():
    with pytest.raises(
        InputError, match=r"has 10 tokens, fewer than the batch_size\*window\+1 = 11 .*lower batch_size"
    ):
        BPTTWindows(np.arange(10), batch_size=2, window=5, seed=0)


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"window": 0}, {"seed": -1}])
def test_windows_reject_sizes(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        BPTTWindows(np.arange(10), **{"batch_size": 1, "window": 1, "seed": 0, **bad})


def test_negative_step():
    with pytest.raises(IndexError):
        BPTTWindows(np.arange(10), batch_size=1, window=1, seed=0)[-1]


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def test_batches_start_anywhere():
    windows = BPTTWindows(np.arange(4, 104), batch_size=3, window=4, seed=7)
    everything = list(batches(windows, stop=25))
    assert_same(everything, [windows[step] for step in range(25)])
    for start in (0, 1, 8, 24, 25):
        assert_same(list(batches(windows, start=start, stop=25)), everything[start:])


def test_accumulated_batches_are_stacked_windows():
    windows = BPTTWindows(np.arange(4, 104), batch_size=3, window=4, seed=7)
    stacked = list(batches(windows, start=2, stop=5, accumulate=3))
    assert {leaf.shape for batch in stacked for leaf in batch} == {(3, 3, 4)}
    flat = [type(batch)(*(leaf[a] for leaf in batch)) for batch in stacked for a in range(3)]
    assert_same(flat, [windows[step] for step in range(6, 15)])
    with pytest.raises(InputError, match="accumulate: 0"):
        batches(windows, stop=5, accumulate=0)


@given(corpus=CORPORA, batch_size=st.integers(1, 7), window=st.integers(1, 9))
def test_evaluation_counts_every_target_once(corpus, batch_size, window):
    streams = [[] for _ in range(batch_size)]
    for batch in evaluation_windows(corpus, batch_size=batch_size, window=window):
        assert {leaf.shape for leaf in batch} == {(batch_size, window)}
        assert [leaf.dtype for leaf in batch] == [np.int32, np.int32, bool, bool]
        assert not any(leaf[~batch.where].any() for leaf in batch)
        for stream, row in zip(streams, rows(batch), strict=True):
            stream.extend(row)
    found = [transition for stream in streams for transition in stream]
    assert [t[:2] for t in found] == list(zip(corpus[:-1].tolist(), corpus[1:].tolist(), strict=True))
    starts = {sum(map(len, streams[:b])) for b in range(batch_size)}
    walked = one_by_one(corpus, 0, len(corpus) - 1)
    assert [t[2] for t in found] == [reset or i in starts for i, (_, _, reset) in enumerate(walked)]


def test_evaluation_needs_a_transition():
    with pytest.raises(InputError, match="has 1 tokens"):
        next(evaluation_windows(np.array([4]), batch_size=1, window=1))


# --- Shakespeare


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cache")
    return directory, shakespeare(directory)


def test_shakespeare_splits(prepared):
    _, corpus = prepared
    titles = {split: [text.partition("\n")[0] for text, _ in pieces] for split, pieces in corpus.items()}
    assert {split: len(names) for split, names in titles.items()} == {"train": 34, "validation": 2, "test": 2}
    assert titles["validation"] == list(VALIDATION)
    assert titles["test"] == list(TEST)
    assert titles["train"] == sorted(titles["train"])
    assert len({title for names in titles.values() for title in names}) == 38
    assert all(last for pieces in corpus.values() for _, last in pieces)


def test_shakespeare_text_is_plain(prepared):
    _, corpus = prepared
    for pieces in corpus.values():
        for text, _ in pieces:
            assert 80_000 < len(text) < 200_000
            assert not set(text) & set("*_#\\\t\r\u00a0")
            assert not any(bad in text for bad in ("\n\n\n", " \n", "&amp;", "[]", "[["))
            assert text.count("[") == text.count("]") > 50
            assert text.endswith("\n")
    macbeth = corpus["validation"][0][0]
    assert (
        "\n\n[Thunder and lightning. Enter three Witches]\n\nFirst Witch:\nWhen shall we three meet again\n" in macbeth
    )


def test_shakespeare_again_reads_the_same_in_silence(prepared, monkeypatch, capfd):
    directory, corpus = prepared
    monkeypatch.setenv("SEQJAX_CACHE", str(directory))
    # Prepared data need the package no more.
    monkeypatch.setattr(importlib.metadata, "distribution", None)
    assert shakespeare() == corpus
    assert capfd.readouterr() == ("", "")


def test_preparing_is_silent(tmp_path, capfd):
    shakespeare(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_another_process_prepares_first(prepared, tmp_path, monkeypatch):
    files = module._files

    def overtaken():
        monkeypatch.setattr(module, "_files", files)
        shakespeare(tmp_path)
        return files()

    monkeypatch.setattr(module, "_files", overtaken)
    assert shakespeare(tmp_path) == prepared[1]


def test_failure_to_prepare_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_files", lambda: [tmp_path / "missing.md"])
    with pytest.raises(FileNotFoundError):
        shakespeare(tmp_path)


def test_shakespeare_without_the_package(monkeypatch, tmp_path):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(InputError, match=r'pip install "seqjax\[examples\]"'):
        shakespeare(tmp_path)


def test_shakespeare_cannot_make_its_directory(tmp_path):
    with pytest.raises(InputError, match="data_dir: cannot make"):
        shakespeare(write(tmp_path / "file", "") / "cache")


@pytest.mark.parametrize(
    ("markdown", "plain"),
    [
        ("#### ACT II  \n", "ACT II\n"),
        ("**PAGE & SHALLOW**  \n[Within]_  \nHo!  \n", "PAGE & SHALLOW:\n[Within]\nHo!\n"),
        ("_Enter A,\nB_\n\n\n\n*Exit.*\n", "[Enter A,\nB]\n\n[Exit.]\n"),
        ("he'll __\\[ ]_  \n&amp;&nbsp;c\\.\n", "he'll\n& c.\n"),
    ],
)
def test_plain_script(markdown, plain):
    assert plain_script(markdown) == plain


def test_data_and_text_import_nothing_heavy():
    heavy = ("tensorflow_datasets", "grain", "flax", "orbax", "tensorflow")
    code = f"import sys, seqjax.data, seqjax.text; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
