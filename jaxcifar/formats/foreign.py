"""Read weights that others saved: a state_dict in a file of PyTorch or of safetensors, for a network of ours.

Wrappers and prefixes are removed. Every script names the classifier differently: it is the only dense layer.
"""

import contextlib
import io
import itertools
import pickletools
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar.formats.state_dict import COUNTER, differences, from_torch, torch_name
from jaxcifar.machine.errors import UserError
from jaxcifar.models import CHOICES, NETWORKS, build, has_choice

ENDINGS = ('.pt', '.pth', '.pth.tar', '.th', '.ckpt', '.bin', '.safetensors')
# Keys under which training scripts keep weights; moving averages come last.
WRAPPERS = ('model_state_dict', 'state_dict', 'model', 'net', 'network', 'module', 'weights', 'params',
            'state_dict_ema', 'model_ema', 'ema')  # fmt: skip
PREFIXES = re.compile(r'(module|model|backbone|net)\.')  # DataParallel's, and usual names of an attribute
COMPILED = '_orig_mod.'  # torch.compile's prefix, which may precede any part of a name
OLD_DENSENET = re.compile(r'(denselayer\d+\.(norm|conv))\.(\d)')  # norm.1, as in torchvision's own files
DEEPEST, CLOSEST = 4, 3  # depth of nested wrappers; number of networks whose options are all tried
OLD_PICKLES = 4  # before torch 1.6: a number, a version, the machine, and the object


class Foreign(NamedTuple):
    """Hold the weights of one file: float32 arrays by their names, without prefixes."""

    path: Path
    tensors: dict[str, np.ndarray]

    def fit(self, shapes, network: str) -> dict:
        """Return the weights as variables with the structure of `shapes`, but the file's number of classes.

        shapes: of a network called `network`. Raises `UserError` where the file holds another network.
        """
        tensors, shapes = self._for_classifier(shapes)
        try:
            return from_torch(tensors, shapes)
        except UserError as error:
            raise UserError(f'{self.path} does not fit {network}: {error}; {self._advice()}') from None

    def classes(self) -> int | None:
        """Return the number of classes, the rows of the only dense layer; None where there is not one."""
        dense = [tensor for tensor in self.tensors.values() if tensor.ndim == 2]
        return len(dense[0]) if len(dense) == 1 else None

    def likely(self) -> tuple[str, dict] | None:
        """Return the (network, options) whose tensors these are, None where no network has them."""
        alike: dict[str, float] = {}
        for name in NETWORKS:  # takes seconds in all, mostly for the DenseNets
            alike[name] = self._alike(name, {})
            if alike[name] == 1:
                return name, {}
        # Options change few tensors, so only those of the most similar networks are worth trying.
        for name in sorted(alike, key=lambda name: -alike[name])[:CLOSEST]:
            for options in _all_options(name):
                if self._alike(name, options) == 1:
                    return name, options
        return None

    def _alike(self, name: str, options: dict) -> float:
        """Return the share of all tensors, the file's and the network's, that match in name and shape."""
        shapes = build(name, 10, **options).shapes()
        try:
            tensors, shapes = self._for_classifier(shapes)
            faults = sum(map(len, differences(tensors, shapes).values()))
        except UserError:  # a network with layers that PyTorch does not have
            return 0.0
        return 1 - faults / (faults + len(tensors))

    def network(self) -> tuple[str, dict]:
        """Return what `likely` does; raise `UserError` where no network has these tensors."""
        likely = self.likely()
        if likely is None:
            raise UserError(f'{self.path}: {self._advice()}')
        return likely

    def _for_classifier(self, shapes) -> tuple[dict[str, np.ndarray], Any]:
        """Return the tensors with the classifier renamed as ours, and the shapes with the file's classes."""
        leaves = flatten_dict(shapes)
        dense = [path[:-1] for path, leaf in leaves.items() if path[-1] == 'kernel' and leaf.ndim == 2]
        classes = self.classes()
        if classes is None or len(dense) != 1:
            return self.tensors, shapes
        (layer,), (theirs,) = dense, [name for name, tensor in self.tensors.items() if tensor.ndim == 2]
        old = theirs.rpartition('.')[0]
        new = torch_name((*layer, 'kernel')).rpartition('.')[0]
        renamed = {
            f'{new}.{name.rpartition(".")[2]}' if name.rpartition('.')[0] == old else name: tensor
            for name, tensor in self.tensors.items()
        }
        for path, leaf in leaves.items():
            if path[:-1] == layer:
                leaves[path] = type(leaf)((*leaf.shape[:-1], classes), leaf.dtype)
        return renamed, unflatten_dict(leaves)

    def _advice(self) -> str:
        """Say what the file holds, and what to ask for instead."""
        count, classes, likely = len(self.tensors), self.classes(), self.likely()
        of_classes = f' for {classes} classes' if classes else ''
        if likely is None:
            return (
                f'its {count} tensors{of_classes} are of no network here: rename them as torchvision does, '
                'or choose from python -m jaxcifar.models'
            )
        name, options = likely
        chosen = ''.join(f' with {option} {value}' for option, value in options.items())
        return f'its {count} tensors are those of a {name}{chosen}{of_classes}: ask for that network'


def is_foreign(path: Path) -> bool:
    """Return whether a file's name ends as those of foreign weights do."""
    return path.name.lower().endswith(ENDINGS)


def read(path: Path) -> Foreign:
    """Return the weights in a file, or raise a `UserError` that says what it holds instead and what to do."""
    if not path.is_file():
        raise UserError(f'{path}: no such file')
    state = _unwrap(path, _load_safetensors(path) if _is_safetensors(path) else _load_torch(path))
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        short = _short(name)
        if short.endswith((COUNTER, 'n_averaged')):
            continue  # torch's AveragedModel counts its steps, too
        if short in tensors:
            raise UserError(f'{path} holds two tensors {short}, one as {name}: save those of one network')
        tensors[short] = _to_array(path, name, tensor)
    return Foreign(path, tensors)


def _short(name: str) -> str:
    """Return a tensor's name without the prefixes of wrappers."""
    short = name.replace(COMPILED, '')
    while prefix := PREFIXES.match(short):
        short = short[prefix.end() :]
    return OLD_DENSENET.sub(r'\1\3', short)


def _is_safetensors(path: Path) -> bool:
    with path.open('rb') as file:
        return file.read(9)[8:] == b'{'


def _load_safetensors(path: Path):
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except Exception as error:
        raise UserError(f'{path} is damaged: {error}; fetch or save it again') from None


def _load_torch(path: Path):
    import torch

    try:
        return torch.load(path, weights_only=True, map_location='cpu')
    except Exception as error:  # pickle, zip and torch each have their own
        kind = re.search(r'GLOBAL ([\w.]+)', str(error))
        if kind:
            raise UserError(_resave(path, kind[1])) from None
        why = 'a TorchScript program' if 'TorchScript' in str(error) else 'damaged, or of another kind'
        raise UserError(
            f'{path} is not a file of PyTorch weights ({why}): '
            'expected what torch.save(network.state_dict(), FILE) writes'
        ) from None


def _resave(path: Path, kind: str) -> str:
    """Say how to resave a file that holds Python objects, which could run code when loaded."""
    texts = _strings(path)
    # A word of the pickle may also be an option that was saved, so the command looks again.
    wrappers = tuple(w for w in WRAPPERS if w in texts)
    find = f's = next((d for k in {wrappers} if isinstance(d := f(s.get(k)), dict)), s); '
    return (
        f'{path} holds a Python object ({kind}), expected tensors only. If you trust it, save it again: '
        "import torch; f = lambda s: s.state_dict() if hasattr(s, 'state_dict') else s; "
        f"s = f(torch.load('{path}', weights_only=False)); {find if wrappers else ''}"
        "torch.save({k: v for k, v in s.items() if torch.is_tensor(v)}, 'weights.pth')"
    )


def _strings(path: Path) -> set:
    """Return the strings in a file's pickle, which is read but never run."""
    texts: set = set()
    with contextlib.suppress(Exception):  # bytes of another kind: there is no hint then
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith('/data.pkl'))
                pickles: BinaryIO = io.BytesIO(archive.read(name))
        else:
            pickles = io.BytesIO(path.read_bytes())
        for _ in range(OLD_PICKLES):
            texts |= {argument for _, argument, _ in pickletools.genops(pickles) if isinstance(argument, str)}
    return texts


def _unwrap(path: Path, state) -> Mapping:
    """Return the mapping of names to tensors within wrappers."""
    import torch

    for _ in range(DEEPEST):
        if not isinstance(state, Mapping) or not state:
            break
        if all(isinstance(name, str) and torch.is_tensor(t) for name, t in state.items()):
            return state
        inside = [w for w in WRAPPERS if isinstance(state.get(w), Mapping) and state[w]]
        if not inside:
            break
        if len(inside) > 1:
            print(f'{path}: took {inside[0]}, and not {", ".join(inside[1:])}', file=sys.stderr)
        state = state[inside[0]]
    holds = type(state).__name__
    if isinstance(state, Mapping):
        holds = f'a dict of {", ".join(map(str, [*state][:3])) or "nothing"}'
    raise UserError(
        f'{path} holds no state_dict but {holds}: expected a dict of tensors, by itself or as one of '
        f'{", ".join(WRAPPERS)}'
    )


def _to_array(path: Path, name: str, tensor) -> np.ndarray:
    import torch

    if tensor.layout != torch.strided or tensor.device.type != 'cpu' or not tensor.is_floating_point():
        kind = f'{str(tensor.dtype).removeprefix("torch.")} {str(tensor.layout).removeprefix("torch.")}'
        raise UserError(f'{path} holds {name} as {kind} numbers, expected dense floats: save it as such')
    array = tensor.detach().float().numpy()
    if not np.isfinite(array).all():
        raise UserError(f'{path} holds {name} with numbers that are not finite: its training diverged')
    return array


def _all_options(name: str) -> Iterator[dict]:
    """Yield all options of a network, those by default first."""
    yield {}
    options = [option for option in CHOICES if has_choice(name, option)]
    for values in itertools.product(*(CHOICES[option] for option in options)):
        yield dict(zip(options, values))
