"""`tunewright backup` and `tunewright restore`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cli.database import DataDirectory, open_database
from cli.service_files import lock_directory
from cli.terminal import err, out
from core.backup import service
from core.backup.service import Manifest, Restored
from core.own_process import keep_private
from core.runtime import open_runtime
from core.settings_loading import load_settings

DatabaseOnly = Annotated[bool, typer.Option("--database-only", help="Leave the stored objects alone.")]
SHOWN_KEYS = 20


def backup(
    target: Annotated[Path, typer.Argument(metavar="DIRECTORY|FILE.tar", help="Where to; a file ends in .tar.")],
    database_only: DatabaseOnly = False,
    data: DataDirectory = None,
) -> None:
    """Back up the database and the stored objects, while the service runs.

    A directory of an earlier backup is brought up to date: objects that it has are not copied again. Exits with 1
    where the store lacks what the database names.
    """
    settings = load_settings(data)
    keep_private(settings.data_dir)
    with open_database(settings):
        runtime = open_runtime(settings)
        try:
            manifest = service.back_up(runtime, target, database_only=database_only)
        finally:
            runtime.close()
    out.print(f"Backed up to {target}: {_contents(manifest)}.", soft_wrap=True)
    _list("removed by the service meanwhile, and not in the backup", manifest.removed)
    _list("not in the store as the database says, and not in the backup", manifest.damaged)
    if manifest.damaged:
        raise typer.Exit(1)


def restore(
    source: Annotated[Path, typer.Argument(metavar="DIRECTORY|FILE.tar", help="The backup.")],
    database_only: DatabaseOnly = False,
    replace: Annotated[bool, typer.Option("--replace", help="Lose what the database holds now.")] = False,
    data: DataDirectory = None,
) -> None:
    """Put a backup back, into an empty service or in place of what is there. Stop the service before.

    An older release's backup is migrated; a newer one's is refused. Exits with 1 where objects are damaged or lost.
    """
    settings = load_settings(data)
    keep_private(settings.data_dir)
    with lock_directory(settings.data_dir):
        runtime = open_runtime(settings)
        try:
            done = service.restore(settings, runtime.store, source, replace=replace, database_only=database_only)
        finally:
            runtime.close()
    _report(done)
    if done.damaged:
        raise typer.Exit(1)


def _report(done: Restored) -> None:
    made_at = f"{done.manifest.made_at:%Y-%m-%d %H:%M} UTC"
    out.print(f"Restored the backup of {made_at}: {_contents(done.manifest)}.", soft_wrap=True)
    out.print(
        f"{done.jobs_requeued:,} running jobs go on from their checkpoints; the books are sound: "
        f"{done.proof.transactions:,} transactions, {done.proof.jobs:,} jobs.",
        soft_wrap=True,
    )
    if done.checkpoints_forgotten:
        out.print(f"{done.checkpoints_forgotten:,} checkpoints are not in the backup and are forgotten.")
    if done.earlier_database is not None:
        out.print(f"The database that was there is kept as {done.earlier_database}.", soft_wrap=True)
    _list("damaged or lost", done.damaged)
    err.print("Keys and sessions revoked after the backup was made work again: revoke them anew.", soft_wrap=True)


def _contents(manifest: Manifest) -> str:
    database = f"the {manifest.database} database ({sum(one.size_bytes for one in manifest.dump):,} bytes)"
    if not manifest.has_objects:
        return f"{database}, without objects"
    return f"{database} and {len(manifest.objects):,} objects ({sum(o.size_bytes for o in manifest.objects):,} bytes)"


def _list(what: str, keys: Sequence[str]) -> None:
    if keys:
        more = f" and {len(keys) - SHOWN_KEYS:,} more" if len(keys) > SHOWN_KEYS else ""
        err.print(f"{len(keys):,} objects are {what}: {', '.join(keys[:SHOWN_KEYS])}{more}.", soft_wrap=True)
