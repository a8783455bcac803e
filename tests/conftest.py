"""Four virtual CPU devices, one compilation cache for all tests, and runs small enough for them."""

import importlib.metadata
import os
from pathlib import Path

os.environ['XLA_FLAGS'] = (
    f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=4 '
    # Programs run for moments here: a third of the time to compile them is LLVM's.
    '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
)
# Another half is that of newer parts of XLA. It ends the process at a flag that it does not know, so only the
# version of constraints.txt gets these. They change no bit of the runs that were compared.
if importlib.metadata.version('jaxlib') == '0.10.2':
    os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
os.environ['JAX_PLATFORMS'] = 'cpu'
# Tests have a core each: threads of torch would wait for one another, and wait by spinning.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import jax
import numpy as np
import pytest

from configs import base
from jaxcifar.data.datasets import Dataset
from jaxcifar.export import write as export
from jaxcifar.loop import train
from jaxcifar.models import NETWORKS
from tests.steps import Linear, Tiny

CACHE = Path(__file__).parent.parent / '.pytest_cache' / 'xla'
WORTH = 0.05  # seconds of compiling from which on a program is kept
CACHED = {  # for processes that tests start
    'JAX_COMPILATION_CACHE_DIR': str(CACHE),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': str(WORTH),
}
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', WORTH)


def small_images(n: int = 96, classes: int = 4, size: int = 8, seed: int = 0):
    """Noise around one picture a class: uint8 [n,size,size,3] and labels [n]; learnt in a few steps."""
    rng = np.random.default_rng(seed)
    pictures = np.random.default_rng(0).integers(40, 216, (classes, size, size, 3))
    labels = np.arange(n) % classes
    noise = rng.integers(-40, 40, (n, size, size, 3))
    return (pictures[labels] + noise).astype(np.uint8), labels.astype(np.int32)


@pytest.fixture(scope='session')
def dataset() -> Dataset:
    """96 training and 40 test images of 8x8 pixels in 4 classes."""
    x, y = small_images()
    x_test, y_test = small_images(40, seed=1)
    stats = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return Dataset('small', x, y, x_test, y_test, ('a', 'b', 'c', 'd'), *stats)


@pytest.fixture(scope='session')
def small_npz(dataset, tmp_path_factory) -> Path:
    """The same images as a file, for `dataset=npz:PATH`."""
    path = tmp_path_factory.mktemp('data') / 'small.npz'
    arrays = {k: getattr(dataset, k) for k in ('x_train', 'y_train', 'x_test', 'y_test')}
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope='session')
def tail_npz(tmp_path_factory) -> Path:
    """400 training and 160 test images of the same 4 classes: enough for a long tail of imbalance 5."""
    path = tmp_path_factory.mktemp('data') / 'tail.npz'
    (x, y), (x_test, y_test) = small_images(400), small_images(160, seed=1)
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return path


def small_config(npz: Path):
    """A run of seconds on the small images: resnet8, one device, 2 epochs of 3 steps."""
    c = base.get_config()
    c.dataset = f'npz:{npz}'
    c.network = 'resnet8'
    c.devices = 1
    c.epochs = 2
    c.batch_size = 32
    c.augment = 'crop(1)+flip'
    c.data.validation_size = 16
    c.optimizer.lr = 0.05
    c.eval.batch_size = 20
    c.log.tensorboard = c.log.pictures = False
    return c


@pytest.fixture
def tiny_networks(monkeypatch):
    """'linear' and 'tiny' are names of networks."""
    monkeypatch.setitem(NETWORKS, 'linear', Linear)
    monkeypatch.setitem(NETWORKS, 'tiny', Tiny)


@pytest.fixture
def config(small_npz):
    """`small_config` of the small images."""
    return small_config(small_npz)


@pytest.fixture(scope='session')
def ternary_run(small_npz, tmp_path_factory) -> Path:
    """The workdir of two ternary members after an epoch."""
    path = tmp_path_factory.mktemp('ternary') / 'run'
    config = small_config(small_npz)
    config.members, config.epochs, config.batch_size = 2, 1, 40  # batches of one size: one compilation
    config.view = 'ternary'
    train(config, path)
    return path


@pytest.fixture(scope='session')
def packed_path(ternary_run) -> Path:
    """The packed file of the second of them."""
    return export.export(ternary_run, 'packed', member='1') / '1_resnet8.packed'
