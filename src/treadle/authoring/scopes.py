"""Places of planned steps: ids, the spelling of references, and the slots that drafts become there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any, Protocol, Self, cast

from treadle.authoring.bound import (
    Ambient,
    Bound,
    Condition,
    FromData,
    Named,
    Node,
    Promised,
    ScopeOf,
    Signalled,
    Tested,
    kind_of,
    place_of,
    shown,
)
from treadle.authoring.drafts import Defaulted, check_condition
from treadle.core.addresses import check_id, child, decode_id, encode_id
from treadle.core.plan import (
    Block,
    Const,
    Data,
    Holds,
    Index,
    Item,
    LaneValue,
    ListOf,
    MapOf,
    Placement,
    Predicate,
    Ref,
    SignalValue,
    Slot,
    StateValue,
    Step,
)
from treadle.core.plan import Condition as AnyCondition
from treadle.errors import DefinitionError, DuplicateStepError, SlotError, UnknownStepError


class Site(Protocol):
    """What scopes belong to: a plan being built, or the steps that one attempt adds."""

    errors: list[DefinitionError]
    # Field values of steps that do not set them, such as a workflow's retry policy.
    defaults: dict[str, Any]

    # Whether steps are added to a run, so that there is a "here" and not all of the graph is known.
    inside_step: bool

    # A name was given as text, or a group exists: only then may the graph have circles or unknown names.
    suspect: bool


class Building(Site, Protocol):
    """A site with groups."""

    # The innermost open group.
    scope: Scope


class GroupPlace(Promised):
    """A group of a plan: `with` makes it the place of what is planned inside, and `after=` takes it like a step."""

    __slots__ = ("__treadle_code__", "__treadle_id__", "__treadle_inner__", "__treadle_outer__", "__treadle_site__")

    def __init__(self, site: Building, id_: str, outer: Scope, code: tuple[CodeType | None, int]) -> None:
        self.__treadle_site__ = site
        self.__treadle_id__ = id_
        self.__treadle_outer__ = outer
        self.__treadle_inner__ = Scope(site, child(outer.address, encode_id(id_)), outer, outer.constants)
        self.__treadle_code__ = code

    def __enter__(self) -> Self:
        self.__treadle_site__.scope = self.__treadle_inner__
        return self

    def __exit__(self, *_: object) -> None:
        self.__treadle_site__.scope = self.__treadle_outer__

    def __repr__(self) -> str:
        place = place_of(*self.__treadle_code__)
        return f"<group {shown(self.__treadle_id__)!r}{f' ({place})' if place else ''}>"


class Scope:
    """One scope while its blocks are gathered. Groups share the list of constants of their plan."""

    __slots__ = ("_next", "address", "block", "blocks", "constants", "crossings", "kind", "parent", "site", "used")

    def __init__(
        self,
        site: Site,
        address: str,
        parent: Scope | None,
        constants: list[str],
        kind: str = "",
        block: object = None,
    ) -> None:
        # For the body of a gather, a branch or a phase: which of them, and the block it belongs to.
        self.kind = kind
        self.block = block
        self.site = site
        self.address = address
        self.parent = parent
        self.constants = constants
        self.blocks: list[Block] = []
        self.used: dict[str, Node | GroupPlace] = {}
        self._next: dict[str, int] = {}
        # References that leave this scope: first segment, whose it is, and who refers.
        self.crossings: list[tuple[str, Scope, object]] = []

    def free_id(self, short: str) -> str:
        """`fetch`, then `fetch-2`, `fetch-3`: in the order of the calls."""
        if short not in self.used:
            return short
        number = self._next.get(short, 2)
        while (found := f"{short}-{number}") in self.used:
            number += 1
        self._next[short] = number + 1
        return found

    def claim(self, id_: str, owner: Node | GroupPlace) -> None:
        """Give an id to its owner; a mistake is noted, and the first owner keeps the id."""
        try:
            check_id(id_)
        except DefinitionError as error:
            self.site.errors.append(DefinitionError(f"{owner_text(owner)}: {error}"))
            return
        first = self.used.setdefault(id_, owner)
        if first is not owner:
            self.site.errors.append(
                DuplicateStepError(
                    f"{owner_text(owner)}: the id is taken by {owner_text(first)}"
                    f"{f' in group {self.address!r}' if self.address and not self.site.inside_step else ''};"
                    " give one of them another id="
                )
            )

    def place(self, node: Node) -> None:
        """Make a planned step a block of this scope."""
        chosen = node.chosen
        id_ = chosen.id
        if id_ is None:
            node.id = id_ = self.free_id(node.definition.short)
            self.used[id_] = node
        else:
            node.id = id_
            self.claim(id_, node)
        node.segment = encode_id(id_)
        node.scope = self
        if node.complaints or chosen.mistakes or chosen.into is not None:
            self._report(node)
        fields = chosen.fields
        if self.site.defaults:
            fields = {**self.site.defaults, **fields}
        if chosen.links:
            fields = {**fields, **self._links(node, chosen.links)}
        slots = {name: self.lower(draft, node) for name, draft in node.drafts.items()}
        self.blocks.append(Step(id=id_, action=node.definition.name, slots=slots, **fields))

    def is_of(self, site: Site) -> bool:
        """Whether the scope belongs to a site."""
        return self.site is site

    def release(self, node: Node) -> None:
        """Take a step's place back, since what it was planned with is wrong."""
        if self.used.get(node.id) is node:
            del self.used[node.id]
        node.scope = None

    def _report(self, node: Node) -> None:
        """Note the mistakes in a call and in its options."""
        self._note(node, node.complaints, SlotError)
        self._note(node, node.chosen.mistakes)
        if node.chosen.into is not None and not self.site.inside_step:
            self._note(node, ["into= is for steps that a running step adds; here, open a group()"])

    def _note(self, node: Node, texts: Iterable[str], kind: type[DefinitionError] = DefinitionError) -> None:
        self.site.errors.extend(kind(f"{node}: {text}") for text in texts)

    # -- slots -----------------------------------------------------------------------------------------------

    def lower(self, draft: Any, reader: object) -> Slot:
        """The slot of a draft in this scope; `reader` is who errors speak of."""
        kind = kind_of(draft)
        if kind is str:
            # Equal constants are not joined: the plan must not depend on values, so that runs share it.
            self.constants.append(draft)
            return Const(len(self.constants) - 1)
        if kind is Bound:
            return self._value(draft, -1, reader)
        if kind is Defaulted:
            self.constants.append(draft.text)
            return self._value(draft.bound, len(self.constants) - 1, reader)
        if kind is Signalled:
            return SignalValue(self._signal(draft.__treadle_name__, reader))
        if kind is FromData:
            return Data(draft.__treadle_name__)
        if kind is list:
            return ListOf([self.lower(item, reader) for item in draft])
        assert kind is dict
        return MapOf({key: self.lower(item, reader) for key, item in draft.items()})

    def _value(self, bound: Bound, default: int, reader: object) -> Slot:
        """The slot of a planned value, with the number of its default."""
        node, path = bound.__treadle_node__, bound.__treadle_path__
        if not isinstance(node, Ambient):
            return Ref(self.name_of(node, reader), path, default)
        if node.what == "state":
            return StateValue(node.name, path, default)
        if node.what == "lane":
            return LaneValue(node.name, path, default)
        level = self._level(node, reader)
        if default >= 0 or (path and node.what == "index"):
            self.site.errors.append(DefinitionError(f"{reader}: {node} is always there, and whole; give no default"))
        return Item(level, path) if node.what == "item" else Index(level)

    def _level(self, item: Ambient, reader: object) -> int:
        """How many gathers lie between a reader and the one that an item belongs to."""
        level = 0
        here: Scope | None = self
        while here is not None and here is not item.scope:
            level += here.kind == "gather"
            here = here.parent
        if here is None:
            self.site.errors.append(DefinitionError(f"{reader}: {item} belongs to a gather that it does not lie in"))
        return level

    def _signal(self, name: object, reader: object) -> str:
        if isinstance(name, str) and name.strip():
            return name
        self.site.errors.append(DefinitionError(f"{reader}: a signal needs a name that is not empty"))
        return ""

    def _links(self, node: Node, links: dict[str, Any]) -> dict[str, Any]:
        """The fields of a step that name other steps."""
        fields: dict[str, Any] = {}
        for name, value in links.items():
            if value is None:
                continue
            if name in ("after", "after_any"):
                if names := self.names_of(value, f"{node}: {name}=", node):
                    fields[name] = names
            elif name == "when":
                fields["when"] = self.condition(node, value)
            elif name == "here":
                if value is not False:
                    fields["placement"] = self._here(node)
            else:
                fields["placement"] = self._near(node, name, value)
        return fields

    def _here(self, node: Node) -> Placement:
        if not self.site.inside_step:
            self._note(node, ["here=True is the worker of the adding step; in a workflow use on= or beside="])
        return Placement(mode="here")

    def _near(self, node: Node, name: str, value: object) -> Placement:
        """The placement of `beside=` (a step's worker) or `follow=` (a step's target)."""
        # Whether there is a target to follow is seen in the whole plan only.
        self.site.suspect |= name == "follow"
        names = self.names_of(value, f"{node}: {name}=", node)
        if len(names) != 1 or names[0].endswith("/"):
            self._note(node, [f"{name}={value!r}: give one planned step"])
        return Placement(mode="with" if name == "beside" else "follow", step="".join(names[:1]))

    def roots(self, tested: Tested, reader: object) -> dict[str, Slot]:
        """The slots of the values that an expression reads, by name."""
        return {name: self.lower(draft, reader) for name, draft in tested.__treadle_drafts__.items()}

    def condition(self, node: Node, value: object) -> AnyCondition | None:
        """What a step's, a branch's or a rule's condition is in the plan; None, with a mistake noted, if it is none."""
        if not isinstance(value, Promised):
            self._note(node, [f"when={value!r}: give a planned bool or the .bind(...) of a predicate"])
            return None
        if isinstance(value, Tested):
            return Holds(value.__treadle_text__, self.roots(value, node))
        complaints: list[str] = []
        draft = check_condition(value, complaints)
        if isinstance(draft, Condition):
            asked = draft.__treadle_node__
            self._note(node, [f"when={draft!r}: {text}" for text in asked.complaints], SlotError)
            slots = {name: self.lower(part, node) for name, part in asked.drafts.items()}
            return Predicate(asked.definition.name, slots)
        self._note(node, complaints)
        if complaints:
            return None
        slot = self.lower(draft, node)
        assert isinstance(slot, Ref | SignalValue | Item | StateValue | LaneValue)
        if isinstance(slot, Ref | SignalValue):
            return slot
        return Holds("value", {"value": slot})

    # -- names ---------------------------------------------------------------------------------------------

    def names_of(self, value: object, what: str, reader: object) -> tuple[str, ...]:
        """The names of all that `after=` and its kin were given."""
        names: dict[str, None] = {}
        for item in _flat(value):
            if isinstance(item, Bound):
                names[self.name_of(item.__treadle_node__, reader)] = None
            elif isinstance(item, GroupPlace):
                names[self._group_name(item, reader)] = None
            elif isinstance(item, ScopeOf):
                inner = self.names_of(item.target, what, reader)
                # A group settles with all its content, so its scope is the group.
                is_group = isinstance(item.target, GroupPlace)
                names.update(dict.fromkeys(inner if is_group else [f"{name}/" for name in inner]))
            elif isinstance(item, str) and item:
                names[self.name_of(Named(item), reader)] = None
            else:
                self.site.errors.append(
                    DefinitionError(f"{what}{item!r}: give planned values, groups, ids or lists of them")
                )
        return tuple(names)

    def name_of(self, node: Node | Named | Ambient, reader: object) -> str:
        """How a step of this scope spells another step."""
        if isinstance(node, Ambient):
            self.site.errors.append(DefinitionError(f"{reader}: {node} is no step that can be waited for"))
            return ""
        if type(node) is Named:
            self.site.suspect = True
            return self._named(node.text)
        assert isinstance(node, Node)
        scope = node.scope
        if scope is self:
            return node.segment
        if scope is None or scope.site is not self.site:
            why = "was planned outside this workflow" if not self.site.inside_step else "was not added by this step"
            self.site.errors.append(DefinitionError(f"{reader}: {node} {why}; plan it here, or name it by ref(id)"))
            return node.segment or node.definition.short
        self._refuse_inside(scope, node, reader)
        return self._across(scope, node.segment, reader)

    def _refuse_inside(self, scope: Scope, node: Node, reader: object) -> None:
        """Note a name that would lead into a body from outside of its block."""
        here: Scope | None = self
        around: set[Scope] = set()
        while here is not None:
            around.add(here)
            here = here.parent
        inner: Scope | None = scope
        while inner is not None and inner not in around:
            # A row may name a row of its own block.
            outside = inner.kind in ("gather", "branch") or (
                inner.kind == "phase" and not any(known.block is inner.block for known in around)
            )
            if outside:
                self.site.errors.append(
                    UnknownStepError(
                        f"{reader}: {node} lies in a {inner.kind}; outside of it, use the value that its block gives"
                    )
                )
                return
            inner = inner.parent

    def _named(self, text: str) -> str:
        """The name behind a text: an id just as it was planned, else an address as it stands."""
        here: Scope | None = self
        while here is not None:
            if text in here.used:
                return encode_id(text)
            here = here.parent
        return text

    def _group_name(self, group: GroupPlace, reader: object) -> str:
        scope, segment = group.__treadle_outer__, encode_id(group.__treadle_id__)
        if scope is self:
            return segment
        if scope.site is not self.site:
            self.site.errors.append(DefinitionError(f"{reader}: {group!r} belongs to another workflow"))
            return segment
        return self._across(scope, segment, reader)

    def _across(self, scope: Scope, segment: str, reader: object) -> str:
        """A name that leaves this scope: down from the nearest scope that holds both."""
        target = child(scope.address, segment)
        shared = self.address
        while shared and not target.startswith(shared + "/"):
            shared = shared.rpartition("/")[0]
        name = target[len(shared) + 1 :] if shared else target
        self.crossings.append((name.split("/", 1)[0], scope, reader))
        return name

    def check_crossings(self) -> None:
        """Note names that another block of the same id, nearer to the reader, would catch."""
        for first, scope, reader in self.crossings:
            here: Scope | None = self
            # Up to the scope that holds both, where the name is looked up as meant.
            while here is not None and here.address and not f"{scope.address}/".startswith(f"{here.address}/"):
                if decode_id(first) in here.used:
                    self.site.errors.append(
                        DuplicateStepError(
                            f"{reader} means {child(scope.address, first)!r}, but {here.address!r} holds a {first!r} "
                            "too, which is nearer; give one of them another id"
                        )
                    )
                    break
                here = here.parent


def owner_text(owner: Node | GroupPlace) -> str:
    """How errors name a step or a group."""
    return str(owner) if isinstance(owner, Node) else repr(owner)[1:-1]


def _flat(value: Any) -> Iterator[object]:
    if isinstance(value, list | tuple | set | frozenset):
        for item in cast("Iterable[Any]", value):
            yield from _flat(item)
    elif value is not None:
        yield value


def referred(node: Node) -> Iterator[Node]:
    """The planned steps that a step refers to, by its arguments and by its options."""
    todo: list[Any] = [*node.drafts.values(), *node.chosen.links.values()]
    while todo:
        item = todo.pop()
        if isinstance(item, Bound):
            if isinstance(item.__treadle_node__, Node):
                yield item.__treadle_node__
        elif isinstance(item, Defaulted):
            todo.append(item.bound)
        elif isinstance(item, ScopeOf):
            todo.append(item.target)
        elif isinstance(item, Condition):
            todo.extend(item.__treadle_node__.drafts.values())
        elif isinstance(item, dict):
            todo.extend(cast("dict[str, Any]", item).values())
        elif isinstance(item, list | tuple | set | frozenset):
            todo.extend(cast("Iterable[Any]", item))
