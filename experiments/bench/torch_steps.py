"""Build PyTorch's training step in its several forms, each as its own guides to performance advise."""

import os
import time
from collections.abc import Callable

import torch

from experiments.bench.torch_networks import TORCH
from experiments.bench.worker import CLASSES, Step, noise
from experiments.results import ON_GPU
from jaxcifar.machine.errors import lookup

DEVICE = 'cuda' if ON_GPU else 'cpu'
GRAPH_WARMUP = 3  # steps before a graph is recorded, to allocate memory, which a recording may not


def pytorch(
    network: str,
    batch: int,
    channels_last: bool = False,
    compiled: str = '',
    bfloat16: bool = False,
    graph: bool = False,
) -> Step:
    """Return PyTorch's step.

    compiled: a mode of torch.compile, '' for none.
    graph: record the whole step, its optimiser too, as one CUDA graph and replay it; on a CPU nothing.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # whatever OMP_NUM_THREADS says
    torch.set_float32_matmul_precision('high')  # TF32 on a GPU, as jax and torch's own convolutions do
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = 0  # cuDNN tries all of its algorithms, as XLA does
    memory = torch.channels_last if channels_last else torch.contiguous_format
    model = lookup('network', TORCH, network)(classes=CLASSES).to(DEVICE, memory_format=memory).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True, fused=True)
    x, y = on_device(batch, memory)

    def forward(x, y):
        return torch.nn.functional.cross_entropy(model(x), y)

    if compiled:
        forward = torch.compile(forward, mode=compiled, dynamic=False)

    def step():
        optimizer.zero_grad(set_to_none=True)
        # A cast weight that autocast has cached would be out of date in the next replay.
        with torch.autocast(DEVICE, torch.bfloat16, enabled=bfloat16, cache_enabled=not graph):
            loss = forward(x, y)
        loss.backward()
        optimizer.step()

    return measured(step, bool(compiled), graph)


def on_device(batch: int, memory: torch.memory_format) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the noise that all ways train on, normalised: float32 [B,3,H,W] and int64 [B]."""
    images, labels = noise(batch)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().sub(127.5).div(63.75)
    return x.to(DEVICE).contiguous(memory_format=memory), torch.from_numpy(labels).long().to(DEVICE)


def measured(step: Callable[[], None], compiled: bool, graph: bool) -> Step:
    """Compile the step, record it as a graph if asked to, and return it as a `Step`."""
    start, run = time.perf_counter(), step
    step()
    wait()
    if ON_GPU:  # the first step tried cuDNN's algorithms, some in much memory
        torch.cuda.reset_peak_memory_stats()
    if graph and ON_GPU:
        run = record(step)
    report = {'compile_seconds': time.perf_counter() - start} if compiled or graph else {}

    def take(steps: int):
        for _ in range(steps):
            run()
        wait()

    if not ON_GPU:
        return Step(take, report)
    take(3)  # the second and third record the graphs of torch.compile
    return Step(take, report, torch.cuda.max_memory_allocated)


def wait():
    """Wait for all that a GPU has been given to do."""
    if ON_GPU:
        torch.cuda.synchronize()


def record(step: Callable[[], None]) -> Callable[[], None]:
    """Return a step's replay as one CUDA graph, recorded after some steps on a stream of their own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(GRAPH_WARMUP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
