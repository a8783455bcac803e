"""The compiled step: a batch and the state before it to the state after it."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxcifar.couplings import COUPLINGS
from jaxcifar.data.augment import augment_batch, normalise, parse
from jaxcifar.losses import LOSSES
from jaxcifar.members import per_member, run_seed
from jaxcifar.optim import make_learning_rates, make_optimizer
from jaxcifar.population import Population
from jaxcifar.views import VIEWS

# Keys are fold_in(fold_in(seed, purpose), step), so that no draw depends on what happened before.
DROPOUT, AUGMENT = 0, 1


@flax.struct.dataclass
class TrainState:
    """All that a run is, between two steps. Trees are tuples over groups of [K_g,...] arrays."""

    step: jax.Array  # steps taken
    params: Any
    stats: Any  # batch statistics
    opt: Any
    ema: Any  # averaged (params, stats), or None
    active: jax.Array  # [K] bool: members that have not been stopped
    sums: dict[str, jax.Array]  # [K] sums over the epoch's images so far: loss, correct, count


def new_sums(members: int) -> dict[str, jax.Array]:
    """The start of an epoch's sums."""
    return {name: jnp.zeros(members) for name in ('loss', 'correct', 'count')}


def init_state(config: ConfigDict, population: Population) -> TrainState:
    """The state before the first step, on the devices."""
    params, stats = population.init()

    def create(params, stats):
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            stats=stats,
            opt=tuple(jax.vmap(make_optimizer(config, 0.0, 0.0).init)(p) for p in params),
            ema=(params, stats) if config.ema else None,
            active=jnp.ones(population.size, bool),
            sums=new_sums(population.size),
        )

    shapes = jax.eval_shape(create, params, stats)
    placed = jax.device_put((params, stats), population.sharding('member'))
    return jax.jit(create, out_shardings=state_sharding(shapes, population))(*placed)


def state_sharding(state: TrainState, population: Population) -> TrainState:
    """Where each array of the state lives: members' trees on 'member', the rest everywhere."""
    everywhere, member = population.sharding(), population.sharding('member')
    split = jax.tree.map(lambda _: member, (state.params, state.stats, state.opt, state.ema))
    params, stats, opt, ema = split
    sums = jax.tree.map(lambda _: everywhere, state.sums)
    return TrainState(everywhere, params, stats, opt, ema, everywhere, sums)


def compile_options() -> dict[str, str]:
    """On CPU, XLA's fast preset skips the transposes that slow weight gradients down (1.1-1.6x)."""
    cpu = jax.default_backend() == 'cpu'
    return {'xla_cpu_opt_preset': 'CPU_OPT_PRESET_FAST_COMPILE'} if cpu else {}


def make_train_step(config: ConfigDict, population: Population, dataset, steps_per_epoch: int):
    """(state, {'image', 'label'}) -> (state, {'loss', 'accuracy', 'lr'} [K]); compiled once for each batch shape.

    `image` is uint8 [B,H,W,C], or [K,B,H,W,C] where members have batches of their own; `label`
    [B] or [K,B]. The state's memory is reused for the new one.
    """
    K = population.size
    augment = parse(config.augment)
    coupling, view = COUPLINGS[config.coupling], VIEWS[config.view]
    example_loss = LOSSES[config.loss]
    learning_rates = make_learning_rates(config, steps_per_epoch)
    decays = jnp.array(per_member(config, 'optimizer.weight_decay'), jnp.float32)
    smoothing = jnp.array(per_member(config, 'label_smoothing'), jnp.float32)
    run_key, member_keys = jax.random.key(run_seed(config)), population.member_keys()

    def keys(purpose: int, step: jax.Array, of_members: bool):
        at = lambda key: jax.random.fold_in(jax.random.fold_in(key, purpose), step)  # noqa: E731
        return jax.vmap(at)(member_keys) if of_members else at(run_key)

    def loss(params, stats, images, labels, dropout_keys):
        """The coupled loss of one part of a batch, and what else came out of it."""
        shown = tuple(view(p) for p in params)
        logits, features, stats = population.forward(shown, stats, images, True, dropout_keys)
        labels_k = jnp.broadcast_to(labels, (K, labels.shape[-1]))
        own = jax.vmap(example_loss)(logits, labels_k, smoothing).mean(1)
        correct = (logits.argmax(-1) == labels_k).mean(1)
        return coupling(own, logits, features, labels), (stats, own, correct)

    def gradients(params, stats, images, labels, dropout_keys):
        """Mean gradient, loss and accuracy over the parts of a batch, which go through in turn."""
        parts = config.optimizer.accumulate
        if parts == 1:
            grads, aux = jax.grad(loss, has_aux=True)(params, stats, images, labels, dropout_keys)
            return grads, *aux
        split = partial(_split_parts, parts=parts, axis=labels.ndim - 1)

        def one(carry, part):
            total, stats = carry
            i, x, y = part
            part_keys = jax.vmap(lambda key: jax.random.fold_in(key, i))(dropout_keys)
            grads, (stats, own, correct) = jax.grad(loss, has_aux=True)(params, stats, x, y, part_keys)
            return (jax.tree.map(lambda t, g: t + g / parts, total, grads), stats), (own, correct)

        zeros = jax.tree.map(jnp.zeros_like, params)
        # XLA's CPU loops make convolution gradients 30x slower: no loop there.
        unroll = parts if jax.default_backend() == 'cpu' else 1
        (grads, stats), (own, correct) = jax.lax.scan(
            one, (zeros, stats), (jnp.arange(parts), split(images), split(labels)), unroll=unroll
        )
        return grads, stats, own.mean(0), correct.mean(0)

    def update_member(grads, opt, params, lr, decay):
        updates, opt = make_optimizer(config, lr, decay).update(grads, opt, params)
        return optax.apply_updates(params, updates), opt

    def train_step(state: TrainState, batch: dict[str, jax.Array]):
        images, labels = batch['image'], batch['label']
        images = augment_batch(augment, keys(AUGMENT, state.step, images.ndim == 5), images)
        images = normalise(images, dataset.mean, dataset.std)
        grads, stats, own, correct = gradients(
            state.params, state.stats, images, labels, keys(DROPOUT, state.step, True)
        )
        lr = learning_rates(state.step)
        stepped = [
            jax.vmap(update_member)(*group)
            for group in zip(
                grads,
                state.opt,
                state.params,
                population.split_by_group(lr),
                population.split_by_group(decays),
            )
        ]
        params, opt = (tuple(s[i] for s in stepped) for i in (0, 1))
        new = (params, stats, opt, average(config, state, params, stats))
        old = (state.params, state.stats, state.opt, state.ema)
        params, stats, opt, ema = keep_stopped(population, state.active, new, old)
        count = labels.shape[-1]
        sums = {
            'loss': state.sums['loss'] + own * count,
            'correct': state.sums['correct'] + correct * count,
            'count': state.sums['count'] + count,
        }
        state = TrainState(state.step + 1, params, stats, opt, ema, state.active, sums)
        return state, {'loss': own, 'accuracy': correct, 'lr': lr}

    return jax.jit(train_step, donate_argnums=0, compiler_options=compile_options())


def _split_parts(array: jax.Array, parts: int, axis: int) -> jax.Array:
    """[B,...] -> [parts,B/parts,...]; [K,B,...] -> [parts,K,B/parts,...] with axis 1."""
    shape = array.shape
    new = (*shape[:axis], parts, shape[axis] // parts, *shape[axis + 1 :])
    return jnp.moveaxis(array.reshape(new), axis, 0)


def average(config: ConfigDict, state: TrainState, params, stats):
    """The exponential moving average of weights and statistics, faster while the run is young."""
    if not config.ema:
        return None
    decay = jnp.minimum(config.ema, (1.0 + state.step) / (10.0 + state.step))
    return optax.incremental_update((params, stats), state.ema, 1 - decay)


def keep_stopped(population: Population, active: jax.Array, new, old):
    """`new`, but `old` for members that have been stopped; all trees of tuples over groups."""

    def choose(group_active):
        return lambda n, o: jnp.where(group_active.reshape(-1, *[1] * (n.ndim - 1)), n, o)

    def of_group(i: int, tree_new, tree_old):
        return jax.tree.map(choose(population.split_by_group(active)[i]), tree_new, tree_old)

    def over_groups(tree_new, tree_old):
        return tuple(of_group(i, n, o) for i, (n, o) in enumerate(zip(tree_new, tree_old)))

    params, stats, opt = (over_groups(n, o) for n, o in zip(new[:3], old[:3]))
    ema = None if new[3] is None else tuple(over_groups(n, o) for n, o in zip(new[3], old[3]))
    return params, stats, opt, ema


def make_eval_step(config: ConfigDict, population: Population, dataset):
    """(params, stats, uint8 images [B,H,W,C]) -> logits [K,B,C] of the weights as the view shows them."""
    view = VIEWS[config.view]

    def eval_step(params, stats, images: jax.Array) -> jax.Array:
        shown = tuple(view(p) for p in params)
        images = normalise(images, dataset.mean, dataset.std)
        logits, _, _ = population.forward(shown, stats, images, False)
        if config.eval.flip:
            mirrored, _, _ = population.forward(shown, stats, images[:, :, ::-1], False)
            logits = (logits + mirrored) / 2
        return logits

    return jax.jit(eval_step, compiler_options=compile_options())


def eval_weights(state: TrainState):
    """The (params, stats) that are evaluated: the averaged ones where there is an average."""
    return state.ema if state.ema is not None else (state.params, state.stats)
