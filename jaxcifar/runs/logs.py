"""Write the logs of a run: metrics.csv, timing.csv, TensorBoard events and WandB.

metrics.csv holds nothing that depends on the clock, so that it can be compared byte for byte.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxcifar.config.saved import to_dict
from jaxcifar.engine.couplings import columns
from jaxcifar.machine import hosts
from jaxcifar.runs.console import WAITS
from jaxcifar.runs.events import BATCHES, RUN, Events, hyperparameters
from jaxcifar.runs.metrics import group_names
from jaxcifar.runs.progress import Progress
from jaxcifar.runs.session import Session
from jaxcifar.runs.tables import Table, take_up

METRICS = ('loss', 'accuracy', 'top5', 'ece', 'lr', 'best', 'patience')
COLUMNS = ('epoch', 'step', 'member', 'split', 'checkpoint', *METRICS)
ROW = set(COLUMNS[:5])  # the columns that identify a row
WAITED = [f'{what}_seconds' for what in WAITS]
TIMING = ('epoch', 'step', 'seconds', 'images_per_second', 'timestamp', *WAITED)


def metric_columns(config: ConfigDict, groups: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns of metrics.csv; `groups` are those of a long tail's classes."""
    return (*COLUMNS, *columns(config), *groups)


class Silence:
    """Stand in for `Logger` on the hosts that do not write."""

    def write(self, *_, **__):
        """Write nothing."""

    write_timing = write_pictures = close = write

    def flush(self) -> int:
        """Return 0, because only the first host knows the length."""
        return 0


def open_logger(session: Session, workdir: Path, progress: Progress):
    """Return a `Logger` on the first host, and `Silence` on the others."""
    if not hosts.is_first():
        return Silence()
    groups = group_names(session.split.class_counts)
    # An epoch that is pending is not logged yet.
    at = progress.step, progress.metrics_length, progress.epoch - progress.pending
    return Logger(session.config, workdir, session.outputs, *at, groups)


class Logger:
    """Write the tables and event files of a run whose members are `names`.

    `length` is the number of bytes of metrics.csv that the continued run had written at `step`, and `epoch`
    is the last epoch in them. `groups` are further columns.
    """

    def __init__(
        self, config: ConfigDict, workdir: Path, names: list[str], step: int, length: int, epoch: int,
        groups: tuple[str, ...] = (),
    ):  # fmt: skip
        self._names = names
        metrics, timing = workdir / 'metrics.csv', workdir / 'timing.csv'
        # Rows after the checkpoint will be written again, so they are removed here.
        take_up(metrics, ROW, length, step)
        # Time that was spent stays spent: rows of steps that are taken again are kept.
        take_up(timing, {'epoch', 'step', 'seconds'})
        self._metrics = Table(metrics, metric_columns(config, groups))
        self._timing = Table(timing, TIMING)
        self._events: Events | None = None
        if config.log.tensorboard:
            self._events = Events(workdir / 'tensorboard', epoch, step)
            for name, values in zip(names, hyperparameters(config)):
                self._events.write_hyperparameters(name, values)
        self._wandb = _wandb(config, workdir) if config.log.wandb != 'disabled' else None

    def write(self, epoch: float, step: int, split: str, row: dict[str, np.ndarray], checkpoint='last'):
        """Write {metric: [K]} as one line per member; TensorBoard and WandB get only the last weights'."""
        # The tables only format Python's own floats, which NumPy's float32 is not.
        values = {k: np.asarray(v).tolist() for k, v in row.items()}
        scalars: dict[str, float] = {}
        for i, name in enumerate(self._names):
            own = {k: v[i] for k, v in values.items()}
            self._metrics.write(
                epoch=epoch, step=step, member=name, split=split, checkpoint=checkpoint, **own
            )
            scalars |= {f'{k}/{split}/{name}': v for k, v in own.items()}
            # Curves show training: a point for the chosen weights would belong to an earlier step.
            if self._events is not None and checkpoint == 'last':
                # Tags of their own keep points over steps out of the curves over epochs.
                within = split == BATCHES
                tagged = {f'batch/{k}': v for k, v in own.items()} if within else own
                self._events.write(f'{name}/{split}', step if within else int(epoch), tagged)
        if self._wandb is not None and checkpoint == 'last':
            self._wandb.log({**scalars, 'epoch': epoch, 'step': step})

    def write_timing(
        self, epoch: int, step: int, seconds: float, images_per_second: float, waits: dict[str, float]
    ):
        """Write a row of timing.csv, which is never removed again.

        seconds: the time of the epoch's steps; waits: {what: seconds} that training has waited for since the
        previous row.
        """
        now = datetime.now(UTC).isoformat(timespec='seconds')
        rounded = {f'{what}_seconds': round(waited, 3) for what, waited in waits.items()}
        self._timing.write(epoch=epoch, step=step, seconds=round(seconds, 3), timestamp=now,
                          images_per_second=round(images_per_second, 1), **rounded)  # fmt: skip
        # Nothing else flushes this table, and a row an epoch costs nothing.
        self._timing.flush()
        if self._events is not None:
            self._events.write(RUN, epoch, {'images_per_second': images_per_second, 'seconds': seconds})

    def write_pictures(self, epoch: int, pictures: Mapping[str, Path]):
        """Show PNG files, {name: path}, in TensorBoard."""
        if self._events is not None and pictures:
            self._events.write_pictures(epoch, pictures)

    def flush(self) -> int:
        """Put all on disk; returns the length of metrics.csv."""
        if self._events is not None:
            self._events.flush()
        return self._metrics.flush()

    def close(self):
        """Close all files."""
        self._metrics.close()
        self._timing.close()
        if self._events is not None:
            self._events.flush()
        if self._wandb is not None:
            self._wandb.finish()


def _wandb(config: ConfigDict, workdir: Path):
    # An optional package, which takes seconds to import.
    import wandb  # type: ignore[import-not-found,unused-ignore]

    log = config.log
    name = log.wandb_name or workdir.name
    run = wandb.init(
        dir=str(workdir),
        mode=log.wandb,
        project=log.wandb_project,
        # An offline WandB run cannot be continued, so the sessions of one run form a group.
        group=log.wandb_group or name,
        name=name,
        config=to_dict(config),
        settings=wandb.Settings(silent=True),  # it would write over the live table
    )
    # WandB's own step only counts the calls of log.
    run.define_metric('*', step_metric='step')
    return run
