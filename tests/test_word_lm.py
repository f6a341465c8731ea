"""The word language model from the command line, and the corpora it reads."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import lm_runs, word_lm
from seqjax.data.splits import text_folder, text_words
from seqjax.errors import InputError
from seqjax.reporting import read_metrics
from seqjax.text import UNK, load_tokenizer

LINES = [f" the {animal} does n't see the {n % 3} <unk> dogs N.V. \n" for n, animal in enumerate(["cat", "cow"] * 20)]
PTB = {"train": "".join(LINES), "valid": "".join(LINES[:9]) + " the wolf sees N dogs \n", "test": "".join(LINES[:7])}
TINY = (
    *("smoke", "--batch_size", "4", "--window", "8", "--model.d_embed", "8", "--model.d_hidden", "8"),
    *("--data.min_count", "1", "--loop.steps", "24", "--loop.log_every", "12", "--loop.eval_every", "12"),
    *("--loop.checkpoint_every", "24"),
)


def main(*words):
    return word_lm.main([str(word) for word in words])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The working directory: a corpus in three files, a run on it, what it printed and how often it validated."""
    directory = tmp_path_factory.mktemp("word_lm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        Path("ptb").mkdir()
        for split, text in PTB.items():
            Path(f"ptb/ptb.{split}.txt").write_text(text)
        evaluated, original = [], lm_runs.evaluation

        def counting(config, model, array, tokenizer=None):
            made = original(config, model, array, tokenizer)

            def batches():
                evaluated.append(len(array))
                return made.batches()

            return made._replace(batches=batches)

        patch.setattr(lm_runs, "evaluation", counting)
        assert main(*TINY, "--data.path", "ptb", "--run", "runs/word_lm/first") == 0
        yield Path("runs/word_lm/first"), evaluated


@pytest.mark.fast
def test_perplexity_of_every_split(workplace, capsys):
    run, evaluated = workplace
    arrays = lm_runs.read_tokens(run)
    assert {split: len(array) for split, array in arrays.items()} == {"train": 440, "validation": 105, "test": 77}
    # Validated twice in training and never again, the rest once; of the training text as much as of the validation's.
    assert evaluated == [105, 105, 105, 77]
    summary = json.loads((run / "summary.json").read_text())
    row = [row for row in read_metrics(run / "metrics.jsonl") if row["split"] == "validation"][-1]
    assert {name: row[name] for name in ("loss", "bits", "perplexity", "accuracy")}.items() <= summary.items()
    assert summary["perplexity_validation"] == summary["perplexity"] == pytest.approx(np.exp(summary["loss"]))
    assert main("evaluate", "--split", "test") == 0
    assert f"perplexity {summary['perplexity_test']:.4f}" in capsys.readouterr().out
    assert 1 < summary["perplexity_train"] < 16  # words are learned


def test_words_of_a_folder_are_those_of_its_training_file(workplace):
    run, _ = workplace
    tokenizer, arrays = load_tokenizer(run / "tokenizer.json"), lm_runs.read_tokens(run)
    assert tokenizer.kind == "space"
    assert set(tokenizer.vocab[4:]) == {*PTB["train"].split(), "\n"} - {"<unk>"}
    for split, name in (("train", "train"), ("test", "test")):
        lines = [" ".join(line.split()) for line in PTB[name].splitlines()]
        assert tokenizer.decode(arrays[split]) == "\n".join(lines) + "\n"
    assert np.sum(arrays["train"] == UNK) == 40
    last = arrays["validation"][-6:].tolist()  # the wolf sees N dogs, and the end of the line
    assert [tokenizer.vocab[i] for i in last] == ["the", "<unk>", "<unk>", "<unk>", "dogs", "\n"]


def test_sample(workplace, capsys):
    run, _ = workplace
    capsys.readouterr()
    assert main("sample", "--run", run, "--prompt", "the cat", "--length", 5) == 0
    assert capsys.readouterr().out.startswith("the cat ")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data.path empty", "empty: has none of ptb.train.txt, wiki.train.tokens, train.txt"),
        ("--data.path nowhere", "nowhere: cannot read the text"),
        ("--data.path ptb --data.limit 10", "data.limit=10 is for a text file, not for ptb; leave it out"),
        ("--data.limit 10", "data.limit=10 is for a text file, not for the plays; leave it out"),
        ("--data.path ptb/ptb.train.txt --data.limit 1", "limit: 1 words cannot be split"),
        ("--data.path ptb --data.tokenizer bpe --data.max_size 99", "max_size: 99 leaves no room"),
        ("--data.path ptb --data.min_count 999", "data.min_count=999 leaves the vocabulary empty"),
        ("--data.path ptb --model.weight_drop 1", "model.weight_drop=1.0; it must be at least 0 and below 1"),
        ("--window 0", "window=0; it must be at least 1"),
        ("sample --top_p 2", "top_p=2.0; it must be above 0 and at most 1"),
    ],
)
def test_refused(workplace, capsys, words, message):
    Path("empty").mkdir(exist_ok=True)
    capsys.readouterr()
    assert main(*([] if words.startswith("sample") else TINY), *words.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_subwords_and_words_of_a_file(tmp_path, kind):
    path = tmp_path / "text.txt"
    path.write_text("The cat's hat,\nthe cat sat. " * 50)
    data = word_lm.Data(path=path, max_size=270)
    tokenizer, arrays = lm_runs.prepare(tmp_path, lambda: word_lm.corpus(data), kind, min_count=1, max_size=270)
    assert tokenizer.kind == kind
    assert tokenizer.vocab_size == {"word": 4 + 9, "bpe": 270}[kind]
    assert tokenizer.decode(arrays["train"]).startswith("The cat's hat,\nthe cat sat.")


# --- corpora


@pytest.mark.parametrize("names", ["ptb.{}.txt", "wiki.{}.tokens", "{}.txt"])
def test_folders(tmp_path, names):
    for split in ("train", "valid"):
        (tmp_path / names.format(split)).write_text(f"{split} é\n")
    (tmp_path / "other.txt").write_text("other")
    assert {split: list(pieces) for split, pieces in text_folder(tmp_path).items()} == {
        "train": [("train é\n", False)],
        "validation": [("valid é\n", False)],
    }
    (tmp_path / names.format("test")).write_text("test\n")
    assert list(text_folder(tmp_path)["test"]) == [("test\n", False)]
    (tmp_path / names.format("valid")).unlink()
    with pytest.raises(InputError, match=r"valid.*cannot read the text"):
        text_folder(tmp_path)


@pytest.mark.fast
@pytest.mark.parametrize("chunk", [3, 7, 1 << 20])
@pytest.mark.parametrize("limit", [2, 5, 99, None])
@pytest.mark.parametrize("name", ["text", "text.gz"])
def test_first_words(tmp_path, name, limit, chunk):
    path, text = tmp_path / name, "the quick brown fox\njumps over the lazy dog é"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    splits = text_words(path, limit=limit, fraction=0.5, chunk=chunk)
    pieces = {split: [piece for piece, _ in parts] for split, parts in splits.items()}
    whole = "".join(pieces["train"] + pieces["validation"])
    assert text.startswith(whole)
    assert whole.split() == text.split()[:limit]
    for parts in pieces.values():
        assert parts
        assert all(part and (part[-1].isspace() or part == parts[-1]) for part in parts)
    train, rest = "".join(pieces["train"]), "".join(pieces["validation"])
    assert train[-1].isspace()
    assert len(train) >= len(whole) // 2
    assert not any(c.isspace() for c in train[len(whole) // 2 : -1])  # no later than it must
    assert rest


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"a b", {"limit": 1}, "limit: 1 words cannot be split"),
        (b"a b", {"fraction": 1.0}, "fraction: 1.0 is not between 0 and 1"),
        (b"word", {}, "words are too few to split"),
        (b"\xff a b", {}, "is not UTF-8"),
        (b"a b", {"name": "text.gz"}, "cannot read the text"),
    ],
)
def test_text_words_refuses(tmp_path, content, options, message):
    path = tmp_path / options.pop("name", "text")
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        text_words(path, **options)
