"""Every command on files that are damaged or of another kind: it works, or says in one line what to do.

And after the base install, without the optional packages, each export format works or says what it needs.
"""

import contextlib
import importlib.metadata
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxcifar
from jaxcifar import predict as predict_command
from jaxcifar.evaluate import evaluate, improve_on
from jaxcifar.export.write import FORMATS, export
from jaxcifar.formats import foreign, portable
from jaxcifar.loop import train
from jaxcifar.machine.errors import UserError
from jaxcifar.models import NETWORKS
from jaxcifar.runs.trained import open_trained
from jaxcifar.torch_weights import export_weights
from tests.conftest import small_config
from tests.steps import Tiny


@pytest.fixture(scope='module')
def run(small_npz, tmp_path_factory):
    """A folder: the workdir `run` of a tiny ternary network, its exports, its torch weights, an image."""
    folder = tmp_path_factory.mktemp('doors')
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, 'tiny', Tiny)
        patch.setattr(foreign, 'NETWORKS', {'tiny': Tiny})  # all others take seconds
        config = small_config(small_npz)
        config.network, config.epochs, config.batch_size = 'tiny', 1, 40
        config.view, config.ternary.layers = 'ternary', '.*'
        train(config, folder / 'run')
        for kind in 'release', 'packed':
            export(folder / 'run', kind, folder / kind)
        export_weights(folder / 'run', folder / 'weights.pth')
        image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(image).save(folder / 'image.png')
        yield folder


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


BYTES = {
    'cut': cut,
    'a bit': flip,
    'empty': lambda data: b'',
    'no text': lambda data: b'\xff' + data,
    'a list': lambda data: b'[]',
    'a number': lambda data: b'3',
    'null': lambda data: b'null',
    'an object': lambda data: b'{}',
    'deep': lambda data: b'[' * 100_000,
}


OTHERS = None, [], {}, 'text', -1


def with_other_values(data: bytes):
    """Yield the JSON object with one value after the other replaced by one of another type."""
    content = json.loads(data)
    for i, key in enumerate(content):
        yield json.dumps({**content, key: OTHERS[i % len(OTHERS)]}).encode()


def says_one_line(call, *arguments):
    """Call, and accept a result or a `UserError` of one line."""
    try:
        call(*arguments)
    except UserError as error:
        assert '\n' not in str(error) and len(str(error)) > 10, error
    except Exception as error:
        pytest.fail(f'{type(error).__name__}: {error}')


COMMANDS = {
    'load': lambda folder, path: jaxcifar.load(path),
    'evaluate': lambda folder, path: evaluate(path, dataset=None if path.name == 'run' else data_of(folder)),
    'predict': lambda folder, path: predict_command.predict(path, [folder / 'image.png']),
    'export': lambda folder, path: export(path, 'safetensors', folder / 'again'),
    'baseline': lambda folder, path: improve_on([{'name': '0_tiny', 'accuracy': 0.5}], path),
    'torch_weights': lambda folder, path: export_weights(path, folder / 'again.pth'),
}


def data_of(folder: Path) -> str:
    return json.loads((folder / 'run' / 'config.json').read_text())['dataset']


# A file, and the commands that read it.
FILES = {
    'run/config.json': ('load', 'torch_weights'),
    'run/dataset.json': ('load', 'evaluate'),
    'run/results.json': ('baseline', 'export'),
    'run/run.json': ('export',),
    'run/best/0_tiny/*.npz': ('load',),
    'run/checkpoints/*/meta/metadata': ('last',),
    'run/checkpoints/*/sha256.json': ('last',),
    'release/card.json': ('load',),
    'release/config.json': ('evaluate',),
    'release/SHA256SUMS': ('load',),
    'release/*.safetensors': ('load',),
    'packed/*.packed': ('load',),
    'weights.pth': ('load',),
    'image.png': ('predict',),
}
COMMANDS['last'] = lambda folder, path: open_trained(path, 'last').members()


@pytest.mark.parametrize('pattern', FILES)
def test_damaged_files_end_in_one_line(pattern, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / 'doors')
    (file,) = folder.glob(pattern)
    path = folder / pattern.partition('/')[0] if pattern != 'image.png' else folder / 'packed'
    good = file.read_bytes()
    damaged = [damage(good) for damage in BYTES.values()]
    if file.suffix == '.json':
        damaged += with_other_values(good)
    for data in damaged:
        file.write_bytes(data)
        for sums in {False, path.name == 'release' and file.name != portable.SUMS}:
            if sums:
                portable.write_sums(path)
            for command in FILES[pattern]:
                says_one_line(COMMANDS[command], folder, path)


def base_install() -> set[str]:
    """Return the names of what pyproject's dependencies bring, of all that is installed here."""
    project = tomllib.loads((Path(__file__).parent.parent / 'pyproject.toml').read_text())['project']
    queue, brought = list(project['dependencies']), set()
    while queue:
        requirement = queue.pop()
        name = re.match(r'[\w.-]+', requirement)[0].lower().replace('_', '-')
        if name in brought or 'extra ==' in requirement:
            continue
        brought.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # of another platform
            queue += importlib.metadata.requires(name) or []
    return brought


@pytest.mark.parametrize('missing', [(), ('flatbuffers',)], ids=['base', 'even less'])
def test_formats_work_after_the_base_install_or_say_what_they_need(missing, run, tmp_path, monkeypatch):
    brought = base_install()
    needed = {'onnx', 'onnxruntime', 'flatbuffers', 'safetensors', 'scipy'}
    assert 'jax' in brought and 'onnx' not in brought and 'pytest' not in brought
    absent = {name for name in needed if name not in brought} | set(missing)
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)
    refused = []
    for kind in FORMATS:
        try:
            export(run / 'run', kind, tmp_path / kind)
        except UserError as error:
            refused.append(kind)
            assert re.search(r"needs \w+: pip install .*'\.\[export\]'", str(error))
    assert refused == ['onnx', *(['stablehlo'] if missing else [])]
