"""Build JAX's training step in two versions, ours and plain Flax Linen's; `torch_steps` has PyTorch's.

All take the same step: forward, cross entropy, backward and SGD with Nesterov momentum and weight decay
on a batch that is on the device already. The others' images are normalised beforehand; ours come as
bytes and are normalised in the step.
"""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import single
from experiments.bench.ours import ALL, OurStep, noise_dataset
from experiments.bench.worker import CLASSES, Step, noise
from experiments.results import ON_GPU
from jaxcifar.engine.losses import cross_entropy
from jaxcifar.machine.compiler import compiler_options
from jaxcifar.machine.profile import PEAK
from jaxcifar.models import NETWORKS
from jaxcifar.models.layers import Layers


class PlainLayers(Layers):
    """Build networks from Flax's own convolution and norm."""

    def conv(self, filters: int, size: int, stride: int = 1, groups: int = 1, name: str | None = None):
        """Return nn.Conv."""
        return nn.Conv(
            filters, (size, size), stride, size // 2, feature_group_count=groups, use_bias=False, name=name
        )

    def norm(self, name: str | None = None):
        """Return nn.BatchNorm."""
        return nn.BatchNorm(not self.train, momentum=0.9, name=name)


def ours(network: str, batch: int, recorded: bool = False, **fields) -> Step:
    """Return the step of `python -m jaxcifar.main`, without augmentation, with these fields changed.

    recorded: as one CUDA graph.
    """
    config = single.get_config(f'{network},cifar100')
    # The others' steps do not augment either, and run on one device.
    config.update_from_flattened_dict({'augment': 'none', 'batch_size': batch, 'devices': 1, **fields})
    options = compiler_options() | ALL if recorded else None
    step = OurStep(config, noise_dataset(batch), options=options)
    report = {'init_seconds': step.init_seconds, 'compile_seconds': step.compile_seconds}
    report |= {'flops': step.flops / step.steps, 'steps_per_call': step.steps}
    if ON_GPU:
        step.take(3)  # cuDNN makes its plans in the first calls
    return Step(step.take, report, device_bytes)


def linen(network: str, batch: int) -> Step:
    """Return the step as one writes it with Flax and optax, with jax's defaults."""
    model = NETWORKS[network](num_classes=CLASSES, layers=PlainLayers(train=True))
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, 0.9, nesterov=True))
    images, labels = noise(batch)
    given = jax.device_put(((images.astype(np.float32) / 255 - 0.5) / 0.25, labels))
    shapes = jax.eval_shape(model.init, jax.random.key(0), given[0])
    # Any weights do: what is measured does not depend on them, and an eager init is slow.
    variables = jax.tree.map(lambda leaf: 0.05 * np.random.default_rng(0).normal(size=leaf.shape), shapes)
    variables = jax.tree.map(lambda leaf: jax.device_put(leaf.astype(np.float32)), variables)

    @jax.jit
    def step(state, images, labels):
        params, stats, opt = state

        def loss(params):
            variables = {'params': params, 'batch_stats': stats}
            (logits, _), new = model.apply(variables, images, mutable=['batch_stats'])
            return cross_entropy(logits, labels).mean(), new['batch_stats']

        grads, new_stats = jax.grad(loss, has_aux=True)(params)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), new_stats, opt

    state = variables['params'], variables['batch_stats'], optimizer.init(variables['params'])
    start = time.perf_counter()
    program = step.lower(state, *given).compile()
    report = {'compile_seconds': time.perf_counter() - start}

    def take(steps: int):
        nonlocal state
        for _ in range(steps):
            state = program(state, *given)
        jax.block_until_ready(state)

    return Step(take, report, device_bytes)


def peak_bytes() -> float:
    """Return the most of a GPU's memory that was in use."""
    return jax.devices()[0].memory_stats()['peak_bytes_in_use']


device_bytes = peak_bytes if ON_GPU else None


def device() -> Step:
    """Return a step that does nothing and reports the device: its 'kind' and its 'peak' FLOP/s."""
    kind = jax.devices()[0].device_kind
    return Step(lambda steps: None, {'kind': kind, 'peak': PEAK.get(kind) or fastest_product()})


def fastest_product() -> float:
    """Return the FLOP/s of a product of float32 matrices on all cores, the fastest of many."""
    product, rates = jax.jit(lambda a: a @ a), []
    # The fastest of many: other programs can only slow a product down.
    for n in (1024, 2048):
        a = jnp.ones((n, n))
        for _ in range(10):
            start = time.perf_counter()
            jax.block_until_ready(product(a))
            rates.append(2 * n**3 / (time.perf_counter() - start))
    return max(rates)
