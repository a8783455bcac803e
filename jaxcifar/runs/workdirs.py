"""What a workdir says of its run besides metrics: config, data and where it ran."""

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
from jaxcifar.data.datasets import Dataset
from jaxcifar.data.splits import Split
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json, read_json_or_set_aside, write_json, write_text
from jaxcifar.machine.profile import share_of_peak
from jaxcifar.machine.versions import PACKAGES, git_commit, installed
from jaxcifar.runs.session import Session

CONFIG, DATASET, RUN = 'config.json', 'dataset.json', 'run.json'


def check_config(workdir: Path, config: ConfigDict):
    """Raise `UserError` where the workdir holds a run that this config cannot continue."""
    path = workdir / CONFIG
    if path.exists() and _has_checkpoint(workdir):
        saved.refuse_changes(saved.load(path), config, workdir)


def described(workdir: Path) -> Dataset:
    """Return the data set of a run as its dataset.json describes it, without images and labels.

    It has what networks need: classes, image_size, mean and std. Raises `UserError` without the file.
    """
    about = read_json(workdir / DATASET)
    if about is None:
        raise UserError(f'{workdir} has no {DATASET}, which a run writes when it starts')
    images, labels = np.empty((0, about['image_size'], about['image_size'], 3), np.uint8), np.empty(0, int)
    statistics = tuple(about['mean']), tuple(about['std'])
    return Dataset(about['name'], images, labels, images, labels, tuple(about['classes']), *statistics)


def check_dataset(workdir: Path, session: Session):
    """Raise `UserError` where the workdir's run saw other images than the session's, or another split.

    Every command asks this before it uses a run's images.
    """
    before = read_json(workdir / DATASET) if _has_checkpoint(workdir) else None
    dataset, split = session.dataset, session.split
    if before is not None and before['sha256'] != dataset.fingerprint():
        raise UserError(
            f'the images of {dataset.name} are not those that {workdir} was trained on: '
            f'put the files back, or choose a new --workdir'
        )
    if before is not None and before.get('split', split.fingerprint()) != split.fingerprint():
        raise UserError(
            f'the split of {dataset.name} is not that of {workdir}: put back the index files in the data '
            'folder, or the version of scikit-learn, or choose a new --workdir'
        )


def _has_checkpoint(workdir: Path) -> bool:
    """Return whether there is anything to lose: a run that failed before may be tried with other settings."""
    checkpoints = (workdir / 'checkpoints').glob('[0-9]*')
    return any(checkpoints) or (workdir / 'results.json').exists() or (workdir / 'best').exists()


def record(workdir: Path, config: ConfigDict, dataset: Dataset, params: tuple, split: Split | None = None):
    """Write config.json, dataset.json and networks.txt, and append to run.json what runs where."""
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
    }
    run['sessions'].append(session)
    write_json(workdir / RUN, run)


def record_speed(workdir: Path, program, clock) -> list[str]:
    """Add to the session what its steps cost, and return it as a line; nothing without a whole epoch."""
    if not clock.mean_rate():
        return []
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
