"""What a search is asked, by the command line, the web page or Python."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Question:
    """What is looked for, and among which pictures; `inference.Gallery.search` says what each means."""

    query: list | tuple = ()
    image: Path | None = None
    minus: list | tuple = ()
    top_k: int = 9
    threshold: float | None = None
    fold: bool = True
    under: list | tuple = ()
    after: str | None = None
    before: str | None = None
    sort: str = "score"  # or date

    def is_of_prompts(self):
        """Return whether it asks by what is wanted, in words, and by nothing else."""
        return self.image is None and not self.minus

    def asks_for_dates(self):
        """Return whether it matters when pictures were taken."""
        return bool(self.after or self.before) or self.sort == "date"

    def title(self):
        """Return in words what is asked for, such as "pictures like dog.jpg + snow - a beach"."""
        wanted = list(self.query)
        if self.image:
            wanted.insert(0, f"pictures like {self.image.name}")
        title = " + ".join(wanted)
        for prompt in self.minus:
            title += f" - {prompt}"
        return title
