"""A card's call made complete: what it takes for granted (logits, labels ...) is put before it, so that it runs."""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import io
import itertools
from typing import Any

STAND_INS: dict[str, tuple[str, ...]] = {
    "logits": ("torch.randn(8, 10)", "torch.randn(2, 6, 10)", "torch.randn(8)", "torch.randn(8, 51)"),
    "labels": (
        "torch.randint(10, (8,))",
        "torch.randint(2, (8, 10)).float()",
        "torch.randint(10, (2, 6))",
        "torch.randint(2, (8,)).float()",
    ),
    "yes_no": ("torch.randint(2, (8, 10)).float()", "torch.randint(2, (8,)).float()"),
    "targets": ("torch.randint(10, (8,))", "torch.randn(8)", "torch.rand(8)", "torch.randint(10, (2, 6))"),
    "values": ("torch.randn(8)", "torch.rand(8)"),
    "scores": ("torch.randn(8)", "torch.randn(8, 10)"),
    "class_counts": ("torch.tensor([500, 300, 180, 110, 65, 40, 24, 14, 8, 5])",),
    "probabilities": ("torch.randn(8, 10).softmax(1)",),
    "policy_chosen_logps": ("-50 * torch.rand(8)",),
    "policy_rejected_logps": ("-50 * torch.rand(8)",),
    "reference_chosen_logps": ("-50 * torch.rand(8)",),
    "reference_rejected_logps": ("-50 * torch.rand(8)",),
    "teacher_logits": ("torch.randn(8, 10)",),
    "student_logits": ("torch.randn(8, 10)",),
    "features": ("torch.randn(8, 32)",),
    "embeddings": ("torch.randn(8, 32)",),
    "hidden": ("torch.randn(8, 32)", "torch.randn(2, 6, 32)"),
    "hidden_states": ("torch.randn(2, 6, 32)", "torch.randn(8, 32)"),
    "lm_head": ("torch.nn.Linear(32, 100)",),
    "tokens": ("torch.randint(100, (2, 6))", "torch.randint(100, (8,))"),
    "linear_weight": ("torch.randn(10, 32)",),
    "images": ("torch.rand(8, 3, 32, 32)",),
    "x": ("torch.randn(8, 32)", "torch.randn(8)", "torch.randn(8, 64)"),
    "y": ("torch.randint(10, (8,))", "torch.randn(8)"),
    "X": ("torch.randn(8, 4).numpy()",),
    "model": (
        "torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))",
        "torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))",
    ),
    "loader": ("[(torch.randn(80, 32), torch.arange(10).repeat(8))]",),
    "batches": (
        "[(torch.randn(8, 32), torch.randint(10, (8,)))]",
        "[(torch.randint(2, (4, 32, 100)).float(), torch.randint(2, (4, 64, 100)).float())]",
    ),
    "spikes": ("torch.randint(2, (4, 64, 100)).float()",),
    "masks": ("torch.randint(2, (8, 10)).float()", "torch.randint(2, (8,)).float()"),
    "bins": ("torch.randint(10, (8,))",),
    "centers": ("torch.linspace(-2, 2, 10)",),
    "training_set": ("range(8)",),
    "index": ("torch.arange(8)",),
    "validation_accuracy": ("0.9",),
    "epoch": ("0",),
    "step": ("0",),
    "generator": ("torch.Generator().manual_seed(0)",),
}
"""For each name that calls take for granted what can stand for it; the first that fits the call is shown."""
SAME = {
    "target": "targets",
    "input": "logits",
    "label": "labels",
    "teacher": "teacher_logits",
    "counts": "class_counts",
    "X_test": "X",
    "features_new": "features",
    "sample_numbers": "index",
    "train_set": "training_set",
}
"""Other words for the same."""


class Incomplete(Exception):
    """A call that no stand-ins make run; the message says why."""


def complete(call: str) -> str:
    """The call with the lines before it that it needs.

    Raises:
        Incomplete: It uses a name without a stand-in, or fails with all of them.
    """
    return completed(call)[0]


@functools.cache
def completed(call: str) -> tuple[str, dict[str, Any]]:
    """The complete call and the namespace that running it left.

    Raises:
        Incomplete: It uses a name without a stand-in, or fails with all of them.
    """
    needed = free_names(call)
    unknown = [name for name in needed if SAME.get(name, name) not in STAND_INS]
    if unknown:
        raise Incomplete(
            f"The call takes {', '.join(unknown)} for granted. Make it in the call, or use one of: "
            f"{', '.join(STAND_INS)}."
        )
    choices = [STAND_INS[SAME.get(name, name)] for name in needed]
    error: Exception | None = None
    # Those first in which most names are stood for by their first choice.
    for places in sorted(itertools.product(*(range(len(choice)) for choice in choices)), key=sum):
        given = [f"{name} = {choice[place]}" for name, choice, place in zip(needed, choices, places, strict=True)]
        code = _with_given(call, given)
        try:
            namespace = run(code)
        except Exception as failed:  # the call is anything: whatever it raises, other stand-ins may suit it
            error = error or failed
        else:
            return code, namespace
    raise Incomplete(f"The call fails with every stand-in; with the first: {type(error).__name__}: {error}")


def run(code: str) -> dict[str, Any]:
    """Run code in a namespace of its own, quietly; returns the namespace."""
    namespace: dict[str, Any] = {"__name__": "example"}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, "<example>", "exec"), namespace)
    return namespace


def free_names(code: str) -> list[str]:
    """Names that code uses before it defines them, in order."""
    known, free = set(dir(builtins)), []
    for statement in ast.parse(code).body:
        names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
        inner = {node.arg for node in ast.walk(statement) if isinstance(node, ast.arg)}
        loops = [node.target for node in ast.walk(statement) if isinstance(node, ast.comprehension | ast.For)]
        inner |= {node.id for loop in loops for node in ast.walk(loop) if isinstance(node, ast.Name)}
        for name in sorted(names, key=lambda node: (node.lineno, node.col_offset)):
            if isinstance(name.ctx, ast.Load) and name.id not in known | inner and name.id not in free:
                free.append(name.id)
        known |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
        known |= {
            (alias.asname or alias.name).split(".")[0]
            for node in ast.walk(statement)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        known |= {node.name for node in ast.walk(statement) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return [name for name in free if name != "torch"]


def _with_given(call: str, given: list[str]) -> str:
    """Imports first, then what is given, then the rest."""
    lines = call.split("\n")
    body = ast.parse(call).body
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    taken = {number for node in imports for number in range(node.lineno - 1, node.end_lineno or node.lineno)}
    head = [lines[number] for number in sorted(taken)]
    rest = [line for number, line in enumerate(lines) if number not in taken]
    if any("torch." in line for line in given + rest) and "import torch" not in head:
        head.insert(0, "import torch")
    parts = [head, given, rest]
    return "\n\n".join("\n".join(part).strip("\n") for part in parts if part)
