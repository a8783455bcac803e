"""Name what is on images: python -m jaxcifar.predict --workdir DIR IMAGE…

Prints each image's most probable classes with the mean of the members' probabilities, or of a fused run
with its prediction.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from jaxcifar.data.datasets import is_streamed
from jaxcifar.data.vision import read_image, reason
from jaxcifar.engine.couplings import has_head
from jaxcifar.machine.command import command_parser, run_command
from jaxcifar.machine.errors import UserError
from jaxcifar.runs.evaluation import Evaluation
from jaxcifar.runs.metrics import log_probabilities, mean_of_probabilities
from jaxcifar.runs.trained import open_trained


def predict(
    path: Path, images: list[Path], checkpoint: str | None = None, dataset: str | None = None
) -> tuple[np.ndarray, list[str]]:
    """Return probabilities [N,C] of the image files, and the C class names.

    path, checkpoint, dataset: as for `open_trained`. The files are cut and scaled as those of the run's
    evaluation, or to their centred square. The images of a run need not be there.
    """
    trained = open_trained(path, checkpoint, dataset)
    # The session without images: only what the networks are is needed.
    session = trained.session
    restored = trained.restore(session.population)
    reader = _reader(session.config.dataset, session.dataset.image_size)
    # All files are read first, so that a damaged one is named before anything compiles.
    pixels = np.stack([_read(path, reader) for path in images])
    logits = Evaluation(session).predict(restored.weights, pixels)
    log_p = log_probabilities(restored.calibrate(logits))
    # The fused prediction is the last output of a run that has one.
    chosen = log_p[-1] if has_head(session.config) else mean_of_probabilities(log_p)
    return np.exp(chosen), list(session.dataset.classes)


def _reader(dataset: str, size: int) -> Callable:
    """Return path -> uint8 [size,size,3], as the data set called `dataset` reads its files."""
    if not is_streamed(dataset):
        return partial(read_image, size=size)

    # Only image files need the stream's transforms, whose packages take long to import.
    from jaxcifar.data import stream

    return partial(stream.read, transform=stream.eval_transform(size))


def _read(path: Path, read: Callable) -> np.ndarray:
    try:
        return read(path)
    except Exception as error:  # Pillow's decoders raise nearly anything
        raise UserError(f'{path} is not a readable image: {reason(error)}') from None


def main():
    """Run the command line."""
    parser = command_parser('jaxcifar.predict', __doc__)
    where = 'of a run or of jaxcifar.export, or a file of PyTorch weights'
    parser.add_argument('--workdir', type=Path, required=True, help=where)
    parser.add_argument('--checkpoint', help='best | last | STEP (best, where there is one)')
    here = 'of PyTorch weights: the data set whose classes they tell apart, as --config.dataset'
    parser.add_argument('--dataset', help=here)
    parser.add_argument('--top', type=int, default=3, help='how many classes of each image (3)')
    parser.add_argument('images', nargs='+', type=Path, metavar='IMAGE')
    args = parser.parse_args()
    probabilities, classes = predict(args.workdir, args.images, args.checkpoint, args.dataset)
    width = max(len(str(path)) for path in args.images)
    for path, row in zip(args.images, probabilities):
        best = np.argsort(-row)[: args.top]
        print(f'{path!s:{width}}  ' + '  '.join(f'{classes[i]} {row[i]:.1%}' for i in best))


if __name__ == '__main__':
    run_command(main)
