"""Model directories from strangers: one line for whatever is wrong; nothing is run, fetched or taken without measure.

Each case takes the small directory `model_v1`, which loads, and changes one thing about it.
"""

import json
import math
import os
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
from conftest import run_script
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from test_checkpoint_v1 import EMBEDDINGS, MODEL, embeddings

from models import CLIP, ImageEncoder
from support.errors import UserError
from support.files import fingerprint, model_stamps

WEIGHTS, IMAGE, TEXT, TOKENIZER = "model.safetensors", "image_encoder/config.json", "text_encoder/config.json", \
    "text_encoder/tokenizer.json"
TOKENS = "text_encoder/tokenizer_config.json"
DEEP = "[" * 200_000
MOST_MEMORY = 400  # MB that a refusal may take: the libraries' own, since the weights are half of one

# ---------------------------------------------------------------- what would be seen if it happened

WATCHED = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn",
           "pickle.find_class")
seen = None


def watch(event, arguments):
    if seen is not None and event in WATCHED:
        seen.append((event, arguments))


sys.addaudithook(watch)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A copy of the model directory, with code beside it that would show that it was run; no hub is forbidden."""
    global seen
    shutil.copytree(MODEL, folder := tmp_path / "model")
    canary = f"open({str(tmp_path / 'it was run')!r}, 'w')\nclass Evil: pass\n"
    for place in (folder, folder / "text_encoder", folder / "image_encoder"):
        (place / "evil.py").write_text(canary)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    seen = []
    yield folder
    events, seen = seen, None
    assert not events and not (tmp_path / "it was run").exists()
    assert constants.HF_HUB_OFFLINE is False  # as it was


def refused(load):
    """The one line that a load ends in; it may not take much memory on the way."""
    peak = Path("/proc/self/clear_refs")
    if peak.exists():
        peak.write_text("5")  # the highest mark of memory starts anew
        before = memory()
    with pytest.raises(UserError) as error:
        load()
    if peak.exists():
        assert memory() - before < MOST_MEMORY
    assert "\n" not in str(error.value) and len(str(error.value)) < 900
    return str(error.value)


def memory():
    """The most memory of this process since the mark was set, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


# ---------------------------------------------------------------- ways to change it


def edit(part, change):
    """A change of a JSON file: the keys of a dictionary, those within "a/b", or all of its text."""
    def damage(folder):
        path = folder / part
        if isinstance(change, str):
            path.write_text(change)
            return
        values = json.loads(path.read_text())
        for key, value in change.items():
            *outer, last = key.split("/")
            inner = values
            for name in outer:
                inner = inner.setdefault(name, {})
            if value is ...:
                del inner[last]
            else:
                inner[last] = value
        path.write_text(json.dumps(values))

    return damage


def tensors(change):
    """A change of the tensors in the weights."""
    def damage(folder):
        held = load_file(folder / WEIGHTS)
        change(held)
        (folder / WEIGHTS).unlink()
        save_file(held, folder / WEIGHTS)

    return damage


def raw(change):
    """A change of the bytes of the weights."""
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def header(**entries):
    """Weights whose header holds these entries, over eight bytes of numbers."""
    text = json.dumps(entries).encode()
    return raw(lambda _: struct.pack("<Q", len(text)) + text + bytes(8))


def pickled(folder):
    torch.save({"logit_scale": torch.zeros(())}, folder / WEIGHTS)


def replaced(part, make):
    def damage(folder):
        (folder / part).unlink()
        make(folder / part)

    return damage


def fill(name, value, place=...):
    def change(held):
        held[name][place] = value

    return tensors(change)


def vit(**model_args):
    return edit(IMAGE, {"architecture": "vit_tiny_patch16_224", "model_args": model_args})


def text_model(**settings):
    return edit(TEXT, json.dumps(settings))


WORDS = "text_encoder.backbone.embeddings.word_embeddings.weight"

REFUSED = {
    # the weights: damaged
    **{f"weights cut to {size}": raw(lambda content, size=size: content[:size]) for size in (0, 7, 8, 100, 9000, -1)},
    "weights with more behind them": raw(lambda content: content + b"x"),
    "weights of text": raw(lambda _: b"not a model" * 100),
    "weights that are a pickle": pickled,
    "weights with an endless header": raw(lambda content: b"\xff" * 8 + content[8:]),
    "weights with a header of nonsense": raw(lambda content: content[:8] + b"\0" * (len(content) - 8)),
    "weights with a nested header": raw(lambda _: struct.pack("<Q", len(DEEP)) + DEEP.encode()),
    "weights that are a folder": replaced(WEIGHTS, Path.mkdir),
    "weights that never end": replaced(WEIGHTS, lambda path: path.symlink_to("/dev/zero")),
    "weights that are a pipe": replaced(WEIGHTS, os.mkfifo),
    "weights that are elsewhere": replaced(WEIGHTS, lambda path: path.symlink_to("/nowhere")),
    # the weights: sound, of another model
    "header: a tensor of 4 TB": header(logit_scale={"dtype": "F32", "shape": [10**12], "data_offsets": [0, 8]}),
    "header: a shape that overflows": header(x={"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}),
    "header: nothing times a lot": header(x={"dtype": "F32", "shape": [0, 10**15], "data_offsets": [0, 0]},
                                          y={"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}),
    "header: a negative size": header(x={"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}),
    "header: an offset outside": header(x={"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}),
    "header: an unknown type": header(x={"dtype": "F7", "shape": [2], "data_offsets": [0, 8]}),
    "a tensor missing": tensors(lambda held: held.pop("logit_scale")),
    "a tensor too many": tensors(lambda held: held.update(extra=torch.zeros(1))),
    "a tensor too many, with a long name": tensors(lambda held: held.update({"x" * 100_000: torch.zeros(1)})),
    "a tensor of another name": tensors(lambda held: held.update({"logit_scale\x1b[2J": held.pop("logit_scale")})),
    "a tensor of another shape": tensors(lambda held: held.update(logit_scale=torch.zeros(7))),
    "a tensor turned over": tensors(lambda held: held.update({WORDS: held[WORDS].T.contiguous()})),
    "a tensor of whole numbers": tensors(lambda held: held.update({WORDS: held[WORDS].long()})),
    "a tensor of truths": tensors(lambda held: held.update(logit_scale=torch.tensor(True))),
    "a tensor of complex numbers": tensors(lambda held: held.update({WORDS: held[WORDS].cfloat()})),
    "a tensor of eight bits": tensors(lambda held: held.update({WORDS: held[WORDS].to(torch.float8_e4m3fn)})),
    "no tensors": tensors(dict.clear),
    # the weights: no numbers
    "a NaN in one word": fill(WORDS, math.nan, (40, 3)),
    "an infinite word": fill(WORDS, -math.inf, 7),
    "a NaN for a scale": fill("logit_scale", math.nan),
    "infinite statistics": fill("image_encoder.backbone.bn1.running_var", math.inf, 0),
    "negative statistics": fill("image_encoder.backbone.bn1.running_var", -1.0),
    "words beyond all numbers": fill(WORDS, 1e38),
    # config.json
    "settings of text": edit("config.json", "not JSON"),
    "settings of nothing": edit("config.json", ""),
    "settings that are a list": edit("config.json", "[1, 2]"),
    "settings that are null": edit("config.json", "null"),
    "settings nested without end": edit("config.json", DEEP),
    "settings nested without end, inside": edit("config.json", '{"epochs": ' + DEEP),
    "settings of 20 MB": edit("config.json", " " * 20_000_000 + "{}"),
    "settings that are a folder": replaced("config.json", Path.mkdir),
    "settings that never end": replaced("config.json", lambda path: path.symlink_to("/dev/zero")),
    "settings that are a pipe": replaced("config.json", os.mkfifo),
    "settings in UTF-16": replaced("config.json", lambda path: path.write_text("{}", encoding="utf-16")),
    **{f"{name}: {str(value)[:40]!r}": edit("config.json", {name: value}) for name, value in [
        ("scratch_width", 64 * 10**9), ("scratch_width", 65), ("embedding_dim", 10**12),
        ("embedding_dim", 2**16), ("embedding_dim", -16), ("embedding_dim", 16.0), ("embedding_dim", 10**300),
        ("image_size", 10**6), ("image_size", 31), ("image_size", "32"), ("image_size", True), ("image_size", [32]),
        ("max_tokens", 10**9), ("max_tokens", 2), ("max_tokens", None), ("temperature", math.nan),
        ("temperature", 10**400), ("temperature", math.inf), ("head_dropout", 2), ("pooling", "max"),
        ("pooling", {"a": 1}), ("head", "linear"), ("loss", "siglip"), ("loss", "evil"), ("precision", "fp64"),
        ("text_encoder", "a\0b"), ("text_encoder", "a\x1b]0;b\x07"), ("image_encoder", ["x"]), ("data_dir", 5),
        ("data_dir", "a\nb"), ("unknown" * 1000, 1), ("split_seed", -1), ("seed", 2**32), ("device", "tpu"),
    ]},
    # the image tower
    "image: no architecture": edit(IMAGE, {"architecture": ...}),
    **{f"image architecture: {value!r}": edit(IMAGE, {"architecture": value}) for value in [
        "evil", "hf-hub:evil/model", "local-dir:/etc", 5, None, ["test_resnet"], "vit_giant_patch14_reg4_dinov2",
        "../evil", "resnet10t", "os.system"]},
    **{f"image arguments: {value!r}": edit(IMAGE, {"model_args": value}) for value in [
        "evil", [1], {"channels": [10**9] * 4}, {"channels": [10**7] * 4}, {"channels": [10**5, 8, 8, 8]},
        {"channels": []}, {"channels": [0] * 4}, {"layers": [10**9, 1, 1, 1]}, {"layers": [10**6, 1, 1, 1]},
        {"layers": [10**4, 1, 1, 1]}, {"pretrained": True}, {"checkpoint_path": "/etc/passwd"},
        {"features_only": True}, {"norm_layer": "os.system"}, {"act_layer": "os.system"}, {"block": "evil.Evil"},
        {"in_chans": 10**9}, {"in_chans": 1}, {"num_classes": 10**9}, {"stem_width": 10**8}, {"output_stride": 7},
        {"drop_path_rate": 9}, {"__class__": "evil"}, {"pretrained_cfg": {"url": "http://localhost:9/evil"}},
        {"cardinality": 0}, {"base_width": 1e300}, {"stem_width": math.inf}]},
    **{f"image transformer: {value}": vit(**value) for value in [
        {"img_size": 10**6}, {"img_size": 10**4},
        {"depth": 10**9}, {"depth": 10**5}, {"embed_dim": 10**9},
        {"embed_dim": 0, "depth": 10**5}, {"num_heads": 0}, {"patch_size": 0}, {"mlp_ratio": 1e12},
        {"reg_tokens": 10**9},
        {"depth": -1}, {"patch_size": 10**9}]},
    "image: tables without end": edit(IMAGE, {"architecture": "swin_tiny_patch4_window7_224", "model_args": {
        "window_size": 10**4, "img_size": 10**5}}),
    **{f"image statistics: {value!r}": edit(IMAGE, {"pretrained_cfg": value}) for value in [
        None, [], "evil", {"mean": "x"}]},
    **{f"image {key}: {value!r}": edit(IMAGE, {f"pretrained_cfg/{key}": value}) for key, value in [
        ("mean", [math.nan] * 3), ("mean", "evil"), ("mean", [1, 2, 3, 4]), ("std", [0, 0, 0]),
        ("std", [math.inf] * 3 + [1] * 10**5), ("mean", {"a": 1}), ("mean", [10**400] * 3)]},
    "image settings nested without end": edit(IMAGE, DEEP),
    "image settings of text": edit(IMAGE, "evil"),
    "image settings that are a list": edit(IMAGE, "[]"),
    # the text tower
    **{f"text {key}: {value!r}": edit(TEXT, {key: value}) for key, value in [
        ("model_type", "evil"), ("model_type", 5), ("model_type", ...), ("model_type", "detr"), ("model_type", "clip"),
        ("model_type", "bert"), ("model_type", "../evil"), ("dim", 10**9), ("dim", 10**6), ("dim", 0), ("dim", -64),
        ("dim", "64"), ("dim", 65), ("n_layers", 10**9), ("n_layers", 10**6), ("n_layers", 10**4), ("n_layers", -1),
        ("n_layers", 0), ("n_layers", 2), ("n_heads", 0), ("n_heads", 7), ("n_heads", 10**9), ("hidden_dim", 10**9),
        ("vocab_size", 10**9), ("vocab_size", 5), ("vocab_size", -5), ("max_position_embeddings", 10**8),
        ("max_position_embeddings", 8), ("activation", "os.system"), ("activation", 5), ("pad_token_id", 10**6),
        ("dropout", 7), ("return_dict", False), ("dim", 64.5), ("initializer_range", "evil"), ("n_layers", [1])]},
    "text: code for an unknown type": edit(TEXT, {"model_type": "evil", "auto_map": {
        "AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}),
    "text: code on the hub": edit(TEXT, {"model_type": "evil", "auto_map": {
        "AutoConfig": "evil/model--evil.Evil", "AutoModel": "evil/model--evil.Evil"}}),
    "text: code for a model that is no text tower": text_model(
        model_type="rag", question_encoder={"model_type": "bert"}, generator={"model_type": "bert"},
        auto_map={"AutoModel": "evil.Evil"}),
    "text: a picture tower on the hub": text_model(model_type="timm_wrapper", architecture="hf-hub:evil/model"),
    "text: a picture tower in a folder": text_model(model_type="timm_wrapper", architecture="local-dir:/etc"),
    "text: a detector with weights from the hub": text_model(
        model_type="detr", use_timm_backbone=True, use_pretrained_backbone=True, backbone="resnet50"),
    "text: a detector with weights from a stranger": text_model(
        model_type="detr", backbone_config={"model_type": "timm_backbone", "backbone": "hf-hub:evil/model"}),
    "text: two towers": text_model(model_type="encoder-decoder", encoder={"model_type": "bert"},
                                   decoder={"model_type": "bert"}),
    "text: masks without end": text_model(
        model_type="gpt_neo", hidden_size=2, num_layers=8, num_heads=1, vocab_size=100, intermediate_size=2,
        attention_types=[[["global"], 8]], max_position_embeddings=2**20),
    "text: a rope without end": text_model(
        model_type="llama", hidden_size=4, num_hidden_layers=1, num_attention_heads=1, head_dim=2**40, vocab_size=82,
        intermediate_size=4),
    "text settings nested without end": edit(TEXT, DEEP),
    "text settings that are a list": edit(TEXT, "[]"),
    # the tokenizer
    **{f"tokenizer: {content[:20]!r}": edit(TOKENIZER, content) for content in [
        "", "{}", "[]", "null", "evil", DEEP, '{"model": ' + DEEP, '{"version": "1.0", "model": {"type": "Evil"}}']},
    **{f"tokenizer {key}: {str(value)[:60]}": edit(TOKENIZER, {key: value}) for key, value in [
        ("model/vocab/dog", 10**6), ("model/vocab/dog", -1), ("model/vocab/dog", 2**40), ("model/vocab/dog", "x"),
        ("model/vocab", {}), ("model/vocab", ...), ("model/unk_token", "[NONE]"), ("model", {}), ("model/type", "Evil"),
        ("post_processor/special_tokens/[CLS]/ids", [10**6]), ("post_processor/single", []),
        ("post_processor", {"type": "Evil"}), ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "!!"}), ("normalizer", {"type": "Evil"}),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}),
        ("added_tokens", [{"id": 10**6, "content": "x", "single_word": False, "lstrip": False, "rstrip": False,
                           "normalized": False, "special": True}]), ("added_tokens", "evil")]},
    **{f"tokens {key}: {value!r}": edit(TOKENS, {key: value}) for key, value in [
        ("model_max_length", -5), ("model_max_length", 0), ("model_max_length", "evil"),
        ("model_max_length", 31.5), ("pad_token", 5), ("pad_token", [1]),
        ("pad_token", "no such token"), ("added_tokens_decoder", {"1000000": {"content": "x"}}),
        ("added_tokens_decoder", "evil"), ("extra_special_tokens", {"a": 1})]},
    "tokens nested without end": edit(TOKENS, DEEP),
    "tokens that are a list": edit(TOKENS, "[]"),
    "a tokenizer of 200 MB": edit(TOKENIZER, " " * 200_000_000),
    **{f"no {part}": lambda folder, part=part: (folder / part).unlink() for part in (
        "config.json", WEIGHTS, IMAGE, TEXT, TOKENIZER)},
}


@pytest.mark.parametrize("damage", REFUSED.values(), ids=[ascii(name)[1:60] for name in REFUSED])
def test_a_hostile_model_directory_is_refused_in_one_line(directory, damage):
    damage(directory)
    assert str(directory) in refused(lambda: CLIP.from_pretrained(directory))


HARMLESS = {
    "names of other towers": edit("config.json", {
        "image_encoder": "local-dir:/etc", "text_encoder": "evil/model", "data_dir": "/etc", "run_dir": "../.."}),
    "towers on the hub": edit("config.json", {"image_encoder": "hf-hub:evil/model", "pretrained": True}),
    "weights elsewhere": edit(IMAGE, {
        "pretrained_cfg/url": "http://localhost:9/evil", "pretrained_cfg/file": "/etc/passwd",
        "pretrained_cfg/hf_hub_id": "evil/model", "pretrained_cfg/custom_load": "hf"}),
    "code for a known model": edit(TEXT, {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}),
    "another class": edit(TEXT, {"architectures": ["os.system"], "_name_or_path": "evil/model"}),
    "a kernel from the hub": edit(TEXT, {"attn_implementation": "evil/kernel"}),
    "code for the tokenizer": edit(TOKENS, {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}),
    "a class that loads a pickle": edit(TOKENS, {"tokenizer_class": "RagRetriever"}),
    "a tokenizer elsewhere": edit(TOKENS, {"tokenizer_file": "/etc/passwd", "name_or_path": "evil/model"}),
    "a pickle beside the weights": lambda folder: torch.save({}, folder / "pytorch_model.bin"),
    "links": lambda folder: [(folder / WEIGHTS).rename(folder.parent / "kept"),
                             (folder / WEIGHTS).symlink_to(folder.parent / "kept")],
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_settings_refer_to_is_neither_fetched_nor_run(directory, change):
    change(directory)
    answers = embeddings(CLIP.from_pretrained(directory))
    for tower, expected in EMBEDDINGS.items():
        assert abs(answers[tower] - expected).max() < 1e-4


class Opened:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickled_image_tower_is_not_opened(directory):
    (folder := directory / "tower").mkdir()
    shutil.copy(directory / IMAGE, folder)
    torch.save({"conv1.weight": Opened(directory.parent / "it was run")}, folder / "pytorch_model.bin")
    assert "has no model.safetensors" in refused(lambda: ImageEncoder(f"local-dir:{folder}"))


@pytest.mark.parametrize("script, flags", [
    ("evaluate.py", []), ("inference.py", ["--query", "a dog", "--gallery", "."]), ("app.py", ["--gallery", "."])])
def test_every_command_ends_in_one_line(directory, script, flags, sample_dir):
    global seen
    edit("config.json", {"data_dir": str(sample_dir)})(directory)
    shutil.copy(next((sample_dir / "Images").iterdir()), directory.parent / "a.jpg")
    code = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}
    edit(TEXT, {"model_type": "evil\x1b[2J", "auto_map": code})(directory)
    seen, kept = None, seen  # this starts a process, on purpose
    done = run_script(script, "--checkpoint", directory, *flags, cwd=directory.parent, check=False)
    seen = kept
    assert done.returncode == 2 and "Traceback" not in done.stderr and "\x1b" not in done.stderr
    assert [line.startswith("error: ") for line in done.stderr.strip().splitlines()][-1:] == [True]


def test_a_file_name_that_is_not_text_can_be_hashed(directory):
    (directory / os.fsdecode(b"caf\xe9")).write_text("x")
    assert len(fingerprint(directory)) == 64
    json.dumps(model_stamps(directory))
