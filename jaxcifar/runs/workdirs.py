"""Write and check what a workdir says of its run besides metrics: config, data and where it ran."""

import hashlib
import json
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from jaxcifar.config import saved
from jaxcifar.config.values import flatten
from jaxcifar.data.datasets import Dataset
from jaxcifar.data.splits import Split
from jaxcifar.formats.portable import check_data
from jaxcifar.machine import compiler, hosts, memory
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json, read_json_or_set_aside, reading, write_json, write_text
from jaxcifar.machine.profile import share_of_peak
from jaxcifar.machine.versions import PACKAGES, git_commit, installed
from jaxcifar.runs.session import Session

CONFIG, DATASET, RUN = 'config.json', 'dataset.json', 'run.json'


def check_config(workdir: Path, config: ConfigDict):
    """Raise `UserError` where the workdir holds a run that this config cannot continue."""
    path = workdir / CONFIG
    if not _has_checkpoint(workdir):
        return
    # The file itself is the better witness: its error can name the fields.
    if path.exists():
        saved.refuse_changes(saved.load(path), config, workdir)
    else:
        _refuse_unless(_last_session(workdir).get('config_sha256') == _sum(config), path, 'config')


def described(workdir: Path) -> Dataset:
    """Return the data set of a run as its dataset.json describes it, without images and labels.

    It has what networks need: classes, image_size, mean and std. Raises `UserError` without the file.
    """
    path = workdir / DATASET
    about = read_json(path, name=str, image_size=int, mean=list, std=list, classes=list)
    if about is None:
        raise UserError(f'{workdir} has no {DATASET}, which a run writes when it starts')
    with reading(path):
        check_data(about)
        # No image is needed for a network, and so the data may be gone.
        shape = 0, about['image_size'], about['image_size'], 3
        images, labels = np.empty(shape, np.uint8), np.empty(0, int)
        mean, std = (tuple(map(float, about[name])) for name in ('mean', 'std'))
        classes = tuple(map(str, about['classes']))
    return Dataset(about['name'], images, labels, images, labels, classes, mean, std)


def check_dataset(workdir: Path, session: Session):
    """Raise `UserError` where the workdir's run saw other images than the session's, or another split.

    Every command asks this before it uses a run's images.
    """
    if not _has_checkpoint(workdir):
        return
    dataset, split, path = session.dataset, session.split.fingerprint(), workdir / DATASET
    # Without the file, the sums in run.json are the second witness.
    before = read_json(path, sha256=str)
    if before is None:
        sums = [dataset.fingerprint(), split]
        _refuse_unless(_last_session(workdir).get('data_sha256') == sums, path, 'data set')
        return
    if before['sha256'] != dataset.fingerprint():
        raise UserError(
            f'the images of {dataset.name} are not those that {workdir} was trained on: '
            f'put the files back, or choose a new --workdir'
        )
    # Older files have no split, and cannot be asked about it.
    if before.get('split', split) != split:
        raise UserError(
            f'the split of {dataset.name} is not that of {workdir}: put back the index files in the data '
            'folder, or the version of scikit-learn, or choose a new --workdir'
        )


def _refuse_unless(same: bool, path: Path, what: str):
    """Let a run go on without its file `path` where run.json shows that the `what` is the same."""
    if not same:
        raise UserError(
            f'{path} is gone, and {RUN} does not show that this is the {what} of the run: put the file back, '
            'or choose a new --workdir'
        )
    if hosts.is_first():
        print(f'warning: {path} is gone; {RUN} shows that the {what} is the same', file=sys.stderr)


def _sum(config: ConfigDict) -> str:
    """Return the sha256 of the fields that a continued run may not change, in hex."""
    fields = flatten(saved.to_dict(config))
    # Fields that may change are left out, or raising epochs would look like another run.
    fixed = {name: value for name, value in fields.items() if not saved.is_resumable(name)}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def _has_checkpoint(workdir: Path) -> bool:
    """Return whether there is anything to lose: a run that failed before may be tried with other settings."""
    checkpoints = (workdir / 'checkpoints').glob('[0-9]*')
    return any(checkpoints) or (workdir / 'results.json').exists() or (workdir / 'best').exists()


def record(workdir: Path, config: ConfigDict, dataset: Dataset, params: tuple, split: Split | None = None):
    """Write config.json, dataset.json and networks.txt, and append to run.json what runs where."""
    # What the run is made from; it is written again by each session, in case a field has changed.
    write_json(workdir / CONFIG, saved.to_dict(config))
    description = {
        'name': dataset.name,
        'sha256': dataset.fingerprint(),
        'images': {'train': len(dataset.y_train), 'test': len(dataset.y_test)},
        'image_size': dataset.image_size,
        'mean': list(dataset.mean),
        'std': list(dataset.std),
        'classes': list(dataset.classes),
    }
    if split is not None:
        description['split'] = split.fingerprint()
    write_json(workdir / DATASET, description)
    # The leading axis counts a group's members; the table is of one network.
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), params)
    tables = [parameter_overview.get_parameter_overview(s, include_stats=False) for s in shapes]
    write_text(workdir / 'networks.txt', '\n\n'.join(tables) + '\n')
    run = _sessions(workdir)
    session = {
        'command': shlex.join(sys.orig_argv),
        'commit': git_commit(),
        'started': datetime.now(UTC).isoformat(timespec='seconds'),
        'host': platform.node(),
        'devices': [f'{d.platform}:{d.id} {d.device_kind}' for d in jax.devices()],
        'python': platform.python_version(),
        'packages': {name: installed(name) for name in PACKAGES},
        'compiler': compiler.describe(),
        'memory': memory.describe(),
        # They tell whether a run may go on that has lost the files above.
        'config_sha256': _sum(config),
        'data_sha256': [description['sha256'], description.get('split')],
    }
    # Each session is added, so that a run over several machines names all of them.
    run['sessions'].append(session)
    write_json(workdir / RUN, run)


def record_speed(workdir: Path, program, clock) -> list[str]:
    """Add to the session what its steps cost, and return it as a line; nothing without a whole epoch."""
    if not clock.mean_rate():
        return []
    # FLOP/s of one device, compilation not included.
    flops = program.flops * clock.steps_per_second()
    share = share_of_peak(flops)
    run = _sessions(workdir)
    run['sessions'] = run['sessions'] or [{}]  # the file may be gone
    run['sessions'][-1]['speed'] = {
        'compile_seconds': round(program.seconds, 2),
        'flops_per_step_and_device': program.flops,
        'images_per_second': round(clock.mean_rate(), 1),
        'share_of_bfloat16_peak': share,
    }
    write_json(workdir / RUN, run)
    of_peak = '' if share is None else f', {share:.1%} of the bfloat16 peak'
    return [
        f'{clock.mean_rate():,.0f} images/s, {flops / 1e9:,.0f} GFLOP/s a device{of_peak}; '
        f'compiled in {program.seconds:.1f} s'
    ]


def _sessions(workdir: Path) -> dict:
    """Return run.json; a damaged one is set aside, and the list of sessions begins anew."""
    run = read_json_or_set_aside(workdir / RUN, sessions=list) or {'sessions': []}
    return {**run, 'sessions': [session for session in run['sessions'] if isinstance(session, dict)]}


def _last_session(workdir: Path) -> dict:
    """Return what run.json says of the newest session, {} where it says nothing."""
    return (_sessions(workdir)['sessions'] or [{}])[-1]
