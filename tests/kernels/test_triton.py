"""The Triton kernels under Triton's interpreter, at least three blocks along every axis, against float64.

The interpreter is chosen when Triton is imported, so the comparison runs in a process of its own. It runs one program
at a time: races would pass here.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import run_clean

pytest.importorskip("triton", reason="triton is not installed")
ROOT = Path(__file__).parents[2]


def test_under_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("triton_interpreted.py"))]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    assert "compared" in run.stdout


def test_without_a_gpu_it_says_so() -> None:
    code = (
        "import torch; from lossary.kernels import linear_head\n"
        "try: linear_head(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(2).long(), backend='triton')\n"
        "except ValueError as error: assert 'wanted a GPU' in str(error); print('said so')"
    )
    assert run_clean(f"import os; os.environ.pop('TRITON_INTERPRET', None)\n{code}") == "said so\n"
