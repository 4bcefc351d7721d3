"""Names of files in annotations: kept inside their folder, and found in other spellings."""

import codecs
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import unquote

import PIL.Image

# What PIL registers, but isn't read as an image: EPS runs Ghostscript, and the others are icons,
# animations, documents, working files of editors, and formats that PIL only recognizes.
NOT_IMAGES = {
    *("BUFR", "CUR", "EPS", "FLI", "GBR", "GRIB", "HDF5", "ICNS", "ICO", "IPTC", "MPEG", "PDF"),
    *("PSD", "WMF"),
}
# Only names like these are looked up in other spellings, because each look-up takes time.
UNUSUAL = re.compile(r"[\\%:?]|//|^/|[^\x00-\x7f]|(?:^|/)(?:[0-9a-f]{8}-|upload/)")
# Names like these are inside and usual, which is found without parsing them as paths.
PLAIN = re.compile(r"(?!/)(?:(?:^|/)(?![0-9a-f]{8}-|upload/)[\w-][\w. -]*)+", re.ASCII)
LABEL_STUDIO = re.compile(r"^.*/local-files/\?d=|^(?:.*/)?data/(?:media/)?upload/(?:\d+/)?")
ORIGIN = re.compile(r"^[A-Za-z][\w+.-]+://[^/]*|^[A-Za-z]:")  # of a URL or a Windows path
UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # Label Studio writes it before uploaded files' names


def image_endings() -> set[str]:
    """Return the endings of image files that PIL can open, such as `.jpg`, in lower case."""
    endings = PIL.Image.registered_extensions()  # also fills OPEN
    kinds = {*PIL.Image.OPEN, "MPO"} - NOT_IMAGES  # MPO is opened as JPEG
    return {ending for ending, kind in endings.items() if kind in kinds}


def files_below(folder: str | os.PathLike[str], endings: Container[str]) -> list[str]:
    """Return the relative paths of files with some endings, in lower case, in folder by folder.

    Links to folders are followed, but each folder is read once, because links can be circles.
    """
    return sorted(walk_files(folder, endings), key=lambda name: name.split(os.sep))


def walk_files(folder: str | os.PathLike[str], endings: Container[str]) -> Iterator[str]:
    """Yield the paths that `files_below` returns, in another order."""
    root = os.path.join(folder, "")
    seen, starts = set(), [root]
    while starts:
        links = []  # followed last, so that a folder has its own name and not that of a link
        for start in starts:
            real_start = os.path.realpath(start)
            for path, folders, names in os.walk(start):
                real = os.path.join(real_start, path[len(start) :]).rstrip(os.sep)
                if real in seen:
                    folders.clear()
                    continue
                seen.add(real)
                inner = path[len(root) :]
                for name in names:
                    if os.path.splitext(name)[1].lower() in endings:
                        yield os.path.join(inner, name)
                links += filter(os.path.islink, (os.path.join(path, name) for name in folders))
        starts = [os.path.join(link, "") for link in sorted(links)]


def read_lines(file: Path) -> list[str]:
    """Read the lines of a text file in UTF-8, with or without byte-order mark, or UTF-16 with it.

    Raises:
        ValueError: if the file has another encoding.
    """
    content = file.read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} isn't UTF-8 text: {error}; save it as UTF-8.") from error


def names_inside(folder: Path, names: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the names of files as they are spelled in their folder, and a note of the changes.

    Annotation tools write Windows paths, absolute paths, URLs or encoded names, and Windows ignores
    case. If a folder has no file of such a name, the file of another spelling is used.

    Raises:
        ValueError: if a name is outside the folder, or two names are spellings of the same file.
    """
    spelled: dict[str, str] = {}
    for name in names:
        if is_plain(name, folder):
            continue
        if not is_inside(name) or (_is_unusual(name, folder) and not os.path.isfile(folder / name)):
            found = find_inside(folder, name) if isinstance(name, str) else None
            if found is None:
                check_stays_inside([name])
            else:
                spelled[name] = found
    spelled |= _other_cases(folder, [name for name in names if name not in spelled])
    if not spelled:
        return list(names), None
    result = [spelled.get(name, name) for name in names]
    owner: dict[str, str] = {}
    for name, file in zip(names, result, strict=True):
        if owner.setdefault(file, name) != name:
            raise ValueError(
                f"The file names {owner[file]!r} and {name!r} in the annotations could both mean "
                f"{file!r} in {folder}; write the names relative to that folder."
            )
    name = next(iter(spelled))
    note = (
        f"{len(spelled)} of {len(names)} file names in the annotations are spelled differently in "
        f"{folder}, whose files are used, such as {spelled[name]!r} for {name!r}"
    )
    return result, note


def is_plain(name: object, folder: Path) -> bool:
    """Whether a name is certainly that of a file in the folder, without another spelling."""
    is_usual = isinstance(name, str) and PLAIN.fullmatch(name) is not None
    return is_usual and not ("/" in name and name.startswith(f"{folder.name}/"))


def are_listed(folder: Path, names: Sequence[str]) -> bool:
    """Whether files of all names, which are inside the folder, exist."""
    return not _unlisted(folder, names)


def _unlisted(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the names without file; listing folders is faster than looking up many files."""
    listed: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parent, _, file = name.rpartition("/")
        if parent not in listed:
            try:
                listed[parent] = set(os.listdir(folder / parent))
            except (OSError, ValueError):  # ValueError for names that no folder can have
                listed[parent] = set()
        if file not in listed[parent]:
            missing.append(name)
    return missing


def _other_cases(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the files that missing names differ from in case only, where there is one of each."""
    listed: dict[str, dict[str, list[str]]] = {}

    def spelled(parent: str, part: str) -> list[str]:
        if parent not in listed:
            try:
                listed[parent] = _by_folded_case(os.listdir(folder / parent))
            except (OSError, ValueError):  # as in `_unlisted`
                listed[parent] = {}
        prefix = f"{parent}/" if parent else ""
        return [prefix + entry for entry in listed[parent].get(part.casefold(), ())]

    named, result = set(names), {}
    for name in dict.fromkeys(_unlisted(folder, names)):
        found = [""]
        for part in name.split("/"):
            found = [path for parent in found for path in spelled(parent, part)]
        if len(found) == 1 and found[0] not in named:
            result[name] = found[0]
    uses = Counter(result.values())  # two names can differ in case only
    return {name: file for name, file in result.items() if uses[file] == 1}


def _by_folded_case(names: Iterable[str]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for name in names:
        found[name.casefold()].append(name)
    return found


def find_inside(folder: Path, name: str, is_folder: bool = False) -> str | None:
    """Find a file or a folder inside `folder` by other spellings of its name; None if none fits."""
    exists = os.path.isdir if is_folder else os.path.isfile
    for spelling in _other_spellings(name, folder.name):
        if is_inside(spelling) and exists(folder / spelling):
            return spelling
    return None


def check_stays_inside(names: Sequence[str]) -> None:
    """Check that file names can't be used to read files outside their folder.

    Raises:
        ValueError: for absolute paths and `..`, in the syntax of Linux or Windows.
    """
    for name in names:
        if not is_inside(name):
            raise ValueError(
                f"The file name {name!r} in the annotations is not a path inside the image folder; "
                "expected a path relative to that folder, without '..'. Other spellings, such as "
                "the end of a path or URL, aren't files of the folder either."
            )


def is_inside(name: object) -> bool:
    """Whether a name is a relative path without `..`, in the syntax of Linux and Windows."""
    if not isinstance(name, str) or "\0" in name or PurePosixPath(name).is_absolute():
        return False
    path = PureWindowsPath(name)  # splits at slashes and backslashes, and parses drives
    return bool(path.parts) and not path.anchor and ".." not in path.parts


def _is_unusual(name: str, folder: Path) -> bool:
    return UNUSUAL.search(name) is not None or name.startswith(f"{folder.name}/")


def _other_spellings(name: str, folder_name: str) -> Iterator[str]:
    """Yield relative spellings of a name; of absolute paths and URLs, their ends, longest first."""
    for text in dict.fromkeys((name, unquote(name))):
        text = text.replace("\\", "/")
        path = ORIGIN.sub("", LABEL_STUDIO.sub("/", text))
        if "://" in text:
            path = path.partition("?")[0]
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not parts or ".." in parts:
            continue
        is_absolute = path != text or path.startswith("/")
        # Darknet's lists, as of CVAT and Datumaro, start with a folder data that isn't exported.
        last_start = len(parts) - 1 if is_absolute else int(parts[0] in (folder_name, "data"))
        for start in range(min(last_start, len(parts) - 1) + 1):
            *folders, file = parts[start:]
            for final in dict.fromkeys((file, UPLOAD_PREFIX.sub("", file))):
                spelling = "/".join([*folders, final])
                yield spelling
                # macOS decomposes accented characters, other systems don't.
                yield from (unicodedata.normalize(form, spelling) for form in ("NFC", "NFD"))
