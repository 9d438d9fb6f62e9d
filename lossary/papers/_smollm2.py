"""SmolLM2-135M from its GGUF file, for the papers that need a language model that was trained."""

from __future__ import annotations

from typing import Any

import torch

from lossary.core.optional import optional


def load() -> tuple[Any, Any]:
    """The model in float32 and eval mode, and its tokenizer; about 20 s.

    Its weights were quantised to 4 bits by whoever made the file: what is loaded are these, in float32.

    Raises:
        UserError: The file is not there and cannot be downloaded.
        ImportError: transformers or gguf is not installed.
    """
    transformers = optional("transformers", needed_by="SmolLM2")
    optional("gguf", needed_by="SmolLM2")
    from lossary.datasets import path

    file = path("smollm2")
    model, tokenizer = (
        getattr(transformers, auto).from_pretrained(file.parent, gguf_file=file.name, **options)
        for auto, options in (("AutoModelForCausalLM", {"dtype": torch.float32}), ("AutoTokenizer", {}))
    )
    return model.eval(), tokenizer
