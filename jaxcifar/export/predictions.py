"""Hold the most probable classes of images, to be printed or used in code."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """Hold the most probable classes of one image.

    Attributes:
      image: its file's name, or 'image 0'.
      top: (class, probability) of the most probable classes, the best first.
    """

    image: str
    top: tuple[tuple[str, float], ...]

    @property
    def label(self) -> str:
        """Return the most probable class."""
        return self.top[0][0]

    @property
    def probability(self) -> float:
        """Return the probability of that class."""
        return self.top[0][1]

    def __str__(self) -> str:
        return '  '.join(f'{label} {probability:.1%}' for label, probability in self.top)


class Predictions(list[Prediction]):
    """List the predictions of N images; it prints as one line per image.

    Attributes:
      probabilities: of all C classes, float64 [N,C].
      classes: the C class names.
    """

    def __init__(self, images: Sequence[str], probabilities: np.ndarray, classes: Sequence[str], top: int):
        self.probabilities, self.classes = probabilities, tuple(classes)
        # Of equally probable classes the first one counts, as in accuracy.
        best = np.argsort(-probabilities, axis=1, kind='stable')[:, :top]
        super().__init__(
            Prediction(image, tuple((classes[i], float(row[i])) for i in order))
            for image, row, order in zip(images, probabilities, best, strict=True)
        )

    def __repr__(self) -> str:
        width = max((len(prediction.image) for prediction in self), default=0)
        return '\n'.join(f'{prediction.image:{width}}  {prediction}' for prediction in self)
