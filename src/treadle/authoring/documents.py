"""Documents of plans: written, read, and made runnable again.

What is read is data until `planned_of` looks its names up in a registry: loading imports nothing and calls nothing.
"""

# The JSON border: pyright calls what `isinstance(value, list)` finds inside `Any` unknown, which here is the truth.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from treadle.authoring import codec
from treadle.authoring.adapters import TAG, tagged
from treadle.authoring.builder import Planned, raise_all
from treadle.authoring.registry import Registry, default_registry
from treadle.authoring.secrets import refuse_secret
from treadle.authoring.yaml_text import read_yaml, write_yaml
from treadle.core.analysis import check_plan
from treadle.core.canonical import canonical
from treadle.core.documents import Document, Provenance, document_from, hash_of, seal, tree_of, unreadable
from treadle.core.graph import constants_of
from treadle.core.json_text import TextError, read_json
from treadle.core.plan import Plan, Predicate
from treadle.errors import ChecksumError, DocumentError, EncodeError, UnregisteredStepError

Form = Literal["json", "yaml"]
# A byte order mark may stand in front too; then the reader of JSON says what is wrong with it.
_BLANK: Final = "\ufeff \t\r\n"
# The members of a plan's parts that name a function: what a step does, and what belongs to its undo.
_NAMING: Final = ("action", "prepare", "reconcile")
FORMS: Final[tuple[Form, ...]] = ("json", "yaml")


# -- texts -------------------------------------------------------------------------------------------------------------


def dump_document(document: Document, form: Form = "json") -> str:
    """The text of a document; equal documents have equal texts. `yaml` needs no extra: only reading it does."""
    tree = tree_of(document)
    if form == "yaml":
        return write_yaml(tree)
    return msgspec.json.format(canonical(tree), indent=2).decode() + "\n"


def read_document(data: bytes, name: str) -> Document:
    """The document of a file's content, JSON or YAML. `name` is what errors call it.

    Raises:
        DocumentError: it is none, or was changed; every mistake with its line and column.
    """
    try:
        text = data.decode()
        reading = read_json(text) if text.lstrip(_BLANK).startswith(("{", "[")) else read_yaml(text)
    except UnicodeDecodeError as error:
        raise DocumentError(f"{name}: byte {error.start} is no UTF-8; this is no text", path=name) from None
    except TextError as error:
        raise unreadable(error, name) from None
    return document_from(reading, name)


# -- values ------------------------------------------------------------------------------------------------------------


def exact(tree: Any) -> Any:
    """A value's tree as documents hold it: floats that are whole numbers tagged, since their text has no point."""
    if isinstance(tree, float) and tree.is_integer():
        return tagged("float", repr(tree))
    if isinstance(tree, list):
        return [exact(item) for item in tree]
    if isinstance(tree, dict):
        return {name: exact(item) for name, item in tree.items()}
    return tree


def inexact(tree: Any) -> Any:
    """A value's tree as the codec writes it, from that of a document."""
    if isinstance(tree, list):
        return [inexact(item) for item in tree]
    if isinstance(tree, dict):
        if tree.keys() == {TAG} and isinstance(tree[TAG], list) and tree[TAG][:1] == ["float"]:
            value = codec.convert(tree, float)
            return value if value - value == 0 else tree
        return {name: inexact(item) for name, item in tree.items()}
    return tree


def value_of(text: str | bytes) -> Any:
    """The value of a stored JSON text as documents hold it."""
    return exact(codec.plain(text))


# -- plans -------------------------------------------------------------------------------------------------------------


def plan_document(planned: Planned, provenance: Provenance) -> Document:
    """The sealed document of a plan.

    Raises:
        EncodeError: a constant holds what has no canonical form.
    """
    return document_of(planned.plan, planned.constants, provenance)


def document_of(plan: Plan, constants: Iterable[str], provenance: Provenance, **more: Any) -> Document:
    """The sealed document of a plan and its constants (JSON texts); `more` are further members."""
    members = {name: getattr(plan, name) for name in Plan.__struct_fields__}
    for index, text in enumerate(constants := list(constants)):
        refuse_secret(text, f"constant {index} of the document")
    values = [value_of(text) for text in constants]
    return seal(Document(**members, constants=values, provenance=provenance, **more))


def planned_of(document: Document, *, registry: Registry | None = None, reset: bool = False) -> Planned:
    """The plan of a document, ready to be started.

    A receipt tells of what was done already: its plan is taken only with `reset`, and nothing else of it.

    Raises:
        DocumentError: it is a receipt, or a constant cannot be read.
        ChecksumError: its content is not what its hash says.
        DefinitionError: the plan is wrong; all mistakes at once.
        UnregisteredStepError: it names functions that the registry does not know; all of them.
    """
    if document.run is not None and not reset:
        raise DocumentError(
            f"this is the receipt of run {document.run.id!r} ({document.run.status}); a receipt runs again only "
            "when it is reset on purpose (reset=True, or --reset)"
        )
    if hash_of(tree_of(document)) != document.hash:
        raise ChecksumError("the document's content is not what its hash says; it is not run")
    plan = document.plan()
    constants = [_text(value, index) for index, value in enumerate(document.constants)]
    wrong = [index for part in _structs(plan) for index in constants_of(part) if not 0 <= index < len(constants)]
    if wrong:
        raise DocumentError(
            f"the plan uses constant {wrong[0]}, and the document has {len(constants)}; plan the workflow anew"
        )
    raise_all(check_plan(plan, lambda address: f"step {address!r}", ids=True), f"the plan of {plan.workflow!r}")
    known = registry if registry is not None else default_registry
    # A step may call a workflow as well as a function.
    unknown = sorted(name for name in action_names(plan) if not (known.find(name) or known.workflow(name)))
    if unknown:
        raise UnregisteredStepError(
            f"the plan of {plan.workflow!r} names what is not registered here: {', '.join(unknown)}; "
            "import the modules that define it"
        )
    return Planned(plan, constants, codec.adapter(Any))


def _text(value: Any, index: int) -> str:
    try:
        text = msgspec.json.encode(inexact(value)).decode()
        codec.decode(text)
        return text
    except (EncodeError, ValueError) as error:
        raise DocumentError(f"constant {index} cannot be read: {error}") from None


def _structs(part: Any) -> Iterator[msgspec.Struct]:
    """All structs of a plan, whatever its blocks are."""
    if isinstance(part, msgspec.Struct):
        yield part
        for name in part.__struct_fields__:
            yield from _structs(getattr(part, name))
    elif isinstance(part, (list, tuple)):
        for item in part:
            yield from _structs(item)
    elif isinstance(part, dict):
        for item in part.values():
            yield from _structs(item)


def action_names(plan: Plan) -> list[str]:
    """The names of all functions that a plan calls, each once, in plan order."""
    found: dict[str, None] = {}
    for part in _structs(plan):
        members = ("name",) if isinstance(part, Predicate) else _NAMING
        found.update(dict.fromkeys(name for member in members if (name := getattr(part, member, ""))))
    return list(found)


def code_of(names: Iterable[str], registry: Registry) -> Mapping[str, str]:
    """Hashes of the source texts of those functions that the registry knows, by name."""
    found: dict[str, str] = {}
    for name in names:
        definition = registry.find(name)
        if definition is None:
            continue
        try:
            source = inspect.getsource(definition.function)
        except (OSError, TypeError):
            continue
        found[name] = "sha256:" + hashlib.sha256(source.encode()).hexdigest()
    return found
