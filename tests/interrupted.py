"""Runs that are interrupted at a step, in the test's own process."""

from collections.abc import Callable

from launch import loop


def interrupted_at(step: int) -> Callable[..., None]:
    """What stands in for `loop.seed_dropout`, which each step begins with: as if Ctrl-C were pressed in this one."""
    seed_dropout = loop.seed_dropout

    def interrupt(device, *key):
        if key[1] == step:
            raise KeyboardInterrupt
        seed_dropout(device, *key)

    return interrupt
