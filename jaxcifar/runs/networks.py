"""Hold trained networks, wherever they come from, ready to be put on devices."""

import copy
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcifar.data.datasets import Dataset
from jaxcifar.data.only_test import load_test_images
from jaxcifar.engine.population import Population
from jaxcifar.engine.state import Weights
from jaxcifar.formats.portable import FusedHead, Portable
from jaxcifar.machine import hosts, status
from jaxcifar.machine.files import reading
from jaxcifar.runs import resolve, workdirs
from jaxcifar.runs.released import portable_head, portable_member
from jaxcifar.runs.session import Session, load_images, prepare
from jaxcifar.runs.weights import CHOSEN


class Restored(NamedTuple):
    """Hold weights on the devices, and what belongs to them.

    steps: the step, or a list of one per member, or None if unknown; temperatures: [K], which logits are to
    be divided by.
    """

    weights: Weights
    steps: int | list[int] | None
    temperatures: np.ndarray

    def calibrate(self, logits: np.ndarray) -> np.ndarray:
        """Return logits [K,N,C] divided by the temperatures; a fused prediction after them is unchanged."""
        factors = np.ones(len(logits))
        factors[: len(self.temperatures)] = self.temperatures
        return logits / factors[:, None, None]


class Trained:
    """Hold trained networks that are ready to be put on devices.

    Attributes:
      config: of all of them together, for all devices.
      described: classes, image_size, mean and std, in a data set without images.
      checkpoint: the name of the weights.
      calibrated: whether the temperatures belong to the weights.
      has_split: whether it is known here which images they were trained on.
    """

    described: Dataset
    checkpoint = 'last'
    calibrated = False
    has_split = True

    def __init__(self, path: Path, config: ConfigDict):
        self.path, self.config = path, config
        # A run's number of devices describes the machine on which it was trained, not this one.
        config.devices = None

    @property
    def selected_on(self) -> str:
        """Return which images chose these weights, as in data.validation; 'none' if none did."""
        return self.config.data.validation if self.checkpoint in CHOSEN else 'none'

    @cached_property
    def session(self) -> Session:
        """Return the networks without any images."""
        return self._prepare(self.config, self.described)

    def with_images(self) -> Session:
        """Return the session with the images of the config; `UserError` if they do not suit the networks."""
        self.config.data.root = self._data_root()
        return self._prepare(self.config, self._accept(load_images(self.config)))

    def with_test_images(self, name: str) -> Session:
        """Return the session with the test images called `name` alone; see `load_test_images`."""
        config = copy.deepcopy(self.config)
        # The split of the training run applies to other images.
        config.split, config.data.validation = 'shared', 'none'
        with status.during(f'loading {name}'):
            dataset = load_test_images(name, self._data_root(), self.described)
        return self._prepare(config, dataset)

    def _data_root(self) -> str:
        """Return where data sets are kept here: the folder of the training, if this machine has it."""
        root = self.config.data.root
        return root if root and Path(root).expanduser().is_dir() else resolve.data_root()

    def restore(self, population: Population) -> Restored:
        """Return the weights for a population of these networks."""
        raise NotImplementedError

    def members(self, shown: bool = True) -> list[dict]:
        """Return K members' {'params': …, 'batch_stats': …} on the host.

        shown: return weights as the networks see them, instead of the underlying ones.
        """
        return self._on_host(self.restore(self.session.population).weights, shown)

    def portables(self) -> tuple[list[Portable], FusedHead | None]:
        """Return the members in portable form, and the head of a fused run."""
        weights, _, temperatures = self.restore(self.session.population)
        trees = enumerate(self._on_host(weights, shown=True))
        members = [portable_member(self.config, k, self.described, variables) for k, variables in trees]
        if self.calibrated:
            for member, temperature in zip(members, temperatures):
                member.about['temperature'] = float(temperature)
        for member in members:
            member.about.update(checkpoint=self.checkpoint, selected_on=self.selected_on)
        # A head needs the features of all members, so it is exported with all of them or not at all.
        if weights.head is None:
            return members, None
        return members, portable_head(self.config, members, hosts.fetch(weights.head))

    def _accept(self, dataset: Dataset) -> Dataset:
        """Return the data set as these networks see it; `UserError` where it is of another kind."""
        return dataset

    def _prepare(self, config: ConfigDict, dataset: Dataset) -> Session:
        with reading(self.path / workdirs.CONFIG):  # an edited config may name things that do not exist
            return prepare(config, dataset)

    def _on_host(self, weights: Weights, shown: bool) -> list[dict]:
        population = self.session.population
        # Compiled and placed as in evaluation; otherwise a view's sums may differ in their last bits.
        params = jax.jit(population.show)(weights.params) if shown else weights.params
        trees = population.disassemble(tuple(zip(params, weights.stats)))
        return [{'params': params, 'batch_stats': stats} for params, stats in trees]
