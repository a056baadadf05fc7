"""Few-shot data of a user's: a CSV file of texts and labels, split into train, dev and test."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlws.data.cloze import BLANK, WORDS, Cloze, Cutter
from vlws.data.text import read_text
from vlws.errors import InputError

TEMPLATE = "{text} It was " + BLANK + " ."
OTHERS = {";": "a semicolon", "\t": "a tab", "|": "a bar"}  # delimiters that are told apart from a comma


class Labelled(NamedTuple):
    """Texts, the label of each, and the classes in alphabetical order.

    >>> Labelled(("a fine film",), ("good",)).classes
    ('good',)
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The distinct labels, sorted."""
        return tuple(sorted(set(self.labels)))

    def take(self, rows: list[int]) -> "Labelled":
        """Some of the rows, in the order given.

        >>> Labelled(("a", "b"), ("x", "y")).take([1])
        Labelled(texts=('b',), labels=('y',))
        """
        return Labelled(tuple(self.texts[i] for i in rows), tuple(self.labels[i] for i in rows))


def read_labelled(csv_path: str | Path, text: str = "text", label: str = "label") -> Labelled:
    """The rows of a CSV file: UTF-8, separated by commas, the first line names the columns.

    Args:
        text, label: names of the two columns; others are ignored.

    Raises:
        InputError: no such file, another encoding or delimiter, a column that is not there or stands twice, a row of
            more or fewer fields than the first line or with an empty text or label, no rows, one class alone.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "films.csv")
    ...     _ = path.write_text('text,label\\n"slow, and dull",bad\\na fine film,good\\n')
    ...     read_labelled(path)
    Labelled(texts=('slow, and dull', 'a fine film'), labels=('bad', 'good'))
    """
    path = Path(csv_path).expanduser()
    if not path.is_file():
        raise InputError(f"{csv_path} is no file; accepted is a CSV file with the columns {text!r} and {label!r}.")
    content = read_text(path)
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    texts, labels = [], []
    try:
        header = [name.strip() for name in next(reader, [])]
        at, of = _columns(path, content, header, text, label)
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}, has {len(row)} fields; accepted are {len(header)}, as in the "
                    'first line (a text with commas stands in "...").'
                )
            values = [" ".join(row[i].split()) for i in (at, of)]
            if not all(values):
                raise InputError(f"{path}, line {reader.line_num}, has an empty {text if not values[0] else label}.")
            texts.append(values[0])
            labels.append(values[1])
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}, is not valid CSV ({error}).") from error
    if len(found := set(labels)) < 2:
        only = f"one class alone, {labels[0]!r}" if found else "no rows"
        raise InputError(f"{path} has {only}; accepted are two classes or more in the column {label!r}.")
    return Labelled(tuple(texts), tuple(labels))


def _columns(path: Path, content: str, header: list[str], text: str, label: str) -> tuple[int, int]:
    """Places of the two columns."""
    if not header:
        raise InputError(f"{path} is empty; accepted is a CSV file with the columns {text!r} and {label!r}.")
    if text == label:
        raise InputError(f"{text!r} was given for text and label; accepted are two columns.")
    for name in (text, label):
        if header.count(name) == 1:
            continue
        first = content.split("\n", 1)[0]
        for delimiter, said in OTHERS.items():
            if name not in header and name in [part.strip(' "') for part in first.split(delimiter)]:
                raise InputError(f"{path} separates its columns by {said}; accepted is a comma.")
        fault = f"has the column {name!r} twice" if name in header else f"has no column {name!r}"
        raise InputError(f"{path} {fault}; its columns are {', '.join(header)}.")
    return header.index(text), header.index(label)


class FewShot(NamedTuple):
    """Rows to learn from, rows to choose by, and the rest.

    >>> one = Labelled(("a", "b"), ("x", "y"))
    >>> FewShot(one, one, Labelled((), ())).test.texts
    ()
    """

    train: Labelled
    dev: Labelled
    test: Labelled


def few_shot_split(rows: Labelled, k: int, seed: int) -> FewShot:
    """k rows per class to learn from, k others to choose by, the rest as a test; a text never stands on two sides.

    Rows with equal text go one way: all but one of them are left out of train and dev, and out of the test where the
    one is not in it.

    Raises:
        InputError: k below 1, or a class with fewer than 2 k distinct texts.

    >>> rows = Labelled(tuple(f"text {i}" for i in range(10)), ("a", "b") * 5)
    >>> split = few_shot_split(rows, k=2, seed=0)
    >>> [len(part.texts) for part in split], sorted(split.train.labels)
    ([4, 4, 2], ['a', 'a', 'b', 'b'])
    """
    if k < 1:
        raise InputError(f"k={k} was given; accepted is 1 or more rows per class.")
    first: dict[str, int] = {}
    for i, one in enumerate(rows.texts):
        first.setdefault(one, i)
    order = np.random.default_rng(seed).permutation(sorted(first.values())).tolist()
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for name in rows.classes:
        own = [i for i in order if rows.labels[i] == name]
        if len(own) < 2 * k:
            raise InputError(
                f"the class {name!r} has {len(own)} distinct texts; accepted are {2 * k} or more, {k} to train on and "
                f"{k} to choose by, or a smaller k."
            )
        for part, chosen in zip(parts, (own[:k], own[k : 2 * k], own[2 * k :]), strict=True):
            part.extend(chosen)
    return FewShot(*(rows.take(sorted(part)) for part in parts))


def as_clozes(
    rows: Labelled,
    words: Mapping[str, str],
    template: str = TEMPLATE,
    max_length: int = 256,
    cutter: Cutter = WORDS,
) -> list[Cloze]:
    """Rows as clozes: each text in a template, each label as its word; a long text is cut, the template never.

    Args:
        words: class -> label word.
        template: holds "{text}" and `<extra_id_0>` once each.
        max_length: of the whole, as `cutter` counts.

    Raises:
        InputError: a template without a text or a blank, or that leaves no room; a class without a word, two with the
            same word, a text that holds a sentinel `<extra_id_..>`.

    >>> rows = Labelled(("a fine film",), ("good",))
    >>> as_clozes(rows, {"good": "great", "bad": "terrible"})
    [Cloze(text='a fine film It was <extra_id_0> .', label='great', words=('great', 'terrible'), vectors=None)]
    """
    if template.count("{text}") != 1 or template.count(BLANK) != 1 or template.count("<extra_id_") != 1:
        raise InputError(f"template={template!r} was given; accepted is one with {{text}} and {BLANK} once each.")
    if missing := sorted(set(rows.labels) - set(words)):
        raise InputError(f"the class {missing[0]!r} has no label word; those that have: {', '.join(words)}.")
    if len(set(words.values())) < len(words):
        raise InputError(f"two classes share a label word ({', '.join(words.values())}); accepted are distinct ones.")
    if bad := [one for one in rows.texts if "<extra_id_" in one]:
        raise InputError(f"{bad[0]!r} holds a sentinel <extra_id_..>; accepted are texts without.")
    room = max_length - sum(cutter.count(part) for part in template.split("{text}"))
    if room < 1:
        raise InputError(f"the template alone takes the {max_length} tokens of max_length; give a shorter one.")
    choices = tuple(words.values())
    made = []
    for one, name in zip(rows.texts, rows.labels, strict=True):
        length, text = room, template.replace("{text}", cutter.first(one, room))
        while cutter.count(text) > max_length and length > 1:  # tokens differ where the text meets the template
            length -= 1
            text = template.replace("{text}", cutter.first(one, length))
        made.append(Cloze(text, words[name], choices))
    return made
