"""Couplings against a float64 reference, what devices exchange for them, and one of your own."""

import csv

import jax
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from experiments.bench import members
from jaxcifar import main
from jaxcifar.engine.couplings import COUPLINGS, divergence_from_peers
from jaxcifar.evaluate import evaluate
from jaxcifar.loop import train
from jaxcifar.machine.errors import UserError
from jaxcifar.runs.checkpoint import Checkpoints
from tests import pages
from tests.steps import Run, distance, run_steps


@pytest.fixture
def config(config, tiny_networks):
    config.network, config.members, config.coupling = 'tiny', 3, 'mutual'
    config.augment = 'none'
    return config


def reference_losses(logits: list, labels, temperature: float) -> list:
    """(CE, KL) of each member by the formula: every pair, the batch's mean of the classes' sum."""
    losses = []
    for k, own in enumerate(logits):
        peers = [softmax(z.detach() / temperature, -1) for j, z in enumerate(logits) if j != k]
        student = log_softmax(own / temperature, -1)
        pairs = [kl_div(student, teacher, reduction='batchmean') for teacher in peers]
        kl = temperature**2 * sum(pairs) / max(len(pairs), 1)
        losses.append((cross_entropy(own, labels), kl))
    return losses


def test_a_member_learns_from_its_peers_and_they_do_not_from_it():
    z = np.random.default_rng(0).normal(0, 3, (3, 8, 10)).astype(np.float32)
    z[:, 0] *= 50  # exp of these overflows
    slopes = jax.jacobian(divergence_from_peers)(z)  # [k, j, B, C]
    logits = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in z]
    for k, (_, kl) in enumerate(reference_losses(logits, torch.zeros(8, dtype=torch.long), 1.0)):
        np.testing.assert_allclose(divergence_from_peers(z)[k], kl.item(), rtol=1e-5)
        kl.backward()
        np.testing.assert_allclose(slopes[k, k], logits[k].grad, atol=1e-6)
        assert all((slopes[k, j] == 0).all() for j in range(3) if j != k)
    assert (divergence_from_peers(z[:1]) == 0).all()


@pytest.mark.parametrize('order', ['simultaneous', 'sequential'])
def test_two_steps_of_three_members_equal_the_formula(config, dataset, order):
    """SGD with Nesterov momentum and decay, written out in float64."""
    config.network, config.mutual.temperature, config.update_order = 'linear', 2.0, order
    config.optimizer.lr, rates = (1.0, 0.5, 0.8), (1.0, 0.5, 0.8)
    run = Run(config, dataset)
    step = run.compiled()
    parameters = [{k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in p['fc'].items()}
                  for p, _ in run.weights()]  # fmt: skip
    trace = [{k: torch.zeros_like(v) for k, v in p.items()} for p in parameters]
    schedule = [1.0, 0.5 * (1 + np.cos(np.pi / 6))]
    for factor, batch in zip(schedule, run.batches(2)):
        pixels = np.asarray(batch['image'], np.float64) / 255
        features = torch.tensor((pixels - dataset.mean) / dataset.std).mean((1, 2))
        labels = torch.tensor(np.asarray(batch['label']), dtype=torch.long)
        run.state, row = step(run.state, batch)
        logits = [features @ p['kernel'] + p['bias'] for p in parameters]
        for k, p in enumerate(parameters):
            ce, kl = reference_losses(logits, labels, 2.0)[k]
            gradients = torch.autograd.grad(ce + kl, p.values())
            for expected, name in ((ce, 'ce'), (kl, 'kl'), (ce + kl, 'loss')):
                assert row[name][k] == pytest.approx(expected.item(), abs=1e-5)
            with torch.no_grad():
                for (name, w), g in zip(p.items(), gradients):
                    g = g + 5e-4 * w
                    trace[k][name] = 0.9 * trace[k][name] + g
                    w -= rates[k] * factor * (g + 0.9 * trace[k][name])
            if order == 'sequential':
                logits[k] = features @ p['kernel'] + p['bias']
    for ours, reference in zip(run.weights(), parameters):
        for name, value in reference.items():
            assert np.abs(ours[0]['fc'][name] - value.detach().numpy()).max() <= 1e-5


def test_one_member_has_nobody_to_learn_from(config, dataset):
    config.members = 1
    alone, _, _ = run_steps(config, dataset, 2)
    config.coupling = 'none'
    assert distance(alone, run_steps(config, dataset, 2)[0]) <= 1e-7


def test_turns_change_nothing_for_members_that_do_not_know_of_each_other(config, dataset):
    config.network, config.members, config.coupling = 'tiny+linear+tiny', None, 'none'
    config.augment, config.augment_each = 'flip', True
    at_once, losses, _ = run_steps(config, dataset, 2)
    config.update_order = 'sequential'
    in_turns, turns_losses, _ = run_steps(config, dataset, 2)
    assert distance(at_once, in_turns) <= 1e-6
    np.testing.assert_allclose(losses, turns_losses, atol=1e-6)


def test_members_that_take_turns_share_the_devices(config, dataset):
    config.members, config.update_order = 4, 'sequential'
    one, _, _ = run_steps(config, dataset, 2)
    config.devices = 4
    assert tuple(Run(config, dataset).mesh.shape.values()) == (1, 4)
    assert distance(one, run_steps(config, dataset, 2)[0]) <= 1e-5


@pytest.mark.parametrize('augment_each', [False, True])
def test_devices_exchange_logits_once_a_step_and_nothing_else(tiny_networks, augment_each):
    """One member a device, [K,B,C] logits."""
    step = members.build(
        'tiny', batch=32, size=8, way='loop', members=4, devices=4, augment_each=augment_each
    )
    assert members.collectives(step) == ('1 all-gather', 4 * 32 * 100 * 4)


def test_a_state_moves_between_four_devices_and_one(config, dataset, tmp_path):
    config.members, config.devices, config.ema = 4, 4, 0.9
    four = Run(config, dataset)
    step = four.compiled()
    for batch in four.batches(2):
        four.state, _ = step(four.state, batch)
    config.devices = 1
    state, runs = four.state, [Run(config, dataset), four]
    for i, run in enumerate(runs):
        checkpoints = Checkpoints(tmp_path / str(i), 2)
        checkpoints.save(2, state, {})
        checkpoints.wait()
        state, _ = checkpoints.restore(run.state, 2)
        checkpoints.close()
        assert distance(four.state, state) == 0
        assert len(jax.tree.leaves(state.params)[0].devices()) == run.mesh.size
    assert np.asarray(state.sums['kl']).all()


def test_a_run_may_be_taken_over_with_another_coupling(config, tmp_path):
    config.coupling = 'none'
    train(config, tmp_path / 'single')
    config.coupling, config.epochs = 'mutual', 3
    config.resume_from = str(tmp_path / 'single')
    assert train(config, tmp_path / 'mutual')['epoch'] == 3
    with open(tmp_path / 'mutual' / 'metrics.csv') as file:
        rows = [row for row in csv.DictReader(file) if row['split'] == 'train']
    # The other coupling's columns are there, and empty where it was not.
    assert [bool(row['kl']) for row in rows] == [row['epoch'] == '3' for row in rows] and len(rows) == 9


def test_parts_of_the_loss_are_logged_for_each_node(config, tmp_path):
    results = train(config, tmp_path)
    assert [m['name'] for m in results['members']] == ['0_tiny', '1_tiny', '2_tiny']
    with open(tmp_path / 'metrics.csv') as file:
        rows = [r for r in csv.DictReader(file) if r['split'] == 'train']
    for row in rows:
        ce, kl = float(row['ce']), float(row['kl'])
        assert float(row['loss']) == pytest.approx(ce + kl, abs=1e-6) and 0 < kl < ce
    assert len({r['kl'] for r in rows}) == 6


def test_what_cannot_be_coupled_or_logged_is_said(config, tmp_path, monkeypatch):
    monkeypatch.setitem(COUPLINGS, 'mutual', COUPLINGS['mutual']._replace(columns=('ce',)))
    with pytest.raises(UserError, match=r"logs \['ce', 'kl'\], but is registered with \['ce'\]"):
        train(config, tmp_path)
    config.data.order = 'member'
    with pytest.raises(UserError, match=r'on the same images.* data\.order=shared'):
        train(config, tmp_path)


def test_the_coupling_of_the_page_trains_from_a_config_file(config, small_npz, tmp_path, monkeypatch):
    (tmp_path / 'mine.py').write_text(pages.python('mutual', 'COUPLINGS['))
    line = f'main --config {tmp_path}/mine.py --workdir {tmp_path}/run --config.dataset=npz:{small_npz} '
    line += '--config.network=tiny --config.epochs=1 --config.devices=1 --config.data.validation=none'
    monkeypatch.setattr('sys.argv', line.split())
    shipped = set(COUPLINGS)
    c, workdir = main.parse(line.split())
    (name,) = COUPLINGS.keys() - shipped
    results = train(c, workdir)
    (column,) = COUPLINGS.pop(name).columns
    with open(workdir / 'metrics.csv') as file:
        assert float(next(csv.DictReader(file))[column]) > 0
    found = evaluate(workdir, 'last', 'test', flip=False)  # without the file
    assert c.coupling == name and found['mean'] == pytest.approx(results['mean']['last'])


def test_each_member_may_have_its_own_view_of_a_batch(config, dataset):
    config.network, config.members, config.coupling = 'linear', 2, 'none'
    config.augment = 'crop(3)'
    same, _, _ = run_steps(config, dataset, 1)
    config.augment_each = True
    each, _, _ = run_steps(config, dataset, 1)
    assert min(distance(a, b) for a, b in zip(same, each)) > 1e-4
    config.members, config.member_ids = 1, 1  # as it would alone
    assert distance(run_steps(config, dataset, 1)[0][0], each[1]) <= 1e-6
