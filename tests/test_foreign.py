"""Weights that others saved: one reader for all the ways in which scripts save them."""

import argparse
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from experiments.bench.torch_networks import small_resnet
from jaxcifar.engine.population import Population, make_mesh
from jaxcifar.engine.state import init_state
from jaxcifar.formats import foreign
from jaxcifar.machine.errors import UserError
from jaxcifar.models import build
from jaxcifar.runs.init_from import begin_from
from jaxcifar.runs.resolve import finalize
from tests.steps import distance


@pytest.fixture(scope='module')
def state():
    torch.manual_seed(0)
    return small_resnet('A', classes=4).state_dict()


def renamed(state, prefix, classifier='fc'):
    return {prefix + name.replace('fc.', f'{classifier}.'): tensor for name, tensor in state.items()}


def fitted(path):
    return foreign.read(path).fit(build('resnet8', 4).shapes(), 'resnet8')


WRAPPED = {
    'net': lambda s: {'net': s, 'acc': 91.5, 'epoch': 3},
    'model with its optimizer': lambda s: {'model': s, 'optimizer': {'state': {}, 'param_groups': []}},
    'model_state_dict': lambda s: {'model_state_dict': s},
    'lightning': lambda s: {'state_dict': renamed(s, 'model.'), 'global_step': 7},
    'ema': lambda s: {'ema': s},
    'state_dict_ema': lambda s: {'state_dict_ema': s},
    'twice': lambda s: {'model': {'state_dict': s}},
    'DataParallel': lambda s: renamed(s, 'module.'),
    'compiled': lambda s: renamed(s, '_orig_mod.'),
    'compiled before': lambda s: renamed(s, 'module._orig_mod.'),
    'compiled after': lambda s: renamed(s, '_orig_mod.module.'),
    'both': lambda s: renamed(s, '_orig_mod.module._orig_mod.model.'),
    'backbone, and a head beside it': lambda s: {
        name.replace('backbone.fc', 'head'): tensor for name, tensor in renamed(s, 'backbone.').items()
    },
    'linear': lambda s: renamed(s, 'net.', 'linear'),
    'classifier': lambda s: renamed(s, '', 'classifier'),
    'AveragedModel': lambda s: {**renamed(s, 'module.'), 'n_averaged': torch.tensor(3)},
    'half': lambda s: {name: t.half() if t.is_floating_point() else t for name, t in s.items()},
}


@pytest.mark.parametrize('kind', WRAPPED)
def test_a_state_dict_is_found_wherever_it_is(kind, state, tmp_path):
    torch.save(WRAPPED[kind](state), tmp_path / 'file.pth')
    expected = build('resnet8', 4).shapes()
    variables = fitted(tmp_path / 'file.pth')
    kernel = variables['params']['fc']['kernel']
    np.testing.assert_allclose(kernel, state['fc.weight'].T, atol=1e-3)
    assert variables['batch_stats'].keys() == expected['batch_stats'].keys()


@pytest.mark.parametrize('ending', foreign.ENDINGS)
def test_every_ending_is_read(ending, state, tmp_path):
    path = tmp_path / f'file{ending}'
    if ending == '.safetensors':
        save_file({name: t.bfloat16() if t.ndim == 4 else t for name, t in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=ending != '.th')
    assert foreign.is_foreign(path)
    torch.save(state, tmp_path / 'plain.pth')
    assert distance(fitted(path), fitted(tmp_path / 'plain.pth')) < 1e-2


REFUSED = {
    'no tensors': (lambda s: {'epoch': 3, 'names': ['a']}, 'holds no state_dict but a dict of epoch, names'),
    'a list': (lambda s: [s['fc.weight']], 'holds no state_dict but list'),
    'nothing': (lambda s: {}, 'holds no state_dict'),
    'numbered': (lambda s: {0: s['fc.weight']}, 'holds no state_dict'),
    'integers': (lambda s: {**s, 'fc.weight': s['fc.weight'].to(torch.int8)}, 'fc.weight as int8 strided'),
    'sparse': (lambda s: {**s, 'fc.weight': s['fc.weight'].to_sparse()}, 'fc.weight as float32 sparse_coo'),
    'complex': (lambda s: {**s, 'fc.bias': s['fc.bias'].cfloat()}, 'fc.bias as complex64'),
    'on no device': (lambda s: {**s, 'fc.bias': s['fc.bias'].to('meta')}, 'fc.bias as float32'),
    'infinite': (lambda s: {**s, 'fc.bias': s['fc.bias'] / 0}, 'fc.bias with numbers that are not finite'),
    'twice': (lambda s: {**s, 'module.fc.bias': s['fc.bias']}, 'holds two tensors fc.bias'),
    'without a bias': (lambda s: {k: t for k, t in s.items() if k != 'fc.bias'},
                       r'missing: 1 \(fc.bias\); its 36 tensors for 4 classes are of no network here'),
}  # fmt: skip


@pytest.mark.parametrize('kind', REFUSED)
def test_other_files_are_refused_with_a_line(kind, state, tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, 'NETWORKS', {'resnet8': foreign.NETWORKS['resnet8']})
    change, words = REFUSED[kind]
    path = tmp_path / 'file.pth'
    torch.save(change(state), path)
    with pytest.raises(UserError, match=words) as caught:
        fitted(path)
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('wrapper', ['state_dict', 'net', None])
def test_what_is_said_of_python_objects_works(wrapper, old, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'file.pth'
    args = argparse.Namespace(lr=0.1, model='resnet8')  # a word that is not the wrapper
    saved = {wrapper: state, 'args': args} if wrapper else small_resnet('A', classes=4)
    torch.save(saved, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(UserError, match=r'holds a Python object \(.*If you trust') as caught:
        foreign.read(path)
    exec(re.search(r'import torch; .*', str(caught.value))[0], {})
    assert foreign.read(tmp_path / 'weights.pth').classes() == 4


def test_the_network_is_told_by_its_tensors(tmp_path, monkeypatch):
    few = {name: foreign.NETWORKS[name] for name in ('speednet_small', 'resnet20', 'resnet8')}
    monkeypatch.setattr(foreign, 'NETWORKS', few)
    path = tmp_path / 'file.pth'
    torch.save(small_resnet('B', classes=7).state_dict(), path)
    name, options = foreign.read(path).likely()
    assert build(name, 7, **options).shapes() == build('resnet8', 7, shortcut='B').shapes()
    with pytest.raises(UserError, match=r'fit resnet20: .* of a resnet8 .*7 classes: ask for') as caught:
        foreign.read(path).fit(build('resnet20', 7).shapes(), 'resnet20')
    assert re.search(r'missing: 60 \(\S+, \S+, \S+, …\)', str(caught.value))


def test_a_file_of_other_classes_is_where_training_begins(state, config, tmp_path, capsys):
    torch.save({'net': renamed(state, 'module.', 'linear')}, tmp_path / 'file.pth.tar')
    config.init_from, config.view = str(tmp_path / 'file.pth.tar'), 'ternary'
    run = finalize(config)
    population = Population(run, 3, 8, make_mesh(run))
    drawn = init_state(run, population)
    began, fresh = (population.disassemble(s.params)[0] for s in (begin_from(run, population, drawn), drawn))
    assert distance(began['fc'], fresh['fc']) == 0
    kernel = state['layer1.0.conv1.weight'].permute(2, 3, 1, 0)
    np.testing.assert_array_equal(began['layer1_0']['conv1']['kernel'], kernel)
    assert 'fc of 0_resnet8 begins fresh, 4 -> 3 classes' in capsys.readouterr().out
