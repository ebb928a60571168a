"""Text for terminals, Markdown and pages: what others named is one line that can be printed."""


def markdown(head, rows):
    """A table in Markdown, of texts that are one line each and have no "|"."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join("|" + "".join(f" {text} |" if text else " |" for text in line) for line in lines)


def printable(text):
    """The text with escapes for what cannot be printed or written, such as half a character, and for new lines."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
