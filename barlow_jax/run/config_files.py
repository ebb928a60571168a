"""Finding what lies beside the package: train.py, linear_eval.py and configs/, and the config that a name stands for.

    config = load("demo")                       # one of those that come along
    config = load("configs/tfds.py:imagenette") # or a file, with an argument for its get_config
    config = with_fields(config, {"epochs": 50, "optimizer": {"eta": 0.01}})

In a checkout they lie in its top folder, where people read them; in an installed package in barlow_jax/programs, never
as modules called `train` or `configs`.
"""

import ast
import hashlib
import importlib.machinery
import importlib.util
import pathlib
import traceback

from ml_collections import ConfigDict
from ml_collections.config_dict import RequiredValueError

from barlow_jax import __version__
from barlow_jax.errors import UserError

_PACKAGE = pathlib.Path(__file__).parents[1]
PROGRAMS = _PACKAGE / "programs" if (_PACKAGE / "programs").is_dir() else _PACKAGE.parent
CONFIGS = PROGRAMS / "configs"
_A_CONFIG = (
    "--config wants a file of Python with a get_config, which is given what stands behind a colon; "
    "`barlow-jax configs demo` prints one"
)
_MEMBERS = (
    "let it be a function of what stands behind the colon that gives the arguments for get_config, as a list, or as a "
    "dict of them by name (docs/sweeps.md)"
)


def program(name):
    """The module train.py or linear_eval.py, under a name of its own."""
    return _module(PROGRAMS / f"{name}.py", f"barlow_jax_{name}")


def names():
    """The names of the configs that come along, sorted."""
    return sorted(file.stem for file in CONFIGS.glob("*.py") if file.stem != "__init__")


def code():
    """What tells this code from another: the version, and a digest of all files of Python."""
    files = [*sorted(_PACKAGE.rglob("*.py")), *(PROGRAMS / f"{name}.py" for name in ("train", "linear_eval"))]
    digest = hashlib.sha256()
    for file in dict.fromkeys(files):
        digest.update(file.read_bytes())
    return f"{__version__} ({digest.hexdigest()[:12]})"


def about(name):
    """The first line of a config that comes along."""
    return ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text())).splitlines()[0]


def has_members(name):
    """Whether a config that comes along says itself what it can be, see `members`."""
    parsed = ast.parse((CONFIGS / f"{name}.py").read_text())
    return any(isinstance(node, ast.FunctionDef) and node.name == "members" for node in parsed.body)


def members(named):
    """{name: what --config takes} of the configs that "paper:table5" or "my/own.py" stand for, in their order.

    The file says which: its function members(wanted) gets what stands behind the colon, "" where nothing does, and
    returns the arguments for its get_config, as a list, or as a dict of them by name.

    Raises:
      UserError: there is no such file, it has no such function or that fails, or there is none of that name.
    """
    file, wanted = find(named)
    try:
        module = _module(file, "barlow_jax_config")
        own = getattr(module, "members", None)
        listed = own(wanted or "") if own else {}
        listed = listed if isinstance(listed, dict | str | None) else [*listed]
    except Exception as error:  # whatever somebody's file runs into
        raise UserError(_failure(file, error, _MEMBERS)) from error
    if own is None:
        raise UserError(
            f"{file} has no function members, which says what can be swept; give a file that has one, such as "
            "configs/paper.py (docs/sweeps.md)."
        )
    if isinstance(listed, str | None):
        raise UserError(f"members of {file} gives {listed!r}; {_MEMBERS}.")
    arguments = listed if isinstance(listed, dict) else {str(argument): argument for argument in listed}
    if not arguments:
        raise UserError(f"{file} has no members {wanted!r}; `barlow-jax configs` lists those that come along.")
    before = str(named).partition(":")[0]
    return {str(name): f"{before}:{argument}" for name, argument in arguments.items()}


def find(named):
    """(file, argument or None) of "demo", "tfds:imagenette", "configs/demo.py" or "my/own.py:argument".

    Raises:
      UserError: there is no such file, or no config of that name.
    """
    name, colon, argument = str(named).partition(":")
    file = pathlib.Path(name).expanduser()
    if file.suffix != ".py" and "/" not in name:
        if name not in names():
            raise UserError(
                f"There is no config {name!r}; the names are {', '.join(names())}, or give a file of your own, such as "
                "my_config.py."
            )
        file = CONFIGS / f"{name}.py"
    elif not file.is_file():
        same = f"; --config={file.stem} names the one that comes along" if file.stem in names() else ""
        raise UserError(f"The file of --config cannot be read ({file} is not there){same or '; give another'}.")
    return file, argument if colon else None


def load(named):
    """The config of a name or a file, locked.

    Args:
      named: as `find` takes it; what stands behind the colon goes to the file's get_config.
    Raises:
      UserError: there is none, it is no Python, fails, or gives something else than a ConfigDict. Where it fails the
        sentence has its file and line.
    """
    file, argument = find(named)
    try:
        get_config = _module(file, "barlow_jax_config").get_config
        config = get_config() if argument is None else get_config(argument)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"The file of --config cannot be read ({file}: {error.strerror or error}).") from None
    except Exception as error:  # whatever somebody's file runs into
        raise UserError(_failure(file, error)) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config of {file} gives a {type(config).__name__}; let it return a ConfigDict, such as "
            "barlow_jax.config('barlow_twins') changed."
        )
    try:
        return config.lock()
    except RequiredValueError as error:  # of a placeholder that nobody has filled
        raise UserError(f"{file}: {' '.join(str(error).split())}; give it a value.") from None


def with_fields(config, fields):
    """A copy of the config with other values.

    Args:
      fields: {name: value}; names may be dotted ("optimizer.eta"), and values dicts of fields in turn.
    Raises:
      UserError: a field does not exist, or is of another type.
    """
    config = config.copy_and_resolve_references().lock()
    for name, value in fields.items():
        *groups, last = name.split(".")
        group = config
        try:
            for one in groups:
                group = group[one]
            if isinstance(value, dict):
                group[last].update(value)
            else:
                group[last] = value
        except (KeyError, AttributeError) as error:
            told = " ".join(str(error.args[0]).replace("\\n", " ").split()) if error.args else name
            raise UserError(f"config has no field {name}: {told}") from None
        except (TypeError, ValueError) as error:
            raise UserError(f"config.{name} cannot be {value!r}: {' '.join(str(error).split())}") from None
    return config


def _module(file, name):
    """A file of Python as a module, which no import finds."""
    loader = importlib.machinery.SourceFileLoader(name, str(file))  # whatever the file is called
    spec = importlib.util.spec_from_loader(name, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _failure(file, error, wanted=_A_CONFIG):
    """One sentence about an exception of a config file: what, in which line of it, or what is wanted of it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        lines = [error.lineno]
    text = error.msg if isinstance(error, SyntaxError) else str(error.args[0] if error.args else "")
    text = " ".join(text.replace("\\n", " ").split()).rstrip(".")
    kind = "" if isinstance(error, ValueError) and not isinstance(error, UnicodeError) else f"{type(error).__name__}: "
    where = f"{file}, line {lines[-1]}" if lines else str(file)
    if not kind:  # a sentence of the file's own
        return f"{text} ({where})."
    remedy = "mend that line" if lines and not isinstance(error, SyntaxError) else wanted
    return f"{kind}{text} ({where}); {remedy}."
