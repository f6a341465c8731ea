"""Bundles: every model by its registry, against the model itself; files, names, errors; a process without the code."""

import json
import sys
import zipfile
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st

import seqjax
import seqjax.attention
from experiments import lm_runs, seq2seq_runs
from seqjax import decoding, export
from seqjax.errors import InputError
from seqjax.kernels.rules import at_least
from seqjax.text import save_tokenizer, train_tokenizer
from tests import test_models, test_seq2seq_models
from tests.test_import import python
from tests.test_models import close, random_tokens

# A row for each class; transformers of one layer, since a bundle of theirs takes seconds.
LANGUAGE_MODELS = "rnn_lm-lstm-tied-2", "fixed_window-tree", "transformer-none"
ENCODER_DECODERS = "rnn-dot", "transformer-none"
# Elsewhere in these files, or between two of the others.
COVERED = {"rnn_lm-lstm-1", "rnn_lm-lstm-2", "rnn_lm-lstm-tied-1", "transformer-rotary", "transformer-sinusoidal"}
LONGEST = {"transformer-learned": 6}
LIMITS = {"transformer-learned": {"max_source": 9, "max_target": 9}, "rnn-location": {"max_source": 5}}
MAX_LENGTH = 7


def equal(a, b):
    """Bit for bit."""
    a, b = export.flatten(a), export.flatten(b)
    assert list(a) == list(b) or sorted(a) == sorted(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def written(functions, params, directory):
    export.save_bundle(directory, functions, params)
    return export.load_bundle(directory)


@cache
def tokenizer():
    return train_tokenizer("char", ["abcdefg"])  # as many tokens as the models have


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="module")
def bundles(folder):
    """name -> (the model, its bundle), each made once."""

    @cache
    def of(name):
        m = test_models.model(name)
        functions = export.language_model(m.apply, m.params, longest=LONGEST.get(name))
        return m, written(functions, m.params, folder / name)

    return of


@pytest.fixture(scope="module")
def pairs(folder):
    """name -> (the encoder-decoder, its bundle, what read is), each made once."""

    @cache
    def of(name):
        m = test_seq2seq_models.model(name)
        functions = export.encoder_decoder(m.apply, m.params, max_length=MAX_LENGTH, **LIMITS.get(name, {}))
        functions["apply"] = functions["apply"]._replace(differentiable=False)  # half of the time

        @jax.jit
        def read(params, source, lengths):
            state = m.apply(params, source.shape[0], MAX_LENGTH, method="init_state")
            return m.apply(params, state, source, lengths, method="prefill")

        return m, written(functions, m.params, folder / f"seq2seq-{name}"), read

    return of


@pytest.mark.parametrize("registry", [lm_runs.MODULES, seq2seq_runs.MODULES])
def test_every_class_of_models_has_a_row(registry):
    suite, names = (
        (test_models, LANGUAGE_MODELS) if registry is lm_runs.MODULES else (test_seq2seq_models, ENCODER_DECODERS)
    )
    rows = {type(nnx.eval_shape(suite.MODELS[name]("float32"), jax.random.key(0))) for name in names}
    assert rows == set(registry.values())


@test_models.each(LANGUAGE_MODELS, [name for name in test_models.MODELS if name not in COVERED])
def test_a_language_model_in_a_bundle_is_the_model(name, bundles):
    m, bundle = bundles(name)
    f, params = bundle.functions, bundle.params
    equal(export.nest(params), m.params)
    apply = jax.jit(lambda params, tokens: m.apply(params, tokens)[1])
    for shape in ((3, 6), (1, 1)):
        tokens = random_tokens(shape=shape)
        equal(f["apply"](params, tokens), apply(m.params, tokens))
    tokens, lengths = random_tokens(), jnp.asarray(test_models.LENGTHS)
    state = f["init_state"](params, lengths)
    equal(state, m.init_state(3))
    # XLA fuses what is behind the condition of a Transformer's prefill otherwise: no two programs give the same bits.
    same = partial(close, tolerance=1e-6) if name.startswith("transformer") else equal
    prefilled, logits = f["prefill"](params, state, tokens, lengths)
    expected = m.prefill(m.params, m.init_state(3), tokens, lengths)
    same(export.nest(export.flatten((prefilled, logits))), export.nest(export.flatten(expected)))
    equal(
        f["step"](params, export.nest(export.flatten(expected[0])), tokens[:, 0]),
        m.step(m.params, expected[0], tokens[:, 0]),
    )


@test_models.each(("rnn_lm-lstm-tied-2",), ("rnn_lm-lstm-tied-2", "fixed_window-tree", "transformer-rotary"))
def test_it_writes_the_same_texts(name, bundles):
    m, bundle = bundles(name)
    length = 4 if name in LONGEST else 8
    tokens, lengths = random_tokens(shape=(3, 2)), jnp.array([2, 1, 2])
    state, logits = m.prefill(m.params, m.init_state(3), tokens, lengths)
    f, params = bundle.functions, bundle.params
    ours = f["prefill"](params, f["init_state"](params, lengths), tokens, lengths)
    for write in (
        partial(decoding.greedy, max_length=length, eos=3),
        partial(decoding.sample, key=jax.random.key(1), max_length=length),
        lambda *arguments: decoding.beam_search(*arguments, max_length=length, eos=3, beam_size=3, n_best=2),
    ):
        expected = write(m.step, m.params, state, logits)
        texts = write(f["step"], params, *ours)
        np.testing.assert_array_equal(texts.tokens, expected.tokens)
        close(texts.scores, expected.scores)


@test_models.each(("rnn_lm-lstm-tied-2", "transformer-none"), (*test_models.TRAINED, "transformer-none"))
def test_it_can_be_trained_further(name, bundles):
    m, bundle = bundles(name)
    tokens = random_tokens()

    def gradient(apply, params):
        loss = lambda params: jnp.sum(jnp.sin(apply(params, tokens)))  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    ours = gradient(bundle.functions["apply"], bundle.params)
    expected = export.flatten(gradient(lambda params, tokens: m.apply(params, tokens)[1], m.params))
    assert any(np.any(leaf) for leaf in expected.values())
    close(ours, expected, 1e-4)


# Of what positions do, the language models are enough.
@test_seq2seq_models.each(
    ENCODER_DECODERS, (*ENCODER_DECODERS, "rnn-none", "rnn-location", "rnn-feeding", "transformer-rotary")
)
def test_an_encoder_decoder_in_a_bundle_is_the_model(name, pairs):
    m, bundle, read = pairs(name)
    f, params = bundle.functions, bundle.params
    source, lengths, inputs = test_seq2seq_models.batch(m.words)
    apply = jax.jit(m.apply)
    equal(f["apply"](params, source, lengths, inputs), apply(m.params, source, lengths, inputs))

    expected = read(m.params, source, lengths)
    ours = f["read"](params, source, lengths)
    equal(ours, expected)
    equal(f["step"](params, ours[0], inputs[:, 1]), m.step(m.params, expected[0], inputs[:, 1]))


@test_seq2seq_models.each(("transformer-none",), ("transformer-none", "transformer-rotary", "rnn-pointer"))
def test_beam_search_takes_its_step(name, pairs):
    m, bundle, read = pairs(name)
    batch = test_seq2seq_models.batch(m.words)[:2]
    ours, expected = bundle.functions["read"](bundle.params, *batch), read(m.params, *batch)
    search = partial(decoding.beam_search, max_length=5, eos=3, beam_size=2, coverage_penalty=0.2, alignments=True)
    wanted = search(m.step, m.params, *expected, attention=lambda state: state.attention)
    found = search(bundle.functions["step"], bundle.params, *ours, attention=lambda state: state["attention"])
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    close((found.scores, found.attention), (wanted.scores, wanted.attention))


@pytest.mark.full
@pytest.mark.parametrize("name", ["rnn-pointer", "rnn-location", "transformer-learned"])
def test_an_encoder_decoder_takes_any_size(name, folder):
    m = test_seq2seq_models.model(name)
    functions = export.encoder_decoder(m.apply, m.params, max_length=MAX_LENGTH, **LIMITS.get(name, {}))
    bundle = written({"apply": functions["apply"]}, m.params, folder / f"sizes-{name}")
    apply = jax.jit(m.apply)
    for b, s, t in ((1, 1, 1), (2, 1, 3), (1, 4, 1)):
        source, lengths, inputs = test_seq2seq_models.batch(m.words)
        batch = source[:b, :s], jnp.minimum(lengths[:b], s), inputs[:b, :t]
        equal(bundle.functions["apply"](bundle.params, *batch), apply(m.params, *batch))


@pytest.mark.parametrize(
    "options",
    [
        {"causal": True},
        pytest.param({"window": 3}, marks=pytest.mark.full),
        pytest.param({"bias": True, "q_offset": 2}, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_attention_chooses_by_size_when_it_is_compiled(options, monkeypatch):
    """Below 3 x 3 the reference, up to 4 x 4 one block, then several."""
    monkeypatch.setattr(seqjax.attention, "BLOCK", 4)
    monkeypatch.setattr(seqjax.attention, "_large", lambda q, k: at_least(q.shape[1] * k.shape[1], 9))

    def attend(q, k):
        more = {**options, "bias": jnp.sin(q[..., :1, :].sum(-1))[:, None] if "bias" in options else None}
        return seqjax.attention.dot_product_attention(q, k, k, **more)

    (b, t), f = jax.export.symbolic_shape("b, t"), jax.jit(attend)
    exported = jax.export.export(f)(*(jax.ShapeDtypeStruct((b, t, 2, 4), jnp.float32),) * 2)
    derivative = exported.vjp()
    for size in (2, 4, 9):
        q, k = jax.random.normal(jax.random.key(size), (2, 3, size, 2, 4))
        equal(exported.call(q, k), f(q, k))
    close(derivative.call(q, k, jnp.cos(q)), jax.vjp(f, q, k)[1](jnp.cos(q)), 1e-6)


# --- files


@pytest.fixture(scope="module")
def table():
    """The smallest model: rows of a table are the scores."""

    def row(params, tokens):
        return params["w"][tokens]

    (b,) = jax.export.symbolic_shape("b", constraints=["b <= 3"])
    tokens = jax.ShapeDtypeStruct((b,), jnp.int32)
    return SimpleNamespace(
        functions={"apply": export.Function(row, {"tokens": tokens}, ("logits",), True, ("b <= 3",))},
        params={"w": jnp.arange(6.0).reshape(3, 2)},
    )


@pytest.fixture
def bundle(table, tmp_path):
    """Where one was written."""
    save_tokenizer(tokenizer(), tmp_path / "tokenizer.json")
    export.save_bundle(tmp_path / "b", table.functions, table.params, files=[tmp_path / "tokenizer.json"])
    return tmp_path / "b"


def test_a_number_is_an_argument_too(tmp_path):
    def scaled(params, x, factor):
        return params["w"] * x * factor

    arguments = {"x": jax.ShapeDtypeStruct((2,), jnp.float32), "factor": jax.ShapeDtypeStruct((), jnp.float32)}
    export.save_bundle(
        tmp_path / "b", {"apply": export.Function(scaled, arguments, ("y",))}, {"w": jnp.array([1.0, 2.0])}
    )
    bundle = export.load_bundle(tmp_path / "b")
    found = bundle.functions["apply"](bundle.params, jnp.array([1.0, 1.0]), jnp.float32(3))
    assert found.tolist() == [3, 6]
    assert (
        "apply(params, np.ones((2,), np.float32), np.ones((), np.float32))" in (tmp_path / "b/README.txt").read_text()
    )


def test_a_bundle_that_cannot_be_replaced_stays(table, bundle, monkeypatch):
    before = {file.name: file.read_bytes() for file in bundle.iterdir()}

    def fails(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export.os, "replace", fails)
    with pytest.raises(KeyboardInterrupt):
        export.save_bundle(bundle, table.functions, {"w": jnp.zeros((3, 2))})
    assert {file.name: file.read_bytes() for file in bundle.iterdir()} == before
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["b", "tokenizer.json"]


def test_a_zip_is_a_bundle_too(table, tmp_path, bundle):
    for _ in range(2):  # the second time it replaces the first
        sizes = export.save_bundle(
            tmp_path / "b.zip",
            table.functions,
            table.params,
            files=[bundle / "tokenizer.json"],
            about={"kind": "table"},
        )
    found = export.load_bundle(tmp_path / "b.zip")
    assert found.about["kind"] == "table"
    assert found.about["functions"]["apply"]["arguments"] == {"params": "params.safetensors", "tokens": "int32[b]"}
    assert found.about["functions"]["apply"]["results"] == {"logits": "float32[b, 2]"}
    assert found.tokenizers == {"tokenizer": tokenizer()}
    assert sizes == {file.filename: file.file_size for file in zipfile.ZipFile(tmp_path / "b.zip").infolist()}
    assert {"w"} == set(found.params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "b.zip", "tokenizer.json"]


def test_every_file_is_checked(bundle):
    for name in json.loads((bundle / "bundle.json").read_text())["sha256"]:
        data = (bundle / name).read_bytes()
        (bundle / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(InputError, match=rf"{name} is damaged, its SHA-256 is not that in bundle.json"):
            export.load_bundle(bundle)
        (bundle / name).unlink()
        with pytest.raises(InputError, match=f"{name} is missing or damaged; copy the bundle again"):
            export.load_bundle(bundle)
        (bundle / name).write_bytes(data)
    export.load_bundle(bundle)


def change(bundle, **changed):
    record = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(record | changed))


def test_what_is_no_bundle_is_refused(table, bundle, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"nowhere is no bundle: bundle.json is missing or damaged"):
        export.load_bundle(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"tokenizer.json: neither a directory nor a .zip"):
        export.load_bundle(tmp_path / "tokenizer.json")
    for to in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(InputError, match="exists and is no bundle; choose another place"):
            export.save_bundle(to, table.functions, table.params)
    with pytest.raises(InputError, match="cannot be written"):
        export.save_bundle(tmp_path / "tokenizer.json" / "b", table.functions, table.params)
    change(bundle, format=2)
    with pytest.raises(InputError, match="a bundle of format 2, and this seqjax reads 1"):
        export.load_bundle(bundle)
    (bundle / "bundle.json").write_text("{")
    with pytest.raises(InputError, match=r"b is no bundle: bundle.json is missing or damaged"):
        export.load_bundle(bundle)
    for package in ("flatbuffers", "safetensors.numpy"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(InputError, match=rf'package {package[:11]}; run: pip install "seqjax\[export\]"'):
                export.save_bundle(tmp_path / "c", table.functions, table.params)


def test_a_program_of_a_newer_jax_says_so(bundle, monkeypatch):
    change(bundle, versions={"jax": "99.1.0"})
    export.load_bundle(bundle)  # newer, but of a kind that this jax reads

    def unreadable(self):
        raise ValueError("vhlo")

    monkeypatch.setattr(jax.export.Exported, "mlir_module", unreadable)
    with pytest.raises(
        InputError, match=r"apply was written by jax 99.1.0, and jax .* install jax 99.1.0 or a newer one"
    ):
        export.load_bundle(bundle)


def test_sizes_above_a_limit_are_refused(bundle):
    found = export.load_bundle(bundle)
    assert found.functions["apply"](found.params, jnp.zeros(3, jnp.int32)).shape == (3, 2)
    with pytest.raises(InputError, match=r"tokens is int32\[b\] with b = 4; apply of this bundle takes at most 3"):
        found.functions["apply"](found.params, jnp.zeros(4, jnp.int32))


@pytest.mark.fast
def test_a_process_without_the_code(bundles, folder):
    """As README.txt says, without seqjax; then with it, without Flax and the models."""
    name = "rnn_lm-lstm-tied-2"
    m, _ = bundles(name)
    prompt = jnp.array([[4, 5]], jnp.int32)
    expected = decoding.greedy(
        m.step, m.params, *m.prefill(m.params, m.init_state(1), prompt, jnp.array([2])), max_length=5
    )
    found = python(
        f"""
        import os
        os.chdir({str(folder / name)!r})
        lines = open("README.txt").read().partition("Functions;")[0].splitlines()
        exec("\\n".join(line[4:] for line in lines if line.startswith("    ")))
        assert logits.shape == (1, 1, {test_models.V}) and "seqjax" not in sys.modules

        import jax.numpy as jnp
        from seqjax import decoding, export
        bundle = export.load_bundle(".")
        f, lengths = bundle.functions, jnp.array([2], jnp.int32)
        state = f["init_state"](bundle.params, lengths)
        state, logits = f["prefill"](bundle.params, state, jnp.array([[4, 5]], jnp.int32), lengths)
        print(*decoding.greedy(f["step"], bundle.params, state, logits, max_length=5).tokens[0].tolist())
        assert not {{"seqjax.models", "seqjax.nn"}} & set(sys.modules)
        """,
        *("flax", "optax", "orbax", "grain", "tyro"),
    )
    assert found.split() == [str(token) for token in expected.tokens[0].tolist()]


# --- names


class Pair(NamedTuple):
    w: Any
    b: Any


LEAVES = st.sampled_from([np.dtype(name) for name in ("float32", "float64", "int8", "uint32", "bool")] + [jnp.bfloat16])
NAMES = st.text("abcxyz_0", min_size=1, max_size=4)
TREES = st.recursive(
    st.builds(lambda dtype, shape: np.ones(shape, dtype), LEAVES, st.sampled_from([(), (2,), (0, 3), (1, 2, 1)])),
    lambda inner: st.one_of(
        st.dictionaries(NAMES, inner, max_size=3),
        st.lists(inner, max_size=12),
        st.lists(inner, max_size=12).map(lambda trees: dict(enumerate(trees))),  # as nnx.List comes out of purify
        st.builds(Pair, inner, st.one_of(st.none(), inner)),
        st.tuples(inner, inner),
    ),
    max_leaves=14,
)


@hypothesis.given(tree=st.dictionaries(NAMES, TREES, min_size=1, max_size=3))
def test_trees_survive_as_dotted_names(tree):
    named = export.flatten(tree)
    plain = export.nest(named)
    assert export.flatten(plain).keys() == named.keys()
    assert not any(isinstance(node, tuple) for node in jax.tree.leaves(plain, is_leaf=lambda x: isinstance(x, tuple)))
    for back in (export.restore(tree, named), export.restore(tree, export.flatten(plain))):
        assert jax.tree.structure(back) == jax.tree.structure(tree)
        assert all(a is b for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True))


@hypothesis.given(tree=st.dictionaries(NAMES, TREES, min_size=1, max_size=3))
@hypothesis.settings(max_examples=30, suppress_health_check=list(hypothesis.HealthCheck))
def test_weights_survive_in_their_types(tree, tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(export._save_params(tree))
    equal(export.load_params(file), tree)
    assert jax.tree.structure(export.load_params(file, like=tree)) == jax.tree.structure(tree)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: export.flatten({"a.b": 1}), r"no dotted name can be made of the keys \['a.b'\]"),
        (lambda: export.flatten({"": 1}), "no dotted name can be made of the keys"),
        (lambda: export.nest({"a": 1, "a.b": 2}), "a is a leaf and holds others"),
        (lambda: export.restore({"a": 1}, {"b": 1}), "a is missing"),
        (lambda: export.restore({"a": 1}, {"a": 1, "b": 1}), "b is not in the template"),
        (lambda: export.load_params("nowhere"), "nowhere: cannot read the weights"),
        (lambda: export._load_params("x", b"\0" * 8), "x: no safetensors file of known types"),
    ],
)
def test_names_that_do_not_fit(call, message):
    with pytest.raises(InputError, match=message):
        call()
