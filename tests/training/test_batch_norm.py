"""BatchNorm over two workers' halves against torch's own over the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nisynth.training.batch_norm import GlobalBatchNorm2d, over_global_batch

REPO = Path(__file__).resolve().parents[2]


def whole_batch() -> tuple[Tensor, Tensor]:
    """Eight images far from mean 0 and std 1, and what their outputs are weighed with."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, 5, 4, generator=generator, dtype=torch.float64) * 7 + 100
    return x, torch.randn(8, 3, 5, 4, generator=generator, dtype=torch.float64)


def layer(momentum: float | None) -> nn.Module:
    norm = nn.BatchNorm2d(3, momentum=momentum).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([-1.0, 0.0, 3.0]))
    return nn.Sequential(norm)


def results(network: nn.Module, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Two forward passes, the second one's gradients, and the statistics they leave."""
    x = x.clone().requires_grad_()
    network(x)
    output = network(x)
    (output * weights).sum().backward()
    gradients = {f"grad.{name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"output": output.detach(), "x": x.grad, **gradients, **network.state_dict()}


def worker(rank: int, momentum: float | None, folder: Path) -> None:
    """What each of the two processes does with its half."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network = over_global_batch(layer(momentum))
    assert type(network[0]) is GlobalBatchNorm2d
    x, weights = whole_batch()
    half = slice(4 * rank, 4 * rank + 4)
    found = results(network, x[half], weights[half])
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


def test_two_halves_are_the_whole(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; import tests.training.test_batch_norm as t\n"
        "t.worker(int(sys.argv[1]), 0.1, Path(sys.argv[2]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(120) for process in workers] == [0, 0]
    parts = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    whole = results(layer(0.1), *whole_batch())
    for name in ("output", "x"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name])
    for name in whole.keys() - {"output", "x"}:
        # A parameter's gradient is the sum of the workers'; statistics are the same in both.
        found = parts[0][name] + parts[1][name] if name.startswith("grad.") else parts[0][name]
        torch.testing.assert_close(found, whole[name], msg=name)
        if not name.startswith("grad."):
            assert torch.equal(parts[0][name], parts[1][name])


def test_one_process_keeps_its_layers() -> None:
    network = layer(0.1)
    assert over_global_batch(network) is network
    assert type(network[0]) is nn.BatchNorm2d
