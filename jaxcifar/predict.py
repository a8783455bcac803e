"""Classify images: python -m jaxcifar.predict RUN IMAGE…

Prints the most probable classes of each image, by the mean of the members' probabilities or, for a fused
run, by the fused prediction.
"""

from pathlib import Path

from jaxcifar.data.vision import ENDINGS
from jaxcifar.export.classifier import Classifier, choose
from jaxcifar.export.predictions import Predictions
from jaxcifar.machine.command import a_path, command_line_for, command_parser, run_command
from jaxcifar.machine.errors import UserError
from jaxcifar.runs import shipped_networks
from jaxcifar.runs.trained import TrainedExport, open_trained


def predict(
    path: Path,
    images: list[Path],
    checkpoint: str | None = None,
    dataset: str | None = None,
    member: str | None = None,
    top: int = 3,
) -> Predictions:
    """Return the predictions of the networks at `path`, as `jaxcifar.load(path).predict(images)` does.

    path, checkpoint, dataset: as for `open_trained`. The images that a run was trained on are not needed.
    """
    if path.suffix.lower() in ENDINGS:
        raise UserError(
            f'expected a run before the images, got {path}: {command_line_for("predict", "RUN", path)}'
        )
    trained = open_trained(path, checkpoint, dataset)
    if dataset and isinstance(trained, TrainedExport):
        raise UserError(f'--dataset is not for exports: {path} names its classes')
    return Classifier(*choose(trained, member)).predict(images, top)


def main():
    """Run the command line."""
    where = 'folder of a run or of jaxcifar.export, a file of PyTorch weights, or '
    parser = command_parser('jaxcifar.predict', __doc__, where + shipped_networks.names(), '--model')
    parser.add_argument('--checkpoint', help='best | last | STEP (best, where there is one)')
    here = 'for PyTorch weights: the data set they were trained on, as --config.dataset'
    parser.add_argument('--dataset', help=here)
    parser.add_argument('--member', help='one of several, by its name or its id (all)')
    parser.add_argument('--top', type=int, default=3, help='how many classes to print per image (3)')
    parser.add_argument('images', nargs='+', type=a_path, metavar='IMAGE')
    args = parser.parse_args()
    print(predict(args.workdir, args.images, args.checkpoint, args.dataset, args.member, args.top))


if __name__ == '__main__':
    run_command(main)
