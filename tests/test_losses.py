"""Losses against torch in float64: values and gradients, per example and per member."""

import jax
import numpy as np
import pytest
import torch

from configs import base
from jaxcifar.engine.losses import LOSSES, log_priors, make_loss
from jaxcifar.machine.errors import UserError
from jaxcifar.runs.resolve import finalize


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


def log_prior(imbalance=100, classes=100):
    counts = np.array([int(500 * (1 / imbalance) ** (i / (classes - 1))) for i in range(classes)])
    return counts, log_priors(counts)


def test_logit_adjustment_is_cross_entropy_of_shifted_logits():
    """Against torch in float64, values and gradients; and what the three are of each other."""
    counts, prior = log_prior()
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        z, y = rng.normal(0, 2, (64, 100)), rng.integers(0, 100, 64)
        for tau in (0.0, 0.5, 1.0, 2.0):
            ours, gradient = jax.value_and_grad(
                lambda z, t=tau: LOSSES['logit_adjustment'](z, y, 0.1, t, prior).sum()
            )(z)
            reference = torch.tensor(z, requires_grad=True)
            shares = torch.tensor(counts / counts.sum())
            theirs = torch.nn.functional.cross_entropy(
                reference + tau * shares.log(), torch.tensor(y), reduction='sum', label_smoothing=0.1
            )
            theirs.backward()
            np.testing.assert_allclose(ours, theirs.item(), rtol=1e-13)
            np.testing.assert_allclose(gradient, reference.grad, atol=1e-13)
        plain, adjusted, balanced = (
            LOSSES[name](z, y, tau=tau, log_prior=prior)
            for name, tau in (('cross_entropy', 1.0), ('logit_adjustment', 1.0), ('balanced_softmax', 0.3))
        )
        np.testing.assert_array_equal(LOSSES['logit_adjustment'](z, y, tau=0.0, log_prior=prior), plain)
        np.testing.assert_array_equal(balanced, adjusted)  # whatever τ
        of_counts = LOSSES['cross_entropy'](z + np.log(counts), y)  # as its paper writes it
        np.testing.assert_allclose(balanced, of_counts, rtol=1e-12)


def test_expected_losses_of_untrained_networks():
    """Over z ~ N(0,1): what was found of CIFAR-100-LT with imbalance 100."""
    _, prior = log_prior()
    z = np.random.default_rng(0).normal(size=(40_000, 100))
    with jax.enable_x64(True):
        for name, c, expected in (
            ('cross_entropy', 0, 5.094),
            ('logit_adjustment', 0, 3.556),
            ('balanced_softmax', 99, 8.165),
        ):
            losses = np.asarray(LOSSES[name](z, np.full(len(z), c), log_prior=prior))
            assert losses.mean() == pytest.approx(expected, abs=4 * losses.std() / 200)


def test_each_member_has_its_own_loss_and_tau():
    c = base.get_config()
    c.loss, c.tau = 'cross_entropy+logit_adjustment+balanced_softmax+logit_adjustment', (9.0, 0.5, 9.0, 2.0)
    config = finalize(c)
    assert config.members == 4
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(4, 8, 5)).astype(np.float32), rng.integers(0, 5, (4, 8)).astype(np.int32)
    counts = rng.integers(1, 50, (4, 5))  # each member's own training images
    losses = make_loss(config, counts)(z, y)
    for k, tau in enumerate((0.0, 0.5, 1.0, 2.0)):
        expected = LOSSES['logit_adjustment'](z[k], y[k], tau=tau, log_prior=log_priors(counts[k]))
        np.testing.assert_allclose(losses[k], expected, rtol=1e-5)
    alike = make_loss(config, counts[:1])(z, y)  # one set of images for all
    np.testing.assert_allclose(alike[0], losses[0], rtol=1e-6)
    assert np.isfinite(make_loss(config, counts * 0)(z, y)).all()  # a class that a member never sees


def test_wrong_losses_are_named():
    for loss, words in (
        ('balanced_sofmax', "did you mean 'balanced_softmax'"),
        ('a+b+c', "unknown loss 'a'"),
    ):
        c = base.get_config()
        c.loss, c.members = loss, 2 if '+' in loss else 1
        with pytest.raises(UserError, match=words):
            finalize(c)
