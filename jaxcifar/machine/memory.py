"""Ask for memory in huge pages, and tell how much there is.

This file imports nothing large, because a process asks for huge pages before it does anything else.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

SETTING = Path('/sys/kernel/mm/transparent_hugepage/enabled')
MEMORY = Path('/proc/meminfo')
GROUPS, OWN_GROUPS = Path('/sys/fs/cgroup'), Path('/proc/self/cgroup')  # of all processes, of this one
VARIABLE, TUNABLE = 'GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1'


def huge_page_environment() -> dict[str, str]:
    """Return the environment in which glibc asks Linux for huge pages; empty where that changes nothing.

    XLA allocates a step's temporary memory from the system anew each time. With pages of 4 kB, the kernel
    needs up to a fifth of a step's time on a CPU for that.
    """
    told = os.environ.get(VARIABLE, '')
    asked = 'glibc.malloc.hugetlb' in told
    try:
        useful = '[madvise]' in SETTING.read_text()  # 'always' gives them unasked, 'never' refuses them
    except OSError:
        useful = False
    # Other tunables that the user has set are kept.
    return {VARIABLE: ':'.join(filter(None, (told, TUNABLE)))} if useful and not asked else {}


def restart_in_huge_pages():
    """Restart this command in `huge_page_environment`, if that is not empty: glibc reads it only at start."""
    # The process keeps its number, so that signals of a cluster still reach it.
    if asked := huge_page_environment():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **asked})


def total() -> int:
    """Return the bytes of memory that this process may have: those of its machine, container or job."""
    amounts = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
    for file in _limit_files():
        try:
            amounts.append(int(file.read_text()))
        except (OSError, ValueError):  # there is no such file, or it says 'max'
            continue
    return min(amounts)


def _limit_files() -> Iterator[Path]:
    """Yield the files that may hold a memory limit of this process, in both versions of cgroups."""
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        lines = []
    # Within a container, the group's path may be that outside it, and only the top is there.
    for line in (*lines, '0::/', '0:memory:/'):
        _, kinds, path = line.split(':', 2)
        if kinds and 'memory' not in kinds.split(','):
            continue
        top, name = (GROUPS / 'memory', 'memory.limit_in_bytes') if kinds else (GROUPS, 'memory.max')
        own = top / path.lstrip('/')
        # A group has the limits of all groups that it is in, too.
        yield from (group / name for group in (own, *own.parents))


def available() -> int | None:
    """Return the bytes of memory that are free, at most `total`; None where the system does not say."""
    try:
        lines = dict(line.split(':') for line in MEMORY.read_text().splitlines())
    except OSError:
        return None
    return min(1024 * int(lines['MemAvailable'].split()[0]), total())  # Linux counts in units of 1024 bytes


def describe() -> str:
    """Return in which pages memory comes, for a line of the log."""
    return 'in huge pages' if TUNABLE in os.environ.get(VARIABLE, '') else 'in pages of the system'
