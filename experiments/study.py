"""A study of any experiment with a training loop: many of its runs, trained as one program.

    python -m experiments.study char_lm --grid lr=1e-4:1e-2:8:log --seeds 4
    python -m experiments.study char_lm smoke --grid lr=1e-3:1e-1:4:log model.cell=lstm,gru
    python -m experiments.study word_lm --latin lr=1e-4:1e-2:log dropout=0:0.6 --samples 32 --study.halving 2
    python -m experiments.study toy_seq2seq copy --optuna lr=1e-4:1e-1:log --samples 48 --batch 12
    python -m experiments.study char_lm --resume

What follows the experiment's name is its own command line: preset, --loop.steps, --model.d_hidden and so on. An axis
is ``name=a,b,c``, ``name=low:high:n`` or, where points are drawn, ``name=low:high``; ``:log`` makes its steps equal
factors. Numbers of ``hyper`` differ within one program; what is static, such as model.cell, gets a program a value.

A study's directory has config.json, metrics.jsonl (a line for each member), results.jsonl and table.md (best first),
figures, and ``best``: the run directory of the best member, for ``python -m experiments.char_lm sample --run …/best``.
"""

import importlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, make_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.embedding_runs import use_cores
from seqjax import train
from seqjax.config import Run, changed, differing, run_experiment, write_config
from seqjax.errors import InputError, TrainingError, check_least
from seqjax.reporting import read_metrics, write_json
from seqjax.study import Result, Standings, Study, axes, figures, run_study
from seqjax.study.tables import seeds_table, table

EXPERIMENTS = (
    *("char_lm", "word_lm", "fixed_window_lm", "toy_seq2seq", "g2p", "translate", "summarise"),
    *("classify", "tag", "answer", "memory_tasks", "pixel_sequences", "music", "forecast"),
)
FIXED = ("seed", "data_seed", "data", "start", "loop", "study", "search", "report")
"""What all members have in common."""


@dataclass(frozen=True)
class Points:
    """What a study adds to the configuration of its experiment."""

    grid: tuple[str, ...] = ()
    """All combinations of the values of these axes."""
    random: tuple[str, ...] = ()
    """Points drawn at random from these axes."""
    latin: tuple[str, ...] = ()
    """A Latin hypercube: points drawn so that they spread evenly over each of these axes."""
    optuna: tuple[str, ...] = ()
    """Points proposed by Optuna, a batch at a time, from what came of those before."""
    samples: int = 32
    """Points of random, latin and optuna."""
    batch: int = 16
    """Points that Optuna proposes at once."""
    seeds: int = 1
    """Members for each point: seed, seed + 1, …"""
    own_data: bool = False
    """Each seed has its own order of the data, as a run of its own has; by default all members share one."""
    study: Study = Study()

    def __post_init__(self):
        super().__post_init__()  # that of the experiment's configuration
        check_least(self, samples=1, batch=1, seeds=1)
        given = [name for name in ("grid", "random", "latin", "optuna") if getattr(self, name)]
        if len(given) > 1:
            raise InputError(f"both {' and '.join(given)} are given: a study proposes its points in one way.")
        names = [axis.name.removeprefix("hyper.") for axis in self.axes]
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"{', '.join(twice)} is given as two axes; give it once.")
        for name in names:
            if name.partition(".")[0] in (*FIXED, *(f.name for f in fields(Points))):
                hint = "use --seeds" if name in ("seed", "data_seed") else "run a study for each of its values"
                raise InputError(f"{name} is the same for all members of a study; {hint}.")
            if self.optuna and name not in train.Hyper._fields:
                raise InputError(f"{name} is static; optuna proposes numbers of hyper only: use grid, random or latin.")

    @property
    def axes(self) -> tuple[axes.Axis, ...]:
        """What is studied."""
        return tuple(axes.parse_axis(text) for text in (self.grid or self.random or self.latin or self.optuna))


class Part(NamedTuple):
    """Members that are one program: they differ in numbers and seeds only."""

    config: Any
    choices: axes.Point  # what is static
    points: list[dict[str, float]]  # numbers of hyper


class Trained(NamedTuple):
    """A member, the run it stands for, and how far it came."""

    point: axes.Point
    config: Any
    result: Result


class Best(NamedTuple):
    """The best of the members that came to the end."""

    member: Trained
    state: train.State
    setup: train.Setup


def divide(config: Any, points: Sequence[axes.Point]) -> list[Part]:
    """The points by what is static in them, in order of first appearance."""
    parts: dict[tuple, Part] = {}
    for point in points:
        numbers, choices = axes.split_point(point)
        part = parts.setdefault(tuple(choices.items()), Part(changed(config, choices), choices, []))
        part.points.append(numbers)
    return list(parts.values())


def runs_of(module: Any, part: Part) -> list[tuple[axes.Point, Any]]:
    """Each member of a part as a run of the experiment: seeds of a point side by side."""
    config = part.config
    base = module.Config(**{f.name: getattr(config, f.name) for f in fields(module.Config)})
    data_seed = config.seed if config.data_seed is None else config.data_seed
    found = []
    for numbers in part.points:
        for seed in range(config.seed, config.seed + config.seeds):
            shared = None if config.own_data or data_seed == seed else data_seed
            run = replace(base, seed=seed, data_seed=shared, hyper=base.hyper._replace(**numbers))
            found.append((numbers | part.choices, run))
    return found


def train_part(module: Any, part: Part, directory: Path, run: Run, first: int) -> tuple[list[Trained], Best | None]:
    """Train the members of a part, the first of which has the number ``first``; and the best of them."""
    config, members = part.config, runs_of(module, part)
    hypers = axes.stack_hypers(config.hyper, [member.hyper._asdict() for _, member in members])
    # Dropout, averages and the like are in the program if any member uses them.
    used = train.Hyper._make(max(values.tolist()) for values in hypers)
    setup = module.setup(replace(members[0][1], hyper=used), run.directory / "best")
    batches = None
    if config.own_data:
        seeds = {member.seed: member for _, member in members}  # the data depend on nothing else
        of_seed = {seed: module.setup(member, run.directory / "best").batches for seed, member in seeds.items()}
        batches = [of_seed[member.seed] for _, member in members]
    keys = jnp.stack([jax.random.key(member.seed) for _, member in members])
    what = ", ".join(f"{name} {value}" for name, value in part.choices.items())
    print(f"{what + ': ' if what else ''}{len(members)} members in one program, on {jax.default_backend()}")
    outcome = run_study(
        config.study,
        hypers,
        keys,
        setup=setup,
        loop=config.loop,
        batches=batches,
        directory=directory,
        resume=run.resume,
        first=first,
    )
    trained = {r.member: Trained(*members[r.member - first], r) for r in outcome.results}
    plan = outcome.plan
    at_once = {None: "all at once", 1: "one after the other"}.get(plan.chunk, f"{plan.chunk} at once")
    print(f"{outcome.seconds:.0f} s, members {at_once} on each of {plan.devices} devices")
    best = None
    if outcome.best is not None:
        best = Best(trained[outcome.results[0].member], outcome.best, setup)
    return [trained[first + i] for i in range(len(members))], best


def run_all(module: Any, config: Any, run: Run) -> tuple[list[Trained], Best | None]:
    """All members, whatever number of programs they need; and the best."""
    n, seed, highest = config.samples, config.seed, config.loop.best == "highest"
    if config.optuna:
        optuna = axes.Optuna(config.axes, seed=seed, highest=highest)
        rounds = (optuna.ask(min(config.batch, n - done)) for done in range(0, n, config.batch))
    elif config.random or config.latin:
        draw = axes.random if config.random else axes.latin_hypercube
        optuna, rounds = None, [draw(config.axes, n, seed=seed)]
    else:
        optuna, rounds = None, [axes.grid(config.axes)]
    everybody: list[Trained] = []
    best: Best | None = None
    number = 0
    for points in rounds:
        parts = divide(config, points)
        several = len(parts) > 1 or optuna is not None
        begun = len(everybody)
        for part in parts:
            directory = run.directory / "parts" / str(number) if several else run.directory
            trained, found = train_part(module, part, directory, run, len(everybody))
            number += 1
            everybody += trained
            if found is not None and (best is None or _better(found.member.result, best.member.result, highest)):
                best = found
        if optuna is not None:
            values = [trained.result.value if trained.result.complete else None for trained in everybody[begun:]]
            by_point = [values[i : i + config.seeds] for i in range(0, len(values), config.seeds)]
            optuna.tell([None if None in found else sum(found) / len(found) for found in by_point])
    return everybody, best


def _better(a: Result, b: Result, highest: bool) -> bool:
    if a.value is None or b.value is None:
        return b.value is None
    return a.value > b.value if highest else a.value < b.value


def command_of(module: Any, config: Any) -> str:
    """The command that trains this configuration alone: the preset next to it, and what differs."""
    of_kind = {name: preset for name, (_, preset) in module.PRESETS.items() if type(preset.model) is type(config.model)}
    differences = {name: differing(preset, config) for name, preset in of_kind.items()}
    name = min(differences, key=lambda name: len(differences[name]))
    words = [] if name == next(iter(module.PRESETS)) else ["train", name]
    for field, value in differences[name].items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{field}", *(str(value) for value in values)]
    return shlex.join(["python", "-m", f"experiments.{module.NAME}", *words])


def write_results(module: Any, config: Any, everybody: Sequence[Trained], directory: Path) -> list[dict[str, Any]]:
    """results.jsonl, table.md and the figures; returns the lines of the first."""
    standings = Standings([trained.result for trained in everybody], config.loop, evaluated=True)
    rows = []
    for rank, result in enumerate(standings.ranked(), start=1):
        trained = everybody[result.member]
        row = {
            "rank": rank,
            "member": result.member,
            "seed": trained.config.seed,
            "point": trained.point,
            "status": result.status,
            "step": result.step,
            "value": result.value,
            "metrics": result.metrics,
            "command": command_of(module, trained.config),
        }
        rows.append(row)
    monitor, highest = config.loop.monitor, config.loop.best == "highest"
    (directory / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tables = [table(rows, monitor=monitor)]
    tables += [seeds_table(rows, monitor=monitor, highest=highest)] if config.seeds > 1 else []
    (directory / "table.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    files = [directory / "metrics.jsonl", *sorted(directory.glob("parts/*/metrics.jsonl"))]
    curves = [row for file in files if file.exists() for row in read_metrics(file)]
    curves = [row | {"step": row.get("age", row["step"])} for row in curves]  # with slots, members begin at any time
    figures.draw(rows, curves, directory, monitor=monitor, highest=highest)
    print()
    print(table(rows, monitor=monitor, limit=10) if config.seeds == 1 else tables[1])
    return rows


def study_of(module: Any) -> Callable[[Any, Run], None]:
    """``(config, run)``: a study of the experiment in ``module``."""

    def run_it(config: Any, run: Run) -> None:
        if not config.axes and config.seeds == 1:
            raise InputError(
                "nothing differs between members: give axes, such as --grid lr=1e-4:1e-2:8:log, or --seeds."
            )
        folder = run.directory / "best"
        folder.mkdir(exist_ok=True)
        everybody, best = run_all(module, config, run)
        write_results(module, config, everybody, run.directory)
        print(f"\nresults, tables and figures: {run.directory}")
        if best is None:
            raise TrainingError("no member came to the end: all losses were too large or not finite; see table.md.")
        member = best.member
        # Of a study in parts, the last one has left its shapes of batches there.
        module.setup(member.config, folder)
        write_config(folder, module.NAME, member.config, shlex.split(command_of(module, member.config))[3:])
        train.save_run(folder, best.setup, best.state, member.config.hyper)
        write_json(folder / "summary.json", member.result.metrics)
        print(f"the best:      python -m experiments.{module.NAME} evaluate --run {folder}")
        print(f"it by itself:  {command_of(module, member.config)}")

    return run_it


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv[0] if argv else ""
    if name not in EXPERIMENTS:
        known = f"of {', '.join(EXPERIMENTS)}, as in: python -m experiments.study char_lm --grid lr=1e-4:1e-2:8:log"
        if name in ("-h", "--help"):
            print(f"{__doc__}\nExperiments: {', '.join(EXPERIMENTS)}")
            return 0
        wrong = f"{name!r} is no experiment to study: " if name else ""
        print(f"error: {wrong}give one {known}", file=sys.stderr)
        return 2
    use_cores()
    module = importlib.import_module(f"experiments.{name}")
    config_type = make_dataclass("StudyConfig", (), bases=(Points, module.Config), frozen=True)
    presets = {
        preset: (text, config_type(**{f.name: getattr(config, f.name) for f in fields(config)}))
        for preset, (text, config) in module.PRESETS.items()
    }
    return run_experiment(f"study {name}", presets, train=study_of(module), description=__doc__, argv=argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
