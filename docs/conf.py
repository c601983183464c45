"""The documentation site, built by `make docs`: pages in Markdown, and a reference made of docstrings."""

import importlib
import re
import typing

# Makes jaxtyping's names short, as it does for the documentation of its sister libraries: before the first import.
typing.GENERATING_DOCUMENTATION = "ntkprefix"

import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402
from sphinx.domains.python import PyObject  # noqa: E402
from sphinx.pycode import ModuleAnalyzer  # noqa: E402
from sphinx.util import inspect  # noqa: E402

import ntkprefix  # noqa: E402
import theory  # noqa: E402

project = html_title = "ntkprefix"
release = ntkprefix.__version__
copyright = "the ntkprefix developers"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
highlight_language = "none"
maximum_signature_line_length = 100
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False

# `name` in a docstring is code, and a link where the reference has that name.
default_role = "py:obj"
# Of types, ours have to be in the reference; others have no inventory here, because a build needs no network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:class", r"(collections|flax|jax|jaxlib|numpy|np|optax|pathlib|rich)\..*"),
    ("py:class", "(Array|Bool|Float|Int|Int32|Key|PRNGKeyArray|PyTree|UInt8|UInt32|ndarray)"),
]

# Packages whose classes and constants a docstring anywhere may mention.
_PUBLIC = ("", ".models", ".adapters", ".train", ".compress", ".prompts", ".images", ".texts")
_NAMES = {}
_MARKDOWN = re.compile(
    r"""(?P<doctest> ^\ *>>>.*?(?=^\s*$|\Z) )
      | (?P<literal> ``.+?`` )
      | (?P<code> `[^`]+` )
      | ^(?P<indent>\ *)\$\$(?P<block>.+?)\$\$\ *$
      | \$(?P<inline>[^$\n]+)\$
      | (?P<bar> \| )""",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
_FIELD = type(typing.NamedTuple("_", [("field", int)]).field)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")


def setup(app):
    """Docstrings are seen before napoleon sees them, at priority 500."""
    for module in (*(importlib.import_module(f"ntkprefix{place}") for place in _PUBLIC), theory):
        for name, value in vars(module).items():
            if name in getattr(module, "__all__", ()):
                _NAMES.setdefault(name, f"{module.__name__}.{name}")
            if hasattr(value, "_field_defaults"):
                # A named tuple's constructor has annotations as text, which cannot be evaluated where it is.
                value.__new__.__annotations__.update(typing.get_type_hints(value))
    # One signature of a function, its own: overloads are for type checkers.
    ModuleAnalyzer.for_module("ntkprefix.attention").analyze()
    ModuleAnalyzer.for_module("ntkprefix.attention").overloads.clear()
    # What napoleon calls variables are attributes.
    next(field for field in PyObject.doc_field_types if field.name == "variable").label = "Attributes"
    app.connect("autodoc-process-docstring", _from_markdown, priority=400)
    app.connect("autodoc-process-signature", _plain)
    app.connect("autodoc-skip-member", _is_told_in_the_class)


def _is_told_in_the_class(_app, _what, _name, value, _skip, _options):
    """Fields: of a tuple, an "alias for field number 0"; with a type as default, an alias of that."""
    return True if isinstance(value, _FIELD) or value is jnp.float32 else None


def _plain(_app, _what, _name, value, _options, signature, returns):
    """Signatures as the source has them: that of Flax's modules, none of protocols, and defaults by their names."""
    if getattr(value, "_is_protocol", False):
        return "", None
    if isinstance(value, type) and issubclass(value, nnx.Module):
        own = inspect.signature(value.__init__, bound_method=True)
        signature = inspect.stringify_signature(own, show_return_annotation=False, unqualified_typehints=True)
    for shown, name in ((r"<function (\w+).*?>", r"\1"), (r"<class '([\w.]+)'>", r"\1"), ("<factory>", "...")):
        signature = signature and re.sub(shown, name, signature)
    return signature, returns


def _from_markdown(_app, what, _name, _value, _options, lines):
    """Docstrings are written in Markdown: code, maths, and bars that mean nothing."""
    text = _MARKDOWN.sub(_restructured, "\n".join(lines))
    # napoleon takes what precedes a colon in the first line of a property, or of what is returned, for its type: an
    # empty comment is put before it.
    text = re.sub(r"^( *)Returns:\n( *)", r"\1Returns:\n\2..\n\n\2", text, flags=re.MULTILINE)
    lines[:] = ("..\n\n" * (what in ("attribute", "property")) + text).split("\n")


def _restructured(found):
    if found["code"]:
        code = found["code"].strip("`")
        if not re.fullmatch(r"[\w.]+", code):
            return f"``{code}``"
        # Classes and constants have names of their own; a word in lower case may be an argument.
        return f"`~{_NAMES[code]}`" if code in _NAMES and code != code.lower() else f"`{code}`"
    if found["block"]:
        return f"{found['indent']}.. math:: {_tex(' '.join(found['block'].split()))}\n"
    if found["inline"]:
        return f":math:`{_tex(found['inline'])}`"
    return r"\|" if found["bar"] else found[0]


def _tex(text):
    r"""Words are names (\mathit), not products of letters."""
    return _WORD.sub(r"\\mathit{\g<0>}", text)
