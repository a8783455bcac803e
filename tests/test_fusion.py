"""Fusion in a step: devices, frozen members, what is compared, and where its weights begin."""

import copy
import shutil

import jax
import numpy as np
import pytest
import torch

from configs import fusion
from experiments.bench import members
from jaxcifar.engine.step import TrainStep
from jaxcifar.formats.state_dict import to_torch
from jaxcifar.machine.errors import UserError
from jaxcifar.runs.init_from import begin_from
from jaxcifar.runs.metrics import compare_fused, verdict
from jaxcifar.runs.resolve import finalize
from tests.steps import Run, distance


@pytest.fixture
def fused(config, tiny_networks):
    """Four tiny members of six features each."""
    config.network, config.members, config.coupling = 'tiny', 4, 'fusion'
    config.fusion.rule, config.fusion.heads = 'multiplicativeAddition', 2
    config.augment, config.label_smoothing = 'none', 0.1
    config.optimizer.lr, config.fusion.lr = 0.1, 0.2
    return config


def raw_gradients(config, dataset):
    """((the members' gradients, the head's), what is logged) of the first step."""
    run = Run(config, dataset)
    step = TrainStep(run.config, run.population, dataset, run.order.steps_per_epoch)

    @jax.jit
    def gradients(state, batch):
        images, targets = step.augment_batch(batch, state.step)
        grads, _, numbers = step.gradients(state, images, targets, step.dropout_keys(state.step))
        return grads, numbers

    return jax.device_get(gradients(run.state, next(iter(run.batches(1)))))


def test_four_devices_have_the_gradients_of_one(fused, dataset):
    """Before clipping and the optimiser, which would hide a factor; α weighs the members' losses."""
    fused.fusion.alpha = 0.5
    one, numbers = raw_gradients(fused, dataset)
    fused.devices = 4
    assert dict(Run(fused, dataset).mesh.shape) == {'member': 4, 'data': 1}
    four, _ = raw_gradients(fused, dataset)
    assert distance(one, four) <= 1e-6 and max(np.abs(leaf).max() for leaf in jax.tree.leaves(one)) > 0.01
    own = numbers['loss']
    np.testing.assert_allclose(numbers['loss_individual'], own[:4].sum(), rtol=1e-6)
    np.testing.assert_allclose(numbers['loss_global'], own[4], rtol=1e-6)
    np.testing.assert_allclose(numbers['loss_total'], own[4] + 0.5 * own[:4].sum(), rtol=1e-6)


def test_devices_exchange_logits_and_features_once_a_step(tiny_networks):
    step = members.build('tiny', batch=32, size=8, way='loop', members=4, devices=4, coupling='fusion')
    assert members.collectives(step) == ('2 all-gather', 4 * 32 * (100 + 6) * 4)


def test_frozen_members_stay_as_they_are_while_the_head_learns(fused, dataset):
    fused.members = 2
    run = Run(fused, dataset)
    before, head = run.weights(), jax.device_get(run.state.head.params)
    fused.fusion.freeze_epochs, fused.ema = 1, 0.5
    run = Run(fused, dataset)
    step = run.compiled()
    for number, batch in enumerate(run.batches(4)):  # an epoch has three
        run.state, _ = step(run.state, batch)
        assert (distance(before, run.weights()) == 0) == (number < 3)
        assert distance(head, run.state.head.params) > 1e-4
        head = jax.device_get(run.state.head.params)
    assert distance(head, run.state.head.ema) > 1e-6


def test_members_that_stand_still_do_not_count_in_the_joint_clip(fused, dataset):
    """Two with large gradients, frozen: the head learns as fast as if they had none."""
    fused.members, fused.fusion.freeze_epochs, fused.fusion.clip = 2, 1, 0.0
    fused.fusion.clip_all, fused.optimizer.momentum, fused.fusion.weight_decay = 1e-3, 0.0, 0.0
    run = Run(fused, dataset)
    before = jax.device_get(run.state.head.params)
    state, _ = run.compiled()(run.state, next(iter(run.batches(1))))
    moved = jax.tree.map(lambda a, b: a - b, before, jax.device_get(state.head.params))
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(moved)))
    assert norm == pytest.approx(fused.fusion.lr * fused.fusion.clip_all, rel=1e-3)


def test_a_difference_that_chance_explains_is_no_victory():
    words = [
        verdict({'beats_mean': beats, 'p_value': p}) for beats, p in ((True, 0.01), (True, 0.9), (False, 0.9))
    ]
    assert [w.partition(' the mean')[0] for w in words] == [
        'beats',
        'is not significantly better than',
        'does NOT beat',
    ]


def test_a_fused_prediction_is_compared_with_what_it_must_beat():
    labels = np.array([0, 0, 1, 1])
    sure, right = np.array([[0, 9.0]] * 4), np.array([[2.0, 0], [2, 0], [0, 2], [2, 0]])
    logits = np.stack([sure, right, right, np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])])
    found = compare_fused(logits, ['a', 'b', 'c'], labels)
    accuracies = [found[name]['accuracy'] for name in ('fused', 'mean_of_logits', 'mean_of_probabilities')]
    assert accuracies == [1.0, 0.5, 0.75] and found['beats_mean']
    assert (found['best_expert']['name'], found['best_expert']['accuracy']) == ('b', 0.75)
    assert found['p_value'] == 1  # one image that the one has right and the other has not says nothing
    assert not compare_fused(logits[[0, 1, 2, 1]], ['a', 'b', 'c'], labels)['beats_mean']  # equal is not more


def test_members_begin_with_the_weights_of_pytorch_files(fused, dataset, tmp_path):
    run = Run(fused, dataset)
    paths = [str(tmp_path / f'{k}.pth') for k in range(5)]
    for path, (params, stats) in zip(paths, run.weights()):
        torch.save({'model_state_dict': to_torch({'params': params, 'batch_stats': stats})}, path)
    shutil.copy(paths[0], paths[4])

    def begun(*sources, **changes):
        c = copy.deepcopy(fused)
        c.update(
            {'seed': 5, 'init_from': '+'.join(sources), 'ema': 0.5, **changes}
        )  # others, had they been drawn
        new = Run(c, dataset)
        new.state = begin_from(new.config, new.population, new.state)
        assert distance(new.state.params, new.state.ema[0]) == 0
        return new.weights()

    assert distance(begun(*paths[:4]), run.weights()) == 0
    assert distance(begun(paths[2]), [run.weights()[2]] * 4) == 0
    for sources, changes, words in (
        (paths, {}, 'expected 4 members, got 5'),
        ([str(tmp_path)], {}, 'expected a workdir, got'),
        (
            ['away.npz'],
            {},
            r'expected a workdir, an export, a weights file \(.*\) or the name .*, got away.npz',
        ),
        (paths[:4], {'network': 'resnet8'}, r'0\.pth does not fit resnet8: tensors are missing'),
    ):
        with pytest.raises(UserError, match=words):
            begun(*sources, **changes)


@pytest.mark.parametrize(('changes', 'words'), [
    ({'update_order': 'sequential'}, 'coupling=fusion has one forward pass for all members'),
    ({'network': 'tiny+linear+tiny+tiny'}, 'equally many features, got 0_tiny: 6, 1_linear: 3, 2_tiny: 6'),
    ({'fusion.rule': 'TransformerBase', 'fusion.heads': 4}, 'must divide the 6 features of tiny, got 4'),
    ({'fusion.rule': 'multiplicativ'}, "did you mean 'multiplicative'"),
    ({'init_from': 'a', 'resume_from': 'b'}, 'give one of them'),
])  # fmt: skip
def test_what_cannot_be_fused_is_said(fused, changes, words):
    fused.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as caught:
        finalize(fused)
    assert words in str(caught.value) and '\n' not in str(caught.value)


def test_words_of_the_fusion_config():
    c = finalize(fusion.get_config('concatenation,strong'))
    assert (c.network, c.fusion.rule, c.fusion.residual) == ('resnet18', 'concatenation', True)
    for argument, words in (('resnet18,resnet34', 'takes one network'), ('sum', 'unknown word')):
        with pytest.raises(UserError, match=words):
            fusion.get_config(argument)
