"""The tables, asked about a config: UserError at the first value that cannot work."""

import contextlib
import difflib

from barlow_jax.errors import UserError
from barlow_jax.fields.rules import REQUIRED, shown


def check(config, table, needed=None):
    """Fills in what older configs lack and raises UserError at the first field that cannot work.

    Args:
      config: nested, of an ml_collections.ConfigDict or dicts.
      table: rules.Table.
      needed: names of fields that must be there; None is all. What is there is checked in any case.
    Raises:
      UserError: a field is missing, unknown, of another type, out of its range, or does not go with another.
    """
    fill_in(config, table)
    values = dict(_flat(config, table))
    for name in table.fields if needed is None else needed:
        if name not in values:
            page = f"barlow_jax.config({table.page!r}) or configs/{table.page}.py"
            raise UserError(f"config.{name} is missing; start from {page}.")
    for name in values:
        if name not in table.fields:
            near = nearest(name, table.fields)
            remedy = f"did you mean config.{near}?" if near else f"configs/{table.page}.py has all that there are."
            raise UserError(f"config.{name} is no field; {remedy}")
    values = {name: value for name, value in values.items() if value is not None or name not in table.may_be_open}
    for name, value in values.items():
        fault = table.fields[name].fault(value)
        if fault:
            raise UserError(f"config.{name} is {shown(value)}; {fault}.")
    _together(values, table.together)


def check_together(config, together):
    """Raises UserError unless fields agree; those that the config does not have are left out of it.

    config: nested, as of `check`; its fields are known to be in their ranges.
    together: of rules.Together.
    """
    _together(flat(config), together)


def check_flags(wanted, flags):
    """Raises UserError at the first flag of a command that is out of its range; flags: {name: rules.Rule}."""
    for name, rule in flags.items():
        fault = rule.fault(getattr(wanted, name))
        if fault:
            raise UserError(f"--{name} is {shown(getattr(wanted, name))}; {fault}.")


def fill_in(config, table):
    """Gives a ConfigDict the fields that it does not have, where the table says what they are then.

    So a config file that was written before a field was there means what it meant.
    """
    for name, rule in table.fields.items():
        if rule.default is REQUIRED:
            continue
        *groups, last = name.split(".")
        group = config
        for part in groups:
            if hasattr(group, "keys") and part not in group:
                with _unlocked(config):
                    group[part] = {}
            group = group[part] if hasattr(group, "keys") else None
        if hasattr(group, "keys") and last not in group:
            with _unlocked(config):
                group[last] = rule.default


def _unlocked(config):
    """A ConfigDict may get new fields inside; dicts may at any time."""
    return config.unlocked() if hasattr(config, "unlocked") else contextlib.nullcontext()


def _together(values, together):
    for names, fits, remedy in together:
        if all(name in values for name in names) and not fits(*(values[name] for name in names)):
            told = [f"config.{name} is {shown(values[name])}" for name in names[:1]]
            told += [f"config.{name} {shown(values[name])}" for name in names[1:]]
            head = f"{told[0]} with {' and '.join(told[1:])}"
            head = head.replace(f"config.{names[0]} is ''", f"config.{names[0]} is empty")
            raise UserError(f"{head}; {remedy}.")


def flat(config):
    """{dotted name: value} of a nested config."""
    return dict(_leaves(config))


def _flat(config, table):
    """(dotted name, value) of every field; a group is what the table has as one."""
    groups = {name[: k + 1] for name in table.fields for k, letter in enumerate(name) if letter == "."}
    if not hasattr(config, "keys"):
        raise UserError(f"The config is {shown(config)}; let get_config return a ConfigDict.")
    for name, value in _leaves(config, inside=lambda name: f"{name}." in groups):
        if f"{name}." in groups:
            first = next(field for field in table.fields if field.startswith(f"{name}."))
            raise UserError(f"config.{name} is {shown(value)}; it must be a group of fields, such as config.{first}.")
        yield name, value


def _leaves(config, prefix="", inside=lambda name: True):
    for key in config.keys():
        name = f"{prefix}{key}"
        try:
            value = config[key]
        except Exception as error:  # of ml_collections: a placeholder that nobody has filled
            raise UserError(f"config.{name} has no value ({error}); give it one.") from None
        if hasattr(value, "keys") and inside(name):
            yield from _leaves(value, f"{name}.", inside)
        else:
            yield name, value


def nearest(name, names):
    """The field that was meant by one that there is not, or None: of another group (optimizer.epochs), or alike."""
    same = [field for field in names if field.rpartition(".")[2] == name.rpartition(".")[2]]
    return next(iter(same or difflib.get_close_matches(name, names, n=1)), None)
