"""PyTorch weights into a workdir, through evaluation and training, and out again."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.bench.torch_networks import small_resnet
from jaxcifar import torch_weights
from jaxcifar.evaluate import evaluate
from jaxcifar.formats import foreign
from jaxcifar.loop import train
from jaxcifar.machine.errors import UserError
from jaxcifar.models import build
from jaxcifar.predict import predict


@pytest.fixture
def command(monkeypatch):
    """The command line, given as its words."""

    def run(*words):
        monkeypatch.setattr('sys.argv', ['torch_weights', *map(str, words)])
        torch_weights.main()

    return run


@pytest.fixture
def weights():
    """A torch module in evaluation whose norms have seen images."""
    torch.manual_seed(0)
    network = small_resnet('A', classes=4)
    network(torch.rand(64, 3, 8, 8) * 3)
    return network.eval()


def scores(network, dataset, workdir):
    """torch's log-probabilities [n,C], accuracy and NLL of the test images."""
    said = json.loads((workdir / 'dataset.json').read_text())
    x = (dataset.x_test / 255 - said['mean']) / said['std']
    with torch.no_grad():
        log_p = network(torch.tensor(x).float().movedim(-1, 1)).log_softmax(1).numpy()
    right = log_p.argmax(1) == dataset.y_test
    return log_p, right.mean(), -log_p[np.arange(len(log_p)), dataset.y_test].mean()


def assert_same(network, dataset, workdir):
    _, accuracy, nll = scores(network, dataset, workdir)
    found = evaluate(workdir, 'last', 'test', flip=False)['mean']
    assert found['accuracy'] == accuracy and found['nll'] == pytest.approx(nll, abs=1e-5)


def test_there_and_back(weights, dataset, small_npz, config, command, tmp_path):
    path, start, tuned, back = (tmp_path / name for name in ('in.pth', 'start', 'tuned', 'out.pth'))
    state = {f'module.{name}': tensor for name, tensor in weights.state_dict().items()}
    torch.save({'epoch': 3, 'model_state_dict': state}, path)
    command(path, '--workdir', start, '--dataset', f'npz:{small_npz}')  # the network is told by the tensors
    assert_same(weights, dataset, start)
    data = f'npz:{small_npz}'
    direct = evaluate(path, dataset=data)['members'][0]  # the file itself, without a workdir
    assert direct == evaluate(start, 'last')['members'][0]
    command('--workdir', start, '--to', back)
    same = torch.load(back, weights_only=True)
    for name, tensor in weights.state_dict().items():
        assert torch.equal(same[name], tensor) or name.endswith('num_batches_tracked')

    config.resume_from, config.epochs, config.optimizer.lr = str(start), 1, 0.003
    train(config, tuned)
    command('--workdir', tuned, '--to', back, '--checkpoint', 'last')
    trained = small_resnet('A', classes=4)
    trained.load_state_dict(torch.load(back, weights_only=True))
    moved = (trained.conv1.weight - weights.conv1.weight).abs().max()
    assert 1e-5 < moved < 0.02  # it went on from there
    assert_same(trained.eval(), dataset, tuned)
    files = [tmp_path / f'{i}.png' for i in range(4)]
    for file, image in zip(files, dataset.x_test):
        Image.fromarray(image).save(file)
    direct, through = predict(path, files, dataset=data), predict(start, files)
    np.testing.assert_allclose(direct.probabilities, through.probabilities, atol=1e-6)
    probabilities = predict(tuned, files, 'last').probabilities
    np.testing.assert_allclose(probabilities, np.exp(scores(trained, dataset, tuned)[0][:4]), atol=1e-5)


def test_what_does_not_fit_is_said_in_one_line(weights, small_npz, command, tmp_path, monkeypatch):
    names = 'resnet8', 'resnet20', 'wideresnet28_2'  # all of them take seconds
    monkeypatch.setattr(foreign, 'NETWORKS', {name: foreign.NETWORKS[name] for name in names})
    good, other, broken, objects = (tmp_path / f'{n}.pth' for n in ('good', 'other', 'broken', 'objects'))
    torch.save(weights.state_dict(), good)
    state = weights.state_dict() | {'conv1.weight': torch.zeros(16, 3, 5, 5), 'head.weight': torch.zeros(3)}
    del state['layer2.0.bn1.bias']
    torch.save(state, other)
    broken.write_text('no weights')
    torch.save({'epoch': 3, 'names': ['a', 'b']}, objects)
    taken = tmp_path / 'taken'
    taken.mkdir()
    shutil.copy(small_npz, taken / 'config.json')
    data = f'npz:{small_npz}'
    for file, network, workdir, options, words in [
        (good, 'resnet20', 'x', (), r'fit resnet20: .* missing: 60 \(layer1\.1\.bn1\.bias, .*\); its 37 '
                                    r'tensors are those of a resnet8.* for 4 classes: ask for that network$'),
        (other, 'resnet8', 'x', (), r'missing: 1 \(layer2\.0\.bn1\.bias\), extra: 1 \(head\.weight\), '
                                    r'of another shape: 1 \(conv1\.weight \[16, 3, 5, 5\] not .*\); '
                                    'its 37 tensors for 4 classes are of no network here: .*'),
        (good, 'resnet8', 'x', (), 'has 4 classes, which is neither CIFAR-10 nor CIFAR-100: name'),
        (good, 'resnet8', 'x', ('--dataset', 'digits'), 'tells 4 classes apart, digits has 10'),
        (good, 'wideresnet28_2', 'x', ('--shortcut', 'A'), 'no choice of shortcut'),
        (good, 'resnet8', 'taken', ('--dataset', data), 'holds a run'),
        (broken, 'resnet8', 'x', (), 'broken.pth is not a file of PyTorch weights'),
        (objects, 'resnet8', 'x', (), 'holds no state_dict'),
        (tmp_path / 'absent.pth', 'resnet8', 'x', (), 'no such file'),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=words) as caught:
            command(file, '--network', network, '--workdir', tmp_path / workdir, *options)
        assert '\n' not in str(caught.value)
    assert not (tmp_path / 'x').exists()


def test_members_are_chosen(tiny_networks, config, command, tmp_path):
    config.network, config.batch_size, config.members, config.member_ids, config.epochs = (
        'tiny',
        40,
        2,
        (3, 7),
        1,
    )
    train(config, tmp_path / 'run')
    with pytest.raises(UserError, match=r'3_tiny, 7_tiny: choose by --member'):
        command('--workdir', tmp_path / 'run', '--to', tmp_path / 'out.pth')
    for member in (3, 7):
        command('--workdir', tmp_path / 'run', '--to', tmp_path / f'{member}.pth', '--member', member)
    three, seven = (torch.load(tmp_path / f'{k}.pth', weights_only=True) for k in (3, 7))
    assert three.keys() == seven.keys() and not torch.equal(three['fc.weight'], seven['fc.weight'])
    # As a start, weights follow their ids, whatever the order; the folder's name may hold a + and an @.
    source = (tmp_path / 'run').rename(tmp_path / 'a+b@c')
    config.member_ids, config.init_from, config.optimizer.lr = (7, 3), f'{source}@last', 0.0
    train(config, tmp_path / 'turned')
    command('--workdir', tmp_path / 'turned', '--to', tmp_path / 'turned.pth', '--member', 3)
    turned = torch.load(tmp_path / 'turned.pth', weights_only=True)
    assert torch.equal(turned['fc.weight'], three['fc.weight'])


def test_torchvisions_densenet_files_have_old_names(tmp_path):
    network = build('efficient_densenet', 10, blocks=(1, 1), growth=4, width=8)
    variables = network.init((0, 0))
    state = torch_weights.to_torch(variables)
    old = {n.replace('norm1.', 'norm.1.').replace('conv2.', 'conv.2.'): t for n, t in state.items()}
    assert old.keys() != state.keys()
    torch.save({'state_dict': old}, tmp_path / 'old.pth')
    again = foreign.read(tmp_path / 'old.pth').fit(network.shapes(), 'efficient_densenet')
    for name, tensor in torch_weights.to_torch(again).items():
        assert torch.equal(tensor, state[name])
