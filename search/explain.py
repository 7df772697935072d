"""Where in a picture the answer to a prompt was found."""

from support.errors import UserError


def heat_map(model, pixels, query_embedding, steps=12):
    """Return (h, w) from 0 to 1: how much each field of the image tower's last feature map adds to the score.

    pixels: (S, S, 3) uint8; query_embedding: (D,) float32. The gradient of the score, through the head, times the
    activations (Selvaraju et al. 2017, Grad-CAM), where the gradient is the mean over a path from no activation to all
    of it (Sundararajan et al. 2017): the head is curved, and at its end alone most of it is flat. What speaks against
    the prompt is 0. Raises UserError for a tower without such a map, such as a vision transformer.
    """
    import torch
    import torch.nn.functional as F

    tower = model.image_encoder
    device = tower.mean.device
    query_embedding = torch.from_numpy(query_embedding).to(device)
    batch = torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None]  # (1, 3, S, S)
    with torch.no_grad():
        features = tower.backbone.forward_features((batch - tower.mean) / tower.std)  # (1, F, h, w)
    has_tokens = features.ndim != 4
    if has_tokens or features.shape[-1] == tower.backbone.num_features:  # the latter: channels last
        raise UserError(
            f"the image tower {model.config.image_encoder} has no map of features to explain a picture by: "
            "convolutional towers such as resnet50 have"
        )

    shares = torch.linspace(1 / steps, 1, steps, device=device).view(-1, 1, 1, 1)
    path = (shares * features).requires_grad_()  # (steps, F, h, w)
    projected = model.image_head(tower.backbone.forward_head(path, pre_logits=True))
    scores = F.normalize(projected, dim=-1) @ query_embedding  # (steps,)
    (gradient,) = torch.autograd.grad(scores.sum(), path)  # (steps, F, h, w)
    heat = (gradient.mean(dim=0) * features[0]).sum(dim=0).relu()  # (h, w)
    return (heat / heat.max().clamp(min=1e-9)).cpu().numpy()
