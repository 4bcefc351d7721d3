"""Publishes a model, its image processor and a model card on the Hub in one commit."""

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

from ..atomic_saving import weights_of
from ..models.configuration import without_auxiliary_loss
from ..models.pretrained_model import DetectionPreTrainedModel
from .model_card import CARD_NAME, TASKS, hub_metadata, make_model_card, needs_hf_detr

WAITS = (1, 2, 4, 8)  # seconds
TEMPORARY_ERRORS, PARENT_CHANGED = (408, 429, 500, 502, 503, 504), 412  # HTTP status codes
NO_DESCRIPTION = "This model has no description yet."
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
    """Publish a model, its image processor and a model card in one commit.

    The repository is created if it doesn't exist. Weights are saved as safetensors, and older
    weights in the repository are deleted in the same commit. Requests are retried a few times if
    the network fails.

    Args:
        model: the model; published with `auxiliary_loss=False`, which only training needs.
        processor: the model's image processor.
        repo_id: repository on the Hub: `user/name`, or `name` for the token's user.
        private: whether a new repository is private. Default: the account's setting.
        token: access token. Default: the one stored by `hf auth login`.
        revision: branch, created if it doesn't exist. Default: `main`.
        commit_message: default: names the uploaded model.
        card: the model card; missing metadata are added. Default: the card in the repository, or
            a new short one.
        files: additional files, such as images in the card.

    Raises:
        TypeError: if the model isn't a detector or segmentation model of hf_detr, or is wrapped.
        ValueError: if `private=True` and the repository is public, if the card's metadata are
            invalid, or if one of `files` would overwrite a file of the model.
        HfHubHTTPError: if the Hub rejects a request, for example without write access.
    """
    name = type(model).__name__
    if not isinstance(model, DetectionPreTrainedModel) or not name.endswith(tuple(TASKS)):
        raise TypeError(
            f"model is a {name}; expected a detector or segmentation model of hf_detr. If "
            "a trainer has wrapped it, unwrap it first, for example with accelerator.unwrap_model."
        )
    api = HfApi(token=token)
    repo_id = _retry(lambda: api.create_repo(repo_id, private=private, exist_ok=True).repo_id)
    if private and not _retry(lambda: api.model_info(repo_id)).private:
        raise ValueError(
            f"{repo_id} exists and is public, but private=True; nothing was uploaded. Make the "
            "repository private in its settings, choose another name, or omit private=True."
        )
    if revision is not None and not revision.startswith("refs/"):
        _retry(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
    if card is None:
        card = _retry(lambda: _existing_card(api, repo_id, revision))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with without_auxiliary_loss(model.config):
            model.save_pretrained(folder)
        processor.save_pretrained(folder)
        if card is None:
            card = make_model_card(
                model.config,
                name=repo_id,
                description=NO_DESCRIPTION,
                only_here=needs_hf_detr(model),
            )
        (folder / CARD_NAME).write_text(str(_complete_card(card, model)), encoding="utf-8")
        paths = {path.name: path for path in sorted(folder.iterdir())}
        for file in files:
            if paths.setdefault(file.name, file) != file:
                raise ValueError(f"{file} would overwrite the model's {file.name}; rename it.")
        message = commit_message or f"Upload {name} and its image processor"
        try:
            return _commit(api, repo_id, revision, paths, message)
        except HfHubHTTPError as error:
            if error.response.status_code != PARENT_CHANGED:
                raise
            # Another commit was made, possibly by the first try if its response was lost.
            return _commit(api, repo_id, revision, paths, message)


def _complete_card(card: str | ModelCard, model: PreTrainedModel) -> ModelCard:
    """Add the metadata that the Hub and `pipeline` need; existing ones are kept."""
    only_here = needs_hf_detr(model)
    card = copy.deepcopy(card) if isinstance(card, ModelCard) else _parsed(card)
    if only_here and "pip install hf_detr" not in card.text:
        card.text += f"\nThe model needs hf_detr (`pip install hf_detr`): {only_here}\n"
    for key, value in hub_metadata(type(model).__name__, only_here).items():
        card.data[key] = card.data.get(key) or value
    tags = [*(card.data.get("tags") or []), "hf_detr", model.config.model_type]
    card.data["tags"] = list(dict.fromkeys(tags))
    return card


def _commit(
    api: HfApi, repo_id: str, revision: str | None, paths: dict[str, Path], message: str
) -> CommitInfo:
    """Make one commit; `HfApi.upload_folder` may make several."""
    head = _retry(lambda: api.model_info(repo_id, revision=revision))
    left_over = {file.rfilename for file in head.siblings} - set(paths)
    operations = [CommitOperationAdd(name, path) for name, path in paths.items()]
    _retry(
        lambda: api.preupload_lfs_files(repo_id, operations, revision=revision, free_memory=False)
    )
    operations += [
        CommitOperationDelete(name) for name in sorted(left_over) if weights_of(name) == "model"
    ]
    return _retry(
        lambda: api.create_commit(
            repo_id, operations, commit_message=message, revision=revision, parent_commit=head.sha
        )
    )


def _existing_card(api: HfApi, repo_id: str, revision: str | None) -> ModelCard | None:
    files = api.model_info(repo_id, revision=revision).siblings
    if all(file.rfilename != CARD_NAME for file in files):
        return None
    path = api.hf_hub_download(repo_id, CARD_NAME, revision=revision)
    return _parsed(Path(path).read_text(encoding="utf-8"))


def _parsed(text: str) -> ModelCard:
    return ModelCard(text if text.lstrip().startswith("---") else f"---\n{{}}\n---\n{text}")


def _retry(request: Callable[[], Result]) -> Result:
    """Return the result of a request to the Hub, which is retried if the network fails.

    The client doesn't retry creating repositories and commits.
    """
    for wait in WAITS:
        try:
            return request()
        except Exception as error:
            if not _is_temporary(error):
                raise
            logger.warning("The Hub is not reachable (%s); retrying in %s s.", error, wait)
            time.sleep(wait)
    return request()


def _is_temporary(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TEMPORARY_ERRORS
    # Connection errors are from httpx or httpx2, depending on the client's version.
    return type(error).__module__.startswith("httpx")
