"""The chain from experts to their fusion: what is trained, counted, logged and published."""

import csv
import json
import re
import shutil
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcifar
from configs import expert, fusion
from jaxcifar.data.datasets import load_dataset
from jaxcifar.data.splits import make_split
from jaxcifar.engine.fusion import make_module
from jaxcifar.engine.state import Weights
from jaxcifar.evaluate import evaluate
from jaxcifar.export import write as export
from jaxcifar.loop import train
from jaxcifar.models import build
from jaxcifar.report import tables as report
from jaxcifar.report.run_files import load
from jaxcifar.runs import fusion_log, results
from jaxcifar.runs.evaluation import Scored
from jaxcifar.runs.init_from import warn_of_seen
from jaxcifar.runs.metrics import compare_fused, verdict
from jaxcifar.runs.resolve import finalize
from jaxcifar.runs.trained import open_trained
from jaxcifar.runs.weights import BestWeights
from tests.processes import assert_same
from tests.steps import distance


def test_recalls_of_classes_name_the_fused_prediction(tmp_path):
    counts = np.array([5, 1])
    images = SimpleNamespace(labels=np.array([0, 1]), class_counts=counts)
    session: Any = SimpleNamespace(
        names=['a', 'b'], outputs=['a', 'b', 'fused'], tests={'test': images},
        dataset=SimpleNamespace(classes=('x', 'y'), num_classes=2, y_train=np.repeat([0, 1], counts)),
        split=SimpleNamespace(train=np.arange(6)),
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
