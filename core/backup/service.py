"""Making backups while the service runs, and restoring them.

The database comes first, as it was at one moment; then the objects that it names. Objects never change under their
key, so the two agree. What the service removed between the two is gone for good, and is said.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from core.artifacts.objects import Meter
from core.artifacts.store import ArtifactStore, StoredObject
from core.backup import queries
from core.backup.archive import MANIFEST, Reader, Writer, is_tar, open_reader, open_writer, stream
from core.backup.queries import NamedObject
from core.db.base import utc_now
from core.db.dump import Part, dump, kind_of, load, refuse_in_use
from core.db.migrate import current_revision, knows
from core.errors import ConflictError, InvalidRequestError, NotFoundError
from core.jobs import lease
from core.reconciliation.service import Proof, verify
from core.retention import queries as retention_queries
from core.runtime import Runtime
from core.settings import Settings

__all__ = ["Manifest", "Restored", "back_up", "restore"]

FORMAT = 1
_SAID = 5  # names in a message


@dataclass(frozen=True)
class DumpFile:
    """One file of the database's dump, and what its rows hold."""

    name: str
    table: str
    columns: tuple[str, ...]
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a backup holds. It is written last: a backup without one is not complete."""

    release: str
    revision: str  # of the schema
    database: str  # sqlite or postgresql
    made_at: datetime
    dump: tuple[DumpFile, ...]
    objects: tuple[NamedObject, ...] = ()
    has_objects: bool = True
    removed: tuple[str, ...] = ()  # by the service, while the backup was made
    damaged: tuple[str, ...] = ()  # or lost: the store does not have what the database says
    format: int = FORMAT


@dataclass(frozen=True)
class Restored:
    """What a restore did."""

    manifest: Manifest
    proof: Proof
    jobs_requeued: int
    checkpoints_forgotten: int
    earlier_database: Path | None  # where SQLite's is kept
    damaged: tuple[str, ...]  # objects that the backup does not hold as they were


_MANIFESTS = TypeAdapter(Manifest)


def back_up(runtime: Runtime, path: Path, *, database_only: bool = False) -> Manifest:
    """Write the database and its objects to a folder or a tar file, while the service runs.

    Raises ConflictError for a folder of other things, or of a backup with objects where this one is to have none, and
    StoreError where store or disk fail.
    """
    if database_only:
        _keep_objects(path)
    with open_writer(path) as writer:
        made_at = utc_now()
        with runtime.database.snapshot() as session:
            revision = current_revision(session.connection())
            named = [] if database_only else queries.named_objects(session)
            folder = f"database-{made_at:%Y%m%dT%H%M%S%f}"
            dumped = tuple(_dump_file(writer, folder, part) for part in dump(session))
        copied = _copy_objects(runtime, writer, named)
        manifest = Manifest(
            release=version("tunewright"),
            revision=revision,
            database=kind_of(runtime.settings.resolved_database_url),
            made_at=made_at,
            dump=dumped,
            objects=tuple(copied.objects),
            has_objects=not database_only,
            removed=tuple(copied.removed),
            damaged=tuple(copied.damaged),
        )
        names = [one.name for one in dumped] + [_object_name(one.key) for one in copied.objects]
        writer.finish(_MANIFESTS.dump_json(manifest), names)
    return manifest


def restore(
    settings: Settings, store: ArtifactStore, path: Path, *, replace: bool = False, database_only: bool = False
) -> Restored:
    """Put a backup back: its objects into the store, then its database, migrated to this release, all or nothing.

    Leases of then are void: jobs that ran go on from their checkpoints. The books are proven before anything counts.
    Raises NotFoundError, InvalidRequestError for what is no complete backup, ConflictError for one of a newer release
    or another kind of database, a database in use, or one with rows unless `replace`; StoreError.
    """
    url = settings.resolved_database_url
    with open_reader(path) as reader:
        manifest = _manifest(reader, path)
        _check(manifest, url)
        refuse_in_use(url, may_replace=replace)
        parts = {one.table: _part(reader, one) for one in manifest.dump}
        for one in manifest.dump:
            _check_dump(reader, one)
        damaged = set() if database_only else _restore_objects(reader, store, manifest)
        settled = _Settled()
        gone = {*manifest.removed, *manifest.damaged, *damaged}
        finish = partial(_settle, manifest=manifest, gone=gone, settled=settled)
        earlier = load(url, manifest.revision, parts, finish, now=utc_now())
    assert settled.proof is not None, "the database was finished"
    return Restored(
        manifest=manifest,
        proof=settled.proof,
        jobs_requeued=settled.jobs_requeued,
        checkpoints_forgotten=settled.checkpoints_forgotten,
        earlier_database=earlier,
        damaged=tuple(sorted({*manifest.damaged, *damaged})),
    )


def _keep_objects(path: Path) -> None:
    if is_tar(path) or not (path / MANIFEST).is_file():
        return
    with open_reader(path) as reader:
        if _manifest(reader, path).has_objects:
            raise ConflictError(
                f"{path} is a backup with objects, which one without them would replace. Name another folder.",
                code="not_a_backup",
            )


def _dump_file(writer: Writer, folder: str, part: Part) -> DumpFile:
    stored = writer.add(f"{folder}/{part.name}", part.chunks)
    return DumpFile(stored.key, part.name, part.columns, stored.size_bytes, stored.sha256)


@dataclass
class _Copied:
    objects: list[NamedObject] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def _copy_objects(runtime: Runtime, writer: Writer, named: Iterable[NamedObject]) -> _Copied:
    copied, missing = _Copied(), []
    for one in named:
        name = _object_name(one.key)
        if writer.has(name, one.size_bytes):
            copied.objects.append(one)
            continue
        try:
            stored = writer.add(name, stream(partial(runtime.store.open, one.key)))
        except NotFoundError:
            missing.append(one.key)
            continue
        if _is_same(stored, one):
            copied.objects.append(one)
        else:
            copied.damaged.append(one.key)
    still_named: set[str] = set()
    with runtime.database.read() as session:
        for start in range(0, len(missing), queries.KEYS_AT_ONCE):
            still_named |= retention_queries.recorded_keys(session, missing[start : start + queries.KEYS_AT_ONCE])
    copied.removed = [key for key in missing if key not in still_named]
    copied.damaged += [key for key in missing if key in still_named]
    return copied


def _is_same(stored: StoredObject, named: NamedObject) -> bool:
    return (stored.size_bytes, stored.sha256) == (named.size_bytes, named.sha256)


def _object_name(key: str) -> str:
    return f"objects/{key}"


def _manifest(reader: Reader, path: Path) -> Manifest:
    try:
        with reader.open(MANIFEST) as file:
            content = file.read()
    except NotFoundError:
        raise NotFoundError(
            f"There is no complete backup at {path}: it has no {MANIFEST}, which is written last.",
            code="backup_not_found",
        ) from None
    try:
        found = _MANIFESTS.validate_json(content)
    except ValidationError as error:
        raise InvalidRequestError(
            f"The {MANIFEST} in {path} cannot be read, or is of a newer release than this one "
            f"({version('tunewright')}): {error.error_count()} problem(s).",
            code="invalid_backup",
        ) from None
    return found


def _check(manifest: Manifest, url: str) -> None:
    if manifest.format > FORMAT or not knows(manifest.revision):
        raise ConflictError(
            f"The backup is of release {manifest.release}, with schema {manifest.revision}; this is "
            f"{version('tunewright')}, which does not know it. Restore with that release or a newer one.",
            code="backup_of_newer_release",
        )
    if manifest.database != kind_of(url):
        raise ConflictError(
            f"The backup is of a {manifest.database} database and TUNEWRIGHT_DATABASE_URL names {kind_of(url)}. "
            "Restore into the same kind.",
            code="backup_of_other_database",
        )


def _part(reader: Reader, one: DumpFile) -> Part:
    return Part(one.table, one.columns, stream(partial(reader.open, one.name)))


def _check_dump(reader: Reader, one: DumpFile) -> None:
    """Raises InvalidRequestError before anything is changed."""
    try:
        is_whole = _digest(partial(stream, partial(reader.open, one.name))) == (one.size_bytes, one.sha256)
    except NotFoundError:
        is_whole = False
    if not is_whole:
        raise InvalidRequestError(
            f"The backup's {one.name} is missing or is not what was written ({one.size_bytes:,} bytes with SHA-256 "
            f"{one.sha256[:12]}). Nothing was changed. Use another backup.",
            code="invalid_backup",
        )


def _digest(chunks: Callable[[], Iterable[bytes]]) -> tuple[int, str]:
    meter = Meter("dump", None)
    for _ in meter.measure(chunks()):
        pass
    receipt = meter.receipt()
    return receipt.size_bytes, receipt.sha256


def _restore_objects(reader: Reader, store: ArtifactStore, manifest: Manifest) -> set[str]:
    """Store the backup's objects; returns the keys of those that are not what they were, which are left out."""
    damaged = set()
    for one in manifest.objects:
        try:
            stored = store.put(one.key, stream(partial(reader.open, _object_name(one.key))))
        except NotFoundError:
            damaged.add(one.key)
            continue
        if not _is_same(stored, one):
            store.delete(one.key)
            damaged.add(one.key)
    return damaged


@dataclass
class _Settled:
    proof: Proof | None = None
    jobs_requeued: int = 0
    checkpoints_forgotten: int = 0


def _settle(session: Session, *, manifest: Manifest, gone: set[str], settled: _Settled) -> None:
    """Make the database true of now. Raises ConflictError where its books are broken."""
    settled.checkpoints_forgotten = queries.forget_checkpoints(session, gone)
    when = f"{manifest.made_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    settled.jobs_requeued = lease.void_all(session, f"Restored from a backup of {when}; going on from its checkpoints")
    session.flush()
    settled.proof = verify(session)
    if settled.proof.faults:
        said = "; ".join(f"{fault.where}: {fault.problem}" for fault in settled.proof.faults[:_SAID])
        raise ConflictError(
            f"The backup's books are broken in {len(settled.proof.faults)} places, so nothing was changed. {said}",
            code="books_broken",
        )
