"""Names of functions: how a stored action finds its code again, in this process or another.

A function's name is `module:qualname`. For the program that was started (`__main__`) the module is named as an
import would name it: by the file's stem, with its packages in front where the folder has an `__init__.py`.
`import_file` imports a file under that same name, so `python flows.py`, `treadle run flows.py:crawl` and
`import flows` agree.

Registries map names and aliases to definitions. The decorators fill `default_registry`; a program that embeds several
systems gives its own by `registry=`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, ClassVar, Final, Literal, Protocol

from treadle.authoring.bound import kind_of
from treadle.authoring.codec import Adapter
from treadle.authoring.conflicts import Collecting, OnConflict
from treadle.authoring.isolation import Isolation
from treadle.authoring.options import NOTHING, Chosen
from treadle.authoring.signatures import Parameter, Signature
from treadle.authoring.streams import does_yield, runs_on_loop
from treadle.core.plan import RetryPolicy
from treadle.errors import DefinitionError, StepNameError, UnregisteredStepError, UsageError

_MAIN: Final = ("__main__", "__mp_main__")
_KINDS: Final = {
    "step": "a step",
    "predicate": "a predicate",
    "workflow": "a workflow",
    "undo": "an undo",
    "prepare": "a prepare",
    "reconcile": "a reconcile",
}
Kind = Literal["step", "predicate", "workflow", "undo", "prepare", "reconcile"]


class Definition:
    """What a name stands for: a function, read lazily, and how to call it.

    `kind` says which decorator made it. `options` are the decorator's.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        kind: Kind = "step",
        name: str | None = None,
        aliases: Iterable[str] = (),
        options: Chosen = NOTHING,
        namespace: Mapping[str, Any] | None = None,
    ) -> None:
        _check_function(function, kind)
        self.function = function
        self.kind: Final = kind
        self.name: Final = durable_name(function, name)
        self.short: Final = _short(function, self.name)
        self.aliases: Final = tuple(_check_name(alias) for alias in aliases)
        self.options: Final = options
        # How its process is made, if it is to have one of its own.
        self.isolation: Isolation | None = None
        # What its undo calls; known wherever it is.
        self.helpers: tuple[Definition, ...] = ()
        self.is_async: Final = runs_on_loop(function)
        # Changes when the module is loaded again; read now, since a reload keeps the module's dict.
        self.loaded: Final[object] = getattr(function, "__globals__", {}).get("__spec__")
        self._namespace = namespace
        self._signature: Signature | None = None

    @property
    def signature(self) -> Signature:
        """The parameters, read from the function when they are first needed."""
        # Read before the look at the signature: another thread may be just done with both.
        namespace = self._namespace
        if self._signature is None:
            self._signature = Signature(
                self.function, f"{self.kind} {self.name!r}", namespace, piecewise=self.kind == "step"
            )
            self._namespace = None
        return self._signature

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters by name, each with its adapter."""
        return self.signature.parameters

    @property
    def result(self) -> Adapter:
        """The adapter of what the function returns."""
        return self.signature.result.adapter

    @property
    def yields(self) -> Adapter | None:
        """The adapter of what a generator yields; None for a function that returns."""
        return self.signature.yields

    @property
    def invoke(self) -> Callable[[dict[str, Any]], Any]:
        """Call the function with arguments by parameter name; gives the result, or a coroutine if it is async."""
        return self.signature.invoke

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"


# What a worker executes.
StepDefinition = Definition


class WorkflowDefinition(Definition):
    """A function that plans steps: the retry policy of those that have none of their own, and what a failure does."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        retry: RetryPolicy | None = None,
        on_failure: Literal["stop", "unwind", ""] = "",
        undo_limit: int = 0,
        singleton: str | None = None,
        on_conflict: OnConflict | None = None,
        triggers: Collecting | None = None,
        **named: Any,
    ) -> None:
        super().__init__(function, kind="workflow", **named)
        self.retry = retry
        # The key of which one run at a time goes on, as an expression; "" is all runs, None is no singleton.
        self.singleton: Final = singleton
        self.on_conflict: Final = on_conflict
        # How triggers are collected, if they are.
        self.triggers: Final = triggers
        self.on_failure: Final = on_failure
        self.undo_limit: Final = undo_limit


class Defined(Protocol):
    """What the decorators give."""

    @property
    def definition(self) -> Definition:
        """What its name stands for."""
        ...


class Registry:
    """Definitions by name and alias."""

    # Counts up whenever a name comes to stand for something else in any registry, so that look-ups can be kept.
    changes: ClassVar[int] = 0

    def __init__(self) -> None:
        self._known: dict[str, Definition] = {}

    def add(self, definition: Definition | Defined) -> None:
        """Add a definition, or what the decorators give, under its name and aliases.

        A reloaded module's function replaces its former self.

        Raises:
            StepNameError: another function has one of the names.
        """
        if not isinstance(definition, Definition):
            definition = definition.definition
        names = (definition.name, *definition.aliases)
        replaced: list[Definition] = []
        for name in names:
            known = self._known.get(name)
            if known is None or known is definition:
                continue
            if not _is_former(known, definition):
                raise StepNameError(
                    f"{name!r} already names {_KINDS[known.kind]} ({_location(known.function)}); "
                    f"{_location(definition.function)} needs another name: pass name="
                )
            replaced.append(known)
        for former in replaced:
            self.remove(former)
        self._known.update(dict.fromkeys(names, definition))
        Registry.changes += 1
        for helper in definition.helpers:
            self.add(helper)

    def remove(self, definition: Definition) -> None:
        """Forget a definition under all its names."""
        for name in (definition.name, *definition.aliases):
            if self._known.get(name) is definition:
                del self._known[name]
                Registry.changes += 1

    def known(self, name: str) -> Definition | None:
        """What a name or alias stands for, None for nothing."""
        return self._known.get(name)

    def definitions(self) -> dict[str, Definition]:
        """All definitions by name and alias."""
        return dict(self._known)

    def find(self, name: str) -> Definition | None:
        """The step or predicate of this name or alias, None if there is none."""
        known = self.known(name)
        return known if known is not None and known.kind != "workflow" else None

    def get(self, name: str) -> Definition:
        """The step or predicate of this name or alias.

        Raises:
            UnregisteredStepError: nothing has this name here.
        """
        known = self.find(name)
        if known is None:
            raise UnregisteredStepError(f"no step {name!r} is registered here; import the module that defines it")
        return known

    def workflow(self, name: str) -> WorkflowDefinition | None:
        """The workflow of this name or alias, None if there is none."""
        known = self.known(name)
        return known if isinstance(known, WorkflowDefinition) else None

    def names(self) -> list[str]:
        """All names and aliases of steps and predicates, sorted: what this process can execute."""
        return sorted(name for name, known in self.definitions().items() if known.kind != "workflow")

    def workflows(self) -> list[str]:
        """The names and aliases of all workflows, sorted."""
        return sorted(name for name, known in self.definitions().items() if known.kind == "workflow")


default_registry: Final = Registry()


# -- names ---------------------------------------------------------------------------------------------------


def durable_name(function: Callable[..., Any], given: str | None = None) -> str:
    """The name under which a function is stored: the given one, else `module:qualname`.

    Raises:
        StepNameError: the function is a lambda, or defined inside another, so that nothing finds it again.
    """
    if given is not None:
        return _check_name(given)
    qualname: str = getattr(function, "__qualname__", "")
    if "<lambda>" in qualname:
        raise StepNameError(f"a lambda ({_location(function)}) has no name that lasts; write a def, or pass name=")
    if "<locals>" in qualname:
        raise StepNameError(
            f"{qualname!r} ({_location(function)}) is defined inside a function, so no other process finds it; "
            "move it to the top of its module, or pass name= if every process defines it"
        )
    return _check_name(f"{_module_of(function)}:{qualname}")


def name_of_file(path: str | Path) -> str:
    """The module name of a Python file: its stem, with the packages it lies in."""
    return _place_of_file(Path(path))[0]


def import_file(path: str | Path) -> ModuleType:
    """Import a Python file under the name that its functions have everywhere (see the module's head).

    Its folder (of a package: the folder around it) is put on `sys.path`, as when the file is started.

    Raises:
        UsageError: there is no such file, or another module of that name is already imported.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise UsageError(f"there is no file {str(path)!r}")
    name, root = _place_of_file(file)
    known = sys.modules.get(name)
    if known is not None:
        origin = getattr(known, "__file__", None)
        if origin is None or Path(origin).resolve() != file:
            raise UsageError(f"{file.name} would be module {name!r}, which is {origin or 'built in'}; rename the file")
        return known
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if "." in name or file.stem == "__init__":
        return importlib.import_module(name)
    # By its path: a stem such as `01-hello` is a fine name, but `import` would look for it elsewhere first.
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _place_of_file(file: Path) -> tuple[str, Path]:
    """A file's module name, and the folder from which it is imported."""
    file = file.resolve()
    parts = [] if file.stem == "__init__" else [file.stem]
    folder = file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts) or file.stem, folder


def _module_of(function: Callable[..., Any]) -> str:
    module: str = function.__module__
    # runpy gives names such as "<run_path>".
    if module not in _MAIN and not module.startswith("<"):
        return module
    scope: dict[str, Any] = getattr(function, "__globals__", {})
    spec = scope.get("__spec__")
    if spec is not None and spec.name not in _MAIN:
        # `python -m package.module`
        return str(spec.name)
    file = scope.get("__file__")
    return name_of_file(file) if isinstance(file, str) else "__main__"


def _short(function: Callable[..., Any], name: str) -> str:
    """The part of a name that ids of steps are made from."""
    own: str = getattr(function, "__name__", "")
    return own if own and own != "<lambda>" else name.rsplit(":", 1)[-1]


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not name or len(name) > 500 or not name.isprintable() or name != name.strip():
        raise StepNameError(f"{name!r} is no name; use up to 500 printable characters, without blanks at the ends")
    return name


def _check_function(function: Any, kind: str) -> None:
    what = _KINDS[kind]
    if (name := kind_of(function).__name__) in ("staticmethod", "classmethod"):
        raise DefinitionError(f"put @{name} outside, above the decorator that makes {what}")
    if isinstance(function, type) or not (inspect.isfunction(function) or inspect.isbuiltin(function)):
        raise DefinitionError(f"{function!r} cannot be {what}; write a function")
    if kind != "step" and does_yield(function):
        raise DefinitionError(f"{function.__qualname__!r} yields; {what} returns one value, such as a list")
    if inspect.isfunction(function):
        first = next(iter(function.__code__.co_varnames[: function.__code__.co_argcount]), "")
        if first in ("self", "cls") and "." in function.__qualname__.replace("<locals>.", ""):
            raise DefinitionError(
                f"{function.__qualname__!r} is a method; {what} has no object to be called on: "
                "use a function or @staticmethod"
            )


# -- replacing -------------------------------------------------------------------------------------------------


def _is_former(known: Definition, new: Definition) -> bool:
    """Whether `known` is what `new` was before its module was loaded again.

    The same place in the source is the same function, unless it closes over something that may differ. Another line
    of the same file is it only after a reload (which gives the module another `__spec__`); else one file has two such
    functions.
    """
    one, two = known.function, new.function
    if one is two:
        return known.kind == new.kind
    if not (isinstance(one, FunctionType) and isinstance(two, FunctionType)) or known.kind != new.kind:
        return False
    if "__file__" not in one.__globals__ and "__file__" not in two.__globals__:
        # A notebook or prompt: each cell is another file, and defining again is how one works there.
        return one.__module__ == two.__module__ and one.__qualname__ == two.__qualname__
    if one.__code__.co_filename != two.__code__.co_filename or one.__qualname__ != two.__qualname__:
        return False
    if one.__globals__ is not two.__globals__ or known.loaded is not new.loaded:
        return True
    if "<locals>" in one.__qualname__ or "<lambda>" in one.__qualname__:
        same = (
            one.__code__ is two.__code__,
            one.__defaults__ == two.__defaults__,
            one.__kwdefaults__ == two.__kwdefaults__,
        )
        return all(same) and one.__closure__ is None and two.__closure__ is None
    return one.__code__.co_firstlineno == two.__code__.co_firstlineno


def _location(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(function)
