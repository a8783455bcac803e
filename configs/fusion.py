"""Fusion: four experts, a module over their features and a global head, trained together.

    python -m jaxcifar.main --config configs/fusion.py:resnet18,multiplicative --workdir runs/fusion \
        --config.init_from=runs/experts

The argument is a network, a rule and strong, each optional, joined by commas. The experts come from a run
of configs/expert.py (WORKDIR, WORKDIR@last), from several joined by +, or from four PyTorch files
a.pth+b.pth+c.pth+d.pth. Without init_from they start untrained.

Rules: multiplicative, multiplicativeAddition, TransformerBase, concatenation. The rule in the argument sets
augmentation and smoothing, whatever --config.fusion.rule says; rule and number of features set the learning
rates. Training takes 100 epochs on 9,000 images of the fusion holdout. The other 1,000 choose the weights by
the fused accuracy. Experts have warm restarts, fusion and head a cosine to a tenth; nothing is frozen.

strong: the head starts at 0 and corrects the mean of the experts. Experts are frozen for 20 epochs and move
little after that. Learning rates decay to 0, and the moving average of the weights is evaluated.

Public numbers, best epoch on the test set: DenseNet-121 79.2 to 80.1 %, WRN-28-10 80.6 to 81.3, falling
to 78 at the last epoch. The sum of the experts' features beat the rules, and one WRN-28-10 trained on all
50,000 images has 84.7: read the fused number beside the means, which every table here has.
"""

from collections.abc import Iterable

from configs import base
from jaxcifar.engine.fusion import RULES
from jaxcifar.machine.errors import parse_argument
from jaxcifar.models import NETWORKS

SMOOTHING = {
    'multiplicative': 0.1,
    'multiplicativeAddition': 0.08,
    'TransformerBase': 0.05,
    'concatenation': 0.08,
}
STRONG = {
    'ema': 0.999,
    'optimizer.name': 'adamw',
    'optimizer.lr': 1e-5,
    'optimizer.clip': 0.0,
    'schedule.name': 'cosine',
    'schedule.per': 'step',
    'schedule.final': 0.0,
    'fusion.residual': True,
    'fusion.freeze_epochs': 20,
    'fusion.lr': 2e-4,
    'fusion.weight_decay': 0.01,
    'fusion.clip': 0.0,
    'fusion.clip_all': 1.0,
}
KINDS: dict[str, Iterable[str]] = {'rule': RULES, 'network': NETWORKS, 'recipe': ('strong',)}


def get_config(argument: str = ''):
    """Return the config; `argument` joins a network, a rule and strong by commas."""
    given = parse_argument('configs/fusion.py', argument, KINDS)
    c = base.get_config()
    c.dataset, c.members = 'cifar100', 4
    c.network = given.get('network', 'resnet18')
    c.coupling, c.fusion.rule = 'fusion', given.get('rule', 'multiplicative')
    c.split, c.data.validation = 'fusion', 'fusion_validation'
    c.augment = f'fusion_{c.fusion.rule}'
    c.label_smoothing = SMOOTHING[c.fusion.rule]
    c.optimizer.lr = None  # by rule and features, as those of the fusion module and the head
    c.optimizer.weight_decay, c.optimizer.clip = 1e-4, 5.0
    c.schedule.name, c.schedule.per = 'warm_restarts', 'epoch'
    c.schedule.period, c.schedule.final = 0, 0.1
    if 'recipe' in given:
        c.update_from_flattened_dict(STRONG)
    return c
