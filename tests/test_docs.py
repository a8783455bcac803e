"""The pages keep what they promise: commands are understood and run, code works, links lead somewhere."""

import argparse
import importlib
import inspect
import json
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

import jaxcifar
from jaxcifar.config.command_line import parse, which_host
from jaxcifar.config.short_form import long_form, spell_out
from jaxcifar.formats import packed, packed_file
from jaxcifar.loop import train
from jaxcifar.machine import errors
from jaxcifar.runs.resolve import finalize
from tests import pages
from tests.conftest import small_images
from tests.pages import PAGES, ROOT
from tests.test_rooms import ROOMS

LINES = {'README': 120, 'first-run': 90, 'how-it-works': 110, 'networks': 60, 'augmentation': 50,
         'mutual': 130, 'experts-and-fusion': 130, 'long-tail': 130, 'ternary': 130, 'export': 80,
         'sweeps-and-clusters': 120, 'packed-format': 80, 'data': 80, 'results': 100, 'speed': 120,
         'costs': 120, 'gpu': 60, 'speedrun': 40, 'python': 60, 'from-pytorch': 80, 'old-flags': 80,
         'code': 60}  # fmt: skip
OF_CONFIG = ('jaxcifar.main', 'jaxcifar.preview', 'jaxcifar.doctor', 'jaxcifar.schedule')
SMALL = (
    '--config.epochs=1 --config.batch_size=16 --config.devices=1 --config.augment=crop(1)+flip '
    '--config.model.shortcut= --config.log.tensorboard=False --config.log.pictures=False '
    '--config.data.validation_size=16 --config.eval.batch_size=20'
)


@pytest.mark.parametrize('name', LINES)
def test_a_page_has_one_job_and_no_more_lines_than_that(name):
    path = ROOT / ('README.md' if name == 'README' else f'docs/{name}.md')
    shown = re.sub('<details>.*?</details>', '', path.read_text(), flags=re.S)
    assert len(shown.splitlines()) <= LINES[name]


def test_every_page_is_in_the_readme():
    assert {p.stem for p in ROOT.glob('docs/*.md')} == LINES.keys() - {'README'}
    readme = (ROOT / 'README.md').read_text()
    assert not [name for name in LINES.keys() - {'README'} if f'(docs/{name}.md)' not in readme]


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r'^#+ (.+)$', pages.FENCE.sub('', text), re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def test_links_lead_somewhere():
    count = 0
    for path in PAGES:
        for link in re.findall(r'\]\(([^)\s]+)\)', pages.FENCE.sub('', path.read_text())):
            if link.startswith('https://'):
                continue
            file, _, anchor = link.partition('#')
            target = path.parent / file if file else path
            assert target.exists(), f'{path.name}: {link}'
            assert not anchor or anchor in anchors(target.read_text()), f'{path.name}: {link}'
            count += 1
    assert count > 50


def test_the_page_of_the_code_has_the_table_of_rooms():
    rows = re.findall(r'^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$', pages.page('code'), re.M)
    table = {room: '' if 'nothing' in allowed else allowed.replace(',', '') for room, allowed in rows}
    assert table == {room: allowed for room, allowed in ROOMS.items() if room != 'commands'}
    files = {name for name in pages.inline(pages.page('code')) if re.fullmatch(r'[\w/]+\.py', name)}
    assert len(files) > 5 and not [name for name in files if not (ROOT / 'jaxcifar' / name).exists()]


class Understood(Exception):
    """Raised in place of what a command does."""


@pytest.fixture
def at_the_top(monkeypatch):
    """Run from the top of the checkout, with an environment that changes nothing."""
    monkeypatch.chdir(ROOT)
    for variable in ('JAXCIFAR_DATA', 'MODEL_TYPE', 'EXPERT_ID', 'EPOCHS'):
        monkeypatch.delenv(variable, raising=False)


def understand(command: pages.Command, monkeypatch):
    """Let a program read its command line and do nothing else."""
    words = command.words
    if command.module == 'jaxcifar.train':
        finalize(parse(['main', *spell_out([*words])])[0])
        return
    if command.module in OF_CONFIG:
        if words and '--help' not in words:
            _, words = which_host([*words])
            config, _ = parse([command.module, '--workdir=runs/x', *long_form(words, 'runs/x')])
            finalize(config)
        return
    name = command.module
    is_package = hasattr(importlib.import_module(name), '__path__')
    main = importlib.import_module(f'{name}.__main__' if is_package else name).__dict__.get('main')
    if main is None or not words:  # pytest and configs; a program that a sentence names
        return
    parameters = inspect.signature(main).parameters
    if parameters and 'argv' not in parameters:
        inspect.signature(main).bind(*words)
        return
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        original(self, args, namespace)
        raise Understood

    monkeypatch.setattr('argparse.ArgumentParser.parse_args', parse_args)
    monkeypatch.setattr('sys.argv', [name, *words])
    with pytest.raises(Understood):
        main()
    monkeypatch.setattr('argparse.ArgumentParser.parse_args', original)


def test_every_command_is_understood(at_the_top, monkeypatch):
    commands = [c for c in pages.all_commands() if c.module not in ('pytest', 'venv')]
    for command in commands:
        try:
            understand(command, monkeypatch)
        except (SystemExit, TypeError, errors.UserError) as error:
            pytest.fail(f'{command.page}: {command.module} {" ".join(command.words)}: {error}')
    assert len(commands) > 60


def test_every_change_of_a_field_is_understood(at_the_top):
    """What tables say to add to a command, or to give to --config."""
    texts = [(p.name, text) for p in PAGES for text in pages.inline(p.read_text()) if '…' not in text]
    changes = [(n, t) for n, t in texts if re.match(r'--config\b.+=|--config |configs/\w+\.py[: ]', t)]
    names = re.compile(r'FIELD|NETWORK|MODEL|FILE|ARGUMENT|mine.py|=X\b')
    changes = [(n, t) for n, t in changes if not names.search(t)]
    for name, text in changes:
        words = shlex.split(f'--config {text}' if text.startswith('configs/') else text)
        base = ['--config=configs/base.py'] * ('--config' not in words)
        try:
            parse(['main', *base, '--workdir=runs/x', *words])
        except errors.UserError as error:
            pytest.fail(f'{name}: {text}: {error}')
    assert len(changes) > 80


@pytest.fixture(scope='module')
def workshop(small_npz, tail_npz, tmp_path_factory):
    """A folder in which the pages' commands are run, with the configs and a picture."""
    folder = tmp_path_factory.mktemp('pages')
    (folder / 'configs').symlink_to(ROOT / 'configs')
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / 'cat.png')
    return folder, {'small': small_npz, 'tail': tail_npz}


@pytest.fixture
def run(workshop, tiny_networks, monkeypatch, at_the_top):
    """Run commands of a page; trainings are shrunk, and done once for all pages."""
    folder, data = workshop
    monkeypatch.chdir(folder)

    def shrunk(command: pages.Command):
        config, workdir = parse(['main', *command.words])
        if workdir.exists():
            return
        networks = '+'.join(['linear', 'tiny'][: 1 + config.network.count('+')])
        tail = config.split.startswith('long_tail')
        words = [f'--config.network={networks}', f'--config.dataset=npz:{data["tail" if tail else "small"]}']
        words += ['--config.long_tail.imbalance=5'] * tail + SMALL.split()
        config, workdir = parse(['main', *command.words, *words])
        assert train(config, workdir)['epoch'] == 1

    def one(command: pages.Command):
        if command.module == 'jaxcifar.main':
            return shrunk(command)
        name = command.module + '.__main__' * (command.module in ('jaxcifar.report', 'jaxcifar.export'))
        monkeypatch.setattr('sys.argv', [command.module, *command.words])
        return importlib.import_module(name).main()

    return lambda commands: [one(command) for command in commands]


def test_the_first_runs_commands_work(run, capsys):
    run([c for c in pages.in_blocks('first-run') if c.module not in ('jaxcifar.preview', 'jaxcifar.doctor')])
    said = capsys.readouterr().out
    assert 'test %' in said and 'cat.png' in said and 'report.html' in said


def test_the_mutual_pages_commands_work(run, capsys):
    run([c for c in pages.in_blocks('mutual') if c.module.startswith('jaxcifar')])
    assert 'better by' in capsys.readouterr().out


def test_the_digit_of_the_readme_is_an_image(tmp_path, monkeypatch):
    (line,) = re.findall('^python -c .+$', (ROOT / 'README.md').read_text(), re.M)
    monkeypatch.chdir(tmp_path)
    exec(shlex.split(line)[2])
    with Image.open('digit.png') as image:
        assert image.size == (8, 8)


def test_the_picture_is_small_and_drawn_from_a_run(run):
    assert all(path.stat().st_size < 150_000 for path in ROOT.glob('docs/*.png'))
    run(pages.in_blocks('mutual')[:1])
    program = runpy.run_path(str(ROOT / 'docs/picture.py'))
    for runs in (['runs/mutual'], ['runs/mutual=one', 'runs/mutual=the same']):
        program['main'](*runs, 'drawn.png')
        with Image.open('drawn.png') as image:
            assert len(np.unique(np.asarray(image))) > 50
    # What is drawn of the classes is of the members, and not of their ensemble.
    results = json.loads(Path('runs/mutual/results.json').read_text())
    accuracies = [member['last']['test']['accuracy'] for member in results['members']]
    images = np.bincount(np.arange(40) % 4)  # of each class in the small test set
    _, recalls = program['class_recalls']('runs/mutual')
    assert np.average(recalls, weights=images) == pytest.approx(np.mean(accuracies), abs=1e-5)


def test_eight_learning_rates_are_one_run(run, capsys):
    run([c for c in pages.in_blocks('sweeps-and-clusters') if 'runs/rates' in c.words])
    said = capsys.readouterr().out
    assert re.search(r'best on holdout: \d_linear lr=[\d.]+, whose test accuracy is', said)
    # Different members have no error bar.
    assert '±' not in ''.join(line for line in said.splitlines() if line.startswith('test accuracy'))


def test_experts_and_their_fusion_work(run, capsys):
    run(pages.in_blocks('experts-and-fusion')[:2])
    assert 'fused' in capsys.readouterr().out
    run([c for c in pages.all_commands() if c.words == ('--workdir', 'runs/fused')])
    assert 'the learned rule' in capsys.readouterr().out


def test_the_long_tail_pages_commands_work(run, workshop):
    run([c for c in pages.in_blocks('long-tail') if c.module.startswith('jaxcifar')])
    assert (workshop[0] / 'runs/long_tail/rejection.json').exists()


def test_what_the_export_page_loads_is_a_classifier(run, dataset, monkeypatch):
    (x, y), (x_test, y_test) = small_images(20, 10, 32), small_images(10, 10, 32)
    arrays = {'x_train': x, 'y_train': y, 'x_test': x_test, 'y_test': y_test}
    monkeypatch.setattr('jaxcifar.data.datasets.fetch_cifar', lambda name, root: arrays)
    run([pages.in_blocks('first-run')[0], *pages.in_blocks('export')])
    names = {'images': dataset.x_test}
    exec(pages.python('export', 'jaxcifar.load'), names)
    np.testing.assert_allclose(names['probabilities'].sum(1), 1, rtol=1e-5)
    assert names['model'].logits(dataset.x_test).shape == (1, 40, 4)


@pytest.fixture
def small_train(run, workshop, monkeypatch):
    """Let `jaxcifar.train` of a config's name take a linear network, the small images, and one epoch."""
    whole = jaxcifar.train

    def train_less(name, workdir=None, **fields):
        shrunk = [f'--config.dataset=npz:{workshop[1]["small"]}', '--config.network=linear', *SMALL.split()]
        config, _ = parse(['main', f'--config={name}', '--workdir=unused', *shrunk])
        return whole(config, workdir, **{**fields, 'epochs': 1})

    monkeypatch.setattr(jaxcifar, 'train', train_less)


def test_what_the_page_of_python_shows_works(small_train, capsys):
    names: dict = {}
    for code in pages.blocks(pages.page('python'), 'python'):
        exec(code, names)
    assert names['accuracy'].shape == (2, 1) and names['epochs'].tolist() == [1]
    assert names['best'] == names['run']['mean']['best']['accuracy']
    assert f'cat.png  {names["label"]} {names["sure"]:.1%}' in capsys.readouterr().out


def test_the_notebook_trains_looks_and_predicts(small_train, monkeypatch):
    monkeypatch.setenv('MPLBACKEND', 'agg')
    cells = json.loads((ROOT / 'docs/quickstart.ipynb').read_text())['cells']
    code = [cell for cell in cells if cell['cell_type'] == 'code']
    assert len(code) > 3 and not any(cell['outputs'] or cell['execution_count'] for cell in code)
    names: dict = {}
    for cell in code:
        exec(''.join(cell['source']), names)
    assert len(names['predictions']) == 8 and len(names['figure'].axes) == 8
    names['plt'].close('all')


def ternary_kernel(rng, shape, scales: int) -> np.ndarray:
    """Return float32 of three values, or of three a channel; with scales=2 of its own for each sign."""
    codes = rng.integers(-1, 2, shape)
    positive, negative = rng.uniform(0.1, 1, (2, shape[-1] if scales > 2 else 1))
    negative = negative if scales == 2 else positive
    return (codes * np.where(codes > 0, positive, negative)).astype(np.float32)


@pytest.mark.parametrize(('packing', 'rest'), [('trits', 'float32'), ('2bit', 'float16')])
@pytest.mark.parametrize('fold', [False, True])
def test_the_decoder_of_the_page_reads_packed_files(packing, rest, fold, tmp_path):
    rng = np.random.default_rng(0)
    kernels = {f'conv{n}': {'kernel': ternary_kernel(rng, (3, 3, 2, 7), n)} for n in (1, 2, 3)}
    norm, stats = (
        {a: np.float32(rng.uniform(1, 2, 7)) for a in names} for names in (('scale', 'bias'), ('mean', 'var'))
    )
    variables = {'params': {**kernels, 'bn1': norm}, 'batch_stats': {'bn1': stats}}
    packed_file.write(tmp_path / 'file', {'name': 'x'}, variables, packing, rest, fold)
    names: dict = {}
    exec(pages.python('packed-format', 'def decode'), names)
    header, arrays = names['decode']((tmp_path / 'file').read_bytes())
    assert (header['about'], header['rest'], header['folded']) == ({'name': 'x'}, rest, fold)
    assert [kind for _, _, kind, *_ in header['tensors']].count(packing) == 3
    _, same = packed_file.read(tmp_path / 'file')
    expected = flatten_dict(packed.to_dense(same), sep='/')
    assert expected.keys() - arrays.keys() == (
        {f'batch_stats/bn1/{leaf}' for leaf in stats} if fold else set()
    )
    for name, array in arrays.items():
        np.testing.assert_array_equal(expected[name], array)
