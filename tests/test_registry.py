"""Names: doubles are refused, unknown ones are answered with the nearest."""

import pytest

from ganscope.errors import GanscopeError
from ganscope.registry import Registry, unknown


def test_registering_and_finding() -> None:
    things: Registry[int] = Registry("thing")
    things.register("one")(1)
    assert things["one"] == 1
    with pytest.raises(ValueError, match="registered twice"):
        things.register("one")(1)


def test_an_unknown_name_gets_a_suggestion_and_the_list() -> None:
    things: Registry[int] = Registry("detector")
    for name in ("resnet50", "cnn"):
        things.register(name)(0)
    with pytest.raises(GanscopeError) as caught:
        things["resnet5"]
    said = "unknown detector 'resnet5'; did you mean 'resnet50'? Known: cnn, resnet50"
    assert str(caught.value) == said


def test_a_refused_double_leaves_the_first_in_place_and_decorating_returns_the_object() -> None:
    things: Registry[object] = Registry("thing")

    @things.register("one")
    def one() -> int:
        return 1

    assert one() == 1
    with pytest.raises(ValueError, match="thing 'one' is registered twice"):
        things.register("one")(2)
    assert things["one"] is one


def test_what_resembles_nothing_gets_the_list_alone() -> None:
    assert unknown("layout", "zzz", ["a", "b"]) == "unknown layout 'zzz'. Known: a, b"


def test_asking_whether_a_name_is_known_does_not_raise() -> None:
    things: Registry[int] = Registry("thing")
    assert "one" not in things
    assert things.get("one") is None
