"""inference.py: the index is right, up to date and used; the command ranks, draws, and prints for both its readers."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script
from PIL import Image

import dataset
import models
from dataset import image_loader, split_table
from inference import Found, Gallery, Match, Question
from models import CLIP, ImageEncoder, embed_images, embed_texts
from search.drawing import draw_matches
from search.index import INDEX_NAME, read_index
from search.remarks import remarks_on_matches
from search.tables import match_table
from support.errors import UserError
from support.files import fingerprint
from support.hubs import hub_penalties
from support.prompts import EVERYDAY


@pytest.fixture
def folder(tmp_path, sample_dir):
    """A folder of six pictures, one of them nested under an odd name."""
    directory = tmp_path / "pictures"
    (directory / "holiday 'n' ☀").mkdir(parents=True)
    sources = sorted((sample_dir / "Images").iterdir())[:6]
    for number, source in enumerate(sources[:5]):
        shutil.copy2(source, directory / f"{number}.jpg")
    shutil.copy2(sources[5], directory / "holiday 'n' ☀" / "5.JPG")
    return directory


def open_gallery(folder, checkpoint, **arguments):
    return Gallery(folder, checkpoint, progress=False, **arguments)


# ---------------------------------------------------------------- from Python


def test_of_many_copies_a_few_are_named():
    copies = tuple(Path(f"{number}.jpg") for number in range(1200))
    _, line = match_table([Match(1, Path("a.jpg"), 0.5, copies)])
    assert line == "   1  0.500  a.jpg  (like it: 0.jpg, 1.jpg, 2.jpg, 1,197 more)"
    _, line = match_table([Match(1, Path("a.jpg"), 0.5, copies[:3])])
    assert line == "   1  0.500  a.jpg  (like it: 0.jpg, 1.jpg, 2.jpg)"


def test_search_ranks_by_cosine_less_half_of_what_a_picture_scores_for_all_captions(folder, checkpoint):
    gallery = open_gallery(folder, checkpoint)
    model = CLIP.from_pretrained(checkpoint)
    images, _, _ = embed_images(model, image_loader(gallery.files, model.config.image_size, 8))
    scores = images @ embed_texts(model, ["a dog running"])[0]
    penalties = hub_penalties(images.numpy(), model.caption_bank.numpy(), model.logit_scale.exp().item())
    order = (scores - torch.from_numpy(penalties)).argsort(descending=True)
    matches = gallery.search("a dog running", top_k=6)
    assert [match.file for match in matches] == [gallery.files[row] for row in order]
    assert [match.score for match in matches] == pytest.approx(scores[order].tolist(), abs=1e-3)
    assert [match.rank for match in matches] == [1, 2, 3, 4, 5, 6]
    assert all(-1 <= match.score <= 1 for match in matches)
    assert len(gallery.search("a dog running", top_k=2)) == 2


def test_a_picture_is_most_like_itself(folder, checkpoint):
    gallery = open_gallery(folder, checkpoint)
    for file in gallery.files:
        best = gallery.search(image=file, top_k=1)[0]
        assert best.file == file and best.score == pytest.approx(1, abs=1e-3)
    with pytest.raises(UserError, match="nowhere.jpg"):
        gallery.search(image=folder / "nowhere.jpg")


def test_a_second_start_opens_no_picture(folder, checkpoint, monkeypatch):
    first = open_gallery(folder, checkpoint)
    assert first.embedded == 6 and (folder / INDEX_NAME).exists()
    monkeypatch.setattr(models, "embed_images", None)  # would fail if a picture had to be embedded
    second = open_gallery(folder, checkpoint)
    assert second.embedded == 0 and second.files == first.files
    assert np.array_equal(second.embeddings, first.embeddings)


def test_only_new_and_changed_pictures_are_embedded_and_gone_ones_dropped(folder, checkpoint):
    before = open_gallery(folder, checkpoint)
    shutil.copy(folder / "0.jpg", folder / "new.jpg")
    (folder / "1.jpg").unlink()
    shutil.copy(folder / "2.jpg", folder / "3.jpg")  # other content under a known name
    after = open_gallery(folder, checkpoint)
    assert after.embedded == 2
    rows = {file.name: row for file, row in zip(after.files, after.embeddings, strict=True)}
    assert "1.jpg" not in rows and np.allclose(rows["new.jpg"], rows["0.jpg"], atol=1e-2)
    assert np.allclose(rows["3.jpg"], rows["2.jpg"], atol=1e-2)
    known = dict(zip(before.files, before.embeddings, strict=True))
    assert np.array_equal(rows["4.jpg"], known[folder / "4.jpg"])
    assert len(read_index(folder / INDEX_NAME).files) == 6


def test_another_checkpoint_never_answers_from_old_embeddings(folder, checkpoint, tmp_path):
    old = open_gallery(folder, checkpoint)
    other = tmp_path / "other"
    model = CLIP.from_pretrained(checkpoint)
    model.image_head.norm.bias.data += 0.5
    model.save_pretrained(other)
    new = open_gallery(folder, other)
    assert new.embedded == 6 and not np.allclose(new.embeddings, old.embeddings, atol=1e-2)
    assert fingerprint(checkpoint) != fingerprint(other)


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_a_damaged_index_is_built_again(folder, checkpoint, content):
    expected = open_gallery(folder, checkpoint).embeddings
    index = folder / INDEX_NAME
    index.write_bytes(index.read_bytes()[:200] if content is None else content)
    again = open_gallery(folder, checkpoint)
    assert again.embedded == 6 and np.array_equal(again.embeddings, expected)


def test_an_interrupted_write_leaves_the_previous_index(folder, checkpoint, monkeypatch):
    open_gallery(folder, checkpoint)
    before = (folder / INDEX_NAME).read_bytes()
    shutil.copy(folder / "0.jpg", folder / "new.jpg")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_gallery(folder, checkpoint)
    assert (folder / INDEX_NAME).read_bytes() == before


def test_unreadable_pictures_are_skipped_counted_and_not_tried_again(folder, checkpoint):
    content = (folder / "0.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not a picture")
    (folder / "broken link.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "notes.txt").write_text("not meant to be a picture")
    (folder / ".hidden.jpg").write_bytes(content)
    gallery = open_gallery(folder, checkpoint)
    assert {file.name for file in gallery.skipped} == {"truncated.jpg", "empty.png", "text.jpg", "broken link.jpg"}
    assert len(gallery.files) == 6 and all(str(file) in reason for file, reason in gallery.skipped.items())
    again = open_gallery(folder, checkpoint)
    assert again.embedded == 0 and again.skipped == gallery.skipped
    assert not again.embedder.model_is_loaded  # nothing was tried again
    (folder / "nowhere.jpg").write_bytes(content)  # the link is mended
    assert open_gallery(folder, checkpoint).embedded == 2


def test_what_is_called_a_kind_that_nothing_reads_is_told_apart_from_what_is_no_picture(folder, checkpoint):
    (folder / "design.PSD").write_bytes(b"8BPS" + bytes(100))
    (folder / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    reasons = open_gallery(folder, checkpoint).skipped
    assert reasons == {
        folder / "design.PSD": f"{folder / 'design.PSD'}: Photoshop: to find it save it as JPEG",
        folder / "phone.HEIC": f"{folder / 'phone.HEIC'}: not a picture",
    }


def test_a_passing_fault_is_not_remembered(folder, checkpoint, monkeypatch):
    """chmod changes neither size nor time of a file, so a fault that the system reports must be tried again."""
    really = dataset.read_image

    def forbidden(path, *options):
        if path.name == "0.jpg":
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, *options)

    monkeypatch.setattr(dataset, "read_image", forbidden)
    assert [file.name for file in open_gallery(folder, checkpoint).skipped] == ["0.jpg"]
    monkeypatch.undo()
    gallery = open_gallery(folder, checkpoint)
    assert gallery.embedded == 1 and len(gallery.files) == 6 and not gallery.skipped


def test_other_formats_are_pictures_too(folder, checkpoint):
    picture = Image.open(folder / "0.jpg")
    for suffix in ("png", "webp", "gif", "bmp", "tiff"):
        picture.save(folder / f"copy.{suffix}")
    gallery = open_gallery(folder, checkpoint)
    assert len(gallery.files) == 11 and not gallery.skipped
    best = gallery.search(image=folder / "0.jpg", top_k=1)[0]
    assert {file.name for file in (best.file, *best.copies)} == {
        "0.jpg", "copy.png", "copy.webp", "copy.gif", "copy.bmp", "copy.tiff"}


def test_a_read_only_folder_keeps_its_index_in_the_users_cache(folder, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder.chmod(0o555)
    try:
        gallery = open_gallery(folder, checkpoint)
        assert gallery.index_path.parent.parent == tmp_path / "cache" / "clip-index"
        assert not (folder / INDEX_NAME).exists()
        assert open_gallery(folder, checkpoint).embedded == 0
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").write_text("in the way: nothing can be saved")
        gallery = open_gallery(folder, checkpoint)
        assert gallery.embedded == len(gallery.files) == 6 and "cache" in gallery.unsaved
    finally:
        folder.chmod(0o755)


def test_the_default_gallery_is_the_test_split_of_the_data_trained_on(checkpoint, sample_dir):
    gallery = open_gallery(None, checkpoint)
    assert {file.name for file in gallery.files} == set(split_table(sample_dir, "test")["image"])
    dev = open_gallery(None, checkpoint, split="dev")
    assert {file.name for file in dev.files} == set(split_table(sample_dir, "dev")["image"])
    assert open_gallery(None, checkpoint).embedded == open_gallery(None, checkpoint, split="dev").embedded == 0


@pytest.mark.parametrize("count", [1, 2, 5, 9, 500])
def test_the_picture_holds_any_number_of_matches(folder, tmp_path, count):
    (folder / "1.jpg").write_bytes(b"damaged since it was embedded")
    matches = [Match(rank, folder / f"{rank % 5}.jpg", 0.5 - rank / 100) for rank in range(1, count + 1)]
    draw_matches(matches, "a prompt with $5 and a very long tail " * 4, tmp_path / "new" / "matches.png")
    with Image.open(tmp_path / "new" / "matches.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert picture.format == "PNG" and pixels.std() > 5 and picture.width < 2500  # 500 are drawn as the first 50


def test_prompts_and_example_count_alike_and_minus_by_half(folder, checkpoint):
    gallery = open_gallery(folder, checkpoint)
    model, example = CLIP.from_pretrained(checkpoint), folder / "3.jpg"
    dog, snow, beach = embed_texts(model, ["a dog", "snow", "the beach"]).numpy()
    image = gallery.embeddings[gallery.files.index(example)].astype(np.float32)
    wanted = (dog + snow + image) / 3 - beach / 2
    scores = gallery.embeddings.astype(np.float32) @ (wanted / np.linalg.norm(wanted))
    matches = gallery.search(["a dog", "snow"], 6, image=example, minus=["the beach"])
    assert [match.file for match in matches] == [gallery.files[row] for row in np.argsort(-scores)]
    assert [match.score for match in matches] == pytest.approx(sorted(scores, reverse=True), abs=2e-3)
    least = matches[2].score
    enough = gallery.search(["a dog", "snow"], 6, example, ["the beach"], threshold=least)
    assert [match.file for match in enough] == [match.file for match in matches[:3]]


def test_pictures_that_look_the_same_are_one_match(folder, checkpoint):
    picture = Image.open(folder / "0.jpg")
    picture.resize((48, 48)).save(folder / "smaller.jpg")
    picture.point(lambda value: min(255, int(1.2 * value))).save(folder / "brighter.png")
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    gallery = open_gallery(folder, checkpoint)
    best = gallery.search(image=folder / "0.jpg", top_k=7)
    assert [match.rank for match in best] == [1, 2, 3, 4, 5, 6, 7] and best[0].file == folder / "0.jpg"
    assert set(best[0].copies) == {folder / "smaller.jpg", folder / "brighter.png"}
    assert all(not match.copies for match in best[1:])
    assert len(gallery.search("a dog", top_k=2)) == 2
    assert len(gallery.search(image=folder / "0.jpg", top_k=9, fold=False)) == 9
    pixels = np.asarray(picture).copy()
    Image.fromarray(pixels[:, :, [1, 2, 0]]).save(folder / "other colours.png")
    best = open_gallery(folder, checkpoint).search(image=folder / "0.jpg", top_k=1)[0]
    assert folder / "other colours.png" not in (best.file, *best.copies)
    flat = [folder / f"flat{shade}.png" for shade in (10, 200)]
    for file, shade in zip(flat, (10, 200), strict=True):
        Image.new("RGB", (64, 64), (shade,) * 3).save(file)
    assert all(not match.copies for match in open_gallery(folder, checkpoint).search(image=flat[0], top_k=1))


def test_what_fits_nothing_is_told_from_what_everyday_prompts_reach(folder, checkpoint):
    gallery = open_gallery(folder, checkpoint)
    best = [gallery.search(prompt, top_k=1)[0].score for prompt in EVERYDAY]
    assert gallery.usual_score == pytest.approx(sorted(best)[2], abs=1e-6)
    enough, too_little = (Match(1, folder / "0.jpg", gallery.usual_score - less) for less in (0, 0.01))
    question = Question(["a dog"])
    assert remarks_on_matches(gallery, question, Found([enough], None, None)) == []
    (remark,) = remarks_on_matches(gallery, question, Found([too_little], None, None))
    assert remark.startswith("nothing here fits well")
    for other in (Question(["a dog", "snow"]), Question(["a dog"], minus=["snow"]), Question(image=enough.file)):
        assert remarks_on_matches(gallery, other, Found([too_little], None, None)) == []  # not asked as they are
    assert open_gallery(folder, checkpoint).usual_score == gallery.usual_score
    shutil.rmtree(folder)
    folder.mkdir()
    empty = open_gallery(folder, checkpoint)
    assert empty.usual_score is None and empty.search("a dog") == []


# ---------------------------------------------------------------- the command


def test_plus_minus_and_threshold_on_the_command_line(workplace, folder):
    shutil.copy(folder / "2.jpg", folder / "again.jpg")
    ask = ["--image", folder / "2.jpg", "--plus", "snow", "--minus", "the beach", "--gallery", folder, "--json"]
    answer = json.loads(run_script("inference.py", *ask, cwd=workplace).stdout)
    assert answer["query"] == "pictures like 2.jpg + snow - the beach" and len(answer["matches"]) == 6
    assert [match["copies"] for match in answer["matches"] if "copies" in match] in (
        [[str(folder / "again.jpg")]], [[str(folder / "2.jpg")]])
    best = answer["matches"][0]["score"]
    process = run_script("inference.py", *ask, "--threshold", best + 0.01, "--output", "none.png", cwd=workplace)
    assert json.loads(process.stdout)["matches"] == [] and not (workplace / "none.png").exists()
    assert f"no picture scores {best + 0.01} or more: the best is {best:.4f}" in process.stderr


def test_json_is_one_object_on_standard_output(workplace, folder):
    (folder / "text.jpg").write_text("not a picture")
    process = run_script("inference.py", "--query", "people sitting near the beach", "--gallery", folder, "--json",
                         "--top-k", 50, "--output", "found.png", cwd=workplace)
    answer = json.loads(process.stdout)
    assert list(answer) == ["query", "matches"] and answer["query"] == "people sitting near the beach"
    matches = answer["matches"]
    assert [match["rank"] for match in matches] == [1, 2, 3, 4, 5, 6]  # all there are, though 50 were asked for
    assert all(list(match) == ["rank", "file", "score"] and os.path.exists(match["file"]) for match in matches)
    assert "skipped" in process.stderr and "text.jpg" in process.stderr and (workplace / "found.png").exists()


def test_the_table_and_the_picture(workplace):
    process = run_script("inference.py", "--query", "playing soccer", cwd=workplace)
    lines = process.stdout.splitlines()
    table = lines[lines.index("rank  score  file") + 1:][:9]
    assert [line.split()[0] for line in table] == [str(rank) for rank in range(1, 10)]
    assert "runs/first/best on 16 pictures" in lines[0] and lines[-1] == "wrote matches.png"
    with Image.open(workplace / "matches.png") as picture:
        assert picture.format == "PNG" and 600 < picture.width < 1200


def test_explain_marks_the_pictures_and_says_where_it_cannot(workplace, folder, checkpoint, tmp_path):
    # An example, which some part of it answers surely; of a prompt a model of two epochs may know nothing.
    ask = ["--image", folder / "0.jpg", "--gallery", folder, "--top-k", "4"]
    run_script("inference.py", *ask, "--output", "plain.png", cwd=workplace)
    run_script("inference.py", *ask, "--output", "marked.png", "--explain", cwd=workplace)
    names = "plain.png", "marked.png"
    plain, marked = (np.asarray(Image.open(workplace / name).convert("RGB"), int) for name in names)
    changed = np.abs(plain - marked).max(axis=2) > 20
    assert plain.shape == marked.shape and 0.01 < changed.mean() < 0.7
    assert (marked - plain)[changed][:, 0].mean() > (marked - plain)[changed][:, 1:].mean()  # redder

    model = CLIP.from_pretrained(checkpoint)
    transformer = CLIP(replace(model.config, image_encoder="test_vit", image_size=64),
                       ImageEncoder("test_vit", False, 64), model.text_encoder)
    transformer.save_pretrained(tmp_path / "vit")
    ask += ["--explain", "--checkpoint", tmp_path / "vit"]
    process = run_script("inference.py", *ask, cwd=workplace, check=False)
    assert process.returncode == 2 and "rank  score  file" in process.stdout
    assert "the image tower test_vit has no map of features to explain a picture by" in process.stderr


def test_a_known_gallery_explains_after_a_prompt(folder, checkpoint):
    open_gallery(folder, checkpoint)
    known = open_gallery(folder, checkpoint)
    assert known.embedded == 0
    match = known.search("a dog", top_k=1)[0]  # the first thing that needs the model, in inference mode
    assert known.explain(match.file, "a dog").shape[2] == 3


def test_an_over_long_prompt_says_what_is_not_looked_at(workplace, folder):
    process = run_script("inference.py", "--query", "dog " * 100, "--gallery", folder, cwd=workplace)
    assert "the prompt is too long: its last 38 tokens are not looked at" in process.stdout  # 100 + 2 - 64


def test_words_that_the_model_does_not_know_are_said_to_be_unknown(folder, checkpoint):
    embedder = open_gallery(folder, checkpoint).embedder
    assert embedder.remarks("雪の中の犬") == ["the model does not know: 雪, の, 中, 犬; the ranking means nothing"]
    assert embedder.remarks("a dog running") == []


def test_a_name_that_is_not_utf8_is_searched_drawn_and_printed(workplace, folder):
    os.rename(folder / "0.jpg", os.fsencode(folder) + b"/caf\xe9.jpg")
    for _ in range(2):
        process = run_script("inference.py", "--query", "a dog", "--gallery", folder, cwd=workplace)
        assert "caf\\udce9.jpg" in process.stdout and "6 pictures" in process.stdout


def test_names_cannot_steer_the_terminal(workplace, folder):
    (folder / "0.jpg").rename(folder / "\x1b[2J\r0.jpg")
    (folder / "\x1b]0;gone\x07.jpg").write_bytes(b"")
    process = run_script("inference.py", "--query", "a dog", "--gallery", folder, "--no-picture", cwd=workplace)
    assert not {"\x1b", "\r", "\x07"} & set(process.stdout + process.stderr)
    assert r"\x1b[2J\r0.jpg" in process.stdout and r"skipped: " in process.stdout


def test_the_picture_of_the_last_result_is_no_result(workplace, folder):
    for _ in range(3):
        process = run_script("inference.py", "--query", "a dog", "--gallery", ".", "--checkpoint",
                             workplace / "runs" / "first", cwd=folder)
        assert "6 pictures" in process.stdout and (folder / "matches.png").exists()


def test_a_pipe_and_what_was_indexed_before_it_was_read_only(folder, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    os.mkfifo(folder / "pipe.jpg")
    assert "not a file" in open_gallery(folder, checkpoint).skipped[folder / "pipe.jpg"]
    folder.chmod(0o555)
    try:
        assert open_gallery(folder, checkpoint).embedded == 0
    finally:
        folder.chmod(0o755)


def test_query_by_example(workplace, folder):
    process = run_script("inference.py", "--image", folder / "2.jpg", "--gallery", folder, "--json", cwd=workplace)
    assert json.loads(process.stdout)["matches"][0]["file"] == str(folder / "2.jpg")
    process = run_script("inference.py", "--image", "nowhere.jpg", "--gallery", folder, cwd=workplace, check=False)
    assert process.returncode == 2 and process.stderr.endswith("error: --image nowhere.jpg is not a file\n")


def test_json_is_complete_even_if_the_picture_cannot_be_written(workplace, folder):
    process = run_script("inference.py", "--query", "a dog", "--gallery", folder, "--json", "--output",
                         "train.log/matches.png", cwd=workplace, check=False)
    assert process.returncode == 2 and len(json.loads(process.stdout)["matches"]) == 6


def test_a_model_of_drawn_scenes_says_so_before_photos(workplace, checkpoint, folder, tmp_path):
    drawn = tmp_path / "model"
    shutil.copytree(checkpoint, drawn)
    settings = json.loads((drawn / "config.json").read_text())
    (drawn / "config.json").write_text(json.dumps({**settings, "data_dir": "data/sample"}))
    ask = ["inference.py", "--query", "a dog", "--gallery", folder, "--no-picture", "--checkpoint"]
    warning = "this model has seen drawn scenes only"
    assert warning in run_script(*ask, drawn, cwd=workplace).stdout
    assert warning not in run_script(*ask, checkpoint, cwd=workplace).stdout  # trained on a folder of its own


@pytest.mark.parametrize("script, flag, name, more", [
    ("inference.py", "--html", "page.html", ["--query", "a dog"]),
    ("inference.py", "--output", "table.csv", ["--labels", "dog,beach"]),
    ("inference.py", "--output", "mine.png", ["--query", "a dog"]),
    ("evaluate.py", "--json", "figures.json", ["--split", "test"]),
    ("dataset.py", "--output", "mine.png", []),
])
def test_a_file_of_somebody_is_not_written_over_and_ours_is(script, flag, name, more, workplace, sample_dir, tmp_path):
    path = tmp_path / name
    data = [sample_dir, "--image-size", 32] if script == "dataset.py" else more
    for _ in range(2):
        run_script(script, *data, flag, path, cwd=workplace)
    if path.suffix == ".png":
        Image.new("RGB", (8, 8), "red").save(path)
    else:
        path.write_text("my own words")
    before = path.read_bytes()
    process = run_script(script, *data, flag, path, cwd=workplace, check=False)
    assert process.returncode == 2 and path.read_bytes() == before
    assert f"{flag} {path} is there, and was not" in process.stderr


def test_copies_in_the_gallery_are_said_to_be_found_later(workplace, folder, tmp_path):
    ask = ["--query", "a dog", "--gallery", folder, "--no-picture", "--copy-to"]
    said = f"{folder / 'found'} lies in the gallery, so later searches find these copies, too"
    assert said in run_script("inference.py", *ask, folder / "found", cwd=workplace).stdout
    assert "lies in the gallery" not in run_script("inference.py", *ask, tmp_path / "out", cwd=workplace).stdout


def test_a_picture_of_the_gallery_is_not_drawn_over(workplace, folder):
    before = (folder / "0.jpg").read_bytes()
    ask = ["inference.py", "--query", "a dog", "--gallery", folder]
    process = run_script(*ask, "--output", folder / "0.jpg", cwd=workplace, check=False)
    assert process.returncode == 2
    assert f"--output {folder / '0.jpg'} is a picture in the gallery: name another file" in process.stderr
    assert (folder / "0.jpg").read_bytes() == before
    for _ in range(2):  # what this program has drawn there it may draw anew
        run_script(*ask, "--output", folder / "new.jpg", cwd=workplace)
    assert (folder / "new.jpg").is_file()
    (folder / "0.jpg").rename(folder / "matches.png")  # a name that says nothing: it is theirs
    process = run_script(*ask, cwd=folder, check=False)
    assert process.returncode == 2 and "matches.png is a picture in the gallery" in process.stderr


@pytest.mark.parametrize("flags, complaint", [
    (["--gallery", "nowhere"], "--gallery nowhere: there is no such folder"),
    (["--gallery", "train.log"], "--gallery train.log is not a folder"),
    (["--gallery", "empty"], "empty holds no readable picture"),
    (["--checkpoint", "nowhere"], "there is no folder nowhere: name a run, or a model directory"),
    (["--checkpoint", "orphan"], "the data trained on, gone/data, is not here: name a folder with --gallery DIR"),
    (["--output", "matches.txt"], "--output matches.txt: choose a name that ends in"),
    (["--output", "train.log/matches.png"], "--output train.log/matches.png cannot be written"),
])
def test_what_cannot_be_ends_in_one_line(workplace, flags, complaint):
    (workplace / "empty").mkdir(exist_ok=True)
    if "orphan" in flags:
        shutil.copytree(workplace / "runs" / "first" / "best", workplace / "orphan")
        saved = json.loads((workplace / "orphan" / "config.json").read_text())
        (workplace / "orphan" / "config.json").write_text(json.dumps({**saved, "data_dir": "gone/data"}))
    process = run_script("inference.py", "--query", "a dog", *flags, cwd=workplace, check=False)
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert process.returncode == 2 and len(errors) == 1 and complaint in errors[0]
    assert "Traceback" not in process.stderr
