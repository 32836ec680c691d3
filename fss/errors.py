"""Errors that a user caused and can mend; `fss.command` turns them into one sentence and an exit code."""


class UserError(ValueError):
    """What was asked cannot be done; the message says what is wrong, with the value, and the remedy, in a sentence."""


class ConfigError(UserError):
    """A key, a value or a combination of values in the configuration is not accepted."""


class WeightsError(UserError):
    """A file of weights or a checkpoint is damaged, or belongs to something else than what it was given for."""


class RunError(UserError):
    """A run directory or a set of ranks does not fit what was asked."""


def at_least(group: str, config: object, **least: float) -> None:
    """Raise ConfigError unless each named field of `config`, the options of `group`, is None or as large as stated."""
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            raise ConfigError(f"{group}.{name} is {value}: give at least {bound:g}")
