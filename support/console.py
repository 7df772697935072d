"""What a training run tells the person at the terminal: its towers, its plan, a line an epoch."""

from support.process import process_count
from support.progress import in_words


def print_towers(config):
    """Print what the towers are, and what is remarkable about them."""
    image, text = config.image_encoder, config.text_encoder
    image_start = "pretrained" if config.is_pretrained("image") else "random weights"
    text_start = "pretrained" if config.is_pretrained("text") else "random weights"
    print(f"towers: {image} ({image_start}) and {text} ({text_start}); frozen: {config.freeze}", flush=True)

    if config.freeze in ("image", "both") and config.cache:
        print("the features of whole photos are kept; for crops add --no-cache")
    if not config.pretrained and (image.startswith("local-dir:") or text != "scratch"):
        print("the weights of the towers named are not used: add --pretrained to start from them")


def print_plan(model, phase, config):
    """Print how much trains, on what, for how long."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in phase.weights)
    dtype = str(model.compute_dtype()).removeprefix("torch.")
    photos = process_count() * phase.loader.batch_size
    captions = phase.pairs.captions_per_photo
    batch = f"{photos} photos" if captions == 1 else f"{photos} photos with {captions} captions each"
    processes = f", in {process_count()} processes" if process_count() > 1 else ""
    print(f"{trained:,} of {total:,} parameters, {model.config.image_size} px, on {phase.device} in {dtype}")
    print(f"{config.epochs} epochs of {len(phase.loader)} steps of {batch}, into {config.run_dir}{processes}")
    if len(model.image_encoder.layers()) == 1 and config.image_depth < 1:
        print(f"the layers of {config.image_encoder} are not known: it trains as a whole")
    in_parts = phase.micro_batch < phase.loader.batch_size
    if in_parts:
        parts = f"parts of {phase.micro_batch} photos"
        print(f"each batch is computed in {parts}, for memory (--micro-batch says how many)")
    batch_norm_learns = not (config.pretrained and config.fix_batch_norm)
    if batch_norm_learns and (in_parts or process_count() > 1):
        print("BatchNorm, where it learns, sees the photos of one part only: not quite the result of the whole batch")
    if photos < config.batch_size and phase.pairs.is_streamed:  # of a folder the doctor has said so
        print(f"--batch-size {config.batch_size} is more than the training photos of an epoch: using {photos}")


def print_epoch(history, chance_loss, epochs):
    """Print a line about the newest epoch, and a warning where nothing is learned."""
    print(epoch_line(history[-1], epochs), flush=True)
    warning = warning_at_chance(history, chance_loss)
    if warning:
        print(warning, flush=True)


def epoch_line(row, epochs):
    """Return one line for people about a row of metrics.jsonl."""
    recalls = {}
    for direction in ("text_to_image", "image_to_text"):
        recalls[direction] = "/".join(f"{row[direction][key]:.1f}" for key in ("R@1", "R@5", "R@10"))
    words = [
        f"epoch {row['epoch']:>3}/{epochs}",
        f"loss {row['train_loss']:.3f}",
        f"dev R@1/5/10 text->image {recalls['text_to_image']}",
        f"image->text {recalls['image_to_text']}",
        f"{row['seconds']:.1f} s",
    ]
    if row["epoch"] == 1 and epochs > 1:
        words.append(f"about {in_words(row['seconds'] * (epochs - 1))} to go")
    if row.get("skipped"):
        words.append(f"{row['skipped']:,} bad samples skipped")
    if row.get("skipped_steps"):
        words.append(f"{row['skipped_steps']:,} steps skipped: fp16 overflow")
    return "  ".join(words)


def warning_at_chance(history, chance_loss):
    """Return a warning if the loss of the newest two epochs is that of a model that knows nothing, else None."""
    if chance_loss is None or len(history) < 2:
        return None
    before, now = (row["train_loss"] for row in history[-2:])
    if min(before, now) < 0.98 * chance_loss or now < 0.98 * before:  # learned something, or learning it now
        return None
    return (
        f"warning: the loss stands at chance, ln(batch size) = {chance_loss:.2f}: nothing has been learned yet. Are "
        "these the captions of these photos? If so, try lower --lr-image and --lr-text, and more --epochs"
    )
