"""How much of a batch is computed at a time, so that it fits into memory beside whatever else runs.

What a forward pass keeps for the backward pass is most of what training needs, and it grows with the batch. So it is
counted for a few pairs, tensor by tensor, on whatever device; the rest is arithmetic.
"""

import os
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

import torch

from support.process import process_count

PART_OF_FREE = 0.6  # of the memory that is free
MOST_ON_CPU = 6e9  # bytes of the whole process: others want to live, too
# Both with what the allocator keeps of freed blocks, as support/process.py has it do, from peaks of a ResNet50 with a
# DistilBERT in parts of 8, 16 and 32 pairs, and of a MobileNetV2 with it in parts of 64: 5.3, 5.7, 7.4 and 7.7 GB.
BEYOND_WHAT_IS_KEPT = 2.2  # what a backward pass needs at its most, to what the forward pass has kept for it
BYTES_PER_WEIGHT = 30  # of one that trains: its gradient, two moments of AdamW, half-precise and reordered copies


def pairs_that_fit(model, batch_of, batch_size):
    """Return how many pairs of a batch are to be computed at a time: all of them, or as many as memory holds.

    model: with what trains set to train. batch_of: a function that returns a batch of so many pairs, as large as they
    come. The parts of a batch are of like size. Where not even two pairs fit this says so, and returns two: what is
    free now may be more in a moment.
    """
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    room = room_for_training(model.device) - BYTES_PER_WEIGHT * weights
    few = 4
    for_few = kept_for_backward(model, batch_of(few))
    for_twice_as_many = kept_for_backward(model, batch_of(2 * few))
    bytes_per_pair = BEYOND_WHAT_IS_KEPT * (for_twice_as_many - for_few) / few

    most = int(room / max(bytes_per_pair, 1))
    if most < 2:
        needed = memory_in_use() + BYTES_PER_WEIGHT * weights + 2 * bytes_per_pair
        print(
            f"warning: this may be ended for want of memory, of which it needs about {needed / 1e9:.1f} GB: end other "
            "programs, or choose smaller towers, a smaller --image-size, or --freeze both",
            flush=True,
        )
        most = 2
    parts = -(-batch_size // most)
    return -(-batch_size // parts)


def kept_for_backward(model, batch):
    """Return the bytes of all tensors that a forward pass keeps; the model and the random numbers stay as they are."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other tensor gets its place
        return tensor

    statistics = [buffer.clone() for buffer in model.buffers()]
    mode = model.training
    model.train()
    gpus = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(gpus), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with model.autocast():
            embeddings = model(batch.to(model.device))
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del embeddings
    with torch.no_grad():
        for buffer, statistic in zip(model.buffers(), statistics, strict=True):
            buffer.copy_(statistic)
    model.train(mode)
    return size


def room_for_training(device):
    """Return the bytes that this process may still take on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return PART_OF_FREE * free
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", process_count()))
    room = MOST_ON_CPU - memory_in_use()
    free = free_memory()
    if free is not None:
        room = min(room, PART_OF_FREE * free / processes)
    return room


def memory_in_use():
    """Return the bytes that this process has in memory now; 0 where the system does not tell."""
    return pages_of_this_process()[1]


def free_memory():
    """Return the bytes of memory that are free for this process; None where the system does not tell."""
    known = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                known.append(1024 * int(line.split()[1]))
    known += free_in_control_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    if resource:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            known.append(limit - pages_of_this_process()[0])
    return min(known, default=None)


def pages_of_this_process():
    """Return the bytes of addresses that this process has taken, and those of them that are in memory."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        return 0, 0
    addresses, resident = pages.read_text().split()[:2]
    return int(addresses) * resource.getpagesize(), int(resident) * resource.getpagesize()


def free_in_control_groups(root, groups_of_process):
    """Return what each control group that this process is in, such as a container's, leaves free, in bytes.

    root: where the groups lie, /sys/fs/cgroup. groups_of_process: the file that names them, /proc/self/cgroup.
    """
    if not groups_of_process.exists():
        return []
    free = []
    for line in groups_of_process.read_text().splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers == "":  # version 2, in which a group limits everything
            names = "memory.max", "memory.current", "inactive_file"
            top = root
        elif controllers == "memory":
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            top = root / "memory"
        else:
            continue
        group = top / place.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                free += free_in_group(folder, *names)
    return free


def free_in_group(folder, limit_name, used_name, cached_name):
    """Return the bytes that one control group leaves free, in a list; an empty one where it has no limit."""
    try:
        limit = (folder / limit_name).read_text().strip()
        used = int((folder / used_name).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    if limit == "max":
        return []
    return [int(limit) - used + int(statistics.get(cached_name, 0))]  # files that nobody reads may go at any time
