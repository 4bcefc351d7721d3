"""From pixels to feature maps: any timm network that lists its features."""

import warnings
from functools import partial

import torch
from timm import __version__ as version
from timm import create_model
from timm.layers import freeze_batch_norm_2d
from timm.layers.norm_act import FrozenBatchNorm2d, FrozenBatchNormAct2d
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TimmBackboneConfig
from transformers import initialization as init

from .folded_backbone import FoldedBackbone
from .folded_training import FoldedTraining
from .short_cuts import is_readable


class Backbone(nn.Module):
    """timm feature extractor with frozen batch norm, its stem and first stage frozen.

    Batch statistics of a few large images are poor, so the ImageNet statistics stay (DETR,
    Section 4). `freeze_batch_norm_2d` keeps activations that timm fuses into a norm. In inference
    on CPU the norms are folded into copies of the convolutions; the weights don't change.

    Args:
        config: timm name, feature levels (`out_indices`), `output_stride` (16 is DC5) and
            whether to start from timm's pretrained weights. `output_norm` makes a Swin Transformer
            that of its authors' detectors (arXiv 2103.14030): a layer norm normalises the channels
            of each map, and windows shift as in `PaddedSwinBlock`.

    Raises:
        ValueError: if timm can't build this backbone, or its weights are unavailable.
    """

    def __init__(self, config: TimmBackboneConfig) -> None:
        super().__init__()
        self.config = config
        # On the meta device a checkpoint is about to be loaded over the weights. A module shows
        # whether it is, because accelerate's init_empty_weights() moves only parameters there.
        pretrained = config.use_pretrained_backbone and not nn.LayerNorm(1).weight.is_meta
        model = _freeze_batch_norm(_make_timm_model(config, pretrained))
        # Names on disk: backbone.conv_encoder.model.<timm's names>
        self.conv_encoder = nn.ModuleDict({"model": model})
        self.num_channels: list[int] = model.feature_info.channels()
        self.reductions: list[int] = model.feature_info.reduction()
        self.channels_last_output = getattr(model, "output_fmt", "NCHW") == "NHWC"
        if getattr(config, "output_norm", False):
            self.conv_encoder["norms"] = _make_norms(model)
            _shift_as_in_detectors(model)
        self.folded = FoldedBackbone((OneStepBatchNorm2d, OneStepBatchNormAct2d))
        self.folded_training = FoldedTraining(self.folded.norm_types)
        self.freeze(num_stages=1)
        if not next(model.parameters()).is_meta:
            # timm has just initialised or loaded these; the model's own init must not redraw them.
            for module in self.modules():
                module._is_hf_initialized = True

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Feature maps (B, C_l, h_l, w_l), finest first, of `pixel_values` (B, 3, H, W)."""
        network = self.conv_encoder["model"]
        if is_readable(pixel_values):
            folded = self.folded_training if torch.is_grad_enabled() else self.folded
            network = folded.network_for(network, pixel_values)
        features = network(pixel_values)
        if self.channels_last_output:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        if "norms" in self.conv_encoder:
            norms = self.conv_encoder["norms"].values()
            features = [
                norm(feature.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                for norm, feature in zip(norms, features, strict=True)
            ]
        return features

    def train(self, mode: bool = True) -> "Backbone":
        """As in torch; also frees the folded copy."""
        self.folded.drop()
        if not mode:  # transformers' Trainer calls train() before every step
            self.folded_training.drop()
        return super().train(mode)

    def freeze(self, num_stages: int | None = None) -> None:
        """Let only the stages after the first `num_stages` train; None freezes everything.

        Stages are counted by depth: stage 1 ends where the stride first reaches 4, after the stem.
        0 lets everything train. Batch norm stays frozen in any case.
        """
        model = self.conv_encoder["model"]
        self.conv_encoder.requires_grad_(num_stages is not None)
        if num_stages:
            stages = [info["module"] for info in model.feature_info.info if info["reduction"] >= 4]
            for module in _modules_up_to(model, stages[:num_stages][-1]):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Recompute tables that are in no file (Swin, MaxViT, EVA) and lost on the meta device."""
        tables = dict(self.named_buffers())
        for name in self.state_dict():
            tables.pop(name, None)
        if tables:
            fresh = dict(_make_timm_model(self.config, pretrained=False).named_buffers())
            for name, table in tables.items():
                values = fresh[name.removeprefix("conv_encoder.model.")]
                if table.is_meta:
                    parent, _, buffer = name.rpartition(".")
                    setattr(self.get_submodule(parent), buffer, values)
                else:
                    table.copy_(values)


class OneStepBatchNorm2d(FrozenBatchNorm2d):
    """Frozen batch norm as one operator; timm's reads the whole map to scale and again to shift."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a feature map (B, C, h, w)."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class OneStepBatchNormAct2d(FrozenBatchNormAct2d):
    """The same with the activation that timm fuses into some norms."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a feature map (B, C, h, w), and activate it."""
        return self.act(self.drop(OneStepBatchNorm2d.forward(self, x)))


class PaddedSwinBlock(SwinTransformerBlock):
    """Block of a Swin Transformer that pads a map to whole windows before it shifts it.

    timm shifts first, which makes other windows of maps whose sides aren't multiples of a window's.
    """

    def _attn(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        pad_height, pad_width = (
            (window - side % window) % window
            for side, window in zip((height, width), self.window_size, strict=True)
        )
        padded = F.pad(x, (0, 0, 0, pad_width, 0, pad_height))  # (B, H, W, C)
        return super()._attn(padded)[:, :height, :width]


def _shift_as_in_detectors(model: nn.Module) -> None:
    for module in model.modules():
        if type(module) is SwinTransformerBlock:
            if not hasattr(module, "target_shift_size"):
                raise ValueError(
                    f"output_norm of a Swin Transformer needs timm 1.0.9 or later; got {version}."
                )
            module.__class__ = PaddedSwinBlock
            # Also in the last stage, whose map is a single window in classification.
            module.shift_size = module.target_shift_size


def _make_norms(model: nn.Module) -> nn.ModuleDict:
    """Make a norm for each map, named by its number in the network."""
    info = model.feature_info
    numbers = [index % len(info.info) for index in info.out_indices]
    norms = zip(numbers, info.channels(), strict=True)
    return nn.ModuleDict({str(number): nn.LayerNorm(channels) for number, channels in norms})


def _freeze_batch_norm(model: nn.Module) -> nn.Module:
    device = next(model.parameters()).device
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.to(device)  # parameters become buffers, so both must be on one device
    with device:
        model = freeze_batch_norm_2d(model)
    faster = {FrozenBatchNorm2d: OneStepBatchNorm2d, FrozenBatchNormAct2d: OneStepBatchNormAct2d}
    for module in model.modules():
        if type(module) in faster:
            module.__class__ = faster[type(module)]  # same weights, same names, other arithmetic
    return model


def reset_timm_module(module: nn.Module) -> None:
    """Initialise weights that a checkpoint lacks, of one module without its children."""
    if isinstance(module, (FrozenBatchNorm2d, FrozenBatchNormAct2d)):
        init.ones_(module.weight)
        init.zeros_(module.bias)
        init.zeros_(module.running_mean)
        init.ones_(module.running_var)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    else:
        for parameter in module.parameters(recurse=False):
            init.normal_(parameter, std=0.02)


def _make_timm_model(config: TimmBackboneConfig, pretrained: bool) -> nn.Module:
    options = {} if config.output_stride is None else {"output_stride": config.output_stride}
    make = partial(
        create_model,
        config.backbone,
        pretrained=pretrained,
        features_only=True,
        in_chans=config.num_channels,
        out_indices=config.out_indices,
    )
    try:
        # Some timm models compute their sizes with tensors, which fails on the meta device.
        with torch.device("cpu"):
            model = make(**options)
            any_size = _any_size_options(model)
            if any_size:
                model = make(**options, **any_size)
    except Exception as error:
        raise ValueError(
            f"timm can't build the backbone {config.backbone!r} with pretrained={pretrained}, "
            f"out_indices={config.out_indices}, output_stride={config.output_stride}: "
            f"{type(error).__name__}: {str(error).rstrip('.')}. timm.list_models() has the names; "
            "pretrained weights need the network or a filled cache, and HF_HUB_OFFLINE not set."
        ) from error
    _drop_unused_blocks(model)
    for module in model.modules():
        if hasattr(module, "dynamic_img_pad"):
            module.dynamic_img_pad = True  # images whose sides aren't multiples of the patch size
    is_meta = next(model.parameters()).is_meta  # so with accelerate's init_empty_weights()
    return model if is_meta else model.to(torch.get_default_device())


def _any_size_options(model: nn.Module) -> dict[str, bool]:
    """timm's options that let a transformer take images of any size; CNNs need none."""
    modules = list(model.modules())
    if any(hasattr(module, "dynamic_img_size") for module in modules):  # ViT and similar
        return {"dynamic_img_size": True}
    if any(hasattr(module, "dynamic_mask") for module in modules):  # Swin and similar
        return {"strict_img_size": False}
    return {}


def _drop_unused_blocks(model: nn.Module) -> None:
    """Drop blocks behind the last map in use, which timm keeps in EfficientNets and MobileNets."""
    kind, _, number = model.feature_info.module_name()[-1].partition(".")
    if kind == "blocks" and isinstance(getattr(model, "blocks", None), nn.Sequential):
        model.blocks = model.blocks[: int(number) + 1]


def _modules_up_to(model: nn.Module, stage: str) -> list[nn.Module]:
    """All modules from the input to the end of the named one, in timm's order, that of depth."""
    # timm flattens the outer containers: `stages.0` may be called `stages_0` in the model.
    names = [name.removeprefix("model.").replace(".", "_") for name, _ in model.named_modules()]
    start = stage.replace(".", "_") + "_"
    inside = [index for index, name in enumerate(names) if f"{name}_".startswith(start)]
    if not inside:
        warnings.warn(
            f"The backbone has no module {stage!r}, which timm lists as a feature, so its stem and "
            "first stage are unknown and all of it trains.",
            stacklevel=2,
        )
        return []
    return list(model.modules())[: inside[-1] + 1]
