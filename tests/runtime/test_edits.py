"""The numpy reference maths: against StyleCLIP's own lines, and its properties for any input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime import edits

FINITE = st.floats(-100, 100, width=32)


def styleclip_get_fs(fs: np.ndarray) -> np.ndarray:
    """`GetFs` of the released code, line by line in numpy."""
    fs1 = fs / np.linalg.norm(fs, axis=-1)[:, :, :, None]
    fs2 = fs1[:, :, 1, :] - fs1[:, :, 0, :]
    fs3 = fs2 / np.linalg.norm(fs2, axis=-1)[:, :, None]
    fs3 = fs3.mean(axis=1)
    return fs3 / np.linalg.norm(fs3, axis=-1)[:, None]


def case(seed: int, channels: int = 40, width: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    table = edits.normalise(rng.standard_normal((channels, width)))
    table[-5:] = 0  # toRGB rows
    return table, edits.normalise(rng.standard_normal(width)), rng.uniform(0.1, 2, channels)


def test_channel_directions_equal_getfs():
    features = np.random.default_rng(0).standard_normal((7, 5, 2, 16))
    np.testing.assert_allclose(edits.channel_directions(features), styleclip_get_fs(features), atol=1e-12)


def test_channel_directions_keep_float32_and_a_dead_channel_is_zero():
    features = np.random.default_rng(0).standard_normal((3, 4, 2, 8)).astype(np.float32)
    features[1, :, 1] = features[1, :, 0]
    table = edits.channel_directions(features)
    assert table.dtype == np.float32
    assert not table[1].any()
    np.testing.assert_allclose(np.linalg.norm(table[[0, 2]], axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 2, 8), (3, 4, 3, 8), (8,)])
def test_channel_directions_refuse_other_shapes(shape):
    with pytest.raises(InputError, match=r"\[C, n, 2, E\]"):
        edits.channel_directions(np.zeros(shape))


def test_direction_equals_getboundary():
    table, delta_t, sigma = case(1)
    r = table @ delta_t
    r[np.abs(r) < 0.2] = 0
    expected = sigma * (r / np.abs(r).max())
    np.testing.assert_allclose(edits.direction(table, delta_t, 0.2, sigma), expected, atol=1e-15)


def test_direction_of_a_batch_equals_its_rows():
    table, delta_t, sigma = case(2)
    other = case(3)[1]
    both = edits.direction(table, np.stack([delta_t, other]), np.array([0.1, 0.3]), sigma)
    np.testing.assert_allclose(both[0], edits.direction(table, delta_t, 0.1, sigma), atol=1e-12)
    np.testing.assert_allclose(both[1], edits.direction(table, other, 0.3, sigma), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_beta_moves_a_subset_of_the_channels(seed, one, other):
    table, delta_t, sigma = case(seed)
    low, high = sorted((one, other))
    few = edits.direction(table, delta_t, high, sigma)
    many = edits.direction(table, delta_t, low, sigma)
    assert set(edits.channels(few)) <= set(edits.channels(many))
    if few.any():
        np.testing.assert_array_equal(few[few != 0], many[few != 0])


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (6, 4), elements=FINITE), arrays(np.float32, 4, elements=FINITE), st.floats(0, 2, width=32))
def test_direction_is_never_nan(table, delta_t, beta):
    delta_s = edits.direction(table, delta_t, beta, np.ones(6, np.float32))
    assert np.isfinite(delta_s).all()
    assert np.abs(delta_s).max() <= 1
    assert np.isfinite(edits.prompt_embedding(table)).all()
    assert np.isfinite(edits.channel_directions(table.reshape(3, 1, 2, 4))).all()


def test_no_channel_left_is_zero_and_torgb_rows_never_move():
    table, delta_t, sigma = case(4)
    assert not edits.direction(table, delta_t, 1.01, sigma).any()
    assert edits.channels(edits.direction(table, delta_t, 0, sigma)).max() < 35


def test_apply_with_alpha_zero_is_exact_and_negative_alpha_is_the_mirror():
    rng = np.random.default_rng(0)
    s, delta_s = rng.standard_normal((2, 9)).astype(np.float32), rng.standard_normal(9).astype(np.float32)
    np.testing.assert_array_equal(edits.apply(s, delta_s, 0), s)
    np.testing.assert_allclose(edits.apply(s, delta_s, 2) + edits.apply(s, delta_s, -2), 2 * s, atol=1e-6)
    assert edits.apply(s, delta_s, 2).dtype == np.float32


def test_text_direction_is_unit_and_refuses_equal_texts():
    target, neutral = np.random.default_rng(0).standard_normal((2, 8))
    delta_t = edits.text_direction(target, neutral)
    np.testing.assert_allclose(delta_t, (target - neutral) / np.linalg.norm(target - neutral))
    with pytest.raises(InputError, match="neutral"):
        edits.text_direction(target, target)


def test_prompt_embedding_normalises_before_and_after_the_mean():
    one, other = np.array([10.0, 0.0]), np.array([0.0, 1.0])
    np.testing.assert_allclose(edits.prompt_embedding([one, other]), np.array([1, 1]) / np.sqrt(2))


def test_suggested_beta_follows_styleclips_rule_at_ffhq_size():
    r = np.zeros(9088)
    r[:6048] = 0.05
    r[:21] = 0.234  # more than 20 channels at 0.23, none above
    assert edits.suggested_beta(r) == 0.23
    r[20] = 0.05  # 20 are not more than 20
    assert edits.suggested_beta(r) == 0.10


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-6, 1))
def test_suggested_beta_always_leaves_a_channel(seed, scale):
    table, delta_t, _sigma = case(seed)
    r = edits.relevance(table, delta_t) * scale
    beta = edits.suggested_beta(r)
    assert 0 < beta <= 0.29
    assert np.count_nonzero(np.abs(r) >= beta) >= 1


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_beta_keeping_keeps_a_fraction_of_what_moves_on_any_scale(scale):
    r = np.concatenate([np.zeros(40), scale * np.random.default_rng(2).permutation(np.linspace(-1, 0.99, 160))])
    for fraction, wanted in ((1 / 16, 10), (0.5, 80), (0.0, 1)):
        beta = edits.beta_keeping(r, fraction)
        assert np.count_nonzero(np.abs(r) >= beta) in (wanted, wanted + 1)  # cut to three digits
    with pytest.raises(InputError, match="every relevance is zero"):
        edits.beta_keeping(np.zeros(3), 0.5)


def test_suggested_beta_of_a_dead_prompt_is_an_error():
    with pytest.raises(InputError, match="relevance is zero"):
        edits.suggested_beta(np.zeros(5))


def test_cosine():
    assert edits.cosine([1, 0], [2, 0]) == pytest.approx(1)
    assert edits.cosine([1, 0], [0, 3]) == 0
    assert edits.cosine([0, 0], [1, 1]) == 0


def test_half_precision_is_computed_in_float32():
    table, delta_t, sigma = (x.astype(np.float16) for x in case(5))
    assert edits.direction(table, delta_t, 0.1, sigma).dtype == np.float32
