"""Pascal VOC: pixel coordinates from 1, difficult objects, and harmful XML."""

from pathlib import Path

import PIL.Image
import pytest

from hf_detr import read_data
from hf_detr.data.voc import parse_xml, read_voc

from ..some_data import write_image

OBJECT = """<object>
  <name>{name}</name>{more}
  <bndbox><xmin>{xmin}</xmin><ymin>6</ymin><xmax>30</xmax><ymax>13</ymax></bndbox>
</object>
"""
SIZE = "<size><width>50</width><height>40</height><depth>3</depth></size>"


def voc_object(name: str = "dog", xmin: object = 11, more: str = "") -> str:
    return OBJECT.format(name=name, xmin=xmin, more=more)


def write_voc(folder: Path, annotations: dict[str, str], size: str = SIZE) -> Path:
    """Write images and their annotations, given as inner XML, for the split `train`."""
    for stem, inner in annotations.items():
        write_image(folder / "JPEGImages" / f"{stem}.jpg")
        file = folder / "Annotations" / f"{stem}.xml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"<annotation>\n{size}\n{inner}</annotation>")
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(annotations) + "\n")
    return folder


def test_pixels_start_at_one_and_corners_are_inclusive(tmp_path: Path):
    """xmin 11 and xmax 30 are the pixels 10 to 29, so the box is from 10 to 30."""
    dataset = read_voc(write_voc(tmp_path, {"a": voc_object(), "b": ""}))
    assert dataset[0][1]["boxes"].tolist() == [[10, 5, 30, 13]]
    assert dataset.image_hw(0) == (40, 50) and len(dataset[1][1]["boxes"]) == 0


def test_boxes_divided_by_the_size_of_the_image_are_refused(tmp_path: Path):
    """They would be trained as boxes in the first pixel; that pixel itself is a box."""
    divided = voc_object(xmin=0.1).replace("6<", "0.2<").replace("30<", "0.5<")
    folder = write_voc(tmp_path, {"a": divided.replace("13<", "0.6<") * 3})
    with pytest.warns(UserWarning, match="3 of 3 boxes are empty .* divided by the image's size"):
        (problem,) = read_voc(folder).table.problems
    assert problem.is_fatal
    first_pixel = voc_object(xmin=1).replace("6<", "1<").replace("30<", "1<").replace("13<", "1<")
    folder = write_voc(tmp_path / "pixel", {"a": first_pixel * 3})
    assert read_voc(folder)[0][1]["boxes"].tolist() == [[0, 0, 1, 1]] * 3


def test_classes_are_those_of_all_splits(tmp_path: Path):
    """Labels are the same in all splits."""
    folder = write_voc(tmp_path, {"a": voc_object("dog"), "b": voc_object("ant")})
    (folder / "ImageSets" / "Main" / "val.txt").write_text("a  1\n")
    dataset = read_voc(folder, "val")
    assert len(dataset) == 1 and dataset.id2label == {0: "ant", 1: "dog"}
    assert dataset[0][1]["class_labels"].tolist() == [1]
    named = read_voc(folder, "val", class_names=["dog", "ant"])
    assert named.id2label == {0: "dog", 1: "ant"}


def test_names_with_spaces_and_other_files_among_the_images(tmp_path: Path):
    """Image names may have spaces, and files of annotation tools are ignored."""
    folder = write_voc(tmp_path, {f"IMG {number}": voc_object("dog") for number in range(9)})
    for number in range(9):
        (folder / "JPEGImages" / f"IMG {number}.json").write_text("{}")
    lists = folder / "ImageSets" / "Main"
    lines = [f"IMG {number} {' 1' if number % 2 else '-1'}" for number in range(9)]
    (lists / "dog_train.txt").write_text("\n".join(lines))
    for split in ("train", "dog_train"):
        dataset = read_voc(folder, split)
        assert not dataset.table.problems
        names = [Path(dataset.images.name(index)).name for index in range(9)]
        assert names == [f"IMG {number}.jpg" for number in range(9)]


def test_difficult_objects_are_crowds_unless_kept(tmp_path: Path):
    """Difficult objects are ignored in training and evaluation."""
    objects = voc_object() + voc_object(more="<difficult>1</difficult>")
    folder = write_voc(tmp_path, {"a": objects})
    dataset = read_voc(folder)
    assert len(dataset[0][1]["boxes"]) == 1
    assert [e["iscrowd"] for e in dataset.ground_truth()["annotations"]] == [0, 1]
    assert len(read_voc(folder, keep_difficult=True)[0][1]["boxes"]) == 2


def test_missing_size_comes_from_the_image(tmp_path: Path):
    """Some tools write no size or 0."""
    zero = SIZE.replace("50", "0")
    assert read_voc(write_voc(tmp_path, {"a": voc_object()}, size=zero)).image_hw(0) == (40, 50)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (voc_object(xmin="left"), r"a.xml:3: bndbox has .*'left'"),
        (voc_object(xmin=""), r"a.xml:3: bndbox"),
        (voc_object(xmin="nan"), r"a.xml:3: bndbox"),
        ("<object>", r"a.xml:3: invalid XML, mismatched tag"),
        (voc_object("cat"), r"a.xml:3: 'cat' is not one of the 1 class names"),
    ],
)
def test_errors_have_file_and_line(tmp_path: Path, inner: str, message: str):
    """Only the image with the invalid object can't be used."""
    folder = write_voc(tmp_path, {"a": inner, "b": voc_object()})
    with pytest.warns(UserWarning, match=message):
        dataset = read_voc(folder, class_names=["dog"])
    with pytest.raises(ValueError, match=message):
        dataset[0]
    assert len(dataset[1][1]["boxes"]) == 1


def test_missing_annotation_file_is_named(tmp_path: Path):
    """An image with a missing file isn't trained as background."""
    folder = write_voc(tmp_path, {"a": voc_object(), "b": voc_object()})
    (folder / "Annotations" / "b.xml").unlink()
    with pytest.warns(UserWarning, match="b.xml"):
        assert len(read_voc(folder)) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_raise(tmp_path: Path, encoding: str):
    """Entities, which can read files or exhaust the memory, are an error in any encoding."""
    file = tmp_path / "a.xml"
    text = (
        f'<?xml version="1.0" encoding="{encoding}"?>\n'
        '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY f SYSTEM "file:///etc/passwd">]>\n<a>&b;&f;</a>'
    )
    file.write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match="a.xml:2: document type declarations are not supported"):
        parse_xml(file)


@pytest.mark.parametrize("stem", ["../../secret", "/etc/passwd"])
def test_names_outside_the_folder_raise(tmp_path: Path, stem: str):
    """Untrusted data sets can't read other files of the user."""
    folder = write_voc(tmp_path, {"a": voc_object()})
    (folder / "ImageSets" / "Main" / "train.txt").write_text(f"a\n{stem}\n")
    with pytest.raises(ValueError, match="not a path inside"):
        read_voc(folder)


def test_missing_split_raises_with_the_known_ones(tmp_path: Path):
    """The error lists the splits that exist."""
    folder = write_voc(tmp_path, {"a": voc_object()})
    with pytest.raises(
        ValueError, match=r"trainval.txt doesn't exist; the splits .* are \['train'\]"
    ):
        read_voc(folder, "trainval")


def write_files(folder: Path, annotations: str, images: str, stem: str = "a") -> None:
    """Write an image and its XML file to folders."""
    write_image(folder / images / f"{stem}.jpg")
    file = folder / annotations / f"{stem}.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"<annotation>{SIZE}{voc_object()}</annotation>")


@pytest.mark.parametrize(
    ("annotations", "images"),
    [("Annotations", "JPEGImages"), ("annotations", "images"), (".", ".")],
)
def test_data_without_lists_have_one_split(tmp_path: Path, annotations: str, images: str):
    """All images are `train`, which a note says; no other split silently has the same images."""
    write_files(tmp_path, annotations, images)
    with pytest.warns(UserWarning, match="no ImageSets/Main; the split 'train' has all"):
        dataset = read_voc(tmp_path)
    assert dataset[0][1]["boxes"].tolist() == [[10, 5, 30, 13]]
    with pytest.raises(ValueError, match="no split 'val'.*only have the split 'train'"):
        read_voc(tmp_path, "val")


@pytest.mark.filterwarnings("ignore:.*no ImageSets/Main:UserWarning")
def test_linked_folders(tmp_path: Path):
    """The format is found, and annotations and images are read, where folders are links."""
    write_files(tmp_path / "other", "Annotations", "JPEGImages")
    for kind in ("Annotations", "JPEGImages"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        (tmp_path / "data" / kind / "more").symlink_to(tmp_path / "other" / kind)
    dataset = read_data(tmp_path / "data")
    assert dataset[0][1]["boxes"].tolist() == [[10, 5, 30, 13]]


@pytest.mark.filterwarnings("ignore:.*no ImageSets/Main:UserWarning")
@pytest.mark.parametrize(
    ("annotations", "has_list"), [("Annotations", 1), ("Annotations", 0), (".", 0)]
)
def test_xml_files_with_an_ending_in_capitals(tmp_path: Path, annotations: str, has_list: bool):
    """Windows ignores case; the format is found too, and all classes."""
    write_files(tmp_path, annotations, "JPEGImages", "IMG 1")
    file = tmp_path / annotations / "IMG 1.xml"
    file.rename(file.with_suffix(".XML"))
    if has_list:
        (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
        (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("IMG 1")
    dataset = read_data(tmp_path)
    assert dataset[0][1]["boxes"].tolist() == [[10, 5, 30, 13]]
    assert dataset.id2label == {0: "dog"}


def test_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """XML files and images beside each other, in the folder that the command runs in."""
    write_files(tmp_path, ".", ".", "abc")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="no ImageSets/Main"):
        dataset = read_voc(".")
    assert dataset[0][1]["boxes"].tolist() == [[10, 5, 30, 13]]


@pytest.mark.filterwarnings("ignore:.*no ImageSets/Main|.*spelled differently:UserWarning")
@pytest.mark.parametrize(
    ("annotations", "images"),
    [("Annotations", "JPEGImages"), (".", "images"), (".", "."), ("train", "train")],
)
def test_images_without_xml_file_are_reported(tmp_path: Path, annotations: str, images: str):
    """They aren't read; a folder beside the XML files can be another split."""
    write_files(tmp_path, annotations, images)
    for name in ("b.jpg", "c.png"):
        write_image(tmp_path / images / name)
    write_files(tmp_path, "valid", "valid", "d")
    with pytest.warns(UserWarning, match=r"2 images in .* aren't read, such as b.jpg, c.png;"):
        dataset = read_voc(tmp_path)
    found = [problem for problem in dataset.table.problems if problem.kind != "no splits"]
    assert len(dataset) == len(found) == 1 and not found[0].is_fatal
    (tmp_path / images / "b.jpg").rename(tmp_path / images / "c.jpg")
    (tmp_path / images / "a.jpg").rename(tmp_path / images / "A.JPG")  # is read all the same
    with pytest.warns(UserWarning, match=r"2 images .*, such as c.jpg, c.png;"):
        read_voc(tmp_path)


def test_listed_images_are_all_that_is_read(tmp_path: Path):
    """Images that a split's list lacks are those of other splits."""
    folder = write_voc(tmp_path, {"a": voc_object()})
    write_image(folder / "JPEGImages" / "b.jpg")
    assert not read_voc(folder).table.problems


def test_a_folder_per_split(tmp_path: Path):
    """Roboflow's layout, with the classes of all splits."""
    write_files(tmp_path, "train", "train")
    write_files(tmp_path, "valid/annotations", "valid/images", "b")
    file = tmp_path / "valid" / "annotations" / "b.xml"
    file.write_text(file.read_text().replace("dog", "cat"))
    for split, labels in (("train", [1]), ("valid", [0])):
        dataset = read_voc(tmp_path, split)
        assert dataset.id2label == {0: "cat", 1: "dog"} and not dataset.table.problems
        assert dataset[0][1]["class_labels"].tolist() == labels
    with pytest.raises(ValueError, match=r"no split 'val'.*folders are \['train', 'valid'\]"):
        read_voc(tmp_path, "val")


def test_lists_with_byte_order_mark_folders_and_endings(tmp_path: Path):
    """Lists of other tools have more than the name of the image."""
    folder = write_voc(tmp_path, {"ä": voc_object(), "b": voc_object()})
    write_files(folder, "Annotations/sub", "JPEGImages/sub", "c")
    lines = "ä.jpg\nJPEGImages/b.jpg\nsub/c\n"
    (folder / "ImageSets" / "Main" / "train.txt").write_text(lines, encoding="utf-8-sig")
    dataset = read_voc(folder)
    assert [len(dataset[i][1]["boxes"]) for i in range(3)] == [1, 1, 1]


def test_two_images_of_one_name(tmp_path: Path):
    """The XML file's own `filename` decides, not the folder's order; otherwise it's an error."""
    folder = write_voc(tmp_path, {"a": voc_object(), "b": "<filename>b.jpg</filename>"})
    for stem in "ab":
        for ending in ("bmp", "png"):  # of another size
            write_image(folder / "JPEGImages" / f"{stem}.{ending}", width=70)
    with pytest.warns(UserWarning, match=r"a.xml could be of any of .*'a.bmp', 'a.jpg', 'a.png'"):
        dataset = read_voc(folder)
    assert Path(dataset.images.name(1)).name == "b.jpg" and len(dataset[1][1]["boxes"]) == 0
    with pytest.raises(ValueError, match="rename or remove the others"):
        dataset[0]


def test_size_before_exif_orientation(tmp_path: Path):
    """Annotation tools show the upright photo, but some write the size of the file."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    folder = write_voc(tmp_path, {"a": voc_object().replace("13<", "49<")})
    PIL.Image.new("RGB", (50, 40)).save(folder / "JPEGImages" / "a.jpg", exif=exif)
    with pytest.warns(UserWarning, match="upright size is used"):
        dataset = read_voc(folder)
    assert dataset.image_hw(0) == (50, 40) and dataset[0][1]["boxes"].tolist() == [[10, 5, 30, 49]]
