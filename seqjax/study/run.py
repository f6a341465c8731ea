"""Running a study: many members trained, measured and saved as one program."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.checkpoint import Checkpoints
from seqjax.errors import InputError
from seqjax.reporting import Reporter
from seqjax.study import asha, engine
from seqjax.study.engine import Member, Plan
from seqjax.study.parts import (
    STEPS_PER_CALL,
    Measure,
    Outcome,
    Stream,
    Study,
    begin,
    checked,
    common_interval,
    largest_divisor,
    make_plan,
    numbered,
    report,
    rung_steps,
    stop_after_saving,
)
from seqjax.study.standings import Result, Standings
from seqjax.train import Hyper, Loop, Setup, State, sigterm
from seqjax.types import PyTree


class _Now(NamedTuple):
    """Where a study is."""

    step: int
    members: Member
    best: State | None  # with patience, of each member's best evaluation
    rows: list[int]  # which member each row is; -1 for one that only fills
    seconds: float


def run_study(
    config: Study,
    hypers: Hyper,
    keys: jax.Array,
    *,
    setup: Setup,
    loop: Loop,
    batches: Sequence[Callable[[int, int], Iterable]] | None = None,
    directory: Path | None = None,
    resume: bool = False,
    console: bool = True,
    first: int = 0,
) -> Outcome:
    """Train K models, which differ in their numbers and their keys, as one program.

    Each member is as if it were alone: one that fails changes no bit of another, and with engine "vmap" or "chunked" no
    bits depend on K. With "map" they are those of `seqjax.train.fit`. Members that end, for whatever reason, are left
    out as soon as half of the program is idle: programs of K, K/2, K/4, … members are compiled.

    Args:
      config: the engine, and who goes on.
      hypers: each number a scalar for all members, or ``[K]``.
      keys: ``[K]``; a member trains as a run whose ``setup.init`` gets its key.
      setup: model, training step, data and evaluation.
      loop: steps, and when to report, evaluate and save; patience, of each member by itself. ``on_nan`` has no effect.
      batches: ``(start, stop) -> batches`` of each member; by default all members get the batches of ``setup``.
      directory: for metrics.jsonl and checkpoints; without one nothing is written.
      resume: go on from the newest intact checkpoint in ``directory``, with the same bits.
      console: show progress, if there is a ``directory``.
      first: the number of the first member, in a study of several parts.

    Raises:
      InputError: a number is out of range, K disagrees, or the members do not fit into memory: it tells what would.
      SystemExit: 143, after SIGTERM, once all is saved.
    """
    if jax.process_count() > 1:
        raise InputError("a study runs in one process; start one on each machine, each with its own part of the grid.")
    hypers, k = checked(hypers, keys)
    if batches is not None and len(batches) != k:
        raise InputError(f"batches: there are {len(batches)} for {k} members; give one for each, or none at all.")
    if setup.evaluation is None and loop.patience is not None:
        raise InputError(f"loop.patience={loop.patience} without an evaluation; give setup one, or leave out patience.")
    if config.slots is not None and config.slots < k:
        return asha.run(config, hypers, keys, setup, loop, batches, directory, resume, console, first)
    every = common_interval(loop, evaluated=setup.evaluation is not None, saved=directory is not None)
    rungs = rung_steps(config, k, loop.steps, every=every)
    stride = largest_divisor(math.gcd(every, *rungs), STEPS_PER_CALL)  # of a call
    stream = Stream(setup, batches, stride, loop.steps)
    example = stream.example()
    batch = jax.tree.map(lambda a: a[0], example)
    plan = make_plan(config, setup, k, example, own=stream.own)
    results = [Result(first + i, {name: float(x[i]) for name, x in hypers._asdict().items()}) for i in range(k)]
    standings = Standings(results, loop, evaluated=setup.evaluation is not None, max_loss=config.max_loss)
    measure = None if setup.evaluation is None else Measure(setup.evaluation, config.eval_batches)

    with ExitStack() as stack:
        stop, saved, checkpoints, reporter = stack.enter_context(sigterm()), None, None, None
        if directory is not None:
            checkpoints = stack.enter_context(Checkpoints(directory / "checkpoints", keep=loop.keep))
            if resume:
                saved = checkpoints.restore(lambda metadata: _template(metadata, plan, setup, batch, loop))
            else:
                checkpoints.begin()
            resumed = None if saved is None else saved.step
            reporter = stack.enter_context(
                Reporter(directory, total_steps=loop.steps, resume_step=resumed, console=console)
            )
        if saved is None:
            rows = [*range(k), *[-1] * (plan.rows(k) - k)]
            members = begin(plan, setup, hypers, keys, batch, rows)
            best = jax.tree.map(jnp.copy, members.state) if loop.patience is not None else None
            now = _Now(0, members, best, rows, 0.0)
        else:
            standings.restore(saved.metadata["results"])
            members, best = saved.tree
            now = _Now(saved.step, members, best, saved.metadata["rows"], saved.metadata["seconds"])
        began, logged = time.monotonic() - now.seconds, (time.monotonic(), now.step)

        while standings.running():
            step = min(loop.steps, (now.step // stride + 1) * stride)
            now = _train(plan, setup, stream, now, step)
            last, running = step == loop.steps, len(standings.running())
            if step % loop.log_every == 0 or last:
                members, values, failed_at = report(now.members)
                now = now._replace(members=members)
                steps = dict.fromkeys(now.rows, step)
                shown = standings.train(steps, _by_member(now, values), _by_member(now, failed_at))
                if reporter is not None:
                    rate = (step - logged[1]) * running / max(time.monotonic() - logged[0], 1e-9)
                    reporter.members(step, "train", numbered(shown, first), time.monotonic() - began)
                    reporter.progress(step, {**standings.shown(), "member steps/s": rate})
                logged = time.monotonic(), step
            if measure is not None and (step % loop.eval_every == 0 or step in rungs or last):
                values = _by_member(now, measure(plan, now.members.state))
                shown = {i: values[i] for i in standings.running()}
                better = standings.validation(dict.fromkeys(now.rows, step), values)
                if now.best is not None:
                    where = np.isin(now.rows, better)
                    now = now._replace(best=engine.choose_all(plan, where, now.members.state, now.best))
                if reporter is not None:
                    reporter.members(step, "validation", numbered(shown, first), time.monotonic() - began)
                logged = time.monotonic(), step
            if last:
                standings.finish()
            elif step in rungs:
                standings.halve(config.halving)
            ended = not standings.running()
            now = now if ended else _compacted(plan, now, standings.wanted(), k)
            stopping = stop.is_set() and not ended
            if checkpoints is not None and (step % loop.checkpoint_every == 0 or ended or stopping):
                now = now._replace(seconds=time.monotonic() - began)
                metadata = {"rows": now.rows, "seconds": now.seconds, "results": standings.saved()}
                checkpoints.save(step, (now.members, now.best), metadata)
            if stopping:
                stop_after_saving(checkpoints, reporter, f"at step {step}")
        seconds = time.monotonic() - began

    ranked, best = standings.ranked(), None
    if ranked[0].complete:
        row = now.rows.index(ranked[0].member - first)
        best = jax.tree.map(lambda a: a[row], now.members.state if now.best is None else now.best)
    return Outcome(ranked, best, plan, seconds)


def _by_member(now: _Now, values: Sequence) -> dict:
    return dict(zip(now.rows, values, strict=True))


# --- the parts of the loop


def _template(metadata: dict, plan: Plan, setup: Setup, batch: PyTree, loop: Loop) -> PyTree:
    """The shapes of what was saved."""
    one = engine.abstract_member(setup, batch)
    members = engine.abstract_members(one, len(metadata["rows"]), plan)
    return members, members.state if loop.patience is not None else None


def _train(plan: Plan, setup: Setup, stream: Stream, now: _Now, step: int) -> _Now:
    members = now.members
    for batches in stream.take(now.step, step, now.rows):
        members = engine.advance_all(plan, setup, members, batches, own=stream.own)
    return now._replace(step=step, members=members)


def _compacted(plan: Plan, now: _Now, wanted: list[int], k: int) -> _Now:
    """Only the wanted members, once a narrower program holds them."""
    widths = (plan.rows(-(-k // 2**i)) for i in range(k.bit_length()))
    width = min(n for n in widths if n >= len(wanted))
    if width >= len(now.rows):
        return now
    kept = [now.rows.index(i) for i in wanted]
    kept += kept[:1] * (width - len(kept))
    members, best = engine.take((now.members, now.best), kept, plan)
    return now._replace(members=members, best=best, rows=[*wanted, *[-1] * (width - len(wanted))])
