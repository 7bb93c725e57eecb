"""Every order in which a few programs can meet in one store: an explicit-state check of the real protocol.

A program is any function of a Run, and the code that it runs is nisynth's own. It is a function of what the
store answers, so it is run again from its beginning with the answers so far, until it asks what has no answer
yet. A state is what the store holds, what each program was told, which requests are still on their way, and
how many faults may still happen; a state that was met before is not looked into again. One request is one
step: what happens inside a request is the store's business, which tests/storage/test_contract.py holds it to.

Faults, each counted: `crash` (a program asks nothing more), `silence` (a write gets no answer and may be
carried out at any later moment, or never; a read fails), `refusal` (a create that surely did not happen), and
`echo` (a write is answered and carried out a second time later, as when a client has sent it twice).
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, TypeVar

from nisynth.errors import NisynthError, StorageError
from nisynth.storage import AlreadyExists, NotFound, ObjectInfo, OutcomeUnknown, Store, check_size
from nisynth.storage.memory import MemoryStore

T = TypeVar("T")
Program = Callable[[Store], object]
Objects = tuple[tuple[str, bytes], ...]
"""What a store holds, by key."""

ERRORS = {"exists": AlreadyExists, "missing": NotFound, "unknown": OutcomeUnknown, "failed": StorageError}
WRITES = ("create", "put", "delete")
CRASHED = -1
_names = count()


@dataclass(frozen=True)
class Call:
    """One request to the store; `key` is a listing's prefix."""

    verb: str
    key: str
    data: bytes = b""


@dataclass(frozen=True)
class Answer:
    """What came back: `kind` is `ok` or one of ERRORS, `value` what the verb returns."""

    kind: str
    value: Any = None


@dataclass(frozen=True)
class State:
    """Where everybody stands, in numbers that the explorer knows: of the store, of each program's next
    request, of the requests that are on their way."""

    store: int
    programs: tuple[int, ...]
    on_the_way: tuple[int, ...]
    faults_left: int


class _Asks(BaseException):
    """Ends a program where it asks what has no answer yet; no `except Exception` stops it."""

    def __init__(self, call: Call) -> None:
        self.call = call


class _Script:
    """A store that gives the answers it was made with, in order."""

    url = "memory://interleavings"
    retries = 0

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = iter(answers)

    def create(self, key: str, data: bytes) -> None:
        self._ask(Call("create", key, data))

    def put(self, key: str, data: bytes) -> None:
        self._ask(Call("put", key, data))

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        data: bytes = self._ask(Call("get", key))
        check_size(key, len(data), max_bytes)
        return data

    def size_bytes(self, key: str) -> int:
        return len(self._ask(Call("get", key)))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(self._ask(Call("list", prefix)))

    def delete(self, key: str) -> None:
        self._ask(Call("delete", key))

    def sweep(self) -> int:
        return 0

    def _ask(self, call: Call) -> Any:
        answer = next(self._answers, None)
        if answer is None:
            raise _Asks(call)
        if answer.kind in ERRORS:
            raise ERRORS[answer.kind](f"{call.key}: {answer.kind}")
        return answer.value


@dataclass(frozen=True)
class Place:
    """Where a program is after some answers: at its next call, or at its end with what came of it."""

    program: int
    answers: tuple[Answer, ...]
    call: Call | None
    result: object = None


def carry_out(objects: Objects, call: Call) -> tuple[Objects, Answer]:
    """Returns what the memory store holds after a request, and its answer."""
    store = filled(objects)
    value: Any = None
    try:
        match call.verb:
            case "create":
                store.create(call.key, call.data)
            case "put":
                store.put(call.key, call.data)
            case "delete":
                store.delete(call.key)
            case "get":
                value = store.get(call.key)
            case "list":
                value = tuple(store.list(call.key))
        answer = Answer("ok", value)
    except AlreadyExists:
        answer = Answer("exists")
    except NotFound:
        answer = Answer("missing")
    return emptied(store), answer


def filled(objects: Objects) -> MemoryStore:
    """Returns a memory store of its own that holds the objects."""
    store = MemoryStore(f"memory://interleavings-{next(_names)}")
    for key, data in objects:
        store.put(key, data)
    return store


def emptied(store: Store) -> Objects:
    """Returns what a store holds, and takes it out."""
    objects = tuple((info.key, store.get(info.key)) for info in store.list())
    for key, _ in objects:
        store.delete(key)
    return objects


@dataclass
class Found:
    """What an exploration went through. interleavings: ways to get to an end, by exact count."""

    states: int = 0
    interleavings: int = 0
    problems: tuple[str, ...] = ()


class Explorer:
    """The states that some programs can reach together from `objects`, with up to `faults` faults.

    judge: returns what is wrong with what a store holds, None when nothing is; asked once for each content
    that the store has in any state. judge_result: the same of a program's end and the store at that moment.
    judge_end: of a store that every program has left.
    """

    def __init__(
        self,
        programs: Mapping[str, Program],
        objects: Objects,
        *,
        judge: Callable[[Objects], str | None] = lambda objects: None,
        judge_result: Callable[[str, object, Objects], str | None] = lambda name, result, objects: None,
        judge_end: Callable[[Objects], str | None] = lambda objects: None,
    ) -> None:
        self._names, self._programs = list(programs), list(programs.values())
        self._judge, self._judge_result, self._judge_end = judge, judge_result, judge_end
        self._stores, self._calls = _Numbers[Objects](), _Numbers[Call]()
        self._places: list[Place] = []
        self._effects: dict[tuple[int, int], tuple[int, Answer]] = {}
        self._told: dict[tuple[int, Answer], int] = {}
        self._judged: dict[tuple[str, int], str | None] = {}
        self._begin = (
            self._stores.number(objects),
            tuple(self._go(index, ()) for index in range(len(self._programs))),
        )

    def explore(self, faults: int) -> Found:
        """Goes through every state, breadth first, and stops at the first layer that shows a problem."""
        found = Found()
        layer = {State(*self._begin, (), faults): 1}
        while layer and not found.problems:
            following: dict[State, int] = {}
            problems = set()
            for state, ways in layer.items():
                found.states += 1
                problem = self._problem(state)
                if problem is not None:
                    problems.add(problem)
                if self._is_end(state):
                    found.interleavings += ways
                for then in self._moves(state):
                    following[then] = following.get(then, 0) + ways
            found.problems = tuple(sorted(problems))
            layer = following
        return found

    def walk(self, faults: int, draw: random.Random) -> str | None:
        """Goes one way at random to its end; returns what was wrong on it, None when nothing was."""
        state = State(*self._begin, (), faults)
        while True:
            problem = self._problem(state)
            if problem is not None:
                return problem
            moves = list(self._moves(state))
            if not moves or (self._is_end(state) and draw.random() < 0.5):
                return None
            calm = [then for then in moves if then.faults_left == state.faults_left]
            state = draw.choice(calm if calm and draw.random() < 0.7 else moves)

    def _moves(self, state: State) -> Iterator[State]:
        for place, number in enumerate(state.programs):
            if number == CRASHED:
                continue
            call = self._places[number].call
            if call is not None:
                yield from self._moves_of(state, place, number, self._calls.number(call), call)
        for position, call_number in enumerate(state.on_the_way):
            store, _ = self._effect(state.store, call_number)
            left = state.on_the_way[:position] + state.on_the_way[position + 1 :]
            yield State(store, state.programs, left, state.faults_left)

    def _moves_of(
        self, state: State, place: int, number: int, call_number: int, call: Call
    ) -> Iterator[State]:
        store, answer = self._effect(state.store, call_number)
        told = self._with(state.programs, place, self._tell(number, answer))
        yield State(store, told, state.on_the_way, state.faults_left)
        left = state.faults_left - 1
        if left < 0:
            return
        crashed = self._with(state.programs, place, CRASHED)
        yield State(state.store, crashed, state.on_the_way, left)
        silent = Answer("unknown" if call.verb == "create" else "failed")
        untold = self._with(state.programs, place, self._tell(number, silent))
        if call.verb not in WRITES:
            yield State(state.store, untold, state.on_the_way, left)
            return
        late = tuple(sorted((*state.on_the_way, call_number)))
        yield State(state.store, untold, late, left)
        yield State(store, told, late, left)
        if call.verb == "create":
            refused = self._with(state.programs, place, self._tell(number, Answer("failed")))
            yield State(state.store, refused, state.on_the_way, left)

    def _effect(self, store: int, call: int) -> tuple[int, Answer]:
        known = self._effects.get((store, call))
        if known is None:
            objects, answer = carry_out(self._stores[store], self._calls[call])
            known = self._effects[store, call] = self._stores.number(objects), answer
        return known

    def _tell(self, place: int, answer: Answer) -> int:
        known = self._told.get((place, answer))
        if known is None:
            at = self._places[place]
            known = self._told[place, answer] = self._go(at.program, (*at.answers, answer))
        return known

    def _go(self, program: int, answers: tuple[Answer, ...]) -> int:
        """Runs a program from its beginning with these answers; returns the number of where it gets to."""
        try:
            place = Place(program, answers, None, self._programs[program](_Script(answers)))
        except _Asks as asked:
            place = Place(program, answers, asked.call)
        except NisynthError as error:
            place = Place(program, answers, None, error)
        self._places.append(place)
        return len(self._places) - 1

    def _is_end(self, state: State) -> bool:
        return all(number == CRASHED or self._places[number].call is None for number in state.programs)

    def _problem(self, state: State) -> str | None:
        problem = self._once("store", state.store, self._judge)
        for number in state.programs:
            if problem is None and number != CRASHED and self._places[number].call is None:
                place = self._places[number]
                name = self._names[place.program]
                problem = self._judge_result(name, place.result, self._stores[state.store])
        if problem is None and self._is_end(state):
            problem = self._once("end", state.store, self._judge_end)
        return problem

    def _once(self, kind: str, store: int, judge: Callable[[Objects], str | None]) -> str | None:
        if (kind, store) not in self._judged:
            self._judged[kind, store] = judge(self._stores[store])
        return self._judged[kind, store]

    @staticmethod
    def _with(programs: tuple[int, ...], place: int, number: int) -> tuple[int, ...]:
        return (*programs[:place], number, *programs[place + 1 :])


class _Numbers(Generic[T]):
    """Gives equal things equal numbers."""

    def __init__(self) -> None:
        self._numbers: dict[T, int] = {}
        self._things: list[T] = []

    def number(self, thing: T) -> int:
        known = self._numbers.get(thing)
        if known is None:
            known = self._numbers[thing] = len(self._things)
            self._things.append(thing)
        return known

    def __getitem__(self, number: int) -> T:
        return self._things[number]
