"""The sizes in a checkpoint's configuration: a wrong one surfaces as any error, or only after hours."""

from __future__ import annotations

from typing import Any

from capaft.support.errors import UsageError

# Names that every configuration of transformers has or maps to its own, with the least and the largest value.
_SIZES = {
    "hidden_size": (1, 2**24),
    "num_attention_heads": (1, 2**20),
    "num_hidden_layers": (0, 10_000),
    "vocab_size": (1, 2**28),
}

MOST_LABELS = 10**6
"""Labels of a configuration; transformers makes a name for each when it reads one."""


def check_label_count(source: str, name: str, **options: Any) -> None:
    """Refuse a configuration of more labels than memory may hold, before transformers makes anything of it.

    Args:
        source: directory or hub id.
        name: the user's name for the model.
        **options: those of `from_pretrained`.

    Raises:
        UsageError: it has too many labels.
    """
    from transformers import PretrainedConfig

    raw, _ = PretrainedConfig.get_config_dict(source, **options)
    for part in (raw, *(value for value in raw.values() if isinstance(value, dict))):
        count = part.get("num_labels")
        if isinstance(count, int) and count > MOST_LABELS:
            raise UsageError(
                f"--model {name}: its config.json gives num_labels as {count}, more than {MOST_LABELS:,}; get it again"
            )


def check_config(config: Any, name: str) -> None:
    """Refuse sizes and names that no model has.

    Args:
        config: the configuration, as transformers has it.
        name: the user's name for the model.

    Raises:
        UsageError: a size is negative, zero or beyond all bounds, or the name of a class is no text.
    """
    classes = getattr(config, "architectures", None)
    if classes is not None and not (isinstance(classes, list) and all(isinstance(entry, str) for entry in classes)):
        raise UsageError(f"--model {name}: its config.json gives architectures that are no names; get it again")
    parts = [config, *(part for part in vars(config).values() if hasattr(part, "attribute_map"))]
    for part in parts:
        for size, (least, most) in _SIZES.items():
            key = part.attribute_map.get(size, size)
            value = vars(part).get(key)
            if isinstance(value, int) and not least <= value <= most:
                raise UsageError(
                    f"--model {name}: its config.json gives {key} as {value}, not {least:,} to {most:,}; get it again"
                )
