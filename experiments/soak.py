"""Do a small run every harm, and see that it ends as if nothing had been.

    python -m experiments.soak [N [SEED [MINUTES]]]

N times (200) a training process is killed (at any time, within a save, between best weights and checkpoint),
asked to leave, or finds the disk full; a file of its newest checkpoint is cut or gets a wrong bit; its
metrics.csv or config.json is deleted, or its results.json damaged. A harm that the program refuses with a
line is put right the way the line says, and counts as refused. Rows that it says are lost, and the length of
metrics.csv, are not compared. When the run comes to its end, as every 20
harms it may, it is compared to the last bit with one that was left alone, and begun again. A row is appended
to experiments/results/soak.csv. Some 5 seconds a harm on a quiet core.
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
from experiments.harms import HARMS, Harmed
from jaxcifar.machine.command import run_words
from jaxcifar.machine.errors import UserError

LEFT_ALONE = 20  # harms after which a run may come to its end


def differences(run: Harmed) -> list[str]:
    """Return the files that are not as in the run that was left alone."""
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


def _alike(run: Harmed, name: Path) -> bool:
    """Return whether a file is the same in both; of rows that the program said are lost, the others."""
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


def compare(run: Harmed) -> int:
    """Begin again after a run that ended as one left alone, and return 1; `UserError` for another end."""
    different = differences(run)
    if different:
        kept = shutil.copytree(run.folder, tempfile.mkdtemp(prefix='soak-different-'), dirs_exist_ok=True)
        raise UserError(f'{", ".join(different)} differ from those of a run that was left alone: see {kept}')
    run.begin_again()
    return 1


def main(harms: str = '200', seed: str = '0', minutes: str = 'inf'):
    """Soak, print and append; stops after that many minutes."""
    start, counts, compared, lossy = time.monotonic(), Counter[str](), 0, 0
    with tempfile.TemporaryDirectory(prefix='soak-') as folder:
        run = Harmed(Path(folder), int(seed))
        run.finish(run.reference)
        # A harm that came after the run's end did nothing, and does not count.
        while counts.total() < int(harms) and time.monotonic() - start < 60 * float(minutes):
            harm = run.choose()
            ended = run.do(harm)
            counts[harm] += not ended or harm == 'damaged results'
            if not ended and counts.total() % LEFT_ALONE == 0:
                run.finish(run.workdir)
                ended = True
            if ended:
                lossy += run.lost_rows
                compared += compare(run)
            print(f'{counts.total()} harms ({harm}), {run.refused} refused, {compared} compared', flush=True)
        run.finish(run.workdir)
        lossy += run.lost_rows
        compared += compare(run)
    row = {
        **results.here(),
        'faults': counts.total(),
        **{name.replace(' ', '_'): counts[name] for name in HARMS},
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
