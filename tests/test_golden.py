"""Values recorded from the original implementations: one runner executes every JSON of tests/golden.

A case names a public callable, its arguments and what the original gave. Further kinds of case get an adapter here,
never a skip. Every case is also seen to fail when its expected value is perturbed.
"""

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"
CASES = [
    pytest.param(case, id=f"{path.stem}-{case['name']}")
    for path in sorted(GOLDEN.glob("*.json"))
    for case in json.loads(path.read_text())["cases"]
]
KNOWN_KEYS = {
    *("name", "call", "method", "init", "state", "training", "args", "kwargs", "inputs", "tensors", "calls", "steps"),
    *("expected", "output_index", "rtol", "atol", "note", "batches", "grad_of"),
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case: dict[str, Any]) -> None:
    unknown = set(case) - KNOWN_KEYS
    assert not unknown, f"the case tells a story of its own ({unknown}): write an adapter"
    actual, expected = run(case)
    assert expected, "the case expects nothing"
    for name, value in expected.items():
        close(actual[name], value, case, name)


@pytest.mark.parametrize("case", CASES)
def test_golden_can_fail(case: dict[str, Any]) -> None:
    actual, expected = run(case)
    for name, value in expected.items():
        with pytest.raises(AssertionError):
            close(actual[name], perturbed(value, case), case, name)


def run(case: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Execute a case; what came and what was expected, each by name: output, grad.<name>, attribute.<name>."""
    tensors = {name: tensor(record) for name, record in case.get("tensors", {}).items()}
    expected = case["expected"]
    for name in expected.get("grad", {}):
        if name in tensors:
            tensors[name].requires_grad_()
    if case["call"] == "lossary.regression.MeanScaleQuantizer":
        return run_quantizer(case, tensors)
    if case["call"] == "lossary.language.cramming_metrics":
        return run_cramming(case, tensors)
    if case["call"] == "lossary.language.LZWTokenizer":
        return run_tokenizer(case, tensors)
    instance, output = call(case, tensors)
    if "output_index" in case:
        output = output[case["output_index"]]
    more = {name: expected[name] for name in set(expected) - {"output", "grad", "attributes"}}
    summed = first = next(iter(leaves(output)))
    actual: dict[str, Any] = {"output": output}
    wanted: dict[str, Any] = {}
    if case.get("kwargs", {}).get("return_lse"):  # recorded gradients are those of loss + lse / 10, summed
        summed = first.sum() + 0.1 * output[1].sum()
        actual = {"output": output if isinstance(expected["output"], list) else first, "lse": output[1]}
    if "output" in expected:
        wanted["output"] = parse(expected["output"])
    if case["call"] == "lossary.preference.cringe_loss":
        actual |= cringe_terms(case, tensors)
    assert more.keys() <= actual.keys(), "the case expects more: write an adapter"
    wanted |= {name: parse(value) for name, value in more.items()}
    if expected.get("grad"):
        cotangent = tensors.get("grad_output", torch.ones_like(summed))
        sources = {name: tensors[name] if name in tensors else attribute(instance, name) for name in expected["grad"]}
        gradients = torch.autograd.grad(summed, list(sources.values()), cotangent)
        for name, gradient in zip(sources, gradients, strict=True):
            actual[f"grad.{name}"] = gradient
            wanted[f"grad.{name}"] = parse(expected["grad"][name])
    for name, value in expected.get("attributes", {}).items():
        actual[f"attribute.{name}"] = attribute(instance, name)
        wanted[f"attribute.{name}"] = parse(value)
    return actual, wanted


def call(case: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[Any, Any]:
    """Build what the case calls and call it; the object (None for a function) and its last output."""
    owner, _, name = case["call"].rpartition(".")
    if "init" in case and owner.rpartition(".")[2][:1].isupper():  # a method named by its class
        case = {**case, "call": owner, "method": name}
    target = public(case["call"])
    instance = None
    if inspect.isclass(target):
        instance = build(target, case.get("init", {}), tensors)
        if "batches" in case:  # fitted on consecutive rows first
            for rows in zip(*(tensors[name].split(case["batches"]) for name in ("input", "target")), strict=True):
                instance.partial_fit(*rows)
        if "state" in case:
            instance.load_state_dict({name: parse(value) for name, value in case["state"].items()})
        if "training" in case:
            instance.train(case["training"])
        target = getattr(instance, case["method"]) if "method" in case else instance
    if "steps" in case:
        for method, args, *rest in case["steps"]:
            output = getattr(instance, method)(*resolve(args, tensors), **resolve(rest[0] if rest else {}, tensors))
        return instance, output
    args = [*resolve(case.get("args", []), {**tensors, **case.get("inputs", {})})]
    inputs = {name: value for name, value in case.get("inputs", {}).items() if name not in case.get("args", [])}
    kwargs = {**resolve(inputs, tensors), **resolve(case.get("kwargs", {}), tensors)}
    for _ in range(case.get("calls", 1)):
        output = target(*args, **kwargs)
    return instance, output


def cringe_terms(case: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The two parts of each token's loss: alpha = 0 leaves cross-entropy, and what alpha = 1 adds is the contrast."""
    without, whole = (
        call({**case, "kwargs": {**case["kwargs"], "alpha": alpha, "reduction": "none"}}, tensors)[1]
        for alpha in (0.0, 1.0)
    )
    return {"per_token_ce": without, "per_token_contrast": whole - without}


def run_quantizer(case: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Beside the tokens the case expects mask, scale and what the tokens decode to."""
    quantizer, (ids, mask, scale) = call(case, tensors)
    actual = {"output": ids, "mask": mask, "scale": scale, "decoded": quantizer.decode(ids, scale)}
    return actual, parse(case["expected"])


def run_cramming(case: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Beside the metrics the case may expect the memory's gradient through a model that is given there."""
    expected = parse(case["expected"])
    _, output = call(case, tensors)
    actual, wanted = {"output": output}, {"output": expected["output"]}
    if reference := expected.get("memory_grad_reference"):
        assert reference["model"] == "logits = 3 * causal_mean(inputs_embeds) @ head"
        memory = public("lossary.language.MemoryTokens")(*reference["memory"].shape, std=1.0).double()
        memory.memory.data = reference["memory"]
        embeds = memory(reference["embedding"][tensors["input_ids"]])
        logits = 3 * (embeds.cumsum(1) / torch.arange(1, embeds.shape[1] + 1).unsqueeze(1)) @ reference["head"]
        metrics = public(case["call"])(logits, tensors["input_ids"], **case["kwargs"])
        actual |= {"logits": logits, "gradient": torch.autograd.grad(metrics["loss"], memory.memory)[0]}
        wanted |= {"logits": tensors["logits"], "gradient": reference["grad_memory"]}
    return actual, wanted


def run_tokenizer(case: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit to one text, encode another."""
    tokenizer = build(public(case["call"]), case["init"], tensors).fit(tensors["sequence"])
    text = tensors["text"]
    actual = {
        "dictionary": tokenizer.dictionary,
        "greedy_ids": tokenizer.encode(text),
        "min_tokens": tokenizer.min_tokens(text),
    }
    return {"output": actual}, parse(case["expected"])


def build(cls: type, init: Mapping[str, Any], tensors: dict[str, Tensor]) -> Any:
    instance = cls(**{name: resolve(value, tensors) for name, value in init.items()})
    return instance.double() if isinstance(instance, nn.Module) else instance


def resolve(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Names of tensors become tensors, ``{"class": ...}`` an object; lists and dictionaries by element."""
    if isinstance(value, str):
        return tensors.get(value.removeprefix("<tensors.").removesuffix(">"), value)
    if isinstance(value, list):
        return [resolve(item, tensors) for item in value]
    if isinstance(value, dict):
        if "class" in value:
            return build(public(value["class"]), {k: v for k, v in value.items() if k != "class"}, tensors)
        return tensor(value) if is_tensor(value) else {name: resolve(item, tensors) for name, item in value.items()}
    return value


def public(name: str) -> Any:
    module, _, attribute_name = name.rpartition(".")
    return getattr(importlib.import_module(module or "lossary.classification"), attribute_name)


def attribute(instance: Any, name: str) -> Any:
    for part in name.split("."):
        instance = getattr(instance, part)
    return instance


def is_tensor(record: Any) -> bool:
    return isinstance(record, dict) and {"dtype", "shape", "data"} <= set(record)


def tensor(record: dict[str, Any]) -> Tensor:
    return torch.tensor(record["data"], dtype=getattr(torch, record["dtype"])).reshape(record["shape"])


def parse(value: Any) -> Any:
    if is_tensor(value):
        return tensor(value)
    if isinstance(value, dict):
        return {name: parse(item) for name, item in value.items()}
    return [parse(item) for item in value] if isinstance(value, list) else value


def leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def close(actual: Any, expected: Any, case: dict[str, Any], where: str) -> None:
    """Assert that numbers agree within the case's tolerance, whatever holds them."""
    if isinstance(expected, Mapping):
        for name, value in expected.items():
            item = actual[name] if isinstance(actual, Mapping) else attribute(actual, name)
            close(item, value, case, f"{where}.{name}")
    elif isinstance(expected, list) and isinstance(actual, tuple | list):
        assert len(actual) == len(expected), where
        for position, (one, other) in enumerate(zip(actual, expected, strict=True)):
            close(one, other, case, f"{where}[{position}]")
    elif isinstance(expected, str | bool) or expected is None:
        assert actual == expected, where
    else:
        np.testing.assert_allclose(array(actual), array(expected), case["rtol"], case["atol"], err_msg=where)


def array(value: Any) -> np.ndarray:
    return np.asarray(value.detach() if isinstance(value, Tensor) else value, dtype=np.float64)


def perturbed(value: Any, case: dict[str, Any]) -> Any:
    """The expected value moved by ten tolerances."""
    if isinstance(value, Mapping):
        return {name: perturbed(item, case) for name, item in value.items()}
    if isinstance(value, list) and not all(isinstance(item, int | float) for item in value):
        return [perturbed(item, case) for item in value]
    if isinstance(value, str | bool) or value is None:
        return f"not {value}"
    numbers = array(value)
    moved = 10 * (case["atol"] + case["rtol"] * np.abs(numbers))
    return numbers + np.where(moved == 0, 1, moved)  # whole numbers have no tolerance
