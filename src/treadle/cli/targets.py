"""Targets (`file.py:workflow`, `module:workflow`) to workflows, and --input texts to their arguments."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import msgspec

from treadle.errors import DecodeError, DefinitionError, SlotError, TreadleError, UsageError

if TYPE_CHECKING:
    from treadle.authoring.builder import Planned
    from treadle.authoring.decorators import WorkflowFunction
    from treadle.authoring.packages import Package
    from treadle.authoring.signatures import Parameter

Workflow = Any  # a WorkflowFunction, or a Planned that the module made itself


class Text(str):
    """The value of `k=v`: JSON or plain text, as the parameter wants it."""

    __slots__ = ()


class Inputs(msgspec.Struct):
    """The arguments of a run as they were given."""

    args: list[Any] = []
    kwargs: dict[str, Any] = {}

    @property
    def given(self) -> bool:
        """Whether there are any."""
        return bool(self.args or self.kwargs)


# -- targets -----------------------------------------------------------------------------------------------------


def split_target(text: str) -> tuple[str, str]:
    """The module or file of a target, and the workflow's name ("" if it is left out)."""
    module, separator, name = text.rpartition(":")
    if separator and module and all(part.isidentifier() for part in name.split(".")):
        return module, name
    return text.removesuffix(":"), ""


def load_module(text: str) -> ModuleType:
    """Import a module by its name, or a file by its path.

    Raises:
        UsageError: there is no such module or file.
        DefinitionError: its own code raised; the error names the place.
    """
    from treadle.authoring.registry import import_file

    try:
        if text.endswith(".py") or os.sep in text or "/" in text:
            return import_file(text)
        here = str(Path.cwd())
        if here not in sys.path:
            # As `python -m` does: modules of the present folder are found.
            sys.path.insert(0, here)
        return importlib.import_module(text)
    except TreadleError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (text == error.name or text.startswith(error.name + ".")):
            raise UsageError(f"there is no module {text!r} here; give a module, or a file such as flows.py") from None
        raise _broken(f"importing {text!r}", error) from error
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise _broken(f"importing {text!r}", error) from error


def _broken(what: str, error: BaseException) -> DefinitionError:
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parents[1])
    theirs = [frame for frame in frames if not frame.filename.startswith((ours, "<frozen"))]
    place = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({error.filename}:{error.lineno})"
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return DefinitionError(f"{what} failed: {type(error).__name__}: {said}{place}")


def load_workflow(target: str) -> Workflow:
    """The workflow of a target; without a name the only one that its module holds.

    Raises:
        UsageError: there is no such module, or the name is missing and several would fit.
        DefinitionError: the module holds no such workflow.
    """
    if (package := _installed_package(target)) is not None:
        from treadle.authoring.packages import named_workflow

        return named_workflow(target, package.registry, [package])
    where, name = split_target(target)
    module = load_module(where)
    known = workflows_of(module)
    if not name:
        if len(known) == 1:
            return next(iter(known.values()))
        if not known:
            raise DefinitionError(f"{where} holds no workflow; decorate a function with @workflow")
        raise UsageError(f"{where} holds several workflows; name one: {', '.join(f'{where}:{n}' for n in known)}")
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if _is_workflow(found):
        return found
    there = f"; there are: {', '.join(known)}" if known else ""
    what = "is no workflow" if found is not None else "is not there"
    raise DefinitionError(f"{name!r} {what} in {where}{there}")


def workflows_of(module: ModuleType) -> dict[str, Workflow]:
    """The workflows that a module defines, by their names in it; if there are none, those that it imports."""
    found = {name: value for name, value in vars(module).items() if _is_workflow(value)}
    own = {name: value for name, value in found.items() if _home(value) in (module.__name__, "")}
    return own or found


def _home(workflow: Workflow) -> str:
    definition = getattr(workflow, "definition", None)
    return str(getattr(getattr(definition, "function", None), "__module__", "")) if definition is not None else ""


def packages_in(module: ModuleType) -> list[Package]:
    """The packages that a module holds or imports."""
    from treadle.authoring.packages import Package

    return [value for value in vars(module).values() if isinstance(value, Package)]


def packages_of_target(target: str) -> list[Package]:
    """The packages that a loaded target brings: its own, or those of its module."""
    if (package := _installed_package(target)) is not None:
        return [package]
    return packages_in(load_module(split_target(target)[0]))


def _installed_package(target: str) -> Package | None:
    """An installed package of this name, or of the name in front of an entrypoint's: `crawler`, `crawler/crawl`."""
    from treadle.authoring.plugins import installed, plugin

    name = target.partition("/")[0]
    if target.endswith(".py") or ":" in target or Path(target).exists() or name not in installed("packages"):
        return None
    package: Package = plugin("packages", name)
    return package


def _is_workflow(value: object) -> bool:
    from treadle.authoring.builder import Planned
    from treadle.authoring.decorators import WorkflowFunction

    return isinstance(value, (WorkflowFunction, Planned))


def name_of(workflow: Workflow) -> str:
    """The name under which runs of a workflow are stored."""
    from treadle.authoring.builder import Planned

    return workflow.workflow if isinstance(workflow, Planned) else str(workflow.definition.name)


# -- inputs ------------------------------------------------------------------------------------------------------


def parse_data(texts: tuple[str, ...]) -> dict[str, Any]:
    """The run's data of all --data texts: a JSON object, `@file` with one, or `name=value`.

    Raises:
        UsageError: a text is none of these, or two give one name.
    """
    inputs = Inputs([], {})
    for text in texts:
        _parse_one(text, inputs, "--data")
    if inputs.args:
        raise UsageError("--data takes names: a JSON object, @file with one, or name=value")
    return {name: _loose(value) for name, value in inputs.kwargs.items()}


def parse_inputs(texts: tuple[str, ...]) -> Inputs:
    """The arguments of all --input texts: a JSON object or array, `@file` with one, or `name=value`.

    Raises:
        UsageError: a text is none of these, or two give one argument.
    """
    inputs = Inputs([], {})
    for text in texts:
        _parse_one(text, inputs, "--input")
    return inputs


def _parse_one(text: str, inputs: Inputs, option: str) -> None:
    source = option
    if text.startswith("@"):
        source = text[1:]
        try:
            text = Path(source).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the input cannot be read: {error}") from None
    elif not text.lstrip().startswith(("{", "[")):
        name, separator, value = text.partition("=")
        if not separator or not name.isidentifier():
            raise UsageError(f"{option} takes a JSON object or array, @file, or name=value, not {text!r}")
        _take(inputs, {name: Text(value)})
        return
    try:
        tree: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise UsageError(f"{source} is no JSON: {error}") from None
    if isinstance(tree, dict):
        _take(inputs, cast(dict[str, Any], tree))
    elif isinstance(tree, list) and not inputs.args:
        inputs.args = tree
    elif isinstance(tree, list):
        raise UsageError("arguments by position (a JSON array) are given twice")
    else:
        raise UsageError(f"{source} must hold a JSON object (arguments by name) or array (by position)")


def _take(inputs: Inputs, named: dict[str, Any]) -> None:
    for name, value in named.items():
        if name in inputs.kwargs:
            raise UsageError(f"argument {name!r} is given twice")
        inputs.kwargs[name] = value


def plan_of(workflow: Workflow, inputs: Inputs) -> Planned:
    """The plan of a workflow with these arguments, each converted to its parameter's type.

    Raises:
        DefinitionError: an argument does not fit, or the workflow is wrong; also if its own code raised.
    """
    from treadle.authoring.builder import Planned

    if isinstance(workflow, Planned):
        if inputs.given:
            raise UsageError("the target is a plan that is made already; it takes no --input")
        return workflow
    args, kwargs = fit(workflow, inputs)
    try:
        planned: Planned = workflow.plan(*args, **kwargs)
    except TreadleError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise _broken(f"planning {name_of(workflow)!r}", error) from error
    return planned


def fit(workflow: WorkflowFunction[..., Any], inputs: Inputs) -> tuple[list[Any], dict[str, Any]]:
    """The arguments as values of their parameters' types; names that nobody knows pass, planning complains of them."""
    parameters = workflow.definition.parameters
    by_position = [p for p in parameters.values() if p.kind.name.startswith("POSITIONAL")]
    args = [
        _fitted(workflow, by_position[at], value) if at < len(by_position) else value
        for at, value in enumerate(inputs.args)
    ]
    kwargs = {
        name: _fitted(workflow, parameters[name], value) if name in parameters else _loose(value)
        for name, value in inputs.kwargs.items()
    }
    return args, kwargs


def _fitted(workflow: Workflow, parameter: Parameter, value: Any) -> Any:
    if isinstance(value, Text):
        if str in parameter.exact and parameter.exact <= {str, type(None)}:
            # `zip=01234` for a text stays that text.
            return str(value)
        value = _loose(value)
    try:
        return parameter.adapter.convert(value)
    except DecodeError as error:
        said = str(error).removeprefix("at `$`: ")
        raise SlotError(f"workflow {name_of(workflow)!r}: argument {parameter.name!r}: {said}") from None


def _loose(value: Any) -> Any:
    """JSON if the text is some, else the text."""
    if not isinstance(value, Text):
        return value
    try:
        return msgspec.json.decode(str(value))
    except (msgspec.DecodeError, UnicodeError):
        return str(value)
