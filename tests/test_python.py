"""What Python gets: `jaxcifar.train` and `open`, and the run that they return."""

import csv
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import jaxcifar
from jaxcifar.config import short_form
from jaxcifar.config.command_line import parse
from jaxcifar.config.short_form import spell_out
from jaxcifar.machine.errors import UserError
from jaxcifar.schedule import Schedule
from tests.conftest import small_images
from tests.processes import ROOT


@pytest.fixture
def small(small_npz, tiny_networks, tmp_path, monkeypatch) -> dict:
    """Fields that make any config a training of a second, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return {
        'dataset': f'npz:{small_npz}', 'network': 'linear', 'devices': 1, 'epochs': 2, 'batch_size': 32,
        'augment': 'none', 'shortcut': '', 'validation_size': 16, 'tensorboard': False,
        'eval.batch_size': 40,
    }  # fmt: skip


def test_importing_the_package_imports_nothing_large():
    code = "import sys, jaxcifar; assert not {'jax', 'torch', 'absl'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_a_run_is_trained_by_name_and_its_numbers_are_arrays(small, tmp_path, capsys):
    rates = [np.float32(0.1), 0.05]
    run = jaxcifar.train('mutual:resnet32', members=2, lr=rates, seed=list(np.arange(2)), **small)
    assert run.workdir.parent == tmp_path / 'runs'
    assert f'workdir: {run.workdir.relative_to(tmp_path)}' in capsys.readouterr().out
    assert run.config.optimizer.lr == pytest.approx((0.1, 0.05)) and run.config.seed == (0, 1)
    assert run.config.coupling == 'mutual'
    assert run.names == ['0_linear', '1_linear']
    with open(run.workdir / 'metrics.csv') as file:
        rows = [row for row in csv.DictReader(file) if row['checkpoint'] == 'last']
    for split in ('train', 'validation', 'test'):
        columns = run.history[split]
        for row in (row for row in rows if row['split'] == split):
            k, e = run.names.index(row['member']), columns['epoch'].tolist().index(float(row['epoch']))
            assert columns['accuracy'][k, e] == float(row['accuracy']) and columns['step'][e] == int(
                row['step']
            )
    assert run.history['train']['kl'].shape == (2, 2) and run.history['timing']['seconds'].shape == (2,)
    # What `jaxcifar schedule` shows beforehand is what training did.
    schedule = Schedule(run.config)
    assert list(schedule.lines) == run.names and schedule.total == run['step']
    rates = schedule.rates(run.history['train']['step'].astype(int) - 1)
    np.testing.assert_allclose(rates.T, run.history['train']['lr'], rtol=1e-6)
    # As a dict it is results.json, for whoever indexes what training returned.
    assert run == run.results == json.loads((run.workdir / 'results.json').read_text())
    assert 'test accuracy' in repr(run) and run.load(1).names == ['1_linear']
    # Names of files may come in an array, as a column of pandas, and a path is one of text.
    Image.fromarray(small_images(1)[0][0]).save('a.png')
    assert len(run.load().predict(np.array(['a.png', 'a.png'], dtype=object))) == 2
    assert short_form.changed(run.config, {'init_from': run.workdir}).init_from == str(run.workdir)
    again = jaxcifar.open(run.workdir)
    assert again == run and again.history['train']['loss'].tolist() == run.history['train']['loss'].tolist()
    (run.workdir / 'results.json').unlink()
    assert jaxcifar.open(run.workdir) == {} and 'unfinished' in repr(jaxcifar.open(run.workdir))


def test_a_config_of_ones_own_is_trained_as_before(small, config, tmp_path):
    run = jaxcifar.train(config, tmp_path / 'run', network='linear', epochs=1)
    assert run['epoch'] == 1 and run.workdir == tmp_path / 'run'
    assert (config.network, config.epochs) == ('resnet8', 2)  # the fields went into a copy
    # So does what is filled in: the same config may be changed and trained again, by a thread too.
    config.network, config.epochs, config.members = 'linear', 1, 2
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(jaxcifar.train, config, tmp_path / 'two').result()
    assert config.member_ids is None and '±' in repr(run)
    run.results['members'][1]['numbers'] = {'optimizer.lr': 0.1}
    assert '±' not in repr(run)  # a spread over other rates is no error bar


@pytest.mark.parametrize(
    ('config', 'fields', 'message'),
    [
        ('quickstart', {'dropout': 0.1}, 'in several groups: expected model.dropout or fusion.dropout'),
        ('quickstart', {'epoch': 3}, "unknown field 'epoch'; did you mean 'epochs'?"),
        ('quickstart', {'lr': '.1'}, 'optimizer.lr must be a number, or one for each member, got .1'),
        ('quickstart', {'wd': 0.1}, 'write --config.optimizer.weight_decay=0.1 for --wd 0.1'),
        ('quckstart', {}, "unknown config 'quckstart'; did you mean 'quickstart'?"),
        (3, {}, "expected a config's name, a file or a ConfigDict, got 3"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(config, fields, message, tmp_path):
    with pytest.raises(UserError) as caught:
        jaxcifar.train(config, tmp_path / 'run', **fields)
    assert message in str(caught.value) and not (tmp_path / 'run').exists()


def test_several_hosts_need_a_workdir_that_all_are_given(monkeypatch):
    several = ['quickstart', '--processes', '2', '--process', '0', '--coordinator', 'host:1']
    with pytest.raises(UserError, match='expected --workdir for several hosts, got none'):
        spell_out(several)
    assert spell_out([*several, '--workdir', 'x'])
    monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '2')
    with pytest.raises(UserError, match='give all the same folder'):
        spell_out(['quickstart'])


def test_a_command_line_is_the_one_that_is_given(monkeypatch):
    monkeypatch.setattr('sys.argv', ['other', '--config=mutual', '--config.epochs=7', '--config.members=9'])
    for words in (
        ['--config=quickstart', '--config.epochs=3'],
        ['--config', 'quickstart', '--config.epochs=3'],
    ):
        config, workdir = parse(['this', '--workdir=here', *words])
        assert (config.coupling, config.epochs, config.members, str(workdir)) == ('none', 3, 3, 'here')


def test_a_config_file_gets_nothing_of_the_one_before_it(tmp_path):
    (tmp_path / 'empty.py').touch()
    parse(['jaxcifar', '--config=quickstart', '--workdir=unused'])
    with pytest.raises(UserError, match=r'has no get_config\(\)'):
        parse(['jaxcifar', f'--config={tmp_path}/empty.py', '--workdir=unused'])
