"""Derive what a config and a data set determine, before a run has taken a step."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cached_property

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxcifar.config.members import member_names
from jaxcifar.data.datasets import Dataset, load_dataset
from jaxcifar.data.loader import Order, batches
from jaxcifar.data.splits import Images, Split, evaluation_images, make_split, train_counts, validation_part
from jaxcifar.engine.couplings import make_learning_rates, output_names
from jaxcifar.engine.population import Population, make_mesh
from jaxcifar.engine.state import TrainState
from jaxcifar.engine.step import make_train_step
from jaxcifar.machine import status


# Comparing two sessions would compare arrays of images; nobody needs that.
@dataclass(frozen=True, eq=False)
class Session:
    """Hold a resolved config, its images and its networks; all else follows from these when asked for."""

    config: ConfigDict
    dataset: Dataset
    population: Population

    @property
    def mesh(self) -> Mesh:
        """Return the devices, as ('member', 'data')."""
        return self.population.mesh

    @property
    def names(self) -> list[str]:
        """Return the K members' names."""
        return member_names(self.config)

    @property
    def outputs(self) -> list[str]:
        """Return the names of all outputs: the K members and, last, the coupling's head."""
        return output_names(self.config)

    @cached_property
    def split(self) -> Split:
        """Return which images train, which choose weights and which only test; `UserError` if impossible."""
        return make_split(self.dataset, self.config)

    @cached_property
    def order(self) -> Order:
        """Return which images each step sees; `UserError` where they do not fill a batch."""
        # A batch is cut once for the devices and once more for accumulated gradients.
        multiple = self.mesh.shape['data'] * self.config.optimizer.accumulate
        return Order(self.config, self.split.train, multiple)

    @property
    def epoch_steps(self) -> int:
        """Return the steps of an epoch."""
        return self.order.steps_per_epoch

    @property
    def total(self) -> int:
        """Return the steps of the whole run."""
        return self.config.epochs * self.epoch_steps

    def place(self, step: int) -> str:
        """Return a step in words: 'step 40, epoch 2 of 9'."""
        return f'step {step}, epoch {step / self.epoch_steps:.4g} of {self.config.epochs}'

    @cached_property
    def learning_rates(self) -> Callable:
        """Return step -> the learning rates of the members and of the head's parts, [K] or [K+2]."""
        # One program is compiled sooner than each of its ten operations.
        return jax.jit(make_learning_rates(self.config, self.epoch_steps))

    @cached_property
    def images(self) -> dict[str, Images]:
        """Return all images that can be evaluated, by name."""
        return evaluation_images(self.dataset, self.split)

    @property
    def tests(self) -> dict[str, Images]:
        """Return the images that results.json is about."""
        # Only long tails have test_lt, test images in the proportions of training.
        return {name: self.images[name] for name in ('test', 'test_lt') if name in self.images}

    @property
    def chooses_on(self) -> str | None:
        """Return the name of the images that choose the best weights, None where nothing is chosen."""
        return validation_part(self.config)


def load_images(config: ConfigDict) -> Dataset:
    """Return the data set that a config names; `UserError` where its images cannot be had."""
    with status.during(f'loading {config.dataset}'):
        return load_dataset(config.dataset, config.data.root, config.data.image_size)


def prepare(config: ConfigDict, dataset: Dataset | None = None) -> Session:
    """Return the session of a resolved config.

    dataset: instead of loading the config's; `workdirs.described` gives one without images, which is all
    that networks need. Raises `UserError` where the data cannot be had or the devices do not suffice.
    """
    if dataset is None:
        dataset = load_images(config)
    population = Population(config, dataset.num_classes, dataset.image_size, make_mesh(config))
    return Session(config, dataset, population)


def make_step(session: Session, state: TrainState):
    """Return the session's compiled step, for states that live where `state` does."""
    config, dataset = session.config, session.dataset
    # Losses for long tails need the number of training images of each class.
    counts = train_counts(dataset, session.split)
    return make_train_step(config, session.population, dataset, session.epoch_steps, state, counts)


def feed_steps(session: Session, step: int) -> Generator[tuple[range, dict]]:
    """Yield (the steps of a call, its batch on the devices) from `step` to the end of the run."""
    config, order, steps = session.config, session.order, range(step, session.total)
    # Closing the feed ends the loader's threads, also when training is interrupted.
    source = batches(config, session.dataset, order, session.mesh, steps)
    with contextlib.closing(source):
        yield from zip(order.calls(config, steps.start, steps.stop), source)


def later_batches(session: Session, first: range, batch: dict) -> Iterator[dict]:
    """Yield `jax.ShapeDtypeStruct`s of the epoch's batches after the `first` call, whose batch is given.

    A kept short last batch, or calls of fewer steps than `steps_per_call`, have shapes of their own.
    """
    order, ends = session.order, session.epoch_steps
    for call in order.calls(session.config, first.stop, -(-first.stop // ends) * ends):
        # Only the last call of an epoch can be short.
        size = order.last if order.last and call.stop % ends == 0 else order.batch
        # Labels have the fewest axes, [steps, members, B] or some of these; other arrays add axes after them.
        *lead, _ = batch['label'].shape
        label = ([len(call), *lead[1:]] if session.config.steps_per_call > 1 else lead) + [size]

        def resized(x, label=tuple(label)):
            return jax.ShapeDtypeStruct(label + x.shape[len(label) :], x.dtype, sharding=x.sharding)

        yield jax.tree.map(resized, batch)
