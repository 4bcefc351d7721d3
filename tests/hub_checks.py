"""Tests with the Hub's real client against `hub_server`, run by test_publishing.py.

They are not collected, because they need their own process: the client reads environment variables
such as HF_ENDPOINT when it is imported.
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
from hf_detr.commands import verify
from hf_detr_command_line import main as run

from .commands.test_verify import NUM_IMAGES, publish, write_garments
from .hub_server import Hub
from .test_documentation import REPOSITORY, blocks
from .tiny import WITH_HEADS, class_of, padded_batch, tiny_config, tiny_detector

# A deprecation in the client itself.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
OWNER, OTHER_USER = "hf_owner", "hf_other"
ONLY_HERE = {
    ("conditional_detr", "ForSegmentation"),
    ("deformable_detr", "ForSegmentation"),
    ("dino_detr", "ForObjectDetection"),
    ("dino_detr", "ForSegmentation"),
}
LOAD_IN_TRANSFORMERS = """
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
    """One server for all tests, at the client's endpoint."""
    return Hub(urlsplit(constants.ENDPOINT).port)


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server without faults; the client has the owner's token and an empty cache."""
    server.clear_faults()
    server.large.clear()
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between retries
    monkeypatch.setenv("HF_TOKEN", OWNER)
    use_cache(tmp_path / "cache", monkeypatch)
    yield server
    assert not server.unknown, server.unknown


def use_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the folder of the client's cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))


def some_model(variant: str, kind: str = "ForObjectDetection", seed: int = 0, **changes: object):
    """A tiny model of a class and its image processor."""
    torch.manual_seed(seed)
    if kind == "ForSegmentation":
        changes = {"d_model": 128, "encoder_attention_heads": 8, **changes}
    model = class_of(variant, kind)(tiny_config(variant, auxiliary_loss=True, **changes)).eval()
    return model, class_of(variant, "ImageProcessor")(size={"height": 64, "width": 96})


def outputs(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's predictions for a fixed batch."""
    with torch.no_grad():
        found = model(*padded_batch())
    return {k: found[k] for k in ("logits", "pred_boxes", "pred_masks") if k in found}


def files_of(hub: Hub, repo: str, branch: str = "main") -> dict[str, bytes]:
    """A branch's files on the server."""
    repository = hub.repositories[f"tester/{repo}"]
    return repository.commits[repository.branches[branch]]


def push_raw(hub: Hub, repo: str, **files: bytes) -> None:
    """Commit files without the client."""
    repository = hub.repositories[f"tester/{repo}"]
    repository.commit("main", {**files_of(hub, repo), **files}, "raw")


def test_all_classes_round_trip_and_load_in_transformers(hub: Hub, tmp_path: Path) -> None:
    """All classes load after a push; classes of transformers also load without hf_detr."""
    pixel_values, pixel_mask = padded_batch()
    expected, in_transformers = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}, []
    for variant, kind in WITH_HEADS:
        repo, (model, processor) = f"tester/{variant}{kind}".lower(), some_model(variant, kind)
        commit = hf_detr.push_to_hub(model, processor, repo)
        assert model.config.auxiliary_loss
        assert hub.repositories[repo].branches["main"] == commit.oid
        assert len(hub.repositories[repo].messages) == 2  # the first creates the repository
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
        needs_package = (variant, kind) in ONLY_HERE
        assert card.data.library_name == ("hf_detr" if needs_package else "transformers")
        assert ("The model needs hf_detr" in card.text) == needs_package

        loaded = class_of(variant, kind).from_pretrained(repo)
        for key, value in outputs(model).items():
            assert_close(outputs(loaded)[key], value, atol=0, rtol=0)
            if (
                key != "pred_boxes" or not needs_package
            ):  # transformers' class ignores reference points
                expected[f"{repo}.{key}"] = value
        again = transformers.AutoImageProcessor.from_pretrained(repo)
        assert type(again) is type(processor) and dict(again.size) == dict(processor.size)
        if hasattr(transformers, class_of(variant, kind).__name__):
            in_transformers.append((repo, class_of(variant, kind).__name__))
    check_in_transformers(expected, in_transformers, tmp_path)


def check_in_transformers(
    expected: dict[str, torch.Tensor], in_transformers: list[tuple[str, str]], folder: Path
) -> None:
    """Load repositories with transformers alone: same outputs and no warnings."""
    from safetensors.torch import save_file

    save_file({k: v.clone() for k, v in expected.items()}, folder / "expected.safetensors")
    environment = {**os.environ, "HF_HOME": str(folder / "transformers"), "TQDM_DISABLE": "1"}
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            LOAD_IN_TRANSFORMERS,
            folder / "expected.safetensors",
            json.dumps(in_transformers),
        ],
        **{"env": environment, "cwd": folder, "capture_output": True, "text": True},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    # Four detectors, DETR with masks, and all but the boxes of Conditional DETR with masks
    assert result.stdout.count("SAME") == 4 * 2 + 3 + 2, result.stdout
    assert not result.stderr.strip(), result.stderr


def test_push_to_hub_method(hub: Hub, tmp_path: Path) -> None:
    """`model.push_to_hub` publishes auxiliary_loss=False and doesn't change the model."""
    model, processor = some_model("detr")
    model.push_to_hub("tester/plain")
    processor.push_to_hub("tester/plain")
    assert json.loads(files_of(hub, "plain")["config.json"])["auxiliary_loss"] is False
    assert model.config.auxiliary_loss
    loaded = hf_detr.DetrForObjectDetection.from_pretrained("tester/plain")
    assert_close(outputs(loaded), outputs(model), atol=0, rtol=0)
    with pytest.warns(UserWarning, match="before publishing"):  # of the local file
        model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="tester/saved")
    assert json.loads(files_of(hub, "saved")["config.json"])["auxiliary_loss"] is False
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    assert {"model.safetensors", "config.json", "README.md"} <= set(files_of(hub, "saved"))


def test_branches_and_old_commits(hub: Hub) -> None:
    """Branches and commit hashes load their own weights; `main` doesn't change."""
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
    """Only the owner reads and writes; private=True for a public repository raises."""
    model, processor = some_model("detr")
    hf_detr.push_to_hub(model, processor, "tester/secret", private=True)
    assert hub.repositories["tester/secret"].private
    load = hf_detr.DetrForObjectDetection.from_pretrained
    for token in (False, OTHER_USER, "hf_wrong"):
        with pytest.raises(OSError, match="tester/secret|401|credentials"):
            load("tester/secret", token=token)
    with pytest.raises(HfHubHTTPError):
        hf_detr.push_to_hub(model, processor, "tester/secret", token=OTHER_USER)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("tester/secret")
    assert_close(outputs(load("tester/secret", token=OWNER)), outputs(model), atol=0, rtol=0)
    hf_detr.push_to_hub(model, processor, "tester/open", token=OWNER)
    before = len(hub.repositories["tester/open"].messages)
    with pytest.raises(ValueError, match="exists and is public, but private=True"):
        hf_detr.push_to_hub(model, processor, "tester/open", private=True, token=OWNER)
    assert len(hub.repositories["tester/open"].messages) == before


def test_snapshot_cache_and_pipeline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models load from a downloaded snapshot, and from the cache without the network."""
    model, processor = some_model("deformable_detr")
    hf_detr.push_to_hub(model, processor, "tester/cached")
    folder = snapshot_download("tester/cached")
    load = hf_detr.DeformableDetrForObjectDetection.from_pretrained
    assert_close(outputs(load(folder)), outputs(model), atol=0, rtol=0)
    detector = transformers.pipeline(model="tester/cached")  # the task is in the card
    assert isinstance(detector, hf_detr.DetectionPipeline)
    asked = len(hub.requests)
    offline = load("tester/cached", local_files_only=True)
    assert_close(outputs(offline), outputs(model), atol=0, rtol=0)
    assert len(hub.requests) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    transformers.pipeline("object-detection", model="tester/cached")
    assert len(hub.requests) == asked


def test_cards(hub: Hub, tmp_path: Path) -> None:
    """A given card gets metadata, an existing card is kept, and images are uploaded."""
    model, processor = some_model("detr")
    (tmp_path / "curve.png").write_bytes(b"image")
    card = "---\nlicense: mit\ntags: [garments]\n---\n# Mine\n![](curve.png)\n"
    hf_detr.push_to_hub(model, processor, "tester/card", card=card, files=[tmp_path / "curve.png"])
    written = ModelCard(files_of(hub, "card")["README.md"].decode())
    assert written.text.strip() == "# Mine\n![](curve.png)"
    assert written.data.tags == ["garments", "hf_detr", "detr"] and written.data.license == "mit"
    assert files_of(hub, "card")["curve.png"] == b"image"
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
    """The code of docs/publishing.md runs: with a new card, and with that of a training."""
    model, processor = some_model("deformable_detr")
    model.config.auxiliary_loss = False
    folder = tmp_path / "trained" / "model"
    for part in (model, processor):
        part.save_pretrained(folder)
    (folder / "README.md").write_text("# trained/model\n\nBy a training.\n")
    (folder / "curve.png").write_bytes(b"a picture")
    monkeypatch.chdir(tmp_path)
    published, names = [], {}
    for code in blocks(REPOSITORY / "docs" / "publishing.md", "python"):
        exec(code.replace("me/", "tester/"), names)
        published.append(files_of(hub, "cups-and-spoons"))
    new, trained = (files["README.md"].decode() for files in published)
    assert "Only daylight was seen in training." in new and "0.84" in new
    assert "# tester/cups-and-spoons\n\nBy a training." in trained
    assert published[1]["curve.png"] == b"a picture"


def test_stale_shards_are_deleted(hub: Hub) -> None:
    """Old weights are deleted in the commit of the new ones; other files stay."""
    model, processor = some_model("detr")
    hf_detr.push_to_hub(model, processor, "tester/shards")
    stale = {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}"}
    other = {"model.fp16.safetensors": b"half", "notes.txt": b"mine"}
    push_raw(hub, "shards", **stale, **other)
    hf_detr.push_to_hub(some_model("detr", seed=1)[0], processor, "tester/shards")
    assert not set(stale) & set(files_of(hub, "shards"))
    assert set(other) <= set(files_of(hub, "shards"))


def test_a_bad_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishing succeeds with lost requests and responses and interrupted transfers."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # so that a part is kept
    model, processor = some_model("detr")
    hub.drop_every, hub.cut_uploads, hub.cut_downloads = 3, 1, 2
    commit = hf_detr.push_to_hub(model, processor, "tester/lossy")
    assert hub.dropped >= 2 and hub.cut_uploads == 0
    assert hub.repositories["tester/lossy"].branches["main"] == commit.oid
    loaded = hf_detr.DetrForObjectDetection.from_pretrained("tester/lossy")
    assert_close(outputs(loaded), outputs(model), atol=0, rtol=0)
    assert hub.cut_downloads == 0 and hub.resumed >= 2  # downloads were resumed
    hub.clear_faults()
    hub.lose_commit_answers = 1
    second = some_model("detr", seed=1)[0]
    commit = hf_detr.push_to_hub(second, processor, "tester/lossy")
    assert hub.repositories["tester/lossy"].branches["main"] == commit.oid
    assert len(hub.repositories["tester/lossy"].messages) == 3  # without a second commit


def test_an_interrupted_upload_changes_nothing(hub: Hub) -> None:
    """After a failed push the repository has the files of the previous push."""
    model, processor = some_model("detr")
    hf_detr.push_to_hub(model, processor, "tester/stable")
    before = files_of(hub, "stable")
    hub.cut_uploads = 1000
    with pytest.raises(Exception, match="model.safetensors"):
        hf_detr.push_to_hub(some_model("detr", seed=1)[0], processor, "tester/stable")
    hub.clear_faults()
    assert files_of(hub, "stable") == before
    loaded = hf_detr.DetrForObjectDetection.from_pretrained("tester/stable")
    assert_close(outputs(loaded), outputs(model), atol=0, rtol=0)


def test_interrupted_and_altered_downloads(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Incomplete and corrupted downloads are never loaded."""
    model, processor = some_model("detr")
    hf_detr.push_to_hub(model, processor, "tester/torn")
    load = hf_detr.DetrForObjectDetection.from_pretrained
    hub.cut_downloads = 1000
    with pytest.raises(Exception, match="peer closed|incomplete|Connection|load"):
        load("tester/torn")
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))
    hub.clear_faults()
    assert_close(outputs(load("tester/torn")), outputs(model), atol=0, rtol=0)
    use_cache(Path(constants.HF_HUB_CACHE) / "other", monkeypatch)
    hub.altered = True
    with pytest.raises(ValueError, match="is corrupted: its SHA-256"):
        load("tester/torn")
    hub.clear_faults()
    load("tester/torn", force_download=True)
    (kept,) = {p.resolve() for p in Path(constants.HF_HUB_CACHE).rglob("model.safetensors")}
    kept.write_bytes(kept.read_bytes()[:-100])  # a truncated file
    with pytest.raises(ValueError, match="SHA-256"):
        load("tester/torn", local_files_only=True)
    loaded = load("tester/torn", force_download=True)
    assert_close(outputs(loaded), outputs(model), atol=0, rtol=0)


def test_an_index_cannot_lead_outside(hub: Hub, tmp_path: Path) -> None:
    """An index of shards can't refer to files outside the repository."""
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
        # Rejected by the client; transformers 5.17 turns its ValueError into an OSError.
        with pytest.raises((ValueError, OSError), match="Invalid filename"):
            type(model).from_pretrained("tester/outside")


def test_a_published_checkpoint_is_verified(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """`hf-detr verify` downloads it by its name; the line has the revision on the Hub."""
    folder = hf_detr.embedded_model_folder()
    model = hf_detr.DeformableDetrForObjectDetection.from_pretrained(folder)
    processor = hf_detr.DeformableDetrImageProcessor.from_pretrained(folder)
    commit = hf_detr.push_to_hub(model, processor, "tester/garments")
    publish(monkeypatch, "tester/garments", AP=75.0)
    monkeypatch.setattr(verify, "NUM_IMAGES", NUM_IMAGES)
    given = ["--coco", str(write_garments(tmp_path)), "--device", "cpu"]
    assert run(["verify", "tester/garments", *given]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"tester/garments ({commit.oid[:12]}): AP 75.00, authors 75.0 (+0.00)")


def test_the_server_is_the_hub(hub: Hub) -> None:
    """The client used this server."""
    assert HfApi().whoami()["name"] == "tester"
    assert hub.requests[-1] == "GET /api/whoami-v2"
