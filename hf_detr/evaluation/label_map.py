"""Map labels of a model to those of a data set."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def label_map(model_names: Mapping[int, str], data_names: Mapping[int, str]) -> dict[int, int]:
    """Map the model's labels to those of the data set by class name.

    Models can have other labels for the same classes, such as COCO's ids with gaps. If the model's
    classes have no names (`LABEL_0`, …), its labels are those of the data set.

    Raises:
        ValueError: if the model and the data set have no class in common.
    """
    shared = _shared_labels(model_names, data_names)
    if not shared:
        raise ValueError(
            f"The model's classes {list(model_names.values())[:5]} … and the data set's "
            f"{list(data_names.values())[:5]} … have no name in common; use a data set with the "
            "model's classes, or set model.config.id2label."
        )
    unknown = [name for label, name in data_names.items() if label not in shared.values()]
    if unknown:
        warnings.warn(
            f"The model doesn't have {len(unknown)} of the data set's {len(data_names)} classes, "
            f"such as {unknown[:5]}; their AP is 0.",
            stacklevel=2,
        )
    return shared


def names_of_model(
    values: Mapping[str, Any], model_names: Mapping[int, str], data_names: Mapping[int, str]
) -> dict[str, Any]:
    """Replace the data set's class names by the model's, which differ if it has no names."""
    return {
        model_names[label]: values[data_names[data_label]]
        for label, data_label in _shared_labels(model_names, data_names).items()
        if data_names[data_label] in values
    }


def _shared_labels(model_names: Mapping[int, str], data_names: Mapping[int, str]) -> dict[int, int]:
    model_names = {int(label): name for label, name in model_names.items()}
    if all(name == f"LABEL_{label}" for label, name in model_names.items()):
        return {label: label for label in model_names if label in data_names}
    label_of_name = {name: label for label, name in data_names.items()}
    return {
        label: label_of_name[name] for label, name in model_names.items() if name in label_of_name
    }


def relabelled(found: Mapping[str, Tensor], labels: Mapping[int, int]) -> dict[str, Tensor]:
    """Map detections to the data set's labels; drops those of unknown classes."""
    new_labels = torch.tensor(
        [labels.get(label, -1) for label in found["labels"].tolist()], dtype=torch.int64
    )
    keep = new_labels >= 0
    kept = {key: value.cpu()[keep] for key, value in found.items()}
    return {**kept, "labels": new_labels[keep]}


def relabelled_segments(found: Mapping[str, Any], labels: Mapping[int, int]) -> dict[str, Any]:
    """Map segments to the data set's labels; pixels of unknown classes become void."""
    segmentation, segments = found["segmentation"].cpu().clone(), []
    for info in found["segments_info"]:
        if info["label_id"] in labels:
            segments.append({**info, "label_id": labels[info["label_id"]]})
        else:
            segmentation[segmentation == info["id"]] = 0
    return {"segmentation": segmentation, "segments_info": segments}
