"""Inject faults into a small run, and check that it ends as if there had been none.

    python -m experiments.soak [N [SEED [MINUTES]]]

Of N faults (200), some hit the training process: a kill at any time, within a save, or between best weights
and checkpoint; a SIGTERM; a full disk. Others hit its files: a cut file or a wrong bit in the newest
checkpoint, a deleted metrics.csv or config.json, a damaged results.json. A fault that the program refuses
in one line is repaired as the line says, and counts as refused. After every 20 faults the run may finish.
It is then compared to an undisturbed one, bit for bit, and started anew. Rows that the program reported as
lost, and the length of metrics.csv, are not compared. A row is appended to experiments/results/soak.csv. A
fault takes some 5 seconds on an idle core.
"""

import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments import results
from experiments.fault_injection import FAULTS, FaultyRun
from jaxcifar.machine.command import run_words
from jaxcifar.machine.errors import UserError

LEFT_ALONE = 20  # faults after which a run may finish


def differences(run: FaultyRun) -> list[str]:
    """Return the files that differ from those of the undisturbed run."""
    patterns = 'results.json', 'metrics.csv', 'best/*/*'
    places = run.workdir, run.reference
    names = sorted({p.relative_to(place) for place in places for q in patterns for p in place.glob(q)})
    different = [str(name) for name in names if not _alike(run, name)]
    # Checkpoints are compared by their arrays: orbax's own files hold times.
    checkpoint = f'checkpoints/{run.saved()}'
    ours, theirs = (_state(place / checkpoint) for place in places)
    if [leaf.tobytes() for leaf in ours] != [leaf.tobytes() for leaf in theirs]:
        different.append(checkpoint)
    return different


def _alike(run: FaultyRun, name: Path) -> bool:
    """Return whether a file is the same in both runs, apart from rows that the program reported as lost."""
    ours, theirs = (place / name for place in (run.workdir, run.reference))
    if not ours.exists() or not theirs.exists():
        return False
    if run.lost_rows and name.name == 'metrics.csv':
        return set(ours.read_text().splitlines()) <= set(theirs.read_text().splitlines())
    if run.lost_rows and name.name == 'results.json':  # it holds the length of metrics.csv
        lines = [path.read_text().splitlines() for path in (ours, theirs)]
        return [line for line in lines[0] if 'metrics_length' not in line] == [
            line for line in lines[1] if 'metrics_length' not in line
        ]
    return ours.read_bytes() == theirs.read_bytes()


def _state(checkpoint: Path) -> list[np.ndarray]:
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(checkpoint / 'state').item_metadata.tree
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return jax.tree.leaves(reader.restore(checkpoint / 'state', restore_args=args))


def compare(run: FaultyRun) -> int:
    """Compare a finished run to the undisturbed one, start anew and return 1; `UserError` if they differ."""
    different = differences(run)
    if different:
        kept = shutil.copytree(run.folder, tempfile.mkdtemp(prefix='soak-different-'), dirs_exist_ok=True)
        raise UserError(f'{", ".join(different)} differ from those of the undisturbed run: see {kept}')
    run.begin_again()
    return 1


def main(faults: str = '200', seed: str = '0', minutes: str = 'inf'):
    """Inject faults for at most that many minutes, print progress and append the row."""
    start, counts, compared, lossy = time.monotonic(), Counter[str](), 0, 0
    with tempfile.TemporaryDirectory(prefix='soak-') as folder:
        run = FaultyRun(Path(folder), int(seed))
        run.finish(run.reference)
        # A fault after the end of the run does nothing, and does not count.
        while counts.total() < int(faults) and time.monotonic() - start < 60 * float(minutes):
            fault = run.choose()
            ended = run.inject(fault)
            counts[fault] += not ended or fault == 'damaged results'
            if not ended and counts.total() % LEFT_ALONE == 0:
                run.finish(run.workdir)
                ended = True
            if ended:
                lossy += run.lost_rows
                compared += compare(run)
            print(f'{counts.total()}: {fault}; {run.refused} refused, {compared} compared', flush=True)
        run.finish(run.workdir)
        lossy += run.lost_rows
        compared += compare(run)
    row = {
        **results.here(),
        'faults': counts.total(),
        **{name.replace(' ', '_'): counts[name] for name in FAULTS},
        'refused': run.refused,
        'runs_bitwise_equal': compared,
        'with_lost_rows': lossy,  # of them
        'runs_different': 0,
        'minutes': f'{(time.monotonic() - start) / 60:.1f}',
        'seed': seed,
    }
    results.append('soak', [row])
    print(*(f'{name}: {value}' for name, value in row.items()), sep='\n')


if __name__ == '__main__':
    run_words(main)
