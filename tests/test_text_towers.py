"""Text towers of any kind: the half that reads text, or one line before the first step."""

from dataclasses import replace

import pytest
import torch
from conftest import run_script, save_image_tower, save_text_tower
from transformers import (
    AutoModel,
    BartConfig,
    BertConfig,
    CLIPConfig,
    CLIPModel,
    LEDConfig,
    MBartConfig,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
)

from config import PRESETS
from models import CLIP, TextEncoder
from support.errors import UserError
from support.text_towers import refuse_what_reads_no_text
from support.wordpiece import train_tokenizer

CAPTIONS = ["Two people sit near the beach .", "A dog runs through the water ."]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def clip_model(words):
    sizes = {"vision_config": {**SMALL, "image_size": 32, "patch_size": 16}, "projection_dim": 16}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    text = {**SMALL, "vocab_size": words, "max_position_embeddings": 40, **special}
    return CLIPModel(CLIPConfig(text_config=text, **sizes))


def t5_model(words):
    return T5Model(T5Config(vocab_size=words, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4))


def bart_like(kind, words, **settings):
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    return AutoModel.from_config(kind(vocab_size=words, **sizes, **special, **settings))


def bart_model(words):
    return bart_like(BartConfig, words, max_position_embeddings=64)


def mbart_model(words):
    return bart_like(MBartConfig, words, max_position_embeddings=64)


def led_model(words):
    return bart_like(LEDConfig, words, max_encoder_position_embeddings=64, attention_window=8)


def vit_model(words):
    return ViTModel(ViTConfig(**SMALL, image_size=32, patch_size=16))


def bert_model(words):
    return AutoModel.from_config(BertConfig(vocab_size=words, max_position_embeddings=32, **SMALL))


def save(make, folder, max_tokens=10**30):
    """Write a small random model and a tokenizer, which by default names no limit; returns the model."""
    tokenizer = train_tokenizer(CAPTIONS, max_tokens)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    model = make(len(tokenizer)).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("make, half", [
    (clip_model, "text_model"), (t5_model, "encoder"), (bart_model, "encoder"), (mbart_model, "encoder"),
    (led_model, "encoder")])
@pytest.mark.parametrize("pretrained", [True, False])
def test_of_a_larger_model_the_half_that_reads_text_is_taken(tmp_path, make, half, pretrained):
    whole = save(make, tmp_path / "text")
    config = replace(PRESETS["sample"], image_size=32, text_encoder=str(tmp_path / "text"), max_tokens=24)
    if pretrained:
        save_image_tower(tmp_path / "image")
        config = replace(config, pretrained=True, image_encoder=f"local-dir:{tmp_path / 'image'}")
    model = CLIP.from_config(config).eval()
    model.refuse_unloadable(tmp_path)
    input_ids, mask = model.text_encoder.tokens_of(CAPTIONS)
    with torch.no_grad():
        features = model.text_encoder(input_ids, mask)
        expected = getattr(whole, half)(input_ids=input_ids, attention_mask=mask).last_hidden_state
    if pretrained:
        weights = mask.unsqueeze(-1)
        assert torch.allclose(features, (expected * weights).sum(dim=1) / weights.sum(dim=1), atol=1e-5)

    model.save_pretrained(tmp_path / "saved")
    again = CLIP.from_pretrained(tmp_path / "saved")
    assert type(again.text_encoder.backbone) is type(model.text_encoder.backbone)
    assert "decoder" not in dict(again.text_encoder.backbone.named_children())
    with torch.no_grad():
        assert torch.equal(again.encode_text(input_ids, mask), model.encode_text(input_ids, mask))


@pytest.mark.parametrize("make, kind", [(t5_model, "t5"), (bart_model, "bart")])
def test_a_run_with_what_also_writes_ends_in_a_model(tmp_path, sample_dir, make, kind):
    save(make, tmp_path / "text")
    flags = ["sample", "--data-dir", sample_dir, "--epochs", 1, "--batch-size", 32, "--text-encoder", tmp_path / "text"]
    run_script("train.py", *flags, "--run-dir", "run", cwd=tmp_path)
    assert CLIP.from_pretrained(tmp_path / "run" / "best").text_encoder.backbone.config.model_type == kind
    run_script("inference.py", "--query", "a dog", "--checkpoint", "run", "--no-picture", cwd=tmp_path)


@pytest.mark.parametrize("make, flags, complaint", [
    (vit_model, [], "makes no features of a caption of 64 tokens, as a model of the kind 'vit'"),
    (bert_model, [], "--max-tokens 64 is more than the text tower"),
    (bert_model, ["--max-tokens", "33"], "has positions for: give at most 32"),
])
def test_what_cannot_be_is_refused_before_the_first_step(tmp_path, sample_dir, make, flags, complaint):
    save(make, tmp_path / "text")
    given = ["sample", "--data-dir", sample_dir, "--epochs", 1, "--text-encoder", tmp_path / "text", *flags]
    process = run_script("train.py", *given, "--run-dir", "run", cwd=tmp_path, check=False)
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert process.returncode == 2 and complaint in line and "Traceback" not in process.stderr
    assert "epochs of" not in process.stdout and not (tmp_path / "run").exists()


def test_a_folder_without_a_tokenizer_stops_the_run_at_its_start(tmp_path, sample_dir):
    save(bert_model, tmp_path / "text")
    for file in (tmp_path / "text").glob("*token*"):
        file.unlink()
    given = ["sample", "--data-dir", sample_dir, "--epochs", 1, "--max-tokens", 32, "--text-encoder", tmp_path / "text"]
    process = run_script("train.py", *given, "--run-dir", "run", cwd=tmp_path, check=False)
    assert process.returncode == 2 and "knows next to none of the captions' words" in process.stderr
    assert "epochs of" not in process.stdout and not (tmp_path / "run").exists()


def test_a_tokenizer_with_more_words_than_the_tower_is_refused(tmp_path):
    save(lambda words: bert_model(words - 1), tmp_path)
    tower = TextEncoder.from_name(str(tmp_path), max_tokens=16)
    with pytest.raises(UserError, match="makes no features of a caption of 16 tokens"):
        refuse_what_reads_no_text(tower, "text")


def test_weights_that_lack_a_layer_are_refused(tmp_path):
    save_text_tower(tmp_path, CAPTIONS)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(UserError, match="its weights lack 16 tensors of this architecture, such as encoder.layer.2"):
        TextEncoder.from_name(str(tmp_path))


def test_what_would_not_load_again_is_refused_and_leaves_nothing(tmp_path):
    model = CLIP.from_config(replace(PRESETS["sample"], image_size=32), CAPTIONS)
    state = torch.get_rng_state()
    model.refuse_unloadable(tmp_path)
    assert torch.equal(state, torch.get_rng_state())  # a run draws the same numbers with and without it
    model.text_head = torch.nn.Linear(64, 9)
    with pytest.raises(UserError, match="what would be saved of these towers cannot be loaded as a model: .* tensors"):
        model.refuse_unloadable(tmp_path)
    assert not list(tmp_path.iterdir())
