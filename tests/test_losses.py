import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from seqjax.errors import InputError
from seqjax.losses import (
    adaptive_cross_entropy,
    adaptive_log_probs,
    binary_cross_entropy,
    bits,
    coverage,
    cross_entropy,
    init_adaptive,
    log_uniform,
    nce,
    perplexity,
    sampled_softmax,
)


@pytest.fixture
def batch(key):
    logits = 3 * jax.random.normal(key, (4, 5, 7))
    return logits, jax.random.randint(jax.random.fold_in(key, 1), (4, 5), 0, 7)


def oracle(logits, targets, where, smoothing, z):
    logits, where = np.asarray(logits, np.float64), np.asarray(where, np.float64)
    total = 0.0
    for index in np.ndindex(*targets.shape):
        if where[index] == 0:
            continue
        row = logits[index]
        lse = np.log(np.exp(row - row.max()).sum()) + row.max()
        distribution = np.full(row.size, smoothing / row.size)
        distribution[targets[index]] += 1 - smoothing
        total += where[index] * (-(distribution * (row - lse)).sum() + z * lse**2)
    return total, where.sum()


WHERES = {
    "all": np.ones((4, 5), bool),
    "mask": np.arange(20).reshape(4, 5) % 3 > 0,
    "weights": np.linspace(0, 2, 20).reshape(4, 5).astype(np.float32),
    "none": np.zeros((4, 5), bool),
}


@pytest.mark.parametrize("z", [0.0, 1e-2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("where", WHERES)
def test_equals_the_float64_oracle(batch, where, smoothing, z):
    where = jnp.asarray(WHERES[where])
    found = cross_entropy(*batch, where=where, label_smoothing=smoothing, z_loss=z)
    np.testing.assert_allclose(found, oracle(*batch, where, smoothing, z), rtol=1e-5)


def test_equals_optax_in_value_and_gradient(batch):
    logits, targets = batch
    theirs = jax.value_and_grad(lambda x: optax.softmax_cross_entropy_with_integer_labels(x, targets).sum())(logits)
    ours = jax.value_and_grad(lambda x: cross_entropy(x, targets)[0])(logits)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), ours, theirs)


def test_smoothed_gradient_equals_optax(batch):
    logits, targets = batch
    labels = optax.smooth_labels(jax.nn.one_hot(targets, 7), 0.2)
    theirs = jax.grad(lambda x: optax.softmax_cross_entropy(x, labels).sum())(logits)
    ours = jax.grad(lambda x: cross_entropy(x, targets, label_smoothing=0.2)[0])(logits)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_masked_positions_may_hold_anything(batch, junk):
    logits, targets = batch
    keep = jnp.asarray(WHERES["mask"])
    spoilt = jnp.where(keep[..., None], logits, junk)
    ids = jnp.where(keep, targets, -100)

    @jax.value_and_grad
    def loss(x, y):
        return cross_entropy(x, y, where=keep, label_smoothing=0.1, z_loss=1e-3)[0]

    value, gradient = loss(spoilt, ids)
    expected, expected_gradient = loss(logits, targets)
    assert value == expected
    np.testing.assert_array_equal(gradient, expected_gradient)


@pytest.mark.parametrize("target", [-1, 7])
def test_a_target_outside_the_vocabulary_gives_nan(target):
    assert jnp.isnan(cross_entropy(jnp.zeros((1, 7)), jnp.array([target]))[0])


def test_excluded_classes_cost_nothing_without_smoothing():
    logits, targets = jnp.array([[0.0, 0.0, -jnp.inf]]), jnp.array([0])
    for smoothing in (0.0, jnp.float32(0)):
        loss = jax.value_and_grad(lambda x, s: cross_entropy(x, targets, label_smoothing=s)[0])
        value, gradient = loss(logits, smoothing)
        np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
        np.testing.assert_allclose(gradient, [[-0.5, 0.5, 0]], atol=1e-6)


def test_the_gradient_of_smoothing_holds_at_0():
    logits, targets = jnp.array([[1.0, 5.0, -2.0]]), jnp.array([1])
    slope = jax.grad(lambda s: cross_entropy(logits, targets, label_smoothing=s)[0])(jnp.float32(0))
    np.testing.assert_allclose(slope, 5.0 - np.mean([1.0, 5.0, -2.0]), rtol=1e-6)


@pytest.mark.parametrize("n_classes", [200, 256])
def test_narrow_targets_do_not_wrap_around(n_classes):
    logits = jnp.zeros((2, n_classes))
    assert np.isnan(cross_entropy(logits, jnp.array([-1, 3], jnp.int8))[0])
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([7, 3], jnp.int8))[0], 2 * np.log(n_classes), rtol=1e-6)


def test_options_may_be_traced_and_mapped(batch):
    study = jax.jit(jax.vmap(lambda s, z: cross_entropy(*batch, label_smoothing=s, z_loss=z)[0]))
    options = jnp.array([0.0, 0.1, 0.3]), jnp.array([1e-3, 0.0, 1e-2])
    alone = [cross_entropy(*batch, label_smoothing=float(s), z_loss=float(z))[0] for s, z in zip(*options, strict=True)]
    np.testing.assert_allclose(study(*options), jnp.stack(alone), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_logits_are_lifted(batch, dtype):
    logits, targets = batch[0].astype(dtype), batch[1]
    total, weight = cross_entropy(logits, targets)
    assert total.dtype == weight.dtype == jnp.float32
    np.testing.assert_allclose(total, cross_entropy(logits.astype(jnp.float32), targets)[0], rtol=1e-6)
    assert jax.grad(lambda x: cross_entropy(x, targets)[0])(logits).dtype == dtype


@pytest.mark.usefixtures("x64")
def test_float64_stays_float64(batch):
    logits, targets = batch[0].astype(jnp.float64), batch[1]
    options = {"label_smoothing": jnp.float32(0.5), "z_loss": jnp.float32(0.25)}
    total, weight = cross_entropy(logits, targets, where=jnp.ones((4, 5), jnp.float32), **options)
    assert total.dtype == weight.dtype == jnp.float64
    np.testing.assert_allclose(total, oracle(logits, targets, WHERES["all"], 0.5, 0.25)[0], rtol=1e-13)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_batches_may_be_sharded(batch, kind):
    loss = jax.value_and_grad(lambda x, y: cross_entropy(x, y, label_smoothing=0.1, z_loss=1e-3)[0])
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        value, gradient = jax.jit(loss)(*jax.device_put(batch, NamedSharding(mesh, P("rows"))))
    assert gradient.sharding.spec[0] == "rows"
    expected, expected_gradient = loss(*batch)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def test_no_one_hot_array_is_made(batch):
    jaxpr = jax.make_jaxpr(lambda x, y: cross_entropy(x, y, label_smoothing=0.1))(*batch)
    assert "iota[dimension=2" not in str(jaxpr)


@pytest.mark.parametrize(
    ("logits", "targets", "where", "message"),
    [
        ((2, 3, 7), jnp.zeros((2, 3)), None, "targets must be integers, not float32"),
        ((2, 3, 7), jnp.zeros((2, 4), int), None, r"logits \(2, 3, 7\) do not fit targets \(2, 4\)"),
        ((2, 3, 7), jnp.zeros((2, 3, 7), int), None, "do not fit"),
        ((2, 3, 7), jnp.zeros((2, 3), int), jnp.ones((2, 1)), r"where \(2, 1\) must have the shape of targets"),
    ],
)
def test_bad_input(logits, targets, where, message):
    with pytest.raises(InputError, match=message):
        cross_entropy(jnp.zeros(logits), targets, where=where)


def test_units():
    np.testing.assert_allclose(bits(jnp.log(jnp.array([2.0, 4.0]))), [1, 2], rtol=1e-6)
    np.testing.assert_allclose(perplexity(jnp.log(jnp.array([2.0, 9.0]))), [2, 9], rtol=1e-6)


def test_zipfian_ids_are_drawn_with_the_probabilities_they_come_with(key):
    ids, log_q = log_uniform(key, 6, 20_000)
    np.testing.assert_allclose(np.exp(log_q).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(np.bincount(ids, minlength=6) / 20_000, np.exp(log_q), atol=0.012)


@pytest.fixture
def words(key):
    """Hidden states of tokens, a table of 7 words, a bias, and targets."""
    keys = jax.random.split(key, 4)
    hidden, table = jax.random.normal(keys[0], (4, 5, 3)), jax.random.normal(keys[1], (7, 3))
    return hidden, table, jax.random.normal(keys[2], (7,)), jax.random.randint(keys[3], (4, 5), 0, 7)


@pytest.mark.parametrize("where", ["all", "weights"])
def test_sampled_softmax_of_all_words_is_the_softmax(words, where):
    hidden, table, bias, targets = words
    where = jnp.asarray(WHERES[where])

    def sampled(hidden, table, bias):
        log_q = jnp.full(7, -jnp.log(7.0))
        return sampled_softmax(hidden, table, targets, jnp.arange(7), log_q=log_q, bias=bias, where=where)[0]

    def full(hidden, table, bias):
        logits = hidden @ table.T
        return cross_entropy(logits + jnp.broadcast_to(bias, logits.shape), targets, where=where)[0]

    found, expected = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(hidden, table, bias) for loss in (sampled, full)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def test_sampled_softmax_tends_to_the_softmax(words, key):
    hidden, table, bias, _ = words
    hidden, target = hidden[0, 0], jnp.array(2)
    negatives, log_q = log_uniform(key, 7, 100_000)

    def sampled(hidden):
        return sampled_softmax(hidden, table, target, negatives, log_q=log_q, bias=bias)[0]

    found = jax.jit(jax.value_and_grad(sampled))(hidden)
    expected = jax.value_and_grad(lambda hidden: cross_entropy(table @ hidden + bias, target)[0])(hidden)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.02), found, expected)


def test_noise_contrastive_estimation_is_at_rest_where_scores_are_log_probabilities():
    p, counts = np.array([0.5, 0.3, 0.2], np.float32), np.array([2, 5, 1])
    negatives, log_q = jnp.asarray(np.repeat(np.arange(3), counts)), jnp.asarray(np.log(counts / 8), jnp.float32)

    def loss(bias, p):
        hidden, table = jnp.zeros((3, 2)), jnp.ones((3, 2))
        return nce(hidden, table, jnp.arange(3), negatives, log_q=log_q, bias=bias, where=p)[0]

    gradient = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(gradient(jnp.log(p), p), np.zeros(3), atol=1e-6)
    assert jnp.abs(gradient(jnp.log(p), np.roll(p, 1))).min() > 0.01


def test_noise_contrastive_estimation_equals_a_loop(words):
    hidden, table, bias, targets = words
    negatives, log_q = jnp.array([3, 0, 3, 6]), jnp.log(jnp.arange(1, 8) / 28)
    where = WHERES["weights"]
    total, weight = nce(hidden, table, targets, negatives, log_q=log_q, bias=bias, where=jnp.asarray(where))

    def log_sigmoid(word, index, sign):
        delta = float(hidden[index] @ table[word] + bias[word]) - np.log(4 * np.exp(float(log_q[word])))
        return -np.log1p(np.exp(-sign * delta))

    expected = 0.0
    for index in np.ndindex(*targets.shape):
        loss = -log_sigmoid(targets[index], index, 1) - sum(log_sigmoid(k, index, -1) for k in negatives.tolist())
        expected += where[index] * loss
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(weight, where.sum(), rtol=1e-6)


@pytest.mark.parametrize("loss", [sampled_softmax, nce])
def test_sampled_losses_with_masked_and_wrong_targets(words, loss):
    hidden, table, bias, targets = words
    keep, log_q = jnp.asarray(WHERES["mask"]), jnp.full(7, -jnp.log(7.0))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def run(hidden, table, targets):
        return loss(hidden, table, targets, jnp.array([1, 5]), log_q=log_q, bias=bias, where=keep)[0]

    found = run(jnp.where(keep[..., None], hidden, jnp.nan), table, jnp.where(keep, targets, -100))
    jax.tree.map(np.testing.assert_array_equal, found, run(hidden, table, targets))
    for target in (-1, 7):
        assert jnp.isnan(run(hidden, table, targets.at[0, 1].set(target))[0])
    with pytest.raises(InputError, match="negatives must be integers"):
        loss(hidden, table, targets, jnp.ones(2), log_q=log_q)
    with pytest.raises(InputError, match=r"log_q \(3,\)"):
        loss(hidden, table, targets, jnp.arange(2), log_q=jnp.zeros(3))


CUTOFFS = (3, 5, 11)


@pytest.mark.usefixtures("x64")
def test_adaptive_softmax(key):
    keys = jax.random.split(key, 3)
    params = init_adaptive(keys[0], 8, CUTOFFS, ratio=2, dtype=jnp.float64)
    assert [tail.w_down.shape for tail in params.tails] == [(8, 4), (8, 2)]
    hidden, targets = jax.random.normal(keys[1], (4, 5, 8), jnp.float64), jax.random.randint(keys[2], (4, 5), 0, 11)
    where = jnp.asarray(WHERES["weights"], jnp.float64)

    @jax.jit
    def loss(params, hidden, targets):
        return adaptive_cross_entropy(params, hidden, targets, cutoffs=CUTOFFS, where=where)

    log_p = adaptive_log_probs(params, hidden, cutoffs=CUTOFFS)
    np.testing.assert_allclose(np.exp(log_p).sum(-1), np.ones((4, 5)), rtol=1e-12)
    expected = sum(-where[i] * log_p[i][targets[i]] for i in np.ndindex(4, 5))
    np.testing.assert_allclose(loss(params, hidden, targets), (expected, where.sum()), rtol=1e-12)
    jax.test_util.check_grads(lambda *a: loss(*a, targets)[0], (params, hidden), order=1, modes="rev", rtol=1e-6)

    # where[0, 0] is 0
    spoilt = loss(params, hidden.at[0, 0].set(jnp.nan), targets.at[0, 0].set(-100))
    np.testing.assert_array_equal(spoilt, loss(params, hidden, targets))
    for target in (-1, 11):
        assert jnp.isnan(loss(params, hidden, targets.at[0, 1].set(target))[0])


def test_adaptive_softmax_rejects_other_cutoffs(key):
    for cutoffs in ((10,), (5, 5), (0, 4)):
        with pytest.raises(InputError, match="cutoffs"):
            init_adaptive(key, 8, cutoffs)
    params = init_adaptive(key, 8, CUTOFFS)
    with pytest.raises(InputError, match=r"cutoffs \(3, 6, 11\) do not fit params, which are for \(3, 5, 11\)"):
        adaptive_log_probs(params, jnp.zeros((2, 8)), cutoffs=(3, 6, 11))


def test_binary_cross_entropy_is_the_sum_over_questions(x64):
    rng = np.random.default_rng(0)
    logits, targets = 3 * rng.normal(size=(4, 3)), rng.integers(0, 2, (4, 3))
    where = np.array([[1, 1, 0], [1, 0.5, 1], [0, 0, 0], [1, 1, 1]])
    expected, slopes = 0.0, np.zeros((4, 3))
    for index in np.ndindex(4, 3):
        p, t = 1 / (1 + np.exp(-logits[index])), 0.9 * targets[index] + 0.05
        expected -= where[index] * (t * np.log(p) + (1 - t) * np.log(1 - p))
        slopes[index] = where[index] * (p - t)
    logits[where == 0] = np.nan

    def loss(logits, smoothing):
        return binary_cross_entropy(
            logits, jnp.asarray(targets, bool), where=jnp.asarray(where), label_smoothing=smoothing
        )

    (total, weight), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(logits), 0.1)
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-12)
    assert weight == 7.5
    far = binary_cross_entropy(jnp.array([1e4, -1e4]), jnp.array([False, True]))[0]
    assert far == 2e4  # no overflow
    with pytest.raises(InputError, match=r"must have one shape"):
        binary_cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2))


def test_coverage_is_the_sum_of_what_was_seen_before():
    rng = np.random.default_rng(0)
    attention = rng.dirichlet(np.ones(4), (2, 3))
    where = np.array([[1, 1, 0], [1, 1, 1]])
    expected = 0.0
    for b, t in zip(*np.nonzero(where), strict=True):
        for s in range(4):
            expected += min(attention[b, t, s], sum(attention[b, before, s] for before in range(t)))
    total, weight = coverage(jnp.asarray(attention, jnp.float32), where=jnp.asarray(where, bool))
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert weight == 5
    long = coverage(jnp.full((1, 4100, 2), 0.5, jnp.bfloat16))  # a sum in bfloat16 comes to a standstill
    assert (float(long[0]), float(long[1])) == (4099, 4100)
    with pytest.raises(InputError, match=r"attention must be \[B, T, S\] and where \[B, T\], not \(2, 3, 4\)"):
        coverage(jnp.asarray(attention, jnp.float32), where=jnp.ones((2, 4)))
