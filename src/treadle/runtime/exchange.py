"""Values between a task and the store: the arguments that an attempt reads, and what it hands in beside its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import NoneType
from typing import Any, Final, cast

import msgspec

from treadle.authoring import codec
from treadle.authoring.secrets import refuse_secrets
from treadle.authoring.signatures import Parameter
from treadle.core.commands import Task
from treadle.core.events import Arg, ArgList, Failure, Handle, Items, Pick
from treadle.core.plan import Fragment
from treadle.core.values import bare, key_id_of
from treadle.errors import DecodeError, StoreUnavailableError, TreadleError
from treadle.runtime.artifacts import RENEW_SECONDS
from treadle.runtime.callee import Callee, Callees
from treadle.runtime.coding import HIDDEN, inline_text, refuse_fragment_keys
from treadle.runtime.failures import ErrorText, describe
from treadle.runtime.patience import patiently
from treadle.runtime.payloads import Payloads, Row, assemble, chunks_of, handles_of
from treadle.runtime.step_context import RunningStep
from treadle.runtime.streams import CHUNK_BYTES, CHUNK_ITEMS, pieces_of

_dump: Callable[[object], bytes] = msgspec.json.Encoder().encode
# How long a task whose value is encoded with a key that is not here waits for other workers: long enough that one
# without the key does little else, short beside the time in which people hand out keys.
KEY_SECONDS = 5.0
_UNCHANGING: Final = frozenset({NoneType, bool, int, float, str, bytes})


# -- arguments -------------------------------------------------------------------------------------------------------


def inline(payloads: Payloads, callee: Callee, task: Task) -> dict[str, Any] | None:
    """The decoded arguments if all of them are at hand, else None."""
    if callee.read:
        return None
    values: dict[str, Any] = {}
    decoders = callee.decoders
    for name, arg in task.call.args.items():
        if type(arg) is not str or arg[0] != "=":
            if isinstance(arg, Pick):
                found = _from_cache(payloads, callee, task, name, arg, values)
            elif isinstance(arg, ArgList):
                found = _from_items(callee, name, arg, values)
            else:
                found = isinstance(arg, str) and _from_handle(payloads, callee, name, arg, values)
            if not found:
                return None
            continue
        decode = decoders.get(name)
        if decode is None:
            if callee.picks:
                continue
            raise callee.unknown(name)
        try:
            values[name] = decode(arg[1:])
        except DecodeError as error:
            raise DecodeError(f"argument {name!r}: {error}") from None
    return values


def may_share(values: dict[str, Any]) -> bool:
    """Whether several calls may get these very values: whoever gets one of them cannot change it."""
    return _UNCHANGING.issuperset(map(type, values.values()))


def _from_handle(payloads: Payloads, callee: Callee, name: str, arg: Handle, values: dict[str, Any]) -> bool:
    """Decode a small value that a payload codec has encoded; False if it is elsewhere, or not wanted."""
    decode = callee.decoders.get(name)
    if decode is None or not bare(arg).startswith("="):
        return False
    try:
        values[name] = decode(inline_text(payloads.codec, arg))
    except DecodeError as error:
        raise DecodeError(f"argument {name!r}: {error}") from None
    return True


def _from_items(callee: Callee, name: str, arg: ArgList, values: dict[str, Any]) -> bool:
    """Decode a list of small values, as one text; False if one of them is elsewhere, or it is not wanted."""
    decode = callee.decoders.get(name)
    texts = [item[1:] for item in arg.items if type(item) is str and item[0] == "="]
    if decode is None or len(texts) != len(arg.items):
        return False
    try:
        values[name] = decode(f"[{','.join(texts)}]")
    except DecodeError as error:
        raise DecodeError(f"argument {name!r}: {error}") from None
    return True


def _from_cache(payloads: Payloads, callee: Callee, task: Task, name: str, arg: Pick, values: dict[str, Any]) -> bool:
    """Decode a part of a value that was read a moment ago; False if it was not, or something is wrong with it."""
    adapter = callee.adapters.get(name)
    value: Any = payloads.cached(task.run, arg.value)
    if value is None or adapter is None:
        return False
    try:
        for key in arg.path:
            value = codec.part(value, key)
        values[name] = adapter.convert(value)
    except (DecodeError, LookupError, TypeError):
        return False
    return True


async def read(
    payloads: Payloads, callee: Callee, task: Task, values: dict[str, Any] | None, context: RunningStep
) -> dict[str, Any]:
    """The arguments, and the run's data for the context: what of both is not there yet is read."""
    if values is None:
        values = await fetch(payloads, callee, task)
        for name, parameter in callee.read.items():
            if name in task.call.args:
                values[name] = await _opened(payloads, task, parameter, context)
    handle = task.call.data
    if handle:
        context.data_text = (await patiently(lambda: payloads.load(task.run, [handle])))[handle]
    return values


async def values_of(payloads: Payloads, callee: Callee, task: Task) -> dict[str, Any]:
    """The decoded arguments, from wherever they are."""
    values = inline(payloads, callee, task)
    return await fetch(payloads, callee, task) if values is None else values


async def fetch(payloads: Payloads, callee: Callee, task: Task) -> dict[str, Any]:
    """The decoded arguments, read from the store where they are not at hand."""
    whole: list[Handle] = []
    parts: list[Handle] = []
    args = task.call.args
    if callee.picks:
        args = {name: arg for name, arg in args.items() if name in callee.adapters}
    if callee.read:
        args = {name: arg for name, arg in args.items() if name not in callee.read}
    for arg in args.values():
        handles_of(arg, whole if isinstance(arg, str) else parts)
    texts = await patiently(lambda: payloads.load(task.run, whole))
    trees = await patiently(lambda: payloads.trees(task.run, parts))
    values: dict[str, Any] = {}
    for name, arg in args.items():
        adapter = callee.adapters.get(name)
        if adapter is None:
            raise callee.unknown(name)
        try:
            if isinstance(arg, str):
                values[name] = callee.decoders[name](texts[arg])
            else:
                values[name] = adapter.convert(assemble(arg, trees))
        except (DecodeError, LookupError) as error:
            raise DecodeError(f"argument {name!r}: {error}") from None
    return values


async def _opened(payloads: Payloads, task: Task, parameter: Parameter, context: RunningStep) -> Any:
    """An argument that is read piece by piece while the step runs."""
    arg, item = task.call.args[parameter.name], parameter.item
    assert item is not None
    stored: Items | None = None
    tree: object = None
    if isinstance(arg, str):
        text = (await patiently(lambda: payloads.stored(task.run, [arg])))[arg]
        stored = chunks_of(text)
        tree = None if stored is not None else codec.plain(text)
    elif not isinstance(arg, ArgList):
        handles: list[Handle] = []
        handles_of(arg, handles)
        trees = await patiently(lambda: payloads.trees(task.run, handles))
        tree = assemble(arg, trees)
    await _ask_for_keys(payloads, task, arg if stored is None else ArgList(list(stored.chunks)))
    try:
        if stored is not None:
            found = context.stream(stored.chunks, item.convert, stored)
        elif isinstance(arg, ArgList):
            found = context.stream(pieces_of(arg), item.convert)
        elif item.declared is Any:
            found = context.stream([_plain_list(parameter, tree)], item.convert)
        else:
            found = context.stream([parameter.adapter.convert(tree)], _as_it_is)
    except (DecodeError, LookupError) as error:
        raise DecodeError(f"argument {parameter.name!r}: {error}") from None
    if not parameter.iterator:
        return found
    return aiter(found) if parameter.on_loop else iter(found)


def _plain_list(parameter: Parameter, tree: object) -> object:
    """The plain tree of a list; of what can be taken for one, such as a set, too."""
    if type(tree) is list:
        return cast("list[object]", tree)
    return codec.plain(codec.encode(parameter.adapter.convert(tree)))


async def _ask_for_keys(payloads: Payloads, task: Task, pieces: Arg) -> None:
    """Read one piece of each key before the step begins: a worker that lacks a key puts the task back, as if untouched.

    Raises:
        MissingKeyError: a key is not here.
    """
    handles: list[Handle] = []
    handles_of(pieces, handles)
    one_of_each = {key_id: handle for handle in handles if (key_id := key_id_of(handle))}
    if one_of_each:
        await patiently(lambda: payloads.stored(task.run, one_of_each.values()))


def _as_it_is(value: object) -> Any:
    return value


# -- what an attempt hands in ----------------------------------------------------------------------------------------


async def place_result(payloads: Payloads, callees: Callees, task: Task, text: str, rows: list[Row]) -> Handle:
    """The handle of a result. The kernel reads what a predicate answers, so no codec hides that."""
    if payloads.codec is not None and text in ("true", "false") and callees.of(task).answers:
        return "=" + text
    return await payloads.place(text, rows)


async def place_failure(payloads: Payloads, errors: ErrorText, error: BaseException) -> tuple[Failure, list[Row]]:
    """The failure of an error, with the rows of its whole account. A message may hold values: a codec hides it too."""
    failure, full = describe(error, errors)
    hides = payloads.codec is not None and bool(failure.message)
    rows: list[Row] = []
    detail = ""
    if full or hides:
        try:
            account = errors.encode(full, error, failure.message if hides else "")
            detail = await payloads.place(account, rows)
        except (TreadleError, OSError):
            rows = []
    message = HIDDEN if hides else failure.message
    return Failure(code=failure.code, message=message, type=failure.type, detail=detail), rows


async def place_more(payloads: Payloads, task: Task, context: RunningStep, rows: list[Row]) -> dict[str, Any]:
    """What an outcome says of what its attempt gave beside the result."""
    return {
        "added": tuple(await place_fragments(payloads, context.fragments, rows, task.run)),
        "patch": await place_patch(payloads, context.patch, rows),
        "items": await place_items(payloads, context, rows),
        "effects": await context.effects(payloads, rows),
        "writes": tuple(context.writes or ()),
    }


async def place_patch(payloads: Payloads, patch: dict[str, Any] | None, rows: list[Row]) -> dict[str, Handle] | None:
    """The variables that a step sets, each with the handle of its value."""
    if not patch:
        return None
    placed: dict[str, Handle] = {}
    for name, value in patch.items():
        text = payloads.text(value)
        placed[name] = await patiently(partial(payloads.place, text, rows))
    return placed


async def place_items(payloads: Payloads, context: RunningStep, rows: list[Row]) -> Items | None:
    """The items of a gather, stored as lists of equal length that a worker reads in one piece."""
    items = context.items
    if context.chunks is not None:
        if context.now().timestamp() - context.started_at > RENEW_SECONDS:
            await _renew(payloads, context.chunks)
        return context.chunks
    if items is None:
        return None
    count = len(items)
    size = max(1, min(CHUNK_ITEMS, CHUNK_BYTES * count // len(_dump(items))))
    chunks: list[Handle] = []
    for start in range(0, count, size):
        text = _dump(items[start : start + size]).decode()
        chunks.append(await patiently(partial(payloads.place, text, rows)))
    return Items(count, size, tuple(chunks))


async def _renew(payloads: Payloads, items: Items) -> None:
    """Keep chunks from being collected that were stored long before the outcome that names them."""
    for chunk in map(bare, items.chunks):
        if chunk.startswith("#") and not await patiently(
            partial(payloads.beside, partial(payloads.blobs.renew, chunk[1:]))
        ):
            raise StoreUnavailableError(
                "some of what the step has yielded was removed before its outcome could name it"
            )


async def place_fragments(
    payloads: Payloads, fragments: Sequence[Fragment], rows: list[Row] | None, run: str
) -> list[Fragment]:
    """Fragments with their constants' JSON texts replaced by handles, equal ones in all of a run.

    Raises:
        DefinitionError: a step's key is read from what is encoded.
    """
    if payloads.codec is not None and fragments:
        refuse_fragment_keys(fragments)
    if not payloads.hides:
        for fragment in fragments:
            refuse_secrets(fragment.blocks, fragment.constants)
    placed: list[Fragment] = []
    for fragment in fragments:
        constants = [await patiently(partial(payloads.place, text, rows, run)) for text in fragment.constants]
        placed.append(Fragment(blocks=fragment.blocks, constants=constants, into=fragment.into))
    return placed
