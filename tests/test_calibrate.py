"""Temperatures: known ones are found, and they do what they are for."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxcifar import calibrate


@pytest.mark.parametrize('known', [0.25, 1.0, 3.0])
def test_a_known_temperature_is_found(known):
    """Labels as often as the probabilities say: 4 rows of (½, ¼, ¼) and 8 of (⅝, ⅛, ¼)."""
    p = np.repeat([[0.5, 0.25, 0.25], [0.625, 0.125, 0.25]], [4, 8], axis=0)
    labels = np.repeat([0, 1, 2, 0, 1, 2], [2, 1, 1, 5, 1, 2])
    assert calibrate.temperature(known * np.log(p), labels) == pytest.approx(known, abs=1e-3)


def test_the_mean_has_a_temperature_of_its_own():
    """Two members that are right in turn, and sure of themselves: their mean is not."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 3000)
    z = rng.normal(0, 1, (2, 3000, 3))
    z[:, np.arange(3000), labels] += 1
    images = {'val_lt': SimpleNamespace(labels=labels), 'test': SimpleNamespace(labels=labels)}
    found = calibrate.fit({'val_lt': 5 * z, 'test': 5 * z}, images, ['a', 'b'])
    for member in (*found['members'], found['mean']):
        numbers = member['parts']['test']
        assert numbers['after']['nll'] < numbers['before']['nll'] and numbers['after']['ece'] < 0.05
    assert found['members'][0]['temperature'] > 3 and found['mean']['temperature'] < 1
