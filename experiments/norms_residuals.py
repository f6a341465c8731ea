"""Why normalization and residual connections matter: networks with and without them, over their depth.

    python -m experiments.norms_residuals              # digits of scikit-learn, then Transformers on the plays
    python -m experiments.norms_residuals --data.path my.txt --digits.depths 2 64 --digits.optimizer adamw
    python -m experiments.norms_residuals --resume     # skips what is done

Digits: a perceptron of residual blocks reads handwritten digits. Characters: a Transformer language model. Every
combination of norm, place (see `Variant`), residual connection and depth is a program that trains all its members,
seeds × learning rates, side by side. The learning rate is the one with the lowest mean validation loss; the table has
the digits' accuracy on test data, the characters' loss on the validation data that chose the rate, and the norm of the
gradient at the first layer over that at the last, before the first step. A step whose loss or gradient is not finite
changes nothing; members with such a step are counted in the table. Gradients are not clipped (``--hyper.clip``).

The run directory has a line a member and split in metrics.jsonl, and table.md, summary.json, norms_residuals.png.
"""

import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments import char_lm, lm_runs
from seqjax import losses, train
from seqjax.config import Run, run_experiment
from seqjax.data.digits import small_digits
from seqjax.errors import InputError, check_least, check_seeds
from seqjax.layers import affine
from seqjax.models.transformer_lm import TransformerConfig
from seqjax.normalization import BatchStats, batch_norm, batch_stats, layer_norm, rms_norm
from seqjax.reporting import read_metrics

NAME = "norms_residuals"
D_HEAD = 16


class Variant(NamedTuple):
    """How a sublayer f is wrapped, as in `seqjax.transformer.Style`.

    place "pre": x + f(norm(x)); "post": norm(x + f(x)); "none": x + f(x). Without residual "x +" is left out.
    """

    norm: str  # none, layer, rms, batch
    place: str
    residual: bool


@dataclass(frozen=True)
class Part:
    """One of the two studies: its factors and how its members are trained."""

    norms: tuple[Literal["none", "layer", "rms", "batch"], ...] = ("none", "layer", "rms", "batch")
    places: tuple[Literal["pre", "post"], ...] = ("pre", "post")
    """Of the norms; see `Variant`."""
    depths: tuple[int, ...] = (2, 8, 32)
    """Blocks of two matrices, or layers of a Transformer."""
    width: int = 32
    lrs: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    """Peak learning rates; the best is chosen by validation."""
    seeds: int = 3
    """Members for each learning rate."""
    optimizer: Literal["adamw", "sgd"] = "sgd"
    steps: int = 300
    warmup: int = 20
    batch_size: int = 64

    def __post_init__(self):
        for name in ("norms", "places", "depths", "lrs"):
            values = getattr(self, name)
            if not values or len({*values}) < len(values):
                raise InputError(f"{name}={values}; give at least one, and none twice.")
        check_least(self, width=1, seeds=1, steps=1, warmup=0, batch_size=1)
        if min(self.depths) < 1 or not min(self.lrs) > 0:
            raise InputError(f"depths={self.depths} must be at least 1 and lrs={self.lrs} above 0.")


@dataclass(frozen=True)
class Config:
    """One run."""

    seed: int = 0
    """Of the first member; the others have the next ones."""
    data: char_lm.Data = char_lm.Data()
    """The text."""
    digits: Part = Part()
    characters: Part = Part(
        norms=("none", "layer"),
        depths=(2, 6),
        lrs=(1e-3, 3e-3, 1e-2, 3e-2),
        seeds=1,
        optimizer="adamw",
        batch_size=16,
    )
    window: int = 32
    """Characters of a row of text."""
    hyper: train.Hyper = train.Hyper(clip=math.inf)
    """Its learning rate is replaced by those of the parts."""

    def __post_init__(self):
        train.check_hyper(self.hyper)
        train.check_unused(self.hyper, "scheduled_sampling", "embed_lr", "layer_lr")
        check_seeds(self)
        check_least(self, window=1)
        if "batch" in self.characters.norms:
            raise InputError("characters.norms: batch norm would see the future of a text; choose layer, rms or none.")
        if self.characters.width % D_HEAD:
            raise InputError(f"characters.width={self.characters.width}; it must be a multiple of {D_HEAD}.")


PRESETS = {
    "default": ("both parts, about 7 minutes on 2 cores", Config()),
    "smoke": (
        "about 20 seconds, to see that everything works",
        Config(
            digits=Part(
                norms=("batch",),
                places=("pre",),
                depths=(2,),
                width=8,
                lrs=(0.03, 0.1),
                seeds=2,
                steps=5,
                warmup=0,
            ),
            characters=Part(
                norms=("layer",),
                places=("post",),
                depths=(1,),
                width=16,
                lrs=(1e-2, 3e-2),
                seeds=1,
                optimizer="adamw",
                steps=5,
                warmup=0,
                batch_size=4,
            ),
            window=8,
        ),
    ),
}


# --- the network for digits


class Block(NamedTuple):
    """Weights of all blocks, with a leading axis L."""

    g: jax.Array  # [L, D]
    b: jax.Array
    w_in: jax.Array  # [L, D, D]
    b_in: jax.Array
    w_out: jax.Array
    b_out: jax.Array


class Network(NamedTuple):
    """A perceptron of L residual blocks f.

    x = image w_x + b_x
    x = x + f(norm(x)),  f(x) = relu(x w_in + b_in) w_out + b_out,     for each block, or as `Variant` says
    scores = norm(x) w_y + b_y                                         "post" and "none" leave this norm out
    """

    w_x: jax.Array  # [64, D]
    b_x: jax.Array
    blocks: Block
    g: jax.Array  # [D]
    b: jax.Array
    w_y: jax.Array  # [D, 10]
    b_y: jax.Array


class Stats(NamedTuple):
    """Running statistics of batch norm; other norms leave them as they are."""

    blocks: BatchStats  # [L, D]
    last: BatchStats  # [D]


def init_network(key: jax.Array, depth: int, width: int) -> tuple[Network, Stats]:
    """Variance 1/fan-in, 2/fan-in before a relu (He et al., 2015): a block without norm keeps the variance of x."""
    keys = jax.random.split(key, 4)

    def normal(key, *shape, scale=1.0):
        return jax.random.normal(key, shape) * math.sqrt(scale / shape[-2])

    ones, zeros = jnp.ones((depth, width)), jnp.zeros((depth, width))
    matrices = (depth, width, width)
    w_in, w_out = normal(keys[1], *matrices, scale=2.0), normal(keys[2], *matrices)
    blocks = Block(ones, zeros, w_in, zeros, w_out, zeros)
    first, last = normal(keys[0], 64, width), normal(keys[3], width, 10)
    stats = batch_stats(width)
    return (
        Network(first, zeros[0], blocks, ones[0], zeros[0], last, jnp.zeros(10)),
        Stats(jax.tree.map(lambda a: jnp.tile(a, (depth, 1)), stats), stats),
    )


def apply_network(
    variant: Variant, params: Network, stats: Stats, x: jax.Array, *, train: bool
) -> tuple[jax.Array, Stats]:
    """``(scores [B, 10], stats)`` of images ``[B, 64]``; a loop over the blocks, so that depth costs no compiling."""

    def norm(x, g, b, stats):
        if variant.norm == "batch":
            return batch_norm(x, g, b, stats, train=train)
        return (layer_norm(x, g, b) if variant.norm == "layer" else rms_norm(x, g)), stats

    def block(x, inputs):
        p, stats = inputs
        y, stats = norm(x, p.g, p.b, stats) if variant.place == "pre" else (x, stats)
        y = affine(jax.nn.relu(affine(y, p.w_in, p.b_in)), p.w_out, p.b_out)
        y = x + y if variant.residual else y
        return norm(y, p.g, p.b, stats) if variant.place == "post" else (y, stats)

    x, inner = lax.scan(block, affine(x, params.w_x, params.b_x), (params.blocks, stats.blocks))
    x, last = norm(x, params.g, params.b, stats.last) if variant.place == "pre" else (x, stats.last)
    return affine(x, params.w_y, params.b_y), Stats(inner, last)


# --- the two tasks


class Task(NamedTuple):
    """A model and its loss as pure functions."""

    init: Callable  # key -> (params, extra)
    loss_fn: Callable  # as `seqjax.train` wants it; its batch is (training data, rows [B])
    evaluate: Callable  # (params, extra, data) -> {metric: (sum, weight)}
    matrices: Callable  # gradients of params -> those of w_in, [L, …]


def digits_task(variant: Variant, depth: int, part: Part) -> Task:
    """Classify ``(images [N, 64], labels [N])``."""

    def loss_fn(params, stats, batch, key, hyper):
        (images, labels), rows = batch
        scores, stats = apply_network(variant, params, stats, images[rows], train=True)
        return losses.cross_entropy(scores, labels[rows]), (stats, {})

    def evaluate(params, stats, data):
        images, labels = data
        scores, _ = apply_network(variant, params, stats, images, train=False)
        loss = losses.cross_entropy(scores, labels)
        correct = jnp.sum(jnp.argmax(scores, -1) == labels).astype(jnp.float32)
        return {"loss": loss, "accuracy": (correct, loss[1])}

    return Task(
        partial(init_network, depth=depth, width=part.width), loss_fn, evaluate, lambda grads: grads.blocks.w_in
    )


def characters_task(variant: Variant, depth: int, part: Part, window: int, vocab_size: int) -> Task:
    """Predict every character of the rows of a text, ``[N, T + 1]``, from those before it."""
    model = lm_runs.build(
        TransformerConfig(
            d_model=part.width,
            n_heads=part.width // D_HEAD,
            n_layers=depth,
            context=window,
            norm="rms" if variant.norm == "rms" else "layer",
            norm_place=variant.place,
            residual=variant.residual,
        ),
        vocab_size,
    )

    def loss(params, texts):
        texts = texts.astype(jnp.int32)  # on disk a character is a byte
        _, scores = model.apply(params, texts[:, :-1])
        return losses.cross_entropy(scores, texts[:, 1:])

    def loss_fn(params, extra, batch, key, hyper):
        texts, rows = batch
        return loss(params, texts[rows]), (extra, {})

    def matrices(grads):
        return jnp.stack([grads["layers"][i].w_in for i in range(depth)])

    return Task(
        lambda key: (model.init(key), ()), loss_fn, lambda params, extra, texts: {"loss": loss(params, texts)}, matrices
    )


def digits_data() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """split -> (images [N, 64] from -1 to 1, labels [N]): 60 % train, 20 % validate, 20 % test."""
    pixels, labels = small_digits()
    # In the file the digits stand writer by writer. RandomState never changes, unlike Generator.
    order = np.random.RandomState(0).permutation(len(labels))
    fifth = len(order) // 5
    parts = np.split(order, [len(order) - 2 * fifth, len(order) - fifth])
    arrays = [(2 * pixels[part].reshape(len(part), -1) - 1, labels[part]) for part in parts]
    return dict(zip(("train", "validation", "test"), arrays, strict=True))


# --- training all members of a unit


class Unit(NamedTuple):
    """What is compiled as one program."""

    part: str
    norm: str
    place: str
    residual: bool
    depth: int

    @property
    def variant(self) -> Variant:
        """Without the depth."""
        return Variant(self.norm, self.place, self.residual)


def units(name: str, part: Part) -> Iterator[Unit]:
    """All units of a part; without a norm there is no place."""
    for norm in part.norms:
        places = ("none",) if norm == "none" else part.places
        for place, residual, depth in itertools.product(places, (True, False), part.depths):
            yield Unit(name, norm, place, residual, depth)


# Compiling takes much of the time: at this level 0.7 to 0.85 of the default's on a CPU, and the programs were as fast.
_compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})


class Gradients(NamedTuple):
    """State of `recorded`: the norms of the last gradients of each layer's ``w_in``, [L]."""

    norms: jax.Array


def recorded(matrices: Callable, depth: int) -> optax.GradientTransformation:
    """Changes nothing; keeps the norms of the gradients, NaN before the first and while none is finite."""

    def update(updates, state, params=None):
        return updates, Gradients(jnp.sqrt(jnp.sum(jnp.square(matrices(updates)), axis=(1, 2))))

    return optax.GradientTransformation(lambda params: Gradients(jnp.full(depth, jnp.nan)), update)


@partial(_compiled, static_argnames=("task", "optimizer"))
def train_members(
    task: Task, optimizer: Callable, states: train.State, hypers: train.Hyper, data: Any, rows: jax.Array
) -> tuple[train.State, jax.Array, dict]:
    """Train all members side by side in one program.

    Args:
      states: leaves ``[M, …]``, as are those of ``hypers``.
      data: to train on, the same for all.
      rows: of data, for each member and step, ``[M, T, B]``.

    Returns:
      the states after the last step; the norms of the first gradients, ``[M, L]``; the metrics of each step.
    """
    step = train.make_step(task.loss_fn, optimizer)

    def member(state, hyper, rows):
        def body(state, rows):
            state, metrics = step(state, (data, rows), hyper)
            return state, (state.opt_state[0].norms, metrics)

        state, (norms, metrics) = lax.scan(body, state, rows)
        return state, norms[0], metrics

    return jax.vmap(member)(states, hypers, rows)


@partial(_compiled, static_argnames="task")
def evaluate_members(task: Task, params: Any, extra: Any, data: Any) -> dict:
    """The metrics of each member on data with a leading axis of splits: pairs of ``[M, S]``."""
    over_splits = jax.vmap(task.evaluate, (None, None, 0))
    return jax.vmap(over_splits, (0, 0, None))(params, extra, data)


def measure(unit: Unit, task: Task, part: Part, config: Config, data: dict[str, Any]) -> list[dict]:
    """Train the members of a unit on ``data["train"]``, evaluate on the other splits; a row a member and split."""
    began = time.monotonic()
    members = list(itertools.product(part.lrs, range(config.seed, config.seed + part.seeds)))
    lrs, seeds = zip(*members, strict=True)
    hypers = jax.tree.map(lambda x: np.full(len(members), x, np.float32), config.hyper)
    hypers = hypers._replace(lr=np.array(lrs, np.float32))
    plain = train.make_optimizer(part.optimizer, train.unit_schedule("cosine", part.steps, part.warmup))

    def optimizer(hyper):
        return optax.chain(recorded(task.matrices, unit.depth), plain(hyper))

    def start(seed):
        # Not compiled as a whole: that takes longer than all of a unit's steps.
        key_init, key_train, key_rows = jax.random.split(jax.random.key(seed), 3)
        state = train.init_state(*task.init(key_init), key_train, optimizer(config.hyper))
        n = jax.tree.leaves(data["train"])[0].shape[0]
        return state, jax.random.randint(key_rows, (part.steps, part.batch_size), 0, n)

    starts = {seed: start(seed) for seed in {*seeds}}
    states, rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(starts[seed] for seed in seeds))
    states, norms, metrics = train_members(task, optimizer, states, hypers, data["train"], rows)
    held_out = [split for split in data if split != "train"]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(data[split] for split in held_out))
    results = jax.device_get(evaluate_members(task, states.params, states.extra, stacked))
    norms, metrics = jax.device_get((norms, metrics))
    seconds = time.monotonic() - began

    lines, end = [], -max(1, part.steps // 10)
    for i, (lr, seed) in enumerate(members):
        last = {name: (total[i, end:].sum(), n[i, end:].sum()) for name, (total, n) in metrics.items()}
        skipped = {"skipped": (metrics["skipped"][0][i].sum(), part.steps)}
        rows = {"train": train.averages({**last, **skipped})}
        for s, split in enumerate(held_out):
            rows[split] = train.averages({name: (total[i, s], n[i, s]) for name, (total, n) in results.items()})
        gradients = {"gradients": [_finite(x) for x in norms[i].tolist()]}
        for split, values in rows.items():
            values = {name: _finite(x) for name, x in values.items()}
            member = {**unit._asdict(), "lr": lr, "seed": seed, **(gradients if split == "train" else {})}
            lines.append({"step": part.steps, "split": split, **values, **member, "seconds": seconds})
    return lines


def _finite(x: float) -> float | None:
    """JSON has no other numbers."""
    return x if math.isfinite(x) else None


# --- results


class Result(NamedTuple):
    """A unit at its best learning rate."""

    unit: Unit
    lr: float
    values: dict[str, list[float]]  # "split metric" -> its value for each seed, NaN where not finite
    gradients: list[float]  # each layer's, the geometric mean over the seeds
    diverged: int  # members of the unit, of all learning rates, with a step or a result that was not finite
    members: int


def summarise(rows: Sequence[dict]) -> list[Result]:
    """The lines of metrics.jsonl as a result a unit."""

    def number(x):
        return math.nan if x is None else x

    results = []
    for unit, group in itertools.groupby(rows, _unit):
        lines = list(group)
        bad = {(r["lr"], r["seed"]) for r in lines if r["loss"] is None or r.get("skipped")}
        losses: dict[float, list[float]] = {}
        for row in lines:
            if row["split"] == "validation":
                losses.setdefault(row["lr"], []).append(number(row["loss"]))
        lr = min(losses, key=lambda lr: (math.isnan(mean := float(np.mean(losses[lr]))), mean))
        values: dict[str, list[float]] = {}
        for row in lines:
            if row["lr"] == lr:
                for metric in ("loss", "accuracy"):
                    if metric in row:
                        values.setdefault(f"{row['split']} {metric}", []).append(number(row[metric]))
        norms = [[number(x) for x in row["gradients"]] for row in lines if row["lr"] == lr and "gradients" in row]
        with np.errstate(divide="ignore"):
            gradients = np.exp(np.mean(np.log(norms), axis=0)).tolist()
        results.append(Result(unit, lr, values, gradients, len(bad), sum(map(len, losses.values()))))
    return results


def _unit(row: dict) -> Unit:
    return Unit(*(row[field] for field in Unit._fields))


SHOWN = {"digits": "test accuracy", "characters": "validation loss"}


def table(results: Sequence[Result], part: str) -> str:
    """A Markdown table of a part: a row a variant, a column a depth."""
    chosen = {result.unit: result for result in results if result.unit.part == part}
    depths, variants = sorted({unit.depth for unit in chosen}), dict.fromkeys(unit.variant for unit in chosen)
    heads = ["norm", "place", "residual"]
    heads += [f"{SHOWN[part]}, depth {depths[0]}", *map(str, depths[1:])]
    heads += [f"gradient first/last, depth {depths[0]}", *map(str, depths[1:]), "diverged"]
    lines = [heads, ["---"] * len(heads)]
    for variant in variants:
        row = [chosen[Unit(part, *variant, depth)] for depth in depths]
        lines.append([variant.norm, variant.place, "yes" if variant.residual else "no"])
        lines[-1] += [_mean(result.values[SHOWN[part]]) for result in row]
        lines[-1] += [f"{result.gradients[0] / result.gradients[-1]:.2g}" for result in row]
        lines[-1] += [f"{sum(result.diverged for result in row)}/{sum(result.members for result in row)}"]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mean(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def draw(results: Sequence[Result], path: Path) -> None:
    """The metric over the depth for both parts, and the gradients of the deepest network for digits over its layers."""
    try:
        from matplotlib.figure import Figure  # not pyplot: that keeps figures and a backend for the whole process
    except ImportError:
        return
    colors = {"none": "#3a3a3a", "layer": "#c2452d", "rms": "#d99a2b", "batch": "#3f74b5"}
    markers = {"pre": "o", "post": "s", "none": "x"}
    figure = Figure(figsize=(13, 4.4), dpi=160, layout="constrained")
    panels = dict(zip(("digits", "gradients", "characters"), figure.subplots(1, 3), strict=True))
    for variant in dict.fromkeys(result.unit.variant for result in results):
        style = {
            "color": colors[variant.norm],
            "linestyle": "-" if variant.residual else ":",
            "marker": markers[variant.place],
            "markersize": 5,
            "linewidth": 1.4,
        }
        norm = "no norm" if variant.norm == "none" else f"{variant.norm}, {variant.place}"
        label = f"{norm}, {'residual' if variant.residual else 'no residual'}"
        for part, metric in SHOWN.items():
            own = [r for r in results if r.unit.part == part and r.unit.variant == variant]
            if own:
                depths, values = [r.unit.depth for r in own], [float(np.mean(r.values[metric])) for r in own]
                panels[part].plot(depths, values, label=label, **style)
            if own and part == "digits":
                deepest = max(own, key=lambda r: r.unit.depth).gradients
                ends = max(1, len(deepest) - 1)
                panels["gradients"].plot(range(1, len(deepest) + 1), deepest, markevery=ends, **style)
    panels["digits"].set(xlabel="depth (blocks)", ylabel="test accuracy", xscale="log", title="digits")
    panels["gradients"].set(
        xlabel="block", ylabel="norm of the first gradient", yscale="log", title="digits, the deepest network"
    )
    panels["characters"].set(
        xlabel="depth (layers)", ylabel="validation loss (nats)", xscale="log", title="characters, Transformer"
    )
    for name, axes in panels.items():
        depths = sorted({r.unit.depth for r in results if r.unit.part == name})
        if depths:
            axes.set_xticks(depths, labels=map(str, depths))
            axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
    handles = {label: h for axes in panels.values() for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, frameon=False, loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path)


# --- the run


def run(config: Config, run: Run) -> None:
    """Train and evaluate unit by unit; write table, summary and figure."""
    path = run.directory / "metrics.jsonl"
    tokenizer, texts = lm_runs.prepare(
        run.directory,
        lambda: char_lm.corpus(config.data),
        config.data.tokenizer,
        min_count=config.data.min_count,
    )
    data = {"digits": digits_data(), "characters": text_rows(texts, config.window)}
    parts = {"digits": config.digits, "characters": config.characters}
    rows = _complete(read_metrics(path), config) if run.resume and path.exists() else []
    kept = path.with_suffix(".tmp")
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    kept.replace(path)  # atomic: a kill here loses nothing
    done = {_unit(row) for row in rows}
    with train.sigterm() as stop, open(path, "a", encoding="utf-8") as file:
        for unit in (unit for name, part in parts.items() for unit in units(name, part)):
            if unit in done:
                continue
            if stop.is_set():
                print("stopped by SIGTERM; go on with --resume")
                raise SystemExit(143)
            part = parts[unit.part]
            if unit.part == "digits":
                task = digits_task(unit.variant, unit.depth, part)
            else:
                task = characters_task(unit.variant, unit.depth, part, config.window, tokenizer.vocab_size)
            lines = measure(unit, task, part, config, data[unit.part])
            file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
            file.flush()
            rows += lines
            print(_line(*summarise(lines), lines[0]["seconds"]), flush=True)
    results = summarise(rows)
    text = "\n\n".join(f"{name}:\n\n{table(results, name)}" for name in parts) + "\n"
    (run.directory / "table.md").write_text(text, encoding="utf-8")
    best = [
        {**r.unit._asdict(), "lr": r.lr, **{name: _finite(float(np.mean(x))) for name, x in r.values.items()}}
        for r in results
    ]
    (run.directory / "summary.json").write_text(json.dumps({"units": best}, indent=2, allow_nan=False) + "\n")
    draw(results, run.directory / "norms_residuals.png")
    print(f"\n{text}\nrun {run.directory}: {sum(row['seconds'] for row in {_unit(r): r for r in rows}.values()):.0f} s")


def _line(result: Result, seconds: float) -> str:
    part, norm, place, residual, depth = result.unit
    return (
        f"{part} {norm:5} {place:4} {'residual' if residual else 'plain':8} depth {depth:2}: "
        f"{SHOWN[part]} {_mean(result.values[SHOWN[part]])} at lr {result.lr:g}, "
        f"diverged {result.diverged}/{result.members}, {seconds:.1f} s"
    )


def text_rows(texts: dict[str, np.ndarray], window: int, held_out: int = 512) -> dict[str, np.ndarray]:
    """Rows of text ``[N, window + 1]``: all of the training text, 512 spread over the validation text."""

    def rows(text):
        n = len(text) // (window + 1)
        if n == 0:
            raise InputError(f"window={window}: the text has {len(text)} characters only; lower it or give more text.")
        return np.asarray(text[: n * (window + 1)]).reshape(n, window + 1)

    validation = rows(texts["validation"])
    chosen = np.linspace(0, len(validation) - 1, min(held_out, len(validation))).astype(int)
    return {"train": rows(texts["train"]), "validation": validation[chosen]}


def _complete(rows: list[dict], config: Config) -> list[dict]:
    """The lines of units that are there in full."""
    expected = {
        "digits": 3 * len(config.digits.lrs) * config.digits.seeds,
        "characters": 2 * len(config.characters.lrs) * config.characters.seeds,
    }
    counts = Counter(map(_unit, rows))
    return [row for row in rows if counts[_unit(row)] == expected[row["part"]]]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return run_experiment(NAME, PRESETS, train=run, description=__doc__, argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
