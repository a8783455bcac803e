"""PyTorch's training step in its several forms, each as PyTorch's own guides to performance advise."""

import os
import time

import torch

from experiments.results import ON_GPU
from experiments.torch_networks import TORCH
from experiments.worker import CLASSES, Step, noise
from jaxcifar.machine.errors import lookup

DEVICE = 'cuda' if ON_GPU else 'cpu'


def pytorch(
    network: str, batch: int, channels_last: bool = False, compiled: str = '', bfloat16: bool = False
) -> Step:
    """PyTorch's step; `compiled` is a mode of torch.compile, '' for none."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # whatever OMP_NUM_THREADS says
    torch.set_float32_matmul_precision('high')  # TF32 on a GPU, as jax and torch's own convolutions do
    torch.backends.cudnn.benchmark = True
    memory = torch.channels_last if channels_last else torch.contiguous_format
    model = lookup('network', TORCH, network)(classes=CLASSES).to(DEVICE, memory_format=memory).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True, fused=True)
    images, labels = noise(batch)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().sub(127.5).div(63.75)
    x = x.to(DEVICE).contiguous(memory_format=memory)
    y = torch.from_numpy(labels).long().to(DEVICE)

    def forward(x, y):
        return torch.nn.functional.cross_entropy(model(x), y)

    if compiled:
        forward = torch.compile(forward, mode=compiled, dynamic=False)

    def take(steps: int):
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(DEVICE, torch.bfloat16, enabled=bfloat16):
                loss = forward(x, y)
            loss.backward()
            optimizer.step()
        if ON_GPU:
            torch.cuda.synchronize()

    start = time.perf_counter()
    take(1)
    report = {'compile_seconds': time.perf_counter() - start} if compiled else {}
    if not ON_GPU:
        return Step(take, report)
    torch.cuda.reset_peak_memory_stats()  # the first step tried cuDNN's algorithms, some in much memory
    take(2)  # the second records the CUDA graphs
    return Step(take, report, torch.cuda.max_memory_allocated)
