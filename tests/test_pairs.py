"""Pairs of sequences in buckets, parallel texts, SciTLDR."""

import gzip
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.data import (
    PairBuckets,
    batches,
    bucket_shapes,
    count_cut,
    evaluation_batches,
    parallel_folder,
    parallel_texts,
    without_empty,
)
from seqjax.data.scitldr import scitldr
from seqjax.errors import InputError
from seqjax.text import EOS, PAD, SOS

LENGTHS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=30)
OPTIONS = st.fixed_dictionaries(
    {
        "tokens_per_batch": st.integers(1, 60),
        "n_buckets": st.integers(1, 5),
        "max_lengths": st.tuples(st.integers(2, 14), st.integers(2, 14)),
    }
)


def numbered(lengths):
    """Pairs in which no two ids are the same, so that each id tells its pair, side and place."""
    fresh = itertools.count(EOS + 1)
    return [tuple(np.array([next(fresh) for _ in range(n)], np.int64) for n in pair) for pair in lengths]


def padded(ids, length):
    return ids + [PAD] * (length - len(ids))


def row_of(pair, n_source, n_target):
    """The row of a pair, as lists."""
    source, target = (ids.tolist() for ids in pair)
    source = [*source[: n_source - 1], EOS]
    answers = [*target, EOS][:n_target]
    return (
        padded(source, n_source),
        len(source),
        padded([SOS, *target][:n_target], n_target),
        padded(answers, n_target),
        [True] * len(answers) + [False] * (n_target - len(answers)),
    )


def rows(batch):
    return list(zip(*(leaf.tolist() for leaf in batch), strict=True))


def filler(n_source, n_target):
    """A row that only fills."""
    return padded([EOS], n_source), 1, padded([SOS], n_target), padded([], n_target), [False] * n_target


def shape_of(batch):
    assert [leaf.dtype for leaf in batch] == [np.int32, np.int32, np.int32, np.int32, bool]
    assert batch.source_lengths.shape == (len(batch.source),)
    assert batch.inputs.shape == batch.targets.shape == batch.where.shape
    return *batch.source.shape, batch.targets.shape[1]


def home(pair, shapes):
    """The first bucket that holds the pair, or the last."""
    fits = [i for i, (_, s, t) in enumerate(shapes) if len(pair[0]) < s and len(pair[1]) < t]
    return fits[0] if fits else len(shapes) - 1


def same(left, right):
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(left, right, strict=True))


# --- shapes


def least_padding(lengths, n_buckets):
    """The least sum of S + T over all ways to cut the lengths, ordered by the longer side, into buckets."""
    borders = sorted({max(pair) for pair in lengths})
    inner = borders[:-1]
    best = None
    for chosen in itertools.combinations(inner, min(n_buckets, len(borders)) - 1):
        size, done = 0, 0
        for border in (*chosen, borders[-1]):
            inside = [pair for pair in lengths if max(pair) <= border]
            size += (len(inside) - done) * (max(s for s, _ in inside) + max(t for _, t in inside))
            done = len(inside)
        best = size if best is None else min(best, size)
    return best


@given(lengths=LENGTHS, options=OPTIONS)
def test_shapes_pad_least(lengths, options):
    shapes = bucket_shapes(numbered(lengths), **options)
    cut = [tuple(min(n + 1, limit) for n, limit in zip(pair, options["max_lengths"], strict=True)) for pair in lengths]
    assert len(shapes) == min(options["n_buckets"], len({max(pair) for pair in cut}))
    inside = [[pair for pair in cut if pair[0] <= s and pair[1] <= t] for _, s, t in shapes]
    assert len(inside[-1]) == len(cut)
    done = [0, *map(len, inside)]
    size = sum((done[i + 1] - done[i]) * (s + t) for i, (_, s, t) in enumerate(shapes))
    assert size == least_padding(cut, options["n_buckets"])
    for i, (batch, s, t) in enumerate(shapes):
        assert (s, t) == tuple(map(max, zip(*inside[i], strict=True)))
        assert batch == max(1, min(options["tokens_per_batch"] // max(s, t), done[i + 1] - done[i]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"tokens_per_batch": 0}, "tokens_per_batch: 0"),
        ({"n_buckets": 0}, "n_buckets: 0"),
        ({"max_lengths": (5, 1)}, r"max_lengths: \(5, 1\)"),
        ({"pairs": []}, "pairs: there are none"),
    ],
)
def test_shapes_reject(bad, message):
    arguments = {"pairs": [([4], [5])], "tokens_per_batch": 9, "n_buckets": 2, "max_lengths": (5, 5), **bad}
    with pytest.raises(InputError, match=message):
        bucket_shapes(arguments.pop("pairs"), **arguments)


# --- training batches


@pytest.mark.fast
@settings(max_examples=50)
@given(lengths=LENGTHS, options=OPTIONS, seed=st.integers(0, 2**64))
def test_every_pair_comes_once_an_epoch(lengths, options, seed):
    pairs = numbered(lengths)
    shapes = bucket_shapes(pairs, **options)
    buckets = PairBuckets(pairs, shapes, seed=seed)
    assert buckets.shapes == shapes
    steps = buckets.steps_per_epoch
    counts = np.bincount([home(pair, shapes) for pair in pairs], minlength=len(shapes))
    assert steps == sum(-(-count // batch) for count, (batch, _, _) in zip(counts.tolist(), shapes, strict=True))
    for epoch in range(2):
        found = {shape: [] for shape in shapes}
        for step in range(epoch * steps, (epoch + 1) * steps):
            shape = shape_of(buckets[step])
            assert shape[0] * max(shape[1:]) <= options["tokens_per_batch"] or shape[0] == 1
            found[shape] += [row for row in rows(buckets[step]) if row != filler(*shape[1:])]
        expected = {shape: [] for shape in shapes}
        for pair in pairs:
            shape = shapes[home(pair, shapes)]
            expected[shape].append(row_of(pair, *shape[1:]))
        assert {shape: sorted(some) for shape, some in found.items()} == {
            shape: sorted(some) for shape, some in expected.items()
        }


@settings(max_examples=25)
@given(lengths=LENGTHS, options=OPTIONS, asked=st.lists(st.integers(0, 60), max_size=10))
def test_a_batch_is_the_same_whenever_asked(lengths, options, asked):
    pairs = numbered(lengths)
    shapes = bucket_shapes(pairs, **options)
    one = PairBuckets(pairs, shapes, seed=3)
    for step in asked:
        assert same(one[step], PairBuckets(pairs, shapes, seed=3)[step])


def test_order_changes_with_epoch_and_seed_and_never_otherwise():
    pairs = numbered([(1 + i % 3, 1) for i in range(12)])
    shapes = bucket_shapes(pairs, tokens_per_batch=4, n_buckets=3, max_lengths=(9, 9))
    assert shapes == ((2, 2, 2), (1, 3, 2), (1, 4, 2))

    def first_ids(seed, epoch):
        buckets = PairBuckets(pairs, shapes, seed=seed)
        steps = range(epoch * buckets.steps_per_epoch, (epoch + 1) * buckets.steps_per_epoch)
        return [int(buckets[step].source[0, 0]) for step in steps]

    assert first_ids(0, 0) == [6, 15, 27, 33, 24, 18, 31, 9, 13, 36]
    assert first_ids(0, 1) == [18, 9, 31, 27, 13, 36, 33, 24, 6, 15]
    assert first_ids(1, 0) == [36, 13, 9, 6, 27, 15, 22, 24, 33, 18]


def test_batches_are_read_ahead_from_anywhere():
    pairs = numbered([(i % 5, i % 7) for i in range(40)])
    shapes = bucket_shapes(pairs, tokens_per_batch=30, n_buckets=3, max_lengths=(9, 9))
    buckets = PairBuckets(pairs, shapes, seed=5)
    everything = [buckets[step] for step in range(25)]
    for start in (0, 7, 25):
        ahead = list(batches(buckets, start=start, stop=25))
        assert len(ahead) == 25 - start
        assert all(map(same, ahead, everything[start:]))


def test_long_pairs_are_cut_and_counted():
    pairs = numbered([(2, 2), (6, 3), (3, 6), (6, 6)])
    shapes = bucket_shapes(pairs, tokens_per_batch=100, n_buckets=1, max_lengths=(5, 4))
    buckets = PairBuckets(pairs, shapes, seed=0)
    assert shapes == ((4, 5, 4),)
    assert (buckets.cut_sources, buckets.cut_targets) == count_cut(pairs, shapes) == (2, 2)
    assert sorted(rows(buckets[0])) == sorted(row_of(pair, 5, 4) for pair in pairs)
    # A cut source ends with <eos>, as the model expects; where a cut target ends is not to be learned.
    (row,) = (row for row in rows(buckets[0]) if row[0][0] == pairs[3][0][0])
    assert row[0][-1] == EOS
    assert EOS not in row[3]


def test_pairs_encoded_every_epoch():
    pairs = numbered([(2, 2)] * 4 + [(4, 4)] * 4)
    shapes = bucket_shapes(pairs, tokens_per_batch=10, n_buckets=2, max_lengths=(9, 9))
    assert shapes == ((3, 3, 3), (2, 5, 5))
    asked = []

    def encode(epoch):
        asked.append(epoch)
        # In epoch 0 all are long, two of them too long, and make 4 batches; in epoch 1 all are short and make 3.
        return numbered([(4, 4)] * 6 + [(4, 9)] * 2 if epoch == 0 else [(1, 1)] * 8)

    buckets = PairBuckets(pairs, shapes, seed=0, encode=encode)
    assert buckets.steps_per_epoch == 4
    assert (buckets.cut_sources, buckets.cut_targets) == (0, 0)
    first = [row for step in range(4) for row in rows(buckets[step])]
    assert sorted(first) == sorted(row_of(pair, 5, 5) for pair in encode(0))
    second = [buckets[step] for step in range(4, 8)]
    real = [row for batch in second[:3] for row in rows(batch) if row != filler(3, 3)]
    assert sorted(real) == sorted(row_of(pair, 3, 3) for pair in encode(1))
    assert same(second[3], second[0])
    assert asked == [0, 0, 1, 1]  # half of them by the test


def test_an_epoch_with_more_batches_than_steps_leaves_out_others_each_time():
    pairs = numbered([(1, 1)] * 4)
    buckets = PairBuckets(pairs[:3], [(1, 2, 2)], seed=0, encode=lambda epoch: pairs)
    epochs = [[int(buckets[3 * epoch + step].source[0, 0]) for step in range(3)] for epoch in range(12)]
    assert all(len(set(seen)) == 3 for seen in epochs)
    assert len({frozenset(seen) for seen in epochs}) == 4


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"seed": -1}, "seed: -1"),
        ({"pairs": []}, "pairs: there are none"),
        ({"shapes": []}, "shapes"),
        ({"shapes": [(0, 2, 2)]}, "shapes"),
        ({"shapes": [(1, 2, 3), (1, 3, 2)]}, "lengths, which grow"),
    ],
)
def test_buckets_reject(bad, message):
    arguments = {"pairs": [([4], [5])], "shapes": [(1, 2, 2)], "seed": 0, **bad}
    with pytest.raises(InputError, match=message):
        PairBuckets(arguments.pop("pairs"), arguments.pop("shapes"), **arguments)


def test_negative_step():
    with pytest.raises(IndexError):
        PairBuckets([([4], [5])], [(1, 2, 2)], seed=0)[-1]


# --- evaluation


@settings(max_examples=50)
@given(lengths=LENGTHS, others=LENGTHS, options=OPTIONS)
def test_evaluation_has_every_pair_once_with_its_index(lengths, others, options):
    """In the shapes of other pairs, as it is after training."""
    pairs, shapes = numbered(lengths), bucket_shapes(numbered(others), **options)
    seen = []
    for index, batch in evaluation_batches(pairs, shapes):
        shape = shape_of(batch)
        assert shape in shapes
        assert index.shape == shape[:1]
        for i, row in zip(index.tolist(), rows(batch), strict=True):
            assert row == (filler(*shape[1:]) if i < 0 else row_of(pairs[i], *shape[1:]))
            assert i < 0 or shapes[home(pairs[i], shapes)] == shape
        seen += [i for i in index.tolist() if i >= 0]
    assert sorted(seen) == list(range(len(pairs)))


def test_sources_without_targets():
    pairs = [(ids, ()) for ids, _ in numbered([(3, 0), (1, 0), (2, 0)])]
    results = np.zeros(3, int)
    for index, batch in evaluation_batches(pairs, [(2, 3, 7), (1, 4, 7)]):
        results[index[index >= 0]] = batch.source_lengths[index >= 0]
    assert results.tolist() == [4, 2, 3]


def test_nothing_to_evaluate():
    with pytest.raises(InputError, match="there are none"):
        next(evaluation_batches([], [(1, 2, 2)]))


# --- files

LINES = st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8")), max_size=5)


@given(lines=LINES, compressed=st.booleans(), last=st.booleans())
def test_parallel_texts_end_lines_at_newlines_only(tmp_path_factory, lines, compressed, last):
    folder = tmp_path_factory.mktemp("texts")
    text = "\n".join(lines) + ("\n" if last and lines else "")
    source, target = folder / f"a.de{'.gz' * compressed}", folder / "a.en"
    source.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    target.write_bytes(text.encode().replace(b"\n", b"\r\n"))
    expected = [line.removesuffix("\r") for line in lines]
    if lines and not lines[-1] and not last:
        expected.pop()  # a text that ends with a newline has no line after it
    windows = [line.removesuffix("\r") for line in text.replace("\n", "\r\n").split("\n")]
    found = parallel_texts(source, source)
    assert found == (expected, expected)
    assert parallel_texts(target, target)[0] == (windows[:-1] if not windows[-1] else windows)


def test_parallel_texts_of_different_length(tmp_path):
    (tmp_path / "a.de").write_text("eins\n\nzwei\n")
    (tmp_path / "a.en").write_text("one\n")
    with pytest.raises(InputError, match=r"a\.de has 3 lines and .*a\.en has 1;"):
        parallel_texts(tmp_path / "a.de", tmp_path / "a.en")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.de", None, "cannot read the text"),
        ("a.de", b"ab\xff", "a.de:1: the byte 0xff is not utf-8"),
        ("a.de.gz", b"no gzip", "cannot read the text"),
        ("a.de.gz", gzip.compress(b"a text", mtime=0)[:-9], "cannot read the text"),
        ("a.de.gz", gzip.compress(b"a text" * 9, mtime=0)[:12] + b"\xff" * 20, "cannot read the text"),
    ],
)
def test_parallel_texts_reject(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        parallel_texts(path, path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test_2016_flickr"),
        ("train", "valid", "test"),
        ("train", "dev", "test"),
        ("train", "validation", None),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_parallel_folder(tmp_path, names, suffix):
    splits = dict(zip(("train", "validation", "test"), names, strict=True))
    expected = {split: ([split, "ü"], [split.upper(), ""]) for split, name in splits.items() if name}
    for split, (sources, targets) in expected.items():
        source = "".join(f"{line}\n" for line in sources).encode()
        (tmp_path / f"{splits[split]}.de{suffix}").write_bytes(gzip.compress(source, mtime=0) if suffix else source)
        (tmp_path / f"{splits[split]}.en").write_text("".join(f"{line}\n" for line in targets))
    (tmp_path / "test_2017_flickr.de").write_text("another\n")
    assert parallel_folder(tmp_path, "de", "en") == expected
    assert {split: pair[::-1] for split, pair in parallel_folder(tmp_path, "en", "de").items()} == expected


def test_parallel_folder_says_what_it_tried(tmp_path):
    for name in ("train.de", "train.en", "dev.de", "valid.en"):
        (tmp_path / name).write_text("a\n")
    with pytest.raises(InputError, match=r"no validation files .* tried val\.de, val\.en, valid\.de, .*with \.gz"):
        parallel_folder(tmp_path, "de", "en")
    with pytest.raises(InputError, match=r"no train files in both 'de' and 'fr'"):
        parallel_folder(tmp_path, "de", "fr")


def test_without_empty():
    sources, targets = ["a", "", "\t", "d", "e"], ["A", "B", "C", "\u3000", "E "]
    assert without_empty(sources, targets) == (["a", "e"], ["A", "E "], 3)


# --- SciTLDR

PAPER = {"title": " A  title\n", "source": ["One.  ", " ", "Two\nlines.\n"], "target": ["Short.", "Other  one."]}


def folder_of(path, **lines):
    for name, content in {"train": PAPER, "dev": PAPER, "test": PAPER, **lines}.items():
        text = content if isinstance(content, str) else json.dumps(content) + "\n\n"
        (path / f"{name}.jsonl").write_text(text)
    return path


def test_scitldr(tmp_path):
    corpus = scitldr(folder_of(tmp_path, dev=json.dumps(PAPER) + "\n" + json.dumps({**PAPER, "title": "\u2028"})))
    assert {split: len(papers) for split, papers in corpus.items()} == {"train": 1, "validation": 2, "test": 1}
    (paper,) = corpus["train"]
    assert paper == ("A title", ("One.", "Two lines."), ("Short.", "Other one."))
    assert paper.abstract == "One. Two lines."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: is not JSON"),
        ("\n[1]", "line 2: has no title"),
        ({**PAPER, "title": 1}, "has no title"),
        ({**PAPER, "source": ["", " "]}, "has no title, no source or no target"),
        ({**PAPER, "source": "One."}, "has no title, no source or no target"),
        ({**PAPER, "target": [1]}, "has no title, no source or no target"),
        ({"title": "A", "source": ["One."]}, "has no title, no source or no target"),
    ],
)
def test_scitldr_rejects(tmp_path, content, message):
    with pytest.raises(InputError, match=rf"test\.jsonl, {message}|test\.jsonl, line 1: {message}"):
        scitldr(folder_of(tmp_path, test=content))


def test_scitldr_missing(tmp_path):
    with pytest.raises(InputError, match=r"train\.jsonl: cannot read the papers .* train\.jsonl, dev\.jsonl, test\.js"):
        scitldr(tmp_path)
