"""Draw the learning rate before training: python -m jaxcifar.schedule --config CONFIG[:ARGUMENT]

Prints the rate at each quarter of the run, and writes schedule.png into --workdir (the current folder).
Members with their own rates have a line each, and so do the parts of a fusion. Accepts the same arguments
as training: --config.FIELD=VALUE, or in short jaxcifar schedule CONFIG --FIELD VALUE. Only reads labels.
"""

import copy
import sys
import tempfile

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcifar.config.command_line import parse_about
from jaxcifar.config.members import member_names
from jaxcifar.data.cifar import CIFAR
from jaxcifar.data.datasets import Dataset, load_dataset
from jaxcifar.data.loader import Order
from jaxcifar.data.splits import make_split
from jaxcifar.engine.couplings import has_head, make_learning_rates
from jaxcifar.engine.head import PARTS
from jaxcifar.machine.command import asked_for_help, run_command
from jaxcifar.machine.files import write_where_asked
from jaxcifar.machine.text import print_table
from jaxcifar.runs.resolve import finalize

POINTS = 4000  # per line: more than a picture has pixels
SHARES = ('start', '25 %', '50 %', '75 %', 'end')  # points of the run that the table shows
MOST_LINES = 6  # that the table shows


class Schedule:
    """Hold the learning rates of a resolved config over all of its steps.

    Attributes:
      epoch_steps, total: the steps of an epoch and of the run.
      lines: {name: its column of `rates`}: one line for all members whose rates are the same.
    """

    def __init__(self, config: ConfigDict):
        """Count the steps as on one device: the shape of a last, shorter batch may differ on several."""
        self.config, dataset = config, labels_only(config)
        # A long tail writes index files. Those made without pixels must not be mistaken for the data set's.
        with tempfile.TemporaryDirectory() as root:
            apart = copy.deepcopy(config)
            apart.data.root = root
            split = make_split(dataset, apart)
        order = Order(config, split.train, config.optimizer.accumulate)
        self.epoch_steps = order.steps_per_epoch
        self.total = config.epochs * self.epoch_steps
        self._rates = jax.jit(jax.vmap(make_learning_rates(config, self.epoch_steps)))
        names = [*member_names(config), *(PARTS if has_head(config) else ())]
        rates = self.rates(self.steps())
        same: dict[bytes, list[int]] = {}
        for column in range(len(names)):
            same.setdefault(rates[:, column].tobytes(), []).append(column)
        self.lines = {self._name(names, columns): columns[0] for columns in same.values()}

    def _name(self, names: list[str], columns: list[int]) -> str:
        """Return the name of a line: all members, or the members that share it."""
        if columns == [*range(self.config.members)] and len(columns) > 1:
            return f'all {len(columns)} members'
        first, others = names[columns[0]], len(columns) - 1
        if others == 1:
            return f'{first} and {names[columns[1]]}'
        return f'{first} and {others} others' if others else first

    def steps(self) -> np.ndarray:
        """Return the steps at which the lines are drawn."""
        return np.unique(np.linspace(0, self.total - 1, min(self.total, POINTS)).astype(int))

    def rates(self, steps) -> np.ndarray:
        """Return the learning rates of the members, and of a head's parts, at steps [S]: [S,K] or [S,K+2]."""
        return np.asarray(self._rates(np.asarray(steps)))

    def table(self) -> list[list[str]]:
        """Return the headings of what is printed, and a row for each quarter of the run."""
        shown = list(self.lines)[:MOST_LINES]
        steps = np.linspace(0, self.total - 1, len(SHARES)).astype(int)
        rates = self.rates(steps)[:, [self.lines[name] for name in shown]]
        rows = [
            [share, f'{step / self.epoch_steps:.4g}', f'{step:,}', *(f'{rate:.4g}' for rate in row)]
            for share, step, row in zip(SHARES, steps, rates)
        ]
        return [['', 'epoch', 'step', *shown], *rows]

    def notes(self) -> list[str]:
        """Return notes on what else determines how far a parameter moves."""
        config, notes = self.config, []
        if len(self.lines) > MOST_LINES:
            notes.append(f'the table shows {MOST_LINES} of {len(self.lines)} lines, the picture all of them')
        if config.optimizer.rates:
            notes.append(f'multiplied by parameter path: optimizer.rates={config.optimizer.rates}')
        if config.optimizer.name == 'muon' and config.optimizer.rest != 1:
            notes.append(f'all but convolutions: times optimizer.rest={config.optimizer.rest:g}')
        if has_head(config) and config.fusion.freeze_epochs:
            notes.append(f'members keep their weights for the first {config.fusion.freeze_epochs} epochs')
        return notes

    def draw(self):
        """Return the matplotlib figure: a line for each of `lines` over the epochs."""
        # matplotlib is slow to import, and only this function needs it.
        from matplotlib.figure import Figure

        from jaxcifar.report.figures import add_legend, colours, first_of

        figure = Figure((8, 3.4), layout='constrained')
        axis = figure.subplots()
        steps = self.steps()
        rates, count = self.rates(steps), len(self.lines)
        for (name, column), colour in zip(self.lines.items(), colours(count)):
            axis.plot(steps / self.epoch_steps, rates[:, column], color=colour, lw=1.7, label=name)
        axis.set_title(f'learning rate, schedule.name={self.config.schedule.name}', loc='left')
        axis.set_xlabel(f'epoch ({self.epoch_steps:,} steps each)')
        axis.set_ylim(bottom=0)
        if count > 1:
            add_legend(figure, first_of(list(axis.lines)), loc='outside right upper', fontsize=8)
        return figure


def labels_only(config: ConfigDict) -> Dataset:
    """Return the config's data set as far as its steps depend on it: labels, but no pixels where possible.

    CIFAR need not be downloaded, and a folder's files are listed but not read.
    """
    name = config.dataset
    if name not in CIFAR:
        # The files and parts are the same. Unreadable files are noticed only by training.
        listed = name.replace('folder:', 'stream:', 1) if name.startswith('folder:') else name
        return load_dataset(listed, config.data.root, config.data.image_size)
    names, mean, std = CIFAR[name]
    classes = tuple(names.split())
    # Only the shape of the pixels matters here, so these arrays take no memory.
    x_train, x_test = (np.broadcast_to(np.uint8(0), (n, 32, 32, 3)) for n in (50_000, 10_000))
    y_train, y_test = (np.arange(len(x)) % len(classes) for x in (x_train, x_test))
    return Dataset(name, x_train, y_train, x_test, y_test, classes, mean, std)


def main():
    """Run the command line."""
    if asked_for_help(__doc__):
        return
    config, workdir = parse_about(sys.argv, '.')
    schedule = Schedule(finalize(config))
    epochs = f'{config.epochs:,} epoch{"s" * (config.epochs > 1)}'
    print(f'{epochs} of {schedule.epoch_steps:,} steps\n')
    headings, *rows = schedule.table()
    print_table(headings, rows)
    # Only now: matplotlib takes a while, and the table need not wait for it.
    from jaxcifar.report.figures import png

    path = write_where_asked(workdir / 'schedule.png', png(schedule.draw))
    print('', *schedule.notes(), path, sep='\n')


if __name__ == '__main__':
    run_command(main)
