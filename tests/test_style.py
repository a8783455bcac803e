"""Lint, format and types, with the versions that pyproject.toml pins."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize('tool', ['ruff check', 'ruff format --check', 'mypy'])
def test_style(tool):
    done = subprocess.run([sys.executable, '-m', *tool.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readmes_test_command_is_what_ci_runs():
    readme, ci = ((ROOT / name).read_text() for name in ('README.md', '.ci/run'))
    assert ci.splitlines()[-1] in readme.splitlines()
