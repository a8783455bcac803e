"""Trained networks as a function of images: what `jaxcifar.load` gives."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcifar import config as configs
from jaxcifar.errors import UserError
from jaxcifar.logs import read_json
from jaxcifar.members import alone, member_names
from jaxcifar.metrics import log_probabilities, mean_of_probabilities
from jaxcifar.portable import Portable, is_portable, read
from jaxcifar.step import compiler_options
from jaxcifar.weights import load_members


class Classifier:
    """Networks of the same classes, ready to be called with uint8 images [B,H,W,3].

    Of a packed file the weights stay packed in the device's memory; each call unpacks them anew.

    Attributes:
      classes: the C class names.
      image_size: H and W.
      names: the members, '0_resnet18', ….
    """

    def __init__(self, members: list[Portable]):
        about = members[0].about
        self.classes, self.image_size = tuple(about['classes']), about['image_size']
        self.names = [member.about['name'] for member in members]
        self.weights = jax.device_put([member.variables for member in members])
        forwards = [member.forward() for member in members]

        def logits(weights, images):
            return jax.numpy.stack([forward(w, images) for forward, w in zip(forwards, weights)])

        self.function = jax.jit(logits, compiler_options=compiler_options())

    def logits(self, images) -> np.ndarray:
        """Logits [K,B,C] of every member."""
        images = np.asarray(images)
        wanted = (self.image_size, self.image_size, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != wanted:
            raise UserError(
                f'images are {images.dtype} {list(images.shape)}, not uint8 [B,{",".join(map(str, wanted))}]'
            )
        return np.asarray(self.function(self.weights, images))

    def __call__(self, images) -> np.ndarray:
        """Probabilities [B,C]: the mean of the members'."""
        return np.exp(mean_of_probabilities(log_probabilities(self.logits(images))))


def from_workdir(workdir: Path, which: str | None = None, member: str = 'all') -> list[Portable]:
    """The members of a run with their best, last or a step's weights, all or one by its name or id."""
    config, members = load_members(workdir, which, shown=True)
    description = read_json(workdir / 'dataset.json')
    names, ids = member_names(config), [str(i) for i in config.member_ids]
    if member not in ('all', *names, *ids):
        raise UserError(f'{workdir} has no member {member!r}; it has all, {", ".join(names)}')
    chosen = [k for k in range(len(names)) if member in ('all', names[k], ids[k])]
    return [
        Portable(
            _about(alone(config, k), names[k], description),
            {'params': members[k][0], 'batch_stats': members[k][1]},
        )
        for k in chosen
    ]


def _about(config: ConfigDict, name: str, description: dict) -> dict:
    return {
        'name': name,
        'network': config.network,
        'options': {name: value for name, value in config.model.items() if value != ''},
        'precision': config.precision,
        **{field: description[field] for field in ('classes', 'image_size', 'mean', 'std')},
        'config': configs.to_dict(released(config)),
    }


def released(config: ConfigDict) -> ConfigDict:
    """The config for weights that are what the networks get, without what belongs to a machine."""
    config = ConfigDict(configs.to_dict(config))
    with config.ignore_type():
        config.view, config.coupling, config.ema, config.devices = 'none', 'none', 0.0, 1
        config.data.root, config.data.workers = None, 0
        for field in ('resume_from', 'init_from', 'compile_cache'):
            if field in config:
                config[field] = ''
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
    members = read(path) if is_portable(path) else from_workdir(path)
    if member is not None:
        names = [m.about['name'] for m in members]
        members = [m for m, name in zip(members, names) if str(member) in (name, name.split('_')[0])]
        if not members:
            raise UserError(f'{path} has no member {member!r}; it has {", ".join(names)}')
    return Classifier(members)
