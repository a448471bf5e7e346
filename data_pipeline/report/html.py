"""What all report pages share: templates that escape, a style sheet, a script, and a policy that lets nothing else run.

A page is one file that needs nothing else: no network, no fonts, and no script to be read. Its content policy lets the
browser run the script in it, known by its hash, and nothing else: a name that were not escaped could still do nothing.
"""

import base64
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

SHARED = "data_pipeline.report"
SCRIPT, STYLE = "page.js", "base.css"


def open_templates(package: str) -> "jinja2.Environment":
    """The templates of `package` and, behind them, the shared ones. A name that a template misspells is an error."""
    import jinja2  # a build of a corpus without a page need not import it

    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader(SHARED)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def assets(environment: "jinja2.Environment", own_style: str) -> Mapping[str, Any]:
    """`script`, `style` and `script_hash` for the head of a page. Not user text: files of this program."""
    from markupsafe import Markup

    def source(name: str) -> str:
        return environment.loader.get_source(environment, name)[0]

    style = source(STYLE) + source(own_style)
    script = source(SCRIPT)
    return {"script": Markup(script), "style": Markup(style), "script_hash": content_hash(script)}


def content_hash(script: str) -> str:
    """The name of a script in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
