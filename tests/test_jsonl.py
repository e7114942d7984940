"""Lines of a JSONL file, read by our names of its columns."""

import pytest

from unigrpo.data.jsonl import Line, mapped, read_objects
from unigrpo.errors import UserError


def line(values, **columns):
    return Line(path="f.jsonl", number=7, values=values, columns=mapped(("prompt", "answer"), columns))


@pytest.mark.parametrize(
    ("content", "numbers"),
    [(b'{"a": 1}\n{"a": 2}', [1, 2]), (b'\n \n{"a": 1}\n\xef\xbb\xbf{"a"', [3]), (b'{"a": 1}\n{"a": "\xff', [1])],
)
def test_a_torn_last_line_is_passed_over_only_on_request(tmp_path, content, numbers):
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    assert [number for number, _ in read_objects(path, may_end_torn=True)] == numbers
    if len(numbers) == 1:
        with pytest.raises(UserError, match=rf"f\.jsonl:{numbers[0] + 1}: not JSON"):
            list(read_objects(path))
    path.write_bytes(content + b'\n{"a": 3}\n')
    if len(numbers) == 1:
        with pytest.raises(UserError, match=rf"f\.jsonl:{numbers[0] + 1}: not JSON"):
            list(read_objects(path, may_end_torn=True))


def test_columns_of_ours_are_read_under_the_names_of_the_file():
    one = line({"question": "q", "answer": [1, "é"], "level": 3}, prompt="question")
    assert (one.get("prompt"), one.text("answer"), one.others()) == ("q", '[1, "é"]', {"level": 3})
    with pytest.raises(UserError, match=r"^f\.jsonl:7: no column 'p' for 'prompt'; its columns are 'x'; map it$"):
        line({"x": 1}, prompt="p").needed("prompt", "map it")


def test_turns_are_role_and_text():
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert line({}).turns(turns) == (("system", "s"), ("user", "u"))
    assert line({}).turns("u") == (("user", "u"),)
    for wrong in ([], [{"role": "tool", "content": "x"}], [{"role": "user"}], {"role": "user", "content": "x"}, None):
        with pytest.raises(UserError, match=r"f\.jsonl:7: prompt .*turns of role system/user/assistant"):
            line({}).turns(wrong)


def test_the_first_folder_that_holds_a_picture_wins(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "both").touch()
    (second / "one").touch()
    assert line({}).images(["both", "one"], [first, second]) == (first / "both", second / "one")
    assert line({}).images(None, [first]) == ()
    with pytest.raises(UserError, match=r"there is no picture 'none' in .*first or .*second; put it there"):
        line({}).images("none", [first, second])
    with pytest.raises(UserError, match=r"picture '\.\./second/one' lies outside .*first; move it inside"):
        line({}).images("../second/one", [first])
