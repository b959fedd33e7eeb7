"""The libraries underneath: loaded once a verb needs them, and kept quiet."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from capaft.support.activity import activity
from capaft.support.console import print_line
from capaft.support.printable import printable

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def loading_libraries(console: Console) -> Iterator[None]:
    """Says that the libraries are being loaded, which takes seconds, while a verb imports what it needs."""
    if "torch" in sys.modules:
        _quiet_libraries(console)
        yield
        return
    with activity(console, "loading torch and transformers"):
        _quiet_libraries(console)
        yield


def _quiet_libraries(console: Console) -> None:
    """Keep the libraries' own reports off the screen, and show warnings as lines."""
    import logging
    import warnings

    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning) and not issubclass(category, (FutureWarning, DeprecationWarning)):
            print_line(console, f"warning: {message}")

    warnings.showwarning = show
    _make_logs_printable()
    # What these have to say, as of scores over one class, is about capaft's calls and not for its users.
    warnings.filterwarnings("ignore", module=r"(sklearn|scipy|torch\._weights_only_unpickler)\b")
    for name in ("huggingface_hub", "datasets", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _make_logs_printable() -> None:
    """Has every library's log records hold printable lines."""
    import logging

    class Record(logging.LogRecord):
        def getMessage(self) -> str:  # noqa: N802 - a name of logging
            # Indented, so that no further line can be taken for one of capaft's own.
            return "\n    ".join(map(printable, super().getMessage().split("\n")))

    logging.setLogRecordFactory(Record)
