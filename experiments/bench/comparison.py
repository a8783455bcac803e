"""Show what the rows of bench.csv say: the table that is printed and the picture, bench.png."""

import matplotlib
import numpy as np
from rich.table import Table

from experiments import results

Rows = list[dict[str, str]]  # of one network and batch, a row for each way

COLUMNS = (
    'network\n(batch)', 'ours', 'ours\nbf16', 'Linen', 'torch', 'its best\nfloat32', 'its best\nbf16',
    'ours/best\nfloat32', 'ours/best\nany type', 'of peak', 'MB: ours,\ntorch', 'compile s:\nours, torch',
)  # fmt: skip
WIDE_SPREAD = 1.1  # of the fastest turn over the slowest: shown


def known(value: float, form: str) -> str:
    """Return the number as text, or nothing where it is not known."""
    return '' if np.isnan(value) else format(value, form)


def float32(rows: Rows) -> Rows:
    """Return the rows of ways that compute in float32 alone."""
    return [row for row in rows if 'bf16' not in row['way']]


def bfloat16(rows: Rows) -> Rows:
    """Return the rows of ways that compute in bfloat16."""
    return [row for row in rows if 'bf16' in row['way']]


def best(rows: Rows, start: str) -> dict[str, str]:
    """Return the row of the fastest way whose name starts with `start`; one without values if all failed."""
    own = [row for row in rows if row['way'].startswith(start) and not row['failed']]
    return max(own, key=rate, default={'way': start, 'images_per_second': ''})


def rate(row: dict[str, str], column: str = 'images_per_second') -> float:
    """Return images a second, nan where there are none."""
    return float(row.get(column) or 'nan')


def cell(row: dict[str, str]) -> str:
    """Return the rate and, below it, its range if this is wide, and which of several ways it is."""
    lines = [row['images_per_second'] or 'failed']
    slowest, fastest = rate(row, 'slowest'), rate(row, 'fastest')
    if fastest > WIDE_SPREAD * slowest:
        lines.append(f'{slowest:.3g}-{fastest:.3g}')
    side, _, how = row['way'].partition(' ')
    if side == 'torch' and how:
        lines.append(how.removesuffix(' bf16'))
    return '\n'.join(lines)


def line(rows: Rows) -> list[str]:
    """Return the cells of a line of the table."""
    named = {row['way']: row for row in rows}
    mine, theirs = best(rows, 'ours'), best(rows, 'torch')
    rivals = best(float32(rows), 'torch'), best(bfloat16(rows), 'torch')
    # Ours of a type is compared with the fastest form of that type, then of any.
    ratios = (rate(best(some, 'ours')) / rate(best(some, 'torch')) for some in (float32(rows), rows))
    return [
        f'{rows[0]["network"]}\n({rows[0]["batch"]})',
        *(cell(named[way]) if way in named else '-' for way in ('ours', 'ours bf16', 'linen', 'torch')),
        *map(cell, rivals),
        *(known(ratio, '.2f') for ratio in ratios),
        mine.get('share_of_peak', ''),
        *(
            ', '.join(row.get(name) or '-' for row in (mine, theirs))
            for name in ('megabytes', 'compile_seconds')
        ),
    ]


def table(groups: list[Rows]) -> Table:
    """Return a line for each network and batch; the last columns are of the fastest on each side."""
    title = 'images/s (slowest-fastest where they are far apart), and ours over the best of torch'
    made = Table(*COLUMNS, box=None, title=title, title_justify='left', row_styles=['', 'dim'])
    for rows in groups:
        made.add_row(*line(rows))
    return made


def newest(rows: Rows, here: dict[str, str]) -> list[Rows]:
    """Return each way's last row measured on a machine like this one, grouped by network and batch."""
    groups: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    # Later rows replace earlier ones: the file is in the order of measuring.
    for row in rows:
        if all(row[key] == here[key] for key in ('device', 'machine')):
            groups.setdefault((row['network'], row['batch']), {})[row['way']] = row
    return [list(ways.values()) for ways in groups.values()]


def draw(groups: list[Rows]):
    """Draw bars of rates over that of PyTorch's fastest form in float32."""
    matplotlib.use('agg')
    from matplotlib import pyplot as plt

    shown = {
        'ours, float32': (float32, 'ours', 'tab:blue'),
        'Flax Linen, float32': (float32, 'linen', 'tab:gray'),
        'ours, bfloat16': (bfloat16, 'ours', 'lightskyblue'),
        'PyTorch, its fastest in bfloat16': (bfloat16, 'torch', 'tab:orange'),
    }
    figure, axes = plt.subplots(figsize=(8, 1.3 + 0.8 * len(groups)), layout='constrained')
    # All bars of a network are relative to one rate: PyTorch's best in float32.
    theirs = np.array([rate(best(float32(rows), 'torch')) for rows in groups])
    for place, (name, (of_type, start, colour)) in enumerate(shown.items()):
        bars = [best(of_type(rows), start) for rows in groups]
        ratios, low, high = (
            np.array([rate(bar, column) for bar in bars]) / theirs
            for column in ('images_per_second', 'slowest', 'fastest')
        )
        places = np.arange(len(groups)) + 0.2 * (place - 1.5)
        axes.barh(places, ratios, 0.2, color=colour, label=name)
        axes.hlines(places, low, high, 'black', linewidth=0.8)
        for height, ratio in zip(places, ratios):
            axes.text(0.01, height, known(ratio, '.2f'), fontsize=7, verticalalignment='center')
    axes.axvline(1, color='black', linewidth=1, label='PyTorch, its fastest in float32')
    axes.set_yticks(range(len(groups)), [f'{rows[0]["network"]}, {rows[0]["batch"]}' for rows in groups])
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.set_xlabel("images/s over those of PyTorch's fastest form in float32")
    row = groups[0][0]
    axes.set_title(f'{row["device"]}, {row["machine"]}; jax {row["jax"]}, torch {row["torch"]}', fontsize=8)
    figure.legend(loc='outside lower center', ncols=3, fontsize=8)
    figure.savefig(results.FOLDER / 'bench.png', dpi=120)
    plt.close(figure)
