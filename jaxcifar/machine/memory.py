"""Ask for memory in huge pages, and tell how much there is.

This file imports nothing large, because a process asks for huge pages before it does anything else.
"""

import os
import sys
from pathlib import Path

SETTING = Path('/sys/kernel/mm/transparent_hugepage/enabled')
# Files with a container's memory limit, in the two versions of cgroups.
LIMITS = Path('/sys/fs/cgroup/memory.max'), Path('/sys/fs/cgroup/memory/memory.limit_in_bytes')
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
    """Return the bytes of memory that this process may have: those of the machine, or of its container."""
    amounts = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
    for limit in LIMITS:
        try:
            amounts.append(int(limit.read_text()))
        except (OSError, ValueError):  # there is no such file, or it says 'max'
            continue
    return min(amounts)


def describe() -> str:
    """Return in which pages memory comes, for a line of the log."""
    return 'in huge pages' if TUNABLE in os.environ.get(VARIABLE, '') else 'in pages of the system'
