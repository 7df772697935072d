"""What a person should know of a search beside its matches, as lines: the command and the web page say the same."""

from search.narrow import why_nothing_fits
from search.update import EXCEPTIONS
from support.prompts import EVERYDAY
from support.words import weights_and_words


def remarks_on_question(gallery, question, among):
    """Return what is remarkable about a `search.question.Question`: about its prompts, and about what is searched.

    among: the numbers of the pictures that are searched, as `Gallery.narrow` gives them.
    """
    lines = []
    _, prompts = weights_and_words([*question.query, *question.minus])
    for prompt in prompts:
        lines += gallery.embedder.remarks(prompt)
    lines = list(dict.fromkeys(lines))  # each once
    return lines + remarks_on_narrowing(gallery, question, among)


def remarks_on_narrowing(gallery, question, among):
    """Return how many of the pictures are searched, where it is not all, and how many of them carry no date."""
    lines = []
    by_time = bool(question.after or question.before)
    if among is not None and len(among):
        lines.append(f"{len(among):,} of {len(gallery.files):,} pictures are searched")
    elif among is not None:
        moments = gallery.taken.moments if by_time else None
        lies_there = gallery.lie_under(question.under)
        names = gallery.shown_names()
        line = why_nothing_fits(names, question.under, lies_there, moments, question.after, question.before)
        lines.append(line)
    if question.asks_for_dates():
        count = gallery.taken.by_file.sum()
        if count:
            lines.append(f"{count:,} of {len(gallery.files):,} carry no date, and are dated by the time of their file")
    return lines


def remarks_on_matches(gallery, question, found):
    """Return lines on the matches of an `inference.Found`; where there are none, why."""
    if found.among is not None and not len(found.among):
        return []  # `remarks_on_narrowing` has said why
    if not found.matches:
        best = gallery.best_score(found.embedding, found.among)
        return [f"no picture scores {question.threshold} or more: the best is {best:.4f}"]

    lines = []
    by_rank = sorted(found.matches, key=lambda match: match.rank)
    scores = [match.score for match in by_rank]
    if scores != sorted(scores, reverse=True):
        lines.append("pictures that score for nearly every prompt are ranked lower than their score says")
    # Everyday prompts were asked one by one, of the whole gallery: with other searches they do not compare.
    is_one_prompt = question.is_of_prompts() and len(question.query) == 1
    if is_one_prompt and found.among is None and gallery.usual_score is not None and scores[0] < gallery.usual_score:
        lines.append(
            f"nothing here fits well: the one ranked first scores {scores[0]:.3f}, and for "
            f"{len(EVERYDAY) - EXCEPTIONS} of {len(EVERYDAY)} everyday prompts it is {gallery.usual_score:.3f} or more"
        )
    return lines
