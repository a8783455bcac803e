"""The measurement of options of the compiler and of our own."""

import pytest

from experiments import results
from experiments.bench import options


@pytest.fixture
def measure(tmp_path, monkeypatch, tiny_networks, capsys):
    """(these variants) -> (their rows, what was printed)"""
    monkeypatch.setattr(results, 'FOLDER', tmp_path)

    def run(variants):
        monkeypatch.setitem(options.VARIANTS, 'cpu', variants)
        monkeypatch.setattr(options, 'compiler_options', lambda: {'xla_cpu_use_onednn': 'False'})
        options.main('tiny', '4', '2')
        return {row['variant']: row for row in results.read('options')}, capsys.readouterr().out

    return run


def test_variants_are_measured_once_and_what_xla_does_not_know_is_left_out(measure, monkeypatch):
    variants = {
        'bfloat16': {'precision': 'bfloat16'},
        'not donated': {'donated': ()},
        '2 steps a call': {'steps_per_call': 2, 'xla_cpu_enable_fast_math': 'True'},
        'new': {'xla_cpu_not_made_yet': 'True'},
    }
    rows, out = measure(variants)
    assert [*rows] == ['bfloat16', 'not donated', '2 steps a call', 'without xla_cpu_use_onednn']
    assert 'left out: this XLA does not know xla_cpu_not_made_yet' in out
    for row in rows.values():
        assert float(row['fastest']) <= float(row['ms']) <= float(row['slowest']) and not row['failed']
        assert float(row['times_default']) > 0
    monkeypatch.setattr(options, 'build', None)  # is not needed again
    again, out = measure(variants)
    assert again == rows and all(name in out for name in rows)


def test_what_fails_says_why_and_the_others_go_on(measure, monkeypatch):
    build = options.build

    def fragile(network, batch, changes):
        if 'precision' in changes:
            raise RuntimeError('cuDNN cannot do that\nat all')
        return build(network, batch, changes)

    monkeypatch.setattr(options, 'build', fragile)
    rows, out = measure({'bfloat16': {'precision': 'bfloat16'}, 'default again': {}})
    assert rows['bfloat16']['failed'] == 'cuDNN cannot do that' and not rows['bfloat16']['ms']
    assert rows['default again']['ms'] in out


def test_without_winograd_all_convolutions_are_xlas(monkeypatch):
    monkeypatch.setattr(options.convolution, 'WINOGRAD_CHANNELS', 16)
    changes = {}, options.VARIANTS['cpu']['without Winograd']
    ours, xlas = (options.build('resnet8', 4, c).program.as_text().count(' convolution(') for c in changes)
    assert ours < xlas


def test_a_variants_changes_reach_the_program(tiny_networks):
    text = {
        name: options.build('tiny', 4, changes).program.as_text()
        for name, changes in {
            'default': {},
            'bfloat16': {'precision': 'bfloat16'},
            'not donated': {'donated': ()},
        }.items()
    }
    assert 'bf16' in text['bfloat16'] and 'bf16' not in text['default']
    assert 'input_output_alias' in text['default'] and 'input_output_alias' not in text['not donated']
    two = options.build('tiny', 4, {'steps_per_call': 2})
    two.take(1)
    assert two.state.step == 2
