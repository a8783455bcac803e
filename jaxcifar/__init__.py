"""jaxcifar: one CIFAR network, or K that share, compete, teach or fuse, in one compiled JAX step."""

__version__ = '0.1.0'
