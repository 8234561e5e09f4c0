"""A plugin is a file: the names in a folder are the names that may be used."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType

from mer_batch.errors import ConfigError


def plugin_names(package: str) -> list[str]:
    """Names of the plugins in `package`, sorted."""
    module = importlib.import_module(package)
    return sorted(info.name for info in pkgutil.iter_modules(module.__path__))


def load_plugin(package: str, name: str, *, kind: str) -> ModuleType:
    """Import one plugin.

    Raises
    ------
    ConfigError
        For an unknown name, with the names there are and the closest one.
    """
    names = plugin_names(package)
    if name not in names:
        raise ConfigError(unknown_name(kind, name, names))
    return importlib.import_module(f"{package}.{name}")


def unknown_name(kind: str, name: str, names: list[str]) -> str:
    """Say that `name` is not one of `names`, and which one it may have meant."""
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{kind}={name!r} must be one of {', '.join(names)}{hint}"
