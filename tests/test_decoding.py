import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from seqjax import decoding
from seqjax.decoding import filter_logits, greedy, sample
from seqjax.errors import InputError

EOS = 3


def bigram(table, count, tokens):
    return count + 1, table[tokens]


@pytest.fixture
def table(key):
    return 2 * jax.random.normal(key, (6, 6))


def draw(table, key, rows=8, *, first=None, temperature=1.0, top_k=6, top_p=1.0, min_p=0.0, eos=EOS):
    """Samples from the bigram model; with every option given for each row, few programs serve all tests."""
    first = table[jnp.arange(rows) % 6] if first is None else first
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    options = {name: jnp.broadcast_to(value, (rows,)) for name, value in options.items()}
    return sample(bigram, table, jnp.int32(0), first, key, max_length=12, eos=eos, **options)


# --- filter_logits


def oracle(logits, temperature, top_k, top_p, min_p):
    logits = np.asarray(logits, np.float64)
    if temperature == 0:
        kept = [int(np.argmax(logits))]
        return np.where(np.isin(np.arange(logits.size), kept), logits, -np.inf)
    logits = logits / temperature
    ranked = sorted(range(logits.size), key=lambda i: (-logits[i], i))
    if top_k is not None:
        ranked = ranked[:top_k]
    if top_p is not None and top_p < 1:
        probabilities = np.exp(logits[ranked] - logits[ranked[0]])
        cumulative = np.cumsum(probabilities / probabilities.sum())
        ranked = ranked[: int(np.argmax(cumulative >= top_p)) + 1]
    if min_p:
        ranked = [i for i in ranked if np.exp(logits[i] - logits[ranked[0]]) >= min_p]
    return np.where(np.isin(np.arange(logits.size), ranked), logits, -np.inf)


# Logits in thirds and odd thresholds: ties are common, while no sum of probabilities lies on a threshold.
rows = st.lists(st.sampled_from([-np.inf, *(np.arange(-9, 10) / 3)]), min_size=8, max_size=8).filter(
    lambda row: max(row) > -np.inf
)


@settings(max_examples=60, deadline=None)
@given(
    rows,
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.none() | st.integers(1, 12),
    st.none() | st.sampled_from([0.013, 0.317, 0.619, 0.937, 1.0]),
    st.none() | st.sampled_from([0.0, 0.0123, 0.217, 0.713, 1.0]),
)
def test_filter_equals_the_oracle(row, temperature, top_k, top_p, min_p):
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    found = filter_logits(jnp.array(row, jnp.float32), **options)
    np.testing.assert_allclose(found, oracle(np.array(row, np.float32), **options), rtol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2, 3, 5, 9])
def test_exactly_k_survive_ties_those_with_lower_ids(top_k):
    kept = np.isfinite(filter_logits(jnp.zeros((2, 5)), top_k=top_k))
    np.testing.assert_array_equal(kept, np.tile(np.arange(5) < top_k, (2, 1)))


def test_the_token_that_crosses_p_stays_and_top_p_sees_what_top_k_left():
    logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))
    assert np.isfinite(filter_logits(logits, top_p=0.35)).tolist() == [False, True, False, False]
    assert np.isfinite(filter_logits(logits, top_p=0.45)).tolist() == [False, True, False, True]
    # 0.4 / 0.7 = 0.57 after top-k.
    assert np.isfinite(filter_logits(logits, top_p=0.55)).tolist() == [False, True, False, True]
    assert np.isfinite(filter_logits(logits, top_p=0.55, top_k=2)).tolist() == [False, True, False, False]


def test_top_p_of_one_keeps_all(key):
    assert np.isfinite(filter_logits(10 * jax.random.normal(key, (3, 5000)), top_p=1.0)).all()


def test_options_per_row_equal_rows_alone(key):
    logits = jax.random.normal(key, (3, 4, 9))
    t, k = jnp.linspace(0, 2, 12).reshape(3, 4), jnp.arange(1, 13).reshape(3, 4)
    p, m = jnp.linspace(0.2, 1, 12).reshape(3, 4), jnp.linspace(0, 1, 12).reshape(3, 4)
    whole = jax.jit(filter_logits)(logits, temperature=t, top_k=k, top_p=p, min_p=m)
    for i in np.ndindex(3, 4):
        alone = filter_logits(logits[i], temperature=t[i], top_k=k[i], top_p=p[i], min_p=m[i])
        np.testing.assert_allclose(whole[i], alone, rtol=1e-6)


def test_filter_without_options_is_the_identity(key):
    logits = jax.random.normal(key, (2, 5))
    np.testing.assert_array_equal(filter_logits(logits, temperature=None), logits)
    assert "sort" not in str(jax.make_jaxpr(lambda x: filter_logits(x, min_p=0.1))(logits))


def test_low_precision_is_lifted():
    assert filter_logits(jnp.zeros(4, jnp.bfloat16), top_k=2, top_p=0.5, min_p=0.5).dtype == jnp.float32


# --- sample


def test_frequencies_follow_the_filtered_distribution(key):
    logits = jnp.log(jnp.array([0.05, 0.3, 0.15, 0.25, 0.05, 0.2]))
    options = {
        "temperature": jnp.array([1.0, 2.0, 1.0, 1.0, 1.0, 0.5]),
        "top_k": jnp.array([6, 6, 3, 6, 6, 4]),
        "top_p": jnp.array([1.0, 1.0, 1.0, 0.7, 1.0, 0.9]),
        "min_p": jnp.array([0.0, 0.0, 0.0, 0.0, 0.3, 0.2]),
    }
    repeated = jax.tree.map(lambda option: jnp.repeat(option, 4000), options)
    samples = sample(
        bigram, jnp.zeros((6, 6)), jnp.int32(0), jnp.tile(logits, (24000, 1)), key, max_length=1, **repeated
    )
    tokens = np.asarray(samples.tokens).reshape(6, 4000)
    for i in range(6):
        expected = jax.nn.softmax(filter_logits(logits, **jax.tree.map(lambda option, i=i: option[i], options)))
        np.testing.assert_allclose(np.bincount(tokens[i], minlength=6) / 4000, expected, atol=0.03)


def test_rows_do_not_depend_on_the_size_of_the_batch(table, key):
    large, small = draw(table, key, rows=8), draw(table, key, rows=3)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:3], b), large, small)


def test_rows_do_not_depend_on_their_neighbours(table, key):
    def row(samples, i):
        return jax.tree.map(lambda x: np.asarray(x[i]), samples)

    common = draw(table, key, rows=3, top_k=5)
    other = draw(table, key, rows=3, temperature=jnp.array([0.0, 1.0, 7.0]), top_k=jnp.array([1, 5, 2]))
    jax.tree.map(np.testing.assert_array_equal, row(common, 1), row(other, 1))

    # Rows 0 and 2 end at once.
    first = table[jnp.arange(3)].at[jnp.array([0, 2]), EOS].set(1e4)
    early = draw(table, key, rows=3, first=first, top_k=5)
    assert early.lengths.tolist()[::2] == [1, 1]
    jax.tree.map(np.testing.assert_array_equal, row(common, 1), row(early, 1))


def test_a_row_ends_after_eos_and_scores_are_the_models(table, key):
    tokens, scores, lengths = draw(table, key, temperature=0.9, top_k=5)
    assert tokens.dtype == lengths.dtype == jnp.int32
    assert scores.dtype == jnp.float32
    assert len(set(lengths.tolist())) > 1
    assert max(lengths.tolist()) == 12
    log_p = np.asarray(jax.nn.log_softmax(table))
    for row, (score, length) in enumerate(zip(scores, lengths.tolist(), strict=True)):
        ids = tokens[row].tolist()
        assert EOS not in ids[: length - 1]
        assert length == 12 or ids[length - 1] == EOS
        assert not any(ids[length:])
        previous = [row % 6, *ids[: length - 1]]
        np.testing.assert_allclose(score, sum(log_p[p, i] for p, i in zip(previous, ids, strict=False)), rtol=1e-4)


def test_the_loop_stops_when_all_rows_have(table):
    def counted(table, count, tokens):
        jax.debug.callback(lambda: calls.append(1))
        return count + 1, table[tokens]

    calls = []
    ends = jnp.zeros((6, 6)).at[:, EOS].set(9.0)
    first = jnp.zeros((2, 6)).at[0, EOS].set(9.0).at[1, 1].set(9.0)
    samples = greedy(counted, ends, jnp.int32(0), first, max_length=50, eos=EOS)
    jax.effects_barrier()
    assert samples.lengths.tolist() == [1, 2]
    assert len(calls) == 1


def test_without_eos_every_row_is_full(table, key):
    assert draw(table, key, eos=None).lengths.tolist() == [12] * 8


def test_temperature_zero_is_greedy(table, key):
    first = table[jnp.arange(6)]
    expected = greedy(bigram, table, jnp.int32(0), first, max_length=12, eos=EOS)
    found = draw(table, key, rows=6, temperature=0.0, top_k=3, top_p=0.9)
    jax.tree.map(np.testing.assert_array_equal, expected, found)


def test_greedy_takes_the_lower_id_of_equal_ones():
    samples = greedy(bigram, jnp.zeros((6, 6)), jnp.int32(0), jnp.zeros((1, 6)).at[0, 2:4].set(1.0), max_length=1)
    assert samples.tokens.tolist() == [[2]]


def test_impossible_tokens_give_no_nan(table, key):
    banned = table.at[:, jnp.array([0, 4])].set(-jnp.inf)
    for options in ({}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.95, "min_p": 0.01}, {"temperature": 50.0}):
        samples = draw(banned, key, eos=None, **options)
        assert not np.isin(samples.tokens, [0, 4]).any()
        assert np.isfinite(samples.scores).all()


def test_vmap_over_keys_and_inside_jit(table, key):
    keys = jax.random.split(key, 3)
    mapped = jax.jit(jax.vmap(lambda key, t: draw(table, key, temperature=t, top_p=0.9), (0, 0)))
    found = mapped(keys, jnp.array([0.5, 1.0, 0.0]))
    for i, t in enumerate([0.5, 1.0, 0.0]):
        alone = draw(table, keys[i], temperature=t, top_p=0.9)
        np.testing.assert_array_equal(found.tokens[i], alone.tokens)
        np.testing.assert_allclose(found.scores[i], alone.scores, rtol=1e-5)


def test_bfloat16_model(table, key):
    low = table.astype(jnp.bfloat16)
    found, expected = draw(low, key, top_p=0.9), draw(low.astype(jnp.float32), key, top_p=0.9)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.usefixtures("x64")
def test_float64_model(table, key):
    samples = draw(table.astype(jnp.float64), key, top_k=3, top_p=0.9, min_p=0.01)
    assert [x.dtype for x in samples] == [jnp.int32, jnp.float32, jnp.int32]


def test_second_call_compiles_nothing(table, key):
    def again(key, **options):
        return sample(bigram, table, jnp.int32(0), table, key, max_length=12, eos=EOS, **options)

    again(key, temperature=0.7, top_k=3)
    compiled = decoding._sample._cache_size()
    again(jax.random.key(7), temperature=1, top_k=np.int64(2))
    again(key, temperature=np.float32(1.5), top_k=jnp.int32(4))
    assert decoding._sample._cache_size() == compiled


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_rows_may_be_sharded(table, key, kind):
    def step(table, state, tokens):
        return state, jax.nn.one_hot(tokens, 6) @ table

    def generate(first):
        return sample(step, table, (), first, key, max_length=12, top_k=5, top_p=0.9, min_p=0.01, eos=EOS)

    first = jnp.tile(table, (2, 1))[:8]
    expected = generate(first)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        found = jax.jit(generate)(jax.device_put(first, NamedSharding(mesh, P("rows"))))
    assert found.tokens.sharding.spec[0] == "rows"
    np.testing.assert_array_equal(found.tokens, expected.tokens)


# --- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0; it must be at least 0"),
        ({"temperature": np.inf}, "temperature=inf; it must be at least 0 and finite"),
        ({"temperature": jnp.array([1.0, np.nan])}, r"temperature=\[ *1. nan\]; it must be at least 0"),
        ({"temperature": jnp.ones(3)}, r"temperature must be a scalar or have the shape \(2,\)"),
        ({"top_k": 0}, "top_k=0; it must be at least 1 and whole"),
        ({"top_k": 0.9}, "top_k=0.9; it must be at least 1 and whole"),
        ({"top_k": 1.5}, "top_k=1.5; it must be at least 1 and whole"),
        ({"top_p": 0.0}, "top_p=0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p=1.1; it must be above 0 and at most 1"),
        ({"min_p": -0.1}, "min_p=-0.1; it must be from 0 to 1"),
        ({"min_p": 2}, "min_p=2; it must be from 0 to 1"),
        ({"max_length": 0}, "max_length=0; it must be at least 1"),
        ({"eos": 6}, r"eos must be a token id in \[0, 6\), not 6"),
    ],
)
def test_bad_options(table, key, options, message):
    with pytest.raises(InputError, match=message):
        sample(bigram, table, jnp.int32(0), table[:2], key, **{"max_length": 3, **options})


def test_nothing_may_be_scored_and_no_row_searched(table):
    state, none = jnp.int32(0), jnp.zeros((2, 0), jnp.int32)
    assert decoding.score(bigram, table, state, table[:2], none, jnp.zeros(2, jnp.int32)).shape == (2, 0)
    expected = greedy(bigram, table, state, table[:2], max_length=3)
    found = greedy(bigram, table, state, table[:2], max_length=3, constraints=decoding.Constraints(prefix=none))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    beams = decoding.beam_search(bigram, table, state, table[:0], max_length=3, beam_size=2)
    assert beams.tokens.shape == (0, 1, 3)


def test_bad_logits(table):
    with pytest.raises(InputError, match=r"logits must be \[B, V\]"):
        greedy(bigram, table, jnp.int32(0), jnp.zeros((2, 3, 6)), max_length=3)
