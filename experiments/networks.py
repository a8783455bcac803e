"""Every network's training step beside PyTorch's: python -m experiments.networks [NETWORK…]

For each network, in one process and in turn: our compiled step (float32 and bfloat16), the same layers
in plain Flax Linen with jax's defaults, and PyTorch eagerly, with channels_last, compiled, and with
channels_last under bfloat16 autocast. On a CPU the process is pinned to one core and its CPU time is
taken, so that other programs disturb little; on a GPU the time on the wall. Milliseconds are medians of
the rounds; batches are sized for steps of some 30 GFLOP on a CPU. Seconds to initialise and to compile
are ours. Rows are appended to experiments/results/networks.csv; networks of this version and device
that are there are not measured again. `python -m experiments.networks start_up` measures the seconds
alone, of all networks, into start_up.csv.
"""

import csv
import statistics
import sys
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import optax
import torch

from configs import single
from experiments import results
from experiments.results import ON_GPU, clock
from experiments.torch_networks import TORCH
from jaxcifar.config import finalize
from jaxcifar.data.datasets import Dataset
from jaxcifar.losses import cross_entropy
from jaxcifar.models import NETWORKS
from jaxcifar.models.__main__ import describe
from jaxcifar.models.layers import Layers
from jaxcifar.population import Population, make_mesh
from jaxcifar.state import init_state
from jaxcifar.step import make_train_step
from jaxcifar.workdirs import git_commit

RESULTS = results.FOLDER / 'networks.csv'
ROUNDS, CLASSES = 5, 100
TORCH_DEVICE = 'cuda' if ON_GPU else 'cpu'
WORK, LARGEST = (20e12, 1024) if ON_GPU else (30e9, 128)  # FLOP and images of a step, at most


class PlainLayers(Layers):
    """Flax's own convolution and norm."""

    def conv(self, filters: int, size: int, stride: int = 1, groups: int = 1, name: str | None = None):
        """nn.Conv."""
        return nn.Conv(
            filters, (size, size), stride, size // 2, feature_group_count=groups, use_bias=False, name=name
        )

    def norm(self, name: str | None = None):
        """nn.BatchNorm."""
        return nn.BatchNorm(not self.train, momentum=0.9, name=name)


def our_step(name: str, batch: dict, precision: str):
    """(seconds to initialise, seconds to compile, a function that takes a step) of jaxcifar."""
    config = finalize(single.get_config(f'{name},cifar100'))
    config.precision, config.augment, config.batch_size = precision, 'none', len(batch['label'])
    images = batch['image'], batch['label']
    names = tuple(map(str, range(CLASSES)))
    dataset = Dataset('random', *images, *images, names, (0.5,) * 3, (0.25,) * 3)
    start = clock()
    population = Population(config, CLASSES, dataset.image_size, make_mesh(config))
    state = jax.block_until_ready(init_state(config, population))
    initialised = clock()
    step = make_train_step(config, population, dataset, 100, state).lower(state, batch).compile()
    compiled = clock()
    place = jax.device_put(batch, population.sharding('data'))

    def take():
        nonlocal state
        state, row = step(state, place)
        jax.block_until_ready(row)

    return initialised - start, compiled - initialised, take


def linen_step(name: str, batch: dict) -> Callable:
    """The step as one writes it with Flax and optax."""
    layers = PlainLayers(train=True)
    network = NETWORKS[name](num_classes=CLASSES, layers=layers)
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, 0.9, nesterov=True))
    x = jax.device_put((batch['image'].astype(np.float32) / 255 - 0.5) / 0.25)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: 0.05 * np.random.default_rng(0).normal(size=leaf.shape), shapes)
    variables = jax.tree.map(lambda leaf: jax.device_put(leaf.astype(np.float32)), variables)

    @jax.jit
    def step(params, stats, opt):
        def loss(params):
            variables = {'params': params, 'batch_stats': stats}
            (logits, _), new = network.apply(variables, x, mutable=['batch_stats'])
            return cross_entropy(logits, batch['label']).mean(), new['batch_stats']

        grads, new_stats = jax.grad(loss, has_aux=True)(params)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), new_stats, opt

    params, stats = variables['params'], variables['batch_stats']
    state = params, stats, optimizer.init(params)

    def take():
        nonlocal state
        state = jax.block_until_ready(step(*state))

    return take


def torch_step(
    name: str, batch: dict, channels_last: bool = False, compiled: bool = False, bfloat16: bool = False
) -> Callable:
    """PyTorch's step on images that are normalised already."""
    memory = torch.channels_last if channels_last else torch.contiguous_format
    network = TORCH[name](classes=CLASSES).to(TORCH_DEVICE, memory_format=memory).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    x = torch.from_numpy(batch['image']).permute(0, 3, 1, 2).float().sub(127.5).div(63.75)
    x = x.to(TORCH_DEVICE, memory_format=memory)
    y = torch.from_numpy(batch['label']).long().to(TORCH_DEVICE)
    forward = torch.compile(network) if compiled else network

    def take():
        optimizer.zero_grad()
        with torch.autocast(TORCH_DEVICE, torch.bfloat16, enabled=bfloat16):
            loss = torch.nn.functional.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device

    return take


def noise(size: int) -> dict[str, np.ndarray]:
    """A batch of random images and labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, 32, 32, 3), np.uint8)
    return {'image': images, 'label': rng.integers(0, CLASSES, size, np.int32)}


def measure(name: str) -> dict:
    """A row of the table."""
    images = WORK / 3 / describe(name, CLASSES)['flops']
    batch_size = int(2 ** np.clip(np.log2(images).round(), 2, np.log2(LARGEST)))
    batch = noise(batch_size)
    init, compile_seconds, ours = our_step(name, batch, 'float32')
    steps: dict[str, Callable] = {
        'ours': ours,
        'ours_bf16': our_step(name, batch, 'bfloat16')[2],
        'linen': linen_step(name, batch),
        'torch': torch_step(name, batch),
        'torch_channels_last': torch_step(name, batch, True),
        'torch_compile': torch_step(name, batch, False, True),
        'torch_channels_last_bf16': torch_step(name, batch, True, False, True),
    }
    rounds = [{what: _milliseconds(step) for what, step in steps.items()} for _ in range(ROUNDS + 1)]
    medians = {what: statistics.median(r[what] for r in rounds[1:]) for what in steps}
    here = results.here()
    return {
        **here,
        'machine': here['machine'] + results.PINNED,
        'jax': jax.__version__,
        'torch': torch.__version__,
        'network': name,
        'batch': batch_size,
        'init_seconds': round(init, 2),
        'compile_seconds': round(compile_seconds, 1),
        **{f'{what}_ms': round(value, 1) for what, value in medians.items()},
    }


def _milliseconds(step: Callable) -> float:
    start = clock()
    step()
    return 1e3 * (clock() - start)


def line(row: dict) -> str:
    """How many times as fast as ours the others are."""
    ratio = partial(_ratio, row)
    best = max(ratio(f'torch{t}') for t in ('', '_channels_last', '_compile'))
    return (
        f'{row["network"]:22} {float(row["ours_ms"]):8.0f} {ratio("ours_bf16"):7.2f} {ratio("linen"):7.2f} '
        f'{ratio("torch"):7.2f} {ratio("torch_channels_last"):9.2f} {best:7.2f} '
        f'{ratio("torch_channels_last_bf16"):7.2f} {row["init_seconds"]:>6} {row["compile_seconds"]:>8}'
    )


def _ratio(row: dict, what: str) -> float:
    return float(row['ours_ms']) / float(row[f'{what}_ms'])


def start_up(names: list[str]):
    """Measure, keep and print how long our step takes to begin, at a batch of 8."""
    print(f'{"network":24} seconds to initialise  to compile')
    for name in names or NETWORKS:
        init, compile_seconds, _ = our_step(name, noise(8), 'float32')
        here = results.here()
        row = {**here, 'machine': here['machine'] + results.PINNED, 'jax': jax.__version__, 'network': name}
        row |= {'init_seconds': round(init, 2), 'compile_seconds': round(compile_seconds, 1)}
        results.append('start_up', [row])
        print(f'{name:24} {init:21.2f} {compile_seconds:11.1f}', flush=True)


def main(names: list[str]):
    """Measure what is missing and print the table."""
    rows = list(csv.DictReader(RESULTS.open())) if RESULTS.exists() else []
    done = {(r['commit'], r['device'], r['network']): r for r in rows}
    print(
        'speed relative to ours:          ms    bf16   Linen   torch  ch.last  best  cl bf16   init  compile'
    )
    for name in names or NETWORKS:
        row = done.get((git_commit(), jax.devices()[0].device_kind, name))
        if row is None:
            row = measure(name)
            torch.compiler.reset()
            results.append('networks', [row])
        print(line(row), flush=True)


if __name__ == '__main__':
    results.pin()
    if sys.argv[1:2] == ['start_up']:
        start_up(sys.argv[2:])
    else:
        main(sys.argv[1:])
