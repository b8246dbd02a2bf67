"""The one exception that means "the input is at fault": one line for the user, exit status 2 on the command line."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: a file, a config key or an argument.

    The message is one line that names the file or key, says what is wrong and what would be right.
    """

    @property
    def line(self) -> str:
        """The message alone, also when a data-loader worker or a spawned process wrapped it in its traceback."""
        last = [text for text in str(self).splitlines() if text.strip()][-1]
        return last.removeprefix(f"{type(self).__module__}.{type(self).__name__}: ")
