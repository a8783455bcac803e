"""Layers and residual networks against torch and torchvision; how parameters begin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from scipy.stats import kstest

from jaxcifar.data.vision import import_torchvision
from jaxcifar.losses import cross_entropy
from jaxcifar.models import NETWORKS, build
from jaxcifar.models.layers import BatchNorm, initialise

# What torch calls our variables.
LEAVES = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}
LAYERS = {'Conv': 'conv', 'BatchNorm': 'bn'}


def channels_first(x):
    return torch.tensor(np.array(x), dtype=torch.float64).movedim(-1, 1)


@pytest.mark.parametrize('shape', [(4, 5, 6, 3), (2, 1, 1, 3)])
def test_batch_norm_is_torchs(shape):
    rng = np.random.default_rng(0)
    torch_norm = torch.nn.BatchNorm2d(3, dtype=torch.float64)
    variables = {'params': {'scale': rng.normal(1, 0.3, 3), 'bias': rng.normal(0, 0.3, 3)}}
    variables = jax.tree.map(np.float32, variables)
    variables['batch_stats'] = {'mean': np.zeros(3, np.float32), 'var': np.ones(3, np.float32)}
    for name, value in variables['params'].items():
        getattr(torch_norm, LEAVES[name]).data = torch.tensor(value, dtype=torch.float64)

    def loss(params, x, weights):
        norm = BatchNorm(train=True)
        y, updated = norm.apply({**variables, 'params': params}, x, mutable=['batch_stats'])
        return (y * weights).sum(), (y, updated['batch_stats'])

    for _ in range(3):
        x = rng.normal((1, -1, 0), (1, 2, 0.5), shape).astype(np.float32)
        weights = rng.normal(size=shape).astype(np.float32)
        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        (params_grad, x_grad), (y, stats) = gradient(variables['params'], x, weights)
        variables['batch_stats'] = stats
        torch_x = channels_first(x).requires_grad_()
        torch_y = torch_norm(torch_x)
        torch_norm.zero_grad()
        (torch_y * channels_first(weights)).sum().backward()
        pairs = [(channels_first(y), torch_y), (channels_first(x_grad), torch_x.grad)]
        pairs += [(params_grad[k], getattr(torch_norm, LEAVES[k]).grad) for k in params_grad]
        pairs += [(stats[k], getattr(torch_norm, LEAVES[k])) for k in stats]
        for ours, torchs in pairs:
            np.testing.assert_allclose(ours, torchs.detach(), rtol=1e-5, atol=1e-5)

    y = BatchNorm(train=False).apply(variables, x)
    np.testing.assert_allclose(channels_first(y), torch_norm.eval()(channels_first(x)).detach(), atol=1e-5)


def test_batch_norm_over_devices_is_over_the_whole_batch():
    x = np.random.default_rng(0).normal(2, 3, (4, 2, 3, 3, 5)).astype(np.float32)

    def run(x, axis_name=None):
        norm = BatchNorm(train=True, axis_name=axis_name)
        variables = norm.init(jax.random.key(0), x)
        return norm.apply(variables, x, mutable=['batch_stats'])

    y, stats = run(x.reshape(8, 3, 3, 5))
    parts, their_stats = jax.vmap(lambda x: run(x, 'data'), axis_name='data')(x)
    np.testing.assert_allclose(parts.reshape(y.shape), y, atol=1e-5)
    same = jax.tree.map(lambda s: jnp.broadcast_to(s, (4, *s.shape)), stats)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), their_stats, same)


def test_bfloat16_keeps_float32_statistics():
    x = jnp.array(np.random.default_rng(0).normal(1, 1, (512, 4)), jnp.bfloat16)
    norm = BatchNorm(train=True, dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x)
    y, updated = norm.apply(variables, x, mutable=['batch_stats'])
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updated))} == {np.dtype('float32')}
    exact = np.array(x, np.float64)
    np.testing.assert_allclose(updated['batch_stats']['mean'], 0.1 * exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(updated['batch_stats']['var'], 0.9 + 0.1 * exact.var(0, ddof=1), rtol=1e-5)


def test_bfloat16_network():
    network = build('resnet8', 10, 8, jnp.bfloat16)
    variables = network.init((0, 0))

    def train(variables, x):
        return network.apply(variables, x, True, jax.random.key(0))

    traced = jax.make_jaxpr(train)(variables, np.zeros((2, 8, 8, 3), np.float32))
    assert {v.dtype for v in traced.out_avals} == {np.dtype('float32')}  # logits, features, statistics
    convolutions = [e for e in traced.eqns if e.primitive.name == 'conv_general_dilated']
    assert {e.outvars[0].aval.dtype for e in convolutions} == {np.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype('float32')}


def shapes(**layers):
    return {'params': {k: {'kernel': jax.ShapeDtypeStruct(s, jnp.float32)} for k, s in layers.items()}}


def test_kernels_are_he_and_xavier():
    drawn = initialise(shapes(conv=(3, 3, 32, 128), dense=(300, 100)), (0, 0))['params']
    conv, dense = (drawn[name]['kernel'].ravel() for name in ('conv', 'dense'))
    assert kstest(conv, 'norm', args=(0, np.sqrt(2 / (3 * 3 * 128)))).pvalue > 0.01
    limit = np.sqrt(6 / (300 + 100))
    assert kstest(dense, 'uniform', args=(-limit, 2 * limit)).pvalue > 0.01
    assert 0.999 * limit < np.abs(dense).max() <= np.float32(limit)


def test_other_parameters_begin_at_zero_or_one():
    variables = flatten_dict(build('resnet18', 10).init((0, 0)))
    ones = {'bias': 0, 'mean': 0, 'scale': 1, 'var': 1}
    assert {path[-1] for path in variables} == {'kernel', *ones}
    for path, value in variables.items():
        assert value.dtype == np.float32
        assert path[-1] == 'kernel' or (value == ones[path[-1]]).all()


def test_draws_are_the_seeds_and_the_paths():
    def draw(seed, **layers):
        drawn = initialise(shapes(**layers), seed)['params']
        return {name: leaves['kernel'].tolist() for name, leaves in drawn.items()}

    first = draw((0, 0), a=(3, 3, 2, 2), b=(3, 3, 2, 2))
    assert first['a'] != first['b']
    assert draw((0, 0), b=(3, 3, 2, 2), c=(5, 5))['b'] == first['b']
    for seed in ((0, 1), (1, 0)):
        assert draw(seed, b=(3, 3, 2, 2))['b'] != first['b']


@pytest.mark.parametrize(
    'name, count',
    [
        ('resnet20', 275_572),
        ('resnet32', 470_004),
        ('resnet44', 664_436),
        ('resnet56', 858_868),
        ('resnet110', 1_733_812),
        ('resnet18', 11_220_132),
        ('resnet34', 21_328_292),
        ('resnet50', 23_705_252),
    ],
)
def test_parameter_counts(name, count):
    network = NETWORKS[name](num_classes=100, train=False)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), image)['params']
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


class ShortcutA(torch.nn.Module):
    def forward(self, x):
        half = x.shape[1] // 2
        return torch.nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))


class TorchResNet20(torch.nn.Module):
    """He et al. 2016, section 4.2, from torchvision's blocks."""

    def __init__(self):
        super().__init__()
        block = import_torchvision().models.resnet.BasicBlock
        self.conv1 = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(16)
        self.blocks = torch.nn.Sequential(
            *(block(16, 16) for _ in range(3)),
            *(block(16, 32, 2, ShortcutA()), block(32, 32), block(32, 32)),
            *(block(32, 64, 2, ShortcutA()), block(64, 64), block(64, 64)),
        )
        self.fc = torch.nn.Linear(64, 10)

    def forward(self, x):
        x = self.blocks(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


def torch_resnet(name):
    """torchvision's network with the stem for small images."""
    network = import_torchvision().models.get_model(name, num_classes=10)
    network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = torch.nn.Identity()
    network.blocks = [b for i in range(1, 5) for b in getattr(network, f'layer{i}')]
    return network


def torch_leaf(module, path):
    """torch's tensor for the variable of ours at ('params', 'BasicBlock_0', 'Conv_0', 'kernel')."""
    for name in path[1:-1]:
        kind, _, index = name.rpartition('_')
        if kind == 'shortcut':
            module = module.downsample[index == 'norm']
        elif kind == 'Dense':
            module = module.fc
        elif kind in LAYERS:
            module = getattr(module, f'{LAYERS[kind]}{int(index) + 1}')
        else:
            module = module.blocks[int(index)]
    return getattr(module, LEAVES[path[-1]])


def to_torch(value):
    """Height, width, in, out -> out, in, height, width; and dense kernels transposed."""
    value = torch.tensor(np.array(value), dtype=torch.float64)
    return value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T if value.ndim == 2 else value


def random_variables(network):
    """Weights, and norms that are not the identity."""
    rng = np.random.default_rng(0)
    leaves = flatten_dict(network.init((0, 0)))
    for path, value in leaves.items():
        if path[-1] != 'kernel':
            noise = rng.uniform(-0.2, 0.2, value.shape)
            leaves[path] = (value + noise).astype(np.float32)
    return unflatten_dict(leaves)


def load(torch_network, variables):
    """torch's network in float64 with our variables."""
    torch_network.double()
    for path, value in flatten_dict(variables).items():
        tensor = torch_leaf(torch_network, path)
        assert tensor.shape == to_torch(value).shape
        tensor.data = to_torch(value)
    return torch_network


def assert_close(ours, torchs, tolerance=1e-4):
    torchs = torchs.detach().numpy()
    np.testing.assert_allclose(ours, torchs, rtol=0, atol=tolerance * max(1, np.abs(torchs).max()))


IMAGES = np.random.default_rng(1).normal(size=(4, 16, 16, 3)).astype(np.float32)
LABELS = np.array([0, 3, 9, 3])


def test_resnet20_trains_as_torchs():
    network = build('resnet20', 10)
    variables = random_variables(network)
    torch_network = load(TorchResNet20(), variables)

    def loss(params):
        own = {**variables, 'params': params}
        (logits, _), stats = network.apply(own, IMAGES, True, jax.random.key(0))
        return cross_entropy(logits, LABELS).mean(), stats

    grads, stats = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
    logits = torch_network(channels_first(IMAGES))
    torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS)).backward()
    for path, value in flatten_dict({'params': grads}).items():
        assert_close(to_torch(value), torch_leaf(torch_network, path).grad)
    for path, value in flatten_dict({'batch_stats': stats}).items():
        assert_close(to_torch(value), torch_leaf(torch_network, path))


@pytest.mark.parametrize('name', ['resnet20', 'resnet18', 'resnet50'])
def test_forward_is_torchs(name):
    network = build(name, 10)
    variables = random_variables(network)
    torch_network = TorchResNet20() if name == 'resnet20' else torch_resnet(name)
    torch_network = load(torch_network, variables).eval()
    forward = jax.jit(lambda variables: network.apply(variables, IMAGES, False))
    (logits, features), stats = forward(variables)
    assert_close(logits, torch_network(channels_first(IMAGES)))
    assert features.shape == (4, torch_network.fc.in_features)
    jax.tree.map(np.testing.assert_array_equal, stats, variables['batch_stats'])
