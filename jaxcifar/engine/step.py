"""Take one training step, from a state and a batch to the next state, in one compiled program."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxcifar.augment.mixing import Targets
from jaxcifar.augment.pipeline import Augmentation, has_own_batches
from jaxcifar.config.members import per_member, run_seed
from jaxcifar.engine.calls import several
from jaxcifar.engine.couplings import COUPLINGS, check_columns, make_head, make_learning_rates
from jaxcifar.engine.head import append_fused_logits
from jaxcifar.engine.losses import make_loss
from jaxcifar.engine.optim import average, clip, make_optimizer
from jaxcifar.engine.population import Population
from jaxcifar.engine.state import TrainState, formats, freeze_inactive, select_members
from jaxcifar.engine.views import make_share
from jaxcifar.machine.compiler import as_one_array, compiler_options

# Keys are fold_in(fold_in(seed, purpose), step): no draw depends on what was drawn before.
DROPOUT, AUGMENT, HEAD_DROPOUT = 0, 1, 2


class TrainStep:
    """Turn (state, batch) into (state, {'loss', 'accuracy', 'lr' and the coupling's columns: [K] each}).

    All members are updated from the same forward pass. A coupling's head adds one row, the last.

    batch: 'image' uint8 [B,H,W,C], 'label' and 'index' [B], or [K,B,...] where members have their own.
    params: the parameters that the networks run with, unless they are those of the state.
    """

    def __init__(
        self, config: ConfigDict, population: Population, dataset, steps_per_epoch: int, counts=None
    ):
        self.config, self.population, self.dataset = config, population, dataset
        self.augment = Augmentation(config.augment, dataset.mean, dataset.std)
        self.epoch_steps = steps_per_epoch
        self.coupling = COUPLINGS[config.coupling].make(config)
        self.head = make_head(config, population)
        self.frozen_steps = config.fusion.freeze_epochs * steps_per_epoch if self.head else 0
        self.share = make_share(config, steps_per_epoch)
        counts = np.bincount(dataset.y_train, minlength=dataset.num_classes) if counts is None else counts
        self.example_loss = make_loss(config, counts)
        self.learning_rates = make_learning_rates(config, steps_per_epoch)
        self.weight_decay = jnp.array(per_member(config, 'optimizer.weight_decay'), jnp.float32)
        self.run_key = jax.random.key(run_seed(config))
        self.member_keys = population.member_keys()

    def __call__(self, state: TrainState, batch: dict[str, jax.Array], params=None):
        images, targets = self.augment_batch(batch, state.step)
        lr = self.learning_rates(state.step)
        params = state.params if params is None else params
        new, numbers = self._advance(state, params, images, targets, self.dropout_keys(state.step), lr)
        check_columns(self.config, numbers)
        count = batch['label'].shape[-1]
        sums = {name: state.sums[name] + value * count for name, value in numbers.items()}
        sums['count'] = state.sums['count'] + count
        ema = average(self.config.ema, state.step, state.ema, (new.params, new.stats))
        new = new.replace(step=state.step + 1, ema=ema, sums=sums)
        row = {**numbers, 'lr': lr[: len(numbers['loss'])]}
        return freeze_inactive(self.population, self._moving(state), new, state), row

    def _moving(self, state: TrainState) -> jax.Array:
        """Return which members this step changes, [K] bool."""
        return state.active & (state.step >= self.frozen_steps)

    def _advance(self, state: TrainState, params, images, targets: Targets, dropout_keys, lr: jax.Array):
        """Return the state with new weights and optimisers, and the logged numbers, {name: [K]}."""
        start = state.replace(params=params)
        (grads, head_grads), stats, numbers = self.gradients(start, images, targets, dropout_keys)
        if self.head and self.config.fusion.clip_all:
            # Frozen members do not count in the joint norm.
            grads = select_members(
                self.population, self._moving(state), grads, jax.tree.map(jnp.zeros_like, grads)
            )
            grads, head_grads = clip((grads, head_grads), self.config.fusion.clip_all)
        params, opt = self._update(self.population, grads, state.opt, state.params, lr, self.weight_decay)
        head = None
        if self.head and state.head:
            head = self.head.advance(state.head, head_grads, lr[self.population.size :], state.step)
        return state.replace(params=params, stats=stats, opt=opt, head=head), numbers

    def augment_batch(self, batch: dict[str, jax.Array], step: jax.Array):
        """Return (normalised images, `Targets`), as the networks see a batch in this step."""
        labels, each = batch['label'], self.config.augment_each and not has_own_batches(batch['image'])
        if each:
            batch = self.population.copy_for_each(batch)
        keys = self._keys(AUGMENT, step, of_members=has_own_batches(batch['image']))
        images, targets = self.augment(keys, batch, step // self.epoch_steps)
        # Shared labels stay [B], so that devices need not exchange them. Mixed labels never get here:
        # `resolve` refuses augment_each with mixup or cutmix.
        return images, Targets(labels) if each else targets

    def _keys(self, purpose: int, step: jax.Array, of_members: bool) -> jax.Array:
        """Return the run's key for this step, or the members' own, [K]."""

        def at(key):
            return jax.random.fold_in(jax.random.fold_in(key, purpose), step)

        return jax.vmap(at)(self.member_keys) if of_members else at(self.run_key)

    def dropout_keys(self, step: jax.Array) -> jax.Array:
        """Return one key per member and, last, one for the coupling's head, [K+1]."""
        of_head = self._keys(HEAD_DROPOUT, step, of_members=False)
        return jnp.append(self._keys(DROPOUT, step, of_members=True), of_head)

    def _outputs(self, population: Population, params, stats, images, dropout_keys, step):
        """Return (logits [K,B,C], features) of normalised images, and batch statistics."""
        shown = population.show(params, self.share(step))
        logits, features, stats = population.forward(shown, stats, images, True, dropout_keys)
        return (logits, features), stats

    def _loss(self, params, stats, images, targets: Targets, dropout_keys, step):
        """Return the coupled loss and (batch statistics, logged numbers); params: (members', head's)."""
        params, head = params
        (logits, features), stats = self._outputs(self.population, params, stats, images, dropout_keys, step)
        logits = append_fused_logits(self.head, head, logits, features, dropout_keys[-1])
        total, numbers = self._couple((logits, features), targets)
        return total, (stats, numbers)

    def _couple(self, outputs, targets: Targets):
        """Return the coupled loss of the members' outputs, and the logged numbers, {name: [K]}."""
        logits, features = outputs
        targets = jax.tree.map(lambda t: jnp.broadcast_to(t, logits.shape[:2]), targets)
        own = targets.mixed(lambda y: self.example_loss(logits, y)).mean(1)
        correct = targets.mixed(lambda y: logits.argmax(-1) == y).mean(1)
        total, columns = self.coupling(own, logits, features, targets)
        return total, {'loss': own, 'accuracy': correct, **columns}

    def gradients(self, state: TrainState, images, targets: Targets, dropout_keys):
        """Return ((members' gradients, the head's), batch statistics, logged numbers).

        Gradients and numbers are means over the parts, which run in turn, so that only one's activations
        are in memory. The loop is unrolled: XLA's loops make convolution gradients 30 times slower on CPU.
        """
        gradient = jax.grad(self._loss, has_aux=True)
        parts, stats = self.config.optimizer.accumulate, state.stats
        params = state.params, state.head and state.head.params
        total: Any = None
        # Batch statistics are updated part by part, as if each part were a smaller batch.
        for i in range(parts):
            keys = jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(dropout_keys)
            # Members may have their own images, [K,B,H,W,C], and still share the labels, [B].
            x = jnp.split(images, parts, axis=images.ndim - 4)[i]
            y = jax.tree.map(lambda t, i=i: jnp.split(t, parts, axis=t.ndim - 1)[i], targets)
            grads, (stats, numbers) = gradient(params, stats, x, y, keys, state.step)
            grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
            part = jax.tree.map(lambda value: value / parts, (grads, numbers))
            total = part if total is None else jax.tree.map(jnp.add, total, part)
            if i < parts - 1:
                # The next part must wait for this one; otherwise XLA could run them at the same time. After
                # the last part, a barrier would keep XLA from fusing the gradients with the update.
                total, stats, images = jax.lax.optimization_barrier((total, stats, images))
        grads, numbers = total
        return grads, stats, numbers

    def _update(self, population: Population, grads, opt, params, lr: jax.Array, weight_decay: jax.Array):
        """Return new (params, optimiser states); each member's chain is made from its own numbers."""

        def of_member(grads, opt, params, lr, weight_decay):
            updates, opt = make_optimizer(self.config, lr, weight_decay).update(grads, opt, params)
            return optax.apply_updates(params, updates), opt

        rates = as_one_array(lr[: len(weight_decay)], weight_decay)
        numbers = (population.split_by_group(n) for n in rates)
        groups = zip(grads, opt, params, *numbers)
        params, opt = zip(*(jax.vmap(of_member)(*group) for group in groups))
        return params, opt


class SequentialStep(TrainStep):
    """Update members in turn: each sees the members before it as they are after this step's update.

    This is Zhang et al. 2018, algorithm 1. Each member but the last costs one more forward pass than in
    `TrainStep`. Batch statistics come from the forward pass that gives a member's gradient.
    """

    def _advance(self, state: TrainState, params, images, targets: Targets, dropout_keys, lr: jax.Array):
        everyone, members = self.population, range(self.population.size)

        def forward(k: int, params):
            x = images[k : k + 1] if has_own_batches(images) else images
            stats, keys = everyone.of_member(state.stats, k), dropout_keys[k : k + 1]
            return self._outputs(everyone.only(k), params, stats, x, keys, state.step)

        # Every member is run before any is updated, so that the first has peers to see.
        old = [everyone.of_member(state.params, k) for k in members]
        runs = [jax.vjp(partial(forward, k), old[k], has_aux=True) for k in members]
        (outputs, pullbacks, stats), turns = map(list, zip(*runs)), []
        for k in members:
            turns.append(self._turn(k, state, old[k], outputs, pullbacks[k], targets, lr))
            # The members after this one must see its new weights. No member follows the last.
            if k < everyone.size - 1:
                outputs[k], _ = forward(k, turns[k][0])
        params, opt, numbers = zip(*turns)
        logged = jax.tree.map(lambda *values: jnp.stack(values), *numbers)
        new = {'params': params, 'stats': stats, 'opt': opt}
        return state.replace(**{name: everyone.of_all(trees) for name, trees in new.items()}), logged

    def _turn(self, k: int, state: TrainState, params, outputs: list, pullback, targets: Targets, lr):
        """Return member k's new parameters and optimiser, and its logged numbers, {name: number}.

        outputs: all members' outputs at the time of its turn. pullback: of its own forward pass.
        """

        def total(own_output):
            # Only the member's own output is differentiated, so its peers' outputs are constants.
            logits, features = zip(*outputs[:k], own_output, *outputs[k + 1 :])
            return self._couple((jnp.concatenate(logits), [f for (f,) in features]), targets)

        slope, numbers = jax.grad(total, has_aux=True)(outputs[k])
        (grads,) = pullback(slope)
        alone, own = self.population.only(k), slice(k, k + 1)
        opt = self.population.of_member(state.opt, k)
        new, opt = self._update(alone, grads, opt, params, lr[own], self.weight_decay[own])
        # A stopped member still teaches, with its weights unchanged.
        new = jax.tree.map(partial(jnp.where, state.active[k]), new, params)
        return new, opt, jax.tree.map(lambda value: value[k], numbers)


UPDATES = {'simultaneous': TrainStep, 'sequential': SequentialStep}


def make_train_step(
    config: ConfigDict, population: Population, dataset, steps_per_epoch: int, state: TrainState, counts=None
):
    """Return the compiled step. States stay where `state` is, in its `formats`, and their memory is reused.

    With steps_per_call above 1, the step takes the stacked batches of several steps and logs only the last.

    counts: the members' training images per class, [C] or [K,C]; by default those of the whole data set.
    """
    given = formats(state)
    step = UPDATES[config.update_order](config, population, dataset, steps_per_epoch, counts)

    return jax.jit(
        step.__call__ if config.steps_per_call == 1 else several(step, population, config),
        donate_argnums=0,
        in_shardings=(given, None),
        out_shardings=(given, population.sharding()),
        compiler_options=compiler_options(),
    )
