"""PyTorch weights to and from workdirs.

    python -m jaxcifar.torch_weights FILE.pth --workdir DIR
    python -m jaxcifar.torch_weights --workdir DIR --to FILE.pth

The first makes a workdir whose checkpoint of step 0 holds the file's weights, to be evaluated, or
trained on from by --config.resume_from=DIR. The second writes a run's weights as a state_dict. Names
and shapes are torchvision's, which the layers of `jaxcifar.models` carry with `_` for `.`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcifar.config.fields import get_config
from jaxcifar.config.members import member_names
from jaxcifar.data.datasets import load_dataset
from jaxcifar.engine.population import Population, make_mesh
from jaxcifar.engine.state import init_state
from jaxcifar.formats import foreign
from jaxcifar.formats.state_dict import to_torch
from jaxcifar.machine import process
from jaxcifar.machine.command import command_parser, run_command
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import write_atomically
from jaxcifar.models import build
from jaxcifar.runs import resolve, workdirs
from jaxcifar.runs.checkpoint import Checkpoints
from jaxcifar.runs.logs import Logger
from jaxcifar.runs.selection import Selection
from jaxcifar.runs.weights import load_trained

BY_CLASSES = {10: 'cifar10', 100: 'cifar100'}


def import_weights(path: Path, workdir: Path, network: str | None = None, dataset: str | None = None,
                   image_size: int | None = None, optimizer: str = 'sgd', **options):  # fmt: skip
    """Make a workdir whose checkpoint of step 0 holds the weights of the file `path`.

    network: by default the one whose tensors these are, and its options.
    dataset: by default the CIFAR of as many classes. image_size: as data.image_size.
    optimizer: whose fresh state the checkpoint has: that of the training that goes on from it.
    options: of the network, as for `build`.
    """
    weights = foreign.read(path)
    if network is None:
        network, options = weights.network()
    classes = weights.classes() or 10
    variables = weights.fit(build(network, classes, **options).shapes(), network)
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


def _make_config(network: str, dataset: str, image_size, optimizer: str, options: dict) -> ConfigDict:
    config = get_config()
    config.network, config.dataset, config.optimizer.name = network, dataset, optimizer
    config.model.update(options)
    config.data.image_size, config.devices = image_size, 1
    config.data.validation = 'none'  # nothing was chosen: `last` is what evaluation takes
    config.log.tensorboard = False
    return resolve.finalize(config)


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
    parser = command_parser('jaxcifar.torch_weights', __doc__)
    parser.add_argument('--workdir', type=Path, required=True)
    into = parser.add_argument_group('into a workdir')
    into.add_argument('file', nargs='?', type=Path, metavar='FILE.pth', help='what torch.save wrote')
    into.add_argument('--network', help='a name of jaxcifar.models (the one that fits the weights)')
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
    if (args.file is None) == (args.to is None):
        parser.error('give either FILE.pth, or --to FILE.pth')
    if args.to:
        export_weights(args.workdir, args.to, args.member, args.checkpoint)
        return
    options = {name: getattr(args, name) for name in ('stem', 'shortcut') if getattr(args, name)}
    import_weights(args.file, args.workdir, args.network, args.dataset,
                   args.image_size, args.optimizer, **options)  # fmt: skip


if __name__ == '__main__':
    run_command(main)
