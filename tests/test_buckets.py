"""Buckets of examples with any number of parts. That of two, and how shapes are chosen: tests/test_pairs.py."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqjax.data import Buckets, each_once, padded, plan_shapes
from seqjax.data import buckets as buckets_module
from seqjax.errors import InputError


class Rows(NamedTuple):
    rows: list
    shape: tuple


SOME = [(3, 2, 9), (1, 1, 1), (7, 7, 7), (2, 8, 1), (5, 5, 5)]
SHAPES = [(2, 3, 3, 3), (3, 9, 9, 9)]


def collate(rows, shape):
    return Rows(rows.tolist(), shape)


@given(st.data(), st.integers(1, 3), st.integers(1, 4))
def test_every_example_once_an_epoch_in_a_shape_that_holds_it(data, k, n_buckets):
    part = st.integers(0, 9)
    lengths = data.draw(st.lists(st.tuples(*[part] * k), min_size=1, max_size=12))
    shapes = plan_shapes(lengths, tokens_per_batch=20, n_buckets=n_buckets, max_lengths=9)
    buckets = Buckets(lengths, shapes, collate, seed=1)
    for epoch in range(2):
        steps = range(epoch * buckets.steps_per_epoch, (epoch + 1) * buckets.steps_per_epoch)
        seen = [buckets[step] for step in steps]
        assert Counter(i for batch in seen for i in batch.rows) == Counter(range(len(lengths)))
    for batch in seen:
        assert batch.shape in shapes
        assert len(batch.rows) <= batch.shape[0]
        assert batch.shape[0] * max(batch.shape[1:]) <= 20 or batch.shape[0] == 1
        assert np.all(np.array([lengths[i] for i in batch.rows]) <= batch.shape[1:])


def test_a_step_is_a_pure_function_and_epochs_differ():
    one, other = (Buckets(SOME, SHAPES, collate, seed=3) for _ in range(2))
    steps = [7, 0, 7, 12, 3]
    assert [one[i] for i in steps] == [other[i] for i in steps]
    assert len({str([one[e * one.steps_per_epoch + i] for i in range(one.steps_per_epoch)]) for e in range(8)}) > 4


def test_blocks_of_lengths_give_the_shapes_of_all_together(monkeypatch):
    lengths = np.random.default_rng(0).integers(1, 60, (200, 2))
    options = {"tokens_per_batch": 200, "n_buckets": 5, "max_lengths": 50}
    whole = plan_shapes(lengths, **options)
    monkeypatch.setattr("seqjax.data.buckets._BLOCK", 7)
    assert plan_shapes(lengths, **options) == whole


def test_readers_in_different_epochs_share_the_plans(monkeypatch):
    made, shuffled = [], buckets_module.shuffled
    monkeypatch.setattr(buckets_module, "shuffled", lambda *a: made.append(a[-1]) or shuffled(*a))
    buckets = Buckets(SOME, SHAPES, collate, seed=3)
    for step in range(buckets.steps_per_epoch):
        for epoch in (0, 2, 1):
            buckets[epoch * buckets.steps_per_epoch + step]
    assert made == [0, 2, 1]


def test_rows_of_one_of_two_processes():
    whole = Buckets(SOME, SHAPES, collate, seed=3, multiple=4)
    halves = [
        Buckets(SOME, SHAPES, collate, seed=3, multiple=4, rows=lambda n, i=i: np.arange(i * n // 2, (i + 1) * n // 2))
        for i in range(2)
    ]
    for step in range(whole.steps_per_epoch):
        assert whole[step].shape[0] == 4
        assert [half[step].shape[0] for half in halves] == [2, 2]
        assert halves[0][step].rows + halves[1][step].rows == whole[step].rows


def test_one_pass():
    passed = list(each_once(SOME, SHAPES, collate))
    assert [index.tolist() for index, _ in passed] == [[1, -1], [0, 2, 3], [4, -1, -1]]
    assert [batch.rows for _, batch in passed] == [[1], [0, 2, 3], [4]]


def test_padded():
    words = [[[1, 2, 3], [4]], [[5]]]
    assert padded(words, (3, 2, 2)).tolist() == [[[1, 2], [4, 0]], [[5, 0], [0, 0]], [[0, 0], [0, 0]]]
    assert padded([[0.5]], (1, 2), fill=-1, dtype=np.float32).tolist() == [[0.5, -1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Buckets([], [(1, 1)], collate, seed=0), "no examples"),
        (lambda: Buckets([1], [(1, 1)], collate, seed=-1), "seed: -1"),
        (lambda: Buckets([1], [(1, 3), (1, 2)], collate, seed=0), "which grow"),
        (lambda: Buckets([1], [(1, 1)], collate, seed=0)[-1], "negative"),
        (lambda: plan_shapes([1], tokens_per_batch=0, n_buckets=1, max_lengths=9), "tokens_per_batch: 0"),
        (lambda: plan_shapes([1], tokens_per_batch=9, n_buckets=1, max_lengths=0), "max_lengths: 0"),
    ],
)
def test_rejects(call, message):
    with pytest.raises((InputError, IndexError), match=message):
        call()
