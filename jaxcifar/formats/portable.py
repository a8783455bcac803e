"""Read and write networks for others: weights as the forward pass sees them, and what they belong to.

A member's file contains all that is needed to run it. Two kinds are read here, `safetensors` and `packed`
(with ternary kernels), and the folders of such files that `jaxcifar.export` makes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from jaxcifar.augment.pipeline import normalise
from jaxcifar.config import saved
from jaxcifar.engine import fusion
from jaxcifar.engine.head import Head
from jaxcifar.formats import packed, packed_file
from jaxcifar.formats.foreign import is_foreign
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json, reading, sha256, write_bytes, write_text
from jaxcifar.machine.text import show
from jaxcifar.models import Network, build

SUMS = 'SHA256SUMS'  # in the format of `sha256sum -c`
CARD = 'card.json'
README = 'README.md'  # the card for people, who may edit it: only older exports have a sum of it
HEAD = f'{fusion.NAME}.safetensors'
KEY = 'jaxcifar'  # of a file's metadata
REMEDY = 'export the run again'
OF_DATA = ('classes', 'image_size', 'mean', 'std')
ABOUT = ('name', 'network', 'options', 'precision', 'classes', 'image_size', 'mean', 'std', 'config')


class Portable(NamedTuple):
    """Hold one member.

    about: JSON with its name; network, options, precision, classes and image_size for `build`; mean and std
      of the data; config; and temperature if it is calibrated. Later versions, whose configs have other
      fields, must still be able to read old files.
    variables: {'params': …, 'batch_stats': …}, numpy arrays and `packed.Packed` kernels.
    """

    about: dict
    variables: dict

    @property
    def config(self) -> ConfigDict:
        """Return the config of a run of this member alone; its weights are as a network sees them."""
        return saved.from_dict(self.about['config'])

    def network(self) -> Network:
        """Return its functions."""
        about = self.about
        shape = len(about['classes']), about['image_size']
        return build(about['network'], *shape, jnp.dtype(about['precision']), **about['options'])

    def forward(self) -> Callable:
        """Return (variables, uint8 images [B,H,W,3]) -> float32 logits [B,C], to be compiled."""
        run = self.outputs()
        return lambda variables, images: run(variables, images)[0]

    def outputs(self) -> Callable:
        """Return a function like `forward`'s that also returns features: (logits [B,C], features [B,D])."""
        about, network = self.about, self.network()

        def run(variables, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            images = normalise(images, tuple(about['mean']), tuple(about['std']))
            (logits, features), _ = network.apply(variables, images, False)
            logits = logits.astype(jnp.float32)
            return logits / about['temperature'] if 'temperature' in about else logits, features

        return packed.unpack_where_used(run)


class FusedHead(NamedTuple):
    """Hold the head that fuses all members of a run into one prediction.

    about: JSON: its name, the config's group fusion, the number of classes, and the members' D_k.
    """

    about: dict
    params: dict

    def make(self) -> Head:
        """Return the head itself."""
        about = self.about
        config = ConfigDict({'fusion': about['fusion']})
        return Head(config, fusion.make_module(config, about['feature_sizes'], about['classes']))


def read(path: Path) -> list[Portable]:
    """Return the members in a file or a folder of `jaxcifar.export`."""
    if path.is_file():
        return [_read_file(path)]
    known = check_sums(path)
    card = read_json(path / CARD)
    try:
        files = [str(member['file']) for member in card['members']]
    except (KeyError, TypeError):
        files = []
    if not files:
        raise UserError(f'{path} is not an export of jaxcifar: {CARD} names no members')
    if not {CARD, *files} <= known:
        raise UserError(f'{path} is not whole: {SUMS} has no sums of what is in {CARD}')
    members = [_read_file(path / name) for name in files]
    first, *others = ({name: m.about[name] for name in OF_DATA} for m in members)
    if any(other != first for other in others):
        raise UserError(f'{path} is not an export of jaxcifar: its members name other classes or images')
    return members


def read_head(path: Path) -> FusedHead | None:
    """Return the head in the folder of a fused run, None where there is none."""
    file = path / HEAD
    if HEAD not in (check_sums(path) if path.is_dir() else ()):
        return None
    with reading(file, REMEDY):
        head = FusedHead(*_read_tensors(file))
        difference = _difference(head.make().module.init((0,)), head.params)
    if difference:
        raise UserError(f'{file} does not hold a {fusion.NAME}: {difference}')
    return head


def is_portable(path: Path) -> bool:
    """Return whether it is one of the files or folders that `jaxcifar.export` makes."""
    if path.suffix != '.safetensors':
        return (path / CARD).exists() or (path.is_file() and not is_foreign(path))
    try:
        with safetensors.safe_open(path, 'np') as file:
            return KEY in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return False


def config_of(path: Path, members: list[Portable]) -> ConfigDict:
    """Return the one config of all members that `read` returned for a path."""
    return saved.load(path / 'config.json') if path.is_dir() else members[0].config


def dense(members: list[Portable]) -> tuple[list[dict], list[dict]]:
    """Return their params and their batch statistics as floats."""
    trees = [packed.to_dense(member.variables) for member in members]
    return [tree['params'] for tree in trees], [tree['batch_stats'] for tree in trees]


def _read_file(path: Path) -> Portable:
    with path.open('rb') as file:
        is_packed = file.read(len(packed_file.MAGIC)) == packed_file.MAGIC
    if is_packed:
        member = Portable(*packed_file.read(path))
    elif path.suffix == '.safetensors':
        about, tensors = _read_tensors(path)
        member = Portable(about, {'batch_stats': {}, **tensors})
    else:
        raise UserError(f'expected a packed network or .safetensors of jaxcifar, got {path}')
    _check(path, member)
    return member


def _check(path: Path, member: Portable):
    """Raise `UserError` unless the tensors fit the network that the file names."""
    about = member.about
    missing: list[str] = [name for name in ABOUT if not isinstance(about, dict) or name not in about]
    if missing:
        raise UserError(f'{path} is not a network of jaxcifar: it does not say its {missing[0]}')
    with reading(path, REMEDY):
        check_data(about)
        if not np.isfinite(about.get('temperature', 1.0)) or not isinstance(about['name'], str):
            raise ValueError('its name or temperature is of another type')
        try:
            member.config  # noqa: B018  a config of another kind raises
        except UserError as error:
            raise ValueError(error) from None
        difference = _difference(member.network().shapes(), member.variables)
    if difference:
        raise UserError(f'{path} does not hold a {about["network"]}: {difference}')


def check_data(about: dict):
    """Raise `ValueError` unless classes, image_size, mean and std can be those of a data set."""
    classes, size, mean, std = (about[name] for name in OF_DATA)
    if not (isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)):
        raise ValueError(f'expected names as classes, got {show(classes)}')
    if not (isinstance(size, int) and size > 0):
        raise ValueError(f'expected a number of pixels as image_size, got {show(size)}')
    for numbers in mean, std:
        if len(numbers) != 3 or not np.isfinite(np.array(numbers, float)).all():
            raise ValueError(f'expected three numbers as mean and std, got {show(numbers)}')


def _difference(shapes, variables) -> str:
    """Return the first name whose shape is not as in `shapes`, with both shapes; '' where there is none."""
    expected, given = (
        {name: tuple(leaf.shape) for name, leaf in flatten_dict(tree, sep='/').items()}
        for tree in (shapes, variables)
    )
    names = expected.keys() | given.keys()
    name = min((n for n in names if expected.get(n) != given.get(n)), default='')
    return f'{name} is {given.get(name)}, not {expected.get(name)}' if name else ''


def write_safetensors(path: Path, about: dict, tree: dict):
    """Write one file of all tensors, named by their paths, params/…; `about` is its metadata."""
    tensors = flatten_dict(packed.to_dense(tree), sep='/')
    write_bytes(path, safetensors.numpy.save(tensors, {KEY: json.dumps(about)}))


def _read_tensors(path: Path) -> tuple[dict, Any]:
    """Return what `write_safetensors` was given."""
    try:
        with safetensors.safe_open(path, 'np') as file:
            about = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except KeyError:
        raise UserError(f'{path} is not of jaxcifar: its metadata does not say of which network') from None
    except (safetensors.SafetensorError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f'{path} is damaged: {error}') from None
    with reading(path, REMEDY):
        return about, unflatten_dict(tensors, sep='/')


def write_sums(folder: Path):
    """Write SHA256SUMS of the folder's files, except those that people may edit."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name not in (SUMS, README))
    text = ''.join(f'{sha256(path)}  {path.name}\n' for path in files)
    write_text(folder / SUMS, text)


def check_sums(folder: Path) -> set[str]:
    """Return the names of the files that have sums; raise `UserError` where one of them has changed."""
    try:
        lines = [line.split(maxsplit=1) for line in (folder / SUMS).read_text().splitlines()]
        # A name with a folder in it could lead out of the export.
        if elsewhere := [name for _, name in lines if Path(name).name != name]:
            raise ValueError(f'{SUMS} names {elsewhere[0]}, which is not in this folder')
        summed = [(digest, name) for digest, name in lines if name != README]
        wrong = ', '.join(name for digest, name in summed if sha256(folder / name) != digest)
    except (OSError, ValueError) as error:
        raise UserError(f'{folder} is not whole: {error}') from None
    if wrong:
        raise UserError(f'{folder} is damaged: {wrong} does not have the sum in {SUMS}; export it again')
    return {name for _, name in lines}
