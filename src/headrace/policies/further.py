"""What a request needs of the limits that its call holds already, and of those that it brings along.

        further ─► trade ─► (the request goes out)
              │      └─► not now: wait, holding what is held; or ─┐
              └──────────────► step_back ─► admit ─► settle ◄─────┘

Rules:
1. A call holds a limit once, however many requests it makes. The first request is covered by the start that the call
   was charged for; every further one is charged to the rates again, and waits for holds.
2. Where a request has another key, the permit of the old key is given back before that of the new one is taken.
3. `trade` is one synchronous step over all of it: all is taken or nothing changes.
4. Who waits for a permit holds none: `step_back` gives everything back first, and all is taken again together. So no
   two calls can wait for each other, in whichever order they came by their limits.
5. Where a function says what a call costs, or `actual` what it did cost, that is said of the call as a whole: its
   further requests are not charged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from headrace.errors import HeadraceError
from headrace.policies.limits import Claim, KeyState, Limit, admit, cancel, claim, drop, release, wait_of

__all__ = [
    "Further",
    "further",
    "has_url_keys",
    "is_moved",
    "settle",
    "step_back",
    "trade",
    "understands_urls",
]

By = TypeVar("By", bound=Callable[..., Any])


def understands_urls(by: By) -> By:
    """Mark a key function that gives the right key for the URL of a request too, whatever a stage's values are."""
    by.understands_urls = True  # type: ignore[attr-defined]
    return by


class Further:
    """What a request needs. Of what its call holds, it `stays` (and is charged `charges`) or it `leaves`.

    `comes` is taken besides: in the place of what leaves, and at its end the `own` of the request.
    """

    __slots__ = ("charges", "comes", "costs", "is_first", "leaves", "own", "stays")

    def __init__(self, is_first: bool) -> None:
        self.is_first = is_first
        self.stays: list[Claim] = []
        self.charges: list[float] = []
        self.leaves: list[Claim] = []
        self.comes: list[Claim] = []
        self.own: list[Claim] = []
        self.costs: list[float] = []

    @property
    def kept(self) -> list[Claim]:
        """What the call holds when all is taken, without the request's own."""
        return [*self.stays, *self.comes[: len(self.comes) - len(self.own)]]


def has_url_keys(limit: Limit, of_urls: bool) -> bool:
    """Say whether a limit's keys can be had from the URL of a request.

    `of_urls`: the stage's values are URLs. Else only functions that understand URLs are asked; what a function for rows
    makes of a URL would mean nothing.
    """
    return limit.by is not None and (of_urls or getattr(limit.by, "understands_urls", False))


def is_moved(held: Sequence[Claim], value: Any, of_urls: bool) -> bool:
    """Say whether a request for `value` (a URL) has another key than the one held, as far as can be told."""
    for each in held:
        by = each.state.limit.by
        if by is None or not has_url_keys(each.state.limit, of_urls):
            continue
        try:
            if by(value) != each.state.key:
                return True
        except Exception:  # noqa: BLE001  a user's function; the key stays what it is
            continue
    return False


def further(
    held: Sequence[Claim], value: Any, limits: Sequence[Limit] = (), *, is_first: bool, of_urls: bool
) -> Further:
    """Work out what a request for `value` needs beside what its call holds; takes nothing yet.

    `limits` are the request's own; those that the call holds are left out. Where no new key can be had the held one
    stays. Raises as `claim` does, with nothing claimed.
    """
    plan = Further(is_first)
    for each in held:
        limit = each.state.limit
        state = _state_for(each, value, of_urls)
        if state is not each.state:
            state.claims += 1
            plan.leaves.append(each)
            plan.comes.append(Claim(state, each.cost))
            continue
        plan.stays.append(each)
        as_a_whole = is_first or callable(limit.cost) or limit.actual is not None
        plan.charges.append(0.0 if as_a_whole else limit.unit_cost)
    known = {each.state.limit for each in held}
    try:
        plan.own = claim([limit for limit in limits if limit not in known], value)
    except BaseException:
        drop(plan.comes)
        raise
    plan.comes += plan.own
    return plan


def _state_for(each: Claim, value: Any, of_urls: bool) -> KeyState:
    if not is_moved([each], value, of_urls):
        return each.state
    try:
        return each.state.limit._state_of(value)
    except HeadraceError:
        return each.state


def trade(plan: Further, now: float) -> float:
    """Charge what stays, give back what leaves and take what comes, and give 0.0; or change nothing.

    Then it gives the least time (seconds) after which rates and holds may allow it, or inf where a permit is missing.
    Who waits at the keys of `leaves` is to be woken afterwards.
    """
    charged = [] if plan.is_first else list(zip(plan.stays, plan.charges, strict=True))
    wait = max((wait_of(each.state, charge, now) for each, charge in charged), default=0.0)
    if wait > 0.0:
        return wait
    for each in plan.leaves:  # the place of a call may be the one that it needs at another key
        each.state.inflight -= 1
    wait = admit(plan.comes, now)
    for each in plan.leaves:
        each.state.inflight += 1
    if wait > 0.0:
        return wait
    for each, charge in charged:
        each.state.limit._seen = now
        each.state.charge(charge, now)
    _give_up(plan, plan.leaves)
    return 0.0


def step_back(plan: Further) -> list[KeyState]:
    """Give back all that the call holds, to wait without it; give the keys, to wake who waits there.

    From then on all that is needed is in `comes`, for `admit`; call `settle` when that has taken it.
    """
    again = [
        Claim(each.state, each.cost if plan.is_first else charge)
        for each, charge in zip(plan.stays, plan.charges, strict=True)
    ]
    for each in again:
        each.state.claims += 1
    plan.comes[:0] = again
    plan.costs = [each.cost for each in plan.stays]
    freed = _give_up(plan, [*plan.stays, *plan.leaves])
    plan.stays, plan.charges, plan.leaves = [], [], []
    return freed


def settle(plan: Further) -> None:
    """Let what was taken again count as what it was taken for at first: `actual` corrects that."""
    for each, cost in zip(plan.comes, plan.costs, strict=False):
        each.cost = cost


def _give_up(plan: Further, claims: Sequence[Claim]) -> list[KeyState]:
    """Give back permits, and their rate too where no request has gone out for it."""
    return cancel(claims) if plan.is_first else release(claims)
