"""Question answering: the two readers against plain loops, and the experiment from the command line."""

import contextlib
import io
import itertools
import json
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import seqjax
from experiments import answer, answer_runs, answer_tasks
from experiments.answer_tasks import Question
from seqjax import export, nn, train
from seqjax.checkpoint import Checkpoints
from seqjax.metrics import squad_scores
from seqjax.models import span_reader, story_reader
from seqjax.models.span_reader import SpanReader, SpanReaderConfig, Spans, Words
from seqjax.models.story_reader import StoryReader, StoryReaderConfig
from tests import oracles

V, F = 9, 2
CONFIGS = {
    "spans": SpanReaderConfig("min_gru", d_embed=3, d_char=2, n_filters=3, width=2, d_hidden=4),
    "memory": StoryReaderConfig(d_embed=3, n_hops=2, longest=3),
    "recurrent": StoryReaderConfig(d_embed=3, n_hops=0, cell="elman", d_hidden=4),
}


def make(name):
    config = CONFIGS[name]
    more = (SpanReader, V, F) if name == "spans" else (StoryReader, V)
    return lambda key: more[0](config, *more[1:], rngs=nnx.Rngs(key))


@cache
def model(name):
    """A reader and random weights in float64."""
    init, apply = seqjax.purify(make(name))
    params = oracles.random_like(np.random.default_rng(0), jax.eval_shape(init, jax.random.key(0)), 0.5)
    params = jax.tree.map(lambda a: a.astype(np.float64), params)
    return SimpleNamespace(params=params, raw=apply, apply=jax.jit(partial(apply, params)))


def words(rng, lengths, n, *, fill=0):
    """Texts with `fill` beyond their lengths."""
    b = len(lengths)
    used = np.arange(n) < np.array(lengths)[:, None]
    spelled = used[..., None] & (np.arange(4) < rng.integers(1, 5, (b, n, 1)))
    ids, forms = rng.integers(1, V, (b, n)), rng.integers(0, 3, (b, n, F))
    arrays = np.where(used, ids, fill), rng.integers(1, 9, (b, n, 4)) * spelled, np.where(used[..., None], forms, fill)
    return Words(*(jnp.asarray(a, jnp.int32) for a in (*arrays, lengths)))


# --- spans


@pytest.mark.fast
def test_the_best_span_is_that_of_all_pairs():
    rng = np.random.default_rng(1)
    starts, ends = rng.normal(size=(2, 5, 6)).astype(np.float32)
    starts[0, 3:] = ends[0, 3:] = span_reader.NEVER
    for longest in (1, 3, 9):
        found = jax.jit(partial(span_reader.best_spans, longest=longest))(starts, ends)
        for row, (first, last, score) in enumerate(zip(*found, strict=True)):
            pairs = {(i, j): starts[row, i] + ends[row, j] for i in range(6) for j in range(i, min(i + longest, 6))}
            assert (int(first), int(last)) == max(pairs, key=pairs.__getitem__)
            assert float(score) == max(pairs.values())


def test_the_loss_counts_all_occurrences_and_no_row_without_any():
    rng = np.random.default_rng(2)
    z, places = rng.normal(size=(2, 3, 4)).astype(np.float32), rng.random((2, 3, 4)) < 0.5
    z[:, :, 3], places[:, :, 3], places[0, 1], places[:, 0, 0] = span_reader.NEVER, False, False, True
    loss = jax.jit(
        jax.value_and_grad(lambda z, *places: span_reader.span_loss(Spans(*z, np.zeros(())), *places), has_aux=True)
    )
    (total, weight), slope = loss(z, *places)
    rows = [row for row in range(3) if places[0, row].any() and places[1, row].any()]
    expected, slopes = 0.0, np.zeros(z.shape)
    for side, row in itertools.product(range(2), rows):
        chance = np.exp(z[side, row].astype(np.float64))
        right = chance * places[side, row]
        expected -= np.log(right.sum() / chance.sum())
        slopes[side, row] = chance / chance.sum() - right / right.sum()
    assert weight == len(rows) < 3
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(slope, slopes, rtol=1e-5, atol=1e-6)
    z[:], places[:] = span_reader.NEVER, False  # no text at all
    (total, weight), slope = loss(z, *places)
    assert (total, weight) == (0, 0)
    assert not slope.any()


LENGTHS = (4, 2, 0), (3, 1, 2)


@pytest.mark.fast
def test_scores_of_spans_are_those_of_plain_loops_over_one_text_without_padding(x64, key):
    rng, m = np.random.default_rng(4), model("spans")
    text, question = (words(rng, lengths, n, fill=7) for lengths, n in zip(LENGTHS, (5, 4), strict=True))
    # One program for all: at rate 0 nothing is dropped.
    found, p = m.apply(text, question, dropout=jnp.asarray(0.0), key=key), jax.tree.map(np.asarray, m.params)

    def dense(name, x):
        return x @ p[name]["w"] + p[name]["b"]

    def both_ways(name, xs):
        sides = []
        for half, turn in zip(p[name]["layers"][0], (1, -1), strict=True):
            carry, ys = {"h": np.zeros(2)}, []
            for x in np.array(xs)[::turn]:
                carry, y = oracles.min_gru(half._asdict(), carry, x)
                ys.append(y)
            sides.append(ys[::turn])
        return np.concatenate(sides, axis=1)

    def softmax(z):
        return np.exp(z) / np.exp(z).sum()

    def embedded(ids, spelling):
        rows, (w, b) = [], p["filters"]
        for word, letters in zip(ids.tolist(), spelling.tolist(), strict=True):
            letters = [np.zeros(2), *(p["bytes"]["w"][i] for i in letters if i), np.zeros(2)]
            seen = np.max([x @ w[0] + y @ w[1] for x, y in itertools.pairwise(letters)], axis=0)
            rows.append(np.concatenate([p["words"]["w"][word], np.maximum(seen + b, 0)]))
        return np.array(rows)

    def met(forms, others):
        return np.array([[f in others[:, i] for i, f in enumerate(word)] for word in forms], float)

    for row, (n, n_asked) in enumerate(zip(*LENGTHS, strict=True)):
        assert np.all(found.starts[row, n:] == span_reader.NEVER)
        assert np.all(found.ends[row, n:] == span_reader.NEVER)
        if n == 0:
            continue
        ids, spelling, forms = (a[row, :n] for a in text[:3])
        ids_asked, spelling_asked, forms_asked = (a[row, :n_asked] for a in question[:3])
        xs, qs = embedded(ids, spelling), embedded(ids_asked, spelling_asked)
        left, right = (np.maximum(dense("align", a), 0) for a in (xs, qs))
        aligned = [softmax(right @ x) @ qs for x in left]
        h = both_ways("read_text", np.concatenate([xs, aligned, met(forms, forms_asked)], axis=1))
        k = both_ways("read_question", np.concatenate([qs, met(forms_asked, forms)], axis=1))
        z = [[(dense("w_text", a) + dense("w_question", b))[0] + np.sum(p["w_both"] * a * b) for b in k] for a in h]
        a, c = np.array([softmax(np.array(r)) @ k for r in z]), softmax(np.max(z, axis=1)) @ h
        g = np.maximum(dense("merge", np.concatenate([h, a, h * a, h * c], axis=1)), 0)
        m_start = both_ways("find_start", g)
        m_end = both_ways("find_end", np.concatenate([g, m_start], axis=1))
        np.testing.assert_allclose(found.starts[row, :n], dense("start", m_start)[:, 0], rtol=1e-9)
        np.testing.assert_allclose(found.ends[row, :n], dense("end", m_end)[:, 0], rtol=1e-9)
        np.testing.assert_allclose(found.attention[row, :n, :n_asked], [softmax(np.array(r)) for r in z], rtol=1e-9)
    dropped = m.apply(text, question, dropout=jnp.asarray(0.5), key=key)
    assert not np.allclose(dropped.starts, found.starts)


# --- stories


FACTS = jnp.array(
    [[[4, 5, 0], [6, 7, 8], [0, 0, 0], [0, 0, 0]], [[3, 3, 4], [5, 0, 0], [6, 4, 1], [2, 8, 0]]], jnp.int32
)
ASKED = jnp.array([[4, 8], [5, 0]], jnp.int32)


@pytest.mark.parametrize("name", ["memory", "recurrent"])
def test_a_reader_of_stories_answers_alike_in_whatever_batch(x64, name):
    m = model(name)
    together = m.apply(FACTS, ASKED)
    wide = jnp.pad(FACTS, ((0, 0), (0, 1), (0, 2))), jnp.pad(ASKED, ((0, 0), (0, 3)))
    for row in range(2):
        alone = m.apply(*(a[row : row + 1] for a in wide))
        np.testing.assert_allclose(alone.logits[0], together.logits[row], rtol=1e-9)
        np.testing.assert_allclose(alone.attention[0, :, :4], together.attention[row], rtol=1e-9, atol=1e-12)


@pytest.mark.fast
@pytest.mark.parametrize("linear", [False, True])
def test_a_memory_network_is_that_of_plain_loops(x64, linear):
    m = model("memory")
    found, p = m.apply(FACTS, ASKED, linear=jnp.asarray(linear)), jax.tree.map(np.asarray, m.params)

    def bag(table, tokens):
        tokens, total = [i for i in tokens if i], np.zeros(3)
        for j, token in enumerate(tokens, start=1):
            for d in range(3):
                share = 1 - j / len(tokens) - (d + 1) / 3 * (1 - 2 * j / len(tokens))
                total[d] += share * p["words"][table]["w"][token, d]
        return total

    for row in range(2):
        facts = [fact for fact in FACTS[row].tolist() if any(fact)]
        age = [min(len(facts) - 1 - i, 2) for i in range(len(facts))]
        memory = [
            np.array([bag(k, fact) + p["ages"][k]["w"][a] for fact, a in zip(facts, age, strict=True)])
            for k in range(3)
        ]
        u = bag(0, ASKED[row].tolist())
        for k in range(2):
            z = memory[k] @ u
            weights = z if linear else np.exp(z) / np.exp(z).sum()
            np.testing.assert_allclose(found.attention[row, k, : len(facts)], weights, rtol=1e-9)
            u = u + weights @ memory[k + 1]
        np.testing.assert_allclose(found.logits[row], p["words"][2]["w"] @ u, rtol=1e-9)


def test_dropout_and_noise_need_a_key(x64, key):
    m, plain = model("memory"), model("memory").apply(FACTS, ASKED).logits
    run = jax.jit(lambda rate, key: m.raw(m.params, FACTS, ASKED, dropout=rate, key=key).logits)
    np.testing.assert_array_equal(run(0.5, None), plain)
    assert not np.allclose(run(0.0, key), plain)  # noise
    assert not np.allclose(run(0.5, key), run(0.0, key))


@pytest.mark.parametrize("name", CONFIGS)
def test_all_parameters_have_axes(name):
    assert set(nn.logical_axes(make(name))) == set(jax.eval_shape(seqjax.purify(make(name))[0], jax.random.key(0)))


# --- the experiment


def main(*arguments):
    return answer.main([str(word) for word in arguments])


RUNS = {
    "smoke": (),
    # Compiled sooner than others; its pictures are drawn as those of the other.
    "smoke_spans": ("--model.cell", "min_gru", "--model.n_filters", "0", "--report.maps", "0"),
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The working directory with a run of each reader; what they printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("answer"))
        patch.setattr(train, "learning_curve", lambda directory: None)  # drawn in other tests
        out = {}
        for preset in RUNS:
            with contextlib.redirect_stdout(io.StringIO()) as stream:
                assert main("train", preset, *RUNS[preset], "--run", f"runs/answer/{preset}") == 0
            out[preset] = stream.getvalue()
        yield out


@pytest.mark.parametrize("preset", RUNS)
def test_a_run_answers_the_test_questions(printed, capsys, preset):
    directory = Path("runs/answer") / preset
    summary = json.loads((directory / "summary.json").read_text())
    predictions = json.loads((directory / "predictions.json").read_text())
    questions = answer.corpus(answer.Data(limit=40))["test"]
    scores = squad_scores([predictions[q.id] for q in questions], [q.answers for q in questions])
    assert (summary["exact_match_test"], summary["f1_test"]) == (scores.exact_match, scores.f1)
    assert {"loss_validation", "accuracy_validation", "f1_validation"} <= set(summary)
    assert (directory / "attention").exists() == (preset == "smoke")
    assert "right: " in printed[preset]
    assert main("evaluate", "--run", directory, "--split", "test") == 0
    assert f"exact_match {scores.exact_match:.4f}" in capsys.readouterr().out


@pytest.mark.usefixtures("printed")
@pytest.mark.parametrize("preset", RUNS)
def test_training_reaches_every_parameter(preset):
    config, reader = answer_runs.load(Path("runs/answer") / preset, answer.Config)
    template = jax.eval_shape(partial(answer_runs.initial, config, reader.task), jax.random.key(0))
    with Checkpoints(Path("runs/answer") / preset / "checkpoints") as checkpoints:
        squares = optax.tree.get(checkpoints.restore(template).tree.opt_state, "nu")  # of gradients
    still = [
        jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(squares) if not leaf.any()
    ]
    # A bias that is added to all scores of a softmax has no gradient.
    assert all(name.endswith("['b']") for name in still)


@pytest.mark.usefixtures("printed")
@pytest.mark.parametrize("preset", RUNS)
def test_predict_says_where_it_looked(capsys, monkeypatch, preset):
    directory = Path("runs/answer") / preset
    story = "Mary went to the garden.\nJohn went to the office."
    asked = "--run", directory, "--question", "Where is Mary?"
    assert main("predict", *asked, "--text", story, "--map", "map.png") == 0
    given = capsys.readouterr().out
    first = given.splitlines()[0].split("  ")[0]
    assert first in story if preset == "smoke_spans" else " " not in first
    assert Path("map.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((story + "\n").encode())))
    assert main("predict", *asked) == 0
    assert capsys.readouterr().out == given
    assert main("predict", *asked, "--text", " ") == 2
    assert "must not be empty" in capsys.readouterr().err


@pytest.mark.usefixtures("printed")
@pytest.mark.parametrize("preset", RUNS)
def test_what_is_longer_than_in_training_is_read(preset):
    _, reader = answer_runs.load(Path("runs/answer") / preset, answer.Config)
    asked = partial(Question, "", "Mary went to the garden and then on", answers=(), group="")
    assert not answer_runs.is_cut(reader, asked("Where is Mary right now after all of this ?"))
    assert answer_runs.is_cut(reader, asked("Where " * 33))


@pytest.mark.usefixtures("printed")
@pytest.mark.parametrize("preset", RUNS)
def test_a_bundle_answers_as_the_run_does(capsys, preset):
    directory = Path("runs/answer") / preset
    assert main("export", "--run", directory) == 0
    assert "wrote" in capsys.readouterr().out
    bundle = export.load_bundle(directory / "bundle")
    config, reader = answer_runs.load(directory, answer.Config)
    encoded = reader.task.encode(answer.corpus(config.data)["test"][:3])
    batch = encoded.collate(np.arange(3), (3, *encoded.lengths.max(0).tolist()))
    found, _ = reader.task.read(reader.params, batch)
    if preset == "smoke":
        logits, attention = bundle.functions["apply"](bundle.params, batch.facts, batch.question)
        np.testing.assert_array_equal(logits.argmax(1), found.answer)
        np.testing.assert_allclose(attention, found.attention, rtol=1e-5)
    else:
        asked = batch.text._asdict(), batch.question._asdict()
        first, last, score = bundle.functions["spans"](bundle.params, *asked)
        np.testing.assert_array_equal([first, last], [found.first, found.last])
        np.testing.assert_allclose(score, found.score, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("babi1", "data.source='babi' needs --data.path"),
        ("squad --data.path .", "one file must be named train*.json*, there is none"),
        ("babi1 --data.source squad", "take a preset with a reader of spans"),
        ("--data.validation 1", "data.validation=1.0; it must be above 0 and below 1"),
        ("--batches.max_answer 0", "batches.max_answer=0; it must be at least 1"),
        ("--report.questions 0", "report.questions=0; it must be at least 1"),
        ("--linear_steps -1", "linear_steps=-1; it must be at least 0"),
        ("--model.noise 1", "model.noise=1.0; it must be at least 0 and below 1"),
        ("squad --model.d_hidden 3", "model.d_hidden=3: two directions have half of it each"),
    ],
)
def test_what_cannot_be_is_refused(capsys, arguments, message):
    assert main("train", *(arguments if arguments[0] != "-" else f"stories {arguments}").split()) == 2
    assert message in capsys.readouterr().err


def test_questions_of_a_story_or_an_article_are_in_one_split(tmp_path):
    line = "1 Mary went to the {}.\n2 Where is Mary?\t{}\t1\n3 John went to the hall.\n4 Where is John?\thall\t3\n"
    places = [f"place{i}" for i in range(30)]
    (tmp_path / "qa1_x_train.txt").write_text("".join(line.format(place, place) for place in places))
    (tmp_path / "qa1_x_test.txt").write_text(line.format("attic", "attic"))
    stories = answer.corpus(answer.Data("babi", tmp_path, validation=0.3))
    assert [len(stories[split]) for split in ("train", "validation")] == [48, 12]
    assert stories["test"][1] == Question(
        "1", "Mary went to the attic.\nJohn went to the hall.", "Where is John?", ("hall",), "0"
    )
    asked = {"id": "a", "question": "Who?", "answers": [{"text": "Mary", "answer_start": 0}]}
    articles = [{"title": str(i), "paragraphs": [{"context": "Mary sat.", "qas": [asked]}]} for i in range(9)]
    for split in ("train", "dev"):
        (tmp_path / f"{split}-v1.1.json").write_text(json.dumps({"data": articles}))
    articles = answer.corpus(answer.Data("squad", tmp_path, validation=0.3))
    assert articles["test"][0] == Question("a", "Mary sat.", "Who?", ("Mary",), "0")
    for found in (stories, articles):
        train_groups, validation_groups = ({q.group for q in found[split]} for split in ("train", "validation"))
        assert train_groups
        assert validation_groups
        assert not train_groups & validation_groups


def test_the_order_of_the_questions_changes_no_word_of_the_vocabulary(tmp_path):
    config, found = answer.PRESETS["smoke"][1], []
    for turn in (1, -1):
        corpus = {"train": answer.simulated(5, seed=0)[::turn]}
        (tmp_path / str(turn)).mkdir()
        found.append(answer_runs.vocabulary(config, tmp_path / str(turn), corpus).vocab)
    assert set(found[0]) == set(found[1])
    assert {"kitchen", "mary", "?"} <= set(found[0])


def test_spans_are_encoded_by_all_places_of_the_answer():
    question = Question("", "A cat saw a cat's Tail. CATS!", "Whose tail?", ("cat", "Tail"), "")
    tokenizer = seqjax.text.train_tokenizer("space", [answer_tasks.clean(question.text)])
    encoded = answer_tasks.encode_spans(tokenizer, 3, [question])
    assert encoded.lengths.tolist() == [[11, 3]]
    batch = encoded.collate(np.array([0]), (2, 6, 4))
    assert batch.starts.tolist() == batch.ends.tolist() == [[False, True, False, False, True, False], [False] * 6]
    assert batch.text.lengths.tolist() == [6, 0]
    assert [bytes(word).decode() for word in batch.text.spelling[0, :2].tolist()] == ["A\0\0", "cat"]
    ids = [tokenizer.vocab[i] for i in batch.text.ids[0].tolist()]
    assert ids == ["a", "cat", "saw", "a", "cat", "'"]
    whole = encoded.collate(np.array([0]), (1, 11, 4))
    met = span_reader.same(*map(jnp.asarray, (whole.question.forms, whole.text.forms)), jnp.ones((1, 11), bool))
    assert met[0, :3].tolist() == [[False] * 3, [False, True, True], [False] * 3]


def test_simulated_stories_have_their_answers_in_the_facts():
    for question in answer.simulated(20, seed=3):
        facts, asked = question.text.splitlines(), question.question.removeprefix("Where is ").removesuffix("?")
        who = asked
        if asked.startswith("the "):
            [who] = [fact.split()[0] for fact in facts if fact.endswith(f" took {asked}.")]
        walks = [fact for fact in facts if fact.startswith(f"{who} went ")]
        assert walks[-1] == f"{who} went to the {question.answers[0]}."
    assert story_reader.PAD == 0
