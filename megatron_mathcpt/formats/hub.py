"""The Hugging Face hub: what fails there in one line, model folders by id, and their upload.

An id is OWNER/NAME[@REVISION] that no folder has as path. The token (HF_TOKEN, or a login) is in no message.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from megatron_mathcpt.errors import ConfigError, DataError, one_line
from megatron_mathcpt.log import get_logger

_ID = re.compile(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?")
_SNAPSHOT = re.compile(r".*/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})")  # in the hub's cache
_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]  # of a model, that are downloaded
_FOLDERS = ["[!a]*/*", "a[!d]*/*", "ad[!d]*/*"]  # all but additional_chat_templates
logger = get_logger(__name__)


class Unreachable(DataError):
    """The network, or the server, cannot be reached."""


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn what the hub's library raises into one `DataError` that begins with `what`."""
    from huggingface_hub import errors, get_token
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # it would print each of its retries
    # Base error of the HTTP library, which differs between major versions of huggingface_hub.
    transport = cast(type[Exception], errors.HfHubHTTPError.__bases__[0])
    refused = (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalTokenNotFoundError)
    try:
        yield
    except (transport, OSError, RuntimeError, errors.HFValidationError) as error:  # also of transfers
        said = one_line(str(error)).replace(get_token() or "\0", "***")[:200]
        if isinstance(error, errors.GatedRepoError):
            why = "gated; accept its terms on its page, then `hf auth login`"
            raise DataError(f"{what}: {why}") from error
        if isinstance(error, refused):
            raise DataError(f"{what}: the hub refuses ({said})") from error
        why = f"the hub cannot be reached ({said}); run the command again where there is network"
        raise Unreachable(f"{what}: {why}") from error


def is_hub_id(model: str | Path) -> bool:
    return _ID.fullmatch(str(model)) is not None and not Path(model).exists()


def local_folder(model: str | Path, files: Sequence[str] = _FILES) -> Path:
    """The folder of `model`; of a hub id these `files` are downloaded, or found in the hub's cache."""
    if not is_hub_id(model):
        return Path(model)
    from huggingface_hub import snapshot_download

    name, _, revision = str(model).partition("@")
    with hub_errors(f"{model}: no such folder here; as a hub id"):
        found = snapshot_download(
            name, revision=revision or None, allow_patterns=[*files], ignore_patterns=_FOLDERS
        )
    logger.info("%s: commit %s of the Hugging Face hub", name, Path(found).name)
    return Path(found)


def pinned_id(folder: Path) -> str | None:
    """OWNER/NAME@COMMIT of a folder in the hub's cache; None of any other."""
    found = _SNAPSHOT.fullmatch(folder.as_posix())
    return found and f"{found[1]}/{found[2]}@{found[3]}"


def check_login(repository: str) -> None:
    """Raise an error now if `repository` is no OWNER/NAME, or nobody is logged in to upload to it."""
    from huggingface_hub import HfApi

    if not _ID.fullmatch(repository) or "@" in repository:
        raise ConfigError(f"--push {repository}: give OWNER/NAME on the Hugging Face hub")
    with hub_errors(f"--push {repository}"):
        HfApi().whoami()


def upload(folder: Path, files: Sequence[str], repository: str) -> str:
    """Upload `files` of a folder as one commit, and return its address; a new repository is private."""
    from huggingface_hub import HfApi

    hub = HfApi()
    with hub_errors(f"--push {repository}"):
        hub.create_repo(repository, private=True, exist_ok=True)
        done = hub.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=[*files])
    return str(done.commit_url)
