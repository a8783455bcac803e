"""Train one CIFAR network, or K that share, compete, teach or fuse with each other, in one compiled JAX step.

Importing this package imports nothing large: JAX comes with the first call.
"""

from jaxcifar.machine.command import refuse_other_modules

__version__ = '0.1.0'
refuse_other_modules()


def train(config, workdir) -> dict:
    """Train, or go on training, in `workdir`, and return what its results.json holds.

    See `jaxcifar.loop.train`.
    """
    from jaxcifar import loop

    return loop.train(config, workdir)


def load(path, member=None):
    """Return trained networks as a function of uint8 images [B,H,W,3].

    See `jaxcifar.export.classifier.load`.
    """
    from jaxcifar.export import classifier

    return classifier.load(path, member)
