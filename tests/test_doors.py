"""Every door on files that are damaged or of another kind: it works, or says in one line what to do.

And after the base install, without the optional packages, each export format works or says what it needs.
"""

import contextlib
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

from experiments.faults import arrays, commands, folders, images, lists, names, networks, weights, workdirs
from experiments.faults.outcomes import Tally
from jaxcifar.export.write import FORMATS, export
from jaxcifar.machine.errors import UserError


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A folder: workdirs of a tiny ternary network, its exports, its torch weights, an image."""
    folder = tmp_path_factory.mktemp('doors') / 'whole'
    folder.mkdir()
    with networks.registered():
        workdirs.build(folder)
        yield folder


# Door: what comes in, of which python -m experiments.faults tries more.
DOORS = {
    'images': lambda folder, run: images.cases(folder, 0.15),
    'folders': lambda folder, run: folders.cases(folder),
    'arrays': lambda folder, run: arrays.cases(folder, 0.2),
    'lists': lambda folder, run: lists.cases(folder),
    'weights': lambda folder, run: weights.cases(folder, 0.2),
    'names': lambda folder, run: names.names(),
    'amounts': lambda folder, run: names.amounts(),
    'commands': lambda folder, run: commands.cases(run, 0.1),
}


@pytest.mark.parametrize('door', DOORS)
def test_bad_inputs_end_in_one_line(door, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tally = Tally(door).add(DOORS[door](tmp_path, run))
    assert tally.faults == [] and len(tally.lines) >= 30
    assert not [*tmp_path.rglob('ran')], 'a pickle was run'


QUICK = {
    file: tuple(command for command in of_file if command not in workdirs.SHARES)
    for file, of_file in workdirs.FILES.items()
}


@pytest.mark.parametrize('file', [file for file, of_file in QUICK.items() if of_file])
def test_damaged_files_end_in_one_line(file, run):
    tally = Tally(file).add(workdirs.cases(run, 0.15, {file: QUICK[file]}))
    assert tally.faults == [] and tally.tried


def base_install() -> set[str]:
    """Return the names of what pyproject's dependencies bring, of all that is installed here."""
    project = tomllib.loads((Path(__file__).parent.parent / 'pyproject.toml').read_text())['project']
    queue, brought = list(project['dependencies']), set()
    while queue:
        requirement = queue.pop()
        name = re.match(r'[\w.-]+', requirement)[0].lower().replace('_', '-')
        if name in brought or 'extra ==' in requirement:
            continue
        brought.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # of another platform
            queue += importlib.metadata.requires(name) or []
    return brought


@pytest.mark.parametrize('missing', [(), ('flatbuffers',)], ids=['base', 'even less'])
def test_formats_work_after_the_base_install_or_say_what_they_need(missing, run, tmp_path, monkeypatch):
    brought = base_install()
    needed = {'onnx', 'onnxruntime', 'flatbuffers', 'safetensors', 'scipy'}
    assert 'jax' in brought and 'onnx' not in brought and 'pytest' not in brought
    absent = {name for name in needed if name not in brought} | set(missing)
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)
    refused = []
    for kind in FORMATS:
        try:
            export(run / 'run', kind, tmp_path / kind)
        except UserError as error:
            refused.append(kind)
            assert re.search(r"needs \w+: pip install .*'\.\[export\]'", str(error))
    assert refused == ['onnx', *(['stablehlo'] if missing else [])]
