"""Call trained networks as a function of images: what `jaxcifar.load` gives."""

from functools import cached_property, partial
from pathlib import Path

import jax
import numpy as np

from jaxcifar.config.members import answers_to
from jaxcifar.engine.fusion import NAME
from jaxcifar.engine.head import append_fused_logits
from jaxcifar.export.images import read_pictures
from jaxcifar.export.predictions import Predictions
from jaxcifar.formats.portable import FusedHead, Portable
from jaxcifar.machine.compiler import compiler_options
from jaxcifar.machine.errors import UserError
from jaxcifar.machine.text import show
from jaxcifar.runs.evaluation import over_views
from jaxcifar.runs.metrics import log_probabilities, mean_of_probabilities
from jaxcifar.runs.trained import Trained, open_trained


class Classifier:
    """Call networks of the same classes on uint8 images [B,H,W,3], or `predict` the classes of any images.

    The weights of a packed file stay packed in the device's memory; each call unpacks them again.

    Attributes:
      classes: the C class names.
      image_size: H and W.
      names: the members, '0_resnet18', …, and 'fused' at the end for a fused run.
    """

    def __init__(self, members: list[Portable], head: FusedHead | None = None):
        about, self._config = members[0].about, members[0].config
        self.classes, self.image_size = tuple(about['classes']), about['image_size']
        self.names = [member.about['name'] for member in members] + [NAME] * (head is not None)
        # The weights are an argument of the function: as constants they would be compiled into it.
        self.weights = jax.device_put(([member.variables for member in members], head and head.params))
        self._fused = head is not None
        runs = [member.outputs() for member in members]
        append = partial(append_fused_logits, head and head.make())

        def logits(weights, images):
            own, params = weights
            # Members may have different networks, and so no common axis to map over.
            z, features = zip(*(run(w, images) for run, w in zip(runs, own)))
            return append(params, jax.numpy.stack(z), list(features))

        self.function = jax.jit(logits, compiler_options=compiler_options())
        self._logits = logits

    def logits(self, images) -> np.ndarray:
        """Return the logits [K,B,C] of all members; a fused run adds the fused logits last, [K+1,B,C]."""
        images = np.asarray(images)
        # XLA would silently compile for any shape, and images of another size would only be classified worse.
        wanted = (self.image_size, self.image_size, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != wanted:
            raise UserError(
                f'expected images as uint8 [B,{",".join(map(str, wanted))}], got {images.dtype} '
                f'{list(images.shape)}; predict(images) takes others too'
            )
        return np.asarray(self.function(self.weights, images))

    def __call__(self, images) -> np.ndarray:
        """Return probabilities [B,C]: the fused ones, or the mean of the members'."""
        return self._probabilities(self.logits(images))

    def predict(self, images, top: int = 3) -> Predictions:
        """Return the `top` most probable classes of each image, with their probabilities.

        images: files, PIL images or arrays, one or many, of any size: see `read_pictures`. The probabilities
        are those of `python -m jaxcifar.predict`; with the run's eval.flip or eval.shift, logits are averaged
        over these views. Raises `UserError` for anything that is not an image.
        """
        if top < 1:
            raise UserError(f'top must be at least 1, got {top}')
        names, pixels = read_pictures(images, self._config.dataset, self.image_size)
        # Use few different batch sizes, since each is another program to compile.
        size = min(self._config.eval.batch_size, 1 << (len(pixels) - 1).bit_length())
        parts = [pixels[i : i + size] for i in range(0, len(pixels), size)]
        filled = (np.pad(part, [(0, size - len(part)), *[(0, 0)] * 3]) for part in parts)
        logits = [np.asarray(self._over_views(self.weights, part)) for part in filled]
        probabilities = self._probabilities(np.concatenate(logits, 1)[:, : len(pixels)])
        return Predictions(names, probabilities, self.classes, top)

    @cached_property
    def _over_views(self):
        """Return (weights, images) -> logits, averaged over the views that the run's evaluation takes."""
        views = self._config.eval
        if not (views.flip or views.shift):
            return self.function
        return jax.jit(
            lambda weights, images: over_views(partial(self._logits, weights), images, views),
            compiler_options=compiler_options(),
        )

    def _probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return probabilities [B,C] of logits [K,B,C]: the fused ones, or the mean of the members'."""
        # In float64 on the host, as evaluation does it.
        log_p = log_probabilities(logits)
        return np.exp(log_p[-1] if self._fused else mean_of_probabilities(log_p))


def load(path: str | Path, member: str | int | None = None, dataset: str | None = None) -> Classifier:
    """Return trained networks from an export, a workdir (its best weights), or a file of PyTorch weights.

    member: one of several, by its name or its id. dataset: what a file of weights was trained on, by default
    the CIFAR with as many classes. Raises `UserError` if there is nothing of that kind, or if
    it is damaged.
    """
    return Classifier(*choose(open_trained(Path(path).expanduser(), dataset=dataset), member))


def choose(trained: Trained, member: str | int | None = None) -> tuple[list[Portable], FusedHead | None]:
    """Return all members and a fused run's head, or the one member of this name or id and no head."""
    members, head = trained.portables()
    if member in (None, 'all'):
        return members, head
    names = [m.about['name'] for m in members]
    chosen = [m for m, name in zip(members, names) if answers_to(name, member)]
    if not chosen:
        raise UserError(f'expected a member of {trained.path} (all, {", ".join(names)}), got {show(member)}')
    return chosen, None
