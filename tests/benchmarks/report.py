"""BENCHMARKS.md: one chapter for each benchmark, each written by its own run."""

from __future__ import annotations

import re
from pathlib import Path


def replace_chapter(path: Path, text: str) -> None:
    """Put a chapter in the place of the one with the same heading, or at the end.

    Parameters
    ----------
    path : Path
    text : str
        Begins with its heading, ``# ...``; other chapters stay as they are.
    """
    present = path.read_text(encoding="utf-8") if path.exists() else ""
    chapters = [chapter for chapter in re.split(r"^(?=# )", present, flags=re.MULTILINE) if chapter]
    headings = [chapter.partition("\n")[0] for chapter in chapters]
    heading = text.partition("\n")[0]
    if heading in headings:
        chapters[headings.index(heading)] = text
    else:
        chapters.append(text)
    whole = "\n\n".join(chapter.strip() for chapter in chapters) + "\n"
    path.write_text(whole, encoding="utf-8")
