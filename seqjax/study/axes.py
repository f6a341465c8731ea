"""What differs between the members of a study: axes, and the points proposed on them."""

import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seqjax.errors import InputError
from seqjax.train import Hyper

Value = float | int | str | bool
Point = dict[str, Value]


class Axis(NamedTuple):
    """A quantity that is studied: the values themselves, or the range they are taken from."""

    name: str
    values: tuple[Value, ...] = ()
    low: float = math.nan
    high: float = math.nan
    n: int | None = None  # values of a grid
    log: bool = False

    def at(self, share: float) -> Value:
        """The value at a share 0 … 1 of the axis; of a range in logarithmic steps if it is so."""
        if self.values:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        if self.log:
            return float(self.low * (self.high / self.low) ** share)
        return float(self.low + (self.high - self.low) * share)

    def grid(self) -> list[Value]:
        """All values of a grid, ends included."""
        if self.values:
            return list(self.values)
        if self.n is None:
            raise InputError(f"{self.name}={self.low:g}:{self.high:g} has no number of values; write low:high:n.")
        ends = {0: self.low, self.n - 1: self.high}  # exactly
        return [ends.get(i, self.at(i / max(self.n - 1, 1))) for i in range(self.n)]


def parse_axis(text: str) -> Axis:
    """An axis from ``name=a,b,c``, ``name=low:high:n``, or ``name=low:high``, each of the last two with ``:log``.

    Raises InputError for anything else.

    >>> parse_axis("lr=1e-4:1e-2:3:log").grid()
    [0.0001, 0.001, 0.01]
    >>> parse_axis("model.cell=lstm,gru").grid()
    ['lstm', 'gru']
    """
    name, equals, rest = text.partition("=")
    name, form = name.strip(), "write name=low:high:n, name=low:high:n:log or name=a,b,c"
    if not (name and equals and rest):
        raise InputError(f"{text!r} is no axis; {form}.")
    if ":" not in rest:
        values = tuple(_value(word.strip()) for word in rest.split(","))
        if "" in values or len(set(values)) < len(values):
            raise InputError(f"{text!r} has {'an empty value' if '' in values else 'a value twice'}; {form}.")
        return Axis(name, values)
    parts = rest.split(":")
    log = parts[-1] == "log"
    numbers = parts[: len(parts) - (parts[-1] in ("log", "lin"))]
    try:
        low, high = map(float, numbers[:2])
        n = int(numbers[2]) if len(numbers) == 3 else None
        if len(numbers) > 3:
            raise ValueError
    except ValueError:
        raise InputError(f"{text!r} is no range; {form}.") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"{text!r}: a range goes from a lower to a higher number, both finite.")
    if log and low <= 0:
        raise InputError(f"{text!r}: a logarithmic range begins above 0.")
    if n is not None and n < 2:
        raise InputError(f"{text!r}: a range has at least 2 values; for a single one write {name}={low:g}.")
    return Axis(name, (), low, high, n, log)


def _value(word: str) -> Value:
    if word in ("True", "False"):
        return word == "True"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def grid(axes: Sequence[Axis]) -> list[Point]:
    """Every combination; the last axis changes fastest.

    >>> grid([parse_axis("lr=0.1,0.2"), parse_axis("dropout=0:0.5:2")])[1]
    {'lr': 0.1, 'dropout': 0.5}
    """
    names = [axis.name for axis in axes]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(axis.grid() for axis in axes))]


def random(axes: Sequence[Axis], n: int, *, seed: int) -> list[Point]:
    """n points, each drawn by itself (Bergstra and Bengio, 2012)."""
    shares = np.random.default_rng(seed).random((n, len(axes)))
    return [_point(axes, row) for row in shares]


def latin_hypercube(axes: Sequence[Axis], n: int, *, seed: int) -> list[Point]:
    """n points that have one in each n-th of every axis (McKay et al., 1979)."""
    rng = np.random.default_rng(seed)
    shares = (np.stack([rng.permutation(n) for _ in axes], axis=1) + rng.random((n, len(axes)))) / n
    return [_point(axes, row) for row in shares]


def _point(axes: Sequence[Axis], shares: np.ndarray) -> Point:
    return {axis.name: axis.at(share) for axis, share in zip(axes, shares.tolist(), strict=True)}


class Optuna:
    """Points proposed by Optuna's sampler (by default a tree-structured Parzen estimator), batch by batch.

    Needs the package optuna. Raises InputError if it is not installed.
    """

    def __init__(self, axes: Sequence[Axis], *, seed: int, highest: bool = False):
        try:
            import optuna
        except ImportError as error:
            raise InputError(
                'optuna is not installed: pip install "seqjax[optuna]", or use grid, random or latin.'
            ) from (error)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Members of a batch do not know of each other: the constant liar keeps them apart.
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        self._study = optuna.create_study(direction="maximize" if highest else "minimize", sampler=sampler)
        self._space = {axis.name: self._distribution(optuna, axis) for axis in axes}
        self._pruned = optuna.trial.TrialState.PRUNED
        self._asked: list[Any] = []

    @staticmethod
    def _distribution(optuna, axis: Axis):
        if axis.values:
            return optuna.distributions.CategoricalDistribution(axis.values)
        return optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)

    def ask(self, n: int) -> list[Point]:
        """n points."""
        self._asked = [self._study.ask(self._space) for _ in range(n)]
        return [dict(trial.params) for trial in self._asked]

    def tell(self, values: Sequence[float | None]) -> None:
        """What came of them, in order; None for one that failed or was dropped."""
        for trial, value in zip(self._asked, values, strict=True):
            if value is None:
                self._study.tell(trial, state=self._pruned)
            else:
                self._study.tell(trial, value)


def split_point(point: Point) -> tuple[dict[str, float], Point]:
    """``(numbers, choices)``: what is a field of `Hyper` and can differ within a program, and what is static.

    >>> split_point({"lr": 0.1, "hyper.dropout": 0.2, "model.cell": "gru"})
    ({'lr': 0.1, 'dropout': 0.2}, {'model.cell': 'gru'})
    """
    numbers, choices = {}, {}
    for name, value in point.items():
        bare = name.removeprefix("hyper.")
        if bare in Hyper._fields:
            if isinstance(value, str):
                raise InputError(f"{name}={value}: it takes numbers.")
            numbers[bare] = float(value)
        else:
            choices[name] = value
    return numbers, choices


def stack_hypers(base: Hyper, points: Sequence[Mapping[str, Value]]) -> Hyper:
    """The numbers of K members, ``[K]`` each, from those of ``base`` and what differs.

    Raises InputError for a name that is no field of `Hyper`: what is static cannot differ within one program.

    >>> stack_hypers(Hyper(), [{"lr": 0.1}, {"lr": 0.2}]).lr
    array([0.1, 0.2])
    """
    for name in {name: None for point in points for name in point}:
        if name not in Hyper._fields:
            close = difflib.get_close_matches(name, Hyper._fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the numbers are {', '.join(Hyper._fields)}"
            raise InputError(
                f"{name} is no number of Hyper ({hint}). What is static, such as sizes and cells, needs a program "
                "for each value: run a study for each, as experiments.study does with --grid model.cell=lstm,gru."
            )
    return Hyper._make(
        np.array([float(point.get(name, value)) for point in points]) for name, value in base._asdict().items()
    )
