"""Notices models of transformers beside our image processors, whose targets they don't expect."""

import sys
import warnings

MODELS = ("ForObjectDetection", "ForSegmentation", "Model")


def warn_of_mixed_models(processor: str, families: tuple[str, ...]) -> None:
    """Warn if a module has imported a model of transformers that uses the processor.

    Args:
        processor: name of the image processor's class.
        families: how names of its models begin, such as "Detr".
    """
    names = [family + suffix for family in families for suffix in MODELS]
    for module_name, module in list(sys.modules.items()):
        found = [getattr(module, "__dict__", {}).get(name) for name in names]
        theirs = [one for one in found if _is_of_transformers(getattr(one, "__module__", None))]
        if theirs and not _is_of_transformers(module_name):
            name = theirs[0].__name__
            warnings.warn(
                f"{module_name} imports {name} from transformers, but AutoImageProcessor gives "
                f"hf_detr's {processor}: its boxes are relative to each image, those "
                "that transformers trains on are relative to the padded batch. Use "
                f"hf_detr.{name} (or call hf_detr.patch_transformers() before the import), or set "
                "HF_DETR_REGISTER=0 to use transformers for both.",
                stacklevel=3,
            )
            return


def _is_of_transformers(module: str | None) -> bool:
    return module is not None and module.split(".")[0] == "transformers"
