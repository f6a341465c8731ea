"""A study as one program, against its members one after the other, and each in a process of its own.

    python -m experiments.bench.study                    # 32 members, 3,000 steps; about four minutes on 2 cores
    python -m experiments.bench.study --turns 3 --d_hidden 32

All train the same model with the same step on the same batches. "singles" compiles the step once and trains member by
member in one process. "processes" starts Python for each of them; some are measured and all are reckoned from these.
Times of the first two are from the first call to the last result, compilation included; those of processes are of whole
processes, and compared with that of a whole process for the study. What memory is predicted to be is compared with what
is measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time


def problem(args):
    import numpy as np
    from flax import nnx

    from seqjax import losses, nn, train
    from seqjax.models.rnn_lm import RNNLM, Config

    config = Config(d_embed=args.d_hidden, d_hidden=args.d_hidden)
    init, apply = nn.purify(lambda key: RNNLM(config, args.vocab, rngs=nnx.Rngs(key)))
    optimizer = train.make_optimizer("adamw", train.unit_schedule("cosine", args.steps, 50))

    def loss_fn(params, extra, batch, key, hyper):
        carry, logits = apply(params, batch["inputs"], extra)
        return losses.cross_entropy(logits, batch["targets"]), (carry, {})

    def start(key):
        params = init(key)
        return train.init_state(
            params, apply(params, args.batch, method="initial_carry"), key, optimizer(train.Hyper())
        )

    # A chain of tokens: there is something to learn.
    rng = np.random.default_rng(0)
    follow = rng.integers(0, args.vocab, (args.vocab, 2))
    text = np.zeros((args.batch, args.length * 100 + 1), np.int32)
    for t in range(1, text.shape[1]):
        text[:, t] = follow[text[:, t - 1], rng.integers(0, 2, args.batch)]
    places = [slice(i * args.length, (i + 1) * args.length + 1) for i in range(100)]
    pieces = [{"inputs": text[:, place][:, :-1], "targets": text[:, place][:, 1:]} for place in places]
    setup = train.Setup(
        start, train.make_step(loss_fn, optimizer), lambda a, b: (pieces[step % 100] for step in range(a, b))
    )
    return setup, np.geomspace(1e-4, 1e-1, args.members)


def study(args):
    import jax

    from seqjax import train
    from seqjax.study import Study, run_study

    setup, lrs = problem(args)
    loop = train.Loop(steps=args.steps, log_every=500)
    keys = jax.random.split(jax.random.key(0), args.members)
    began = time.perf_counter()
    outcome = run_study(Study(), train.Hyper(lr=lrs), keys, setup=setup, loop=loop)
    assert all(result.status == "done" for result in outcome.results)
    return time.perf_counter() - began, outcome.results[0].value


def singles(args, only=None):
    import jax
    import numpy as np

    from seqjax import train

    setup, lrs = problem(args)
    keys = jax.random.split(jax.random.key(0), args.members)
    step, start = jax.jit(setup.train_step, donate_argnums=0), jax.jit(setup.init)
    finals = []
    began = time.perf_counter()
    for key, lr in list(zip(keys, lrs, strict=True))[:only]:
        state, meter = start(key), None
        hyper = train.Hyper._make(map(np.float32, train.Hyper(lr=lr)))
        for number, batch in enumerate(setup.batches(0, args.steps)):
            state, metrics = step(state, batch, hyper)
            if number >= args.steps - 500:
                meter = metrics["loss"] if meter is None else jax.tree.map(lambda a, b: a + b, meter, metrics["loss"])
        finals.append(float(meter[0] / meter[1]))
    return time.perf_counter() - began, min(finals)


def memory(args):
    import jax
    import numpy as np

    from seqjax.study import Plan, engine, predict_memory

    setup, _ = problem(args)
    batches = jax.tree.map(lambda a: np.stack([a] * 100), next(iter(setup.batches(0, 1))))
    predicted = predict_memory(setup, batches)
    return [(n, predicted(n), engine.memory_of(Plan(None), setup, n, batches)) for n in (16, 32, 64, 128)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"members": 32, "steps": 3000, "d_hidden": 16, "batch": 4, "length": 32, "vocab": 65}
    for name, default in {**sizes, "turns": 2, "processes": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--role", help="for the processes that this one starts")
    args = parser.parse_args()
    if args.role:
        if args.role == "study":
            import jax

            # A device a core, each with one thread: as experiments.study does.
            os.environ.setdefault("NPROC", "1")
            jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
        roles = {"study": study, "singles": singles, "process": lambda args: singles(args, 1), "memory": memory}
        print(json.dumps(roles[args.role](args)))
        return

    def run(role):
        words = [word for name in sizes for word in (f"--{name}", str(getattr(args, name)))]
        began = time.perf_counter()
        command = [sys.executable, "-m", "experiments.bench.study", "--role", role, *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return time.perf_counter() - began, json.loads(done.stdout.splitlines()[-1])

    import jax

    print(
        f"jax {jax.__version__}, {os.cpu_count()} cores; {', '.join(f'{k} {v}' for k, v in sizes.items())}".replace(
            "members 32", f"members {args.members}"
        )
    )
    times = {"study": [], "study, whole process": [], "singles": [], "process": []}
    best = {}
    for _ in range(args.turns):
        whole, (seconds, best["study"]) = run("study")
        times["study"].append(seconds)
        times["study, whole process"].append(whole)
        _, (seconds, best["singles"]) = run("singles")
        times["singles"].append(seconds)
        times["process"] += [run("process")[0] for _ in range(args.processes)]
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in median.items():
        print(f"{name:22} {seconds:8.2f} s")
    print(f"best training loss: study {best['study']:.4f}, singles {best['singles']:.4f}")
    print(f"singles / study: {median['singles'] / median['study']:.1f}")
    ratio = args.members * median["process"] / median["study, whole process"]
    print(f"{args.members} processes / study, whole process: {ratio:.1f}")
    print("members   predicted    measured MB")
    for n, predicted, measured in run("memory")[1]:
        print(f"{n:7} {predicted / 1e6:11.2f} {measured / 1e6:11.2f}   {predicted / measured - 1:+.1%}")


if __name__ == "__main__":
    main()
