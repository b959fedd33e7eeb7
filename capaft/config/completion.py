"""Words that a shell offers to complete the value of a flag. Nothing heavy is imported: a person is waiting."""

from __future__ import annotations

from importlib.metadata import entry_points

from capaft.config.presets import preset_summaries

# The registry of methods imports torch; a test compares the two.
_HOSTS = ("lora", "dora", "vera", "houlsby", "pfeiffer", "parallel", "prefix", "ia3", "bitfit")
_NARROW = ("ia3", "bitfit")


def complete_method(incomplete: str) -> list[str]:
    """The method stacks that begin with what was typed, those of other packages included."""
    # A method of another package is called `package.host`; which it is would only be certain once it is imported.
    others = sorted(f"{entry.module.partition('.')[0]}.{entry.name}" for entry in entry_points(group="capaft.methods"))
    stacks = ["head", "full", "nola", "capaboost", "nola+capaboost"]
    for host in (*_HOSTS, *others):
        ends = ("", "+nola") if host in _NARROW else ("", "+nola", "+capaboost", "+nola+capaboost")
        stacks += [f"{host}{end}" for end in ends]
    return [stack for stack in stacks if stack.startswith(incomplete)]


def complete_preset(incomplete: str) -> list[tuple[str, str]]:
    """The presets that begin with what was typed, each with its description."""
    return [(name, summary) for name, summary in preset_summaries().items() if name.startswith(incomplete)]
