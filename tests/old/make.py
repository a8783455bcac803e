"""Write the old files: python -m tests.old.make, run once, at commit fbf67ca.

Not to be run again: what it wrote stays as it is, and newer code has to read it. Paths, the host and
the command are not kept. expected.json has what fbf67ca itself made of these files, with the flags of
tests/conftest.py, on an AMD EPYC with AVX-512: sums hold on such a processor, numbers on all.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
from jaxcifar.train import Run
from safetensors.numpy import load_file

import jaxcifar
from jaxcifar.models import NETWORKS
from tests import old, processes
from tests.steps import Tiny


def state_sha(workdir: Path) -> str:
    """Of the newest checkpoint's arrays."""
    import jax

    tree = processes.state(workdir.absolute(), processes.checkpoints(workdir)[-1])
    return old.sha({jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)})


def scrub(workdir: Path):
    """Take out what names this machine or the time."""
    (workdir / '.lock').unlink(missing_ok=True)
    run = json.loads((workdir / 'run.json').read_text())
    for session in run['sessions']:
        session.update(command='python -m jaxcifar.main', host='host', started='2026-11-28T00:00:00+00:00')
    (workdir / 'run.json').write_text(json.dumps(run, indent=2) + '\n')
    for seal in workdir.glob('checkpoints/*/sha256.json'):  # orbax notes the folder that it wrote into
        sums = json.loads(seal.read_text())
        for path in seal.parent.rglob('commit_success.txt'):
            path.write_text(path.read_text().replace(f'{Path.cwd()}/', ''))
            name = str(path.relative_to(seal.parent))
            if name in sums:
                sums[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        seal.write_text(json.dumps(sums))


def pack(name: str, *paths: str):
    """Write NAME.tar.gz beside this file."""

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ''
        return entry

    with tarfile.open(old.HERE / f'{name}.tar.gz', 'w:gz', compresslevel=9) as archive:
        for path in paths:
            archive.add(path, filter=anonymous)


def said(patch, *words) -> dict:
    """What `evaluate` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        old.command(patch, 'evaluate', *words)
    return json.loads(out.getvalue())


def stop(patch):
    """Train until STOPPED_AT, as if SIGTERM came then."""
    poll = Run._poll

    def stopped(run):
        if run.step == old.STOPPED_AT:
            run.terminated.set()
        poll(run)

    with patch.context() as inner:
        inner.setattr(Run, '_poll', stopped)
        inner.setattr(os, '_exit', sys.exit)  # as a command leaves that was stopped
        with contextlib.suppress(SystemExit):
            old.train(inner, 'stopped', old.STOPPED)


def main():
    """All files and expected.json."""
    os.chdir(folder := Path(tempfile.mkdtemp()))
    old.write_data(folder)
    NETWORKS['tiny'] = Tiny
    patch, expected = pytest.MonkeyPatch(), {}
    images = old.images(40, 2 * 10**6)[0][:8]

    stop(patch)
    scrub(Path('stopped'))
    pack('stopped', 'stopped')
    words = '--checkpoint', old.STOPPED_AT, '--output', 'arrays'
    old.command(patch, 'export', '--workdir', 'stopped', '--format', 'safetensors', *words)
    arrays = {p.stem: old.sha(load_file(p)) for p in Path('arrays').glob('*.safetensors')}
    state = state_sha(Path('stopped'))
    shutil.rmtree('stopped')
    old.unpack('stopped', folder)
    old.train(patch, 'stopped', old.STOPPED)
    results = json.loads(Path('stopped/results.json').read_text())
    metrics = hashlib.sha256(Path('stopped/metrics.csv').read_bytes()).hexdigest()
    sums = {'metrics.csv': metrics, 'state': state_sha(Path('stopped'))}
    expected['stopped'] = {'weights': arrays, 'state': state, 'results': results, 'sums of the end': sums}

    old.train(patch, 'tail', old.TAIL, 'long_tail')
    scrub(Path('tail'))
    pack('finished', 'tail', 'data')
    expected['calibrated'] = said(
        patch, '--workdir', 'tail', '--checkpoint', 'calibrated', '--split', 'test_lt'
    )
    expected['best'] = said(patch, '--workdir', 'tail')
    expected['probabilities'] = {'tail': jaxcifar.load('tail')(images).tolist()}

    old.train(patch, 'ternary', old.TERNARY)
    old.train(patch, 'fused', old.FUSED)
    for run, how in ('ternary', 'safetensors'), ('ternary', 'packed'), ('fused', 'release'):
        old.command(patch, 'export', '--workdir', run, '--format', how, '--output', f'exports/{how}')
        expected['probabilities'][f'exports/{how}'] = jaxcifar.load(f'exports/{how}')(images).tolist()
    old.command(patch, 'torch_weights', '--workdir', 'ternary', '--to', 'exports/ternary.pth')
    pack('exports', 'exports')
    (old.HERE / 'expected.json').write_text(json.dumps(expected, indent=1) + '\n')


if __name__ == '__main__':
    main()
