"""K networks in one step are K single runs; devices change where things happen, not what."""

import copy
import csv

import jax
import numpy as np
import pytest

from jaxcifar.config import finalize
from jaxcifar.data.loader import Order, batches
from jaxcifar.errors import UserError
from jaxcifar.population import Population, check_batch, make_mesh, stack, unstack
from jaxcifar.state import init_state
from jaxcifar.step import make_train_step
from jaxcifar.train import train


@pytest.fixture
def smooth(monkeypatch):
    """No kinks: at a ReLU's, rounding decides a gradient, and programs that round apart drift apart."""
    monkeypatch.setattr('flax.linen.relu', jax.nn.silu)


def run_steps(config, dataset, steps=4):
    """(members' (params, stats), losses [steps,K]) after some steps."""
    config = finalize(copy.deepcopy(config))
    mesh = make_mesh(config)
    population = Population(config, dataset.num_classes, dataset.image_size, mesh)
    order = Order(config, np.arange(len(dataset.y_train)), mesh.shape['data'])
    state = init_state(config, population)
    step = make_train_step(config, population, dataset, order.steps_per_epoch, state)
    losses = []
    for batch in batches(config, dataset, order, population, range(steps)):
        state, row = step(state, batch)
        losses.append(row['loss'])
    weights = population.disassemble(tuple(zip(state.params, state.stats)))
    return weights, np.array(losses), step


def distance(a, b) -> float:
    """The largest difference of two trees."""
    return max(np.abs(x - y).max() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.parametrize('order', ['shared', 'member'])
def test_members_of_a_population_equal_single_runs(smooth, config, dataset, order):
    config.data.order = order
    config.members = 3
    config.optimizer.lr = (0.02, 0.01, 0.005)
    config.optimizer.clip = 1.0
    together, losses, step = run_steps(config, dataset)
    assert step._cache_size() == 1  # one batch shape, traced once
    assert distance(together[0], together[1]) > 1e-3
    for k in range(3):
        alone = copy.deepcopy(config)
        alone.members, alone.member_ids, alone.optimizer.lr = 1, k, config.optimizer.lr[k]
        single, loss, _ = run_steps(alone, dataset)
        assert distance(single[0], together[k]) <= 1e-6
        np.testing.assert_allclose(loss[:, 0], losses[:, k], atol=1e-6)


def test_a_seed_per_member_is_the_single_run_of_that_seed(smooth, config, dataset):
    config.data.order = 'member'
    config.members, config.seed = 2, (7, 11)
    together, _, _ = run_steps(config, dataset)
    for k, seed in enumerate((7, 11)):
        alone = copy.deepcopy(config)
        alone.members, alone.seed = 1, seed
        assert distance(run_steps(alone, dataset)[0][0], together[k]) <= 1e-6


def test_different_networks_train_side_by_side(smooth, config, dataset):
    config.network = 'resnet8+resnet20+resnet8'
    mixed, losses, _ = run_steps(config, dataset, steps=2)
    config.network, config.members = 'resnet8', 3
    same, expected, _ = run_steps(config, dataset, steps=2)
    assert distance(mixed[0], same[0]) <= 1e-6 and distance(mixed[2], same[2]) <= 1e-6
    np.testing.assert_allclose(losses[:, [0, 2]], expected[:, [0, 2]], atol=1e-6)


@pytest.mark.parametrize(('members', 'devices', 'mesh'), [
    (1, 4, (1, 4)), (2, 4, (2, 2)), (4, 4, (4, 1)), (3, 4, (1, 4)), (6, 4, (2, 2)),
])  # fmt: skip
def test_four_devices_equal_one(smooth, config, dataset, members, devices, mesh):
    config.members = members
    one, losses, _ = run_steps(config, dataset, steps=2)
    config.devices = devices
    assert tuple(make_mesh(finalize(copy.deepcopy(config))).shape.values()) == mesh
    four, sharded_losses, _ = run_steps(config, dataset, steps=2)
    np.testing.assert_allclose(losses, sharded_losses, atol=1e-5)
    for k in range(members):
        assert distance(one[k], four[k]) <= 1e-5


def test_local_batch_statistics_are_a_choice(config, dataset):
    config.devices = 4
    synced, _, _ = run_steps(config, dataset, steps=1)
    config.sync_norm = False
    local, _, _ = run_steps(config, dataset, steps=1)
    assert distance(synced, local) > 1e-5


def test_what_does_not_divide_is_said(config):
    config.devices, config.batch_size = 4, 30
    with pytest.raises(UserError, match=r'batch_size=30 .* does not split over 4 devices'):
        check_batch(config, make_mesh(finalize(config)))


def test_parts_of_a_batch_give_the_gradient_of_the_whole(config, dataset, monkeypatch):
    """Without batch norm, accumulation changes nothing but memory."""
    import flax.linen as nn

    from jaxcifar import models

    class Linear(nn.Module):
        num_classes: int
        layers: object

        @nn.compact
        def __call__(self, x):
            self.variable('batch_stats', 'unused', lambda: np.zeros(1, np.float32))
            features = x.mean((1, 2))
            return nn.Dense(self.num_classes)(features), features

    monkeypatch.setitem(models.NETWORKS, 'linear', Linear)
    config.network, config.optimizer.clip = 'linear', 0.5
    config.augment = 'flip+mixup(1.0,per="image")'
    whole, losses, _ = run_steps(config, dataset)
    config.optimizer.accumulate = 4
    parts, parts_losses, _ = run_steps(config, dataset)
    assert distance(whole, parts) <= 1e-6
    np.testing.assert_allclose(losses, parts_losses, atol=1e-6)


def test_stopped_members_stay_as_they_are(config, tmp_path):
    """With a learning rate of 0 nothing improves: that member stops first, the others go on."""
    config.members, config.epochs, config.ema = 2, 9, 0.5
    config.optimizer.lr = (0.0, 0.003)
    config.optimizer.weight_decay = 0.0
    config.augment = 'none'
    config.early_stopping.patience = 2
    config.early_stopping.min_epochs = 1
    train(config, tmp_path)
    with open(tmp_path / 'metrics.csv') as file:
        rows = [r for r in csv.DictReader(file) if r['split'] == 'validation']
    still = [r for r in rows if r['member'].startswith('0')]
    stop = next(i for i, r in enumerate(still) if r['patience'] == '2')
    assert 2 <= stop < len(still) - 1  # not before epoch 3: patience counts after min_epochs
    # Batch statistics and the average are frozen too, or these would change.
    assert len({(r['loss'], r['patience'], r['best']) for r in still[stop:]}) == 1
    moving = [r['loss'] for r in rows if r['member'].startswith('1')]
    assert len(set(moving)) == len(moving)


def test_stack_and_unstack_are_inverse():
    trees = [{'a': np.full((2, 3), k, np.float32)} for k in range(3)]
    for tree, again in zip(trees, unstack(stack(trees))):
        np.testing.assert_array_equal(tree['a'], again['a'])
