"""The measures of texts beside plain loops, and samples over temperature from the command line."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import char_lm, lm_runs, sampling
from seqjax.checkpoint import Checkpoints
from seqjax.config import write_config
from seqjax.errors import InputError
from seqjax.metrics import distinct, entropy
from seqjax.models.transformer_lm import TransformerConfig

TEXT = "".join(f"{n % 7} is what the quick brown fox says;\nand so it goes.\n" for n in range(20))
CONTEXT = 8


def random_texts():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 5, length).tolist() for length in (40, 1, 0, 2, 17)]


@pytest.mark.fast
@pytest.mark.parametrize("n", [1, 2, 3, 18, 40])
def test_distinct(n):
    different, total = [], 0
    for text in random_texts():
        for start in range(len(text) - n + 1):
            gram = text[start : start + n]
            total += 1
            if gram not in different:
                different.append(gram)
    assert distinct(random_texts(), n) == len(different) / total


@pytest.mark.fast
def test_entropy():
    joined = [token for text in random_texts() for token in text]
    expected = 0.0
    for token in joined:  # the mean information of a token
        expected += math.log2(len(joined) / joined.count(token)) / len(joined)
    assert entropy(random_texts()) == pytest.approx(expected, rel=1e-12)
    assert entropy([[3, 3], [3]]) == 0


@pytest.mark.fast
def test_of_nothing():
    assert math.isnan(distinct([[1, 2], []], 3))
    assert math.isnan(entropy([[]]))
    with pytest.raises(InputError, match="n=0; an n-gram has at least 1 token"):
        distinct([[1]], 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run directory of a model that was never trained, as if of char_lm."""
    directory = tmp_path_factory.mktemp("run")
    config = char_lm.Config(
        model=TransformerConfig(d_model=8, n_heads=2, n_layers=1, context=CONTEXT, positions="learned"),
        window=CONTEXT,
    )
    write_config(directory, "char_lm", config, [])
    corpus = {"train": [(TEXT, False)], "validation": [(TEXT[:200], False)]}
    tokenizer, _ = lm_runs.prepare(directory, lambda: corpus, "char", min_count=1)
    model = lm_runs.build(config.model, tokenizer.vocab_size)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        checkpoints.save(0, lm_runs.initial(config, model, jax.random.key(config.seed)), {})
    return directory


def test_log_probabilities_are_those_of_the_model_whatever_the_temperature(run):
    _, model, _, params = lm_runs.load(run, char_lm.Config)
    first, validation = 5, np.arange(100, dtype=np.int32) % 9
    options = sampling.Options(temperatures=(0.3, 1.0, 2.0), samples=3, length=50)
    rows = sampling.measure(model, params, first, validation, options)
    assert [row.name for row in rows] == ["0.3", "1", "2", "validation"]

    apply = jax.jit(model.apply)

    def plain(texts):
        scores = []
        for text in texts:
            _, logits = apply(params, jnp.asarray(np.resize(text, (1, CONTEXT))))  # causal: what follows has no effect
            chances = np.exp(np.asarray(logits[0], np.float64))
            chances /= chances.sum(-1, keepdims=True)
            scores += [math.log(chances[t, token]) for t, token in enumerate(text[1:])]
        return np.mean(scores)

    for row, temperature in zip(rows[:-1], options.temperatures, strict=True):
        texts, score = sampling.draw(model, params, first, temperature=temperature, samples=3, length=CONTEXT, seed=0)
        assert (
            score == row.log_probability == pytest.approx(plain([np.append(first, text) for text in texts]), rel=1e-5)
        )
        # Not 50 tokens: beyond the context learned positions give NaN.
        assert max(map(len, texts)) == CONTEXT
    real = [validation[start : start + CONTEXT + 1] for start in (0, 45, 91)]
    assert rows[-1].log_probability == pytest.approx(plain(real), rel=1e-5)
    assert rows[-1].distinct == tuple(distinct([text[1:].tolist() for text in real], n) for n in (1, 2, 3))
    assert rows[-1].entropy == entropy([text[1:].tolist() for text in real])


def test_command_line(run, capsys):
    words = ["--temperatures", "0.2", "1.5", "--samples", "4", "--length", "50", "--run", str(run)]
    assert sampling.main(words) == 0
    out = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if "|" in line]
    assert [row[0] for row in cells] == ["temperature", "---", "0.2", "1.5", "validation"]
    assert np.isfinite([[float(x) for x in row[1:]] for row in cells[2:]]).all()
    assert (run / "temperatures.png").stat().st_size > 10_000


@pytest.mark.fast
def test_pieces():
    text = np.arange(10, dtype=np.uint8)
    np.testing.assert_array_equal(
        sampling.pieces(text, samples=3, length=3), [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    )
    assert sampling.pieces(text, samples=2, length=9).tolist() == [list(range(10))] * 2
    with pytest.raises(InputError, match="length=10; the validation text has 10 tokens"):
        sampling.pieces(text, samples=2, length=10)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--run nowhere", "nowhere is no run directory"),
        ("--run other", "other is a run of glove; give one of char_lm or word_lm"),
        ("--temperatures 0.5 -1", "temperature=-1.0; it must be at least 0"),
        ("--samples 0", "samples=0; it must be at least 1"),
    ],
)
def test_refused(run, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    Path("other").mkdir()
    Path("other/config.json").write_text('{"experiment": "glove"}')
    assert sampling.main(words.split()) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
