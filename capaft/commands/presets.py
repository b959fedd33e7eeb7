"""`capaft presets`: the published experiments that `--preset` knows."""

from __future__ import annotations

from capaft.commands.reporting import Json, reporting, suggest
from capaft.config.presets import preset_summaries
from capaft.support import strict_json


def presets_command(json: Json = False) -> None:
    """List the published experiments that --preset knows."""
    with reporting() as console:
        summaries = preset_summaries()
        width = max(map(len, summaries))
        lines = (f"{name:{width}}  {summary}" for name, summary in summaries.items())
        if json:
            print(strict_json.document(summaries))
            return
        print("\n".join(lines))
        suggest(console, "capaft train --preset nola-glue-rte --print-config")
