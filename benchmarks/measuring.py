"""What the benchmarks share: one run in a process of its own, and the peak of its memory."""

import json
import platform
import subprocess
import sys


def measure(script, *arguments):
    """What `script` prints last for these arguments, as JSON: a run in a process of its own, so that its peak is its own."""
    command = [sys.executable, str(script), *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def peak():
    """This process's peak of memory so far, in MB: on the card, if there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource  # which Windows has not

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def versions():
    """Versions and hardware, for the record in every result."""
    import torch

    from amnesia import hardware

    return {"python": platform.python_version(), "torch": str(torch.__version__), "hardware": hardware()}
