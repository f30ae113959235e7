"""HTML pages that load nothing from elsewhere, from the templates in this folder."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from launch.files import write_text_whole


def write_page(output: Path, template: str, context: dict[str, Any]) -> None:
    """Write a page, whole or not at all; every text of ``context`` is escaped, since many come from strangers."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read_template),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template(template).render(context)
    output.parent.mkdir(parents=True, exist_ok=True)
    # A tweet cut within an emoji leaves half a surrogate pair, which UTF-8 cannot hold.
    write_text_whole(output, page.lstrip().encode("utf-8", "replace").decode("utf-8"))


def hash_of_script(script: str) -> str:
    """What a page's policy names a script by that may run in it: its SHA-256 in base64."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _read_template(name: str) -> str:
    return resources.files("launch").joinpath(name).read_text(encoding="utf-8")
