"""Errors that a user caused and can mend; `fss.config.command` turns them into one sentence and an exit code."""


class UserError(ValueError):
    """What was asked cannot be done; the message says what is wrong, with the value, and the remedy, in a sentence."""


class ConfigError(UserError):
    """A key, a value or a combination of values in the configuration is not accepted."""


class WeightsError(UserError):
    """A file of weights or a checkpoint is damaged, or belongs to something else than what it was given for."""


class RunError(UserError):
    """A run directory or a set of ranks does not fit what was asked."""
