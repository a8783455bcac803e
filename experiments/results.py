"""The tables of experiments/results: a row is never changed, new ones are appended."""

import csv
import platform
from datetime import UTC, datetime
from pathlib import Path

import jax

from jaxcifar.workdirs import git_commit

FOLDER = Path(__file__).parent / 'results'


def append(name: str, rows: list[dict]):
    """Append to results/NAME.csv; the columns are the keys of the first row."""
    path = FOLDER / f'{name}.csv'
    new = not path.exists()
    with path.open('a', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        if new:
            writer.writeheader()
        writer.writerows(rows)


def here() -> dict:
    """When, with which commit and on what something is measured."""
    devices = jax.devices()
    return {
        'date': datetime.now(UTC).date().isoformat(),
        'commit': git_commit(),
        'machine': f'{platform.machine()} x {len(devices)}',
        'device': devices[0].device_kind,
    }
