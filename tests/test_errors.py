"""The tree of errors, as its module tells it."""

from __future__ import annotations

import ast
from pathlib import Path

import mer_batch
from mer_batch import errors


def test_the_tree_names_every_error_of_the_package() -> None:
    bases: dict[str, set[str]] = {}
    for path in Path(mer_batch.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {base.id for base in node.bases if isinstance(base, ast.Name)}
    ours = {"MerBatchError"}
    while more := {name for name, above in bases.items() if above & ours} - ours:
        ours |= more
    assert len(ours) > 12
    tree = errors.__doc__
    assert tree is not None
    assert {name for name in ours if f"{name} " not in tree.replace("\n", " ")} == set()
