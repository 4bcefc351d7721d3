"""The choice of training and validation splits."""

import pytest

from hf_detr.data.splits import (
    all_splits,
    check_can_be_divided,
    check_same_classes,
    checked_split,
    evaluation_split,
    other_splits,
    training_splits,
    validation_split,
    warn_of_test_split,
)


def test_the_first_validation_split_is_used():
    """val, valid and validation come before test, and the training split isn't one."""
    for names, found in (
        (["train", "test", "val"], "val"),
        (["validation", "valid", "test"], "valid"),
        (["train", "test", "validation"], "validation"),
        (["train", "test"], "test"),
    ):
        assert validation_split(names, "data") == found
    assert validation_split(["val", "test"], "data", training="val") == "test"
    assert validation_split(["Train", "Validation"], "data") == "Validation"
    with pytest.raises(ValueError, match=r"no validation split.*\['train'\]. Give --split"):
        validation_split(["train"], "data")
    with pytest.raises(ValueError, match="Give --val-fraction 0.2"):
        validation_split(["train"], "data", training="train")
    with pytest.raises(ValueError, match="no splits; give --val-fraction 0.2"):
        validation_split(None, "data", training="train")


def test_only_test_is_worth_a_warning():
    """Test data aren't used for validation without a word."""
    warn_of_test_split("val", "data")
    with pytest.warns(UserWarning, match="its split 'test' is used for validation"):
        warn_of_test_split("test", "data")


def test_training_data_are_only_divided_without_validation_split():
    """A validation split isn't ignored; a test split is no validation split."""
    check_can_be_divided(["train", "test"], "data", "train")
    check_can_be_divided(None, "data", "train")
    with pytest.raises(ValueError, match="has the validation split 'valid'; omit --val-fraction"):
        check_can_be_divided(["train", "valid"], "data", "train")


def test_unknown_splits_are_refused():
    """The error lists the splits."""
    assert checked_split(["train", "dev"], "dev", "data") == "dev"
    assert checked_split(["Train", "Test"], "train", "data") == "Train"  # CVAT's names
    assert checked_split(["Train", "train"], "train", "data") == "train"
    with pytest.raises(ValueError, match=r"no split 'val'; its splits are \['train'\]"):
        checked_split(["train"], "val", "data")
    with pytest.raises(ValueError, match="has no splits, but is one; omit --split val"):
        checked_split(None, "val", "data")


def test_classes_of_both_have_to_be_equal():
    """A label has one meaning."""
    check_same_classes({0: "cat"}, {0: "cat"})
    with pytest.raises(ValueError, match="the classes of train and val differ: "):
        check_same_classes({0: "cat"}, {0: "dog"})


def test_splits_of_a_training():
    """A split and a validation split, or None where the former is divided."""
    assert training_splits(["Train", "Test"], "data", None, None) == ("Train", "Test")
    assert training_splits(["trainval", "test"], "data", None, None) == ("trainval", "test")
    assert training_splits(["trainval", "train", "val"], "data", None, None) == ("train", "val")
    assert training_splits(["dev", "val"], "data", "dev", None) == ("dev", "val")
    assert training_splits(["train", "test"], "data", None, 0.2) == ("train", None)
    assert training_splits(None, "data", None, 0.2) == ("train", None)
    with pytest.raises(ValueError, match="no split 'train'"):
        training_splits(["val"], "data", None, None)


def test_splits_of_an_evaluation_and_of_a_check():
    """An evaluation needs validation data or no splits; a check, as a training, training data."""
    assert evaluation_split(["train", "val"], "data", None) == "val"
    assert evaluation_split(["train", "val"], "data", "train") == "train"
    assert evaluation_split(None, "data", None) == "train"
    assert all_splits(["test", "val", "train"], "data", None) == ["train", "val"]
    assert all_splits(["Train"], "data", None) == ["Train"]
    assert all_splits(["trainval", "test"], "data", None) == ["trainval", "test"]
    assert all_splits(["test"], "data", "test") == ["test"]
    assert all_splits(["train", "val"], "data", "val") == ["val"]
    for other in ("dev", "test"):
        with pytest.raises(ValueError, match=f"no split 'train' or .*{other}'.* Give --split"):
            all_splits([other], "data", None)


def test_splits_besides_those_that_are_read():
    """They are those of training and validation, without the other ones."""
    for splits, names, found in (
        (["test", "rest", "Train", "valid"], ["valid"], ["Train"]),
        (["train", "val"], ["train", "val"], []),
        (["train", "test"], ["train[:9]"], ["train", "test"]),
        (["a", "b"], ["a"], []),
        (None, ["train"], []),
    ):
        assert other_splits(splits, names) == found
