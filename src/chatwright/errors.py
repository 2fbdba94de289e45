"""The one error that users are meant to read."""


class ChatwrightError(Exception):
    """Something the user can mend: one line that names the thing and the remedy.

    The command line prints it without a traceback and exits with status 1.
    """
