"""StableHLO and ONNX: the graphs give the logits of the network, also where its weights are ternary."""

import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcifar
from jaxcifar.engine.quantize import Ternary
from jaxcifar.export import write as export
from jaxcifar.machine.errors import UserError
from jaxcifar.models import NETWORKS, build
from jaxcifar.models.layers import Layers, head
from jaxcifar.models.resnet import subsample
from jaxcifar.models.speednet import halve


def ternary(params, per_channel=False, negative=1.0):
    """A tree of parameters with ternary kernels [3,3,…] but for the stem's; numpy, which compiles nothing."""

    def change(leaf):
        if leaf.shape[:2] != (3, 3) or leaf.shape[2] == 3:
            return leaf
        size = np.abs(leaf)
        scale = size.mean((0, 1, 2)) if per_channel else size.mean(keepdims=True).ravel()
        codes = (np.sign(leaf) * (size > 0.7 * size.mean())).astype(np.int8)
        return Ternary(codes, scale, np.float32(negative) * scale)

    return jax.tree.map(change, params)


def floats(tree):
    """The same with the kernels' values."""

    def change(leaf):
        if not isinstance(leaf, Ternary):
            return leaf
        return np.where(leaf.codes > 0, leaf.positive, leaf.codes * leaf.negative).astype(np.float32)

    return jax.tree.map(change, tree, is_leaf=lambda leaf: isinstance(leaf, Ternary))


def test_stablehlo_runs_for_any_batch(ternary_run, dataset):
    folder = export.export(ternary_run, 'stablehlo', member='0_resnet8')
    data = (folder / '0_resnet8.stablehlo').read_bytes()
    assert str(Path(jaxcifar.__file__).parent).encode() not in data  # nor whose machine it was
    program = jax.export.deserialize(bytearray(data))
    expected = jaxcifar.load(ternary_run, 0).logits(dataset.x_test)[0]
    for batch in (1, 40):
        np.testing.assert_allclose(program.call(dataset.x_test[:batch]), expected[:batch], atol=1e-5)
    assert set(program.platforms) == {'cpu', 'cuda', 'rocm', 'tpu'}


class Everything(nn.Module):
    """One of each thing that the networks are made of."""

    num_classes: int
    layers: Layers

    @nn.compact
    def __call__(self, x):
        a = self.layers
        x = nn.relu(a.norm('bn1')(a.conv(8, 7, 2, name='conv1')(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        y = nn.relu6(a.norm('bn2')(a.conv(8, 3, 2, 8, name='depthwise')(x)))
        y = a.norm('bn3')(a.conv(12, 3, 1, 2, name='grouped')(y))
        x = nn.sigmoid(subsample(x, 12, 2, a) + nn.gelu(y))
        x = nn.avg_pool(jnp.concatenate([x, a.conv(4, 3, name='conv2')(x)], -1), (2, 2), (2, 2))
        return head(halve(x), self.num_classes)


def test_onnx_graphs_give_the_same_logits(monkeypatch):
    onnxruntime = pytest.importorskip('onnxruntime', reason="needs pip install -e '.[export]'")
    from jaxcifar.formats.onnx_export import to_onnx

    monkeypatch.setitem(NETWORKS, 'everything', Everything)
    network, rng = build('everything', 5, 32), np.random.default_rng(0)
    drawn = network.init((0, 0))
    variables = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32), drawn)
    kinds = {'dense': variables['params'], 'channel': ternary(variables['params'], per_channel=True)}
    kinds['asymmetric'] = ternary(variables['params'], negative=0.5)
    images = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)

    @jax.jit
    def function(variables, images):
        return network.apply(variables, images / jnp.float32(255), False)[0][0]

    found = {}
    for (kind, params), bits in zip(kinds.items(), (2, 4, 2)):
        tree = {**variables, 'params': params}
        model = to_onnx(function, tree, 32, bits)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
        (found[kind],) = session.run(None, {'images': images})
        np.testing.assert_allclose(found[kind], function(floats(tree), images), atol=1e-4, err_msg=kind)
    assert min(np.ptp(z[:, 0]) for z in found.values()) > 1e-3  # the images make a difference
    assert np.abs(found['channel'] - found['asymmetric']).max() > 1e-2


def test_onnx_of_a_run_keeps_codes(ternary_run, tmp_path):
    onnx = pytest.importorskip('onnx', reason="needs pip install -e '.[export]'")
    # The export compares it with the network itself.
    folder = export.export(ternary_run, 'onnx', tmp_path / '2', member='0')
    model = onnx.load(folder / '0_resnet8.onnx')
    types = [onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer]
    assert types.count('INT2') == 6
    wide = export.export(ternary_run, 'onnx', tmp_path / '8', member='0', bits=8)
    sizes = [(f / '0_resnet8.onnx').stat().st_size for f in (folder, wide)]
    assert sizes[0] < 0.45 * sizes[1]
    with pytest.raises(UserError, match='no translation of sin yet'):
        from jaxcifar.formats.onnx_export import to_onnx

        to_onnx(lambda _, images: jnp.sin(images.astype(jnp.float32)).sum((1, 2)), {}, 8)
    shutil.rmtree(folder)
