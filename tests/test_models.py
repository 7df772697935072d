"""models.py: losses against naive loops and numbers by hand, towers that stay frozen, directories that load again."""

import copy
import math
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import save_image_tower, save_text_tower
from safetensors.torch import load_file, save_file
from transformers import DistilBertConfig

import models
from config import PRESETS
from dataset import Batch, pad, tokenize
from models import (
    CLIP,
    ImageEncoder,
    ProjectionHead,
    TextEncoder,
    clip_loss,
    false_negatives,
    siglip_loss,
    soft_clip_loss,
)
from support import big_batch
from support.big_batch import MicroBatches, blockwise_clip_loss
from support.errors import UserError
from support.fast_cpu import Dropout
from support.process import choose_device, choose_dtype, start_process
from support.wordpiece import train_tokenizer

CAPTIONS = ["A dog runs through the water .", "Two people sit near the beach .", "Children play soccer ."]
SMALL = replace(PRESETS["sample"], image_encoder="test_resnet", scratch_layers=1, scratch_width=64, embedding_dim=32,
                image_size=32)


def small_clip(**changes):
    torch.manual_seed(0)
    return CLIP.from_config(replace(SMALL, **changes), CAPTIONS)


def text_batch(model, texts=CAPTIONS):
    tower = model.text_encoder
    return pad(tokenize(tower.tokenizer, texts, tower.max_tokens), tower.tokenizer.pad_token_id)


def pixel_batch(count=3, size=32):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def all_different(photos, captions=1):
    """Rows and numbers of photos and captions of which no two are equal, as a batch has them: (B,), (B,), (B, K)."""
    rows = torch.arange(photos)
    return rows, rows, torch.arange(photos * captions).view(photos, captions)


def batch_of(pixels, input_ids, attention_mask):
    """A batch as the loader makes it, of photos with one caption each, and without anything known of them."""
    return Batch(*all_different(len(pixels)), pixels, input_ids[:, None], attention_mask[:, None], None, None)


def embeddings(count=6, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1) for _ in range(2)]


# ---------------------------------------------------------------- losses


def naive_clip(images, texts, scale):
    count, total = len(images), 0.0
    for i in range(count):
        by_image = [math.exp(scale * float(images[i] @ texts[j])) for j in range(count)]
        by_text = [math.exp(scale * float(images[j] @ texts[i])) for j in range(count)]
        total -= math.log(by_image[i] / sum(by_image)) + math.log(by_text[i] / sum(by_text))
    return total / (2 * count)


def naive_soft(images, texts, scale):
    count, total = len(images), 0.0
    for i in range(count):
        likeness = [math.exp(scale * float(images[i] @ images[j] + texts[i] @ texts[j]) / 2) for j in range(count)]
        by_image = [math.exp(scale * float(images[i] @ texts[j])) for j in range(count)]
        by_text = [math.exp(scale * float(images[j] @ texts[i])) for j in range(count)]
        for j in range(count):
            target = likeness[j] / sum(likeness)
            total -= target * (math.log(by_image[j] / sum(by_image)) + math.log(by_text[j] / sum(by_text)))
    return total / (2 * count)


def naive_siglip(images, texts, scale, bias):
    count, total = len(images), 0.0
    for i in range(count):
        for j in range(count):
            sign = 1 if i == j else -1
            total += math.log(1 + math.exp(-sign * (scale * float(images[i] @ texts[j]) + bias)))
    return total / count


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_losses_equal_naive_loops(scale):
    images, texts = embeddings()
    assert abs(clip_loss(images, texts, scale).item() - naive_clip(images, texts, scale)) < 1e-6
    assert abs(soft_clip_loss(images, texts, scale).item() - naive_soft(images, texts, scale)) < 1e-6
    assert abs(siglip_loss(images, texts, scale, -10.0).item() - naive_siglip(images, texts, scale, -10.0)) < 1e-6


@pytest.mark.parametrize("rows", [1, 4, 7, 100])
def test_the_streamed_loss_and_its_gradients_are_those_of_the_plain_one(monkeypatch, rows):
    monkeypatch.setattr(big_batch, "ROWS_AT_ONCE", rows)
    results = []
    for loss in (clip_loss, blockwise_clip_loss):
        inputs = [*embeddings(count=14), torch.tensor(9.0, dtype=torch.float64)]
        known = [torch.arange(14), torch.arange(14)] if loss is blockwise_clip_loss else []
        value = loss(*(tensor.requires_grad_() for tensor in inputs), *known)
        results.append([value, *torch.autograd.grad(3 * value, inputs)])
    for mine, theirs in zip(*results, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10)


# Four pairs of which the first two have one caption, and the last two are one photo; what a pair is told apart from
# can then be counted by hand: the first from the texts of pairs 1, 3 and 4, and so on.
PHOTO_IDS = torch.tensor([0, 1, 2, 2])
CAPTION_IDS = torch.tensor([0, 0, 1, 2])
TOLD_APART = [[0, 2, 3], [1, 2, 3], [0, 1, 2], [0, 1, 3]]


def test_which_pairs_of_a_batch_are_no_negatives():
    assert false_negatives(torch.arange(4), torch.arange(4)) is None
    masked = false_negatives(PHOTO_IDS, CAPTION_IDS)
    assert [[column for column in range(4) if not row[column]] for row in masked.tolist()] == TOLD_APART


def test_equal_captions_and_equal_photos_do_not_push_each_other_apart():
    images, texts = embeddings(count=4)
    logits = (3.0 * images @ texts.T).tolist()
    by_hand = 0.0
    for row, columns in enumerate(TOLD_APART):  # symmetric, so the same for texts and for images
        texts_told_apart = sum(math.exp(logits[row][column]) for column in columns)
        images_told_apart = sum(math.exp(logits[column][row]) for column in columns)
        by_hand += math.log(texts_told_apart) + math.log(images_told_apart) - 2 * logits[row][row]
    masked = false_negatives(PHOTO_IDS, CAPTION_IDS)
    assert clip_loss(images, texts, 3.0, masked).item() == pytest.approx(by_hand / 8, rel=1e-9)

    of_pairs = [math.log(1 + math.exp(-sign * logit)) for row, columns in enumerate(TOLD_APART) for column in columns
                for sign, logit in [(1 if row == column else -1, logits[row][column] - 2.0)]]
    assert siglip_loss(images, texts, 3.0, -2.0, masked).item() == pytest.approx(sum(of_pairs) / 4, rel=1e-9)


@pytest.mark.parametrize("loss", [clip_loss, soft_clip_loss])
def test_a_masked_pair_has_no_gradient_of_its_own(loss):
    """An image is moved by each text in its row; with all other pairs masked, by its own alone, and so not at all."""
    images, texts = (tensor.requires_grad_() for tensor in embeddings(count=4))
    everything_else = ~torch.eye(4, dtype=torch.bool)
    value = loss(images, texts, 3.0, everything_else)
    gradients = torch.autograd.grad(value, [images, texts])
    assert value.item() == 0 and not any(gradient.any() for gradient in gradients)


def test_the_streamed_loss_masks_the_same_pairs(monkeypatch):
    monkeypatch.setattr(big_batch, "ROWS_AT_ONCE", 3)
    results = []
    for loss in (lambda *inputs: clip_loss(*inputs, false_negatives(PHOTO_IDS, CAPTION_IDS)),
                 lambda *inputs: blockwise_clip_loss(*inputs, PHOTO_IDS, CAPTION_IDS)):
        inputs = [*embeddings(count=4), torch.tensor(9.0, dtype=torch.float64)]
        value = loss(*(tensor.requires_grad_() for tensor in inputs))
        results.append([value, *torch.autograd.grad(3 * value, inputs)])
    for mine, theirs in zip(*results, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10)


def test_a_large_batch_has_its_loss_streamed(monkeypatch):
    model, (images, texts) = small_clip(), [tensor.float() for tensor in embeddings(count=17, dim=32)]
    monkeypatch.setattr(big_batch, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(models, "BLOCKWISE_ABOVE", 17)
    plain = model.loss_of_pairs(images, texts, torch.arange(17), torch.arange(17))
    assert "BlockwiseClipLoss" not in type(plain.grad_fn).__name__
    monkeypatch.setattr(models, "BLOCKWISE_ABOVE", 16)
    streamed = model.loss_of_pairs(images, texts, torch.arange(17), torch.arange(17))
    assert type(streamed.grad_fn).__name__ == "BlockwiseClipLossBackward" and torch.allclose(plain, streamed)


def test_clip_loss_by_hand():
    pairs = torch.eye(2)  # each pair at cosine 1, each other at 0; with scale ln 3 the softmax is 3/4 and 1/4
    assert clip_loss(pairs, pairs, math.log(3)).item() == pytest.approx(math.log(4 / 3))
    assert clip_loss(pairs, pairs.flip(0), math.log(3)).item() == pytest.approx(math.log(4))


def test_losses_of_a_model_that_knows_nothing():
    same = F.normalize(torch.ones(7, 4), dim=1)
    assert clip_loss(same, same, 14.3).item() == pytest.approx(math.log(7))
    assert soft_clip_loss(same, same, 14.3).item() == pytest.approx(math.log(7), rel=1e-5)
    # every logit is 0: each of the 49 pairs costs ln 2, and the sum is divided by the 7 pairs
    assert siglip_loss(same, same, 1.0, -1.0).item() == pytest.approx(7 * math.log(2))


def test_soft_targets_are_constants_whose_rows_sum_to_one():
    images, texts = (tensor.requires_grad_() for tensor in embeddings())
    soft_clip_loss(images, texts, 5.0).backward()
    with torch.no_grad():
        targets = (5.0 * (images @ images.T + texts @ texts.T) / 2).softmax(dim=1)
    assert torch.allclose(targets.sum(dim=1), torch.ones(6, dtype=targets.dtype))
    # softmax cross-entropy against constants: the gradient on the logits is (softmax - targets) / B in each direction
    logits = (5.0 * images @ texts.T).detach()
    on_logits = ((logits.softmax(1) - targets) + (logits.softmax(0) - targets.T)) / (2 * 6)
    assert torch.allclose(images.grad, 5.0 * on_logits @ texts.detach())
    assert torch.allclose(texts.grad, 5.0 * on_logits.T @ images.detach())


def test_soft_loss_is_the_clip_loss_when_nothing_is_alike():
    pairs = torch.eye(5)
    assert soft_clip_loss(pairs, pairs, 50.0).item() == pytest.approx(clip_loss(pairs, pairs, 50.0).item(), abs=1e-6)


# ---------------------------------------------------------------- towers and heads


def test_resnet50_and_distilbert_have_the_widths_of_the_readme(tmp_path):
    image_encoder = ImageEncoder("resnet50", pretrained=False).eval()
    assert image_encoder.image_size == 224
    with torch.inference_mode():
        assert image_encoder(pixel_batch(1, 64)).shape == (1, 2048) and image_encoder.feature_dim == 2048
    DistilBertConfig(vocab_size=100).save_pretrained(tmp_path)
    train_tokenizer(CAPTIONS, 64).save_pretrained(tmp_path)
    text_encoder = TextEncoder.from_name(str(tmp_path), pretrained=False)
    assert text_encoder.feature_dim == 768 and text_encoder.max_tokens == 64
    with torch.inference_mode():
        assert text_encoder(*pad([[2, 5, 3]], 0)).shape == (1, 768)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_050", "convnext_atto"])
def test_any_timm_tower_at_the_size_asked_for(name):
    tower = ImageEncoder(name, pretrained=False, image_size=64).eval()
    with torch.inference_mode():
        assert tower(pixel_batch(2, 64)).shape == (2, tower.feature_dim)


def test_pixels_are_normalised_as_the_tower_was_trained(tmp_path):
    """A local folder with its own mean, standard deviation, size and padding type: nothing comes from a constant."""
    source = save_image_tower(tmp_path, "mobilenetv2_050", size=96, pad_type="same")
    tower = ImageEncoder(f"local-dir:{tmp_path}").eval()
    pixels = pixel_batch(2, 96)
    by_hand = (pixels / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    with torch.inference_mode():
        expected = source(by_hand)
        assert tower.image_size == 96
        assert torch.allclose(tower(pixels), expected, atol=1e-4)
        assert torch.allclose(tower(by_hand), expected, atol=1e-4)  # floats are taken as normalised already


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_half_precision_bert_from_a_folder(tmp_path, pooling):
    bert = save_text_tower(tmp_path, CAPTIONS)
    tower = TextEncoder.from_name(str(tmp_path), pooling=pooling).eval()
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}
    token_ids = tokenize(tower.tokenizer, CAPTIONS, 32)
    with torch.inference_mode():
        features = tower(*pad(token_ids, 0))
        for row, ids in enumerate(token_ids):  # alone, without padding, pooled by hand
            hidden = bert(input_ids=torch.tensor([ids])).last_hidden_state[0]
            assert torch.allclose(features[row], hidden.mean(dim=0) if pooling == "mean" else hidden[0], atol=1e-5)


def test_without_pretrained_the_weights_of_the_folder_are_not_used(tmp_path):
    bert = save_text_tower(tmp_path, CAPTIONS)
    tower = TextEncoder.from_name(str(tmp_path), pretrained=False)
    name = "encoder.layer.0.output.dense.weight"
    assert not torch.allclose(tower.backbone.state_dict()[name], bert.state_dict()[name])
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}


def test_an_image_size_that_does_not_fit_is_named():
    with pytest.raises(UserError, match="--image-size 70 does not fit the image tower test_vit"):
        ImageEncoder("test_vit", pretrained=False, image_size=70)


@pytest.mark.parametrize("build, complaint", [
    (lambda: ImageEncoder("resnet5000"), "image tower 'resnet5000'.*--image-encoder"),
    (lambda: ImageEncoder("local-dir:nowhere"), "local-dir:nowhere"),
    (lambda: ImageEncoder("resnet50"), "image tower 'resnet50'.*connect.*--no-pretrained"),
    (lambda: TextEncoder.from_name("distilbert-base-uncased"), "text tower 'distilbert-base-uncased'.*connect"),
    (lambda: TextEncoder.from_name("./nowhere"), "text tower './nowhere'.*--text-encoder"),
])
def test_towers_that_cannot_be_had_end_in_one_line(build, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        build()
    assert "\n" not in str(error.value)


def test_projection_head_is_the_one_described():
    head = ProjectionHead(6, 4, dropout=0.5).eval()
    features = torch.randn(3, 6)
    projected = features @ head.projection.weight.T + head.projection.bias
    gelu = projected * 0.5 * (1 + torch.erf(projected / math.sqrt(2)))
    summed = projected + gelu @ head.hidden.weight.T + head.hidden.bias
    centred = summed - summed.mean(dim=1, keepdim=True)
    expected = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() + head.norm.bias
    assert torch.allclose(head(features), expected, atol=1e-5)


# ---------------------------------------------------------------- CLIP


def test_embeddings_are_of_unit_length_and_do_not_depend_on_the_batch():
    model = small_clip().eval()
    with torch.inference_mode():
        images, texts = model(batch_of(pixel_batch(), *text_batch(model)))
        assert images.shape == (3, 32) and texts.shape == (3, 1, 32) and images.dtype == texts.dtype == torch.float32
        texts = texts[:, 0]
        assert torch.allclose(images.norm(dim=1), torch.ones(3)) and torch.allclose(texts.norm(dim=1), torch.ones(3))
        assert torch.allclose(images[1:2], model.encode_image(pixel_batch()[1:2]), atol=1e-5)
        assert torch.allclose(texts[2:], model.encode_text(*text_batch(model, CAPTIONS[2:])), atol=1e-5)


def test_training_starts_at_chance(tower_flags):
    """Unlike pairs and heads that know nothing: the first loss is ln B, whatever the towers and the seed."""
    texts = [f"{caption} {number}" for number, caption in enumerate(CAPTIONS * 11)]
    for seed in range(3):
        torch.manual_seed(seed)
        for changes in ({"pretrained": False}, {"pretrained": True, "max_tokens": 32, **tower_flags}):
            model = CLIP.from_config(replace(SMALL, embedding_dim=256, **changes), CAPTIONS).eval()
            with torch.inference_mode():
                batch = batch_of(pixel_batch(len(texts)), *text_batch(model, texts))
                loss = model.loss(*model(batch), batch.photo_ids, batch.caption_ids)
            assert abs(loss.item() / math.log(len(texts)) - 1) < 0.05


def test_logit_scale_starts_at_the_temperature_and_is_clamped():
    model = small_clip()
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    model.logit_scale.data.fill_(9.0)
    model.clamp_logit_scale()
    assert model.logit_scale.exp().item() == pytest.approx(100)


@pytest.mark.parametrize("loss", ["clip", "soft", "siglip"])
def test_the_configured_loss_is_used(loss):
    model = small_clip(loss=loss, temperature=0.5)
    images, texts = (tensor.float() for tensor in embeddings(dim=32))
    expected = {"clip": lambda: naive_clip(images, texts, 2.0), "soft": lambda: naive_soft(images, texts, 2.0),
                "siglip": lambda: naive_siglip(images, texts, 2.0, -10.0)}[loss]()
    assert model.loss(images, texts[:, None], *all_different(6)[1:]).item() == pytest.approx(expected, rel=1e-5)


def test_with_several_captions_a_photo_the_loss_is_the_mean_over_them():
    model = small_clip(temperature=0.5)
    images, first = (tensor.float() for tensor in embeddings(dim=32))
    _, second = (tensor.float() for tensor in embeddings(dim=32, seed=5))
    expected = (naive_clip(images, first, 2.0) + naive_clip(images, second, 2.0)) / 2
    loss = model.loss(images, torch.stack([first, second], dim=1), *all_different(6, 2)[1:])
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_each_caption_of_a_photo_is_embedded_as_if_it_were_alone(tower_flags):
    model = pretrained_clip(tower_flags).eval()
    input_ids, mask = text_batch(model, ["a dog", "two dogs run through the water", "snow", "a boy on a red bike"])
    batch = Batch(*all_different(2, 2), pixel_batch(2), input_ids.view(2, 2, -1), mask.view(2, 2, -1), None, None)
    with torch.inference_mode():
        _, texts = model(batch)
        assert torch.allclose(texts.flatten(0, 1), model.encode_text(input_ids, mask), atol=1e-5)
        assert texts.shape == (2, 2, 32)


def gradients_of(model, embed, texts):
    """Return the loss and the gradients of one pass in training mode, from the same random state each time."""
    torch.manual_seed(3)
    batch = batch_of(pixel_batch(len(texts)), *text_batch(model, texts))
    loss = model.train().loss(*embed(batch), batch.photo_ids, batch.caption_ids)
    model.zero_grad()
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_micro_batches_give_the_gradient_of_the_whole_batch(tower_flags, dropout):
    torch.manual_seed(0)
    model = CLIP.from_config(replace(SMALL, pretrained=True, max_tokens=32, image_dropout=dropout, text_dropout=dropout,
                                     head_dropout=dropout, **tower_flags))
    for module in model.text_encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    texts = [f"{caption} {number}" for number, caption in enumerate(CAPTIONS * 3)]

    def whole(batch):
        pixels, input_ids, mask = batch.pixels, batch.input_ids[:, 0], batch.attention_mask[:, 0]
        if not dropout:
            return model.encode_image(pixels), model.encode_text(input_ids, mask)[:, None]
        parts = zip(pixels.split(4), input_ids.split(4), mask.split(4), strict=True)  # dropout is drawn in this order
        images, texts = zip(*((model.encode_image(part[0]), model.encode_text(*part[1:])) for part in parts),
                            strict=True)
        return torch.cat(images), torch.cat(texts)[:, None]

    expected = gradients_of(model, whole, texts)
    calls = []
    model.image_encoder.register_forward_hook(lambda module, arguments, output: calls.append(len(output)))
    got = gradients_of(model, MicroBatches(model, 4), texts)
    assert calls == [4, 4, 1, 1, 4, 4]  # each part once for the loss, and once for its gradient, the last one first
    assert len(got) == len(expected) > 20
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_micro_batches_show_each_photo_to_batch_norm_once(tower_flags):
    model = pretrained_clip(tower_flags, fix_batch_norm=False).train()
    alike = copy.deepcopy(model)
    batch = batch_of(pixel_batch(9), *text_batch(model, CAPTIONS * 3))
    images, texts = MicroBatches(model, 3)(batch)
    (images.sum() + texts.sum()).backward()  # embeds each part again
    for part in batch.in_parts(3):
        alike(part)
    moved = 0
    for name, statistic in model.named_buffers():
        if "running" in name:
            moved += 1
            assert torch.allclose(statistic, alike.get_buffer(name), atol=1e-6), name
    assert moved > 2
    assert {layer.momentum for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)} == {0.1}


def test_micro_batches_split_photos_beside_cached_text_features(tower_flags):
    model = pretrained_clip(tower_flags).train()
    calls = []
    model.image_encoder.register_forward_hook(lambda module, arguments, output: calls.append(len(output)))
    features = torch.randn(9, 1, 32)
    images, texts = MicroBatches(model, 4)(Batch(*all_different(9), pixel_batch(9), None, None, None, features))
    assert calls == [4, 4, 1] and len(images) == len(texts) == 9


def step(model):
    """One training step; returns the state before and after."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    batch = batch_of(pixel_batch(), *text_batch(model))
    model.loss(*model(batch), batch.photo_ids, batch.caption_ids).backward()
    optimizer.step()
    return before, model.state_dict()


def pretrained_clip(tower_flags, **changes):
    torch.manual_seed(0)
    changes = {"pretrained": True, "max_tokens": 32, "image_depth": 1.0, **tower_flags, **changes}
    return CLIP.from_config(replace(SMALL, **changes))


@pytest.mark.parametrize("freeze", ["none", "image", "text", "both"])
def test_frozen_towers_change_neither_weights_nor_statistics(tower_flags, freeze):
    model = pretrained_clip(tower_flags, freeze=freeze, fix_batch_norm=False)
    before, after = step(model)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    towers = {"none": {"image_encoder", "text_encoder"}, "image": {"text_encoder"}, "text": {"image_encoder"},
              "both": set()}[freeze]
    assert changed == {"image_head", "text_head", "logit_scale"} | towers
    assert not any(parameter.grad is not None for parameter in model.parameters() if not parameter.requires_grad)


def test_layers_hold_every_parameter_once_from_input_to_output(tower_flags):
    tower = pretrained_clip(tower_flags).image_encoder
    layers = tower.layers()
    names = [name for layer in layers for name in layer]
    assert sorted(names) == sorted(name for name, _ in tower.backbone.named_parameters())
    assert any(name.startswith("conv1") for name in layers[0]) and all(n.startswith("layer4") for n in layers[-1])


def test_the_lowest_layers_of_the_image_tower_can_stay_as_they_are(tower_flags):
    model = pretrained_clip(tower_flags, image_depth=0.6, fix_batch_norm=False)
    before, after = step(model)
    for number, layer in enumerate(model.image_encoder.layers()):
        names = [f"image_encoder.backbone.{name}" for name in layer]
        same = [torch.equal(before[name], after[name]) for name in names]
        assert all(same) if number < 2 else not all(same)  # 0.4 of 5 layers
    # the statistics of the frozen convolutions stay, those of the others move, since fix_batch_norm is off
    moved = {name for name in before if "running_mean" in name and not torch.equal(before[name], after[name])}
    assert moved and not any(".layer1." in name or ".bn1." in name.split("backbone")[1][:5] for name in moved)


def test_an_image_tower_whose_layers_are_not_known_is_one_layer(tower_flags, monkeypatch):
    model = pretrained_clip(tower_flags, image_depth=0.5)
    monkeypatch.delattr(type(model.image_encoder.backbone), "group_matcher")
    assert len(model.image_encoder.layers()) == 1
    for depth in (0.5, 0.3):  # at 0.3 all but a third of one layer would be frozen, which is the whole tower
        model.config = replace(model.config, image_depth=depth)
        model.freeze("none")
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_random_tower_learns_as_a_whole():
    model = small_clip(image_depth=0.5)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_freezing_can_be_taken_back(tower_flags):
    model = pretrained_clip(tower_flags)
    model.freeze("both")
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {
        "logit_scale", "image_head", "text_head"}
    model.freeze("none")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_features_made_before_give_the_same_embeddings(tower_flags):
    model = pretrained_clip(tower_flags).eval()
    pixels, (input_ids, mask) = pixel_batch(), text_batch(model)
    image_features, text_features = model.image_encoder(pixels), model.text_encoder(input_ids, mask)
    assert torch.equal(model.project_image(image_features), model.encode_image(pixels))
    assert torch.equal(model.project_text(text_features), model.encode_text(input_ids, mask))
    plain = model(batch_of(pixels, input_ids, mask))
    for known in (Batch(*all_different(3), None, input_ids[:, None], mask[:, None], image_features, None),
                  Batch(*all_different(3), pixels, None, None, None, text_features[:, None]),
                  Batch(*all_different(3), None, None, None, image_features, text_features[:, None])):
        assert all(torch.equal(one, other) for one, other in zip(model(known), plain, strict=True))


def test_dropout_on_features_is_there_in_training_only(tower_flags):
    dropout = {"image_dropout": 0.9, "text_dropout": 0.9, "head_dropout": 0.0}
    model = pretrained_clip(tower_flags, freeze="both", head="linear", **dropout)
    features = torch.ones(4, model.image_encoder.feature_dim)
    assert torch.equal(*(model.eval().project_image(features) for _ in range(2)))
    assert not torch.equal(*(model.train().project_image(features) for _ in range(2)))


def test_dropout_drops_the_share_it_is_given_and_keeps_the_mean():
    torch.manual_seed(0)
    ones = torch.ones(501, 401, dtype=torch.bfloat16, requires_grad=True)  # not a multiple of four
    dropped = Dropout(0.4)(ones)
    assert dropped.dtype == torch.bfloat16 and dropped.shape == ones.shape
    kept = dropped != 0
    assert kept.float().mean().item() == pytest.approx(0.6, abs=0.005)
    assert (dropped[kept] == torch.tensor(1 / 0.6).bfloat16()).all()
    for way in (0, 1):  # no row or column goes more often than another
        assert (kept.float().mean(way) - 0.6).abs().max() < 0.12
    dropped.sum().backward()
    assert torch.equal(ones.grad, dropped)
    assert torch.equal(Dropout(0.4).eval()(ones), ones) and torch.equal(Dropout(0.0)(ones), ones)


def test_frozen_towers_are_in_eval_mode_and_heads_are_not(tower_flags):
    model = pretrained_clip(tower_flags, freeze="both").train()
    assert not any(module.training for tower in (model.image_encoder, model.text_encoder) for module in tower.modules())
    assert model.image_head.training and model.text_head.training


@pytest.mark.parametrize("fixed", [True, False])
def test_pretrained_batch_norm_keeps_its_statistics_but_learns_its_weights(tower_flags, fixed):
    before, after = step(pretrained_clip(tower_flags, fix_batch_norm=fixed))
    statistics = [name for name in before if "running_mean" in name]
    assert statistics and all(torch.equal(before[name], after[name]) == fixed for name in statistics)
    weight = statistics[0].replace("running_mean", "weight")
    assert not torch.equal(before[weight], after[weight])


@pytest.mark.parametrize("changes", [
    {}, {"head": "linear", "pooling": "cls", "loss": "siglip"}, {"image_encoder": "test_vit", "image_size": 64},
])
def test_a_model_directory_gives_the_same_embeddings(tmp_path, changes):
    model = small_clip(**changes).eval()
    model.save_pretrained(tmp_path)
    loaded = CLIP.from_pretrained(tmp_path)
    assert not loaded.training and loaded.config == model.config
    size = model.config.image_size
    with torch.inference_mode():
        for one, other in zip(model(batch_of(pixel_batch(3, size), *text_batch(model))),
                              loaded(batch_of(pixel_batch(3, size), *text_batch(loaded))), strict=True):
            assert torch.equal(one, other)


def test_a_saved_model_keeps_its_towers_settings(tmp_path):
    """Padding type and normalisation of a local tower travel with the model; its folder is not needed again."""
    save_image_tower(tmp_path / "tower", "mobilenetv2_050", size=96, pad_type="same")
    torch.manual_seed(0)
    model = CLIP.from_config(
        replace(SMALL, image_encoder=f"local-dir:{tmp_path / 'tower'}", image_size=None), CAPTIONS).eval()
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "tower")
    loaded = CLIP.from_pretrained(tmp_path / "model")
    assert loaded.config.image_size == 96
    with torch.inference_mode():
        assert torch.equal(model.encode_image(pixel_batch(2, 96)), loaded.encode_image(pixel_batch(2, 96)))


def test_damaged_model_directories_are_one_clear_line(tmp_path):
    small_clip().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    tensors = load_file(weights)
    damages = {
        "truncated": lambda: weights.write_bytes(content[:1000]),
        "missing tensor": lambda: save_file({k: v for k, v in tensors.items() if k != "logit_scale"}, weights),
        "extra tensor": lambda: save_file({**tensors, "extra": torch.zeros(1)}, weights),
        "wrong shape": lambda: save_file({**tensors, "logit_scale": torch.zeros(7)}, weights),
        "gone": lambda: weights.unlink(),
    }
    for damage in damages.values():
        damage()
        with pytest.raises(UserError, match="model.safetensors") as error:
            CLIP.from_pretrained(tmp_path)
        assert "\n" not in str(error.value)
        weights.write_bytes(content)
    CLIP.from_pretrained(tmp_path)
    for part in ("text_encoder/tokenizer.json", "image_encoder/config.json"):
        (tmp_path / part).unlink()
        with pytest.raises(UserError, match=f"is not a whole model directory: {part} is missing"):
            CLIP.from_pretrained(tmp_path)


def test_nothing_that_is_saved_is_a_pickle(tmp_path):
    small_clip().save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_said_so():
    with pytest.raises(UserError, match="--device cpu"):
        choose_device("cuda")
    with pytest.raises(UserError, match="--device cpu"):
        start_process("cuda")
    assert choose_device("auto").type == start_process("auto").type == "cpu"


def test_precision_is_what_was_asked_for():
    cpu = torch.device("cpu")
    assert choose_dtype(cpu, "fp32") == torch.float32 and choose_dtype(cpu, "bf16") == torch.bfloat16
    assert choose_dtype(cpu, "auto") in (torch.float32, torch.bfloat16)
    with pytest.raises(UserError, match="--precision fp16 needs a GPU"):
        choose_dtype(cpu, "fp16")
    dtypes = {}
    for precision in ("fp32", "bf16", "fp16"):  # a model trained in fp16 can still be used on a CPU
        with small_clip(precision=precision).autocast():
            dtypes[precision] = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    assert (dtypes["fp32"], dtypes["bf16"]) == (torch.float32, torch.bfloat16) and dtypes["fp16"] != torch.float16
