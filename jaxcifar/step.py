"""The compiled step: the state and a batch to the state after it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxcifar.couplings import COUPLINGS
from jaxcifar.data.augment import Augmentation, normalise
from jaxcifar.data.mixing import Targets
from jaxcifar.losses import make_loss
from jaxcifar.members import per_member, run_seed
from jaxcifar.optim import make_learning_rates, make_optimizer
from jaxcifar.population import Population
from jaxcifar.state import TrainState, average, keep_stopped
from jaxcifar.views import VIEWS

# Keys are fold_in(fold_in(seed, purpose), step): no draw depends on what was drawn before.
DROPOUT, AUGMENT = 0, 1


class TrainStep:
    """(state, batch) -> (state, {'loss', 'accuracy', 'lr'}: [K] each).

    batch: 'image' uint8 [B,H,W,C], 'label' and 'index' [B], or [K,B,...] where members have their own.
    """

    def __init__(
        self, config: ConfigDict, population: Population, dataset, steps_per_epoch: int, counts=None
    ):
        self.config, self.population, self.dataset = config, population, dataset
        self.augment = Augmentation(config.augment, dataset.mean, dataset.std)
        self.epoch_steps = steps_per_epoch
        self.coupling = COUPLINGS[config.coupling]
        self.view = VIEWS[config.view]
        counts = np.bincount(dataset.y_train) if counts is None else counts
        self.example_loss = make_loss(config, counts)
        self.learning_rates = make_learning_rates(config, steps_per_epoch)
        self.weight_decay = jnp.array(per_member(config, 'optimizer.weight_decay'), jnp.float32)
        self.run_key = jax.random.key(run_seed(config))
        self.member_keys = population.member_keys()

    def __call__(self, state: TrainState, batch: dict[str, jax.Array]):
        keys = self._keys(AUGMENT, state.step, of_members=batch['image'].ndim == 5)
        images, targets = self.augment(keys, batch, state.step // self.epoch_steps)
        dropout_keys = self._keys(DROPOUT, state.step, of_members=True)
        grads, stats, own, correct = self._gradients(state, images, targets, dropout_keys)
        lr = self.learning_rates(state.step)
        params, opt = self._update(state, grads, lr)
        count = batch['label'].shape[-1]
        sums = {
            'loss': state.sums['loss'] + own * count,
            'correct': state.sums['correct'] + correct * count,
            'count': state.sums['count'] + count,
        }
        ema = average(self.config.ema, state, params, stats)
        new = TrainState(state.step + 1, params, stats, opt, ema, state.active, sums)
        row = {'loss': own, 'accuracy': correct, 'lr': lr}
        return keep_stopped(self.population, new, state), row

    def _keys(self, purpose: int, step: jax.Array, of_members: bool) -> jax.Array:
        """The run's key for this step, or the members' own, [K]."""

        def at(key):
            return jax.random.fold_in(jax.random.fold_in(key, purpose), step)

        return jax.vmap(at)(self.member_keys) if of_members else at(self.run_key)

    def _loss(self, params, stats, images, targets: Targets, dropout_keys):
        """The coupled loss of normalised images, and (batch statistics, own loss, accuracy)."""
        shown = tuple(self.view(p) for p in params)
        logits, features, stats = self.population.forward(shown, stats, images, True, dropout_keys)
        targets = jax.tree.map(lambda t: jnp.broadcast_to(t, logits.shape[:2]), targets)
        own = targets.mean(lambda y: self.example_loss(logits, y)).mean(1)
        correct = targets.mean(lambda y: logits.argmax(-1) == y).mean(1)
        return self.coupling(own, logits, features, targets), (stats, own, correct)

    def _gradients(self, state: TrainState, images, targets: Targets, dropout_keys):
        """(gradients, batch statistics, own loss [K], accuracy [K]), means over a batch's parts.

        The parts go through one after the other, so that only one's activations are in memory.
        They are unrolled: XLA's loops make convolution gradients 30 times slower on CPU.
        """
        gradient = jax.grad(self._loss, has_aux=True)
        parts, stats = self.config.optimizer.accumulate, state.stats
        total: Any = None
        for i in range(parts):
            split = partial(jnp.split, indices_or_sections=parts, axis=targets.first.ndim - 1)
            keys = jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(dropout_keys)
            x, y = jax.tree.map(lambda batch, split=split, i=i: split(batch)[i], (images, targets))
            grads, (stats, own, correct) = gradient(state.params, stats, x, y, keys)
            part = jax.tree.map(lambda value: value / parts, (grads, own, correct))
            total = part if total is None else jax.tree.map(jnp.add, total, part)
            # The next part waits for this one, or XLA would be free to run them side by side.
            total, stats, images = jax.lax.optimization_barrier((total, stats, images))
        grads, own, correct = total
        return grads, stats, own, correct

    def _update(self, state: TrainState, grads, lr: jax.Array):
        """New (params, optimiser states); each member's chain is made from its own numbers."""

        def of_member(grads, opt, params, lr, weight_decay):
            updates, opt = make_optimizer(self.config, lr, weight_decay).update(grads, opt, params)
            return optax.apply_updates(params, updates), opt

        numbers = (self.population.split_by_group(n) for n in (lr, self.weight_decay))
        groups = zip(grads, state.opt, state.params, *numbers)
        params, opt = zip(*(jax.vmap(of_member)(*group) for group in groups))
        return params, opt


def make_train_step(
    config: ConfigDict, population: Population, dataset, steps_per_epoch: int, state: TrainState, counts=None
):
    """The compiled `TrainStep`. A state lives where `state` does, and its memory is used again.

    counts: the members' training images of each class, [C] or [K,C]; without, of the whole data set.
    """
    shardings = jax.tree.map(lambda x: x.sharding, state), population.sharding()
    return jax.jit(
        TrainStep(config, population, dataset, steps_per_epoch, counts).__call__,
        donate_argnums=0,
        out_shardings=shardings,
        compiler_options=compiler_options(),
    )


def make_eval_step(config: ConfigDict, population: Population, dataset):
    """(params, stats, uint8 images [B,H,W,C]) -> logits [K,B,C] of the weights in the config's view."""
    view = VIEWS[config.view]

    def eval_step(params, stats, images: jax.Array) -> jax.Array:
        shown = tuple(view(p) for p in params)
        images = normalise(images, dataset.mean, dataset.std)
        logits, _, _ = population.forward(shown, stats, images, False)
        if config.eval.flip:
            mirrored, _, _ = population.forward(shown, stats, images[:, :, ::-1], False)
            logits = (logits + mirrored) / 2
        return logits

    return jax.jit(eval_step, compiler_options=compiler_options())


def compiler_options() -> dict[str, str]:
    """On CPU, XLA's fast preset skips the transposes that slow weight gradients down (1.1-1.6x)."""
    cpu = jax.default_backend() == 'cpu'
    return {'xla_cpu_opt_preset': 'CPU_OPT_PRESET_FAST_COMPILE'} if cpu else {}
