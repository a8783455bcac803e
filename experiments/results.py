"""The tables of experiments/results: a row is never changed, new ones are appended."""

import csv
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path(os.environ.get('JAXCIFAR_RESULTS') or Path(__file__).parent / 'results')
ON_GPU = Path('/dev/nvidiactl').exists()  # known before jax starts
clock = time.perf_counter if ON_GPU else time.process_time  # of a process that `pin` has run in
PINNED = '' if ON_GPU else ', one core, CPU time'


def pin():
    """Without a GPU, keep to one core, so that `clock` is hardly disturbed by other programs.

    Runs before jax starts its threads.
    """
    import torch

    if not ON_GPU:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        torch.set_num_threads(1)


def append(name: str, rows: list[dict]):
    """Append to results/NAME.csv; the columns are the keys of the first row."""
    path = FOLDER / f'{name}.csv'
    columns, new = list(rows[0]), not path.exists()
    if not new and path.read_text().splitlines()[0].split(',') != columns:
        raise ValueError(f'{path} has other columns than {",".join(columns)}: move it away first')
    with path.open('a', newline='') as file:
        writer = csv.DictWriter(file, columns, lineterminator='\n')
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read(name: str) -> list[dict[str, str]]:
    """The rows of results/NAME.csv; none where there is no such file."""
    path = FOLDER / f'{name}.csv'
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def here(device: str | None = None) -> dict:
    """When, with which commit and on what something is measured; without `device`, this process's."""
    import jax  # with the next a second or two: not for those who only ask for ON_GPU

    from jaxcifar.machine.versions import git_commit

    return {
        'date': datetime.now(UTC).date().isoformat(),
        'commit': git_commit(),
        'machine': f'{platform.machine()} x {os.cpu_count()}',
        'device': device or jax.devices()[0].device_kind,
    }


def here_pinned() -> dict:
    """`here`, of a process that `pin` has run in."""
    found = here()
    return {**found, 'machine': found['machine'] + PINNED}
