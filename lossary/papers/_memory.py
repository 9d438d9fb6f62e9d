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


def memory_of(call: Callable[[], Any], device: torch.device | None = None) -> Memory:
    """Run a call and sum its allocations in order of time.

    On the CPU the profiler tells of every one; on a GPU the allocator of its peak, and ``largest`` is 0.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        torch.cuda.synchronize(device)
        peak, kept = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
        return Memory(peak - before, 0, kept - before)
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
