"""Word2Vec: ours beside gensim, words per second and quality, in alternating runs of one process.

    python -m experiments.bench.word2vec --corpus text8 --modes sg-ns,cbow-ns,sg-hs,cbow-hs --limit 4000000 --rounds 3
    python -m experiments.bench.word2vec --corpus text8 --epochs 4 --seeds 1,2,3 --analogies questions-words.txt \\
        --similarity wordsim353.tsv

The corpus is a text file, a sentence a line; lines are cut at 10,000 words for both. Both get lists of words and a
vocabulary; the clock runs over training alone, for ours with encoding of the words and the transfer of the result, not
with compilation, which a run on a few words does before. gensim runs with --workers threads. A word counts if it is
left after min_count and subsampling. Without gensim only ours is measured.
"""

import argparse
import importlib.util
import os
import statistics
import time
from itertools import islice

import jax
import numpy as np

from experiments.embedding_runs import text_mesh, use_cores
from seqjax import embeddings
from seqjax.embeddings import Word2VecConfig

MODES = {
    "sg-ns": ("skipgram", "negative_sampling"),
    "cbow-ns": ("cbow", "negative_sampling"),
    "sg-hs": ("skipgram", "hierarchical_softmax"),
    "cbow-hs": ("cbow", "hierarchical_softmax"),
}


def ours(corpus, vocabulary, mode, args, seed):
    architecture, objective = MODES[mode]
    config = Word2VecConfig(
        architecture=architecture, objective=objective, vector_size=args.size, epochs=args.epochs, min_count=5
    )
    reports = []
    key = jax.random.key(seed)
    start = time.perf_counter()
    vectors = embeddings.train_word2vec(
        corpus, config, key=key, vocabulary=vocabulary, progress=reports.append, mesh=args.mesh
    )
    return reports[-1].words / (time.perf_counter() - start), vectors


def gensim(corpus, vocabulary, mode, args, seed):
    from gensim.models import Word2Vec

    tree = mode.endswith("hs")
    model = Word2Vec(
        vector_size=args.size,
        sg=int(mode.startswith("sg")),
        hs=int(tree),
        negative=0 if tree else 5,
        workers=args.workers,
        seed=seed,
        min_count=5,
    )
    model.build_vocab(corpus)
    start = time.perf_counter()
    words, _ = model.train(corpus, total_examples=model.corpus_count, epochs=args.epochs)
    seconds = time.perf_counter() - start
    return words / seconds, embeddings.WordVectors(model.wv.index_to_key, model.wv.vectors)


def quality(vectors, args):
    """What ``--analogies`` and ``--similarity`` ask for."""
    row = {}
    if args.analogies:
        found = vectors.evaluate_analogies(args.analogies)
        row |= {"analogies": found.accuracy, "semantic": found.semantic, "syntactic": found.syntactic}
    for path in args.similarity:
        row[os.path.basename(path).partition(".")[0]] = vectors.evaluate_similarity(path).spearman
    return row


def shown(row):
    return "  ".join(f"{key} {value:.4f}" for key, value in row.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--modes", default="sg-ns", help=", ".join(MODES))
    parser.add_argument("--limit", type=int, help="only the first so many words, rounded to 10,000")
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="ours: parts of the text, each on a core or a GPU")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seeds", default="1", help="one run of each round for each")
    parser.add_argument("--analogies")
    parser.add_argument("--similarity", nargs="*", default=[])
    args = parser.parse_args()
    use_cores()
    args.mesh = text_mesh(args.devices)
    corpus = list(islice(embeddings.sentences(args.corpus), args.limit and max(1, args.limit // 10_000)))
    vocabulary = embeddings.make_vocabulary(embeddings.count_words(corpus))
    contenders = {"ours": ours} | ({"gensim": gensim} if importlib.util.find_spec("gensim") else {})
    print(
        f"{vocabulary.n_tokens:,} words, {len(vocabulary.words):,} types, {args.epochs} epochs, {os.cpu_count()} cores"
    )
    for mode in args.modes.split(","):
        words = 300_000 if args.devices == 1 else 600_000 * args.devices  # enough for chunks of full size
        few = corpus[: 1 + words // max(1, len(corpus[0]))]
        ours(few, vocabulary, mode, args, 0)
        speeds = {name: [] for name in contenders}
        rows = {name: [] for name in contenders}
        for _ in range(args.rounds):
            for seed in map(int, args.seeds.split(",")):
                for name, contender in contenders.items():
                    speed, vectors = contender(corpus, vocabulary, mode, args, seed)
                    speeds[name].append(speed)
                    rows[name].append(quality(vectors, args))
                    print(
                        f"{mode:8} {name:7} seed {seed}  {speed / 1e6:.3f} M words/s  {shown(rows[name][-1])}",
                        flush=True,
                    )
        for name in contenders:
            means = {key: np.mean([row[key] for row in rows[name]]) for key in rows[name][0]}
            print(
                f"{mode:8} {name:7} median {statistics.median(speeds[name]) / 1e6:.3f} M words/s  mean {shown(means)}"
            )
        if "gensim" in speeds:
            ratios = [a / b for a, b in zip(speeds["ours"], speeds["gensim"], strict=True)]
            print(
                f"{mode:8} ours / gensim: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
