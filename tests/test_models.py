"""The networks: sizes, parity with PyTorch, and what the options of `build` do."""

from functools import cache

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.bench.torch_networks import TORCH
from jaxcifar.engine.losses import cross_entropy
from jaxcifar.formats.state_dict import to_torch
from jaxcifar.machine.errors import UserError
from jaxcifar.models import NETWORKS, build
from jaxcifar.models.layers import Layers, head
from tests import pages
from tests.pairs import PAIRS

# Parameters at 100 classes, and features D.
SIZES = {
    'wideresnet28_10': (36_536_884, 640),
    'wideresnet40_2': (2_255_156, 128),
    'wideresnet28_2': (1_479_220, 128),
    'resnext29_8x64d': (34_518_948, 1024),
    'resnext29_16x64d': (68_247_460, 1024),
    'preact_resnext29_8x64d': (34_515_364, 1024),
    'resnet18': (11_220_132, 512),
    'resnet34': (21_328_292, 512),
    'resnet50': (23_705_252, 2048),
    'preact_resnet18': (11_218_340, 512),
    'densenet121': (7_048_676, 1024),
    'densenet169': (12_643_300, 1664),
    'densenet201': (18_277_348, 1920),
    'efficient_densenet': (800_080, 342),
    'resnet20': (275_572, 64),
    'resnet32': (470_004, 64),
    'resnet44': (664_436, 64),
    'resnet56': (858_868, 64),
    'resnet110': (1_733_812, 64),
}
SHORTCUT_B = {
    'resnet20': 278_324,
    'resnet32': 472_756,
    'resnet44': 667_188,
    'resnet56': 861_620,
    'resnet110': 1_736_564,
}
# Fast to compile and without surprises where a ReLU's input is nearly 0.
SHALLOW = ('shortcut A', 'shortcut B', 'preact', 'wide', 'small dense')
FAST_COMPILE = {
    'xla_cpu_opt_preset': 'CPU_OPT_PRESET_FAST_COMPILE',
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
}


@cache
def sizes(name, num_classes=100, **options):
    """(parameters, features D): those that the only dense layer takes in."""
    leaves = jax.tree.leaves(build(name, num_classes, **options).shapes()['params'])
    (features,) = (leaf.shape[0] for leaf in leaves if leaf.ndim == 2)
    return sum(leaf.size for leaf in leaves), features


def test_sizes():
    assert {name: sizes(name) for name in SIZES} == SIZES
    assert {name: sizes(name, shortcut='B')[0] for name in SHORTCUT_B} == SHORTCUT_B
    assert sizes('resnet18', 10, stem='imagenet') == (11_181_642, 512)
    assert sizes('resnet18', 1000, stem='imagenet') == (11_689_512, 512)
    assert sizes('mobilenetv2', 1000, stem='imagenet') == (3_504_872, 1280)


def test_torchs_networks_are_as_large():
    with torch.device('meta'):
        parameters = {name: make(classes=100).parameters() for name, make in TORCH.items()}
    torchs = {name: sum(p.numel() for p in parts) for name, parts in parameters.items()}
    assert torchs == {name: sizes(name)[0] for name in NETWORKS if 'speednet' not in name}


class Pair:
    """One of ours and torch's in float64 with the same random variables, images and labels."""

    def __init__(self, pair):
        name, options, make, size = PAIRS[pair]
        self.network = build(name, 10, size, **options)
        rng = np.random.default_rng(0)
        leaves = flatten_dict(self.network.init((0, 0)))
        for path, value in leaves.items():
            if path[-1] != 'kernel':  # norms that are not the identity
                leaves[path] = (value + rng.uniform(-0.2, 0.2, value.shape)).astype(np.float32)
        self.variables = unflatten_dict(leaves)
        self.images = rng.normal(size=(4, size, size, 3)).astype(np.float32)
        self.labels = np.array([0, 3, 9, 3])
        self.torch = make().double()
        self.torch.load_state_dict(to_torch(self.variables))  # strictly: no name more or less

    def torch_forward(self):
        """Logits and features."""
        features = []
        head = [m for m in self.torch.modules() if isinstance(m, torch.nn.Linear)][-1]
        head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
        return self.torch(torch.tensor(self.images).double().movedim(-1, 1)), features[0]

    def torch_step(self):
        """{name: tensor}: logits, features, new batch statistics and gradients."""
        logits, features = self.torch_forward()
        torch.nn.functional.cross_entropy(logits, torch.tensor(self.labels)).backward()
        gradients = {name: p.grad for name, p in self.torch.named_parameters()}
        return {'logits': logits, 'features': features, **dict(self.torch.named_buffers()), **gradients}

    def step(self):
        """The same of ours."""

        def loss(params, variables):
            outputs, stats = self.network.apply({**variables, 'params': params}, self.images, True)
            return cross_entropy(outputs[0], self.labels).mean(), (*outputs, stats)

        step = jax.jit(jax.grad(loss, has_aux=True), compiler_options=FAST_COMPILE)
        gradients, (logits, features, stats) = step(self.variables['params'], self.variables)
        named = to_torch({'params': gradients, 'batch_stats': stats})
        return {
            'logits': torch.tensor(np.array(logits)),
            'features': torch.tensor(np.array(features)),
            **named,
        }


def assert_close(ours, torchs, least=0.0):
    scale = max(torchs.abs().max().item(), least)
    np.testing.assert_allclose(ours, torchs.detach(), rtol=0, atol=1e-4 * scale)


@pytest.fixture
def smooth(monkeypatch):
    """Deep networks without kinks: where one is met, rounding decides a gradient (in torch as well)."""

    def relu(x, silu, inplace=False):
        return silu(x)

    def relu6(x, silu):
        return silu(x) - silu(x - 6)

    monkeypatch.setattr('flax.linen.relu', lambda x: relu(x, jax.nn.silu))
    monkeypatch.setattr('flax.linen.relu6', lambda x: relu6(x, jax.nn.silu))
    silu = torch.nn.functional.silu
    monkeypatch.setattr(torch.nn.functional, 'relu', lambda x, inplace=False: relu(x, silu))
    monkeypatch.setattr(torch.nn.ReLU6, 'forward', lambda self, x: relu6(x, silu))


# The large ones are made of the same blocks, and take half a minute.
# Blocks that repeat add time to a step, and no other gradients.
TRAINED = [p for p in PAIRS if p not in ('small mobile', 'resnet18', 'resnet34', 'resnet50', 'densenet121')]


@pytest.mark.parametrize('pair', TRAINED)
def test_a_training_step_is_torchs(pair, request):
    if pair not in SHALLOW:
        request.getfixturevalue('smooth')
    both = Pair(pair)
    ours, torchs = both.step(), both.torch_step()
    assert ours.keys() == torchs.keys()
    # Some gradients are 0 but for rounding, as of a bias that the next norm takes away again.
    largest = max(p.grad.abs().max().item() for p in both.torch.parameters())
    for name, value in torchs.items():
        if not name.endswith('num_batches_tracked'):
            least = 0.01 * largest if name.endswith(('weight', 'bias')) else 0.0
            assert_close(ours[name], value, least)


@pytest.mark.parametrize(
    'pair', ['small mobile', 'resnet18', 'resnet50', 'densenet121', 'mobilenetv2', 'preact resnext']
)
def test_evaluation_is_torchs(pair):
    both = Pair(pair)
    both.torch.eval()

    def forward(variables):
        return both.network.apply(variables, both.images, False)

    outputs, stats = jax.jit(forward, compiler_options=FAST_COMPILE)(both.variables)
    for ours, torchs in zip(outputs, both.torch_forward()):
        assert_close(ours, torchs)
    jax.tree.map(np.testing.assert_array_equal, stats, both.variables['batch_stats'])


@pytest.mark.parametrize('name', ['resnet8', 'efficient_densenet'])
def test_bfloat16_computes_in_it_and_keeps_float32(name):
    network = build(name, 10, 8, jnp.bfloat16)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    lowered = jax.jit(lambda v, x: network.apply(v, x, True)).lower(network.shapes(), images)
    outputs = jax.tree.leaves((network.shapes(), lowered.out_info))  # logits, features, statistics
    assert {leaf.dtype for leaf in outputs} == {np.dtype('float32')}
    convolutions = [line for line in lowered.as_text().splitlines() if 'stablehlo.convolution' in line]
    assert convolutions and all('xbf16>' in line and 'xf32>' not in line for line in convolutions)


# The residual blocks of MobileNetV2: in the others nothing would be left.
REPEATED = (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)


@pytest.mark.parametrize('name, last', [
    ('resnet8', [f'layer{s}_0/bn2' for s in (1, 2, 3)]),
    ('resnet50', [f'layer{s}_{i}/bn3' for s, n in enumerate((3, 4, 6, 3), 1) for i in range(n)]),
    ('resnext29_8x64d', [f'layer{s}_{i}/bn3' for s in (1, 2, 3) for i in range(3)]),
    ('mobilenetv2', [f'features_{i}/conv_3' for i in REPEATED]),
])  # fmt: skip
def test_zero_init_zeroes_the_norms_that_end_a_block(name, last):
    leaves = flatten_dict(build(name, 10, zero_init=True).init((0, 0))['params'], sep='/')
    scales = {path: value for path, value in leaves.items() if path.endswith('/scale')}
    assert {path for path, value in scales.items() if not value.any()} == {f'{n}/scale' for n in last}
    assert all(value.all() for value in scales.values() if value.any())


@pytest.mark.parametrize('name, options, words', [
    ('wideresnet28_2', {'shortcut': 'A'}, 'wideresnet28_2 has no choice of shortcut'),
    ('densenet121', {'image_size': 28, 'stem': 'imagenet'}, 'needs images of 29 pixels or more'),
    ('resnet20', {'shortcut': 'C'}, "unknown model.shortcut 'C'"),
    ('resnet18', {'stem': 'imagnet'}, "did you mean 'imagenet'"),
    ('resnet18', {'init': 'xavier'}, "unknown model.init 'xavier'"),
    ('densenet121', {'zero_init': True}, 'zero_init must be False for densenet121'),
    ('speednet_small', {'image_size': 8}, 'speednet needs images of 9 pixels or more'),
    ('resnet21', {}, "unknown network 'resnet21'"),
])  # fmt: skip
def test_wrong_options_are_said(name, options, words):
    with pytest.raises(UserError, match=words):
        build(name, 10, **options).shapes()


def test_dropout_needs_a_key_and_training():
    network = build('resnet8', 10, 8, dropout=0.5, drop_path=0.5, width=4, stages=(1, 1))
    variables, x = network.init((0, 0)), np.random.default_rng(0).normal(size=(4, 8, 8, 3))

    def logits(train, seed):
        return np.array(network.apply(variables, x, train, jax.random.key(seed))[0][0])

    assert np.abs(logits(True, 0) - logits(True, 1)).max() > 0.01
    assert (logits(False, 0) == logits(False, 1)).all()
    with pytest.raises(Exception, match='dropout'):
        network.apply(variables, x, True)


def test_the_network_of_the_page_trains(monkeypatch):
    names = {'nn': flax.linen, 'Layers': Layers, 'head': head}
    exec(pages.python('networks', 'class Tiny'), names)
    monkeypatch.setitem(NETWORKS, 'tiny', names['Tiny'])
    network = build('tiny', 10)
    (logits, features), _ = network.apply(network.init((0,)), np.ones((2, 32, 32, 3), np.float32), True)
    assert logits.shape == (2, 10) and features.shape == (2, 32)


class Own(flax.linen.Module):
    """A network without batch norm, and with parameters of its own."""

    num_classes: int
    layers: Layers

    @flax.linen.compact
    def __call__(self, x):
        gamma = self.param('gamma', flax.linen.initializers.constant(0.5), (3,))
        return head(flax.linen.PReLU()(flax.linen.LayerNorm()(gamma * x)), self.num_classes)


def test_parameters_of_other_names_start_as_their_module_draws_them(monkeypatch):
    monkeypatch.setitem(NETWORKS, 'own', Own)
    network = build('own', 10)
    variables = network.init((0, 1))
    params = variables['params']
    assert (params['gamma'] == 0.5).all() and params['PReLU_0']['negative_slope'] == np.float32(0.01)
    assert (params['LayerNorm_0']['scale'] == 1).all() and np.ptp(params['fc']['kernel']) > 0
    assert network.apply(variables, np.ones((2, 32, 32, 3), np.float32), True)[1] == {}
    with pytest.raises(UserError, match='zero_init must be False for own'):
        build('own', 10, zero_init=True)
