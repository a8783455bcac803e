"""Add to a report what a run has written about its classes and images: its pictures and per_class.csv."""

import numpy as np

from jaxcifar.machine.text import spread
from jaxcifar.report.run_files import FUSED, NONE, RunFiles, show, to_float

# The pictures of a run that a report shows, and their headings. Curves it draws itself.
DRAWN = {
    'sweep': 'Accuracy against the number in which members differ',
    'confusion': 'Which class is taken for which',
    'per_class': 'Accuracy of each class',
    'mistakes': 'The most certain mistakes',
}
WIDE = (DRAWN['mistakes'],)  # as wide as the page
LARGEST = 2 << 20  # bytes of a picture that is taken into the page
PNG = b'\x89PNG\r\n\x1a\n'


def drawn(run: RunFiles) -> dict[str, bytes]:
    """Return the PNG files of a finished run's folder `pictures`, by their headings."""
    found = {}
    # The pictures of a run that was continued show earlier weights.
    for name, heading in DRAWN.items() if run.results else ():
        path = run.folder / 'pictures' / f'{name}.png'
        if path.is_file() and path.stat().st_size <= LARGEST and (data := path.read_bytes()).startswith(PNG):
            found[heading] = data
    return found


def class_table(run: RunFiles) -> list[list[str]]:
    """Return a row for each class: its numbers of images, and its accuracy by member and jointly."""
    checkpoint = 'best' if any(row['checkpoint'] == 'best' for row in run.classes) else 'last'
    rows = [r for r in run.classes if (r['checkpoint'], r['split']) == (checkpoint, 'test')]
    if not rows or not run.results:
        return []
    recalls: dict[str, dict[str, float]] = {}
    for row in rows:
        recalls.setdefault(row['class'], {})[row['member']] = 100 * to_float(row['recall'])
    together = [name for name in (FUSED, 'ensemble') if name in {r['member'] for r in rows}]
    # One member is its own ensemble.
    together = together if len(run.members) > 1 else []
    of_class = {row['class']: row for row in rows}
    table = [['class', 'training images', 'test images', 'accuracy %', *(f'{name} %' for name in together)]]
    for c, of in recalls.items():
        own = [of[name] for name in run.members if name in of]
        about = of_class[c]
        cells = [
            spread(np.array(own)) if own else NONE,
            *(f'{of.get(name, np.nan):.2f}' for name in together),
        ]
        table.append([show(about['name']), about['train_images'], about['images'], *cells])
    return table
