"""Opt-in: the published code's own modules on identical weights and inputs.

NISYNTH_PUBLISHED_CODE names a checkout of github.com/kdst-team/NaturalInversion. Its networks are
imported; of its script, which wants a GPU, only the hook class and the four lines of the total variation
are executed.
"""

import ast
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nisynth.synthesis import NaturalInversionConfig
from nisynth.synthesis.inversion.jitter import apply_jitter
from nisynth.synthesis.inversion.objective import image_terms, losses
from nisynth.teachers import Teacher, load_teacher
from tests.engines import drawn
from tests.synthesis.conftest import MakeTask

BATCH_SIZE = 4
CONFIG = NaturalInversionConfig(rescale_priors=False)


@pytest.fixture(scope="module")
def published() -> Any:
    folder = os.environ.get("NISYNTH_PUBLISHED_CODE")
    if folder is None:
        pytest.skip("NISYNTH_PUBLISHED_CODE does not name a checkout of the published code")
    return Path(folder)


@pytest.fixture(scope="module")
def teacher(shared: Any) -> Any:
    return load_teacher(arch="resnet34", weights=str(shared / "teachers/cifar10_resnet34.safetensors"))


@pytest.fixture(scope="module")
def published_teacher(published: Any, teacher: Teacher) -> Any:
    network = module(published, "resnet").ResNet34()
    network.load_state_dict(teacher.network.state_dict())
    return network.eval()


def module(folder: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"published_{name}", folder / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def script_part(folder: Path, wanted: Any, names: Any) -> Any:
    """Runs the statements of the published script that `wanted` picks, with `names` as globals."""
    tree = ast.parse((folder / "NaturalInversion.py").read_text())
    picked = ast.Module([node for node in ast.walk(tree) if wanted(node)], type_ignores=[])
    exec(compile(picked, "NaturalInversion.py", "exec"), names)
    return names


def copy_parameters(source: Any, target: Any) -> None:
    with torch.no_grad():
        for a, b in zip(source, target, strict=True):
            b.copy_(a)


def published_image(
    published: Any, published_teacher: nn.Module, parts: Any, z: Tensor, y: Tensor, jitter: Any
) -> Any:
    """The steps of the published loop, by its own modules."""
    network = module(published, "network")
    generator, decoder = network.Generator(8, 1034, 3), network.Feature_Decoder()
    copy_parameters(parts.generator.parameters(), generator.parameters())
    blocks = parts.pyramid.blocks
    theirs_1x1 = [decoder.conv1, decoder.conv2, decoder.conv3, decoder.conv4]
    theirs_3x3 = [decoder.conv_31, decoder.conv_32, decoder.conv_33]
    pairs = [
        *zip([block.conv1 for block in blocks], theirs_1x1, strict=True),
        *zip([block.conv3 for block in blocks[1:]], theirs_3x3, strict=True),
        (parts.pyramid.head, decoder.conv6),
    ]
    for ours, theirs in pairs:
        copy_parameters(ours.parameters(), theirs.parameters())
    image = generator(torch.cat((z, y), 1))
    image = jittered(image, jitter)
    with torch.no_grad():
        _, f5, f4, f3, f2, f1 = published_teacher(image)
    image, _ = decoder(image, f1, f2, f3, f4, f5)
    return image * parts.scaling.alpha


def jittered(image: Any, jitter: Any) -> Any:
    down, right, mirrored = jitter.tolist()
    image = torch.roll(image, shifts=(down, right), dims=(2, 3))
    return torch.flip(image, dims=(3,)) if mirrored else image


def test_same_image_and_same_loss_terms(
    published: Any, published_teacher: nn.Module, teacher: Teacher, make_task: MakeTask
) -> None:
    task = make_task(BATCH_SIZE, num_classes=10)
    parts, draws = drawn(task, CONFIG, teacher)
    labels = torch.from_numpy(task.labels)
    y = nn.functional.one_hot(labels, 10).float()
    for jitter_1, jitter_2 in draws.jitter[:4]:
        with torch.no_grad():
            image = parts(labels, jitter_1)
            expected = published_image(published, published_teacher, parts, parts.z, y, jitter_1)
            assert torch.allclose(image, expected, rtol=1e-4, atol=1e-4)

            hook_class = script_part(
                published,
                lambda node: isinstance(node, ast.ClassDef) and node.name == "NaturalInversionFeatureHook",
                {"torch": torch},
            )["NaturalInversionFeatureHook"]
            norms = [m for m in published_teacher.modules() if isinstance(m, nn.BatchNorm2d)]
            hooks = [hook_class(norm, 0) for norm in norms]
            seen = jittered(expected, jitter_2)
            logits = published_teacher(seen)[0]
            for hook in hooks:
                hook.close()
            names = script_part(
                published,
                lambda node: (
                    isinstance(node, ast.Assign)
                    and isinstance(node.targets[0], ast.Name)
                    and node.targets[0].id in {"diff1", "diff2", "diff3", "diff4", "loss_var"}
                ),
                {"torch": torch, "inputs_jit": seen},
            )
            terms = losses(image_terms(CONFIG, teacher), teacher, apply_jitter(image, jitter_2), labels)
        assert float(terms["ce"]) == pytest.approx(float(nn.CrossEntropyLoss()(logits, labels)), rel=1e-4)
        assert float(terms["r_bn"]) == pytest.approx(float(sum(hook.r_feature for hook in hooks)), rel=1e-4)
        assert float(terms["tv"]) == pytest.approx(float(names["loss_var"]), rel=1e-4)
        assert float(terms["l2"]) == pytest.approx(float(torch.norm(seen, 2)), rel=1e-4)
