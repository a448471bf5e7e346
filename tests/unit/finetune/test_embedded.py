"""Functions of the environment: what is asked and what is answered make the function again."""

import ast

from loopcoder_train.finetune.embedded import conversations_of, environment_conversations

SOURCE = '''
class A:
    @staticmethod
    def twice(x):
        """Twice as much of a thing.

        More words here.
        """
        # a comment
        y = x + x

        return y

    def nothing(self):
        """A docstring, long enough to count as one."""
        raise NotImplementedError

    def one_line(self): """A docstring, long enough to count as one."""; return 1

    def short(self):
        """Short."""
        return 1
'''


def test_a_function_becomes_a_question_and_its_answer():
    (row,) = conversations_of(SOURCE, "a.py")
    asked, answered = (message["content"] for message in row.messages)
    assert asked.endswith('"""\n') and "def twice(x):" in asked and "return y" not in asked
    assert answered.startswith("    # a comment\n    y = x + x\n")
    function = ast.parse(asked.partition("\n\n")[2] + answered).body[0]
    assert ast.unparse(function.body[-1]) == "return y" and "Twice" in ast.get_docstring(function)


def test_white_space_does_not_change_the_key():
    changed = SOURCE.replace("        y = x + x\n", "        y = x  +  x\n\n").replace("Twice as much", "Double")
    keys = [[row.key for row in conversations_of(source, "a.py")] for source in (SOURCE, changed)]
    assert keys[0] == keys[1] and len(keys[0]) == 1


def test_it_is_the_same_every_time_and_parses():
    rows = list(environment_conversations(40))
    assert len(rows) == 40 == len({row.key for row in rows})
    assert rows[:10] == list(environment_conversations(10))
    for row in rows:
        asked, answered = (message["content"] for message in row.messages)
        ast.parse(asked.partition("\n\n")[2] + answered)


def test_what_is_no_python_gives_nothing():
    assert list(conversations_of("def f(:", "a.py")) == []
    assert list(conversations_of(SOURCE.replace("a comment", "\ufdd0"), "a.py")) == []
