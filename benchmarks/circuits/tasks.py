"""The tasks of the comparison: pairs of prompts that differ in what decides the next token, drawn by a seed.

All prompts of a task have as many tokens. The other prompt of a pair does not have what the answer follows from, or
has it otherwise. The value of a prompt is the mean logit of the right tokens less that of the wrong ones.

Sources: indirect objects from Wang et al., "Interpretability in the Wild", 2022; years from Hanna, Liu and Variengien,
"How Does GPT-2 Compute Greater-Than?", 2023; agreement from Linzen, Dupoux and Goldberg, "Assessing the Ability of
LSTMs to Learn Syntax-Sensitive Dependencies", 2016; docstrings from Heimersheim and Janiak, "A Circuit for Python
Docstrings in a 4-layer Attention-only Transformer", 2023.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from jaxlin.common.errors import JaxlinError
from jaxlin.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pair:
    """A prompt, another one, and what tells them apart.

    Attributes:
        text: the prompt.
        other: the other prompt, of as many tokens.
        right: words, each one token, of which the prompt makes one right.
        wrong: words that it makes wrong.
    """

    text: str
    other: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words("Mary John Tom James Sarah Anna David Paul Peter Mark Jack Emma Alice Kate Lucy Simon")
PLACES = _words("school work church dinner town")
THINGS = _words("drink book ring letter present")
EVENTS = _words("war project expedition dispute study")
NOUNS = {"key": "keys", "dog": "dogs", "teacher": "teachers", "author": "authors", "doctor": "doctors", "cat": "cats"}
NEAR = _words("table door window house garden car river wall")
WORDS = _words("load size files last date value name path line text user state width order image color node index")
PROSE = _words("oil crime unit river market winter stone paper glass water music street")
CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "China": "Beijing",
    "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Ireland": "Dublin", "Austria": "Vienna",
    "Cuba": "Havana", "Iran": "Tehran", "Norway": "Oslo", "Portugal": "Lisbon", "Turkey": "Ankara",
}  # fmt: skip


def indirect_object(draw: random.Random) -> Pair:
    """Who is given something: the name that stands once. In the other prompt a third name gives it."""
    a, b, third = draw.sample(NAMES, 3)
    first, second = draw.choice([(a, b), (b, a)])
    text = f"When {first} and {second} went to {draw.choice(PLACES)}, {{}} gave a {draw.choice(THINGS)} to"
    return Pair(text.format(b), text.format(third), (f" {a}",), (f" {b}",))


def greater_than(draw: random.Random) -> Pair:
    """The tens of a year that comes after one of the same century. In the other prompt every digit but 0 does."""
    century, tens, ones = draw.randint(11, 18), draw.randint(2, 7), draw.randint(1, 9)
    text = f"The {draw.choice(EVENTS)} lasted from {century}{{}} to {century}"
    right, wrong = (tuple(map(str, digits)) for digits in (range(tens + 1, 10), range(tens)))
    return Pair(text.format(f"{tens}{ones}"), text.format("01"), right, wrong)


def agreement(draw: random.Random) -> Pair:
    """The number of the verb, which is that of the subject. In the other prompt the subject has the other number."""
    (singular, plural), near = draw.choice(list(NOUNS.items())), draw.choice(NEAR)
    text = f"The {{}} near the {near}"
    pair = (text.format(singular), text.format(plural), (" is", " was"), (" are", " were"))
    return Pair(*pair) if draw.random() < 0.5 else Pair(pair[1], pair[0], pair[3], pair[2])


def docstring(draw: random.Random) -> Pair:
    """The third argument of a function, after the first two. In the other prompt the function has other arguments."""
    own, prose = draw.sample(WORDS, 6), draw.sample(PROSE, 2)
    text = (
        f'def port(self, {{}}, {{}}, {{}}):\n    """\n    :param {own[0]}: {prose[0]}\n'
        f"    :param {own[1]}: {prose[1]}\n    :param"
    )
    right, wrong = (f" {own[2]}",), (f" {own[0]}", f" {own[1]}")
    return Pair(text.format(*own[:3]), text.format(*own[3:]), right, wrong)


def capital(draw: random.Random) -> Pair:
    """The capital of a country. The other prompt has another country."""
    country, another = draw.sample(list(CAPITALS), 2)
    text = "The capital city of {} is"
    return Pair(text.format(country), text.format(another), (f" {CAPITALS[country]}",), (f" {CAPITALS[another]}",))


TASKS: dict[str, Callable[[random.Random], Pair]] = {
    "indirect object": indirect_object,
    "greater than": greater_than,
    "agreement": agreement,
    "docstring": docstring,
    "capital": capital,
}


DRAWS = 100
"""How many pairs are drawn for each that is asked for."""


def pairs(task: str, tokenizer: Tokenizer, count: int, seed: int = 0) -> list[Pair]:
    """Distinct pairs of a task whose prompts all have as many tokens, and whose answers are one token each.

    Raises:
        JaxlinError: the tokenizer divides the words of the task, so that there are not so many.
    """
    draw, drawn = random.Random(f"{task} {seed}"), dict[Pair, None]()
    length = 0
    for _ in range(DRAWS * count):
        pair = TASKS[task](draw)
        lengths = {len(tokenizer.encode(text)) for text in (pair.text, pair.other)}
        single = all(len(tokenizer.encode(word)) == 1 for word in (*pair.right, *pair.wrong))
        length = length or max(lengths)
        if lengths == {length} and single:
            drawn[pair] = None
        if len(drawn) == count:
            return list(drawn)
    raise JaxlinError(f"Task {task}: expected {count} pairs of prompts with answers of one token; found {len(drawn)}.")
