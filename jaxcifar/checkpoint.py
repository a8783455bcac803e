"""Saving and restoring a run. All that is known about orbax is known here.

WORKDIR/checkpoints/STEP     the whole state, the newest N
WORKDIR/best/MEMBER/STEP.npz a member's best weights, as evaluated, stamped with their step
"""

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import checkpoint_managers

from jaxcifar.errors import UserError

logging.getLogger('absl').setLevel(logging.ERROR)  # orbax narrates


class Checkpoints:
    """The whole states of one run.

    Saving is asynchronous: the arrays are copied off the devices, and written while training goes
    on. A step becomes visible when it is complete, older ones are deleted after that.
    """

    def __init__(self, workdir: Path, keep: int):
        self.folder = (workdir / 'checkpoints').absolute()
        self._damaged = self.folder.parent / 'damaged'
        self._keep = keep
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(preservation_policy=checkpoint_managers.LatestN(self._keep))
        return ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, meta: dict):
        """Begin to save; a failure of the save before it is raised here."""
        self._manager.wait_until_finished()
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        if step in self._manager.all_steps():
            self._manager.delete(step)
        self._manager.save(step, args=args)

    def wait(self):
        """Until all saves are on disk; raises what went wrong with them."""
        self._manager.wait_until_finished()

    def restore(self, like: Any, step: int) -> tuple[Any, dict]:
        """(state, meta) of a step, with the structure and on the devices of the state `like`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        return restored['state'], restored['meta']

    def restore_newest(self, like: Any) -> tuple[Any, dict] | None:
        """The newest state that can be read, or None where there is none.

        A damaged one is set aside with a line on stderr, and the one before it is taken.
        """
        for step in reversed(self.steps()):
            try:
                return self.restore(like, step)
            except Exception as error:  # orbax and tensorstore raise whatever they meet
                reason = ' '.join(str(error).split())[:160]
                print(
                    f'warning: checkpoint {step} is damaged and set aside: {reason}',
                    file=sys.stderr,
                )
                self._set_aside(step)
        return None

    def _set_aside(self, step: int):
        self._manager.close()
        self._damaged.mkdir(exist_ok=True)
        shutil.rmtree(self._damaged / str(step), ignore_errors=True)
        os.replace(self.folder / str(step), self._damaged / str(step))
        self._manager = self._open()

    def close(self):
        """Wait for the writing thread and let go of the folder."""
        self._manager.close()


def write_atomically(path: Path, write):
    """Call `write(file)` on a temporary binary file that then becomes `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        with open(temporary, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class BestWeights:
    """Each member's best (params, batch statistics), one file a member and step."""

    def __init__(self, workdir: Path):
        self.folder = workdir / 'best'

    def save(self, member: str, step: int, params: dict, stats: dict):
        """Write a member's weights, trees of numpy arrays."""
        tree = flatten_dict({'params': params, 'batch_stats': stats}, sep='/')
        write_atomically(self._file(member, step), lambda file: np.savez(file, **tree))

    def load(self, member: str, upto: int) -> tuple[dict, dict, int]:
        """(params, batch statistics, step) of the newest stamp not after step `upto`."""
        stamps = [s for s in self.steps(member) if s <= upto]
        if not stamps:
            raise UserError(f'{self.folder / member} holds no best weights of step {upto} or before')
        path = self._file(member, stamps[-1])
        try:
            with np.load(path) as file:
                tree: dict = unflatten_dict(dict(file), sep='/')
        except Exception as error:  # zip, zlib and numpy each have their own
            raise UserError(f'{path} is damaged: {error}; use --checkpoint last') from None
        return tree['params'], tree['batch_stats'], stamps[-1]

    def steps(self, member: str) -> list[int]:
        """The stamps of a member's files, oldest first."""
        return sorted(int(p.stem) for p in (self.folder / member).glob('[0-9]*.npz'))

    def prune(self, checkpoints: list[int]):
        """Delete what none of these checkpoints can come back to."""
        oldest = min(checkpoints, default=0)
        for member in self.folder.glob('*'):
            for stamp in [s for s in self.steps(member.name) if s <= oldest][:-1]:
                self._file(member.name, stamp).unlink()

    def _file(self, member: str, step: int) -> Path:
        return self.folder / member / f'{step}.npz'
