"""Detection data sets: targets, reproducible examples, memory of workers."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, random_split
from torchvision import tv_tensors

from hf_detr.data.coco import read_coco
from hf_detr.data.dataset import DetectionDataset, as_detection_dataset

from ..some_data import entry, write_coco, write_image

ENTRIES = [
    entry(70, 2),
    entry(30, 1, category_id=18, bbox=[-5, 2, 15.5, 10], area=None),
    entry(50, 2, iscrowd=1, bbox=[0, 0, 50, 40]),
    entry(90, 2, category_id=18, bbox=[1.5, 2, 3, 4], segmentation=[[1, 2, 4, 2, 4, 6]]),
]


@pytest.fixture
def dataset(tmp_path: Path) -> DetectionDataset:
    return read_coco(*write_coco(tmp_path, ENTRIES, num_images=3), masks=True)


def noisy(image: Tensor, target: dict) -> tuple[Tensor, dict]:
    """A transform with random numbers."""
    return image, {**target, "drawn": torch.rand(2)}


def test_target_has_every_key_with_its_type(dataset: DetectionDataset):
    """Keys, shapes and types are those that transforms and the collator expect; no crowds."""
    image, target = dataset[1]
    assert isinstance(image, tv_tensors.Image) and image.dtype == torch.uint8
    assert image.shape == (3, 40, 50) and image.is_contiguous()
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert target["boxes"].canvas_size == (40, 50)
    assert isinstance(target["masks"], tv_tensors.Mask) and target["masks"].shape == (2, 40, 50)
    expected = {
        "image_id": torch.tensor([2]),
        "class_labels": torch.tensor([0, 1]),
        "boxes": torch.tensor([[10.0, 5.0, 30.0, 13.0], [1.5, 2.0, 4.5, 6.0]]),
        "area": torch.tensor([99.5, 99.5]),
        "iscrowd": torch.tensor([0, 0]),
        "orig_size": torch.tensor([40, 50]),
    }
    assert set(target) == {*expected, "masks"}
    for key, value in expected.items():
        plain = target[key].as_subclass(Tensor)
        torch.testing.assert_close(plain, value, rtol=0, atol=0)
    assert target["masks"][0, 5:13, 10:30].all() and target["masks"][0].sum() == 160


def test_image_without_objects_has_empty_tensors(dataset: DetectionDataset):
    """Images without annotations are valid background examples."""
    _, target = dataset[2]
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, 40, 50)
    assert target["class_labels"].dtype == torch.int64 and len(target["class_labels"]) == 0


def test_masks_stay_with_their_boxes_when_a_box_is_dropped(tmp_path: Path):
    """Masks, classes and boxes of the same object stay together."""
    entries = [entry(1, bbox=[5, 5, 0, 5]), entry(2, category_id=18)]
    dataset = read_coco(*write_coco(tmp_path, entries), masks=True)
    with pytest.warns(UserWarning, match="1 of 2 boxes dropped"):
        _, target = dataset[0]
    assert target["class_labels"].tolist() == [1] and target["masks"].sum() == 160


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_examples_depend_on_seed_epoch_and_index_only(dataset: DetectionDataset, method: str):
    """Persistent workers see the new epoch and draw the same numbers as the main process."""
    dataset.set_transform(noisy)

    def epoch(loader: object, number: int) -> list[list[float]]:
        dataset.set_epoch(number)
        return [target["drawn"].tolist() for _, target in loader]

    in_process = [epoch([dataset[i] for i in range(3)], 0)]
    for number in (1, 0):
        dataset.set_epoch(number)
        in_process.append([dataset[i][1]["drawn"].tolist() for i in range(3)])
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context=method,
    )
    in_workers = [epoch(loader, number) for number in (0, 1, 0)]
    assert in_process == in_workers
    assert in_process[0] == in_process[2] != in_process[1]
    assert len({tuple(values) for values in in_process[0] + in_process[1]}) == 6


def test_transform_does_not_change_the_global_generator(dataset: DetectionDataset):
    """Dropout in the model doesn't draw the same numbers after every example."""
    dataset.set_transform(noisy)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    dataset[0]
    assert torch.equal(torch.rand(2), expected)


def test_another_seed_gives_other_random_numbers(tmp_path: Path):
    """Training can be repeated with several seeds."""
    files = write_coco(tmp_path, ENTRIES)
    drawn = []
    for seed in (0, 1):
        dataset = read_coco(*files, seed=seed)
        dataset.set_transform(noisy)
        drawn.append(dataset[0][1]["drawn"])
    assert not torch.equal(*drawn)


def test_ground_truth_has_the_original_boxes_and_contiguous_classes(dataset: DetectionDataset):
    """Crowds are marked, missing areas are filled in, and category ids are class labels."""
    truth = dataset.ground_truth()
    assert truth["categories"] == [{"id": 0, "name": "car"}, {"id": 1, "name": "dog"}]
    assert [image["id"] for image in truth["images"]] == [1, 2, 3]
    found = [
        (e["image_id"], e["category_id"], e["bbox"], e["area"], e["iscrowd"])
        for e in truth["annotations"]
    ]
    assert found == [
        (1, 1, [-5, 2, 15.5, 10], 155.0, 0),
        (2, 0, [10, 5, 20, 8], 99.5, 0),
        (2, 0, [0, 0, 50, 40], 99.5, 1),
        (2, 1, [1.5, 2, 3, 4], 99.5, 0),
    ]
    assert [e["id"] for e in truth["annotations"]] == [1, 2, 3, 4]
    assert truth["annotations"][3]["segmentation"] == [[1, 2, 4, 2, 4, 6]]


def test_pickled_size_is_that_of_the_arrays(tmp_path: Path):
    """Spawned workers need about a hundred bytes per object."""
    few = read_coco(*write_coco(tmp_path / "few", [entry(i) for i in range(10)]))
    many = read_coco(*write_coco(tmp_path / "many", [entry(i) for i in range(1010)]))
    per_object = (len(pickle.dumps(many)) - len(pickle.dumps(few))) / 1000
    assert per_object < 100


def test_image_of_another_size_than_annotated_raises(tmp_path: Path):
    """Boxes aren't used with a resized or rotated image."""
    dataset = read_coco(*write_coco(tmp_path, ENTRIES))
    write_image(tmp_path / "images" / "1.png", height=50, width=40)
    with pytest.raises(ValueError, match="1.png has 40 x 50 pixels .*annotations are for 50 x 40"):
        dataset[0]


def test_image_with_a_fatal_problem_raises(tmp_path: Path):
    """Invalid annotations are never used for training, even without `check_dataset`."""
    files = write_coco(tmp_path, [entry(4, category_id=77), entry(5, 2)])
    with pytest.warns(UserWarning, match="problems that prevent training"):
        dataset = read_coco(*files)
    with pytest.raises(ValueError, match="object 4 has the unknown category id 77"):
        dataset[0]
    with pytest.raises(ValueError, match="1 images have invalid annotations, such as: object 4"):
        dataset.ground_truth()
    assert len(dataset[1][1]["boxes"]) == 1


def test_masks_of_data_without_masks_raise(tmp_path: Path):
    """A mask head can't be trained without masks."""
    boxes_only = read_coco(*write_coco(tmp_path, ENTRIES))
    with pytest.raises(ValueError, match="has only boxes; pass masks=False"):
        DetectionDataset(boxes_only.table, boxes_only.images, masks=True)


def test_index_outside_the_data_is_an_index_error(dataset: DetectionDataset):
    """Iteration ends at the first IndexError."""
    assert len(list(dataset)) == 3
    with pytest.raises(IndexError):
        dataset[3]


def ids_and_boxes(dataset: DetectionDataset) -> list[tuple[int, list]]:
    return [(int(target["image_id"]), target["boxes"].tolist()) for _, target in dataset]


def test_split_divides_the_images(dataset: DetectionDataset):
    """Each image is in one part, with its own pixels and objects, and the seed decides which."""
    rest, part = dataset.split(0.4, seed=1)
    assert len(rest) == 2 and len(part) == 1 and rest.id2label == part.id2label == dataset.id2label
    assert sorted(ids_and_boxes(rest) + ids_and_boxes(part)) == ids_and_boxes(dataset)
    index = int(part[0][1]["image_id"]) - 1
    assert torch.equal(part[0][0], dataset[index][0])
    assert torch.equal(part[0][1]["masks"], dataset[index][1]["masks"])
    assert part.images.name(0) == dataset.images.name(index)
    assert ids_and_boxes(dataset.split(0.4, seed=1)[1]) == ids_and_boxes(part)
    assert len({ids_and_boxes(dataset.split(0.4, seed)[1])[0][0] for seed in range(20)}) == 3
    rest.set_transform(noisy)
    assert "drawn" in rest[0][1] and "drawn" not in part[0][1]
    for fraction in (0, 1, 1.5, 0.99, -0.2, float("nan")):
        with pytest.raises(ValueError, match="fraction is .* of 3 images"):
            dataset.split(fraction)


def test_subsets_of_torch_are_data_sets(dataset: DetectionDataset):
    """What random_split returns can be evaluated and checked, nested too, with its transform."""
    dataset.set_transform(noisy)
    one, _ = random_split(dataset, [2, 1], torch.Generator().manual_seed(0))
    converted = as_detection_dataset(Subset(one, [1]))
    assert ids_and_boxes(converted) == ids_and_boxes(dataset)[one.indices[1] :][:1]
    assert len(converted.ground_truth()["images"]) == 1 and converted.transform is noisy
    assert as_detection_dataset(dataset) is dataset
    with pytest.raises(ValueError, match="repeated images"):
        as_detection_dataset(Subset(dataset, [0, 0]))
    with pytest.raises(TypeError, match="a TensorDataset; expected a DetectionDataset"):
        as_detection_dataset(Subset(TensorDataset(torch.zeros(3)), [0]))


def test_joined_data_sets(dataset: DetectionDataset, tmp_path: Path):
    """ConcatDataset and + give a data set whose image ids differ, if the classes are equal."""
    rest, part = dataset.split(0.4)
    for joined in (rest + part, as_detection_dataset(ConcatDataset([rest, part]))):
        assert ids_and_boxes(joined) == ids_and_boxes(rest) + ids_and_boxes(part)
        assert joined.masks and torch.equal(joined[2][0], part[0][0])
        assert Path(joined.images.name(2)).name == Path(part.images.name(0)).name
    twice = dataset + dataset
    assert [image_id for image_id, _ in ids_and_boxes(twice)] == list(range(6))
    boxes = read_coco(*write_coco(tmp_path / "other", ENTRIES))
    with pytest.raises(ValueError, match="masks or segment maps, others don't"):
        dataset + boxes
    cats = [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}]
    other = read_coco(*write_coco(tmp_path / "cats", ENTRIES, categories=cats))
    with pytest.raises(ValueError, match="different classes"):
        boxes + other


def test_a_sum_keeps_the_transform_or_says_that_it_has_none(dataset: DetectionDataset):
    """An augmentation isn't lost without a word."""
    rest, part = dataset.split(0.4)
    rest.set_transform(noisy)
    with pytest.warns(UserWarning, match="transforms differ, so that the sum has none"):
        assert (rest + part).transform is None
    part.set_transform(noisy)
    assert "drawn" in (rest + part)[2][1]
