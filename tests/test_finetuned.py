"""Language models as parts of other models: their states, what is trained when, and runs that start from theirs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import (
    classify,
    lm_runs,
    masked_lm,
    pretrain_finetune,
    tag,
    text_corpora,
    text_runs,
    trunk_runs,
    word_lm,
)
from experiments.text_corpora import Example, Texts
from experiments.trunk_runs import Trunk, cut
from seqjax import nn, train
from seqjax.config import read_config
from seqjax.data.windows import Batch as Window
from seqjax.errors import InputError
from seqjax.export import flatten
from seqjax.models import fixed_window_lm, rnn_lm
from seqjax.models.finetuned import FineTunedClassifier, HeadConfig
from seqjax.models.masked_lm import MASK, MaskedLMConfig, mask
from seqjax.models.tagger import Tagger, TaggerConfig
from seqjax.models.transformer_lm import TransformerConfig
from seqjax.text import SPECIALS, train_tokenizer
from tests import oracles

V = 12
RNN = rnn_lm.Config("gru", d_embed=3, d_hidden=4, n_layers=2)
TRUNKS = {
    "rnn": RNN,
    "tied": rnn_lm.Config("gru", d_embed=4, d_hidden=4, tied=True, variational=True, word_dropout=0.2),
    "transformer": TransformerConfig(d_model=4, n_heads=1, n_layers=1, d_ff=4, context=3),
    "window": fixed_window_lm.Config(fuse=2, n_layers=2, d_embed=3, d_hidden=5, norm=True),
    "bigrams": fixed_window_lm.Config(n_layers=0),
    "masked": MaskedLMConfig(d_model=4, n_heads=1, n_layers=1, d_ff=4, tied=False),
}


def random_params(init):
    return oracles.random_like(np.random.default_rng(0), jax.eval_shape(init, jax.random.key(0)), 0.5)


# --- models


@pytest.mark.parametrize("name", TRUNKS)
def test_the_scores_of_a_language_model_are_made_of_its_hidden_states(name):
    config = TRUNKS[name]
    model = lm_runs.build(config, V)
    params, tokens = random_params(model.init), jax.random.randint(jax.random.key(1), (2, 5), 0, V, jnp.int32)

    @jax.jit
    def both(params, tokens):
        logits = model.apply(params, tokens)
        return model.apply(params, tokens, method="hidden"), logits if name == "masked" else logits[1]

    hs, logits = both(params, tokens)
    w = params["embed"]["w"].T if params.get("out") is None else params["out"]["w"]
    b = 0 if params.get("out") is None else params["out"]["b"]
    expected = hs if name == "bigrams" else np.asarray(hs) @ np.asarray(w) + np.asarray(b)
    np.testing.assert_allclose(expected, logits, rtol=1e-5, atol=1e-6)

    def started(key):
        rngs = nnx.Rngs(key)
        trunk = trunk_runs.make((config, V), rngs)
        return FineTunedClassifier(HeadConfig(d_head=2), 9, 3, trunk=trunk, rngs=rngs)

    # The parameters of the language model fit by their names, its output layer apart.
    init, apply = nn.purify(started)
    shapes = jax.eval_shape(init, jax.random.key(0))
    own = {f"trunk.{k}": v.shape for k, v in flatten(params).items() if not k.startswith("out.")}
    assert {k: v.shape for k, v in flatten(shapes).items() if k.startswith("trunk.")} == own
    nn.logical_axes(started)
    lengths = jnp.array([5, 2], jnp.int32)
    options = {"dropout": 0.5, "key": jax.random.key(0)}
    assert jax.eval_shape(lambda p: apply(p, tokens, lengths, **options), shapes).shape == (2, 3)


@pytest.mark.parametrize("name", ["rnn", "masked"])
def test_a_tagger_with_a_trunk_reads_each_sentence_for_itself(name):
    config = TaggerConfig(d_embed=3, d_letter=2, d_spelling=2, d_hidden=4)

    def make(key):
        rngs = nnx.Rngs(key)
        return Tagger(config, V, 3, trunk=trunk_runs.make((TRUNKS[name], V), rngs), rngs=rngs)

    init, apply = nn.purify(make)
    params = random_params(init)
    rng = np.random.default_rng(1)
    lengths, ends = np.array([3, 1, 0], np.int32), np.array([[1, 4, 6], [2, 0, 0], [0, 0, 0]], np.int32)
    words, letters = rng.integers(0, V, (3, 3)), rng.integers(0, 256, (3, 3, 4))
    tokens = rng.integers(0, V, (3, 7))

    @jax.jit
    def scores(words, lengths, letters, tokens, ends):
        arrays = (a.astype(jnp.int32) for a in (words, lengths, letters))
        return apply(params, *arrays, None, None, tokens.astype(jnp.int32), ends.astype(jnp.int32)).scores

    whole = scores(words, lengths, letters, tokens, ends)
    for row, n in enumerate(lengths.tolist()):

        def wide(a, width, n, row=row):  # another bucket, and other content where it is padded
            return np.concatenate([a[row : row + 1, :n], np.full((1, width - n, *a.shape[2:]), 3)], axis=1)

        last = np.pad(ends[row : row + 1, :n], ((0, 0), (0, 5 - n)))
        alone = scores(
            wide(words, 5, n), lengths[row : row + 1], wide(letters, 5, n), wide(tokens, 9, last.max() + 1), last
        )
        np.testing.assert_allclose(alone[0, :n], whole[row, :n], rtol=1e-4, atol=1e-5)
    changed = tokens.copy()
    changed[0, 0] = (tokens[0, 0] + 1) % V
    assert np.abs(scores(words, lengths, letters, changed, ends) - whole)[0].min() > 0  # the first word hears of it


def test_most_of_the_chosen_words_are_hidden():
    tokens = jnp.full((50, 80), 7, jnp.int32)
    where = jnp.arange(80)[None] < jnp.full((50, 1), 60)
    masked = mask(jax.random.key(0), tokens, where, rate=0.15, vocab_size=10)
    assert masked.at.shape == (50, 12)
    assert np.all(masked.where == (np.arange(12) < 9)[None])  # of 60 tokens 9 are guessed
    assert np.all(masked.at < 60)
    assert all(len({*row}) == 12 for row in masked.at.tolist())
    chosen = np.zeros((50, 80), bool)
    np.put_along_axis(chosen, np.asarray(masked.at), np.asarray(masked.where), axis=1)
    assert np.all(np.where(chosen, tokens, masked.tokens) == tokens)
    of = np.asarray(masked.tokens)[chosen]
    assert np.mean(of == MASK) == pytest.approx(0.8, abs=0.05)
    assert np.mean(of == 7) == pytest.approx(0.1 + 0.1 / 6, abs=0.04)
    assert set(of) <= {MASK, *range(len(SPECIALS), 10)}
    # Of a row of 5 tokens, or of a single one, one is guessed, and of none none.
    for n in (5, 1, 0):
        few = mask(jax.random.key(0), tokens, where & (jnp.arange(80) < n)[None], rate=0.15, vocab_size=10)
        assert few.where.sum() == 50 * (n > 0)
        assert np.all(few.at[few.where] < n)


def test_only_chosen_words_count():
    table = jax.random.normal(jax.random.key(0), (10, 10))  # the scores at a place are a row of it
    tokens = jax.random.randint(jax.random.key(1), (3, 20), 4, 10, jnp.int32)
    where = jnp.arange(20)[None] < jnp.array([[20], [9], [2]])

    def apply(params, x, method, **_):
        return params[x] if method == "hidden" else x

    loss = masked_lm.make_loss(masked_lm.Config(), lm_runs.Model(None, apply, None, None, None, None), 10)
    key = jax.random.key(3)
    (total, weight), _ = loss(table, (), Window(tokens, None, None, where), key, train.Hyper())
    masked = mask(jax.random.split(key)[0], tokens, where, rate=0.15, vocab_size=10)
    nats = -np.asarray(jax.nn.log_softmax(table))[np.asarray(masked.tokens)]
    rows, k = np.nonzero(masked.where)
    at = np.asarray(masked.at)[rows, k]
    np.testing.assert_allclose(total, nats[rows, at, np.asarray(tokens)[rows, at]].sum(), rtol=1e-5)
    assert float(weight) == len(rows) == 3 + 1 + 1


def test_layers_learn_more_slowly_downwards_and_thaw_in_turn():
    params = {"out": jnp.ones(2), "trunk": {"embed": jnp.ones(2), "g": jnp.ones(2), "layers": {0: jnp.ones(2)}}}
    grads = jax.tree.map(jnp.ones_like, params)
    for layer_lr in (0.5, 0.0):
        hyper = train.Hyper(lr=1.0, b1=0.0, clip=np.inf, layer_lr=layer_lr)
        optimizer = train.make_optimizer("sgd", then=trunk_runs.layer_factors(2))(hyper)
        state, moved = optimizer.init(params), []
        for _ in range(5):
            updates, state = optimizer.update(grads, state, params)
            moved.append([-float(update[0]) for update in jax.tree.leaves(updates)])
        # head, embeddings, norm, layer: groups 0, 2, 1, 1
        top, low = layer_lr, layer_lr**2
        assert moved == [[1, 0, 0, 0]] * 2 + [[1, 0, top, top]] * 2 + [[1, low, top, top]]


# --- texts


def test_words_are_cut_as_the_language_model_cuts_their_text():
    words = ("Don't", "stop", ",", "New-York", "é", "10%", "x")
    text = " ".join(words)
    for kind in ("char", "byte", "word", "space", "bpe"):
        tokenizer = train_tokenizer(kind, [text, "\n low"], max_size=300 if kind == "bpe" else None)
        trunk = Trunk(TransformerConfig(), tokenizer, False, tuple(tokenizer.encode("\n").tolist()))
        ((ids, ends), (nothing, no_ends)) = cut(trunk, [words, ()])
        np.testing.assert_array_equal(ids, tokenizer.encode("\n" + text))
        upto = [len(tokenizer.encode("\n" + " ".join(words[: i + 1]))) - 1 for i in range(len(words))]
        np.testing.assert_array_equal(ends, upto)
        assert (len(nothing), len(no_ends)) == (1, 0)
        short = trunk._replace(config=TransformerConfig(context=3, positions="learned"), lower=True)
        ((ids, ends),) = cut(short, [words])
        np.testing.assert_array_equal(ids, tokenizer.encode("\n" + text.lower())[:3])
        assert max(ends) == 2
    assert not trunk_runs._has_capitals(train_tokenizer("char", ["abc é"]))
    assert trunk_runs._has_capitals(train_tokenizer("word", ["abc Ab"]))
    assert not trunk_runs._has_capitals(train_tokenizer("bpe", ["low low lowest"], max_size=263))


# --- runs

ASKED = {"WHO": "who saw", "WHERE": "where is"}
THINGS = ("rome", "tea", "oslo", "ann", "bob", "milk", "gold", "snow", "wine", "salt", "iron", "corn")
TEXTS = {f"{kind} {ask} {thing} now": kind for kind, ask in ASKED.items() for thing in THINGS}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The working directory: questions, and a comparison on them. Equal models are compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("finetuned"))
        steps, make_step = {}, text_runs.make_step

        def make_once(config, task, model):
            return steps.setdefault((config.hyper.layer_lr == 0, model), make_step(config, task, model))

        patch.setattr(text_runs, "make_step", make_once)
        # What other tests test, and what takes time.
        for module in (lm_runs, text_runs):
            patch.setattr(module, "start", lambda init, config, *_, **__: init(jax.random.key(config.seed)))
        for module, name in ((lm_runs, "show_samples"), (classify, "confusion_map"), (train, "learning_curve")):
            patch.setattr(module, name, lambda *_, **__: None)
        lines = [f"{kind} {text.partition(' ')[2]}\n" for text, kind in TEXTS.items()]
        Path("train.txt").write_text("".join(lines[:10] + lines[12:22]))
        Path("test.txt").write_text("".join(lines[10:12] + lines[22:]))
        assert main(pretrain_finetune, *COMPARE, "--run", "compared") == 0
        yield Path("compared")


DATA = ("--classify.data.path", ".", "--classify.data.train", "train.txt", "--classify.data.test", "test.txt")
COMPARE = (
    *("smoke", *DATA, "--classify.data.labelled", "0.5", "--classify.data.validation_share", "0.33"),
    *("--classify.batches.rows", "8", "--classify.head.d_head", "0"),
    *("--word_lm.data.tokenizer", "bpe", "--word_lm.data.min_count", "1", "--word_lm.data.max_size", "290"),
    *("--word_lm.batch_size", "2", "--word_lm.window", "4"),
)


def main(experiment, *words):
    return experiment.main([str(word) for word in words])


def test_everything_is_compared_in_one_command(workplace, capsys):
    summary = json.loads((workplace / "summary.json").read_text())
    own = {name: [json.loads((workplace / f"{name}-{i}/summary.json").read_text())["accuracy_test"] for i in range(2)]
           for name in ("finetuned", "scratch", "plain")}  # fmt: skip
    of = summary["accuracy_test"]
    assert {kind: values["mean"] for kind, values in of.items()} == pytest.approx(
        {kind: np.mean(values) for kind, values in own.items()}
    )
    for kind in ("scratch", "plain"):
        assert of[kind]["difference"] == pytest.approx(np.mean(own["finetuned"]) - np.mean(own[kind]))
    configs = {name: read_config(workplace / name, classify.Config) for name in ("finetuned-1", "scratch-1", "plain-1")}
    assert all(config.data.draw == config.seed == 1 for config in configs.values())
    assert [config.start_random for config in configs.values()] == [False, True, False]
    assert configs["plain-1"].start is None
    corpora = [text_corpora.load_corpus(workplace / name)["train"] for name in configs]
    assert corpora[0] == corpora[1] == corpora[2]
    assert corpora[0] != text_corpora.load_corpus(workplace / "finetuned-0")["train"]
    lines = (workplace / "text/train.txt").read_text().splitlines()
    assert not {*lines} & {line.partition(" ")[2] for line in Path("test.txt").read_text().splitlines()}
    assert main(pretrain_finetune, "--run", workplace, "--resume") == 0  # all is there
    assert "\n2 seeds" in capsys.readouterr().out


def test_a_run_begins_with_what_the_language_model_has_learned_and_needs_it_no_more(workplace, capsys):
    config = read_config(workplace / "finetuned-0", classify.Config)
    *_, learned = lm_runs.load(workplace / "lm", word_lm.Config)
    for random in (False, True):
        of = replace(config, start_random=random)
        params = flatten(classify.setup(of, workplace / "finetuned-0").init(jax.random.key(0)).params)
        for name, w in flatten(learned).items():
            assert np.array_equal(params[f"trunk.{name}"], w) != random
    shutil.move(workplace / "lm", "elsewhere")
    assert main(classify, "evaluate", "--run", workplace / "finetuned-0") == 0
    assert main(classify, "predict", "--run", workplace / "finetuned-0", "--text", "who saw iron") == 0
    assert main(classify, "--run", workplace / "finetuned-0", "--resume") == 0
    shutil.move("elsewhere", workplace / "lm")
    capsys.readouterr()
    assert main(classify, "smoke", "--start", workplace / "finetuned-0") == 2
    assert "this is a run of 'classify'; give one of char_lm, word_lm" in capsys.readouterr().err


def test_subwords_below_words(workplace, capsys):
    rows = [text.split()[1:] for text in TEXTS]
    content = "\n".join("".join(f"{word} {'B-X' if i == 2 else 'O'}\n" for i, word in enumerate(row)) for row in rows)
    Path("data.conll").write_text(content)
    words = ("--data.path", ".", "--data.format", "conll", "--data.train", "data.conll", "--data.test", "data.conll")
    words += ("--loop.steps", "2", "--loop.eval_every", "2", "--data.labelled", "0.5")
    words += ("--model.output", "softmax", "--model.letters", "none", "--data.scheme", "BIO")
    assert main(tag, "smoke", *words, "--start", workplace / "lm", "--hyper.layer_lr", "0", "--run", "tagged") == 0
    predictor = text_runs.load(Path("tagged"), tag.TASK)
    *_, learned = lm_runs.load(workplace / "lm", word_lm.Config)
    trained = flatten(predictor.params["trunk"])
    jax.tree.map(np.testing.assert_array_equal, trained, {k: v for k, v in flatten(learned).items() if k in trained})
    words, tokens = predictor.shapes[0][1:]
    assert words == 4 < tokens
    shutil.rmtree(workplace / "lm")
    capsys.readouterr()
    assert main(tag, "predict", "--run", "tagged", "--text", "who saw Rome") == 0
    assert isinstance(predictor.texts, Texts)
    with pytest.raises(InputError, match=r"data.labelled=0; it must be above 0"):
        tag.Data(labelled=0)
    assert len(text_corpora.labelled(tag.Data(labelled=0.5), [Example((str(i),), ()) for i in range(9)])) == 4
