"""The pages as tests read them: their code, commands and links."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), ROOT / 'configs/README.md'])
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
INLINE = re.compile(r'`([^`\n]+)`')


class Command(NamedTuple):
    """`python -m MODULE WORDS…` as a page has it, or `jaxcifar COMMAND WORDS…`."""

    page: str
    module: str
    words: tuple[str, ...]


def page(name: str) -> str:
    """Return the text of docs/NAME.md."""
    return (ROOT / f'docs/{name}.md').read_text()


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return [code for kind, code in FENCE.findall(text) if kind == language]


def python(name: str, word: str) -> str:
    """Return the one block of Python in docs/NAME.md that holds a word."""
    (code,) = (code for code in blocks(page(name), 'python') if word in code)
    return code


def inline(text: str) -> list[str]:
    """Return what stands between single backticks."""
    return INLINE.findall(FENCE.sub('', text))


def in_blocks(name: str) -> list[Command]:
    """Return the commands of the bash blocks of docs/NAME.md, in their order."""
    return [c for code in blocks(page(name), 'bash') for c in _commands(name, code.splitlines())]


def all_commands() -> list[Command]:
    """Return every command of every page that is whole, once."""
    found = []
    for path in PAGES:
        text = path.read_text()
        lines = [line for code in blocks(text, 'bash') for line in code.splitlines()]
        found += _commands(path.name, lines + [t for t in inline(text) if '…' not in t])
    return list({command[1:]: command for command in found}.values())


def _commands(name: str, lines: list[str]) -> list[Command]:
    parts = [part.strip() for line in lines for part in line.split(' && ')]
    parts = [re.sub(r'^jaxcifar (?=\w)', 'python -m jaxcifar.', part) for part in parts]
    found = (re.fullmatch(r'(?:\S+/)?python -m ([\w.]+)(.*)', part) for part in parts)
    return [Command(name, m[1], (*shlex.split(m[2].partition(' > ')[0]),)) for m in found if m]
