"""Trained networks as a function of images: what `jaxcifar.load` gives."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcifar.config import saved
from jaxcifar.config.members import alone, member_names
from jaxcifar.engine.fusion import NAME
from jaxcifar.engine.head import join
from jaxcifar.formats.portable import FusedHead, Portable, is_portable, read, read_head
from jaxcifar.machine.compiler import compiler_options
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json
from jaxcifar.runs.metrics import log_probabilities, mean_of_probabilities
from jaxcifar.runs.weights import load_trained

# Fields that name what is on the machine of whoever trained.
PRIVATE = ('resume_from', 'init_from', 'compile_cache', 'files.train', 'files.validation',
           'log.wandb_group', 'log.wandb_name')  # fmt: skip


class Classifier:
    """Networks of the same classes, ready to be called with uint8 images [B,H,W,3].

    Of a packed file the weights stay packed in the device's memory; each call unpacks them anew.

    Attributes:
      classes: the C class names.
      image_size: H and W.
      names: the members, '0_resnet18', …, and of a fused run 'fused'.
    """

    def __init__(self, members: list[Portable], head: FusedHead | None = None):
        about = members[0].about
        self.classes, self.image_size = tuple(about['classes']), about['image_size']
        self.names = [member.about['name'] for member in members] + [NAME] * (head is not None)
        self.weights = jax.device_put(([member.variables for member in members], head and head.params))
        self._fused = head is not None
        runs, join_all = [member.outputs() for member in members], partial(join, head and head.make())

        def logits(weights, images):
            own, params = weights
            z, features = zip(*(run(w, images) for run, w in zip(runs, own)))
            return join_all(params, jax.numpy.stack(z), list(features))

        self.function = jax.jit(logits, compiler_options=compiler_options())

    def logits(self, images) -> np.ndarray:
        """Logits [K,B,C] of every member; of a fused run [K+1,B,C], the fused ones as the last."""
        images = np.asarray(images)
        wanted = (self.image_size, self.image_size, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != wanted:
            raise UserError(
                f'images are {images.dtype} {list(images.shape)}, not uint8 [B,{",".join(map(str, wanted))}]'
            )
        return np.asarray(self.function(self.weights, images))

    def __call__(self, images) -> np.ndarray:
        """Probabilities [B,C]: the fused ones, or the mean of the members'."""
        log_p = log_probabilities(self.logits(images))
        return np.exp(log_p[-1] if self._fused else mean_of_probabilities(log_p))


def from_workdir(
    workdir: Path, which: str | None = None, member: str = 'all'
) -> tuple[list[Portable], FusedHead | None]:
    """The members of a run with their best, last, calibrated or a step's weights, and its head.

    member: all, or one by its name or id, which then has no head.
    """
    config, members, head, temperatures = load_trained(workdir, which, shown=True)
    description = read_json(workdir / 'dataset.json')
    names, ids = member_names(config), [str(i) for i in config.member_ids]
    if member not in ('all', *names, *ids):
        raise UserError(f'{workdir} has no member {member!r}; it has all, {", ".join(names)}')
    chosen = [k for k in range(len(names)) if member in ('all', names[k], ids[k])]
    found = []
    for k in chosen:
        about = _about(alone(config, k), names[k], description)
        if which == 'calibrated':
            about['temperature'] = float(temperatures[k])
        found.append(Portable(about, {'params': members[k][0], 'batch_stats': members[k][1]}))
    return found, _head(config, head, found) if head and member == 'all' else None


def _head(config: ConfigDict, params: dict, members: list[Portable]) -> FusedHead:
    classes = len(members[0].about['classes'])
    sizes = [member.network().feature_size() for member in members]
    fusion = saved.to_dict(config)['fusion']
    return FusedHead({'name': NAME, 'classes': classes, 'feature_sizes': sizes, 'fusion': fusion}, params)


def _about(config: ConfigDict, name: str, description: dict) -> dict:
    return {
        'name': name,
        'network': config.network,
        'options': {name: value for name, value in config.model.items() if value != ''},
        'precision': config.precision,
        **{field: description[field] for field in ('classes', 'image_size', 'mean', 'std')},
        'config': saved.to_dict(released(config)),
    }


def released(config: ConfigDict) -> ConfigDict:
    """The config for weights that are what the networks get, without what belongs to a machine."""
    config = ConfigDict(saved.to_dict(config))
    kind, _, path = config.dataset.partition(':')
    with config.ignore_type():
        config.dataset = f'{kind}:{Path(path).name}' if path else kind
        config.view, config.coupling, config.ema, config.devices = 'none', 'none', 0.0, 1
        config.data.root, config.data.workers = None, 0
        if config.split == 'file' or config.data.validation == 'file':
            config.split, config.data.validation = 'shared', 'none'
        for field in PRIVATE:
            config.update_from_flattened_dict({field: ''})
    return config


def load(path: str | Path, member: str | int | None = None) -> Classifier:
    """Trained networks from a folder or a file of `jaxcifar.export`, or a workdir (its best weights).

    member: one of several, by its name or its id.

    Raises:
      UserError: there is nothing like that, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f'{path}: no such file or folder')
    if is_portable(path):
        members, head = read(path), read_head(path)
    else:
        members, head = from_workdir(path)
    if member is not None:
        head = None
        names = [m.about['name'] for m in members]
        members = [m for m, name in zip(members, names) if str(member) in (name, name.split('_')[0])]
        if not members:
            raise UserError(f'{path} has no member {member!r}; it has {", ".join(names)}')
    return Classifier(members, head)
