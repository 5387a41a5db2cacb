"""The training data that a command names: a file of this machine, or a data set of the hub, fetched for the while."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from cli.terminal import err
from core.datasets import hub
from core.errors import FileTooLargeError
from core.hub_access import of_this_machine
from core.settings import Settings


@contextmanager
def data_file(named: str | None, settings: Settings) -> Iterator[Path | None]:
    """The file that is named, there until the end of the context; None where none is.

    Raises BadParameter for a file that is not there, FileTooLargeError for a split of the hub that is larger
    than an upload may be, and what finding and fetching it raise.
    """
    if named is None:
        yield None
    elif named.startswith(hub.HUB_SCHEME):
        access = of_this_machine()
        source = hub.resolve(hub.parse_reference(named, "--data"), access, "--data")
        if source.size_bytes > settings.max_upload_bytes:
            raise FileTooLargeError(
                f"{source.reference} has {source.size_bytes:,} bytes, above TUNEWRIGHT_MAX_UPLOAD_BYTES, "
                f"{settings.max_upload_bytes:,}. Choose a smaller split."
            )
        err.print(f"Fetching {source.reference} ({source.size_bytes:,} bytes)…")
        with tempfile.TemporaryDirectory(prefix="tunewright-") as directory:
            yield hub.download(source, access, Path(directory))
    else:
        path = Path(named)
        if not path.is_file():
            raise typer.BadParameter(f"The file {named!r} does not exist.", param_hint="--data")
        yield path
