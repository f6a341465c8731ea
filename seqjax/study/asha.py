"""Asynchronous successive halving (Li et al., 2020) in one program with a fixed number of places.

A member trains in a place, from one rung to the next. There it goes on if it is among the best 1/halving of all that
have come to this rung so far; otherwise, or at its end, the next one that waits begins in its place. So members in
training differ in age, and each reads the batches of its own steps, as if it were alone.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from seqjax.checkpoint import Checkpoints
from seqjax.errors import InputError
from seqjax.reporting import Reporter
from seqjax.study import engine
from seqjax.study.engine import Member, Plan
from seqjax.study.parts import (
    STEPS_PER_CALL,
    Measure,
    Outcome,
    Study,
    begin,
    largest_divisor,
    make_plan,
    numbered,
    report,
    rung_steps,
    stack_all,
    stop_after_saving,
)
from seqjax.study.standings import Result, Standings
from seqjax.train import Hyper, Loop, Setup, State, sigterm
from seqjax.types import PyTree


class _Now(NamedTuple):
    """Where it is, between two rungs."""

    tick: int
    members: Member
    best: State  # of the best member that has come to its end
    rows: list[int]  # which member each place has; -1 for none
    ages: list[int]  # the steps it has trained
    seen: dict[str, list[float]]  # rung -> ranks of all that have come to it
    seconds: float


def run(
    config: Study,
    hypers: Hyper,
    keys: jax.Array,
    setup: Setup,
    loop: Loop,
    batches: Sequence[Callable[[int, int], Iterable]] | None,
    directory: Path | None,
    resume: bool,
    console: bool,
    first: int,
) -> Outcome:
    """`run_study` for ``config.slots``; members are evaluated and may be replaced every ``rung`` steps."""
    k, slots = len(keys), config.slots or 1
    if loop.patience is not None:
        raise InputError(f"loop.patience={loop.patience} and study.slots={slots}: members end at rungs; leave one out.")
    rungs = rung_steps(config, k, loop.steps)
    if config.rung is None:  # the nearest that divides the steps
        rung = largest_divisor(loop.steps, rungs[0])
        rungs = rung_steps(replace(config, rung=rung), k, loop.steps)
    stretch = rungs[0] if rungs else loop.steps
    if loop.steps % stretch:
        raise InputError(f"loop.steps={loop.steps} is no multiple of study.rung={stretch}, where members are compared.")
    sources = batches or [setup.batches] * k
    piece = largest_divisor(stretch, STEPS_PER_CALL)
    example = stack_all(list(sources[0](0, piece)))
    plan = make_plan(config, setup, slots, example, own=True)
    results = [Result(first + i, {name: float(x[i]) for name, x in hypers._asdict().items()}) for i in range(k)]
    for result in results:
        result.status = "waiting"
    standings = Standings(results, loop, evaluated=setup.evaluation is not None, max_loss=config.max_loss)
    measure = None if setup.evaluation is None else Measure(setup.evaluation, config.eval_batches)
    batch = jax.tree.map(lambda a: a[0], example)
    entered = partial(begin, plan, setup, hypers, keys, batch)

    with ExitStack() as stack:
        stop, saved, checkpoints, reporter = stack.enter_context(sigterm()), None, None, None
        if directory is not None:
            checkpoints = stack.enter_context(Checkpoints(directory / "checkpoints", keep=loop.keep))
            if resume:
                saved = checkpoints.restore(lambda metadata: _template(metadata, plan, setup, batch))
            else:
                checkpoints.begin()
            resumed = None if saved is None else saved.step
            total = -(-k * loop.steps // (stretch * slots))  # ticks, if nobody ended early
            reporter = stack.enter_context(Reporter(directory, total_steps=total, resume_step=resumed, console=console))
        if saved is None:
            rows = [-1] * plan.rows(slots)
            members = entered(rows)
            best = jax.tree.map(lambda a: a[0], members.state)
            now = _Now(0, members, best, rows, [0] * len(rows), {}, 0.0)
        else:
            standings.restore(saved.metadata["results"])
            (members, best), rest = saved.tree, saved.metadata
            now = _Now(saved.step, members, best, rest["rows"], rest["ages"], rest["seen"], rest["seconds"])
        began = time.monotonic() - now.seconds

        while True:
            now = _filled(now, standings, entered, plan, slots)
            if not standings.running():
                break
            now = _train(now, plan, setup, sources, stretch=stretch, piece=piece, end=loop.steps)
            ages = dict(zip(now.rows, now.ages, strict=True))
            members, values, failed_at = report(now.members)
            now = now._replace(members=members)
            losses = dict(zip(now.rows, values, strict=True))
            failed = dict(zip(now.rows, failed_at, strict=True))
            shown = {"train": standings.train(ages, losses, failed)}
            if measure is not None:
                values = dict(zip(now.rows, measure(plan, now.members.state), strict=True))
                shown["validation"] = {i: values[i] for i in standings.running()}
                standings.validation(ages, values)
            before = standings.best()
            for i in standings.running():
                if ages[i] >= loop.steps:
                    standings.finish(i)
                elif ages[i] in rungs:
                    ranks = now.seen.setdefault(str(ages[i]), [])
                    ranks.append(standings.compare(i, ranks, config.halving))
            champion = standings.best()
            if champion is not None and champion != before and champion in now.rows:
                row = now.rows.index(champion)
                now = now._replace(best=jax.tree.map(lambda a, row=row: a[row], now.members.state))
            if reporter is not None:
                for split, found in shown.items():
                    found = {i: {"age": ages[i], **values} for i, values in found.items()}
                    reporter.members(now.tick, split, numbered(found, first), time.monotonic() - began)
                reporter.progress(now.tick, {**standings.shown(), "waiting": len(standings.waiting())})
            ended = not standings.running() and not standings.waiting()
            stopping = stop.is_set() and not ended
            if checkpoints is not None:
                now = now._replace(seconds=time.monotonic() - began)
                metadata = {
                    "rows": now.rows,
                    "ages": now.ages,
                    "seen": now.seen,
                    "seconds": now.seconds,
                    "results": standings.saved(),
                }
                checkpoints.save(now.tick, (now.members, now.best), metadata)
            if stopping:
                stop_after_saving(checkpoints, reporter, f"after {now.tick} rungs")
        seconds = time.monotonic() - began
    return Outcome(standings.ranked(), None if standings.best() is None else now.best, plan, seconds)


def _filled(now: _Now, standings: Standings, entered: Callable[[list[int]], Member], plan: Plan, slots: int) -> _Now:
    """Everybody who waits and finds a free place begins there."""
    running, waiting = standings.running(), standings.waiting()
    free = [row for row in range(slots) if now.rows[row] not in running]
    entering = list(zip(free, waiting, strict=False))
    if not entering:
        return now
    rows, ages = list(now.rows), list(now.ages)
    for row, i in entering:
        rows[row], ages[row] = i, 0
        standings.results[i].status = "running"
    where = np.isin(np.arange(len(rows)), [row for row, _ in entering])
    members = engine.choose_all(plan, where, entered(rows), now.members)
    return now._replace(members=members, rows=rows, ages=ages)


def _train(now: _Now, plan: Plan, setup: Setup, sources: Sequence, *, stretch: int, piece: int, end: int) -> _Now:
    """All places, from one rung to the next."""
    # Places without a member in training go on with the last batches; nobody looks at them.
    starts = [min(age, end - stretch) for age in now.ages]
    read = [iter(sources[max(i, 0)](start, end)) for i, start in zip(now.rows, starts, strict=True)]
    members = now.members
    for _ in range(stretch // piece):
        try:
            own = stack_all([stack_all(list(itertools.islice(batches, piece))) for batches in read])
        except ValueError as error:
            raise InputError(
                "study.slots: batches of different steps differ in shape, as buckets do; leave out slots."
            ) from error
        members = engine.advance_all(plan, setup, members, own, own=True)
    return now._replace(tick=now.tick + 1, members=members, ages=[age + stretch for age in now.ages])


def _template(metadata: dict, plan: Plan, setup: Setup, batch: PyTree) -> PyTree:
    one = engine.abstract_member(setup, batch)
    return engine.abstract_members(one, len(metadata["rows"]), plan), one.state
