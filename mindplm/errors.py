"""The errors a user can mend; the command line prints them without a traceback and exits with 2."""

OK, FAULT, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: fine, a fault of ours, something that the user can mend, interrupted."""


class UserError(ValueError):
    """Base of everything that a user's input, file or setting caused."""


class ConfigError(UserError):
    """A configuration file, key or override that cannot be used."""


class VocabError(UserError):
    """A vocabulary file that cannot be used."""


class DataError(UserError):
    """A record, data file or data folder that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that is damaged, incomplete or of another kind."""


class DeviceError(UserError):
    """A device that was asked for and cannot be used."""
