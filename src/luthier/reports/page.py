"""Self-contained HTML pages from the templates in this folder."""

from base64 import b64encode
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from luthier.core.shell import public


def render(name: str, filters: dict[str, Any], **values: Any) -> str:
    """Fill in NAME.html.jinja. All texts are escaped; the page loads nothing and runs no script."""
    loader = PackageLoader("luthier.reports", ".")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"public": public, "base64": lambda image: b64encode(image).decode(), **filters}
    return pages.get_template(f"{name}.html.jinja").render(values)
