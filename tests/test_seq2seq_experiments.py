"""The experiments from sequence to sequence, from the command line: what they write, answer, refuse, and survive."""

import contextlib
import functools
import io
import json
import os
import shutil
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import g2p, seq2seq_runs, seq2seq_texts, seq2seq_writer, summarise, toy_seq2seq, translate
from experiments.seq2seq_runs import Batching
from experiments.seq2seq_texts import Example, Texts
from experiments.seq2seq_writer import Model, Report, Search, Writer
from seqjax import decoding, export, train
from seqjax.caching import Shared
from seqjax.checkpoint import Checkpoints
from seqjax.config import write_config
from seqjax.data import cmudict, evaluation_batches
from seqjax.errors import InputError
from seqjax.models.transformer_seq2seq import TransformerSeq2SeqConfig
from seqjax.reporting import read_metrics
from seqjax.text import EOS, UNK, load_tokenizer, save_tokenizer, train_tokenizer

NAMES = [("hund", "dog"), ("wolf", "wolf"), ("fisch", "fish"), ("bär", "bear"), ("vogel", "bird"), ("löwe", "lion")]


def sentence(i, long):
    """A German sentence and its English translation."""
    (a, x), (b, y) = NAMES[i % 6], NAMES[i // 6 % 6]
    german, english = f"ein {a} sieht ein {b}", f"a {x} sees a {y}"
    return (german + f" und ein {b}" * 5, english + f" and a {y}" * 5) if long else (german, english)


PAIRS = {
    "train": [sentence(i, i % 2) for i in range(46)] + [("", "empty"), ("ein wolf und " * 20, "a wolf and " * 20)],
    "val": [sentence(i, i % 2) for i in range(46, 54)],
    "test": [sentence(i, i % 2) for i in range(54, 62)],
}


def papers(n):
    """Lines of SciTLDR; the names of the nets are in no vocabulary."""
    for i in range(n):
        fields = {
            "title": f"Net{i}: a Network",
            "source": [f"We show Net{i}.", "It is a network, and it learns."],
            "target": [f"Net{i} learns.", "A network."],
        }
        yield json.dumps(fields) + "\n"


def write_corpora():
    """The corpora of translate and summarise in the working directory; the German files have Windows line ends."""
    Path("pairs").mkdir()
    for split, pairs in PAIRS.items():
        for i, (language, end) in enumerate({"de": "\r\n", "en": "\n"}.items()):
            content = "".join(pair[i] + end for pair in pairs)
            Path(f"pairs/{split}.{language}").write_bytes(content.encode())
    Path("papers").mkdir()
    for split, n in {"train": 30, "dev": 4, "test": 4}.items():
        Path(f"papers/{split}.jsonl").write_text("".join(papers(n)))


def main(experiment, *words):
    return experiment.main([str(word) for word in words])


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory):
    """The working directory. Equal models are compiled once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("seq2seq"))
        for module, name in (
            (seq2seq_runs, "build"),
            (seq2seq_runs, "make_loss"),
            (seq2seq_runs, "make_optimizer"),
            (train, "make_step"),
        ):
            patch.setattr(module, name, functools.cache(getattr(module, name)))
        write_corpora()
        with open(cmudict._file(), encoding="utf-8") as file:  # a twentieth of the dictionary
            Path("cmudict.dict").write_text("".join(file.readlines()[:6000]), encoding="utf-8")
        patch.setattr(cmudict, "_file", lambda: Path("cmudict.dict").absolute())
        yield


@contextlib.contextmanager
def compilations():
    """How often each function is compiled meanwhile, by its name."""
    names = Counter()

    def listener(event, _, fun_name="", **__):
        if event.endswith("backend_compile_duration"):
            names[fun_name.removeprefix("jit(").removesuffix(")")] += 1

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield names
    finally:
        jax.monitoring.clear_event_listeners()


TRANSLATE = ("smoke", "--data.path", "pairs", "--data.bpe_dropout", "0.1", "--loop.log_every", "5")


def trained(experiment, *words):
    """A run, what it printed and what it compiled."""
    run, printed = Path("runs") / experiment.NAME / "first", io.StringIO()
    with compilations() as compiled, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        assert main(experiment, *words, "--run", run) == 0
    return SimpleNamespace(
        run=run,
        printed=printed.getvalue(),
        compiled=compiled,
        summary=json.loads((run / "summary.json").read_text()),
        validation=[row for row in read_metrics(run / "metrics.jsonl") if row["split"] == "validation"],
        corpus=seq2seq_texts.load_corpus(run),
    )


@pytest.fixture(scope="module")
def translation():
    return trained(translate, *TRANSLATE)


@pytest.fixture(scope="module")
def spoken():
    words = "smoke --batches.max_source 14 --batches.max_target 13 --search.batch_size 16"
    return trained(g2p, *words.split())


@pytest.fixture(scope="module")
def summarised():
    return trained(summarise, "smoke", "--data.path", "papers", "--report.samples", 4)


@pytest.fixture(scope="module")
def stopped():
    """Nothing is learned, so that the second evaluation is as good as the first."""
    words = (
        "smoke --loop.eval_every 4 --loop.monitor bleu --loop.best highest --loop.patience 1 --hyper.lr 0 "
        "--search.batch_size 16 --batches.max_source 5 --batches.max_target 5 --report.samples 16"
    )
    return trained(toy_seq2seq, *words.split())


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


# --- what a run leaves

COMMON = {"loss", "perplexity", "accuracy"}


@pytest.mark.parametrize(
    ("name", "metrics", "tokenizers"),
    [
        ("translation", {"bleu", "bleu_tokenised", "chrf"}, {"source_tokenizer.json", "target_tokenizer.json"}),
        ("spoken", {"per", "wer"}, {"source_tokenizer.json", "target_tokenizer.json"}),
        ("summarised", {"rouge1", "rouge2", "rougeL"}, {"tokenizer.json"}),
        ("stopped", {"exact_match", "bleu"}, {"tokenizer.json"}),
    ],
)
def test_the_run_directory(name, metrics, tokenizers, request):
    made = request.getfixturevalue(name)
    run = made.run
    files = {"config.json", "metrics.jsonl", "checkpoints", "summary.json", "learning_curve.png", "tensorboard"}
    files |= {"corpus", "shapes.json", "predictions.txt", "attention"}
    assert {path.name for path in run.iterdir()} == files | tokenizers
    for row in made.validation:
        assert set(row) == COMMON | metrics | {"step", "split", "seconds"}
    splits = {f"{metric}_{split}" for metric in COMMON | metrics for split in ("validation", "test")}
    leads = {metric for metric in made.summary if metric.startswith("lead")}
    assert set(made.summary) == splits | leads
    assert bool(leads) == (name == "summarised")
    for metric in COMMON:  # of the same weights, with the right tokens before each
        assert made.summary[f"{metric}_validation"] == made.validation[-1][metric]
    assert {path.stem for path in (run / "corpus").iterdir()} == {"train", "validation", "test"}
    assert len(lines(run / "predictions.txt")) == len(made.corpus["test"])
    assert [path.name for path in (run / "attention").iterdir()] == ["0.png"]
    assert (run / "attention" / "0.png").read_bytes().startswith(b"\x89PNG")
    assert f"reference  {made.corpus['validation'][0].targets[0]}" in made.printed


def test_one_program_of_each_kind_for_each_shape(translation):
    n = len(json.loads((translation.run / "shapes.json").read_text()))
    assert n == 2
    # Validation and test have eight texts each, of both shapes; then one text is written alone, with its attention.
    expected = {"_update": n, "_evaluate_batch": n, "_greedy": n, "read": n + 1, "_search": n + 1}
    assert {name: translation.compiled[name] for name in expected} == expected
    _, writer = seq2seq_runs.load(translation.run, translate.Config)
    search, sources = Search(beam_size=2), [example.source for example in translation.corpus["test"]]
    first = writer.write(sources, search)
    with compilations() as compiled:
        again = writer.write(sources[::-1], search)[::-1]
    assert not compiled
    assert again == first
    assert lines(translation.run / "predictions.txt") == [best.text for (best,) in first]


def test_early_stopping_by_bleu(stopped):
    assert [row["step"] for row in stopped.validation] == [4, 8]
    assert "no bleu better than" in stopped.printed
    assert "of step 4 in 1 evaluations; stopped at step 8" in stopped.printed
    with Checkpoints(stopped.run / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [4, 8]


# --- evaluate


def evaluated(capsys, experiment, *words):
    """Metric -> what ``evaluate`` prints of it."""
    capsys.readouterr()
    assert main(experiment, "evaluate", *words) == 0
    pairs = capsys.readouterr().out.partition(": ")[2].split()
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


@pytest.mark.parametrize("name", ["translation", "spoken"])
def test_evaluate_prints_what_is_in_the_summary(name, request, capsys):
    made, experiment = request.getfixturevalue(name), {"translation": translate, "spoken": g2p}[name]
    for split in ("validation", "test"):
        found = evaluated(capsys, experiment, "--split", split)  # without --run, of the newest
        assert {f"{metric}_{split}": value for metric, value in found.items()} == {
            metric: f"{value:.4f}" for metric, value in made.summary.items() if metric.endswith(split)
        }


def test_evaluate_averages_and_overrides(translation, capsys):
    run, corpus = translation.run, translation.corpus
    config, writer = seq2seq_runs.load(run, translate.Config)
    template = seq2seq_runs.shapes_of(config, writer.model, writer.texts)
    with Checkpoints(run / "checkpoints") as checkpoints:
        saved = [checkpoints.restore(template, step=step).tree.params for step in (10, 20)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *saved)
    pairs = [writer.texts.encode(example) for example in corpus["test"]]
    loss = train.make_evaluate(seq2seq_runs.teacher_forced(writer.model, pairs, writer.shapes))(mean)["loss"]
    found = evaluated(capsys, translate, "--average", 2)
    assert float(found["loss"]) == pytest.approx(loss, abs=1e-4)
    assert found["loss"] != f"{translation.summary['loss_test']:.4f}"
    greedy = seq2seq_runs.measure(translate.TASK, writer, corpus["test"], Search(beam_size=1))
    found = evaluated(capsys, translate, "--search.beam_size", 1)
    assert {metric: found[metric] for metric in greedy} == {metric: f"{value:.4f}" for metric, value in greedy.items()}


def test_an_ensemble_is_the_mean_of_the_probabilities_of_its_runs(translation, tmp_path, capsys):
    run, again = translation.run, shutil.copytree(translation.run, tmp_path / "again")
    found = evaluated(capsys, translate, "--run", run, "--ensemble", again)
    assert {metric: float(found[metric]) for metric in ("loss", "bleu")} == pytest.approx(
        {metric: translation.summary[f"{metric}_test"] for metric in ("loss", "bleu")}, abs=1e-4
    )
    _, writer = seq2seq_runs.load_together((run, again), translate.Config)
    changed = jax.tree.map(lambda a: a.at[1].multiply(0.9), writer.params)
    batch = next(evaluation_batches([writer.texts.encode(e) for e in translation.corpus["test"]], writer.shapes))[1]
    fields = [jnp.asarray(a) for a in (batch.source, batch.source_lengths, batch.inputs)]
    model = seq2seq_runs.build(seq2seq_runs.load(run, translate.Config)[0].model, writer.texts)
    each = [model.apply(jax.tree.map(lambda a, i=i: a[i], changed), *fields) for i in (0, 1)]
    attention, logits = writer.model.apply(changed, *fields)
    np.testing.assert_allclose(attention, (each[0][0] + each[1][0]) / 2, rtol=1e-4, atol=1e-6)
    mean = (jax.nn.softmax(each[0][1]) + jax.nn.softmax(each[1][1])) / 2
    np.testing.assert_allclose(jnp.exp(logits), mean, rtol=1e-4, atol=1e-7)
    # Decoding shows the mean of the attention, too.
    (best,) = writer._replace(params=changed).write(["ein hund"], Search(beam_size=2), alignments=True)[0]
    np.testing.assert_allclose(best.attention.sum(axis=1), 1, rtol=1e-4)


# --- predict, interactive


def typed(monkeypatch, content):
    """Give the bytes to the standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_predict_keeps_lines_in_place(spoken, monkeypatch, capsys):
    sources = [example.source for example in spoken.corpus["test"]]
    expected = lines(spoken.run / "predictions.txt")
    assert len(set(expected)) > 50
    sources[3:3], expected[3:3] = ["", " "], ["", ""]
    content = "\r\n".join(sources).encode() + b"\r\n"
    Path("input.txt").write_bytes(content)
    assert main(g2p, "predict", "--run", spoken.run, "--input", "input.txt", "--output", "output.txt") == 0
    assert lines(Path("output.txt")) == expected
    typed(monkeypatch, content.removesuffix(b"\r\n").replace(b"\r\n", b"\n").upper())
    capsys.readouterr()
    assert main(g2p, "predict", "--run", spoken.run) == 0
    assert capsys.readouterr().out.splitlines() == expected
    typed(monkeypatch, b"")
    assert main(g2p, "predict", "--run", spoken.run) == 0
    assert capsys.readouterr().out == ""


def test_predict_cuts_with_a_warning_and_reads_every_character(translation, monkeypatch, capsys):
    strange = "ein Wal 🐋 sieht “日本”\u2028 und Ωμέγα\t№ 5"
    texts = seq2seq_texts.load_texts(translation.run)
    assert texts.source.decode(texts.source.encode(strange)) == strange
    long = "ein hund und " * 30
    content = "\n".join([strange, "ein hund", long, "", strange + long, long, "ein bär", "ein\rwolf"])
    typed(monkeypatch, content.encode())
    capsys.readouterr()
    assert main(translate, "predict", "--run", translation.run) == 0
    captured = capsys.readouterr()
    written = captured.out.split("\n")
    assert [bool(line) for line in written] == [True] * 3 + [False] + [True] * 4 + [False]
    assert captured.err == "warning: 4 of 8 sources are longer than 32 tokens and were cut\n"


def test_n_best_with_scores(spoken, monkeypatch, capsys):
    typed(monkeypatch, "\nñand\n".encode())  # the first letter is not in the dictionary
    capsys.readouterr()
    assert main(g2p, "predict", "--run", spoken.run, "--n_best", 3, "--scores") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows[:3] == [["0.0000", "0.0000", ""]] * 3
    assert len(rows) == 6
    scores, log_probs = ([float(row[i]) for row in rows[3:]] for i in (0, 1))
    assert scores == sorted(scores, reverse=True)
    assert len({text for _, _, text in rows[3:]}) == 3
    # The mean over tokens and <eos>, or without <eos> where a text was cut.
    for score, log_prob, (_, _, text) in zip(scores, log_probs, rows[3:], strict=True):
        assert any(score == pytest.approx(log_prob / (len(text.split()) + n), abs=1e-3) for n in (0, 1))


def test_export(spoken, capsys):
    """Into the run's own directory; a bundle reads a word and writes its sounds as the run does."""
    capsys.readouterr()
    assert main(g2p, "export", spoken.run) == 0
    assert capsys.readouterr().out.startswith(f"wrote {spoken.run / 'bundle'}:\n  apply.stablehlo ")
    bundle = export.load_bundle(spoken.run / "bundle")
    config, writer = seq2seq_runs.load(spoken.run, g2p.Config)
    assert bundle.tokenizers == {"source_tokenizer": writer.texts.source, "target_tokenizer": writer.texts.target}
    source = np.append(writer.texts.source.encode("word"), EOS)[None].astype(np.int32)
    lengths, length = np.array([source.size], np.int32), config.batches.max_target
    step, read = bundle.functions["step"], bundle.functions["read"](bundle.params, source, lengths)
    expected = writer.model.read(writer.params, source, lengths, max_length=length)
    ours, theirs = (
        decoding.greedy(*arguments, max_length=length, eos=EOS).tokens
        for arguments in ((step, bundle.params, *read), (writer.model.step, writer.params, *expected))
    )
    np.testing.assert_array_equal(ours, theirs)


def test_interactive(spoken, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("One\r\ntwo\n \nnever\n"))
    capsys.readouterr()
    assert main(g2p, "interactive", "--maps", "maps") == 0
    config, writer = seq2seq_runs.load(spoken.run, g2p.Config)
    assert capsys.readouterr().out.splitlines() == [
        writer.write([word], config.search, alignments=True)[0][0].text for word in ("one", "two")
    ]
    assert {path.name for path in Path("maps").iterdir()} == {"0.png", "1.png"}
    monkeypatch.setattr(sys, "stdin", io.StringIO("one"))  # ends without an empty line
    assert main(g2p, "interactive") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


# --- bad input: status 2, one line, and nothing left behind


@pytest.fixture
def one_line(capsys):
    """Run a command that must be refused; returns the line that says why."""

    def refused(experiment, *words):
        capsys.readouterr()
        assert main(experiment, *words) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return refused


@pytest.mark.parametrize(
    ("experiment", "words", "message"),
    [
        (translate, "smoke", "data.path: give a folder with train.de, train.en, val.de and so on"),
        (translate, "smoke --data.path nowhere", "nowhere: has no train files in both 'de' and 'en': tried train.de"),
        (translate, "smoke --data.path pairs --data.target fr", "pairs: has no train files in both 'de' and 'fr'"),
        (translate, "smoke --data.path uneven", "train.de has 3 lines and uneven/train.en has 2; give files that are"),
        (translate, "smoke --data.path empty", "the corpus has no pair for validation; give files that are not empty"),
        (translate, "smoke --data.path blank", "the corpus has no pair for train; give files that are not empty"),
        (translate, "smoke --data.path pairs --data.max_size 99", "max_size: 99 leaves no room beside the 4 special"),
        (translate, "gru --model.attention location --model.longest 9", "batches.max_source=64; this model has"),
        (summarise, "smoke", "data.path: give a folder with train.jsonl, dev.jsonl and test.jsonl"),
        (summarise, "smoke --data.path nowhere", "nowhere/train.jsonl: cannot read the papers"),
        (g2p, "smoke --warmup -1", "warmup=-1; it must be at least 0"),
        (toy_seq2seq, "smoke --data.shortest 9", "data.shortest=9, longest=4 and longest_test=None"),
        # Seen before the run is looked for, let alone loaded.
        (translate, "predict --n_best 0", "n_best=0; it must be at least 1"),
        (translate, "predict --search.beam_size 0", "beam_size=0; it must be at least 1"),
        (translate, "predict --input nowhere.txt", "nowhere.txt: cannot read the text"),
        (translate, "predict --output nowhere/x.txt", "output=nowhere/x.txt: no file can be written there"),
        (translate, "evaluate --average 0", "average=0; it must be at least 1"),
        (translate, "interactive --n_best 0", "n_best=0; it must be at least 1"),
        (translate, "export --max_length 0", "max_length=0; it must be at least 1"),
        (translate, "evaluate nowhere", "nowhere: No such file or directory; name a run directory"),
        (translate, "evaluate --run bare", "bare/source_tokenizer.json: cannot read the tokenizer"),
    ],
)
def test_refused(one_line, experiment, words, message):
    for folder in ("uneven", "empty", "blank", "bare"):
        Path(folder).mkdir(exist_ok=True)
    for language, n in (("de", 3), ("en", 2)):
        Path(f"uneven/train.{language}").write_text("a\n" * n)
        Path(f"empty/train.{language}").write_text("a\n")
        Path(f"empty/val.{language}").write_text("")
        Path(f"blank/train.{language}").write_text(" \n" if language == "de" else "a\n")
        Path(f"blank/val.{language}").write_text("a\n")
    write_config(Path("bare"), "translate", translate.PRESETS["smoke"][1], [])
    before = sorted(Path("runs").glob("*/*"))
    assert message in one_line(experiment, *words.split())
    assert sorted(Path("runs").glob("*/*")) == before


LEARNED = TransformerSeq2SeqConfig(positions="learned", context=50)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: translate.Data(bpe_dropout=1.0), "bpe_dropout=1.0; it must be below 1"),
        (lambda: translate.Data(tokenizer="word", bpe_dropout=0.1), "bpe_dropout=0.1; it must be below 1, and 0 for"),
        (lambda: translate.Config(model=LEARNED), "max_length reach 64; this model has learned positions for 50"),
        (lambda: g2p.Config(model=LEARNED, search=Search(max_length=51)), "max_length reach 51; this model"),
        (lambda: Batching(tokens=0), "tokens=0; it must be at least 1"),
        (lambda: Batching(max_target=1), "max_target=1; it must be at least 2"),
        (lambda: Search(beam_size=0), "beam_size=0; it must be at least 1"),
        (lambda: Search(max_length=0), "max_length=0; it must be at least 1"),
        (lambda: Search(coverage_penalty=-1.0), "coverage_penalty=-1.0; it must be at least 0"),
        (lambda: Search(repetition_penalty=0.0), "repetition_penalty=0.0; it must be above 0"),
        (lambda: Search(temperature=-1.0), "temperature=-1.0; it must be at least 0"),
        (lambda: Report(texts=0), "report.texts=0; it must be at least 1"),
        (lambda: g2p.Data(limit=0), "data.limit=0; it must be at least 1"),
        (lambda: toy_seq2seq.draw(toy_seq2seq.Data(pairs=20, longest=1), 0), "no other sequences to test on"),
    ],
)
def test_configurations_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.fixture
def copied(translation, tmp_path):
    """A copy of the run on translations, to be damaged."""
    return Path(shutil.copytree(translation.run, tmp_path / "copy"))


def test_a_split_that_is_not_there(copied, one_line):
    (copied / "corpus" / "test.jsonl").unlink()
    assert "split='test': this corpus has train, validation" in one_line(translate, "evaluate", "--run", copied)


def test_no_checkpoint(copied, one_line):
    shutil.rmtree(copied / "checkpoints")
    assert f"{copied} holds no checkpoint yet" in one_line(translate, "evaluate", "--run", copied)


@pytest.mark.parametrize("size", ["other", "same"])
def test_another_vocabulary_is_refused(copied, one_line, size):
    path = copied / "target_tokenizer.json"
    own = load_tokenizer(path)
    text = "zzzz yyyy xxxx wwww " * 9 if size == "same" else "zz"
    other = train_tokenizer("bpe", [text], max_size=own.vocab_size)
    while size == "same" and other.vocab_size < own.vocab_size:  # merges of three letters and so on
        text += f"{text[-4:]}{other.vocab_size:o} " * 9
        other = train_tokenizer("bpe", [text], max_size=own.vocab_size)
    assert (other.vocab_size == own.vocab_size) == (size == "same")
    save_tokenizer(other, path)
    message = "the vocabulary is not the one" if size == "same" else "config.json and the tokenizer files are not those"
    for words in (("evaluate",), ("--resume",)):
        assert message in one_line(translate, *words, "--run", copied)


def test_an_ensemble_of_other_models_is_refused(translation, copied, one_line):
    path = copied / "config.json"
    config = json.loads(path.read_text())
    config["config"]["model"]["positions"] = "alibi"  # the same weights, but another model
    path.write_text(json.dumps(config))
    refused = one_line(translate, "evaluate", "--run", translation.run, "--ensemble", copied)
    assert f"ensemble={copied}: its model or its vocabulary is not that of {translation.run}" in refused


# --- stop and resume


def test_a_stopped_run_goes_on_with_the_same_bits(translation, tmp_path, monkeypatch, capsys):
    run, batches = tmp_path / "run", seq2seq_runs.batches

    def until_sigterm(*arguments, **options):
        for number, batch in enumerate(batches(*arguments, **options)):
            if number == 7:  # in the second epoch, whose subwords are others
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(seq2seq_runs, "batches", until_sigterm)
        with pytest.raises(SystemExit) as stopped:
            main(translate, *TRANSLATE, "--run", run)
    assert stopped.value.code == 143
    assert "saved at step 8, go on with --resume" in capsys.readouterr().out
    assert not (run / "summary.json").exists()
    assert main(translate, "--run", run, "--resume") == 0

    def rows(directory):
        return [{**row, "seconds": None} for row in read_metrics(directory / "metrics.jsonl")]

    assert rows(run) == rows(translation.run)
    for name in ("summary.json", "predictions.txt", "shapes.json", "target_tokenizer.json"):
        assert (run / name).read_bytes() == (translation.run / name).read_bytes()
    params = [seq2seq_runs.load(directory, translate.Config)[1].params for directory in (run, translation.run)]
    jax.tree.map(np.testing.assert_array_equal, *params)


# --- texts, and how they are written


def copying_texts(n_extra):
    return Texts(*[train_tokenizer("space", ["we show that nets learn"])] * 2, n_extra)


@pytest.mark.fast
def test_unknown_words_of_a_source_have_ids_of_their_own():
    texts = copying_texts(2)
    v = texts.source.vocab_size
    we, nets = (texts.source.vocab.index(word) for word in ("we", "nets"))
    example = Example("we  foo nets <eos> foo bar", ("bar nets foo", "<eos> we"))
    source, target = texts.encode(example)
    assert source.tolist() == [we, v, nets, v + 1, v, UNK]  # there are ids for two words
    assert target.tolist() == [UNK, nets, v]
    assert source.dtype == target.dtype == np.int32
    assert texts.encode(example, which=1)[1].tolist() == [v + 1, we]
    assert texts.encode(Example("foo", ("bar foo",)))[1].tolist() == [UNK, v]  # only words of the source
    assert texts.decode(source, example.source) == "we foo nets <eos> foo <unk>"
    assert texts.decode(np.array([v + 1, EOS, 0, 0]), example.source) == "<eos>"
    assert texts.decode(np.array([we, v + 1]), "we foo") == "we <unk>"  # where a model copies what is not there
    assert texts.read(example.source) == ["we", "foo", "nets", "<eos>", "foo", "<unk>", "<eos>"]
    assert copying_texts(0).encode(example)[0].tolist() == [we, UNK, nets, UNK, UNK, UNK]


def test_tokens_as_they_are_shown():
    bpe = train_tokenizer("bpe", ["für für"], max_size=265)
    assert Texts(bpe, bpe).read("für für日") == ["für", "·für", "æ", "Ĺ", "¥", "<eos>"]
    char = train_tokenizer("char", ["a b"])
    assert Texts(char, char).read("a b?") == ["a", "·", "b", "<unk>", "<eos>"]


class State(NamedTuple):
    place: jax.Array
    attention: jax.Array
    source: Shared


def copier(n_words):
    """A model that writes its source again, of n words in all; the likelier, the surer it is."""

    def look(state):
        shared = state.source.value
        source = jnp.repeat(shared, state.place.shape[0] // shared.shape[0], axis=0)
        attention = jax.nn.one_hot(state.place, source.shape[1])
        token = jnp.sum(jnp.where(attention > 0, source, 0), axis=1)
        return state._replace(attention=attention), 9 * jax.nn.one_hot(token, n_words)

    def read(params, source, lengths, max_length):
        source, place = jnp.asarray(source), jnp.zeros(source.shape[0], jnp.int32)
        return look(State(place, jnp.zeros(source.shape), Shared(source)))

    def step(params, state, tokens):
        return look(state._replace(place=state.place + 1))

    return Model(lambda key: (), lambda params: None, read, step, dict)


SOURCES = ["we show foo", "", "nets bar learn foo bar we show that", "bar", " \t", "that foo nets", "foo baz qux"]


@pytest.fixture(scope="module")
def writer():
    texts = copying_texts(2)
    return Writer(copier(texts.target.vocab_size + 2), (), texts, ((4, 4, 4), (2, 7, 9)))


SEARCHES = [Search(beam_size=3), Search(beam_size=1), Search(temperature=0.1)]


@pytest.mark.fast
@pytest.mark.parametrize("search", SEARCHES)
def test_writing_copies_words_of_each_source(writer, search, capsys):
    found = writer.write(SOURCES, replace(search, batch_size=4))
    assert capsys.readouterr().err == "warning: 1 of 7 sources are longer than 7 tokens and were cut\n"
    # What is cut ends with <eos>, too; of three unknown words two can be written.
    expected = ["we show foo", "", "nets bar learn foo bar we", "bar", "", "that foo nets"]
    assert [best.text for (best,) in found[:-1]] == expected
    assert found[-1][0].text.startswith("foo baz")
    assert "<unk>" not in found[-1][0].text
    assert [best.log_prob == 0 for (best,) in found] == [text == "" for text in [*expected, "foo"]]
    assert writer.write(SOURCES, replace(search, batch_size=4), quiet=True) == found
    assert capsys.readouterr().err == ""
    assert writer.write(["", " "], search) == [found[1], found[1]]


def test_n_best_are_sorted_and_as_many_for_every_line(writer):
    for search in SEARCHES:
        found = writer.write(SOURCES[:4], replace(search, beam_size=1), n_best=3, quiet=True)
        assert [len(texts) for texts in found] == [3] * 4
        assert [best.text for best, *_ in found] == ["we show foo", "", "nets bar learn foo bar we", "bar"]
        for texts in found:
            assert [h.score for h in texts] == sorted((h.score for h in texts), reverse=True)
    drawn = writer.write(SOURCES[:4], Search(temperature=9.0), n_best=2, quiet=True)
    assert drawn == writer.write(SOURCES[:4], Search(temperature=9.0), n_best=2, quiet=True)
    assert drawn != writer.write(SOURCES[:4], Search(temperature=9.0, seed=1), n_best=2, quiet=True)
    scores = [[h.score for h in texts] for texts in drawn]
    assert scores == [sorted(row, reverse=True) for row in scores]
    assert scores[2][0] > scores[2][1]


def test_batches_are_drawn_with_different_numbers(writer):
    drawn = writer.write(["we show foo"] * 4, Search(temperature=9.0, batch_size=1), quiet=True)
    assert len({best.text for (best,) in drawn}) == 4


def test_pictures_of_attention_and_samples(writer, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(seq2seq_writer, "attention_map", lambda *arguments: drawn.append(arguments))
    examples = [Example(source, ("a reference",)) for source in SOURCES]

    def show(maps, samples):
        drawn.clear()
        config = SimpleNamespace(search=SEARCHES[0], report=Report(maps=maps, samples=samples))
        seq2seq_writer.show(writer, examples, config, tmp_path)
        return [path.relative_to(tmp_path).as_posix() for *_, path in drawn], capsys.readouterr().out

    pictures, printed = show(4, 2)
    assert pictures == ["attention/0.png", "attention/2.png", "attention/3.png"]
    assert printed.split("\n") == [
        "",
        "  source     we show foo",
        "  reference  a reference",
        "  written    we show foo",
        "",
        "  source     ",
        "  reference  a reference",
        "  written    ",
        "",
    ]
    for weights, read, written, _ in drawn:
        assert read == written
        np.testing.assert_array_equal(weights, np.eye(len(read)))
    assert drawn[0][1] == ["we", "show", "foo", "<eos>"]
    assert drawn[1][1] == ["nets", "bar", "learn", "foo", "bar", "we", "<eos>"]  # cut, and so it ends
    pictures, printed = show(1, 4)
    assert pictures == ["attention/0.png"]
    assert printed.count("  written ") == 4


def test_the_longest_text(writer):
    def length(longest, **options):
        writer_ = writer._replace(shapes=((4, 4, 4), (2, 7, longest)))
        [[best]] = writer_.write(["bar"], Search(beam_size=1, min_length=99, **options))
        return len(best.text.split())

    assert length(99) == 2 * 4 + 10
    assert length(12) == 12
    assert length(12, max_length=14) == 14


def test_progress_on_a_terminal(writer, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    search = Search(beam_size=1, batch_size=4)
    writer.write(["bar"] * 6, search)
    assert terminal.getvalue() == "\r4 of 6 texts written\r6 of 6 texts written\n"
    writer.write(["bar"] * 4, search)  # a single batch
    writer.write(["bar"] * 6, search, quiet=True)
    assert terminal.getvalue().count("\n") == 1


@pytest.mark.fast
def test_programs_for_texts_longer_than_any_in_training():
    shapes = ((8, 4, 5), (4, 10, 9))
    assert seq2seq_runs.reach(Batching(tokens=50, max_source=10, max_target=9), shapes) == shapes
    assert seq2seq_runs.reach(Batching(tokens=50, max_source=20, max_target=9), shapes) == (*shapes, (2, 20, 9))
    assert seq2seq_runs.reach(Batching(tokens=5, max_source=10, max_target=12), shapes) == (*shapes, (1, 10, 12))


# --- corpora


ANSWERS = {"copy": list, "sort": sorted, "reverse": lambda numbers: numbers[::-1]}


@pytest.mark.fast
@pytest.mark.parametrize("task", [*ANSWERS, "addition"])
def test_toy_tasks(task):
    data = toy_seq2seq.Data(task, pairs=300, n_symbols=12, shortest=2, longest=4, longest_test=6)
    corpus = toy_seq2seq.draw(data, seed=3)
    assert {split: len(examples) for split, examples in corpus.items()} == {
        "train": 300,
        "validation": 1000,
        "test": 1000,
    }
    sources = [example.source for examples in corpus.values() for example in examples]
    assert len(set(sources)) == len(sources)
    lengths = {split: set() for split in corpus}
    for split, examples in corpus.items():
        for source, targets in examples:
            if task == "addition":
                summands = source.split("+")
                assert targets == (str(sum(map(int, summands))),)
                lengths[split] |= {len(summand) for summand in summands}
            else:
                numbers = [int(word) for word in source.split()]
                assert targets == (" ".join(map(str, ANSWERS[task](numbers))),)
                assert set(numbers) <= set(range(12))
                lengths[split].add(len(numbers))
    assert lengths == {"train": {2, 3, 4}, "validation": {2, 3, 4, 5, 6}, "test": {2, 3, 4, 5, 6}}
    assert corpus == toy_seq2seq.draw(data, seed=3)
    assert corpus["train"] != toy_seq2seq.draw(data, seed=4)["train"]


@pytest.mark.fast
def test_lead():
    abstract = "we train nets . they learn ! do they ?"
    assert summarise.lead(abstract) == "we train nets ."
    assert summarise.lead("do they ? yes .") == "do they ?"
    assert summarise.lead("no end") == "no end"
    assert summarise.lead(abstract, 6) == "we train nets . they learn"
    assert summarise.lead(abstract, 99) == abstract


def test_summaries():
    config = summarise.Config(data=summarise.Data(path=Path("papers"), target="summary"))
    corpus = summarise.corpus(config)
    assert {split: len(examples) for split, examples in corpus.items()} == {"train": 30, "validation": 4, "test": 4}
    assert corpus["test"][1] == (
        "we show net1 . it is a network , and it learns .",
        ("net1 learns .", "a network ."),
    )
    titles = summarise.corpus(replace(config, data=replace(config.data, target="title")))
    assert titles["test"][1].targets == ("net1 : a network",)


def test_pairs_of_sentences(capsys):
    config = translate.Config(data=translate.Data(path=Path("pairs"), lowercase=True))
    corpus = translate.corpus(config)
    assert capsys.readouterr().out == "warning: 1 pairs of train have an empty side and were left out\n"
    assert {split: len(examples) for split, examples in corpus.items()} == {"train": 47, "validation": 8, "test": 8}
    assert corpus["test"] == [(german, (english,)) for german, english in PAIRS["test"]]
    assert translate.clean(config, "  Ein\tBär \r") == "ein bär"
    assert translate.clean(translate.Config(), "  Ein\tBär \r") == "Ein Bär"


def test_every_pronunciation_is_learned_and_accepted(spoken):
    assert g2p.measure(["R EH D", "K AE T"], [["R IY D", "R EH D"], ["K AA T"]]) == {"per": 1 / 6, "wer": 0.5}
    corpus = g2p.corpus(g2p.Data(limit=50))
    assert {split: len(examples) for split, examples in corpus.items()} == {"train": 50, "validation": 50, "test": 50}
    assert corpus["train"] == spoken.corpus["train"][:50]
    n = sum(len(example.targets) for example in spoken.corpus["train"])
    assert n > len(spoken.corpus["train"]) == 100
    assert f"{n} pairs" in spoken.printed
