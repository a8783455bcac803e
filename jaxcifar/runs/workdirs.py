"""Write and check what a workdir records about its run besides metrics: config, data and where it ran."""

import hashlib
import json
import platform
import shlex
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from jaxcifar.config import saved
from jaxcifar.config.values import flatten
from jaxcifar.data.datasets import Dataset, is_streamed, without_images
from jaxcifar.data.splits import Split
from jaxcifar.data.vision import READING
from jaxcifar.formats.portable import check_data
from jaxcifar.machine import compiler, hosts, memory
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.files import read_json, reading, write_json, write_text
from jaxcifar.machine.versions import PACKAGES, git_commit, installed
from jaxcifar.runs import session_log
from jaxcifar.runs.session import Session
from jaxcifar.runs.session_log import RUN

CONFIG, DATASET = 'config.json', 'dataset.json'
OF_FILES = ('folder', 'stream', 'imagenet')  # data sets of image files
OLDER_READING = 'an older version, which read 16-bit, transparent and float images in another way'


def check_config(workdir: Path, config: ConfigDict):
    """Raise `UserError` where the workdir holds a run that this config cannot continue."""
    path = workdir / CONFIG
    if (workdir / 'card.json').exists():
        raise UserError(
            f'{workdir} is an export: choose another --workdir; --config.init_from={workdir} starts there '
            'from its weights'
        )
    if not has_checkpoint(workdir):
        _refuse_foreign(path)
        return
    # The file itself is the better evidence: its error can name the fields that differ.
    if path.exists():
        saved.refuse_changes(saved.load(path), config, workdir)
    else:
        _refuse_unless(session_log.last_session(workdir).get('config_sha256') == _sum(config), path, 'config')


def _refuse_foreign(path: Path):
    """Raise `UserError` where config.json is not a run's: the run would replace it."""
    try:
        if path.exists():
            saved.load(path)
    except UserError as error:
        raise UserError(error.fault, 'choose another --workdir, or delete it') from None


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
        mean, std = (map(float, about[name]) for name in ('mean', 'std'))
        return without_images(about['name'], map(str, about['classes']), about['image_size'], mean, std)


def as_begun(workdir: Path, session: Session, remedy: str = 'choose a new --workdir') -> Session:
    """Return the session as the workdir's run began it; `UserError` if its images or split have changed.

    Every command calls this before it uses a run's images. remedy: the alternative to putting files back.
    """
    if not (has_checkpoint(workdir) or (workdir / 'best').exists()):
        return session
    # Index files that are refused today mean the same images as when the run began, as its sum shows.
    if session.dataset.index_fault:
        session = replace(session, dataset=replace(session.dataset, index_fault=''))
    session, path = with_split_of(workdir, session), workdir / DATASET
    dataset, split = session.dataset, session.split.fingerprint()
    # Without the file, the checksums in run.json are the next best evidence.
    before = read_json(path, sha256=str)
    if before is None:
        same = session_log.last_session(workdir).get('data_sha256') == [dataset.fingerprint(), split]
        _refuse_unless(same, path, 'data set')
        return session
    reads_alike = before.get('reading') == READING or dataset.name.partition(':')[0] not in OF_FILES
    if before['sha256'] != dataset.fingerprint():
        older = '' if reads_alike else f' ({OLDER_READING})'
        raise UserError(
            f'the images of {dataset.name} are not those that {workdir} was trained on: put the files '
            f'back{older}, or {remedy}'
        )
    # Older files do not record the split, so it cannot be checked.
    if before.get('split', split) != split:
        raise UserError(
            f'the split of {dataset.name} is not that of {workdir}: put back the index files in the data '
            f'folder, or the version of scikit-learn, or {remedy}'
        )
    # A stream's checksum covers names and sizes, so it does not show that pixels are read in another way.
    if not reads_alike and is_streamed(dataset.name) and hosts.is_first():
        print(f'warning: {workdir} was begun by {OLDER_READING}', file=sys.stderr)
    return session


def with_split_of(workdir: Path, session: Session) -> Session:
    """Return the session without its folder's validation part if the workdir's run did not use that part.

    Older versions held images out of the training part even if the folder had a validation part.
    """
    dataset = session.dataset
    if dataset.y_val is None or not session.split.own_validation:
        return session
    before = read_json(workdir / DATASET)
    sums = session_log.last_session(workdir).get('data_sha256') if before is None else [before.get('split')]
    note = 'the validation part is not used: this run began by holding images out of the training part'
    held_out = replace(dataset, x_val=None, y_val=None, notes=(*dataset.notes, note))
    older = replace(session, dataset=held_out)
    return older if isinstance(sums, list) and sums[-1:] == [older.split.fingerprint()] else session


def check_same_images(workdir: Path, other: Path):
    """Raise `UserError` where two runs are known to have been tested on different images."""
    places = [place for place in (workdir, other) if place.is_dir()]  # a file of weights has no images
    sums = {(read_json(place / DATASET) or {}).get('sha256') for place in places} - {None}
    configs = [read_json(place / CONFIG) or {} for place in places]
    if len(sums) > 1 or len({_test_images(config) for config in configs}) > 1:
        raise UserError(
            f'expected a run on the images of {workdir}, got {other}, which was tested on others: '
            'name one of the same data set, or leave it out'
        )


def _test_images(config: dict) -> tuple:
    """Return the values that decide which test images a config has; only six-part long tails omit some."""
    tail = config.get('long_tail') if config.get('split') == 'long_tail' else None
    return (tail.get('imbalance'), tail.get('seed')) if isinstance(tail, dict) else ()


def _refuse_unless(same: bool, path: Path, what: str):
    """Raise `UserError` unless run.json shows that the `what` is the same, now that file `path` is gone."""
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


def has_checkpoint(workdir: Path) -> bool:
    """Return whether a run would continue: one that failed before may be tried with other settings."""
    # Best weights come before the first save, and no run continues from them alone.
    return any((workdir / 'checkpoints').glob('[0-9]*')) or (workdir / 'results.json').exists()


def record(workdir: Path, config: ConfigDict, dataset: Dataset, params: tuple, split: Split | None = None):
    """Write config.json, dataset.json and networks.txt, and append to run.json what runs where."""
    # What the run is made from; it is written again by each session, in case a field has changed.
    write_json(workdir / CONFIG, saved.to_dict(config))
    description = {
        'name': dataset.name,
        'sha256': dataset.fingerprint(),
        'reading': READING,
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
        # These show whether a run that has lost the files above may continue.
        'config_sha256': _sum(config),
        'data_sha256': [description['sha256'], description.get('split')],
    }
    session_log.append(workdir, session)
