"""What is looked at in a browser: TensorBoard's answers, and pictures of it and of the report."""

import contextlib
import csv
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from jaxcifar.report import tables as report
from tests.cluster import free_ports, until
from tests.processes import finish

pytestmark = pytest.mark.slow
CHROMIUM = ['chromium', '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
            '--disable-background-networking', '--disable-component-update', '--disable-sync',
            '--hide-scrollbars', '--window-size=1400,1000']  # fmt: skip


@pytest.fixture(scope='module')
def workdir(small_npz, tmp_path_factory):
    """A run of two members with event files."""
    return finish(tmp_path_factory.mktemp('pages') / 'run', small_npz, members=2, log__tensorboard=True)


def picture(url: str, folder, wait: int) -> np.ndarray:
    """The page as a browser shows it, [H,W,3]."""
    if shutil.which('chromium') is None:
        pytest.skip('chromium is not installed')
    path = folder / 'page.png'
    options = [f'--user-data-dir={folder}/profile', f'--screenshot={path}', f'--virtual-time-budget={wait}']
    subprocess.run([*CHROMIUM, *options, url], check=True, capture_output=True, timeout=120)
    return np.asarray(Image.open(path).convert('RGB'))


def assert_shows_something(image: np.ndarray):
    """It is neither blank nor one line of text."""
    ink = (np.abs(image.astype(int) - image[-1, -1]).sum(-1) > 60).mean()
    assert ink > 0.02 and len(np.unique(image.reshape(-1, 3), axis=0)) > 50


@contextlib.contextmanager
def tensorboard(folder):
    if importlib.util.find_spec('tensorboard') is None:
        pytest.skip('tensorboard is not installed')
    (port,) = free_ports(1)
    command = [sys.executable, '-m', 'tensorboard.main', f'--logdir={folder}', f'--port={port}']
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f'http://localhost:{port}'
    finally:
        process.terminate()
        process.wait()


def test_tensorboard_serves_the_scalars_of_metrics_csv(workdir, tmp_path):
    with tensorboard(workdir / 'tensorboard') as url:

        def tags():
            with contextlib.suppress(OSError), urlopen(f'{url}/data/plugin/scalars/tags') as answer:
                return json.load(answer).get('1_tiny/test')

        until(tags, 90)
        query = urlencode({'run': '1_tiny/test', 'tag': 'accuracy'})
        with urlopen(f'{url}/data/plugin/scalars/scalars?{query}') as answer:
            served = {step: value for _, step, value in json.load(answer)}
        with open(workdir / 'metrics.csv') as file:
            rows = [
                r for r in csv.DictReader(file)
                if (r['member'], r['split'], r['checkpoint']) == ('1_tiny', 'test', 'last')
            ]  # fmt: skip
        assert (
            served == {int(r['epoch']): pytest.approx(float(r['accuracy'])) for r in rows}
            and len(served) == 6
        )
        time.sleep(1)
        assert_shows_something(picture(f'{url}/#scalars', tmp_path, 20_000))


def test_the_report_is_a_page_with_tables_and_curves(workdir, tmp_path):
    page = report.report([workdir], tmp_path)
    assert_shows_something(picture(page.absolute().as_uri(), tmp_path, 2_000))
