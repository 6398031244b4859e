"""How many threads each step has, as the time of steps tells."""

from collections.abc import Callable, Iterator

import pytest
import torch

from vgg_search.training.threads import PATIENCE, Threads

STEPS = 40


def numbers(seconds: Callable[[int, int], float], epochs: int = 1, most: int = 2) -> list[int]:
    """The threads of each step, where a step with so many threads, of that place, takes so long."""
    now, found = [0.0], []
    threads = Threads(most, clock=lambda: now[0])
    for _ in range(epochs):
        with threads.epoch():
            for place in range(STEPS):
                with threads.step(place, STEPS):
                    found.append(torch.get_num_threads())
                    now[0] += seconds(found[-1], place)
        assert torch.get_num_threads() == most
    return found


@pytest.fixture(autouse=True)
def _two_threads_afterwards_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_all_threads_where_nobody_disturbs() -> None:
    assert numbers(lambda count, _: 1 / count) == [1] * 2 + [2] * 38


def test_a_program_that_is_soon_over_changes_nothing() -> None:
    def seconds(count: int, place: int) -> float:
        return 9.0 if 10 <= place < 10 + PATIENCE - 1 else 1 / count

    assert numbers(seconds) == [1] * 2 + [2] * 38


def test_one_while_others_need_the_cores_and_all_are_tried_again_in_the_next_epoch() -> None:
    slow = [1] * 2 + [2] * PATIENCE + [1] * (38 - PATIENCE)
    assert numbers(lambda count, _: 70.0 if count > 1 else 1.0, epochs=2) == slow * 2


def test_it_is_noticed_in_the_middle() -> None:
    found = numbers(lambda count, place: 70.0 if count > 1 and place >= 20 else 1 / count)
    assert found == [1] * 2 + [2] * (18 + PATIENCE) + [1] * (20 - PATIENCE)


def test_a_process_of_one_thread_stays_so() -> None:
    torch.set_num_threads(1)
    assert numbers(lambda _count, _place: 1.0, most=1) == [1] * STEPS
