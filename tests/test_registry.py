"""Names: doubles are refused, unknown ones are answered with the nearest."""

import pytest

from ganscope.errors import GanscopeError
from ganscope.registry import Registry


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
