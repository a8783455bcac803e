"""What a step does on a GPU alone, run on the CPU: kernels in the compute type, rates in one array."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxcifar.engine import step
from jaxcifar.engine.calls import cast_at_once
from jaxcifar.machine.compiler import as_one_array
from jaxcifar.models import NETWORKS
from tests.steps import Run, Tiny, distance, run_steps


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


def test_only_what_networks_cast_at_once_becomes_narrow(config, dataset, tiny_networks, monkeypatch):
    class Wide(Tiny):
        """Adds a position to each pixel, and convolves in float32."""

        @nn.compact
        def __call__(self, x):
            x = nn.Conv(3, (3, 3), name='wide')(
                x + self.param('position', nn.initializers.ones, (1, 8, 8, 3))
            )
            return super().__call__(x)

    monkeypatch.setitem(NETWORKS, 'wide', Wide)

    def narrow(**fields):
        given = {'network': 'tiny', 'precision': 'bfloat16', 'view': 'none', 'members': 1} | fields
        config.update_from_flattened_dict(given)
        run = Run(config, dataset)
        cast = cast_at_once(run.population, run.state.params, (8, 8, 3), run.config.precision)
        return {jax.tree_util.keystr(path) for path, do in jax.tree_util.tree_leaves_with_path(cast) if do}

    assert narrow() == narrow(network='wide') == {"[0]['conv1']['kernel']"}
    ternary = {'view': 'ternary', 'ternary.layers': 'conv'}
    for fields in ({'members': 2}, {'precision': 'float32'}, ternary):
        assert not narrow(**fields)
    assert narrow(view='ternary', **{'ternary.layers': 'fc'})  # convolutions stay floats


def test_gradients_of_narrow_kernels_are_float32(config, dataset, tiny_networks):
    config.network, config.precision, config.optimizer.accumulate = 'tiny', 'bfloat16', 2
    run = Run(config, dataset)
    taken = step.TrainStep(run.config, run.population, dataset, 3)
    narrow = jax.tree.map(lambda p: p.astype('bfloat16') if p.ndim == 5 else p, run.state.params)
    images, targets = taken.augment_batch(next(iter(run.batches(1))), run.state.step)
    keys = taken.dropout_keys(run.state.step)
    grads, *_ = jax.eval_shape(taken.gradients, run.state.replace(params=narrow), images, targets, keys)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(grads)} == {'float32'}


def test_rates_stay_what_they_are_in_one_array(monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    rates = np.float32([0.1, 0.2]), np.float32([0, 5e-4])
    np.testing.assert_array_equal(jax.jit(as_one_array)(*rates), rates)
