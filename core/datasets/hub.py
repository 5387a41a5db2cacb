"""Data sets of the hub, by id: which Parquet files a split is made of, how large they are, and their download.

Only Parquet is read: the repository's own files, or those that the hub converts public data sets into. No code of a
repository is ever run.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import DatasetInfo
from huggingface_hub.utils._validators import validate_repo_id
from huggingface_hub.utils.tqdm import disable_progress_bars

from core.errors import InvalidDatasetError, InvalidRequestError, NotFoundError, ServiceUnavailableError
from core.hub_access import CONNECT_SECONDS, HubAccess

__all__ = ["HUB_SCHEME", "HubReference", "HubSource", "download", "parse_reference", "resolve"]

HUB_SCHEME = "hf://"
CONVERTED = "refs/convert/parquet"  # a branch that the hub keeps: CONFIG/SPLIT/0000.parquet, …
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,95})?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}")
_SHARD = re.compile(r"[-_.]?\d{4,5}([-_]of[-_]\d{4,5})?$")
_SPLITS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "dev": "validation"}
_BATCH_ROWS = 1024


@dataclass(frozen=True)
class HubReference:
    """What `hf://owner/name?config=…&split=…&revision=…` says; None where it leaves that open."""

    repository: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class HubSource:
    """One split at one commit, as its Parquet files. `revision` is the commit's hash, `size_bytes` their sum."""

    repository: str
    revision: str
    config: str
    split: str
    paths: tuple[str, ...]
    size_bytes: int

    @property
    def filename(self) -> str:
        """What its file is called here."""
        return f"{self.repository.replace('/', '--')}-{self.config}-{self.split}-{self.revision[:8]}.parquet"

    @property
    def reference(self) -> str:
        """The address that gives these bytes again."""
        return f"{HUB_SCHEME}{self.repository}?config={self.config}&split={self.split}&revision={self.revision}"


def parse_reference(text: str, param: str) -> HubReference:
    """The reference in `hf://owner/name`, `hf://owner/name@revision` or either with `?config=&split=&revision=`.

    Raises InvalidRequestError.
    """
    name, _, query = text.removeprefix(HUB_SCHEME).removeprefix("datasets/").partition("?")
    repository, _, revision = name.partition("@")
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = {"config", "split", "revision"}
    revision = options.get("revision") or revision
    named = _is_repository(repository) and (not revision or _REVISION.fullmatch(revision))
    if not named or options.keys() - known or "" in options.values():
        raise InvalidRequestError(
            f"{text!r} is no data set of the hub. Write hf://owner/name, and behind it what you choose of "
            "?config=main&split=train&revision=COMMIT.",
            code="invalid_hub_reference",
            param=param,
        )
    return HubReference(repository, options.get("config"), options.get("split"), revision or None)


def _is_repository(name: str) -> bool:
    """Whether the hub's library takes this name; it has rules beyond the letters, as for `a--b` and `x.git`."""
    if not _REPOSITORY.fullmatch(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def resolve(reference: HubReference, access: HubAccess, param: str) -> HubSource:
    """The files that a reference means now, from the hub's metadata alone: not a byte of them is fetched.

    Raises NotFoundError (`dataset_not_found`), InvalidDatasetError (`dataset_gated`, `no_parquet`, `unknown_config`,
    `unknown_split`), InvalidRequestError (`hub_token_refused`) and ServiceUnavailableError (`hub_unreachable`).
    """
    repository = reference.repository
    with _explained(repository, access, param):
        info = access.api().dataset_info(
            repository, revision=reference.revision, files_metadata=True, timeout=CONNECT_SECONDS
        )
        if info.gated:
            access.check_files("dataset", repository)
        splits = _splits(info)
        if not splits and reference.revision is None and (converted := _converted(repository, access)) is not None:
            info, splits = converted, _splits(converted)
    if not splits:
        raise InvalidDatasetError(
            f"The data set {repository!r} has no Parquet files"
            + (f" at {reference.revision!r}" if reference.revision else ", and the hub has converted none")
            + ". Download it, and upload it as JSON Lines or Parquet.",
            code="no_parquet",
            param=param,
        )
    config, split = _choose(reference, splits, param)
    paths = tuple(sorted(splits[config, split]))
    sizes = [_size(info, path) for path in paths]
    if info.sha is None or None in sizes:
        raise InvalidDatasetError(
            f"The hub does not say how large {repository!r} is, so it is not fetched. Download it, and upload it.",
            code="no_parquet",
            param=param,
        )
    return HubSource(repository, info.sha, config, split, paths, sum(size for size in sizes if size is not None))


def download(source: HubSource, access: HubAccess, directory: Path) -> Path:
    """The split as one Parquet file in `directory`: the repository's own where there is one, else all in order.

    Raises what `resolve` raises.
    """
    disable_progress_bars()
    with _explained(source.repository, access, "training_file"):
        shards = [
            Path(
                hf_hub_download(
                    source.repository,
                    path,
                    repo_type="dataset",
                    revision=source.revision,
                    local_dir=directory,
                    token=access.credential,
                )
            )
            for path in source.paths
        ]
    return shards[0] if len(shards) == 1 else _joined(source, shards, directory / "joined.parquet")


def _converted(repository: str, access: HubAccess) -> DatasetInfo | None:
    try:
        return access.api().dataset_info(repository, revision=CONVERTED, files_metadata=True, timeout=CONNECT_SECONDS)
    except RevisionNotFoundError:
        return None


def _splits(info: DatasetInfo) -> dict[tuple[str, str], list[str]]:
    """Parquet files by config and split: as the data set's card says, else as their names do."""
    paths = [sibling.rfilename for sibling in info.siblings or [] if sibling.rfilename.endswith(".parquet")]
    found: dict[tuple[str, str], list[str]] = {}
    for config, split, pattern in _declared(info):
        matching = [path for path in paths if fnmatchcase(path, pattern)]
        if matching:
            found.setdefault((config, split), []).extend(matching)
    if not found:
        for path in paths:
            found.setdefault(_by_name(path), []).append(path)
    return {key: sorted(set(files)) for key, files in found.items()}


def _declared(info: DatasetInfo) -> Iterator[tuple[str, str, str]]:
    """Config, split and pattern of files from the card's `configs`."""
    card: Mapping[str, Any] = vars(info.card_data) if info.card_data else {}
    for config in _objects(card.get("configs")):
        name = str(config.get("config_name", "default"))
        data_files = config.get("data_files")
        for entry in data_files if isinstance(data_files, list) else [data_files]:
            split, pattern = ("train", entry) if isinstance(entry, str) else (None, None)
            if isinstance(entry, Mapping):
                split, pattern = str(entry.get("split", "train")), entry.get("path")
            for one in pattern if isinstance(pattern, list) else [pattern]:
                if split is not None and isinstance(one, str):
                    yield name, split, one


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _by_name(path: str) -> tuple[str, str]:
    """Config and split of `config/split/0000.parquet`, `config/train-00000-of-00001.parquet`, `data/train.parquet`."""
    *folders, name = path.split("/")
    stem = _SHARD.sub("", name.removesuffix(".parquet"))
    if len(folders) > 1 and not stem:
        return folders[-2], folders[-1].removeprefix("partial-")
    words = re.split(r"[^a-z]+", stem.lower())
    split = next((_SPLITS[word] for word in words if word in _SPLITS), None)
    if split is None and folders and folders[-1].lower() in _SPLITS:
        split = _SPLITS[folders.pop().lower()]
    config = folders[-1] if folders and folders[-1] != "data" else "default"
    return config, split or "train"


def _choose(reference: HubReference, splits: Mapping[tuple[str, str], Sequence[str]], param: str) -> tuple[str, str]:
    configs = sorted({config for config, _ in splits})
    config = reference.config or (configs[0] if len(configs) == 1 else "default")
    if config not in configs:
        raise InvalidDatasetError(
            f"The data set {reference.repository!r} has no config {config!r}. Choose one with ?config=…: "
            f"{', '.join(configs[:20])}.",
            code="unknown_config",
            param=param,
        )
    names = sorted(split for of, split in splits if of == config)
    split = reference.split or (names[0] if len(names) == 1 else "train")
    if split not in names:
        raise InvalidDatasetError(
            f"The config {config!r} of {reference.repository!r} has no split {split!r}. Choose one with ?split=…: "
            f"{', '.join(names[:20])}.",
            code="unknown_split",
            param=param,
        )
    return config, split


def _size(info: DatasetInfo, path: str) -> int | None:
    return next(sibling.size for sibling in info.siblings or [] if sibling.rfilename == path)


def _joined(source: HubSource, shards: Sequence[Path], target: Path) -> Path:
    """All rows in order, a batch in memory at a time."""
    schema = pq.read_schema(shards[0])
    try:
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for shard in shards:
                with pq.ParquetFile(shard, pre_buffer=False) as table:
                    for batch in table.iter_batches(_BATCH_ROWS, use_threads=False):
                        writer.write_table(pa.Table.from_batches([batch]).select(schema.names).cast(schema))
    except (pa.ArrowException, KeyError) as error:
        raise InvalidDatasetError(
            f"The {len(shards)} Parquet files of {source.reference} do not go together: {error}. Download them, and "
            "upload one file.",
            code="damaged_file",
        ) from error
    return target


@contextmanager
def _explained(repository: str, access: HubAccess, param: str) -> Iterator[None]:
    try:
        yield
    except GatedRepoError:
        raise InvalidDatasetError(
            f"The data set {repository!r} is gated: accept its terms on the hub. {access.advice}",
            code="dataset_gated",
            param=param,
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = "revision of it" if isinstance(error, RevisionNotFoundError) else "data set"
        raise NotFoundError(
            f"The hub has no such {what}: {repository!r}. Check its spelling. {access.advice}",
            code="dataset_not_found",
            param=param,
        ) from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, httpx2.HTTPError, HfHubHTTPError, OSError) as error:
        raise access.refusal(error, param) or _unreachable(repository, error, param) from None


def _unreachable(repository: str, error: Exception, param: str) -> ServiceUnavailableError:
    return ServiceUnavailableError(
        f"The hub did not answer for the data set {repository!r} ({type(error).__name__}). Try again, or, on a "
        "machine that does not reach it, download the data set elsewhere and upload its file.",
        code="hub_unreachable",
        param=param,
    )
