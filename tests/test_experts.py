"""Experts: who sees which images, to the index; one alone is one of four; the recipes and who wins."""

import copy
import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from configs import base, expert
from jaxcifar import main
from jaxcifar.config.values import flatten
from jaxcifar.data.datasets import load_dataset
from jaxcifar.data.loader import Order
from jaxcifar.data.splits import evaluation_images, make_split, train_counts
from jaxcifar.evaluate import evaluate
from jaxcifar.loop import train
from jaxcifar.machine.errors import UserError
from jaxcifar.runs.resolve import finalize
from tests.steps import distance
from tests.test_datasets import arrays, image_tree

IDS = (0, 1, 2, 3)


@pytest.fixture
def cifar():
    """Labels like those of CIFAR-100, without pictures."""
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 500))
    return SimpleNamespace(
        x_train=np.zeros((50000, 1), np.uint8), y_train=y, x_test=np.zeros((100, 1)), y_test=np.arange(100),
        num_classes=100, y_val=None, index_fault='',
    )  # fmt: skip


def split_config(split: str, validation: str = 'fusion_holdout', **changes):
    """A finalised config of that split; `__` in names of fields stands for a dot."""
    c = base.get_config()
    c.split, c.data.validation = split, validation
    c.update_from_flattened_dict({name.replace('__', '.'): value for name, value in changes.items()})
    return finalize(c)


def sha(indices) -> str:
    return hashlib.sha256(np.asarray(indices, '<i8').tobytes()).hexdigest()[:16]


def test_index_sets_are_those_of_the_seed(cifar):
    held = make_split(cifar, split_config('shared'))  # the baseline on all the pool
    assert held.validation[:10].tolist() == [2, 3, 5, 12, 14, 22, 30, 31, 37, 48]
    assert held.train[:10].tolist() == [0, 1, 4, 6, 7, 8, 9, 10, 11, 13]
    assert (sha(held.validation), sha(held.train)) == ('10def615983911cb', '6d6fb7e3c3340e13')
    split = make_split(cifar, split_config('overlap'))
    assert split.train.shape == (4, 22000) and sha(split.validation) == '10def615983911cb'
    assert split.train[0, :5].tolist() == [29958, 24402, 1822, 14818, 39044]
    assert split.train[:, 16000].tolist() == [40163, 4048, 23621, 30295]
    assert (split.train[:, :16000] == split.train[0, :16000]).all()
    assert sorted({*split.train.ravel()}) == held.train.tolist()  # the four have seen all the pool
    fusion = make_split(cifar, split_config('fusion', 'fusion_validation'))
    order = np.random.default_rng(42).permutation(held.validation)
    assert fusion.train.tolist() == sorted(order[:9000])
    assert fusion.validation.tolist() == sorted(order[9000:])
    both = make_split(cifar, split_config('shared', 'fusion_validation'))
    assert len(both.train) == 49000
    assert sorted([*fusion.train, *held.train]) == both.train.tolist()


def test_other_ratios_seeds_and_numbers_of_experts(cifar):
    changes = {'experts__count': 6, 'experts__shared': 0.1, 'experts__holdout': 5000, 'experts__seed': 1}
    split = make_split(cifar, split_config('overlap', **changes))
    assert split.train.shape == (6, 4500 + 6750) and len(split.validation) == 5000
    with pytest.raises(UserError, match=r'of at most 1, got 0\.4 \+ 5 \* 0\.15 = 1\.15'):
        make_split(cifar, split_config('overlap', experts__count=5))
    with pytest.raises(
        UserError, match=r'expected experts\.holdout to be some of the 50000 images, got 50000'
    ):
        make_split(cifar, split_config('overlap', experts__holdout=50000))


def test_disjoint_experts_each_have_their_classes(cifar):
    config = split_config('disjoint')
    split = make_split(cifar, config)
    counts = train_counts(cifar, split)
    assert counts.shape == (4, 100)
    for k in IDS:
        assert (np.flatnonzero(counts[k]) == np.arange(25 * k, 25 * k + 25)).all()
    pool = make_split(cifar, split_config('shared')).train
    assert counts.sum() == len(pool) == len(evaluation_images(cifar, split)['train'].labels)
    # An epoch is that of the largest; the others begin a second shuffle: nobody else's images come in.
    longest, sizes = split.train.shape[1], counts.sum(1)
    assert longest == sizes.max() > sizes.min()
    order = Order(config, split.train, 1)
    epoch = np.concatenate([order.indices(i) for i in range(order.steps_per_epoch)], axis=1)
    k = int(sizes.argmin())
    seen, times = np.unique(epoch[k], return_counts=True)
    assert seen.tolist() == sorted(split.train[k][split.train[k] >= 0])
    assert sorted({*times}) == [1, 2] and (times == 2).sum() == longest - sizes[k]
    alone = split_config('disjoint', member_ids=k)
    assert (make_split(cifar, alone).train == split.train[k]).all()
    with pytest.raises(UserError, match='at most the 100 classes, got 101'):
        make_split(cifar, split_config('disjoint', experts__count=101))


def test_an_expert_alone_is_the_expert_among_four(small_npz, tiny_networks, tmp_path, monkeypatch):
    """The shipped config but for size; index sets, batches, augmentation, restarts, clipping, weights.

    The experts have unlike numbers of images, and the loss a prior in which classes have none.
    """
    c = expert.get_config('disjoint')
    c.dataset, c.network, c.loss = f'npz:{small_npz}', 'tiny', 'logit_adjustment'
    c.epochs, c.batch_size, c.data.drop_last, c.devices, c.eval.batch_size = 3, 8, True, 1, 20
    c.schedule.period, c.early_stopping.patience, c.early_stopping.min_epochs = 1, 1, 0
    alone = copy.deepcopy(c)
    alone.member_ids = 2
    said: list[str] = []
    monkeypatch.setattr('jaxcifar.runs.console.Console.say', lambda self, line: said.append(line))
    single = train(alone, tmp_path / 'one')
    assert [m['name'] for m in single['members']] == ['2_tiny'] and '20 training images, 2' in said[0]
    said.clear()
    together = train(c, tmp_path / 'four')
    assert [m['name'] for m in together['members']] == [f'{k}_tiny' for k in IDS]
    for which in ('last', 'best'):
        numbers = [r['members'][k][which]['test'] for r, k in ((together, 2), (single, 0))]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-5)
    weights = [np.load(*(tmp_path / run / 'best' / '2_tiny').glob('*.npz')) for run in ('four', 'one')]
    assert weights[0].files == weights[1].files
    assert distance(*({name: w[name] for name in w.files} for w in weights)) <= 1e-6
    assert [m['train_images'] for m in together['members']] == [20, 19, 20, 18]
    start, text = said[0], '\n'.join(said)
    assert '18 to 20 training images each, 2 steps' in start
    assert 'training ends at epoch 2 of a warm-restart cycle of 2, with a learning rate of 0.05' in text
    epoch, name = min((m['best']['epoch'], m['name']) for m in together['members'])
    assert f'{name} stops at epoch {epoch + 1}; its best is epoch {epoch}, the last warm restart was' in text
    assert 'chosen on fusion_holdout, mean of different members' in text and '±' not in said[-1]
    assert evaluate(tmp_path / 'four', 'best', 'validation', False)['images'] == 19


@pytest.mark.parametrize(('argument', 'environment', 'flags', 'expected'), [
    ('', {}, '', {'network': 'resnet18', 'epochs': 250, 'members': 4, 'batch_size': 128,
                  'optimizer.weight_decay': 1e-4, 'model.dropout': .3, 'augment': 'seed000',
                  'schedule.name': 'warm_restarts', 'early_stopping.patience': 15}),
    ('', {'MODEL_TYPE': 'densenet201', 'EPOCHS': '3', 'EXPERT_ID': '2'}, '',
     {'network': 'densenet201', 'epochs': 3, 'members': 1, 'member_ids': (2,), 'batch_size': 32,
      'model.dropout': .2, 'optimizer.weight_decay': 5e-4}),
    ('preact_resnet18', {'MODEL_TYPE': 'densenet201', 'EPOCHS': '3', 'EXPERT_ID': '2'},
     '--config.epochs=5 --config.member_ids=1,3 --config.model.dropout=.1',
     {'network': 'preact_resnet18', 'optimizer.lr': .2, 'epochs': 5, 'member_ids': (1, 3), 'members': 2,
      'model.dropout': .1}),
    ('', {'MODEL_TYPE': 'densenet121'}, '--config.batch_size=16 --config.network=resnet8',
     {'network': 'resnet8', 'batch_size': 16, 'model.dropout': .2}),
    ('wideresnet28_10,strong', {}, '', {'augment': 'strong_wrn', 'label_smoothing': .03, 'batch_size': 128,
                                        'schedule.name': 'cosine', 'early_stopping.min_epochs': 120}),
    ('strong,densenet121', {}, '--config.label_smoothing=.2',
     {'augment': 'strong_densenet', 'label_smoothing': .2, 'batch_size': 64}),
    ('preact_resnext29_8x64d,strong,pool', {}, '', {'augment': 'strong_resnext', 'members': 1,
                                                    'split': 'shared', 'data.validation': 'fusion_holdout'}),
    ('resnet18+preact_resnet18+resnet18+densenet121,strong', {}, '',
     {'optimizer.lr': (.1, .2, .1, .1), 'optimizer.weight_decay': (1e-4, 5e-4, 1e-4, 5e-4), 'members': 4,
      'label_smoothing': (.1, .1, .1, .05), 'augment': 'strong_resnet', 'batch_size': 128}),
    ('resnet18+resnet18+resnet34+speednet', {}, '--config.optimizer.weight_decay=1e-3',
     {'optimizer.weight_decay': 1e-3, 'model.dropout': .3, 'label_smoothing': .05}),
    ('all', {}, '', {'split': 'shared', 'data.validation': 'none', 'early_stopping.patience': 0}),
    ('pool_fusion', {}, '--config.members=3', {'data.validation': 'fusion_validation', 'members': 3}),
])  # fmt: skip
def test_command_line_then_environment_then_network_then_recipe(
    argument, environment, flags, expected, monkeypatch, capsys
):
    for name in ('MODEL_TYPE', 'EPOCHS', 'EXPERT_ID'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    argv = ['main', f'--config=configs/expert.py:{argument}', '--workdir=x', *flags.split()]
    monkeypatch.setattr('sys.argv', argv)  # ml_collections looks there
    config = flatten(finalize(main.parse(argv)[0]))
    assert {field: config[field] for field in expected} == expected
    said = capsys.readouterr().err
    used = [name for name in environment if not (name == 'MODEL_TYPE' and argument)]
    assert all((name in said) == (name in used) for name in environment)
    assert ('batch_size=128 (alone: densenet121 64)' in said) == ('+densenet121' in argument)


@pytest.mark.parametrize(('argument', 'environment', 'words'), [
    ('resnet19', {}, "did you mean 'resnet18'"),
    ('resnet18,resnet34', {}, "takes one network, got 'resnet18' and 'resnet34': leave one out"),
    ('', {'EPOCHS': 'many'}, 'EPOCHS in the environment must be a whole number, got many'),
    ('', {'EXPERT_ID': '4'}, r'split=overlap: expected member_ids from 0 to 3'),
])  # fmt: skip
def test_mistakes_of_the_expert_config(argument, environment, words, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        finalize(expert.get_config(argument))


def write(folder, name: str, rows) -> str:
    path = folder / name
    if path.suffix == '.npy':
        np.save(path, np.array(rows))
    else:
        path.write_text(json.dumps(rows) if path.suffix == '.json' else '\n'.join(map(str, rows)))
    return str(path)


def test_index_files_are_a_split(cifar, tmp_path):
    rows = [[5, 1, 7], [2, 9, 4]]
    pair = ','.join(write(tmp_path, name, row) for name, row in zip(('a.npy', 'b.txt'), rows))
    held = write(tmp_path, 'held.json', [11, 10])
    for paths in (write(tmp_path, 'both.npy', rows), write(tmp_path, 'both.json', rows), pair):
        config = split_config('file', 'file', files__train=paths, files__validation=held)
        split = make_split(cifar, config)
        assert config.members == 2 and split.train.tolist() == rows and split.validation.tolist() == [10, 11]
        alone = split_config('file', 'none', files__train=paths, member_ids=1)
        assert make_split(cifar, alone).train.tolist() == [rows[1]]
    for name in ('one.txt', 'one.npy', 'one.json'):
        one = split_config('file', 'none', files__train=write(tmp_path, name, rows[0]), members=3)
        assert make_split(cifar, one).train.tolist() == rows[0]
    unlike = split_config('file', 'none', files__train=write(tmp_path, 'unlike.json', [[5, 1, 7], [2]]))
    assert make_split(cifar, unlike).train.tolist() == [[5, 1, 7], [2, -1, -1]]
    rest = make_split(cifar, split_config('shared', 'file', files__validation=held))
    assert len(rest.train) == 49998 and not {10, 11} & set(rest.train[:20])


@pytest.mark.parametrize(('rows', 'changes', 'words'), [
    ([[1, 2], [3, 50000]], {}, r'x\.json: expected indices of training images, 0 to 49999, got 50000'),
    ([-1, 2], {}, 'to 49999, got -1'),
    ([[1, 2, 2], [3]], {}, r'x\.json: expected each index once, got 2 2 times'),
    ([[1], [3]], {'members': 3}, r'expected member_ids from 0 to 1 \(files\.train\), got \(0, 1, 2\)'),
    ([[1], []], {}, 'expected a list of whole numbers'),
    ({'a': [1]}, {}, 'expected a list of indices, got a dict'),
    ([1.5], {}, 'expected a list of whole numbers'),
    (None, {}, r'x\.json: No such file'),
    ([1, 2], {'files__train': 'x.csv'}, r'x\.csv: expected a name that ends in \.npy'),
    ([1, 2], {'files__train': ''}, r'split=file needs files\.train'),
    ([1, 2], {'split': 'shared'}, r'files\.train is read only with split=file, got split=shared'),
    ([1, 2], {'data__validation': 'fusion_holdout'}, r'1 images of split=file are .*out of files\.train, or'),
    ([1, 2], {'split': 'overlap', 'data__validation': 'file', 'files__train': ''},
     r'1 images of split=overlap .*out of files\.validation, or set data\.validation=fusion_holdout or none'),
    ([[1], [2]], {'data__validation': 'holdout'}, 'hold none out: set data.validation=none'),
])  # fmt: skip
def test_faults_of_index_files(cifar, tmp_path, rows, changes, words):
    path = write(tmp_path, 'x.json', rows) if rows is not None else str(tmp_path / 'x.json')
    fields = {'split': 'file', 'data__validation': 'none', 'files__train': path, **changes}
    if fields['data__validation'] == 'file':
        fields['files__validation'] = path
    with pytest.raises(UserError, match=words) as caught:
        make_split(cifar, split_config(fields.pop('split'), fields.pop('data__validation'), **fields))
    assert '\n' not in str(caught.value)


def test_index_files_need_images_in_the_order_of_the_files(tmp_path):
    """A test part that is set aside shuffles the others, and a file that is left out shifts them."""
    rows = {'files__train': write(tmp_path, 'x.json', [0, 1])}
    held = {'files__validation': rows['files__train']}
    np.savez(tmp_path / 'own.npz', **arrays(3, each=10, size=8, x_test=None, y_test=None))
    image_tree(tmp_path / 'tree')
    for part in 'train', 'test':
        image_tree(tmp_path / 'parts' / part, count=3)
    own_test = 'expected a data set with its own test part, got '
    (tmp_path / 'parts' / 'train' / 'a' / '0.png').write_bytes(b'no image')
    for name, words in (
        (f'npz:{tmp_path}/own.npz', f'{own_test}{tmp_path}/own.npz without one: add x_test and y_test'),
        (f'folder:{tmp_path}/tree', f'{own_test}{tmp_path}/tree without one: put the images into'),
        (f'stream:{tmp_path}/tree', f'{own_test}{tmp_path}/tree without one: put the images into'),
        (f'folder:{tmp_path}/parts', f'that can all be read, got 1 in {tmp_path}/parts/train that cannot'),
    ):
        dataset = load_dataset(name, '', 8)
        for config in split_config('file', 'none', **rows), split_config('shared', 'file', **held):
            with pytest.raises(UserError, match=r'^files\.(train|validation): expected ') as caught:
                make_split(dataset, config)
            assert words in str(caught.value)
    # A stream replaces such a file, and the test part of digits is the same for everybody.
    for name in f'stream:{tmp_path}/parts', 'digits':
        config = split_config('file', 'none', **rows)
        assert make_split(load_dataset(name, '', 8), config).train.tolist() == [0, 1]


def test_a_split_names_the_validation_images_it_goes_with():
    with pytest.raises(UserError, match=r'set data\.validation=fusion_holdout'):
        split_config('overlap', 'holdout')
