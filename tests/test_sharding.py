"""One model on many devices: the same losses on any mesh, no more exchanged than there must be, and clear refusals."""

import itertools
import os
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import seqjax
from experiments import char_lm, lm_runs, seq2seq_runs, toy_seq2seq
from experiments.bench.scaling import collectives, total_bytes
from seqjax import losses, nn, sharding, train
from seqjax.data import BPTTWindows, PairBuckets
from seqjax.errors import InputError
from seqjax.models import fixed_window_lm, rnn_lm, rnn_seq2seq, transformer_lm, transformer_seq2seq
from seqjax.reporting import read_metrics
from tests import test_models, test_seq2seq_models
from tests.test_models import compilations

V, B, T = 48, 8, 6

CONFIGS = {
    rnn_lm.Config: rnn_lm.Config(d_embed=8, d_hidden=12),
    fixed_window_lm.Config: fixed_window_lm.Config(fuse=2, n_layers=2, d_embed=8, d_hidden=16, norm=True),
    transformer_lm.TransformerConfig: transformer_lm.TransformerConfig(
        d_model=16, n_heads=4, n_layers=1, context=T, tied=False
    ),
    rnn_seq2seq.RNNSeq2SeqConfig: rnn_seq2seq.RNNSeq2SeqConfig(
        "gru", 8, 8, coverage=True, copy=True, d_attention=8, bridge="dense"
    ),
    transformer_seq2seq.TransformerSeq2SeqConfig: transformer_seq2seq.TransformerSeq2SeqConfig(
        d_model=16, n_heads=4, n_kv_heads=2, n_layers=1, context=T, positions="t5"
    ),
}
OTHERS = {
    **{f"lm-{name}": (test_models, make) for name, make in test_models.MODELS.items()},
    **{f"seq2seq-{name}": (test_seq2seq_models, make) for name, make in test_seq2seq_models.MODELS.items()},
}


def mesh_of(text):
    """A mesh of as many devices as it asks for."""
    n = int(np.prod([int(part.partition("=")[2]) for part in text.split(",")]))
    return sharding.make_mesh(text, devices=jax.devices()[:n])


def build(kind):
    """(make, whether it is an encoder-decoder, the size of its vocabulary)"""
    if kind in OTHERS:
        module, make = OTHERS[kind]
        return make("float32"), module is test_seq2seq_models, module.V
    if kind in lm_runs.MODULES:
        return lambda key: lm_runs.MODULES[kind](CONFIGS[kind], V, rngs=nnx.Rngs(key)), False, V
    return lambda key: seq2seq_runs.MODULES[kind](CONFIGS[kind], V, V, rngs=nnx.Rngs(key)), True, V


@cache
def problem(kind):
    """A model, its step, and batches."""
    make, seq2seq, vocab = build(kind)
    init, apply = seqjax.purify(make)

    def loss_fn(params, extra, batch, key, hyper):
        inputs = batch["tokens"][:, :-1]
        source = (batch["source"], batch["lengths"]) if seq2seq else ()
        options = {"dropout": hyper.dropout, "key": key}
        if "carry" in extra:
            state, logits = apply(params, *source, inputs, extra["carry"], **options)
            extra = {"carry": state}
        else:
            _, logits = apply(params, *source, inputs, **options)
        return losses.cross_entropy(logits, batch["tokens"][:, 1:], label_smoothing=hyper.label_smoothing), (extra, {})

    optimizer, hyper = train.make_optimizer(average=True), train.Hyper(lr=1e-2, dropout=0.1, label_smoothing=0.1)
    carries = kind in (rnn_lm.Config, fixed_window_lm.Config)

    def start(key):
        params = init(key)
        extra = {"carry": apply(params, B, method="initial_carry")} if carries else {}
        return train.init_state(params, extra, key, optimizer(hyper))

    rng = np.random.default_rng(0)
    batches = [
        {
            "tokens": rng.integers(4, vocab, (B, T + 1), np.int32),
            "source": rng.integers(4, vocab, (B, 5), np.int32),
            "lengths": rng.integers(1, 6, B, np.int32),
        }
        for _ in range(3)
    ]
    step = train.make_step(loss_fn, optimizer)
    return SimpleNamespace(make=make, start=start, step=step, batches=batches, hyper=hyper)


@cache
def alone(kind):
    """The first state and the losses of each step on one device."""
    p = problem(kind)
    state = first = jax.jit(p.start)(jax.random.key(0))
    step, found = jax.jit(p.step), []
    for batch in p.batches:
        state, metrics = step(state, batch, p.hyper)
        found.append(np.divide(*metrics["loss"]))
    return first, found


def on_mesh(kind, text):
    """As `alone` on a mesh, where nothing compiles after the first step, and the state stays where it is."""
    p, mesh = problem(kind), mesh_of(text)
    state = first = sharding.initialise(p.start, jax.random.key(0), mesh, nn.logical_axes(p.make), extra=P("batch"))
    first = jax.device_get(first._replace(key=jax.random.key_data(first.key)))
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    found, place = [], sharding.place(mesh)
    with jax.set_mesh(mesh):
        step = jax.jit(p.step, in_shardings=(where, None, None), out_shardings=(where, None))
        for i, batch in enumerate(p.batches):
            with compilations() as compiled:
                state, metrics = step(state, place(batch), p.hyper)
            assert i == 0 or compiled == []
            found.append(np.divide(*jax.device_get(metrics["loss"])))
    jax.tree.map(lambda leaf, s: s.is_equivalent_to(leaf.sharding, leaf.ndim) or pytest.fail(str(s)), state, where)
    return first, found


def program(kind, text):
    """What XLA makes of a step on a mesh."""
    p, mesh = problem(kind), mesh_of(text)
    state = sharding.initialise(p.start, jax.random.key(0), mesh, nn.logical_axes(p.make), extra=P("batch"))
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    with jax.set_mesh(mesh):
        step = jax.jit(p.step, in_shardings=(where, None, None), out_shardings=(where, None))
        return step.lower(state, sharding.place(mesh)(p.batches[0]), p.hyper).compile().as_text()


def check(kind, text):
    first, expected = alone(kind)
    other, found = on_mesh(kind, text)
    jax.tree.map(np.testing.assert_array_equal, other, first._replace(key=jax.random.key_data(first.key)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


QUICK = rnn_lm.Config, transformer_lm.TransformerConfig


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, id=kind.__module__, marks=[pytest.mark.fast] if kind in QUICK else [pytest.mark.full])
        for kind in (*lm_runs.MODULES, *seq2seq_runs.MODULES)
    ],
)
def test_every_model_trains_as_on_one_device(kind):
    """Rows and the model are split, and so are words, heads and the state that is carried."""
    check(kind, "data=2,model=2")


@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "text"),  # in turn, for the mesh above has both axes
    list(zip([*lm_runs.MODULES, *seq2seq_runs.MODULES], itertools.cycle(["data=4", "model=4"]))),
    ids=lambda value: value if isinstance(value, str) else value.__module__,
)
def test_on_every_mesh(kind, text):
    check(kind, text)


# Those of which a mesh sees other weights.
@pytest.mark.full
@pytest.mark.parametrize(
    "kind",
    [
        *("lm-rnn_lm-lru-2", "lm-fixed_window-bigram", "seq2seq-rnn-pointer", "seq2seq-transformer-rotary"),
    ],
)
def test_every_option_of_every_model(kind):
    check(kind, "data=2,model=2")


@pytest.mark.full
def test_eight_devices():
    body = (
        "import jax; jax.config.update('jax_num_cpu_devices', 8)\n"
        "from tests import test_sharding as t\n"
        "for kind in list(t.CONFIGS)[::2]:\n"
        "    t.check(kind, 'data=4,model=2')\n"
    )
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    subprocess.run([sys.executable, "-c", body], check=True, env=environment, cwd=Path(__file__).parent.parent)


# --- what is exchanged


def nbytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "kind",
    [
        rnn_lm.Config,
        pytest.param(transformer_lm.TransformerConfig, marks=pytest.mark.full),
        pytest.param(fixed_window_lm.Config, marks=pytest.mark.full),
    ],
    ids=lambda kind: kind.__module__,
)
def test_over_data_each_gradient_is_summed_once(kind):
    moved = total_bytes(program(kind, "data=4"))
    assert set(moved) == {"all-reduce"}
    weights = nbytes(alone(kind)[0].params)
    assert weights <= moved["all-reduce"] < 1.02 * weights + 64


def test_no_vocabulary_and_no_weight_is_gathered():
    """Over the model, only sums of vectors [B, T, D] and of numbers a token, forward and backward."""
    found = collectives(program(transformer_lm.TransformerConfig, "model=4"))
    assert {name for name, _ in found} == {"all-reduce"}
    # Of each sublayer one forward and one backward (Shoeybi et al., 2019), but queries and keys come apart; of the
    # embedding forward, of the output layer backward.
    vectors = [shape for _, arrays in found for _, shape in arrays if np.prod(shape) == B * T * 16]
    assert len(vectors) == 2 + 3 + 2
    rest = [shape for _, arrays in found for _, shape in arrays if np.prod(shape) != B * T * 16]
    assert max(map(np.prod, rest)) <= B * T


@pytest.mark.parametrize("gates", [None, pytest.param("model", marks=pytest.mark.full)])
def test_a_recurrent_layer_exchanges_nothing_over_time(gates):
    """Unless its gates are split, which is another rule, and right as well."""
    p, mesh = problem(rnn_lm.Config), mesh_of("model=2")
    axes, rules = nn.logical_axes(p.make), {**sharding.RULES, "gates": gates}
    state = sharding.initialise(p.start, jax.random.key(0), mesh, axes, rules=rules)
    step = jax.jit(p.step)
    lines = step.lower(state, p.batches[0], p.hyper).compile().as_text().splitlines()
    body = [line for line in lines if "while/body" in line]
    assert bool(collectives("\n".join(body))) == (gates is not None)
    _, metrics = step(state, p.batches[0], p.hyper)
    np.testing.assert_allclose(np.divide(*metrics["loss"]), alone(rnn_lm.Config)[1][0], rtol=1e-5)


def test_no_table_is_gathered_for_the_loss_without_logits():
    mesh = mesh_of("data=2,model=2")
    rng = np.random.default_rng(0)
    hidden, table = (rng.normal(size=shape).astype(np.float32) for shape in ((512, 4), (4096, 4)))
    targets = rng.integers(0, 4096, 512)

    def loss(hidden, table):
        return losses.linear_cross_entropy(hidden, table, jnp.asarray(targets), label_smoothing=0.1)[0]

    expected = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, table)
    rows, words = (jax.sharding.NamedSharding(mesh, P(name)) for name in ("data", "model"))
    with jax.set_mesh(mesh):
        compiled = jax.jit(
            jax.value_and_grad(loss, (0, 1)), in_shardings=(rows, words), out_shardings=(None, (rows, words))
        )
        compiled = compiled.lower(hidden, table).compile()
    found = collectives(compiled.as_text())
    assert {name for name, _ in found} == {"all-reduce"}
    assert (
        max(np.prod(shape) for _, arrays in found for _, shape in arrays) == table.size / 2
    )  # the gradient, over data
    found = compiled(*(jax.device_put(a, s) for a, s in ((hidden, rows), (table, words))))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)


# --- meshes, rules, errors


@pytest.mark.fast
def test_a_mesh():
    mesh = sharding.make_mesh(" model = 2, data=-1")
    assert mesh.axis_names == ("model", "data")
    assert mesh.devices.shape == (2, 2)
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert sharding.make_mesh({"member": 4}).shape == {"member": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows=4", "mesh=rows=4: unknown axis 'rows'; choose from data, model, member"),
        ("data=4;model=2", "mesh='data=4;model=2': write it as data=4,model=2, each axis once"),
        ("data=2,data=2", "each axis once"),
        ("", "write it as data=4"),
        ("data=0", "data=0 must be at least 1, or -1 for the rest"),
        ("data=-1,model=-1", "only one axis can have the rest"),
        ("data=8", "needs 8 devices, and there are 4: .* JAX_NUM_CPU_DEVICES=8"),
        ("data=2", "needs 2 devices, and there are 4: use all of them, -1 being the rest"),
        ("data=-1,model=3", "needs a multiple of 3 devices, and there are 4"),
    ],
)
def test_a_mesh_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        sharding.make_mesh(text)


@pytest.mark.parametrize("kind", [*CONFIGS, *OTHERS], ids=lambda kind: getattr(kind, "__module__", kind))
def test_every_weight_has_axes_and_every_axis_a_rule(kind):
    make, *_ = build(kind)
    params = jax.eval_shape(seqjax.purify(make)[0], jax.random.key(0))
    axes = nn.logical_axes(make)
    assert jax.tree.structure(axes) == jax.tree.structure(params)
    names = {name for spec in jax.tree.leaves(axes) for name in spec}
    assert names <= {*sharding.RULES, None}
    mesh = sharding.make_mesh({"model": 1}, devices=jax.devices()[:1])
    sharding.shardings(mesh, axes, params)  # no axis of the mesh twice in an array


def test_a_weight_without_axes_is_an_error():
    class Nameless(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Param(jnp.zeros((2, 2)))

    with pytest.raises(ValueError, match=r"Nameless\.axes does not have w"):
        nn.logical_axes(lambda key: Nameless(nnx.Rngs(key)))
    Nameless.axes = {"w": P("hidden")}
    with pytest.raises(ValueError, match=r"axes .* for an array"):
        nn.logical_axes(lambda key: Nameless(nnx.Rngs(key)))


def test_what_does_not_divide():
    mesh = mesh_of("model=4")
    axes = {"out": {"w": P("hidden", "vocab")}, "layer": {"w_in": P("embed", "mlp")}}
    shapes = {"out": {"w": np.zeros((4, 65))}, "layer": {"w_in": np.zeros((4, 6))}}
    with pytest.raises(InputError, match=r"parameter layer.w_in \(4, 6\): its axis 'mlp' of 6 does not .* model=4 of"):
        sharding.shardings(mesh, axes, shapes)
    shapes["layer"]["w_in"] = np.zeros((4, 8))
    found = sharding.shardings(mesh, axes, shapes)
    assert found["out"]["w"].spec == P(None, None)
    assert found["layer"]["w_in"].spec == P(None, "model")
    with pytest.raises(InputError, match=r"parameter out.w: unknown axis 'words'; choose from batch, vocab, "):
        sharding.shardings(mesh, {**axes, "out": {"w": P(None, "words")}}, shapes)
    assert sharding.kept_whole(mesh, axes, shapes) == ["vocab of 65 does not divide over model=4: it is replicated"]
    mesh = mesh_of("data=4")
    with pytest.raises(InputError, match="batch_size=6 does not divide over data=4 of the mesh; make it a multiple of"):
        sharding.check_rows(mesh, "batch_size", 6)


# --- batches


def test_batches_are_dealt_out_by_rows():
    mesh = mesh_of("data=2,model=2")
    assert sharding.local_rows(mesh, 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert sharding.shares(mesh) == 1
    batch = {"x": np.arange(24).reshape(2, 6, 2)}
    placed = sharding.place(mesh, axis=1)(batch)["x"]
    assert placed.sharding.spec == P(None, "data")
    np.testing.assert_array_equal(placed, batch["x"])
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3, 2)}
    np.testing.assert_array_equal(sharding.fetch(placed), batch["x"])


def test_a_process_reads_its_rows_only():
    """What `local_rows` would say on the second of two processes."""

    def second(n):
        return np.arange(n // 2, n)

    options = {"batch_size": 4, "window": 3, "seed": 0}
    whole, part = BPTTWindows(np.arange(90), **options), BPTTWindows(np.arange(90), **options, rows=second)
    for step in (0, whole.steps_per_epoch + 2):
        jax.tree.map(np.testing.assert_array_equal, part[step], jax.tree.map(lambda a: a[2:], whole[step]))

    rng = np.random.default_rng(0)
    pairs = [(rng.integers(4, 9, n), rng.integers(4, 9, n + 1)) for n in rng.integers(1, 6, 10)]
    shapes = [(3, 3, 4), (5, 6, 7)]
    plain, filled = PairBuckets(pairs, shapes, seed=1), PairBuckets(pairs, shapes, seed=1, multiple=4)
    part = PairBuckets(pairs, shapes, seed=1, multiple=4, rows=second)
    for step in range(plain.steps_per_epoch + 1):
        n, batch = len(plain[step].source), filled[step]
        assert len(batch.source) == {3: 4, 5: 8}[n]
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda a: a[:n], batch), plain[step])  # noqa: B023
        assert not batch.where[n:].any()
        half = len(batch.source) // 2
        jax.tree.map(np.testing.assert_array_equal, part[step], jax.tree.map(lambda a: a[half:], batch))  # noqa: B023


# --- training


def test_a_run_goes_on_with_other_devices(tmp_path):
    """Steps 1 and 2 on four devices, 3 and 4 on two, 5 and 6 on one: what one device would have come to."""
    kind = rnn_lm.Config
    p = problem(kind)
    axes = nn.logical_axes(p.make)

    def fit(directory, steps, text, **options):
        mesh = None if text is None else mesh_of(text)
        key = jax.random.key(0)
        state = jax.jit(p.start)(key)
        if mesh is not None:
            state = sharding.initialise(p.start, key, mesh, axes, extra=P("batch"))
        return train.fit(
            train.Loop(steps=steps, log_every=2, checkpoint_every=2),
            p.step,
            state,
            p.hyper,
            lambda start, stop: (p.batches[step % 3] for step in range(start, stop)),
            directory=directory,
            place=mesh and sharding.place(mesh),
            console=False,
            **options,
        )

    expected = fit(tmp_path / "one", 6, None)
    fit(tmp_path / "many", 2, "data=2,model=2")
    state = fit(tmp_path / "many", 4, "data=2", resume=True)
    assert state.params["rnn"]["layers"][0].w_h.sharding.num_devices == 2
    state = fit(tmp_path / "many", 6, None, resume=True)
    assert state.params["rnn"]["layers"][0].w_h.sharding.num_devices == 1
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), state.params, expected.params)
    same_losses(tmp_path / "one", tmp_path / "many")


def same_losses(*runs):
    """Of two run directories, at every step that either reports."""
    one, other = (read_metrics(Path(run) / "metrics.jsonl") for run in runs)
    assert [(row["step"], row["split"]) for row in one] == [(row["step"], row["split"]) for row in other]
    np.testing.assert_allclose(*([row["loss"] for row in rows] for rows in (one, other)), rtol=1e-5)


TEXT = "".join(f"{n % 7} is what the quick brown fox says to the lazy dog!\n;" for n in range(20))
TINY = (
    *("nanogpt_cpu", "--data.path", "text.txt", "--model.d_model", "8", "--model.n_layers", "1", "--window", "8"),
    *("--batch_size", "4", "--loop.log_every", "1", "--loop.eval_every", "4", "--loop.steps", "4"),
)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    assert char_lm.main([*TINY, "--run", "a", "--mesh", "data=3,model=2"]) == 2
    assert "needs 6 devices, and there are 4" in capsys.readouterr().err
    assert char_lm.main([*TINY, "--batch_size", "6", "--run", "a", "--mesh", "data=4"]) == 2
    assert "batch_size=6 does not divide over data=4" in capsys.readouterr().err
    assert char_lm.main([*TINY, "--run", "a", "--mesh", "data=2,model=2"]) == 0
    assert "note: vocab of 37 does not divide over model=2: it is replicated" in capsys.readouterr().err


@pytest.mark.full
def test_an_encoder_decoder_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert toy_seq2seq.main(["smoke", "--run", "a", "--mesh", "data=4"]) == 0
    assert toy_seq2seq.main(["smoke", "--run", "b"]) == 0
    same_losses("a", "b")
