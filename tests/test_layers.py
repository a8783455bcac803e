"""Layers against torch and XLA; how parameters begin; what is dropped in training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax.traverse_util import flatten_dict
from scipy.stats import kstest, norm, uniform

from jaxcifar.formats.state_dict import LEAVES
from jaxcifar.models import batch_norm, build, winograd
from jaxcifar.models.convolution import LAYOUT, convolve
from jaxcifar.models.layers import SCHEMES, BatchNorm, Layers, initialise


def channels_first(x):
    return torch.tensor(np.array(x), dtype=torch.float64).movedim(-1, 1)


@pytest.mark.parametrize('shape, sums', [
    ((4, 5, 6, 3), batch_norm._one_by_one), ((4, 5, 6, 3), batch_norm._in_one_pass),
    ((4, 16, 16, 3), batch_norm._in_one_pass), ((17, 8, 9, 3), batch_norm._in_one_pass),
    ((2, 1, 1, 3), batch_norm._one_by_one),
])  # fmt: skip
def test_batch_norm_is_torchs(shape, sums, monkeypatch):
    monkeypatch.setattr(batch_norm, '_one_by_one', sums)
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
        # Sums over more pixels round more often.
        atol = 1e-5 * max(x[..., 0].size / 120, 1)
        for ours, torchs in pairs:
            np.testing.assert_allclose(ours, torchs.detach(), rtol=1e-5, atol=atol)

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


def shapes(**layers):
    return {'params': {k: {'kernel': jax.ShapeDtypeStruct(s, jnp.float32)} for k, s in layers.items()}}


def test_kernels_are_he_and_xavier():
    drawn = initialise(shapes(conv=(3, 3, 32, 128), dense=(300, 100)), (0, 0))['params']
    conv, dense = (drawn[name]['kernel'].ravel() for name in ('conv', 'dense'))
    assert kstest(conv, norm(0, np.sqrt(2 / (3 * 3 * 128))).cdf).pvalue > 0.01
    limit = np.sqrt(6 / (300 + 100))
    assert kstest(dense, uniform(-limit, 2 * limit).cdf).pvalue > 0.01
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


def test_torch_scheme_is_that_of_torchs_layers():
    tree = shapes(conv=(3, 3, 32, 64), dense=(300, 1000))
    tree['params']['dense']['bias'] = jax.ShapeDtypeStruct((1000,), jnp.float32)
    drawn = initialise(tree, (0, 0), SCHEMES['torch'])['params']
    torch.manual_seed(0)
    conv, dense = torch.nn.Conv2d(32, 64, 3), torch.nn.Linear(300, 1000)
    pairs = [(drawn['conv']['kernel'], conv.weight), *zip(drawn['dense'].values(), dense.parameters())]
    for ours, torchs in pairs:
        assert kstest(ours.ravel(), torchs.detach().numpy().ravel()).pvalue > 0.001


def test_dense_layers_he_normal_are_torchs_kaiming_normal():
    tree = shapes(conv=(3, 3, 32, 64), dense=(300, 1000))
    he, dense = (initialise(tree, (0, 0), SCHEMES[name])['params'] for name in ('he', 'he_dense'))
    torch.manual_seed(0)
    torchs = torch.nn.init.kaiming_normal_(torch.empty(1000, 300)).numpy()
    assert kstest(dense['dense']['kernel'].ravel(), torchs.ravel()).pvalue > 0.001
    assert (he['conv']['kernel'] == dense['conv']['kernel']).all()


def native(x, kernel, stride=1, padding=((1, 1), (1, 1)), groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT, feature_group_count=groups
    )


def assert_same_convolution(ours, xlas, shape, kernel_shape):
    """And the same gradients."""
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=s).astype(np.float32) for s in (shape, kernel_shape))
    weights = rng.normal(size=jax.eval_shape(xlas, x, kernel).shape).astype(np.float32)

    def run(convolve):
        y, pull = jax.vjp(convolve, x, kernel)
        return y, pull(weights)

    results = (jax.jit(partial(run, f))() for f in (ours, xlas))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize('groups, out', [(1, 6), (2, 6), (4, 4), (4, 8)])
@pytest.mark.parametrize('size, stride, padding', [
    (1, 1, 0), (1, 2, 0), (2, 2, 0), (3, 1, 1), (3, 2, 1), (3, 2, 0), (3, 3, 2), (7, 2, 3),
])  # fmt: skip
def test_convolution_and_its_gradients_are_xlas(size, stride, padding, groups, out):
    shape = {'stride': stride, 'padding': ((padding, padding),) * 2, 'groups': groups}
    kernel_shape = size, size, 4 // groups, out
    assert_same_convolution(partial(convolve, **shape), partial(native, **shape), (2, 8, 9, 4), kernel_shape)


@pytest.mark.parametrize('cache', [2**22, 1])
def test_winograds_convolution_is_xlas(cache, monkeypatch):
    monkeypatch.setattr(winograd, 'CACHE', cache)  # all at once, and in parts as large as the kernels
    assert_same_convolution(winograd.convolve_3x3, native, (6, 4, 10, 5), (3, 3, 5, 3))


def test_wide_convolutions_are_winograds_on_a_cpu_alone():
    def wide(x, kernel):
        return convolve(x, kernel, 1, ((1, 1), (1, 1)))

    mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    parts, whole = jax.P('data'), jax.P()
    divided = jax.shard_map(wide, mesh=mesh, in_specs=(parts, whole), out_specs=parts)
    shapes = (4, 32, 16, 128), (3, 3, 128, 128)
    assert_same_convolution(divided, native, *shapes)
    traced = jax.jit(wide).trace(*(jax.ShapeDtypeStruct(s, np.float32) for s in shapes))
    text = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ('cpu', 'cuda')}
    assert 'convolution' in text['cuda'] and 'convolution' not in text['cpu']


class Call(nn.Module):
    """A function that may use dropout."""

    function: object

    @nn.compact
    def __call__(self, x):
        return self.function(x)


def call(function, x):
    return np.array(Call(function).apply({}, x, rngs={'dropout': jax.random.key(0)}))


def test_dropout_and_drop_path():
    x = np.ones((2000, 2, 2, 5), np.float32)
    layers = Layers(train=True, dropout=0.3, drop_path=0.4)
    dropped = call(layers.drop, x)
    assert set(np.unique(dropped)) == {0, np.float32(1 / 0.7)}
    assert dropped.mean() == pytest.approx(1, abs=0.02)
    for depth in (0.5, 1):
        images = call(partial(layers.skip, depth=depth), x).reshape(2000, -1)
        assert (images == images[:, :1]).all()  # whole branches
        assert (images[:, 0] == 0).mean() == pytest.approx(0.4 * depth, abs=0.03)
        assert images.mean() == pytest.approx(1, abs=0.05)
    assert (call(partial(layers.skip, depth=0), x) == x).all()  # the first block
    for same in (Layers(train=True), Layers(train=False, dropout=0.3, drop_path=0.4)):
        assert (call(same.drop, x) == x).all() and (call(partial(same.skip, depth=1), x) == x).all()
