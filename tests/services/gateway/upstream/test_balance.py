"""The choice of the LiteLLM instance for the next request."""

from __future__ import annotations

from collections import Counter

from yarl import URL

from services.gateway.upstream.balance import MAX_TRIED, Balancer, Instance
from tests.support.clock import Clock


def balancer(count: int) -> tuple[Balancer, Clock]:
    clock = Clock()
    return Balancer([URL(f"http://litellm-{number}") for number in range(count)], clock), clock


def picked(balancer: Balancer, times: int, *, hold: bool = True) -> Counter[Instance]:
    counts: Counter[Instance] = Counter()
    for _ in range(times):
        instance = balancer.pick()
        assert instance is not None
        counts[instance] += 1
        instance.open += hold
    return counts


def test_requests_go_where_fewest_are_open() -> None:
    three, _ = balancer(3)
    three.instances[0].open = 10
    assert picked(three, 20) == {three.instances[1]: 10, three.instances[2]: 10}
    assert picked(three, 30) == dict.fromkeys(three.instances, 10)


def test_idle_instances_take_turns() -> None:
    three, _ = balancer(3)
    assert picked(three, 30, hold=False) == dict.fromkeys(three.instances, 10)


def test_two_failed_checks_take_an_instance_out_and_a_passed_one_brings_it_back_slowly() -> None:
    two, clock = balancer(2)
    first, second = two.instances
    first.check_failed()
    assert first.healthy
    first.check_failed()
    assert picked(two, 20) == {second: 20}
    first.check_passed()
    assert picked(two, 3)[first] <= 2  # a tenth of its share at first
    clock.now += 20
    assert picked(two, 60)[first] >= 35  # then what it has been spared


def test_a_failed_connection_is_sat_out_longer_each_time() -> None:
    two, clock = balancer(2)
    first, second = two.instances
    first.connect_failed()
    assert picked(two, 10) == {second: 10}
    clock.now += 0.6
    first.connect_failed()
    clock.now += 0.6
    assert picked(two, 5) == {second: 5}
    clock.now += 0.6
    first.answered()
    assert two.pick() is first


def test_a_lone_instance_is_asked_until_its_checks_fail() -> None:
    one, _ = balancer(1)
    (only,) = one.instances
    only.connect_failed()
    assert one.pick() is only
    assert one.pick({only}) is None
    only.check_failed()
    only.check_failed()
    assert not one.healthy
    assert one.pick() is only  # the checks may be wrong
    only.tried = MAX_TRIED
    assert one.pick() is None
    assert not one.accepts


def test_while_any_instance_is_healthy_nothing_is_tried_elsewhere() -> None:
    two, _ = balancer(2)
    first, second = two.instances
    first.check_failed()
    first.check_failed()
    second.open = 1000
    assert picked(two, 10) == {second: 10}


def test_when_all_look_dead_some_requests_are_tried_at_each_that_has_not_enough() -> None:
    three, _ = balancer(3)
    for instance in three.instances:
        instance.check_failed()
        instance.check_failed()
    three.instances[0].tried = MAX_TRIED
    assert three.accepts
    assert picked(three, 20, hold=False) == dict.fromkeys(three.instances[1:], 10)
    assert three.pick(set(three.instances[1:])) is None
    for instance in three.instances:
        instance.tried = MAX_TRIED
    assert not three.accepts
    assert three.pick() is None
    three.instances[1].answered()
    assert three.accepts
    assert three.pick() is three.instances[1]


def test_an_answered_chat_is_a_sign_of_life() -> None:
    one, _ = balancer(1)
    (only,) = one.instances
    only.check_failed()
    only.answered()
    only.check_failed()
    assert only.healthy
    only.check_failed()
    assert not only.healthy
    only.answered()
    assert only.healthy


def test_nobody_is_asked_twice_for_one_request() -> None:
    two, _ = balancer(2)
    tried: set[Instance] = set()
    while (instance := two.pick(tried)) is not None:
        tried.add(instance)
    assert tried == set(two.instances)
