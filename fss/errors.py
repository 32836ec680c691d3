"""Errors that a user caused and can correct; `fss.command` turns them into one sentence and an exit code."""


class UserError(ValueError):
    """A request that cannot be fulfilled; the message is one sentence with the fault, the value and the remedy."""


class ConfigError(UserError):
    """A key, a value or a combination of values in the configuration is not accepted."""


class WeightsError(UserError):
    """A file of weights or a checkpoint is damaged, or does not fit the model or run that it was given for."""


class RunError(UserError):
    """A run directory or a set of ranks does not fit the request."""


def at_least(group: str, config: object, **least: float) -> None:
    """Raise ConfigError unless each named field of `config`, the options of `group`, is None or at least its bound."""
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            raise ConfigError(f"{group}.{name} is {value}: give at least {bound:g}")
