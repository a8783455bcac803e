"""The pictures that a run draws at its end, and its last words."""

import csv
import io
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import jaxcifar.pictures as command
from jaxcifar.loop import train
from jaxcifar.report import predictions
from jaxcifar.report.figures import png
from jaxcifar.runs.metrics import confusion, worst_mistakes
from tests.conftest import small_config
from tests.test_tools import points

ALL = {'curves', 'sweep', 'confusion', 'per_class', 'mistakes', 'first_batch'}


def shows_something(picture: bytes) -> bool:
    with Image.open(io.BytesIO(picture)) as image:
        return len(np.unique(np.asarray(image.convert('RGB')).reshape(-1, 3), axis=0)) > 50


def small_sweep(npz, epochs=2):
    c = small_config(npz)
    c.network, c.members, c.epochs, c.batch_size = 'tiny', 2, epochs, 24
    c.optimizer.lr, c.log.pictures, c.log.tensorboard = (0.001, 0.1), True, True
    return c


def drawn(workdir) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (workdir / 'pictures').glob('*')}


def test_a_run_draws_itself_and_says_what_to_do_next(small_npz, tmp_path, tiny_networks, capsys, monkeypatch):
    monkeypatch.setattr('jaxcifar.report.figures.DPI', 40)
    workdir, config = tmp_path / 'my run', small_sweep(small_npz)
    config.log.pictures = False
    results = train(config, workdir)
    assert not drawn(workdir) and 'pictures' not in capsys.readouterr().out
    # The table of classes adds up to the accuracy.
    with open(workdir / 'per_class.csv') as file:
        rows = [r for r in csv.DictReader(file) if (r['member'], r['checkpoint']) == ('1_tiny', 'last')]
    hits = sum(float(r['recall']) * int(r['images']) for r in rows)
    assert hits / 40 == pytest.approx(results['members'][1]['last']['test']['accuracy'], abs=1e-5)
    assert sum(int(r['train_images']) for r in rows) == 80
    # The command draws a run that did not draw itself.
    monkeypatch.setattr('sys.argv', ['pictures', '--workdir', str(workdir)])
    command.main()
    before = drawn(workdir)
    assert before.keys() == ALL and all(map(shows_something, before.values()))
    # A run that goes on draws itself anew, and its past is in the curves.
    train(small_sweep(small_npz, epochs=3), workdir)
    *_, files, following, evaluate, predict, report = capsys.readouterr().out.splitlines()
    assert drawn(workdir).keys() == ALL and drawn(workdir)['curves'] != before['curves']
    assert drawn(workdir)['first_batch'] == before['first_batch']
    assert str(workdir) in files and '6 pictures' in files and following == 'next:'
    assert shlex.split(evaluate) == ['python', '-m', 'jaxcifar.evaluate', str(workdir)]
    assert shlex.split(predict)[2:4] == ['jaxcifar.predict', str(workdir)]
    assert shlex.split(report)[2:] == ['jaxcifar.report', str(workdir)]
    # TensorBoard has each epoch once, and the newest pictures.
    assert [epoch for epoch, _ in points(workdir / 'tensorboard/1_tiny/train')['loss']] == [1, 2, 3]
    shown = points(workdir / 'tensorboard/run')
    assert {tag for tag in shown if 'pictures' in tag} == {f'pictures/{name}' for name in ALL}


def test_a_picture_that_fails_loses_no_run(small_npz, tmp_path, tiny_networks, capsys, monkeypatch):
    def fail(*_):
        raise ValueError('no ink')

    monkeypatch.setattr('jaxcifar.report.figures.draw_run', fail)
    assert train(small_sweep(small_npz), tmp_path)['epoch'] == 2
    said = capsys.readouterr().out
    assert (tmp_path / 'results.json').exists() and not drawn(tmp_path)
    assert 'drew 0 pictures, then failed (ValueError: no ink)' in said and said.count('no ink') == 1


def test_matplotlib_is_imported_only_to_draw_and_left_as_it_was():
    code = (
        'import sys, jaxcifar.loop; assert "matplotlib" not in sys.modules\n'
        'from jaxcifar.report.figures import png\n'
        'import matplotlib as mpl; from matplotlib.figure import Figure\n'
        'mpl.rcParams["font.size"] = 33; png(Figure)\n'
        'assert mpl.rcParams["font.size"] == 33 and not mpl.rcParams["axes.grid"]\n'
        'assert "matplotlib.pyplot" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_mistakes_and_confusions_are_counted():
    labels = np.array([0, 0, 1, 1])
    p = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.6, 0.4, 0], [0, 1, 0]])
    with np.errstate(divide='ignore'):
        assert worst_mistakes(np.log(p), labels, 16).tolist() == [1, 2]  # the more certain one first
    shares = confusion(p.argmax(1), labels, 3)
    np.testing.assert_array_equal(shares, [[0.5, 0.5, 0], [0.5, 0.5, 0], [np.nan] * 3])


def test_classes_that_are_mistaken_for_one_another_become_neighbours():
    """Thirty classes in six kinds, in no order; within a kind they are taken for each other."""
    kinds = np.random.default_rng(0).permutation(30) % 6
    shares = np.where(kinds[:, None] == kinds, 0.1, 0.0) + 0.5 * np.eye(30)
    ordered = kinds[predictions.order(shares)]
    assert (np.diff(ordered) != 0).sum() == 5
    assert predictions.order(shares[:10, :10]).tolist() == [*range(10)]  # few keep their own order


@pytest.mark.parametrize('count', [3, 40, 130])
def test_names_of_classes_draw_without_a_warning(count, monkeypatch):
    """Whatever they hold; and a class without test images has no accuracy."""
    monkeypatch.setattr('jaxcifar.report.figures.DPI', 40)
    names = [('$x_{', '猫\n', 'a' * 60)[i % 3] for i in range(count)]
    shares = np.full((count, count), 1 / count)
    shares[0] = np.nan
    bars = np.diagonal(shares)
    assert shows_something(png(lambda: predictions.draw_confusion(shares, names, '$t_{')))
    assert shows_something(png(lambda: predictions.draw_classes(bars, {'$m_{': bars}, names, '$t_{', '$m_{')))


def test_a_sweep_over_decades_and_zero_is_logarithmic():
    figure = predictions.draw_sweep({'tau': [1, 1, 2], 'decay': [0, 1e-4, 1e-2]}, {'test': np.ones(3)})
    tau, decay = figure.axes
    assert (tau.get_xscale(), decay.get_xscale()) == ('linear', 'symlog')
    assert [label.get_text() for label in decay.get_xticklabels()] == ['0', '0.0001', '0.01']
