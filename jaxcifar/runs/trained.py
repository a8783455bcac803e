"""Open trained networks from a run, an export, or a file that another program saved.

Commands compute on all devices that there are, however many a run was trained on: its last bits depend on
their number, and a run's own evaluation takes as many.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from jaxcifar.config import saved
from jaxcifar.config.fields import get_config
from jaxcifar.data.cifar import CIFAR
from jaxcifar.data.datasets import Dataset, without_images
from jaxcifar.data.only_test import check_alike
from jaxcifar.engine.population import Population
from jaxcifar.formats import foreign, portable
from jaxcifar.formats.portable import FusedHead, Portable
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json, reading
from jaxcifar.models import build, has_choice
from jaxcifar.runs import resolve, shipped_networks, workdirs
from jaxcifar.runs.networks import Restored, Trained
from jaxcifar.runs.session import Session
from jaxcifar.runs.weights import CALIBRATED, assemble, default_checkpoint, load_temperatures, load_weights

BY_CLASSES = {len(names.split()): name for name, (names, *_) in CIFAR.items()}


def open_trained(path: Path, checkpoint: str | None = None, dataset: str | None = None) -> 'Trained':
    """Return the trained networks at a path; nothing is read but what they are.

    path: a workdir, a folder or a file of `jaxcifar.export`, a file of PyTorch or safetensors, or the name of
      a network that comes with the package.
    checkpoint: of a run, as for `load_weights`.
    dataset: where the training images are on this machine, for networks whose config does not say it.

    Raises `UserError` if there is nothing of the kind.
    """
    path = shipped_networks.find(path, 'a run, an export, a file of weights')
    # An unset shell variable gives ''. The default would then pass for what was asked for.
    for flag, value in (('--checkpoint', checkpoint), ('--dataset', dataset)):
        if value == '':
            raise UserError(f'{flag} must not be empty: leave it out for the default')
    if path.is_dir() and not portable.is_portable(path):
        if dataset:
            raise UserError(f'--dataset is not for runs: the config of {path} names its data set')
        return TrainedRun(path, checkpoint)
    if checkpoint:
        raise UserError(f'{path} holds one set of weights: leave out --checkpoint {checkpoint}')
    return TrainedExport(path, dataset) if portable.is_portable(path) else TrainedFile(path, dataset)


class TrainedRun(Trained):
    """Open the networks of a workdir."""

    def __init__(self, path: Path, checkpoint: str | None):
        super().__init__(path, saved.load(path / workdirs.CONFIG))
        self.checkpoint = checkpoint or default_checkpoint(self.config, path)
        self.calibrated = checkpoint == CALIBRATED

    @cached_property
    def described(self) -> Dataset:  # type: ignore[override]
        with reading(self.path / workdirs.DATASET):
            return workdirs.described(self.path)

    def with_images(self) -> Session:
        # Scores on other images than the run's would pass for its own.
        return workdirs.as_begun(self.path, super().with_images())

    def restore(self, population: Population) -> Restored:
        weights, steps = load_weights(self.config, population, self.path, self.checkpoint)
        return Restored(weights, steps, load_temperatures(self.config, self.path, self.checkpoint))


class TrainedExport(Trained):
    """Open the networks of a folder or a file of `jaxcifar.export`."""

    def __init__(self, path: Path, dataset: str | None):
        self._members, self._head = portable.read(path), portable.read_head(path)
        super().__init__(path, portable.config_of(path, self._members))
        about = self._members[0].about
        self.checkpoint = about.get('checkpoint', 'best')
        self.has_split = all(member.about.get('has_split', True) for member in self._members)
        self.calibrated = any('temperature' in member.about for member in self._members)
        self._selected_on = about.get('selected_on')
        # A file by itself does not say which images it is of.
        card = read_json(path / portable.CARD) if path.is_dir() else None
        self._sum = ((card or {}).get('data') or {}).get('sha256')
        self.described = without_images(self.config.dataset, *(about[name] for name in portable.OF_DATA))
        self.config.dataset = dataset or self.config.dataset

    @property
    def selected_on(self) -> str:
        # Without the index files of a split, its config can no longer say it.
        return self._selected_on or super().selected_on

    def restore(self, population: Population) -> Restored:
        weights = assemble(population, *portable.dense(self._members), self._head and self._head.params)
        # Dividing a member's logits would change what the head was trained on.
        temperatures = [1.0 if self._head else m.about.get('temperature', 1.0) for m in self._members]
        return Restored(weights, None, np.array(temperatures))

    def with_test_images(self, name: str) -> Session:
        if self.config.dataset != self.described.name:
            raise UserError(f'--dataset={self.config.dataset} and --test-images={name}: leave one out')
        return super().with_test_images(name)

    def portables(self) -> tuple[list[Portable], FusedHead | None]:
        return self._members, self._head

    def _accept(self, dataset: Dataset) -> Dataset:
        check_alike(dataset, self.described)
        if self._sum not in (None, dataset.fingerprint()):
            # Of other images, the split of the training would be other parts.
            self._selected_on, self.has_split = self.selected_on, False
            self.config.split, self.config.data.validation = 'shared', 'none'
        # Networks expect the normalisation of their training, whatever these images have.
        return replace(dataset, mean=self.described.mean, std=self.described.std)


class TrainedFile(Trained):
    """Open a network whose weights another program saved; unless named, it is recognised by its tensors.

    dataset: by default the CIFAR with as many classes. options: of the network. changes: to config fields.
    """

    def __init__(
        self,
        path: Path,
        dataset: str | None,
        network: str | None = None,
        options: Mapping | None = None,
        changes: Mapping | None = None,
    ):
        weights = foreign.read(path)
        network, found = (network, {}) if network else weights.network()
        classes = weights.classes() or 10
        # Stems with the same shapes, such as MobileNetV2's, can only be told apart by the data set.
        if (dataset or '').startswith('imagenet:') and has_choice(network, 'stem'):
            shapes, large = build(network, classes, **found).shapes(), {**found, 'stem': 'imagenet'}
            found = large if build(network, classes, **large).shapes() == shapes else found
        options = {**found, **(options or {})}
        self._variables = weights.fit(build(network, classes, **options).shapes(), network)
        self._is_told = dataset is not None
        guess = None if options.get('stem') == 'imagenet' else BY_CLASSES.get(classes)
        dataset = dataset or guess
        if dataset is None and classes in BY_CLASSES:
            raise UserError(
                f'{path} is for larger images than those of {BY_CLASSES[classes]}: name its data set, as '
                '--dataset imagenet:FOLDER, or from Python as dataset=…'
            )
        if dataset is None:
            raise UserError(
                f'{path} has {classes} classes, which is neither CIFAR-10 nor CIFAR-100: name its data set, '
                'as --dataset npz:FILE; python -m jaxcifar.torch_weights takes that too, to make a run of it'
            )
        if not self._is_told:
            print(
                f'{path}: taken for a network of {dataset}; --dataset (in Python, dataset=) names another',
                file=sys.stderr,
            )
        config = get_config()
        config.network, config.dataset = network, dataset
        config.model.update(options)
        config.data.validation = 'none'  # nothing was chosen: `last` is what evaluation takes
        config.log.tensorboard = False
        config.update_from_flattened_dict(dict(changes or {}))
        super().__init__(path, resolve.finalize(config))
        self.classes = classes

    @cached_property
    def described(self) -> Dataset:  # type: ignore[override]
        if self.config.dataset not in CIFAR:
            return self.with_images().dataset
        # CIFAR's classes, mean and std are known, so describing it needs no download.
        names, mean, std = CIFAR[self.config.dataset]
        return without_images(self.config.dataset, names.split(), 32, mean, std)

    def with_test_images(self, name: str) -> Session:
        if not self._is_told:
            raise UserError(
                f'{self.path} does not record the normalisation used in training: name that data set too, as '
                'in --dataset cifar10'
            )
        return super().with_test_images(name)

    def restore(self, population: Population) -> Restored:
        weights = assemble(population, [self._variables['params']], [self._variables['batch_stats']])
        return Restored(weights, None, np.ones(1))

    def _accept(self, dataset: Dataset) -> Dataset:
        if dataset.num_classes != self.classes:
            raise UserError(
                f'{self.path} tells {self.classes} classes apart, {dataset.name} has {dataset.num_classes}: '
                'name another --dataset'
            )
        return dataset
