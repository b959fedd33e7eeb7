"""Loading a base model: the embedded one, a local directory, or a hub id, all through the same path."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from capaft import demo, hub, rng
from capaft.adapter_file import Base
from capaft.errors import UsageError
from capaft.sites import backbone, canonical


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model.

    Attributes:
        model: the model with a head for the task, float32, on the CPU.
        tokenizer: its tokenizer.
        base: its name and revision, as an adapter file records them.
        head: canonical names of the head's parameters, which are trained as they are.
        new_head: the checkpoint brought no head for this task.
    """

    model: Any
    tokenizer: Any
    base: Base
    head: tuple[str, ...]
    new_head: bool

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The model's own parameters by canonical name."""
        return {canonical(self.model, name): parameter for name, parameter in self.model.named_parameters()}


def load(
    auto_class: Any,
    name: str | None,
    *,
    seed: int,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **config: Any,
) -> BaseModel:
    """Load a base model and its tokenizer, and give what is new in its head seeded initial values.

    Args:
        auto_class: the transformers auto class of the task.
        name: a directory or a hub id; None for the embedded demo model.
        seed: the seed of a new head.
        revision: hub revision.
        trust_remote_code: let the checkpoint run its own code.
        **config: configuration entries the task sets, such as `id2label`.

    Raises:
        UsageError: there is no such model, no network, or the checkpoint cannot serve the task.
    """
    from transformers import AutoTokenizer

    source = locate(name)
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    if not Path(source).is_dir():
        common["local_files_only"] = hub.offline()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
        model, report = auto_class.from_pretrained(
            source,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **common,
            **config,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise UsageError(_explain(name or source, source, error)) from None
    mismatched = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    new = {canonical(model, key) for key in (*report["missing_keys"], *mismatched)}
    parameters = [canonical(model, key) for key, _ in model.named_parameters()]
    inside = backbone(model)
    outside = (
        {canonical(model, k) for k, _ in model.named_parameters() if not k.startswith(inside)} if inside else set()
    )
    initialise(model, (key for key in parameters if key in new), seed)
    head = tuple(key for key in parameters if key in new | outside)
    return BaseModel(model, tokenizer, Base(name or demo.MODEL_NAME, revision), head, bool(new & outside))


def locate(name: str | None) -> str:
    """What transformers is asked to load: the embedded model's directory stands for its hub name too.

    Raises:
        UsageError: `name` looks like a path and nothing is there, or the embedded model is not installed.
    """
    if name is None:
        return str(demo.base_model())
    if Path(name).expanduser().exists():
        return str(Path(name).expanduser())
    if name == demo.MODEL_NAME:
        try:
            return str(demo.base_model())
        except UsageError:
            return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"--model {name}: there is no such directory")
    return name


def initialise(model: nn.Module, names: Iterable[str], seed: int) -> None:
    """Give new parameters initial values from the seed: matrices U(-1, 1) / sqrt(fan_in), biases 0.

    Vectors of normalisation layers keep their ones and zeros.
    """
    wanted = set(names)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            name = canonical(model, path)
            if name not in wanted:
                continue
            site, _, leaf = name.rpartition(".")
            if parameter.ndim >= 2:
                fan_in = parameter[0].numel()
                drawn = rng.uniform(rng.fold_in(seed, site, f"head:{leaf}", "init"), parameter.numel())
                values = torch.from_numpy(drawn).view(parameter.shape)
                parameter.copy_(values * float(torch.tensor(1 / math.sqrt(fan_in), dtype=torch.float32)))
            elif "norm" not in site.lower():
                parameter.zero_()


def _explain(name: str, source: str, error: Exception) -> str:
    """One line for the many ways in which a checkpoint fails to load."""
    path = Path(source)
    if path.is_file():
        return f"--model {name} is a file; give the directory that holds config.json and the weights"
    if path.is_dir():
        if not (path / "config.json").exists():
            return f"--model {name}: the directory has no config.json, so it is not a Hugging Face model"
        return f"--model {name} cannot be loaded: {' '.join(str(error).split())[:300]}"
    if hub.offline():
        return (
            f"--model {name}: there is no such directory, and the Hugging Face hub cannot be reached to look for it; "
            "check the name or the network, or give a local directory"
        )
    return f"--model {name} cannot be loaded from the Hugging Face hub: {' '.join(str(error).split())[:300]}"
