"""The table of networks: python -m jaxcifar.models [CLASSES]"""

import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxcifar.models import NETWORKS, build
from jaxcifar.models.convolution import Conv

SIZE = 32


def describe(name: str, num_classes: int = 100, **options) -> dict:
    """Parameters, FLOPs of one image's forward pass (2 a multiply-add), D, and the sizes of the maps."""
    network = build(name, num_classes, SIZE, **options)
    image = jnp.zeros((1, SIZE, SIZE, 3))
    variables = network.shapes()
    maps: list[int] = []

    def watch(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if isinstance(context.module, Conv) and out.shape[1] not in maps:
            maps.append(out.shape[1])
        return out

    with nn.intercept_methods(watch):
        lowered = jax.jit(lambda v, x: network.apply(v, x, False)[0]).lower(variables, image)
    _, features = lowered.out_info
    costs: Any = lowered.cost_analysis()
    return {
        'network': name,
        'parameters': sum(x.size for x in jax.tree.leaves(variables['params'])),
        'flops': costs['flops'],
        'features': features.shape[-1],
        'maps': maps,
    }


def main(num_classes: int = 100):
    """Print the table."""
    table = Table(box=None, title=f'{num_classes} classes, {SIZE}x{SIZE} images', title_justify='left')
    for column in ('network', 'parameters', 'MFLOP an image', 'features D', 'map sizes'):
        table.add_column(column, justify='left' if column == 'network' else 'right')
    for name in NETWORKS:
        row = describe(name, num_classes)
        sizes = ' '.join(map(str, row['maps']))
        flops = f'{row["flops"] / 1e6:,.0f}'
        table.add_row(name, f'{row["parameters"]:,}', flops, str(row['features']), sizes)
    Console().print(table)


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
