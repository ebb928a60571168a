"""Starting a command: its flags, which are defined when it runs, its config, and errors for people.

def define_flags(flag):
    flag.config("File or name of the experiment.")
    flag.text("workdir", "Folder of the run.")

def main(wanted):                   # wanted.config, wanted.workdir; returns the exit status, or None for 0
    ...

if __name__ == "__main__":
    launch.run(main, define_flags)
"""

import contextlib
import gc
import io
import json
import logging
import os
import sys
import traceback
from types import SimpleNamespace

import jax
from absl import flags
from ml_collections import config_flags

from barlow_jax.errors import UserError
from barlow_jax.run import cluster, config_files, config_words, heartbeat
from barlow_jax.run.flag_values import Parser
from barlow_jax.run.quiet import hide_tracebacks
from barlow_jax.run.writing import NO_SPACE


class Flags:
    """The flags of one command: `config` is --config and --config.FIELD, `arguments` words beside the flags."""

    def __init__(self):
        self._values = flags.FlagValues()
        self._values.set_gnu_getopt(True)
        self._lines = []
        self._config = None  # (help, default) where there is one
        self._swept = False
        self._words = ""

    def config(self, what, default=None):
        """--config: a file, or the name of one that comes along; default: None where there has to be one."""
        self._config = (what, default)
        self._say("config=FILE or NAME", what, default)
        self._say("config.FIELD=VALUE", "Another value for a field of it; the file says which there are.", "")

    def swept(self, what):
        """--config and --config.FIELD=VALUE as they are typed, in `swept` and `fields`, for other commands to read."""
        self._swept = True
        self._say("config=FILE:WHICH or NAME:WHICH", what, "")
        self._say("config.FIELD=VALUE", "Another value for a field of all of them.", "")

    def switch(self, name, what):
        flags.DEFINE_boolean(name, False, what, flag_values=self._values)
        self._say(name, what, "")

    def text(self, name, what, default=""):
        flags.DEFINE_string(name, default, what, flag_values=self._values)
        self._say(f"{name}=TEXT", what, default)

    def number(self, name, what, default=0):
        """An integer, or where the default is a float any number."""
        whole = not isinstance(default, float)
        parser = flags.IntegerParser() if whole else flags.FloatParser()
        self._define(name, default, what, parser, "a whole number" if whole else "a number")
        self._say(f"{name}=NUMBER", what, default)

    def choice(self, name, choices, what, default=None):
        self._define(name, default, what, flags.EnumParser([*choices]), f"one of {', '.join(choices)}")
        self._say(f"{name}={'|'.join(choices)}", what, default)

    def names(self, name, what):
        """Several, separated by commas."""
        flags.DEFINE_list(name, [], what, flag_values=self._values)
        self._say(f"{name}=NAME,NAME", what, "")

    def arguments(self, *words):
        """What stands beside the flags, for --help: "RUN IMAGES", or of several commands in one each as it is typed."""
        self._words = words

    def _define(self, name, default, what, parser, must):
        flags.DEFINE(Parser(parser, name, must), name, default, what, flag_values=self._values)

    def _say(self, form, what, default):
        shown = "" if default in (None, "", 0) else f" ({default} if not given)"
        self._lines.append(f"  --{form}\n        {what}{shown}")

    def help(self, name, about):
        """What --help prints."""
        typed = self._words if len(self._words) > 1 else [" ".join([name, *self._words])]
        usage = "\n       ".join(f"{line} [flags]" for line in typed)
        return "\n".join([(about or "").strip(), "", f"usage: {usage}", "", *self._lines])

    def parsed(self, command):
        """The values as attributes; `config` and `arguments` among them, where the command has them.

        Args:
          command: list of words, the first one the program's name.
        Raises:
          UserError: a flag is unknown or has an impossible value, or there is a word too many.
        """
        command, fields = list(command), []
        if self._swept:
            command, fields = config_words.as_typed(command)
        with config_words.errors():
            command, config = self._with_config(command)
            words = self._values(command)[1:]
        if words and not self._words:
            raise UserError(f"{words[0]!r} is no flag; a config field is set with --config.FIELD=VALUE.")
        wanted = self._wanted(config, words)
        if self._swept:
            named = [word.partition("=")[2] for word in fields if not config_words.FIELD.fullmatch(word)]
            wanted.swept = named[-1] if named else ""
            wanted.fields = [word for word in fields if config_words.FIELD.fullmatch(word)]
        return wanted

    def given(self, config=None, **values):
        """The same without a command line: these values, and the defaults for all else."""
        for name, value in values.items():
            self._values[name].value = value
        self._values.mark_as_parsed()
        return self._wanted(config, [])

    def _wanted(self, config, words):
        found = {name: self._values[name].value for name in self._values if not name.startswith("config")}
        return SimpleNamespace(**found, config=config, arguments=words)

    def _with_config(self, command):
        """The command without --config, and the config that it names with its fields changed."""
        if self._config is None:
            return command, None
        named, rest = self._config[1], []
        while command:
            word = command.pop(0)
            name, equals, value = word.partition("=")
            if name in ("--config", "-config"):
                named = value if equals else command.pop(0) if command else ""
            elif word == "--":
                rest += [word, *command]
                command = []
            else:
                rest.append(word)
        if not named:
            raise UserError(
                "--config is missing; give the name or the file of an experiment, such as --config=demo or "
                "--config=configs/demo.py."
            )
        config = config_files.load(named)
        rest = config_words.last_of_each(rest, config)
        config_words.check_names(rest, config)
        config_flags.DEFINE_config_dict("config", config, flag_values=self._values, sys_argv=rest)
        return rest, config


def run(main, define_flags, command=None):
    """Parses the flags, runs main(wanted) and ends the process with the status that it returns.

    What the user can put right becomes one sentence and status 1; --help prints and ends with 0.

    Args:
      main: takes what `Flags.parsed` gives.
      define_flags: takes `Flags`.
      command: list of words, the first one the program's name; None is sys.argv.
    """
    command = list(sys.argv if command is None else command)
    gc.freeze()  # what was imported stays: nobody has to look through it again, nor take it apart in the end (0.4 s)
    flag = Flags()
    define_flags(flag)
    if {"--help", "-help", "-h", "--helpfull"} & {*command[1:]}:
        print(flag.help(_program(command[0], main), sys.modules[main.__module__].__doc__))
        sys.exit(0)
    try:
        _show_log()
        if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be no text
            sys.stdout.reconfigure(errors="backslashreplace")
        with errors_for_people():
            wanted = flag.parsed(command)
            cluster.join()
            if jax.distributed.is_initialized():
                _show_log()
                cluster.check_agreement(_told(wanted))
            with heartbeat.beating():
                status = main(wanted)
            sys.stdout.flush()
        sys.exit(status)
    except UserError as error:
        let_go_of_output()
        if not jax.distributed.is_initialized():
            sys.exit(f"error: {error}")
        cluster.leave(1, f"error: {error}")
    except BrokenPipeError:  # of `... | head`: whoever read us has enough
        let_go_of_output()
        sys.exit(1)
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        cause = _of_another(error)
        if not cause:
            traceback.print_exc()
        follows = f"error: If another process has ended, this one only follows; see the logs of all{cause}."
        cluster.leave(cluster.ALONE if cause else 1, follows)


def let_go_of_output():
    """What cannot be printed, as whoever reads it has gone or the disk is full, is not tried again at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _of_another(error):
    """ " (REASON)" where an exception says that another process is gone, "" where it may be a fault of this one."""
    text = " ".join(str(error).split())
    signs = ("Connection closed by peer", "Connection reset by peer", "Gloo", "NCCL", "coordination service")
    if isinstance(error, jax.errors.JaxRuntimeError) and any(sign in text for sign in signs):
        return f" ({text[:160].rstrip('.')})"
    return ""


def _program(name, main):
    """How a command is called: a module of ours by -m."""
    spec = sys.modules[main.__module__].__spec__ if main.__module__ == "__main__" else None
    return f"python -m {spec.name}" if spec else name if name.startswith("barlow-jax") else f"python {name}"


def _told(wanted):
    """What all processes of a run must have been told alike, see `cluster.check_agreement`."""
    kinds = sorted(device.device_kind for device in jax.local_devices())
    flags_ = {name: str(value) for name, value in vars(wanted).items() if name != "config"}
    config = json.loads(wanted.config.to_json_best_effort()) if wanted.config else {}
    code = {"barlow_jax": config_files.code(), "jax": jax.__version__}
    return {"config": config, "flags": flags_, "code": code, "devices": kinds}


def _show_log():
    """Log lines on the standard error, each with its date and, of several processes, its process."""
    logging.basicConfig(level=logging.INFO, force=True)
    logging.root.handlers[0].setFormatter(log_format())
    for chatty in ("jax", "orbax", "tensorflow", "absl"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def log_format():
    """Of all log lines, here and in files."""
    process = f"[{jax.process_index()}] " if jax.distributed.is_initialized() else ""
    return logging.Formatter(f"%(asctime)s {process}%(message)s", datefmt="%Y-%m-%d %H:%M:%S")


@contextlib.contextmanager
def errors_for_people():
    """A full disk and a full device are UserErrors; Orbax's own threads print nothing."""
    hide_tracebacks()
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        where = f" for {error.filename or 'what this command prints'}"
        raise UserError(
            f"There is no space{where} ({error.strerror}); free some and start again with the same line; a run goes on "
            "from its last checkpoint."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        what = str(error).splitlines()[0].split("RESOURCE_EXHAUSTED: ")[-1]
        raise UserError(f"The device has too little memory ({what.rstrip('.')}); lower config.batch_size.") from error


def close(*things):
    """Closes all of them in this order, also where one fails; the last failure is what is raised."""
    with contextlib.ExitStack() as stack:
        for thing in reversed(things):
            stack.callback(thing.close)
