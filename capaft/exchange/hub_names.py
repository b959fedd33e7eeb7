"""Names of repositories on the Hugging Face hub, and the hub's errors in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from capaft.support.errors import CapaftError, TrainingError, UsageError, one_line
from capaft.support.printable import printable

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./+-]{1,200}))?", re.ASCII)
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class HubName:
    """A repository and perhaps a revision, as `user/name@revision`.

    Attributes:
        repository: its id, with its owner.
        revision: a branch, a tag or a commit; None for the main branch.
    """

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository

    @staticmethod
    def parse(text: str) -> HubName | None:
        """The name that a text is, or None if it can be none."""
        match = _NAME.fullmatch(text)
        if match is None or ".." in text or "--" in match[1] or match[1].endswith((".git", "-", ".")):
            return None
        return HubName(match[1], match[2]) if max(map(len, match[1].split("/"))) <= 96 else None


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keeps huggingface_hub's bars off the screen."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def explaining_hub_errors(name: HubName, what: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into one line.

    Args:
        name: the repository.
        what: what fails, as "cannot be read".
    """
    from huggingface_hub import errors

    try:
        yield
    except CapaftError:
        raise
    except errors.LocalTokenNotFoundError:
        raise UsageError(f"{name} {what}: you are not logged in; {LOG_IN}") from None
    except errors.OfflineModeIsEnabled:
        raise UsageError(f"{name} {what}: HF_HUB_OFFLINE is set; unset it") from None
    except errors.HfHubHTTPError as error:
        raise _refused(name, what, error) from None
    except errors.HFValidationError as error:
        raise UsageError(f"{name} is no name of a repository: {printable(one_line(error))}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(f"{name} {what}: {printable(one_line(error))}; try again later") from None
    except Exception as error:
        # The client of huggingface_hub has errors of the library below it, whichever that is.
        if not type(error).__module__.startswith(("httpx", "httpcore", "hf_xet", "requests")):
            raise
        raise TrainingError(f"{name} {what}: {printable(one_line(error))}; try again later") from None


def refused_permission(name: HubName, what: str) -> UsageError:
    """The line about a repository of somebody else."""
    return UsageError(f"{name} {what}: your token has no permission for it; {LOG_IN} as somebody who has")


def _refused(name: HubName, what: str, error: OSError) -> CapaftError:
    """The line about an answer of the hub."""
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return UsageError(f"{name} {what}: it is gated; accept its conditions on its page, and {LOG_IN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"{name} {what}: {name.repository} has no revision {name.revision or 'main'}")
    if status == 401 and "Invalid credentials" in str(getattr(response, "headers", {}).get("X-Error-Message", "")):
        return UsageError(f"{name} {what}: the hub does not know your token; {LOG_IN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UsageError(f"{name} {what}: there is no such repository, or it is private and not yours; {LOG_IN}")
    if status in (401, 403):
        return refused_permission(name, what)
    if status in (400, 409, 413, 422):
        return UsageError(f"{name} {what}: the hub refuses it ({printable(one_line(error))})")
    return TrainingError(f"{name} {what}: the hub answered {status or printable(one_line(error))}; try again later")
