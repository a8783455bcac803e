"""Train as tutorials do: python -m experiments.bench.classic_loop NETWORK DATASET EPOCHS [fast]

Trains a PyTorch network by SGD with a cosine, on torchvision's transforms in DataLoader workers. After each
epoch it is tested and saved. `fast` adds what is commonly advised: channels_last, torch.compile for one shape
of batches, bfloat16, TF32, cuDNN's benchmark, a fused optimiser, and more workers beside a GPU.
"""

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from experiments.bench.classic import Pictures
from experiments.bench.torch_networks import TORCH
from jaxcifar.data.datasets import Dataset, load_dataset
from jaxcifar.data.vision import import_torchvision

import_torchvision()
from torchvision import transforms  # noqa: E402

BATCH, WORKERS = 128, 2


def loaders(dataset: Dataset, workers: int, drop_last: bool) -> tuple[DataLoader, DataLoader]:
    """Return the loaders of the training and of the test images."""
    # Both are made alike; the test images' transform is then replaced.
    train, test = Pictures(dataset, 'crop and flip'), Pictures(dataset, 'crop and flip')
    test.images, test.labels = np.asarray(dataset.x_test), dataset.y_test
    test.transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(dataset.mean, dataset.std)]
    )
    context = {'num_workers': workers, 'persistent_workers': True, 'pin_memory': torch.cuda.is_available()}
    return (
        DataLoader(train, BATCH, shuffle=True, drop_last=drop_last, **context),  # type: ignore[arg-type]
        DataLoader(test, 500, **context),  # type: ignore[arg-type]
    )


def has_bfloat16(device: str) -> bool:
    """Return whether a device computes in bfloat16 itself: elsewhere that is slower than float32."""
    known = torch.cpu.get_capabilities()
    return device == 'cuda' or any(known.get(name) for name in ('avx512_bf16', 'amx_bf16', 'bf16'))


class Loop:
    """Hold a network and its optimiser on a device."""

    def __init__(self, network: str, classes: int, device: str, fast: bool):
        self.device, self.memory = device, torch.channels_last if fast else torch.contiguous_format
        self.network = TORCH[network](classes=classes).to(device, memory_format=self.memory)
        self.forward = torch.compile(self.network, dynamic=False) if fast else self.network
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True, fused=fast or None
        )
        self.precision = partial(torch.autocast, device, torch.bfloat16, fast and has_bfloat16(device))

    def put(self, loader: DataLoader):
        """Yield a loader's batches on the device."""
        for images, labels in loader:
            images = images.to(self.device, memory_format=self.memory, non_blocking=True)
            yield images, labels.to(self.device, non_blocking=True)

    def train(self, loader: DataLoader, schedule: torch.optim.lr_scheduler.LRScheduler):
        """Train an epoch."""
        self.network.train()
        for images, labels in self.put(loader):
            self.optimizer.zero_grad()
            with self.precision():
                loss = torch.nn.functional.cross_entropy(self.forward(images), labels)
            loss.backward()
            self.optimizer.step()
            schedule.step()

    @torch.no_grad()
    def hits(self, loader: DataLoader) -> int:
        """Return how many images are classified correctly."""
        self.network.eval()
        total = torch.zeros((), dtype=torch.long, device=self.device)
        for images, labels in self.put(loader):
            with self.precision():
                logits = self.forward(images)
            total += (logits.argmax(1) == labels).sum()
        return int(total)


def main(name: str, data: str, epochs: str, form: str = ''):
    """Train and print a line for each epoch."""
    device, fast, workers = 'cuda' if torch.cuda.is_available() else 'cpu', form == 'fast', WORKERS
    if fast:
        torch.set_float32_matmul_precision('high')
        torch.backends.cudnn.benchmark = True
        if device == 'cuda':  # the host has nothing else to do
            workers = min(16, len(os.sched_getaffinity(0)))
    dataset = load_dataset(data, os.environ.get('JAXCIFAR_DATA') or 'data', 32)
    loop = Loop(name, dataset.num_classes, device, fast)
    train, test = loaders(dataset, workers, drop_last=fast)  # a short batch would be compiled on its own
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(loop.optimizer, int(epochs) * len(train))
    with tempfile.TemporaryDirectory() as folder:
        for epoch in range(int(epochs)):
            start = time.perf_counter()
            loop.train(train, schedule)
            # The hits are summed on the device and fetched once.
            accuracy = loop.hits(test) / len(dataset.y_test)
            torch.save([loop.network.state_dict(), loop.optimizer.state_dict()], Path(folder) / 'last.pt')
            seconds = time.perf_counter() - start
            print(f'epoch {epoch + 1} test {accuracy:.2%} {seconds:.1f} s', flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
