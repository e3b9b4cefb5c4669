"""Group commit: what requests ask for at the same time is done in one go, in one transaction for all of them.

A commit is most of what a small write costs, and a database makes one at a time. Whatever is asked for while a
group is at work waits, and is the next group; what comes while that one is being prepared still joins it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

ASKED_MAX = 64

Asked = TypeVar("Asked")
Prepared = TypeVar("Prepared")
Done = TypeVar("Done")


class Grouping(Generic[Asked, Prepared, Done]):
    """One queue of one process, used on its event loop. `prepare` and `work` run on a thread: each does all that
    it is given, in that order, or raises for all of the group.
    """

    def __init__(
        self,
        prepare: Callable[[Sequence[Asked]], Sequence[Prepared]],
        work: Callable[[Sequence[Prepared]], Sequence[Done]],
    ) -> None:
        self._prepare = prepare
        self._work = work
        self._waiting: deque[tuple[Asked, asyncio.Future[Done]]] = deque()
        self._at_work: asyncio.Task[None] | None = None

    async def ask(self, asked: Asked) -> Done:
        """Have it done; raises what was raised for the group that it was in.

        Whoever stops waiting does not undo it.
        """
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, answer))
        if self._at_work is None:
            self._at_work = asyncio.create_task(self._take_all())
        return await answer

    async def _take_all(self) -> None:
        try:
            while self._waiting:
                await self._take()
        finally:
            self._at_work = None

    async def _take(self) -> None:
        group: list[tuple[Asked, asyncio.Future[Done]]] = []
        try:
            done = await asyncio.to_thread(self._do, group)
        except Exception as fault:  # noqa: BLE001 - it is raised where it was asked for
            for _, answer in group:
                if not answer.done():
                    answer.set_exception(fault)
            return
        for (_, answer), each in zip(group, done, strict=True):
            if not answer.done():
                answer.set_result(each)

    def _do(self, group: list[tuple[Asked, asyncio.Future[Done]]]) -> Sequence[Done]:
        """Let all that waits into the group, until it has been prepared and nothing more has come meanwhile."""
        prepared: list[Prepared] = []
        while self._waiting and len(group) < ASKED_MAX:
            some = [self._waiting.popleft() for _ in range(min(ASKED_MAX - len(group), len(self._waiting)))]
            group += some
            prepared += self._prepare([asked for asked, _ in some])
        return self._work(prepared)
