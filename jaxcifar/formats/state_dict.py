"""PyTorch's state_dicts, read into variables and written from them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar.machine.errors import UserError

if TYPE_CHECKING:
    import torch

LEAVES = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}
COUNTER = 'num_batches_tracked'  # torch has one in each norm, and uses it where momentum is None
WRAPPERS = ('model_state_dict', 'state_dict')  # where training scripts keep weights among other things


def to_torch(variables) -> 'dict[str, torch.Tensor]':
    """A state_dict of one network's variables {'params': …, 'batch_stats': …}; also of its gradients.

    Convolutions [h,w,in,out] -> [out,in,h,w], dense layers [in,out] -> [out,in].
    """
    import torch

    state = {}
    for path, value in flatten_dict(variables).items():
        name = torch_name(path)
        state[name] = torch.tensor(np.ascontiguousarray(np.transpose(value, _axes(value.ndim))))
        if path[-1] == 'var':
            state[name.replace(LEAVES['var'], COUNTER)] = torch.tensor(0)
    return state


def from_torch(state: 'Mapping[str, torch.Tensor]', shapes) -> Any:
    """float32 variables on the host with the structure of `shapes`, a network's `shapes()`.

    Raises:
      UserError: names the tensors that are missing, extra or of another shape.
    """
    wanted = {torch_name(path): (path, leaf) for path, leaf in flatten_dict(shapes).items()}
    given = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    differ = []
    for name in wanted.keys() & given.keys():
        shape = wanted[name][1].shape
        shape, found = tuple(shape[i] for i in _axes(len(shape))), tuple(given[name].shape)
        if found != shape:
            differ.append(f'{name} {list(found)} not {list(shape)}')
    faults = {
        'missing': wanted.keys() - given.keys(),
        'extra': given.keys() - wanted.keys(),
        'of another shape': differ,
    }
    if any(faults.values()):
        listed = (_several(kind, names) for kind, names in faults.items() if names)
        raise UserError(f'tensors are {", ".join(listed)}')
    leaves = {}
    for name, (path, leaf) in wanted.items():
        value = given[name].detach().float().numpy()
        leaves[path] = np.array(value.transpose(np.argsort(_axes(leaf.ndim))), order='C')
    return unflatten_dict(leaves)


def torch_name(path: tuple[str, ...]) -> str:
    """('params', 'layer1_0', 'conv1', 'kernel') -> 'layer1.0.conv1.weight'"""
    return f'{".".join(path[1:-1]).replace("_", ".")}.{LEAVES[path[-1]]}'


def _axes(ndim: int) -> tuple[int, ...]:
    """The order in which torch has a parameter's axes."""
    return {4: (3, 2, 0, 1), 2: (1, 0)}.get(ndim, tuple(range(ndim)))


def _several(kind: str, names) -> str:
    return f'{kind}: {len(names)} ({", ".join(sorted(names))})'


def read(path: Path) -> 'dict[str, torch.Tensor]':
    """The state_dict in a file of torch.save, without wrappers; UserError where there is none."""
    import torch

    if not path.is_file():
        raise UserError(f'{path}: no such file')
    try:
        state = torch.load(path, weights_only=True, map_location='cpu')
    except Exception:  # pickle, zip and torch each have their own
        raise UserError(f'{path} is not a file of PyTorch weights that holds tensors only') from None
    for wrapper in WRAPPERS:
        state = state.get(wrapper, state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not state or not all(map(torch.is_tensor, state.values())):
        raise UserError(f'{path} holds no state_dict, a dict of tensors')
    # DataParallel's prefix; and DenseNet's norm.1 of before 2018, as in torchvision's own files.
    state = {name.removeprefix('module.'): tensor for name, tensor in state.items()}
    return {re.sub(r'(denselayer\d+\.(norm|conv))\.(\d)', r'\1\3', name): t for name, t in state.items()}


def read_as(path: Path, shapes) -> dict:
    """A file's weights as variables on the host with the structure of `shapes`; `UserError` otherwise."""
    return fit(read(path), shapes, path, 'the network')


def fit(state, shapes, path: Path, network: str) -> dict:
    try:
        return from_torch(state, shapes)
    except UserError as error:
        raise UserError(f'{path} does not fit {network}: {error}') from None
