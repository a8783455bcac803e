"""K networks as one: their parameters, where they live, and their forward pass.

Members of one network and view form a group whose parameters are stacked, [K_g,...]. The devices form a mesh
('member', 'data'): groups are cut along the first axis, batches along the second. On each device the
local members run one after the other inside one compiled program: mapping over stacked convolution
weights (`vmap`) would turn them into grouped convolutions, 25 times slower on CPU.
"""

import copy
from functools import partial
from math import gcd
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from jaxcifar.config.members import member_kinds, member_seeds
from jaxcifar.engine.views import VIEWS, View
from jaxcifar.machine import hosts
from jaxcifar.machine.errors import UserError
from jaxcifar.models import Network, build


class Group(NamedTuple):
    """Members with the same network and view: their positions in the population."""

    network: Network
    view: View
    members: tuple[int, ...]


def make_mesh(config: ConfigDict) -> Mesh:
    """A mesh of as many members side by side as all groups allow, and the rest of the devices on data."""
    devices = jax.devices()
    count = config.devices or len(devices)
    if count > len(devices):
        raise UserError(f'devices={count}, but there are {len(devices)}')
    if count < len(devices) and not hosts.alone():
        raise UserError(f'devices={count}, but the hosts have {len(devices)}: they take part with all')
    kinds = member_kinds(config)
    if config.update_order == 'sequential':  # members that take turns have nothing to do side by side
        kinds = list(dict.fromkeys(kinds))
    side_by_side = gcd(count, *(kinds.count(kind) for kind in kinds))
    shape = (side_by_side, count // side_by_side)
    return jax.make_mesh(shape, ('member', 'data'), (AxisType.Auto,) * 2, devices=devices[:count])


def check_batch(config: ConfigDict, mesh: Mesh):
    """Raise `UserError` unless a batch's parts split evenly over the mesh."""
    part, shards = config.batch_size // config.optimizer.accumulate, mesh.shape['data']
    if part % shards:
        raise UserError(
            f'batch_size={config.batch_size} in optimizer.accumulate={config.optimizer.accumulate} parts '
            f'does not split over {shards} devices'
        )


class Population:
    """The members of a run.

    Variables are tuples over groups of stacked trees; outputs are in the members' order.
    """

    def __init__(self, config: ConfigDict, num_classes: int, image_size: int, mesh: Mesh):
        self.mesh = mesh
        self.size = config.members
        self.num_classes = num_classes
        self._seeds = member_seeds(config)
        self._shards = mesh.shape['data']
        self._sync_norm = config.sync_norm and self._shards > 1
        kinds = member_kinds(config)
        options = {name: value for name, value in config.model.items() if value != ''}
        dtype, axis = jnp.dtype(config.precision), 'data' if self._sync_norm else None

        def make(name: str) -> Network:
            return build(name, num_classes, image_size, dtype, axis, **options)

        self.groups = [
            Group(make(name), VIEWS[view](config), tuple(k for k, n in enumerate(kinds) if n == (name, view)))
            for name, view in dict.fromkeys(kinds)
        ]

    def init(self, images: np.ndarray | None = None) -> tuple[Any, Any]:
        """Fresh (params, batch statistics) of all members, as numpy arrays.

        images: normalised training images [N,H,W,3] that some networks fit variables to.
        """
        params, stats = [], []
        for g in self.groups:
            drawn = [g.network.init(self._seeds[k], images) for k in g.members]
            params.append(stack([g.view.init(v['params']) for v in drawn]))
            stats.append(stack([v['batch_stats'] for v in drawn]))
        return tuple(params), tuple(stats)

    def show(self, params, share: jax.Array | float = 1.0) -> tuple:
        """What the networks get of the parameters; `share` is for the views, see there."""
        groups = zip(self.groups, params)
        return tuple(jax.vmap(partial(g.view.show, share=share))(tree) for g, tree in groups)

    @property
    def fits(self) -> bool:
        """Whether `init` wants images."""
        return any(group.network.fits for group in self.groups)

    def shapes(self) -> list:
        """The members' variables' shapes, {'params': …, 'batch_stats': …} of each."""
        shapes = {k: g.network.shapes() for g in self.groups for k in g.members}
        return [shapes[k] for k in range(self.size)]

    def feature_sizes(self) -> list[int]:
        """The members' numbers of features, D_k."""
        sizes = {k: g.network.feature_size() for g in self.groups for k in g.members}
        return [sizes[k] for k in range(self.size)]

    def member_keys(self) -> jax.Array:
        """The members' own random keys, [K]."""
        return jnp.stack([jax.random.fold_in(jax.random.key(s), i) for s, i in self._seeds])

    def member(self, k: int) -> 'Population':
        """A population of the member `k` alone, on the same mesh."""
        alone = copy.copy(self)
        alone.size, alone._seeds = 1, self._seeds[k : k + 1]
        alone.groups = [g._replace(members=(0,)) for g in self.groups if k in g.members]
        return alone

    def select(self, groups, k: int) -> tuple:
        """What belongs to the member `k` of stacked groups, as the groups of `member(k)`."""
        trees = [(g.members.index(k), tree) for g, tree in zip(self.groups, groups) if k in g.members]
        return tuple(jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], tree) for i, tree in trees)

    def join(self, members: list[tuple]) -> tuple:
        """The stacked groups that `select` took the K members' from."""
        return tuple(
            jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(members[k][0] for k in g.members))
            for g in self.groups
        )

    def copy_for_each(self, batch):
        """A batch's arrays [B,…] repeated for each member, [K,B,…], where its member lives."""
        # Groups of different networks each take their rows: those must be at hand everywhere.
        axes = ('member' if len(self.groups) == 1 else None, 'data')
        copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.size, *x.shape)), batch)
        return jax.lax.with_sharding_constraint(copies, self.sharding(*axes))

    def sharding(self, *axes: str | None) -> NamedSharding:
        """Where an array lives whose leading axes are these mesh axes."""
        return NamedSharding(self.mesh, P(*axes))

    def assemble(self, members: list) -> tuple:
        """K members' trees on the host -> stacked groups on the devices."""
        groups = tuple(stack([members[k] for k in g.members]) for g in self.groups)
        return hosts.put(groups, self.sharding('member'))

    def disassemble(self, groups) -> list:
        """Stacked groups on the devices -> K members' trees of numpy arrays."""
        members: list = [None] * self.size
        for group, tree in zip(self.groups, hosts.fetch(groups)):
            for i, k in enumerate(group.members):
                members[k] = jax.tree.map(lambda leaf, i=i: leaf[i], tree)
        return members

    def split_by_group(self, per_member: jax.Array) -> tuple[jax.Array, ...]:
        """[K,...] -> one [K_g,...] for each group."""
        return tuple(per_member[np.array(g.members)] for g in self.groups)

    def forward(self, params, stats, images: jax.Array, train: bool, keys: jax.Array | None = None):
        """Run all members on normalised images, [B,H,W,C] for all or [K,B,H,W,C] one batch each.

        params are what `show` gave. Returns logits [K,B,C], features (K arrays [B,D_k]) and the new
        batch statistics.
        """
        logits, features, new_stats = [], [], []
        order = [k for g in self.groups for k in g.members]
        for i, group in enumerate(self.groups):
            own = images.ndim == 5
            x = images[np.array(group.members)] if own and len(self.groups) > 1 else images
            group_keys = keys[np.array(group.members)] if keys is not None else None
            run = partial(self._forward_group, group.network, train, own)
            z, f, s = self._shard(run, own, group_keys is not None)(params[i], stats[i], x, group_keys)
            # The one exchange between members, of features only where they are used. All that follows is
            # computed on every device alike.
            z, f = jax.lax.with_sharding_constraint((z, f), self.sharding(None, 'data'))
            logits.append(z)
            features += list(f)
            new_stats.append(s)
        joined = jnp.concatenate(logits) if len(logits) > 1 else logits[0]
        if order != sorted(order):
            inverse = np.argsort(order)
            joined, features = joined[inverse], [features[i] for i in inverse]
        return joined, features, tuple(new_stats)

    def _shard(self, run, own: bool, keyed: bool):
        if self.mesh.size == 1:
            return run
        # An axis of one device is left out, or gradients would be summed over it all the same.
        data = ('data',) if self._shards > 1 else ()
        member, batch, images = P('member'), P('member', *data), P(*data)
        in_specs = (member, member, batch if own else images, member if keyed else None)
        out_specs, axes = (batch, batch, member), {'member', *data}
        return jax.shard_map(run, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, axis_names=axes)

    def _forward_group(self, network: Network, train: bool, own: bool, params, stats, images, keys):
        """The members of one group that live on this device, one after the other."""
        members = zip(unstack(params), unstack(stats))
        outputs = []
        for i, (p, s) in enumerate(members):
            key = None if keys is None else keys[i]
            if key is not None and self._shards > 1:
                key = jax.random.fold_in(key, jax.lax.axis_index('data'))
            variables = {'params': p, 'batch_stats': s}
            (z, f), s = network.apply(variables, images[i] if own else images, train, key)
            outputs.append((z, f, self._replicate(s) if train else s))
        z, f, s = (list(o) for o in zip(*outputs))
        return jnp.stack(z), jnp.stack(f), stack(s)

    def _replicate(self, stats):
        """Running statistics that all data shards agree on: with local norms the shards' mean."""
        alike = self._shards == 1 or self._sync_norm
        return stats if alike else jax.lax.pmean(stats, 'data')


def stack(trees: list):
    """K trees -> one tree with a leading axis K; on the host if the leaves are there."""
    on_host = isinstance(jax.tree.leaves(trees[0])[0], np.ndarray)
    return jax.tree.map(lambda *leaves: (np if on_host else jnp).stack(leaves), *trees)


def unstack(tree) -> list:
    """The trees that `stack` put together.

    `split` rather than indexing: its transpose is one concatenation, that of K indexings is a sum
    of K arrays that are zero but for one member.
    """
    leaves, structure = jax.tree.flatten(tree)
    size = len(leaves[0])
    parts = [jax.lax.split(leaf, [1] * size) for leaf in leaves]
    return [jax.tree.unflatten(structure, [p[k][0] for p in parts]) for k in range(size)]
