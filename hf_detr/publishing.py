"""Publish a model and its image processor on the Hub: one commit with all that others need."""

import copy
import time
from collections.abc import Callable, Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from transformers import PreTrainedModel
from transformers.utils import logging

from .model_card import ONLY_HERE, TASKS, library_of, make_model_card, task_of
from .pretrained_model import DetectionPreTrainedModel, without_auxiliary_loss
from .whole_saving import weights_of

WAITS = (1, 2, 4, 8)  # seconds
PASSING, COMMITTED_SINCE = (408, 429, 500, 502, 503, 504), 412  # states of HTTP
UNDESCRIBED = "Whoever published this model has not described it yet."
Result = TypeVar("Result")

logger = logging.get_logger(__name__)


def push_to_hub(
    model: PreTrainedModel,
    processor: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    card: str | ModelCard | None = None,
    files: Collection[Path] = (),
) -> CommitInfo:
    """Publish a model, its image processor and a card in one commit: all of it or nothing.

    The repository is made if it doesn't exist. Weights are safetensors; older ones in the
    repository that would be left over are removed in the same commit. What the network loses is
    asked for again, a few times.

    Args:
        model: saved with `auxiliary_loss=False`, which only training needs.
        processor: the model's image processor.
        repo_id: name on the Hub, `user/name`, or `name` for one's own.
        private: make a new repository private; None is the account's default.
        token: access token; None is the one that `hf auth login` stored.
        revision: branch, made if it doesn't exist; default `main`.
        commit_message: default says what was uploaded.
        card: the model card; metadata that it lacks is added. None keeps the repository's own, or
            writes a short one.
        files: more files to publish, such as the card's pictures.

    Raises:
        TypeError: if the model isn't one of our detectors or segmenters, or is wrapped.
        ValueError: if the repository is public, but `private=True`; if the card's metadata is
            refused; or if a name in `files` would overwrite the model's.
        HfHubHTTPError: if the Hub refuses, for example for want of rights.
    """
    name = type(model).__name__
    if not isinstance(model, DetectionPreTrainedModel) or not name.endswith(tuple(TASKS)):
        raise TypeError(
            f"model is a {name}; expected a detector or segmenter of hf_detr. Where a trainer has "
            "wrapped it, unwrap it first, as accelerator.unwrap_model does."
        )
    api = HfApi(token=token)
    repo_id = _persist(lambda: api.create_repo(repo_id, private=private, exist_ok=True).repo_id)
    if private and not _persist(lambda: api.model_info(repo_id)).private:
        raise ValueError(
            f"{repo_id} exists and is public, so nothing was uploaded. Make it private in its "
            "settings, choose another name, or leave out private=True."
        )
    if revision is not None and not revision.startswith("refs/"):
        _persist(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
    if card is None:
        card = _persist(lambda: _existing_card(api, repo_id, revision))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with without_auxiliary_loss(model):
            model.save_pretrained(folder)
        processor.save_pretrained(folder)
        if card is None:
            card = make_model_card(model.config, name=repo_id, description=UNDESCRIBED)
        (folder / "README.md").write_text(str(complete_card(card, model)), encoding="utf-8")
        paths = _by_name([*sorted(folder.iterdir()), *files])
        message = commit_message or f"Upload {name} and its image processor"
        try:
            return _commit(api, repo_id, revision, paths, message)
        except HfHubHTTPError as error:
            if error.response.status_code != COMMITTED_SINCE:
                raise
            # By somebody else, or by us, and the answer was lost: then there is nothing to commit.
            return _commit(api, repo_id, revision, paths, message)


def complete_card(card: str | ModelCard, model: PreTrainedModel) -> ModelCard:
    """The card with the metadata by which the Hub and `pipeline` know what the model is.

    Args:
        card: what it says; metadata that it has stay as they are.
        model: what it describes.
    """
    name = type(model).__name__
    card = copy.deepcopy(card) if isinstance(card, ModelCard) else _parsed(card)
    if name in ONLY_HERE and "pip install hf_detr" not in card.text:
        card.text += f"\nThe model needs hf_detr (`pip install hf_detr`): {ONLY_HERE[name]}\n"
    # Without a task, `pipeline(model=...)` loads what names transformers as its library only.
    for key, value in {
        "library_name": library_of(name),
        "pipeline_tag": task_of(name),
        "tags": [],
    }.items():
        card.data[key] = card.data.get(key) or value
    wanted = ("hf_detr", model.config.model_type)
    card.data["tags"] = [*card.data["tags"], *(t for t in wanted if t not in card.data["tags"])]
    return card


def _commit(
    api: HfApi, repo_id: str, revision: str | None, paths: dict[str, Path], message: str
) -> CommitInfo:
    """One commit of all files; `HfApi.upload_folder` may make several."""
    head = _persist(lambda: api.model_info(repo_id, revision=revision))
    left_over = {file.rfilename for file in head.siblings} - set(paths)
    operations = [CommitOperationAdd(name, path) for name, path in paths.items()]
    _persist(
        lambda: api.preupload_lfs_files(repo_id, operations, revision=revision, free_memory=False)
    )
    operations += [
        CommitOperationDelete(name) for name in sorted(left_over) if weights_of(name) == "model"
    ]
    return _persist(
        lambda: api.create_commit(
            repo_id, operations, commit_message=message, revision=revision, parent_commit=head.sha
        )
    )


def _by_name(paths: list[Path]) -> dict[str, Path]:
    named = {path.name: path for path in paths}
    for path in paths:
        if named[path.name] != path:
            raise ValueError(f"{named[path.name]} would overwrite the model's {path.name}.")
    return named


def _existing_card(api: HfApi, repo_id: str, revision: str | None) -> ModelCard | None:
    files = api.model_info(repo_id, revision=revision).siblings
    if all(file.rfilename != "README.md" for file in files):
        return None
    path = api.hf_hub_download(repo_id, "README.md", revision=revision)
    return _parsed(Path(path).read_text(encoding="utf-8"))


def _parsed(text: str) -> ModelCard:
    return ModelCard(text if text.lstrip().startswith("---") else f"---\n{{}}\n---\n{text}")


def _persist(ask: Callable[[], Result]) -> Result:
    """The result of what is asked of the Hub, which may be asked again where the network fails.

    The client itself asks again for some of its requests only, and not to make a repository or a
    commit.
    """
    for wait in WAITS:
        try:
            return ask()
        except Exception as error:
            if not _is_passing(error):
                raise
            logger.warning("The Hub could not be reached (%s); again in %s s.", error, wait)
            time.sleep(wait)
    return ask()


def _is_passing(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    # What fails below HTTP is an error of httpx or httpx2, by the client's version.
    return type(error).__module__.startswith("httpx")
