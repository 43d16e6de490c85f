"""What type checkers say of the public names. Not run: mypy and pyright read it (see test_typing.py).

Rules:
1. `assert_type` says what a user's checker infers; a change here is a change for users.
2. A line that must be refused carries both checkers' ignore comments: they complain if nothing is wrong there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, assert_type

import headrace as hr
from headrace.testing import ScriptedHttp, ScriptedReply, ScriptedRequest


class User:
    name: str


async def get_user(number: int) -> User:
    raise NotImplementedError


def parse(user: User) -> str:
    return user.name


async def get_friends(user: User) -> list[User]:
    raise NotImplementedError


async def each_friend(user: User) -> AsyncIterator[User]:
    yield user


def letters(text: str) -> Iterator[int]:
    yield from text.encode()


def is_wanted(text: str) -> bool:
    return bool(text)


async def maps() -> None:
    got = await hr.map(get_user, [1, 2], concurrency=10, timeout=5.0, retry=hr.Retry(attempts=4))
    assert_type(got, hr.Outcomes[User])
    assert_type(got.values, list[User])
    assert_type(got.done, list[hr.Done[User]])
    assert_type(got.failed, list[hr.Failed[User]])
    assert_type(got[0], hr.Outcome[User])
    assert_type(got.report, hr.Report)
    assert_type(got.report.stages[0].copies, int)
    assert_type((await hr.map(get_user, [1], effect="safe", hedge=0.05)).values, list[User])
    for outcome in got:
        assert_type(outcome, hr.Outcome[User])
    in_threads = await hr.map(parse, [User()], lane="thread")
    assert_type(in_threads.values, list[str])


def maps_in_scripts() -> None:
    assert_type(hr.map_sync(get_user, [1, 2], out="users.db"), hr.Outcomes[User])
    assert_type(hr.map_sync(get_user, [1, 2], effect="safe", hedge=0.05), hr.Outcomes[User])
    assert_type(hr.map_sync(parse, [User()], concurrency=4), hr.Outcomes[str])


def outcomes(outcome: hr.Outcome[User]) -> str:
    match outcome:
        case hr.Done(value=value):
            return str(value.name)  # pyright knows a User here, mypy Any
        case hr.Failed(error=error):
            assert_type(error, Exception)
            return str(error)
        case hr.Skipped(reason=reason):
            return reason
        case _:
            return repr(outcome)


def flows() -> None:
    numbers = hr.Flow(range(10))
    assert_type(numbers, hr.Flow[int])
    users = numbers.map(get_user, concurrency=10, rate="5/s", effect="safe")
    assert_type(users, hr.Flow[User])
    assert_type(numbers.map(get_user, effect="safe", hedge=0.05), hr.Flow[User])
    texts = users.map(parse)
    assert_type(texts, hr.Flow[str])
    assert_type(users.flat_map(get_friends), hr.Flow[User])
    assert_type(users.flat_map(each_friend), hr.Flow[User])
    assert_type(texts.flat_map(letters, fanout=10), hr.Flow[int])
    assert_type(texts.filter(is_wanted), hr.Flow[str])
    assert_type(texts.batch(10, linger=0.5), hr.Flow[list[str]])
    assert_type(texts.take(3).until(is_wanted), hr.Flow[str])
    assert_type(texts.into(hr.sqlite.table("out.db")), hr.Flow[str])
    assert_type(texts.run_sync(), hr.Report)
    assert_type(texts.explain(), str)


async def runs() -> None:
    flow = hr.Flow([1, 2]).map(get_user)
    assert_type(await flow.run(job="users", max_age="24h"), hr.Report)
    async with flow.start() as job:
        assert_type(job, hr.Job)
        assert_type(await job.wait(), hr.Report)
    async with flow.stream() as stream:
        async for outcome in stream:
            assert_type(outcome, hr.Outcome[User])


async def budgets() -> None:
    budget = hr.Budget(cost=5, estimate=len, actual=lambda user: 1.5, name="tokens")
    got = await hr.map(get_user, [1], budget=budget, fuse=20)
    assert_type(got, hr.Outcomes[User])
    assert_type(hr.map_sync(parse, [User()], budget=hr.Budget(calls=10), fuse=None), hr.Outcomes[str])
    flow = hr.Flow([1]).map(get_user, budget=budget).flat_map(get_friends, budget=budget).map(parse)
    assert_type(flow, hr.Flow[str])
    assert_type(await flow.run(fuse="auto"), hr.Report)
    assert_type(budget.statistics().left, float | None)
    hr.Budget(calls="10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hr.Budget(10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    hr.Flow([1]).map(get_user, budget=10)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await flow.run(fuse="off")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def groups() -> None:
    async with hr.Group() as group:
        user = group.start(get_user, 7)
        text = group.start(parse, User())
        assert_type(await user, User)
        assert_type(text.value, str)
        group.start(get_user, "7")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def inboxes() -> None:
    inbox: hr.Inbox[int] = hr.Inbox(capacity=10)
    ticket = await inbox.put(1)
    assert_type(ticket.item, int)
    assert_type(inbox.unread(), list[int])
    await inbox.put("one")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def requests() -> None:
    async with hr.http.Client(timeouts=hr.http.Timeouts(total=5)) as client:
        response = await client.get("http://127.0.0.1:8000/")
        assert_type(response, hr.http.Response)
        assert_type(response.json(), Any)
        assert_type(response.json(dict[str, int]), dict[str, int])


async def answer(request: ScriptedRequest) -> ScriptedReply:
    return ScriptedReply(json={"id": request.fields["id"]})


async def scripted_requests() -> None:
    script = ScriptedHttp()
    script.on("GET", "https://api.example/{id}").reply(429, retry_after=2).then(
        fault="stall", body=b"x"
    ).then(answer)
    assert_type(script.client(max_body=10), hr.http.Client)
    hr.http.fetch(client=script.client)
    hr.http.fetch(client=partial(hr.http.Client, transport=script))
    assert_type(script.requests, list[ScriptedRequest])
    script.on("GET", "https://a/").reply(fault="stal")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    script.on("GET", "https://a/").reply(jsn=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    hr.http.Client(transport=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def scripts_are_checked() -> None:
    hr.map_sync(get_user, [1], concurency=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def options_are_checked() -> None:
    hr.Retry(attempts="4")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hr.Limit(concurrency=hr.Adaptive(1, 16))
    hr.Adaptive("1", 16)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hr.Limit(5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    hr.Flow([1]).map(get_user, concurency=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    hr.Flow([1]).map(get_user, hedge="5%")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    hr.Flow([1]).map(get_user, effect="twice")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
