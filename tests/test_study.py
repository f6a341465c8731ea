"""Studies: members are as if they were alone, whatever happens to the others, and however they are run."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from seqjax import losses, nn, train
from seqjax.averaging import averaged_params
from seqjax.errors import InputError
from seqjax.models import rnn_lm
from seqjax.reporting import read_metrics
from seqjax.study import Plan, Result, Standings, Study, axes, engine, predict_memory, run_study, rung_steps
from seqjax.study.parts import make_plan

VOCAB, BATCH, TIME, STEPS = 7, 2, 5, 24
MODEL = rnn_lm.Config(cell="elman", d_embed=4, d_hidden=4)
INIT, APPLY = nn.purify(lambda key: rnn_lm.RNNLM(MODEL, VOCAB, rngs=nnx.Rngs(key)))
DROPOUT = __name__ != "__main__"  # random numbers take long to compile with the compiler's own settings
OPTIMIZER = train.make_optimizer("adamw", train.unit_schedule("cosine", STEPS, 4), average=True)
DATA = np.random.default_rng(0).integers(0, VOCAB, (STEPS, 2, BATCH, TIME)).astype(np.int32)


def loss_fn(params, extra, batch, key, hyper):
    inputs, targets = batch
    extra, logits = APPLY(params, inputs, extra, dropout=hyper.dropout, key=key if DROPOUT else None)
    loss, weight = losses.cross_entropy(logits, targets, label_smoothing=hyper.label_smoothing)
    # A member with so much weight decay fails at the step that reads token 0 first: others must not notice.
    loss = jnp.where((hyper.weight_decay > 0.9) & (inputs[0, 0] == 0), jnp.nan, loss)
    return (loss, weight), (extra, {})


def initial(key):
    key_init, key_train = jax.random.split(key)
    params = INIT(key_init)
    carry = APPLY(params, BATCH, method="initial_carry")
    return train.init_state(params, carry, key_train, OPTIMIZER(train.Hyper()))


@jax.jit
def evaluate(params, carried, batch):
    carried, logits = APPLY(params, batch[0], carried)
    return carried, {"loss": losses.cross_entropy(logits, batch[1])}


EVALUATION = train.Evaluation(
    lambda params: APPLY(params, BATCH, method="initial_carry"),
    evaluate,
    lambda: iter(DATA[:3]),
    lambda values: values | {"perplexity": float(losses.perplexity(values["loss"]))},
)
STEP = train.make_step(loss_fn, OPTIMIZER)
SETUP = train.Setup(initial, STEP, lambda start, stop: iter(DATA[start:stop]), EVALUATION)
LOOP = train.Loop(steps=STEPS, log_every=6, eval_every=12, checkpoint_every=6)
K = 8
BASE = train.Hyper(dropout=0.1, ema=0.9)
HYPERS = BASE._replace(lr=np.geomspace(1e-3, 1e-1, K))
KEYS = jax.random.split(jax.random.key(3), K)
FIRST_ZERO = int(np.flatnonzero(DATA[:, 0, 0, 0] == 0)[0])


def of(hypers, rows):
    """The numbers of some members."""
    return jax.tree.map(lambda x: x[np.array(rows)] if np.ndim(x) else x, hypers)


def study(config=None, hypers=HYPERS, keys=KEYS, *, loop=LOOP, setup=SETUP, **options):
    return run_study(config or Study(devices=1), hypers, keys, setup=setup, loop=loop, console=False, **options)


def bits(tree):
    """All of its numbers as bytes."""
    return [
        np.asarray(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a).tobytes()
        for a in jax.tree.leaves(tree)
    ]


def states(plan, rows, hypers=HYPERS):
    """The states of some members after all steps."""
    padded = [*rows, *[rows[0]] * (-len(rows) % plan.unit)]
    numbers = train.Hyper._make(np.broadcast_to(np.asarray(x, np.float32), K)[padded] for x in hypers)
    members = engine.start_all(plan, SETUP, KEYS[np.array(padded)], numbers, DATA[0])
    members = engine.advance_all(plan, SETUP, members, DATA, own=False)
    return [jax.tree.map(lambda a, i=i: a[i], members.state) for i in range(len(rows))]


def mesh(n):
    return jax.sharding.Mesh(np.array(jax.devices()[:n]), ("member",))


# --- bits


@pytest.fixture(scope="module")
def together():
    return states(Plan(None), range(K))


@pytest.mark.parametrize(
    ("plan", "rows"),
    [
        pytest.param(Plan(None), [5, 2], id="two", marks=pytest.mark.fast),
        pytest.param(Plan(None), [7, 0, 3, 4, 1], id="five"),
        pytest.param(Plan(4), range(K), id="chunks"),
        pytest.param(Plan(None, mesh(2)), range(K), id="two-devices", marks=pytest.mark.fast),
    ],
)
def test_bits_of_a_member_depend_on_nothing_else(together, plan, rows):
    for state, row in zip(states(plan, list(rows)), rows, strict=True):
        assert bits(state) == bits(together[row])


def test_a_member_that_diverges_or_fails_changes_no_other(together):
    wild = HYPERS._replace(lr=np.where(np.arange(K) == 2, 1e3, HYPERS.lr))
    wild = wild._replace(weight_decay=np.where(np.arange(K) == 5, 0.95, 0.0))
    found = states(Plan(None), range(K), wild)
    assert bits(found[2]) != bits(together[2])
    assert bits(found[5]) != bits(together[5])
    for row in {*range(K)} - {2, 5}:
        assert bits(found[row]) == bits(together[row])


def test_the_engines_agree(tmp_path):
    outcome = study(Study(engine="map", devices=1))
    best = outcome.results[0]
    alone = train.fit(
        LOOP,
        STEP,
        jax.jit(initial)(KEYS[best.member]),
        BASE._replace(lr=float(HYPERS.lr[best.member])),
        SETUP.batches,
        directory=tmp_path,
        evaluate=train.make_evaluate(EVALUATION),
        console=False,
    )
    last = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["split"] == "validation"][-1]
    assert best.value == pytest.approx(last["loss"], abs=1e-5)
    for a, b in zip(jax.tree.leaves(outcome.best.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    others = {result.member: result.value for result in study().results}
    assert others == pytest.approx({result.member: result.value for result in outcome.results}, abs=1e-5)


@pytest.mark.full
@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="newer compilers round `lax.map` and a single run apart")
def test_map_has_the_bits_of_single_runs():
    """With the compiler's own settings: those of the other tests save its time, and what they leave out differs."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_NUM_CPU_DEVICES": "2"}
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, env=environment, cwd=Path(__file__).parent.parent
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"map": True, "two": True, "devices": True}


def single_runs():
    """What the test above runs."""
    step = jax.jit(STEP)
    alone, rows = [], range(K)
    for row in rows:
        state = jax.jit(initial)(KEYS[row])
        for batch in DATA:
            state, _ = step(state, batch, train.Hyper._make(map(np.float32, of(HYPERS, row))))
        alone.append(bits(state))
    all_at_once = [bits(state) for state in states(Plan(None), rows)]
    found = {
        "map": [bits(state) for state in states(Plan(1), rows)] == alone,
        "two": [bits(state) for state in states(Plan(None), [5, 2])] == [all_at_once[5], all_at_once[2]],
        "devices": [bits(state) for state in states(Plan(None, mesh(2)), rows)] == all_at_once,
    }
    print(json.dumps(found))


# --- who goes on


def test_statuses_values_and_lines(tmp_path):
    hypers = HYPERS._replace(
        lr=np.where(np.arange(K) == 2, 1e3, HYPERS.lr), weight_decay=np.where(np.arange(K) == 5, 0.95, 0.0)
    )
    outcome = study(Study(max_loss=20.0, devices=1), hypers, directory=tmp_path, first=100)
    by_member = {result.member - 100: result for result in outcome.results}
    assert by_member[5].status == "failed"
    assert by_member[5].step == FIRST_ZERO + 1
    assert by_member[2].status == "diverged"
    assert {by_member[i].status for i in {*range(K)} - {2, 5}} == {"done"}
    values = [result.value for result in outcome.results]
    assert values[:6] == sorted(values[:6])
    assert {result.member - 100 for result in outcome.results[6:]} == {2, 5}
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert {row["member"] for row in rows} == {100 + i for i in range(K)}
    done = [row for row in rows if row["member"] == 100 and row["split"] == "validation"]
    assert [row["step"] for row in done] == [12, 24]
    assert done[-1]["loss"] == by_member[0].value
    assert done[-1]["perplexity"] == pytest.approx(math.exp(by_member[0].value))
    assert by_member[0].metrics["perplexity"] == done[-1]["perplexity"]
    assert max(row["step"] for row in rows if row["member"] == 105) <= FIRST_ZERO + 6


def test_successive_halving_leaves_out_who_is_behind(together):
    config = Study(halving=2, rung=6, devices=1)
    assert rung_steps(config, K, STEPS) == (6, 12)
    # Without a given rung, what is compared stands where something is reported anyway.
    assert rung_steps(Study(halving=2), 32, 2000, every=50) == (50, 100, 200, 400, 800, 1600)
    assert rung_steps(Study(halving=3), 8, 1000, every=250) == (50, 150, 450)
    whole, halved = study(), study(config)
    at_rung = sorted(study(loop=train.Loop(steps=6, log_every=6)).results, key=lambda result: result.value)
    assert [r.status for r in halved.results] == ["done"] * 2 + ["halved"] * 6
    assert [r.step for r in halved.results] == [24] * 2 + [12] * 2 + [6] * 4
    assert len(at_rung) == K
    # The narrower programs give the same bits.
    full = {result.member: result.value for result in whole.results}
    assert {r.member: r.value for r in halved.results[:2]} == {r.member: full[r.member] for r in halved.results[:2]}
    assert bits(halved.best) == bits(together[halved.results[0].member])


def test_asynchronous_halving_fills_places_that_are_free(tmp_path):
    config, hypers = Study(halving=2, rung=6, slots=4, devices=1), of(HYPERS, [3, 7, 1, 5, 0, 6, 2, 4])
    whole = study(config, hypers, directory=tmp_path / "whole")
    statuses = [result.status for result in whole.results]
    assert {"done", "halved"} == set(statuses)
    assert [r.step for r in whole.results] == sorted((r.step for r in whole.results), reverse=True)
    assert {r.step for r in whole.results} <= {6, 12, 24}
    rows = read_metrics(tmp_path / "whole/metrics.jsonl")
    assert all(sum(r["step"] == tick and r["split"] == "train" for r in rows) <= 4 for tick in range(1, 20))
    assert {row["member"] for row in rows} == set(range(K))
    # In each place a member trains as if it were alone.
    plain = {result.member: result.value for result in study(hypers=hypers).results}
    done = {result.member: result.value for result in whole.results if result.complete}
    assert done == pytest.approx({member: plain[member] for member in done}, abs=1e-5)
    assert train.make_evaluate(EVALUATION)(averaged_params(whole.best))["loss"] == pytest.approx(min(done.values()))
    # A member is compared with those before it, in the order of their numbers.
    at_six = {r["member"]: r["loss"] for r in rows if r["split"] == "validation" and r["age"] == 6}
    seen = []
    for result in sorted(whole.results, key=lambda result: result.member):
        goes_on = sum(value <= at_six[result.member] for value in seen) < -(-(len(seen) + 1) // 2)
        assert goes_on == (result.step > 6)
        seen.append(at_six[result.member])

    class Killed(Exception):
        pass

    calls = []

    def counted(start, end):
        calls.append(start)
        if len(calls) > 11:
            raise Killed
        return iter(DATA[start:end])

    with pytest.raises(Killed):
        study(config, hypers, setup=SETUP._replace(batches=counted), directory=tmp_path / "cut")
    resumed = study(config, hypers, directory=tmp_path / "cut", resume=True)
    assert resumed.results == whole.results
    assert bits(resumed.best) == bits(whole.best)


def test_patience_is_each_member_s_own():
    loop = train.Loop(steps=STEPS, log_every=6, eval_every=3, patience=1)
    high = HYPERS._replace(lr=np.geomspace(1e-3, 3.0, K))
    outcome, free = study(hypers=high, loop=loop), study(hypers=high, loop=train.Loop(steps=STEPS, eval_every=3))
    stopped = [result for result in outcome.results if result.status == "stopped early"]
    assert 0 < len(stopped) < K
    for result in stopped:
        assert result.step == result.at + 3
        assert result.since == 1
    assert outcome.results[0].value <= free.results[0].value
    # The best one's weights are those of its best evaluation.
    again = train.make_evaluate(EVALUATION)(averaged_params(outcome.best))
    assert again["loss"] == pytest.approx(outcome.results[0].value, abs=1e-6)


def test_standings_rank_and_patience_for_a_metric_that_grows():
    loop = train.Loop(patience=2, monitor="accuracy", best="highest")
    standings = Standings([Result(i, {}) for i in range(3)], loop, evaluated=True)
    nan, steps = float("nan"), {0: 5, 1: 5, 2: 5}
    assert standings.validation(steps, {0: {"accuracy": 0.5}, 1: {"accuracy": 0.6}, 2: {"accuracy": nan}}) == [0, 1]
    assert standings.validation(steps, {0: {"accuracy": 0.7}, 1: {"accuracy": 0.6}, 2: {"accuracy": nan}}) == [0]
    assert standings.results[2].status == "stopped early"  # never had a value
    standings.halve(2)
    assert [result.status for result in standings.results] == ["running", "halved", "stopped early"]
    standings.finish()
    assert [result.member for result in standings.ranked()] == [0, 2, 1]
    with pytest.raises(InputError, match="no such metric"):
        Standings([Result(0, {})], loop, evaluated=True).validation(steps, {0: {"loss": 1.0}})


# --- stopping and going on


@pytest.mark.parametrize("stop", [8, 20])
def test_resumed_it_goes_on_with_the_same_bits(tmp_path, stop):
    class Killed(Exception):
        pass

    def until(start, end):
        for step, batch in enumerate(DATA[start:end], start=start):
            if step == stop:
                raise Killed
            yield batch

    config = Study(halving=2, rung=6)
    loop = train.Loop(steps=STEPS, log_every=4, eval_every=12, checkpoint_every=2, patience=9)
    whole = study(config, loop=loop, directory=tmp_path / "whole")
    with pytest.raises(Killed):
        study(config, loop=loop, directory=tmp_path / "cut", setup=SETUP._replace(batches=until))
    resumed = study(config, loop=loop, directory=tmp_path / "cut", resume=True)
    assert resumed.results == whole.results
    assert bits(resumed.best) == bits(whole.best)
    rows, same = (
        [{n: x for n, x in row.items() if n != "seconds"} for row in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "cut")
    )
    assert rows == same
    # Ended, it is read and not trained again; on other devices, too.
    ended = study(Study(halving=2, rung=6, devices=1), loop=loop, directory=tmp_path / "cut", resume=True)
    assert ended.results == whole.results
    assert bits(ended.best) == bits(whole.best)


def test_nothing_is_compiled_twice():
    study()
    before = engine._compile.cache_info().misses
    study(hypers=HYPERS._replace(lr=HYPERS.lr * 2, clip=0.5))
    assert engine._compile.cache_info().misses == before


# --- data


def test_members_with_batches_of_their_own():
    shift = [lambda a, b, i=i: iter(np.roll(DATA, i, axis=0)[a:b]) for i in range(4)]
    one_rate = HYPERS._replace(lr=0.01)
    keys = jnp.stack([KEYS[0]] * 4)
    own = study(hypers=one_rate, keys=keys, batches=shift)
    shifted = study(hypers=one_rate, keys=keys, setup=SETUP._replace(batches=shift[3]))
    values = {result.member: result.value for result in own.results}
    assert len(set(values.values())) == 4
    assert values[3] == pytest.approx(shifted.results[0].value, abs=1e-6)
    with pytest.raises(InputError, match="there are 3 for 4 members"):
        study(hypers=one_rate, keys=keys, batches=shift[:3])
    uneven = [*shift[:3], lambda a, b: iter(DATA[a:b, :, :, :3])]
    with pytest.raises(InputError, match="differ in shape"):
        study(hypers=one_rate, keys=keys, batches=uneven)


def test_batches_of_several_shapes():
    """As buckets have: a program for each shape."""
    mixed = [DATA[i] if i % 3 else DATA[i, :, :, :3] for i in range(12)]
    setup = SETUP._replace(batches=lambda a, b: iter(mixed[a:b]))
    loop = train.Loop(steps=12, log_every=6, eval_every=12)
    outcome = study(loop=loop, setup=setup, keys=KEYS[:4], hypers=of(HYPERS, range(4)))
    state = jax.jit(initial)(KEYS[1])
    step = jax.jit(STEP)
    for batch in mixed:
        state, _ = step(state, batch, train.Hyper._make(map(np.float32, of(HYPERS, 1))))
    value = train.make_evaluate(EVALUATION)(averaged_params(state))["loss"]
    assert {r.member: r.value for r in outcome.results}[1] == pytest.approx(value, abs=1e-5)


# --- memory, devices, refusals


def test_memory_is_predicted_and_kept():
    batches = np.stack([DATA[0]] * 6)
    predicted = predict_memory(SETUP, batches)
    for n in (6, 20, 48):
        assert predicted(n) == pytest.approx(engine.memory_of(Plan(None), SETUP, n, batches), rel=0.2)
    room = predicted(16) / 1e9
    assert make_plan(Study(engine="vmap", devices=1), SETUP, 16, batches).chunk is None
    plan = make_plan(Study(engine="chunked", devices=1, memory=0.6 * room), SETUP, 16, batches)
    assert plan.chunk in (4, 8)
    with pytest.raises(InputError, match=r"16 members take .* study.memory=.*chunked with study.chunk \d"):
        make_plan(Study(engine="vmap", devices=1, memory=0.6 * room), SETUP, 16, batches)
    with pytest.raises(InputError, match=r"16 members take .*would fit; take so many"):
        make_plan(Study(engine="vmap", devices=1, memory=0.1 * room), SETUP, 16, batches)


def test_nothing_passes_between_members_on_several_devices():
    plan = Plan(None, mesh(2))
    members = engine.abstract_members(engine.abstract_member(SETUP, DATA[0]), K, plan)
    program = engine.compiled(engine.advance, (STEP,), plan, members, DATA, donate=True)
    assert len(program.executables) == 2
    for executable in program.executables:
        assert not re.search("all-|collective|permute|num_partitions=2", executable.as_text())


def test_devices_get_equal_shares():
    batches = np.stack([DATA[0]] * 2)
    assert make_plan(Study(), SETUP, 9, batches).devices == 2  # no fewer than four at once
    assert make_plan(Study(engine="map"), SETUP, 3, batches).devices == 3
    assert make_plan(Study(), SETUP, 1, batches).mesh is None
    with pytest.raises(InputError, match=r"study.devices=9: there are 4.*JAX_NUM_CPU_DEVICES"):
        make_plan(Study(devices=9), SETUP, 16, batches)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 8}, "study.chunk=8 is for engine chunked"),
        ({"engine": "chunked", "chunk": 2}, "study.chunk=2; it must be at least 4"),
        ({"rung": 3}, "no effect without halving"),
        ({"memory": 0.0}, "study.memory=0.0"),
        ({"halving": 0}, "study.halving=0"),
        ({"slots": 4}, "study.slots=4 is for successive halving"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(InputError, match=message):
        Study(**options)


def test_refused_arguments():
    with pytest.raises(InputError, match=r"hypers.lr: shape \(3,\); give a number, or one for each of the 8"):
        study(hypers=HYPERS._replace(lr=np.ones(3)))
    with pytest.raises(InputError, match="dropout=1"):
        study(hypers=HYPERS._replace(dropout=1.5))
    with pytest.raises(InputError, match="keys"):
        study(keys=KEYS[0])
    with pytest.raises(InputError, match="patience"):
        study(setup=SETUP._replace(evaluation=None), loop=train.Loop(patience=1))
    with pytest.raises(InputError, match=r"loop.patience=1 and study.slots=4"):
        study(Study(halving=2, slots=4), loop=train.Loop(patience=1))
    with pytest.raises(InputError, match=r"loop.steps=24 is no multiple of study.rung=7"):
        study(Study(halving=2, slots=4, rung=7))


# --- axes


@given(st.floats(1e-6, 1.0), st.floats(1.1, 1e4), st.integers(2, 9), st.booleans())
def test_ranges_have_their_ends_and_equal_steps(low, ratio, n, log):
    axis = axes.parse_axis(f"lr={low!r}:{low * ratio!r}:{n}{':log' if log else ''}")
    values = axis.grid()
    assert (values[0], values[-1], len(values)) == (low, low * ratio, n)
    steps = np.diff(np.log(values) if log else values)
    assert np.allclose(steps, steps[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "is no axis"),
        ("lr=", "is no axis"),
        ("lr=1:2:3:4", "is no range"),
        ("lr=a:b", "is no range"),
        ("lr=2:1:3", "lower to a higher"),
        ("lr=0:1:3:log", "begins above 0"),
        ("lr=1:2:1", "at least 2"),
        ("lr=1,1", "a value twice"),
        ("lr=1,,2", "an empty value"),
    ],
)
def test_refused_axes(text, message):
    with pytest.raises(InputError, match=message):
        axes.parse_axis(text)


def test_points():
    both = [axes.parse_axis("lr=1e-4:1e-1:log"), axes.parse_axis("model.cell=lstm,gru,elman")]
    for draw in (axes.random, axes.latin_hypercube):
        points = draw(both, 30, seed=4)
        assert points == draw(both, 30, seed=4)
        assert points != draw(both, 30, seed=5)
        assert {point["model.cell"] for point in points} == {"lstm", "gru", "elman"}
        assert all(1e-4 <= point["lr"] <= 1e-1 for point in points)
    parts = sorted(math.floor(math.log10(point["lr"] / 1e-4) * 10) for point in points)
    assert parts == list(range(30))  # one in each thirtieth
    assert [point["model.cell"] for point in points].count("gru") == 10
    with pytest.raises(InputError, match="no number of values"):
        axes.grid(both)
    with pytest.raises(InputError, match=r"cell is no number of Hyper.*run a study for each"):
        axes.stack_hypers(train.Hyper(), [{"cell": "gru"}])
    with pytest.raises(InputError, match="did you mean dropout"):
        axes.stack_hypers(train.Hyper(), [{"drop_out": 0.1}])


def test_optuna_proposes_from_what_it_is_told():
    axis = axes.parse_axis("lr=1e-4:1:log")
    optuna = axes.Optuna([axis], seed=0)
    for _ in range(4):
        points = optuna.ask(8)
        optuna.tell([None if i == 0 else abs(math.log10(p["lr"]) + 2) for i, p in enumerate(points)])
    late = [abs(math.log10(point["lr"]) + 2) for point in points]
    assert np.median(late) < 0.7  # drawn blindly, 1
    assert json.loads(json.dumps(points)) == points


if __name__ == "__main__":
    single_runs()
