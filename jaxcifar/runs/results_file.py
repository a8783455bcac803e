"""Read and write results.json, the last file that a run writes."""

from pathlib import Path

from jaxcifar.machine import files, hosts
from jaxcifar.machine.errors import UserError

FILE = 'results.json'
NEEDED = {'step': int, 'metrics_length': int, 'members': list, 'mean': dict}


def read(workdir: Path, step: int) -> dict | None:
    """Return the results of a run that finished at `step`, or None if it did not.

    A damaged file is set aside: the run can write it again.
    """
    results = files.read_json_or_set_aside(workdir / FILE, **NEEDED)
    return results if results is not None and results['step'] == step else None


def peek(workdir: Path) -> dict | None:
    """Return the results of a run that finished at any step; None if they are missing or damaged."""
    try:
        return files.read_json(workdir / FILE, **NEEDED)
    except UserError:
        return None


def last_step(workdir: Path) -> int:
    """Return the step at which the run last finished, or 0 if it never did."""
    results = peek(workdir)
    return results['step'] if results is not None else 0


def set_aside(workdir: Path):
    """Move what came from damaged checkpoints to them, chosen weights included; the run has said so."""
    for name in (FILE, 'metrics.csv', 'best', 'calibrated') if hosts.is_first() else ():
        if (workdir / name).exists():
            files.to_damaged(workdir / name)
    hosts.wait('results set aside')


def write(workdir: Path, results: dict):
    """Write the results."""
    files.write_json(workdir / FILE, results)
