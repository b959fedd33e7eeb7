"""`python -m capaft`, and the `capaft` command."""

from capaft.commands.app import app


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
