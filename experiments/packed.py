"""What packed ternary weights save and cost: python -m experiments.packed [NETWORK BATCH…]

Runs a CIFAR-10 network with fresh weights through the function of `jaxcifar.load`: dense in float32 and
bfloat16, and with ternary kernels that stay packed in memory, at 2 bits and at five to a byte. The bytes of
weights and of scratch memory are those of the compiled program; milliseconds a call are medians, without a
GPU of one core's CPU time.
"""

import statistics
from typing import Any

import jax
import numpy as np

from experiments import results
from jaxcifar.data.cifar import CIFAR
from jaxcifar.engine.quantize import to_floats, twn
from jaxcifar.export.classifier import Classifier
from jaxcifar.formats import packed
from jaxcifar.formats.portable import Portable
from jaxcifar.machine.command import run_words
from jaxcifar.models import build

CALLS = 3


def member(network: str, form: str) -> Portable:
    """Fresh weights: 'float32', 'bfloat16', or ternary in one of `packed.CODES`."""
    names, mean, std = CIFAR['cifar10']
    about = {
        'name': f'0_{network}',
        'network': network,
        'options': {},
        'precision': form if form == 'bfloat16' else 'float32',
        'classes': names.split(),
        'image_size': 32,
        'mean': mean,
        'std': std,
    }
    variables = build(network, 10).init((0, 0))
    if form == 'bfloat16':
        cast = jax.tree.map(lambda leaf: leaf.astype(form) if leaf.ndim > 1 else leaf, variables)
        return Portable(about, cast)
    if form in packed.CODES:
        shown = jax.device_get(jax.tree.map(_ternary, variables['params']))
        variables = {**variables, 'params': packed.pack_tree(shown, form)}
    return Portable(about, variables)


def _ternary(leaf):
    """Kernels but for the stem's and the classifier's, which see 3 channels and no pixels."""
    return to_floats(twn(leaf)) if leaf.ndim == 4 and leaf.shape[2] != 3 else leaf


def measure(network: str, form: str, batch: int) -> dict:
    """A row of the table."""
    model = Classifier([member(network, form)])
    images = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3), np.uint8)
    program = model.function.lower(model.weights, images).compile()
    memory: Any = program.memory_analysis()
    clocks = []
    for _ in range(CALLS + 1):
        start = results.clock()
        jax.block_until_ready(program(model.weights, images))
        clocks.append(results.clock() - start)
    return {
        'network': network,
        'form': form,
        'batch': batch,
        'weight_bytes': sum(leaf.nbytes for leaf in jax.tree.leaves(model.weights)),
        'scratch_bytes': memory.temp_size_in_bytes,
        'milliseconds': round(1e3 * statistics.median(clocks[1:]), 1),
    }


def main(network: str = 'resnet18', *batches: str):
    """Measure, print and append to experiments/results/packed.csv."""
    here = results.here_pinned()
    rows = []
    print(f'{"weights":10} {"batch":>5} {"weights, MB":>12} {"scratch, MB":>12} {"ms a call":>10}')
    for batch in map(int, batches or ('1', '256')):
        for form in ('float32', 'bfloat16', *packed.CODES):
            row = measure(network, form, batch)
            rows.append({**here, 'jax': jax.__version__, **row})
            weights, scratch = (f'{row[f"{name}_bytes"] / 1e6:12.2f}' for name in ('weight', 'scratch'))
            print(f'{form:10} {batch:5} {weights} {scratch} {row["milliseconds"]:10.1f}', flush=True)
    results.append('packed', rows)


if __name__ == '__main__':
    results.pin()
    run_words(main)
