"""Secret values: what is never shown, and stored only where a payload codec hides it; and names of secrets.

A `Secret` holds a value, or the name under which whoever needs it looks it up. A name is stored as it is. A value is
stored as a tag that only an encrypting codec gets to see: without one, its encoding is refused with its place. Once a
secret was revealed, its text is masked in the failures and lines of steps that this process executes.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast, get_args, get_origin, get_type_hints

from treadle.authoring.adapters import TAG, tagged
from treadle.authoring.codec import Lowering, Refused, register
from treadle.authoring.conversion import converter
from treadle.core.blocks import content_of, slots_of
from treadle.core.graph import constants_of
from treadle.core.plan import Block, Step
from treadle.errors import DefinitionError, EncodeError, SecretError

if TYPE_CHECKING:
    from treadle.authoring.registry import Registry

T = TypeVar("T")
MASK: Final = "****"
# Shorter texts are parts of many others: masking them would hide more than it protects.
_LEAST: Final = 4
_MOST: Final = 1000
_ADVICE: Final = (
    "a secret is stored only through a payload codec that encrypts (connect's codec=); pass its name instead,"
    " Secret.named('env:...'), or look it up in the step that needs it"
)
# How the text of a value begins that holds a secret. No text of a user's contains it unescaped.
_MARK: Final = f'{{"{TAG}":["secret",'

_storing: ContextVar[bool] = ContextVar("_storing", default=False)
_revealed: dict[str, None] = {}
_lock = threading.Lock()


class Secret(Generic[T]):
    """A value that is not shown: `Secret("s3cr3t")`, or the name of one, `Secret.named("env:API_TOKEN")`.

    A parameter or a result is declared as `Secret[str]`. `reveal()` gives the value.
    """

    __slots__ = ("_name", "_value")

    def __init__(self, value: T) -> None:
        self._value = value
        self._name = ""

    @classmethod
    def named(cls, name: str) -> Secret[Any]:
        """A secret by its name, `scheme:rest`, looked up whenever it is revealed.

        `env:VARIABLE` and `file:PATH` are there; others are entry points of the group `treadle.secrets`.

        Raises:
            SecretError: the name has no scheme.
        """
        if not name.partition(":")[0] or ":" not in name:
            raise SecretError(f"a secret is named scheme:rest, such as env:API_TOKEN, not {name!r}")
        made = cls(cast("T", None))
        object.__setattr__(made, "_name", name)
        return made

    @property
    def name(self) -> str:
        """The name that it is looked up by; empty if it holds its value."""
        return self._name

    def reveal(self) -> T:
        """The value. One with a name is looked up now, which may block.

        Raises:
            SecretError: nothing is there under its name.
            PluginError: nobody is installed who knows the scheme.
        """
        value = cast("T", looked_up(self._name)) if self._name else self._value
        _remember(value)
        return value

    def __repr__(self) -> str:
        return f"Secret.named({self._name!r})" if self._name else f"Secret({MASK})"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        known: Any = other
        if not isinstance(other, Secret):
            return NotImplemented
        return self._name == known._name and bool(self._value == known._value)

    def __hash__(self) -> int:
        return hash((self._name, self._value))

    def __reduce__(self) -> Any:
        raise TypeError("a Secret cannot be pickled; pass its name, or reveal it")

    @classmethod
    def __treadle_wrap__(cls, args: tuple[Any, ...], value: object) -> Secret[Any]:
        """The secret of a lifted value, of the declared type; a plain value that people wrote becomes one."""
        known: Any = value
        secret: Secret[Any] = known if isinstance(value, Secret) else Secret(known)
        return secret._converted(args[0]) if args and not secret.name else secret

    def _converted(self, declared: object) -> Secret[Any]:
        return Secret(converter(declared)(self._value))

    def _lowered(self, lower: Lowering, depth: int) -> Any:
        return lower(self._value, depth)


def looked_up(name: str) -> object:
    """What is there under a name.

    Raises:
        SecretError: nothing is.
        PluginError: nobody is installed who knows the scheme.
    """
    scheme, _, rest = name.partition(":")
    try:
        if scheme == "env":
            return os.environ[rest]
        if scheme == "file":
            return Path(rest).read_text(encoding="utf-8").rstrip("\n")
        from treadle.authoring.plugins import plugin

        return plugin("secrets", scheme)(rest)
    except (KeyError, OSError, UnicodeDecodeError) as error:
        raise SecretError(f"there is no secret {name!r} here ({type(error).__name__})") from None


# -- storing -----------------------------------------------------------------------------------------------------------


def _lowering(lower: Lowering) -> Lowering:
    def lower_secret(value: Secret[Any], depth: int) -> Any:
        if value.name:
            return tagged("secret_name", value.name)
        if not _storing.get():
            raise Refused(_ADVICE)
        # Not revealed: what is only stored need not be masked.
        return tagged("secret", value._lowered(lower, depth + 2))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # its own module

    return lower_secret


def with_secrets(encode: Callable[[Any], str], value: object) -> str:
    """The text of a value that may hold secrets, for what hides them, or refuses them later by `holds_secret`."""
    token = _storing.set(True)
    try:
        return encode(value)
    finally:
        _storing.reset(token)


def holds_secret(text: str) -> bool:
    """Whether a value's text holds a secret's value."""
    return _MARK in text


def refuse_secret(text: str, where: str) -> None:
    """Raise if a text that would be stored in clear holds a secret's value.

    Raises:
        EncodeError: it does; the message says where.
    """
    if holds_secret(text):
        raise EncodeError(f"{where}: {_ADVICE}")


def refuse_secrets(blocks: Sequence[Block], constants: Sequence[str]) -> None:
    """Raise for secrets among the constants of a plan, or of steps that are added, which would be stored in clear.

    Raises:
        DefinitionError: there are some; it names the arguments that they are.
    """
    found = {index for index, text in enumerate(constants) if holds_secret(text)}
    if found:
        places = [place for block in blocks for place in _places(block, found)] or ["the plan's output"]
        raise DefinitionError(f"{', '.join(places)}: {_ADVICE}")


def _places(block: Block, found: set[int]) -> Iterator[str]:
    if isinstance(block, Step):
        for name, slot in block.slots.items():
            if found.intersection(constants_of(slot)):
                yield f"argument {name!r} of step {block.id!r}"
    elif any(found.intersection(constants_of(slot)) for slot in slots_of(block)):
        yield f"block {block.id!r}"
    for inner, _output in content_of(block):
        for one in inner:
            yield from _places(one, found)


def refuse_secret_results(names: Iterable[str], registry: Registry) -> None:
    """Raise for steps whose result is declared to hold a secret, which would be stored in clear.

    Raises:
        DefinitionError: it names them.
    """
    wrong: list[str] = []
    for name in names:
        definition = registry.find(name)
        if definition is not None and declares_secret(definition.result.declared):
            wrong.append(name)
    if wrong:
        raise DefinitionError(f"the results of {', '.join(map(repr, wrong))} hold a secret: {_ADVICE}")


def declares_secret(declared: object) -> bool:
    """Whether a secret is in a type, or in a field of it."""
    seen: list[object] = []

    def look(one: object) -> bool:
        kind = get_origin(one) or one
        if kind is Secret:
            return True
        if one in seen:
            return False
        seen.append(one)
        if any(map(look, get_args(one))):
            return True
        if not isinstance(kind, type) or not getattr(kind, "__annotations__", None):
            return False
        try:
            return any(map(look, get_type_hints(kind).values()))
        except Exception:  # noqa: BLE001 - names that cannot be resolved: what is stored is looked at all the same
            return False

    return look(declared)


# -- masking -----------------------------------------------------------------------------------------------------------


def _remember(value: object) -> None:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if isinstance(text, str) and len(text) >= _LEAST:
        with _lock:
            _revealed.pop(text, None)
            _revealed[text] = None
            if len(_revealed) > _MOST:
                del _revealed[next(iter(_revealed))]


def masked(text: str) -> str:
    """A text without the secrets that this process has revealed."""
    with _lock:
        known = [secret for secret in _revealed if secret in text]
    # The longest first: one secret may begin like another.
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


class _Masking(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        clean = masked(said)
        if clean is not said:
            record.msg, record.args = clean, ()
        return True


# What steps say of themselves. A filter of a logger sees its own records only, so these loggers are named.
for _name in ("treadle.step", "treadle.output"):
    logging.getLogger(_name).addFilter(_Masking())

register(Secret, _lowering)
