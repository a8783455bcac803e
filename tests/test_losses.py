"""Losses against torch in float64: values and gradients, per example and per member."""

import jax
import numpy as np
import torch

from jaxcifar.losses import LOSSES


def test_cross_entropy_is_torchs():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (3, 8, 10)).astype(np.float32)
    logits[:, 0] *= 100  # exp of these overflows
    labels = rng.integers(0, 10, (3, 8)).astype(np.int32)
    weights = rng.normal(size=(3, 8)).astype(np.float32)
    smoothing = np.array([0, 0.1, 0.5], np.float32)

    def ours(z):
        losses = jax.vmap(LOSSES['cross_entropy'])(z, labels, smoothing)  # as the step does
        return (losses * weights).sum(), losses

    (_, losses), gradient = jax.value_and_grad(ours, has_aux=True)(logits)
    assert losses.shape == (3, 8)
    for k, epsilon in enumerate([0, 0.1, 0.5]):
        z = torch.tensor(logits[k], dtype=torch.float64, requires_grad=True)
        reference = torch.nn.functional.cross_entropy(
            z, torch.tensor(labels[k], dtype=torch.long), reduction='none', label_smoothing=epsilon
        )
        (reference * torch.tensor(weights[k])).sum().backward()
        np.testing.assert_allclose(losses[k], reference.detach(), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(gradient[k], z.grad, atol=1e-6)


def test_no_smoothing_is_the_default():
    logits, labels = np.log([[0.5, 0.25, 0.25]]), np.array([1])
    np.testing.assert_allclose(LOSSES['cross_entropy'](logits, labels), [np.log(4)], rtol=1e-6)
