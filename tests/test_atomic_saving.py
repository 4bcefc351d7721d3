"""Interrupted saves leave the old files or the new ones, never a mixture."""

import errno
import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hf_detr
from hf_detr.atomic_saving import (
    FINISHED,
    MOVING,
    UNFINISHED,
    atomic_file,
    atomic_folder,
    finish_interrupted_save,
    read_between_saves,
    remove_interrupted_saves,
)

from .processes import run_python
from .tiny import tiny_config, tiny_detector

# A model whose weights all have one value, and whose classes are named after it.
MODEL = """
import hf_detr, torch
from tests.tiny import tiny_config

def model_of(value, **options):
    config = tiny_config("detr", decoder_layers=1, encoder_layers=1, num_labels=1)
    config.id2label = {0: str(value)}
    model = hf_detr.DetrForObjectDetection(config)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)
    return model
"""
# Kills a save at every change of a folder in turn, and reports the model found after each kill.
KILL_EVERYWHERE = (
    MODEL
    + """
import json, os, shutil, signal, sys
from pathlib import Path
from safetensors.torch import load_file

WATCHED = {"open", "os.rename", "os.remove", "os.mkdir"}
place = Path(sys.argv[1])
old, new = model_of(1), model_of(2)

def save_and_die(folder, shards, at):
    count = 0
    def watch(event, arguments):
        nonlocal count
        if event in WATCHED and str(folder) in str(arguments[0]) and arguments[1] != "r":
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    new.save_pretrained(folder, max_shard_size=shards)

def values(tensors):
    return {float(v) for tensor in tensors.values() for v in tensor.unique()}

def without_us(folder):
    "Label and weights as other readers find them; None for no weights."
    label = json.loads((folder / "config.json").read_text())["id2label"]["0"]
    files = [folder / "model.safetensors"]
    if not files[0].exists():
        index = folder / "model.safetensors.index.json"
        if not index.exists():
            return label, None
        files = [folder / f for f in set(json.loads(index.read_text())["weight_map"].values())]
    return label, values({k: v for f in files for k, v in load_file(f).items()})

def with_us(folder):
    model = hf_detr.DetrForObjectDetection.from_pretrained(folder)
    (value,) = values(model.state_dict())
    assert model.config.id2label[0] == str(int(value)), model.config.id2label
    assert {n for n in os.listdir(folder) if n[0] == "."} <= {".unfinished-save"}
    return value

report = {}
for before, after in ("1GB", "300KB"), ("300KB", "1GB"):
    folder = place / f"{before}-{after}"
    found, at, status = [], 0, 1
    old.save_pretrained(place / "old", max_shard_size=before)
    (place / "old" / "notes.txt").write_text("mine")
    while status:
        at += 1
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(place / "old", folder)
        child = os.fork()
        if child == 0:
            save_and_die(folder, after, at)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        label, weights = without_us(folder)
        assert weights in (None, {float(label)}), (at, label, weights)
        counts = {".finished-save", ".moving-save"} & set(os.listdir(folder))
        found.append(with_us(folder) if counts or weights != {1.0} else 1.0)
        assert without_us(folder) == (str(int(found[-1])), {found[-1]})
        assert (folder / "notes.txt").read_text() == "mine"
    report[folder.name] = found
print("REPORT", json.dumps(report))
"""
)


def run_script(code: str, folder: Path) -> str:
    """Run Python in another process, which may fork; return what it prints."""
    with tempfile.TemporaryDirectory() as place:
        script = Path(place, "script.py")
        script.write_text(code)
        result = run_python(script, folder, folder=Path.cwd(), environment=os.environ)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills copies of a process")
def test_kill_at_every_step(tmp_path: Path) -> None:
    """`kill -9` at each change of the folder leaves the old model or the new, sharded or not."""
    report = json.loads(run_script(KILL_EVERYWHERE, tmp_path).split("REPORT")[1])
    assert len(report) == 2
    for case, found in report.items():
        assert len(found) > 6, case  # there were so many steps
        assert found == sorted(found), case  # once the new one counts, it stays
        assert {found[0], found[-1]} == {1.0, 2.0}, case


# One process saves two models in turn; another loads during each move of files.
SAVE_AND_LOAD = (
    MODEL
    + """
import os, sys, time
from pathlib import Path

folder = Path(sys.argv[1])
models = model_of(1), model_of(2)
models[1].save_pretrained(folder)
read, write = os.pipe()
child = os.fork()
if child == 0:
    def slow(change):
        def then_wait(*paths):
            change(*paths)
            os.write(write, b".")
            time.sleep(0.02)
        return then_wait
    os.replace, os.rename = slow(os.replace), slow(os.rename)
    for round in range(12):
        models[round % 2].save_pretrained(folder)
    os._exit(0)
os.close(write)
while True:
    has_ended = not os.read(read, 1000)
    model = hf_detr.DetrForObjectDetection.from_pretrained(folder)
    found = {float(v) for tensor in model.state_dict().values() for v in tensor.unique()}
    assert found == {float(model.config.id2label[0])}, (found, model.config.id2label)
    if has_ended:
        break
assert os.waitpid(child, 0)[1] == 0
print("FOUND", found, sorted(os.listdir(folder)))
"""
)
# A save is killed before its files move, while a process that it has forked lives on.
KILL_AND_LEAVE_CHILD = """
import os, signal, sys
from pathlib import Path
from hf_detr import atomic_saving

folder = Path(sys.argv[1])
folder.mkdir()
(folder / "a").write_text("old")
end, keep = os.pipe()
child = os.fork()
if child == 0:
    def die(*paths):
        if os.fork() == 0:
            os.close(keep)
            os.read(end, 1)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    atomic_saving._complete_move = lambda folder: (folder / ".finished-save").exists() and die()
    with atomic_saving.atomic_folder(folder) as unfinished:
        (unfinished / "a").write_text("new")
os.waitpid(child, 0)
with atomic_saving._lock(folder, wait=False) as is_locked:
    assert is_locked
assert atomic_saving.finish_interrupted_save(folder)
print((folder / "a").read_text(), os.listdir(folder))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process")
def test_loading_while_another_process_saves(tmp_path: Path) -> None:
    """A load gets one of the two models whole, and doesn't disturb the process that saves."""
    shown = run_script(SAVE_AND_LOAD, tmp_path / "model")
    assert "FOUND {2.0} ['config.json', 'model.safetensors']" in shown


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process")
def test_forked_process_of_a_killed_save(tmp_path: Path) -> None:
    """A killed save is free to be completed, whatever its child processes do."""
    assert run_script(KILL_AND_LEAVE_CHILD, tmp_path / "model") == "new ['a']\n"


def test_saves_wait_for_each_other(tmp_path: Path) -> None:
    """Threads that save to one folder, new at first, take turns; its files are of one of them."""

    def save(value: str) -> None:
        try:
            with atomic_folder(folder) as unfinished:
                for name in names:
                    (unfinished / name).write_text(value)
        except BaseException as error:
            errors.append(error)

    folder, names, errors = tmp_path / "model", ("model.onnx", "model.onnx.data"), []
    threads = [threading.Thread(target=save, args=[str(i)]) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert {path.name for path in folder.iterdir()} == set(names)
    assert len({path.read_text() for path in folder.iterdir()}) == 1
    assert list(tmp_path.iterdir()) == [folder]


def test_folder_that_another_save_has_just_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save whose unfinished folder is renamed while it makes it uses the new folder."""
    mkdir, raced = Path.mkdir, []

    def racing(self: Path, *arguments: Any, **named: Any) -> None:
        if not raced and self.name.startswith(UNFINISHED):
            raced.append(self)
            mkdir(tmp_path / "model")
            raise FileExistsError(17, "File exists", str(self))
        mkdir(self, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", racing)
    with atomic_folder(tmp_path / "model") as unfinished:
        (unfinished / "a").touch()
    assert raced and [path.name for path in (tmp_path / "model").iterdir()] == ["a"]


def test_running_saves_are_not_removed(tmp_path: Path) -> None:
    """Only what killed saves left is removed."""
    pytest.importorskip("fcntl")
    killed = tmp_path / f"{UNFINISHED}-step-1"
    killed.mkdir()
    with atomic_folder(tmp_path / "step-2") as unfinished:
        (unfinished / "a").touch()
        remove_interrupted_saves(tmp_path / "step-*")
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


def test_reading_is_repeated_after_a_save(tmp_path: Path) -> None:
    """Files read before and after a save aren't combined, and missing ones are looked for again."""

    def save(value: str) -> None:
        with atomic_folder(tmp_path) as folder:
            (folder / "config.json").write_text(value)

    def read() -> str:
        value = (tmp_path / "config.json").read_text()
        (tmp_path / "losses.csv").write_text(value)  # other files don't count
        if value != "3":
            save(str(int(value) + 1))
        if value == "2":
            raise FileNotFoundError
        return value

    save("1")
    assert read_between_saves(tmp_path, read) == "3"
    save("1")
    with pytest.raises(OSError, match="load once more"):
        read_between_saves(tmp_path, read, "config.json")
    save("1")
    assert read_between_saves(tmp_path, read, "other.json") == "3"
    with pytest.raises(KeyError, match="mine"):
        read_between_saves(tmp_path, lambda: {}["mine"])


def test_reading_is_repeated_after_a_move_that_has_just_begun(tmp_path: Path) -> None:
    """Such a move hid a file before the first look, and has changed nothing since."""

    def read() -> str:
        if not (tmp_path / "model.safetensors").exists():
            (tmp_path / MOVING).mkdir()
            (tmp_path / MOVING / "model.safetensors").write_text("new")
        return (tmp_path / "model.safetensors").read_text()

    assert read_between_saves(tmp_path, read) == "new"


def test_load_from_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted save that may not be completed is a warning; the old model loads."""
    old, new = tiny_detector("detr"), tiny_detector("detr", num_queries=9)
    old.save_pretrained(tmp_path)
    new.save_pretrained(tmp_path / FINISHED)

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        with pytest.warns(UserWarning, match="was interrupted, and you may not complete it"):
            loaded = type(old).from_pretrained(tmp_path, config=old.config)
    assert loaded.config.num_queries == old.config.num_queries
    assert type(old).from_pretrained(tmp_path).config.num_queries == 9


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving works, and a warning says what isn't safe."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.warns(UserWarning, match="has no locks .*another process"),
        atomic_folder(tmp_path / "a") as folder,
    ):
        (folder / "b").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.parametrize("shards", ["1GB", "300KB"])
def test_full_disk(tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk too full for the new file leaves the old ones, with an error and no partial files."""
    resource = pytest.importorskip("resource")
    old = tiny_detector("detr")
    old.save_pretrained(tmp_path, max_shard_size=shards)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    new = tiny_detector("detr", encoder_layers=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="could not be written .*existing files are unchanged"):
            new.save_pretrained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_no_old_weights_stay(tmp_path: Path, variant: str | None) -> None:
    """One file over shards, shards over one file, fewer shards: only the new ones are there."""
    dot = "" if variant is None else f".{variant}"
    (tmp_path / "model.other.safetensors").write_bytes(b"other")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"other")
    model = tiny_detector("detr")
    names = {}
    for shards in ("1GB", "200KB", "400KB", "1GB"):
        model.save_pretrained(tmp_path, max_shard_size=shards, variant=variant)
        kept = {"config.json", "model.other.safetensors", "adapter_model.safetensors"}
        names[shards] = set(os.listdir(tmp_path)) - kept
    assert names["1GB"] == {f"model{dot}.safetensors"}
    for shards in ("200KB", "400KB"):
        index = f"model.safetensors.index{dot}.json"
        assert index in names[shards] and len(names[shards]) > 2
        assert all(f"-of-{len(names[shards]) - 1:05d}" in name for name in names[shards] - {index})


def test_interrupted_save_is_completed_on_load(tmp_path: Path) -> None:
    """A loader that has already read the old configuration raises; loading again works."""
    old, new = tiny_detector("detr"), tiny_detector("detr", num_queries=9)
    old.save_pretrained(tmp_path)
    new.save_pretrained(tmp_path / FINISHED)
    with pytest.raises(OSError, match="interrupted. It is complete now.*load once more"):
        type(old).from_pretrained(tmp_path, config=old.config)
    loaded = type(old).from_pretrained(tmp_path)
    assert loaded.config.num_queries == 9
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


def test_interrupted_move_is_completed(tmp_path: Path) -> None:
    """The next save completes the move of the one before, and removes incomplete files."""
    tiny_detector("detr").save_pretrained(tmp_path / UNFINISHED)
    tiny_detector("detr").save_pretrained(tmp_path / MOVING, max_shard_size="300KB")
    tiny_config("detr", num_queries=9).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_queries"] == 9
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert not finish_interrupted_save(tmp_path) and not (tmp_path / UNFINISHED).exists()


def test_errors_of_the_caller(tmp_path: Path) -> None:
    """An error while files are written is raised as it is; old files stay, no new ones appear."""
    (tmp_path / "a").write_text("old")
    for target in (tmp_path, tmp_path / "sub" / "new"):
        with pytest.raises(KeyError, match="mine"), atomic_folder(target) as folder:
            (folder / "a").write_text("new")
            raise KeyError("mine")
    with pytest.raises(KeyError, match="mine"), atomic_file(tmp_path / "a") as file:
        file.write_text("new")
        raise KeyError("mine")
    assert sorted(os.listdir(tmp_path)) == ["a", "sub"] and not os.listdir(tmp_path / "sub")
    assert (tmp_path / "a").read_text() == "old"


def test_new_folder_and_file_appear_complete(tmp_path: Path) -> None:
    """They don't exist before they are complete, and have the usual permissions."""
    target = tmp_path / "models" / "hub"
    (tmp_path / "models").mkdir()
    killed = target.with_name(f"{UNFINISHED}-hub")
    killed.mkdir()
    (killed / "rest").touch()
    with atomic_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").touch()
        assert not target.exists()
    with atomic_file(target / "b" / "c") as file:
        file.touch()
        assert not (target / "b" / "c").exists()
    names = {path.relative_to(target).as_posix() for path in target.rglob("*")}
    assert names == {"sub", "sub/a", "b", "b/c"}
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode == target.parent.stat().st_mode


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("both", [("model.onnx", "model.onnx.data"), ("model.xml", "model.bin")])
def test_graph_and_its_weights(
    tmp_path: Path, both: tuple[str, str], fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old graph doesn't stay beside new weights, at whichever file the move stops."""

    def write(value: str, names: tuple[str, ...]) -> None:
        with atomic_folder(tmp_path) as folder:
            for name in names:
                (folder / name).write_text(value)

    def stop_at(one: Path, other: Path) -> None:
        calls.append(one)
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        replace(one, other)

    calls, replace = [], os.replace
    write("old", both)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", stop_at)
        write("new", both)
    assert not (tmp_path / both[0]).exists()
    finish_interrupted_save(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        both, "new"
    )
    write("newer", both[:1])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {both[0]: "newer"}


def test_a_file_in_the_way(tmp_path: Path) -> None:
    """Saving to a path that is a file is an error; transformers only logs it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not be written") as info:
        tiny_detector("detr").save_pretrained(tmp_path / "file")
    assert info.value.errno == errno.ENOTDIR


def test_processor_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor's file is the old one until the new one is complete."""
    hf_detr.DetrImageProcessor().save_pretrained(tmp_path)
    monkeypatch.setattr(
        "hf_detr.atomic_saving.flush", lambda path: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(OSError, match="full"):
        hf_detr.DetrImageProcessor(do_pad=False).save_pretrained(tmp_path)
    monkeypatch.undo()
    assert hf_detr.DetrImageProcessor.from_pretrained(tmp_path).do_pad
    (path,) = hf_detr.DetrImageProcessor(do_pad=False).save_pretrained(tmp_path)
    assert Path(path) == tmp_path / "preprocessor_config.json"
    assert not hf_detr.DetrImageProcessor.from_pretrained(tmp_path).do_pad


def test_given_weights_are_written_and_kept(tmp_path: Path) -> None:
    """`state_dict=` is saved, and unchanged afterwards."""
    model = tiny_detector("detr")
    given = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=given)
    assert set(given) == set(model.state_dict())
    assert not any(tensor.any() for tensor in load_file(tmp_path / "model.safetensors").values())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_readers_of_saved_files(tmp_path: Path, umask: int, mode: int) -> None:
    """The user's umask says who may read weights, which safetensors makes private."""
    before = os.umask(umask)
    try:
        tiny_detector().save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    for file in (tmp_path / "model").iterdir():
        assert file.stat().st_mode & 0o777 == mode


def test_file_systems_without_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save succeeds where nobody may change permissions, as on some network drives."""

    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "chmod", refuse)
    tiny_detector().save_pretrained(tmp_path / "model")
    hf_detr.DetrForObjectDetection.from_pretrained(tmp_path / "model")
