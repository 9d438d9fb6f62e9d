"""What each paper claims, and what was seen when the claim was re-run small.

``lossary.papers.card("focal_loss")`` is a paper's card, ``lossary.papers.reproduce("focal_loss")`` runs its small
version, ``lossary.papers.evidence("focal_loss")`` reads what was recorded. One file per paper: its card and its run.
"""

from __future__ import annotations

from lossary.papers._catalogue import Entry, card, catalogue, evidence
from lossary.papers._evidence import Evidence
from lossary.papers._paper import Paper
from lossary.papers._run import Run, reproduce

__all__ = ["Entry", "Evidence", "Paper", "Run", "card", "catalogue", "evidence", "reproduce"]
