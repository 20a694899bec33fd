"""What no policy can beat, even if it knew every request in advance: the clairvoyant lower bounds.

They hold for every schedule that sends each request to one of the models that may answer it under the workload's
tolerance, keeps each client's order, and respects memory, ``max_parallel`` and load times. Bringing a sleeping model
back counts as a load here, as quick as its quickest waking. Stopping takes no time, a load may begin before anybody
asks for it, and nothing is unloaded for being idle. On several GPUs, models fit together if they fit into the sum of
the memory. Each of these allows more than a real machine does, so the bounds only become lower.

`unlimited`: requests may wait as long as it pleases the schedule.

*Loads.* A schedule for all clients serves some of the clients as well, so the fewest loads for some of them are a bound
for all. Of clients with the same sequence of wishes one is kept; a sequence that is contained in another one is dropped
(whatever serves the longer one can serve the shorter on the way). For the rest the fewest loads are found by a
breadth-first search over (how far each sequence has come, what is loaded). Between two loads every sequence advances
as far as it can: a request that is served later could as well be served now. A load unloads as little as makes room,
and only then: what could be unloaded earlier can be unloaded later. So the search misses no better schedule, and on one
GPU the number is exact: everybody can be made to wait for the schedule found. If more than ``MOST_STATES`` states are
seen, the largest result for a single sequence is taken instead, and with more than ``MOST_MODELS`` models the number of
models that some request names alone: still bounds, ``is_exact`` is then False.

*Total time*, the largest of:

1. for each client, when it comes (or the shortest load that its first request can wait for, if that is longer), then
   all of its answers and pauses;
2. for a set of models of which no two fit together, and the requests that only they can answer: at any moment at most
   one of them is in memory, so the loads of different models, and a load and an answer, never overlap. The sum of load
   times is at least one load of each model that some request names alone, and for the rest of the fewest loads (found
   as above, for these requests) the shortest one. To it is added the larger of: for each model its answer times over
   ``max_parallel``, in sum; for any one client all its answer times, which do not overlap either.

`limited`: no wait may exceed ``max_overtake_s`` + the longest load + the longest answer, which is what rolecall
promises for two models. Computed only for two models that do not fit together, where every client uses one of them
only, the answers of a model all take the same time, the pauses are all the same, and all clients come while the first
model is loaded; else None.

The models take turns in memory. Let B have a turn that is followed by one of A, so clients of A have requests left.
The last answer of A before it left memory ended at t. The next request of such a client comes at t + pause or before,
and is let through at t + load(B) + s + load(A) or later, where s is the time from B's being ready to the end of its
last answer in this turn. So s <= limit + pause - load(A) - load(B); in the very first turn A's earliest client waits
since its start, which takes the place of t + pause. Within s a client gets at most
floor((s + pause) / (answer + pause)) answers, and the model gives at most max_parallel * floor(s / answer). That limits
every turn but the last. More in an early turn never hurts, so the fewest turns follow from filling each, with either
model as the first. Each turn costs a load; to the loads the answer times are added as in 2. The number of loads is
exact if all clients come at once and share the places evenly, otherwise it is a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from rolecall.simulation.workload import Chain, Model, Workload

MOST_STATES = 20_000
MOST_MODELS = 12

Wish = frozenset[str]
"""The models that may answer a request."""


@dataclass(frozen=True, slots=True)
class Bound:
    """No schedule has fewer loads or takes less time (s); ``wait_limit_s`` None: however long requests wait."""

    loads: int
    total_s: float
    is_exact: bool
    """Whether the number of loads is known to be the least, not only a bound; on one GPU."""
    wait_limit_s: float | None = None


def unlimited(workload: Workload) -> Bound:
    """Return the bound for schedules that may let requests wait for ever."""
    loads, is_exact = fewest_loads((_wishes(workload, chain) for chain in workload.chains), workload)
    alone_s = max((_alone_s(workload, chain) for chain in workload.chains), default=0.0)
    in_turn_s = max((_in_turn_s(workload, rivals) for rivals in _rivalries(workload)), default=0.0)
    return Bound(loads, max(alone_s, in_turn_s), is_exact and len(workload.machine.gpus_mb) == 1)


# -- loads


def fewest_loads(sequences: Iterable[Sequence[Wish]], workload: Workload) -> tuple[int, bool]:
    """Return the fewest loads that serve the sequences, each in its order, and whether all were taken together."""
    kept = _longest({_condensed(sequence) for sequence in sequences})
    if len(workload.models) > MOST_MODELS:
        return len({name for sequence in kept for wish in sequence if len(wish) == 1 for name in wish}), False
    together = _search(kept, workload)
    if together is not None:
        return together, True
    alone = [_search([sequence], workload) for sequence in kept]
    return max((loads for loads in alone if loads is not None), default=0), False


def _condensed(sequence: Sequence[Wish]) -> tuple[Wish, ...]:
    return tuple(wish for at, wish in enumerate(sequence) if at == 0 or wish != sequence[at - 1])


def _longest(sequences: Collection[tuple[Wish, ...]]) -> list[tuple[Wish, ...]]:
    """Return those that are not contained in another one, nor empty."""
    kept: list[tuple[Wish, ...]] = []
    for sequence in sorted(sequences, key=lambda wishes: (-len(wishes), [sorted(wish) for wish in wishes])):
        if sequence and not any(_contains(longer, sequence) for longer in kept):
            kept.append(sequence)
    return kept


def _contains(longer: Sequence[Wish], shorter: Sequence[Wish]) -> bool:
    rest = iter(longer)
    return all(any(wish == other for other in rest) for wish in shorter)


_State = tuple[tuple[int, ...], frozenset[str]]


def _search(sequences: Sequence[tuple[Wish, ...]], workload: Workload) -> int | None:
    """Return the fewest loads for the sequences together; None if that takes more than ``MOST_STATES`` states."""
    start: _State = ((0,) * len(sequences), frozenset())
    seen, frontier, loads = {start}, [start], 0
    while frontier:
        if any(all(at == len(seq) for at, seq in zip(state[0], sequences, strict=True)) for state in frontier):
            return loads
        following: set[_State] = set()
        for old in frontier:
            following.update(_after_a_load(old, sequences, workload))
            if len(seen) + len(following) > MOST_STATES:
                return None
        following -= seen
        seen |= following
        frontier, loads = list(following), loads + 1
    return None


def _after_a_load(state: _State, sequences: Sequence[tuple[Wish, ...]], workload: Workload) -> Iterator[_State]:
    places, loaded = state
    wanted = {name for at, seq in zip(places, sequences, strict=True) if at < len(seq) for name in seq[at]}
    for name in wanted - loaded:
        for rest in _remains(loaded, name, workload):
            now = rest | {name}
            yield tuple(_advance(at, seq, now) for at, seq in zip(places, sequences, strict=True)), now


def _advance(at: int, sequence: Sequence[Wish], loaded: frozenset[str]) -> int:
    while at < len(sequence) and not sequence[at].isdisjoint(loaded):
        at += 1
    return at


def _remains(loaded: frozenset[str], name: str, workload: Workload) -> Iterator[frozenset[str]]:
    """Yield what can stay loaded beside a further model: the largest such sets only."""
    found: list[frozenset[str]] = []
    for count in range(len(loaded), -1, -1):
        for names in map(frozenset, combinations(sorted(loaded), count)):
            if not any(names <= larger for larger in found) and _fit_together(names | {name}, workload):
                found.append(names)
                yield names


def _fit_together(names: Collection[str], workload: Workload) -> bool:
    machine = workload.machine
    used_mb = sum(workload.by_name[name].vram_mb for name in names)
    return used_mb <= sum(machine.gpus_mb) and len(names) <= (machine.max_models or len(names))


# -- time


def _wishes(workload: Workload, chain: Chain) -> list[Wish]:
    return [frozenset(workload.options(step.wanted)) for step in chain.steps]


def _load_s(model: Model) -> float:
    return min([model.load_s, *(cost.wake_s for cost in model.sleep)])


def _least(workload: Workload, names: Iterable[str], of: Callable[[Model], float]) -> float:
    return min(of(workload.by_name[name]) for name in names)


def _answers_s(workload: Workload, chain: Chain, among: Collection[str] | None = None) -> float:
    """Return the sum of a client's answer times, of those that only the models ``among`` can give."""
    options = [(step, workload.options(step.wanted)) for step in chain.steps]
    return sum(
        step.answer_s * _least(workload, names, lambda model: model.answer_factor)
        for step, names in options
        if among is None or set(names) <= set(among)
    )


def _alone_s(workload: Workload, chain: Chain) -> float:
    pauses_s = sum(step.think_s for step in chain.steps[:-1])
    load_s = _least(workload, workload.options(chain.steps[0].wanted), lambda model: model.load_s)
    return max(chain.start_s, load_s) + pauses_s + _answers_s(workload, chain)


def _rivalries(workload: Workload) -> set[frozenset[str]]:
    """Return sets of models of which no two fit together, one grown from each model."""
    found = set()
    for first in workload.models:
        rivals = [first.name]
        for model in workload.models:
            if model is not first and not any(_fit_together({model.name, name}, workload) for name in rivals):
                rivals.append(model.name)
        found.add(frozenset(rivals))
    return found


def _in_turn_s(workload: Workload, rivals: Collection[str]) -> float:
    mine = [[wish for wish in _wishes(workload, chain) if wish <= set(rivals)] for chain in workload.chains]
    loads, _ = fewest_loads(mine, workload)
    named = sorted({name for wishes in mine for wish in wishes if len(wish) == 1 for name in wish})
    sure_s = sum(_load_s(workload.by_name[name]) for name in named)
    rest_s = max(0, loads - len(named)) * _least(workload, rivals, _load_s)
    return sure_s + rest_s + _answering_s(workload, rivals)


def _answering_s(workload: Workload, rivals: Collection[str]) -> float:
    """Return for how long one of the rivals has to answer at least."""
    by_model = 0.0
    for name in sorted(rivals):
        model = workload.by_name[name]
        by_model += sum(_answers_s(workload, chain, {name}) for chain in workload.chains) / model.max_parallel
    return max(by_model, max((_answers_s(workload, chain, rivals) for chain in workload.chains), default=0.0))


# -- two models and a limit on waits


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models and those who use it."""

    model: Model
    clients: int
    requests: int
    answer_s: float
    first_s: float

    def most_in(self, seconds: float, pause_s: float) -> int:
        """Return how many answers it can give within ``seconds`` after it is ready."""
        if self.answer_s == 0:
            return self.requests if seconds >= 0 else 0
        each = _floor((seconds + pause_s) / (self.answer_s + pause_s))
        return max(0, min(self.clients * each, self.model.max_parallel * _floor(seconds / self.answer_s)))


def limited(workload: Workload) -> Bound | None:
    """Return the bound if no wait may exceed the limit; None if it is not known for this workload."""
    sides, pauses = _sides(workload), {step.think_s for chain in workload.chains for step in chain.steps}
    if sides is None or len(pauses) > 1:
        return None
    load_s = [side.model.load_s for side in sides]
    limit_s = workload.max_overtake_s + max(load_s) + max(side.answer_s for side in sides)
    turns = [_turns(first, second, limit_s - sum(load_s), min(pauses)) for first, second in (sides, sides[::-1])]
    possible = [(len(turn), sum(side.model.load_s for side in turn)) for turn in turns if turn]
    if not possible:
        return None
    answering_s = _answering_s(workload, [side.model.name for side in sides])
    return Bound(
        min(n for n, _ in possible), min(s for _, s in possible) + answering_s, is_exact=False, wait_limit_s=limit_s
    )


def _sides(workload: Workload) -> tuple[Side, Side] | None:
    names = [model.name for model in workload.models]
    if len(names) != 2 or _fit_together(names, workload) or any(model.sleep for model in workload.models):
        return None
    found = []
    for model in workload.models:
        chains = [chain for chain in workload.chains if {*_wishes(workload, chain)} == {frozenset([model.name])}]
        answers = {step.answer_s * model.answer_factor for chain in chains for step in chain.steps}
        if len(answers) != 1:
            return None
        first_s = min(chain.start_s for chain in chains)
        found.append(Side(model, len(chains), sum(len(chain.steps) for chain in chains), answers.pop(), first_s))
    came_s, ready_s = max(chain.start_s for chain in workload.chains), min(model.load_s for model in workload.models)
    if sum(side.clients for side in found) < len(workload.chains) or came_s > ready_s:
        return None
    return found[0], found[1]


def _turns(first: Side, second: Side, spare_s: float, pause_s: float) -> list[Side]:
    """Return whose turns they are if each is filled; empty if no schedule keeps the limit."""
    left = {first.model.name: first.requests, second.model.name: second.requests}
    turns: list[Side] = []
    side, other = first, second
    while any(left.values()):
        name = side.model.name
        most = side.most_in(spare_s + (pause_s if turns else other.first_s), pause_s)
        if left[other.model.name] and not min(most, left[name]):
            return []
        left[name] -= min(most, left[name]) if left[other.model.name] else left[name]
        turns.append(side)
        side, other = other, side
    return turns


def _floor(value: float) -> int:
    return math.floor(value + 1e-9)
