"""Convert PyTorch weights to workdirs, and back.

    python -m jaxcifar.torch_weights FILE.pth --workdir DIR
    python -m jaxcifar.torch_weights --workdir DIR --to FILE.pth

The first makes a workdir whose checkpoint of step 0 holds the file's weights. You can evaluate it, or
continue training with --config.resume_from=DIR. The second writes a run's weights as a state_dict. Names
and shapes are torchvision's; the layers of `jaxcifar.models` have the same names, with `_` for `.`.
"""

from pathlib import Path

from jaxcifar.config.members import answers_to, member_names
from jaxcifar.engine.state import Weights, init_state
from jaxcifar.formats.state_dict import to_torch
from jaxcifar.machine import process
from jaxcifar.machine.command import a_path, command_parser, run_command
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import write_atomically
from jaxcifar.runs import workdirs
from jaxcifar.runs.checkpoint import Checkpoints
from jaxcifar.runs.logs import Logger
from jaxcifar.runs.selection import Selection
from jaxcifar.runs.session import Session
from jaxcifar.runs.trained import TrainedFile, open_trained


def import_weights(path: Path, workdir: Path, network: str | None = None, dataset: str | None = None,
                   image_size: int | None = None, optimizer: str = 'sgd', **options):  # fmt: skip
    """Make a workdir whose checkpoint of step 0 holds the weights of the file `path`.

    network: by default the one, with its options, that has these tensors.
    dataset: by default the CIFAR with as many classes. image_size: as data.image_size.
    optimizer: of the training that will continue from the checkpoint, which holds its fresh state.
    options: of the network, as for `build`.
    """
    changes = {'optimizer.name': optimizer, 'data.image_size': image_size}
    trained = TrainedFile(path, dataset, network, options, changes)
    # Any machine has one device; a run that goes on from here may take more.
    trained.config.devices = 1
    session = trained.with_images()
    weights = trained.restore(session.population).weights
    # Locked first, or two imports could both find the workdir empty.
    with process.locked(workdir):
        if (workdir / workdirs.CONFIG).exists():
            raise UserError(f'{workdir} holds a run: choose a new --workdir')
        _write_workdir(workdir, session, weights)


def _write_workdir(workdir: Path, session: Session, weights: Weights):
    """Write everything that a run of zero steps would have written, the config last."""
    config = session.config
    # A fresh optimiser's state with the file's weights.
    state = init_state(config, session.population).replace(params=weights.params, stats=weights.stats)
    # Empty tables with their header, as a run writes them when it starts.
    logger = Logger(config, workdir, member_names(config), 0, 0, 0)
    meta = {
        'step': 0,
        'pending': False,
        'selection': Selection.start(1).to_json(),
        'metrics_length': logger.flush(),
    }
    logger.close()
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    checkpoints.save(0, state, meta)
    # The config comes last: a folder without it is not taken for a run.
    checkpoints.wait()
    checkpoints.close()
    workdirs.record(workdir, config, session.dataset, weights.params)


def export_weights(workdir: Path, path: Path, member: str | int | None = None, checkpoint: str | None = None):
    """Write one member's weights as a state_dict; `checkpoint` is best, last or a step, as in evaluation.

    The weights are those that the network uses: for a ternary network, not the floats behind its kernels.
    """
    # torch takes seconds to import, and only this direction writes with it.
    import torch

    trained = open_trained(workdir, checkpoint)
    if trained.calibrated:
        raise UserError('a state_dict has no temperature: use jaxcifar.export, or weights before calibration')
    # A state_dict holds one network, so that several members need a choice.
    names = member_names(trained.config)
    chosen = [k for k, name in enumerate(names) if member is None or answers_to(name, member)]
    if len(chosen) != 1:
        ids = list(trained.config.member_ids)
        raise UserError(f'{workdir} has {", ".join(names)}: choose by --member, one of {ids}')
    state = to_torch(trained.members()[chosen[0]])
    write_atomically(path, lambda file: torch.save(state, file))


def main():
    """Run the command line."""
    parser = command_parser('jaxcifar.torch_weights', __doc__)
    parser.add_argument('--workdir', type=a_path, required=True)
    into = parser.add_argument_group('into a workdir')
    into.add_argument('file', nargs='?', type=a_path, metavar='FILE.pth', help='what torch.save wrote')
    into.add_argument('--network', help='a name of jaxcifar.models (the one that fits the weights)')
    into.add_argument('--dataset', help='by default the CIFAR with as many classes as the weights')
    into.add_argument('--image_size', type=int, help='of digits and image files (224 of imagenet, or 32)')
    into.add_argument('--stem', help='cifar | imagenet, where the network has the choice (cifar)')
    into.add_argument('--shortcut', help='A | B, where the network has the choice')
    into.add_argument('--optimizer', default='sgd', help='optimizer of the training to come (sgd)')
    out = parser.add_argument_group('out of a workdir')
    out.add_argument('--to', type=a_path, metavar='FILE.pth', help='the file to write')
    out.add_argument('--member', metavar='K', help='which of several, by its id or name')
    out.add_argument('--checkpoint', help='best | last | STEP (best, where there is one)')
    args = parser.parse_args()
    if (args.file is None) == (args.to is None):
        parser.error('give either FILE.pth, or --to FILE.pth')
    other = into if args.to else out
    for action in other._group_actions:
        if getattr(args, action.dest) != action.default:
            parser.error(f'{action.option_strings[0]} is not for {"--to" if args.to else "FILE.pth"}')
    if args.to:
        export_weights(args.workdir, args.to, args.member, args.checkpoint)
        return
    options = {name: getattr(args, name) for name in ('stem', 'shortcut') if getattr(args, name)}
    import_weights(args.file, args.workdir, args.network, args.dataset,
                   args.image_size, args.optimizer, **options)  # fmt: skip


if __name__ == '__main__':
    run_command(main)
