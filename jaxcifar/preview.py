"""Draw what the network sees on a contact sheet: python -m jaxcifar.preview --config FILE[:ARGUMENT]

Writes preview.png into --workdir (the current folder). Its first row is the first images of a run,
the others are the same images as augmented in its first epochs, with the labels they are trained on.
"""

import contextlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxcifar.augment.pipeline import has_own_batches
from jaxcifar.config.command_line import parse
from jaxcifar.config.short import long_form
from jaxcifar.data.loader import batches
from jaxcifar.engine.step import TrainStep
from jaxcifar.machine.command import asked_for_help, run_command
from jaxcifar.machine.compiler import compiler_options
from jaxcifar.machine.errors import UserError
from jaxcifar.runs.resolve import finalize
from jaxcifar.runs.session import prepare

COLUMNS, EPOCHS = 10, 4


def contact_sheet(config: ConfigDict):
    """Draw the matplotlib figure for a resolved config; with members' own batches, the first member's."""
    # matplotlib is slow to import, and only this function needs it.
    from matplotlib.figure import Figure

    # The first batch, seen by the very step that training takes.
    session = prepare(config)
    dataset = session.dataset
    step = TrainStep(config, session.population, dataset, session.epoch_steps)
    see = jax.jit(step.see, compiler_options=compiler_options())
    with contextlib.closing(batches(config, dataset, session.order, session.mesh, range(1))) as source:
        placed = next(source)
    own = has_own_batches(placed['image'])
    batch = of_first(jax.device_get(placed), own)
    # The first row shows images as they are, the others as each epoch sees them.
    columns = min(COLUMNS, len(batch['label']))
    figure = Figure((1.4 * columns, 1.6 * (EPOCHS + 1)))
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.93, wspace=0.06, hspace=0.2)
    figure.suptitle(f'augment = {config.augment}', fontsize=9)
    axes = figure.subplots(EPOCHS + 1, columns, squeeze=False)
    names = [[dataset.classes[y] for y in batch['label'][:columns]]]
    rows = [batch['image'][:columns]]
    for epoch in range(EPOCHS):
        images, targets = jax.device_get(see(placed, jnp.int32(epoch * session.epoch_steps)))
        # Members that share a batch may still see it augmented each for itself.
        images = of_first(images, has_own_batches(images))
        targets = of_first(targets, targets.first.ndim == 2)
        rows.append(visible(images[:columns], dataset.mean, dataset.std))
        names.append([label(targets, i, dataset.classes) for i in range(columns)])
    for row, pictures, titles in zip(axes, rows, names):
        for axis, picture, title in zip(row, pictures, titles):
            axis.imshow(picture)
            axis.set_title(title, fontsize=6, pad=2)
            axis.set_axis_off()
    return figure


def of_first(tree, own: bool):
    """Return the first member's part of arrays [K,B,…] if members have their own, or all of [B,…]."""
    return jax.tree.map(lambda x: x[0], tree) if own else tree


def visible(images: np.ndarray, mean, std) -> np.ndarray:
    """Turn normalised images back to uint8."""
    # Clipped: rounding and colour operations may leave the range of bytes.
    return np.clip(np.rint(255 * (images * np.array(std) + np.array(mean))), 0, 255).astype(np.uint8)


def label(targets, i: int, classes) -> str:
    """Return 'cat', or where two images are mixed 'cat .70 / ship .30'."""
    first = classes[targets.first[i]]
    if targets.second is None or targets.weight[i] == 1:
        return first
    second, share = classes[targets.second[i]], float(targets.weight[i])
    return f'{first} {share:.2f} / {second} {1 - share:.2f}'


def main():
    """Run the command line."""
    if asked_for_help(__doc__):
        return
    config, workdir = parse([sys.argv[0], '--workdir=.', *long_form(sys.argv[1:], '.')])
    path = workdir / 'preview.png'
    figure = contact_sheet(finalize(config))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from error
    print(path)


if __name__ == '__main__':
    run_command(main)
