"""`capaft env`: the versions and the device that a run would use."""

from __future__ import annotations

import platform

from capaft import __version__
from capaft.commands.reporting import Json, reporting, suggest
from capaft.support import strict_json
from capaft.support.console import print_result

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors", "numpy", "typer", "rich")


def env_command(json: Json = False) -> None:
    """Print the versions and the device that a run would use."""
    with reporting() as console:
        from importlib.metadata import version

        import torch

        from capaft.training.accelerator import device_name

        facts = {"capaft": __version__, "python": platform.python_version(), "platform": platform.platform()}
        facts |= {name: version(name) for name in _PACKAGES}
        facts["device"] = device_name()
        facts["threads"] = str(torch.get_num_threads())
        if json:
            print_result(strict_json.document(facts))
            return
        print_result("\n".join(f"{name:14}{fact}" for name, fact in facts.items()))
        suggest(console, "capaft train")
