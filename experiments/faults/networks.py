"""A network that compiles in no time."""

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

import flax.linen as nn

from jaxcifar.formats import foreign
from jaxcifar.models import NETWORKS
from jaxcifar.models.layers import Layers, head


class Tiny(nn.Module):
    """Compute a convolution, a norm and dropout. SiLU has no kink, where rounding would decide a gradient."""

    num_classes: int
    layers: Layers

    @nn.compact
    def __call__(self, x):
        """Return logits and features of images."""
        x = self.layers.norm('bn1')(self.layers.conv(6, 3, 2, name='conv1')(x))
        return head(self.layers.drop(nn.silu(x)), self.num_classes)


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Register the network 'tiny', the only one tried for foreign weights, since trying all takes seconds."""
    with patch.dict(NETWORKS, {'tiny': Tiny}), patch.object(foreign, 'NETWORKS', {'tiny': Tiny}):
        yield
