"""What the compiler and the C library are told before a run."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from jaxcifar.machine import compiler, memory
from jaxcifar.machine.profile import count_flops
from jaxcifar.models import build
from jaxcifar.models.convolution import convolve


def test_options_that_this_xla_does_not_know_are_left_out(monkeypatch):
    shipped = compiler.OPTIONS['cpu']
    compiler.compiler_options.cache_clear()
    assert compiler.compiler_options() == shipped
    monkeypatch.setitem(compiler.OPTIONS, 'cpu', {**shipped, 'xla_cpu_of_tomorrow': '1'})
    compiler.compiler_options.cache_clear()
    assert compiler.compiler_options() == shipped
    assert 'cpu_opt_preset' in compiler.describe() and 'tomorrow' not in compiler.describe()
    assert jax.jit(jnp.sin, compiler_options=compiler.compiler_options())(0.0) == 0


ALLOCATE = """
import ctypes, sys
from pathlib import Path
from jaxcifar.machine.memory import describe, restart_in_huge_pages
restart_in_huge_pages()
size = 1 << 26
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
ctypes.memset(c.malloc(ctypes.c_size_t(size)), 1, size)
size_in_kb = wished = 0
for line in Path('/proc/self/smaps').read_text().splitlines():
    name, *words = line.split()
    if name == 'Size:':
        size_in_kb = int(words[0])
    elif name == 'VmFlags:' and 'hg' in words:
        wished = max(wished, size_in_kb)
print(wished, *sys.argv[1:], describe())
"""


@pytest.mark.skipif(
    not memory.huge_page_environment(), reason='Linux gives huge pages unasked here, or not at all'
)
def test_a_command_begins_again_in_huge_pages(tmp_path):
    program = tmp_path / 'allocate.py'
    program.write_text(ALLOCATE)
    done = subprocess.run([sys.executable, program, 'a', 'b c'], capture_output=True, text=True, check=True)
    # What was asked for: whether the kernel has whole huge pages left is another matter.
    kilobytes, words = done.stdout.split(maxsplit=1)
    assert int(kilobytes) > 1 << 15 and words.strip() == 'a b c in huge pages'


def test_nothing_is_wished_for_twice_or_in_vain(monkeypatch, tmp_path):
    setting = tmp_path / 'enabled'
    monkeypatch.setattr(memory, 'SETTING', setting)
    monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.check=1')
    assert memory.huge_page_environment() == {}  # no such file: no Linux
    setting.write_text('[always] madvise never')
    assert memory.huge_page_environment() == {}
    setting.write_text('always [madvise] never')
    wish = memory.huge_page_environment()
    assert wish == {'GLIBC_TUNABLES': 'glibc.malloc.check=1:glibc.malloc.hugetlb=1'}
    monkeypatch.setenv('GLIBC_TUNABLES', wish['GLIBC_TUNABLES'])
    assert memory.huge_page_environment() == {}
    memory.restart_in_huge_pages()  # and goes on


def test_flops_are_those_of_products_and_convolutions():
    network, x = build('resnet18', 10), jnp.zeros((2, 32, 32, 3))
    shapes = network.shapes()

    def count(function, *arguments):
        return count_flops(jax.jit(function).trace(*arguments).jaxpr.jaxpr)

    forward = count(lambda v, x: network.apply(v, x, False)[0], shapes, x)
    assert forward / 2 == pytest.approx(2 * 555_422_720 + 2 * 512 * 10, rel=1e-3)  # multiplications, twice
    backward = count(jax.grad(lambda v, x: network.apply(v, x, False)[0][0].sum()), shapes, x)
    assert backward == pytest.approx(3 * forward, rel=0.01)  # but for the first layer's images

    # Members side by side do the work of members in turns, whatever zeros their one kernel has.
    members, kernels = jnp.zeros((4, 2, 8, 8, 16)), jnp.zeros((4, 3, 3, 16, 16))
    each = partial(convolve, stride=1, padding=((1, 1), (1, 1)))
    for form in (lambda f: f, lambda f: jax.grad(lambda x, k: f(x, k).sum(), (0, 1))):
        in_turns = count(form(lambda x, k: jnp.stack([*map(each, x, k)])), members, kernels)
        for way in ('dense', 'grouped'):
            assert in_turns == count(form(jax.vmap(partial(each, members_as=way))), members, kernels)

    def product(a):
        return a @ a

    mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec('data')
    shared = jax.shard_map(lambda a: product(a[0])[None], mesh=mesh, in_specs=spec, out_specs=spec)
    a = jnp.ones((4, 8, 8))
    assert count(shared, a) == 4 * count(product, a[0]) == 4 * 2 * 8**3
    assert count(lambda a: jax.lax.scan(lambda b, a: (product(b), None), a[0], a)[0], a) == 4 * 2 * 8**3
