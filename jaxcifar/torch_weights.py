"""PyTorch weights to and from workdirs.

    python -m jaxcifar.torch_weights FILE.pth --network resnet18 --workdir DIR
    python -m jaxcifar.torch_weights --workdir DIR --to FILE.pth

The first makes a workdir whose checkpoint of step 0 holds the file's weights, to be evaluated, or
trained on from by --config.resume_from=DIR. The second writes a run's weights as a state_dict. Names
and shapes are torchvision's, which the layers of `jaxcifar.models` carry with `_` for `.`.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from jaxcifar import config as configs
from jaxcifar import process, workdirs
from jaxcifar.checkpoint import Checkpoints, write_atomically
from jaxcifar.cli import run_command
from jaxcifar.data.datasets import load_dataset
from jaxcifar.errors import UserError
from jaxcifar.logs import Logger
from jaxcifar.members import member_names
from jaxcifar.models import build
from jaxcifar.population import Population, make_mesh
from jaxcifar.selection import Selection
from jaxcifar.state import init_state
from jaxcifar.weights import load_trained

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
BY_CLASSES = {10: 'cifar10', 100: 'cifar100'}


def to_torch(variables) -> 'dict[str, torch.Tensor]':
    """A state_dict of one network's variables {'params': …, 'batch_stats': …}; also of its gradients.

    Convolutions [h,w,in,out] -> [out,in,h,w], dense layers [in,out] -> [out,in].
    """
    import torch

    state = {}
    for path, value in flatten_dict(variables).items():
        name = _torch_name(path)
        state[name] = torch.tensor(np.ascontiguousarray(np.transpose(value, _axes(value.ndim))))
        if path[-1] == 'var':
            state[name.replace(LEAVES['var'], COUNTER)] = torch.tensor(0)
    return state


def from_torch(state: 'Mapping[str, torch.Tensor]', shapes) -> Any:
    """float32 variables on the host with the structure of `shapes`, a network's `shapes()`.

    Raises:
      UserError: names the tensors that are missing, extra or of another shape.
    """
    wanted = {_torch_name(path): (path, leaf) for path, leaf in flatten_dict(shapes).items()}
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


def _torch_name(path: tuple[str, ...]) -> str:
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


def import_weights(path: Path, workdir: Path, network: str, dataset: str | None = None,
                   image_size: int | None = None, optimizer: str = 'sgd', **options):  # fmt: skip
    """Make a workdir whose checkpoint of step 0 holds the weights of the file `path`.

    dataset: by default the CIFAR of as many classes. image_size: as data.image_size.
    optimizer: whose fresh state the checkpoint has: that of the training that goes on from it.
    options: of the network, as for `build`.
    """
    state = read(path)
    classes = _count_classes(state, network, options)
    variables = _fit(state, build(network, classes, **options).shapes(), path, network)
    dataset = dataset or BY_CLASSES.get(classes)
    if dataset is None:
        raise UserError(f'{path} tells {classes} classes apart: name their --dataset')
    config = _make_config(network, dataset, image_size, optimizer, options)
    data = load_dataset(config.dataset, config.data.root, config.data.image_size)
    if data.num_classes != classes:
        raise UserError(f'{path} tells {classes} classes apart, {dataset} has {data.num_classes}')
    with process.locked(workdir):
        if (workdir / 'config.json').exists():
            raise UserError(f'{workdir} holds a run: choose a new --workdir')
        _write_workdir(workdir, config, data, variables)


def read_as(path: Path, shapes) -> dict:
    """A file's weights as variables on the host with the structure of `shapes`; `UserError` otherwise."""
    return _fit(read(path), shapes, path, 'the network')


def _fit(state, shapes, path: Path, network: str) -> dict:
    try:
        return from_torch(state, shapes)
    except UserError as error:
        raise UserError(f'{path} does not fit {network}: {error}') from None


def _count_classes(state, network: str, options: dict) -> int:
    """Rows of the last layer's weights: of the only one that is dense."""
    shapes = flatten_dict(build(network, 10, **options).shapes())
    (name,) = (_torch_name(path) for path, leaf in shapes.items() if leaf.ndim == 2)
    return len(state[name]) if name in state else 10


def _make_config(network: str, dataset: str, image_size, optimizer: str, options: dict) -> ConfigDict:
    from configs import base  # found from the current folder, as config files are

    config = base.get_config()
    config.network, config.dataset, config.optimizer.name = network, dataset, optimizer
    config.model.update(options)
    config.data.image_size, config.devices = image_size, 1
    config.data.validation = 'none'  # nothing was chosen: `last` is what evaluation takes
    config.log.tensorboard = False
    return configs.finalize(config)


def _write_workdir(workdir: Path, config: ConfigDict, dataset, variables):
    """All that a run of no steps would have written, the config last."""
    population = Population(config, dataset.num_classes, dataset.image_size, make_mesh(config))
    params, stats = (population.assemble([variables[kind]]) for kind in ('params', 'batch_stats'))
    state = init_state(config, population).replace(params=params, stats=stats)
    logger = Logger(config, workdir, member_names(config), 0, 0)
    meta = {
        'step': 0,
        'pending': False,
        'selection': Selection.start(1).to_json(),
        'metrics_length': logger.flush(),
    }
    logger.close()
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    checkpoints.save(0, state, meta)
    checkpoints.wait()
    checkpoints.close()
    workdirs.record(workdir, config, dataset, params)


def export_weights(workdir: Path, path: Path, member: int | None = None, which: str | None = None):
    """Write one member's weights as a state_dict; `which` is best, last or a step, as in evaluation.

    They are those that its network sees: of a ternary one the ternary ones, not the floats behind them.
    """
    import torch

    if which == 'calibrated':
        raise UserError('a state_dict has no temperature: use jaxcifar.export, or --checkpoint best')
    config, members, *_ = load_trained(workdir, which, shown=True)
    ids = list(config.member_ids)
    if member is None and len(ids) == 1:
        member = ids[0]
    if member not in ids:
        raise UserError(f'{workdir} has {", ".join(member_names(config))}: choose by --member, one of {ids}')
    params, stats = members[ids.index(member)]
    state = to_torch({'params': params, 'batch_stats': stats})
    write_atomically(path, lambda file: torch.save(state, file))


def main():
    """The command line."""
    usage = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser('python -m jaxcifar.torch_weights', None, __doc__, formatter_class=usage)
    parser.add_argument('--workdir', type=Path, required=True)
    into = parser.add_argument_group('into a workdir')
    into.add_argument('file', nargs='?', type=Path, metavar='FILE.pth', help='what torch.save wrote')
    into.add_argument('--network', help='a name of jaxcifar.models')
    into.add_argument('--dataset', help='by default the CIFAR with as many classes as the weights')
    into.add_argument('--image_size', type=int, help='of digits and image files (224 of imagenet, or 32)')
    into.add_argument('--stem', help='cifar | imagenet, where the network has the choice (cifar)')
    into.add_argument('--shortcut', help='A | B, where the network has the choice')
    into.add_argument('--optimizer', default='sgd', help='of the training that will go on from it (sgd)')
    out = parser.add_argument_group('out of a workdir')
    out.add_argument('--to', type=Path, metavar='FILE.pth', help='the file to write')
    out.add_argument('--member', type=int, metavar='K', help='which of several')
    out.add_argument('--checkpoint', help='best | last | STEP (best, where there is one)')
    args = parser.parse_args()
    if (args.file is None) == (args.to is None) or bool(args.file) != bool(args.network):
        parser.error('give either FILE.pth and --network, or --to FILE.pth')
    if args.to:
        export_weights(args.workdir, args.to, args.member, args.checkpoint)
        return
    options = {name: getattr(args, name) for name in ('stem', 'shortcut') if getattr(args, name)}
    import_weights(args.file, args.workdir, args.network, args.dataset,
                   args.image_size, args.optimizer, **options)  # fmt: skip


if __name__ == '__main__':
    run_command(main)
