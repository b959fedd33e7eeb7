"""`capaft presets`: the published experiments that `--preset` knows."""

from __future__ import annotations

import shutil

from capaft.commands.reporting import Json, reporting, suggest
from capaft.config.presets import preset_summaries
from capaft.support import strict_json
from capaft.support.console import print_result

SCREEN = 1000
"""Characters in a line where there is no terminal."""


def presets_command(json: Json = False) -> None:
    """List the published experiments that --preset knows."""
    with reporting() as console:
        summaries = preset_summaries()
        width = max(map(len, summaries))
        if json:
            print_result(strict_json.document(summaries))
            return
        screen = shutil.get_terminal_size((SCREEN, 0)).columns
        for name, summary in summaries.items():
            is_narrow = width + 2 + len(summary) > screen
            print_result(f"{name}\n    {summary}" if is_narrow else f"{name:{width}}  {summary}")
        suggest(console, "capaft train --preset nola-glue-rte --print-config")
