"""How much memory a call takes, from PyTorch's own record of every allocation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Memory(NamedTuple):
    """Bytes that a call allocated beyond what was there before.

    Attributes:
        peak: Most at any one time.
        largest: Most in one piece.
        kept: What was still there at the end.
    """

    peak: int
    largest: int
    kept: int


def memory_of(call: Callable[[], Any]) -> Memory:
    """Run a call under the profiler and sum its allocations on the CPU in order of time."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        result = call()
    events: Any = profile.kineto_results
    events = events.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    now = peak = largest = 0
    for _, change in sorted(changes, key=lambda event: event[0]):
        now += change
        peak, largest = max(peak, now), max(largest, change)
    del result
    return Memory(peak, largest, now)
