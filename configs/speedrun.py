"""CIFAR-10 to a target accuracy as fast as possible; the last epoch counts.

    python -m jaxcifar.main --config configs/speedrun.py:94 --workdir runs/speedrun

`94` and `96` (%) are for a GPU, `90` for the two cores of a laptop. All train `speednet` on all 50,000
images: whitened patches, Muon for the convolutions, every image mirrored in every other epoch, and
mirrored images in the evaluation. `python -m experiments.speedrun 90 5` takes means over runs.

The recipe of `94` is that of Jordan 2024 with Muon: 94.01 % there, the mean of 200 runs. `96` combines this
optimiser with the larger network, the stronger augmentation and the length of his recipe for 96 %, which
does not use Muon. `96` has not been trained yet.
"""

from configs import base
from jaxcifar.machine.errors import lookup

# network, epochs, batch, precision, loader
MARKS = {
    '90': ('speednet_small', 4, 500, 'float32', 'host'),
    '94': ('speednet', 8, 2000, 'bfloat16', 'device'),
    '96': ('speednet_deep', 40, 2000, 'bfloat16', 'device'),
}


def get_config(mark: str = '94'):
    """`mark`: 90 | 94 | 96."""
    c = base.get_config()
    c.dataset = 'cifar10'
    c.network, c.epochs, c.batch_size, c.precision, c.data.loader = lookup(
        'word of configs/speedrun.py', MARKS, mark
    )
    c.model.init = 'dirac'
    c.augment = 'crop(2,"reflect")+alternating_flip'
    c.label_smoothing = 0.2
    c.optimizer.name = 'muon'
    c.optimizer.momentum = 0.6
    c.optimizer.lr = 0.4
    c.schedule.name = 'linear'
    c.schedule.warmup_steps = 50
    c.data.validation = 'none'
    c.data.drop_last = True
    c.eval.flip = True
    c.checkpoint.every_epochs = c.epochs
    if mark == '96':
        c.augment = 'crop(4,"reflect")+alternating_flip+cutout(12)'
    if mark != '90':
        follow_jordan(c)
    return c


def follow_jordan(c):
    """Set kernels on a sphere, a rate for each other kind of parameter, no warm-up, shifted test images."""
    c.model.whitening, c.model.norm_momentum = 'bias', 0.6
    c.optimizer.lr, c.optimizer.rest, c.optimizer.rescale = 0.24, 1.0, True
    c.optimizer.rest_momentum = 0.85
    # His rates apply to the sum of a batch's losses, ours to their mean.
    bias, fc = (rate * c.batch_size / c.optimizer.lr for rate in (0.053, 0.000828))
    c.optimizer.rates = f'scale=0 bn.*bias={bias:.4g} fc/|whiten={fc:.4g}'
    # In his recipe, rate times decay is .00382 a step for all parameters but kernels.
    c.optimizer.weight_decay = 0.00382 / 0.053 / c.batch_size
    c.optimizer.decay = f'bn.*bias fc/|whiten={bias / fc:.4g}'
    c.schedule.warmup_steps = 0
    c.eval.shift = 1
