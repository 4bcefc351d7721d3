"""Names of category ids on a command line."""

import pytest

from hf_detr.data.class_names import parsed_names


def test_names_of_category_ids():
    """Names are numbered from 0, or have numbers; other equals signs are part of a name."""
    assert parsed_names("cat,big dog") == {0: "cat", 1: "big dog"}
    assert parsed_names("9=dog, 7=cat") == {9: "dog", 7: "cat"}
    assert parsed_names("a=b,c") == {0: "a=b", 1: "c"}
    for text in ("7=cat,dog", "b,b", "b,,c"):
        with pytest.raises(ValueError, match="expected different names such as"):
            parsed_names(text)
