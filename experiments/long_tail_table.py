"""Compare losses for long tails: python -m experiments.run experiments/long_tail_table.py

CIFAR-100-LT with imbalance 100, ResNet-32, all 10,847 images, the whole balanced test set, 200 epochs with a
cosine, the last epoch; three seeds of a loss are one run. Public: cross entropy 39.1 to
40.3, balanced softmax, under this name and that of logit adjustment, 43.9 to 46.5.

experiments/long_tail_table.py:steps has the recipe of the repository OpenLT, which reports the 46.5: the
schedule of Cao et al. 2019, a hundredth of the learning rate after 160 epochs and again after 180, with
Nesterov momentum. OpenLT's trainer keeps the epoch that is best on the test images; ours keeps the last.
experiments/long_tail_table.py:strong adds AutoAugment and Cutout for 400 epochs; public: 50.3 and more.
experiments/long_tail_table.py:short has 8 epochs of ResNet-20; it says what it shortens.
"""

from typing import Any

from experiments.run import Run, Sweep
from jaxcifar.machine.errors import lookup

SEEDS = {'members': 3, 'seed': '1,2,3', 'data.order': 'member'}
# Five epochs of warm-up; only the last evaluation counts.
PROTOCOL = {
    'epochs': 200,
    'schedule.name': 'cosine',
    'schedule.warmup_steps': 425,
    'optimizer.lr': 0.1,
    'optimizer.weight_decay': 5e-4,
    'eval.every_epochs': 10,
}
STEPS = {
    'schedule.name': 'multistep',
    'schedule.milestones': '160,180',
    'schedule.gamma': 0.01,
    'optimizer.nesterov': True,
}
EPOCHS = 8  # of the short version
BASELINE = 'cross entropy'


def get_sweep(argument: str = '') -> Sweep:
    """Return the sweep; `argument` is nothing, steps, strong or short."""
    return lookup('argument', {'': full, 'steps': steps, 'strong': strong, 'short': short}, argument)()


def full() -> Sweep:
    """Return each loss by the recipe above: minutes on a GPU."""
    title = (
        'CIFAR-100-LT, imbalance 100, ResNet-32, 200 epochs, balanced test set, last epoch: mean ± standard '
        'deviation over seeds'
    )
    return Sweep(title, each_loss({**SEEDS, **PROTOCOL}), BASELINE)


def steps() -> Sweep:
    """Return the same with OpenLT's steps and Nesterov momentum."""
    sweep = full()
    runs = each_loss({**SEEDS, **PROTOCOL, **STEPS})
    return sweep._replace(title=sweep.title.replace('200 epochs', '200 epochs in steps'), runs=runs)


def strong() -> Sweep:
    """Return balanced softmax with AutoAugment and Cutout, and without them for as many epochs."""
    config = 'configs/long_tail.py:strong,standard'
    changes = {**SEEDS, 'eval.every_epochs': 10}
    runs = [
        Run('plain', 'crop and flip', config, {**changes, 'augment': 'crop(4)+flip'}),
        Run('strong', 'AutoAugment and Cutout too', config, changes),
    ]
    title = (
        'CIFAR-100-LT, imbalance 100, ResNet-32, balanced softmax, 400 epochs, balanced test set, last '
        'epoch: mean ± standard deviation over seeds'
    )
    return Sweep(title, runs, 'crop and flip')


def short() -> Sweep:
    """Return one seed of a recipe that gets somewhere in a few epochs."""
    changes = {
        'members': 1,
        'network': 'resnet20',
        'epochs': EPOCHS,
        'schedule.name': 'cosine',
        'optimizer.lr': 0.1,
        'optimizer.nesterov': True,
        'optimizer.weight_decay': 5e-4,
    }
    title = (
        f'SHORTENED: ResNet-20 instead of ResNet-32, {EPOCHS} epochs instead of 200, therefore with Nesterov '
        'momentum and without warm-up; one seed. CIFAR-100-LT, imbalance 100, balanced test set, last epoch'
    )
    return Sweep(title, each_loss(changes), BASELINE)


def each_loss(changes: dict[str, Any]) -> list[Run]:
    """Return the same run with each loss."""
    config = 'configs/long_tail.py:standard'
    rows = {
        'cross_entropy': BASELINE,
        # The same numbers, to the bit, so once.
        'balanced_softmax': 'balanced softmax, which is logit adjustment of τ = 1',
    }
    return [Run(name, row, config, {'loss': name, **changes}) for name, row in rows.items()]
