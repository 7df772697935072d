"""Where in a picture the answer to a prompt was found."""

from support.errors import UserError


def heat_map(model, pixels, wanted, steps=12):
    """Return (h, w) from 0 to 1: how much each field of the image tower's last feature map adds to the score.

    pixels: (S, S, 3) uint8; wanted: (D,) float32. The gradient of the score, through the head, times the activations
    (Selvaraju et al. 2017, Grad-CAM), where the gradient is the mean over a path from no activation to all of it
    (Sundararajan et al. 2017): the head is curved, and at its end alone most of it is flat. What speaks against the
    prompt is 0. Raises UserError for a tower without such a map, such as a vision transformer.
    """
    import torch
    import torch.nn.functional as F

    tower = model.image_encoder
    wanted, pixels = (torch.from_numpy(array).to(tower.mean.device) for array in (wanted, pixels))
    with torch.no_grad():
        features = tower.backbone.forward_features((pixels.permute(2, 0, 1)[None] - tower.mean) / tower.std)
    if features.ndim != 4 or features.shape[-1] == tower.backbone.num_features:  # tokens, or channels last
        raise UserError(f"the image tower {model.config.image_encoder} has no map of features to explain a picture by: "
                        "convolutional towers such as resnet50 have")
    part = (torch.linspace(1 / steps, 1, steps, device=features.device).view(-1, 1, 1, 1) * features).requires_grad_()
    embeddings = F.normalize(model.image_head(tower.backbone.forward_head(part, pre_logits=True)), dim=-1)  # (steps, D)
    (gradient,) = torch.autograd.grad((embeddings @ wanted).sum(), part)  # (steps, F, h, w)
    heat = (gradient.mean(dim=0) * features[0]).sum(dim=0).relu()
    return (heat / heat.max().clamp(min=1e-9)).cpu().numpy()
