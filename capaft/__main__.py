"""`python -m capaft`, and the `capaft` command."""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` looks for modules in the working directory first, where a json.py may be anybody's.
    del sys.path[0]

from capaft.support.console import hold_standard_streams, outlive_stderr
from capaft.support.signals import watched


def main() -> None:
    """Run the command line."""
    # Nor do the processes that this one starts import from the working directory.
    os.environ["PYTHONSAFEPATH"] = "1"
    hold_standard_streams()
    with watched():
        outlive_stderr()
        from capaft.commands.app import app

        app()


if __name__ == "__main__":
    main()
