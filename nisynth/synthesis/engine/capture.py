"""Compiling a step, and capturing it as a CUDA graph.

What torch.compile generates is cached on disk, in TORCHINDUCTOR_CACHE_DIR (by default a folder of the user
under the system's temporary one), so that the next process on a node finds it; without it, compiling takes
about a minute.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])

WARM_UP_STEPS = 3
# Each engine of a process compiles the same code for its own teacher and batch size; torch's default is 8.
COMPILATIONS_PER_PROCESS = 64


class NotCaptured(Exception):
    """A step could not be captured as a CUDA graph; the cause says why."""


def compiled(function: Function) -> Function:
    """Returns `function` compiled as one graph for the shapes of its first call, which compiles it."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, COMPILATIONS_PER_PROCESS)
    # torch does not cache graphs with custom backward passes, since their code is not in its cache key. The
    # tag below puts it there.
    functions: Any = torch._functorch.config
    if hasattr(functions, "autograd_cache_allow_custom_autograd_functions"):
        functions.autograd_cache_allow_custom_autograd_functions = True
        torch.compiler.config.cache_key_tag = f"nisynth {_code_sha256()}"
    faster: Any = torch.compile(function, fullgraph=True, dynamic=False)
    return cast(Function, faster)


@cache
def _code_sha256() -> str:
    """Returns the sha256 of the source of nisynth.synthesis, some of which is compiled."""
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def captured(step: Callable[[], None], rewind: Callable[[], object]) -> Callable[[], None]:
    """Returns what replays one call of `step` on the current CUDA device, as one launch.

    `step` may only read and write tensors that live as long as it does, and must not wait for the device.
    It first runs a few times on a stream of its own, because lazy initialization and cuDNN's choice of
    algorithms cannot be captured; `rewind` is called before each. The graph has memory of its own. Raises
    NotCaptured.
    """
    try:
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                rewind()
                step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Another thread of the worker may use the device while it uploads what is done.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
    except Exception as error:  # drivers may raise anything
        raise NotCaptured from error
    return graph.replay
