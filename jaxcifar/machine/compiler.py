"""Choose the compiler's options by kind of device, as measured (`experiments.bench.options`)."""

import re
from functools import cache

import jax
import jax.numpy as jnp

OPTIONS: dict[str, dict[str, str]] = {
    'cpu': {
        # Skips transposes that slow the weight gradients of narrow networks down.
        'xla_cpu_opt_preset': 'CPU_OPT_PRESET_FAST_COMPILE',
        # Use YNNPACK for sums only: it runs convolutions on one core, and small products slower than Eigen.
        'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE',
    },
}

# For programs that run once: LLVM takes half of an augmentation's compile time, and does not pay off.
ONCE = {'cpu': {'xla_backend_optimization_level': '0', 'xla_llvm_disable_expensive_passes': 'true'}}


@cache
def compiler_options(once: bool = False) -> dict[str, str]:
    """Return options for `jax.jit(compiler_options=…)`, only those that this version of XLA knows.

    once: for a program that runs once, so that compiling it is most of its cost.
    """
    backend = jax.default_backend()
    wanted = {**OPTIONS.get(backend, {}), **(ONCE.get(backend, {}) if once else {})}
    # A single option that XLA does not know makes it refuse the whole compilation.
    return {name: value for name, value in wanted.items() if knows(name, value)}


def knows(name: str, value: str) -> bool:
    """Return whether the compiler takes this option."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def as_one_array(*arrays: jax.Array):
    """Return arrays of equal shape as parts of one that XLA does not take apart; on a CPU, as they are.

    A GPU's compiler joins small operations of equal shape into one kernel if they read the same array. A
    scalar that they share, such as a learning rate, is not enough.
    """
    return arrays if jax.default_backend() == 'cpu' else jax.lax.optimization_barrier(jnp.stack(arrays))


def block_diagonal(count: int):
    """Return a scope for a product whose kernel has `count` diagonal blocks, and zeros elsewhere."""
    return jax.named_scope(f'blocks_of_{count}')


def blocks_of(name_stack: str) -> int:
    """Return the number of blocks that `block_diagonal` recorded for an operation, 1 for all others."""
    found = re.search(r'\bblocks_of_(\d+)', name_stack)
    return int(found[1]) if found else 1


def describe() -> str:
    """Return the options in short, for a line of the log."""
    told = [f'{name.removeprefix("xla_")}={value}' for name, value in compiler_options().items()]
    return ', '.join(told) or 'as it comes'
