"""Write TensorBoard's event files: a folder for each member and split, so that curves share tags.

tensorboardX is used only for its file formats. clu.metric_writers imports TensorFlow, as of clu 0.0.12. Of
tensorboardX's own two writers, one keeps a file open for each folder, and the other has a thread that waits
forever when the disk is full.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from jaxcifar.config.fields import PER_MEMBER, get_config
from jaxcifar.config.members import alone
from jaxcifar.config.saved import is_resumable, to_dict
from jaxcifar.config.values import flatten

BATCHES = 'train_batch'  # the split whose points are within an epoch: their axis is the step
DELAY = 10.0  # seconds after which a curve shows its points
RUN = 'run'  # the folder for data that belongs to no member
SHOWN = ('dataset', 'network', 'split', 'loss', 'coupling', 'view', 'epochs', 'batch_size', *PER_MEMBER)


class Events:
    """Write points over epochs into FOLDER/MEMBER/SPLIT; the points of BATCHES are over steps.

    Points that earlier sessions wrote after `epoch`, or for BATCHES after `step`, no longer count.
    """

    def __init__(self, folder: Path, epoch: int, step: int):
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._folder, self._epoch, self._step = folder, epoch, step
        self._name = f'events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}'
        self._begun, self._unsynced = set[Path](), set[Path]()
        # {file: bytes to be written}: many members have many files, and opening one costs more than a point.
        self._pending: dict[Path, bytes] = {}
        self._written = time.monotonic()
        folder.mkdir(exist_ok=True)
        # Outdated points are dropped at once, because this session may not write to a folder for a long time.
        for path in {path.parent for path in folder.rglob('events.*')}:
            self._begin(path)

    def write(self, run: str, at: int, scalars: Mapping[str, float]):
        """Write a point of each curve, {tag: value}, at an epoch or a step; run is MEMBER/SPLIT, or RUN."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(run, step=at, summary=self._summary(value=values))

    def write_pictures(self, epoch: int, pictures: Mapping[str, Path]):
        """Show PNG files under their names."""
        values = []
        for name, path in pictures.items():
            with Image.open(path) as picture:
                size = {'width': picture.width, 'height': picture.height, 'colorspace': 3}
            image = self._summary.Image(encoded_image_string=path.read_bytes(), **size)
            values.append(self._summary.Value(tag=f'pictures/{name}', image=image))
        self._write(RUN, step=epoch, summary=self._summary(value=values))

    def write_hyperparameters(self, member: str, values: Mapping[str, bool | float | str]):
        """Write what the curves in the member's folders depend on."""
        from tensorboardX.summary import hparams

        _, start, end = hparams(dict(values), {})
        for summary in (start, end):
            self._write(member, summary=summary)

    def _write(self, run: str, **content):
        folder = self._folder / run
        if folder not in self._begun:
            folder.mkdir(parents=True, exist_ok=True)
            self._begin(folder)
        self._append(folder, **content)

    def _begin(self, folder: Path):
        self._begun.add(folder)
        self._append(folder, file_version='brain.Event:2')
        # At a START event, TensorBoard drops points already written for that step and later steps. An older
        # version wrote all curves into one folder, over steps.
        over_steps = folder.name == BATCHES or folder == self._folder
        last = self._step if over_steps else self._epoch
        self._append(folder, step=last + 1, session_log={'status': 'START'})

    def _append(self, folder: Path, **content):
        from tensorboardX.record_writer import masked_crc32c

        data = self._event(wall_time=time.time(), **content).SerializeToString()
        size = struct.pack('<Q', len(data))
        sums = (struct.pack('<I', masked_crc32c(part)) for part in (size, data))
        path = folder / self._name
        self._pending[path] = self._pending.get(path, b'') + size + next(sums) + data + next(sums)
        if time.monotonic() - self._written > DELAY:
            self._write_pending()

    def _write_pending(self):
        # A file is open only while it is written: a hundred members have hundreds of them.
        while self._pending:
            path, data = self._pending.popitem()
            with open(path, 'ab') as file:
                file.write(data)
            self._unsynced.add(path)
        self._written = time.monotonic()

    def flush(self):
        """Put all on disk."""
        self._write_pending()
        while self._unsynced:
            with open(self._unsynced.pop(), 'ab') as file:
                os.fsync(file.fileno())


def hyperparameters(config: ConfigDict) -> list[dict[str, bool | float | str]]:
    """Return each member's hyperparameters, K dicts: fields that differ from their default, and SHOWN."""
    defaults, rows = flatten(to_dict(get_config())), []
    for k in range(config.members):
        values = {
            name: value
            for name, value in flatten(to_dict(alone(config, k))).items()
            if name in SHOWN or (not is_resumable(name) and value != defaults.get(name, value))
        }
        plain = {n: v if isinstance(v, (bool, int, float, str)) else str(v) for n, v in values.items()}
        # These tell members apart, which their folders do already.
        rows.append({n: v for n, v in plain.items() if n not in ('members', 'member_ids')})
    return rows
