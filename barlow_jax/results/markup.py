"""Text of others as HTML, and tables: nothing else on the page makes markup of what stands in a run's files."""

import html

from barlow_jax.results.plain import printable

DASH = "\N{EN DASH}"  # where there is nothing


def text(something):
    """The text of anything, with all that HTML or a terminal would take for its own escaped."""
    return html.escape(printable(str(something)))


def table(head, rows, classes=""):
    """A table that scrolls by itself; cells are HTML."""
    heads = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scrolls"><table class="{classes}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
