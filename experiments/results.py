"""Keep the tables of experiments/results: a row is never changed, and new ones are appended."""

import csv
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from jaxcifar.machine.errors import UserError

FOLDER = Path(os.environ.get('JAXCIFAR_RESULTS') or Path(__file__).parent / 'results')
ON_GPU = Path('/dev/nvidiactl').exists()  # known before jax starts
clock = time.perf_counter if ON_GPU else time.process_time  # of a process that `pin` has run in
PINNED = '' if ON_GPU else ', one core, CPU time'


def pin():
    """Keep to one core where there is no GPU, so that `clock` is hardly disturbed by other programs.

    Runs before jax starts its threads.
    """
    import torch

    if not ON_GPU:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        torch.set_num_threads(1)


def write_rows(path: Path, rows: Sequence[dict], columns: Sequence[str] = ()):
    """Append rows to a CSV file; if it is new or empty, write its columns first.

    columns: the file's, in order; a row's other keys are left out, and missing ones are ''. The default is
      the keys of the first row. Raises `UserError` where the file has other columns.
    """
    extra: Literal['ignore', 'raise'] = 'ignore' if columns else 'raise'
    columns = list(columns) or list(rows[0])
    new = not path.exists() or not path.stat().st_size
    if not new:
        with path.open(encoding='utf-8') as file:
            if next(csv.reader(file)) != columns:
                raise UserError(f'{path} has other columns than {",".join(columns)}: move it away first')
    # Appended, so that rows that are there are never rewritten.
    with path.open('a', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, columns, extrasaction=extra, lineterminator='\n')
        if new:
            writer.writeheader()
        writer.writerows(rows)


def append(name: str, rows: Sequence[dict], columns: Sequence[str] = ()):
    """Append rows to results/NAME.csv, as `write_rows` does; `UserError` where that cannot be written."""
    path = FOLDER / f'{name}.csv'
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        write_rows(path, rows, columns)
    except OSError as error:  # an installed package may belong to another user
        raise UserError(
            f'cannot write {path} ({error.strerror})', 'set JAXCIFAR_RESULTS to a folder of yours'
        ) from error


def read(name: str) -> list[dict[str, str]]:
    """Return the rows of results/NAME.csv; none where there is no such file."""
    path = FOLDER / f'{name}.csv'
    if not path.exists():
        return []
    with path.open(encoding='utf-8') as file:
        return list(csv.DictReader(file))


def device_kind() -> str:
    """Return jax's device here, asked in another process: a process that asks keeps the device's memory."""
    ask = 'import jax; print(jax.devices()[0].device_kind)'
    return subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True).stdout.strip()


def driver() -> str:
    """Return the version of the GPU's driver; '' where there is no GPU, or nothing says."""
    ask = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    if not ON_GPU or not shutil.which(ask[0]):
        return ''
    lines = subprocess.run(ask, capture_output=True, text=True).stdout.split()
    return lines[0] if lines else ''


def here(device: str | None = None) -> dict:
    """Return the date, commit, machine, device and command of a measurement.

    device: by default this process's.
    """
    import jax  # takes a second or two, which ON_GPU alone must not cost

    from jaxcifar.machine.versions import git_commit

    version = driver()
    return {
        'date': datetime.now(UTC).date().isoformat(),
        'commit': git_commit(),
        'machine': f'{platform.machine()} x {os.cpu_count()}' + (f', driver {version}' if version else ''),
        'device': device or jax.devices()[0].device_kind,
        # The interpreter's own path says nothing elsewhere.
        'command': shlex.join(['python', *sys.orig_argv[1:]]),
    }


def here_pinned() -> dict:
    """Return `here` of a process that `pin` has run in."""
    common = here()
    return {**common, 'machine': common['machine'] + PINNED}
