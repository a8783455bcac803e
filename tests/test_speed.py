"""The network and optimiser of fast runs, and the program that repeats them."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, speedrun
from experiments import results
from experiments import speedrun as program
from jaxcifar.data.loader import Order
from jaxcifar.engine.optim import make_chain, make_optimizer
from jaxcifar.engine.state import eval_weights
from jaxcifar.loop import train
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import write_json
from jaxcifar.models import NETWORKS, build
from jaxcifar.models.convolution import convolve
from jaxcifar.models.speednet import SpeedNet, halve, whitening_filters
from jaxcifar.runs import evaluation
from jaxcifar.runs.evaluation import EvalStep, open_evaluation
from jaxcifar.runs.resolve import finalize
from jaxcifar.runs.weights import load_weights
from tests.conftest import small_config
from tests.steps import Run


def test_whitened_patches_have_unit_covariance_and_are_given_twice():
    rng = np.random.default_rng(0)
    images = (rng.normal(size=(64, 9, 9, 3)) @ rng.normal(size=(3, 3)) + 1).astype(np.float32)
    filters = whitening_filters(images, 24, epsilon=0)
    y = np.asarray(convolve(jnp.array(images), jnp.array(filters), 1, ((0, 0), (0, 0)))).reshape(-1, 24)
    np.testing.assert_allclose(np.cov(y[:, :12], rowvar=False), np.eye(12), atol=1e-3)
    np.testing.assert_array_equal(filters[..., 12:], -filters[..., :12])


def test_halving_is_max_pooling():
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))

    def pool(x):
        return nn.max_pool(x, (2, 2), (2, 2))

    np.testing.assert_array_equal(halve(x), pool(x))
    gradients = [jax.grad(lambda x, f=f: (f(x) ** 2).sum())(x) for f in (halve, pool)]
    np.testing.assert_allclose(*gradients)


def test_a_dirac_network_passes_its_first_inputs_on():
    kernel = build('speednet_small', 10, init='dirac').init((0, 0))['params']['layer2_conv1']['kernel']
    x = np.random.default_rng(0).normal(size=(1, 5, 5, kernel.shape[2])).astype(np.float32)
    y = convolve(jnp.array(x), jnp.array(kernel), 1, ((1, 1), (1, 1)))
    np.testing.assert_allclose(y[..., : x.shape[-1]], x, rtol=1e-5)
    assert np.abs(kernel[..., x.shape[-1] :]).max() > 0


def test_a_deep_block_adds_to_what_it_began_with(monkeypatch):
    for name, depth in (('shallow', 1), ('deep', 3)):
        monkeypatch.setitem(NETWORKS, name, partial(SpeedNet, widths=(8,), depth=depth))
    images = np.random.default_rng(0).normal(size=(5, 4, 4, 3)).astype(np.float32)  # halved: one pixel
    shallow, deep = (build(name, 10, 4) for name in ('shallow', 'deep'))
    variables = deep.init((0, 0), images)
    norm = variables['params']['layer1_bn3']
    norm['scale'] *= 0  # nothing is added
    (_, first), _ = shallow.apply(variables, images, False)
    (_, features), _ = deep.apply(variables, images, False)
    np.testing.assert_allclose(features, nn.gelu(first), rtol=1e-5, atol=1e-6)
    norm['bias'] += 2
    (_, features), _ = deep.apply(variables, images, False)
    np.testing.assert_allclose(features, nn.gelu(first + 2), rtol=1e-5, atol=1e-6)


def test_muon_takes_orthogonal_steps_for_kernels_and_sgds_for_the_rest():
    config = base.get_config()
    config.optimizer.update({'name': 'muon', 'rest': 0.5, 'weight_decay': 0.0, 'nesterov': False})
    rng = np.random.default_rng(0)
    grads = {'conv': rng.normal(size=(3, 3, 2, 8)).astype(np.float32), 'bias': np.ones(8, np.float32)}
    optimizer = make_optimizer(config, 0.1, 0.0)
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    values = np.linalg.svd(np.reshape(updates['conv'], (18, 8)), compute_uv=False)
    assert np.all((values > 0.04) & (values < 0.13))  # lr .1; three iterations come near to 1
    left, _, right = np.linalg.svd(grads['conv'].reshape(18, 8), full_matrices=False)
    cosine = -np.sum(np.reshape(updates['conv'], (18, 8)) * (left @ right)) / np.linalg.norm(values) / 8**0.5
    assert cosine > 0.95
    np.testing.assert_allclose(updates['bias'], -0.05 * grads['bias'], rtol=1e-6)
    # A head has no kernels, and its rate is its own: nothing takes a share of it.
    head, bias = make_chain(config, 0.1, 0.0), {'bias': grads['bias']}
    of_head, _ = head.update(bias, head.init(bias), bias)
    np.testing.assert_allclose(of_head['bias'], -0.1 * grads['bias'], rtol=1e-6)
    # The rest may have a momentum of its own.
    config.optimizer.rest_momentum = 0.5
    optimizer = make_optimizer(config, 0.1, 0.0)
    state = optimizer.update(grads, optimizer.init(grads), grads)[1]
    second, _ = optimizer.update(grads, state, grads)
    np.testing.assert_allclose(second['bias'], -0.05 * 1.5 * grads['bias'], rtol=1e-6)
    # Rescaled, a kernel takes half of the same step from the norm √8 on; what is no kernel stays as it was.
    config.optimizer.update({'rescale': True, 'rates': 'conv=.5'})
    params = {'conv': 5 * grads['conv'], 'bias': 5 * grads['bias']}
    optimizer = make_optimizer(config, 0.1, 0.0)
    rescaled, _ = optimizer.update(grads, optimizer.init(params), params)
    start = params['conv'] + rescaled['conv'] - 0.5 * updates['conv']
    np.testing.assert_allclose(start, params['conv'] * 8**0.5 / np.linalg.norm(params['conv']), atol=1e-6)
    np.testing.assert_array_equal(rescaled['bias'], updates['bias'])


def test_a_speedrun_learns_and_trains_only_what_it_should(small_npz, tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, 'speednet_tiny', partial(SpeedNet, widths=(16, 32)))
    config = speedrun.get_config('94')
    config.dataset, config.network, config.members = f'npz:{small_npz}', 'speednet_tiny', 2
    config.epochs, config.batch_size, config.devices, config.precision = 4, 32, 1, 'float32'
    config.optimizer.lr = 0.05
    found = train(config, tmp_path)
    assert found['mean']['last']['accuracy'] > 0.9
    run = open_evaluation(tmp_path).session
    weights, _ = load_weights(run.config, run.population, tmp_path, 'last')
    (stats,) = weights.stats
    wanted = whitening_filters(run.dataset.normalised(np.arange(96)), 24)
    for filters in stats['whiten']['filters']:  # a member's each
        np.testing.assert_allclose(filters, wanted, atol=1e-4)
    (params,) = weights.params
    assert np.abs(params['whiten']['bias']).min() > 0 and np.abs(params['layer1_bn1']['bias']).min() > 0
    np.testing.assert_array_equal(params['layer1_bn1']['scale'], 1)


def test_shifted_views_are_weighed_as_written(dataset, tiny_networks):
    config = small_config('')
    config.network = 'tiny'
    run = Run(config, dataset)
    weights, images = eval_weights(run.state), dataset.x_test

    def logits(images, flip, shift):
        run.config.eval.flip, run.config.eval.shift = flip, shift
        return np.asarray(EvalStep(run.config, run.population, dataset)(weights)(images))

    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), 'reflect')
    views = (images, 0.5), (padded[:, 4:, 4:], 0.25), (padded[:, :-4, :-4], 0.25)
    plain = sum(share * logits(view, False, 0) for view, share in views)
    mirrored = sum(share * logits(view[:, :, ::-1], False, 0) for view, share in views)
    np.testing.assert_allclose(logits(images, False, 2), plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits(images, True, 2), (plain + mirrored) / 2, rtol=1e-5, atol=1e-6)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Results go here."""
    monkeypatch.setattr(results, 'FOLDER', tmp_path)
    return tmp_path


def test_a_speedrun_keeps_a_row_for_each_seed_as_soon_as_it_has_one(folder, tmp_path, monkeypatch):
    commands, run_really = [], program.subprocess.run

    def run(command, **options):
        if command[0] == 'git':
            return run_really(command, **options)
        commands.append(command)
        if len(commands) == 2:
            return SimpleNamespace(returncode=1)
        workdir = Path(command[command.index('--workdir') + 1])
        session = {'devices': ['gpu:0 a card'], 'commit': 'abc', 'speed': {'compile_seconds': 30.0}}
        write_json(workdir / 'results.json', {'mean': {'last': {'accuracy': 0.9401}}})
        write_json(workdir / 'run.json', {'sessions': [session]})
        (workdir / 'timing.csv').write_text('seconds\n1.25\n1.5\n')
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(program.subprocess, 'run', run)
    words = '94', '2', str(tmp_path / 'runs'), '--config.precision=float32'
    with pytest.raises(UserError, match='seed 1 ended with exit status 1'):
        program.main(*words)
    (row,) = results.read('speedrun_seeds')
    wanted = {'commit': 'abc', 'device': 'gpu:0 a card', 'changes': words[3], 'seed': '0'}
    wanted |= {'accuracy': '94.01', 'seconds': '2.75', 'seconds_with_compilation': '32.75'}
    assert wanted.items() <= row.items()
    program.main(*words)
    assert [row['seed'] for row in results.read('speedrun_seeds')] == ['0', '1'] and len(commands) == 3
    (cache,) = {word for command in commands for word in command if 'compile_cache' in word}
    assert all({words[3], cache} <= set(command) for command in commands)
    with pytest.raises(
        UserError, match=f'expected the same changes as in .*, {words[3]}: choose another FOLDER'
    ):
        program.main(*words[:3])


@pytest.mark.parametrize('loader', ['host', 'device'])
def test_several_steps_in_a_call_are_the_same_steps(loader, small_npz, tmp_path, tiny_networks):
    config = small_config(small_npz)
    config.network, config.members, config.batch_size = 'tiny', 2, 12  # 6 steps and one of 8 images
    config.data.loader, config.devices = loader, None
    config.data.order = 'member' if loader == 'device' else 'shared'
    train(config.copy_and_resolve_references(), tmp_path / 'one')
    config.steps_per_call = 3
    train(config.copy_and_resolve_references(), tmp_path / 'three')
    one, three = (
        np.genfromtxt(tmp_path / name / 'metrics.csv', delimiter=',', dtype=None, names=True, encoding=None)
        for name in ('one', 'three')
    )
    assert len(one) == len(three) and one.dtype == three.dtype
    for name in one.dtype.names:
        if one.dtype[name].kind in 'fi':
            np.testing.assert_allclose(one[name], three[name], rtol=2e-4, atol=1e-6, err_msg=name)


def test_a_call_ends_where_something_is_to_be_done():
    config = base.get_config()
    config.batch_size, config.steps_per_call = 10, 4
    config.log.every_steps, config.profile.steps = 6, (13, 14)
    order = Order(finalize(config), np.arange(95), 1)  # 9 whole batches and one of 5
    calls = list(order.calls(config, 1, 20))
    ends = [c.stop for c in calls]
    assert ends == [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 18, 19, 20] and calls[0].start == 1
    shapes = [order.call_indices(config, c).shape for c in calls]
    assert shapes[:6] == [(4, 10), *[(1, 10)] * 4, (1, 5)] and {n for n, _ in shapes} == {1, 4}


def test_a_gpu_is_given_more_steps_of_a_cheaper_network(monkeypatch):
    def steps(network, **fields):
        config = base.get_config()
        config.network = network
        config.update(fields)
        return finalize(config).steps_per_call

    assert steps('resnet8') == 1
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert steps('resnet32') == 16 > steps('resnet18') > steps('resnet18', members=4) == 1
    assert steps('wideresnet28_10') == 1
    assert steps('resnet18', steps_per_call=3) == 3


def test_images_to_evaluate_are_sent_once(tiny_networks, config, dataset, monkeypatch):
    config.network, config.members = 'tiny', 2
    run, sent = Run(config, dataset), []
    monkeypatch.setattr(evaluation.hosts, 'put', lambda x, where: sent.append(x) or jax.device_put(x, where))
    step = evaluation.EvalStep(run.config, run.population, dataset)
    weights = eval_weights(run.state)

    def logits(size):
        run.config.eval.batch_size = size
        return evaluation.predict_logits(step, weights, dataset.x_test, run.config, run.mesh)

    first = logits(15)
    assert len(sent) == 3 and first.shape == (2, 40, 4)
    np.testing.assert_array_equal(logits(15), first)
    assert len(sent) == 3
    monkeypatch.setattr(evaluation, 'KEPT', 0)  # no room for others
    for calls in (5, 7):
        np.testing.assert_allclose(logits(20), first, atol=1e-6)
        assert len(sent) == calls
