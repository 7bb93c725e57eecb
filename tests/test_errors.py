"""One line of what others say, for a message of ours."""

import pytest

from nisynth.errors import first_line, last_line, one_line


@pytest.mark.parametrize("text", ["", "  \n ", "\n"])
def test_a_blank_text_gives_no_line(text: str) -> None:
    assert first_line(text) == last_line(text) == ""
    assert one_line(ValueError(text)) == "ValueError"


def test_the_first_and_last_line_are_those_that_say_something() -> None:
    text = "\n  Traceback (most recent call last):\n  File x\nKeyError: 'y'\n\n"
    assert first_line(text) == "Traceback (most recent call last):"
    assert last_line(text) == "KeyError: 'y'"
    assert one_line(ValueError(f"{'a' * 300}\nb")) == f"ValueError: {'a' * 200}"
