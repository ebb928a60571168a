"""Text for terminals, Markdown and pages: what others named is one line that can be printed."""

from barlow_jax.run.pictures.paper import printable

__all__ = ["markdown", "printable"]


def markdown(head, rows):
    """A table in Markdown, of texts that are one line each and have no "|"."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join("|" + "".join(f" {text} |" if text else " |" for text in line) for line in lines)
