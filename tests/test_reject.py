"""Areas under risk-coverage curves, against their definition in plain Python."""

import numpy as np
import pytest

from jaxcifar import reject
from jaxcifar.data import long_tail

COUNTS = np.array([50, 25, 12, 6, 3])  # training images of each class


def plain_areas(confidence, wrong, labels, group):
    """Chow's rule in plain Python: each threshold, each group, classes as frequent as in training."""
    weights = [COUNTS[y] / list(labels).count(y) for y in labels]
    weights = [w / sum(weights) for w in weights]
    areas, before = {'error': 0.0, 'balanced': 0.0, 'worst': 0.0}, 0.0
    for t in sorted(set(confidence), reverse=True):
        answered = [i for i in range(len(labels)) if confidence[i] >= t]
        share = sum(weights[i] for i in answered)

        def error(of):
            return sum(weights[i] for i in of if wrong[i]) / (sum(weights[i] for i in of) or 1)

        errors = [error([i for i in answered if group[i] == g]) for g in (0, 1)]
        risks = {'error': error(answered), 'balanced': sum(errors) / 2, 'worst': max(errors)}
        for name, risk in risks.items():
            areas[name] += risk * (share - before)
        before = share
    return areas


def test_areas_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    labels = rng.choice(5, 60, p=[0.4, 0.3, 0.1, 0.1, 0.1])
    confidence = rng.integers(1, 20, 60) / 20  # with ties
    wrong, group = rng.random(60) < 0.4, (labels > 2).astype(int)
    expected = plain_areas(confidence, wrong, labels, group)
    weights = reject.prior_weights(labels, COUNTS)
    coverage, risks = reject.risk_coverage(confidence, wrong, weights, group)
    assert coverage[-1] == pytest.approx(1)
    for name, risk in risks.items():
        assert reject.area(coverage, risk) == pytest.approx(expected[name], rel=1e-12)
    never = reject.risk_coverage(confidence, np.zeros(60, bool), weights, group)
    assert reject.area(never[0], never[1]['worst']) == 0
    intervals = reject.bootstrap(confidence, wrong, labels, group, weights, samples=200)
    for name, (low, high) in intervals.items():
        assert low < expected[name] < high and high - low < 0.6


def test_tail_classes():
    counts = long_tail.class_sizes(np.repeat(np.arange(100), 500), 100, 100)
    assert reject.tail_classes(counts).sum() == 31
    assert reject.tail_classes(np.array([5000, 100, 50, 50])).tolist() == [False, False, True, True]
