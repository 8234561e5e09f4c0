"""YAML as configurations need it: every key once, and nothing without end."""

from __future__ import annotations

import itertools
from typing import Any

import yaml

from mer_batch.shown import shown

#: Far deeper and larger than any configuration.
MAX_DEPTH = 50
MAX_VALUES = 100_000
# Python refuses to write out numbers of some thousand digits, though it reads hexadecimal ones.
_MAX_NUMBER_LENGTH = 1_000

_INT = "tag:yaml.org,2002:int"
_MERGE = "tag:yaml.org,2002:merge"
_TOO_DEEP = f"values must not be nested deeper than {MAX_DEPTH}"


def read_yaml(text: str) -> Any:
    """The value that a text of one YAML document gives, None for an empty one.

    Raises
    ------
    ValueError
        In one line that says where, but shows nothing of the text: it may hold a secret.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError as error:  # PyYAML's own: the nodes are not there to be checked yet
        raise ValueError(_TOO_DEEP) from error
    except yaml.MarkedYAMLError as error:
        raise ValueError(_words(error)) from error
    # PyYAML lets some of Python's own errors out, for values such as 2026-13-45.
    except (yaml.YAMLError, AttributeError, KeyError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _check(root: yaml.Node) -> None:
    """Refuse what is too much, with aliases counted as often as they are used.

    A few lines of them can mean billions of values, or one that holds itself.
    """
    waiting, n_values = [(root, 1)], 0
    while waiting:
        node, depth = waiting.pop()
        n_values += 1
        if depth > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        if n_values > MAX_VALUES:
            raise ValueError(f"it must not hold more than {MAX_VALUES:,} values, aliases unfolded")
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(node)
            continue
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            below = itertools.chain.from_iterable(node.value)
        else:
            below = iter(node.value)
        waiting += [(child, depth + 1) for child in below]


def _check_scalar(node: yaml.ScalarNode) -> None:
    if node.tag == _INT and len(node.value) > _MAX_NUMBER_LENGTH:
        raise ValueError(
            f"the number of {len(node.value):,} characters in line {_line(node)} is too long"
        )


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse a key that stands twice: YAML itself would let the last one win."""
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
            continue
        name = (key.tag, key.value)
        if name in lines:
            raise ValueError(
                f"key={shown(key.value)} must stand once, not in lines {lines[name]} and "
                f"{_line(key)}; take one of them away"
            )
        lines[name] = _line(key)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _words(error: yaml.MarkedYAMLError) -> str:
    """What PyYAML says, without the lines of the text that it would show."""
    words = ": ".join(part for part in (error.context, error.problem) if part)
    mark = error.problem_mark or error.context_mark
    return f"{words} (line {mark.line + 1}, column {mark.column + 1})" if mark else words
