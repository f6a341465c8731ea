import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from seqjax.errors import InputError
from seqjax.losses import bits, cross_entropy, perplexity


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
