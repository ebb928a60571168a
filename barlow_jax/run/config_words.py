"""The words --config.FIELD=VALUE of a command line: which count, and whether there is such a field."""

import contextlib
import re

from absl import flags

from barlow_jax import fields
from barlow_jax.errors import UserError

FIELD = re.compile(r"--?config\.([\w.]+)(=.*)?", re.DOTALL)


def last_of_each(words, config):
    """The words with one --config.FIELD=VALUE a field, the last: a tuple given twice would be joined otherwise."""
    kept, words = {}, list(words)
    while words:
        word = words.pop(0)
        match = FIELD.fullmatch(word)
        field = match[1] if match else None
        if match and match[2] is None and words and not _is_switch(config, field):
            word = f"--config.{field}={words.pop(0)}"
        key = field or object()  # what is no field stays, however often
        kept.pop(key, None)
        kept[key] = word
    return [*kept.values()]


def check_names(words, config):
    """Raises UserError for a word --config.FIELD whose field there is not."""
    names = fields.flat(config)
    for name in (match[1] for match in map(FIELD.fullmatch, words) if match):
        if name not in names and not any(one.startswith(f"{name}.") for one in names):
            near = fields.nearest(name, names)
            told = f"did you mean config.{near}?" if near else "docs/fields.md has all that there are."
            raise UserError(f"config.{name} is no field; {told}")


def as_typed(words):
    """The words without those of --config and --config.FIELD, and these, each with its value behind a "="."""
    rest, fields, words = [], [], list(words)
    while words:
        word = words.pop(0)
        if word not in ("--config", "-config") and not re.match(r"--?config[.=]", word):
            rest.append(word)
        elif "=" in word or not words or words[0].startswith("-"):
            fields.append(word)
        else:
            fields.append(f"{word}={words.pop(0)}")
    return rest, fields


def _is_switch(config, field):
    """Whether a field is a boolean, which needs no value; True of one that is unknown, for absl to say so."""
    value = config
    for name in field.split("."):
        if not hasattr(value, "keys") or name not in value:
            return True
        value = value[name]
    return isinstance(value, bool)


@contextlib.contextmanager
def errors():
    """What absl and ml_collections raise about flags is a UserError."""
    try:
        yield
    except UserError:
        raise
    except flags.Error as error:
        if isinstance(error.__context__, UserError):  # of a `Parser`
            raise error.__context__ from None
        raise UserError(_sentence(error)) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # From ml_collections: an unknown field, or a value of another type.
        raise UserError(f"{_sentence(error)} See the config file for its fields and their types.") from None


def _sentence(error):
    """The message of a library's exception as one sentence."""
    text = str(error.args[0]) if error.args else type(error).__name__
    if isinstance(error, KeyError | AttributeError):  # ml_collections quotes what is quoted already
        text = "config has no field " + text.replace("\\n", " ").replace("\\'", "'").replace("''", "'")
    for said, must in (
        ("invalid literal for int", "a whole number"),
        ("could not convert string to float", "a number"),
    ):
        text = re.sub(f"^flag --([^=]*)=(.*): {said}.*$", rf"\1 is '\2'; it must be {must}", text, flags=re.DOTALL)
    text = " ".join(text.split())
    return text if text.endswith((".", "?")) else f"{text}."
