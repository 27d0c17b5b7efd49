"""The catalog of translations: find the sentences in the source, update the .po file, and compile it.

    python tools/catalog.py update     after a change of texts: new messages are empty, changed ones are fuzzy
    python tools/catalog.py compile    after translating: writes the .mo file that the package reads

A message is a string of at least two words in the source, an f-string with its places numbered, a heading of a table,
the help of a command, the explanation of a setting, or a text of a page (`_("...")` in the templates, `t("...")` in the
scripts of `luthier ui`).
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from babel.messages import mofile, pofile
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir

from luthier.core.language import PLACE

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "luthier"
PO = SOURCE / "locale" / "zh_CN" / "LC_MESSAGES" / "luthier.po"
UNSEEN = (
    "kernels/",
    "builtin/",
    "exports/llama_cpp/",
    "exports/onnx.py",
    "methods/layers/loading.py",
    "core/import_hook.py",
    "rendering/template_limits.py",
    "serving/vllm/guard/",
)
"""Files whose strings no user reads, or that hold templates and programs."""
CODE = re.compile(
    r"\{%|\{\{|\w\|\w|^\s*(import|from|def|SELECT)\b|\(\?|\\[dws.]|^--|^[\w./-]+=\S*$|<\||\{comment_|^bold \w+$",
    re.MULTILINE,
)
"""What no sentence has."""
HTML = re.compile(r'<(svg|path|g|circle|text|div|span)\b|</|\w="|\.\*cjk|sans-serif|^DejaVu|^@media|^\.chart')
SCRIPT = re.compile(r'\bt\("([^"\\]+)"')
"""A text of the page of `luthier ui`: t("...") in its modules."""
MARKUP = re.compile(r"\[/?[a-z ]*\]")
HEADINGS = {"table", "translated", "filled", "worded", "measured", "_section", "_count", "label"}
"""Functions whose arguments may be one word: headings, labels, what is counted."""
WORDS = {
    "better worse within_noise the_best right wrong": "significance",
    "trained share file memory training tokens/s setting measured": "cli/terminal/show_result.py",
    "running finished stopped killed damaged": "runs/state.py",
    "done Examples:": "cli/terminal/help.py",
    "begun failed": "pipeline/track.py",
    "program weights trained_weights gradients optimizer activations logits kernels peak": "planning",
}
"""Words that are shown and stand alone in a variable, not in a call."""
TYPER = (
    "No such command {0}.",
    "No such command {0}. Did you mean {1}?",
    "No such option: {0}",
    "No such option: {0} Did you mean {1}?",
    "No such option: {0} (Possible options: {1})",
    "Missing argument {0}.",
    "Missing option {0}.",
    "Missing command.",
    "Invalid value for {0}: {1}",
    "Invalid value: {0}",
    "Value {0} is not a valid {1}.",
    "Got unexpected extra argument ({0})",
    "Got unexpected extra arguments ({0})",
    "Got unexpected extra argument(s) ({0})",
    "Option {0} requires an argument.",
    "Option {0} does not take a value.",
    "{0} is not in the range {1}.",
    "Install completion for the current shell.",
    "Show completion for the current shell, to copy it or customize the installation.",
)
"""What typer says of a command line, in the versions that are allowed."""


def texts(tree: ast.Module) -> Iterator[str]:
    """The messages of one module, in order."""
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    headings = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in HEADINGS
        for argument in node.args
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = template(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | inside:
            text = node.value
        else:
            continue
        if id(node) in headings and any(map(str.isalpha, text)):
            yield text.removeprefix(">")
        elif is_sentence(text):
            yield text


def template(node: ast.JoinedStr) -> str:
    """An f-string with its places numbered: `"{0}: {1} rows"`."""
    parts, count = [], 0
    for part in node.values:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value).replace("{", "{{").replace("}", "}}"))
        else:
            parts.append(f"{{{count}}}")
            count += 1
    return "".join(parts)


def is_sentence(text: str) -> bool:
    """At least two words, and nothing that only code has."""
    fixed = MARKUP.sub(" ", PLACE.sub(" ", text))
    words = re.findall(r"[A-Za-z]{2,}", fixed)
    return len(words) > 1 and " " in text.strip() and not CODE.search(fixed) and not HTML.search(fixed)


def explained() -> Iterator[tuple[str, str]]:
    """(message, where) of the help of commands and of what `luthier explain` says, as it is shown."""
    from luthier.cli.main import _main as main_callback
    from luthier.cli.main import app
    from luthier.cli.terminal.explain import BLOCKS, KINDS
    from luthier.cli.terminal.help import paragraphs
    from luthier.recipe.config import RunConfig

    for command in app.registered_commands:
        assert command.callback is not None
        for paragraph in paragraphs(inspect.getdoc(command.callback) or "")[0]:
            yield paragraph, command.callback.__module__
    yield paragraphs(inspect.getdoc(main_callback) or "")[0][0], "cli/main.py"
    for text in TYPER:
        yield text, "typer"
    blocks: list[tuple[Any, str]] = [(RunConfig, "recipe"), *((made, key) for key, made in BLOCKS.items())]
    for kind, family in KINDS.items():
        for name in family.names():
            found = family.get(name)
            if found.__module__.startswith("luthier."):
                blocks.append((found, f"{kind} {name}"))
                for paragraph in (inspect.getdoc(sys.modules[found.__module__]) or "").split("\n\n"):
                    if not paragraph.startswith((" ", "*", "-")):
                        yield " ".join(paragraph.split()), f"{kind} {name}"
    for block, where in blocks:
        yield (inspect.getdoc(block) or "").split("\n")[0], where
        for key, field in block.model_fields.items():
            yield " ".join((field.description or "").split()), f"{where}.{key}"


def words() -> Iterator[tuple[str, str]]:
    """(word, where) of what is shown without a sentence around it: verdicts, states, names of metrics."""
    from luthier.evaluation.metrics.base import metrics_of
    from luthier.methods.base import Branch

    for together, where in WORDS.items():
        for word in together.split():
            yield word.replace("_", " "), where
    for name in get_args(Branch):
        yield name, "methods/base.py"
    for name in metrics_of():
        yield name.replace("_", " "), "evaluation/metrics"


def extract() -> Catalog:
    """Every message of the source, with the files that it comes from."""
    catalog = Catalog(project="luthier", charset="utf-8", fuzzy=False)
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith(UNSEEN):
            for text in texts(ast.parse(path.read_text(encoding="utf-8"))):
                found.setdefault(text, []).append(name)
    for text, where in explained():
        if is_sentence(text):
            found.setdefault(text, []).append(where)
    for text, where in words():
        found.setdefault(text, []).append(where)
    pages = extract_from_dir(str(SOURCE), [("**.jinja", "jinja2")], {}, keywords={"_": None})
    for name, _, message, _, _ in pages:
        found.setdefault(str(message), []).append(name)
    for path in sorted((SOURCE / "ui" / "page").glob("*.js")):
        for text in SCRIPT.findall(path.read_text(encoding="utf-8")):
            found.setdefault(text, []).append(path.relative_to(SOURCE).as_posix())
    for text, names in found.items():
        catalog.add(text, locations=[(name, None) for name in dict.fromkeys(names)])  # type: ignore[misc]
    return catalog


def read() -> Catalog:
    """The catalog of translations as it lies there."""
    if not PO.is_file():
        return Catalog(locale="zh_CN", project="luthier", charset="utf-8", fuzzy=False)
    with PO.open("rb") as file:
        return pofile.read_po(file, locale="zh_CN")


def update() -> None:
    """Bring the messages of the source into the .po file; translations of texts that are gone are deleted."""
    catalog = read()
    catalog.update(extract(), no_fuzzy_matching=False, update_creation_date=False)
    PO.parent.mkdir(parents=True, exist_ok=True)
    with PO.open("wb") as file:
        pofile.write_po(file, catalog, width=120, ignore_obsolete=True, sort_output=True)


def compiled() -> bytes:
    """The .mo file of the .po file."""
    from io import BytesIO

    buffer = BytesIO()
    mofile.write_mo(buffer, read())
    return buffer.getvalue()


def main(command: str) -> int:
    if command == "update":
        update()
    elif command == "compile":
        PO.with_suffix(".mo").write_bytes(compiled())
    else:
        print(__doc__)
        return 2
    empty = [message for message in read() if message.id and not message.string]
    fuzzy = [message for message in read() if message.id and message.fuzzy]
    print(f"{PO.relative_to(ROOT)}: {len(list(read())) - 1} messages, {len(empty)} empty, {len(fuzzy)} fuzzy")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2] or ["help"]))
