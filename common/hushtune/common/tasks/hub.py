"""Names of Hugging Face's hub: asked for once and briefly, so that no network is said at once.

The libraries themselves try an unreachable hub for most of a minute, file by file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hushtune.common.errors import AssetError

Kind = Literal["model", "dataset"]

_SECONDS = 5.0
_INSTEAD = {
    "model": "set model.name to a folder with config.json, *.safetensors and the tokenizer, or to "
    "'demo', which is fetched as a package",
    "dataset": "save the data set where there is a network (save_to_disk) and set data.dataset to "
    "the folder, or use data.file",
}


def find_on_hub(name: str, kind: Kind) -> Path | None:
    """None where the hub has a repository of that name; else its copy in the hub's cache here.

    Raises AssetError where the hub cannot be reached, or is not to be asked (HF_HUB_OFFLINE), and
    there is no such copy, and where the hub has no such repository.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=_SECONDS)
        return None
    except GatedRepoError:
        return None  # the loader says whose leave it takes
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise AssetError(
            f"there is no such {kind}, neither a folder here nor on the hub",
            given=name,
            remedy=f"check the name; or {_INSTEAD[kind]}",
        ) from error
    except HfHubHTTPError:
        return None  # it answered: whoever loads it says what is wrong
    except Exception as error:  # of whatever library carries the request
        try:
            return Path(snapshot_download(name, repo_type=kind, local_files_only=True))
        except LocalEntryNotFoundError as absent:
            # What a loader took from a repository is all that it needs, if not all that there is.
            kept = getattr(absent, "snapshot_path", None)
            if kept is not None:
                return Path(kept)
            raise AssetError(
                f"the {kind} {name} is not here, and the hub cannot be reached",
                given=str(error).split("\n")[0][:160] or type(error).__name__,
                expected="a folder, a packaged name, or a network",
                remedy=_INSTEAD[kind],
            ) from error
