"""`capaft presets`: the published experiments that `--preset` knows."""

from __future__ import annotations

from capaft.commands.reporting import Json, reporting
from capaft.config.presets import preset_summaries
from capaft.support import strict_json
from capaft.support.console import print_result


def presets_command(json: Json = False) -> None:
    """List the published experiments that --preset knows."""
    with reporting():
        summaries = preset_summaries()
        width = max(map(len, summaries))
        lines = (f"{name:{width}}  {summary}" for name, summary in summaries.items())
        print_result(strict_json.document(summaries) if json else "\n".join(lines))
