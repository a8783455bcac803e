"""What is measured and counted of our step alone: options of the compiler and of our own, and kernels."""

import re

import jax
import pytest

from configs import single
from experiments import results
from experiments.bench import kernels, options
from jaxcifar.machine.errors import UserError


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


PROGRAM = """
%fused (p: f32[8]) -> f32[8] {
  ROOT %add.1 = f32[8]{0} add(%p, %p)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %conv = (f32[8]{0}, u8[0]{0}) custom-call(%p), custom_call_target="__cudnn$convForward", metadata={op_name="a/b"}
  %loop_add_fusion.12 = f32[8]{0} fusion(%p), calls=%fused, metadata={op_name="jit(f)/net/layer1_0/relu/max"}, backend_config={"reification_cost":[{"exec_time_us":1.5,"compute_time_us":1,"name":""}]}
  %fusion.3 = f32[2,4]{1,0} fusion(%p), kind=kCustom, backend_config={"kind":"__triton_gemm","reification_cost":[{"exec_time_us":99,"name":""},{"exec_time_us":0.25,"name":"indexing-cost-model"}]}
  ROOT %copy.7 = f32[8]{0} copy(%p)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  ROOT %loop = f32[8]{0} fusion(%p), calls=%fused
}
"""  # noqa: E501


def test_the_kernels_of_a_step_are_read_from_the_body_of_its_loop(capsys):
    found = kernels.read_kernels(PROGRAM)
    assert [(k.kind, k.name, k.shape, k.microseconds) for k in found] == [
        ('custom-call', 'conv', 'f32[8]', 0), ('fusion', 'loop_add_fusion', 'f32[8]', 1.5),
        ('fusion', 'fusion', 'f32[2,4]', 0.25), ('copy', 'copy', 'f32[8]', 0),
    ]  # fmt: skip
    without = PROGRAM.replace('custom-call', 'slice')  # the body is known by its kernels, not by convolutions
    assert kernels.read_kernels(without) == found[1:]
    kernels.show([found[1]] * 2)
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line == ['2', '3.0', 'f32[8]', 'loop_add_fusion', 'layerN_N/relu/max']


@pytest.mark.parametrize('found', ['none', '0.1'])
def test_without_the_plugin_of_jax_the_command_says_how_to_get_it(found, monkeypatch):
    def version(package):
        if found == 'none':
            raise kernels.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(kernels, 'version', version)
    with pytest.raises(UserError, match=f'got {found}: pip install .*pjrt=={re.escape(jax.__version__)}'):
        kernels.compile_for_gpu(single.get_config())
