"""Training: hyperparameters as traced numbers, one pure step, and a loop that can be killed at any moment.

    loss_fn(params, extra, batch, key, hyper) -> ((sum, weight), (extra, metrics))

``extra`` is whatever the loss carries from step to step (the recurrent state of truncated BPTT, running statistics);
``metrics`` are named ``(sum, weight)`` pairs. Because the Optax chain is built inside the step from ``Hyper``, whose
leaves are traced, a change of learning rate compiles nothing and a whole study can be vmapped.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seqjax import distributed
from seqjax.averaging import average_checkpoints as average_checkpoints
from seqjax.averaging import averaged_params, weight_average
from seqjax.checkpoint import Checkpoints, Restored
from seqjax.errors import InputError, TrainingError, check_least
from seqjax.reporting import Reporter, learning_curve, write_json
from seqjax.sharding import place_whole
from seqjax.types import PRNGKey, PyTree, Scalar


class Hyper(NamedTuple):
    """Numbers that may differ between members of a study; all are traced."""

    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Decoupled (AdamW); acts on matrices, that is on names beginning with ``w``."""
    clip: float = 1.0
    """Largest global norm of the gradient; inf does not clip."""
    b1: float = 0.9
    """Decay of the first moment; the momentum of SGD."""
    b2: float = 0.99
    """Decay of the second moment."""
    dropout: float = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    """Decay of the weight average that is evaluated and sampled from; 0 uses the weights themselves."""
    scheduled_sampling: float = 0.0
    """Share of inputs that are the model's own predictions instead of the given tokens (Bengio et al., 2015)."""
    embed_lr: float = 1.0
    """Factor of the learning rate of word vectors, in experiments that can start from given ones; 0 freezes them."""
    layer_lr: float = 1.0
    """Factor of the learning rate from a layer to the one below, in experiments that can start from a language model; 0
    freezes all of its layers."""


def check_hyper(hyper: Hyper) -> None:
    """Raise `InputError` for a number out of range: all are at least 0, rates and decays below 1.

    ``scheduled_sampling`` may be 1: then every input is a prediction. ``clip`` is above 0, and infinite for none.
    """
    for name, value in hyper._asdict().items():
        bound = math.inf if name in ("lr", "weight_decay", "clip", "embed_lr", "layer_lr") else 1.0
        closed = name in ("clip", "scheduled_sampling")
        if not (0 <= value < bound or (closed and value == bound)):
            limit = f"at most {bound:g}" if closed else f"below {bound:g}"
            raise InputError(f"hyper.{name}={value}; it must be at least 0 and {limit}.")
    if hyper.clip == 0:
        raise InputError("hyper.clip=0 leaves nothing of a gradient; it must be above 0, inf clips nothing.")


def check_unused(hyper: Hyper, *names: str) -> None:
    """Raise `InputError` for a number that is not the default though it has no effect here.

    >>> check_unused(Hyper(lr=0.1), "ema", "layer_lr")
    """
    for name in names:
        if (value := getattr(hyper, name)) != Hyper._field_defaults[name]:
            raise InputError(f"hyper.{name}={value} has no effect here; leave it out.")


class State(NamedTuple):
    """All that a training step reads and writes."""

    step: jax.Array  # updates so far, skipped ones included
    params: PyTree
    opt_state: PyTree
    key: PRNGKey  # the run's key; each step folds its number in
    extra: PyTree  # what the loss carries: BPTT state, running statistics


class Evaluation(NamedTuple):
    """How a model is measured on one split; pure functions, so that a study can map them over its members."""

    init: Callable  # params -> what is carried from batch to batch
    step: Callable  # (params, carried, batch) -> (carried, {name: (sum, weight)})
    batches: Callable  # () -> one pass over the split
    finish: Callable  # {name: mean} -> {name: value}: adds what follows from them, such as the perplexity


class Setup(NamedTuple):
    """All that trains and measures a model: the same for a run of one and for a study of many."""

    init: Callable  # key -> State, before the first step
    train_step: Callable  # (state, batch, hyper) -> (state, metrics), from `make_step`
    batches: Callable  # (start, stop) -> the batches of the steps start … stop-1
    evaluation: Evaluation | None = None  # of the validation split


def unit_schedule(kind: Literal["constant", "linear", "cosine", "inverse_sqrt"], steps: int, warmup: int = 0):
    """A learning-rate schedule of peak 1, to be multiplied by ``hyper.lr``: linear warm-up, then the named decay.

    linear and cosine fall to 0.02 at ``steps``; inverse_sqrt is √(warmup / t), without warm-up √(1 / (t + 1)).

    >>> schedule = unit_schedule("cosine", 100, 10)
    >>> [round(float(schedule(t)), 2) for t in (0, 10, 55, 100)]
    [0.1, 1.0, 0.51, 0.02]
    """
    floor, after = 0.02, max(steps - warmup, 1)
    decay = {
        "constant": optax.constant_schedule(1.0),
        "linear": optax.linear_schedule(1.0, floor, after),
        "cosine": optax.cosine_decay_schedule(1.0, after, alpha=floor),
        "inverse_sqrt": lambda t: jnp.sqrt(max(warmup, 1) / jnp.maximum(t + max(warmup, 1), 1)),
    }[kind]
    if warmup == 0:
        return decay
    # Begins above 0, so that the first step is not lost.
    return optax.join_schedules([optax.linear_schedule(1.0 / warmup, 1.0, warmup), decay], [warmup])


def make_optimizer(
    kind: Literal["adamw", "sgd"] = "adamw",
    schedule: Callable = lambda step: 1.0,
    *,
    average: bool = False,
    then: Callable[[Hyper], optax.GradientTransformation] | None = None,
) -> Callable[[Hyper], optax.GradientTransformation]:
    """``hyper -> optax chain``: clip the gradient, then AdamW (Loshchilov and Hutter, 2019) or SGD with momentum.

    Args:
      kind: "adamw" or "sgd"; weight decay is decoupled in both.
      schedule: of unit peak, see `unit_schedule`.
      average: keep an exponential moving average of the weights with decay ``hyper.ema``.
      then: ``hyper -> transformation`` of the updates, such as a factor for those of some weights.
    """

    def build(hyper: Hyper) -> optax.GradientTransformation:
        moments = optax.scale_by_adam(hyper.b1, hyper.b2) if kind == "adamw" else optax.trace(hyper.b1)
        return optax.chain(
            _clip(hyper.clip),
            moments,
            optax.add_decayed_weights(hyper.weight_decay, mask=_decays),
            optax.scale_by_learning_rate(lambda step: hyper.lr * schedule(step)),
            *([then(hyper)] if then else []),
            *([weight_average(hyper.ema)] if average else []),
        )

    return build


def _clip(norm: Scalar) -> optax.GradientTransformation:
    """Gradients of a global norm of at most ``norm``; Optax's own takes no number of another dtype than theirs."""

    def update(grads, _):
        found = optax.tree.norm(grads)

        def shorter(g):
            return jnp.where(found < norm, g, g / found.astype(g.dtype) * jnp.asarray(norm, g.dtype))

        return jax.tree.map(shorter, grads)

    return optax.stateless(update)


def _decays(params: PyTree) -> PyTree:
    """True for matrices (``w``, ``w_x``, …); biases ``b`` and gains ``g`` do not decay."""

    def name(path) -> str:
        names = (getattr(k, "name", getattr(k, "key", None)) for k in reversed(path))
        return next((name for name in names if isinstance(name, str)), "")  # Flax's lists have integers for names

    return jax.tree_util.tree_map_with_path(lambda path, _: name(path).startswith("w"), params)


def init_state(params: PyTree, extra: PyTree, key: PRNGKey, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step."""
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), key, extra)


def make_step(loss_fn: Callable, optimizer: Callable[[Hyper], optax.GradientTransformation], *, accumulate: int = 1):
    """``train_step(state, batch, hyper) -> (state, metrics)``, pure: jit it, vmap it, shard it.

        g = ∇ Σ loss / Σ weight;   params, opt_state ← optimizer(hyper)(g)

    With ``accumulate`` = A > 1 the batch has a leading axis A; the parts are taken one after the other, ``extra``
    passes through them, and their gradients make one update. A step whose loss or gradient is not finite changes
    neither weights, optimizer nor ``extra``, whatever the policy of the loop: one bad batch never reaches the weights.
    Metrics are ``(sum, weight)`` pairs: ``loss``, ``grad_norm``, ``skipped`` and those of the loss.
    """

    def part(params, extra, batch, key, hyper):
        def total(params):
            (loss, weight), (after, metrics) = loss_fn(params, extra, batch, key, hyper)
            return loss, (weight, after, metrics)

        (loss, (weight, extra, metrics)), grads = jax.value_and_grad(total, has_aux=True)(params)
        return extra, (grads, {**metrics, "loss": (loss, weight)})

    def train_step(state: State, batch: PyTree, hyper: Hyper) -> tuple[State, dict]:
        key = jax.random.fold_in(state.key, state.step)
        if accumulate == 1:
            extra, (grads, metrics) = part(state.params, state.extra, batch, key, hyper)
        else:

            def body(carry, inputs):
                extra, sums = carry
                batch, key = inputs
                extra, more = part(state.params, extra, batch, key, hyper)
                return (extra, jax.tree.map(jnp.add, sums, more)), None

            inputs = (batch, jax.random.split(key, accumulate))
            first = jax.tree.map(lambda a: a[0], batch)
            _, shapes = jax.eval_shape(part, state.params, state.extra, first, key, hyper)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            (extra, (grads, metrics)), _ = lax.scan(body, (state.extra, zeros), inputs)

        loss, weight = metrics["loss"]
        grads = jax.tree.map(lambda g: g / jnp.maximum(weight, 1e-8).astype(g.dtype), grads)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        with jax.numpy_dtype_promotion("standard"):  # Optax mixes the traced floats of hyper with integer counts
            updates, opt_state = optimizer(hyper).update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        # Numbers of hyper are wider than weights in bfloat16, and so may be what comes of both.
        opt_state = jax.tree.map(lambda new, old: new.astype(old.dtype), opt_state, state.opt_state)
        after = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state, extra),
            (state.params, state.opt_state, state.extra),
        )
        metrics["grad_norm"] = (norm, jnp.ones_like(norm))
        # A skipped step counts in nothing but `skipped`.
        metrics = jax.tree.map(lambda m: jnp.where(finite, m, jnp.zeros_like(m)), metrics)
        metrics["skipped"] = (1.0 - finite.astype(norm.dtype), jnp.ones_like(norm))
        params, opt_state, extra = after
        return State(state.step + 1, params, opt_state, state.key, extra), metrics

    return train_step


@dataclass(frozen=True)
class Loop:
    """When to report, evaluate and save."""

    steps: int = 2000
    log_every: int = 50
    eval_every: int = 250
    checkpoint_every: int = 250
    keep: int = 3
    """Checkpoints kept on disk, at least 2: one is left if the newest is damaged."""
    on_nan: Literal["raise", "skip", "rollback"] = "raise"
    """What to do after a loss or gradient that is not finite (its update is never applied): stop with an error; go on;
    or return to the last checkpoint and halve the learning rate, at most three times."""
    patience: int | None = None
    """Evaluations without a better value of ``monitor`` after which training ends. The checkpoint of the best one is
    kept beside the newest, and `best_params` reads it. None: train to the end and use the last weights."""
    monitor: str = "loss"
    """The metric of the validation split that ``patience`` watches."""
    best: Literal["lowest", "highest"] | None = None
    """Which of its values is the best; may be left out for the loss, of which it is the lowest."""

    def __post_init__(self):
        check_least(self, "loop.", steps=1, log_every=1, eval_every=1, checkpoint_every=1, keep=2, patience=1)
        if self.monitor != "loss" and self.best is None:
            raise InputError(f"loop.monitor={self.monitor}; set loop.best to lowest or highest, whichever is better.")


ROLLBACKS = 3


class _Best(NamedTuple):
    """The best evaluation so far; before the first one, `step` and `value` are None."""

    step: int | None = None
    value: float | None = None
    since: int = 0  # evaluations since, none of them better


class _Position(NamedTuple):
    """Where a run is, and all it needs to go on from there with the same bits."""

    step: int
    state: State
    meter: dict  # metrics summed since the last log
    seconds: float
    rollbacks: int
    best: _Best = _Best()


class _RollbackRequest(Exception):
    """Leave the pass over the data and return to the last checkpoint."""


def fit(
    loop: Loop,
    train_step: Callable,
    state: State,
    hyper: Hyper,
    batches: Callable[[int, int], Iterable],
    *,
    directory: Path,
    evaluate: Callable[[PyTree], dict[str, float]] | None = None,
    tokens_per_step: int | Callable[[PyTree], int] = 0,
    place: Callable[[PyTree], PyTree] | None = None,
    resume: bool = False,
    console: bool = True,
) -> State:
    """Run ``train_step`` up to ``loop.steps``, with logs, evaluation and checkpoints in ``directory``.

    A run that is killed and resumed continues with the same bits: the checkpoint holds the state, the unfinished
    averages of the log and the best evaluation, the key of a step is a function of its number, and so must be its
    batch. Batches may differ in shape; each shape is compiled once.

    The result is the last state. After training with ``loop.patience``, `best_params` has the weights to use.

    Args:
      train_step: what `make_step` returned.
      state: from `init_state`; its arrays are donated.
      batches: ``(start, stop) -> iterator`` over the batches of steps start … stop-1.
      evaluate: ``params -> metrics`` on the validation split; gets the averaged weights where they are kept.
      tokens_per_step: for the tokens/s on screen; where batches differ, ``batch -> number``, counted on the host.
      place: from `seqjax.sharding.place`, for a state that is spread over a mesh: it stays as it is laid out.
      resume: go on from the newest intact checkpoint in ``directory``, from the beginning if there is none.

    Raises:
      InputError: a number in ``hyper`` is out of range, the checkpoint is one of another model, ``directory`` holds
        those of another run and ``resume`` is False, or ``loop.patience`` watches a metric that ``evaluate`` does not
        return.
      TrainingError: a loss was not finite under ``on_nan="raise"``, or once more after three rollbacks.
      CheckpointError: a checkpoint could not be written.
      SystemExit: 143, after SIGTERM, once the state is saved.
    """
    check_hyper(hyper)
    if loop.patience is not None and evaluate is None:
        raise InputError(f"loop.patience={loop.patience} without evaluate; give evaluate, or leave out patience")
    place = place or (lambda batch: batch)
    shapes = jax.eval_shape(train_step, state, place(next(iter(batches(0, 1)))), hyper)[1]
    update, everywhere = _compiled(train_step, state)
    sums = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere), shapes)
    meter = jax.tree.map(partial(_number, 0.0), sums)
    template = jax.tree.map(_abstract, state)
    count_tokens = tokens_per_step if callable(tokens_per_step) else lambda _: tokens_per_step
    at = _Position(0, state, meter, 0.0, 0)
    with Checkpoints(directory / "checkpoints", keep=loop.keep) as checkpoints, sigterm() as stop:
        restored = checkpoints.restore(template) if resume else None
        if not resume:
            checkpoints.begin()
        if restored is not None:
            at = _unpack(restored, sums)
        elif loop.on_nan == "rollback":
            checkpoints.save(0, *_pack(at))
        resumed = None if restored is None else at.step
        while True:
            with Reporter(directory, total_steps=loop.steps, resume_step=resumed, console=console) as reporter:
                try:
                    return _pass(
                        loop, update, hyper, at, batches, place, evaluate, count_tokens, checkpoints, reporter, stop
                    )
                except _RollbackRequest as request:
                    rollbacks = at.rollbacks + 1
                    if rollbacks > ROLLBACKS:
                        raise TrainingError(f"{request}; gave up after {ROLLBACKS} rollbacks") from None
                    restored = checkpoints.restore(template)
                    assert restored is not None, "a rollback always has the checkpoint of step 0"
                    at = _unpack(restored, sums)._replace(rollbacks=rollbacks)
                    resumed = at.step
                    reporter.note(f"{request}; back to step {at.step}, learning rate halved")


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding if leaf.committed else None)


def _pack(at: _Position) -> tuple[State, dict]:
    """State and metadata of a checkpoint. The sums of the log are few numbers, and JSON keeps every bit of them."""
    meter = {name: [float(value) for value in pair] for name, pair in jax.device_get(at.meter).items()}
    return at.state, {"seconds": at.seconds, "rollbacks": at.rollbacks, "meter": meter, "best": at.best._asdict()}


def _unpack(restored: Restored, like: dict) -> _Position:
    pairs = restored.metadata.pop("meter")
    # A metric that the run has got since then begins here.
    meter = {name: tuple(map(_number, pairs.get(name, (0.0, 0.0)), like[name])) for name in like}
    best = _Best(**restored.metadata.pop("best", {}))  # checkpoints of earlier versions have none
    return _Position(restored.step, restored.tree, meter, best=best, **restored.metadata)


def _update(train_step, state, meter, batch, hyper):
    """One step; the sums of the metrics stay on the device, so that logging costs no transfer a step."""
    state, metrics = train_step(state, batch, hyper)
    return state, jax.tree.map(jnp.add, meter, metrics)


_jitted = jax.jit(_update, static_argnames="train_step", donate_argnames=("state", "meter"))


def _compiled(train_step: Callable, state: State) -> tuple[Callable, NamedSharding | None]:
    """`_update` for a state, and where its sums go. A state that is spread over a mesh stays as it is laid out."""
    meshes = {leaf.sharding.mesh for leaf in jax.tree.leaves(state) if isinstance(leaf.sharding, NamedSharding)}
    if not meshes:
        return partial(_jitted, train_step), None
    mesh: Any = meshes.pop()
    everywhere = NamedSharding(mesh, PartitionSpec())
    own = jax.tree.map(lambda leaf: leaf.sharding, state), everywhere
    # What XLA would choose for the results is another type: the second step would be compiled again.
    shardings = {"in_shardings": (*own, None, None), "out_shardings": own}
    update = jax.jit(partial(_update, train_step), donate_argnums=(0, 1), **shardings)

    def on_mesh(*arguments):
        with jax.set_mesh(mesh):  # tells the kernels
            return update(*arguments)

    return on_mesh, everywhere


def _number(value: float, like: jax.ShapeDtypeStruct) -> jax.Array:
    """A number on the devices of ``like``, which may be those of several processes."""
    if like.sharding is None:
        return jnp.asarray(value, like.dtype)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda _: np.asarray(value, like.dtype))


def _pass(loop, update, hyper, at, batches, place, evaluate, count_tokens, checkpoints, reporter, stop) -> State:
    """Train from a position to the end; leaves by an exception for a rollback or a signal to stop."""
    step, state, meter, seconds, rollbacks, best = at
    if _out_of_patience(loop, best):
        return state
    hyper = hyper._replace(lr=hyper.lr * 0.5**rollbacks)
    began, logged, tokens = time.monotonic() - seconds, time.monotonic(), 0
    for batch in batches(step, loop.steps):
        state, meter = update(state, meter, place(batch), hyper)
        step += 1
        tokens += count_tokens(batch)
        last = step == loop.steps
        if step % loop.log_every == 0 or last:
            values = averages(meter)
            meter = jax.tree.map(jnp.zeros_like, meter)
            now = time.monotonic()
            rate = {"tokens/s": tokens / (now - logged)} if tokens else {}
            logged, tokens = now, 0
            skipped = values.pop("skipped")
            reporter.metrics(step, "train", values | ({"skipped": skipped} if skipped else {}), now - began)
            reporter.progress(step, {"loss": values["loss"], **rate})
            if skipped:
                _on_nan(loop.on_nan, skipped, step, reporter)
        if evaluate is not None and (step % loop.eval_every == 0 or last):
            values = evaluate(averaged_params(state))
            reporter.metrics(step, "validation", values, time.monotonic() - began)
            logged, tokens = time.monotonic(), 0
            if loop.patience is not None:
                best = _judge(loop, best, step, values)
        ended = last or _out_of_patience(loop, best)
        stopping = not ended and (stop.is_set() or distributed.stopping(step))
        # The best one is saved at once, for later there are other weights.
        if step % loop.checkpoint_every == 0 or step == best.step or ended or stopping:
            # What is restored must come before the failure, even one that no log has told of yet.
            if loop.on_nan != "skip" and (skipped := averages(meter)["skipped"]) > 0:
                _on_nan(loop.on_nan, skipped, step, reporter)
            position = _Position(step, state, meter, time.monotonic() - began, rollbacks, best)
            checkpoints.save(step, *_pack(position), also_keep=best.step)
        if stopping:
            checkpoints.wait()
            reporter.note(f"stopped by SIGTERM; saved at step {step}, go on with --resume")
            raise SystemExit(143)
        if ended and not last:
            rival = "that is finite" if best.step is None else f"better than {best.value:.4g} of step {best.step}"
            reporter.note(f"no {loop.monitor} {rival} in {best.since} evaluations; stopped at step {step}")
            break
    return state


def _judge(loop: Loop, best: _Best, step: int, values: dict[str, float]) -> _Best:
    """The best evaluation, now that there is that of `step`. NaN is never better."""
    if loop.monitor not in values:
        raise InputError(f"loop.monitor={loop.monitor}; evaluate returns no such metric, only {', '.join(values)}")
    value, highest = float(values[loop.monitor]), loop.best == "highest"
    before = best.value if best.value is not None else -math.inf if highest else math.inf
    better = value > before if highest else value < before
    return _Best(step, value) if better else best._replace(since=best.since + 1)


def _out_of_patience(loop: Loop, best: _Best) -> bool:
    return loop.patience is not None and best.since >= loop.patience


def _on_nan(policy: str, skipped: float, step: int, reporter: Reporter) -> None:
    message = f"the loss or its gradient was not finite in {skipped:.0%} of the last steps up to step {step}"
    if policy == "raise":
        raise TrainingError(
            f"{message}; lower lr or clip, or choose on_nan skip or rollback. Their updates were not applied: the "
            "checkpoints are good."
        )
    if policy == "rollback":
        raise _RollbackRequest(message)
    reporter.note(f"{message}; skipped them")


def averages(metrics: dict) -> dict[str, float]:
    """Each ``(sum, weight)`` pair divided, once, as Python floats; NaN where the weight is 0."""
    host = jax.device_get(metrics)
    return {
        name: float(total) / float(weight) if weight else math.nan for name, (total, weight) in sorted(host.items())
    }


def make_evaluate(evaluation: Evaluation, mesh: Mesh | None = None) -> Callable[[PyTree], dict[str, float]]:
    """``params -> metrics``: a pass over the split. On a mesh, where the weights are, the devices share its rows."""
    place = (lambda batch: batch) if mesh is None else place_whole(mesh)

    def evaluate(params):
        with nullcontext() if mesh is None else jax.set_mesh(mesh):
            carried = evaluation.init(params)
            total: Any = None
            for batch in evaluation.batches():
                carried, metrics = evaluation.step(params, carried, place(batch))
                total = metrics if total is None else jax.tree.map(jnp.add, total, metrics)
            return evaluation.finish(averages(total))

    return evaluate


def save_run(directory: Path, setup: Setup, state: State, hyper: Hyper) -> None:
    """Write a state as the checkpoint of a run: to be evaluated, to be sampled from, to be trained further by `fit`."""
    metrics = jax.eval_shape(setup.train_step, state, next(iter(setup.batches(0, 1))), hyper)[1]
    meter = jax.tree.map(lambda m: np.zeros(m.shape, m.dtype), metrics)
    step = int(state.step)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        checkpoints.save(step, *_pack(_Position(step, state, meter, 0.0, 0)))


def best_params(directory: Path, template: State) -> PyTree:
    """The weights to use after a run of `fit`: of the best evaluation if it had ``patience``, else the newest ones.

    Their average where the optimizer keeps it. ``template`` is a state of the run, or its shapes, as for
    `Checkpoints.restore`.

    Raises:
      InputError: there is no checkpoint, or it is one of another model.
      CheckpointError: the checkpoint is damaged.
    """
    with Checkpoints(directory / "checkpoints") as checkpoints:
        restored = checkpoints.restore(template)
        if restored is None:
            raise InputError(f"{directory} holds no checkpoint yet; train it further with --run {directory} --resume")
        best = _Best(**restored.metadata.get("best", {}))
        if best.step not in (None, restored.step):
            restored = checkpoints.restore(template, step=best.step)
    assert restored is not None
    return averaged_params(restored.tree)


@contextmanager
def sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, so that the loop can save before it ends. Outside the main thread: never set.

    Nor in one of several processes: there JAX has a handler, and `seqjax.distributed.stopping` tells of it.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread() or jax.distributed.is_initialized():
        yield stop
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)


def summarise(directory: Path, values: dict[str, float]) -> None:
    """Write ``summary.json`` and the learning curve of a finished run; of several processes, the first does."""
    if jax.process_index() > 0:
        return
    write_json(directory / "summary.json", values)
    learning_curve(directory)
