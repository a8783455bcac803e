"""Some steps of training without a workdir, and networks that compile in no time."""

import copy

import flax.linen as nn
import jax
import numpy as np

from experiments.faults.networks import Tiny as Tiny
from jaxcifar.data.loader import Order, batches
from jaxcifar.engine.population import Population, make_mesh
from jaxcifar.engine.state import init_state
from jaxcifar.engine.step import make_train_step
from jaxcifar.models.layers import Layers, head
from jaxcifar.runs.resolve import finalize


class Linear(nn.Module):
    """The classes from the mean colours: no batch norm, so that a batch is the sum of its images."""

    num_classes: int
    layers: Layers

    @nn.compact
    def __call__(self, x):
        return head(x, self.num_classes)


class Run:
    """The parts of a run that a step needs."""

    def __init__(self, config, dataset):
        self.config, self.dataset = finalize(copy.deepcopy(config)), dataset
        self.mesh = make_mesh(self.config)
        self.population = Population(self.config, dataset.num_classes, dataset.image_size, self.mesh)
        self.order = Order(self.config, np.arange(len(dataset.y_train)), self.mesh.shape['data'])
        self.state = init_state(self.config, self.population)

    def batches(self, steps: int):
        return batches(self.config, self.dataset, self.order, self.population.mesh, range(steps))

    def compiled(self):
        arguments = self.config, self.population, self.dataset, self.order.steps_per_epoch
        return make_train_step(*arguments, self.state)

    def weights(self) -> list:
        """The members' (params, stats)."""
        return self.population.disassemble(tuple(zip(self.state.params, self.state.stats)))


def run_steps(config, dataset, steps=4):
    """(members' (params, stats), losses [steps,K], the compiled step) after some steps."""
    run = Run(config, dataset)
    step, losses = run.compiled(), []
    for batch in run.batches(steps):
        run.state, row = step(run.state, batch)
        losses.append(row['loss'])
    return run.weights(), np.array(losses), step


def distance(a, b) -> float:
    """The largest difference of two trees."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(np.abs(np.asarray(x, float) - np.asarray(y, float)).max() for x, y in pairs)
