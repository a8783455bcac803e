"""Write one CSV file for each fused run, with one row per epoch.

The file is made from metrics.csv and timing.csv whenever a run saves. It is the only file in which
metrics and times are side by side.
"""

import csv
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from jaxcifar.config.members import member_names
from jaxcifar.data.splits import validation_part
from jaxcifar.engine.fusion import NAME
from jaxcifar.machine.files import write_csv

LOSSES = ('loss_global', 'loss_individual', 'loss_total', 'alpha')


def file_name(config: ConfigDict) -> str:
    """Return the file's name, such as 'resnet18_multiplicative_training_log.csv'."""
    return f'{config.network}_{config.fusion.rule}_training_log.csv'


def write(workdir: Path, config: ConfigDict, learning_rates: Callable):
    """Rewrite the file. Losses and accuracies (fractions) are means over an epoch's training images.

    train_loss is the total loss, and val_* belong to the fused prediction. Learning rates, those of the
    first member and of the head's parts, are from the epoch's last step.
    """
    # The file is derived, so a crash can damage nothing that the next save does not mend.
    metrics, timing = (_read(workdir / name) for name in ('metrics.csv', 'timing.csv'))
    cells = {(r['epoch'], r['member'], r['split']): r for r in metrics if r['checkpoint'] == 'last'}
    at = {r['epoch']: r['timestamp'] for r in timing}  # after a resume an epoch may occur twice
    # One row an epoch: the fused row carries it, and the members' rows join by epoch.
    names = member_names(config)
    rows = []
    for (epoch, member, split), fused in cells.items():
        if (member, split) != (NAME, 'train'):
            continue
        # A damaged metrics.csv may have lost rows; their cells stay empty too.
        experts = [cells.get((epoch, name, 'train'), {}) for name in names]
        # Not every epoch is validated; its cells stay empty.
        chosen = cells.get((epoch, NAME, str(validation_part(config))), {})
        row = {
            'epoch': epoch,
            'train_loss': fused['loss_total'],
            'val_loss': chosen.get('loss', ''),
            'val_accuracy': chosen.get('accuracy', ''),
            # Taken from the table if possible: before `epochs` was changed, the schedule had other rates.
            'experts_lr': experts[0].get('lr', ''),
            'fusion_lr': fused['lr'],
            'global_head_lr': _of_head(config, fused, learning_rates),
            **{name: fused[name] for name in LOSSES},
            'timestamp': at.get(epoch, ''),
        }
        for k, expert in zip(config.member_ids, experts):
            row |= {f'expert_{k}_{name}': expert.get(name, '') for name in ('accuracy', 'loss')}
        rows.append(row)
    if rows:
        write_csv(workdir / file_name(config), rows[0], [row.values() for row in rows])


def _of_head(config: ConfigDict, fused: dict[str, str], learning_rates: Callable) -> str:
    """Return the global head's learning rate, which is on the schedule of the fusion module's."""
    if config.fusion.lr:
        return f'{float(fused["lr"]) * config.fusion.lr_head / config.fusion.lr:.8g}'
    return f'{learning_rates(int(fused["step"]) - 1)[-1]:.8g}'


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline='') as file:
        return list(csv.DictReader(file))
