"""What a step does on a GPU alone, run on the CPU: kernels in the compute type, rates in one array."""

import jax
import numpy as np
import pytest

from jaxcifar.engine import step
from jaxcifar.engine.calls import narrow_kernels
from jaxcifar.machine.compiler import as_one_array
from tests.steps import Run, distance, run_steps


@pytest.mark.parametrize('fields, tolerance', [
    ({'precision': 'float32', 'optimizer.accumulate': 2}, 1e-5), ({'precision': 'bfloat16'}, 2e-3),
    ({'members': 2, 'optimizer.weight_decay': (1e-2, 0.0)}, 1e-5),
    ({'view': 'ternary', 'ternary.layers': ''}, 1e-5),
    ({'members': 2, 'devices': 4, 'precision': 'bfloat16'}, 2e-3),
])  # fmt: skip
def test_a_gpus_loop_takes_the_same_steps(fields, tolerance, config, dataset, tiny_networks, monkeypatch):
    config.network, config.augment = 'tiny', ''
    config.update_from_flattened_dict(fields)
    one, losses, _ = run_steps(config, dataset, 4)
    monkeypatch.setattr(step, 'compiler_options', dict)  # XLA on a CPU knows no options of a GPU
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    config.steps_per_call = 2
    two, last, _ = run_steps(config, dataset, 4)
    # An epoch has three steps, so that calls take two, one and one.
    np.testing.assert_allclose(last, losses[1:], rtol=tolerance)
    assert distance(one, two) < tolerance


def test_only_kernels_that_are_used_as_they_are_become_narrow(config, dataset, tiny_networks):
    def narrow(**fields):
        config.update({'network': 'tiny', 'precision': 'bfloat16', 'view': 'none', 'members': 1} | fields)
        run = Run(config, dataset)
        return narrow_kernels(run.state.params, run.config, run.mesh), run.state.params

    kernels, params = narrow()
    assert {(k.dtype.name, k.ndim) for k in jax.tree.leaves(kernels)} == {('bfloat16', 5)}
    assert len(jax.tree.leaves(kernels)) == sum(p.ndim == 5 for p in jax.tree.leaves(params))
    config.ternary.layers = ''
    for fields in ({'members': 2}, {'view': 'ternary'}):
        assert not jax.tree.leaves(narrow(**fields)[0])


def test_rates_stay_what_they_are_in_one_array(monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    rates = np.float32([0.1, 0.2]), np.float32([0, 5e-4])
    np.testing.assert_array_equal(jax.jit(as_one_array)(*rates), rates)
