"""Why normalization and residual connections matter: networks with and without them, over their depth.

    python -m experiments.norms_residuals              # digits of scikit-learn, then Transformers on the plays
    python -m experiments.norms_residuals --data.path my.txt --digits.depths 2 64 --digits.optimizer adamw
    python -m experiments.norms_residuals --resume     # skips what is done

Digits: a perceptron of residual blocks reads handwritten digits. Characters: a Transformer language model. Every
combination of norm, place (see `Network`), residual connection and depth is a program that trains all its members,
seeds × learning rates, side by side. The learning rate is the one with the lowest mean validation loss; the table has
the digits' accuracy on test data, the characters' loss on the validation data that chose the rate, and the norm of the
gradient at the first layer over that at the last, before the first step. A step whose loss or gradient is not finite
changes nothing; members with such a step are counted in the table. Gradients are not clipped (``--hyper.clip``).

The run directory has a line a member and split in metrics.jsonl, and table.md, summary.json, norms_residuals.png.
"""

import importlib.metadata
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments import char_lm, lm_runs
from seqjax import losses, train
from seqjax.errors import InputError
from seqjax.layers import affine
from seqjax.models.transformer_lm import TransformerConfig
from seqjax.normalization import BatchStats, batch_norm, batch_stats, layer_norm, rms_norm

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
    depths: tuple[int, ...] = (2, 8, 32)
    """Blocks of two matrices, or layers of a Transformer."""
    width: int = 48
    lrs: tuple[float, ...] = (0.01, 0.03, 0.1)
    """Peak learning rates; the best is chosen by validation."""
    seeds: int = 3
    """Members for each learning rate."""
    optimizer: Literal["adamw", "sgd"] = "sgd"
    steps: int = 300
    warmup: int = 20
    batch_size: int = 64

    def __post_init__(self):
        for name in ("norms", "depths", "lrs"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty; give at least one.")
        for name, least in {"width": 1, "seeds": 1, "steps": 1, "warmup": 0, "batch_size": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}; it must be at least {least}.")
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
        lrs=(1e-3, 3e-3, 1e-2),
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
        if self.seed < 0 or self.window < 1:
            raise InputError(f"seed={self.seed} must be at least 0 and window={self.window} at least 1.")
        if "batch" in self.characters.norms:
            raise InputError("characters.norms: batch norm would see the future of a text; choose layer, rms or none.")
        if self.characters.width % D_HEAD:
            raise InputError(f"characters.width={self.characters.width}; it must be a multiple of {D_HEAD}.")


PRESETS = {
    "default": ("both parts, about 6 minutes on 2 cores", Config()),
    "smoke": (
        "a few seconds, to see that everything works",
        Config(
            digits=Part(norms=("none", "batch"), depths=(2, 4), width=8, lrs=(0.03, 0.1), seeds=2, steps=5, warmup=0),
            characters=Part(
                norms=("layer",),
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
    loss_fn: Callable  # as `seqjax.train` wants it; its batch is the training data, of which the key draws rows
    evaluate: Callable  # (params, extra, data) -> {metric: (sum, weight)}
    matrices: Callable  # gradients of params -> those of w_in, [L, …]


def digits_task(variant: Variant, depth: int, part: Part, config: Config) -> Task:
    """Classify ``(images [N, 64], labels [N])``."""

    def loss_fn(params, stats, data, key, hyper):
        images, labels = data
        rows = jax.random.randint(key, (part.batch_size,), 0, len(images))
        scores, stats = apply_network(variant, params, stats, images[rows], train=True)
        return losses.cross_entropy(scores, labels[rows]), (stats, {})

    def evaluate(params, stats, data):
        images, labels = data
        scores, _ = apply_network(variant, params, stats, images, train=False)
        loss = losses.cross_entropy(scores, labels)
        correct = jnp.sum(jnp.argmax(scores, -1) == labels).astype(jnp.float32)
        return {"loss": loss, "accuracy": (correct, loss[1])}

    return Task(lambda key: init_network(key, depth, part.width), loss_fn, evaluate, lambda grads: grads.blocks.w_in)


def characters_task(variant: Variant, depth: int, part: Part, config: Config, vocab_size: int) -> Task:
    """Predict the next character of a text ``[N]``; evaluate on rows ``[R, T + 1]``."""
    model = lm_runs.build(
        TransformerConfig(
            d_model=part.width,
            n_heads=part.width // D_HEAD,
            n_layers=depth,
            context=config.window,
            norm="rms" if variant.norm == "rms" else "layer",
            norm_place=variant.place,  # pyright: ignore[reportArgumentType]
            residual=variant.residual,
        ),
        vocab_size,
    )

    def loss(params, rows):
        _, scores = model.apply(params, rows[:, :-1])
        return losses.cross_entropy(scores, rows[:, 1:])

    def loss_fn(params, extra, text, key, hyper):
        starts = jax.random.randint(key, (part.batch_size, 1), 0, len(text) - config.window)
        places = jnp.arange(config.window + 1)[None]
        return loss(params, text[starts + places]), (extra, {})

    def matrices(grads):
        return jnp.stack([grads["layers"][i].w_in for i in range(depth)])

    return Task(
        lambda key: (model.init(key), ()), loss_fn, lambda params, _, rows: {"loss": loss(params, rows)}, matrices
    )


def digits_data() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """split -> (images [N, 64] from -1 to 1, labels [N]): 60 % train, 20 % validate, 20 % test."""
    try:
        files = importlib.metadata.files("scikit-learn") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [file for file in files if file.name == "digits.csv.gz"]
    if not found:
        raise InputError('the digits are not installed; run: pip install "seqjax[examples]"')
    table = np.loadtxt(str(found[0].locate()), delimiter=",", dtype=np.float32)
    # In the file the digits stand writer by writer. RandomState never changes, unlike Generator.
    table = table[np.random.RandomState(0).permutation(len(table))]
    parts = np.split(table, [len(table) * 6 // 10, len(table) * 8 // 10])
    arrays = [(part[:, :-1] / 8 - 1, part[:, -1].astype(np.int32)) for part in parts]
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
    for norm, place, residual in itertools.product(part.norms, ("pre", "post"), (True, False)):
        for depth in part.depths:
            if norm != "none":
                yield Unit(name, norm, place, residual, depth)
            elif place == "pre":
                yield Unit(name, norm, "none", residual, depth)


@partial(jax.jit, static_argnames=("task", "optimizer", "steps"))
def train_members(
    task: Task, optimizer: Callable, steps: int, keys: jax.Array, hypers: train.Hyper, data: Any, held_out: dict
) -> tuple[jax.Array, dict, dict]:
    """Train all members, ``keys [M]`` and ``hypers [M]``, in one program.

    Returns:
      the norms of the gradients of each layer's ``w_in`` before the first step, ``[M, L]``; the metrics of training,
      summed over the last tenth of the steps, `skipped` over all; the metrics of each split in ``held_out``.
    """
    step = train.make_step(task.loss_fn, optimizer)

    def member(key, hyper):
        key_init, key_train = jax.random.split(key)
        params, extra = task.init(key_init)

        def first_loss(params):
            (total, weight), _ = task.loss_fn(params, extra, data, key_train, hyper)
            return total / weight

        grads = task.matrices(jax.grad(first_loss)(params))
        norms = jnp.sqrt(jnp.sum(jnp.square(grads), axis=(1, 2)))
        state = train.init_state(params, extra, key_train, optimizer(hyper))
        state, metrics = lax.scan(lambda state, _: step(state, data, hyper), state, length=steps)
        skipped = metrics.pop("skipped")
        last = jax.tree.map(lambda a: jnp.sum(a[-max(1, steps // 10) :]), metrics)
        last["skipped"] = jax.tree.map(jnp.sum, skipped)
        results = {split: task.evaluate(state.params, state.extra, part) for split, part in held_out.items()}
        return norms, last, results

    return jax.vmap(member)(keys, hypers)


def measure(unit: Unit, task: Task, part: Part, config: Config, data: Any, held_out: dict) -> list[dict]:
    """Train a unit; a row a member and split."""
    members = list(itertools.product(part.lrs, range(config.seed, config.seed + part.seeds)))
    lrs, seeds = zip(*members, strict=True)
    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    hypers = jax.tree.map(lambda x: np.full(len(members), x, np.float32), config.hyper)
    hypers = hypers._replace(lr=np.array(lrs, np.float32))
    optimizer = train.make_optimizer(part.optimizer, train.unit_schedule("cosine", part.steps, part.warmup))
    began = time.monotonic()
    norms, last, results = jax.device_get(
        train_members(task, optimizer, part.steps, keys, hypers, data, held_out)  # pyright: ignore
    )
    seconds = time.monotonic() - began
    rows = []
    for i, (lr, seed) in enumerate(members):
        pick = partial(jax.tree.map, lambda a, i=i: a[i])
        fields = {**unit._asdict(), "lr": lr, "seed": seed}
        trained = train.averages(pick(last))
        start = {"gradients": [_finite(x) for x in norms[i].tolist()]}
        for split, values in {"train": trained, **{split: train.averages(pick(r)) for split, r in results.items()}}.items():
            row = {"step": part.steps, "split": split, **{k: _finite(x) for k, x in values.items()}}
            rows.append({**row, **fields, **(start if split == "train" else {}), "seconds": seconds})
    return rows


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
