"""Names of COCO's categories, on which published checkpoints were trained."""

NO_CATEGORY = "N/A"  # name of unused ids in published configurations

# Categories 1, 2, 3, … in COCO's order; empty for ids that COCO doesn't use.
_THINGS = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,,"
    "backpack,umbrella,,,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,"
    "baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,,wine glass,cup,fork,"
    "knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,"
    "chair,couch,potted plant,bed,,dining table,,,toilet,,tv,laptop,mouse,remote,keyboard,"
    "cell phone,microwave,oven,toaster,sink,refrigerator,,book,clock,vase,scissors,teddy bear,"
    "hair drier,toothbrush"
)
_STUFF = {
    **{92: "banner", 93: "blanket", 95: "bridge", 100: "cardboard", 107: "counter"},
    **{109: "curtain", 112: "door-stuff", 118: "floor-wood", 119: "flower", 122: "fruit"},
    **{125: "gravel", 128: "house", 130: "light", 133: "mirror-stuff", 138: "net"},
    **{141: "pillow", 144: "platform", 145: "playingfield", 147: "railroad", 148: "river"},
    **{149: "road", 151: "roof", 154: "sand", 155: "sea", 156: "shelf", 159: "snow"},
    **{161: "stairs", 166: "tent", 168: "towel", 171: "wall-brick", 175: "wall-stone"},
    **{176: "wall-tile", 177: "wall-wood", 178: "water-other", 180: "window-blind"},
    **{181: "window-other", 184: "tree-merged", 185: "fence-merged", 186: "ceiling-merged"},
    **{187: "sky-other-merged", 188: "cabinet-merged", 189: "table-merged"},
    **{190: "floor-other-merged", 191: "pavement-merged", 192: "mountain-merged"},
    **{193: "grass-merged", 194: "dirt-merged", 195: "paper-merged", 196: "food-other-merged"},
    **{197: "building-other-merged", 198: "rock-merged", 199: "wall-other-merged"},
    200: "rug-merged",
}


def coco_id2label(num_labels: int) -> dict[int, str] | None:
    """Return the label names of a model with as many labels as COCO; None for other numbers.

    91 labels are the category ids of detection and 250 those of panoptic segmentation (things and
    stuff); unused ids are named "N/A". 80 labels are the things without unused ids.
    """
    things = _THINGS.split(",")
    if num_labels == 80:
        return dict(enumerate(name for name in things if name))
    if num_labels not in (91, 250):
        return None
    names = {category: name for category, name in enumerate(things, start=1) if name} | _STUFF
    return {label: names.get(label, NO_CATEGORY) for label in range(num_labels)}
