"""Call trained networks as a function of images: what `jaxcifar.load` gives."""

from functools import partial
from pathlib import Path

import jax
import numpy as np

from jaxcifar.engine.fusion import NAME
from jaxcifar.engine.head import join
from jaxcifar.formats.portable import FusedHead, Portable
from jaxcifar.machine.compiler import compiler_options
from jaxcifar.machine.errors import UserError
from jaxcifar.runs.metrics import log_probabilities, mean_of_probabilities
from jaxcifar.runs.trained import Trained, open_trained


class Classifier:
    """Call networks of the same classes with uint8 images [B,H,W,3].

    Of a packed file the weights stay packed in the device's memory; each call unpacks them anew.

    Attributes:
      classes: the C class names.
      image_size: H and W.
      names: the members, '0_resnet18', …, and of a fused run 'fused'.
    """

    def __init__(self, members: list[Portable], head: FusedHead | None = None):
        about = members[0].about
        self.classes, self.image_size = tuple(about['classes']), about['image_size']
        self.names = [member.about['name'] for member in members] + [NAME] * (head is not None)
        # The weights are an argument of the function: as constants they would be compiled into it.
        self.weights = jax.device_put(([member.variables for member in members], head and head.params))
        self._fused = head is not None
        runs, join_all = [member.outputs() for member in members], partial(join, head and head.make())

        def logits(weights, images):
            own, params = weights
            # Members may have different networks, and so no common axis to map over.
            z, features = zip(*(run(w, images) for run, w in zip(runs, own)))
            return join_all(params, jax.numpy.stack(z), list(features))

        self.function = jax.jit(logits, compiler_options=compiler_options())

    def logits(self, images) -> np.ndarray:
        """Return logits [K,B,C] of every member; of a fused run [K+1,B,C], the fused ones as the last."""
        images = np.asarray(images)
        # XLA would compile any shape in silence; networks of another size give worse answers only.
        wanted = (self.image_size, self.image_size, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != wanted:
            raise UserError(
                f'images are {images.dtype} {list(images.shape)}, not uint8 [B,{",".join(map(str, wanted))}]'
            )
        return np.asarray(self.function(self.weights, images))

    def __call__(self, images) -> np.ndarray:
        """Return probabilities [B,C]: the fused ones, or the mean of the members'."""
        # In float64 on the host, as evaluation does it.
        log_p = log_probabilities(self.logits(images))
        return np.exp(log_p[-1] if self._fused else mean_of_probabilities(log_p))


def load(path: str | Path, member: str | int | None = None) -> Classifier:
    """Return trained networks from an export, a workdir (its best weights), or a file of PyTorch weights.

    member: one of several, by its name or its id. Raises `UserError` where there is nothing like that, or it
    is damaged.
    """
    return Classifier(*choose(open_trained(Path(path)), member))


def choose(trained: Trained, member: str | int | None = None) -> tuple[list[Portable], FusedHead | None]:
    """Return all members and a fused run's head, or by its name or id one member, which has no head."""
    members, head = trained.portables()
    if member in (None, 'all'):
        return members, head
    names = [m.about['name'] for m in members]
    # '0_resnet18' answers to its name and to its id, 0.
    chosen = [m for m, name in zip(members, names) if str(member) in (name, name.split('_')[0])]
    if not chosen:
        raise UserError(f'{trained.path} has no member {member!r}; it has all, {", ".join(names)}')
    return chosen, None
