"""Ask what is installed, and for the commit of this checkout."""

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ('jaxcifar', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'ml_collections',
            'clu', 'numpy', 'torch', 'torchvision', 'scikit-learn')  # fmt: skip


def git_commit() -> str:
    """Return this checkout's commit, followed by '+changes' if files other than results have changed.

    $JAXCIFAR_COMMIT takes precedence: whoever copied the files to another machine knows better than a
    half-copied .git. Return '' if neither gives a commit, as for a package installed without -e.
    """
    if said := os.environ.get('JAXCIFAR_COMMIT'):
        return said

    def git(*args: str) -> str:
        # The current folder may be within another repository.
        here = str(Path(__file__).parent)
        return subprocess.run(['git', '-C', here, *args], capture_output=True, text=True).stdout.strip()

    try:
        # An installed package may lie within another repository, too: in the .venv of another project.
        tracked = git('ls-files', '--error-unmatch', Path(__file__).name)
        commit = tracked and git('rev-parse', 'HEAD')
        # Writing results down must not make the next run look as if its code had changed.
        changes = commit and git('status', '--porcelain', '-uno', ':/', ':!/experiments/results')
    except FileNotFoundError:  # git itself is not there
        commit = changes = ''
    return commit + '+changes' * bool(changes)


def installed(package: str) -> str:
    """Return a package's version, '' where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ''
