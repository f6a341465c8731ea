import itertools
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from seqjax import crf
from seqjax.crf import CRF
from seqjax.errors import InputError

FULL, SLOW = pytest.mark.full, ("scan", "associative")
T, B, Y = 6, 5, 4
LENGTHS = jnp.array([6, 0, 1, 3, 5], jnp.int32)
close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)


def draw(seed=0, *, steps=T, rows=B, n_tags=Y, spread=2.0, dtype=np.float64):
    """Parameters, scores and tags."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(spread * rng.normal(size=shape), dtype)  # noqa: E731
    params = CRF(normal(n_tags, n_tags), normal(n_tags), normal(n_tags))
    return params, normal(steps, rows, n_tags), jnp.asarray(rng.integers(0, n_tags, (steps, rows)))


def score_of(params, scores, tags):
    """The score of one tagging, by scores [n, Y]."""
    if not len(tags):
        return 0.0
    total = params.b_start[tags[0]] + params.b_end[tags[-1]]
    for t, tag in enumerate(tags):
        total += scores[t, tag]
        if t > 0:
            total += params.w_transition[tags[t - 1], tag]
    return total


def enumerate_all(params, scores, length):
    """All taggings of one sequence and their scores, best first; log Z; the marginals [T, Y]."""
    params, scores = jax.tree.map(np.asarray, (params, scores))
    found = itertools.product(range(scores.shape[1]), repeat=length)
    ranked = sorted(((score_of(params, scores, tags), tags) for tags in found), reverse=True)
    log_z = math.log(math.fsum(math.exp(score) for score, _ in ranked))
    marginals = np.zeros(scores.shape)
    for score, tags in ranked:
        for t, tag in enumerate(tags):
            marginals[t, tag] += math.exp(score - log_z)
    return ranked, log_z, marginals


@pytest.fixture(scope="module")
def truth():
    """The enumeration of each row."""
    with jax.enable_x64(True):
        params, scores, _ = draw()
    return [enumerate_all(params, scores[:, b], n) for b, n in enumerate(LENGTHS.tolist())]


@pytest.mark.fast
@pytest.mark.parametrize("implementation", crf.IMPLEMENTATIONS)
def test_log_partition_and_marginals_equal_enumeration(x64, truth, implementation):
    params, scores, _ = draw()
    close(crf.log_partition(params, scores, LENGTHS, implementation=implementation), [log_z for _, log_z, _ in truth])
    found = jax.jit(partial(crf.marginals, implementation=implementation))(params, scores, LENGTHS)
    close(found, np.stack([marginals for *_, marginals in truth], axis=1))


@pytest.mark.fast
def test_viterbi_and_k_best_equal_enumeration(x64, truth):
    params, scores, _ = draw()
    tags, best = crf.viterbi(params, scores, LENGTHS)
    many, ranks = crf.k_best(params, scores, LENGTHS, 7)
    assert (tags.dtype, many.dtype) == (jnp.int32, jnp.int32)
    for b, (ranked, *_) in enumerate(truth):
        n, count = int(LENGTHS[b]), min(7, len(ranked))
        close(best[b], ranked[0][0])
        assert tags[:, b].tolist() == [*ranked[0][1], *[0] * (T - n)]
        close(ranks[b], [*(score for score, _ in ranked[:count]), *[-np.inf] * (7 - count)])
        assert many[b].tolist() == [[*tags, *[0] * (T - n)] for _, tags in ranked[:count]] + [[0] * T] * (7 - count)


def test_more_taggings_are_asked_for_than_there_are(x64):
    params, scores, _ = draw(steps=3, rows=2, n_tags=2)
    tags, best = crf.k_best(params, scores, jnp.array([3, 2]), 10)
    assert np.isfinite(best).sum(axis=1).tolist() == [8, 4]
    assert len({tuple(row) for row in tags[0, :8].tolist()}) == 8


def test_the_score_of_given_tags(x64):
    params, scores, tags = draw()
    plain, rows, given = jax.tree.map(np.asarray, (params, scores, tags))
    expected = [score_of(plain, rows[:n, b], given[:n, b]) for b, n in enumerate(LENGTHS.tolist())]
    found = crf.score(params, scores, tags, LENGTHS)
    close(found, expected)
    total, weight = jax.jit(crf.negative_log_likelihood)(params, scores, tags, LENGTHS)
    close(total, np.sum(crf.log_partition(params, scores, LENGTHS) - found))
    assert int(weight) == 15


def loss(params, scores, tags, lengths, implementation=None):
    return crf.negative_log_likelihood(params, scores, tags, lengths, implementation=implementation)[0]


@pytest.mark.parametrize("implementation", crf.IMPLEMENTATIONS)
def test_gradients_equal_finite_differences(x64, implementation):
    params, scores, tags = draw()
    run = jax.jit(lambda params, scores: loss(params, scores, tags, LENGTHS, implementation))
    jax.test_util.check_grads(run, (params, scores), order=1, modes=["rev"], rtol=1e-6, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("implementation", crf.IMPLEMENTATIONS)
def test_second_derivatives(x64, implementation):
    params, scores, tags = draw(steps=3, rows=2, n_tags=2)
    run = jax.jit(lambda params, scores: loss(params, scores, tags, jnp.array([3, 2]), implementation))
    jax.test_util.check_grads(run, (params, scores), order=2, modes=["rev"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["fused", *(pytest.param(name, marks=FULL) for name in SLOW)])
def test_padding_changes_nothing(implementation):
    """Alone, without padding; and with more of it, which holds NaN and tags that there are not."""
    params, scores, tags = draw(dtype=np.float32)
    run = jax.jit(jax.value_and_grad(partial(loss, implementation=implementation), argnums=(0, 1)))
    expected, (dparams, dscores) = run(params, scores, tags, LENGTHS)

    beyond = np.arange(T + 3)[:, None] >= np.asarray(LENGTHS)
    padded = jnp.where(beyond[:, :, None], jnp.nan, jnp.pad(scores, ((0, 3), (0, 0), (0, 0))))
    wrong = jnp.where(beyond, -7, jnp.pad(tags, ((0, 3), (0, 0))))
    found, (dparams_found, dscores_found) = run(params, padded, wrong, LENGTHS)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), dparams_found, dparams)
    np.testing.assert_allclose(dscores_found[:T], dscores, rtol=1e-4, atol=1e-5)
    assert not jnp.any(jnp.where(beyond[:, :, None], dscores_found, 0))
    n = int(LENGTHS[3])
    alone = crf.log_partition(params, scores[:n, 3:4], LENGTHS[3:4], implementation=implementation)
    np.testing.assert_allclose(alone, crf.log_partition(params, scores, LENGTHS)[3:4], rtol=1e-6)


def test_padding_changes_no_decoded_tags():
    params, scores, _ = draw(dtype=np.float32)
    beyond = np.arange(T + 2)[:, None, None] >= np.asarray(LENGTHS)[:, None]
    padded = jnp.where(beyond, jnp.nan, jnp.pad(scores, ((0, 2), (0, 0), (0, 0))))
    (found, best), (expected, plain) = (crf.viterbi(params, x, LENGTHS) for x in (padded, scores))
    np.testing.assert_array_equal(best, plain)
    np.testing.assert_array_equal(found, jnp.pad(expected, ((0, 2), (0, 0))))
    (found, best), (expected, plain) = (crf.k_best(params, x, LENGTHS, 3) for x in (padded, scores))
    np.testing.assert_array_equal(best, plain)
    np.testing.assert_array_equal(found, jnp.pad(expected, ((0, 0), (0, 0), (0, 2))))


def test_the_products_hand_over_where_they_would_lose_digits():
    """Only tag 1 is likely at the second step, from which no product of exponentials knows that it may have come."""
    w = jnp.where(jnp.eye(3, dtype=bool), 0.0, crf.FORBIDDEN)
    scores = jnp.array([[[0.0, -200.0, -300.0]], [[-500.0, 0.0, 0.5]]])
    run = lambda scores: crf.log_partition(CRF(w, jnp.zeros(3), jnp.zeros(3)), scores, jnp.array([2]))[0]  # noqa: E731
    found, gradient = jax.jit(jax.value_and_grad(run))(scores)
    np.testing.assert_allclose(found, -200, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, 0], [[0, 1, 0], [0, 1, 0]], atol=1e-6)


def test_half_precision_scores_are_added_up_in_float32():
    params, scores, tags = draw(dtype=np.float32)
    low = scores.astype(jnp.bfloat16)
    run = jax.jit(crf.negative_log_likelihood)
    found = run(params, low, tags, LENGTHS)
    assert {a.dtype for a in (*found, jax.eval_shape(crf.marginals, params, low, LENGTHS))} == {jnp.dtype("float32")}
    expected = run(params, low.astype(jnp.float32), tags, LENGTHS)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_tag_that_does_not_exist_is_nan():
    params, scores, tags = draw(dtype=np.float32)
    for wrong in (-1, Y):
        found = crf.score(params, scores, tags.at[1, 3].set(wrong), LENGTHS)
        assert np.isnan(found).tolist() == [False, False, False, True, False]


# --- constraints

LABELS = {
    "BIO": ["O", "B-X", "I-X", "B-Y", "I-Y"],
    "IOB1": ["O", "B-X", "I-X", "B-Y", "I-Y"],
    "BIOES": ["O", "B-X", "I-X", "E-X", "S-X", "B-Y", "E-Y"],
}


def is_proper(tags, scheme):
    """Whether each span begins and ends as the scheme says, by reading the tags from left to right."""
    span = None  # the type of the span that the word before is in, or may be in
    for tag in tags:
        letter, _, kind = tag.partition("-")
        if scheme == "BIO" and letter == "I" and span != kind:
            return False
        if scheme == "IOB1" and letter == "B" and span != kind:
            return False
        if scheme == "BIOES" and (letter in "IE") != (span is not None):
            return False
        if scheme == "BIOES" and letter in "IE" and span != kind:
            return False
        goes_on = "B I" if scheme == "BIOES" else "B I E S"
        span = kind if letter in goes_on.split() else None
    return scheme != "BIOES" or span is None


@pytest.mark.fast
@pytest.mark.parametrize("scheme", LABELS)
def test_forbidden_transitions_have_probability_0(scheme):
    labels = LABELS[scheme]
    params, scores, _ = draw(steps=3, rows=4, n_tags=len(labels), dtype=np.float32)
    constrained = crf.constrain(params, crf.allowed_transitions(labels, scheme))
    lengths = jnp.array([3, 2, 1, 3])
    proper = [[tags for tags in itertools.product(labels, repeat=n) if is_proper(tags, scheme)] for n in range(4)]
    plain, rows = jax.tree.map(np.asarray, (params, scores))
    numbers = {label: i for i, label in enumerate(labels)}
    best, _ = crf.viterbi(constrained, scores, lengths)
    many, ranks = crf.k_best(constrained, scores, lengths, 400)
    log_z = crf.log_partition(constrained, scores, lengths)
    for b, n in enumerate(lengths.tolist()):
        taggings = {tuple(numbers[label] for label in tags) for tags in proper[n]}
        assert tuple(best[:n, b].tolist()) in taggings
        assert {tuple(tags[:n]) for tags in many[b, : len(taggings)].tolist()} == taggings
        assert not np.any(ranks[b, len(taggings) :] > crf.FORBIDDEN / 2)
        total = np.logaddexp.reduce([score_of(plain, rows[:, b], tags) for tags in taggings])
        np.testing.assert_allclose(log_z[b], total, rtol=1e-5)


def test_what_is_constrained_has_no_gradient(key):
    allowed = crf.allowed_transitions(LABELS["BIO"])
    params, scores, tags = draw(n_tags=5, dtype=np.float32)
    run = jax.jit(jax.grad(lambda params: loss(crf.constrain(params, allowed), scores, tags, LENGTHS)))
    gradient = run(params)
    assert np.isfinite(gradient.w_transition).all()
    assert not np.any(np.where(allowed.w_transition, 0, gradient.w_transition))
    assert np.all(gradient.w_transition[0, np.asarray(allowed.w_transition[0])] != 0)


# --- transformations, memory, devices


@pytest.mark.parametrize("implementation", ["fused", *(pytest.param(name, marks=FULL) for name in SLOW)])
def test_maps_over_parameters(implementation):
    params, scores, tags = draw(dtype=np.float32)

    some = jax.tree.map(lambda a: jnp.stack([a, 2 * a, -a]), params)
    run = jax.value_and_grad(partial(loss, implementation=implementation), argnums=(0, 1))
    found = jax.jit(jax.vmap(run, in_axes=(0, None, None, None)))(some, scores, tags, LENGTHS)
    single = jax.jit(run)
    for i in range(3):
        one = jax.tree.map(lambda a, i=i: a[i], some)
        expected = single(one, scores, tags, LENGTHS)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5), found, expected)


def test_decodes_with_several_parameters():
    params, scores, _ = draw(dtype=np.float32)
    some = jax.tree.map(lambda a: jnp.stack([a, -a]), params)
    decode = lambda params: (crf.viterbi(params, scores, LENGTHS), crf.k_best(params, scores, LENGTHS, 3))  # noqa: E731
    found = jax.jit(jax.vmap(decode))(some)
    for i in range(2):
        expected = decode(jax.tree.map(lambda a, i=i: a[i], some))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6), found, expected)


@pytest.mark.parametrize("implementation", ["scan", "fused"])
def test_there_is_no_matrix_for_each_token(implementation):
    steps, rows, n_tags = 37, 11, 13
    params, scores, tags = draw(steps=steps, rows=rows, n_tags=n_tags, dtype=np.float32)
    run = jax.jit(jax.value_and_grad(partial(loss, implementation=implementation), argnums=(0, 1)))
    compiled = run.lower(params, scores, tags, jnp.full(rows, steps)).compile()
    sizes = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", compiled.as_text())]
    assert max(sizes) <= steps * rows * n_tags
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * steps * rows * n_tags * n_tags


@pytest.mark.parametrize("how", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=FULL), "shard_map"], ids=str)
def test_batches_may_be_sharded(how):
    params, scores, tags = draw(rows=8, dtype=np.float32)
    arguments = params, scores, tags, jnp.array([6, 0, 1, 3, 5, 6, 2, 2])
    expected = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*arguments)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto if how == "shard_map" else how,))
    specs = P(), P(None, "data"), P(None, "data"), P("data")
    placed = jax.device_put(arguments, tuple(NamedSharding(mesh, spec) for spec in specs))
    run = loss
    if how == "shard_map":
        run = jax.shard_map(
            lambda *arguments: jax.lax.psum(loss(*arguments), "data"), mesh=mesh, in_specs=specs, out_specs=P()
        )
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.value_and_grad(run, argnums=(0, 1))).lower(*placed).compile()
        found = compiled(*placed)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)
    sums = [line for line in compiled.as_text().splitlines() if " all-reduce" in line]
    assert sums
    # In the loops of the branch that takes over where products lose digits, there may be some.
    assert not any("while" in line and "branch" not in line for line in sums)


def test_decodes_a_sharded_batch():
    params, scores, _ = draw(rows=8, dtype=np.float32)
    arguments = params, scores, jnp.array([6, 0, 1, 3, 5, 6, 2, 2])
    decode = lambda *arguments: (crf.viterbi(*arguments), crf.k_best(*arguments, 2))  # noqa: E731
    expected = jax.jit(decode)(*arguments)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    specs, rows = (P(), P(None, "data"), P("data")), P("data")
    placed = jax.device_put(arguments, tuple(NamedSharding(mesh, spec) for spec in specs))
    mapped = jax.shard_map(decode, mesh=mesh, in_specs=specs, out_specs=((P(None, "data"), rows), (rows, rows)))
    for run in (decode, mapped):
        jax.tree.map(np.testing.assert_array_equal, jax.jit(run)(*placed), expected)


def test_one_program_decodes_any_size():
    params, scores, _ = draw(dtype=np.float32)
    t, b = jax.export.symbolic_shape("t, b")
    shapes = jax.ShapeDtypeStruct((t, b, Y), jnp.float32), jax.ShapeDtypeStruct((b,), jnp.int32)
    exported = jax.export.export(crf.viterbi)(params, *shapes)
    for steps, rows in ((T, B), (1, 2)):
        found = exported.call(params, scores[:steps, :rows], LENGTHS[:rows])
        jax.tree.map(np.testing.assert_array_equal, found, crf.viterbi(params, scores[:steps, :rows], LENGTHS[:rows]))


def test_parameters_and_their_axes(key):
    params = crf.init(key, 3)
    assert jax.tree.map(jnp.shape, params) == CRF((3, 3), (3,), (3,))
    assert jax.tree.map(len, crf.AXES) == jax.tree.map(jnp.ndim, params)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, s, n: crf.log_partition(p, s[0], n), r"scores must be floats \[T, B, Y\]"),
        (lambda p, s, n: crf.viterbi(p, s[:0], n), "with T of at least 1"),
        (lambda p, s, n: crf.viterbi(p, s, n[1:]), r"lengths must be integers \[B\] = \(5,\), not int32 \(4,\)"),
        (lambda p, s, n: crf.viterbi(p, s[:, :, 1:], n), r"do not fit scores of 3 tags: make them with init\(key, 3\)"),
        (lambda p, s, n: crf.score(p, s, s[0], n), r"tags must be integers \[T, B\] = \(6, 5\)"),
        (lambda p, s, n: crf.k_best(p, s, n, 0), "k=0; it must be at least 1"),
        (
            lambda p, s, n: crf.log_partition(p, s, n, implementation="exact"),
            "implementation='exact'; choose one of scan",
        ),
        (lambda p, s, n: crf.allowed_transitions(["O"], "IOB"), "scheme='IOB': there is no such scheme"),
        (lambda p, s, n: crf.allowed_transitions(["O", "E-X"]), "label 'E-X': is none of BIO; write O, or one of B, I"),
        (lambda p, s, n: crf.init(jax.random.key(0), 0), "n_tags=0"),
    ],
)
def test_what_does_not_fit(call, message):
    params, scores, _ = draw(dtype=np.float32)
    with pytest.raises(InputError, match=message):
        call(params, scores, LENGTHS)
