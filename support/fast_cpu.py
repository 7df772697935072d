"""What makes towers faster on a CPU, and changes nothing else."""

import functools

import torch
from torch import nn


class Dropout(nn.Dropout):
    """`nn.Dropout`; on a CPU it draws 16 random bits a number, where torch's 64 would take half the time of a step."""

    def forward(self, features):
        if not self.training or self.p in (0, 1) or features.device.type != "cpu":
            return super().forward(features)
        words = -(-features.numel() // 4)  # of 64 bits, which are four numbers of 16
        bits = torch.empty(words, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        bits = bits[: features.numel()].view(features.shape)  # each from -2^15 to 2^15 - 1
        kept = bits >= self.p * 2**16 - 2**15
        return features * kept / (1 - self.p)


def in_parts_of_like_length(forward):
    """Decorate a text tower's forward: on a CPU, captions of like length go through it together, 64 at a time.

    Padding costs as much as words do; among captions of like length there is little of it, for half the time.
    """

    @functools.wraps(forward)
    def sorted_by_length(tower, input_ids, attention_mask):
        if input_ids.device.type != "cpu" or torch.compiler.is_compiling():  # an exported graph takes any batch
            return forward(tower, input_ids, attention_mask)

        positions = torch.arange(1, input_ids.shape[1] + 1)
        lengths = (attention_mask * positions).amax(dim=1)  # (B,)
        order = lengths.argsort(stable=True)
        parts = []
        for rows in order.split(64):
            longest = lengths[rows[-1]]
            parts.append(forward(tower, input_ids[rows, :longest], attention_mask[rows, :longest]))
        return torch.cat(parts)[order.argsort()]

    return sorted_by_length
