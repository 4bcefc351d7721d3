"""What every model shares with the Hub and with training: loading, initial weights, freezing."""

import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME

from ..atomic_saving import atomic_folder, read_between_saves
from ..distributed import process_index
from ..layers.backbone import reset_timm_module
from ..layers.initial_weights import starting
from ..wording import some_of
from .adapters import TRANSFORMERS_NAMES, check_adapter_weights, load_adapter_file, missing_weights
from .configuration import without_auxiliary_loss
from .loading_checks import (
    check_config_class,
    check_finite,
    check_headers,
    check_not_only_pickled,
    check_safe_options,
    read_headers,
    unreadable,
)
from .parameter_kinds import group_parameters
from .saved_names import find_renaming


class DetectionPreTrainedModel(PreTrainedModel):
    """Base of model and detector: loading, initialisation, backbone, number of queries."""

    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # Of frozen batch norm; of training queries, which a training's own checkpoints hold.
    _keys_to_ignore_on_load_unexpected = [r"num_batches_tracked", r"query_groups|denoising"]
    # For adapters; PEFT reads it too, and applies the first that fits.
    _checkpoint_conversion_mapping = TRANSFORMERS_NAMES
    # Without it the Trainer would not average the loss over accumulated batches.
    accepts_loss_kwargs = False

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        check_config_class(config, self.config_class)
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load config and safetensors from a folder or the Hub; as in transformers otherwise.

        Raises:
            OSError: if there are no such files.
            ValueError: if a pickle would be loaded, or the files are damaged, name files outside
                their folder, don't fit the configuration, or hold NaN.
        """
        try:
            return cls._load_checked(pretrained_model_name_or_path, *args, **kwargs)
        except (OSError, ValueError) as error:
            error.ends_pipeline = True  # see `inference.registration`
            raise

    @classmethod
    def _load_checked(cls, name: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        check_safe_options(kwargs)
        kwargs["use_safetensors"] = True
        read = partial(super().from_pretrained, name, *args, **kwargs)
        has_config = isinstance(kwargs.get("config"), PreTrainedConfig)
        known = CONFIG_NAME if has_config else None
        try:
            folder = None if name is None else Path(name, kwargs.get("subfolder") or "")
            loaded = read_between_saves(folder, read, known) if folder else read()
        except SafetensorError as error:
            raise unreadable(name, error) from error
        except OSError as error:
            check_not_only_pickled(name, kwargs, error)
            raise
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        # Loading makes new tensors, without what the constructor did to the old ones.
        model.detection_transformer.backbone.restore_buffers()
        model.detection_transformer.backbone.freeze(num_stages=1)
        check_finite(model)
        return loaded

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write config and safetensors, completely or not at all; arguments as in transformers.

        Older weights in the folder are replaced, whether they are one file or shards.

        Raises:
            OSError: if the files can't be written; existing files are unchanged.
        """
        if kwargs.get("distributed_checkpoint") or not is_main_process or process_index() != 0:
            # Processes that write parts, or nothing.
            super().save_pretrained(
                save_directory, is_main_process, state_dict, push_to_hub, **kwargs
            )
            return
        given = None if state_dict is None else dict(state_dict)  # transformers empties it
        with atomic_folder(save_directory) as folder:
            super().save_pretrained(folder, is_main_process, given, **kwargs)
        if push_to_hub:
            with TemporaryDirectory() as temporary, without_auxiliary_loss(self.config):
                folder = Path(temporary, Path(save_directory).name)
                super().save_pretrained(folder, is_main_process, state_dict, True, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> str:
        """As in transformers, but with `auxiliary_loss` off in the published configuration."""
        with without_auxiliary_loss(self.config):
            return super().push_to_hub(*args, **kwargs)

    def load_adapter(
        self,
        peft_model_id: str | None = None,
        adapter_name: str | None = None,
        peft_config: Any = None,
        adapter_state_dict: dict[str, Tensor] | None = None,
        adapter_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in transformers; the adapter may have been trained on transformers' own model.

        Raises:
            OSError: if the adapter isn't safetensors.
            ValueError: if it doesn't fit the model.
        """
        offline = bool(kwargs.get("local_files_only"))
        if adapter_state_dict is None and peft_model_id is not None:
            download = {"local_files_only": offline, **(adapter_kwargs or {})}
            names = self._checkpoint_conversion_mapping
            config, adapter_state_dict = load_adapter_file(peft_model_id, names, **download)
            peft_config, peft_model_id = peft_config or config, None
        before = list(self.parameters())
        info = super().load_adapter(
            peft_model_id, adapter_name, peft_config, adapter_state_dict, **kwargs
        )
        missing = missing_weights(self, info.missing_keys, before)
        if lost := missing | info.unexpected_keys:
            raise ValueError(f"The adapter doesn't fit the model: {some_of(sorted(lost))}.")
        return info

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> Any:
        check_adapter_weights(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """Nothing is looked up in a table, but PEFT asks, and looks for its weights elsewhere."""
        return nn.Identity()

    @property
    def detection_transformer(self) -> PreTrainedModel:
        """The model without any heads, which this one is or holds."""
        model = self
        while model.base_model is not model:
            model = model.base_model
        return model

    @staticmethod
    def _load_pretrained_model(
        model: PreTrainedModel,
        state_dict: dict | None,
        checkpoint_files: list | None,
        load_config: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if checkpoint_files:
            # An index may name any file, and transformers unpickles by the name's ending.
            headers = read_headers(checkpoint_files, load_config.pretrained_model_name_or_path)
            if rename := find_renaming(headers, model):
                tensors = [load_file(file) for file in checkpoint_files]
                state_dict = rename({k: v for part in tensors for k, v in part.items()})
                headers, checkpoint_files = rename(headers), None
            is_quantized = load_config.hf_quantizer is not None
            check_headers(model, headers, load_config.ignore_mismatched_sizes, is_quantized)
        return PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, *args, **kwargs
        )

    def mark_tied_weights_as_initialized(self, loading_info: Any) -> None:
        """As in transformers, but weights that are missing under all of their names are missing.

        Of one module in several places, transformers would take the last name for loaded too.
        """
        missing = set(loading_info.missing_keys)
        super().mark_tied_weights_as_initialized(loading_info)
        for name, saved in self.all_tied_weights_keys.items():
            if {name, saved} <= missing:
                self.get_parameter(saved)._is_hf_initialized = False
                loading_info.missing_keys.add(saved)

    def _init_weights(self, module: nn.Module) -> None:
        # Each module with weights, torch's or ours, draws its own; transformers doesn't come here
        # for modules that only contain others. Not every timm module spares loaded weights.
        weights = list(module.parameters(recurse=False))
        if weights and all(getattr(weight, "_is_hf_initialized", False) for weight in weights):
            return
        if hasattr(module, "draw_weights"):
            module.draw_weights(module)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()
        else:
            reset_timm_module(module)

    def freeze_backbone(self) -> None:
        """Train nothing of the backbone."""
        self.detection_transformer.backbone.freeze()

    def unfreeze_backbone(self, num_frozen_stages: int = 1) -> None:
        """Train the backbone but for its stem and first stages (paper: 1); 0 trains all of it.

        Batch norm keeps its statistics in any case.
        """
        self.detection_transformer.backbone.freeze(num_frozen_stages)

    def parameter_groups(
        self, lr: float, slow_factor: float = 0.1, class_factor: float = 1.0
    ) -> list[dict[str, Any]]:
        """Groups for an optimiser with the papers' learning rates; frozen parameters left out.

        The backbone learns slower, and so do the linear layers that place reference and sampling
        points, where there are any.

        Args:
            lr: learning rate of everything else (DETR and Conditional DETR 1e-4, Deformable 2e-4).
            slow_factor: what it is multiplied by for the slower ones.
            class_factor: what it is multiplied by for class heads, which may be new.
        """
        slow_lr = lr * slow_factor
        lrs = {"other": lr, "backbone": slow_lr, "points": slow_lr, "classes": lr * class_factor}
        return group_parameters(self, lrs)

    def add_query_groups(self, num_groups: int) -> None:
        """Add groups of queries that exist in training alone (Group DETR; arXiv 2207.13085).

        Each is as large as the detector's own and matched by itself; the loss is the mean over all.
        An object teaches more queries in a step, which takes longer. They are not saved.

        Args:
            num_groups: how many, besides the detector's own; 0 removes them.

        Raises:
            ValueError: if `num_groups` is negative, or the queries aren't learned.
        """
        if num_groups < 0:
            raise ValueError(f"num_groups is {num_groups}; give how many to add, or 0.")
        transformer = self.detection_transformer
        transformer.query_groups = transformer.make_query_groups(num_groups) if num_groups else None

    def add_denoising(
        self,
        num_denoising_queries: int,
        label_noise_ratio: float | None = None,
        box_noise_scale: float | None = None,
    ) -> None:
        """Add training queries that restore noised objects (DN-DETR, arXiv 2203.01305; DINO).

        They are not saved, unless they are a part of the model's paper. A step takes longer.

        Args:
            num_denoising_queries: pairs of queries per image, such as 100; 0 removes them.
            label_noise_ratio, box_noise_scale: as in `Denoising`; default: the configuration's,
                or those of `Denoising` where it has none.

        Raises:
            ValueError: if a value is out of range, or noise is given without queries.
        """
        if num_denoising_queries == 0 and (label_noise_ratio, box_noise_scale) != (None, None):
            raise ValueError(
                f"label_noise_ratio is {label_noise_ratio} and box_noise_scale {box_noise_scale}, "
                "but 0 denoising queries have no noise; leave both out, or give how many queries "
                "to add, such as 100."
            )
        transformer, noise = self.detection_transformer, (label_noise_ratio, box_noise_scale)
        denoising = transformer.make_denoising(num_denoising_queries, *noise)
        if denoising is not None:
            denoising.to(device=self.device, dtype=self.dtype).train(transformer.training)
        transformer.denoising = denoising

    @torch.no_grad()
    def resize_queries(self, num_queries: int) -> None:
        """Change the number of object queries, also of proposals; learned ones stay, in order.

        Additional queries are drawn at random, because copies of learned ones would learn the same
        objects; so are groups of training queries. Fewer queries keep the first ones.

        Raises:
            ValueError: if `num_queries` isn't positive.
        """
        if num_queries < 1:
            raise ValueError(f"num_queries is {num_queries}; a detector needs at least 1.")
        self.config.queries_per_image = num_queries
        transformer = self.detection_transformer
        if (old := getattr(transformer, transformer.query_table, None)) is None:
            return  # proposals
        new = nn.Embedding(num_queries, old.embedding_dim).to(old.weight)
        if hasattr(old, "draw_weights"):
            starting(new, old.draw_weights)
        kept = min(num_queries, old.num_embeddings)
        new.weight[:kept] = old.weight[:kept]
        new.weight.requires_grad_(old.weight.requires_grad)
        setattr(transformer, transformer.query_table, new)
        if groups := transformer.query_groups:
            self.add_query_groups(groups.num_groups)
