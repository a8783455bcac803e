"""Metrics against scikit-learn, and the calibration error against its definition in plain Python."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from jaxcifar.runs.metrics import (
    calibration_error,
    log_probabilities,
    mcnemar,
    mean_of_probabilities,
    summarise,
)


def random_logits(*shape):
    return np.random.default_rng(0).normal(0, 2, shape).astype(np.float32)


def plain_calibration_error(confidence, correct):
    total = 0.0
    for b in range(15):
        inside = [
            (c, y) for c, y in zip(confidence, correct) if b / 15 < c <= (b + 1) / 15 or (b == 0 and c == 0)
        ]
        if inside:
            mean_confidence, accuracy = np.mean(inside, axis=0)
            total += len(inside) / len(confidence) * abs(accuracy - mean_confidence)
    return total


def test_summary_is_scikit_learns():
    logits, labels = random_logits(300, 10), np.arange(300) % 10
    logits[np.arange(300), labels] += 2
    exp = np.exp(logits.astype(np.float64))
    p = exp / exp.sum(1, keepdims=True)
    ours = summarise(log_probabilities(logits), labels)
    assert ours['accuracy'] == accuracy_score(labels, p.argmax(1))
    assert ours['top5'] == top_k_accuracy_score(labels, p, k=5) != ours['accuracy']
    assert ours['nll'] == pytest.approx(log_loss(labels, p), rel=1e-12)
    assert ours['ece'] == pytest.approx(plain_calibration_error(p.max(1), p.argmax(1) == labels), rel=1e-12)


def test_calibration_error_of_bin_edges():
    # Were bins [lower, upper), an edge would share the bin of the confidence after it, and cancel.
    edges = np.arange(16) / 15
    confidence = np.concatenate([edges, edges[:-1] + 0.01])
    correct = np.arange(31) < 16
    expected = plain_calibration_error(confidence, correct)
    assert calibration_error(confidence, correct) == pytest.approx(expected, rel=1e-12)


def test_calibrated_and_overconfident():
    confidence = np.repeat([0.1, 0.3, 0.5, 0.7, 0.9], 10)
    correct = np.tile(np.arange(10), 5) < confidence * 10
    assert calibration_error(confidence, correct) == pytest.approx(0, abs=1e-12)
    assert calibration_error(np.ones(4), np.zeros(4, bool)) == 1


def test_ensemble_is_the_mean_of_probabilities():
    log_p = log_probabilities(random_logits(3, 20, 10))
    np.testing.assert_allclose(np.exp(mean_of_probabilities(log_p)), np.exp(log_p).mean(0), rtol=1e-12)
    # exp(-2000) is 0, but its logarithm is not lost.
    assert mean_of_probabilities(np.full((2, 1, 1), -2000.0))[0, 0] == -2000


def test_ties_and_few_classes():
    """A network that says the same of every class is right by chance, not in the first five always."""
    constant = summarise(log_probabilities(np.zeros((100, 100), np.float32)), np.arange(100))
    assert (constant['accuracy'], constant['top5']) == (0.01, 0.05)
    assert summarise(log_probabilities(random_logits(20, 4)), np.arange(20) % 4)['top5'] == 1


def test_mcnemars_p_value_counts_the_tails_of_fair_coins():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 300)) < [[0.8], [0.7]]
    few, many = sorted(int(x) for x in ((a & ~b).sum(), (b & ~a).sum()))
    expected = 2 * sum(math.comb(few + many, i) for i in range(few + 1)) / 2 ** (few + many)
    assert mcnemar(a, b) == pytest.approx(expected) == mcnemar(b, a) and 0 < expected < 1
    assert mcnemar(a, a) == 1
