"""Fusion: the rules against PyTorch, what is counted and logged, devices, and the chain from experts on."""

import copy
import csv
import json
import re
import shutil
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import jaxcifar
from configs import base, expert, fusion
from experiments.bench import members
from jaxcifar.data.datasets import load_dataset
from jaxcifar.data.splits import make_split
from jaxcifar.engine.fusion import RULES, adaptive_rates, make_module
from jaxcifar.engine.head import Head, Module
from jaxcifar.engine.state import Weights
from jaxcifar.engine.step import TrainStep
from jaxcifar.evaluate import evaluate
from jaxcifar.export import write as export
from jaxcifar.formats.state_dict import to_torch
from jaxcifar.loop import train
from jaxcifar.machine.errors import UserError
from jaxcifar.models import build
from jaxcifar.report import tables as report
from jaxcifar.report.run_files import load
from jaxcifar.runs import fusion_log, results
from jaxcifar.runs.evaluation import Scored
from jaxcifar.runs.init_from import begin_from, warn_of_seen
from jaxcifar.runs.metrics import compare_fused, verdict
from jaxcifar.runs.resolve import finalize
from jaxcifar.runs.trained import open_trained
from jaxcifar.runs.weights import BestWeights
from tests.processes import assert_same
from tests.steps import Run, distance


def head_config(rule: str, members: int = 4, **changes):
    """A config whose head can be made."""
    c = base.get_config()
    c.members, c.fusion.rule = members, rule
    c.update_from_flattened_dict({f'fusion.{field}': value for field, value in changes.items()})
    return c


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(('rule', 'parameters'), [
    ('multiplicative', 2_107_392),
    ('multiplicativeAddition', 2_107_396),
    ('TransformerBase', 6_305_792),
    ('concatenation', 5_253_120),
])  # fmt: skip
def test_parameters_are_those_of_the_definition(rule, parameters):
    params = make_module(head_config(rule), [1024] * 4, 100).init((0,))
    assert (count(params['fusion']), count(params['global_head'])) == (parameters, 102_500)
    if rule == 'multiplicative':
        assert 4 * count(build('densenet121', 100).shapes()['params']) + count(params) == 30_404_596


class Reference(nn.Module):
    """The rules as they are written, by PyTorch's own layers."""

    def __init__(self, rule: str, members: int, width: int, heads: int, classes: int):
        super().__init__()
        self.rule = rule
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(members))
        self.a = nn.Parameter(torch.ones(members))
        self.attention = nn.MultiheadAttention(width, heads)
        wide = members * width if rule == 'concatenation' else width
        self.mlp = nn.Sequential(nn.Linear(wide, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, width))
        self.head = nn.Linear(width, classes)

    def forward(self, features):
        n = torch.stack([norm(f) for norm, f in zip(self.norms, features)])
        product = n.prod(0)
        x = {
            'multiplicative': lambda: product,
            'multiplicativeAddition': lambda: product + (self.a.softmax(0)[:, None, None] * n).sum(0),
            'TransformerBase': lambda: self.attention(n, n, n)[0].mean(0),
            'concatenation': lambda: torch.cat(list(n), 1),
        }[self.rule]()
        return self.head(self.mlp(x))


def copy_linear(layer, params):
    layer.weight.copy_(torch.tensor(params['kernel'].T))
    layer.bias.copy_(torch.tensor(params['bias']))


@pytest.mark.parametrize('rule', RULES)
def test_a_rule_is_what_pytorch_makes_of_it(rule):
    """Values and gradients, with K=3 and parameters that are nowhere at their beginnings."""
    head = make_module(head_config(rule, 3, heads=2), [8] * 3, 5)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + rng.normal(0, 0.3, p.shape).astype(np.float32), head.init((0,)))
    features = rng.normal(0, 2, (3, 6, 8)).astype(np.float32)
    slope = rng.normal(size=(6, 5)).astype(np.float32)
    reference, f = Reference(rule, 3, 8, 2, 5).eval(), params['fusion']
    with torch.no_grad():
        for k, norm in enumerate(reference.norms):
            norm.weight.copy_(torch.tensor(f[f'norm{k}']['scale']))
            norm.bias.copy_(torch.tensor(f[f'norm{k}']['bias']))
        copy_linear(reference.mlp[0], f['fc1'])
        copy_linear(reference.mlp[3], f['fc2'])
        copy_linear(reference.head, params['global_head'])
        if rule == 'multiplicativeAddition':
            reference.a.copy_(torch.tensor(f['scale']))
        if rule == 'TransformerBase':
            reference.attention.in_proj_weight.copy_(torch.tensor(f['in_proj']['kernel'].T))
            reference.attention.in_proj_bias.copy_(torch.tensor(f['in_proj']['bias']))
            copy_linear(reference.attention.out_proj, f['out_proj'])
    theirs = torch.tensor(features, requires_grad=True)
    expected = reference(theirs)
    expected.backward(torch.tensor(slope))

    @jax.jit
    def run(features):
        fuse = partial(head.apply, params, jnp.zeros((3, 6, 5)))
        ours, pullback = jax.vjp(fuse, list(features))
        return ours, pullback(jnp.array(slope))[0], fuse(list(features), jax.random.key(0))

    ours, gradients, dropped = run(features)
    np.testing.assert_allclose(ours, expected.detach(), atol=1e-5)
    np.testing.assert_allclose(gradients, theirs.grad, atol=1e-5)
    assert np.abs(dropped - ours).max() > 1e-2


def test_a_residual_head_begins_as_the_mean_of_the_members():
    head = make_module(head_config('multiplicative', 2, residual=True), [8] * 2, 5)
    logits = np.random.default_rng(0).normal(size=(2, 6, 5)).astype(np.float32)
    fused = head.apply(head.init((0,)), logits, [np.ones((6, 8), np.float32)] * 2)
    np.testing.assert_allclose(fused, logits.mean(0), rtol=1e-6)


@pytest.mark.parametrize(('rule', 'width', 'rates'), [
    ('multiplicative', 1024, (7e-5, 4e-4)),  # DenseNet-121
    ('multiplicativeAddition', 512, (1e-4, 1e-3)),  # ResNet-18
    ('TransformerBase', 640, (4e-5, 2e-4)),  # WRN-28-10
    ('concatenation', 1024, (7e-5, 8e-4)),  # ResNeXt-29
    ('multiplicative', 64, (1.43e-4, 6e-4)),
])  # fmt: skip
def test_learning_rates_by_rule_and_features(rule, width, rates):
    assert adaptive_rates(rule, width) == pytest.approx(rates)


def test_learning_rates_are_filled_in_for_the_network_and_only_where_unset():
    c = finalize(fusion.get_config('densenet121,multiplicative'))
    assert [c.optimizer.lr, c.fusion.lr, c.fusion.lr_head] == pytest.approx([7e-5, 4e-4, 4e-4])
    c = fusion.get_config('wideresnet28_10,TransformerBase')
    c.fusion.lr, c.network = 0.5, 'resnet18'
    c = finalize(c)
    assert [c.optimizer.lr, c.fusion.lr, c.fusion.lr_head] == pytest.approx([4e-5, 0.5, 0.5])


def test_the_head_is_updated_as_by_pytorch():
    """Two groups with learning rates of their own, one clip over both, Nesterov momentum and decay."""
    c = base.get_config()
    rng = np.random.default_rng(0)
    params = {part: {'kernel': rng.normal(size=(3, 2))} for part in ('fusion', 'global_head')}
    theirs = [torch.tensor(p['kernel'], requires_grad=True) for p in params.values()]
    groups = [{'params': [p], 'lr': lr} for p, lr in zip(theirs, (0.1, 0.4))]
    sgd = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=1e-4)
    with jax.enable_x64(True):
        head = Head(c, Module(None, None))
        state, advance = head.start(params), jax.jit(head.advance)
        for _ in range(3):
            grads = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
            for p, g in zip(theirs, grads.values()):
                p.grad = torch.tensor(g['kernel'])
            nn.utils.clip_grad_norm_(theirs, c.fusion.clip)
            sgd.step()
            state = advance(state, grads, jnp.array([0.1, 0.4]), 0)
    for ours, p in zip(state.params.values(), theirs):
        np.testing.assert_allclose(ours['kernel'], p.detach(), rtol=1e-5)


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


def test_recalls_of_classes_name_the_fused_prediction(tmp_path):
    counts = np.array([5, 1])
    images = SimpleNamespace(labels=np.array([0, 1]), class_counts=counts)
    session: Any = SimpleNamespace(
        names=['a', 'b'], outputs=['a', 'b', 'fused'], tests={'test': images},
        dataset=SimpleNamespace(classes=('x', 'y')), split=SimpleNamespace(class_counts=counts),
    )  # fmt: skip
    right, wrong = np.eye(2), 1 - np.eye(2)
    logits = {'test': np.stack([right, 2 * right, 9 * wrong])}
    results.write_classes(session, {'last': Scored(Weights(None, None), [1, 1], logits)}, tmp_path)
    recalls = {r['member']: float(r['recall']) for r in rows_of(tmp_path / 'per_class.csv')}
    assert recalls == {'a': 1, 'b': 1, 'fused': 0, 'ensemble': 1}


def shrunk(c, npz, epochs: int):
    """A shipped config of CIFAR-100 and four ResNet-18, made small."""
    c.experts.count = c.members = 2
    c.dataset, c.network, c.devices, c.epochs, c.batch_size = f'npz:{npz}', 'tiny', 1, epochs, 24
    c.log.tensorboard, c.log.pictures, c.eval.batch_size = False, False, 40
    return c


def rows_of(path) -> list[dict]:
    with open(path) as file:
        return list(csv.DictReader(file))


def assert_warned_of_seen_images(c, data, tmp_path, capsys):
    """Of those that chose the weights of the fusion: by what a run says of its data, and an export."""
    c.experts.seed = 1  # not the parts that the experts have been trained on
    warn_of_seen(c, data, make_split(data, c))
    said = capsys.readouterr().err
    assert re.search(r'trained on [1-8] of the 8 images that choose the weights', said)
    # An export says it in its card.
    (tmp_path / 'exported').mkdir()
    shutil.copy(tmp_path / 'experts' / 'config.json', tmp_path / 'exported')
    trained_on = json.loads((tmp_path / 'experts' / 'dataset.json').read_text())
    (tmp_path / 'exported' / 'card.json').write_text(json.dumps({'data': trained_on}))
    c.init_from = str(tmp_path / 'exported')
    warn_of_seen(c, data, make_split(data, c))
    assert capsys.readouterr().err == said.replace(str(tmp_path / 'experts'), c.init_from)
    # One whose config no longer has the split that it was trained on is not asked.
    other = {'data': {**trained_on, 'split': 'of index files'}}
    (tmp_path / 'exported' / 'card.json').write_text(json.dumps(other))
    warn_of_seen(c, data, make_split(data, c))
    assert capsys.readouterr().err == ''
    c.experts.seed, c.init_from = 42, str(tmp_path / 'experts')


def assert_published(c, workdir, data, table, outputs):
    """The fused prediction is a function of images."""
    folder = export.export(workdir, 'release', workdir.parent / 'release')
    model = jaxcifar.load(folder)
    np.testing.assert_allclose(model.logits(data.x_test), outputs, atol=1e-5)
    assert (model(data.x_test).argmax(1) == data.y_test).mean() == table['fused']['accuracy']
    assert model.names == ['0_tiny', '1_tiny', 'fused'] == jaxcifar.load(workdir).names
    again = evaluate(folder, None, 'test', flip=False, dataset=c.dataset)['fusion']['fused']
    assert again == pytest.approx(table['fused'])
    assert f'fused {100 * again["accuracy"]:.2f} %' in (folder / 'README.md').read_text()
    assert jaxcifar.load(folder, 1).names == ['1_tiny']
    named = jaxcifar.load(workdir).predict(data.x_test)
    np.testing.assert_allclose(named.probabilities, model(data.x_test), atol=1e-5)
    opened = jaxcifar.open(workdir)
    assert opened.names == model.names and opened.history['train']['accuracy'].shape[0] == 3
    assert f'fused {100 * again["accuracy"]:.2f} %' in repr(opened)


def assert_logged(c, workdir, rows):
    # The log of the run has a row an epoch, and all columns.
    log = rows_of(workdir / 'tiny_concatenation_training_log.csv')
    assert [r['epoch'] for r in log] == ['1', '2', '3'] and all(all(r.values()) for r in log)
    first = {r['member']: r for r in rows if r['split'] == 'train' and r['epoch'] == '1'}
    assert log[0]['expert_1_loss'] == first['1_tiny']['loss']
    assert float(log[0]['loss_total']) == pytest.approx(sum(float(r['loss']) for r in first.values()))
    assert [float(log[0][f'{group}_lr']) for group in ('experts', 'fusion', 'global_head')] == pytest.approx(
        [1.3e-4, 1.2e-3, 1.2e-3]
    )

    # Made again under other learning rates, as when the run goes on for more epochs, the past is as it was.
    path = workdir / 'tiny_concatenation_training_log.csv'
    before = path.read_bytes()
    fusion_log.write(workdir, c, lambda step: [9.0] * 4)
    assert path.read_bytes() == before

    # Rows that metrics.csv has lost leave empty cells.
    metrics = workdir / 'metrics.csv'
    kept = metrics.read_text()
    lines = kept.splitlines(keepends=True)
    lost = next(line for line in lines if '1_tiny' in line and ',train,' in line)
    metrics.write_text(''.join(line for line in lines if line != lost))
    fusion_log.write(workdir, c, lambda step: [9.0] * 4)
    log = rows_of(path)
    assert len(log) == 3 and (log[0]['expert_1_loss'], log[0]['expert_0_loss']) == (
        '',
        first['0_tiny']['loss'],
    )
    metrics.write_text(kept)
    fusion_log.write(workdir, c, lambda step: [9.0] * 4)


def outputs_of_parts(c, workdir, data):
    """The test images' logits by the kept components: experts and fused, [3,N,C]."""
    # They are of one step, and each can be loaded on its own.
    kept = BestWeights(workdir)
    parts = {p.name: kept.load(p.name) for p in (workdir / 'best').iterdir()}
    assert parts.keys() == {'0_tiny', '1_tiny', 'fusion', 'global_head'}
    assert len({step for _, _, step in parts.values()}) == 1
    network = build('tiny', 4, 8)
    images = (data.x_test / 255 - data.mean) / data.std
    variables = [{'params': p, 'batch_stats': s} for p, s, _ in (parts['0_tiny'], parts['1_tiny'])]
    outputs = [network.apply(v, images.astype(np.float32), False)[0] for v in variables]
    logits, features = zip(*outputs)
    head = {name: parts[name][0] for name in ('fusion', 'global_head')}
    fused = make_module(c, [6] * 2, 4).apply(head, jnp.stack(logits), list(features))
    return np.array([*logits, fused])


def test_from_experts_to_the_fused_table(tiny_networks, tail_npz, tmp_path, capsys):
    """400 images: experts on overlapping parts, then fusion on 72 of those that they have not seen."""
    c = shrunk(expert.get_config('resnet18'), tail_npz, 2)
    c.model.dropout, c.augment, c.batch_size = 0.0, 'none', 22
    train(c, tmp_path / 'experts')
    c = shrunk(fusion.get_config('resnet18,concatenation'), tail_npz, 3)
    c.augment, c.init_from, c.checkpoint.keep = 'cutmix', str(tmp_path / 'experts'), 9
    c.checkpoint.every_steps, c.ema = 2, 0.5
    workdir = tmp_path / 'fused'
    found = train(finalize(c), workdir)

    # The experts began as the experts' run had them; three epochs at these rates hardly move them.
    began = open_trained(tmp_path / 'experts').members(shown=False)
    ended = open_trained(workdir, 'last').members(shown=False)
    assert 0 < distance([m['params'] for m in began], [m['params'] for m in ended]) < 0.01

    # The table: on the test images once, and by evaluation the same.
    table = found['fusion']['best']['test']
    again = evaluate(workdir, 'best', 'test', flip=False)['fusion']
    assert again['fused'] == pytest.approx(table['fused']) and again['beats_mean'] == table['beats_mean']
    assert table['mean_of_probabilities'] == found['ensemble']['best']
    scores = [m['best']['test'] for m in found['members']]
    assert table['best_expert']['accuracy'] == max(s['accuracy'] for s in scores)
    said = capsys.readouterr()
    assert 'the learned rule ' in said.out and 'warning' not in said.err
    assert '±' not in said.out.rpartition('test accuracy')[2] and '\n  1_tiny: ' in said.out
    data = load_dataset(c.dataset, '')
    assert_warned_of_seen_images(c, data, tmp_path, capsys)
    rows = rows_of(workdir / 'metrics.csv')
    validation = [r for r in rows if r['split'] == 'validation']
    best = max(float(r['accuracy']) for r in validation if r['member'] == 'fused')
    assert found['fusion']['best']['validation_accuracy'] == pytest.approx(best)
    assert not any('validation_accuracy' in m['best'] for m in found['members'])
    assert {m['best']['epoch'] for m in found['members']} == {found['fusion']['best']['epoch']}

    outputs = outputs_of_parts(c, workdir, data)
    made = compare_fused(outputs, ['0_tiny', '1_tiny'], data.y_test)
    for name in ('fused', 'mean_of_logits', 'mean_of_probabilities'):
        assert made[name] == pytest.approx(table[name], abs=1e-5)

    assert_published(c, workdir, data, table, outputs)
    assert_logged(c, workdir, rows)
    (page,) = load([workdir])
    shown = {row[0]: row for row in report.member_table(page)}
    score = f'{100 * found["fusion"]["last"]["test"]["fused"]["accuracy"]:.2f}'
    assert shown['fused'][1] == score == report.summary([page])[1][6]
    assert {'0_tiny', '1_tiny', 'mean of logits', 'best expert'} < shown.keys()
    # Its accuracy chose for all, and is in no other row; so it is in the curves.
    assert [name for name, row in shown.items() if row[-1] == f'{100 * best:.2f}'] == ['fused']
    assert page.curve('validation', 'accuracy', fused=True)[1].max() == pytest.approx(best)
    assert any(f'the learned rule {verdict(table)};' in note for note in report.notes([page]))

    # From a step in the middle of an epoch it ends in the same bits.
    again = shutil.copytree(workdir, tmp_path / 'again')
    (again / 'results.json').unlink()
    for folder in (again / 'checkpoints').iterdir():
        if int(folder.name) > 4:
            shutil.rmtree(folder)
    train(c, again)
    assert_same(again, workdir)


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
