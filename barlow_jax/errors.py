"""The one exception that is meant for the person at the keyboard."""


class UserError(ValueError):
    """Something the user can put right: bad field, missing folder, foreign checkpoint.

    The message is one sentence that names the field or file and the remedy. Entry points print it without a
    traceback and exit with status 1; every other exception is a bug of ours and keeps its traceback.
    """
