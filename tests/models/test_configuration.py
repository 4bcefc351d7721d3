"""Configurations: reading of all forms on the Hub, round trips, errors for invalid values."""

import json
import warnings
from pathlib import Path

import pytest
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import TimmBackboneConfig

from hf_detr import ConditionalDetrConfig, DeformableDetrConfig, DetrConfig

FIXTURES = Path(__file__).parents[1] / "fixtures"
STORED = ["config_detr_resnet50_hub", "config_detr_v4.57", "config_detr_dc5_v5.23"]
# Keys that aren't fields, or become the nested backbone_config.
NOT_FIELDS = {
    *("architectures", "backbone", "backbone_config", "backbone_kwargs", "dtype", "torch_dtype"),
    *("transformers_version", "use_pretrained_backbone", "use_timm_backbone"),
}


def read(
    path: Path, folder: Path, config_class: type[DetrConfig] = DetrConfig
) -> tuple[DetrConfig, dict]:
    """Load a stored config.json without warnings; return the configuration and the content."""
    text = path.read_text()
    (folder / "config.json").write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return config_class.from_pretrained(folder), json.loads(text)


def check_same_values(config: DetrConfig, stored: dict) -> None:
    """Compare all values of a stored configuration with the loaded one."""
    for key, value in stored.items():
        if key in NOT_FIELDS:
            continue
        got = getattr(config, key)
        if key == "id2label":
            got = {str(index): label for index, label in got.items()}
        assert got == value, key
    nested = stored.get("backbone_config") or {}
    assert config.backbone == nested.get("backbone", stored.get("backbone"))
    assert config.backbone_config.output_stride == (16 if stored["dilation"] else None)


@pytest.mark.parametrize("name", STORED)
def test_stored_forms_are_read(name: str, tmp_path: Path) -> None:
    """The forms on the Hub, of transformers 4 and of transformers 5 are read without warning."""
    config, stored = read(FIXTURES / f"{name}.json", tmp_path)
    check_same_values(config, stored)
    assert config.num_labels == len(stored["id2label"])


def test_all_reference_configurations_are_read(reference_dir: Path, tmp_path: Path) -> None:
    """All configurations of the reference cases are read."""
    for folder, config_class in (
        ("detr*", DetrConfig),
        ("conditional-detr*", ConditionalDetrConfig),
        ("deformable-detr*", DeformableDetrConfig),
    ):
        paths = sorted(reference_dir.glob(f"transformers/{folder}/config_v*.json"))
        assert len(paths) >= 6
        for path in paths:
            check_same_values(*read(path, tmp_path, config_class))


def test_conditional_defaults_are_the_papers() -> None:
    """Conditional DETR has 300 queries, costs and weights 2 / 5 / 2 and a focal loss."""
    config = ConditionalDetrConfig()
    assert (config.num_queries, config.focal_alpha) == (300, 0.25)
    assert (config.class_cost, config.bbox_cost, config.giou_cost) == (2, 5, 2)
    assert (config.cls_loss_coefficient, config.bbox_loss_coefficient) == (2, 5)
    with pytest.raises(Exception, match="focal_alpha is 1.5; it must be from 0 to 1"):
        ConditionalDetrConfig(focal_alpha=1.5)


def test_short_form_keeps_use_pretrained_backbone(tmp_path: Path) -> None:
    """`use_pretrained_backbone` becomes part of the nested configuration."""
    config, _ = read(FIXTURES / "config_detr_resnet50_hub.json", tmp_path)
    assert config.backbone_config.use_pretrained_backbone is True
    assert config.backbone_config.model_type == "timm_backbone"
    assert config.num_hidden_layers == config.encoder_layers == 6


def changed_config() -> DetrConfig:
    """Make a configuration without default values where possible."""
    return DetrConfig(
        backbone="resnet18",
        num_queries=7,
        d_model=32,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_layers=3,
        decoder_attention_heads=4,
        decoder_ffn_dim=40,
        activation_function="gelu",
        dropout=0,
        attention_dropout=0.2,
        activation_dropout=0.3,
        position_embedding_type="learned",
        dilation=True,
        auxiliary_loss=False,
        class_cost=2,
        bbox_cost=3,
        giou_cost=4,
        bbox_loss_coefficient=6,
        giou_loss_coefficient=7,
        mask_loss_coefficient=8,
        dice_loss_coefficient=9,
        eos_coefficient=0.2,
        id2label={0: "cat", 1: "dog", 2: "bird"},
        label2id={"cat": 0, "dog": 1, "bird": 2},
    )


def test_round_trip(tmp_path: Path) -> None:
    """All values are saved and loaded."""
    config = changed_config()
    config.save_pretrained(tmp_path)
    again = DetrConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert DetrConfig.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "detr"


def test_transformers_reads_what_we_write(tmp_path: Path) -> None:
    """transformers loads the same values."""
    config = changed_config()
    config.save_pretrained(tmp_path)
    theirs = transformers.DetrConfig.from_pretrained(tmp_path)
    ours, theirs_dict = config.to_dict(), theirs.to_dict()
    for key, value in ours.items():
        if key != "transformers_version":
            assert theirs_dict[key] == value, key
    assert theirs.backbone_config.backbone == "resnet18"
    assert theirs.backbone_config.output_stride == 16


def test_we_read_what_transformers_writes(tmp_path: Path) -> None:
    """Files of the installed transformers are read."""
    theirs = transformers.DetrConfig(num_queries=11, dropout=0.0, id2label={0: "a", 1: "b"})
    theirs.save_pretrained(tmp_path)
    config, stored = read(tmp_path / "config.json", tmp_path)
    assert config.num_queries == 11 and config.num_labels == 2 and config.dropout == 0
    assert config.auxiliary_loss == stored["auxiliary_loss"]
    assert config.backbone == "resnet50"


def test_class_thresholds(tmp_path: Path) -> None:
    """They are saved and loaded, also by transformers; without them, the file doesn't have them."""
    names = {0: "cat", 1: "dog"}
    DetrConfig(id2label=names, auxiliary_loss=False).save_pretrained(tmp_path)
    assert "class_thresholds" not in (tmp_path / "config.json").read_text()
    config = DetrConfig(id2label=names, class_thresholds={"dog": 0.3}, auxiliary_loss=False)
    config.save_pretrained(tmp_path)
    assert DetrConfig.from_pretrained(tmp_path).class_thresholds == {"dog": 0.3}
    theirs = transformers.DetrConfig.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)
    assert DetrConfig.from_pretrained(tmp_path).class_thresholds == {"dog": 0.3}
    renamed = DetrConfig.from_pretrained(tmp_path, id2label={0: "dog", 1: "bird"})
    assert renamed.class_thresholds == {"dog": 0.3}
    assert not DetrConfig.from_pretrained(tmp_path, num_labels=5).class_thresholds
    content = json.loads((tmp_path / "config.json").read_text())
    content["class_thresholds"] = {"dog": 30}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"class_thresholds\['dog'\] is 30"):
        DetrConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"fish": 0.5}, "class_thresholds has the class 'fish', which isn't in id2label"),
        ({"LABEL_0": -0.1}, r"class_thresholds\['LABEL_0'\] is -0.1; expected a score from 0 to 1"),
        ({"LABEL_0": float("nan")}, "is nan; expected a score"),
    ],
)
def test_invalid_class_thresholds(thresholds: dict[str, float], message: str) -> None:
    """A ValueError when the configuration is built, and when it is saved."""
    with pytest.raises(ValueError, match=message):
        DetrConfig(num_labels=2, class_thresholds=thresholds)


def test_overrides_on_loading(tmp_path: Path) -> None:
    """Keyword arguments of from_pretrained override fields, also by their aliases."""
    (tmp_path / "config.json").write_text((FIXTURES / f"{STORED[0]}.json").read_text())
    config = DetrConfig.from_pretrained(tmp_path, encoder_layers=2, num_labels=5)
    assert config.encoder_layers == 2 and config.num_labels == 5


def test_defaults_are_the_papers() -> None:
    """DETR has ResNet-50, 100 queries, 6 + 6 layers, costs 1 / 5 / 2 and dropout."""
    config = DetrConfig()
    assert (config.backbone, config.num_queries, config.d_model) == ("resnet50", 100, 256)
    assert (config.encoder_layers, config.decoder_layers) == (6, 6)
    assert (config.class_cost, config.bbox_cost, config.giou_cost) == (1, 5, 2)
    assert (config.bbox_loss_coefficient, config.giou_loss_coefficient) == (5, 2)
    assert config.eos_coefficient == 0.1 and config.auxiliary_loss is True
    assert config.dropout == config.attention_dropout == config.activation_dropout == 0.1
    assert config.backbone_config.out_indices == [1, 2, 3, 4]


def test_names_of_the_library() -> None:
    """Aliases used by transformers can be read and written."""
    config = DetrConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2)
    assert config.d_model == config.hidden_size == 64
    assert config.encoder_attention_heads == config.num_attention_heads == 4
    assert config.encoder_layers == config.num_hidden_layers == 2


# Forms of the backbone; expected name, levels, stride, pretrained.
BACKBONES = {
    "short": ({"backbone": "resnet18"}, ("resnet18", [-4, -3, -2, -1], None, False)),
    "pretrained": (
        {"backbone": "resnet18", "use_pretrained_backbone": True},
        ("resnet18", [-4, -3, -2, -1], None, True),
    ),
    "options": (
        {"backbone": "resnet18", "backbone_kwargs": {"out_indices": [2, 4], "output_stride": 16}},
        ("resnet18", [2, 4], 16, False),
    ),
    "DC5": ({"backbone": "resnet18", "dilation": True}, ("resnet18", [-4, -3, -2, -1], 16, False)),
    "nested dict": (
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18"}},
        ("resnet18", [1, 2, 3, 4], None, False),
    ),
    "nested object": (
        {"backbone_config": TimmBackboneConfig(backbone="resnet18", out_indices=[4])},
        ("resnet18", [4], None, False),
    ),
    "named twice alike": (
        {"backbone": "resnet18", "backbone_config": {"backbone": "resnet18", "out_indices": [3]}},
        ("resnet18", [3], None, False),
    ),
}


@pytest.mark.parametrize("case", BACKBONES)
def test_forms_of_the_backbone(case: str) -> None:
    """All forms of transformers 4 and 5 are read."""
    arguments, expected = BACKBONES[case]
    nested = DetrConfig(**arguments).backbone_config
    assert isinstance(nested, TimmBackboneConfig)
    got = (nested.backbone, list(nested.out_indices), nested.output_stride)
    assert (*got, nested.use_pretrained_backbone) == expected


@pytest.mark.parametrize(
    "nested",
    [
        {"backbone": "resnet18", "output_stride": None},
        TimmBackboneConfig(backbone="resnet18", out_indices=[1, 2, 3, 4]),
    ],
)
def test_dilation_reaches_a_nested_backbone(nested: dict | TimmBackboneConfig) -> None:
    """`dilation=True` isn't ignored if the nested configuration is given."""
    config = DetrConfig(dilation=True, backbone_config=nested)
    assert config.backbone_config.output_stride == 16


def test_different_channels_raise() -> None:
    """The backbone must have the channels of the model."""
    assert DetrConfig(backbone="resnet18", num_channels=1).backbone_config.num_channels == 1
    with pytest.raises((ValueError, StrictDataclassError), match="num_channels"):
        DetrConfig(num_channels=4, backbone_config={"backbone": "resnet18", "num_channels": 3})


WRONG = {
    "two backbones": (
        {"backbone": "resnet18", "backbone_config": {"backbone": "resnet50"}},
        "'resnet18'.*'resnet50'; set only one",
    ),
    "transformers' backbone": (
        {"backbone_config": {"model_type": "convnext"}},
        "only backbones from timm",
    ),
    "no timm": ({"backbone": "resnet50", "use_timm_backbone": False}, "only backbones from timm"),
    "no queries": ({"num_queries": 0}, "num_queries is 0; it must be from 1 to 65536"),
    "text for a number": ({"num_queries": "100"}, "num_queries.*expected int"),
    "width 0": ({"d_model": 0}, "d_model is 0; it must be from 1 to 65536"),
    "width not a multiple of 4": ({"d_model": 254}, "d_model is 254; it must be a multiple of 4"),
    "encoder heads": ({"d_model": 252}, r"d_model \(252\).*encoder_attention_heads \(8\)"),
    "decoder heads": (
        {"decoder_attention_heads": 7},
        r"d_model \(256\).*decoder_attention_heads \(7\)",
    ),
    "no heads": ({"encoder_attention_heads": 0}, "encoder_attention_heads is 0"),
    "no layers": ({"decoder_layers": 0}, "decoder_layers is 0"),
    "no hidden units": ({"encoder_ffn_dim": 0}, "encoder_ffn_dim is 0"),
    "negative layers": ({"encoder_layers": -1}, "encoder_layers is -1"),
    "no channels": ({"num_channels": 0}, "num_channels is 0"),
    "probability above 1": ({"dropout": 1.5}, "dropout is 1.5; it must be from 0 to 1"),
    "negative probability": ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
    "NaN": ({"activation_dropout": float("nan")}, "activation_dropout is nan"),
    "negative cost": ({"class_cost": -1}, "class_cost is -1; it must be at least 0"),
    "negative weight": ({"eos_coefficient": -0.1}, "eos_coefficient is -0.1"),
    "activation": ({"activation_function": "rellu"}, "'rellu' is unknown; use one of .*relu"),
    "positions": ({"position_embedding_type": "sin"}, "is 'sin'; use 'sine' or 'learned'"),
    "layer drop": ({"encoder_layerdrop": 0.1}, "encoder_layerdrop is 0.1.*Set it to 0"),
    "layer drop of the decoder": ({"decoder_layerdrop": 0.1}, "decoder_layerdrop is 0.1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_values_raise(case: str) -> None:
    """The message has the field and the value."""
    arguments, message = WRONG[case]
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        DetrConfig(**arguments)


@pytest.mark.parametrize(
    ("wrong", "right"), [("num_querys", "num_queries"), ("encoder_layer", "encoder_layers")]
)
def test_misspelt_field_warns(wrong: str, right: str) -> None:
    """A typo isn't ignored silently."""
    with pytest.warns(UserWarning, match=f"no field '{wrong}'.*did you mean '{right}'"):
        DetrConfig(**{wrong: 3})


def test_unknown_keys_are_kept() -> None:
    """Keys of users and of transformers don't cause warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = DetrConfig(
            num_labels=3, output_attentions=True, my_dataset="garments", scale_embedding=False
        )
    assert config.my_dataset == "garments" and config.output_attentions


def test_overrides_are_checked_as_values_of_the_file(tmp_path: Path) -> None:
    """DC5 and another backbone can be set on loading, and invalid values raise."""
    DetrConfig(auxiliary_loss=False).save_pretrained(tmp_path)
    dc5 = DetrConfig.from_pretrained(tmp_path, dilation=True)
    assert dc5.backbone_config.output_stride == 16 and dc5.backbone == "resnet50"
    assert DetrConfig.from_pretrained(tmp_path, backbone="resnet18").backbone == "resnet18"
    nested = DetrConfig.from_pretrained(tmp_path, use_pretrained_backbone=True).backbone_config
    assert nested.use_pretrained_backbone and nested.backbone == "resnet50"
    assert DetrConfig.from_pretrained(tmp_path, hidden_size=128).d_model == 128
    for wrong in (
        {"position_embedding_type": "learnd"},
        {"dropout": 2.0},
        {"encoder_attention_heads": 5},
        {"encoder_layerdrop": 0.5},
    ):
        with pytest.raises((ValueError, StrictDataclassError)):
            DetrConfig.from_pretrained(tmp_path, **wrong)


def test_label2id_against_id2label() -> None:
    """A contradiction is named, and the names that are shown count; equal names are none."""
    id2label = {0: "cup", 1: "spoon", 2: "spoon"}
    with pytest.warns(UserWarning, match="contradicts id2label in 'cup': 1, 'fork': 3; id2label"):
        config = DetrConfig(id2label=id2label, label2id={"cup": 1, "spoon": 2, "fork": 3})
    assert config.label2id == {"cup": 0, "spoon": 2}
    DetrConfig(id2label=id2label, label2id={"cup": "0", "spoon": 1})


def test_label2id_follows_id2label(tmp_path: Path) -> None:
    """label2id is updated if only id2label is given."""
    assert DetrConfig(id2label={0: "cup", 1: "spoon"}).label2id == {"cup": 0, "spoon": 1}
    DetrConfig(num_labels=5, auxiliary_loss=False).save_pretrained(tmp_path)
    config = DetrConfig.from_pretrained(tmp_path, id2label={0: "cup", 1: "spoon"})
    assert config.label2id == {"cup": 0, "spoon": 1} and config.num_labels == 2
    assert DetrConfig.from_pretrained(tmp_path, num_labels=7).num_labels == 7


def test_deformable_configuration() -> None:
    """Levels and costs are those of the paper, and two stages require refinement."""
    config = DeformableDetrConfig()
    assert config.backbone_config.out_indices == [2, 3, 4]
    assert (config.class_cost, config.cls_loss_coefficient, config.encoder_ffn_dim) == (2, 2, 1024)
    assert DeformableDetrConfig(num_feature_levels=1).backbone_config.out_indices == [4]
    nested = DeformableDetrConfig(backbone="resnet18", num_feature_levels=2).backbone_config
    assert nested.out_indices == [-2, -1]
    with pytest.raises(Exception, match="two_stage=True requires with_box_refine=True"):
        DeformableDetrConfig(two_stage=True)
    with pytest.raises(Exception, match="multiple of 32"):
        DeformableDetrConfig(d_model=48)
    stored = DeformableDetrConfig().to_dict()
    with pytest.raises(Exception, match=r"num_feature_levels is 2, but .*\[2, 3, 4\] has 3"):
        DeformableDetrConfig.from_dict({**stored, "num_feature_levels": 2})


# Invalid contents of a config.json, and their error messages.
INVALID = {
    "no fields": ([1], "config.json contains a list; expected a dict"),
    "text for a number": ({"num_queries": "9"}, "'num_queries' expected int, got str"),
    "a fraction": ({"d_model": 1.5}, "'d_model' expected int, got float"),
    "bool for a number": ({"encoder_layers": True}, "'encoder_layers' expected int, got bool"),
    "nothing": ({"d_model": None}, "'d_model' expected int, got NoneType"),
    "negative": ({"num_queries": -1}, "num_queries is -1; it must be from 1 to 65536"),
    "huge": ({"num_queries": 10**12}, "num_queries is 1000000000000; it must be from 1 to 65536"),
    "endless": ({"decoder_layers": 10**6}, "decoder_layers is 1000000; it must be from 1 to 1000"),
    "classes": ({"id2label": None, "num_labels": 10**12}, "num_labels is 1000000000000; it must"),
    "listed labels": ({"id2label": ["cat"]}, r"id2label is \['cat'\]; expected a dict from label"),
    "named labels": (
        {"id2label": {"cat": 0}},
        "id2label is {'cat': 0}; expected a dict from label",
    ),
    "no numbers": ({"label2id": 5}, "label2id is 5; expected a dict from class name"),
    "no type": ({"dtype": "float31"}, "dtype is 'float31'; expected a float type"),
    "integers": ({"dtype": "int32"}, "dtype is 'int32'; expected a float type"),
    "a number for a type": ({"torch_dtype": 5}, "torch_dtype is 5; expected a float type"),
    "a method": ({"to_dict": 5}, "'to_dict', which is an attribute of the class"),
    "a table": ({"attribute_map": 5}, "'attribute_map', which is an attribute of the class"),
    "no backbone": ({"backbone_config": 5}, "'backbone_config' with value 5"),
    "a numbered backbone": ({"backbone_config": {"backbone": 5}}, "'backbone' with value 5"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_files_raise(case: str, tmp_path: Path) -> None:
    """Corrupted or malicious files raise a ValueError with the field."""
    content, message = INVALID[case]
    stored = DetrConfig(backbone="resnet18", auxiliary_loss=False).to_dict()
    content = {**stored, "dtype": None, **content} if isinstance(content, dict) else content
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        DetrConfig.from_pretrained(tmp_path)


def test_classes_with_gaps_are_named() -> None:
    """Ids from 1, as COCO's, leave class 0 without a name; transformers takes them silently."""
    with pytest.warns(UserWarning, match="names the classes 1, 2, but .* are 0 to 1"):
        DetrConfig(id2label={1: "a", 2: "b"})


def test_other_number_of_channels(tmp_path: Path) -> None:
    """`num_channels` of a call is that of the backbone, too."""
    DetrConfig(auxiliary_loss=False).save_pretrained(tmp_path)
    config = DetrConfig.from_pretrained(tmp_path, num_channels=4)
    assert config.num_channels == config.backbone_config.num_channels == 4


@pytest.mark.parametrize("change", [{"use_pretrained_backbone": False}, {"dilation": False}])
def test_other_fields_of_the_backbone_stay(tmp_path: Path, change: dict) -> None:
    """A common option of `from_pretrained` doesn't make another network of the same backbone."""
    kwargs = {"output_norm": True, "out_indices": [2, 3]}
    config = DeformableDetrConfig(
        backbone="swin_tiny_patch4_window7_224", backbone_kwargs=kwargs, auxiliary_loss=False
    )
    config.save_pretrained(tmp_path)
    changed = DeformableDetrConfig.from_pretrained(tmp_path, **change)
    assert changed.backbone_config.to_dict() == config.backbone_config.to_dict()
    other = DeformableDetrConfig.from_pretrained(tmp_path, backbone="resnet18")
    assert not hasattr(other.backbone_config, "output_norm")


def test_output_norm_is_a_boolean() -> None:
    """Text, which is never false, is refused."""
    with pytest.raises(ValueError, match="output_norm is 'no'; expected True or False"):
        DetrConfig(backbone="resnet18", backbone_kwargs={"output_norm": "no"})
