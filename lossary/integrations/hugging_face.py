"""Hugging Face: losses for ``Trainer``, and causal language models whose loss never stores the logits."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lossary.core.objective import Kind, Objective, registered
from lossary.language import linear_cross_entropy, shift_labels

Model = TypeVar("Model", bound=nn.Module)


def use_linear_head(model: Model, objective: Callable[..., Tensor] = linear_cross_entropy, **options: Any) -> Model:
    """Let a causal language model compute its loss from hidden states and head, without logits.

    Reach for it before training with ``transformers.Trainer`` or a loop of your own: ``model(..., labels=labels).loss``
    is the same number with the same gradients, at the memory of no logits. Without labels nothing changes, so that
    generation works as before. ``del model.forward`` undoes it.

    Args:
        model: A model with a backbone and a linear head over it, such as ``LlamaForCausalLM``; changed in place.
        objective: Any objective on a linear head, as :func:`lossary.language.linear_focal_loss`.
        options: Further options of the objective, such as ``z_loss_weight``.

    Returns:
        The model.

    Raises:
        TypeError: The model has no linear head, or its loss has parts that this would leave out.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=99, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2)
        >>> model = use_linear_head(LlamaForCausalLM(config))
        >>> tokens = torch.arange(6)[None]
        >>> output = model(tokens, labels=tokens)
        >>> output.logits is None, output.loss.requires_grad
        (True, True)

    Source:
        Wijmans et al.: Cut Your Losses in Large-Vocabulary Language Models (ICLR 2025, arXiv 2411.09009).
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Linear) or getattr(model, "base_model", model) is model:
        raise TypeError(f"model is a {type(model).__name__}; wanted a causal language model with a linear head.")
    config = _text_config(model)
    if getattr(config, "output_router_logits", False):
        raise TypeError(
            f"model is a {type(model).__name__} with output_router_logits: its loss has a balancing part besides "
            "cross-entropy; set config.output_router_logits to False and add that part yourself."
        )
    holder: Any = model
    holder.linear_head_call = functools.partial(objective, **_head_options(config), **options)
    holder.forward = types.MethodType(_forward_like(type(model)), model)
    return model


def trainer_loss(objective: Callable[..., Tensor], *, shift: bool = True, **options: Any) -> Callable[..., Tensor]:
    """A function for ``transformers.Trainer(compute_loss_func=...)`` of an objective over tokens.

    Reach for it to train by any objective of Lossary on the logits of a language model; for those on a linear head
    :func:`use_linear_head` needs no logits. Labels are shifted, -100 counts for nothing, and the divisor is the number
    of items in the whole step, so that accumulation over micro-batches and ranks equals one batch. Trainer hands no
    ``position_ids`` to a loss: where sequences are packed the label of each one's first token has to be -100, as
    ``DataCollatorWithFlattening`` makes it.

    Args:
        objective: An objective over tokens or classes: a module, or a function with its options. In training its own
            divisor (such as summed weights) gives way to the number of items.
        shift: Whether logits predict the next label, as in causal language models; False for encoder-decoders.
        options: Options of the objective where it is a function, such as ``number_values``.

    Returns:
        The function ``(outputs, labels, num_items_in_batch=None) -> loss``.

    Raises:
        TypeError: The objective is not over tokens, or has parameters, which Trainer would not train.

    Example:
        >>> import torch
        >>> from transformers.modeling_outputs import CausalLMOutput
        >>> from lossary.classification import FocalLoss
        >>> compute_loss = trainer_loss(FocalLoss(gamma=0.0))
        >>> outputs, labels = CausalLMOutput(logits=torch.zeros(1, 3, 4)), torch.tensor([[-100, 1, 2]])
        >>> compute_loss(outputs, labels, num_items_in_batch=4)
        tensor(0.6931)

    Source:
        ``transformers.Trainer``: what it hands to ``compute_loss_func``, and what it multiplies the loss by on ranks.
    """
    function = objective.function if isinstance(objective, Objective) else objective
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", type(objective).__name__)
    kind = next((found.kind for found in registered().values() if found.function is function), Kind.TOKENS)
    if kind not in (Kind.TOKENS, Kind.CLASSES):
        hint = "; use_linear_head takes it" if kind is Kind.HEAD else ""
        raise TypeError(f"objective is {name}, on {kind.value}; wanted one over tokens{hint}.")
    if isinstance(objective, nn.Module) and any(True for _ in objective.parameters()):
        raise TypeError(f"objective is a {type(objective).__name__} with parameters, which Trainer would not train.")
    ignored = getattr(objective, "ignore_index", options.get("ignore_index", -100))

    def compute_loss(outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        if labels is None:
            raise ValueError("labels is None; wanted a batch with labels.")
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        target = shift_labels(labels) if shift else labels
        target = torch.where(target == -100, ignored, target).to(logits.device)
        if kind is Kind.CLASSES:
            logits, target = logits.flatten(0, -2), target.flatten()
        if isinstance(objective, nn.Module):
            objective.to(logits.device)
        here = {
            option: value.to(logits.device) if isinstance(value, Tensor) else value for option, value in options.items()
        }
        return objective(logits, target, normalizer=_normalizer(num_items_in_batch, logits.device), **here)

    return compute_loss


def _normalizer(count: Tensor | int | None, device: torch.device) -> Tensor | None:
    """The divisor of a step; 1 where it has no items, whose sum is 0."""
    if count is None:
        return None
    # DataParallel makes a row of equal counts.
    return torch.as_tensor(count, device=device).reshape(-1)[0].clamp(min=1)


def _forward_like(model_class: type) -> Callable[..., Any]:
    # The signature stays the class's own: Trainer and generate read it.
    return functools.wraps(model_class.forward)(_forward)  # type: ignore[attr-defined]


def _forward(
    self: Any,
    *args: Any,
    labels: Tensor | None = None,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    **kwargs: Any,
) -> Any:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    kwargs |= dict(zip(list(inspect.signature(type(self).forward).parameters)[1:], args, strict=False))
    labels = kwargs.pop("labels", labels)  # may come by position
    target = labels if shift_labels is None else shift_labels
    if target is None:
        return type(self).forward(self, **kwargs)
    kwargs.pop("logits_to_keep", None)
    as_tuple = kwargs.pop("return_dict", getattr(self.config, "return_dict", True)) is False
    outputs = self.base_model(**kwargs, return_dict=True)
    head = self.get_output_embeddings()
    loss = self.linear_head_call(
        outputs.last_hidden_state.to(head.weight.device),
        head.weight,
        target.to(head.weight.device),
        head.bias,
        shift=1 if shift_labels is None else 0,
        normalizer=_normalizer(num_items_in_batch, head.weight.device),
    )
    output: Any = CausalLMOutputWithPast  # a ModelOutput, whose fields mypy does not see
    result = output(
        loss=loss,
        past_key_values=outputs.get("past_key_values"),
        hidden_states=outputs.get("hidden_states"),
        attentions=outputs.get("attentions"),
    )
    return result.to_tuple() if as_tuple else result


def _text_config(model: Any) -> Any:
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _head_options(config: Any) -> dict[str, float]:
    """What models do to their logits, in the words of the linear head."""
    options: dict[str, float] = {}
    softcap = getattr(config, "final_logit_softcapping", None)
    if softcap:
        options["softcap"] = softcap
    factor = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        factor *= getattr(config, name, None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite's; HyperCLOVA X multiplies by it
    factor *= divisor if getattr(config, "model_type", "") == "hyperclovax" else 1 / divisor
    if factor != 1.0:
        if softcap:
            raise TypeError("The model scales its logits before it caps them; wanted one or the other.")
        options["temperature"] = 1 / factor
    return options
