"""Networks seen as ternary: alone, among others, on several devices, stopped and extended."""

import copy
import csv
import json
import shutil
import signal

import jax
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax.traverse_util import flatten_dict

from configs import base, ternary
from jaxcifar.augment.pipeline import normalise
from jaxcifar.config import saved
from jaxcifar.engine.optim import make_optimizer
from jaxcifar.engine.quantize import dequantize, twn
from jaxcifar.engine.views import SCALES, VIEWS, is_scale, make_share, ternary_layers
from jaxcifar.loop import train
from jaxcifar.machine.errors import Preempted, UserError
from jaxcifar.models import NETWORKS, build
from jaxcifar.models.layers import Layers, head
from jaxcifar.runs.console import Console
from jaxcifar.runs.evaluation import open_evaluation
from jaxcifar.runs.resolve import finalize
from jaxcifar.runs.weights import BestWeights, load_weights
from jaxcifar.torch_weights import export_weights
from tests.processes import assert_same
from tests.steps import distance, run_steps

SOME = 'resnet8', 'preact_resnet18', 'wideresnet28_2', 'efficient_densenet', 'mobilenetv2'


@pytest.mark.parametrize('network', SOME)
def test_all_but_stem_and_classifier_are_ternary(network):
    config = base.get_config()
    shapes = flatten_dict(build(network, 10).shapes()['params'], sep='/')
    kernels = {path for path in shapes if path.endswith('/kernel')}
    ends = {p for p in kernels if shapes[p].ndim == 2 or shapes[p].shape[2:3] == (3,)}
    assert len(ends) == 2 and set(ternary_layers(config, shapes)) == kernels - ends
    config.ternary.layers = '.*'
    assert set(ternary_layers(config, shapes)) == kernels


@pytest.mark.parametrize(('changes', 'words'), [
    ({'view': 'ternry'}, "did you mean 'ternary'"),
    ({'view': 'none+ternary', 'members': 3}, 'view must be one name, or one for each of members=3, got 2'),
    ({'ternary.rule': 'tnn'}, 'unknown ternary.rule'),
    ({'ternary.layers': 'conv('}, r'ternary.layers must be a regular expression, got conv('),
    ({'view': 'ternary', 'ternary.layers': 'stem'}, 'expected a part of the name of some kernel (conv1/'),
])  # fmt: skip
def test_what_cannot_be_is_refused(config, tmp_path, changes, words):
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as error:
        train(config, tmp_path / 'run')
    assert words in str(error.value)


def test_scales_have_a_rate_and_a_decay_of_their_own():
    config = base.get_config()
    config.view, config.ternary.rule, config.ternary.scale_lr = 'ternary', 'ttq', 0.25
    config.optimizer.momentum = 0.0
    for decay, wanted in (0.0, -0.25), (0.5, -0.25 * 1.1):
        config.ternary.scale_decay = decay
        params = {'conv2': {'kernel': np.full(3, 2.0), SCALES[0]: np.full(1, 2.0)}}
        chain = make_optimizer(config, 1.0, 0.1)
        grads = jax.tree.map(np.ones_like, params)
        updates, _ = chain.update(grads, chain.init(params), params)
        np.testing.assert_allclose(updates['conv2']['kernel'], -1.2)
        np.testing.assert_allclose(updates['conv2'][SCALES[0]], wanted)


def test_scales_begin_where_the_config_says_and_those_of_older_runs_at_their_weights_mean():
    config = base.get_config()
    config.ternary.rule, config.ternary.layers = 'ttq', '.*'
    params = {'conv1': {'kernel': np.array([[0.5, -2.5, 0.01]], np.float32)}}
    fields = saved.to_dict(config) | {'members': 1, 'member_ids': [0]}
    del fields['ternary']['scale_start']
    for of, wanted in (config, 1), (saved.from_dict(fields), 1.5):
        begun = VIEWS['ternary'](of).init(params)['conv1']
        assert all(begun[name] == pytest.approx(wanted) for name in SCALES)


def test_a_new_default_of_the_scales_stops_no_run_without_them(tmp_path):
    old, new = base.get_config(), base.get_config()
    old.ternary.scale_lr = 0.01
    for new.view, new.ternary.rule in ('none', 'ttq'), ('ternary', 'twn'):
        old.view, old.ternary.rule = new.view, new.ternary.rule
        saved.refuse_changes(old, new, tmp_path)
    old.view = new.view = 'none+ternary'
    old.ternary.rule = new.ternary.rule = 'ttq'
    with pytest.raises(UserError, match=r'ternary\.scale_lr was 0\.01, now 1\.0'):
        saved.refuse_changes(old, new, tmp_path)


def seen(config, **fields):
    """A config whose networks are ternary, and otherwise changed."""
    config = copy.deepcopy(config)
    config.view = 'ternary'
    config.update_from_flattened_dict(fields)
    return config


def test_members_with_views_of_their_own_are_single_runs(config, dataset, tiny_networks):
    config.network = 'tiny'
    ttq = {'ternary.rule': 'ttq', 'ternary.layers': 'conv1'}
    together, losses, _ = run_steps(seen(config, view='none+ternary+ternary', **ttq), dataset)
    for k, view in (0, 'none'), (2, 'ternary'):
        (alone,), own, _ = run_steps(seen(config, view=view, member_ids=k, **ttq), dataset)
        assert distance(together[k], alone) < 1e-6
        np.testing.assert_allclose(losses[:, k : k + 1], own, rtol=1e-5)
    assert any(map(is_scale, flatten_dict(alone[0], sep='/')))


def test_parts_of_a_batch_on_four_devices_are_the_whole_on_one(config, dataset, tiny_networks):
    """Accumulation, clipping, warm-up and several devices, all together."""
    config.network = 'linear'  # a batch norm would see each part alone
    config = seen(config, **{'ternary.layers': '.*', 'members': 2, 'schedule.warmup_steps': 3,
                             'optimizer.clip': 0.02, 'coupling': 'mutual'})  # fmt: skip
    whole, losses, _ = run_steps(config, dataset)
    cut, of_parts, _ = run_steps(seen(config, **{'optimizer.accumulate': 2, 'devices': 4}), dataset)
    assert distance(whole, cut) < 1e-6
    np.testing.assert_allclose(of_parts, losses, rtol=1e-5)


def test_floats_turn_ternary_bit_by_bit(config):
    t = config.ternary
    t.layers, t.float_epochs, t.blend_epochs = 'conv1', 1.0, 0.5
    share = jax.jit(make_share(config, 10))
    assert [float(share(step)) for step in (0, 10, 11, 14, 15, 90)] == pytest.approx([0, 0, 0.2, 0.8, 1, 1])
    t.blend_epochs = 0.0
    assert [float(make_share(config, 10)(step)) for step in (9, 10)] == [0, 1]
    kernel = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    codes = dequantize(twn(kernel))
    show = VIEWS['ternary'](config).show
    for s in 0.0, 0.25, 1.0:
        blended = show({'conv1': {'kernel': kernel}}, np.float32(s))['conv1']['kernel']
        np.testing.assert_allclose(blended, (1 - s) * kernel + s * codes, rtol=1e-6)


def test_learned_scales_that_are_not_above_zero(config):
    """One below is its size, with codes as they were; one of 0 may grow."""
    config.ternary.rule, config.ternary.layers = 'ttq', 'conv1'
    show, kernel = VIEWS['ternary'](config).show, np.array([[0.5, -0.5, 0.0]], np.float32)

    def seen_with(positive, negative):
        scales = dict(zip(SCALES, (np.float32([positive]), np.float32([negative]))))
        return lambda scales=scales: show({'conv1': {'kernel': kernel, **scales}})['conv1']['kernel']

    np.testing.assert_allclose(seen_with(-2, 0.25)(), [[2, -0.25, 0]])
    zeros = {name: np.zeros(1, np.float32) for name in SCALES}
    slope = jax.grad(lambda s: (seen_with(0, 0)(s) * np.float32([3, 5, 7])).sum())(zeros)
    assert [float(slope[name][0]) for name in SCALES] == [3, -5]


class Small(nn.Module):
    """A stem, a convolution and a classifier."""

    num_classes: int
    layers: Layers

    @nn.compact
    def __call__(self, x):
        a = self.layers
        for name, filters, stride in ('1', 16, 1), ('2', 64, 2):
            x = nn.relu(a.norm(f'bn{name}')(a.conv(filters, 3, stride, name=f'conv{name}')(x)))
        return head(x, self.num_classes)


@pytest.fixture
def small(monkeypatch):
    """configs/ternary.py, but for size: ten epochs of the scanned digits."""
    monkeypatch.setitem(NETWORKS, 'small', Small)
    c = ternary.get_config('small,cifar10')
    c.dataset, c.data.image_size, c.devices, c.epochs = 'digits', 8, 1, 10
    c.batch_size, c.data.drop_last, c.augment = 64, True, 'crop(1)'
    c.log.tensorboard = c.log.pictures = False
    return c


def test_a_ternary_run_from_end_to_end(small, tmp_path, capsys):
    small.ema = 0.9
    results = train(small, tmp_path)
    assert 'ternary (twn per tensor): 1 of 3 kernels, 9,216 of 10,458 parameters' in capsys.readouterr().out
    accuracy = results['mean']['best']['accuracy']
    assert accuracy > 0.9

    evaluation = open_evaluation(tmp_path)
    run = evaluation.session
    weights, _ = load_weights(run.config, run.population, tmp_path, 'best')
    latent, stats, _ = BestWeights(tmp_path).load('0_small')
    (shown,) = run.population.disassemble(run.population.show(weights[0]))
    assert len(np.unique(shown['conv2']['kernel'])) == 3 < len(np.unique(latent['conv2']['kernel']))
    same = {k: v for k, v in shown.items() if k != 'conv2'}, {k: v for k, v in latent.items() if k != 'conv2'}
    assert distance(*same) == 0
    zeros = float(np.mean(shown['conv2']['kernel'] == 0))
    assert results['members'][0]['best']['zeros'] == zeros
    assert f'0_small,best,conv2/kernel,9216,{zeros:.6g}' in (tmp_path / 'sparsity.csv').read_text()

    # What was measured is the network with these very weights, and so is what is exported.
    logits, test = evaluation.logits(weights, 'test')[0], run.images['test']
    assert np.mean(logits.argmax(-1) == test.labels) == accuracy
    network, images = build('small', 10, 8), normalise(test.images, run.dataset.mean, run.dataset.std)
    (wanted, _), _ = network.apply({'params': shown, 'batch_stats': stats}, images, False)
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    export_weights(tmp_path, tmp_path / 'out.pth')
    exported = torch.load(tmp_path / 'out.pth')['conv2.weight'].numpy()
    seen = shown['conv2']['kernel'].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(np.sign(exported), np.sign(seen))
    np.testing.assert_allclose(exported, seen, rtol=1e-6)  # the scale is a sum, taken in another program


def stop_at(monkeypatch, step):
    """SIGTERM comes when training has come to this step, before its epoch is evaluated."""
    shown = Console.step

    def stop(console, now, rate):
        shown(console, now, rate)
        if now == step:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Console, 'step', stop)


def test_a_stopped_run_is_extended(config, small, tmp_path, monkeypatch):
    """'At epoch 76 of 300, go on to 500': with the schedule of the longer run, and nothing forgotten."""
    small.dataset, small.data.validation_size, small.batch_size = config.dataset, 16, 32
    small.ternary.rule, small.epochs, small.ema, small.checkpoint.every_epochs = 'ttq', 3, 0.9, 1
    workdir, again = tmp_path / 'run', tmp_path / 'again'
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(Preempted, match='saved at step 4'):
            train(small, workdir)
    before = (workdir / 'metrics.csv').read_bytes()
    shutil.copytree(workdir, again)
    small.epochs = 5
    assert train(small, workdir)['epoch'] == 5
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(Preempted):
            train(small, again)
    train(small, again)
    assert_same(again, workdir)

    after = (workdir / 'metrics.csv').read_bytes()
    assert after.startswith(before) and len(after) > len(before)
    with open(workdir / 'metrics.csv') as file:
        rows = list(csv.DictReader(file))
    lr = {float(r['epoch']): float(r['lr']) for r in rows if r['split'] == 'train'}
    epochs = np.arange(5)
    length = np.where(epochs < 2, 3, 5)
    np.testing.assert_allclose(list(lr.values()), 0.05 * (1 + np.cos(np.pi * epochs / length)), rtol=1e-6)
    scores = [r for r in rows if r['split'] == 'validation']
    best = np.maximum.accumulate([float(r['accuracy']) for r in scores])
    np.testing.assert_allclose([float(r['best']) for r in scores], best)
    waited = 0
    for row, old in zip(scores, [-1.0, *best]):
        waited = 0 if float(row['accuracy']) > old else waited + 1
        assert int(row['patience']) == waited
    assert json.loads((workdir / 'config.json').read_text())['epochs'] == 5


def test_trained_floats_are_turned_ternary(config, tiny_networks, tmp_path):
    config.network, config.epochs, config.batch_size = 'linear', 6, 20
    floats = train(config, tmp_path / 'floats')
    turned = seen(config, epochs=9, resume_from=str(tmp_path / 'floats'), **{'ternary.layers': '.*'})
    results = train(turned, tmp_path / 'ternary')
    assert floats['members'][0]['best']['epoch'] <= 6 < results['members'][0]['best']['epoch'] <= 9
    assert 'zeros' in results['members'][0]['best']
    turned.ternary.rule = 'ttq'  # has no scales to begin with
    with pytest.raises(UserError, match=r'was saved with another .*view'):
        train(turned, tmp_path / 'ttq')


def test_the_seeds_flags_are_fields():
    """Every flag of the seed's guide has a field, and the recipe of its defaults."""
    c = finalize(ternary.get_config('mobilenetv2,imagenet:photos,ttq'))
    assert (c.network, c.dataset, c.data.image_size, c.model.stem) == (
        'mobilenetv2', 'imagenet:photos', 224, 'imagenet')  # fmt: skip
    c = finalize(ternary.get_config('resnet18,cifar10,all'))
    assert (c.ternary.layers, c.view, c.checkpoint.every_epochs) == ('.*', 'ternary', 10)
    assert ternary.get_config('fp32').view == 'none'
    for argument, word in ('resnet18,cifar11', 'cifar10'), ('resnet18,cifar10,tqt', 'ttq'):
        with pytest.raises(UserError, match=f'did you mean {word!r}'):
            ternary.get_config(argument)
