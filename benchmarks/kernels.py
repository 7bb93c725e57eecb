"""What the engine's compiled step asks of a GPU, counted without one: kernel launches and bytes.

    python benchmarks/kernels.py --arch resnet34 --batch-size 256
    python benchmarks/kernels.py --arch resnet34 --batch-size 256 --without normalization --without statistics

The step's forward and backward graphs are captured on the CPU, traced again over tensors that claim to lie
on an H100, and given to torch's compiler, which writes its kernels without looking for the card. Bytes are
the compiler's own count of what each kernel reads and writes (`kernel_num_gb`), and for this project's
memory-bound operators that of their arguments and results; convolutions and matrix products are counted as
launches alone. `ms` is those bytes at `--bandwidth`: a prediction to compare variants by, not a time.
It reaches into the compiler of torch (written for 2.15), and may need mending for another.
"""

import argparse
import re
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch._inductor.config as inductor_config
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.device_interface import CudaInterface
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import TracingContext, tracing
from torch._inductor import compile_fx
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from nisynth.batch import Normalization, Task
from nisynth.synthesis import NaturalInversionConfig
from nisynth.synthesis.engine import fast as engine
from nisynth.synthesis.engine.fused import FusedTeacher
from nisynth.synthesis.engine.precision import Precision
from nisynth.synthesis.engine.shortcuts import Shortcuts
from nisynth.synthesis.naturalinversion.draws import draw
from nisynth.teachers import Teacher, build_network

EVERY = Shortcuts(captured=False)
H100 = types.SimpleNamespace(
    name="NVIDIA H100", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, regs_per_multiprocessor=65536,
    warp_size=32, L2_cache_size=50 * 2**20, shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
    gcnArchName="", is_integrated=0,
)  # fmt: skip


def main() -> None:
    """Prints a line for the step as it is, and one for each shortcut that is left out."""
    options = parse()
    print(f"{options.arch}, B={options.batch_size}, {options.precision}, torch {torch.__version__}")
    print(f"{'':28}{'ours+compiled':>15}{'convolutions':>14}{'products':>10}{'GB':>8}{'ms':>8}")
    for name in (None, *options.without):
        shortcuts = EVERY if name is None else replace(EVERY, **{name: False})
        launches, convolutions, products, gigabytes = count(options, shortcuts)
        ms = gigabytes / options.bandwidth
        label = "every shortcut" if name is None else f"without {name}"
        print(f"{label:28}{launches:15}{convolutions:14}{products:10}{gigabytes:8.3f}{ms:8.3f}", flush=True)


def parse() -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", default="resnet34")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    shortcuts = [field.name for field in fields(Shortcuts) if getattr(EVERY, field.name)]
    parser.add_argument(
        "--without", action="append", default=[], choices=shortcuts, help="a shortcut; may be repeated"
    )
    parser.add_argument("--bandwidth", type=float, default=3.0, help="TB/s that the card is taken to reach")
    return parser.parse_args()


def count(options: argparse.Namespace, shortcuts: Shortcuts) -> tuple[int, int, int, float]:
    """Returns launches of fused kernels, of convolutions and of matrix products, and gigabytes, of a step."""
    totals = [0, 0, 0, 0.0]
    for is_backward, (graph, inputs) in enumerate(graphs(options, shortcuts)):
        on_gpu, fakes, mode = on_fake_gpu(graph, inputs)
        code = generated(on_gpu, fakes, mode, bool(is_backward))
        kernels = dict(re.findall(r"'kernel_name': '(\w+)'.*?'kernel_num_gb': ([\d.e-]+)", code))
        calls = code[code.rindex("async_compile.wait(globals())") :]
        compiled = [name for name in re.findall(r"(\w+)\.run\(", calls) if name in kernels]
        own = [node for node in on_gpu.graph.nodes if str(node.target).startswith("nisynth.")]
        fused = [node for node in own if "conv" not in str(node.target)]
        totals[0] += len(compiled) + len(fused)
        convolutions = re.findall(r"[. ](?:convolution|convolution_backward\.default)\(", calls)
        totals[1] += len(own) - len(fused) + len(convolutions)
        totals[2] += len(re.findall(r"extern_kernels\.(?:mm|addmm|bmm)\(", calls))
        totals[3] += sum(float(kernels[name]) for name in compiled) + sum(map(moved_gb, fused))
    launches, convolutions, products, gigabytes = totals
    return int(launches), int(convolutions), int(products), gigabytes


def graphs(options: argparse.Namespace, shortcuts: Shortcuts) -> list[tuple[fx.GraphModule, list[Any]]]:
    """Returns the step's forward and backward graphs with their inputs, captured on the CPU."""
    torch.manual_seed(0)
    teacher = Teacher(
        build_network(options.arch, 10),
        normalization=Normalization((0.5,) * 3, (0.25,) * 3),
        classes=[str(label) for label in range(10)],
    )
    config = NaturalInversionConfig(iterations=1)
    precision = Precision(options.precision, getattr(torch, options.precision))
    fused = FusedTeacher(
        teacher, precision.dtype, shortcuts.layout, folded=shortcuts.folded,
        activations=shortcuts.activations and precision.dtype != torch.float32,
        statistics=shortcuts.statistics, normalization=shortcuts.normalization,
    )  # fmt: skip
    if fused.notes:
        raise SystemExit("\n".join(fused.notes))
    seen: list[tuple[fx.GraphModule, list[Any]]] = []

    def note(graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        seen.append((graph, inputs))
        if len(seen) == 2:
            raise Enough
        return graph.forward

    backend = aot_autograd(
        fw_compiler=note, bw_compiler=note, decompositions=select_decomp_table(),
        partition_fn=min_cut_rematerialization_partition,
    )  # fmt: skip
    labels = np.arange(options.batch_size) % 10
    task = Task(index=0, seed=1, labels=labels, rows=len(labels))
    compiled = lambda function: torch.compile(function, fullgraph=True, dynamic=False, backend=backend)  # noqa: E731
    with mock.patch.object(engine, "compiled", compiled):
        inversion = engine.Inversion(config, teacher, fused, len(labels), precision, shortcuts)
    inversion.begin(draw(task, config, teacher), torch.from_numpy(labels))
    try:
        inversion.step()
    except Exception:
        if len(seen) < 2:
            raise
    torch._dynamo.reset()
    return seen


class Enough(Exception):
    """There are two graphs: what follows would run them."""


def on_fake_gpu(graph: fx.GraphModule, inputs: list[Any]) -> tuple[fx.GraphModule, list[Any], FakeTensorMode]:
    """Returns the graph traced again over tensors that claim to lie on a GPU, and those tensors."""

    class Moved(fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if kwargs.get("device") is not None:
                kwargs = {**kwargs, "device": torch.device("cuda", 0)}
            return super().call_function(target, args, kwargs)

    def fake(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")

    def layout(x: Tensor, weight: Tensor, bias: Tensor | None) -> torch.memory_format:
        """As cuDNN chooses it: channels innermost where map or weight has them so."""

        def innermost(t: Tensor) -> bool:
            return t.stride()[1] == 1 and t.shape[1] > 1 and not t.is_contiguous()

        return torch.channels_last if innermost(x) or innermost(weight) else torch.contiguous_format

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad(), mock.patch.object(torch._C, "_conv_determine_backend_memory_format", layout):
        fakes = [fake(value) for value in inputs]
        moved = make_fx(lambda *values: Moved(graph).run(*values), tracing_mode="real")(*fakes)
    return moved, fakes, mode


def generated(graph: fx.GraphModule, fakes: list[Any], mode: FakeTensorMode, is_backward: bool) -> str:
    """Returns the code that torch's compiler writes for a graph on a GPU that is not there."""
    code: list[str] = []

    def stop(self: GraphLowering) -> None:
        code.append(self.codegen()[0].value)
        raise Enough

    settings = {"benchmark_kernel": True, "compile_threads": 1, "fx_graph_cache": False}
    with ExitStack() as stack:
        stack.enter_context(inductor_config.patch(settings))
        stack.enter_context(card())
        stack.enter_context(mock.patch.object(GraphLowering, "_compile_to_module", stop))
        stack.enter_context(mock.patch.object(GraphLowering, "compile_to_module", stop))
        stack.enter_context(tracing(TracingContext(mode)))
        stack.enter_context(V.set_fake_mode(mode))
        try:
            compile_fx.compile_fx_inner(graph, fakes, is_backward=is_backward)
        except Exception:
            if not code:
                raise
    return code[0]


@contextmanager
def card() -> Iterator[None]:
    """Makes torch and Triton believe in an H100."""
    import torch._inductor.scheduler
    import torch.utils._triton
    import triton.runtime
    from triton.backends.compiler import GPUTarget

    driver = types.SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0,
        get_device_properties=lambda _: {}, get_current_stream=lambda _=0: 0,
    )  # fmt: skip

    def say(answer: Any) -> Any:
        return staticmethod(lambda *_, **__: answer)

    answers: list[tuple[Any, dict[str, Any]]] = [
        (CudaInterface, {
            "get_device_properties": H100, "is_available": True, "get_compute_capability": 90,
            "current_device": 0, "is_bf16_supported": True, "is_triton_capable": True,
            "raise_if_triton_unavailable": None,
        }),
        (CudaInterface.Worker, {"get_device_properties": H100, "current_device": 0}),
        (torch.cuda, {
            "get_device_properties": H100, "get_device_capability": (9, 0), "current_device": 0,
            "device_count": 1, "is_available": True, "is_bf16_supported": True, "synchronize": None,
            "get_rng_state": torch.get_rng_state(), "set_rng_state": None, "_lazy_init": None,
            "_lazy_call": None, "_exchange_device": 0, "_maybe_exchange_device": 0,
        }),
        (torch._inductor.scheduler, {"has_triton": True}),
        (torch.utils._triton, {"has_triton": True}),
    ]  # fmt: skip
    with ExitStack() as stack:
        for place, said in answers:
            for name, answer in said.items():
                stack.enter_context(mock.patch.object(place, name, say(answer)))
        stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", driver))
        yield


def moved_gb(call: fx.Node) -> float:
    """Returns the gigabytes of the tensors that an operator reads and writes."""
    tensors = [node.meta["val"] for node in call.all_input_nodes]
    results = call.meta["val"] if isinstance(call.meta["val"], (tuple, list)) else [call.meta["val"]]
    return sum(t.numel() * t.element_size() for t in (*tensors, *results)) / 1e9


if __name__ == "__main__":
    main()
