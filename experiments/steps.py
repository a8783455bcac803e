"""A training step in several hands: ours, plain Flax Linen's, and PyTorch's in its several forms.

All take the same step: forward, cross entropy, backward and SGD with Nesterov momentum and weight decay
on a batch that is on the device already. PyTorch's images are normalised beforehand; ours come as
bytes and are normalised in the step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
import torch

from configs import single
from experiments.results import ON_GPU, clock
from experiments.torch_networks import TORCH
from jaxcifar.config import finalize
from jaxcifar.data.datasets import Dataset
from jaxcifar.losses import cross_entropy
from jaxcifar.models import NETWORKS
from jaxcifar.models.layers import Layers
from jaxcifar.population import Population, make_mesh
from jaxcifar.state import init_state
from jaxcifar.step import make_train_step

CLASSES = 100
TORCH_DEVICE = 'cuda' if ON_GPU else 'cpu'


class Step(NamedTuple):
    """A way to train, ready to go."""

    take: Callable[[int], Any]  # so many steps, and waits for the last
    init_seconds: float = float('nan')
    compile_seconds: float = float('nan')
    bytes: float = float('nan')  # memory that the compiled step needs, where it says so
    flops: float = float('nan')  # of a step


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


def noise(size: int) -> dict[str, np.ndarray]:
    """A batch of random images and labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, 32, 32, 3), np.uint8)
    return {'image': images, 'label': rng.integers(0, CLASSES, size, np.int32)}


def ours(name: str, batch: dict, precision: str = 'float32') -> Step:
    """The step of `python -m jaxcifar.main`, without augmentation."""
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
    memory, costs = step.memory_analysis(), step.cost_analysis()
    # What is given away is used again for what comes out.
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes

    def take(steps: int):
        nonlocal state
        for _ in range(steps):
            state, row = step(state, place)
        jax.block_until_ready(row)

    return Step(take, initialised - start, compiled - initialised, needed, costs['flops'])


def linen(name: str, batch: dict) -> Step:
    """The step as one writes it with Flax and optax, with jax's defaults."""
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
    start = clock()
    program = step.lower(*state).compile()
    compile_seconds = clock() - start

    def take(steps: int):
        nonlocal state
        for _ in range(steps):
            state = program(*state)
        jax.block_until_ready(state)

    return Step(take, compile_seconds=compile_seconds)


def pytorch(
    name: str, batch: dict, channels_last: bool = False, compiled: str = '', bfloat16: bool = False
) -> Step:
    """PyTorch's step; `compiled` is a mode of torch.compile, '' for none."""
    if ON_GPU:  # as jax does; torch's default is slower
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    before = torch.cuda.memory_allocated() if ON_GPU else 0  # by steps that wait for their turn
    memory = torch.channels_last if channels_last else torch.contiguous_format
    network = TORCH[name](classes=CLASSES).to(TORCH_DEVICE, memory_format=memory).train()
    parameters = network.parameters()
    optimizer = torch.optim.SGD(parameters, 0.1, 0.9, weight_decay=5e-4, nesterov=True, fused=ON_GPU)
    x = torch.from_numpy(batch['image']).permute(0, 3, 1, 2).float().sub(127.5).div(63.75)
    x = x.to(TORCH_DEVICE, memory_format=memory)
    y = torch.from_numpy(batch['label']).long().to(TORCH_DEVICE)
    forward = torch.compile(network, mode=compiled) if compiled else network

    def take(steps: int):
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(TORCH_DEVICE, torch.bfloat16, enabled=bfloat16):
                loss = torch.nn.functional.cross_entropy(forward(x), y)
            loss.backward()
            optimizer.step()
        loss.item()  # waits for the device

    start = clock()
    take(1)
    compile_seconds = clock() - start if compiled else float('nan')
    if not ON_GPU:
        return Step(take, compile_seconds=compile_seconds)
    torch.cuda.reset_peak_memory_stats()
    take(2)
    return Step(take, compile_seconds=compile_seconds, bytes=torch.cuda.max_memory_allocated() - before)
