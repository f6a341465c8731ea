"""Training: one step, against Optax and NumPy; and the loop, which must survive whatever stops it."""

import dataclasses
import json
import math
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seqjax import losses, train
from seqjax.cells import CELLS
from seqjax.checkpoint import CheckpointError, Checkpoints
from seqjax.config import read_config, write_config
from seqjax.errors import InputError
from seqjax.reporting import read_metrics, write_json
from seqjax.train import Hyper, Loop, TrainingError, averaged_params, fit, make_optimizer, make_step, unit_schedule
from tests.test_models import compilations

# Orbax leaves its other reads running when one fails: they find their event loop closed.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning")


def bits_of(tree):
    def leaf(x):
        data = np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        return str(x.dtype), data.shape, data.tobytes()

    return jax.tree.structure(tree), [leaf(x) for x in jax.tree.leaves(tree)]


def close(actual, expected, tolerance=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), actual, expected)


# --- one step: linear regression, with weights that differ between examples


def regression(params, extra, batch, key, hyper):
    x, y, weight = batch
    prediction = x @ params["w"] + jnp.broadcast_to(params["b"], y.shape)
    error = jnp.sum(jnp.square(prediction - y), axis=-1)
    total, n = jnp.sum(weight * error), jnp.sum(weight)
    # Depends on the order of the batches.
    return (total, n), (0.5 * extra + jnp.mean(x), {"bias": (jnp.sum(weight * prediction[:, 0]), n)})


def data(seed, shape=(8,), dtype=np.float32):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(*shape, 3)), rng.normal(size=(*shape, 2))
    return tuple(jnp.asarray(a, dtype) for a in (x, y, rng.integers(0, 4, shape)))


def start(optimizer, hyper, dtype=jnp.float32):
    rng = np.random.default_rng(1)
    params = {"w": jnp.asarray(rng.normal(size=(3, 2)), dtype), "b": jnp.asarray(rng.normal(size=2), dtype)}
    return train.init_state(params, jnp.ones((), dtype), jax.random.key(0), optimizer(hyper))


@pytest.mark.fast
def test_splitting_a_batch_changes_nothing():
    """Parts of different weight: a mean of means would be another loss."""
    optimizer, hyper = make_optimizer("sgd"), Hyper(lr=0.1, clip=0.5)
    parts = data(0, (4, 8))
    parts = (*parts[:2], parts[2] * jnp.array([[1.0], [0.0], [5.0], [1.0]]))
    whole = jax.tree.map(lambda a: a.reshape(32, *a.shape[2:]), parts)
    split, metrics = jax.jit(make_step(regression, optimizer, accumulate=4))(start(optimizer, hyper), parts, hyper)
    once, expected = jax.jit(make_step(regression, optimizer))(start(optimizer, hyper), whole, hyper)
    close((split.params, split.opt_state, metrics), (once.params, once.opt_state, expected))
    # `extra` has passed through the parts, one after the other.
    extra = 1.0
    for part in np.asarray(parts[0]):
        extra = 0.5 * extra + part.mean()
    close(split.extra, extra)
    assert split.step == once.step == 1


def test_parts_get_keys_of_their_own():
    def loss_fn(params, extra, batch, key, hyper):
        draw = jax.random.uniform(key)
        return (jnp.sum(params["w"] * batch), jnp.float32(1)), (extra * 10 + draw, {})

    optimizer = make_optimizer()
    state = train.init_state({"w": jnp.ones(2)}, jnp.zeros(3), jax.random.key(0), optimizer(Hyper()))
    step = jax.jit(make_step(loss_fn, optimizer, accumulate=3))
    first, _ = step(state, jnp.ones((3, 2)), Hyper())
    second, _ = step(first._replace(extra=jnp.zeros(3)), jnp.ones((3, 2)), Hyper())
    draws = [float(extra[0]) for extra in (first.extra, second.extra)]
    assert draws[0] != draws[1]
    assert not math.isclose(draws[0] / 111, draws[0] % 1)  # as it would be if all draws were equal
    assert bits_of(first.key) == bits_of(state.key)


@pytest.mark.fast
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(accumulate):
    optimizer, hyper = make_optimizer(average=True), Hyper(lr=0.1, ema=0.9)
    step = jax.jit(make_step(regression, optimizer, accumulate=accumulate))
    shape = (8,) if accumulate == 1 else (accumulate, 8)
    state, metrics = step(start(optimizer, hyper), data(0, shape), hyper)
    assert metrics["skipped"] == (0, 1)
    for poison in (np.nan, np.inf, 1e20):  # at 1e20 the loss overflows; NaN and infinity are in the gradient as well
        x, y, weight = data(1, shape)
        after, metrics = step(state, (x.at[..., 0, 0].set(poison), y, weight.at[..., 0].set(1.0)), hyper)
        assert bits_of(after._replace(step=state.step)) == bits_of(state)
        assert after.step == 2
        assert {name: tuple(map(float, pair)) for name, pair in metrics.items()} == {
            "loss": (0, 0),
            "bias": (0, 0),
            "grad_norm": (0, 0),
            "skipped": (1, 1),
        }


def test_a_finite_loss_with_a_gradient_that_is_not():
    def loss_fn(params, extra, batch, key, hyper):
        return (jnp.sqrt(jnp.sum(params["w"] * batch)), jnp.float32(1)), (extra, {})

    optimizer = make_optimizer()
    state = train.init_state({"w": jnp.ones(2)}, (), jax.random.key(0), optimizer(Hyper()))
    after, metrics = jax.jit(make_step(loss_fn, optimizer))(state, jnp.zeros(2), Hyper())
    assert metrics["skipped"] == (1, 1)
    assert bits_of(after.params) == bits_of(state.params)


def run_steps(kind, hyper, n=6, dtype=jnp.float32, schedule=lambda step: 1.0, **kw):
    """The weights after each of n steps, and the gradients."""
    optimizer = make_optimizer(kind, schedule, **kw)
    state = start(optimizer, hyper, dtype)
    step = jax.jit(make_step(regression, optimizer))

    @jax.jit
    @jax.grad
    def gradient(params, batch):
        (total, n), _ = regression(params, jnp.zeros((), dtype), batch, None, None)
        return total / n

    states, gradients = [state], []
    for i in range(n):
        batch = data(i, dtype=dtype)
        gradients.append(gradient(state.params, batch))
        state, metrics = step(state, batch, hyper)
        close(metrics["grad_norm"][0], optax.tree.norm(gradients[-1]))
        states.append(state)
    return states, gradients


def follow(optimizer, states, gradients, tolerance):
    """Check that another optimizer, given the same gradients, gets the same weights."""

    @jax.jit
    def step(params, optimizer_state, gradient):
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state

    params, optimizer_state = states[0].params, optimizer.init(states[0].params)
    for state, gradient in zip(states[1:], gradients, strict=True):
        params, optimizer_state = step(params, optimizer_state, gradient)
        close(state.params, params, tolerance)


SCHEDULE = unit_schedule("cosine", 6, 2)
HYPER = Hyper(lr=0.3, weight_decay=0.1, clip=2.0, b1=0.8, b2=0.95)
MASK = {"w": True, "b": False}


def test_adamw_is_that_of_optax():
    adamw = optax.adamw(lambda t: 0.3 * SCHEDULE(t), 0.8, 0.95, weight_decay=0.1, mask=MASK)
    follow(optax.chain(optax.clip_by_global_norm(2.0), adamw), *run_steps("adamw", HYPER, schedule=SCHEDULE), 1e-5)


@pytest.mark.usefixtures("x64")
def test_adamw_in_float64():
    adamw = optax.adamw(0.3, 0.8, 0.95, weight_decay=0.1, mask=MASK)
    # The decay of a moment passes through float32 when Hyper is traced, hence not 1e-14.
    hyper = jax.tree.map(jnp.float64, HYPER._replace(clip=math.inf))
    follow(adamw, *run_steps("adamw", hyper, dtype=jnp.float64), 1e-12)


def test_sgd_with_momentum_is_that_of_optax():
    states, gradients = run_steps("sgd", Hyper(lr=0.05, clip=math.inf, b1=0.8), schedule=SCHEDULE)
    follow(optax.sgd(lambda t: 0.05 * SCHEDULE(t), momentum=0.8), states, gradients, 1e-6)


def test_clipping_bounds_the_step_and_not_the_reported_norm():
    for clip in (0.5, 1e3, math.inf):
        states, gradients = run_steps("sgd", Hyper(lr=1.0, clip=clip, b1=0.0), n=1)
        length = optax.tree.norm(jax.tree.map(jnp.subtract, states[1].params, states[0].params))
        norm = optax.tree.norm(gradients[0])
        assert norm > 0.5
        close(length, min(float(norm), clip), 1e-5)


@pytest.mark.fast
def test_weight_decay_acts_on_matrices():
    """With a gradient of zero, lr = 0.1 and decay 1 take a tenth from each matrix and leave biases and gains alone."""
    shapes = jax.eval_shape(lambda: CELLS["gru"].init(jax.random.key(0), 2, 2))
    cell = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    params = {
        "w_out": jnp.ones(2),
        "b_out": jnp.ones(2),
        "g": jnp.ones(2),
        "layers": {0: cell, 1: cell},
        "w_list": {0: jnp.ones(1)},
        "w_tuple": (jnp.ones(1), jnp.ones(1)),
        "norm": {"g_in": jnp.ones(1), "bias": jnp.ones(1)},
    }

    def loss_fn(params, extra, batch, key, hyper):
        return (0.0 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)), jnp.float32(1)), (extra, {})

    for kind in ("adamw", "sgd"):
        optimizer, hyper = make_optimizer(kind), Hyper(lr=0.1, weight_decay=1.0)
        state = train.init_state(params, (), jax.random.key(0), optimizer(hyper))
        after, _ = jax.jit(make_step(loss_fn, optimizer))(state, (), hyper)
        factors = jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda new, old: float(jnp.sum(new) / jnp.sum(old)), after.params, params)
        )
        for path, factor in factors:
            name = jax.tree_util.keystr(path)
            assert math.isclose(factor, 0.9 if "w_" in name else 1.0, rel_tol=1e-5), name


def test_weights_without_names_do_not_decay():
    optimizer, hyper = make_optimizer("sgd"), Hyper(lr=0.1, weight_decay=1.0)
    for params in (jnp.ones(2), [jnp.ones(2)]):
        updates, _ = optimizer(hyper).update(
            jax.tree.map(jnp.zeros_like, params), optimizer(hyper).init(params), params
        )
        close(updates, jax.tree.map(jnp.zeros_like, params))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("kind", "warmup", "expected"),
    [
        ("constant", 0, {0: 1, 50: 1, 100: 1}),
        ("constant", 4, {0: 0.25, 2: 0.625, 4: 1, 100: 1}),
        ("linear", 0, {0: 1, 50: 0.51, 100: 0.02, 200: 0.02}),
        ("linear", 20, {0: 0.05, 20: 1, 60: 0.51, 100: 0.02}),
        ("cosine", 0, {0: 1, 50: 0.51, 25: 0.51 + 0.49 * math.sqrt(0.5), 100: 0.02, 101: 0.02}),
        ("cosine", 20, {0: 0.05, 10: 0.525, 20: 1, 60: 0.51, 100: 0.02}),
        ("inverse_sqrt", 0, {0: 1, 3: 0.5, 99: 0.1}),
        ("inverse_sqrt", 25, {0: 0.04, 25: 1, 100: 0.5}),
        ("cosine", 100, {0: 0.01, 100: 1}),
    ],
)
def test_schedules(kind, warmup, expected):
    schedule = unit_schedule(kind, 100, warmup)
    for step, value in expected.items():
        assert math.isclose(schedule(step), value, rel_tol=1e-5, abs_tol=1e-6)
        with jax.numpy_dtype_promotion("standard"):
            assert math.isclose(jax.jit(schedule)(step), value, rel_tol=1e-5, abs_tol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.9])
def test_the_average_of_the_weights(decay):
    states, _ = run_steps("adamw", Hyper(lr=0.1, ema=decay), average=True)
    average = jax.tree.map(np.asarray, states[0].params)
    close(averaged_params(states[0]), average)
    for t, state in enumerate(states[1:]):
        d = min(decay, (1 + t) / (10 + t))
        average = jax.tree.map(lambda a, p: d * a + (1 - d) * np.asarray(p), average, state.params)  # noqa: B023
        close(averaged_params(state), average)
    assert (bits_of(average)[1] == bits_of(jax.tree.map(np.asarray, states[-1].params))[1]) == (decay == 0)


def test_an_average_of_bfloat16_moves():
    optimizer, hyper = make_optimizer("sgd", average=True), Hyper(ema=0.999)
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    state = train.init_state(params, (), jax.random.key(0), optimizer(hyper))
    half = {"w": jnp.full(2, 0.5, jnp.bfloat16)}

    @jax.jit
    def later(opt_state):  # the weights become 1.5 and stay
        average = optimizer(hyper)
        after = optax.apply_updates(params, half)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.fori_loop(0, 5000, lambda _, s: average.update(zeros, s, after)[1], opt_state)

    with jax.numpy_dtype_promotion("standard"):
        average = averaged_params(state._replace(opt_state=later(state.opt_state)))
    assert average["w"].dtype == jnp.bfloat16
    assert np.all(average["w"] > 1.49)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_bfloat16_weights_take_traced_numbers(kind):
    def loss_fn(params, extra, batch, key, hyper):
        return (jnp.sum(jnp.square(params["w"] - 3)).astype(jnp.float32), jnp.float32(1)), (extra, {})

    optimizer, hyper = make_optimizer(kind, average=True), Hyper(lr=0.25, weight_decay=0.5, clip=2.0)
    state = train.init_state({"w": jnp.ones(2, jnp.bfloat16)}, (), jax.random.key(0), optimizer(hyper))
    step = jax.jit(make_step(loss_fn, optimizer))
    after, _ = step(state, (), Hyper(*map(jnp.float32, hyper)))
    assert jax.tree.map(lambda a: a.dtype, after) == jax.tree.map(lambda a: a.dtype, state)
    expected = 1 + 0.25 * ((1 if kind == "adamw" else 2**0.5) - 0.5)
    np.testing.assert_allclose(after.params["w"].astype(jnp.float32), expected, rtol=1e-2)


def test_without_an_average_the_weights_are_the_average():
    states, _ = run_steps("sgd", Hyper(), n=1)
    assert averaged_params(states[1]) is states[1].params


@pytest.mark.fast
def test_a_change_of_hyperparameters_compiles_nothing():
    def loss_fn(params, extra, batch, key, hyper):
        logits = batch @ params["w"]
        targets = jnp.zeros(logits.shape[0], jnp.int32)
        loss = losses.cross_entropy(logits, targets, label_smoothing=hyper.label_smoothing)
        return loss, (extra, {})

    optimizer = make_optimizer("adamw", unit_schedule("cosine", 10, 2), average=True)
    first, second = Hyper(label_smoothing=0.1), Hyper(0.5, 0.3, 0.1, 0.5, 0.6, 0.7, 0.4, 0.9)
    state = train.init_state({"w": jnp.eye(3)}, (), jax.random.key(0), optimizer(first))
    step = jax.jit(make_step(loss_fn, optimizer))
    batch = jax.random.normal(jax.random.key(0), (5, 3))
    step(state, batch, first)
    with compilations() as compiled:
        _, metrics = step(state, batch, second)
        _, sharp = step(state, batch, second._replace(label_smoothing=0.0))
    assert compiled == []
    assert metrics["loss"][0] != sharp["loss"][0]


def test_clipping_to_nothing_is_refused():
    with pytest.raises(InputError, match=r"hyper\.clip=0 leaves nothing of a gradient"):
        train.check_hyper(Hyper(clip=0.0))
    train.check_hyper(Hyper(clip=math.inf))


def test_a_metric_of_the_loss_does_not_replace_the_loss():
    def loss_fn(params, extra, batch, key, hyper):
        return (jnp.sum(params["w"]), jnp.float32(2)), (extra, {"loss": (jnp.float32(7), jnp.float32(7))})

    optimizer = make_optimizer("sgd")
    state = train.init_state({"w": jnp.ones(1)}, (), jax.random.key(0), optimizer(Hyper()))
    after, metrics = make_step(loss_fn, optimizer)(state, (), Hyper(lr=1.0))
    assert metrics["loss"] == (1, 2)
    close(after.params["w"], jnp.array([0.5]))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("weight_decay", -0.1),
        ("clip", -1.0),
        ("clip", math.nan),
    ]
    + [("scheduled_sampling", -0.1), ("scheduled_sampling", 1.1), ("scheduled_sampling", math.nan)]
    + [(name, value) for name in ("b1", "b2", "dropout", "label_smoothing", "ema") for value in (-0.1, 1.0)],
)
def test_hyperparameters_out_of_range(name, value):
    with pytest.raises(InputError, match=rf"hyper\.{name}={value}; it must be at least 0"):
        train.check_hyper(Hyper()._replace(**{name: value}))
    train.check_hyper(Hyper(clip=math.inf, scheduled_sampling=1.0))


def test_fields_of_hyper_keep_their_places():
    """Studies and tests give them without names."""
    assert Hyper(1, 2, 3, 4, 5, 6, 7, 8) == Hyper(1, 2, 3, 4, 5, 6, 7, ema=8, scheduled_sampling=0.0)
    assert Loop(1, 2, 3, 4, 5, "skip") == Loop(1, 2, 3, 4, 5, on_nan="skip", patience=None)


def test_configurations_of_earlier_versions(tmp_path):
    """A config.json without the fields that came later."""
    names = {Hyper: ["scheduled_sampling"], Loop: ["patience", "monitor", "best"]}
    for kind, config in ((Hyper, Hyper(lr=0.5)), (Loop, Loop(steps=7))):
        write_config(tmp_path, "lm", config, [])
        record = json.loads((tmp_path / "config.json").read_text())
        for name in names[kind]:
            del record["config"][name]
        (tmp_path / "config.json").write_text(json.dumps(record))
        assert read_config(tmp_path, kind) == config


@pytest.mark.parametrize("name", ["steps", "log_every", "eval_every", "checkpoint_every", "keep", "patience"])
def test_loops_out_of_range(name):
    with pytest.raises(InputError, match=rf"loop\.{name}=0; it must be at least"):
        Loop(**{name: 0})


def test_what_is_the_best_value_must_be_said():
    with pytest.raises(InputError, match=r"loop\.monitor=bleu; set loop\.best to lowest or highest"):
        Loop(monitor="bleu")
    Loop(monitor="bleu", best="highest")


def test_averages_divide_once():
    pairs = {"loss": (jnp.float32(6), jnp.float32(4)), "none": (jnp.float32(0), jnp.float32(0))}
    values = train.averages(pairs)
    assert values["loss"] == 1.5
    assert math.isnan(values["none"])


# --- the loop: a toy whose every step depends on the key, on the state carried along and on all steps before

# No two of the three borders coincide for long.
LOOP = Loop(steps=13, log_every=5, eval_every=4, checkpoint_every=3)
TOY_HYPER = Hyper(lr=0.1, ema=0.5)
OPTIMIZER = make_optimizer("adamw", unit_schedule("cosine", 13, 3), average=True)


def toy_loss(params, extra, batch, key, hyper):
    x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
    y = jnp.tanh(x @ params["w"]) + jnp.broadcast_to(params["b"] + extra, (4, 2))
    total = jnp.sum(jnp.square(y - batch["y"]))
    # The batch may ask to fail, always (1) or at a high learning rate only (2).
    fails = (batch["fail"] == 1) | ((batch["fail"] == 2) & (hyper.lr > 0.06))
    near = jnp.sum(jnp.abs(y - batch["y"]) < 0.5).astype(jnp.float32)
    loss = total * jnp.where(fails, jnp.nan, 1.0)
    return (loss, jnp.float32(8)), (0.9 * extra + 0.1 * jnp.mean(y), {"accuracy": (near, jnp.float32(8))})


TRAIN_STEP = make_step(toy_loss, OPTIMIZER)


def toy_state():
    params = {"w": jnp.array([[0.5, -1.0], [2.0, 0.1], [0.3, 0.3]]), "b": jnp.zeros(2)}
    return train.init_state(params, jnp.zeros(()), jax.random.key(3), OPTIMIZER(TOY_HYPER))


def toy_batch(step, fails=()):
    rng = np.random.default_rng(step)
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    return {"x": x.astype(np.float32), "y": y.astype(np.float32), "fail": np.int32(dict(fails).get(step, 0))}


class Killed(Exception):
    pass


def toy_batches(start, stop, *, fails=(), kill=None, terminate=None):
    """The batches of the steps; one of them is never delivered, or comes together with SIGTERM."""
    for step in range(start, stop):
        if step == kill:
            raise Killed
        if step == terminate:
            os.kill(os.getpid(), signal.SIGTERM)
        yield toy_batch(step, fails)


@jax.jit
def _validate(params):
    return jnp.sum(jnp.abs(params["w"])), jnp.max(params["b"])


def validate(params):
    return {"loss": float(_validate(params)[0]), "peak": float(_validate(params)[1])}


def run(
    directory,
    *,
    loop=LOOP,
    step=TRAIN_STEP,
    state=None,
    batches=toy_batches,
    evaluate=validate,
    tokens=0,
    resume=False,
    console=False,
    **kw,
):
    return fit(
        loop,
        step,
        toy_state() if state is None else state,
        TOY_HYPER,
        partial(batches, **kw),
        directory=directory,
        evaluate=evaluate,
        tokens_per_step=tokens,
        resume=resume,
        console=console,
    )


def rows(directory):
    """metrics.jsonl without what a clock says."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(directory / "metrics.jsonl")]


def outcome(directory, state):
    return bits_of(state), rows(directory)


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory):
    directory = tmp_path_factory.mktemp("unkilled")
    return outcome(directory, run(directory))


def test_the_run_directory(tmp_path, capsys, unkilled):
    last = []
    state = fit(
        LOOP,
        TRAIN_STEP,
        toy_state(),
        TOY_HYPER,
        toy_batches,
        directory=tmp_path,
        evaluate=lambda params: last.append(params) or validate(params),
        tokens_per_step=7,
    )
    assert bits_of(state) == unkilled[0]
    # What is evaluated is the average of the weights.
    assert bits_of(last[-1]) == bits_of(averaged_params(state)) != bits_of(state.params)
    written = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["split"]) for row in written] == [
        (4, "validation"),
        (5, "train"),
        (8, "validation"),
        (10, "train"),
        (12, "validation"),
        (13, "train"),
        (13, "validation"),
    ]
    for row in written:
        names = {"train": ["accuracy", "grad_norm", "loss"], "validation": ["loss", "peak"]}[row["split"]]
        assert list(row) == ["step", "split", *names, "seconds"]
        assert all(isinstance(row[name], float) for name in [*names, "seconds"])
    seconds = [row["seconds"] for row in written]
    assert seconds == sorted(seconds)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [9, 12, 13]
    out = capsys.readouterr().out
    assert "step 5/13  train loss " in out
    assert "tokens/s" in out
    assert out.count("validation loss ") == 4

    train.summarise(tmp_path, {"loss": 1.5, "bits": 2.0})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"loss": 1.5, "bits": 2.0}


def test_the_logged_loss_is_the_mean_since_the_last_log(tmp_path):
    run(tmp_path, loop=Loop(steps=13, log_every=1, eval_every=4, checkpoint_every=100), evaluate=None)
    single = [row["loss"] for row in rows(tmp_path)]
    assert len(single) == 13
    run(tmp_path / "b", evaluate=None)
    means = [row["loss"] for row in rows(tmp_path / "b")]
    np.testing.assert_allclose(means, [np.mean(single[:5]), np.mean(single[5:10]), np.mean(single[10:])], rtol=1e-5)


# Before the first checkpoint; just after one; between it and a log; between a log and the next checkpoint; at the end.
@pytest.mark.parametrize("kill", [2, 3, 4, 5, 8, 11, 12])
def test_killed_and_resumed(tmp_path, unkilled, kill):
    with pytest.raises(Killed):
        run(tmp_path, kill=kill)
    assert outcome(tmp_path, run(tmp_path, resume=True)) == unkilled


@pytest.mark.fast
def test_killed_again_and_again(tmp_path, unkilled):
    for kill in (1, 4, 4, 5, 7, 12):
        with pytest.raises(Killed):
            run(tmp_path, kill=kill, resume=True)
    assert outcome(tmp_path, run(tmp_path, resume=True)) == unkilled


def test_a_finished_run_has_nothing_left_to_do(tmp_path, unkilled):
    run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    state = run(tmp_path, resume=True, kill=1)
    assert outcome(tmp_path, state) == unkilled
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_metric_may_be_new(tmp_path):
    def more(params, extra, batch, key, hyper):
        loss, (extra, metrics) = toy_loss(params, extra, batch, key, hyper)
        return loss, (extra, metrics | {"one": (jnp.float32(3), jnp.float32(3))})

    with pytest.raises(Killed):
        run(tmp_path, kill=7)
    run(tmp_path, step=make_step(more, OPTIMIZER), resume=True)
    assert [row.get("one") for row in rows(tmp_path) if row["split"] == "train"] == [None, 1, 1]


def test_a_summary_is_json_whatever_the_numbers(tmp_path):
    write_json(tmp_path / "summary.json", {"loss": math.nan, "accuracy": np.float32(0.5), "n": 3})
    found = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert found == {"loss": None, "accuracy": 0.5, "n": 3}


def test_a_new_run_forgets_the_metrics_of_the_old_one(tmp_path, unkilled):
    with pytest.raises(Killed):
        run(tmp_path, kill=7, loop=dataclasses.replace(LOOP, checkpoint_every=100))
    assert (tmp_path / "metrics.jsonl").stat().st_size
    assert outcome(tmp_path, run(tmp_path)) == unkilled


def test_a_new_run_does_not_mix_with_the_checkpoints_of_another(tmp_path):
    run(tmp_path)
    with pytest.raises(InputError, match="holds the checkpoints of another run, the last of step 13: pass resume=True"):
        run(tmp_path)


@pytest.mark.fast
@pytest.mark.parametrize("terminate", [1, 7])
def test_sigterm_saves_and_exits_143(tmp_path, capsys, unkilled, terminate):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, terminate=terminate, console=True)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    assert f"saved at step {terminate + 1}, go on with --resume" in capsys.readouterr().out
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps()[-1] == terminate + 1
    assert outcome(tmp_path, run(tmp_path, resume=True)) == unkilled


def test_sigterm_in_the_last_step_lets_the_run_finish(tmp_path, unkilled):
    assert outcome(tmp_path, run(tmp_path, terminate=12)) == unkilled


def test_fit_outside_the_main_thread(tmp_path, unkilled):
    with ThreadPoolExecutor(1) as pool:
        assert outcome(tmp_path, pool.submit(run, tmp_path).result()) == unkilled


def saved_steps(directory):
    return Checkpoints(directory / "checkpoints").steps()


# --- patience


class Script:
    """Batches, and evaluations whose values are given: one after each second step and after the last."""

    def __init__(self, *values, name="bleu", batches=toy_batches):
        self._values = dict(zip([2, 4, 6, 8, 10, 12, 13], values, strict=False))
        self._name, self._batches, self._step = name, batches, 0
        self.evaluated = {}

    def batches(self, start, stop, **kw):
        for step, batch in enumerate(self._batches(start, stop, **kw), start + 1):
            self._step = step
            yield batch

    def evaluate(self, params):
        self.evaluated[self._step] = bits_of(params)
        return {"other": 0.0, self._name: np.float64(self._values[self._step])}

    def run(self, directory, **kw):
        return run(directory, batches=self.batches, evaluate=self.evaluate, **kw)


def best(directory, state=None):
    return bits_of(train.best_params(directory, state or toy_state()))


# The third evaluation is no number, the fourth is as good as the second and not better.
VALUES = (1.0, 3.0, math.nan, 3.0)
PATIENCE = Loop(
    steps=13, log_every=5, eval_every=2, checkpoint_every=5, keep=2, patience=2, monitor="bleu", best="highest"
)


@pytest.mark.fast
def test_patience_ends_training_and_keeps_the_best(tmp_path, capsys):
    script = Script(*VALUES)
    state = script.run(tmp_path, loop=PATIENCE, console=True)
    assert state.step == 8
    assert "no bleu better than 3 of step 4 in 2 evaluations; stopped at step 8" in capsys.readouterr().out
    assert [(row["step"], row["split"]) for row in rows(tmp_path)] == [
        (2, "validation"),
        (4, "validation"),
        (5, "train"),
        (6, "validation"),
        (8, "validation"),
    ]
    # 2 and 4 were the best so far, 5 is regular, 8 the last: the two newest and the best are left.
    assert saved_steps(tmp_path) == [4, 5, 8]
    assert best(tmp_path) == script.evaluated[4] != bits_of(averaged_params(state))
    # The checkpoint goes on as if nothing had ended: with more patience it is a run that never stopped.
    before = outcome(tmp_path, state)
    assert outcome(tmp_path, script.run(tmp_path, loop=PATIENCE, resume=True, kill=1)) == before
    script, longer = Script(*VALUES, 2.0, 4.0, 1.0), dataclasses.replace(PATIENCE, patience=5)
    resumed = outcome(tmp_path, script.run(tmp_path, loop=longer, resume=True))
    assert best(tmp_path) == script.evaluated[12]
    assert resumed == outcome(tmp_path / "whole", script.run(tmp_path / "whole", loop=longer))
    assert saved_steps(tmp_path) == saved_steps(tmp_path / "whole") == [12, 13]


def test_killed_and_resumed_it_stops_at_the_same_step(tmp_path):
    whole = outcome(tmp_path / "whole", Script(*VALUES).run(tmp_path / "whole", loop=PATIENCE))
    for kill in (3, 4, 5, 6, 7):
        with pytest.raises(Killed):
            Script(*VALUES).run(tmp_path, loop=PATIENCE, kill=kill, resume=True)
    with pytest.raises(SystemExit):
        Script(*VALUES).run(tmp_path, loop=PATIENCE, terminate=6, resume=True)
    assert outcome(tmp_path, Script(*VALUES).run(tmp_path, loop=PATIENCE, resume=True)) == whole
    assert best(tmp_path) == best(tmp_path / "whole")
    # A signal after the step that ends training changes nothing.
    last = Script(*VALUES).run(tmp_path / "last", loop=PATIENCE, terminate=7)
    assert outcome(tmp_path / "last", last) == whole


def test_of_a_loss_the_lowest_is_best(tmp_path):
    script = Script(3.0, 1.0, 2.0, 0.5, 0.7, math.inf, 0.6, name="loss")
    state = script.run(tmp_path, loop=Loop(steps=13, eval_every=2, patience=7))
    assert state.step == 13  # patience without end keeps the best all the same
    assert best(tmp_path) == script.evaluated[8]
    script = Script(3.0, 1.0, 2.0, 0.5, name="loss")
    script.run(tmp_path / "again", loop=Loop(steps=13, eval_every=2, patience=1))
    assert best(tmp_path / "again") == script.evaluated[4]


def test_none_is_the_best(tmp_path, capsys):
    script = Script(math.nan, math.inf, name="loss")
    state = script.run(tmp_path, loop=Loop(steps=13, eval_every=2, patience=2), console=True)
    assert state.step == 4
    assert "no loss that is finite in 2 evaluations; stopped at step 4" in capsys.readouterr().out
    assert best(tmp_path) == bits_of(averaged_params(state))


def test_a_rollback_goes_back_behind_the_best(tmp_path):
    """The failure of step 7 shows when step 8, the best so far, is to be saved; its second run is the worse one."""
    loop = dataclasses.replace(PATIENCE, on_nan="rollback", steps=10)
    script = Script(1.0, 2.0, 0.0, 3.0, 2.5)
    state = script.run(tmp_path, loop=loop, fails={6: 2})
    assert state.step == 10
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore(toy_state()).metadata["rollbacks"] == 1
    assert best(tmp_path) == script.evaluated[8]


def test_without_patience_the_newest_weights_are_used(tmp_path, unkilled):
    state = run(tmp_path)
    assert best(tmp_path) == best(tmp_path, jax.eval_shape(toy_state)) == bits_of(averaged_params(state))
    with pytest.raises(InputError, match="holds no checkpoint yet"):
        train.best_params(tmp_path / "elsewhere", state)


def test_checkpoints_of_earlier_versions(tmp_path):
    """They know of no best evaluation."""
    whole = outcome(tmp_path / "whole", Script(*VALUES).run(tmp_path / "whole", loop=PATIENCE))
    with pytest.raises(SystemExit):
        Script(*VALUES).run(tmp_path, loop=PATIENCE, terminate=1)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        restored = checkpoints.restore(toy_state())
        del restored.metadata["best"]
        checkpoints.save(2, restored.tree, restored.metadata)
    assert best(tmp_path) == bits_of(averaged_params(restored.tree))
    assert outcome(tmp_path, Script(*VALUES).run(tmp_path, loop=PATIENCE, resume=True)) == whole


def test_what_patience_needs(tmp_path):
    with pytest.raises(InputError, match=r"loop\.monitor=bleu; evaluate returns no such metric, only loss, peak"):
        run(tmp_path, loop=PATIENCE)
    with pytest.raises(InputError, match=r"loop\.patience=2 without evaluate"):
        run(tmp_path, loop=PATIENCE, evaluate=None)


# --- batches of several shapes


def length_loss(params, extra, batch, key, hyper):
    x, where = batch
    noise = 0.1 * jax.random.normal(key, where.shape)
    y = jnp.tanh(x @ params["w"]) + params["b"].reshape(1, 1, 2)
    total = jnp.sum(jnp.where(where, jnp.sum(jnp.square(y), axis=-1) + noise, 0.0))
    return (total, jnp.sum(where).astype(jnp.float32)), (0.9 * extra + total, {})


LENGTH_STEP = make_step(length_loss, OPTIMIZER)
SHAPES = [(4, 3), (2, 7), (4, 3), (3, 5), (2, 7), (4, 3), (3, 5)]


def length_batch(step):
    rng = np.random.default_rng(step)
    shape = SHAPES[step % len(SHAPES)]
    return rng.normal(size=(*shape, 3)).astype(np.float32), rng.random(shape) < 0.8


def length_batches(start, stop, kill=None):
    for step in range(start, stop):
        if step == kill:
            raise Killed
        yield length_batch(step)


@pytest.mark.fast
def test_each_shape_is_compiled_once(tmp_path, monkeypatch, capsys):
    steps, compiled = 20, []

    def batches(start, stop):
        for step, batch in enumerate(length_batches(start, stop)):
            compiled.append(sum("backend_compile" in event for event in events))
            monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: step + 1.0))  # noqa: B023
            yield batch

    def n_tokens(batch):
        return int(np.sum(batch[1]))

    loop = Loop(steps=steps, log_every=10, checkpoint_every=100)
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: 0.0))
    with compilations() as events:
        run(tmp_path, loop=loop, step=LENGTH_STEP, batches=batches, evaluate=None, tokens=n_tokens, console=True)
    during = np.diff(compiled[1:])  # the first batch was asked for its shape only
    assert during[: len(SHAPES)].tolist() == [1, 1, 0, 1, 0, 0, 0]
    assert during[len(SHAPES) :].sum() == during[9]  # a log clears its sums, by a program of its own
    # A second a step, so that a rate is a mean.
    means = [np.mean([n_tokens(length_batch(step)) for step in part]) for part in (range(10), range(10, 20))]
    assert means[0] != means[1]
    out = capsys.readouterr().out
    for mean in means:
        assert f"  {mean:,.0f} tokens/s" in out


def test_killed_and_resumed_with_several_shapes(tmp_path):
    def script():
        return Script(*VALUES, batches=length_batches)

    whole = outcome(tmp_path / "whole", script().run(tmp_path / "whole", loop=PATIENCE, step=LENGTH_STEP))
    for kill in (1, 3, 5, 6, 7):
        with pytest.raises(Killed):
            script().run(tmp_path, loop=PATIENCE, step=LENGTH_STEP, kill=kill, resume=True)
    assert outcome(tmp_path, script().run(tmp_path, loop=PATIENCE, step=LENGTH_STEP, resume=True)) == whole
    assert best(tmp_path) == best(tmp_path / "whole")


# --- the mean over checkpoints


def damage(directory, step):
    record = directory / str(step) / "integrity" / "metadata"
    record.write_bytes(record.read_bytes()[:-9])


@pytest.mark.fast
@pytest.mark.parametrize(("dtype", "average"), [("float32", True), ("bfloat16", False)])
def test_the_mean_over_checkpoints(tmp_path, dtype, average):
    """Of the weights, or of their moving averages where these are what is evaluated; summed in at least float32."""
    rng, optimizer, states = np.random.default_rng(0), make_optimizer(average=average)(Hyper()), {}
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        for step in (1, 2, 3, 9, 10):
            params = {"w": jnp.asarray(rng.normal(size=(3, 2)), dtype), "b": [jnp.asarray(rng.normal(), dtype)]}
            state = train.init_state(params, (), jax.random.key(0), optimizer)
            # The weights are not their moving average.
            states[step] = state._replace(params=jax.tree.map(jnp.ones_like, params)) if average else state
            checkpoints.save(step, states[step], {})
        template = jax.eval_shape(lambda: state)
        for n, steps in ((1, [10]), (3, [3, 9, 10]), (5, [1, 2, 3, 9, 10])):
            actual = train.average_checkpoints(checkpoints, template, n)
            leaves = zip(*(jax.tree.leaves(averaged_params(states[step])) for step in steps), strict=True)
            for leaf, parts in zip(jax.tree.leaves(actual), leaves, strict=True):
                mean = np.mean([np.asarray(part, np.float64) for part in parts], axis=0)
                assert leaf.dtype == dtype
                np.testing.assert_allclose(
                    np.asarray(leaf, np.float64), mean.astype(leaf.dtype).astype(np.float64), rtol=1e-6
                )
        with pytest.raises(InputError, match=r"n=6; there are 5 intact checkpoints"):
            train.average_checkpoints(checkpoints, template, 6)


def test_the_mean_over_intact_checkpoints(tmp_path):
    optimizer = make_optimizer("sgd")(Hyper())
    with Checkpoints(tmp_path, keep=4) as checkpoints:
        for step in (1, 2, 3, 4):
            state = train.init_state({"w": jnp.full(2, float(step))}, (), jax.random.key(0), optimizer)
            checkpoints.save(step, state, {})
    damage(tmp_path, 1)
    damage(tmp_path, 3)
    with pytest.warns(RuntimeWarning, match="trying step 2"):
        close(train.average_checkpoints(checkpoints, state, 2), {"w": jnp.full(2, 3.0)})
    with pytest.warns(RuntimeWarning), pytest.raises(InputError, match=r"n=3; there are 2 intact"):
        train.average_checkpoints(checkpoints, state, 3)
    with pytest.raises(InputError, match=r"n=0; it must be at least 1"):
        train.average_checkpoints(checkpoints, state, 0)
    damage(tmp_path, 2)
    damage(tmp_path, 4)
    with pytest.warns(RuntimeWarning), pytest.raises(CheckpointError, match="no older one is left"):
        train.average_checkpoints(checkpoints, state, 1)
    with pytest.raises(InputError, match=r"n=1; there are 0 intact"):
        train.average_checkpoints(Checkpoints(tmp_path / "none"), state, 1)


# --- what is not finite


def test_nan_raises_at_the_next_log(tmp_path):
    with pytest.raises(TrainingError, match=r"not finite in 20% of the last steps up to step 10; lower lr"):
        run(tmp_path, fails={9: 1})
    assert saved_steps(tmp_path) == [3, 6, 9]
    last = rows(tmp_path)[-1]
    assert (last["step"], last["split"], last["skipped"]) == (10, "train", 0.2)
    assert math.isfinite(last["loss"])


def test_nan_never_gets_into_a_checkpoint(tmp_path):
    """The failure of step 7 is seen at the checkpoint of step 9, before the log of step 10."""
    with pytest.raises(TrainingError, match="up to step 9"):
        run(tmp_path, fails={6: 1})
    assert saved_steps(tmp_path) == [3, 6]
    with pytest.raises(TrainingError, match="up to step 9"):
        run(tmp_path, fails={6: 1}, resume=True)


def test_nan_skipped(tmp_path, capsys):
    loop = Loop(steps=13, log_every=5, eval_every=4, checkpoint_every=3, on_nan="skip")
    state = run(tmp_path, loop=loop, fails={0: 1, 6: 1, 7: 1}, console=True)
    assert state.step == 13
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((state.params, state.extra)))
    assert [row.get("skipped") for row in rows(tmp_path) if row["split"] == "train"] == [0.2, 0.4, None]
    assert capsys.readouterr().out.count("skipped them") == 2
    killed = tmp_path / "killed"
    with pytest.raises(Killed):
        run(killed, loop=loop, fails={0: 1, 6: 1, 7: 1}, kill=9)
    resumed = run(killed, loop=loop, fails={0: 1, 6: 1, 7: 1}, resume=True)
    assert outcome(killed, resumed) == outcome(tmp_path, state)


def test_a_log_without_a_finite_step(tmp_path):
    loop = Loop(steps=4, log_every=2, eval_every=9, checkpoint_every=9, on_nan="skip")
    run(tmp_path, loop=loop, fails={0: 1, 1: 1}, evaluate=None)
    first, second = rows(tmp_path)
    assert first == {"step": 2, "split": "train", "accuracy": None, "grad_norm": None, "loss": None, "skipped": 1.0}
    assert second["loss"] is not None


ROLLBACK = Loop(steps=13, log_every=5, eval_every=4, checkpoint_every=3, on_nan="rollback")


@pytest.mark.parametrize("fail", [0, 4, 6, 9])
def test_rollback_recovers_where_a_lower_learning_rate_helps(tmp_path, capsys, fail):
    state = run(tmp_path, loop=ROLLBACK, fails={fail: 2}, console=True)
    assert state.step == 13
    assert capsys.readouterr().out.count("learning rate halved") == 1
    written = rows(tmp_path)
    assert not any("skipped" in row for row in written)
    order = [(row["step"], row["split"]) for row in written]
    assert order == sorted(set(order))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore(toy_state()).metadata["rollbacks"] == 1

    # The halved rate survives a kill.
    killed = tmp_path / "killed"
    for kill in (10, 11):
        with pytest.raises(Killed):
            run(killed, loop=ROLLBACK, fails={fail: 2}, kill=kill, resume=True)
    assert outcome(killed, run(killed, loop=ROLLBACK, fails={fail: 2}, resume=True)) == outcome(tmp_path, state)


def test_rollback_gives_up_after_three(tmp_path, capsys):
    with pytest.raises(TrainingError, match=r"not finite .* up to step 9; gave up after 3 rollbacks"):
        run(tmp_path, loop=ROLLBACK, fails={7: 1}, console=True)
    assert capsys.readouterr().out.count("back to step 6, learning rate halved") == 3
    assert saved_steps(tmp_path)[-1] == 6


# --- checkpoints on other devices, and damaged ones


def replicated(state):
    return jax.device_put(state, NamedSharding(Mesh(np.array(jax.devices()), "d"), PartitionSpec()))


@pytest.mark.parametrize("before", [1, 4])
def test_resume_on_another_number_of_devices(tmp_path, unkilled, before):
    place = {1: lambda state: state, 4: replicated}
    with pytest.raises(Killed):
        run(tmp_path, state=place[before](toy_state()), kill=8)
    after = 5 - before
    state = run(tmp_path, state=place[after](toy_state()), resume=True)
    assert all(len(leaf.sharding.device_set) == after for leaf in jax.tree.leaves(state))
    assert outcome(tmp_path, state) == unkilled


def test_a_flipped_bit_in_the_newest_checkpoint(tmp_path, unkilled):
    with pytest.raises(Killed):
        run(tmp_path, kill=8)
    assert saved_steps(tmp_path) == [3, 6]
    file = max((tmp_path / "checkpoints" / "6" / "state").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.warns(RuntimeWarning, match="checkpoint of step 6 .* is damaged: .* trying step 3"):
        state = run(tmp_path, resume=True)
    assert outcome(tmp_path, state) == unkilled


def test_the_checkpoint_of_another_model(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, kill=8)
    other = toy_state()
    other.params["w"] = jnp.zeros((3, 5))
    with pytest.raises(InputError, match=r"w.* is float32\[3, 2\] in the checkpoint of step 6"):
        Checkpoints(tmp_path / "checkpoints").restore(other)
