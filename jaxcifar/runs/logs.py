"""Write what a run leaves behind to be read: metrics.csv, timing.csv, TensorBoard events, WandB, JSON.

metrics.csv holds nothing that depends on the clock, so that it can be compared byte for byte.
"""

import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxcifar.config.saved import to_dict
from jaxcifar.engine.couplings import columns
from jaxcifar.machine import hosts
from jaxcifar.runs.metrics import group_names
from jaxcifar.runs.progress import Progress
from jaxcifar.runs.session import Session
from jaxcifar.runs.tables import Table, take_up

METRICS = ('loss', 'accuracy', 'top5', 'ece', 'lr', 'best', 'patience')
COLUMNS = ('epoch', 'step', 'member', 'split', 'checkpoint', *METRICS)
ROW = set(COLUMNS[:5])  # what a row is about
TIMING = (
    'epoch',
    'step',
    'seconds',
    'images_per_second',
    'timestamp',
    'evaluation_seconds',
    'saving_seconds',
)


class Events:
    """Write a TensorBoard event file, in which what sessions before wrote after `step` does not count.

    Written at once: tensorboardX's SummaryWriter has a thread, and waits for it forever when it died
    of a full disk.
    """

    def __init__(self, folder: Path, step: int):
        # tensorboardX needs no TensorFlow, which clu's writers import.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        folder.mkdir(exist_ok=True)
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._file = EventsWriter(str(folder / 'events'))
        # At a START, TensorBoard drops earlier points of that step and later ones.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=step + 1, session_log=start)

    def write(self, step: int, scalars: dict[str, float]):
        """Write a point of each curve."""
        values = [self._summary.Value(tag=k, simple_value=v) for k, v in scalars.items()]
        self._write(step=step, summary=self._summary(value=values))

    def _write(self, **content):
        self._file.write_event(self._event(wall_time=time.time(), **content))

    def flush(self):
        """Put all on disk."""
        self._file.flush()

    def close(self):
        """Close the file."""
        self._file.close()


class Silence:
    """Stand in for `Logger` on the hosts that do not write."""

    def write(self, *_, **__):
        """Write nothing."""

    write_timing = close = write

    def flush(self) -> int:
        """Return no length: the first host knows it."""
        return 0


def open_logger(session: Session, workdir: Path, progress: Progress):
    """Return the `Logger` of the first host, or what the others have instead."""
    if not hosts.is_first():
        return Silence()
    groups = group_names(session.split.class_counts)
    return Logger(session.config, workdir, session.outputs, progress.step, progress.metrics_length, groups)


class Logger:
    """Write the tables and event files of a run whose members are `names`.

    `length` is how much of metrics.csv the run that is continued had written at `step`; `groups` are
    further columns of it.
    """

    def __init__(
        self, config: ConfigDict, workdir: Path, names: list[str], step: int, length: int,
        groups: tuple[str, ...] = (),
    ):  # fmt: skip
        self._names = names
        metrics, timing = workdir / 'metrics.csv', workdir / 'timing.csv'
        # Rows after the checkpoint are written again, so that the table has each only once.
        take_up(metrics, ROW, length, step)
        # Time that was spent stays spent: rows of steps that are taken again are kept.
        take_up(timing, {'epoch', 'step', 'seconds'})
        self._metrics = Table(metrics, (*COLUMNS, *columns(config), *groups))
        self._timing = Table(timing, TIMING)
        self._events = Events(workdir / 'tensorboard', step) if config.log.tensorboard else None
        self._wandb = _wandb(config, workdir) if config.log.wandb != 'disabled' else None

    def write(self, epoch: float, step: int, split: str, row: dict[str, np.ndarray], checkpoint='last'):
        """Write a line a member of {metric: [K]}; TensorBoard and WandB get those of the last weights."""
        # The tables format Python's own floats, and numpy's float32 is none.
        values = {k: np.asarray(v).tolist() for k, v in row.items()}
        scalars: dict[str, float] = {}
        for i, name in enumerate(self._names):
            own = {k: v[i] for k, v in values.items()}
            self._metrics.write(
                epoch=epoch, step=step, member=name, split=split, checkpoint=checkpoint, **own
            )
            scalars |= {f'{k}/{split}/{name}': v for k, v in own.items()}
        # Curves are of training: a point of the chosen weights belongs to an earlier step.
        if self._events is not None and checkpoint == 'last':
            self._events.write(step, scalars)
        if self._wandb is not None and checkpoint == 'last':
            self._wandb.log({**scalars, 'epoch': epoch, 'step': step})

    def write_timing(
        self, epoch: int, step: int, seconds: float, images_per_second: float, waits: dict[str, float]
    ):
        """Write a row of timing.csv, which is never taken back.

        seconds: what the epoch's steps took; waits: {what: seconds} that training has waited between the row
        before and this one.
        """
        now = datetime.now(UTC).isoformat(timespec='seconds')
        rounded = {f'{what}_seconds': round(waited, 3) for what, waited in waits.items()}
        self._timing.write(epoch=epoch, step=step, seconds=round(seconds, 3), timestamp=now,
                          images_per_second=round(images_per_second, 1), **rounded)  # fmt: skip
        # Nothing else flushes this table, and a row an epoch costs nothing.
        self._timing.flush()

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
            self._events.close()
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
        # An offline run cannot be gone on with: the sessions of a run are a group.
        group=log.wandb_group or name,
        name=name,
        config=to_dict(config),
        settings=wandb.Settings(silent=True),  # it would write over the live table
    )
    # WandB's own step only counts the calls of log.
    run.define_metric('*', step_metric='step')
    return run
