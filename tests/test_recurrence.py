"""The conformance suite of the recurrent core: every cell in CELLS, every implementation, every option."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import seqjax
from seqjax.cells import elman
from tests import oracles

T, B, D, H = 5, 4, 3, 6
LENGTHS = np.array([T, 0, 3, 1], np.int32)
CELLS = list(seqjax.CELLS.values())
OPTIONS = ("lengths", "resets", "reverse", "checkpoint", "carry")
# Rows in which every pair of options takes all four combinations of off and on.
PAIRS = [
    (0, 0, 0, 0, 0),
    (0, 0, 1, 1, 1),
    (0, 1, 0, 1, 1),
    (1, 0, 1, 0, 1),
    (1, 1, 0, 0, 1),
    (1, 1, 1, 1, 0),
]
# With these, every three of them take all eight.
TRIPLES = [row for row in oracles.covering([(0, 1)] * len(OPTIONS), 3, PAIRS) if row not in PAIRS]

each_cell = pytest.mark.parametrize("cell", CELLS, ids=[cell.name for cell in CELLS])
# "pallas", which is interpreted here and slow, has tests of its own.
IMPLEMENTATIONS = ("scan", "fused", "linear")
# One cell of each structure: one, two or no products in a step, a norm, a complex state. The other cells take the tests
# that ask more of the engine than of the cell in the full run, and so does "scan" of all cells but one.
STRUCTURES = ("elman", "lstm", "gru_cho", "lstm_layernorm", "lru")


def cases(everything):
    for cell in CELLS:
        for implementation in IMPLEMENTATIONS:
            if implementation != "linear" or cell.linear is not None:
                fast = implementation != "scan"
                if not (everything or fast or cell.name == "lstm"):
                    continue  # that loop does the same for every cell
                by_default = (fast and (everything or cell.name in STRUCTURES)) or cell.name == "lstm"
                marks = () if by_default else pytest.mark.full
                yield pytest.param(cell, implementation, id=f"{implementation}-{cell.name}", marks=marks)


each_implementation = pytest.mark.parametrize("implementation", ["scan", "fused"])
each_case = pytest.mark.parametrize(("cell", "implementation"), list(cases(everything=True)))
each_structure = pytest.mark.parametrize(("cell", "implementation"), list(cases(everything=False)))


def problem(cell, dtype, seed=0):
    """Params, inputs, carry and the cotangents of one random problem."""
    rng = np.random.default_rng(seed)
    params = oracles.random_like(rng, cell.init(jax.random.key(0), D, H, dtype=dtype))
    xs = jnp.asarray(rng.normal(size=(T, B, D)), dtype)
    carry = oracles.random_like(rng, seqjax.initial_carry(cell, params, xs[0]))
    weights = jnp.asarray(rng.normal(size=(T, B, H)), dtype)
    return params, xs, carry, weights


def objective(run, weights, params, xs, carry):
    """A scalar that touches every output and every entry of the final carry."""
    carry, ys = run(params, xs, carry)
    total = jnp.sum((ys * weights).astype(carry.h.dtype))
    return total + sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(carry)), (carry, ys)


def gradients_of(run, weights):
    return jax.value_and_grad(functools.partial(objective, run, weights), argnums=(0, 1, 2), has_aux=True)


def value_and_gradients(run, weights, *arguments):
    return jax.jit(gradients_of(run, weights))(*arguments)


def options_of(row):
    chosen = dict(zip(OPTIONS, row, strict=True))
    lengths = LENGTHS if chosen["lengths"] else None
    resets = np.random.default_rng(1).random((T, B)) < 0.4 if chosen["resets"] else None
    return lengths, resets, bool(chosen["reverse"]), 2 if chosen["checkpoint"] else None, bool(chosen["carry"])


def exact_problem(cell, given):
    params, xs, carry, weights = problem(cell, jnp.float64)
    return params, xs, carry if given else None, weights


@functools.cache  # for all implementations, with checkpoints and without
def expectation(cell, lengths, resets, reverse, given):
    lengths, resets, *_ = options_of((lengths, resets, 0, 0, 0))
    params, xs, carry, weights = exact_problem(cell, given)

    def oracle(params, xs, carry):
        return oracles.loop(cell, params, xs, carry, lengths, resets, reverse)

    # Not under jit: compiling the literal loop would take longer than running it.
    return gradients_of(oracle, weights)(params, xs, carry)


def check(cell, implementation, row, dtype=jnp.float64):
    lengths, resets, reverse, every, given = options_of(row)
    params, xs, carry, weights = exact_problem(cell, given)

    def ours(params, xs, carry):
        return seqjax.unroll(
            cell,
            params,
            xs,
            carry,
            lengths=None if lengths is None else jnp.asarray(lengths),
            resets=None if resets is None else jnp.asarray(resets),
            reverse=reverse,
            implementation=implementation,
            checkpoint_every=every,
        )

    problem_in = jax.tree.map(lambda a: a.astype(dtype), (weights, params, xs, carry))
    (value, outputs), gradients = value_and_gradients(ours, *problem_in)
    (expected_value, expected_outputs), expected_gradients = expectation(
        cell, bool(row[0]), bool(row[1]), reverse, given
    )
    tolerance, gradient_tolerance = (1e-10, 1e-10) if dtype == jnp.float64 else (1e-5, 1e-4)
    close(outputs, expected_outputs, tolerance)
    close((value, gradients), (expected_value, expected_gradients), gradient_tolerance)


def close(actual, expected, tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), actual, expected)


@pytest.mark.usefixtures("x64")
@each_case
def test_float32_is_close_to_a_float64_loop(cell, implementation):
    check(cell, implementation, (1, 1, 0, 1, 1), jnp.float32)


@pytest.mark.usefixtures("x64")
@each_case
@pytest.mark.parametrize("row", PAIRS, ids=str)
def test_unroll_equals_a_plain_loop(cell, implementation, row):
    check(cell, implementation, row)


@pytest.mark.full
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("cell", "implementation"), [case for case in cases(everything=False) if not case.marks])
@pytest.mark.parametrize("row", TRIPLES, ids=str)
def test_unroll_equals_a_plain_loop_full(cell, implementation, row):
    check(cell, implementation, row)


@pytest.mark.fast
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", list(oracles.EQUATIONS))
def test_step_equals_the_equation(name):
    cell = seqjax.CELLS[name]
    params, xs, carry, _ = problem(cell, jnp.float64)
    after, y = seqjax.step(cell, params, carry, xs[0])
    arrays = {field: np.asarray(value) for field, value in params._asdict().items()}
    for b in range(B):
        row = {field: np.asarray(value[b]) for field, value in carry._asdict().items()}
        expected, expected_y = oracles.EQUATIONS[name](arrays, row, np.asarray(xs[0, b]))
        np.testing.assert_allclose(y[b], expected_y, rtol=1e-12)
        for field, value in expected.items():
            np.testing.assert_allclose(getattr(after, field)[b], value, rtol=1e-12)


@pytest.mark.fast
@pytest.mark.usefixtures("x64")
@each_implementation
@pytest.mark.parametrize("name", ["elman", "lstm", "gru"])
def test_equals_torch(name, implementation):
    golden = np.load(Path(__file__).parent / "golden" / "torch_rnn.npz")
    record = {k.split(".")[1]: jnp.asarray(v) for k, v in golden.items() if k.startswith(f"{name}.")}
    cell = seqjax.CELLS[name]

    def to_params(torch_weights):
        w_ih, w_hh, b_ih, b_hh = torch_weights
        if name == "gru":
            return seqjax.cells.gru.Params(w_ih.T, w_hh.T, b_ih, b_hh)
        return type(cell.init(jax.random.key(0), 1, 1))(w_ih.T, w_hh.T, b_ih + b_hh)

    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    letters = "hc" if name == "lstm" else "h"
    carry_type = getattr(seqjax.cells, name).Carry
    cotangents = (carry_type(*(record[f"cotangent_{x}"] for x in letters)), record["cotangent_ys"])

    @jax.jit
    def run(weights, xs, carry):
        return jax.vjp(
            lambda w, xs, c: seqjax.unroll(cell, to_params(w), xs, c, implementation=implementation),
            weights,
            xs,
            carry,
        )

    carry0 = carry_type(*(record[f"{x}0"] for x in letters))
    (carry, ys), pull = run(tuple(record[n] for n in names), record["xs"], carry0)
    dweights, dxs, dcarry = pull(cotangents)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
    close(ys, record["ys"])
    close(dxs, record["dxs"])
    for letter in letters:
        close(getattr(carry, letter), record[letter])
        close(getattr(dcarry, letter), record[f"d{letter}0"])
    for gradient, n in zip(dweights, names, strict=True):
        close(gradient, record[f"d{n}"])


@each_structure
def test_two_halves_are_the_whole(cell, implementation):
    params, xs, carry, _ = problem(cell, jnp.float32)
    run = functools.partial(seqjax.unroll, cell, params, implementation=implementation)
    whole, ys = run(xs, carry)
    middle, first = run(xs[:2], carry)
    last, second = run(xs[2:], middle)
    np.testing.assert_allclose(jnp.concatenate([first, second]), ys, rtol=1e-5, atol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), last, whole)


@each_case
@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=pytest.mark.fast)])
def test_poisoned_padding_changes_nothing(cell, implementation, reverse):
    params, xs, carry, weights = problem(cell, jnp.float32)
    lengths = jnp.asarray(LENGTHS)
    padding = jnp.arange(T)[:, None] >= lengths[None]
    poisoned = jnp.where(padding[..., None], jnp.nan, xs)
    resets = jnp.zeros((T, B), bool)

    @jax.jit  # resets traced, for one program for both: constants would be folded into two
    def run(resets, params, xs, carry):
        def unrolled(params, xs, carry):
            return seqjax.unroll(
                cell, params, xs, carry, lengths=lengths, resets=resets, reverse=reverse, implementation=implementation
            )

        return gradients_of(unrolled, weights)(params, xs, carry)

    clean = run(resets, params, xs, carry)
    dirty = run(resets | padding, params, poisoned, carry)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    (_, (final, ys)), _ = dirty
    assert not np.any(np.asarray(ys)[np.asarray(padding)])
    jax.tree.map(lambda f, c: np.testing.assert_array_equal(f[1], c[1]), final, carry)


@each_structure
def test_resets_are_separate_runs(cell, implementation):
    params, xs, _, _ = problem(cell, jnp.float32)
    resets = jnp.zeros((T, B), bool).at[2].set(True)
    for reverse in (False, True):
        run = functools.partial(seqjax.unroll, cell, params, reverse=reverse, implementation=implementation)
        _, ys = run(xs, resets=resets)
        parts = [run(xs[:2])[1], run(xs[2:])[1]]
        np.testing.assert_allclose(ys, jnp.concatenate(parts), rtol=1e-5, atol=1e-6)


@each_structure
def test_vmap_over_parameters(cell, implementation):
    _, xs, _, weights = problem(cell, jnp.float32)
    members = [problem(cell, jnp.float32, seed)[0] for seed in range(3)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *members)

    def loss(params):
        return jnp.sum(seqjax.unroll(cell, params, xs, implementation=implementation)[1] * weights)

    batched = jax.jit(jax.vmap(jax.value_and_grad(loss)))(stacked)
    for i, params in enumerate(members):
        alone = jax.value_and_grad(loss)(params)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5), batched, alone)


@functools.cache  # for the kinds of mesh
def sharded_problem(cell, implementation):
    params, xs, carry, weights = problem(cell, jnp.float32)
    lengths, resets = jnp.asarray(LENGTHS), jnp.zeros((T, B), bool).at[2].set(True)

    def loss(params, xs, carry, weights, lengths, resets):
        carry, ys = seqjax.unroll(
            cell, params, xs, carry, lengths=lengths, resets=resets, implementation=implementation
        )
        return jnp.sum(ys * weights) + sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(carry))

    arguments = (params, xs, carry, weights, lengths, resets)
    specs = (
        jax.tree.map(lambda _: P(), params),
        P(None, "data"),
        jax.tree.map(lambda _: P("data"), carry),
        P(None, "data"),
        P("data"),
        P(None, "data"),
    )
    expected = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*arguments)
    return loss, arguments, specs, expected


def place(mesh, arguments, specs):
    return jax.tree.map(lambda a, s: jax.device_put(a, NamedSharding(mesh, s)), arguments, specs)


close_sharded = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


@each_structure
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(cell, implementation, axis_type):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,))
    loss, arguments, specs, expected = sharded_problem(cell, implementation)
    with jax.set_mesh(mesh):
        actual = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*place(mesh, arguments, specs))
    jax.tree.map(close_sharded, actual, expected)


@each_structure
def test_under_shard_map(cell, implementation):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    loss, arguments, specs, expected = sharded_problem(cell, implementation)

    def total(*arguments):
        return jax.shard_map(
            lambda *local: jax.lax.psum(loss(*local), "data"), mesh=mesh, in_specs=specs, out_specs=P()
        )(*arguments)

    actual = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*arguments)
    jax.tree.map(close_sharded, actual, expected)


@each_case
def test_bfloat16_compute(cell, implementation):
    params, xs, carry, weights = problem(cell, jnp.float32)
    run = functools.partial(seqjax.unroll, cell, implementation=implementation)
    (_, (_, ys)), grads = value_and_gradients(lambda p, x, c: run(p, x, c), weights, params, xs, carry)
    low = xs.astype(jnp.bfloat16)
    (_, (final, ys_low)), grads_low = value_and_gradients(
        lambda p, x, c: run(p, x, c), weights.astype(jnp.bfloat16), params, low, carry
    )
    assert ys_low.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((final, grads_low[0])))
    np.testing.assert_allclose(ys_low.astype(jnp.float32), ys, atol=4e-2)
    for low_gradient, gradient in zip(jax.tree.leaves(grads_low[0]), jax.tree.leaves(grads[0]), strict=True):
        cosine = jnp.vdot(low_gradient, gradient) / (jnp.linalg.norm(low_gradient) * jnp.linalg.norm(gradient))
        assert cosine > 0.999


@each_structure
def test_one_step_one_row(cell, implementation):
    params, xs, _, _ = problem(cell, jnp.float32)
    carry, ys = seqjax.unroll(cell, params, xs[:1, :1], implementation=implementation)
    expected_carry, expected = seqjax.step(cell, params, None, xs[0, :1])
    np.testing.assert_allclose(ys[0], expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), carry, expected_carry)


@each_structure
def test_carries(cell, implementation):
    params, xs, carry, _ = problem(cell, jnp.float32)
    run = functools.partial(seqjax.unroll, cell, params, xs, carry, implementation=implementation)
    final, ys, carries = run(return_carries=True)
    again, expected = run()
    np.testing.assert_array_equal(ys, expected)
    jax.tree.map(np.testing.assert_array_equal, final, again)
    for t in range(T):
        carry, _ = seqjax.step(cell, params, carry, xs[t])
        close(jax.tree.map(lambda a, t=t: a[t], carries), carry, 1e-5)
    _, _, cut = run(return_carries=True, lengths=jnp.asarray(LENGTHS))
    padding = np.arange(T)[:, None] >= LENGTHS
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, np.where(padding[..., None], 0, b), atol=1e-5), cut, carries
    )


@each_cell
def test_second_call_compiles_nothing(cell):
    params, xs, carry, _ = problem(cell, jnp.float32)
    run = functools.partial(seqjax.unroll, cell, params, xs, lengths=jnp.asarray(LENGTHS))
    run(carry)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "compile" in event else None
    )
    try:
        run(carry)
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []


def scan_bodies(jaxpr):
    """Every scan body inside a jaxpr, however deeply nested."""
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                if equation.primitive.name == "scan":
                    yield inner
                yield from scan_bodies(inner)


def products(jaxpr):
    """The number of matrix products in a jaxpr."""
    count = sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns)
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                count += products(inner)
    return count


@each_cell
def test_fused_loops_hold_one_product_a_stage(cell):
    params, xs, carry, weights = problem(cell, jnp.float32)
    run = functools.partial(seqjax.unroll, cell, implementation="fused")
    gradient = jax.grad(functools.partial(objective, run, weights), argnums=(0, 1, 2), has_aux=True)
    stages = ("w_h" in params._fields) + (cell.second is not None)
    bodies = list(scan_bodies(jax.make_jaxpr(gradient)(params, xs, carry).jaxpr))
    # The projections and weight gradients stand outside: the five steps are one chunk.
    assert [products(body) for body in bodies] == [stages, stages]


@pytest.mark.fast
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_compiled_loops_are_one_product_and_copy_no_sequence(name):
    steps, cell = 64, seqjax.CELLS[name]
    params = cell.init(jax.random.key(0), H, H)
    xs = jnp.ones((steps, B, H))
    gradient = jax.grad(lambda params, xs: jnp.sum(seqjax.unroll(cell, params, xs)[1] ** 2), argnums=(0, 1))
    text = jax.jit(gradient).lower(params, xs).compile().as_text()
    bodies = [text.partition(f"\n%{body} (")[2].partition("\n}")[0] for body in re.findall(r"body=%([\w.\-]+)", text)]
    assert len(bodies) == 2  # forward and backward
    for body in bodies:
        instructions = body.splitlines()
        assert sum(" dot(" in line or "ynn_fusion(" in line or "kind=kCustom" in line for line in instructions) == 1
        assert not [line for line in instructions if re.search(rf"= f32\[{steps},[^(]* (copy|transpose)\(", line)]
        # Gates, state and output, and the reads and writes of one row of each sequence.
        assert sum(" fusion(" in line for line in instructions) <= 16


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["lstm", "gru_cho"])
@pytest.mark.parametrize("row", [(0, 0, 0, 0, 0), (1, 1, 1, 1, 0)], ids=str)
def test_the_program_of_a_gpu(name, row, monkeypatch):
    jax.clear_caches()  # before and after: the backend is no part of their keys
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    check(seqjax.CELLS[name], "fused", row)
    monkeypatch.undo()
    jax.clear_caches()


@each_implementation
@pytest.mark.parametrize("at_once", [False, True])
def test_bidirectional(implementation, at_once, monkeypatch):
    monkeypatch.setattr(seqjax.recurrence, "batches_directions", lambda: at_once)
    cell = seqjax.CELLS["gru"]
    (forward, xs, _, _), (backward, *_) = problem(cell, jnp.float32), problem(cell, jnp.float32, 1)
    lengths = jnp.asarray(LENGTHS)
    (carry_f, carry_b), ys = seqjax.bidirectional(
        cell, forward, backward, xs, lengths=lengths, implementation=implementation
    )
    for b, length in enumerate(lengths.tolist()):
        if length:
            row = xs[:length, b : b + 1]
            last, y_f = seqjax.unroll(cell, forward, row)
            first, y_b = seqjax.unroll(cell, backward, row[::-1])
            np.testing.assert_allclose(ys[:length, b, :H], y_f[:, 0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(ys[:length, b, H:], y_b[::-1, 0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(carry_f.h[b], last.h[0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(carry_b.h[b], first.h[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("given", [False, True])
def test_both_directions_at_once_are_both_in_turn(lengths, given, monkeypatch):
    cell = seqjax.CELLS["lstm"]
    (forward, xs, carry, _), (backward, *_) = problem(cell, jnp.float32), problem(cell, jnp.float32, 1)
    results = []
    for at_once in (False, True):
        monkeypatch.setattr(seqjax.recurrence, "batches_directions", lambda at_once=at_once: at_once)
        resets = jnp.asarray(np.random.default_rng(1).random((T, B)) < 0.4)
        options = {"lengths": None if lengths is None else jnp.asarray(lengths), "resets": resets}
        results.append(seqjax.bidirectional(cell, forward, backward, xs, (carry, carry) if given else None, **options))
    close(*results, 1e-5)


def test_stack_is_layer_after_layer(key):
    cell = seqjax.CELLS["lstm"]
    layers = [cell.init(key, D, H), cell.init(key, H, H)]
    xs = problem(cell, jnp.float32)[1]
    carries, ys = seqjax.stack(cell, layers, xs)
    first, middle = seqjax.unroll(cell, layers[0], xs)
    second, expected = seqjax.unroll(cell, layers[1], middle)
    np.testing.assert_array_equal(ys, expected)
    jax.tree.map(np.testing.assert_array_equal, carries, (first, second))
    # Dropout acts between the layers only, and with a traced rate.
    dropped = jax.jit(lambda rate: seqjax.stack(cell, layers, xs, dropout=rate, key=key)[1])
    np.testing.assert_allclose(dropped(0.0), ys, atol=1e-6)
    one_layer = seqjax.stack(cell, layers[:1], xs, dropout=0.5, key=key)[1]
    np.testing.assert_array_equal(one_layer, middle)
    assert not np.allclose(dropped(0.5), ys)
    empty = seqjax.unroll(cell, layers[1], jnp.zeros_like(middle))[1]
    np.testing.assert_allclose(dropped(1.0), empty, atol=1e-6)


def test_forward_mode_with_scan():
    cell = seqjax.CELLS["gru"]
    params, xs, carry, _ = problem(cell, jnp.float32)
    run = functools.partial(seqjax.unroll, cell, params, carry=carry, implementation="scan")
    direction, cotangent = jnp.cos(xs), jnp.sin(problem(cell, jnp.float32)[3])
    primal, tangent = jax.jvp(lambda xs: run(xs)[1], (xs,), (direction,))
    (back,) = jax.vjp(lambda xs: run(xs)[1], xs)[1](cotangent)
    assert primal.shape == (T, B, H)
    np.testing.assert_allclose(jnp.vdot(tangent, cotangent), jnp.vdot(direction, back), rtol=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("use", ["where", "stop_gradient", "only_zx", "sum_and_zx"])
def test_a_use_of_one_product_without_a_derivative_counts(use):
    def pointwise(rest, carry, zx, zh):
        h = jnp.tanh(zx + (0 if use == "only_zx" else zh))
        if use == "where":
            h = jnp.where(zx > 0, h, 0.1 * h)
        if use == "stop_gradient":
            h = h * jax.lax.stop_gradient(jax.nn.sigmoid(zx))
        if use == "sum_and_zx":
            h = h + zx
        return elman.Carry(h), h

    check(elman.CELL._replace(name=use, pointwise=pointwise), "fused", (1, 1, 0, 1, 1))


def test_lengths_of_any_integer_type_and_beyond_the_sequence():
    params, *_ = problem(elman.CELL, jnp.float32)
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(300, 2, D)), jnp.float32)
    run = functools.partial(seqjax.unroll, elman.CELL, params, xs)
    for reverse in (False, True):
        expected = run(lengths=jnp.array([100, 300]), reverse=reverse)
        close(run(lengths=jnp.array([100, 1000], jnp.int16), reverse=reverse), expected, 0)
        short = run(lengths=jnp.array([100, 5], jnp.int8), reverse=reverse)
        close(short, run(lengths=jnp.array([100, 5]), reverse=reverse), 0)


@pytest.mark.parametrize("name", ["scan", "fused", "linear"])
def test_a_batch_of_no_rows(name):
    cell = seqjax.CELLS["min_gru"]
    params = cell.init(jax.random.key(0), D, H)
    assert seqjax.unroll(cell, params, jnp.zeros((T, 0, D)), implementation=name)[1].shape == (T, 0, H)


def test_a_linear_cell_whose_carry_is_an_array():
    cell = seqjax.CELLS["min_gru"]

    def pointwise(rest, carry, zx, zh):
        (h,), y = cell.pointwise(rest, cell.initial(params, zx)._replace(h=carry), zx, zh)
        return h, y

    params, xs, carry, _ = problem(cell, jnp.float32)
    bare = cell._replace(initial=lambda params, zx: cell.initial(params, zx).h, hidden=lambda h: h, pointwise=pointwise)
    expected, ys = seqjax.unroll(cell, params, xs, carry)
    close(seqjax.unroll(bare, params, xs, carry.h, implementation="linear"), (expected.h, ys), 1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("cell", "implementation"), [case for case in cases(everything=False) if case.values[1] != "scan"]
)
def test_second_derivatives(cell, implementation):
    params, xs, carry, weights = problem(cell, jnp.float64)
    direction = jax.tree.map(jnp.cos, (params, xs, carry))

    def curvature(implementation):
        def run(params, xs, carry):
            return seqjax.unroll(cell, params, xs, carry, implementation=implementation)

        def slope(*arguments):
            gradient = jax.grad(lambda *a: objective(run, weights, *a)[0], argnums=(0, 1, 2))(*arguments)
            return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))

        return jax.jit(jax.grad(slope, argnums=(0, 1, 2)))(params, xs, carry)

    close(curvature(implementation), curvature("scan"), 1e-9)


@pytest.mark.parametrize(("name", "states", "products"), [("lstm", 2, 4), ("gru", 1, 6), ("elman", 1, 1)])
def test_residuals_are_as_few_as_the_docstring_says(name, states, products):
    cell = seqjax.CELLS[name]
    params, xs, *_ = problem(cell, jnp.float32)

    def saved(every):
        run = functools.partial(seqjax.unroll, cell, implementation="fused", checkpoint_every=every)
        _, pull = jax.vjp(lambda params, xs: run(params, xs)[1], params, xs)
        return sum(leaf.size for leaf in jax.tree.leaves(pull) if leaf.ndim == 3 and leaf.shape[-1] != D)  # but xs

    assert saved(None) == T * B * H * (states + products)
    assert saved(2) == -(-T // 2) * B * H * states


def test_nonlinearity_is_an_option():
    relu = elman.make(jax.nn.relu, "elman_relu")
    assert relu is elman.make(jax.nn.relu, "elman_relu")
    params, xs, _, _ = problem(relu, jnp.float32)
    assert np.min(seqjax.unroll(relu, params, xs)[1]) == 0


@each_cell
@pytest.mark.parametrize("sign", [1, -1])
def test_shut_gates_have_finite_gradients(cell, sign):
    """Where both gates of min_lstm are 0, or rglru's a is 1, the equation as it is written gives 0 / 0."""
    params, xs, _, weights = problem(cell, jnp.float32)
    # So large that whatever a gate reads rounds it to 0 or 1, all gates of a unit to the same.
    params = params._replace(w_x=jnp.full_like(params.w_x, sign * 1e3))
    run = functools.partial(seqjax.unroll, cell, implementation="scan")
    value, gradients = value_and_gradients(run, weights, params, jnp.abs(xs), None)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((value, gradients)))


def test_initial_eigenvalues():
    """rglru's a with an open gate, and lru's λ, lie where the papers draw them; lru's γ keeps the state's variance."""
    griffin = seqjax.cells.rglru.init(jax.random.key(0), 2, 1024)
    a = np.exp(-8 * np.logaddexp(0, griffin.g_a))
    assert 0.8999 < a.min() < 0.901
    assert 0.998 < a.max() < 0.9991
    ring = seqjax.cells.lru.init(jax.random.key(0), 2, 1024, r_min=0.5, r_max=0.9, max_phase=0.3)
    radius, theta = np.exp(-np.exp(ring.b_nu)), np.exp(ring.b_theta)
    assert 0.4999 < radius.min() < 0.51
    assert 0.89 < radius.max() < 0.9001
    assert 0 < theta.min() < theta.max() < 0.3001
    np.testing.assert_allclose(np.mean(radius**2), (0.25 + 0.81) / 2, rtol=2e-2)  # uniform in area
    np.testing.assert_allclose(np.exp(2 * ring.b_gamma), 1 - radius**2, rtol=1e-4)
    disc = seqjax.cells.lru.init(jax.random.key(0), 2, 1024)
    assert all(np.all(np.isfinite(leaf)) for leaf in disc)


@pytest.mark.usefixtures("x64")
@each_implementation
@pytest.mark.parametrize(
    ("name", "drawn", "masked"),
    [
        ("lstm", True, True),
        ("lstm", None, True),
        ("gru_cho", True, True),
        ("elman", False, False),
        ("min_gru", True, False),
    ],
)
def test_zoneout_and_recurrent_dropout_equal_a_loop(name, implementation, drawn, masked):
    """drawn: zoneout with a key, by its mean, or none."""
    cell = seqjax.CELLS[name]
    params, xs, carry, weights = problem(cell, jnp.float64)
    rng = np.random.default_rng(2)
    h_mask = jnp.asarray(rng.random((B, H)) < 0.7, jnp.float64) / 0.7 if masked else None
    key, rate = (jax.random.key(1) if drawn else None), 0.0 if drawn is None else 0.3
    lengths, resets = jnp.asarray(LENGTHS), jnp.asarray(rng.random((T, B)) < 0.3)
    size = sum(leaf.shape[-1] for leaf in jax.tree.leaves(carry))
    z = jnp.full((T, B, size), rate)
    if drawn:
        z = jax.random.bernoulli(key, z.astype(jnp.float32)).astype(z.dtype)

    def ours(params, xs, carry):
        return seqjax.unroll(
            cell,
            params,
            xs,
            carry,
            lengths=lengths,
            resets=resets,
            implementation=implementation,
            checkpoint_every=2,
            zoneout=rate,
            h_mask=h_mask,
            key=key,
        )

    def loop(params, xs, carry):
        start, ys = seqjax.initial_carry(cell, params, xs[0]), []
        masked_cell = cell if h_mask is None else cell._replace(hidden=lambda c: c.h * h_mask)
        for t in range(T):
            before = jax.tree.map(lambda s, c, t=t: jnp.where(resets[t][:, None], s, c), start, carry)
            after, _ = seqjax.step(masked_cell, params, before, xs[t])
            parts = iter(jnp.split(z[t], len(before), axis=-1))
            after = jax.tree.map(lambda b, a, parts=parts: a + next(parts) * (b - a), before, after)
            keep = (t < lengths)[:, None]
            carry = jax.tree.map(lambda a, c, keep=keep: jnp.where(keep, a, c), after, carry)
            ys.append(jnp.where(keep, after.h, jnp.zeros_like(after.h)))
        return carry, jnp.stack(ys)

    close(value_and_gradients(ours, weights, params, xs, carry), gradients_of(loop, weights)(params, xs, carry), 1e-10)


def test_zoneout_of_one_keeps_the_state_and_its_rate_may_be_traced(key):
    params, xs, carry, _ = problem(elman.CELL, jnp.float32)
    run = functools.partial(seqjax.unroll, elman.CELL, params, xs, carry, return_carries=True)
    final, ys, carries = jax.jit(lambda rate: run(zoneout=rate, key=key, h_mask=jnp.ones((B, H))))(1.0)
    close((final, ys[2], carries.h[1]), (carry, carry.h, carry.h), 1e-6)
    low = seqjax.unroll(elman.CELL, params, xs.astype(jnp.bfloat16), zoneout=0.1, key=key)
    assert low[1].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="'linear' has neither zoneout nor h_mask"):
        seqjax.unroll(seqjax.CELLS["min_gru"], params, xs, zoneout=0.1, implementation="linear")
    with pytest.raises(ValueError, match="'min_gru' has no recurrent matrix"):
        seqjax.unroll(seqjax.CELLS["min_gru"], problem(seqjax.CELLS["min_gru"], jnp.float32)[0], xs, h_mask=carry.h)
    with pytest.raises(ValueError, match=r"h_mask has shape \[4, 5\]; it must be \[4, 6\]"):
        seqjax.unroll(elman.CELL, params, xs, h_mask=jnp.ones((B, H - 1)))
    with pytest.raises(ValueError, match="h_mask has dtype bool; it must hold factors"):
        seqjax.unroll(elman.CELL, params, xs, h_mask=jnp.ones((B, H), bool))
    with pytest.raises(ValueError, match=r"zoneout=1.5; it must be from 0 to 1"):
        seqjax.unroll(elman.CELL, params, xs, zoneout=1.5, key=key)
    lru = seqjax.CELLS["lru"]
    with pytest.raises(ValueError, match="output of cell 'lru' is not its hidden state"):
        seqjax.unroll(lru, problem(lru, jnp.float32)[0], xs, zoneout=0.1)


def test_closing_over_a_traced_value():
    params, xs, _, _ = problem(elman.CELL, jnp.float32)

    def loss(gain, implementation):
        def pointwise(rest, carry, zx, zh):
            h = jnp.tanh(gain * (zx + zh))
            return elman.Carry(h), h

        cell = elman.CELL._replace(name="closing", pointwise=pointwise)
        return jnp.sum(seqjax.unroll(cell, params, xs, implementation=implementation)[1])

    def projecting(gain):
        cell = elman.CELL._replace(name="closing", project=lambda params, xs: gain * (xs @ params.w_x))
        return jnp.sum(seqjax.unroll(cell, params, xs, implementation="fused")[1])

    message = r"'closing'.*close over a traced value.*field of the cell's Params"
    with pytest.raises(ValueError, match=message):
        jax.grad(loss)(1.0, "fused")
    with pytest.raises(ValueError, match=message):
        jax.grad(projecting)(1.0)
    assert jnp.isfinite(jax.grad(loss)(1.0, "scan"))


@pytest.mark.parametrize("name", list(seqjax.CELLS))
def test_weights_may_be_made_in_bfloat16(name):
    params = seqjax.CELLS[name].init(jax.random.key(0), 4, 300, dtype=jnp.bfloat16)
    for leaf in jax.tree.leaves(params):
        assert leaf.dtype == jnp.bfloat16
        assert jnp.all(jnp.isfinite(leaf))


@pytest.mark.parametrize("name", ["gru", "min_gru"])
def test_gradients_of_vectors_are_sums_over_all_steps_in_bfloat16_too(name):
    cell, xs = seqjax.CELLS[name], jax.random.normal(jax.random.key(1), (1024, 8, 3))

    def gradient(params, xs):
        return jax.jit(jax.grad(lambda params: jnp.sum(seqjax.unroll(cell, params, xs)[1].astype(jnp.float32))))(params)

    params = cell.init(jax.random.key(0), 3, 4)
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    expected, found = gradient(params, xs), gradient(low, xs.astype(jnp.bfloat16))
    for field in set(params._fields) & {"b", "b_h"}:
        exact = np.asarray(getattr(expected, field))
        error = np.asarray(getattr(found, field), np.float32) - exact
        assert np.abs(error).max() < 0.05 * np.abs(exact).max()


def test_what_fits_no_carry_and_no_cell_is_refused(key):
    params, xs, _, _ = problem(elman.CELL, jnp.float32)
    with pytest.raises(ValueError, match=r"carry is .*; with these params and xs it must be"):
        seqjax.step(elman.CELL, params, jnp.zeros((B, H)), xs[0])
    min_gru = seqjax.CELLS["min_gru"]
    with pytest.raises(ValueError, match=r"weight_drop=0.5: cell 'min_gru' has no recurrent matrix"):
        seqjax.stack(min_gru, [problem(min_gru, jnp.float32)[0]], xs, weight_drop=0.5, key=key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xs": jnp.zeros((T, D))}, "time-major"),
        ({"xs": jnp.zeros((0, B, D))}, "no steps"),
        ({"xs": jnp.zeros((T, B, D), jnp.int32)}, "embed tokens first"),
        ({"xs": jnp.zeros((T, B, D + 1))}, r"xs has 4 features, but w_x has 3 rows"),
        ({"lengths": jnp.zeros(B + 1, jnp.int32)}, r"lengths is int32\[5\]"),
        ({"lengths": jnp.zeros(B)}, r"lengths is float32\[4\]"),
        ({"resets": jnp.zeros((B, T), bool)}, r"resets is bool\[4, 5\]"),
        (
            {"implementation": "cuda"},
            r"'cuda' is unknown; choose from \['fused', 'linear', 'pallas', 'scan'\]",
        ),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
        ({"lengths": [T] * B}, r"lengths is a list; pass jnp.asarray"),
        ({"carry": elman.Carry(jnp.zeros((1, H)))}, r"carry is .*float32\[1, 6\].*must be .*float32\[4, 6\]"),
        ({"carry": jnp.zeros((B, H))}, r"carry is float32\[4, 6\].*must be Carry"),
        ({"implementation": "linear"}, "'elman' has no linear form"),
    ],
)
def test_errors_name_argument_value_and_remedy(change, message):
    params, xs, _, _ = problem(elman.CELL, jnp.float32)
    arguments = {"xs": xs} | change
    # What the user sees: the annotation checks of the test session would speak first.
    with pytest.raises(ValueError, match=message):
        seqjax.recurrence.unroll.__wrapped__(elman.CELL, params, **arguments)
