"""The training that tutorials write: python -m experiments.classic_loop NETWORK DATASET EPOCHS [fast]

torchvision's transforms in DataLoader workers, a PyTorch network, SGD with cosine, the test images after
each epoch, and a checkpoint. `fast` adds what is commonly advised: channels_last, torch.compile, bfloat16.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from experiments.classic import Pictures
from experiments.torch_networks import TORCH
from jaxcifar.data.datasets import Dataset, load_dataset
from jaxcifar.data.vision import import_torchvision

import_torchvision()
from torchvision import transforms  # noqa: E402

BATCH, WORKERS = 128, 2


def loaders(dataset: Dataset) -> tuple[DataLoader, DataLoader]:
    """Of the training and of the test images."""
    train, test = Pictures(dataset, 'crop and flip'), Pictures(dataset, 'crop and flip')
    test.images, test.labels = np.asarray(dataset.x_test), dataset.y_test
    test.transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(dataset.mean, dataset.std)]
    )
    context = {'num_workers': WORKERS, 'persistent_workers': True, 'pin_memory': torch.cuda.is_available()}
    return (
        DataLoader(train, BATCH, shuffle=True, **context),  # type: ignore[arg-type]
        DataLoader(test, 500, **context),  # type: ignore[arg-type]
    )


def main(name: str, data: str, epochs: str, form: str = ''):
    """Train and print a line for each epoch."""
    device, fast = 'cuda' if torch.cuda.is_available() else 'cpu', form == 'fast'
    dataset = load_dataset(data, os.environ.get('JAXCIFAR_DATA') or 'data', 32)
    memory = torch.channels_last if fast else torch.contiguous_format
    network = TORCH[name](classes=dataset.num_classes).to(device, memory_format=memory)
    forward = torch.compile(network) if fast else network
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    train, test = loaders(dataset)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(epochs) * len(train))

    def loss_and_hits(images, labels):
        images = images.to(device, memory_format=memory, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        with torch.autocast(device, torch.bfloat16, enabled=fast):
            logits = forward(images)
        return torch.nn.functional.cross_entropy(logits.float(), labels), (logits.argmax(1) == labels).sum()

    with tempfile.TemporaryDirectory() as folder:
        for epoch in range(int(epochs)):
            start = time.perf_counter()
            network.train()
            for batch in train:
                optimizer.zero_grad()
                loss, _ = loss_and_hits(*batch)
                loss.backward()
                optimizer.step()
                schedule.step()
            network.eval()
            with torch.no_grad():
                hits = sum(int(loss_and_hits(*batch)[1]) for batch in test)
            torch.save([network.state_dict(), optimizer.state_dict()], Path(folder) / 'last.pt')
            seconds = time.perf_counter() - start
            print(f'epoch {epoch + 1} test {hits / len(dataset.y_test):.2%} {seconds:.1f} s', flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
