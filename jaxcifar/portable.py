"""Trained networks as others get them: weights as the forward pass sees them, and what these are of.

A member's file says itself all that is needed to run it. Two kinds are read here: `safetensors`, and
`packed` with ternary kernels; and folders of them that `jaxcifar.export` made.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from jaxcifar import config as configs
from jaxcifar import packed
from jaxcifar.checkpoint import write_atomically
from jaxcifar.data.augment import normalise
from jaxcifar.errors import UserError
from jaxcifar.logs import read_json
from jaxcifar.models import build

SUMS = 'SHA256SUMS'  # as of `sha256sum -c`
CARD = 'card.json'


class Portable(NamedTuple):
    """One member.

    about: JSON: its name; network, options, precision, classes and image_size, what `build` needs; mean and
      std of the data; config. Files of old are to be read by versions whose configs have other fields.
    variables: {'params': …, 'batch_stats': …}, numpy arrays and `packed.Packed` kernels.
    """

    about: dict
    variables: dict

    @property
    def config(self) -> ConfigDict:
        """Of a run of this member alone, with nothing left to do to its weights."""
        return configs.from_dict(self.about['config'])

    def forward(self) -> Callable:
        """(variables, uint8 images [B,H,W,3]) -> float32 logits [B,C], to be compiled."""
        about = self.about
        shape = len(about['classes']), about['image_size']
        dtype = jnp.dtype(about['precision'])
        network = build(about['network'], *shape, dtype, **about['options'])

        def run(variables, images: jax.Array) -> jax.Array:
            images = normalise(images, tuple(about['mean']), tuple(about['std']))
            (logits, _), _ = network.apply(variables, images, False)
            return logits.astype(jnp.float32)

        return packed.unpack_where_used(run)


def read(path: Path) -> list[Portable]:
    """The members in a file or a folder of `jaxcifar.export`."""
    if path.is_file():
        return [_read_file(path)]
    check_sums(path)
    return [_read_file(path / member['file']) for member in read_json(path / CARD)['members']]


def is_portable(path: Path) -> bool:
    """Whether it is one of the files or folders that `jaxcifar.export` makes."""
    return path.is_file() or (path / CARD).exists()


def config_of(path: Path, members: list[Portable]) -> ConfigDict:
    """The config of what `read` found there, all of it together."""
    return configs.load(path / 'config.json') if path.is_dir() else members[0].config


def dense(members: list[Portable]) -> tuple[list[dict], list[dict]]:
    """Their params and their batch statistics as floats."""
    trees = [packed.to_dense(member.variables) for member in members]
    return [tree['params'] for tree in trees], [tree['batch_stats'] for tree in trees]


def _read_file(path: Path) -> Portable:
    with path.open('rb') as file:
        is_packed = file.read(len(packed.MAGIC)) == packed.MAGIC
    if is_packed:
        return Portable(*packed.read(path))
    if path.suffix == '.safetensors':
        return read_safetensors(path)
    raise UserError(f'{path} is neither a packed network nor .safetensors of jaxcifar')


def write_safetensors(path: Path, member: Portable):
    """One file of all tensors, named params/… and batch_stats/…; `about` is its metadata."""
    tensors = flatten_dict(packed.to_dense(member.variables), sep='/')
    data = safetensors.numpy.save(tensors, {'jaxcifar': json.dumps(member.about)})
    write_atomically(path, lambda file: file.write(data))  # with the rights that the umask leaves


def read_safetensors(path: Path) -> Portable:
    """What `write_safetensors` wrote."""
    try:
        with safetensors.safe_open(path, 'np') as file:
            about = json.loads((file.metadata() or {})['jaxcifar'])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except KeyError:
        raise UserError(f'{path} is not of jaxcifar: its metadata does not say of which network') from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f'{path} is damaged: {error}') from None
    return Portable(about, {'batch_stats': {}, **unflatten_dict(tensors, sep='/')})


def write_sums(folder: Path):
    """SHA256SUMS of the folder's files."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != SUMS)
    text = ''.join(f'{_sha256(path)}  {path.name}\n' for path in files)
    write_atomically(folder / SUMS, lambda file: file.write(text.encode()))


def check_sums(folder: Path):
    """Raise `UserError` where a file of the folder is not as it was."""
    try:
        lines = (folder / SUMS).read_text().splitlines()
        wrong = [name for digest, name in map(str.split, lines) if _sha256(folder / name) != digest]
    except (OSError, ValueError) as error:
        raise UserError(f'{folder} is not whole: {error}') from None
    if wrong:
        raise UserError(f'{folder} is damaged: {", ".join(wrong)} does not have the sum in {SUMS}')


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
