"""Draw what the network sees on a contact sheet: python -m jaxcifar.preview --config FILE[:ARGUMENT]

Writes preview.png into --workdir (the current folder). Its first row is the first images of a run,
the others are the same images as augmented in its first epochs, with the labels they are trained on.
"""

import sys

import numpy as np
from ml_collections import ConfigDict

from jaxcifar.config.command_line import parse_about
from jaxcifar.data.long_tail import keeping_nothing
from jaxcifar.machine.command import asked_for_help, run_command
from jaxcifar.machine.files import write_where_asked
from jaxcifar.runs.first_batch import read_first_batch
from jaxcifar.runs.resolve import finalize
from jaxcifar.runs.session import load_images, prepare

COLUMNS, EPOCHS = 10, 4


def contact_sheet(config: ConfigDict) -> bytes:
    """Return the PNG for a resolved config; with members' own batches, the first member's."""
    # matplotlib is slow to import, and only this function needs it.
    from jaxcifar.report.figures import png
    from jaxcifar.report.predictions import draw_sheet

    with keeping_nothing(config) as apart:
        plain, seen = read_first_batch(prepare(apart, load_images(config)), range(EPOCHS))
    # The first row shows images as they are, the others as each epoch sees them.
    columns = min(COLUMNS, len(plain.images))
    images = np.concatenate([shown.images[:columns] for shown in (plain, *seen)])
    titles = [title for shown in (plain, *seen) for title in shown.titles[:columns]]
    return png(lambda: draw_sheet(images, titles, columns, f'augment = {config.augment}'))


def main():
    """Run the command line."""
    if asked_for_help(__doc__):
        return
    config, workdir = parse_about(sys.argv, '.')
    print(write_where_asked(workdir / 'preview.png', contact_sheet(finalize(config))))


if __name__ == '__main__':
    run_command(main)
