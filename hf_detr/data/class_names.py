"""Names of category ids on a command line."""


def parsed_names(text: str) -> dict[int, str]:
    """Parse the names of category ids, `cat,dog` from 0 or `7=cat,9=dog`.

    Raises:
        ValueError: if a name is empty or repeated, or only some have numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    pairs = [part.partition("=") for part in parts]
    are_numbered = {number.isdecimal() and bool(equals) for number, equals, _ in pairs}
    if are_numbered == {True}:
        names = {int(number): name.strip() for number, _, name in pairs}
    else:
        names = dict(enumerate(parts))
    if len(are_numbered) > 1 or not all(names.values()) or len(set(names.values())) < len(parts):
        raise ValueError(
            f"--names is {text!r}; expected different names such as cat,dog or 7=cat,9=dog."
        )
    return names
