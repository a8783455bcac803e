"""Ternary codes, scales and gradients against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar.engine import quantize
from jaxcifar.engine.quantize import PER, dequantize, straight_through, ttq, ttq_quantize, ttq_scale, twn
from jaxcifar.formats.packed import pack_tree, to_dense

KERNELS = {
    'convolution': np.random.default_rng(0).normal(0, 0.1, (3, 3, 8, 16)),
    'dense': np.random.default_rng(1).standard_t(3, (64, 10)),
    'zeros': np.zeros((3, 3, 2, 4)),
    'constant': np.full((3, 3, 2, 4), -0.3),
    'one element': np.array([[0.2]]),
}


def reference(kernel, per, rule):
    """(codes, scale) in float64."""
    flat = kernel.reshape(-1, kernel.shape[-1]) if per == 'channel' else kernel.reshape(-1, 1)
    size = np.abs(flat)
    threshold = {'twn': 0.7 * size.mean(0), 'ttq': 0.05 * size.max(0)}[rule]
    codes = np.where(size > threshold, np.sign(flat), 0)
    scale = [np.mean(s[c != 0]) if c.any() else 0.0 for s, c in zip(size.T, codes.T)]
    return codes.reshape(kernel.shape), np.array(scale)


@pytest.mark.parametrize('per', PER)
@pytest.mark.parametrize('name', KERNELS)
def test_codes_and_scales_are_those_of_the_papers(name, per):
    kernel = KERNELS[name].astype(np.float32)
    codes, alpha = reference(kernel.astype(np.float64), per, 'twn')
    found = twn(kernel, per)
    np.testing.assert_array_equal(found.codes, codes)
    assert found.codes.dtype == jnp.int8 and found.positive is found.negative
    np.testing.assert_allclose(found.positive, alpha, rtol=2e-6)
    values = dequantize(found)
    np.testing.assert_allclose(values, alpha * codes, rtol=2e-6)
    assert len(np.unique(values)) <= 3 * len(alpha)
    bare = twn(kernel, per, scale=False)
    np.testing.assert_array_equal(dequantize(bare), codes)

    codes, alpha = reference(kernel.astype(np.float64), per, 'ttq')
    scale = ttq_scale(kernel, per)
    np.testing.assert_allclose(scale, alpha, rtol=2e-6)
    np.testing.assert_array_equal(ttq_scale(kernel, per, 1.5), np.full(alpha.shape, 1.5))
    learned = ttq(kernel, scale * 1.5, scale * 0.5)
    np.testing.assert_array_equal(learned.codes, codes)
    values = dequantize(learned)
    np.testing.assert_allclose(values, np.where(codes > 0, 1.5, 0.5) * alpha * codes, rtol=2e-6)

    for ternary in (found, bare, learned):  # and back, to the bit
        values = np.asarray(dequantize(ternary))
        again = pack_tree(values, 'trits')
        np.testing.assert_array_equal(again.ternary().codes, ternary.codes)
        np.testing.assert_array_equal(to_dense(again), values)


@pytest.mark.parametrize('per', PER)
def test_gradients_are_those_of_the_papers(per):
    kernel, g = (np.random.default_rng(s).normal(size=(3, 3, 4, 5)).astype(np.float32) for s in (2, 3))

    def twn_loss(w):
        return (straight_through(w, dequantize(twn(w, per))) * g).sum()

    np.testing.assert_array_equal(jax.grad(twn_loss)(kernel), g)

    scale = ttq_scale(kernel, per)
    p, n = scale * 1.5, scale * 0.5
    found = jax.grad(lambda *a: (ttq_quantize(*a) * g).sum(), (0, 1, 2))(kernel, p, n)
    codes = np.asarray(ttq(kernel, p, n).codes)
    factor = np.where(codes > 0, p, np.where(codes < 0, n, 1))
    axes = (0, 1, 2) if per == 'channel' else (0, 1, 2, 3)
    wanted = factor * g, (g * (codes > 0)).sum(axes), -(g * (codes < 0)).sum(axes)
    for a, b in zip(found, wanted):
        np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=1e-5, atol=1e-5)
    # The scales' are the true ones: the values are linear in them.
    np.testing.assert_allclose(
        jax.grad(lambda s: (dequantize(ttq(kernel, s, n)) * g).sum())(p), found[1], rtol=1e-5, atol=1e-5
    )
    assert quantize.TWN_THRESHOLD == 0.7 and quantize.TTQ_THRESHOLD == 0.05
