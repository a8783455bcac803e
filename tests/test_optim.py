"""Optimisers and schedules against torch; averaged weights; which epoch a member keeps."""

import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from configs import base
from jaxcifar.engine.couplings import make_learning_rates
from jaxcifar.engine.optim import average, make_optimizer
from jaxcifar.engine.step import TrainStep
from jaxcifar.machine.errors import UserError
from jaxcifar.runs.resolve import finalize
from jaxcifar.runs.selection import Selection
from tests.conftest import small_config
from tests.steps import Run

SHAPES = {'stem': {'kernel': (3, 4), 'bias': (4,)}, 'norm_0': {'scale': (4,), 'bias': (4,)}}
STEPS, MEMBERS = 6, 2
LR = np.array([0.005, 0.02])
WEIGHT_DECAY = np.array([0.1, 0.3])


def draw(seed, *leading):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.normal(size=(*leading, *shape)).astype(np.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def population_run(config, params, grads, rates):
    """The members' parameters after `TrainStep`'s own update of them, compiled, for all steps."""
    step = SimpleNamespace(config=config)
    population = SimpleNamespace(split_by_group=lambda numbers: (numbers,))

    @jax.jit
    def update(params, opt, grads, lr):
        return TrainStep._update(step, population, (grads,), opt, params, lr, jnp.array(WEIGHT_DECAY))

    params, opt = (params,), (jax.vmap(make_optimizer(config, 0.0, 0.0).init)(params),)
    for i in range(STEPS):
        params, opt = update(params, opt, jax.tree.map(lambda g, i=i: g[i], grads), rates[i])
    return params[0]


def torch_run(config, params, grads, rates, weight_decay, decayed, factors):
    """One member's parameters by torch in float64; of paths: what share of decay and of the rate they get."""
    o = config.optimizer
    tensors = {f'{a}/{b}': torch.tensor(params[a][b], dtype=torch.float64) for a in params for b in params[a]}
    groups = [
        {'params': [p], 'weight_decay': weight_decay * decayed.get(name, 0.0)} for name, p in tensors.items()
    ]
    if o.name == 'sgd':
        optimizer = torch.optim.SGD(groups, rates[0], o.momentum, nesterov=o.nesterov)
    else:
        optimizer = torch.optim.AdamW(groups, rates[0], betas=(o.b1, o.b2))
    for i in range(STEPS):
        for name, p in tensors.items():
            a, b = name.split('/')
            p.grad = torch.tensor(grads[a][b][i], dtype=torch.float64)
        if o.clip:
            torch.nn.utils.clip_grad_norm_(tensors.values(), o.clip)
        for name, group in zip(tensors, optimizer.param_groups):
            group['lr'] = rates[i] * factors.get(name, 1.0)
        optimizer.step()
    return {a: {b: tensors[f'{a}/{b}'].numpy() for b in params[a]} for a in params}


EVERY = dict.fromkeys(('stem/kernel', 'stem/bias', 'norm_0/scale', 'norm_0/bias'), 1.0)
STEM = dict.fromkeys(('stem/kernel', 'stem/bias'), 1.0)
BY_PATH = {'rates': 'stem/k=3 bias=.5 scale=0 norm=9', 'decay': 'stem/bias=2 bias scale=.1'}
RATES_BY_PATH = {'stem/kernel': 3, 'stem/bias': 0.5, 'norm_0/scale': 0, 'norm_0/bias': 0.5}
DECAY_BY_PATH = {'stem/bias': 2, 'norm_0/bias': 1, 'norm_0/scale': 0.1}


@pytest.mark.parametrize(
    'changes, decayed, factors',
    [
        ({'name': 'sgd', 'nesterov': True}, EVERY, {}),
        ({'name': 'sgd', 'nesterov': False, 'clip': 1.0}, EVERY, {}),
        ({'name': 'sgd', 'nesterov': False, 'momentum': 0.0, 'decay': '^$'}, {}, {}),
        ({'name': 'sgd', 'clip': 1.0, 'decay': 'kernel|m/b'}, STEM, {}),
        ({'name': 'adamw'}, EVERY, {}),
        ({'name': 'adamw', 'clip': 1.0, 'decay': 'stem', 'b1': 0.8}, STEM, {}),
        ({'name': 'sgd', 'clip': 1.0, **BY_PATH}, DECAY_BY_PATH, RATES_BY_PATH),
        ({'name': 'adamw', **BY_PATH}, DECAY_BY_PATH, RATES_BY_PATH),
    ],
)
def test_updates_are_torchs(changes, decayed, factors):
    """K members at once are K torch optimisers, each clipped by the norm of its own gradient."""
    config = base.get_config()
    config.optimizer.update(changes)
    params, grads = draw(0, MEMBERS), draw(1, STEPS, MEMBERS)
    # The first member's gradients are never clipped; the second's always are.
    scale = np.array([0.1, 10], np.float32)
    grads = jax.tree.map(lambda g: g * scale.reshape(-1, *[1] * (g.ndim - 2)), grads)
    rates = LR * np.linspace(1, 0.5, STEPS)[:, None]
    ours = population_run(config, params, grads, rates)
    for k in range(MEMBERS):
        own = jax.tree.map(lambda p, k=k: p[k], params), jax.tree.map(lambda g, k=k: g[:, k], grads)
        reference = torch_run(config, *own, rates[:, k], WEIGHT_DECAY[k], decayed, factors)
        member = jax.tree.map(lambda p, k=k: p[k], ours)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), member, reference)


def test_decay_that_is_no_pattern_is_refused():
    config = base.get_config()
    config.optimizer.decay = 'kernel('
    with pytest.raises(UserError, match=r'optimizer\.decay: cannot read'):
        finalize(config)


def test_a_rate_of_no_parameter_is_refused(dataset, tiny_networks):
    config = small_config('')
    config.network, config.optimizer.rates = 'tiny', 'bias=2 bais=2'
    with pytest.raises(UserError, match=r"expected a part of the name of some parameter .*, got 'bais'"):
        Run(config, dataset)


# In float32, 41·(1/41) is below 1: what the compiler makes of a division must not delay an epoch.
EPOCHS, EPOCH_STEPS = 90, 41
RATES = (0.1, 0.4)


def learning_rates(**schedule):
    """Compiled, for every step of a run: [EPOCHS, EPOCH_STEPS, K]."""
    config = base.get_config()
    config.members, config.epochs, config.optimizer.lr = 2, EPOCHS, RATES
    config.schedule.update(schedule)
    rates = jax.jit(jax.vmap(make_learning_rates(config, EPOCH_STEPS)))
    return np.array(rates(jnp.arange(EPOCHS * EPOCH_STEPS))).reshape(EPOCHS, EPOCH_STEPS, 2)


def torch_schedule(make, lr, epochs):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(epochs):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize('per', ['step', 'epoch'])
@pytest.mark.parametrize(
    'changes, make',
    [
        ({'name': 'cosine'}, lambda o, lr: lr_scheduler.CosineAnnealingLR(o, EPOCHS)),
        (
            {'name': 'cosine', 'final': 0.1},
            lambda o, lr: lr_scheduler.CosineAnnealingLR(o, EPOCHS, eta_min=0.1 * lr),
        ),
        (
            {'name': 'warm_restarts', 'period': 3, 'multiplier': 2, 'final': 0.01},
            lambda o, lr: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2, eta_min=0.01 * lr),
        ),
        (
            {'name': 'multistep', 'milestones': (1, 41, 60), 'gamma': 0.2},
            lambda o, lr: lr_scheduler.MultiStepLR(o, [1, 41, 60], 0.2),
        ),
        ({'name': 'step', 'step_size': 41}, lambda o, lr: lr_scheduler.StepLR(o, 41)),
        ({'name': 'step', 'step_size': 1, 'gamma': 0.9}, lambda o, lr: lr_scheduler.ExponentialLR(o, 0.9)),
        ({'name': 'constant'}, lambda o, lr: lr_scheduler.ConstantLR(o, factor=1)),
    ],
)
def test_schedules_are_torchs(changes, make, per):
    ours = learning_rates(per=per, **changes)
    for k, lr in enumerate(RATES):
        reference = torch_schedule(partial(make, lr=lr), lr, EPOCHS)
        np.testing.assert_allclose(ours[:, 0, k], reference, rtol=1e-5, atol=1e-7)
    if per == 'epoch' or not changes['name'].startswith(('cosine', 'warm')):
        assert (ours == ours[:, :1]).all()


@pytest.mark.parametrize('name, period', [('cosine', EPOCHS), ('warm_restarts', 7)])
def test_cosines_move_every_step(name, period):
    ours = learning_rates(name=name, per='step', period=7)
    optimizer = torch.optim.SGD([torch.zeros(1)], RATES[1])
    scheduler = lr_scheduler.CosineAnnealingWarmRestarts(optimizer, period, 2 if period == 7 else 1)
    for epoch in range(0, EPOCHS, 5):
        for step in range(EPOCH_STEPS):
            scheduler.step(epoch + step / EPOCH_STEPS)
            assert ours[epoch, step, 1] == pytest.approx(scheduler.get_last_lr()[0], rel=1e-4, abs=1e-6)


def test_warmup_multiplies():
    """The schedule goes on beneath it: milestones stay where they are written."""
    plain = learning_rates(name='multistep', milestones=(1, 2)).reshape(-1, 2)
    warm = learning_rates(name='multistep', milestones=(1, 2), warmup_steps=60).reshape(-1, 2)
    factor = np.minimum(1, (np.arange(len(plain)) + 1) / 60)
    np.testing.assert_allclose(warm, plain * factor[:, None], rtol=1e-6)


def test_a_cycle_of_no_length_is_a_quarter_of_the_run():
    quarter = learning_rates(name='warm_restarts', period=0, multiplier=2)
    np.testing.assert_array_equal(
        quarter, learning_rates(name='warm_restarts', period=EPOCHS // 4, multiplier=2)
    )


@pytest.mark.parametrize('name, field', [('warm_restarts', 'multiplier'), ('step', 'step_size')])
def test_cycles_of_no_length_are_refused(name, field):
    with pytest.raises(UserError, match=rf'schedule\.{field} must be at least 1, got 0'):
        learning_rates(name=name, **{field: 0})


def test_average_against_a_loop():
    """Slower at first by (1+t)/(10+t), until that passes the decay: here after 8 of 20 steps."""
    values = np.random.default_rng(0).normal(size=(21, 2, 5)).astype(np.float32)
    params, stats = {'a': values[0, 0]}, {'b': values[0, 1]}
    ema, expected = (params, stats), values[0].astype(np.float64)
    for t in range(20):
        params, stats = {'a': values[t + 1, 0]}, {'b': values[t + 1, 1]}
        ema = average(0.5, jnp.int32(t), ema, (params, stats))
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * values[t + 1]
    np.testing.assert_allclose([ema[0]['a'], ema[1]['b']], expected, rtol=1e-5, atol=1e-6)
    assert average(0.0, jnp.int32(0), None, (params, stats)) is None


def test_early_stopping():
    config = base.get_config()
    config.early_stopping.patience, config.early_stopping.min_epochs = 2, 2
    accuracies = [
        (0.1, 0.6, 0.2),
        (0.1, 0.6, 0.2),  # not counted yet: min_epochs
        (0.2, 0.6, 0.1),
        (0.1, 0.6, 0.3),  # the second waits for the second time: stopped
        (0.3, 0.9, 0.3),
        (0.4, 0.9, 0.2),  # the third: stopped
    ]
    selection, history = Selection.start(3), []
    for epoch, accuracy in enumerate(accuracies, 1):
        # As when a run is resumed after every epoch.
        selection = Selection.from_json(json.loads(json.dumps(selection.to_json())))
        better = selection.update(np.array(accuracy), epoch, config)
        history.append((better.tolist(), selection.patience.tolist(), selection.active(config).tolist()))
    assert history == [
        ([True, True, True], [0, 0, 0], [True, True, True]),
        ([False, False, False], [0, 0, 0], [True, True, True]),
        ([True, False, False], [0, 1, 1], [True, True, True]),
        ([False, False, True], [1, 2, 0], [True, False, True]),
        ([True, False, False], [0, 2, 1], [True, False, True]),
        ([True, False, False], [0, 2, 2], [True, False, False]),
    ]
    assert selection.best.tolist() == [0.4, 0.6, 0.3]
    assert selection.best_epoch.tolist() == [6, 1, 4]
    config.early_stopping.patience = 0  # is never
    assert selection.active(config).all()
    # Floats that become ternary are evaluated as what they are not trained for yet.
    config.early_stopping.patience, config.early_stopping.min_epochs = 1, 0
    config.ternary.float_epochs, config.ternary.blend_epochs = 2.0, 1.0
    for view, active in ('none', False), ('ternary', True):
        config.view, selection = view, Selection.start(1)
        for epoch in (1, 2, 3):
            selection.update(np.array([0.5]), epoch, config)
        assert selection.active(config) == [active]
    selection.update(np.array([0.5]), 4, config)
    assert not selection.active(config)
