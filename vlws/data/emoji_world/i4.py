"""A small I4: the seven categories of DEMON as 19 tasks over emoji scenes, with one true answer each.

    task = i4.make("spot_difference", 200, seed=0)  # a demon.Task: prompts, pictures, options, answers
    demon.write_demon(folder, i4.make_all(200, seed=0))  # the benchmark's own files

Every picture shows things, an emoji in one of five colours each, in the cells of a grid; some bear a written word or
number. Every answer follows from the pictures (and from what Unicode files an emoji under); none can be told from the
text alone better than by guessing. Words are few (`vocabulary`), templates closed, ten instructions a task.

All chance comes from the raw words of PCG64: the same seed gives the same samples on every machine, and the first k of
n samples do not depend on n. Seeds as in `scenes`: training corpora from 1,000,000.

Its speed, on one core: python -m timeit -s "from vlws.data import i4" "i4.make_all(20, 0)" (380 samples, 0.2 s).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from einops import rearrange

from vlws.data.demon import CATEGORIES, CHOICE, OPEN, Sample, Task
from vlws.data.emoji_world import emoji, scenes
from vlws.data.emoji_world.captions import with_article
from vlws.data.emoji_world.scenes import POSITIONS, Background, Item, Scene
from vlws.errors import InputError

SORTS: dict[str, tuple[str, tuple[str, ...]]] = {  # what Unicode's subgroups say a kind is
    "animal": ("animal-", ("cat", "fish", "rabbit", "owl")),
    "fruit": ("food-fruit", ("banana", "pineapple", "strawberry", "pear")),
    "vehicle": ("transport-", ("bus", "airplane", "rocket", "bicycle")),
    "tool": ("tool", ("hammer", "axe", "wrench", "ladder")),
    "garment": ("clothing", ("crown", "dress", "coat", "necktie")),
    "instrument": ("musical-instrument", ("guitar", "trumpet", "drum", "violin")),
}
KINDS = (*(kind for _, kinds in SORTS.values() for kind in kinds), "house", "star", "key", "bell", "camera")
COLOURS = scenes.TINT_NAMES[1:]  # all but natural
WORDS = ("sun", "tea", "box", "map", "jam", "pen", "hat", "cup", "ink", "log", "net", "zoo")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
ORDINALS = ("first", "second", "third", "fourth")
LEADS = (
    "",
    "look at the images. ",
    "here are some images. ",
    "the images belong together. ",
    "read the images and the text. ",
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A scene, and what is written over it: (cell, text), centred from that cell to the right border."""

    scene: Scene
    labels: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """A sample before it is rendered."""

    context: str
    pictures: tuple[Picture, ...]
    response: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A task: its category, question type, two wordings (ten instructions with LEADS), and how a sample is drawn."""

    category: str
    question_type: str
    wordings: tuple[str, str]
    draw: Callable[["Chance"], Draft]

    @property
    def instructions(self) -> tuple[str, ...]:
        return tuple(f"{lead}{wording} " for wording in self.wordings for lead in LEADS)


class Chance:
    """The chance of one sample: random words, poses (by grid) and grounds, used up one by one."""

    def __init__(self, words: Sequence[int], poses: dict[int, Sequence], grounds: Sequence[Background]) -> None:
        self._words, self._grounds = iter(words), iter(grounds)
        self._poses = {grid: iter(rows) for grid, rows in poses.items()}

    def below(self, k: int) -> int:
        return next(self._words) * k >> 32

    def pick(self, options: Sequence):
        return options[self.below(len(options))]

    def some(self, options: Sequence, k: int) -> list:
        """k different ones in random order."""
        rest = list(options)
        return [rest.pop(self.below(len(rest))) for _ in range(k)]

    def shuffled(self, options: Sequence) -> list:
        return self.some(options, len(options))

    def item(self, kind: str, colour: str, cell: int, grid: int = 2) -> Item:
        size, angle, dy, dx = next(self._poses[grid])
        return Item(_index(kind), cell, size, angle, dy, dx, scenes.TINT_NAMES.index(colour))

    def items(self, k: int, cells: Sequence[int] = range(4), grid: int = 2) -> list[Item]:
        """k things of different kinds in different cells, in the order of the cells."""
        kinds, places = self.some(KINDS, k), sorted(self.some(cells, k))
        return [self.item(kind, self.pick(COLOURS), cell, grid) for kind, cell in zip(kinds, places, strict=True)]

    def picture(self, items: Sequence[Item], grid: int = 2, labels: Sequence[tuple[int, str]] = ()) -> Picture:
        return Picture(Scene(_in_order(items), next(self._grounds), grid), tuple(labels))

    def alone(self, kind: str, colour: str, grid: int = 2, cell: int | None = None) -> Picture:
        """A picture of one thing."""
        return self.picture([self.item(kind, colour, self.below(grid**2) if cell is None else cell, grid)], grid)


@cache
def _index(kind: str) -> int:
    return emoji.load().index(kind)


def kind_of(item: Item) -> str:
    return emoji.load().names[item.emoji]


def colour_of(item: Item) -> str:
    return scenes.TINT_NAMES[item.tint]


def name_of(item: Item) -> str:
    """ "red cat"."""
    return f"{colour_of(item)} {kind_of(item)}"


def place_of(item: Item, grid: int = 2) -> str:
    return POSITIONS[grid][item.cell]


def sort_of(kind: str) -> str | None:
    """ "animal" of "cat"; None for the kinds that are of no sort."""
    return next((sort for sort, (_, kinds) in SORTS.items() if kind in kinds), None)


def _in_order(items: Sequence[Item]) -> tuple[Item, ...]:
    return tuple(sorted(items, key=lambda item: item.cell))


def _showing(picture: Picture, items: Sequence[Item]) -> Picture:
    """The same ground with other things on it."""
    return replace(picture, scene=replace(picture.scene, items=_in_order(items)))


def _images(first: int, last: int) -> list[str]:
    return [f"{{image#{i}}}" for i in range(first, last + 1)]


# --- dialogue ---------------------------------------------------------------------------------------------------


def next_step(c: Chance) -> Draft:
    """Things are taken one by one in reading order; the last picture shows what is left (after ALFRED)."""
    items = c.items(3 + c.below(2))
    taken = 1 + c.below(2)
    first = c.picture(items)
    pictures = [_showing(first, items[k:]) for k in range(taken + 1)]
    steps = [
        f"{mark} {ORDINALS[k]} step: {f'take the {name_of(items[k])}.' if k < taken else ''}"
        for k, mark in enumerate(_images(1, taken + 1))
    ]
    goal = "goal: take all things in reading order."
    return Draft(" ".join([goal, *steps]).strip(), tuple(pictures), f"take the {name_of(items[taken])}.")


def conversation(c: Chance) -> Draft:
    """A question about one place, asked again of each picture (after MMCoQA)."""
    count, cell = 2 + c.below(2), c.below(4)
    pictures, answers = [], []
    for _ in range(count):
        others = [other for other in range(4) if other != cell]
        kinds = c.some(KINDS, 2 + c.below(2))
        places = [cell, *c.some(others, len(kinds) - 1)]
        items = [c.item(kind, c.pick(COLOURS), place) for kind, place in zip(kinds, places, strict=True)]
        pictures.append(c.picture(items))
        answers.append(f"{with_article(name_of(items[0]))}.")
    turns = [f"question: what is at the {POSITIONS[2][cell]} of the first image? answer: {answers[0]}"]
    turns += [f"question: and of the {ORDINALS[k]} image? answer: {answers[k]}" for k in range(1, count)]
    said = " ".join(turns).removesuffix(f" {answers[-1]}")
    return Draft(f"{' '.join(_images(1, count))} {said}", tuple(pictures), answers[-1])


# --- storytelling -----------------------------------------------------------------------------------------------


def arrivals(c: Chance) -> Draft:
    """Things come and leave, one between two pictures; the last event is to be told (after VIST)."""
    items = c.items(1 + c.below(2))
    fresh = [kind for kind in c.shuffled(KINDS) if kind not in map(kind_of, items)]
    first = c.picture(items)
    pictures = [first]
    story = [f"once there was {' and '.join(with_article(name_of(item)) for item in items)}."]
    for _ in range(2 + c.below(2)):
        leave = c.below(2)
        if len(items) == 1 or (leave and len(items) < 4):
            free = [cell for cell in range(4) if cell not in {item.cell for item in items}]
            new = c.item(fresh.pop(), c.pick(COLOURS), c.pick(free))
            items = [*items, new]
            story.append(f"{with_article(name_of(new))} came.")
        else:
            gone = c.pick(items)
            items = [item for item in items if item != gone]
            story.append(f"the {name_of(gone)} left.")
        pictures.append(_showing(first, items))
    told = [f"{mark} {text}" for mark, text in zip(_images(1, len(pictures)), story, strict=True)]
    return Draft(" ".join(told).removesuffix(f" {story[-1]}"), tuple(pictures), story[-1])


def journey(c: Chance) -> Draft:
    """One thing goes from place to place, another stands still; the last move is to be told (after FlintstonesSV)."""
    cells = c.shuffled(range(9))
    hero, other = (c.item(kind, c.pick(COLOURS), 0, 3) for kind in c.some(KINDS, 2))
    other = replace(other, cell=cells.pop())
    first = c.picture([hero, other], 3)
    path = cells[: 3 + c.below(2)]
    pictures = [_showing(first, [replace(hero, cell=cell), other]) for cell in path]
    said = [f"the {name_of(hero)} is at the {POSITIONS[3][path[0]]}."]
    said += [f"it goes to the {POSITIONS[3][cell]}." for cell in path[1:]]
    told = [f"{mark} {text}" for mark, text in zip(_images(1, len(path)), said, strict=True)]
    return Draft(" ".join(told).removesuffix(f" {said[-1]}"), tuple(pictures), said[-1])


# --- relations --------------------------------------------------------------------------------------------------


def _edit(c: Chance) -> tuple[str, Picture, Picture, Item | None, Item | None]:
    """An edit's name, pictures before and after, and the thing before and after."""
    items = c.items(2 + c.below(2))
    kind, old = c.pick(("recolour", "replace", "delete", "add")), c.pick(items)
    before = c.picture(items)
    fresh = c.pick([k for k in KINDS if k not in map(kind_of, items)])
    if kind == "recolour":
        new = replace(old, tint=scenes.TINT_NAMES.index(c.pick([x for x in COLOURS if x != colour_of(old)])))
    elif kind == "replace":
        new = replace(old, emoji=_index(fresh))
    elif kind == "delete":
        new = None
    else:
        free = [cell for cell in range(4) if cell not in {item.cell for item in items}]
        old, new = None, c.item(fresh, c.pick(COLOURS), c.pick(free))
    kept = [item for item in items if item != old]
    return kind, before, _showing(before, kept if new is None else [*kept, new]), old, new


def spot_difference(c: Chance) -> Draft:
    """What differs in the second picture (after Spot-the-Diff and CLEVR-Change)."""
    kind, before, after, old, new = _edit(c)
    told = {
        "recolour": lambda: f"the {name_of(old)} is now {colour_of(new)}",
        "replace": lambda: f"the {name_of(old)} became {with_article(kind_of(new))}",
        "delete": lambda: f"the {name_of(old)} is gone",
        "add": lambda: f"{with_article(name_of(new))} is new",
    }
    return Draft("{image#1}{image#2} difference:", (before, after), told[kind]())


def edit_request(c: Chance) -> Draft:
    """What to ask of one who shall turn the first picture into the second (after IEdit)."""
    kind, before, after, old, new = _edit(c)
    told = {
        "recolour": lambda: f"make the {name_of(old)} {colour_of(new)}",
        "replace": lambda: f"turn the {name_of(old)} into {with_article(kind_of(new))}",
        "delete": lambda: f"remove the {name_of(old)}",
        "add": lambda: f"add {with_article(name_of(new))}",
    }
    return Draft("before: {image#1} after: {image#2} request:", (before, after), told[kind]())


def comparison(c: Chance) -> Draft:
    """How two single things differ (after Birds-to-Words)."""
    pairs = [(kind, c.pick(COLOURS)) for kind in c.some(KINDS, 2)]
    first, second = (with_article(f"{colour} {kind}") for kind, colour in pairs)
    pictures = tuple(c.alone(kind, colour) for kind, colour in pairs)
    return Draft("{image#1}{image#2} comparison:", pictures, f"the first is {first}, the second is {second}")


# --- cloze ------------------------------------------------------------------------------------------------------

ROUND = (0, 1, 3, 2)  # the four cells clockwise


def _options(first: int) -> str:
    marks = _images(first, first + 3)
    return "choice list: [" + ", ".join(f"'Image {x}: {mark}'" for x, mark in zip("ABCD", marks, strict=True)) + "]"


def panel_cloze(c: Chance) -> Draft:
    """A thing goes round, clockwise or not; which picture comes fourth? (after COMICS and RecipeQA's visual cloze)"""
    kind, colour, start, step = c.pick(KINDS), c.pick(COLOURS), c.below(4), c.pick((1, -1))
    item = c.item(kind, colour, 0)
    first = c.picture([item])
    path = [ROUND[(start + k * step) % 4] for k in range(4)]
    order = c.shuffled(range(4))
    pictures = [_showing(first, [replace(item, cell=cell)]) for cell in [*path[:3], *order]]
    series = f"series: {' '.join(_images(1, 3))} unknown. {_options(4)}"
    return Draft(series, tuple(pictures), f"Image {'ABCD'[order.index(path[3])]}")


def caption_cloze(c: Chance) -> Draft:
    """A series with captions, one of them missing (after RecipeQA's textual cloze)."""
    count = 2 + c.below(2)
    missing = c.below(count)
    kinds, colours = c.some(KINDS, count + 1), [c.pick(COLOURS) for _ in range(count)]
    wrong = c.pick([colour for colour in COLOURS if colour != colours[missing]])
    said = [with_article(f"{colour} {kind}") for kind, colour in zip(kinds, colours, strict=False)]
    choices = [with_article(f"{x} {k}") for x in (colours[missing], wrong) for k in (kinds[missing], kinds[-1])]
    pictures = tuple(c.alone(kind, colour) for kind, colour in zip(kinds, colours, strict=False))
    told = [f"{mark} {'unknown' if k == missing else said[k]}." for k, mark in enumerate(_images(1, count))]
    return Draft(" ".join(told), pictures, said[missing], tuple(c.shuffled(choices)))


# --- knowledge --------------------------------------------------------------------------------------------------


def sort_colour(c: Chance) -> Draft:
    """The colour of the one thing that is, say, a fruit (after WebQA)."""
    sorts, colours = c.some(list(SORTS), 3), c.some(COLOURS, 4)
    pictures = tuple(c.alone(c.pick(SORTS[sort][1]), colour) for sort, colour in zip(sorts, colours, strict=False))
    asked = c.below(3)
    context = f"{' '.join(_images(1, 3))} question: what colour is the {sorts[asked]}?"
    return Draft(context, pictures, colours[asked], tuple(c.shuffled(colours)))


def same_sort(c: Chance) -> Draft:
    """Which other thing is of the sort that both pictures show (after TQA)."""
    sorts = c.some(list(SORTS), 4)
    first, second, third = c.some(SORTS[sorts[0]][1], 3)
    pictures = tuple(c.alone(kind, c.pick(COLOURS)) for kind in (first, second))
    choices = [third, *(c.pick(SORTS[sort][1]) for sort in sorts[1:])]
    context = "{image#1}{image#2} question: which thing is of the same sort as these?"
    return Draft(context, pictures, third, tuple(c.shuffled(choices)))


def _numbers(c: Chance, k: int) -> list[str]:
    """k different numbers of two digits."""
    return [str(10 + number) for number in c.some(range(90), k)]


def table_lookup(c: Chance) -> Draft:
    """What a table of things and numbers says of the thing in a picture (after MMQA)."""
    kinds, numbers = c.some(KINDS, 3), _numbers(c, 4)
    items = [c.item(kind, c.pick(COLOURS), 3 * row, 3) for row, kind in enumerate(kinds)]
    table = c.picture(items, 3, [(3 * row + 1, number) for row, number in enumerate(numbers[:3])])
    asked = c.below(3)
    picture = c.alone(kinds[asked], colour_of(items[asked]))
    context = "{table#1} {image#2} question: which number has the thing of the image in the table?"
    return Draft(context, (table, picture), numbers[asked], tuple(c.shuffled(numbers)))


# --- text in pictures -------------------------------------------------------------------------------------------


def _titled(c: Chance, kind: str, text: str) -> Picture:
    """A thing in the upper half, a text in the lower."""
    return c.picture([c.item(kind, c.pick(COLOURS), c.below(2))], labels=[(2, text)])


def title(c: Chance) -> Draft:
    """The word under a thing (after OCR-VQA)."""
    kinds, words = c.some(KINDS, 3), c.some(WORDS, 4)
    asked = c.below(3)
    pictures = tuple(_titled(c, kind, word) for kind, word in zip(kinds, words, strict=False))
    context = f"{' '.join(_images(1, 3))} question: which word is under the {kinds[asked]}?"
    return Draft(context, pictures, words[asked], tuple(c.shuffled(words)))


def page(c: Chance) -> Draft:
    """The page on which a word stands (after SlideVQA)."""
    words, kinds = c.some(WORDS, 3), c.some(KINDS, 3)
    asked = c.below(3)
    pictures = tuple(_titled(c, kind, word) for kind, word in zip(kinds, words, strict=True))
    context = f"{' '.join(_images(1, 3))} question: which page has the word {words[asked]}?"
    choices = [f"{ordinal} page" for ordinal in ORDINALS[:3]]
    return Draft(context, pictures, choices[asked], tuple(choices))


def price(c: Chance) -> Draft:
    """The thing over a number (after DocVQA)."""
    kinds, numbers = c.some(KINDS, 4), _numbers(c, 3)
    asked = c.below(3)
    pictures = tuple(_titled(c, kind, number) for kind, number in zip(kinds, numbers, strict=False))
    context = f"{' '.join(_images(1, 3))} question: which thing is over the number {numbers[asked]}?"
    return Draft(context, pictures, kinds[asked], tuple(c.shuffled(kinds)))


# --- reasoning --------------------------------------------------------------------------------------------------


def both(c: Chance) -> Draft:
    """Whether both pictures show a kind; one always does (after NLVR2)."""
    kind, truth, where = c.pick(KINDS), c.below(2), c.below(2)
    rest = [other for other in KINDS if other != kind]
    pictures = []
    for k in range(2):
        kinds = [kind if truth or k == where else c.pick(rest)]
        kinds.append(c.pick([other for other in rest if other not in kinds]))
        cells = c.some(range(4), 2)
        items = [c.item(name, c.pick(COLOURS), cell) for name, cell in zip(kinds, cells, strict=True)]
        pictures.append(c.picture(items))
    context = f"{{image#1}}{{image#2}} question: do both images show {with_article(kind)}?"
    return Draft(context, tuple(pictures), ("no", "yes")[truth], ("yes", "no"))


def count(c: Chance) -> Draft:
    """How many things all pictures show together (after VISION and nuScenes)."""
    images = 2 + c.below(2)
    first = images + c.below(3 * images - 2)  # the four options in a row, all possible
    total = first + c.below(4)
    parts = [1] * images
    for _ in range(total - images):
        parts[c.pick([k for k in range(images) if parts[k] < 4])] += 1
    pictures = tuple(c.picture(c.items(part)) for part in parts)
    context = f"{' '.join(_images(1, images))} question: how many things are in all images together?"
    return Draft(context, pictures, NUMBERS[total - 2], NUMBERS[first - 2 : first + 2])


def odd_one(c: Chance) -> Draft:
    """The picture that does not share what the other three do: a colour or a kind (after RecipeQA's coherence)."""
    odd = c.below(4)
    if c.below(2):
        kinds, (colour, other) = c.some(KINDS, 4), c.some(COLOURS, 2)
        colours = [other if k == odd else colour for k in range(4)]
    else:
        colours, (kind, other) = c.some(COLOURS, 4), c.some(KINDS, 2)
        kinds = [other if k == odd else kind for k in range(4)]
    pictures = tuple(c.alone(kind, colour, grid=1) for kind, colour in zip(kinds, colours, strict=True))
    return Draft(_options(1), pictures, f"Image {'ABCD'[odd]}")


def shared(c: Chance) -> Draft:
    """What three pictures have in common: colour, kind or place (after MIT-States)."""
    same = c.below(3)
    columns = [c.some(values, 3) for values in (COLOURS, KINDS, range(4))]
    columns[same] = columns[same][:1] * 3
    pictures = tuple(c.alone(kind, colour, cell=cell) for colour, kind, cell in zip(*columns, strict=True))
    context = f"{' '.join(_images(1, 3))} question: what do the things share?"
    choices = ("colour", "kind", "place")
    return Draft(context, pictures, choices[same], choices)


# --- tasks ------------------------------------------------------------------------------------------------------

_DIALOGUE, _STORY, _RELATION, _CLOZE, _KNOWLEDGE, _TEXT, _REASONING = CATEGORIES
TASKS: dict[str, Spec] = {
    spec.draw.__name__: spec
    for spec in (
        Spec(_DIALOGUE, OPEN, ("say what to do now.", "tell the next step."), next_step),
        Spec(_DIALOGUE, OPEN, ("answer the last question.", "go on with the conversation."), conversation),
        Spec(_STORY, OPEN, ("tell how the story ends.", "finish the story."), arrivals),
        Spec(_STORY, OPEN, ("tell where the journey ends.", "finish the journey."), journey),
        Spec(_RELATION, OPEN, ("describe the difference.", "say what is different in the second."), spot_difference),
        Spec(_RELATION, OPEN, ("say how to edit the first image.", "write the request for this edit."), edit_request),
        Spec(_RELATION, OPEN, ("compare the images.", "say what the first and the second show."), comparison),
        Spec(_CLOZE, CHOICE, ("choose the image that comes next.", "which image is unknown?"), panel_cloze),
        Spec(_CLOZE, CHOICE, ("choose the caption that is unknown.", "which text is unknown?"), caption_cloze),
        Spec(_KNOWLEDGE, CHOICE, ("answer the question.", "choose the colour."), sort_colour),
        Spec(_KNOWLEDGE, CHOICE, ("answer the question.", "choose one more of the same sort."), same_sort),
        Spec(_KNOWLEDGE, CHOICE, ("answer the question.", "choose the number in the table."), table_lookup),
        Spec(_TEXT, CHOICE, ("answer the question.", "choose the word."), title),
        Spec(_TEXT, CHOICE, ("answer the question.", "choose the page."), page),
        Spec(_TEXT, CHOICE, ("answer the question.", "choose the thing."), price),
        Spec(_REASONING, CHOICE, ("answer the question.", "say yes or no."), both),
        Spec(_REASONING, CHOICE, ("answer the question.", "choose the number."), count),
        Spec(_REASONING, CHOICE, ("choose the image that does not belong.", "which image is different?"), odd_one),
        Spec(_REASONING, CHOICE, ("answer the question.", "choose what is the same."), shared),
    )
}


def drafts(name: str, n: int, seed: int) -> list[Draft]:
    """n samples of a task as specifications; InputError for an unknown task."""
    if name not in TASKS:
        raise InputError(f"There is no task {name!r}; the tasks are {', '.join(TASKS)}.")
    words = scenes.draws(n, 184, seed * 32 + list(TASKS).index(name))
    chance, grounds, poses = np.split(words, [96, 120], axis=1)  # 4 grounds of 6 words, 16 poses of 4
    grounds = scenes._backgrounds(rearrange(grounds, "n (k six) -> (n k) six", six=6), muted=True)
    poses = {grid: np.stack(scenes._poses(poses, grid), axis=-1).tolist() for grid in (1, 2, 3)}
    return [
        TASKS[name].draw(Chance(row, {grid: poses[grid][i] for grid in poses}, grounds[4 * i : 4 * i + 4]))
        for i, row in enumerate(chance.tolist())
    ]


def make(name: str, n: int, seed: int, size: int = 64) -> Task:
    """n samples of a task, their pictures uint8 "size size 3" (64, 32 or 16 pixels).

    Raises:
        InputError: an unknown task, n or seed below 0, another size.
    """
    spec, found = TASKS.get(name), drafts(name, n, seed)
    pictures = iter(render([picture for draft in found for picture in draft.pictures], size))
    turn = scenes.draws(n, 1, seed * 32 + 31)[:, 0].tolist()
    samples = tuple(
        Sample(
            sample_id=i,
            instruction_id=word * 10 >> 32,
            instruction=spec.instructions[word * 10 >> 32],
            context=draft.context + " " * bool(draft.choices),
            images=tuple(next(pictures) for _ in draft.pictures),
            choices=draft.choices,
            response=draft.response,
        )
        for i, (draft, word) in enumerate(zip(found, turn, strict=True))
    )
    return Task(name, spec.category, spec.question_type, spec.instructions, samples)


def make_all(n: int, seed: int, size: int = 64) -> list[Task]:
    """n samples of each task."""
    return [make(name, n, seed, size) for name in TASKS]


def corpus(seed: int, n: int) -> Iterator[str]:
    """n texts, prompt and answer, the tasks in turn: what a tokenizer or a language model can be trained on."""
    each = -(-n // len(TASKS))
    found = [drafts(name, each, seed) for name in TASKS]
    for k in range(n):
        task, i = k % len(TASKS), k // len(TASKS)
        spec, draft = list(TASKS.values())[task], found[task][i]
        sample = Sample(
            i,
            i % 10,
            spec.instructions[i % 10],
            draft.context + " " * bool(draft.choices),
            (),
            draft.choices,
            draft.response,
        )
        yield f"{sample.prompt} {sample.response}"


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word (lower case, without marks) of every text that these tasks can hold, sorted."""
    said = [text for spec in TASKS.values() for text in spec.instructions]
    said += [*KINDS, *COLOURS, *SORTS, *WORDS, *NUMBERS, *ORDINALS, *POSITIONS[2], *POSITIONS[3]]
    said += [str(number) for number in range(10, 100)]
    said += list(corpus(0, 100 * len(TASKS)))
    return tuple(sorted({word for text in said for word in re.findall(r"\w+", text.lower())}))


# --- rendering --------------------------------------------------------------------------------------------------

_SCALE = 3  # canvas pixels a dot
_GLYPHS = (  # rows of three dots, one octal digit a row
    *("25755", "65656", "34443", "65556", "74647", "74644", "34553", "55755", "72227", "11152", "55655", "44447"),
    *("57755", "65555", "25552", "65644", "25573", "65655", "34216", "72222", "55557", "55552", "55775", "55255"),
    *("55222", "71247"),
    *("75557", "26227", "71747", "71717", "55711", "74717", "74757", "71111", "75757", "75717"),
)
FONT = dict(zip("abcdefghijklmnopqrstuvwxyz0123456789", _GLYPHS, strict=True))


@cache
def plate(text: str) -> np.ndarray:
    """A text as "height width" uint8, white on black: capitals of 5 x 3 dots of 3 pixels, with a margin."""
    dots = np.zeros((5, 4 * len(text) - 1), np.uint8)
    for k, char in enumerate(text):
        for row, digit in enumerate(FONT[char]):
            dots[row, 4 * k : 4 * k + 3] = [255 * (int(digit) >> bit & 1) for bit in (2, 1, 0)]
    return np.pad(dots.repeat(_SCALE, 0).repeat(_SCALE, 1), 2)


def render(pictures: Sequence[Picture], size: int = 64) -> np.ndarray:
    """Pictures -> "n size size 3" uint8 RGB; size is 64, 32 or 16."""
    if not any(picture.labels for picture in pictures):
        return scenes.render([picture.scene for picture in pictures], size)
    canvas = scenes.render([picture.scene for picture in pictures])
    for image, picture in zip(canvas, pictures, strict=True):
        for cell, text in picture.labels:
            rows, columns = scenes.cell_slices(picture.scene.grid, cell)
            dots = plate(text)
            top = (rows.start + rows.stop - len(dots)) // 2
            left = (columns.start + scenes.CANVAS - dots.shape[1]) // 2
            image[top : top + len(dots), left : left + dots.shape[1]] = dots[..., None]
    if size not in (64, 32, 16):
        raise InputError(f"Pictures are rendered at 64, 32 or 16 pixels, not {size}.")
    small = scenes._shrink(rearrange(canvas.astype(np.uint16), "n h w c -> n c h w"), scenes.CANVAS // size)
    return rearrange(small, "n c h w -> n h w c").astype(np.uint8)
