"""The command line, and every shipped config: what it resolves to, and that it runs."""

import csv
import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from configs import base
from jaxcifar import main
from jaxcifar.config import command_line, saved
from jaxcifar.config import fields as fields_module
from jaxcifar.config.command_line import which_host
from jaxcifar.config.fields import PER_MEMBER
from jaxcifar.config.members import member_seeds
from jaxcifar.config.values import flatten
from jaxcifar.loop import train
from jaxcifar.machine.errors import UserError
from jaxcifar.runs import resolve

GOLDEN = Path(__file__).parent / 'golden'
SHIPPED = ['base', 'quickstart', 'single:resnet20,cifar10', 'single:resnet18,cifar100', 'mutual',
           'mutual:resnet32+wideresnet28_2', 'mutual:strong', 'long_tail',
           'long_tail:cifar10,standard', 'long_tail:strong', 'expert',
           'expert:wideresnet28_10,strong,pool', 'ternary', 'ternary:mobilenetv2,cifar10,ttq',
           'fusion:densenet121,multiplicative', 'fusion:concatenation,strong', 'speedrun',
           'speedrun:90', 'speedrun:96']  # fmt: skip


def shipped(name: str):
    """A config of configs/, by 'name:argument'."""
    name, _, argument = name.partition(':')
    make = importlib.import_module(f'configs.{name}').get_config
    return make(argument) if argument else make()


@pytest.fixture
def parse(monkeypatch):
    """Parse a command line given as one string."""

    def run(line: str):
        argv = ['main', *line.split()]
        monkeypatch.setattr('sys.argv', argv)  # ml_collections looks there
        config, workdir = main.parse(argv)
        return resolve.finalize(config), workdir

    return run


@pytest.mark.parametrize('name', SHIPPED)
def test_resolved_configs_are_as_reviewed(name, monkeypatch):
    """A changed default shows up here. To accept it: rm tests/golden/NAME.json and run again."""
    for variable in ('JAXCIFAR_DATA', 'MODEL_TYPE', 'EXPERT_ID', 'EPOCHS'):
        monkeypatch.delenv(variable, raising=False)
    resolved = json.dumps(saved.to_dict(resolve.finalize(shipped(name))), indent=1) + '\n'
    path = GOLDEN / f'{re.sub("[:,+]", "-", name)}.json'
    if not path.exists():
        path.write_text(resolved)
        pytest.fail(f'{path} was missing and is written now: commit it')
    assert resolved == path.read_text()


@pytest.mark.parametrize('name', ['quickstart', SHIPPED[2], 'mutual', 'mutual:strong'])  # others run theirs
def test_every_shipped_config_runs_shrunk(name, config, tmp_path, tiny_networks):
    """As shipped but for size: the small images, a small network, six epochs."""
    c = shipped(name)
    c.dataset, c.data.validation_size = config.dataset, config.data.validation_size
    c.network, c.model.shortcut = '+'.join(['tiny'] * len(c.network.split('+'))), ''
    c.epochs, c.batch_size, c.devices, c.members = 6, 32, 1, c.members and min(c.members, 2)
    c.log.pictures = False
    results = train(resolve.finalize(c), tmp_path)
    assert results['epoch'] == 6 and len(results['members']) == c.members
    with open(tmp_path / 'metrics.csv') as file:
        loss = [float(r['loss']) for r in csv.DictReader(file) if r['split'] == 'train']
    assert np.mean(loss[-c.members :]) < np.mean(loss[: c.members])  # it learns


def test_the_independent_baseline_has_the_recipe_of_mutual_learning():
    alone, together = (
        flatten(resolve.finalize(shipped(name))) for name in ('single:resnet32,cifar100', 'mutual')
    )
    different = {field for field in alone if alone[field] != together[field]}
    assert different == {'coupling', 'members', 'member_ids'}
    # 781 batches of 64 an epoch, the last 16 images left out; SGD; cosine once an epoch.
    recipe = {'network': 'resnet32', 'epochs': 200, 'batch_size': 64, 'data.drop_last': True,
              'optimizer.lr': 0.1, 'optimizer.nesterov': True, 'optimizer.weight_decay': 5e-4,
              'schedule.name': 'cosine', 'schedule.per': 'epoch', 'augment': 'crop(4)+flip',
              'label_smoothing': 0.0, 'optimizer.clip': 0.0, 'mutual.temperature': 1.0}  # fmt: skip
    assert recipe.items() <= together.items() and together['members'] == 4


def test_every_field_is_documented_and_marked():
    """Each field has its one comment, and the marks in it are what the program does."""
    source = Path(fields_module.__file__).read_text()
    comments = dict(re.findall(r'^ +c\.([\w.]+) = .*?  # (.+)$', source, re.M))
    fields = flatten(base.get_config())
    assert comments.keys() == fields.keys()
    assert {f for f, text in comments.items() if '[K]' in text} == set(PER_MEMBER)
    resumable = {f for f in fields if saved.is_resumable(f)}
    assert {f for f, text in comments.items() if '[resumable]' in text} == resumable


def test_flags_change_fields(parse):
    c, workdir = parse(
        '--config configs/single.py:resnet8+resnet20,cifar100 --workdir runs/x '
        '--config.optimizer.lr=.1,.2 --config.schedule.milestones=3,5 --config.seed=4 '
        '--config.augment=crop(2,mode="reflect") --config.data.drop_last=True'
    )
    assert (c.members, c.dataset, str(workdir)) == (2, 'cifar100', 'runs/x')
    assert c.optimizer.lr == (0.1, 0.2) and c.schedule.milestones == (3, 5) and c.data.drop_last
    assert member_seeds(c) == [(4, 0), (4, 1)]


S = '--config configs/single.py --workdir x '


@pytest.mark.parametrize(('line', 'words'), [
    (S + '--config.optimizer.lrr=1', "'optimizer.lrr'; did you mean 'optimizer.lr'"),
    (S + '--config.batchsize=1', "did you mean 'batch_size'"),
    (S + '--workdirs=y', 'Did you mean: workdir'),
    ('--config configs/singel.py --workdir x', "did you mean 'configs/single.py'"),
    ('--config configs/single.py:resnet21 --workdir x', "'resnet21'; did you mean 'resnet20'?"),
    ('--config configs/single.py:resnet20,cifar11 --workdir x', "did you mean 'cifar10'"),
    ('--config configs/single.py:imagenet --workdir x', 'imagenet needs a path: imagenet:PATH'),
    ('--config configs/single.py:resnet8,cifar10,resnet20 --workdir x', "'resnet20': leave one out"),
    ('--config configs/mutual.py:resnet8+resnet33 --workdir x', "'resnet33'; did you mean 'resnet32'?"),
    ('--config configs/single.py --workdir=', '--workdir must be given, as in'),
    ('--config configs/single.py', '--workdir must be given, as in --config quickstart --workdir'),
    ('--config configs/long_tail.py:standart --workdir x', "did you mean 'standard'"),
    (S + 'stray', "expected flags, got 'stray'"),
    (S + '--config.epochs=many', 'epochs must be a whole number, got many'),
    (S + '--config.schedule.milestones=abc', 'whole numbers joined by commas, as in 1,2, got abc'),
    (S + '--config.epochs=0', 'epochs must be at least 1, got 0'),
    (S + '--config.optimizer.lr=-1', 'optimizer.lr must be at least 0, got -1'),
    (S + '--config.ema=1.5', 'ema must be at most 1, got 1.5'),
    (S + '--config.devices=-1', 'devices must be at least 1, got -1'),
    (S + '--config.optimizer.lr=.1,.2', 'for each of members=1, got (0.1, 0.2): set members=2'),
    (S + '--config.optimizer.lr=fast', 'must be a number, or one for each member, got fast'),
    (S + '--config.seed=.5', 'seed must be a whole number, or one for each member, got 0.5'),
    (S + '--config.schedule.name=cosin', "did you mean 'cosine'"),
    (S + '--config.augment=crop(4)+flop', "did you mean 'flip'"),
    (S + '--config.network=resnet8+resnet20 --config.members=3', 'members=3, got 2 in resnet8+resnet20'),
    (S + '--config.members=2 --config.member_ids=1,1', 'members=2 different numbers, got (1, 1)'),
    (S + '--config.optimizer.accumulate=3', 'multiple of optimizer.accumulate=3, got 128'),
    (S + '--config.coupling=mutal', "did you mean 'mutual'"),
    (S + '--config.mutual.temperature=0', 'mutual.temperature must be at least 0.01, got 0.0'),
    (S + '--config.update_order=sequential --config.optimizer.accumulate=2', 'needs whole batches'),
    (S + '--config.augment_each=True --config.augment=cutmix', 'leave mixup and cutmix out'),
    (S + '--config.dataset=stream:x --config.network=speednet', 'fits its first filters to images in memory'),
    ('--config configs/mutual.py:resnet32+resnet20 --workdir x --config.members=3', 'members=3, got 2 in'),
    ('--config configs/mutual.py:resnet32,cifar11,strong --workdir x', "did you mean 'cifar10'"),
    (S + '--config.optimizer.decay=(', 'optimizer.decay'),
    (S + '--config.optimizer.rates=bias', "expected rules like 'bias=64', got 'bias'"),
    (S + '--config.optimizer.rates=bias=-1', "expected a factor of at least 0, got 'bias=-1'"),
    (S + '--config.network=preact_resnet18 --config.model.shortcut=A', 'model.shortcut=A is not for preact'),
    (S + '--config.optimizer.rescale=True', 'optimizer.rescale is for muon: set optimizer.rescale=False'),
    (S + '--config.tau=.5,1,2 --config.members=3', 'loss=cross_entropy ignores it: leave tau out'),
    (S + '--config.loss=balanced_softmax --config.tau=2', 'tau=2 is for loss=logit_adjustment'),
    ('--config configs/speedrun.py --workdir x --config.model.dropout=.3', 'must be 0 for speednet'),
    (S + '--config.data.image_size=224', 'leave it out for cifar10, whose images have 32 pixels'),
    ('--config configs/ternary.py:ttq --workdir x --config.ternary.float_epochs=9', 'ternary.scale_decay=0'),
    (S + '--config.eval.shift=-1', 'eval.shift must be at least 0, got -1'),
    (S + '--config.log.wandb=offline', "pip install -e '.[wandb]'"),
    (S + '--config.data.validation=none --config.early_stopping.patience=3', 'needs validation'),
])  # fmt: skip
def test_mistakes_end_in_one_clear_line(parse, line, words, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)  # as if without wandb
    with pytest.raises(UserError) as caught:
        parse(line)
    assert words in str(caught.value) and '\n' not in str(caught.value)


def test_a_misspelt_field_in_a_config_file_is_named(parse, tmp_path):
    path = tmp_path / 'mine.py'
    lines = ['from configs import base', 'def get_config():', ' c = base.get_config()', ' c.epoch = 1']
    path.write_text('\n'.join([*lines, ' return c']))
    with pytest.raises(UserError, match="unknown field 'epoch'; did you mean 'epochs'"):
        parse(f'--config {path} --workdir x')


@pytest.mark.parametrize(('line', 'words'), [
    ('    c.epochs = 1 / 0', 'line 4: ZeroDivisionError: division by zero'),
    ("    c.epochs = 'a'", "line 4: TypeError: Could not override field 'epochs'"),
    ('    c.optimiser.lr = .1', 'line 4: AttributeError: \'optimiser\' Did you mean "optimizer"'),
    ('    import no_such_module', 'line 4: ModuleNotFoundError: No module named'),
    ('    c.epochs = = 1', 'line 4: SyntaxError: invalid syntax'),
    ('    return', 'get_config() must return a ConfigDict, got None'),
    ('get_config = None', 'the config file has no get_config()'),
])  # fmt: skip
def test_a_config_file_that_fails_is_named_with_its_line(line, words, tmp_path):
    path = tmp_path / 'mine.py'
    lines = ['from configs import base', 'def get_config():', '    c = base.get_config()', line]
    path.write_text('\n'.join([*lines, '    return c'] if line.startswith(' ') else lines[:1]))
    with pytest.raises(UserError) as caught:
        command_line.parse(['main', f'--config={path}', '--workdir=x'])
    where = f'the config file fails: {path}, ' if words.startswith('line') else ''
    assert where + words in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('changes', [
    '--config.coupling=fusion --config.update_order=sequential --config.members=2 --config.split=fusion '
    '--config.data.validation=none',
    '--config.dataset=stream:x --config.data.loader=device',
    '--config.dataset=imagenet:x --config.steps_per_call=4',
    '--config.update_order=sequential --config.optimizer.accumulate=2',
    '--config.data.validation=none --config.early_stopping.patience=3',
    '--config.optimizer.rescale=True',
])  # fmt: skip
def test_what_an_error_says_to_set_mends_it(parse, changes):
    with pytest.raises(UserError) as caught:
        parse(S + changes)
    field, value = re.search(r'set ([\w.]+)=([\w.]+)', str(caught.value)).groups()
    parse(f'{S}{changes} --config.{field}={value}')


@pytest.mark.parametrize(('flags', 'words'), [
    ('--processes 0', '--processes must be at least 1, got 0'),
    ('--coordinator a:1 --processes 2 --process 2', '--process must be from 0 to 1, got 2'),
    ('--coordinator host --processes 2', '--coordinator must be HOST:PORT, got host'),
    ('--processes 2 --process 1', '--processes: expected --coordinator'),
])  # fmt: skip
def test_hosts_that_cannot_be_are_refused(flags, words):
    with pytest.raises(UserError, match=words):
        which_host(['main', *flags.split()])


def test_help_names_the_configs_and_every_field(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['main', '--help'])
    main.main()
    text = capsys.readouterr().out
    for word in ('configs/quickstart.py', '--config.optimizer.lr=', *flatten(base.get_config())):
        assert word in text
    # Fields stand under the name of their group.
    assert text.index('\noptimizer:\n') < text.index('optimizer.lr = ') < text.index('\nschedule:\n')


def test_help_of_fields_says_what_they_take(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['main', '--help', 'eval', 'optimizer.lr', 'precision'])
    main.main()
    text = capsys.readouterr().out
    assert 'eval.batch_size = 500  (a whole number, from 1)\n      images a step in evaluation' in text
    assert 'optimizer.lr = 0.1  (a number, or one for each member, from 0)' in text
    assert "precision = 'float32'  (float32 | bfloat16)" in text and 'optimizer.momentum' not in text
    monkeypatch.setattr('sys.argv', ['main', '--help', 'clip'])
    main.main()
    text = capsys.readouterr().out
    assert 'fusion.clip = 1.0' in text and 'optimizer.clip = 0.0' in text and 'clip_all' not in text
    monkeypatch.setattr('sys.argv', ['main', '--help', 'optimizer.lrr'])
    with pytest.raises(UserError, match=r"did you mean 'optimizer\.lr'"):
        main.main()


def test_a_saved_config_comes_back_whole(tmp_path):
    c = resolve.finalize(shipped('quickstart'))
    (tmp_path / 'config.json').write_text(json.dumps(saved.to_dict(c)))
    loaded = saved.load(tmp_path / 'config.json')
    assert flatten(loaded) == flatten(c)
    saved.refuse_changes(loaded, c, tmp_path)
    c.epochs, c.log.every_steps = 99, 5  # resumable
    saved.refuse_changes(loaded, c, tmp_path)
    c.optimizer.lr = 0.3
    with pytest.raises(UserError, match=r'optimizer\.lr was 0\.1, now 0\.3'):
        saved.refuse_changes(loaded, c, tmp_path)


def test_runs_of_old_lack_newer_fields(tmp_path):
    c = resolve.finalize(shipped('quickstart'))
    fields = saved.to_dict(c)
    del fields['update_order'], fields['ternary'], fields['optimizer']['rest']
    (tmp_path / 'config.json').write_text(json.dumps(fields))
    assert flatten(saved.load(tmp_path / 'config.json')) == flatten(c) | saved.BEFORE


def test_a_project_may_have_its_own_configs(parse, monkeypatch):
    own = ModuleType('configs')
    monkeypatch.setitem(sys.modules, 'configs', own)
    before = list(sys.path)
    assert parse('--config quickstart --workdir x')[0].network == 'resnet8'
    assert sys.modules['configs'] is own and sys.path == before
