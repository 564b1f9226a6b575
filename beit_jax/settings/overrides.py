"""Changing settings by key: of a recipe (`ml_collections.ConfigDict`) or of a plain nested dict, as
a run's config.json has."""

from beit_jax.errors import RequestError, check, nearest


def override(config, key: str, text: str) -> None:
    """Sets config.KEY to what `text` says.

    Raises:
      RequestError: no such setting, or a value of another kind.
    """
    settings = flat(config)
    check(key in settings, f'config.{key} is not a setting.{nearest(key, settings)}')
    change(config, _nest(key, _parse(key, text, settings[key])))


def change(config, settings: dict, where: str = '') -> None:
    """Sets what a nested dict names; `where` stands before the names in errors.

    Raises:
      RequestError: no such setting.
    """
    for key, value in settings.items():
        check(key in config, f'config.{where}{key} is not a setting.{nearest(key, config)}')
        if isinstance(value, dict):
            change(config[key], value, f'{where}{key}.')
        else:
            config[key] = value


def flat(config, prefix: str = '') -> dict:
    """{'group.name': value} of nested settings."""
    settings = {}
    for key, value in config.items():
        settings |= (
            flat(value, f'{prefix}{key}.') if hasattr(value, 'items') else {prefix + key: value}
        )
    return settings


def _nest(key: str, value) -> dict:
    first, _, rest = key.partition('.')
    return {first: _nest(rest, value) if rest else value}


def _parse(key, text, current):
    if isinstance(current, bool):
        check(text.lower() in ('true', 'false'), f'config.{key}={text}: use true or false.')
        return text.lower() == 'true'
    try:
        kind = type((*current, 0)[0]) if isinstance(current, (tuple, list)) else type(current)
        parts = [kind(part) for part in text.strip('()').split(',') if part.strip()]
        if isinstance(current, (tuple, list)) or (kind is int and len(parts) > 1):
            return tuple(parts)
        return kind(text)
    except (TypeError, ValueError) as error:
        raise RequestError(f'config.{key}={text}: it takes {type(current).__name__}.') from error
