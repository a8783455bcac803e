"""Convolutions and their gradients, ours and XLA's, alone and in a scan: python -m experiments.convolution

Prints milliseconds, the median of rounds taken in turn. Ours should take about as long within
`lax.scan` as outside; XLA's own gradients take many times as long on a CPU.
"""

import statistics
import time
from functools import partial
from typing import Any

import jax

from jaxcifar.models.convolution import LAYOUT, convolve_groups

ROUNDS, LENGTH = 3, 2
# Channels, groups, kernel, stride and side of the image: a ResNet's, ResNeXt's and MobileNet's.
CASES = ((16, 1, 3, 1, 32), (64, 1, 3, 1, 32), (128, 1, 3, 2, 16), (128, 8, 3, 1, 16), (192, 192, 3, 1, 16))


def xlas(x, kernel, stride, padding, groups):
    """XLA's convolution, with autodiff's gradients."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT, feature_group_count=groups
    )


def gradients(convolve, x, kernel):
    """With respect to the images and the kernel."""
    return jax.grad(lambda x, kernel: (convolve(x, kernel) ** 2).sum(), (0, 1))(x, kernel)


def scanned(convolve, x, kernel):
    """The same `LENGTH` times in a loop, each with the kernel that the last one left."""

    def step(kernel, _):
        _, gradient = gradients(convolve, x, kernel)
        return kernel - 1e-9 * gradient, None

    return jax.lax.scan(step, kernel, None, LENGTH)[0]


def milliseconds(program, *arguments) -> float:
    """One call of a compiled program."""
    start = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return 1e3 * (time.perf_counter() - start)


def main(batch: int = 8):
    """Print a line a case."""
    print('channels groups kernel stride side | ours  in a scan | XLA  in a scan')
    for channels, groups, size, stride, side in CASES:
        x = jax.random.normal(jax.random.key(0), (batch, side, side, channels))
        kernel = 0.1 * jax.random.normal(jax.random.key(1), (size, size, channels // groups, channels))
        options: dict[str, Any] = {'stride': stride, 'padding': ((size // 2,) * 2,) * 2, 'groups': groups}
        programs = [
            (jax.jit(partial(run, partial(convolve, **options))).lower(x, kernel).compile(), calls)
            for convolve in (convolve_groups, xlas)
            for run, calls in ((gradients, 1), (scanned, LENGTH))
        ]
        rounds = [[milliseconds(p, x, kernel) / calls for p, calls in programs] for _ in range(ROUNDS)]
        ours, ours_scan, theirs, theirs_scan = map(statistics.median, zip(*rounds))
        case = f'{channels:8} {groups:6} {size:6} {stride:6} {side:4}'
        print(f'{case} | {ours:5.1f} {ours_scan:9.1f} | {theirs:5.1f} {theirs_scan:9.1f}', flush=True)


if __name__ == '__main__':
    main()
