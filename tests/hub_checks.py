"""Checks with the Hub's real client against `hub_server`; test_publishing.py runs them.

Not collected by itself: the client reads HF_ENDPOINT and its kin when it is imported, so it needs
a process of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
import transformers
from huggingface_hub import HfApi, ModelCard, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from torch.testing import assert_close

import hf_detr

from .hub_server import Hub
from .test_documentation import REPOSITORY, blocks
from .tiny import class_of, padded_batch, tiny_config, tiny_detector

# What the client itself is warned of.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
OWNER, STRANGER = "hf_owner", "hf_stranger"
ALL = [
    (variant, kind)
    for variant in ("detr", "conditional_detr", "deformable_detr")
    for kind in ("ForObjectDetection", "ForSegmentation")
]
ONLY_HERE = {("conditional_detr", "ForSegmentation"), ("deformable_detr", "ForSegmentation")}
LOAD_WITHOUT_US = """
import json, sys, warnings
import torch, transformers
from safetensors.torch import load_file
warnings.simplefilter("error")
inputs = load_file(sys.argv[1])
for repo, name in json.loads(sys.argv[2]):
    model, info = getattr(transformers, name).from_pretrained(repo, output_loading_info=True)
    assert not any(info.values()), info
    processor = transformers.AutoImageProcessor.from_pretrained(repo)
    assert type(processor).__module__.startswith("transformers."), processor
    with torch.no_grad():
        output = model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
    for key in ("logits", "pred_boxes", "pred_masks"):
        if f"{repo}.{key}" in inputs:
            torch.testing.assert_close(output[key], inputs[f"{repo}.{key}"], atol=1e-4, rtol=0)
            print("SAME", repo, key)
assert "hf_detr" not in sys.modules
"""


@pytest.fixture(scope="module")
def server() -> Hub:
    """One server for all checks, at the place where this process's client looks for the Hub."""
    return Hub(urlsplit(constants.ENDPOINT).port)


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server without any faults; the client has the owner's token and an empty cache."""
    server.mend()
    server.large.clear()
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before the client asks again
    monkeypatch.setenv("HF_TOKEN", OWNER)
    use_cache(tmp_path / "cache", monkeypatch)
    yield server
    assert not server.unknown, server.unknown


def use_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client keep what it downloads in a folder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))


def some_model(variant: str, kind: str = "ForObjectDetection", seed: int = 0, **changes: object):
    """A tiny model of a class and its image processor."""
    torch.manual_seed(seed)
    if kind == "ForSegmentation":
        changes = {"d_model": 128, "encoder_attention_heads": 8, **changes}
    model = class_of(variant, kind)(tiny_config(variant, auxiliary_loss=True, **changes)).eval()
    return model, class_of(variant, "ImageProcessor")(size={"height": 64, "width": 96})


def outputs(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a model predicts for a fixed batch."""
    with torch.no_grad():
        found = model(*padded_batch())
    return {k: found[k] for k in ("logits", "pred_boxes", "pred_masks") if k in found}


def files_of(hub: Hub, repo: str, branch: str = "main") -> dict[str, bytes]:
    """A branch's files on the server."""
    repository = hub.repositories[f"tester/{repo}"]
    return repository.commits[repository.branches[branch]]


def push_raw(hub: Hub, repo: str, **files: bytes) -> None:
    """Put files into a repository, past the client."""
    repository = hub.repositories[f"tester/{repo}"]
    repository.commit("main", {**files_of(hub, repo), **files}, "raw")


def test_every_class_comes_back_and_loads_without_us(hub: Hub, tmp_path: Path) -> None:
    """Push and pull of all six classes; those of transformers then load in a process of its own."""
    pixel_values, pixel_mask = padded_batch()
    expected, there = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}, []
    for variant, kind in ALL:
        repo, (model, processor) = f"tester/{variant}{kind}".lower(), some_model(variant, kind)
        commit = hf_detr.push_to_hub(model, processor, repo)
        assert model.config.auxiliary_loss
        assert hub.repositories[repo].branches["main"] == commit.oid
        assert len(hub.repositories[repo].messages) == 2  # the first makes the repository
        assert set(files_of(hub, repo.split("/")[1])) == {
            *(".gitattributes", "README.md", "config.json", "model.safetensors"),
            "preprocessor_config.json",
        }
        card = ModelCard(files_of(hub, repo.split("/")[1])["README.md"].decode())
        is_segmenter = kind == "ForSegmentation"
        assert card.data.pipeline_tag == (
            "image-segmentation" if is_segmenter else "object-detection"
        )
        assert {"hf_detr", variant} <= set(card.data.tags)
        alone = (variant, kind) in ONLY_HERE
        assert card.data.library_name == ("hf_detr" if alone else "transformers")
        assert ("The model needs hf_detr" in card.text) == alone

        loaded = class_of(variant, kind).from_pretrained(repo)
        for key, value in outputs(model).items():
            assert_close(outputs(loaded)[key], value, atol=0, rtol=0)
            if key != "pred_boxes" or not alone:  # theirs leave the reference points out
                expected[f"{repo}.{key}"] = value
        again = transformers.AutoImageProcessor.from_pretrained(repo)
        assert type(again) is type(processor) and dict(again.size) == dict(processor.size)
        if hasattr(transformers, class_of(variant, kind).__name__):
            there.append((repo, class_of(variant, kind).__name__))
    check_without_us(expected, there, tmp_path)


def check_without_us(
    expected: dict[str, torch.Tensor], there: list[tuple[str, str]], folder: Path
) -> None:
    """Load repositories with transformers alone: same outputs, silence."""
    from safetensors.torch import save_file

    save_file({k: v.clone() for k, v in expected.items()}, folder / "expected.safetensors")
    environment = {**os.environ, "HF_HOME": str(folder / "theirs"), "TQDM_DISABLE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_US, folder / "expected.safetensors", json.dumps(there)],
        **{"env": environment, "cwd": folder, "capture_output": True, "text": True},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    # Three detectors, DETR with masks, and all but the boxes of Conditional DETR with masks
    assert result.stdout.count("SAME") == 2 + 2 + 2 + 3 + 2, result.stdout
    assert not result.stderr.strip(), result.stderr


def test_plain_push_of_transformers_loads_there_too(hub: Hub, tmp_path: Path) -> None:
    """`model.push_to_hub` turns off what only training needs; the model stays as it is."""
    model, processor = some_model("detr")
    model.push_to_hub("tester/plain")
    processor.push_to_hub("tester/plain")
    assert json.loads(files_of(hub, "plain")["config.json"])["auxiliary_loss"] is False
    assert model.config.auxiliary_loss
    loaded = hf_detr.DetrForObjectDetection.from_pretrained("tester/plain")
    assert_close(outputs(loaded), outputs(model), atol=0, rtol=0)
    with pytest.warns(UserWarning, match="Before publishing"):  # of the local file
        model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="tester/saved")
    assert json.loads(files_of(hub, "saved")["config.json"])["auxiliary_loss"] is False
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    assert {"model.safetensors", "config.json", "README.md"} <= set(files_of(hub, "saved"))


def test_branches_and_old_commits(hub: Hub) -> None:
    """A branch and a commit's name load what stood there; `main` keeps what it had."""
    (first, processor), (second, _) = some_model("detr", seed=1), some_model("detr", seed=2)
    commit = hf_detr.push_to_hub(first, processor, "tester/revisions")
    hf_detr.push_to_hub(
        second, processor, "revisions", revision="better", commit_message="Train longer"
    )
    assert hub.repositories["tester/revisions"].messages[-1] == "Train longer"
    load = hf_detr.DetrForObjectDetection.from_pretrained
    assert_close(outputs(load("tester/revisions")), outputs(first), atol=0, rtol=0)
    better = load("tester/revisions", revision="better")
    assert_close(outputs(better), outputs(second), atol=0, rtol=0)
    hf_detr.push_to_hub(second, processor, "tester/revisions")
    old = load("tester/revisions", revision=commit.oid)
    assert_close(outputs(old), outputs(first), atol=0, rtol=0)
    with pytest.raises(OSError, match="nowhere"):
        load("tester/revisions", revision="nowhere")


def test_private_repositories_need_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the owner loads and writes; asking for privacy of a public repository is refused."""
    model, processor = some_model("detr")
    hf_detr.push_to_hub(model, processor, "tester/secret", private=True)
    assert hub.repositories["tester/secret"].private
    load = hf_detr.DetrForObjectDetection.from_pretrained
    for token in (False, STRANGER, "hf_wrong"):
        with pytest.raises(OSError, match="tester/secret|401|credentials"):
            load("tester/secret", token=token)
    with pytest.raises(HfHubHTTPError):
        hf_detr.push_to_hub(model, processor, "tester/secret", token=STRANGER)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("tester/secret")
    assert_close(outputs(load("tester/secret", token=OWNER)), outputs(model), atol=0, rtol=0)
    hf_detr.push_to_hub(model, processor, "tester/open", token=OWNER)
    before = len(hub.repositories["tester/open"].messages)
    with pytest.raises(ValueError, match="exists and is public, so nothing was uploaded"):
        hf_detr.push_to_hub(model, processor, "tester/open", private=True, token=OWNER)
    assert len(hub.repositories["tester/open"].messages) == before


def test_snapshot_cache_and_pipeline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A downloaded snapshot is a folder to load; without the network the cache serves."""
    model, processor = some_model("deformable_detr")
    hf_detr.push_to_hub(model, processor, "tester/cached")
    folder = snapshot_download("tester/cached")
    load = hf_detr.DeformableDetrForObjectDetection.from_pretrained
    assert_close(outputs(load(folder)), outputs(model), atol=0, rtol=0)
    detector = transformers.pipeline(model="tester/cached")  # the card says which task
    assert isinstance(detector, hf_detr.DetectionPipeline)
    asked = len(hub.requests)
    offline = load("tester/cached", local_files_only=True)
    assert_close(outputs(offline), outputs(model), atol=0, rtol=0)
    assert len(hub.requests) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    transformers.pipeline("object-detection", model="tester/cached")
    assert len(hub.requests) == asked


def test_cards(hub: Hub, tmp_path: Path) -> None:
    """A given card is completed, the repository's own is kept; pictures come along."""
    model, processor = some_model("detr")
    (tmp_path / "curve.png").write_bytes(b"picture")
    card = "---\nlicense: mit\ntags: [garments]\n---\n# Mine\n![](curve.png)\n"
    hf_detr.push_to_hub(model, processor, "tester/card", card=card, files=[tmp_path / "curve.png"])
    written = ModelCard(files_of(hub, "card")["README.md"].decode())
    assert written.text.strip() == "# Mine\n![](curve.png)"
    assert written.data.tags == ["garments", "hf_detr", "detr"] and written.data.license == "mit"
    assert files_of(hub, "card")["curve.png"] == b"picture"
    hf_detr.push_to_hub(some_model("detr", seed=1)[0], processor, "tester/card")
    assert ModelCard(files_of(hub, "card")["README.md"].decode()).text == written.text
    segmenter, processor = some_model("deformable_detr", "ForSegmentation")
    hf_detr.push_to_hub(segmenter, processor, "tester/card", card=ModelCard("---\n{}\n---\n# New"))
    written = ModelCard(files_of(hub, "card")["README.md"].decode())
    assert "# New" in written.text and "`pip install hf_detr`" in written.text
    assert (written.data.library_name, written.data.pipeline_tag) == (
        *("hf_detr", "image-segmentation"),
    )
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="would overwrite the model's config.json"):
        hf_detr.push_to_hub(model, processor, "tester/card", files=[tmp_path / "config.json"])
    with pytest.raises(TypeError, match="is a Linear; expected a detector or segm"):
        hf_detr.push_to_hub(torch.nn.Linear(1, 1), processor, "tester/card")


def test_the_page_about_publishing(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/publishing.md does what it says."""
    model, processor = some_model("deformable_detr")
    model.config.auxiliary_loss = False
    for part in (model, processor):
        part.save_pretrained(tmp_path / "trained")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(REPOSITORY / "docs" / "publishing.md", "python")
    exec(code.replace("me/", "tester/"), {})
    card = files_of(hub, "cups-and-spoons")["README.md"].decode()
    assert "Only daylight was seen in training." in card and "0.84" in card


def test_one_file_takes_the_place_of_shards(hub: Hub) -> None:
    """Weights that would be read beside or instead of the new ones go in the same commit."""
    model, processor = some_model("detr")
    hf_detr.push_to_hub(model, processor, "tester/shards")
    stale = {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}"}
    other = {"model.fp16.safetensors": b"half", "notes.txt": b"mine"}
    push_raw(hub, "shards", **stale, **other)
    hf_detr.push_to_hub(some_model("detr", seed=1)[0], processor, "tester/shards")
    assert not set(stale) & set(files_of(hub, "shards"))
    assert set(other) <= set(files_of(hub, "shards"))


def test_a_bad_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third request is lost, the commit's answer too, and transfers break off midway."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # what is kept of a part
    model, processor = some_model("detr")
    hub.drop_every, hub.cut_uploads, hub.cut_downloads = 3, 1, 2
    commit = hf_detr.push_to_hub(model, processor, "tester/lossy")
    assert hub.dropped >= 2 and hub.cut_uploads == 0
    assert hub.repositories["tester/lossy"].branches["main"] == commit.oid
    loaded = hf_detr.DetrForObjectDetection.from_pretrained("tester/lossy")
    assert_close(outputs(loaded), outputs(model), atol=0, rtol=0)
    assert hub.cut_downloads == 0 and hub.resumed >= 2  # not from the beginning
    hub.mend()
    hub.lose_commit_answers = 1
    second = some_model("detr", seed=1)[0]
    commit = hf_detr.push_to_hub(second, processor, "tester/lossy")
    assert hub.repositories["tester/lossy"].branches["main"] == commit.oid
    assert len(hub.repositories["tester/lossy"].messages) == 3  # it was made once


def test_an_interrupted_upload_changes_nothing(hub: Hub) -> None:
    """A push that fails for good leaves all files of the one before."""
    model, processor = some_model("detr")
    hf_detr.push_to_hub(model, processor, "tester/stable")
    before = files_of(hub, "stable")
    hub.cut_uploads = 1000
    with pytest.raises(Exception, match="model.safetensors"):
        hf_detr.push_to_hub(some_model("detr", seed=1)[0], processor, "tester/stable")
    hub.mend()
    assert files_of(hub, "stable") == before
    loaded = hf_detr.DetrForObjectDetection.from_pretrained("tester/stable")
    assert_close(outputs(loaded), outputs(model), atol=0, rtol=0)


def test_interrupted_and_altered_downloads(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """No part of a file is ever taken for all of it, nor other bytes for the right ones."""
    model, processor = some_model("detr")
    hf_detr.push_to_hub(model, processor, "tester/torn")
    load = hf_detr.DetrForObjectDetection.from_pretrained
    hub.cut_downloads = 1000
    with pytest.raises(Exception, match="peer closed|incomplete|Connection|load"):
        load("tester/torn")
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))
    hub.mend()
    assert_close(outputs(load("tester/torn")), outputs(model), atol=0, rtol=0)
    use_cache(Path(constants.HF_HUB_CACHE) / "other", monkeypatch)
    hub.altered = True
    with pytest.raises(ValueError, match="isn't what the Hub has: its sha256 differs"):
        load("tester/torn")
    hub.mend()
    load("tester/torn", force_download=True)
    (kept,) = {p.resolve() for p in Path(constants.HF_HUB_CACHE).rglob("model.safetensors")}
    kept.write_bytes(kept.read_bytes()[:-100])  # as a disk may lose it
    with pytest.raises(ValueError, match="sha256 differs"):
        load("tester/torn", local_files_only=True)
    loaded = load("tester/torn", force_download=True)
    assert_close(outputs(loaded), outputs(model), atol=0, rtol=0)


def test_an_index_cannot_lead_outside(hub: Hub, tmp_path: Path) -> None:
    """Shards of a repository that lie elsewhere on this machine aren't read."""
    model = tiny_detector("detr")
    model.push_to_hub("tester/outside")
    outside = tmp_path / "x.safetensors"
    model.save_pretrained(tmp_path / "other")
    os.rename(tmp_path / "other" / "model.safetensors", outside)
    repository = hub.repositories["tester/outside"]
    files = files_of(hub, "outside")
    del files["model.safetensors"]
    for name in (str(outside), f"../../../../../../../../../..{outside}"):
        index = {"metadata": {}, "weight_map": dict.fromkeys(model.state_dict(), name)}
        content = {**files, "model.safetensors.index.json": json.dumps(index).encode()}
        repository.commit("main", content, "evil")
        # Refused by the client; transformers 5.17 turns its ValueError into an OSError.
        with pytest.raises((ValueError, OSError), match="Invalid filename"):
            type(model).from_pretrained("tester/outside")


def test_the_server_is_the_hub(hub: Hub) -> None:
    """The checks ran where they were meant to: the client asked this server."""
    assert HfApi().whoami()["name"] == "tester"
    assert hub.requests[-1] == "GET /api/whoami-v2"
