"""Beam search against brute force, greedy search and itself."""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import seqjax
from seqjax import decoding
from seqjax.beam import beam_search
from seqjax.caching import Shared
from seqjax.constraints import Constraints
from seqjax.errors import InputError
from seqjax.kernels.top_k import top_k
from seqjax.models import transformer_lm
from tests import oracles
from tests.test_models import compilations

V, EOS, B, S, L = 4, 3, 3, 5, 3
ALL = V**L
PENALTIES = [("none", 1.0), ("average", 1.0), ("average", 0.5), ("wu", 0.6), ("wu", -0.5)]


class State(NamedTuple):
    """A small recurrent network that looks at a source; its state has an array of each kind."""

    h: jax.Array
    attention: jax.Array
    count: jax.Array  # a scalar
    source: Shared


def step(params, state, tokens):
    w, embed, out = params
    source = state.source.value
    width = tokens.shape[0] // source.shape[0]
    h = jnp.tanh(state.h @ w + embed[tokens])
    scores = jnp.einsum("bwh,bsh->bws", h.reshape(source.shape[0], width, -1), source)
    padding = jnp.all(source == 0, axis=-1)[:, None]
    attention = jax.nn.softmax(jnp.where(padding, -jnp.inf, scores), axis=-1)
    context = jnp.einsum("bws,bsh->bwh", attention, source).reshape(h.shape)
    state = State(h, attention.reshape(h.shape[0], -1), state.count + 1, state.source)
    return state, (h + context) @ out


def problem(seed=0, batch=B, scale=1.5):
    normal = partial(np.random.default_rng(seed).normal, scale=scale)
    params = tuple(jnp.asarray(normal(size=shape), jnp.float32) for shape in ((6, 6), (V, 6), (6, V)))
    source = jnp.asarray(normal(size=(batch, S, 6)), jnp.float32).at[0, 2:].set(0)
    state = State(jnp.zeros((batch, 6)), jnp.zeros((batch, S)), jnp.int32(0), Shared(source))
    return params, *step(params, state, jnp.full(batch, 2))


PARAMS, STATE, LOGITS = problem()


def row(state, logits, b):
    return jax.tree.map(lambda a: a[b : b + 1] if a.ndim else a, state), logits[b : b + 1]


def attention(state):
    return state.attention


search = partial(beam_search, step, PARAMS, STATE, LOGITS, max_length=L, eos=EOS)


def all_texts(length=L):
    """Every text that ends with eos, or is cut off, with its length."""
    ids = [v for v in range(V) if v != EOS]
    for n in range(1, length + 1):
        for beginning in itertools.product(ids, repeat=n - 1):
            yield (*beginning, EOS), n
    for text in itertools.product(ids, repeat=length):
        yield text, length


def forced(state, logits, text):
    """log p of a text and the attention of its tokens, one step after the other."""
    total, weights = 0.0, []
    for i, token in enumerate(text):
        total += float(jax.nn.log_softmax(logits[0])[token])
        weights.append(np.asarray(state.attention[0]))
        if i + 1 < len(text):
            state, logits = jitted_step(PARAMS, state, jnp.array([token]))
    return total, np.array(weights)


jitted_step = jax.jit(step)


@pytest.fixture(scope="module")
def texts():
    """For each row: [(text, log p, attention)]."""
    return [
        [(text, *forced(*row(STATE, LOGITS, b), text)) for text, _ in all_texts()]  # no memory is saved here
        for b in range(B)
    ]


def lp(kind, alpha, n):
    return {"none": 1.0, "average": n**alpha, "wu": ((5 + n) / 6) ** alpha}[kind]


def ranked(texts, kind, alpha, beta=0.0):
    def score(text):
        tokens, log_p, weights = text
        covered = weights.sum(0)
        return log_p / lp(kind, alpha, len(tokens)) + beta * np.log(np.minimum(covered[covered > 0], 1)).sum()

    return sorted(((score(text), text[0]) for text in texts), reverse=True)


@pytest.mark.fast
@pytest.mark.parametrize(("kind", "alpha"), PENALTIES)
@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_with_room_for_all_texts_it_is_brute_force(texts, kind, alpha, beta):
    beams = search(
        beam_size=ALL, n_best=6, length_penalty=kind, alpha=alpha, coverage_penalty=beta, attention=attention
    )
    for b in range(B):
        expected = ranked(texts[b], kind, alpha, beta)[:6]
        np.testing.assert_allclose(beams.scores[b], [score for score, _ in expected], rtol=2e-5)
        for tokens, n, (_, text) in zip(beams.tokens[b], beams.lengths[b], expected, strict=True):
            assert tuple(tokens[:n].tolist()) == text


@pytest.mark.fast
@pytest.mark.parametrize("strategy", ["gather", "ancestry"])
@pytest.mark.parametrize(("kind", "alpha"), [("none", 1.0), ("wu", 0.6)])
def test_a_beam_of_one_is_greedy(kind, alpha, strategy):
    greedy = decoding.greedy(step, PARAMS, STATE, LOGITS, max_length=9, eos=EOS)
    options = {"stop": "first", "length_penalty": kind, "alpha": alpha, "strategy": strategy}
    beams = search(max_length=9, beam_size=1, **options)
    np.testing.assert_array_equal(beams.tokens[:, 0], greedy.tokens)
    np.testing.assert_array_equal(beams.lengths[:, 0], greedy.lengths)
    np.testing.assert_allclose(beams.log_probs[:, 0], greedy.scores, rtol=1e-6)


@pytest.mark.parametrize("stop", ["exact", "first"])
@pytest.mark.parametrize(("kind", "alpha"), PENALTIES)
def test_what_every_search_keeps(kind, alpha, stop):
    n = 8
    options = {"length_penalty": kind, "alpha": alpha, "stop": stop, "attention": attention, "alignments": True}
    beams = search(max_length=n, beam_size=3, n_best=3, coverage_penalty=0.2, **options)
    tokens, lengths = np.asarray(beams.tokens), np.asarray(beams.lengths)
    assert np.all(np.diff(beams.scores, axis=1) <= 0)
    for b in range(B):
        assert len({tuple(text) for text in tokens[b]}) == 3
        # What was returned is what forced decoding gives.
        state, logits = jax.tree.map(lambda a: jnp.repeat(a, 3, 0) if a.ndim else a, row(STATE, LOGITS, b))
        log_probs = decoding.score(step, PARAMS, state, logits, beams.tokens[b], beams.lengths[b])
        np.testing.assert_allclose(beams.log_probs[b], log_probs.sum(1), rtol=1e-5)
        for text, length, log_p, score, weights in zip(
            tokens[b], lengths[b], beams.log_probs[b], beams.scores[b], beams.attention[b], strict=True
        ):
            assert np.all(text[length:] == 0)
            assert np.all(text[: length - 1] != EOS)
            assert text[length - 1] == EOS or length == n
            expected = forced(*row(STATE, LOGITS, b), text[:length].tolist())[1]
            np.testing.assert_allclose(weights[:length], expected, atol=1e-5)
            assert np.all(np.asarray(weights)[length:] == 0)
            covered = expected.sum(0)
            coverage = 0.2 * np.log(np.minimum(covered[covered > 0], 1)).sum()
            np.testing.assert_allclose(score, log_p / lp(kind, alpha, int(length)) + coverage, rtol=1e-5)


def test_a_batch_is_its_rows():
    together = search(max_length=7, n_best=2, length_penalty="average")
    for b in range(B):
        state, logits = row(STATE, LOGITS, b)
        alone = beam_search(step, PARAMS, state, logits, max_length=7, eos=EOS, n_best=2, length_penalty="average")
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[b])
        np.testing.assert_allclose(alone.scores[0], together.scores[b], rtol=1e-6)


def test_stopping_early_changes_nothing():
    """The exact rule finds what a search finds that never stops before max_length, and stops before."""
    eager = jnp.asarray([[0.0, 0.1, 0.2, 2.0]] * V)

    def counting(params, state, tokens):
        return state + 1, params[tokens]

    for kind, alpha in PENALTIES:
        options = {"eos": EOS, "beam_size": 2, "n_best": 2, "length_penalty": kind, "alpha": alpha}
        short, long = (beam_search(counting, eager, jnp.int32(0), eager[:1], max_length=n, **options) for n in (12, 40))
        np.testing.assert_array_equal(short.tokens, long.tokens[:, :, :12])
        np.testing.assert_allclose(short.scores, long.scores)

    def steps(**options):
        """How many steps a search takes, as an eager loop counts them."""
        count = []

        def counting(params, state, tokens):
            jax.debug.callback(lambda: count.append(1))
            return state, params[tokens]

        jax.block_until_ready(
            beam_search(counting, eager, (), eager[:1], max_length=40, eos=EOS, beam_size=2, **options)
        )
        jax.effects_barrier()
        return len(count)

    assert steps() == 0  # eos is the likeliest token at once
    assert 0 < steps(stop="first") < 5
    assert 3 < steps(length_penalty="average") < 20


def test_fewer_texts_than_asked_for():
    only = jnp.log(jnp.asarray([[0.0, 0.0, 0.0, 1.0]] * V))
    beams = beam_search(lambda p, s, t: (s, p[t]), only, (), only[:2], max_length=4, eos=EOS, beam_size=3, n_best=3)
    np.testing.assert_array_equal(beams.tokens[0], [[EOS, 0, 0, 0], [0] * 4, [0] * 4])
    np.testing.assert_array_equal(beams.scores[1], [0, -np.inf, -np.inf])
    np.testing.assert_array_equal(beams.log_probs[1], [0, -np.inf, -np.inf])
    np.testing.assert_array_equal(beams.lengths, [[1, 0, 0]] * 2)


@pytest.mark.parametrize(("n", "k"), [(3, 2), (700, 1), (5000, 1), (5003, 10)])
def test_the_greatest_numbers_are_those_of_lax(n, k):
    """By chunks of chunks, with a rest, and with equal numbers."""
    x = np.random.default_rng(0).normal(size=(3, n)).astype(np.float32)
    x[1] = np.round(x[1])
    x[2, np.random.default_rng(1).random(n) < 0.999] = -np.inf
    for found, expected in zip(top_k(jnp.asarray(x), k), jax.lax.top_k(jnp.asarray(x), k), strict=True):
        np.testing.assert_array_equal(found, expected)


# --- constraints


def kept_texts(texts, keep):
    return [text for text in texts if keep(text[0])]


def ngrams_differ(text, n=2):
    grams = list(zip(*(text[i:] for i in range(n)), strict=False))
    return len(grams) == len(set(grams))


RULES = {
    "min_length": (Constraints(min_length=2), lambda text, b: len(text) > 2 or EOS not in text),
    "no_repeat_1": (Constraints(no_repeat_ngram=1), lambda text, b: ngrams_differ(text, 1)),
    "no_repeat_2": (Constraints(no_repeat_ngram=2), lambda text, b: ngrams_differ(text)),
    "prefix": (
        Constraints(prefix=jnp.array([[1, 2], [0, 0], [2, 0]])),
        lambda text, b: text[: len(PREFIXES[b])] == PREFIXES[b],
    ),
    "allowed": (Constraints(allowed=jnp.array([True, False, True, True])), lambda text, b: 1 not in text),
    "allowed_rows": (
        Constraints(allowed=jnp.arange(V)[None] != jnp.array([[0], [1], [2]])),
        lambda text, b: b not in text,
    ),
}
PREFIXES = [(1, 2), (), (2,)]


def never_twice_in_a_row(tokens, t):
    """A rule as a function: no token follows itself."""
    last = jnp.where(t > 0, jnp.take(tokens, jnp.maximum(t - 1, 0), axis=1), -1)
    return jnp.arange(V)[None] != last[:, None]


RULES["function"] = Constraints(allowed=never_twice_in_a_row), lambda text, b: all(map(int.__ne__, text, text[1:]))


@pytest.mark.parametrize("name", RULES)
def test_constraints_are_brute_force_over_what_is_left(texts, name):
    constraints, keep = RULES[name]
    beams = search(beam_size=ALL, n_best=3, constraints=constraints)
    for b in range(B):
        expected = ranked(kept_texts(texts[b], partial(keep, b=b)), "none", 1)[:3]
        np.testing.assert_allclose(beams.scores[b, : len(expected)], [score for score, _ in expected], rtol=2e-5)
        np.testing.assert_array_equal(beams.scores[b], beams.log_probs[b])
        for tokens, n, (_, text) in zip(beams.tokens[b], beams.lengths[b], expected, strict=False):
            assert tuple(tokens[:n].tolist()) == text


@pytest.mark.parametrize("name", RULES)
def test_greedy_and_samples_keep_the_constraints(name, key):
    constraints, keep = RULES[name]
    arguments = {"max_length": L, "eos": EOS, "constraints": constraints}
    greedy = decoding.greedy(step, PARAMS, STATE, LOGITS, **arguments)
    beams = search(beam_size=1, stop="first", constraints=constraints)
    np.testing.assert_array_equal(greedy.tokens, beams.tokens[:, 0])
    drawn = decoding.sample(step, PARAMS, STATE, LOGITS, key, **arguments)
    for samples in (greedy, drawn):
        for b, (text, n) in enumerate(zip(samples.tokens.tolist(), samples.lengths, strict=True)):
            assert keep(tuple(text[:n]), b)


def test_repetition_penalty_by_hand():
    """The logits of written tokens are divided or multiplied; texts are ranked by the result, log_probs stay."""
    table = jnp.asarray([[0.0, 1.0, -1.0, 0.5]] * V)
    beams = beam_search(
        lambda p, s, t: (s, p[t]), table, (), table[:1], max_length=2, beam_size=ALL, n_best=ALL,
        constraints=Constraints(repetition_penalty=2.0),
    )  # fmt: skip
    for tokens, score, log_prob in zip(beams.tokens[0].tolist(), beams.scores[0], beams.log_probs[0], strict=True):
        if not np.isfinite(score):
            continue
        first, second = tokens
        logits = np.asarray(table[0], np.float64)
        log_p = logits - np.log(np.exp(logits).sum())
        after = logits.copy()
        after[first] = after[first] / 2 if after[first] > 0 else after[first] * 2
        penalised = after - np.log(np.exp(after).sum())
        np.testing.assert_allclose(score, log_p[first] + penalised[second], rtol=1e-5)
        np.testing.assert_allclose(log_prob, log_p[first] + log_p[second], rtol=1e-5)
    assert int(jnp.sum(jnp.isfinite(beams.scores))) == V * V


# --- caches, ensembles, programs


@pytest.mark.parametrize(
    "options",
    [{"positions": "alibi", "n_kv_heads": 1}, {"positions": "rotary"}],
    ids=["alibi", "rotary"],
)
def test_caches_that_stay_give_what_caches_that_move_give(options):
    config = transformer_lm.TransformerConfig(d_model=12, n_heads=2, n_layers=2, context=6, **options)
    init, apply = seqjax.purify(lambda key: transformer_lm.TransformerLM(config, 9, rngs=nnx.Rngs(key)))
    params = oracles.random_like(np.random.default_rng(0), jax.eval_shape(init, jax.random.key(0)), 0.6)
    state = apply(params, 2, method="init_state")
    tokens = jnp.array([[4, 5, 6], [7, 8, 0]], jnp.int32)
    state, logits = apply(params, state, tokens, jnp.array([3, 2]), method="prefill")
    step = partial(apply, method="step")
    # More tokens than columns: the ring goes round.
    found = [
        beam_search(step, params, state, logits, max_length=9, eos=EOS, beam_size=4, n_best=4, strategy=strategy)
        for strategy in ("gather", "ancestry")
    ]
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
    np.testing.assert_allclose(found[0].scores, found[1].scores, rtol=1e-4)
    # They differ in what they return only if beginnings changed places.
    assert len({tuple(text[:1]) for text in found[0].tokens[0].tolist()}) < 4

    # An ensemble of a model and itself is that model, with either strategy; one with another model is the mean.
    members = jax.tree.map(lambda a: jnp.stack([a, a]), params)
    both = decoding.ensemble(step)
    start = jax.tree.map(lambda a: jnp.stack([a, a], axis=1) if a.ndim else a, state)
    for strategy in ("gather", "ancestry"):
        doubled = beam_search(
            both, members, start, logits, max_length=9, eos=EOS, beam_size=4, n_best=4, strategy=strategy
        )
        np.testing.assert_array_equal(doubled.tokens, found[0].tokens)


def test_an_ensemble_is_the_mean_of_probabilities():
    other = problem(1)[0]
    members = jax.tree.map(lambda a, b: jnp.stack([a, b]), PARAMS, other)
    start = jax.tree.map(lambda a: jnp.stack([a, a], axis=1) if a.ndim else a, STATE)
    state, logits = decoding.ensemble(step)(members, start, jnp.array([0, 1, 2]))
    each = [step(params, STATE, jnp.array([0, 1, 2]))[1] for params in (PARAMS, other)]
    expected = np.mean([jax.nn.softmax(a) for a in each], axis=0)
    np.testing.assert_allclose(jnp.exp(logits), expected, rtol=1e-5)
    assert state.count == STATE.count + 1
    assert state.h.shape == (B, 2, 6)


def test_options_that_are_traced_compile_nothing():
    def run(alpha, beta, minimum):
        rules = Constraints(min_length=minimum)
        return search(length_penalty="wu", alpha=alpha, coverage_penalty=beta, attention=attention, constraints=rules)

    run(0.5, 0.1, 1)
    with compilations() as compiled:
        run(0.7, 0.2, 2)
    assert compiled == []


@pytest.mark.parametrize("how", ["auto", "shard_map"])
def test_rows_may_be_sharded(how):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    params, state, logits = problem(batch=4)
    search = partial(beam_search, step, max_length=5, eos=EOS, beam_size=2)
    expected = search(params, state, logits)
    specs = jax.tree.map(lambda a: P("data") if a.ndim else P(), (state, logits))
    if how == "shard_map":
        beams = jax.shard_map(search, mesh=mesh, in_specs=(P(), *specs), out_specs=P("data"))(params, state, logits)
    else:
        place = partial(jax.tree.map, lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec)))
        beams = search(params, *place((state, logits), specs))
    np.testing.assert_array_equal(beams.tokens, expected.tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size=0; it must be at least 1"),
        ({"n_best": 6}, "n_best=6 texts need a beam_size of as many, not 5"),
        ({"eos": 4}, r"eos must be a token id in \[0, 4\), not 4"),
        ({"length_penalty": "gnmt"}, "length_penalty='gnmt'; choose from none, average, wu"),
        ({"strategy": "copy"}, "strategy='copy'; choose from gather, ancestry"),
        ({"stop": "never"}, "stop='never'; choose from exact, first"),
        ({"coverage_penalty": 0.1}, "coverage_penalty and alignments need attention"),
        ({"coverage_penalty": -0.1, "attention": attention}, "coverage_penalty=-0.1; it must be at least 0"),
        ({"constraints": Constraints(min_length=-1)}, "min_length=-1; it must be a whole number, at least 0"),
        ({"constraints": Constraints(no_repeat_ngram=1.5)}, "no_repeat_ngram=1.5; it must be a whole number"),
        ({"constraints": Constraints(repetition_penalty=0.0)}, "repetition_penalty=0.0; it must be a number above 0"),
        (
            {"constraints": Constraints(prefix=jnp.zeros((3, 9), int))},
            r"prefix must be integers \[3, P\] with P at most",
        ),
        ({"constraints": Constraints(allowed=jnp.zeros(4))}, r"allowed must be bool \[4\] or \[3, 4\]"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(InputError, match=message):
        search(**options)


def test_refuses_a_state_that_does_not_have_the_batch_first():
    with pytest.raises(InputError, match=r"state has leaves of \[2, 3\] rows for logits of 3"):
        beam_search(step, PARAMS, (STATE, jnp.zeros((2, 3))), LOGITS, max_length=L)


def test_the_exact_rule_knows_that_no_text_is_longer_than_the_longest():
    """With alpha < 0 a longer text is worse: at the last token there is no longer one."""
    table = jnp.log(jnp.array([[0.0, 0.9, 0.1, 0.0], [0.0, 0.55, 0.0, 0.45], [0.25] * 4, [0.25] * 4]) + 1e-30)
    options = {"max_length": 2, "eos": 3, "beam_size": 4, "length_penalty": "average", "alpha": -1.0}
    one, four = (beam_search(lambda p, s, t: (s, p[t]), table, (), table[:1], n_best=n, **options) for n in (1, 4))
    np.testing.assert_array_equal(one.tokens[0], four.tokens[0, :1])
    np.testing.assert_array_equal(one.tokens[0, 0], [1, 1])


def test_a_prefix_overrides_the_other_rules():
    rules = Constraints(prefix=jnp.array([[1, 1, EOS]] * B), no_repeat_ngram=1, min_length=3)
    beams = search(constraints=rules)
    np.testing.assert_array_equal(beams.tokens[:, 0], [[1, 1, EOS]] * B)
    assert np.all(np.isfinite(beams.scores))
    with pytest.raises(InputError, match=r"prefix has ids 1 to 4; they must be in \[0, 4\)"):
        search(constraints=Constraints(prefix=np.array([[1, 4]] * B)))
