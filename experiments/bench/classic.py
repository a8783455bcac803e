"""Feed images as tutorials do: a Python call and a PIL image for each sample.

This module imports no JAX, for it runs in DataLoader workers.
"""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from jaxcifar.data.datasets import Dataset
from jaxcifar.data.vision import import_torchvision

import_torchvision()
from torchvision import transforms  # noqa: E402

MORE = {
    'crop and flip': ([], []),
    'RandAugment and erasing': ([transforms.RandAugment(2, 9)], [transforms.RandomErasing(0.25)]),
}


class Pictures:
    """Do with any data set in memory what `torchvision.datasets.CIFAR10` does with its arrays."""

    def __init__(self, dataset: Dataset, augment: str):
        self.images, self.labels = np.asarray(dataset.x_train), dataset.y_train
        # PIL's transforms come before the tensor, erasing behind it, as in torchvision's recipes.
        before, after = MORE[augment]
        self.transform = transforms.Compose([
            transforms.RandomCrop(dataset.image_size, padding=4),
            transforms.RandomHorizontalFlip(),
            *before,
            transforms.ToTensor(),
            transforms.Normalize(dataset.mean, dataset.std),
            *after,
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def stream(dataset: Dataset, augment: str, batch: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches without end, normalised: 'image' float32 [B,H,W,3] and 'label' [B]."""
    loader: DataLoader = DataLoader(
        Pictures(dataset, augment),  # type: ignore[arg-type]
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context='forkserver' if workers else None,  # JAX is in this process
    )
    while True:
        for images, labels in loader:
            yield {'image': images.numpy().transpose(0, 2, 3, 1), 'label': labels.numpy()}
