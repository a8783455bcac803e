"""Files of workdirs, exports and weights that are damaged, as every command finds them."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

import jaxcifar
from experiments.faults.damages import damages
from experiments.faults.outcomes import Case
from jaxcifar.calibrate import calibrate
from jaxcifar.config.fields import get_config
from jaxcifar.evaluate import evaluate, improve_on
from jaxcifar.export.write import export
from jaxcifar.formats import portable
from jaxcifar.loop import train
from jaxcifar.predict import predict
from jaxcifar.reject import reject
from jaxcifar.report import figures
from jaxcifar.report.tables import write
from jaxcifar.runs.trained import open_trained
from jaxcifar.torch_weights import export_weights

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
RUNS = 'run', 'tail'
SAFE = '0_tiny.safetensors'
TAIL = {'split': 'long_tail', 'data.validation': 'val_lt', 'long_tail.imbalance': 5.0}
COMMANDS: dict[str, Callable[[Path, Path], Any]] = {
    'load': lambda folder, path: jaxcifar.load(path)(IMAGE).round(4).tolist(),
    'last': lambda folder, path: [
        m['params']['fc']['bias'].tolist() for m in open_trained(path, 'last').members()
    ],
    'evaluate': lambda folder, path: scores(
        evaluate(path, dataset=None if path.name in RUNS else data_of(folder))
    ),
    'tail evaluate': lambda folder, path: scores(evaluate(folder / 'tail')),
    'calibrated': lambda folder, path: scores(evaluate(path, 'calibrated')),
    'predict': lambda folder, path: predict(path, [folder / 'image.png']).probabilities.round(4).tolist(),
    'export': lambda folder, path: (
        jaxcifar.load(export(path, 'safetensors', folder / 'again') / SAFE)(IMAGE).round(4).tolist()
    ),
    'release': lambda folder, path: (
        jaxcifar.load(export(path, 'release', folder / 'again'))(IMAGE).round(4).tolist()
    ),
    'baseline': lambda folder, path: improve_on([{'name': '0_tiny', 'accuracy': 0.5}], path),
    'torch_weights': lambda folder, path: export_weights(path, folder / 'again.pth'),
    'train': lambda folder, path: train(
        configured(folder, epochs=2, **(TAIL if path.name == 'tail' else {})), path
    )['mean'],
    'take over': lambda folder, path: train(
        configured(folder, epochs=2, resume_from=str(path)), folder / 'new'
    )['mean'],
    'begin from': lambda folder, path: train(configured(folder, init_from=str(path)), folder / 'new')['mean'],
    'report': lambda folder, path: report(path, folder / 'report'),
    'calibrate': lambda folder, path: calibrate(path)['weights']['best']['mean'],
    'reject': lambda folder, path: reject(path, samples=10)['parts'],
}
# A file, and the commands that read it.
FILES = {
    'run/config.json': (
        'load',
        'evaluate',
        'predict',
        'export',
        'torch_weights',
        'train',
        'take over',
        'report',
    ),
    'run/dataset.json': ('load', 'evaluate', 'export', 'train', 'take over'),
    'tail/dataset.json': ('calibrate', 'calibrated'),
    'run/results.json': ('baseline', 'export', 'release', 'train', 'report'),
    'run/run.json': ('export', 'train', 'report'),
    'run/metrics.csv': ('train', 'take over', 'report', 'release'),
    'run/timing.csv': ('train', 'report'),
    'run/networks.txt': ('train',),
    'run/best/0_tiny/*.npz': ('load', 'evaluate', 'train', 'take over', 'begin from'),
    'run/checkpoints/*/meta/metadata': ('last', 'train', 'take over'),
    'run/checkpoints/*/sha256.json': ('last', 'train'),
    'run/checkpoints/*/_CHECKPOINT_METADATA': ('last', 'train'),
    'run/checkpoints/*/state/_METADATA': ('last', 'train'),
    'run/checkpoints/*/state/manifest.ocdbt': ('last', 'train'),
    'release/card.json': ('load', 'evaluate'),
    'release/config.json': ('load', 'evaluate'),
    'release/SHA256SUMS': ('load',),
    f'release/{SAFE}': ('load', 'evaluate', 'predict', 'begin from'),
    'packed/*.packed': ('load', 'evaluate', 'predict', 'begin from'),
    'weights.pth': ('evaluate', 'begin from'),
    'image.png': ('predict',),
    'tail/calibration.json': ('reject', 'report', 'train', 'calibrated'),
    'tail/rejection.json': ('report',),
    'tail/calibrated/0_tiny/*.npz': ('calibrated',),
    'tail/outputs/logits/*_if5/0_tiny/test.npy': ('reject',),
    'tail/outputs/logits/*_if5/0_tiny/test.npz': ('reject',),
    'data/splits/*/manifest.json': ('tail evaluate',),
    'data/splits/*/train.json': ('tail evaluate',),
}
# Only these shares of the damages are tried with slow commands: a training takes a second.
SHARES = {'train': 0.05, 'take over': 0.05, 'begin from': 0.05, 'report': 0.1}
NO_SUM = 'numbers or words of a file that has no sum, as it shows them'
SHOWN = ('report', 'baseline', 'release', 'export')  # commands that show what such files say


def report(path: Path, out: Path) -> str:
    """Return the Markdown of a report, whose pictures are small: nobody looks at them."""
    with patch.object(figures, 'DPI', 20):
        return write([path], out)[1].read_text()


def scores(found: dict) -> str:
    """Return what an evaluation found, without where."""
    return json.dumps({**found, 'workdir': ''})


def data_of(folder: Path) -> str:
    """Return the name of the data set in a folder that `build` made."""
    return f'npz:{folder}/own.npz'


def configured(folder: Path, **fields):
    """Return the config of a run of a second."""
    c = get_config()
    c.update_from_flattened_dict(
        {
            'dataset': data_of(folder),
            'network': 'tiny',
            'devices': 1,
            'epochs': 1,
            'batch_size': 40,
            'augment': 'flip',
            'view': 'ternary',
            'ternary.layers': '.*',
            'data.validation_size': 16,
            'optimizer.lr': 0.05,
            'eval.batch_size': 20,
            'log.tensorboard': False,
            'log.pictures': False,
            'data.root': str(folder / 'data'),
            **fields,
        }
    )
    return c


def build(folder: Path):
    """Make two runs of a tiny network, one of a long tail, its exports, its torch weights, and an image."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (400, 8, 8, 3), np.uint8), np.arange(400) % 4
    np.savez(folder / 'own.npz', x_train=x[:240], y_train=y[:240], x_test=x[240:], y_test=y[240:])
    train(configured(folder), folder / 'run')
    train(configured(folder, **TAIL), folder / 'tail')
    reject(folder / 'tail', samples=10)
    for kind in 'release', 'packed':
        export(folder / 'run', kind, folder / kind)
    export_weights(folder / 'run', folder / 'weights.pth')
    Image.fromarray(IMAGE[0]).save(folder / 'image.png')


def cases(folder: Path, share: float = 1, commands: dict[str, tuple[str, ...]] = FILES) -> Iterator[Case]:
    """Yield every kind of damage of every file for every command that reads it, or a share of them.

    folder: has what `build` made; each case is tried on a copy.
    """
    draw, whole, copy = random.Random(0), {}, folder.parent / 'copy'
    for pattern, names in commands.items():
        file = min(folder.glob(pattern))
        place = file.relative_to(folder)
        for command in names:
            key = command, place.parts[0]
            if key not in whole:  # the answer for undamaged files, with which the others are compared
                whole[key] = _tried(folder, copy, place, command, lambda path: None)
            for name, damage in damages(file, share):
                if draw.random() < share * SHARES.get(command, 0.25) or name in ('gone', 'cut'):
                    yield Case(
                        f'{command} with {place} {name}',
                        partial(_tried, folder, copy, place, command, damage),
                        partial(_why, whole[key], command, file),
                    )


def _tried(folder: Path, copy: Path, place: Path, command: str, damage: Callable[[Path], Any]) -> Any:
    """Return what a command answers after the damage to a file of a copy."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    for config in copy.glob('*/config.json'):  # which names the folder of the data
        config.write_text(config.read_text().replace(str(folder), str(copy)))
    damage(copy / place)
    if place.parts[0] == 'release' and place.name != portable.SUMS and (copy / place).is_file():
        portable.write_sums(copy / 'release')  # or the sums alone would reveal the damage
    top = copy / place.parts[0]
    return COMMANDS[command](copy, copy / 'packed' if place.name == 'image.png' else top)


def _why(whole: Any, command: str, file: Path, answer: Any) -> str:
    """Return why an answer without a line on stderr is right."""
    if str(answer) == str(whole):
        return 'the same answer as of the whole file'
    return NO_SUM if command in SHOWN and file.suffix in ('.json', '.csv') else ''
