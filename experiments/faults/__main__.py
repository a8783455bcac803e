"""Try bad inputs at every door, and count what becomes of each.

    python -m experiments.faults [--quick]

The inputs are values of config fields and command lines; images, folders, arrays and lists; weights that
others saved; the files of workdirs and exports for every command; names and resources of jobs. Each must end
in a one-line error, or be accepted with a line on stderr. Inputs accepted silently are counted by the reason.
Faults are tracebacks, inputs that take more than two minutes, and inputs accepted silently for no reason.
They are printed, and the exit status is then 1. All inputs are drawn from fixed seeds. Appends the counts to
experiments/results/faults.csv. --quick tries a twentieth of the inputs, and writes no row.
"""

import contextlib
import io
import os
import resource
import tempfile
from pathlib import Path

# Programs run for moments here: most of the time to compile them is LLVM's.
os.environ.setdefault(
    'XLA_FLAGS', '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
)

import jax

from experiments import results
from experiments.faults import (
    arrays,
    commands,
    folders,
    images,
    lists,
    names,
    networks,
    values,
    weights,
    workdirs,
)
from experiments.faults.outcomes import Tally
from jaxcifar.machine.command import run_words
from jaxcifar.machine.errors import UserError

QUICK = 0.05
MEMORY = 8 << 30  # bytes that an input may take


def tallies(folder: Path, share: float):
    """Yield the tally of each door; `folder` is for all that is written."""
    whole, scratch = folder / 'whole', folder / 'scratch'
    whole.mkdir()
    scratch.mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        workdirs.build(whole)
    for door, cases in {
        'values of config files': values.by_file(share),
        'values of command lines': values.by_command_line(share),
        'other command lines': commands.cases(whole, share),
        'image files': images.cases(scratch, share),
        'folders of images': folders.cases(scratch),
        'arrays': arrays.cases(scratch, share),
        'lists of indices': lists.cases(scratch),
        'weights of others': weights.cases(scratch, share),
        'names of runs': names.names(),
        'resources of jobs': names.amounts(share),
        'files of runs and exports': workdirs.cases(whole, share),
    }.items():
        yield Tally(door).add(cases)
    if [*folder.rglob('ran')]:
        raise UserError('a pickle has run')


def main(*words: str):
    """Try all, print the counts, and append them."""
    if set(words) - {'--quick'}:
        raise UserError(f'expected --quick or nothing, got {" ".join(words)}')
    share, tried, here = QUICK if words else 1.0, [], Path.cwd()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    with tempfile.TemporaryDirectory(prefix='faults-') as folder, networks.registered():
        jax.config.update('jax_compilation_cache_dir', f'{folder}/compiled')
        os.chdir(folder)  # what a command writes without being told where
        for tally in tallies(Path(folder), share):
            print(
                tally.door, *(f'{name} {count}' for name, count in tally.row().items()), sep='  ', flush=True
            )
            tried.append(tally)
    total = {name: sum(tally.row()[name] for tally in tried) for name in tried[0].row()}
    print('all', *(f'{name} {count}' for name, count in total.items()), sep='  ')
    print('taken without a word:')
    for tally in tried:
        print(*(f'  {count} of {tally.door}: {reason}' for reason, count in tally.silent.items()), sep='\n')
    faults = [fault for tally in tried for fault in tally.faults]
    os.chdir(here)
    if share == 1:
        rows = [{'door': tally.door, **tally.row()} for tally in tried] + [{'door': 'all', **total}]
        results.append('faults', [results.here() | row for row in rows])
    if faults:
        print(*faults, sep='\n')
        raise UserError(f'{len(faults)} of {total["tried"]} inputs are faults')


if __name__ == '__main__':
    run_words(main)
