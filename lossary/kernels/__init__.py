"""The linear head that never stores its logits: statistics of rows of logits at the memory of none."""

from __future__ import annotations

from lossary.kernels.divergence import Divergence, divergence
from lossary.kernels.linear_head import linear_head, logits_at
from lossary.kernels.objective import HeadObjective
from lossary.kernels.rows import HeadRows, head_rows
from lossary.kernels.state import STATISTICS
from lossary.kernels.vocab_parallel import VocabParallel

__all__ = [
    "Divergence",
    "HeadObjective",
    "HeadRows",
    "STATISTICS",
    "VocabParallel",
    "divergence",
    "head_rows",
    "linear_head",
    "logits_at",
]
