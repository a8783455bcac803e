"""Ask what is installed, and for the commit of this checkout."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ('jaxcifar', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'ml_collections',
            'clu', 'numpy', 'torch', 'torchvision', 'scikit-learn')  # fmt: skip


def git_commit() -> str:
    """Return the commit, with '+changes' where files other than results differ; '' outside git."""

    def git(*args: str) -> str:
        here = str(Path(__file__).parent)
        return subprocess.run(['git', '-C', here, *args], capture_output=True, text=True).stdout

    try:
        commit = git('rev-parse', 'HEAD').strip()
        return commit + (
            '+changes'
            if commit and git('status', '--porcelain', '-uno', ':/', ':!/experiments/results')
            else ''
        )
    except FileNotFoundError:
        return ''


def installed(package: str) -> str:
    """Return a package's version, '' where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ''
