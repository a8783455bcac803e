"""jaxcifar: one CIFAR network, or K that share, compete, teach or fuse, in one compiled JAX step."""

__version__ = '0.1.0'


def load(path, member=None):
    """Trained networks as a function of uint8 images [B,H,W,3]: see `jaxcifar.inference.load`."""
    from jaxcifar import inference  # JAX takes a second: not before it is wanted

    return inference.load(path, member)
