"""Batches, as a function of the seed and the step and nothing else.

A batch is an array of indices; a loader only moves the bytes they name. The `host` loader gathers in
a PyTorch DataLoader, or decodes files there, and sends images; the `device` loader keeps all images in
device memory and sends indices. Their batches are the same to the bit.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxcifar import hosts
from jaxcifar.data.expert_splits import rows_of
from jaxcifar.data.gather import Gather, data_loader
from jaxcifar.errors import UserError
from jaxcifar.members import member_seeds, run_seed
from jaxcifar.population import Population


class Order:
    """Which images each step sees: a new shuffle every epoch, drawn from (seed, epoch)."""

    def __init__(self, config: ConfigDict, train: np.ndarray, multiple: int):
        self.train = train  # [n] or [K,n] as in `splits.Split`
        self.batch = config.batch_size
        images = train.shape[-1]
        rest = 0 if config.data.drop_last else images % self.batch
        self.trimmed = rest % multiple
        self.last = rest - self.trimmed
        self.steps_per_epoch = images // self.batch + (self.last > 0)
        if not self.steps_per_epoch:
            raise UserError(f'{images} training images do not fill a batch of {self.batch}')
        own_order = config.data.order == 'member'
        self.own = train.ndim == 2 or own_order
        members = config.members if self.own else 1
        seeds: list = member_seeds(config)
        self._seeds = seeds if own_order else [(run_seed(config),)] * members
        rows = rows_of(train)
        self.rows = rows * (members // len(rows))
        self._epoch, self._shuffled = -1, np.empty(0)

    def indices(self, step: int) -> np.ndarray:
        """[B] training indices of a step, or [K,B] where members have their own."""
        epoch, i = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._shuffled = epoch, self._shuffle(epoch)
        size = self.last if self.last and i == self.steps_per_epoch - 1 else self.batch
        return self._shuffled[..., i * self.batch : i * self.batch + size]

    def _shuffle(self, epoch: int) -> np.ndarray:
        """[n] or [K,n]: an epoch is one shuffle; a member with fewer images than others begins another."""
        n = self.train.shape[-1]

        def shuffles(seed: tuple[int, ...], images: np.ndarray) -> np.ndarray:
            rng, rounds = np.random.default_rng((epoch, *seed)), -(-n // len(images))
            return np.concatenate([images[rng.permutation(len(images))] for _ in range(rounds)])[:n]

        orders = [shuffles(seed, images) for seed, images in zip(self._seeds, self.rows)]
        return np.stack(orders) if self.own else orders[0]


def batches(config: ConfigDict, dataset, order: Order, population: Population, steps: range):
    """The batches {'image', 'label', 'index'} of some steps, on the devices: an iterator to be closed."""
    sharding = population.sharding(*(('member', 'data') if order.own else ('data',)))
    make = {'host': _host_batches, 'device': _device_batches}[config.data.loader]
    return make(config, dataset, order, sharding, steps)


def _host_batches(config, dataset, order: Order, sharding: NamedSharding, steps: range):
    images = dataset.x_train
    requests = (
        (step // order.steps_per_epoch, indices[hosts.share(sharding, indices.shape)])
        for step in steps
        for indices in [order.indices(step)]
    )
    if isinstance(images, np.ndarray):
        loader = data_loader(Gather(images, dataset.y_train), requests, config.data.workers)
        return prefetch(loader, lambda batch: hosts.assemble(batch, sharding))

    from jaxcifar.data.stream import Reader

    seeds: list = [(run_seed(config),)]
    pools = order.rows
    if order.own:
        members, _ = hosts.share(sharding, (config.members, order.batch))
        pools, seeds = pools[members], member_seeds(config)[members]
    reader = Reader(images, pools, seeds)
    loader = data_loader(reader, requests, config.data.workers)
    return prefetch(loader, lambda batch: hosts.assemble(images.noted(batch), sharding))


def _device_batches(config, dataset, order: Order, sharding: NamedSharding, steps: range):
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    images, labels = hosts.put((dataset.x_train, dataset.y_train), everywhere)

    @jax.jit
    def gather(images, labels, indices):
        batch = {'image': images[indices], 'label': labels[indices], 'index': indices}
        return jax.lax.with_sharding_constraint(batch, sharding)

    indices = (order.indices(step).astype(np.int32) for step in steps)
    return prefetch(indices, lambda i: gather(images, labels, hosts.put(i, everywhere)))


def in_order(images, size: int, workers: int) -> Generator[np.ndarray]:
    """All images, `size` at a time, to be evaluated; an iterator to be closed."""
    starts = range(0, len(images), size)
    if isinstance(images, np.ndarray):
        yield from (images[start : start + size] for start in starts)
        return

    from jaxcifar.data.stream import Reader

    everything = np.arange(len(images))
    requests = ((0, everything[start : start + size]) for start in starts)
    loader = data_loader(Reader(images, [everything]), requests, workers)
    with contextlib.closing(prefetch(loader, lambda batch: images.noted(batch)['image'])) as source:
        yield from source


def prefetch(source, place: Callable, depth: int = 2) -> Generator:
    """Yield `place(item)` for the items of `source`, made by a thread that runs `depth` ahead."""
    ready: queue.Queue = queue.Queue(depth)
    closed = threading.Event()

    def put(item) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work():
        try:
            for item in source:
                if not put((place(item), None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:  # raised again where the batch is wanted
            put((None, error))

    thread = threading.Thread(target=work, name='prefetch', daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
        thread.join()
