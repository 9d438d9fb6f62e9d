"""python -m lossary."""

from __future__ import annotations

from lossary.cli import main

main()
