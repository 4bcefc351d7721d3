"""What every model shares with the Hub and with training: loading, initial weights, freezing."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .backbone import reset_timm_module


class DetectionPreTrainedModel(PreTrainedModel):
    """What the bare model and the detector share: loading, initialisation, backbone, queries."""

    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # Frozen batch norm has no use for them, but files hold them.
    _keys_to_ignore_on_load_unexpected = [r"num_batches_tracked"]
    # Without it the Trainer would not average the loss over accumulated batches.
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load config and safetensors from a folder or the Hub; as in transformers otherwise.

        Raises:
            ValueError: if asked to load a pickle, or if the files hold one.
        """
        if kwargs.get("use_safetensors") is False:
            raise ValueError(
                "use_safetensors=False would unpickle weights, which can run code; hf_detr loads "
                "safetensors only. transformers can convert: load there, save_pretrained."
            )
        kwargs["use_safetensors"] = True
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        # Loading makes new tensors, without what the constructor did to the old ones.
        model.detection_transformer.backbone.restore_buffers()
        model.detection_transformer.backbone.freeze(num_stages=1)
        return loaded

    @property
    def detection_transformer(self) -> PreTrainedModel:
        """The model without any heads, which this one is or holds."""
        model = self
        while model.base_model is not model:
            model = model.base_model
        return model

    @staticmethod
    def _load_pretrained_model(
        model: PreTrainedModel, state_dict: dict | None, checkpoint_files: list | None, *args, **kw
    ) -> Any:
        # An index of shards may name any file, and transformers unpickles by the name's ending.
        for file in checkpoint_files or []:
            if not str(file).endswith(".safetensors"):
                raise ValueError(
                    f"The checkpoint names {str(file)!r} as one of its files; only .safetensors "
                    "are loaded, since others can run code."
                )
        return PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, *args, **kw
        )

    def _init_weights(self, module: nn.Module) -> None:
        # Each module with weights, torch's or ours, draws its own; transformers doesn't come here
        # for modules that only contain others. Not every timm module spares loaded weights.
        weights = list(module.parameters(recurse=False))
        if weights and all(getattr(weight, "_is_hf_initialized", False) for weight in weights):
            return
        if hasattr(module, "reset_parameters"):
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

    def parameter_groups(self, lr: float, slow_factor: float = 0.1) -> list[dict[str, Any]]:
        """Groups for an optimiser with the papers' learning rates; frozen parameters left out.

        The backbone learns slower, and so do the linear layers that place reference and sampling
        points, where there are any.

        Args:
            lr: learning rate of everything else (DETR and Conditional DETR 1e-4, Deformable 2e-4).
            slow_factor: what it is multiplied by for the slower ones.
        """
        groups: dict[str, list[nn.Parameter]] = {"other": [], "backbone": [], "points": []}
        for name, parameter in self.named_parameters():
            kind = "other"
            if "backbone." in name:
                kind = "backbone"
            elif "sampling_offsets" in name or "reference_points" in name:
                kind = "points"
            if parameter.requires_grad:
                groups[kind].append(parameter)
        return [
            {"name": kind, "params": parameters, "lr": lr if kind == "other" else lr * slow_factor}
            for kind, parameters in groups.items()
            if parameters
        ]

    @torch.no_grad()
    def resize_queries(self, num_queries: int) -> None:
        """Change the number of object queries; learned ones stay, in order.

        Additional queries are drawn anew: queries must differ to learn different objects, so
        copies of learned ones would not do. Fewer queries keep the first ones.

        Raises:
            ValueError: if `num_queries` isn't positive, or the queries aren't learned.
        """
        if num_queries < 1:
            raise ValueError(f"num_queries is {num_queries}; a detector needs at least 1.")
        old = getattr(self.detection_transformer, "query_position_embeddings", None)
        if old is None:
            raise ValueError(
                "This model's queries are proposals of its encoder, not learned; set "
                "model.config.two_stage_num_proposals instead."
            )
        new = nn.Embedding(
            num_queries, old.embedding_dim, device=old.weight.device, dtype=old.weight.dtype
        )
        kept = min(num_queries, old.num_embeddings)
        new.weight[:kept] = old.weight[:kept]
        new.weight.requires_grad_(old.weight.requires_grad)
        self.detection_transformer.query_position_embeddings = new
        self.config.num_queries = num_queries
