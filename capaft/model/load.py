"""Loading a base model: the embedded one, a directory, a GGUF file, or a hub id, all through the same path."""

from __future__ import annotations

import io
import re
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from capaft.config.choices import BaseDtype
from capaft.config.parts.model import ModelSettings
from capaft.model.checkpoint_config import check_config, check_label_count
from capaft.model.checkpoint_files import check_unread_files
from capaft.model.demo import MODEL_NAME, demo_model
from capaft.model.load_errors import explaining_load_errors
from capaft.model.names import backbone_prefix, canonical_path
from capaft.model.new_head import initial_values, initialise_head
from capaft.model.origin import GGUF, Origin
from capaft.model.skeleton import NeedsWeights, SkeletonSettings, give_memory, skeleton_options
from capaft.support import hub
from capaft.support.errors import UsageError
from capaft.support.paths import named_path

BASE_DTYPES = get_args(BaseDtype)
# A parameter of one of the numbered blocks of a model.
_IN_BLOCK = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model.

    Attributes:
        model: the model with a head for the task, on the CPU.
        processor: prepares its inputs: a tokenizer, an image processor or a feature extractor.
        base: name and revision, as an adapter file records them.
        head: canonical names of the head's parameters, which are trained directly.
        new_head: True if the checkpoint has no head for this task.
    """

    model: Any
    processor: Any
    base: Origin
    head: tuple[str, ...]
    new_head: bool

    @property
    def is_quantised(self) -> bool:
        """True if transformers loaded its weights as codes of a few bits."""
        return bool(getattr(self.model, "is_quantized", False))

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The model's own parameters by canonical name."""
        return {canonical_path(self.model, name): parameter for name, parameter in self.model.named_parameters()}


def load_base_model(
    auto_class: Any,
    settings: ModelSettings,
    *,
    seed: int,
    processor_class: Any = None,
    own_head: bool = True,
    **config: Any,
) -> BaseModel:
    """Load a base model and its processor, and give new parameters of its head seeded initial values.

    Args:
        auto_class: the transformers auto class of the task.
        settings: the model and how it is loaded; without a name, the embedded demo model.
        seed: of a new head.
        processor_class: the auto class of its processor; None for a tokenizer.
        own_head: train the whole head, even one that the checkpoint has; otherwise only its new parameters.
        **config: configuration entries that the task sets, such as `id2label`.

    Raises:
        UsageError: the model does not exist, the hub cannot be reached, or the checkpoint cannot serve the task.
    """
    from transformers import AutoTokenizer

    name = settings.model
    processor_class = processor_class or AutoTokenizer
    source = locate_model(name)
    path = Path(source)
    gguf = path.is_file() and path.suffix == GGUF
    common: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    if gguf:
        config |= _dense_gguf(name or source, path)
        common["gguf_file"] = path.name
    elif not path.is_dir():
        common["local_files_only"] = hub.offline()
    dtype_options = _dtype_options(settings.base_dtype) | skeleton_options(settings)
    if path.is_dir():
        check_unread_files(path)
    # No option turns off the progress bar of the reader of GGUF files.
    with explaining_load_errors(name or source, source), redirect_stderr(io.StringIO()) if gguf else nullcontext():
        if not gguf:
            check_label_count(source, name or source, **common)
        processor = processor_class.from_pretrained(str(path.parent) if gguf else source, **common)
        model, report = auto_class.from_pretrained(
            str(path.parent) if gguf else source,
            **dtype_options,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **common,
            **config,
        )
    # Outputs are read by name, whatever the checkpoint's authors preferred.
    model.config.return_dict = True
    if gguf:
        # The title in the file is not a path, and does not belong in a plain configuration.
        vars(model.config).pop("_model_name_or_path", None)
    mismatched = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    new = {canonical_path(model, key) for key in (*report["missing_keys"], *mismatched)}
    parameters = [canonical_path(model, key) for key, _ in model.named_parameters()]
    backbone = backbone_prefix(model)
    in_head = (
        {canonical_path(model, key) for key, _ in model.named_parameters() if not key.startswith(backbone)}
        if backbone
        else set()
    )
    if gguf and (lost := sorted(new - in_head)):
        raise UsageError(
            f"--model {name} has no usable {lost[0]}{f' and {len(lost) - 1} other weights' if lost[1:] else ''}; it is "
            "damaged, or transformers cannot convert it; use the model's directory or hub id instead"
        )
    if backbone:
        in_body = {key for key in parameters if key in new} - in_head
        _refuse_lost(name or source, in_body, {canonical_path(model, key) for key in mismatched})
    if isinstance(settings, SkeletonSettings):
        _place_new(model, new, seed)
    initialise_head(model, (key for key in parameters if key in new), seed)
    head = tuple(key for key in parameters if key in (new | in_head if own_head else new))
    return BaseModel(model, processor, Origin(name or MODEL_NAME, settings.revision), head, bool(new & in_head))


def _place_new(model: nn.Module, new: set[str], seed: int) -> None:
    """Give memory to the new parameters of a model without weights.

    Raises:
        NeedsWeights: a new parameter keeps the values that transformers gives it.
    """
    for path, parameter in model.named_parameters():
        name = canonical_path(model, path)
        if name in new and parameter.is_meta and initial_values(name, parameter.shape, seed) is None:
            raise NeedsWeights(f"the checkpoint does not have {name}")
    give_memory(model, new)


def _refuse_lost(name: str, new: set[str], mismatched: set[str]) -> None:
    """Refuse a checkpoint without parameters of the model's body that it should have.

    Poolers and the like may be new, but no block of the body; a parameter of another shape is that of another model.

    Args:
        name: the user's name for the model.
        new: parameters of the body that were not taken from the checkpoint.
        mismatched: parameters that it has in another shape.
    """
    if lost := sorted(key for key in new if key in mismatched or _IN_BLOCK.search(key)):
        raise UsageError(
            f"--model {name}: its weights do not fit its config.json: {lost[0]}"
            f"{f' and {len(lost) - 1} others' if lost[1:] else ''} cannot be taken from them; get config.json and the "
            "weights again, from one checkpoint"
        )


def load_configuration(settings: ModelSettings) -> Any:
    """A base model's configuration, as transformers has it, without its weights.

    Args:
        settings: the model and how it is loaded; without a name, the embedded demo model.

    Raises:
        UsageError: the model does not exist, or the hub cannot be reached.
    """
    from transformers import AutoConfig

    name = settings.model
    source = locate_model(name)
    path = Path(source)
    common: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    gguf = path.is_file() and path.suffix == GGUF
    if gguf:
        _dense_gguf(name or source, path)
        common["gguf_file"] = path.name
    elif not path.is_dir():
        common["local_files_only"] = hub.offline()
    with explaining_load_errors(name or source, source):
        if not gguf:
            check_label_count(source, name or source, **common)
        config = AutoConfig.from_pretrained(str(path.parent) if gguf else source, **common)
    check_config(config, name or source)
    return config


def load_skeleton(name: str) -> nn.Module:
    """A model without its weights, from its configuration alone.

    Args:
        name: a directory or a hub id.

    Raises:
        UsageError: the model does not exist, or transformers cannot build it.
    """
    import transformers

    source = locate_model(name)
    common = {} if Path(source).is_dir() else {"local_files_only": hub.offline()}
    with explaining_load_errors(name, source):
        check_label_count(source, name, **common)
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **common)
        check_config(config, name)
        architecture = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
        build = getattr(architecture, "_from_config", transformers.AutoModel.from_config)
        with torch.device("meta"):
            return build(config)


def locate_model(name: str | None) -> str:
    """Directory, file or hub id for transformers to load; the embedded model's hub name becomes its directory.

    Raises:
        UsageError: `name` looks like a path but does not exist, or the embedded model is not installed.
    """
    if name is None:
        return str(demo_model())
    path = named_path("--model", name)
    if path.exists():
        return str(path)
    if name == MODEL_NAME:
        try:
            return str(demo_model())
        except UsageError:
            return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(GGUF):
        raise UsageError(f"--model {name}: no such {'file' if name.endswith(GGUF) else 'directory'}")
    return name


def _dtype_options(base_dtype: str) -> dict[str, Any]:
    """Options of `from_pretrained` for the dtype of the weights.

    Raises:
        UsageError: the dtype is unknown, or bitsandbytes, which quantises weights, is not installed.
    """
    if base_dtype not in BASE_DTYPES:
        raise UsageError(f"--base-dtype must be one of {', '.join(BASE_DTYPES)}, got {base_dtype}")
    if base_dtype not in ("8bit", "4bit"):
        return {"dtype": getattr(torch, base_dtype)}
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise UsageError(f"--base-dtype {base_dtype} needs the package bitsandbytes; pip install bitsandbytes")
    bits = {"load_in_8bit": True} if base_dtype == "8bit" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    compute = {} if base_dtype == "8bit" else {"bnb_4bit_compute_dtype": torch.bfloat16}
    return {"dtype": torch.bfloat16, "quantization_config": BitsAndBytesConfig(**bits, **compute)}


def _dense_gguf(name: str, path: Path) -> dict[str, Any]:
    """Options of `from_pretrained` that unpack a GGUF file into an ordinary model, once the file is known to be one.

    Raises:
        UsageError: it cannot be read or is not a GGUF file, or the gguf package is not installed.
    """
    import transformers
    from transformers.utils import is_gguf_available

    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise UsageError(f"--model {name} cannot be read: {error.strerror or error}") from None
    if magic != b"GGUF":
        raise UsageError(
            f"--model {name} is not a GGUF file: it does not begin with the letters GGUF; download it again"
        )
    if not is_gguf_available():
        raise UsageError(f"--model {name}: reading a GGUF file needs the gguf package; pip install gguf")
    # Newer versions otherwise keep the weights packed, or call the model quantised although it is not.
    dense = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": dense(dequantize=True)} if dense else {}
