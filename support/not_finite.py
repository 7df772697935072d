"""What to say when a loss or a gradient is no number: where, which photos, what to try."""

import torch

from support.errors import UserError


def error_for_not_finite(step, phase, batch, embeddings, norm, run_dir):
    """Return the `UserError` that stops a run at a loss or gradient that is not finite.

    step: counted from the start of the phase. embeddings: those of the images and of the texts of the batch.
    """
    photos = [phase.photo_paths[row] for row in batch.photo_rows.tolist()]
    images, texts = embeddings  # (B, D) and (B, K, D)
    is_sound = torch.cat([images, texts.flatten(1)], dim=1).isfinite().all(dim=1).tolist()
    faulty = [photo for photo, sound in zip(photos, is_sound, strict=True) if not sound]
    which = "photo or caption without a finite embedding"
    if not faulty or len(faulty) == len(photos):  # by a BatchNorm that learns, one spoils all
        faulty = photos
        which = "the photos of this step"
    names = ", ".join(photo.name for photo in faulty)
    rates = ", ".join(f"{group['part']} {group['lr']:.2g}" for group in phase.optimizer.param_groups)
    epoch = step // len(phase.loader) + 1
    last = run_dir and run_dir / "last"
    kept = last if last and last.exists() else "none yet"
    return UserError(
        f"stopped at step {step + 1} (epoch {epoch}): loss {phase.losses[-1]}, gradient norm {norm:.3g}, learning "
        f"rates {rates}; {which}: {names}. Last good checkpoint: {kept}. Look at these photos and their captions, or "
        "leave them out; or train anew with lower learning rates or --precision fp32"
    )
