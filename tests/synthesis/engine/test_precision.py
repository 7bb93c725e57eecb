"""What a device can compute in, and what is said where it cannot."""

from typing import Any

import pytest
import torch

from nisynth.errors import ConfigError
from nisynth.synthesis import EngineConfig, NaturalInversionConfig, make_synthesizer
from nisynth.synthesis.engine.precision import resolve
from nisynth.teachers import Teacher

CPU = torch.device("cpu")


@pytest.mark.parametrize("asked", ["tf32", "float16"])
def test_a_cpu_says_what_it_lacks_and_what_it_has(odd_teacher: Teacher, asked: str) -> None:
    message = rf"engine\.precision '{asked}': this CPU does not support it; set engine\.precision to auto or "
    with pytest.raises(ConfigError, match=f"{message}.*float32$"):
        make_synthesizer(NaturalInversionConfig(), EngineConfig(name="fast", precision=asked), odd_teacher)


def test_bfloat16_needs_the_cpus_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with pytest.raises(ConfigError, match=r"'bfloat16': this CPU .*to auto or float32$"):
        resolve("bfloat16", CPU)
    assert resolve("auto", CPU).name == "float32"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert resolve("bfloat16", CPU).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("capability", "auto", "able"),
    [
        ((9, 0), "bfloat16", {"bfloat16", "float16", "tf32", "float32"}),
        ((8, 0), "bfloat16", {"bfloat16", "float16", "tf32", "float32"}),
        ((7, 5), "float32", {"float16", "float32"}),
        ((6, 1), "float32", {"float32"}),
    ],
)
def test_a_gpu_is_asked_by_its_compute_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, ...], auto: str, able: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Some")
    gpu = torch.device("cuda", 0)
    assert resolve("auto", gpu).name == auto
    for asked in ("bfloat16", "float16", "tf32", "float32"):
        if asked in able:
            assert resolve(asked, gpu).name == asked
        else:
            major, minor = capability
            with pytest.raises(
                ConfigError, match=rf"\(compute capability {major}\.{minor}\) does not support it"
            ):
                resolve(asked, gpu)


def test_settings_are_as_they_were_after_the_arithmetic() -> None:
    def settings() -> Any:
        b: Any = torch.backends
        return (
            *(s.fp32_precision for s in (b.cudnn.conv, b.mkldnn.conv, b.cuda.matmul, b.mkldnn.matmul)),
            b.cudnn.benchmark,
        )

    before = settings()
    with resolve("float32", CPU).applied(CPU):
        assert settings() == ("ieee", "ieee", "ieee", "ieee", True)
    assert settings() == before
    with pytest.raises(KeyboardInterrupt), resolve("float32", CPU).applied(CPU):
        raise KeyboardInterrupt
    assert settings() == before
