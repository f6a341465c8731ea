"""FastText: ours beside Facebook's program, words per second and quality, in alternating processes.

    python -m experiments.bench.fasttext --corpus text8 --rounds 3 --similarity wordsim353.tsv
    python -m experiments.bench.fasttext --corpus text8 --python bench/bin/python …

Both train skip-gram with n-grams of 3 to 6 characters, dimension 100, window 5, 5 negatives, sample 1e-4. Facebook's
runs in a process of ``--python``, which needs the package fasttext and nothing else, with ``--threads``. The clock runs
over the whole training from the file, reading and counting included, for ours without compilation, which a run on few
words does before. The speed is of all words of the text, rare and left-out ones included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

from experiments.bench.word2vec import quality, shown
from experiments.embedding_runs import use_cores
from seqjax import embeddings

OPTIONS = {"dim": 100, "ws": 5, "neg": 5, "minn": 3, "maxn": 6, "minCount": 5, "t": 1e-4}

FACEBOOKS = """
import json, sys, time
import fasttext
corpus, model, options = sys.argv[1:]
start = time.perf_counter()
trained = fasttext.train_unsupervised(corpus, model="skipgram", verbose=0, **json.loads(options))
print(time.perf_counter() - start)
trained.save_model(model)
"""


def ours(args, _):
    start = time.perf_counter()
    vectors = embeddings.train_fasttext(
        args.corpus, embeddings.FastTextConfig(epochs=args.epochs), key=jax.random.key(1)
    )
    return time.perf_counter() - start, vectors


def warm_up(args, vocabulary):
    """Compile what `ours` runs, on a full chunk of words."""
    few, n = [], 0
    for sentence in embeddings.sentences(args.corpus):
        few.append(sentence)
        n += len(sentence)
        if n > 300_000:
            break
    config = embeddings.FastTextConfig(epochs=args.epochs)
    embeddings.train_fasttext(few, config, key=jax.random.key(0), vocabulary=vocabulary)


def facebooks(args, directory):
    options = json.dumps(OPTIONS | {"epoch": args.epochs, "thread": args.threads})
    model = Path(directory) / "model.bin"
    command = [args.python, "-c", FACEBOOKS, args.corpus, str(model), options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1]), embeddings.load_fasttext(model)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--python", default=sys.executable, help="an interpreter with the package fasttext")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--analogies")
    parser.add_argument("--similarity", nargs="*", default=[])
    args = parser.parse_args()
    use_cores()
    vocabulary = embeddings.make_vocabulary(embeddings.count_words(args.corpus))
    n = vocabulary.n_tokens
    print(f"{n:,} words, {args.epochs} epochs, {os.cpu_count()} cores")
    warm_up(args, vocabulary)
    ratios = []
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(args.rounds):
            seconds = {}
            for contender in (ours, facebooks):
                seconds[contender], vectors = contender(args, directory)
                speed = n * args.epochs / seconds[contender] / 1e6
                print(f"{contender.__name__:10} {speed:.3f} M words/s  {shown(quality(vectors, args))}", flush=True)
            ratios.append(seconds[facebooks] / seconds[ours])
    print(f"ours / Facebook's: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
