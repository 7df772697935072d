"""This process among others: its device, its number under torchrun, and what the processes tell each other.

    python train.py                           # one process: number 0 of 1
    torchrun --nproc-per-node=4 train.py      # four: each learns its number, and they meet in `start_process`

Torch is imported only inside functions: a prompt to an embedded gallery is answered without it.
"""

import contextlib
import ctypes
import os
import sys
from datetime import timedelta

from support.errors import UserError

# ---------------------------------------------------------------- how many, and which


def process_number():
    """Return the number of this process, from 0; the field calls it the rank."""
    return int(os.environ.get("RANK", "0"))


def process_count():
    """Return how many processes work together: 1 unless torchrun started several."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process():
    """Return whether this is the process that prints, draws and writes."""
    return process_number() == 0


def usable_cores():
    """Return how many cores this process may use: fewer than the machine has where it is held to some of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---------------------------------------------------------------- where it computes, and how precisely


def start_process(device_name):
    """Return the torch.device to compute on; under torchrun, join the other processes first.

    device_name: auto, cpu or cuda. Raises UserError where cuda is asked for and not there.
    """
    keep_freed_memory()
    device = choose_device(device_name)
    if process_count() > 1:
        join_other_processes(device)
    return device


def keep_freed_memory():
    """Have glibc keep the memory of freed activations instead of asking for it at every step: up to twice as fast."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap, too
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap is never given back


def choose_device(name):
    """Return the torch.device for auto, cpu or cuda; under torchrun each process has a GPU of its own."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU; type --device cpu, or install a torch built for your GPU")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")

    if process_count() > 1:
        number_on_machine = int(os.environ["LOCAL_RANK"])
        if number_on_machine >= torch.cuda.device_count():
            raise UserError(f"--nproc-per-node is more than the {torch.cuda.device_count()} GPUs of this machine")
        torch.cuda.set_device(number_on_machine)
    return torch.device("cuda", torch.cuda.current_device())


def join_other_processes(device):
    """Meet the other processes that torchrun started; from then on only the first one prints."""
    import torch.distributed as dist

    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(hours=1))
    if not is_first_process():
        sys.stdout = open(os.devnull, "w")


def choose_dtype(device, precision="auto"):
    """Return the torch.dtype that matrix products run in: float32, bfloat16 or float16.

    precision: fp32, bf16, fp16, or auto for what is fastest on this device. Raises UserError for fp16 on a CPU.
    """
    import torch

    if precision == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU; on a CPU choose auto, bf16 or fp32")
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16  # emulated bf16 on older cards is slower than fp16
    capabilities = torch.cpu.get_capabilities()
    has_bfloat16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if has_bfloat16 else torch.float32


# ---------------------------------------------------------------- what they tell each other


def from_first_process(value):
    """Return the first process's value: processes look at a disk, or a clock, at different moments."""
    if process_count() == 1:
        return value
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def copy_from_first_process(tensors):
    """Overwrite tensors with those of the first process. With one process nothing happens."""
    if process_count() == 1:
        return
    import torch.distributed as dist

    for tensor in tensors:
        dist.broadcast(tensor, 0)


@contextlib.contextmanager
def one_process_at_first():
    """Let one process of each machine do something while the others wait: they then find it done."""
    if process_count() == 1:
        yield
        return
    import torch.distributed as dist

    waits = int(os.environ["LOCAL_RANK"]) > 0
    if waits:
        dist.barrier()
    yield
    if not waits:
        dist.barrier()


def from_all_processes(rows, indices, count, device):
    """Return the rows that all processes made of `count` items, in the order of the items, and their indices.

    rows: (n, D) on the CPU, made by this process, of the items `indices`. An item that no process could make a row of
    is left out.
    """
    import torch

    if process_count() == 1:
        order = torch.tensor(indices, dtype=torch.long).argsort()
        return rows[order], sorted(indices)
    import torch.distributed as dist

    # A process without any item does not know how wide the rows are.
    width = torch.tensor(rows.shape[1] if len(rows) else 0, device=device)
    dist.all_reduce(width, dist.ReduceOp.MAX)

    every_row = torch.zeros(count, width, device=device)
    is_there = torch.zeros(count, dtype=torch.uint8, device=device)
    if len(rows):
        every_row[indices] = rows.to(device, torch.float32)
        is_there[indices] = 1
    dist.all_reduce(every_row)  # each row is one process's, and zero in the others: the sum is exact
    dist.all_reduce(is_there)

    indices = is_there.nonzero().flatten().tolist()
    return every_row.cpu()[indices].to(rows.dtype), indices
