"""What the machine can do, and is asked for: a device that works, threads, quick products, a step as one CUDA graph; a bar."""

import os
import platform
import sys
from contextlib import contextmanager

import torch
from joblib import cpu_count
from tqdm import tqdm

used = torch.device("cpu")  # what pick_device last found, for the record in every file


def pick_device(device="auto"):
    """The torch.device for the parameter `device`, a name or a torch.device: "auto" is a GPU if there is one.

    From here on torch takes no more threads than this process may keep busy, unless OMP_NUM_THREADS says how many: in a
    container it would take one for each core of the machine. Of several cards, the one that is taken is torch's current one.
    Raises ValueError if it is absent or cannot be used, as a card that this torch has no kernels for.
    """
    global used
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), cpu_count()))  # joblib's count knows quotas and affinity
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        ones = torch.ones(16, 16, device=best if device == "auto" else device)
        (ones @ ones).sum().item()  # waits for the result, and so for the error of a kernel that could not run
    except Exception as error:  # torch raises RuntimeError, AssertionError or NotImplementedError, by backend
        raise ValueError(f'device={device!r} ({best} here) cannot be used ({error}). Choose device="cpu".') from error
    used = ones.device
    if used.type == "cuda":
        torch.cuda.set_device(used)
    return used


def hardware():
    """What this process computes on, in words: the card, or the CPU with its units and the threads that torch takes."""
    products = "bfloat16 products" if rounds_by_autocast() else torch.backends.cpu.get_cpu_capability()
    cpu = f"{os.cpu_count()}-core {platform.machine()} CPU ({products}), {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(used) if used.type == "cuda" else cpu if used.type == "cpu" else f"{used} of a {cpu}"


def rounds_by_autocast():
    """Has the CPU units for bfloat16 that torch uses only where it is told to, by autocast?

    That is AVX512-BF16 without AMX (AMD's Zen 4 and 5, Intel's Cooper Lake). With AMX, quick_products() is enough.
    Before torch says what the CPU has (torch.cpu.get_capabilities), the answer is no.
    """
    units = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(units.get("avx512_bf16")) and not units.get("amx_bf16")


@contextmanager
def quick_products():
    """Within it, float32 matrix products may round their inputs where torch does that by itself: to bfloat16 on a CPU with
    AMX, to TF32 on an NVIDIA GPU. On other CPUs torch then takes its quicker float32 kernels. Sums stay float32.

    The user's own setting is back afterwards.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def bfloat16_products(device):
    """Within it, models on `device` multiply in bfloat16 if that is a CPU which has to be told (rounds_by_autocast)."""
    return torch.autocast("cpu", torch.bfloat16, enabled=device.type == "cpu" and rounds_by_autocast())


def generators(device):
    """{kind: module} of the random number generators that a run on `device` draws from."""
    return {device.type: torch.get_device_module(device), "cpu": torch}


def progress(iterable=None, **options):
    """A tqdm bar in plain text, in a terminal and in a notebook alike: widgets would break the saved notebook."""
    return tqdm(iterable, file=sys.stdout, ncols=110, mininterval=0.5, **options)


def captured(step, data=None):
    """The values of step(), one at each next(): from one CUDA graph, a single launch instead of one for each kernel.

    The first three are of plain calls, in which libraries set themselves up; then the step is captured, and from there on
    replayed. So step() must do the same on the card every time, with tensors at the same places. It may draw random numbers.
    data: the Pictures that it takes its one batch from, if any; their shuffle is Python's work and goes on outside the graph.
    """
    for _ in range(3):                                      # on a stream of its own, as torch.cuda.graph's page asks for
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            values = step()
        torch.cuda.current_stream().wait_stream(stream)
        yield values
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values = step()
    while True:
        if data:
            data.advance()
        graph.replay()
        yield values
