"""Who is in training, how everybody did, and who goes on: the host's side of a study."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from seqjax.errors import InputError
from seqjax.train import Loop

Status = Literal["waiting", "running", "done", "stopped early", "halved", "diverged", "failed"]
"""waiting: for a place, with ``slots``. done: trained to the end. stopped early: no better for ``loop.patience``
evaluations. halved: not good enough at a rung. diverged: its loss was above ``max_loss``. failed: its loss or gradient
was not finite."""


@dataclass
class Result:
    """A member of a study, and how far it came."""

    member: int
    hyper: dict[str, float]
    status: Status = "running"
    step: int = 0
    """Steps it trained; of one that failed, the first that was not finite."""
    value: float | None = None
    """What is compared; with patience the best one, else the last one."""
    at: int = 0
    """The step of that value."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """All that was measured then."""
    since: int = 0
    """Evaluations since."""

    @property
    def complete(self) -> bool:
        """Whether its value is that of a whole training."""
        return self.status in ("done", "stopped early")


class Standings:
    """The results of all members, by row of ``results``.

    ``evaluated``: what counts is ``loop.monitor`` of the validation split; else it is the training loss.
    """

    def __init__(self, results: list[Result], loop: Loop, *, evaluated: bool, max_loss: float = math.inf):
        self.results = results
        self._loop, self._evaluated, self._max_loss = loop, evaluated, max_loss
        self._monitor = loop.monitor if evaluated else "loss"
        self._sign = -1.0 if loop.best == "highest" and evaluated else 1.0

    def running(self) -> list[int]:
        """The members in training."""
        return [i for i, result in enumerate(self.results) if result.status == "running"]

    def waiting(self) -> list[int]:
        """The members that have not begun."""
        return [i for i, result in enumerate(self.results) if result.status == "waiting"]

    def wanted(self) -> list[int]:
        """The members whose weights are needed: those in training, and the best of those that stopped early."""
        best = self.best()
        return sorted({*self.running(), *([] if best is None else [best])})

    def train(
        self, steps: Mapping[int, int], values: Mapping[int, dict], failed_at: Mapping[int, int]
    ) -> dict[int, dict]:
        """Take note of a training report, member by member. Returns that of those that were in training."""
        shown = {}
        for i in self.running():
            result = self.results[i]
            shown[i] = {name: value for name, value in values[i].items() if name != "skipped"}
            result.step = steps[i]
            if failed_at[i] >= 0:
                result.status, result.step = "failed", failed_at[i]
            elif shown[i]["loss"] > self._max_loss:
                result.status = "diverged"
            elif not self._evaluated:
                self._note(result, shown[i])
        return shown

    def validation(self, steps: Mapping[int, int], values: Mapping[int, dict]) -> list[int]:
        """Take note of an evaluation, member by member. Returns those that have never been better."""
        better = []
        for i in self.running():
            if self._monitor not in values[i]:
                names = ", ".join(values[i])
                raise InputError(f"loop.monitor={self._monitor}; the evaluation returns no such metric, only {names}")
            result, value = self.results[i], self._sign * values[i][self._monitor]
            result.step = steps[i]
            if self._loop.patience is None or value < self._rank(result):  # NaN is never better
                self._note(result, values[i])
                better.append(i)
                continue
            result.since += 1
            if result.since >= self._loop.patience:
                result.status = "stopped early"
        return better

    def halve(self, factor: int) -> None:
        """At a rung: the best 1/factor of those in training go on, at least one."""
        running = sorted(self.running(), key=lambda i: self._rank(self.results[i]))
        for i in running[-(-len(running) // factor) :]:
            self.results[i].status = "halved"

    def compare(self, i: int, others: Sequence[float], factor: int) -> float:
        """At a rung: a member goes on if it is among the best 1/factor of all that have come so far.

        ``others`` are the ranks of those before it. Returns its own.
        """
        rank = min(self._rank(self.results[i]), sys.float_info.max)  # JSON has no infinity
        if sum(other <= rank for other in others) >= -(-(len(others) + 1) // factor):
            self.results[i].status = "halved"
        return rank

    def finish(self, *members: int) -> None:
        """These members, or all that are still in training, have come to the end."""
        for i in members or self.running():
            self.results[i].status = "done"

    def best(self) -> int | None:
        """The best of those that have come to the end."""
        complete = [i for i, result in enumerate(self.results) if result.complete]
        return min(complete, key=lambda i: self._rank(self.results[i]), default=None)

    def ranked(self) -> list[Result]:
        """Best first; who did not come to the end last, those that came furthest before the others."""

        def order(result: Result):
            lost = result.status in ("diverged", "failed")
            return lost, not result.complete, 0 if result.complete else -result.step, self._rank(result), result.member

        return sorted(self.results, key=order)

    def shown(self) -> dict[str, int | float]:
        """How many are in training, and the best value so far, for the screen."""
        best = min((self._rank(result) for result in self.results), default=math.inf)
        return {"running": len(self.running())} | (
            {f"best {self._monitor}": self._sign * best} if best < math.inf else {}
        )

    def saved(self) -> list[dict[str, Any]]:
        """For a checkpoint; JSON has no numbers that are not finite, so hyperparameters are not part of it."""
        return [{name: x for name, x in asdict(result).items() if name != "hyper"} for result in self.results]

    def restore(self, saved: list[dict[str, Any]]) -> None:
        """What `saved` returned."""
        for i, values in enumerate(saved):
            self.results[i] = Result(hyper=self.results[i].hyper, **values)

    def _note(self, result: Result, values: dict) -> None:
        result.metrics = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        result.value, result.at, result.since = result.metrics[self._monitor], result.step, 0

    def _rank(self, result: Result) -> float:
        return math.inf if result.value is None else self._sign * result.value
