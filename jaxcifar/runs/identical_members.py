"""Find members that nothing tells apart: a population of them is one network, trained several times."""

import hashlib
import sys

import jax
import numpy as np

from jaxcifar.config.members import member_kinds, member_losses, member_seeds, own_numbers
from jaxcifar.config.values import flatten
from jaxcifar.engine.couplings import COUPLINGS, has_head
from jaxcifar.engine.state import TrainState
from jaxcifar.machine import hosts
from jaxcifar.runs.session import Session


def warn_of_identical_members(session: Session, state: TrainState):
    """Warn on stderr about members with the same weights and images, and say how to make them differ."""
    for members in identical_members(session, state):
        if hosts.is_first():
            names = ', '.join(session.names[k] for k in members)
            stay = '' if has_head(session.config) else ', so they stay identical bit for bit'
            print(
                f'warning: {names} are identical: they start from the same weights and see the same images'
                f'{stay}; to make them differ, set {_remedy(session, members)}',
                file=sys.stderr,
            )


def identical_members(session: Session, state: TrainState) -> list[list[int]]:
    """Return groups of two or more members that will train identically from this state on."""
    config = session.config
    # Members that take turns see each other as they are after the others' update.
    in_turn = config.update_order == 'sequential' and config.coupling != 'none'
    if config.members == 1 or in_turn:
        return []
    # The optimiser's state counts too: a resumed run may differ in its momentum alone.
    weights = session.population.disassemble(tuple(zip(state.params, state.stats, state.opt)))
    numbers = own_numbers(flatten(config), config.members).values()
    # Members with the same key take the same steps, for ever.
    alike: dict[tuple, list[int]] = {}
    for k, tree in enumerate(weights):
        kind = member_kinds(config)[k], member_losses(config)[k], tuple(of[k] for of in numbers)
        alike.setdefault((kind, _digest(tree), _sees(session, k)), []).append(k)
    return [members for members in alike.values() if len(members) > 1]


def _sees(session: Session, k: int) -> tuple:
    """Return a key that is equal for members that see the same images and draw the same dropout."""
    config, order = session.config, session.order
    # The first batch stands for all: later ones come from the same seeds.
    images = order.indices(0)[k].tobytes() if order.own else b''
    # A seed matters only where something is drawn from it: augmentation, dropout or dropped paths.
    drawn = (order.own or config.augment_each) and config.augment != 'none'
    dropped = config.model.dropout or config.model.drop_path
    return images, member_seeds(config)[k] if drawn or dropped else None


def _digest(tree) -> bytes:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.digest()


def _remedy(session: Session, members: list[int]) -> str:
    """Return the settings with which the members would differ."""
    config = session.config
    seeds = {member_seeds(config)[k] for k in members}
    # Different seeds give different first weights, unless these come from a file.
    differ = [] if len(seeds) == len(members) else ['a seed for each (seed=1,2,…)']
    if config.init_from or config.resume_from:
        # Couplings that compare predictions need one image for all: only its augmentation may differ.
        if not COUPLINGS[config.coupling].same_images:
            differ.append('data.order=member (their own order and augmentation)')
        elif config.augment != 'none':
            differ.append('augment_each=True (their own augmentation)')
        else:
            differ.append('a file for each member in init_from')
    return ' and '.join(differ)
