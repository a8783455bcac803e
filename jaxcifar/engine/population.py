"""Run K networks as one: their parameters, where they live, and their forward pass.

Members with the same network and view form a group whose parameters are stacked, [K_g,...]. The devices form
a mesh ('member', 'data'): groups are split along the first axis, batches along the second. The members that
share a device run inside one compiled program, as `side_by_side` describes.
"""

import copy
from collections.abc import Sequence
from functools import partial
from math import gcd
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from jaxcifar.augment.pipeline import has_own_batches
from jaxcifar.config.members import member_kinds, member_seeds
from jaxcifar.engine.side_by_side import choose, describe, run_members, stack
from jaxcifar.engine.views import VIEWS, View
from jaxcifar.machine import hosts
from jaxcifar.machine.errors import UserError
from jaxcifar.models import Network, build


class Group(NamedTuple):
    """Hold members with the same network and view."""

    network: Network
    view: View
    members: tuple[int, ...]  # their positions in the population
    way: str  # how the members on one device run: one of `side_by_side.WAYS`


def make_mesh(config: ConfigDict) -> Mesh:
    """Return a mesh: as many devices on the member axis as all groups allow, the others on the data axis."""
    devices = jax.devices()
    # None means all devices.
    count = config.devices or len(devices)
    if count > len(devices):
        raise UserError(f'expected at most {len(devices)} devices, got devices={count}: leave it out for all')
    if count < len(devices) and not hosts.alone():
        raise UserError(
            f'expected all {len(devices)} devices of the hosts, got devices={count}: leave it out'
        )
    kinds = member_kinds(config)
    if config.update_order == 'sequential':  # members that take turns have nothing to do side by side
        kinds = list(dict.fromkeys(kinds))
    # The member axis must divide every group, or a device would hold half a member.
    side_by_side = gcd(count, *(kinds.count(kind) for kind in kinds))
    shape = (side_by_side, count // side_by_side)
    return jax.make_mesh(shape, ('member', 'data'), (AxisType.Auto,) * 2, devices=devices[:count])


def check_batch(config: ConfigDict, mesh: Mesh):
    """Raise `UserError` unless a batch's parts split evenly over the mesh."""
    part, shards = config.batch_size // config.optimizer.accumulate, mesh.shape['data']
    if part % shards:
        unit = config.optimizer.accumulate * shards
        below = config.batch_size // unit * unit
        sizes = ' or '.join(f'{size}' for size in (below, below + unit) if size)
        raise UserError(
            f'batch_size must be a multiple of {unit} (optimizer.accumulate times the devices that '
            f'share it), got {config.batch_size}: set batch_size={sizes}, or devices'
        )


class Population:
    """Hold the members of a run.

    Variables are tuples with one stacked tree per group; outputs are in the members' order.
    """

    def __init__(self, config: ConfigDict, num_classes: int, image_size: int, mesh: Mesh):
        self.mesh = mesh
        self.size = config.members
        self.num_classes = num_classes
        self._seeds = member_seeds(config)
        self._shards = mesh.shape['data']
        self._sync_norm = config.sync_norm and self._shards > 1
        kinds = member_kinds(config)
        # An empty option keeps the network's own default.
        options = {name: value for name, value in config.model.items() if value != ''}
        dtype, axis = jnp.dtype(config.precision), 'data' if self._sync_norm else None

        def make(name: str) -> Network:
            return build(name, num_classes, image_size, dtype, axis, **options)

        # Networks or views that differ cannot be stacked, so each kind is a group of its own.
        self.groups = []
        for kind in dict.fromkeys(kinds):
            (name, view), members = kind, tuple(k for k, other in enumerate(kinds) if other == kind)
            network, on_device = make(name), len(members) // mesh.shape['member']
            way = choose(config.members_as, network, on_device, mesh.devices.flat[0].platform)
            self.groups.append(Group(network, VIEWS[view](config), members, way))

    def init(self, images: np.ndarray | None = None) -> tuple[Any, Any]:
        """Draw initial (params, batch statistics) for all members, as numpy arrays.

        images: normalised training images [N,H,W,3], to which some networks fit their first variables.
        """
        params, stats = [], []
        for g in self.groups:
            drawn = [g.network.init(self._seeds[k], images) for k in g.members]
            params.append(stack([g.view.init(v['params']) for v in drawn]))
            stats.append(stack([v['batch_stats'] for v in drawn]))
        return tuple(params), tuple(stats)

    def show(self, params, share: jax.Array | float = 1.0) -> tuple:
        """Return the parameters as the networks see them; `share` is as for `View.show`."""
        groups = zip(self.groups, params)
        return tuple(jax.vmap(partial(g.view.show, share=share))(tree) for g, tree in groups)

    @property
    def needs_images(self) -> bool:
        """Return whether `init` wants images."""
        return any(group.network.needs_images for group in self.groups)

    def shapes(self) -> list:
        """Return the shapes of each member's variables, {'params': …, 'batch_stats': …}."""
        # Shapes come from tracing alone, so no weights are drawn.
        shapes = {k: g.network.shapes() for g in self.groups for k in g.members}
        return [shapes[k] for k in range(self.size)]

    def feature_sizes(self) -> list[int]:
        """Return the members' numbers of features, D_k."""
        sizes = {k: g.network.feature_size() for g in self.groups for k in g.members}
        return [sizes[k] for k in range(self.size)]

    def member_keys(self) -> jax.Array:
        """Return the members' own random keys, [K]."""
        return jnp.stack([jax.random.fold_in(jax.random.key(s), i) for s, i in self._seeds])

    def describe(self) -> str:
        """Return how the members of each group run on a device, for a line of the log."""
        side = self.mesh.shape['member']
        return ', '.join(describe(g.way, len(g.members) // side) for g in self.groups)

    def only(self, k: int) -> 'Population':
        """Return a population of member k alone, on the same mesh."""
        alone = copy.copy(self)
        alone.size, alone._seeds = 1, self._seeds[k : k + 1]
        (group,) = (g for g in self.groups if k in g.members)
        # A loop of one member is a plain network, without the cost of a stacked axis.
        alone.groups = [group._replace(members=(0,), way='loop')]
        return alone

    def of_member(self, groups, k: int) -> tuple:
        """Return member k's part of stacked groups, as the single group of `only(k)`, [1,...]."""
        ((group, tree),) = ((g, tree) for g, tree in zip(self.groups, groups) if k in g.members)
        # A slice keeps the leading axis, so that the part is a stacked group of one.
        row = group.members.index(k)
        return (jax.tree.map(lambda leaf: leaf[row : row + 1], tree),)

    def of_all(self, parts: Sequence[tuple]) -> tuple:
        """Join the K members' parts, as `of_member` returns them, into stacked groups."""
        return tuple(
            jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(parts[k][0] for k in g.members))
            for g in self.groups
        )

    def copy_for_each(self, batch):
        """Repeat a batch's arrays [B,…] for each member, [K,B,…], on the devices of that member."""
        # With several groups, each selects its own rows, so all rows must be on every device.
        axes = ('member' if len(self.groups) == 1 else None, 'data')
        copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.size, *x.shape)), batch)
        return jax.lax.with_sharding_constraint(copies, self.sharding(*axes))

    def sharding(self, *axes: str | None) -> NamedSharding:
        """Return where an array lives whose leading axes are these mesh axes."""
        return NamedSharding(self.mesh, P(*axes))

    def assemble(self, members: list) -> tuple:
        """Turn K members' trees on the host into stacked groups on the devices."""
        groups = tuple(stack([members[k] for k in g.members]) for g in self.groups)
        return hosts.put(groups, self.sharding('member'))

    def disassemble(self, groups) -> list:
        """Turn stacked groups on the devices into K members' trees of numpy arrays."""
        members: list = [None] * self.size
        for group, tree in zip(self.groups, hosts.fetch(groups)):
            # A group's rows are in its own order, so they go back to the members' places.
            for i, k in enumerate(group.members):
                members[k] = jax.tree.map(lambda leaf, i=i: leaf[i], tree)
        return members

    def split_by_group(self, per_member: jax.Array) -> tuple[jax.Array, ...]:
        """Split [K,...] into one [K_g,...] for each group; rows after the K-th belong to no member."""
        return tuple(per_member[np.array(g.members)] for g in self.groups)

    def forward(self, params, stats, images: jax.Array, train: bool, keys: jax.Array | None = None):
        """Run all members on normalised images, one shared batch [B,H,W,C] or one batch each, [K,B,H,W,C].

        params are as `show` returns them. Returns logits [K,B,C], features (K arrays [B,D_k]) and the new
        batch statistics.
        """
        # If members have their own batches, these are split by group; a shared batch stays whole.
        own_batches, groups = has_own_batches(images), len(self.groups)
        group_images = self.split_by_group(images) if own_batches and groups > 1 else [images] * groups
        group_keys = [None] * groups if keys is None else self.split_by_group(keys)
        logits, features, new_stats = [], [], []

        # One group after the other, each on all devices at once.
        for group, *given in zip(self.groups, params, stats, group_images, group_keys):
            run = self._on_devices(partial(self._forward_group, group, train, own_batches), own_batches, keys)
            *outputs, group_stats = run(*given)
            # This is the only exchange between members; features are exchanged only if they are used. All
            # later computations are the same on every device.
            outputs = jax.lax.with_sharding_constraint(outputs, self.sharding(None, 'data'))
            group_logits, group_features = outputs
            logits.append(group_logits)
            features += list(group_features)
            new_stats.append(group_stats)

        # Reorder the outputs from the groups' order to the members'.
        all_logits = jnp.concatenate(logits) if len(logits) > 1 else logits[0]
        members = [k for g in self.groups for k in g.members]
        if members != sorted(members):
            places = np.argsort(members)
            all_logits, features = all_logits[places], [features[i] for i in places]
        return all_logits, features, tuple(new_stats)

    def _on_devices(self, run, own_batches: bool, keys: jax.Array | None):
        """Return `run` mapped over the devices: each runs its own members on its share of the batch."""
        if self.mesh.size == 1:
            return run
        # A data axis of one device is left out; otherwise gradients would still be summed over it.
        data = ('data',) if self._shards > 1 else ()
        member, batch, images = P('member'), P('member', *data), P(*data)
        in_specs = (member, member, batch if own_batches else images, None if keys is None else member)
        out_specs, axes = (batch, batch, member), {'member', *data}
        return jax.shard_map(run, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, axis_names=axes)

    def _forward_group(self, group: Group, train: bool, own_batches: bool, params, stats, images, keys):
        """Run a group's members on this device; with several devices, `shard_map` calls this on each."""
        if keys is not None and self._shards > 1:  # each share of the batch has its own dropout
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, jax.lax.axis_index('data'))
        given = params, stats, images, keys
        logits, features, stats = run_members(group.network, group.way, train, own_batches, *given)
        if train and self._shards > 1 and not self._sync_norm:
            # Local norms differ from shard to shard; their running statistics are the shards' mean.
            stats = jax.lax.pmean(stats, 'data')
        return logits, features, stats
