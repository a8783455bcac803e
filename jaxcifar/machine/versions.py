"""What is installed, and the commit of this checkout."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ('jaxcifar', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'ml_collections',
            'clu', 'numpy', 'torch', 'torchvision', 'scikit-learn')  # fmt: skip


def git_commit() -> str:
    """This checkout's commit, '+changes' behind it where files differ, but for results; '' outside of git."""

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
    """A package's version, '' where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ''
