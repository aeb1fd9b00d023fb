"""The path of a checkpoint from its name: a directory, a GGUF file, or a repository on the hub."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

from jaxlin.checkpoint.gguf_shards import shard_names
from jaxlin.common.errors import CheckpointError
from jaxlin.common.files import path_exists
from jaxlin.common.printable import quoted

DOWNLOADED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "tekken.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "*.safetensors",
)
"""Patterns of the files that are downloaded from a repository."""

NOT_DOWNLOADED = ("*/*", "consolidated*", "adapter_model*")
"""Patterns of files that are not downloaded: they have the weights again in another layout, or only an adapter."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)[/:](?P<file>[\w.-]+\.gguf)")


def _check_revision(revision: Any) -> None:
    if not isinstance(revision, str | None):
        raise CheckpointError(f"Checkpoint: expected the name of a branch, tag or commit; found {quoted(revision)}.")


def _check_name(name: Any) -> None:
    if not isinstance(name, str | os.PathLike) or not isinstance(os.fspath(name), str):
        raise CheckpointError(f"Checkpoint: expected a hub id, a directory or a .gguf file; found {quoted(name)}.")


Name = Annotated[str | os.PathLike[str], _check_name]
"""A hub id, a directory or a ``.gguf`` file."""

Revision = Annotated[str | None, _check_revision]
"""A branch, tag or commit of a hub id; by default its main branch."""


def locate(name: str | os.PathLike[str], revision: str | None) -> Path:
    """The path of the directory or GGUF file called `name`, downloaded if it is on the hub and not in the cache.

    A hub id is ``org/name``. One file of a repository is ``org/name/file.gguf`` or ``org/name:file.gguf``; if it is a
    shard of a split checkpoint, all shards are downloaded. The environment variables of huggingface_hub apply
    (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT).

    Raises:
        CheckpointError: nothing has this name, or it cannot be downloaded.
    """
    _check_name(name)
    _check_revision(revision)
    text = os.fspath(name)
    try:
        path = Path(text).expanduser()
        is_local = text != "" and (path.is_dir() or path.is_file())
    # There is no such home directory, or the file system allows no such name.
    except (RuntimeError, OSError):
        path, is_local = Path(text), False
    if is_local:
        if path.is_file() and path.suffix != ".gguf":
            raise CheckpointError(f"{path}: expected a directory or a .gguf file; found another kind of file.")
        return path
    repository, file = text, None
    if match := _HUB_FILE.fullmatch(text):
        repository, file = match["repository"], match["file"]
    looks_local = text.startswith((".", "~", os.sep)) or (file is None and text.endswith(".gguf"))
    if looks_local or not _HUB_ID.fullmatch(repository):
        raise _no_such(text)
    if file is None:
        return download(repository, None, revision)
    paths = {shard: download(repository, shard, revision) for shard in shard_names(file)}
    return paths[file]


def config_file(name: str | os.PathLike[str], revision: str | None) -> Path:
    """The config.json or the ``.gguf`` file of the checkpoint called `name`; nothing else is downloaded.

    Raises:
        CheckpointError: nothing has this name, or it cannot be downloaded.
    """
    _check_name(name)
    text = os.fspath(name)
    if _HUB_ID.fullmatch(text) and not text.endswith(".gguf") and not path_exists(Path(text)):
        return download(text, "config.json", revision)
    path = locate(name, revision)
    return path if path.is_file() else path / "config.json"


def commit_of(path: Path) -> str | None:
    """The commit that a folder or a file in the cache of the hub belongs to; None for any other path."""
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name):
            return folder.name
    return None


def download(repository: str, file: str | None, revision: str | None) -> Path:
    """Download one `file` of a repository, or all `DOWNLOADED` files if it is None; the path of the file or folder.

    Raises:
        CheckpointError: it cannot be downloaded.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        if file is not None:
            return Path(hub.hf_hub_download(repository, file, revision=revision))
        return Path(
            hub.snapshot_download(
                repository, revision=revision, allow_patterns=list(DOWNLOADED), ignore_patterns=list(NOT_DOWNLOADED)
            )
        )
    except errors.GatedRepoError as error:
        reason = (
            "its owner requires an agreement. Accept it on the model's page, then set HF_TOKEN or run `hf auth login`"
        )
        raise CheckpointError(f"{repository}: {reason}.") from error
    except errors.RepositoryNotFoundError as error:
        reason = "the hub has no such model, or it is private and HF_TOKEN is not set; no such directory exists either"
        raise CheckpointError(f"{repository}: {reason}.") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{repository}: the hub has no revision {quoted(revision)} of it.") from error
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise _unreachable(repository) from error
        raise CheckpointError(f"{repository}: the hub has no file {quoted(file)} in it.") from error
    except errors.HFValidationError as error:
        raise _no_such(repository) from error
    except (OSError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError) as error:
        raise _unreachable(repository) from error
    # The HTTP client of huggingface_hub raises errors that depend on its version, and on whether HF_ENDPOINT is a URL.
    except Exception as error:
        raise CheckpointError(
            f"{repository}: the download failed ({type(error).__name__}: {error}). "[:300]
            + "Check HF_ENDPOINT and the network, or give a directory or a .gguf file."
        ) from error


def _unreachable(repository: str) -> CheckpointError:
    from huggingface_hub import constants

    unset = "unset HF_HUB_OFFLINE, " if constants.HF_HUB_OFFLINE else ""
    return CheckpointError(
        f"{repository}: it is not in the cache and the hub cannot be reached. Connect to the network, {unset}"
        "or give a directory or a .gguf file."
    )


def _no_such(name: str) -> CheckpointError:
    return CheckpointError(
        f"{name[:200]}: expected a directory, a .gguf file or a hub id (org/name); no such path exists."
    )
