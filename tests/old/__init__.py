"""What commit fbf67ca wrote, and what it had read: newer code must go on with it."""

import hashlib
import runpy
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CONFIGS = HERE.parent.parent / 'configs'
SMALL = {
    'dataset': 'npz:small.npz', 'network': 'tiny', 'members': 2, 'devices': 1, 'batch_size': 24,
    'augment': 'crop(1)+flip', 'optimizer.lr': 0.3, 'data.validation_size': 16, 'eval.batch_size': 40,
    'log.tensorboard': False,
}  # fmt: skip
# The arguments of `train`, and for the first one the step in whose middle of an epoch it was stopped.
STOPPED = {**SMALL, 'coupling': 'mutual', 'ema': 0.9, 'epochs': 6, 'checkpoint.keep': 1}
STOPPED_AT = 10
TAIL = {
    'dataset': 'npz:tail.npz', 'data.root': 'data', 'network': 'tiny', 'model.shortcut': '', 'devices': 1,
    'epochs': 3, 'batch_size': 32, 'optimizer.lr': 0.2, 'long_tail.imbalance': 5.0, 'eval.batch_size': 160,
    'checkpoint.keep': 1, 'log.tensorboard': False,
}  # fmt: skip
TERNARY = {**SMALL, 'network': 'resnet8', 'members': 1, 'view': 'ternary', 'epochs': 1, 'batch_size': 40}
FUSED = {
    **SMALL,
    'coupling': 'fusion',
    'fusion.rule': 'multiplicativeAddition',
    'fusion.heads': 2,
    'epochs': 2,
}


def sha(arrays: dict) -> str:
    """Of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        a = np.asarray(arrays[name])
        digest.update(f'{name} {a.dtype} {a.shape} '.encode() + a.tobytes())
    return digest.hexdigest()


def _mixed(n: int, start: int) -> np.ndarray:
    """[n] whole numbers up to 2^22 with no order to be seen: the same with every numpy."""
    x = np.arange(start, start + n, dtype=np.uint64)
    for _ in range(3):
        x = x * np.uint64(2654435769) % np.uint64(2**32)
        x ^= x >> np.uint64(15)
    return (x >> np.uint64(10)).astype(int)


def images(n: int, start: int):
    """uint8 [n,8,8,3] and labels [n]: noise around one picture for each of 4 classes."""
    colours, textures = 80 + _mixed(12, 0) % 96, _mixed(4 * 192, 12) % 81 - 40
    labels = np.arange(n) % 4
    noise = _mixed(n * 192, start) % 81 - 40
    pictures = colours.reshape(4, 1, 1, 3) + textures.reshape(4, 8, 8, 3)
    x = pictures[labels] + noise.reshape(n, 8, 8, 3)
    return x.astype(np.uint8), labels.astype(np.int32)


def write_data(folder: Path):
    """Write small.npz, of 96 and 40 images, and tail.npz, of 400 and 160."""
    for name, train, test in (('small', 96, 40), ('tail', 400, 160)):
        (x, y), (x_test, y_test) = images(train, 10**6), images(test, 2 * 10**6)
        np.savez(folder / f'{name}.npz', x_train=x, y_train=y, x_test=x_test, y_test=y_test)


def command(patch, name: str, *words):
    """Run `python -m jaxcifar.NAME WORDS` in this process; `patch` is a pytest.MonkeyPatch."""
    patch.setattr(sys, 'argv', [name, *map(str, words)])
    patch.setattr(sys, 'unraisablehook', sys.unraisablehook)  # which the commands set
    patch.setenv('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')  # or training begins in a new process
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', r'.*found in sys\.modules', RuntimeWarning)
        runpy.run_module(f'jaxcifar.{name}', run_name='__main__', alter_sys=False)


def train(patch, workdir: str, fields: dict, config: str = 'base'):
    """Train by the command."""
    flags = [f'--config.{name}={value}' for name, value in fields.items()]
    command(patch, 'main', f'--config={CONFIGS}/{config}.py', f'--workdir={workdir}', *flags)


def unpack(name: str, folder: Path):
    """Put an old folder into `folder`."""
    with tarfile.open(HERE / f'{name}.tar.gz') as archive:
        # Python has filters from 3.11.4 on, and warns where they are not used from 3.12 on.
        archive.extractall(folder, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
