"""A repository of the Hugging Face Hub: fetched by its own client into its own cache.

HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they always do; the client resumes and verifies. Pickled
weights are never fetched, Python files only where the registry trusts remote code. Called by `fetch_model`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.errors import SourceError
from workers.sources.local import require_loadable
from workers.sources.model_files import file_patterns
from workers.sources.progress import ByteProgress, Progress
from workers.sources.traffic import FETCHED

HUB_ARGUMENTS = frozenset({"revision", "token", "local_files_only"})
"""Keys of `from_pretrained_kwargs` that say what is fetched; only this source can honour them."""
REFUSED_ARGUMENTS: Mapping[str, str] = {
    "cache_dir": "set HF_HOME in the workers' environment instead",
    "force_download": "remove the repository from the cache with `hf cache rm` instead",
    "proxies": "set HTTPS_PROXY in the workers' environment instead",
    "code_revision": "use revision",
}


def fetch_snapshot(repository: str, arguments: Mapping[str, Any], progress: Progress) -> Path:
    """Folder of the repository's snapshot. `arguments` is `from_pretrained_kwargs`; other keys are not read."""
    from huggingface_hub import snapshot_download

    allowed = list(file_patterns(trust_remote_code=bool(arguments.get("trust_remote_code"))))
    progress(f"fetching weights: {repository} from the Hugging Face Hub")
    try:
        folder = snapshot_download(
            repository,
            allow_patterns=allowed,
            tqdm_class=_progress_bar(progress),
            **{key: arguments[key] for key in HUB_ARGUMENTS & arguments.keys()},
        )
    except Exception as error:  # noqa: BLE001  an edge: the client raises its own, two HTTP libraries' and OS errors
        raise SourceError(_explain(repository, arguments.get("revision"), error)) from None
    require_loadable(Path(folder), repository)
    return Path(folder)


def fetch_file(repository: str, filename: str, progress: Progress) -> Path:
    """One file of the repository, and no other."""
    from huggingface_hub import errors, hf_hub_download

    progress(f"fetching weights: {filename} of {repository} from the Hugging Face Hub")
    try:
        path = hf_hub_download(repository, filename, tqdm_class=_progress_bar(progress))
    except errors.LocalEntryNotFoundError as error:
        raise SourceError(_explain(repository, None, error)) from None
    except errors.EntryNotFoundError:
        raise SourceError(f"{repository} has no file {filename}; correct initializer.model_filename") from None
    except Exception as error:  # noqa: BLE001  an edge: the client raises its own, two HTTP libraries' and OS errors
        raise SourceError(_explain(repository, None, error)) from None
    return Path(path)


def _explain(repository: str, revision: str | None, error: Exception) -> str:
    """One line for people: what happened and what to do."""
    from huggingface_hub import errors

    match error:
        case errors.HFValidationError():
            return f"{repository!r} is neither a Hugging Face id nor an absolute folder; correct hf_model_id"
        case errors.GatedRepoError():
            return f"{repository} is gated: accept its terms on its page, then set HF_TOKEN to a token of that account"
        case errors.RepositoryNotFoundError():
            return f"the Hugging Face Hub has no {repository}, or it is private: check the id, or set HF_TOKEN"
        case errors.RevisionNotFoundError():
            return f"{repository} has no revision {revision!r}; correct from_pretrained_kwargs.revision"
        case errors.LocalEntryNotFoundError():
            return (
                f"{repository} is not completely in the cache and the Hugging Face Hub cannot be reached; connect and "
                f"unset HF_HUB_OFFLINE, or run `hf download {repository}` where there is a network and copy HF_HOME"
            )
        case _:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return f"cannot fetch {repository} from the Hugging Face Hub: {reason}"


def _progress_bar(progress: Progress) -> type[Any]:
    """A tqdm class that reports lines instead of drawing.

    The client makes several bars of bytes for one download (what the network sent, what reached the disk);
    the furthest one is reported.
    """
    from tqdm import tqdm

    counter = ByteProgress(progress, "fetching weights", total_bytes=0)
    furthest = 0

    class ProgressBar(tqdm):  # type: ignore[type-arg]  # generic in its stubs only
        monitor_interval = 0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def display(self, *_args: Any, **_kwargs: Any) -> None:
            nonlocal furthest
            if self.unit == "B" and self.total and self.n > furthest:
                FETCHED.add(int(self.n) - furthest)
                furthest = int(self.n)
                counter.total_bytes = max(counter.total_bytes, int(self.total))
                counter.reached(furthest)

    return ProgressBar
