"""Turn PyTorch's state_dicts into variables, and variables into state_dicts."""

from collections.abc import Mapping
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
NAMED = 3  # differing tensors that a message names


def to_torch(variables) -> 'dict[str, torch.Tensor]':
    """Return a state_dict of one network's variables {'params': …, 'batch_stats': …}, or of its gradients.

    Convolutions [h,w,in,out] become [out,in,h,w], dense layers [in,out] become [out,in].
    """
    import torch

    state = {}
    for path, value in flatten_dict(variables).items():
        name = torch_name(path)
        state[name] = torch.tensor(np.ascontiguousarray(np.transpose(value, _axes(value.ndim))))
        # A strict `load_state_dict` demands the counter of every norm.
        if path[-1] == 'var':
            state[name.replace(LEAVES['var'], COUNTER)] = torch.tensor(0)
    return state


def from_torch(state: Mapping[str, Any], shapes) -> Any:
    """Return float32 variables on the host with the structure of `shapes`, a network's `shapes()`.

    state: arrays or tensors by torch's names. Raises `UserError`, which names the tensors that are missing,
    extra or of another shape.
    """
    if faults := differences(state, shapes):
        listed = (_several(kind, names) for kind, names in faults.items())
        raise UserError(f'tensors are {", ".join(listed)}')
    leaves = {}
    for path, leaf in flatten_dict(shapes).items():
        value = np.asarray(state[torch_name(path)], np.float32)
        # The copy is contiguous and does not share the tensor's memory.
        leaves[path] = np.array(value.transpose(np.argsort(_axes(leaf.ndim))), order='C')
    return unflatten_dict(leaves)


def differences(state: Mapping[str, Any], shapes) -> dict[str, list[str]]:
    """Return the names in which a state_dict differs from a network's `shapes()`, by kind; {} for none."""
    expected = {}
    for path, leaf in flatten_dict(shapes).items():
        expected[torch_name(path)] = tuple(leaf.shape[axis] for axis in _axes(leaf.ndim))
    given = {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith(COUNTER)}
    # Names that only one side has are already reported as missing or extra.
    differ = sorted(name for name in expected.keys() & given.keys() if expected[name] != given[name])
    faults = {
        'missing': sorted(expected.keys() - given.keys()),
        'extra': sorted(given.keys() - expected.keys()),
        'of another shape': [f'{name} {list(given[name])} not {list(expected[name])}' for name in differ],
    }
    return {kind: names for kind, names in faults.items() if names}


def torch_name(path: tuple[str, ...]) -> str:
    """Return torch's name: 'layer1.0.conv1.weight' of ('params', 'layer1_0', 'conv1', 'kernel')."""
    if path[-1] not in LEAVES:
        raise UserError(f'{"/".join(path)} has no counterpart in a PyTorch layer: expected another network')
    return f'{".".join(path[1:-1]).replace("_", ".")}.{LEAVES[path[-1]]}'


def _axes(ndim: int) -> tuple[int, ...]:
    """Return the permutation of a parameter's axes from our order to torch's."""
    return {4: (3, 2, 0, 1), 2: (1, 0)}.get(ndim, tuple(range(ndim)))


def _several(kind: str, names: list[str]) -> str:
    more = ', …' if len(names) > NAMED else ''
    return f'{kind}: {len(names)} ({", ".join(names[:NAMED])}{more})'
