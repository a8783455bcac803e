"""Choose the compiler's options by kind of device, as measured (`experiments.bench.options`)."""

import re
from functools import cache

import jax

OPTIONS: dict[str, dict[str, str]] = {
    'cpu': {
        # Skips transposes that slow the weight gradients of narrow networks down.
        'xla_cpu_opt_preset': 'CPU_OPT_PRESET_FAST_COMPILE',
        # YNNPACK for sums alone. It runs convolutions on one core, and small products slower than Eigen.
        'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE',
    },
}

# For programs that run once: LLVM takes half of the time to compile an augmentation, for nothing then.
ONCE = {'cpu': {'xla_backend_optimization_level': '0', 'xla_llvm_disable_expensive_passes': 'true'}}


@cache
def compiler_options(once: bool = False) -> dict[str, str]:
    """Return what `jax.jit(compiler_options=…)` takes: options that this version of XLA knows.

    once: for a program that runs once, whose compilation is what it costs.
    """
    backend = jax.default_backend()
    wanted = {**OPTIONS.get(backend, {}), **(ONCE.get(backend, {}) if once else {})}
    # XLA refuses a whole compilation for one option that it does not know.
    return {name: value for name, value in wanted.items() if knows(name, value)}


def knows(name: str, value: str) -> bool:
    """Return whether the compiler takes this option."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def block_diagonal(count: int):
    """Return a scope for a product whose kernel has so many blocks, and zeros elsewhere."""
    return jax.named_scope(f'blocks_of_{count}')


def blocks_of(name_stack: str) -> int:
    """Return the number of blocks that `block_diagonal` gave to an operation, 1 of all others."""
    found = re.search(r'\bblocks_of_(\d+)', name_stack)
    return int(found[1]) if found else 1


def describe() -> str:
    """Return the options in short, for a line of the log."""
    told = [f'{name.removeprefix("xla_")}={value}' for name, value in compiler_options().items()]
    return ', '.join(told) or 'as it comes'
