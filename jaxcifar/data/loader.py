"""Make batches as a function of the seed and the step and nothing else.

A batch is an array of indices; a loader only moves the bytes they name. The `host` loader gathers in
a PyTorch DataLoader, or decodes files there, and sends images; the `device` loader keeps all images in
device memory and sends indices. Their batches are the same to the bit.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxcifar.config.members import member_seeds, run_seed
from jaxcifar.data.expert_splits import rows_of
from jaxcifar.data.gather import Gather, data_loader
from jaxcifar.machine import hosts
from jaxcifar.machine.errors import UserError


class Order:
    """Order the images that each step sees: a new shuffle every epoch, drawn from (seed, epoch).

    Attributes:
      own: whether members have batches of their own, [K,B], or share one, [B].
      rows: the images that each of the K batches, or the shared one, is drawn from.
      steps_per_epoch: batches per epoch, including a shorter last one.
      last: size of the shorter last batch, 0 if there is none.
      trimmed: images left out of the last batch so that it divides evenly.
    """

    def __init__(self, config: ConfigDict, train: np.ndarray, multiple: int):
        """Draw from `train`, [n] or [K,n] as in `splits.Split`; a last batch is a multiple of `multiple`.

        Raises `UserError` where the images do not fill a single batch.
        """
        # The steps of an epoch: whole batches, and what is left of the images.
        self.train, self.batch = train, config.batch_size
        images = train.shape[-1]
        rest = 0 if config.data.drop_last else images % self.batch
        self.trimmed = rest % multiple
        self.last = rest - self.trimmed
        self.steps_per_epoch = images // self.batch + (self.last > 0)
        if not self.steps_per_epoch:
            raise UserError(
                f'expected {self.batch} training images or more, a batch, got {images}: '
                'set a smaller batch_size'
            )
        # All members draw one order together, or each draws by itself. Members have their own seeds only
        # with data.order=member.
        own_order = config.data.order == 'member'
        self.own = train.ndim == 2 or own_order
        members = config.members if self.own else 1
        seeds: list = member_seeds(config)
        self._seeds = seeds if own_order else [(run_seed(config),)] * members
        rows = rows_of(train)
        self.rows = rows * (members // len(rows))
        # The epoch drawn last is kept: a step takes a slice of it.
        self._epoch, self._shuffled = -1, np.empty(0)

    def indices(self, step: int) -> np.ndarray:
        """Return the training indices of a step: [B], or [K,B] where members have their own."""
        epoch, i = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._shuffled = epoch, self._shuffle(epoch)
        size = self.last if self.last and i == self.steps_per_epoch - 1 else self.batch
        return self._shuffled[..., i * self.batch : i * self.batch + size]

    def calls(self, config: ConfigDict, step: int, total: int) -> Iterator[range]:
        """Yield ranges of steps, from `step` to `total`, that are sent to the devices in one call each.

        A call takes `size` steps or one, since every other number would compile another program. Its batches
        have one shape, and it ends at the latest at a step after which the host has something to do.
        """
        # These recur and end a call: an epoch, which may be evaluated, a log row, a checkpoint.
        every = [
            n for n in (self.steps_per_epoch, config.log.every_steps, config.checkpoint.every_steps) if n
        ]
        # More steps than lie between two of these would never fit, and each call would take one.
        size = max(1, min(config.steps_per_call, self.steps_per_epoch - (self.last > 0), *every))
        while step < total:
            ends = [total, *config.profile.steps]
            ends += [(step // n + 1) * n for n in every]
            # A shorter last batch has another shape: it is a call of its own.
            if self.last:
                ends.append((step // self.steps_per_epoch + 1) * self.steps_per_epoch - 1)
            left = min(e for e in ends if e > step) - step
            call = range(step, step + (size if left >= size else 1))
            yield call
            step = call.stop

    def call_indices(self, config: ConfigDict, steps: range) -> np.ndarray:
        """Return `indices` of the steps of one call; stacked where a call takes several, [steps,…]."""
        if config.steps_per_call == 1:
            return self.indices(steps.start)
        return np.stack([self.indices(step) for step in steps])

    def _shuffle(self, epoch: int) -> np.ndarray:
        """Shuffle an epoch, [n] or [K,n]; a member with fewer images than others appends more shuffles."""
        n = self.train.shape[-1]

        def shuffles(seed: tuple[int, ...], images: np.ndarray) -> np.ndarray:
            # The epoch is part of the seed, so that resuming needs no state of a generator.
            rng, rounds = np.random.default_rng((epoch, *seed)), -(-n // len(images))
            return np.concatenate([images[rng.permutation(len(images))] for _ in range(rounds)])[:n]

        orders = [shuffles(seed, images) for seed, images in zip(self._seeds, self.rows)]
        return np.stack(orders) if self.own else orders[0]


def batches(config: ConfigDict, dataset, order: Order, mesh: Mesh, steps: range):
    """Iterate over the batches {'image', 'label', 'index'} of `steps`, on the devices; close it after use.

    With steps_per_call above 1, each item holds the batches of one of `Order.calls`, stacked on a first axis.
    """
    axes = ('member', 'data') if order.own else ('data',)
    sharding = NamedSharding(mesh, PartitionSpec(*(axes if config.steps_per_call == 1 else (None, *axes))))
    make = {'host': _host_batches, 'device': _device_batches}[config.data.loader]
    return make(config, dataset, order, sharding, order.calls(config, steps.start, steps.stop))


def _host_batches(config, dataset, order: Order, sharding: NamedSharding, calls: Iterator[range]):
    images = dataset.x_train
    requests = (
        (call.start // order.steps_per_epoch, indices[hosts.local_slices(sharding, indices.shape)])
        for call in calls
        for indices in [order.call_indices(config, call)]
    )
    if isinstance(images, np.ndarray):
        # A worker would get a copy of all images, and a gather is faster than sending its result.
        loader = data_loader(Gather(images, dataset.y_train), requests, workers=0)
        return prefetch(loader, lambda batch: hosts.assemble(batch, sharding))

    from jaxcifar.data.stream import Reader

    seeds: list = [(run_seed(config),)]
    pools = order.rows
    if order.own:
        members, _ = hosts.local_slices(sharding, (config.members, order.batch))
        pools, seeds = pools[members], member_seeds(config)[members]
    reader = Reader(images, pools, seeds)
    loader = data_loader(reader, requests, config.data.workers)
    return prefetch(loader, lambda batch: hosts.assemble(images.noted(batch), sharding))


def _device_batches(config, dataset, order: Order, sharding: NamedSharding, calls: Iterator[range]):
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    # The whole data set stays on every device, so that a step sends only indices.
    images, labels = hosts.put((dataset.x_train, dataset.y_train), everywhere)

    @jax.jit
    def gather(images, labels, indices):
        batch = {'image': images[indices], 'label': labels[indices], 'index': indices}
        return jax.lax.with_sharding_constraint(batch, sharding)

    indices = (order.call_indices(config, call).astype(np.int32) for call in calls)
    return prefetch(indices, lambda i: gather(images, labels, hosts.put(i, everywhere)))


def in_order(images, size: int, workers: int) -> Generator[np.ndarray]:
    """Yield all images in order, `size` at a time, for evaluation; close the iterator after use."""
    starts = range(0, len(images), size)
    if isinstance(images, np.ndarray):
        yield from (images[start : start + size] for start in starts)
        return

    from jaxcifar.data.stream import Reader

    # A file that cannot be read may be replaced by any of its class.
    everything = np.arange(len(images))
    requests = ((0, everything[start : start + size]) for start in starts)
    loader = data_loader(Reader(images, [everything]), requests, workers)
    with contextlib.closing(prefetch(loader, lambda batch: images.noted(batch)['image'])) as source:
        yield from source


def prefetch(source, place: Callable, depth: int = 2) -> Generator:
    """Yield `place(item)` for the items of `source`, made by a thread that runs `depth` ahead.

    Exceptions of the thread are raised here, where the batch is requested.
    """
    ready: queue.Queue = queue.Queue(depth)
    closed = threading.Event()

    def put(item) -> bool:
        while not closed.is_set():
            try:
                # A put without a timeout would never notice that the reader has closed.
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
        except BaseException as error:
            # An error must reach the reader, which would wait for ever otherwise.
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
