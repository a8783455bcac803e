"""Files of a run that are lost, damaged or of another run: said in one line, and mended where that can be."""

import csv
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcifar.calibrate import calibrate
from jaxcifar.config import saved
from jaxcifar.data.datasets import load_dataset
from jaxcifar.data.vision import READING
from jaxcifar.engine.state import init_state
from jaxcifar.evaluate import evaluate, evaluate_all
from jaxcifar.loop import train
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.profile import Compiled
from jaxcifar.models import NETWORKS
from jaxcifar.runs import memory_check
from jaxcifar.runs.progress import Progress
from jaxcifar.runs.resolve import finalize
from jaxcifar.runs.session import prepare
from jaxcifar.runs.weights import default_checkpoint
from tests.conftest import small_config, small_images
from tests.processes import assert_same, assert_same_state, checkpoints, contents
from tests.steps import Linear
from tests.test_images import tree


@pytest.fixture(scope='module', autouse=True)
def linear():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, 'linear', Linear)
        yield


def configured(npz: Path, **fields):
    """Two members that compile in no time, over 96 images in steps of 40, 40 and 16."""
    c = small_config(npz)
    c.network, c.members, c.batch_size, c.epochs, c.augment = 'linear', 2, 40, 2, 'flip'
    c.data.validation = 'test'
    c.update_from_flattened_dict({name.replace('__', '.'): value for name, value in fields.items()})
    return c


@pytest.fixture(scope='module')
def done(small_npz, tmp_path_factory):
    """The workdir of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp('done') / 'run'
    train(configured(small_npz), workdir)
    return workdir


@pytest.fixture
def run(done, tmp_path, capsys):
    """A copy of it."""
    capsys.readouterr()
    return shutil.copytree(done, tmp_path / 'run')


def warnings(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def cut(path: Path):
    os.truncate(path, path.stat().st_size // 2)


def put(old: bytes, new: bytes):
    """What replaces the first `old` in a file."""
    return lambda path: path.write_bytes(path.read_bytes().replace(old, new, 1))


# Rows.

ROWS_LOST = {
    'the file': Path.unlink,
    'its end': cut,
    'a row': put(b'1,3,1_linear,train,', b''),
    'its text': put(b'1,3,1_linear,train,', b'1,3,1_\xffinear,train,'),
    'the first line': put(b'epoch,step', b'epoch;step'),
}


@pytest.mark.parametrize('damage', ROWS_LOST)
def test_lost_rows_are_said_and_later_ones_are_whole(damage, run, small_npz, capsys):
    before = (run / 'metrics.csv').read_text().splitlines()
    ROWS_LOST[damage](run / 'metrics.csv')
    result = train(configured(small_npz, epochs=3), run)
    (line,) = warnings(capsys)
    assert line.startswith('warning: ') and f'{run}/metrics.csv' in line
    lines = (run / 'metrics.csv').read_text().splitlines()
    assert lines[0] == before[0] and result['metrics_length'] == (run / 'metrics.csv').stat().st_size
    rows = list(csv.DictReader(lines))
    assert {len(row) for row in rows} == {len(before[0].split(','))}
    assert [row['member'] for row in rows if row['epoch'] == '3' and row['split'] == 'train'] == [
        '0_linear',
        '1_linear',
    ]
    kept = [line for line in lines if line in before]
    assert len(kept) == {'a row': len(before) - 1, 'its text': len(before) - 1}.get(damage, len(kept))
    assert (run / 'damaged' / 'metrics.csv').exists() == (damage == 'the first line')


def test_a_table_of_the_clock_with_a_wrong_first_line_begins_anew(run, small_npz, capsys):
    put(b'epoch', b'ep')(run / 'timing.csv')
    train(configured(small_npz, epochs=3), run)
    (line,) = warnings(capsys)
    assert 'timing.csv is not a jaxcifar file' in line
    assert (run / 'timing.csv').read_text().startswith('epoch,step,seconds')


# What a run can make again.


@pytest.mark.parametrize('content', ['{"step": ', '[]', 'null', '{"step": 6}', '[' * 10**5, '\xff'])
@pytest.mark.parametrize('name', ['results.json', 'run.json'])
def test_what_can_be_made_again_stops_no_run(name, content, run, done, small_npz, capsys):
    (run / name).write_bytes(content.encode('latin1'))
    train(configured(small_npz), run)
    said = warnings(capsys)
    if name == 'results.json':
        assert len(said) == 1 and 'results.json is not a jaxcifar file' in said[0]
        assert contents(run, name, 'metrics.csv', 'best/*/*') == contents(
            done, name, 'metrics.csv', 'best/*/*'
        )
        assert (run / 'damaged' / name).read_bytes() == content.encode('latin1')
    else:  # the run is finished, and asks for nothing
        train(configured(small_npz, epochs=3), run)
        (line,) = warnings(capsys)
        assert 'run.json is not a jaxcifar file' in line
        assert len(json.loads((run / name).read_text())['sessions']) == 1


# What it cannot.


def doors(workdir: Path, npz: Path):
    """Ways to use a run's images."""
    return lambda: evaluate(workdir, None, 'test', False), lambda: train(configured(npz, epochs=3), workdir)


def test_without_its_config_a_run_goes_on_only_as_it_was(run, small_npz, capsys):
    (run / 'config.json').unlink()
    with pytest.raises(UserError, match=r'config\.json is gone, and run\.json does not show'):
        train(configured(small_npz, epochs=3, optimizer__lr=0.01), run)
    assert train(configured(small_npz, epochs=3), run)['epoch'] == 3  # epochs may change
    assert 'config.json is gone; run.json shows that the config is the same' in capsys.readouterr().err
    assert (run / 'config.json').exists()


def test_without_its_dataset_file_a_run_takes_no_other_images(run, small_npz, tmp_path, capsys):
    (run / 'dataset.json').unlink()
    assert evaluate(run, None, 'test', flip=False)['step']
    assert 'dataset.json is gone' in capsys.readouterr().err
    (run / 'run.json').unlink()
    for door in doors(run, small_npz):
        with pytest.raises(UserError, match=r'dataset\.json is gone, and run\.json does not show'):
            door()


def other_images(npz: Path):
    (x, y), (x_test, y_test) = small_images(), small_images(40, seed=2)
    np.savez(npz, x_train=x, y_train=y, x_test=x_test, y_test=y_test)


def other_split(npz: Path):
    npz.with_suffix('.json').write_text(json.dumps([*range(1, 41)]))


@pytest.mark.parametrize('change', [other_images, other_split])
def test_every_door_asks_for_the_images_of_the_run_and_their_split(change, small_npz, tmp_path, capsys):
    npz = Path(shutil.copy(small_npz, tmp_path / 'own.npz'))
    npz.with_suffix('.json').write_text(json.dumps([*range(40)]))
    given = {'split': 'file', 'files__train': str(npz.with_suffix('.json'))}
    run, new = tmp_path / 'run', tmp_path / 'new'
    train(configured(npz, epochs=1, **given), run)
    evaluate_all([run], baseline=run)
    with pytest.raises(UserError, match='--baseline compares test images, got --split train'):
        evaluate_all([run], baseline=run, split='train')
    change(npz)
    kept = contents(run, '**/*')
    doors = {
        'go on': lambda: train(configured(npz, epochs=2, **given), run),
        'take over': lambda: train(configured(npz, epochs=2, resume_from=str(run), **given), new),
        'evaluate': lambda: evaluate(run),
        'calibrate': lambda: calibrate(run),
    }
    for name, door in doors.items():
        with pytest.raises(UserError, match=r'(images|split) of npz:.* (is|are) not (those )?that') as caught:
            door()
        remedy = f'--config.init_from={run}' if name == 'take over' else 'a new --workdir'
        assert remedy in str(caught.value)
    assert contents(run, '**/*') == kept
    train(configured(npz, epochs=1, init_from=str(run), **given), new)  # as the remedy says
    if change is other_images:
        with pytest.raises(UserError, match=f'got {run}, which was tested on others'):
            evaluate_all([new], baseline=run)


@pytest.mark.parametrize('kind', ['folder', 'stream'])
def test_a_run_of_an_older_version_goes_on_as_it_began(kind, tmp_path, capsys):
    """Older versions did not use val/, did not write how they read files, and read some in another way."""
    for part, count in (('train', 16), ('test', 3), ('later', 3)):
        tree(tmp_path / 'data' / part if part != 'later' else tmp_path / 'val', count=count)
    fields = {
        'dataset': f'{kind}:{tmp_path}/data',
        'data__image_size': 8,
        'batch_size': 16,
        'augment': 'none',
    }
    fields |= {'data__validation': 'holdout', 'data__validation_size': 4}
    train(configured(tmp_path, epochs=1, **fields), tmp_path / 'run')
    shutil.copytree(tmp_path / 'run', tmp_path / 'before')
    train(configured(tmp_path, **fields), tmp_path / 'before')
    (tmp_path / 'val').rename(tmp_path / 'data' / 'val')
    about = json.loads((tmp_path / 'run' / 'dataset.json').read_text())
    assert about.pop('reading') == READING
    (tmp_path / 'run' / 'dataset.json').write_text(json.dumps(about))
    capsys.readouterr()
    evaluate(tmp_path / 'run')
    warned = ['older version, which read 16-bit' in line for line in warnings(capsys)]
    assert warned == ([True] if kind == 'stream' else [])
    train(configured(tmp_path, resume_from=f'{tmp_path}/run', **fields), tmp_path / 'new')
    train(configured(tmp_path, **fields), tmp_path / 'run')
    assert 'the validation part is not used: this run began by' in capsys.readouterr().out
    assert_same(tmp_path / 'run', tmp_path / 'before')
    assert_same_state(tmp_path / 'new', tmp_path / 'before')
    Image.new('RGB', (9, 8)).save(tmp_path / 'data' / 'train' / 'a' / 'new.png')
    with pytest.raises(UserError, match=r'are not those that .*: put the files back, or choose a new'):
        train(configured(tmp_path, epochs=3, **fields), tmp_path / 'run')


@pytest.mark.parametrize('content', ['{"optimizer": null}', '[]', '{"members": "many"}', '\xff', '{"a": 1}'])
def test_a_config_of_another_kind_is_a_line(content, run, small_npz):
    (run / 'config.json').write_bytes(content.encode('latin1'))
    for door in doors(run, small_npz):
        with pytest.raises(UserError, match=r'config\.json is not a jaxcifar file'):
            door()


@pytest.mark.parametrize('epochs', [2, 3])
def test_lost_best_weights_are_noticed_at_the_start_and_chosen_anew(epochs, run, small_npz, tmp_path, capsys):
    (run / 'results.json').unlink()  # or a run of two epochs would be finished
    shutil.rmtree(run / 'best' / '0_linear')
    (run / 'best' / '1_linear' / '6 copy.npz').touch()
    before = contents(run, '**/*')
    with pytest.raises(
        UserError, match=r'best/0_linear/\d\.npz, the best weights so far, is gone: .*resume_from'
    ):
        train(configured(small_npz, epochs=epochs), run)
    assert contents(run, '**/*') == before
    result = train(configured(small_npz, epochs=epochs, resume_from=str(run)), tmp_path / 'new')
    (line,) = warnings(capsys)
    assert 'is gone; they are chosen among the epochs to come' in line
    assert list(result['mean']) == (['last', 'best'] if epochs == 3 else ['last'])


def test_one_checkpoint_is_kept_where_one_is_asked_for(small_npz, tmp_path):
    train(configured(small_npz, checkpoint__keep=1), tmp_path)
    assert checkpoints(tmp_path) == [6]


def test_a_takeover_that_was_stopped_at_once_is_repeated(run, small_npz, tmp_path):
    shutil.copytree(run / 'best', tmp_path / 'new' / 'best')  # copied, and then came the signal
    train(configured(small_npz, epochs=3, optimizer__lr=0.01, resume_from=str(run)), tmp_path / 'new')
    assert checkpoints(tmp_path / 'new')[-1] == 9


# Runs that are refused.


@pytest.mark.parametrize(('name', 'words'), [
    ('card.json', r'is an export: choose another --workdir; --config\.init_from=.*starts there'),
    ('config.json', r'config\.json is not a jaxcifar file .*: choose another --workdir, or delete it'),
])  # fmt: skip
def test_a_folder_of_something_else_stays_as_it_is(name, words, small_npz, tmp_path):
    (tmp_path / name).write_text('{"my": "settings"}')
    with pytest.raises(UserError, match=words):
        train(configured(small_npz), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != '.'] == [name]


def test_a_refused_run_leaves_nothing(small_npz, tmp_path):
    refused: list[dict] = [
        {'init_from': str(tmp_path / 'nothing')},
        {'resume_from': str(tmp_path / 'nothing')},
        {'batch_size': 100, 'data__drop_last': True},
        {'dataset': 'npz:nowhere.npz'},
    ]
    for fields in refused:
        with pytest.raises(UserError):
            train(configured(small_npz, **fields), tmp_path / 'new' / 'run')
        assert list(tmp_path.iterdir()) == []
    (tmp_path / 'mine').mkdir()
    with pytest.raises(UserError):
        train(configured(small_npz, **refused[0]), tmp_path / 'mine')
    assert list(tmp_path.rglob('*')) == [tmp_path / 'mine']


@pytest.mark.parametrize('fields', [{}, {'ema': 0.9}, {'optimizer__name': 'adamw'}])
def test_what_is_more_than_all_memory_is_refused_with_the_numbers(fields, small_npz, tmp_path, monkeypatch):
    session = prepare(finalize(configured(small_npz, **fields)))
    state = init_state(session.config, session.population)
    held = [state.params, state.stats, state.opt, state.ema]
    counted = [leaf for leaf in jax.tree.leaves(held) if leaf.size > len(session.names)]  # no counters
    held_bytes = sum(leaf.nbytes for leaf in counted)
    assert held_bytes <= memory_check.state_bytes(session) <= held_bytes + 100
    assert memory_check.batch_bytes(session) == 40 * 8 * 8 * 3 * 4
    monkeypatch.setattr('jaxcifar.machine.memory.total', lambda: 40_000)
    memory_check.check_run_fits(session)
    with pytest.raises(UserError, match=r'members=9000 and batch_size=40 need at least 0'):
        train(configured(small_npz, members=9000, **fields), tmp_path / 'run')
    with pytest.raises(UserError, match=r'1,797 images of data\.image_size=4096 need 90 GB'):
        load_dataset('digits', '', 4096)
    assert list(tmp_path.iterdir()) == []


# Members that are one network.


def test_members_that_nothing_tells_apart_are_said_with_a_remedy_that_helps(
    done, small_npz, tmp_path, capsys
):
    # 96 images in two steps of one size: one compilation a run.
    changes = {'epochs': 1, 'batch_size': 48}
    train(configured(small_npz, members=1, **changes), tmp_path / 'one')
    source = str(tmp_path / 'one')
    pairs: list[tuple[dict, dict, str]] = [
        ({'init_from': source}, {'data__order': 'member'}, 'set data.order=member'),
        ({'init_from': source, 'coupling': 'mutual'}, {'augment_each': True}, 'set augment_each=True'),
        ({'seed': (1, 1)}, {'seed': (1, 2)}, 'set a seed for each'),
        (
            {'init_from': source, 'seed': (1, 1)},
            {'seed': (1, 2), 'data__order': 'member'},
            'seed=1,2,…) and data.order=member',
        ),
    ]
    capsys.readouterr()
    for i, (alike, remedy, words) in enumerate(pairs):
        result = train(configured(small_npz, **changes, **alike), tmp_path / f'alike{i}')
        (line,) = warnings(capsys)
        assert line.startswith('warning: 0_linear, 1_linear are identical: ') and words in line
        assert result['members'][0]['last'] == result['members'][1]['last']
        result = train(configured(small_npz, **changes, **{**alike, **remedy}), tmp_path / f'differ{i}')
        assert warnings(capsys) == []
        assert result['members'][0]['last'] != result['members'][1]['last']


# What is between two steps.


def test_progress_is_what_a_checkpoint_keeps(small_npz):
    session = prepare(finalize(configured(small_npz)))
    progress = Progress.start(session)
    progress.step, progress.lr = 5, np.array([0.1, 0.2], np.float32)
    kept = json.loads(json.dumps(progress.to_json()))
    assert list(kept) == ['step', 'pending', 'epoch_steps', 'selection', 'metrics_length', 'lr']
    assert Progress.from_json(kept, session).to_json() == kept
    older = {k: v for k, v in kept.items() if k not in ('lr', 'epoch_steps')}
    assert Progress.from_json(older, session).to_json() == {**kept, 'lr': None}


def test_a_save_is_due_after_so_many_epochs_or_steps(small_npz):
    c = configured(small_npz)
    c.epochs, c.checkpoint.every_epochs, c.checkpoint.every_steps = 20, 4, 6
    session = prepare(finalize(c))
    progress = Progress.start(session)
    assert session.epoch_steps == 3
    for progress.step in range(61):
        due = progress.step in range(6, 61, 6) or progress.step in range(12, 61, 12) or progress.step == 60
        assert progress.save_is_due(session) == due


def test_a_shape_that_is_expected_compiles_before_it_comes():
    said: list[str] = []
    traced: list[tuple] = []

    def step(state, batch):
        traced.append(batch['x'].shape)
        return state + batch['x'].sum(), batch['x'] * 2

    compiled = Compiled(jax.jit(step), said.append)
    batch = {'x': jnp.ones((4, 3))}
    state, _ = compiled(jnp.zeros(()), batch)
    for rows in 2, 9:  # once is enough
        like = jax.ShapeDtypeStruct((rows, 3), jnp.float32, sharding=batch['x'].sharding)
        compiled.expect(state, [{'x': like}])
    compiled.leave()
    assert traced == [(4, 3), (2, 3)] and len(said) == 1
    state, row = compiled(state, {'x': jnp.ones((2, 3))})
    assert (float(state), row.shape) == (18, (2, 3)) and len(traced) == len(said) == 2
    assert 'images (2, 3)' in said[1] and compiled.waited < compiled.seconds
    # The first axis may be the steps of a call, whose FLOPs are counted for one step.
    product = jax.jit(lambda state, batch: (state, batch['x'] @ batch['x'].T))
    single, stacked = (Compiled(product, said.append, stacked=several) for several in (False, True))
    for program in single, stacked:
        program(jnp.zeros(()), batch)
    assert single.flops == 4 * stacked.flops > 0


def test_a_finished_run_without_checkpoints_keeps_its_best_weights(ternary_run, tmp_path):
    """They may have been deleted to save space."""
    run = shutil.copytree(ternary_run, tmp_path / 'run')
    shutil.rmtree(run / 'checkpoints')
    assert evaluate(run)['members'] == evaluate(ternary_run)['members']
    # A run that ended before its first evaluation stands for its last weights.
    results = json.loads((run / 'results.json').read_text())
    (run / 'results.json').write_text(json.dumps(results | {'mean': {'last': {}}}))
    assert default_checkpoint(saved.load(run / 'config.json'), run) == 'last'
    (run / 'results.json').write_text(json.dumps(results))
    with pytest.raises(UserError, match=r'checkpoints of .*run are gone: put them back, or use the best'):
        evaluate(run, 'last')
    before = {path: path.read_bytes() for path in run.rglob('*.[cn][sp][vz]')}
    with pytest.raises(UserError, match='finished run whose checkpoints are gone: put them back, or choose'):
        train(saved.load(run / 'config.json'), run)
    assert len(before) > 3 and all(path.read_bytes() == data for path, data in before.items())
