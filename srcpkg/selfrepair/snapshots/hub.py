"""Errors of the Hugging Face hub in one or two lines, and no progress bars in a log file."""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from selfrepair.snapshots.sources import Source


@contextmanager
def hub_errors(source: Source, what: str) -> Iterator[None]:
    """Turn what huggingface_hub and datasets raise into an error that says what was asked, of whom, and what to do.

    Args:
        source: A `hub:` source.
        what: `model` or `data set`.

    Raises:
        ValueError: If the hub does not know the repository or the revision, or refuses it.
        ConnectionError: If the hub did not answer.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise _explain(source, what, error) from error
    except Exception as error:
        if not _of_http_client(error):
            raise
        raise _explain(source, what, error) from error


def _explain(source: Source, what: str, error: Exception) -> Exception:
    from huggingface_hub import constants, errors

    causes = list(_causes(error))

    def caused_by(kind: type[Exception]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    asked = f"{what} {source.name!r} at {constants.ENDPOINT}"
    if caused_by(errors.GatedRepoError):
        return ValueError(
            f"{asked} is gated: accept its terms there and log in (`hf auth login`), or use path: with a local copy"
        )
    if caused_by(errors.RevisionNotFoundError):
        return ValueError(
            f"{asked} has no revision {source.revision}: give the hash of a commit that its history lists"
        )
    if caused_by(errors.RepositoryNotFoundError):
        return ValueError(f"{asked} does not exist, or is private: check the name, or log in (`hf auth login`)")
    unreachable = [cause for cause in causes if _is_transport(cause)]
    if unreachable:
        return ConnectionError(
            f"{asked} cannot be reached ({_first_line(unreachable[-1])}): run this step on a machine with network, "
            "set HF_ENDPOINT to a mirror, or use path: with a local copy"
        )
    return ValueError(f"{asked}, revision {source.revision}, cannot be read: {_first_line(error)}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _is_transport(error: BaseException) -> bool:
    """Whether the hub did not answer, or only with a failure of its own; a refusal is an answer."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, ConnectionError | TimeoutError) or _of_http_client(error)


def _of_http_client(error: BaseException) -> bool:
    """Whether the exception class is the HTTP client's own, whichever client the installed huggingface_hub uses."""
    return any(base.__module__.partition(".")[0] in ("httpx", "httpx2") for base in type(error).__mro__)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]


@contextmanager
def no_bars_in_logs() -> Iterator[None]:
    """Within the block, tqdm draws no bars unless standard error is a terminal."""
    if sys.stderr.isatty():
        yield
        return
    import tqdm

    original = tqdm.tqdm.__init__

    @functools.wraps(original)
    def disabled(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        original(self, *args, **{**kwargs, "disable": True})

    tqdm.tqdm.__init__ = disabled
    try:
        yield
    finally:
        tqdm.tqdm.__init__ = original
