"""The values of flags, and in a sentence what is wrong with one."""

from absl import flags

from barlow_jax.errors import UserError


class Parser(flags.ArgumentParser):
    """As another of absl's; of what it does not take a sentence has the flag, the value and what it must be."""

    def __init__(self, parser, name, must):
        self._parser, self._name, self._must = parser, name, must

    def parse(self, argument):
        try:
            return self._parser.parse(argument)
        except (TypeError, ValueError):
            raise UserError(f"--{self._name} is {argument!r}; it must be {self._must}.") from None

    def flag_type(self):
        return self._parser.flag_type()
