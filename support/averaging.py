"""A running mean of the weights: what is measured and kept, while training moves the weights themselves."""

import copy

import torch


class RunningMean:
    """A copy of a model whose weights follow those of the model, slowly (Izmailov et al. 2018).

    The weights that training moves circle round a better place than any that they pass. `mean.model` is the copy.
    decay: the part of the old mean that a step keeps; 0 follows at once.
    """

    def __init__(self, model, decay):
        self.model = copy.deepcopy(model)
        self.decay = decay
        self.means = []
        self.weights = []

    def follow(self, model):
        """Find what training moves: parameters that train, running statistics that move. Slow: once an epoch."""
        self.means = []
        self.weights = []
        for mean, weight in zip(self.model.parameters(), model.parameters(), strict=True):
            if weight.requires_grad:
                self.means.append(mean)
                self.weights.append(weight)
        for mean_layer, layer in zip(self.model.modules(), model.modules(), strict=True):
            if not layer.training:  # a frozen BatchNorm's statistics stand still
                continue
            buffers = zip(mean_layer.buffers(recurse=False), layer.buffers(recurse=False), strict=True)
            for mean, statistic in buffers:
                if mean.is_floating_point():
                    self.means.append(mean)
                    self.weights.append(statistic)

    @torch.no_grad()
    def update(self, step):
        """Follow the weights after a step, which is counted from 0: mean = decay * mean + (1 - decay) * weight.

        The mean looks back 1 / (1 - decay) steps, and over fewer while there have been few.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.means, self.weights, 1 - decay)

    @torch.no_grad()
    def put_statistics_back(self):
        """Give the model the mean's running statistics: a step that was skipped may have spoilt its own for good."""
        for mean, weight in zip(self.means, self.weights, strict=True):
            if not weight.requires_grad:
                weight.copy_(mean)
