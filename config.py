"""Every setting of this repository, its default and its flag. Read this file first.

    python train.py --help        # the flags below, with these comments as their help text

`Config` is what a training run is made of, and is saved in every checkpoint; the small classes hold the flags of the
other commands. Nothing here imports torch, so `--help` is answered at once."""

import csv
import json
import re
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple, Optional, get_args, get_type_hints

import tyro

from support.command_line import as_meant, read_flags, repeatable_flags
from support.dates import first_moment
from support.errors import CONTROL, UserError, one_line_errors
from support.files import read_json
from support.source import Source
from support.words import weights_and_words, with_flags

Split = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Config:
    """One training run. The defaults are those of `flickr8k`; `PRESETS` says where `sample` departs."""

    preset: tyro.conf.Suppress[str] = "flickr8k"

    # data
    data_dir: Path = Path("data/flickr8k")  # folder of captioned photos, captions file, or shards: data/README.md
    image_dir: Path | None = None  # folder of the photos; None: found in --data-dir
    image_column: str | None = None  # in a table of captions, the column that names the photo; None: known by its name
    caption_column: str | None = None  # and the one that holds the caption
    image_size: int | None = None  # pixels a side; None: the size the image tower was trained at
    crop_scale: float = 0.6  # smallest part of a photo's area that a training crop keeps; 1: no crops
    flip: bool = True  # mirror half of the training photos; --no-flip: none, where captions say left and right
    max_tokens: int = 64  # longer captions are cut
    split_seed: int = 0  # draws dev and test where the data has no split lists; kept apart from --seed
    workers: int = 4  # processes that decode photos (never more than cores); 0: in the main process

    # towers
    image_encoder: str = "resnet50"  # any timm name, or local-dir:PATH
    text_encoder: str = "distilbert-base-uncased"  # any name or folder for AutoModel, or "scratch"
    pretrained: bool = True  # start from pretrained weights; --no-pretrained: from random ones
    scratch_layers: int = 4  # depth of --text-encoder scratch
    scratch_width: int = 256  # width of --text-encoder scratch
    pooling: Literal["mean", "cls"] = "mean"  # text features: mean over the tokens, or the first token
    freeze: Literal["none", "image", "text", "both"] = "none"  # towers that keep their weights
    image_depth: float = 0.6  # part of the layers of a pretrained image tower, counted from its output, that train
    fix_batch_norm: bool = True  # keep a pretrained image tower's BatchNorm statistics; --no-fix-batch-norm: they learn
    cache: bool = True  # decode each photo once, embed with a frozen tower once, keep both; --no-cache: every time

    # projection heads and loss
    head: Literal["mlp", "linear"] = "mlp"  # mlp: linear, GELU, linear, dropout, residual, layer norm
    embedding_dim: int = 512  # width of the space that both towers share
    image_dropout: float = 0.6  # dropout on the features that enter the image head: the lever against overfitting
    text_dropout: float = 0.1  # the same for the text head: there are more captions than photos, so less is needed
    head_dropout: float = 0.1  # dropout inside the mlp head
    loss: Literal["clip", "siglip", "soft"] = "clip"  # models.py explains the three
    temperature: float = 0.07  # at the start; learned from there, never below 0.01

    # optimisation
    heads_first: int = 30  # epochs of a first phase: heads alone, on cached features, before pretrained towers move
    epochs: int = 24  # an epoch shows every photo once, but for the few of a last, smaller batch
    captions_alone: int = 5  # captions that a photo is shown with while no tower learns; the loss is the mean over them
    captions: int = 2  # the same once a tower learns: each costs a pass of the text tower
    epoch_shards: int = 0  # shards that an epoch shows, where --data-dir names shards; 0: all of them
    batch_size: int = 256  # photos a step, each with its captions; captions of the other photos are its negatives
    micro_batch: int = 0  # photos computed at a time, for the same gradient in less memory; 0: what fits (a CPU: 6 GB)
    lr_heads_alone: float = 2e-3  # peak learning rate of the heads and the logit scale while no tower learns
    lr_heads: float = 5e-4  # the same once a tower learns
    lr_image: float = 3e-4  # peak learning rate of the image tower
    lr_text: float = 5e-5  # peak learning rate of the text tower
    weight_decay: float = 0.01  # on matrices and kernels only, not on norms, biases or the logit scale
    warmup: float = 0.1  # part of all steps that the learning rates take to rise; cosine to 0 after that
    grad_clip: float = 1.0  # largest norm of the whole gradient
    averaging: float = 0.97  # what each step keeps of the running mean of weights, which is evaluated; 0: none
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the hardware has it

    # the run
    seed: int = 0  # weights, shuffling, captions, crops and dropout
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU if there is one
    run_dir: Path | None = None  # where the run is written; None: runs/PRESET-DATE-TIME
    resume: bool = False  # go on with --run-dir, or with the newest run, under its own settings

    def __post_init__(self):
        require(self, ["epochs", "captions_alone", "captions", "scratch_layers"], "at least 1", lambda v: v >= 1)
        require(self, ["embedding_dim"], "from 1 to 65,536", lambda v: 1 <= v <= 2**16)
        require(self, ["batch_size"], "at least 2: a pair is told from the others of its batch", lambda v: v >= 2)
        tokens = "from 3, of which start and end token are two, to 4,096"
        require(self, ["max_tokens"], tokens, lambda v: 3 <= v <= 4096)
        widths = range(64, 2**16, 64)
        require(self, ["scratch_width"], "a multiple of 64, the width of an attention head", lambda v: v in widths)
        require(self, ["image_size"], "at least 32 and at most 2,048", lambda v: v is None or 32 <= v <= 2048)
        require(self, ["temperature"], "from 0.01 to 1", lambda v: 0.01 <= v <= 1)
        parts = ["image_dropout", "text_dropout", "head_dropout", "warmup", "averaging"]
        require(self, parts, "from 0 to below 1", lambda v: 0 <= v < 1)
        require(self, ["crop_scale", "image_depth"], "above 0, at most 1", lambda v: 0 < v <= 1)
        counts = ["workers", "weight_decay", "seed", "split_seed", "heads_first", "micro_batch", "epoch_shards"]
        require(self, counts, "at least 0", lambda v: 0 <= v < 2**32)
        rates = ["lr_heads_alone", "lr_heads", "lr_image", "lr_text", "grad_clip"]
        require(self, rates, "above 0", lambda v: 0 < v < float("inf"))
        for tower in ("image", "text"):
            if self.freeze in (tower, "both") and not self.is_pretrained(tower):
                raise UserError(f"--freeze {self.freeze} would keep the random weights of the {tower} tower for ever: "
                                f"name a pretrained tower with --{tower}-encoder, and add --pretrained")

    @property
    def source(self):
        """Where the pairs come from: a `support.source.Source`."""
        return Source(self.data_dir, self.image_dir, self.image_column, self.caption_column)

    def is_pretrained(self, tower):
        """Return whether a tower, image or text, starts from pretrained weights."""
        return self.pretrained and not (tower == "text" and self.text_encoder == "scratch")

    def save(self, path):
        """Write the settings as JSON; plain types only, so that nothing needs unpickling."""
        text = json.dumps(asdict(self), indent=2, default=lambda value: Path(value).as_posix())
        Path(path).write_text(text + "\n", encoding="utf-8")

    @staticmethod
    def load(path):
        """Read settings written by `save`. Fields added since then take their defaults, or what was done before."""
        path = Path(path)
        values = in_todays_terms(read_json(path))
        types = get_type_hints(Config)
        settings = {}
        try:
            for name, value in values.items():
                if name not in types:
                    raise UserError(f"not a config of this version: unknown {name!r:.60}")
                settings[name] = checked_value(name, value, types[name])
            return Config(**settings)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def differences(self, other):
        """Return the settings in which another config differs, as words: {"epochs": "epochs 3 -> 9"}."""
        changes = {}
        for name, mine in vars(self).items():
            theirs = getattr(other, name)
            if mine != theirs:
                changes[name] = f"{name} {mine} -> {theirs}"
        return changes


def require(flags, names, allowed, holds):
    """Raise a `UserError` for the first of these fields whose value does not hold; `allowed` says what would."""
    for name in names:
        value = getattr(flags, name)
        if not holds(value):
            raise UserError(f"--{name.replace('_', '-')} {value} cannot be: it must be {allowed}")


def require_time(after, before):
    """Raise a `UserError` unless --after and --before are None or dates, and some time lies between them."""
    moments = {}
    for name, words in {"after": after, "before": before}.items():
        if words is not None:
            try:
                moments[name] = first_moment(words)
            except UserError as error:
                raise UserError(f"--{name} {error}") from None
    if len(moments) == 2 and moments["after"] >= moments["before"]:
        raise UserError(f"--after {after} --before {before} leaves no time: --before names the end, which is later")


def checked_value(name, value, annotation):
    """Return a JSON value as the type of its field, or raise a `UserError` that names it."""
    allowed = get_args(annotation) or (annotation,)  # a Literal's values, a union's types, or one type
    hostile_text = isinstance(value, str) and re.search(CONTROL, value)
    hostile_number = isinstance(value, int) and abs(value) >= 2**63
    if not hostile_text and not hostile_number:
        if Path in allowed and type(value) is str:
            return Path(value)
        if float in allowed and type(value) is int:
            return float(value)
        for one in allowed:
            fits = value == one if isinstance(one, str) else type(value) is one
            if fits:
                return value
    raise UserError(f"{name} cannot be {value!r:.60}")


def in_todays_terms(values):
    """Return saved settings, which may be those of an earlier version, under the names that they have now."""
    values = {"captions_alone": 1, "captions": 1, **values}  # which were no settings, but what was done
    values.pop("cached_views", None)
    both = values.pop("feature_dropout", 0.4)  # one dropout for both heads
    return {"image_dropout": both, "text_dropout": both, **values}


PRESETS = {
    "sample": Config(
        preset="sample",
        data_dir=Path("data/sample"),
        # Drawings hold little detail and their captions few words: the smallest towers will do, and train fast.
        image_size=56,
        image_encoder="test_resnet",
        text_encoder="scratch",
        scratch_layers=1,
        scratch_width=64,
        embedding_dim=256,
        workers=0,  # drawings are decoded faster than a process starts
        # Towers from scratch: larger learning rates, and nothing that slows learning down.
        pretrained=False,
        epochs=16,
        captions=1,
        batch_size=100,
        lr_heads=4e-3,
        lr_image=6e-3,
        lr_text=4e-3,
        weight_decay=0.05,
        image_dropout=0.0,
        text_dropout=0.0,
        # The captions say left and right, and a ball is lost with the edge of a picture.
        flip=False,
        crop_scale=0.9,
    ),
    "flickr8k": Config(),
}


@dataclass(frozen=True)
class DatasetConfig:
    """Look at captions and photos without training: print what is remarkable, and draw report.png."""

    data_dir: tyro.conf.Positional[Path | None] = None  # as in training; None: data/flickr8k if it is there, or sample
    image_dir: Path | None = None  # folder of the photos; None: found in the dataset folder
    image_column: str | None = None  # in a table of captions, the column that names the photo; None: known by its name
    caption_column: str | None = None  # and the one that holds the caption
    split_seed: int = 0  # draws dev and test where the data has no split lists
    text_encoder: str = "scratch"  # whose words the captions are read in; scratch: their own
    max_tokens: int = Config.max_tokens  # longer captions are cut
    batch_size: int = Config.batch_size  # photos a step
    image_size: int = 224  # pixels a side that the image tower looks at
    output: Path = Path("report.png")  # the picture

    def __post_init__(self):
        require(self, ["max_tokens"], "from 3 to 4,096", lambda v: 3 <= v <= 4096)
        require(self, ["batch_size"], "at least 2", lambda v: v >= 2)
        require(self, ["image_size"], "at least 32 and at most 2,048", lambda v: 32 <= v <= 2048)
        require(self, ["split_seed"], "at least 0", lambda v: v >= 0)
        pictures = (".png", ".jpg", ".pdf")
        require(self, ["output"], f"a name that ends in {', '.join(pictures)}", lambda v: v.suffix.lower() in pictures)

    @property
    def source(self):
        """Where the pairs come from: a `support.source.Source`."""
        presets = [preset.data_dir for preset in (PRESETS["flickr8k"], PRESETS["sample"])]
        there = [folder for folder in presets if folder.is_dir()]
        data_dir = self.data_dir or (there or presets)[0]
        return Source(data_dir, self.image_dir, self.image_column, self.caption_column)


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a checkpoint: recall@1/5/10 and median rank, text to image and image to text; or classification."""

    checkpoint: Path | None = None  # model directory, or hf-hub:OWNER/NAME; None: best/ of the newest run
    data_dir: Path | None = None  # dataset folder; None: the one the model was trained on
    image_dir: Path | None = None  # with --data-dir: folder of the photos; None: found in it
    image_column: str | None = None  # with --data-dir: as in training
    caption_column: str | None = None  # with --data-dir: as in training
    split: Split = "test"  # photos to measure on
    json: Path | None = None  # also write the figures to this file
    compare: tuple[Path, Path] | None = None  # two checkpoints A B: their recall, the difference, its 95 % interval
    zero_shot: Path | None = None  # folder of class folders: name the class of each picture, without training
    templates: Path | None = None  # prompts for --zero-shot, a line each, {} for the class; None: three plain ones
    linear_probe: Path | None = None  # folder of class folders: logistic regression on the image tower's features
    batch_size: int = 128  # photos or captions embedded at once
    workers: int = 4  # processes that decode photos (never more than cores)
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU if there is one

    def __post_init__(self):
        require(self, ["batch_size"], "at least 1", lambda v: v >= 1)
        require(self, ["workers"], "at least 0", lambda v: v >= 0)
        if sum(value is not None for value in (self.compare, self.zero_shot, self.linear_probe)) > 1:
            raise UserError("give one of --compare, --zero-shot and --linear-probe at a time")
        if self.compare and self.checkpoint:
            raise UserError("--compare A B names both checkpoints: leave --checkpoint out")
        if (self.zero_shot or self.linear_probe) and (self.data_dir or self.split != EvaluateConfig.split):
            raise UserError("--zero-shot and --linear-probe name their own pictures: leave --data-dir and --split out")
        named = [name for name in ("image_dir", "image_column", "caption_column") if getattr(self, name) is not None]
        if named and not self.data_dir:
            raise UserError(f"--{named[0].replace('_', '-')} goes with --data-dir: add it")
        if self.templates and not self.zero_shot:
            raise UserError("--templates are the prompts of --zero-shot DIR: add it")

    @property
    def source(self):
        """Where the pairs come from that --data-dir names: a `support.source.Source`."""
        return Source(self.data_dir, self.image_dir, self.image_column, self.caption_column)


@dataclass(frozen=True)
class InferenceConfig:
    """Rank the pictures of a gallery against a prompt or an example picture, or tell which label or caption fits.

    Words without a flag are what to look for: the name of a picture file is --image, anything else --query.
    """

    # `Optional[Path]` and a bare tuple, of texts: for `Path | None` and `tuple[str, ...]` tyro would import a library
    # that checks types, which is a tenth of a second of each prompt.
    query: tyro.conf.UseAppendAction[tuple] = ()  # what to look for, in words; several count alike; or "2:a dog"
    image: Optional[Path] = None  # what to look for, by example
    plus: tyro.conf.UseAppendAction[tuple] = ()  # what else it should show; the same as another --query
    minus: tyro.conf.UseAppendAction[tuple] = ()  # what it should not show
    threshold: Optional[float] = None  # only pictures that score as much or more
    under: tyro.conf.UseAppendAction[tuple] = ()  # only pictures below this folder, or whose path fits, as "holiday/*"
    after: Optional[str] = None  # only pictures taken from the first moment of this year, month or day on: 2019-06
    before: Optional[str] = None  # only pictures taken before the first moment of this one
    sort: Literal["score", "date"] = "score"  # date: the matches arranged by when they were taken, the oldest first
    labels: Optional[str] = None  # instead: which of these nouns fits each picture, such as "beach,forest,street"
    captions: Optional[Path] = None  # instead: which captions of this file fit --image; a captions file, or one a line
    export: Optional[Path] = None  # instead: write both towers as ONNX into this new folder, with an example
    gallery: tyro.conf.UseAppendAction[tuple] = ()  # folders of pictures, or tars; none: a split of the data trained on
    split: Optional[Split] = None  # split to search without --gallery; None: test, or dev where there is no test
    checkpoint: Optional[Path] = None  # model directory, or hf-hub:OWNER/NAME; None: best/ of the newest run
    top_k: int = 9  # how many pictures to return; with --labels of each, with --captions how many captions
    fold: bool = True  # show pictures that look the same as one; --no-fold: each of them
    output: Path = Path("matches.png")  # the picture of the result; with --labels also a table, NAME.csv
    picture: bool = True  # draw it; --no-picture: do not
    explain: bool = False  # mark in it what answers the prompt, in red
    copy_to: Optional[Path] = None  # also copy the matches into this folder, as 01_NAME.jpg and so on
    html: Optional[Path] = None  # also write them into this file as a page, NAME.html, that needs no other file
    show: bool = False  # also draw them in the terminal, if it is kitty, iTerm2 or one that knows sixel
    json: bool = False  # print one JSON object on standard output, everything else on standard error
    trust_index: bool = False  # in a large gallery: where no folder's time has changed, do not look at each picture's
    check: bool = False  # look at all pictures again: one may have been swapped for another of the same size and time
    batch_size: int = 64  # pictures embedded at once
    workers: int = 4  # processes that decode pictures (never more than cores)
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU if there is one

    def __post_init__(self):
        given = {name for name, value in vars(self).items() if value != getattr(InferenceConfig, name)}
        if not given & {"query", "image", "labels", "captions", "export"}:
            raise UserError('say what to look for, such as "a dog running", or a picture file for pictures like it')

        # what has no meaning beside each of the questions that are not a search
        search = {"query", "image", "plus", "minus", "threshold", "explain", "fold"}
        search |= {"under", "after", "before", "sort", "copy_to", "html", "show"}
        files = {"gallery", "split", "output"}
        meaningless = {
            "captions": (search - {"image"}) | files | {"labels", "export"},
            "labels": search,
            "export": search | files | {"labels", "top_k", "device"},
        }
        for question, flags in meaningless.items():
            clash = given & flags
            if question in given and clash:
                other = min(clash).replace("_", "-")
                raise UserError(f"--{question} and --{other} do not go together: leave one out")
        if self.captions and self.image is None:
            raise UserError("--captions FILE are ranked against a picture: add --image FILE")
        if self.labels is not None and len(self.label_names()) < 2:
            raise UserError(f'--labels {self.labels!r}: name at least two, such as --labels "beach,forest,street"')
        if self.show and self.json:
            raise UserError("--json answers a program, and --show a person: leave one out")
        pages = "a file that ends in .html"
        require(self, ["html"], pages, lambda v: v is None or v.suffix.lower() in (".html", ".htm"))
        if self.explain and not self.picture:
            raise UserError("--explain marks in the picture what answers: leave --no-picture out")
        _, prompts = weights_and_words([*self.query, *self.plus, *self.minus])
        if not all(prompt.strip() for prompt in prompts):
            raise UserError("a prompt is empty: describe a picture in a few words")
        require_time(self.after, self.before)
        require(self, ["split"], "left out with --gallery", lambda v: v is None or not self.gallery)
        require(self, ["top_k", "batch_size"], "at least 1", lambda v: v >= 1)
        require(self, ["workers"], "at least 0", lambda v: v >= 0)

    def label_names(self):
        """Return the labels, each once; one in quotes may hold a comma."""
        names = next(csv.reader([self.labels], skipinitialspace=True), [])
        labels = {}  # by how they are compared: "Dog" and "dog" are one
        for name in names:
            if name.strip():
                labels[name.strip().casefold()] = name.strip()
        return list(labels.values())


@dataclass(frozen=True)
class AppConfig:
    """Search a gallery in the browser."""

    gallery: tyro.conf.UseAppendAction[tuple] = ()  # folders of pictures, or tars; none: a split of the data trained on
    split: Split | None = None  # split to search without --gallery; None: test, or dev where there is no test
    checkpoint: Path | None = None  # model directory, or hf-hub:OWNER/NAME; None: best/ of the newest run
    host: str = "127.0.0.1"  # address to listen on; with any but this one, other machines can look at the gallery
    port: int = 7860  # port to listen on; 0: any that is free
    trust_index: bool = False  # in a large gallery: where no folder's time has changed, do not look at each picture's
    check: bool = False  # look at all pictures again: one may have been swapped for another of the same size and time
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU if there is one

    def __post_init__(self):
        require(self, ["split"], "left out with --gallery", lambda v: v is None or not self.gallery)
        require(self, ["port"], "from 0 to 65535", lambda v: 0 <= v <= 65535)


def parse(kind, argv=None):
    """Read the flags of `dataset.py`, `evaluate.py`, `inference.py` or `app.py` into `kind`."""
    with one_line_errors():
        if kind is InferenceConfig:
            words = sys.argv[1:] if argv is None else argv
            argv = with_flags(as_meant(words, repeatable_flags(kind)), switches_of(kind))
        return read_flags(kind, argv, prog=Path(sys.argv[0]).name, config=(tyro.conf.FlagCreatePairsOff,))


def switches_of(kind):
    """Return the flags of a command that take no value."""
    switches = {"-h", "--help"}
    for field in fields(kind):
        if field.type is bool:
            name = field.name.replace("_", "-")
            switches |= {f"--{name}", f"--no-{name}"}
    return switches


WHY_PRESET = {
    "flickr8k": "data/flickr8k is there (the small one: python train.py sample)",
    "sample": "there is no data/flickr8k "
    "(for Flickr8k: python data/download_flickr8k.py, then python train.py flickr8k)",
}


class TrainCommand(NamedTuple):
    """What the command line of `train.py` says."""

    config: Config
    first_line: str  # which preset and why, or which run goes on; printed first
    named: str | None  # the preset, where the command line names one


def parse_train(argv=None, saved=None):
    """Read the command line of `train.py`: `[sample|flickr8k] [flags]`; returns a `TrainCommand`.

    saved: the settings of the run that goes on, which are then the defaults of the flags.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    with one_line_errors():
        named = argv.pop(0) if argv and not argv[0].startswith("-") else None
        if named is not None and named not in PRESETS:
            raise UserError(f"there is no preset {named!r}: choose one of {', '.join(PRESETS)}")
        preset = named or ("flickr8k" if PRESETS["flickr8k"].data_dir.is_dir() else "sample")
        first_line = f"preset {preset}"
        if not named:
            first_line += f", because {WHY_PRESET[preset]}"
        config = read_flags(
            Config,
            argv,
            default=saved or PRESETS[preset],
            prog=f"train.py [{'|'.join(PRESETS)}]",
            description=f"Train CLIP on pictures and captions. Shown: {first_line}.",
        )
        if saved:
            config = replace(config, preset=named or saved.preset)
            changes = saved.differences(config).values()
            first_line = f"resuming {config.run_dir}" + (f" with {', '.join(changes)}" if changes else "")
        elif config.run_dir is None and not config.resume:
            config = replace(config, run_dir=Path(f"runs/{preset}-{time.strftime('%Y%m%d-%H%M%S')}"))
        return TrainCommand(config, first_line, named)
