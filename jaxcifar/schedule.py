"""Draw the learning rate before training: python -m jaxcifar.schedule --config CONFIG[:ARGUMENT]

Prints the rate where it turns, and writes schedule.png into --workdir (the current folder). Members with
rates of their own have a line each, and so have the parts of a fusion's head. Takes what training takes:
--config.FIELD=VALUE, or in short jaxcifar schedule CONFIG --FIELD VALUE. No image is read, only labels are.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcifar.config.command_line import parse
from jaxcifar.config.members import member_names
from jaxcifar.config.short import long_form
from jaxcifar.data.cifar import CIFAR
from jaxcifar.data.datasets import Dataset, load_dataset
from jaxcifar.data.loader import Order
from jaxcifar.data.splits import make_split
from jaxcifar.engine.couplings import has_head, make_learning_rates
from jaxcifar.engine.head import PARTS
from jaxcifar.engine.schedules import last_restart
from jaxcifar.machine.command import asked_for_help, run_command
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.text import print_table
from jaxcifar.runs.resolve import finalize

POINTS = 4000  # of a line: more than a picture has pixels
MOST = 8  # turns that the table shows; a staircase may have hundreds


class Schedule:
    """Hold the learning rates of a resolved config over all of its steps.

    Attributes:
      epoch_steps, total: the steps of an epoch and of the run.
      lines: {name: its column of `rates`}: one line for all members whose rates are the same.
    """

    def __init__(self, config: ConfigDict):
        """Count the steps as on one device: the shape of a last, shorter batch may differ on several."""
        self.config, dataset = config, labels_only(config)
        order = Order(config, make_split(dataset, config).train, config.optimizer.accumulate)
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
        """Return the name of a line: of all members, or of those that it is of."""
        if columns == [*range(self.config.members)] and len(columns) > 1:
            return f'all {len(columns)} members'
        return ', '.join(names[column] for column in columns)

    def steps(self) -> np.ndarray:
        """Return the steps at which the lines are drawn."""
        return np.unique(np.linspace(0, self.total - 1, min(self.total, POINTS)).astype(int))

    def rates(self, steps) -> np.ndarray:
        """Return the learning rates of the members, and of a head's parts, at steps [S]: [S,K] or [S,K+2]."""
        return np.asarray(self._rates(np.asarray(steps)))

    def turns(self) -> list[tuple[str, int]]:
        """Return (what is there, its step) where a rate turns, or at the quarters of a smooth one."""
        config, n = self.config, self.epoch_steps
        kinds = {config.schedule.name, *([config.fusion.schedule] if has_head(config) else [])}
        found = [('start', 0), ('end', self.total - 1)]
        if config.schedule.warmup_steps:
            found.append(('warmed up', config.schedule.warmup_steps - 1))
        found += [(what, int(epoch * n)) for kind in sorted(kinds) for what, epoch in _turns(config, kind)]
        at: dict[int, list[str]] = {}
        for what, step in found:
            if step < self.total and what not in at.setdefault(step, []):
                at[step].append(what)
        return [(', '.join(at[step]), step) for step in sorted(at)]

    def table(self) -> list[list[str]]:
        """Return what is printed: a row for each turn, the first of them if there are many, and the end."""
        turns = self.turns()
        turns = turns if len(turns) <= MOST else [*turns[: MOST - 1], turns[-1]]
        columns = list(self.lines.values())
        rates = self.rates([step for _, step in turns])[:, columns]
        return [
            [what, f'{step / self.epoch_steps:.4g}', f'{step:,}', *(f'{rate:.4g}' for rate in row)]
            for (what, step), row in zip(turns, rates)
        ]

    def notes(self) -> list[str]:
        """Return what else decides how far a parameter moves."""
        config, notes = self.config, []
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

        from jaxcifar.report.figures import COLOURS, STYLES, add_legend

        figure = Figure((8, 3.4), layout='constrained')
        axis = figure.subplots()
        steps = self.steps()
        rates = self.rates(steps)
        for i, (name, column) in enumerate(self.lines.items()):
            colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
            axis.plot(steps / self.epoch_steps, rates[:, column], color=colour, ls=style, lw=1.7, label=name)
        axis.set_title(f'learning rate, schedule.name={self.config.schedule.name}', loc='left')
        axis.set_xlabel(f'epoch ({self.epoch_steps:,} steps each)')
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if len(self.lines) > 1:
            add_legend(figure, axis.lines, loc='outside right upper')
        return figure


def _turns(config: ConfigDict, kind: str) -> Iterator[tuple[str, float]]:
    """Yield (what, epoch) where a schedule of this name turns."""
    s, epochs = config.schedule, config.epochs
    if kind == 'multistep':
        yield from (('milestone', epoch) for epoch in s.milestones)
    elif kind == 'step':
        yield from (('step down', epoch) for epoch in range(s.step_size, epochs, s.step_size))
    elif kind == 'warm_restarts':
        end = last_restart(config, 0)[1]
        while end < epochs:
            yield 'restart', end
            end = last_restart(config, end)[1]
    elif kind != 'constant':
        yield from (('a quarter', epochs / 4), ('half', epochs / 2), ('three quarters', 3 * epochs / 4))


def labels_only(config: ConfigDict) -> Dataset:
    """Return the config's data set as far as its steps depend on it: labels, but no pixels where possible.

    CIFAR need not be there, and files of a folder are listed and not read.
    """
    name = config.dataset
    if name not in CIFAR:
        # The same files in the same parts; that some cannot be read is found out by training.
        listed = name.replace('folder:', 'stream:', 1) if name.startswith('folder:') else name
        return load_dataset(listed, config.data.root, config.data.image_size)
    names, mean, std = CIFAR[name]
    classes = tuple(names.split())
    # An array without memory of its own has the shape, which is all that is asked of pixels here.
    x_train, x_test = (np.broadcast_to(np.uint8(0), (n, 32, 32, 3)) for n in (50_000, 10_000))
    y_train, y_test = (np.arange(len(x)) % len(classes) for x in (x_train, x_test))
    return Dataset(name, x_train, y_train, x_test, y_test, classes, mean, std)


def main():
    """Run the command line."""
    if asked_for_help(__doc__):
        return
    words = [sys.argv[0], '--workdir=.', *long_form(sys.argv[1:], '.')]
    config, workdir = parse(words)
    schedule = Schedule(finalize(config))
    epochs = f'{config.epochs:,} epoch{"s" * (config.epochs > 1)}'
    print(f'{epochs} of {schedule.epoch_steps:,} steps\n')
    print_table(['', 'epoch', 'step', *schedule.lines], schedule.table())
    print('', *schedule.notes(), _write(schedule, workdir / 'schedule.png'), sep='\n')


def _write(schedule: Schedule, path: Path) -> Path:
    """Write the picture, and return its path."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        schedule.draw().savefig(path, dpi=120)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from error
    return path


if __name__ == '__main__':
    run_command(main)
