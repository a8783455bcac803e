"""Packed networks: the bytes are those of the page, and nothing of the weights is lost."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcifar
from jaxcifar.evaluate import evaluate
from jaxcifar.export import write as export
from jaxcifar.formats import packed, packed_file
from jaxcifar.formats.packed import pack, unpack
from jaxcifar.machine.errors import UserError
from jaxcifar.models import build
from tests.steps import distance


def test_codes_are_packed_to_the_byte():
    assert pack(np.array([1, 0, -1, 1]), '2bit').tobytes() == b'\x86'
    assert pack(np.array([1, 0, -1, 1, 0]), 'trits').tolist() == [2 + 1 * 3 + 0 * 9 + 2 * 27 + 1 * 81]
    assert pack(np.array([-1]), '2bit').tobytes() == b'\x54'  # filled up with zeros
    for how, bits in (('2bit', 2), ('trits', 1.6)):
        for length in range(21):
            codes = np.random.default_rng(length).integers(-1, 2, length, np.int8)
            data = pack(codes, how)
            assert data.dtype == np.uint8 and len(data) == np.ceil(length * bits / 8)
            np.testing.assert_array_equal(unpack(data, how, (length,)), codes)
        np.testing.assert_array_equal(unpack(data, how, (4, 5), jnp), codes.reshape(4, 5))


def test_resnet18_fits_where_it_should(tmp_path):
    variables, rng = build('resnet18', 10).init((0, 0)), np.random.default_rng(0)
    for name, block in variables['params'].items():
        for kernel in (layer for part, layer in block.items() if name[:5] == 'layer' and 'kernel' in layer):
            codes = rng.integers(-1, 2, kernel['kernel'].shape, np.int8)
            kernel['kernel'] = codes * np.float32(0.01)
    size = {}
    kinds = [('trits', 'float32', False), ('trits', 'float16', False), ('2bit', 'float32', False)]
    for how, rest, fold in [*kinds, ('trits', 'float16', True)]:
        packed_file.write(tmp_path / 'file', {}, variables, how, rest, fold)
        size[how, rest, fold] = (tmp_path / 'file').stat().st_size
    assert size['trits', 'float16', False] < 2.3e6 and size['trits', 'float16', True] < 2.28e6
    assert size['trits', 'float32', False] < 2.35e6 and size['2bit', 'float32', False] < 2.765 * 2**20
    _, same = packed_file.read(tmp_path / 'file')
    assert distance(packed.to_dense(same)['params']['layer4_1']['conv2'],
                    variables['params']['layer4_1']['conv2']) < 1e-4  # fmt: skip


@pytest.mark.parametrize('packing', ['trits', '2bit'])
def test_a_packed_file_evaluates_to_the_last_bit(packing, ternary_run, small_npz, tmp_path, monkeypatch):
    """As the checkpoint, and nearly so where it is smaller still."""
    # Two members and one would cut a batch into other parts, and a convolution rounds by its batch.
    monkeypatch.setattr(jax, 'devices', lambda devices=jax.devices(): devices[:1])  # noqa: B008
    folder, data = (
        export.export(ternary_run, 'packed', tmp_path / packing, packing=packing),
        f'npz:{small_npz}',
    )
    expected = evaluate(ternary_run, 'best', 'test', flip=False)['members']
    for k, name in enumerate(('0_resnet8', '1_resnet8')):
        found = evaluate(folder / f'{name}.packed', None, 'test', flip=False, dataset=data)
        assert found['members'] == [expected[k]]
    assert evaluate(folder, None, 'test', flip=False, dataset=data)['members'] == expected
    with pytest.raises(UserError, match='leave out --checkpoint last'):
        evaluate(folder, 'last', 'test', flip=False, dataset=data)
    with pytest.raises(UserError, match='expected 4 classes of 8 pixels, got 10 classes of 32'):
        evaluate(folder, None, 'test', flip=False, dataset='digits')
    small = export.export(ternary_run, 'packed', tmp_path / 's', packing=packing, rest='float16', fold=True)
    assert (small / '0_resnet8.packed').stat().st_size < (folder / '0_resnet8.packed').stat().st_size
    for exact, near in zip(expected, evaluate(small, None, 'test', flip=False, dataset=data)['members']):
        assert near['nll'] == pytest.approx(exact['nll'], abs=0.01) and near['nll'] != exact['nll']


def test_packed_weights_stay_packed_in_memory(packed_path, ternary_run, dataset):
    model, dense = jaxcifar.load(packed_path), jaxcifar.load(ternary_run, 1)
    np.testing.assert_allclose(model.logits(dataset.x_test), dense.logits(dataset.x_test), atol=1e-5)
    held, before = (sum(leaf.nbytes for leaf in jax.tree.leaves(m.weights)) for m in (model, dense))
    assert held < 0.1 * before
    program = model.function.lower(model.weights, dataset.x_test[:1]).compile()
    largest = 4 * 3 * 3 * 64 * 64
    assert program.memory_analysis().temp_size_in_bytes < 2 * largest  # where all together are 4.5 times it


def test_a_packed_file_that_is_not_whole_is_refused(packed_path, tmp_path):
    good, broken = packed_path.read_bytes(), tmp_path / 'broken.packed'
    faults = {
        'expected a packed network': b'no network at all',
        'ends after 20 bytes': good[:20],
        'of version 2': good[:8] + b'\x02' + good[9:],
        'not those that were written': good[:-1],
    }
    for place in (20, 60, len(good) // 2, len(good) - 1):
        broken.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(UserError, match='not those that were written'):
            jaxcifar.load(broken)
    for words, data in faults.items():
        broken.write_bytes(data)
        with pytest.raises(UserError, match=words) as caught:
            jaxcifar.load(broken)
        assert '\n' not in str(caught.value)
    for header, rest, words in (
        (b'{}', b'', "'rest'"),
        (b'[1]', b'', 'indices'),
        (b'{"rest":"float32","tensors":[["a",[9],"float32"]]}', b'', 'buffer'),
        (b'{"rest":"float32","tensors":[["a",[-1],"float32"]]}', b'', '-1 numbers'),
        (b'{"rest":"float16","tensors":[["a",[2,3],"2bit",[2]]]}', bytes(6), 'for other channels'),
        (b'{"rest":"float16","tensors":[["a",[2,3],"2bit",[1]]]}', bytes(5), '1 bytes are left over'),
    ):
        digest = hashlib.sha256(header + rest).digest()
        start = packed_file.START.pack(packed_file.MAGIC, 1, len(header), digest)
        broken.write_bytes(start + header + rest)
        with pytest.raises(UserError, match=f'damaged: what it says of its tensors .*{words}'):
            jaxcifar.load(broken)
    with pytest.raises(UserError, match=r'no kernel of .* is ternary'):
        packed_file.write(tmp_path / 'dense', {}, build('resnet8', 4).init((0, 0)))
