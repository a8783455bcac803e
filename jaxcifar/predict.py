"""Name what is on images: python -m jaxcifar.predict --workdir DIR IMAGE…

Prints each image's most probable classes with the mean of the members' probabilities, or of a fused run
with its prediction.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from jaxcifar.config import saved
from jaxcifar.data.datasets import is_streamed
from jaxcifar.data.vision import read_image, reason
from jaxcifar.engine.couplings import has_head
from jaxcifar.engine.population import Population, make_mesh
from jaxcifar.export.classifier import load
from jaxcifar.formats.portable import is_portable, read
from jaxcifar.machine.command import command_parser, run_command
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json
from jaxcifar.runs.evaluation import make_eval_step, predict_logits
from jaxcifar.runs.metrics import log_probabilities, mean_of_probabilities
from jaxcifar.runs.weights import load_weights


def predict(workdir: Path, images: list[Path], which: str | None = None) -> tuple[np.ndarray, list[str]]:
    """Probabilities [N,C] of the image files, and the C class names; of an export too.

    The files are cut and scaled as those of the run's evaluation, or to their centred square. Needs the
    workdir and not the dataset.
    """
    if is_portable(workdir):
        if which:
            raise UserError(f'{workdir} holds one set of weights: leave out --checkpoint {which}')
        model, dataset_name = load(workdir), read(workdir)[0].about['config']['dataset']
        reader = _reader(dataset_name, model.image_size)
        return model(np.stack([_read(path, reader) for path in images])), list(model.classes)
    config = saved.load(workdir / 'config.json')
    description = read_json(workdir / 'dataset.json')
    if description is None:
        raise UserError(f'{workdir} has no dataset.json, which a run writes when it starts')
    config.devices = 1
    dataset = SimpleNamespace(**description)
    mesh = make_mesh(config)
    population = Population(config, len(dataset.classes), dataset.image_size, mesh)
    weights, _ = load_weights(config, population, workdir, which)
    reader = _reader(config.dataset, dataset.image_size)
    pixels = np.stack([_read(path, reader) for path in images])
    step = make_eval_step(config, population, dataset)
    logits = predict_logits(step, weights, pixels, config, mesh)
    log_p = log_probabilities(logits)
    return np.exp(log_p[-1] if has_head(config) else mean_of_probabilities(log_p)), dataset.classes


def _reader(dataset: str, size: int) -> Callable:
    """path -> uint8 [size,size,3]."""
    if not is_streamed(dataset):
        return partial(read_image, size=size)

    from jaxcifar.data import stream

    return partial(stream.read, transform=stream.eval_transform(size))


def _read(path: Path, read: Callable) -> np.ndarray:
    try:
        return read(path)
    except Exception as error:  # Pillow's decoders raise nearly anything
        raise UserError(f'{path} is not a readable image: {reason(error)}') from None


def main():
    """The command line."""
    parser = command_parser('jaxcifar.predict', __doc__)
    parser.add_argument('--workdir', type=Path, required=True, help='of a run or of jaxcifar.export')
    parser.add_argument('--checkpoint', help='best | last | STEP (best, where there is one)')
    parser.add_argument('--top', type=int, default=3, help='how many classes of each image (3)')
    parser.add_argument('images', nargs='+', type=Path, metavar='IMAGE')
    args = parser.parse_args()
    probabilities, classes = predict(args.workdir, args.images, args.checkpoint)
    width = max(len(str(path)) for path in args.images)
    for path, row in zip(args.images, probabilities):
        best = np.argsort(-row)[: args.top]
        print(f'{path!s:{width}}  ' + '  '.join(f'{classes[i]} {row[i]:.1%}' for i in best))


if __name__ == '__main__':
    run_command(main)
