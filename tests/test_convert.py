"""Weights of other libraries: the layers of the golden file, of Flax, and of whatever else is installed."""

import functools
from pathlib import Path

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seqjax
from seqjax import convert
from seqjax.cells import elman
from tests.golden import make_convert
from tests.golden.make_convert import CASES, B, D, H, T
from tests.oracles import random_like

KINDS = {library: dict.fromkeys(kind for kind, _ in cases) for library, cases in CASES.items()}
FLAX = {  # our kind, the form that to_flax makes, the cell
    "linen-elman": ("elman", "linen", flax.linen.SimpleCell),
    "linen-lstm": ("lstm", "linen", flax.linen.LSTMCell),
    "linen-lstm-optimized": ("lstm", "linen", flax.linen.OptimizedLSTMCell),
    "linen-gru": ("gru", "linen", flax.linen.GRUCell),
    "nnx-elman": ("elman", "nnx", nnx.SimpleCell),
    "nnx-lstm": ("lstm", "nnx", nnx.LSTMCell),
    "nnx-lstm-optimized": ("lstm", "nnx_optimized", nnx.OptimizedLSTMCell),
    "nnx-gru": ("gru", "nnx", nnx.GRUCell),
}
each_case = pytest.mark.parametrize(
    ("library", "number"), [(library, number) for library in CASES for number in range(len(CASES[library]))]
)
each_flax_cell = pytest.mark.parametrize("name", FLAX)
each_kind = pytest.mark.parametrize(
    ("library", "kind"), [(library, kind) for library, kinds in KINDS.items() for kind in kinds]
)


def params_of(kind, d_in=D, dtype=jnp.float32, seed=0):
    """Random Params whose biases are such that adding 1 to them, or two of them, rounds nothing."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: seqjax.CELLS[kind].init(key, d_in, H, dtype=dtype), jax.random.key(0))
    params = random_like(rng, shapes)
    return params._replace(**{name: jnp.round(64 * b) / 64 for name, b in params._asdict().items() if name[0] == "b"})


def layers_of(kind, options):
    """Random layers such as a layer of another library with these options has."""
    directions = 2 if options.get("bidirectional") else 1
    layers = []
    for depth in range(options.get("num_layers", 1)):
        d_in = D if depth == 0 else directions * H
        pair = [params_of(kind, d_in, jnp.float64, seed=2 * depth + way) for way in range(directions)]
        if not has_bias(options):
            pair = [p._replace(**{name: 0 * p._asdict()[name] for name in p._fields if name[0] == "b"}) for p in pair]
        layers.append(tuple(pair) if directions == 2 else pair[0])
    return layers


def has_bias(options):
    return options.get("bias", True) and options.get("use_bias", True)


def theirs_to_ours(library, kind, weights):
    """The list of layers."""
    if library == "torch":
        return convert.from_torch(kind, weights)
    return [convert.from_keras(kind, weights) if library == "keras" else convert.from_haiku(kind, weights)]


def ours_to_theirs(library, layers, options):
    if library == "torch":
        return convert.to_torch(layers, bias=has_bias(options))
    return convert.to_keras(layers[0], bias=has_bias(options)) if library == "keras" else convert.to_haiku(layers[0])


def outputs(library, kind, options, layers, xs):
    """What the converted layers compute: ys [T, B, H] or [T, B, 2H]."""
    relu = "relu" in options.values() or (library, kind) == ("haiku", "elman")
    cell = elman.make(jax.nn.relu) if relu else seqjax.CELLS[kind]
    ys = jnp.asarray(xs, jnp.float64)
    for layer in jax.tree.map(lambda leaf: leaf.astype(jnp.float64), layers):
        run = seqjax.unroll if isinstance(layer, convert.Params) else seqjax.bidirectional
        _, ys = run(cell, *([layer] if isinstance(layer, convert.Params) else layer), ys, implementation="scan")
    return ys


def equal(actual, expected):
    """The same structure, dtypes and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def close(library, actual, expected):
    tolerance = 2e-5 if library == "keras" else 1e-12  # Keras computes in float32
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def golden(library, number):
    """xs, ys and the weights as the library has them."""
    with np.load(Path(__file__).parent / "golden" / "convert.npz") as file:
        xs, ys = (file[f"{library}.{number}.{name}"] for name in ("xs", "ys"))
        prefix = f"{library}.{number}.weights."
        weights = {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}
    if library == "keras":
        return xs, ys, [weights[str(index)] for index in range(len(weights))]
    if library == "haiku":
        tree = {}
        for path, value in weights.items():
            module, name = path.split(".")
            tree.setdefault(module, {})[name] = value
        return xs, ys, tree
    return xs, ys, weights


@pytest.mark.usefixtures("x64")
@each_case
def test_outputs_are_those_of_the_library(library, number):
    kind, options = CASES[library][number]
    xs, ys, weights = golden(library, number)
    layers = theirs_to_ours(library, kind, weights)
    close(library, outputs(library, kind, options, layers, xs), ys)
    back = ours_to_theirs(library, layers, options)
    if options != {"double_bias": False}:  # to_haiku always makes two
        assert jax.tree.map(np.shape, back) == jax.tree.map(np.shape, weights)
    if library == "keras" or (library, kind) in (("torch", "gru"), ("haiku", "gru_cho")) or not has_bias(options):
        equal(jax.tree.map(np.asarray, back), weights)


@pytest.mark.fast
@each_kind
def test_back_and_forth_changes_no_bit(library, kind):
    layers = [params_of(kind)]
    equal(theirs_to_ours(library, kind, ours_to_theirs(library, layers, {})), layers)


@pytest.mark.usefixtures("x64")
@each_case
def test_back_and_forth_in_every_case(library, number):
    kind, options = CASES[library][number]
    layers = layers_of(kind, options)
    equal(theirs_to_ours(library, kind, ours_to_theirs(library, layers, options)), layers)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("x64")
@each_case
def test_the_library_itself(library, number, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    pytest.importorskip(library)
    kind, options = CASES[library][number]
    rng = np.random.default_rng(1)
    xs, layers, run = make_convert.inputs(rng), layers_of(kind, options), make_convert.RUN[library]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        weights, ys = run(kind, options, xs, rng=rng)
        _, ys_of_ours = run(kind, options, xs, ours_to_theirs(library, layers, options))
    close(library, outputs(library, kind, options, theirs_to_ours(library, kind, weights), xs), ys)
    close(library, ys_of_ours, outputs(library, kind, options, layers, xs))


class Linen:
    """A linen cell in float64."""

    def __init__(self, cell):
        self.cell = cell(H, dtype=jnp.float64, param_dtype=jnp.float64)
        self.carry = self.cell.initialize_carry(jax.random.key(0), (B, D))
        self.params = self.cell.init(jax.random.key(0), self.carry, jnp.zeros((B, D)))["params"]

    def __call__(self, params, carry, x):
        return self.cell.apply({"params": params}, carry, x)


class Nnx:
    """The same of nnx."""

    def __init__(self, cell):
        self.cell = cell(D, H, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        self.carry = self.cell.initialize_carry((B, D), rngs=nnx.Rngs(0))
        self.params = nnx.to_pure_dict(nnx.state(self.cell))

    def __call__(self, params, carry, x):
        nnx.update(self.cell, params)
        return self.cell(carry, x)


def flax_outputs(cell, params, xs):
    carry, ys = cell.carry, []
    for x in xs:
        carry, y = cell(params, carry, x)
        ys.append(y)
    return jnp.stack(ys)


@pytest.mark.usefixtures("x64")
@each_flax_cell
def test_flax(name):
    kind, form, cell_type = FLAX[name]
    cell = (Nnx if cell_type.__module__.startswith("flax.nnx") else Linen)(cell_type)
    rng = np.random.default_rng(2)
    xs = jnp.asarray(rng.normal(size=(T, B, D)))

    theirs = random_like(rng, cell.params)
    params = convert.from_flax(kind, theirs)
    close("flax", outputs("flax", kind, {}, [params], xs), flax_outputs(cell, theirs, xs))
    equal(convert.to_flax(params, form=form), theirs)

    params = params_of(kind, dtype=jnp.float64)
    if form == "nnx" and kind == "gru":
        params = params._replace(b_h=params.b_h.at[2 * H :].set(0))
    theirs = convert.to_flax(params, form=form)
    close("flax", flax_outputs(cell, theirs, xs), outputs("flax", kind, {}, [params], xs))
    if kind == "gru":  # the biases of r and z come back as one
        params = params._replace(b=params.b.at[: 2 * H].add(params.b_h[: 2 * H]), b_h=params.b_h.at[: 2 * H].set(0))
    equal(convert.from_flax(kind, theirs), params)


@pytest.mark.fast
def test_state_of_nnx_as_it_is():
    cell = nnx.OptimizedLSTMCell(D, H, rngs=nnx.Rngs(0))
    params = params_of("lstm")
    nnx.update(cell, convert.to_flax(params, form="nnx_optimized"))
    equal(convert.from_flax("lstm", nnx.state(cell)), params)
    layer = nnx.RNN(nnx.LSTMCell(D, H, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    assert convert.from_flax("lstm", nnx.state(layer)["cell"]).w_x.shape == (D, 4 * H)


@pytest.mark.fast
def test_two_biases_are_added():
    weights = convert.to_torch([params_of("lstm")])
    weights["bias_hh_l0"] = np.full(4 * H, 0.5, np.float32)
    np.testing.assert_array_equal(convert.from_torch("lstm", weights)[0].b, weights["bias_ih_l0"] + 0.5)


@pytest.mark.fast
def test_names_of_torch_cells():
    weights = convert.to_torch([params_of("gru")])
    equal(convert.from_torch("gru", {name.removesuffix("_l0"): w for name, w in weights.items()}), [params_of("gru")])


def test_more_than_ten_layers():
    layers = [params_of("elman", D if depth == 0 else H, seed=depth) for depth in range(12)]
    weights = convert.to_torch(layers)
    equal(convert.from_torch("elman", dict(sorted(weights.items()))), layers)


class Tensor:
    """As much of a torch tensor as a converter may use: it gives its array when detached and moved to the CPU."""

    def __init__(self, array, moved=0):
        self.array, self.moved = array, moved

    def detach(self):
        return Tensor(self.array, self.moved + 1)

    def cpu(self):
        return Tensor(self.array, self.moved + 1)

    def __array__(self, dtype=None, copy=None):
        assert self.moved == 2
        return self.array


@pytest.mark.fast
def test_tensors():
    tensors = {name: Tensor(array) for name, array in convert.to_torch([params_of("lstm")]).items()}
    equal(convert.from_torch("lstm", tensors), [params_of("lstm")])


@each_kind
def test_nothing_is_shared(library, kind):
    theirs = ours_to_theirs(library, [params_of(kind)], {})
    theirs = jax.tree.map(np.array, theirs)
    layers = theirs_to_ours(library, kind, theirs)
    for leaf in jax.tree.leaves(theirs):
        leaf[...] = np.nan
    equal(layers, [params_of(kind)])
    layers = [params_of(kind)]
    for leaf in jax.tree.leaves(ours_to_theirs(library, layers, {})):
        if isinstance(leaf, np.ndarray):  # writable and contiguous, as torch.from_numpy wants it
            assert leaf.flags.c_contiguous
            leaf[...] = np.nan
    equal(layers, [params_of(kind)])


@each_kind
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_dtypes_stay(library, kind, dtype):
    layers = [params_of(kind)]
    layers = jax.tree.map(lambda leaf: leaf.astype(dtype), layers)
    theirs = ours_to_theirs(library, layers, {})
    assert {leaf.dtype for leaf in jax.tree.leaves(theirs)} == {jnp.dtype(dtype)}
    back = theirs_to_ours(library, kind, theirs)
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {jnp.dtype(dtype)}


@pytest.mark.fast
def test_modules_of_haiku_by_name():
    params = {**convert.to_haiku(params_of("lstm"), name="model/~/decoder"), "model/linear": {"w": np.ones((2, 2))}}
    equal(convert.from_haiku("lstm", params, name="model/~/decoder"), params_of("lstm"))
    with pytest.raises(ValueError, match=r"'lstm' of the modules \['model/~/decoder/linear', 'model/linear'\]"):
        convert.from_haiku("lstm", params)


@functools.cache
def errors():
    """A call that cannot work and a part of its message."""
    lstm, gru, cho = params_of("lstm"), params_of("gru"), params_of("gru_cho")
    torch, flax, haiku = convert.to_torch([lstm]), convert.to_flax(gru), convert.to_haiku(lstm)
    keras = convert.to_keras(cho)
    return {
        "kind of torch": (lambda: convert.from_torch("gru_cho", torch), "kind: 'gru_cho' is no kind that torch has"),
        "kind of haiku": (lambda: convert.from_haiku("gru", haiku), "these are elman, lstm, gru_cho"),
        "no kind": (lambda: convert.from_keras("GRU", keras), "'GRU' is no kind that Keras has"),
        "params of torch": (lambda: convert.to_torch([cho]), "layers: 'gru_cho' is no kind that torch has"),
        "params of flax": (lambda: convert.to_flax(cho), "params: 'gru_cho' is no kind that Flax has"),
        "params of haiku": (lambda: convert.to_haiku(gru), "params: 'gru' is no kind that haiku has"),
        "other kind": (lambda: convert.from_torch("gru", torch), r"weight_ih_l0 has shape \(16, 3\), not \(3H D\)"),
        "other gates": (lambda: convert.from_flax("lstm", flax), "unknown .*'hn/bias'"),
        "missing": (
            lambda: convert.from_torch("lstm", {n: w for n, w in torch.items() if n != "bias_hh_l0"}),
            r"state_dict: missing \['bias_hh_l0'\]",
        ),
        "unknown": (lambda: convert.from_torch("lstm", {**torch, "weight_hr_l0": 0}), r"unknown \['weight_hr_l0'\]"),
        "prefix": (
            lambda: convert.from_torch("lstm", {f"rnn.{name}": w for name, w in torch.items()}),
            r"unknown \['rnn.weight_ih_l0'",
        ),
        "nothing": (lambda: convert.from_torch("lstm", {}), r"missing \['weight_ih_l0', 'weight_hh_l0'\]"),
        "shape": (
            lambda: convert.from_torch("lstm", {**torch, "weight_hh_l0": np.ones((16, 5))}),
            r"state_dict: weight_hh_l0 has shape \(16, 5\), not \(4H H\) with .*'H': 4",
        ),
        "rank": (
            lambda: convert.from_torch("lstm", {**torch, "bias_hh_l0": np.ones((16, 1))}),
            r"bias_hh_l0 has shape \(16, 1\), not \(4H\)",
        ),
        "transposed": (lambda: convert.from_keras("lstm", [w.T for w in convert.to_keras(lstm)]), "weights: kernel"),
        "count": (lambda: convert.from_keras("lstm", [np.ones(2)] * 5), "weights has 5 arrays"),
        "reset_after": (lambda: convert.from_keras("gru", keras), r"bias has shape \(12,\), not \(2 3H\)"),
        "not reset_after": (
            lambda: convert.from_keras("gru_cho", convert.to_keras(gru)),
            r"bias has shape \(2, 12\), not \(3H\)",
        ),
        "variables": (lambda: convert.from_flax("gru", {"params": flax}), r"unknown \['params/hn/bias'"),
        "rows": (
            lambda: convert.from_haiku("lstm", {"lstm/linear": {"w": np.ones((4, 16)), "b": np.ones(16)}}),
            r"linear/w has shape \(4, 16\); more than H = 4 rows",
        ),
        "bias of torch": (lambda: convert.to_torch([lstm], bias=False), "bias is False, but layers has biases"),
        "bias of keras": (lambda: convert.to_keras(gru, bias=False), "bias is False, but layer has biases"),
        "b_hn": (lambda: convert.to_flax(gru, form="nnx"), r"b_hn = .* which nnx.GRUCell lacks; pass form='linen'"),
        "form": (lambda: convert.to_flax(gru, form="nnx_optimized"), "form is 'nnx_optimized'.* linen, nnx"),
        "params": (lambda: convert.to_keras(lstm._replace(b=lstm.b[:-4])), r"layer: b has shape \(12,\), not \(4H\)"),
    }


@pytest.mark.fast
@pytest.mark.parametrize("name", errors())
def test_errors(name):
    call, message = errors()[name]
    with pytest.raises(ValueError, match=message):
        call()
