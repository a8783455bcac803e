"""The benchmark beside PyTorch, with ways that sleep in processes of their own."""

import atexit
import os
import shlex
import signal
import sys
import time

import pytest

# No more at the top: the workers import this file for the ways below.
from experiments import results
from experiments.bench import comparison
from experiments.bench.worker import Step, Worker, WorkerError

HERE = 'tests.test_bench:'


def sleeper(network, batch, seconds):
    """A way of this pace."""
    print('a library that talks')
    return Step(lambda steps: time.sleep(steps * seconds), {'compile_seconds': 2.0, 'flops': batch * 1e6})


def failing(network, batch):
    """A way that does not fit."""
    raise RuntimeError('out of memory\nby 3 bytes')


def dying(network, batch):
    """A way that the system ends when it takes its first step."""
    return Step(lambda steps: os.kill(os.getpid(), signal.SIGKILL), {})


def device():
    """What they run on."""
    return Step(lambda steps: None, {'kind': 'a bed', 'peak': 1e9})


def hoarder():
    """A way that needs 100 MB, and no longer."""
    return Step(lambda steps: bytearray(b'x') * 100_000_000, {})


def noting(network, batch, path):
    """A way that notes when it begins and ends, and finds what it compiled before."""

    def note(word):
        with open(path, 'a') as file:
            print(word, file=file)

    note('start')
    atexit.register(note, 'end')
    cache = os.environ['TORCHINDUCTOR_CACHE_DIR']
    before = os.path.exists(cache)
    os.makedirs(cache, exist_ok=True)
    return Step(lambda steps: time.sleep(0.001 * steps), {'compile_seconds': 0 if before else 9})


WAYS = {
    **{way: (HERE + 'sleeper', {'seconds': seconds}) for way, seconds in (
        ('ours', 0.01), ('ours bf16', 0.04), ('linen', 0.02), ('torch', 0.06), ('torch compile', 0.02),
        ('torch bf16', 0.04),
    )},
    'torch graphs bf16': (HERE + 'failing', {}),
}  # fmt: skip


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The benchmark of resnet8 at a batch of 4, with these ways and short turns; results go elsewhere."""
    from experiments.bench import __main__ as bench
    from experiments.bench import compare

    monkeypatch.setattr(results, 'FOLDER', tmp_path)
    monkeypatch.setattr(sys, 'argv', ['bench', 'resnet8', '--batch', '4'])
    values = {'WAYS': WAYS, 'DEVICE': HERE + 'device', 'TOGETHER': True}
    for name, value in {**values, 'PASSES': 1, 'ROUNDS': 3, 'SECONDS': 0.05, 'PAUSE': 0}.items():
        monkeypatch.setattr(compare, name, value)
    return bench


def test_the_benchmark_names_the_fastest_and_measures_nothing_twice(bench, tmp_path, monkeypatch, capsys):
    command = tmp_path / 'nvidia-smi'
    command.write_text('#!/bin/sh\necho 570.86.15\necho 570.86.15\n')
    command.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(results, 'ON_GPU', True)
    bench.main()
    assert 'resnet8, batch 4 …' in capsys.readouterr().out
    rows = {row['way']: row for row in results.read('bench')}
    assert set(rows) == set(WAYS) and rows['ours']['device'] == 'a bed'
    assert rows['ours']['machine'].endswith(', driver 570.86.15')
    assert rows['ours']['command'] == shlex.join(['python', *sys.orig_argv[1:]])
    rate, share = (float(rows['ours'][name]) for name in ('images_per_second', 'share_of_peak'))
    assert 0 < rate <= 400 and share == pytest.approx(rate * 1e6 / 1e9, abs=6e-4)  # a MFLOP an image
    line = dict(zip(bench.comparison.COLUMNS, bench.comparison.line(list(rows.values()))))
    assert 'compile' in line['its best\nfloat32'] and 'graphs' not in line['its best\nbf16']
    assert float(line['ours/best\nfloat32']) > 1
    bench.main()
    assert 'batch 4 …' not in capsys.readouterr().out
    assert len(results.read('bench')) == len(WAYS) and (tmp_path / 'bench.png').stat().st_size > 5000


def test_ways_that_fail_become_rows_and_the_others_go_on(bench, monkeypatch, capsys):
    ways = {'ours': (HERE + 'failing', {}), 'torch bf16': (HERE + 'dying', {}), 'linen': WAYS['linen']}
    monkeypatch.setattr(
        bench.compare, 'WAYS', {**ways, 'torch': WAYS['torch'], 'ours bf16': WAYS['ours bf16']}
    )
    bench.main()
    rows = {row['way']: row for row in results.read('bench')}
    failed = {way: row['failed'] for way, row in rows.items() if row['failed']}
    assert failed == {'ours': 'RuntimeError: out of memory', 'torch bf16': 'killed by SIGKILL'}
    assert rows['ours']['images_per_second'] == '' and rows['torch']['images_per_second']
    assert 'failed: killed by SIGKILL' in capsys.readouterr().out


def test_one_after_another_in_two_passes(bench, monkeypatch, tmp_path):
    compare = bench.compare
    lives = tmp_path / 'lives'
    monkeypatch.setattr(compare, 'TOGETHER', False)
    monkeypatch.setattr(compare, 'WAYS', {way: (HERE + 'noting', {'path': str(lives)}) for way in 'ab'})
    job = compare.Job('resnet8', 4, {}, 1e9)
    times = dict(compare.measure(job, ['a', 'b'], compare.Plan(2, compare.ROUNDS, compare.SECONDS)))
    assert lives.read_text().split() == ['start', 'end'] * 4
    for measured in times.values():
        assert len(measured.readings) == 2 * compare.ROUNDS
        assert measured.report['compile_seconds'] == 9  # of the first pass
    # What the first pass has measured is kept where no time is left for the second.
    now = [0.0]

    def take(job, group, *_):
        now[0] += 9
        for way, times in group.items():
            times.readings.append({})
            yield way

    monkeypatch.setattr(compare, 'take_group', take)
    monkeypatch.setattr(compare.time, 'monotonic', lambda: now[0])
    late = compare.Plan(3, compare.ROUNDS, compare.SECONDS, until=20)
    assert [(way, len(times.readings)) for way, times in compare.measure(job, ['a', 'b'], late)] == [
        ('a', 1), ('b', 1)
    ]  # fmt: skip


def test_a_worker_knows_the_peak_of_its_memory(tmp_path):
    with Worker(HERE + 'hoarder', tmp_path) as worker:
        assert worker.answer() == {}
        assert 95e6 < worker.turn(0)['bytes'] < 120e6
    with Worker(HERE + 'nothing', tmp_path) as worker, pytest.raises(WorkerError, match='nothing'):
        worker.answer()


def test_the_picture_is_of_the_newest_rows_of_this_machine():
    def row(network, way, value, machine='here'):
        return {
            'network': network,
            'batch': '8',
            'way': way,
            'device': 'cpu',
            'machine': machine,
            'value': value,
        }

    rows = [row('a', 'ours', 1), row('a', 'torch', 2), row('b', 'ours', 3), row('a', 'ours', 4)]
    groups = comparison.newest(
        [*rows, row('a', 'ours', 5, 'elsewhere')], {'device': 'cpu', 'machine': 'here'}
    )
    assert [[r['value'] for r in group] for group in groups] == [[4, 2], [3]]


def test_packed_weights_are_timed_and_take_a_byte_for_five():
    from experiments.bench import packed

    sizes = {}
    for form in ('float32', 'trits'):
        turn, sizes[form] = packed.prepare('resnet8', form, 1)
        assert all(value > 0 for value in turn().values())
    assert sizes['trits']['weight_bytes'] < sizes['float32']['weight_bytes'] / 8
