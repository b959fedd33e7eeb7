"""A few inputs that any model of a kind takes, to compare the answers of two models that should be the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn

from capaft.support.errors import one_line
from capaft.support.out_of_memory import pass_on_exhaustion

ROWS, TOKENS, SAMPLES, FRAMES = 2, 16, 16_000, 3_000
# Relative difference that the order of sums in float32 may cause.
EXACT = 1e-3


class NoProbe(Exception):  # noqa: N818 - not an error: the models are not compared then
    """A reason why no probe can be made for a model."""


@dataclass(frozen=True)
class Difference:
    """The largest difference of two models' answers.

    Attributes:
        largest: of any output.
        size: the largest output of the first model.
    """

    largest: float
    size: float

    @property
    def relative(self) -> float:
        """The difference, relative to the largest output."""
        return self.largest / self.size if self.size else self.largest


def probe_inputs(model: Any) -> dict[str, Tensor]:
    """Random inputs for a model, always the same ones.

    Raises:
        NoProbe: the model takes something else than texts, images or recordings.
    """
    generator, config, name = torch.Generator().manual_seed(0), model.config, model.main_input_name
    text = config.get_text_config()
    match name:
        case "input_ids":
            words = torch.randint(0, int(text.vocab_size), (ROWS, TOKENS), generator=generator)
            inputs = {"input_ids": words, "attention_mask": torch.ones_like(words)}
        case "pixel_values":
            side = getattr(config, "image_size", None) or 224
            height, width = (side, side) if isinstance(side, int) else tuple(side)
            inputs = {name: torch.randn(ROWS, getattr(config, "num_channels", 3), height, width, generator=generator)}
        case "input_values":
            inputs = {name: torch.randn(ROWS, SAMPLES, generator=generator)}
        case "input_features" if hasattr(config, "num_mel_bins"):
            inputs = {name: torch.randn(ROWS, config.num_mel_bins, FRAMES, generator=generator)}
        case _:
            raise NoProbe(f"it reads {name}")
    if getattr(config, "is_encoder_decoder", False):
        start = torch.randint(0, int(text.vocab_size), (ROWS, 4), generator=generator)
        inputs["decoder_input_ids"] = start
    return inputs


@torch.inference_mode()
def answers(model: Any) -> Tensor:
    """The outputs of a model for the probe, float32.

    Raises:
        NoProbe: none can be made for it, or it cannot be asked here.
    """
    inputs = probe_inputs(model)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    try:
        outputs = model(**{n: value.to(dtype) if value.is_floating_point() else value for n, value in inputs.items()})
    except Exception as error:  # A model that reads more than the probe raises anything.
        pass_on_exhaustion(error)
        raise NoProbe(f"it fails on a probe ({one_line(error)})") from None
    first = next((value for value in outputs.values() if isinstance(value, Tensor) and value.is_floating_point()), None)
    if first is None:
        raise NoProbe("it answers with nothing that could be compared")
    return first.float().clone()


def compare(adapted: Tensor, merged: Tensor) -> Difference:
    """The largest difference of two answers; infinite if they are not of one shape, or not numbers."""
    if adapted.shape != merged.shape or not torch.isfinite(adapted).all() or not torch.isfinite(merged).all():
        return Difference(float("inf"), 1.0)
    return Difference(float((adapted - merged).abs().max()), float(adapted.abs().max()))


def tolerance(dtype: torch.dtype) -> float:
    """The relative difference that rounding a model's weights to a dtype is allowed without a further look."""
    return max(EXACT, 8 * torch.finfo(dtype).eps)


def answers_when_shaken(model: nn.Module, dtype: torch.dtype) -> Tensor:
    """The outputs of a model whose weights are moved at random, as far as rounding them to a dtype moves them.

    They tell how far apart rounding may bring the answers of this very model: far where it chooses between experts.

    Args:
        model: the model, whose weights may be on disk. Those in memory stay moved.
        dtype: the dtype.

    Raises:
        NoProbe: see `answers`.
    """
    generator = torch.Generator().manual_seed(1)
    # Of a prime length, so that it falls otherwise on each row.
    steps = 1 + torch.finfo(dtype).eps * (torch.rand(65_537, generator=generator) - 0.5)
    for module in list(model.modules()):
        if next(module.parameters(recurse=False), None) is not None:
            add_hook_to_module(module, _Shaken(steps), append=True)
    return answers(model)


class _Shaken(ModelHook):
    """Moves the weights of a module when it is called, after those on disk have been read."""

    def __init__(self, steps: Tensor) -> None:
        self.steps = steps

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and parameter.ndim > 1:
                for part in parameter.data.view(-1).split(len(self.steps)):
                    part.mul_(self.steps[: len(part)])
        return args, kwargs
