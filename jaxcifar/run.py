"""Represent a run by its folder: what `jaxcifar.train` and `jaxcifar.open` return. Imports no JAX."""

from functools import cached_property
from pathlib import Path

from ml_collections import ConfigDict

from jaxcifar.config import saved
from jaxcifar.machine.text import percent
from jaxcifar.report import run_files
from jaxcifar.report.history import History, read_history
from jaxcifar.runs.ending import are_replicates, chosen


class Run(dict):
    """Give access to a run's numbers, config and networks; as a dict, it is the contents of results.json.

    Attributes:
      workdir: the run's folder.
      results: what its results.json holds: the test scores of a finished run, {} before its end.
    """

    def __init__(self, workdir: str | Path, results: dict | None = None):
        """Open a workdir; its files are read when they are asked for, and results where none are given."""
        # Absolute, so that it is found from any folder that a notebook changes to.
        self.workdir = Path(workdir).expanduser().absolute()
        self.results: dict = run_files.load([self.workdir])[0].results if results is None else results
        # Code that indexes the result of `train` as a dict keeps working.
        super().__init__(self.results)

    @cached_property
    def config(self) -> ConfigDict:
        """Return every field, resolved."""
        return saved.load(self.workdir / 'config.json')

    @property
    def names(self) -> list[str]:
        """Return the K names in `history`: the members and, at the end for a fused run, 'fused'."""
        return self._tables[0]

    @property
    def history(self) -> History:
        """Return the numbers of every epoch, history['validation']['accuracy'], [K,E].

        Each split of metrics.csv (train, validation, test) has `epoch` [E] and its columns; `timing` has
        seconds and images a second. See `jaxcifar.report.history.read_history`.
        """
        return self._tables[1]

    def load(self, member=None):
        """Return the trained networks, as `jaxcifar.load` does."""
        # Only this needs JAX.
        from jaxcifar.export.classifier import load

        return load(self.workdir, member)

    def __repr__(self) -> str:
        if not self.results:
            return f'Run({str(self.workdir)!r}, unfinished)'
        weights = chosen(self.results)
        fused = self.results.get('fusion', {}).get(weights)
        mean, std = (self.results[kind][weights]['accuracy'] for kind in ('mean', 'std'))
        # A ± over members that differ would look like an error bar.
        repeated = len(self.results['members']) > 1 and are_replicates(self.results)
        score = percent(mean, std if repeated else None)
        score = f'fused {percent(fused["test"]["fused"]["accuracy"])}' if fused else score
        return f'Run({str(self.workdir)!r}, test accuracy {score}, {weights} weights)'

    @cached_property
    def _tables(self) -> tuple[list[str], History]:
        return read_history(self.workdir)
