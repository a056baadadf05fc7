"""The 19 tasks of the small I4: how one sample of each is drawn."""

from dataclasses import dataclass, replace

from vlws.data.emoji_world.captions import ORDINALS
from vlws.data.emoji_world.edits import DIFFERENCES, REQUESTS, SINGLE_EDITS, apply, tell
from vlws.data.emoji_world.i4_pictures import (
    I4_KINDS,
    NUMBERS,
    SORTS,
    WRITTEN_WORDS,
    LabelledScene,
    SampleRandom,
    colour_of,
    emoji_index,
    kind_of,
    name_of,
    showing,
)
from vlws.data.emoji_world.scenes import COLOURS, POSITIONS, TINT_NAMES
from vlws.data.english import with_article


@dataclass(frozen=True, slots=True)
class Draft:
    """A sample before it is rendered.

    >>> Draft("{image#1} what is it?", (), "a cat", ("a cat", "a dog")).response
    'a cat'
    """

    context: str
    pictures: tuple[LabelledScene, ...]
    response: str
    choices: tuple[str, ...] = ()


def image_marks(first: int, last: int) -> list[str]:
    """The marks of pictures `first` to `last`, counted from 1.

    >>> image_marks(2, 3)
    ['{image#2}', '{image#3}']
    """
    return [f"{{image#{i}}}" for i in range(first, last + 1)]


# --- dialogue ---------------------------------------------------------------------------------------------------


def next_step(c: SampleRandom) -> Draft:
    """Things are taken one by one in reading order; the last picture shows what is left (after ALFRED).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("next_step", 1, seed=0)
    >>> draft.context
    'goal: take all things in reading order. {image#1} first step: take the purple pear. {image#2} second step:'
    >>> len(draft.pictures), draft.choices, draft.response
    (2, (), 'take the purple fish.')
    """
    items = c.items(3 + c.below(2))
    taken = 1 + c.below(2)
    first = c.picture(items)
    pictures = [showing(first, items[k:]) for k in range(taken + 1)]
    steps = [
        f"{mark} {ORDINALS[k]} step: {f'take the {name_of(items[k])}.' if k < taken else ''}"
        for k, mark in enumerate(image_marks(1, taken + 1))
    ]
    goal = "goal: take all things in reading order."
    return Draft(" ".join([goal, *steps]).strip(), tuple(pictures), f"take the {name_of(items[taken])}.")


def conversation(c: SampleRandom) -> Draft:
    """A question about one place, asked again of each picture (after MMCoQA).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("conversation", 1, seed=0)
    >>> draft.context.split(" question: ")[2]
    'and of the second image? answer: a yellow cat.'
    >>> len(draft.pictures), draft.choices, draft.response
    (3, (), 'a yellow pineapple.')
    """
    count, cell = 2 + c.below(2), c.below(4)
    pictures, answers = [], []
    for _ in range(count):
        others = [other for other in range(4) if other != cell]
        kinds = c.some(I4_KINDS, 2 + c.below(2))
        places = [cell, *c.some(others, len(kinds) - 1)]
        items = [c.item(kind, c.pick(COLOURS), place) for kind, place in zip(kinds, places, strict=True)]
        pictures.append(c.picture(items))
        answers.append(f"{with_article(name_of(items[0]))}.")
    turns = [f"question: what is at the {POSITIONS[2][cell]} of the first image? answer: {answers[0]}"]
    turns += [f"question: and of the {ORDINALS[k]} image? answer: {answers[k]}" for k in range(1, count)]
    dialogue = " ".join(turns).removesuffix(f" {answers[-1]}")
    return Draft(f"{' '.join(image_marks(1, count))} {dialogue}", tuple(pictures), answers[-1])


# --- storytelling -----------------------------------------------------------------------------------------------


def arrivals(c: SampleRandom) -> Draft:
    """Things come and leave, one between two pictures; the last event is the answer (after VIST).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("arrivals", 1, seed=0)
    >>> draft.context
    '{image#1} once there was a red bus. {image#2} a green wrench came. {image#3} a purple star came. {image#4}'
    >>> len(draft.pictures), draft.choices, draft.response
    (4, (), 'a blue pear came.')
    """
    items = c.items(1 + c.below(2))
    fresh = [kind for kind in c.shuffled(I4_KINDS) if kind not in map(kind_of, items)]
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
        pictures.append(showing(first, items))
    marked = [f"{mark} {text}" for mark, text in zip(image_marks(1, len(pictures)), story, strict=True)]
    return Draft(" ".join(marked).removesuffix(f" {story[-1]}"), tuple(pictures), story[-1])


def journey(c: SampleRandom) -> Draft:
    """One thing goes from place to place, another stands still; the last move is the answer (after FlintstonesSV).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("journey", 1, seed=0)
    >>> draft.context.split(" {image#3} ")[0]
    '{image#1} the green owl is at the top left. {image#2} it goes to the top right.'
    >>> len(draft.pictures), draft.choices, draft.response
    (4, (), 'it goes to the middle right.')
    """
    cells = c.shuffled(range(9))
    hero, other = (c.item(kind, c.pick(COLOURS), 0, 3) for kind in c.some(I4_KINDS, 2))
    other = replace(other, cell=cells.pop())
    first = c.picture([hero, other], 3)
    path = cells[: 3 + c.below(2)]
    pictures = [showing(first, [replace(hero, cell=cell), other]) for cell in path]
    sentences = [f"the {name_of(hero)} is at the {POSITIONS[3][path[0]]}."]
    sentences += [f"it goes to the {POSITIONS[3][cell]}." for cell in path[1:]]
    marked = [f"{mark} {text}" for mark, text in zip(image_marks(1, len(path)), sentences, strict=True)]
    return Draft(" ".join(marked).removesuffix(f" {sentences[-1]}"), tuple(pictures), sentences[-1])


# --- relations --------------------------------------------------------------------------------------------------


def _draw_edit(c: SampleRandom) -> tuple[tuple[LabelledScene, LabelledScene], tuple]:
    """Pictures before and after an edit; its kind and the words of the thing before and after, for `tell`."""
    items = c.items(2 + c.below(2))
    kind, old = c.pick(SINGLE_EDITS), c.pick(items)
    before = c.picture(items)
    fresh = c.pick([k for k in I4_KINDS if k not in map(kind_of, items)])
    if kind == "recolour":
        new = replace(old, tint=TINT_NAMES.index(c.pick([x for x in COLOURS if x != colour_of(old)])))
    elif kind == "replace":
        new = replace(old, emoji=emoji_index(fresh))
    elif kind == "delete":
        new = None
    else:
        free = [cell for cell in range(4) if cell not in {item.cell for item in items}]
        old, new = None, c.item(fresh, c.pick(COLOURS), c.pick(free))
    words = (item and (colour_of(item), kind_of(item)) for item in (old, new))
    return (before, showing(before, apply(items, [(old, new)]))), (kind, *words)


def spot_difference(c: SampleRandom) -> Draft:
    """What differs in the second picture (after Spot-the-Diff and CLEVR-Change).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("spot_difference", 1, seed=0)
    >>> draft.context
    '{image#1}{image#2} difference:'
    >>> len(draft.pictures), draft.choices, draft.response
    (2, (), 'a blue hammer is new')
    """
    pictures, edit = _draw_edit(c)
    return Draft("{image#1}{image#2} difference:", pictures, tell(DIFFERENCES, *edit))


def edit_request(c: SampleRandom) -> Draft:
    """What to ask of one who shall turn the first picture into the second (after IEdit).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("edit_request", 1, seed=0)
    >>> draft.context
    'before: {image#1} after: {image#2} request:'
    >>> len(draft.pictures), draft.choices, draft.response
    (2, (), 'remove the red violin')
    """
    pictures, edit = _draw_edit(c)
    return Draft("before: {image#1} after: {image#2} request:", pictures, tell(REQUESTS, *edit))


def comparison(c: SampleRandom) -> Draft:
    """How two single things differ (after Birds-to-Words).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("comparison", 1, seed=0)
    >>> draft.context
    '{image#1}{image#2} comparison:'
    >>> len(draft.pictures), draft.choices, draft.response
    (2, (), 'the first is a yellow ladder, the second is a yellow airplane')
    """
    pairs = [(kind, c.pick(COLOURS)) for kind in c.some(I4_KINDS, 2)]
    first, second = (with_article(f"{colour} {kind}") for kind, colour in pairs)
    pictures = tuple(c.alone(kind, colour) for kind, colour in pairs)
    return Draft("{image#1}{image#2} comparison:", pictures, f"the first is {first}, the second is {second}")


# --- cloze ------------------------------------------------------------------------------------------------------

ROUND = (0, 1, 3, 2)  # the four cells clockwise


def _options(first: int) -> str:
    marks = image_marks(first, first + 3)
    return "choice list: [" + ", ".join(f"'Image {x}: {mark}'" for x, mark in zip("ABCD", marks, strict=True)) + "]"


def panel_cloze(c: SampleRandom) -> Draft:
    """A thing goes round, clockwise or not; which picture comes fourth? (after COMICS and RecipeQA's visual cloze)

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("panel_cloze", 1, seed=0)
    >>> draft.context.split(". ")[0]
    'series: {image#1} {image#2} {image#3} unknown'
    >>> len(draft.pictures), draft.choices, draft.response
    (7, (), 'Image B')
    """
    kind, colour, start, step = c.pick(I4_KINDS), c.pick(COLOURS), c.below(4), c.pick((1, -1))
    item = c.item(kind, colour, 0)
    first = c.picture([item])
    path = [ROUND[(start + k * step) % 4] for k in range(4)]
    order = c.shuffled(range(4))
    pictures = [showing(first, [replace(item, cell=cell)]) for cell in [*path[:3], *order]]
    series = f"series: {' '.join(image_marks(1, 3))} unknown. {_options(4)}"
    return Draft(series, tuple(pictures), f"Image {'ABCD'[order.index(path[3])]}")


def caption_cloze(c: SampleRandom) -> Draft:
    """A series with captions, one of them missing (after RecipeQA's textual cloze).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("caption_cloze", 1, seed=0)
    >>> draft.context
    '{image#1} a yellow airplane. {image#2} unknown.'
    >>> len(draft.pictures), draft.choices, draft.response
    (2, ('a green violin', 'a green star', 'a yellow violin', 'a yellow star'), 'a green violin')
    """
    count = 2 + c.below(2)
    missing = c.below(count)
    kinds, colours = c.some(I4_KINDS, count + 1), [c.pick(COLOURS) for _ in range(count)]
    wrong = c.pick([colour for colour in COLOURS if colour != colours[missing]])
    sentences = [with_article(f"{colour} {kind}") for kind, colour in zip(kinds, colours, strict=False)]
    choices = [with_article(f"{x} {k}") for x in (colours[missing], wrong) for k in (kinds[missing], kinds[-1])]
    pictures = tuple(c.alone(kind, colour) for kind, colour in zip(kinds, colours, strict=False))
    marked = [f"{mark} {'unknown' if k == missing else sentences[k]}." for k, mark in enumerate(image_marks(1, count))]
    return Draft(" ".join(marked), pictures, sentences[missing], tuple(c.shuffled(choices)))


# --- knowledge --------------------------------------------------------------------------------------------------


def sort_colour(c: SampleRandom) -> Draft:
    """The colour of the one thing that is, say, a fruit (after WebQA).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("sort_colour", 1, seed=0)
    >>> draft.context
    '{image#1} {image#2} {image#3} question: what colour is the tool?'
    >>> len(draft.pictures), draft.choices, draft.response
    (3, ('yellow', 'purple', 'blue', 'green'), 'purple')
    """
    sorts, colours = c.some(list(SORTS), 3), c.some(COLOURS, 4)
    pictures = tuple(c.alone(c.pick(SORTS[sort][1]), colour) for sort, colour in zip(sorts, colours, strict=False))
    asked = c.below(3)
    context = f"{' '.join(image_marks(1, 3))} question: what colour is the {sorts[asked]}?"
    return Draft(context, pictures, colours[asked], tuple(c.shuffled(colours)))


def same_sort(c: SampleRandom) -> Draft:
    """Which other thing is of the sort that both pictures show (after TQA).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("same_sort", 1, seed=0)
    >>> draft.context
    '{image#1}{image#2} question: which thing is of the same sort as these?'
    >>> len(draft.pictures), draft.choices, draft.response
    (2, ('owl', 'coat', 'violin', 'pineapple'), 'violin')
    """
    sorts = c.some(list(SORTS), 4)
    first, second, third = c.some(SORTS[sorts[0]][1], 3)
    pictures = tuple(c.alone(kind, c.pick(COLOURS)) for kind in (first, second))
    choices = [third, *(c.pick(SORTS[sort][1]) for sort in sorts[1:])]
    context = "{image#1}{image#2} question: which thing is of the same sort as these?"
    return Draft(context, pictures, third, tuple(c.shuffled(choices)))


def _numbers(c: SampleRandom, k: int) -> list[str]:
    """k different numbers of two digits."""
    return [str(10 + number) for number in c.some(range(90), k)]


def table_lookup(c: SampleRandom) -> Draft:
    """What a table of things and numbers says of the thing in a picture (after MMQA).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("table_lookup", 1, seed=0)
    >>> draft.context
    '{table#1} {image#2} question: which number has the thing of the image in the table?'
    >>> len(draft.pictures), draft.choices, draft.response
    (2, ('93', '12', '24', '17'), '24')
    """
    kinds, numbers = c.some(I4_KINDS, 3), _numbers(c, 4)
    items = [c.item(kind, c.pick(COLOURS), 3 * row, 3) for row, kind in enumerate(kinds)]
    table = c.picture(items, 3, [(3 * row + 1, number) for row, number in enumerate(numbers[:3])])
    asked = c.below(3)
    picture = c.alone(kinds[asked], colour_of(items[asked]))
    context = "{table#1} {image#2} question: which number has the thing of the image in the table?"
    return Draft(context, (table, picture), numbers[asked], tuple(c.shuffled(numbers)))


# --- text in pictures -------------------------------------------------------------------------------------------


def _titled(c: SampleRandom, kind: str, text: str) -> LabelledScene:
    """A thing in the upper half, a text in the lower."""
    return c.picture([c.item(kind, c.pick(COLOURS), c.below(2))], labels=[(2, text)])


def title(c: SampleRandom) -> Draft:
    """The word under a thing (after OCR-VQA).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("title", 1, seed=0)
    >>> draft.context
    '{image#1} {image#2} {image#3} question: which word is under the pear?'
    >>> len(draft.pictures), draft.choices, draft.response
    (3, ('jam', 'map', 'box', 'log'), 'box')
    """
    kinds, words = c.some(I4_KINDS, 3), c.some(WRITTEN_WORDS, 4)
    asked = c.below(3)
    pictures = tuple(_titled(c, kind, word) for kind, word in zip(kinds, words, strict=False))
    context = f"{' '.join(image_marks(1, 3))} question: which word is under the {kinds[asked]}?"
    return Draft(context, pictures, words[asked], tuple(c.shuffled(words)))


def page(c: SampleRandom) -> Draft:
    """The page on which a word stands (after SlideVQA).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("page", 1, seed=0)
    >>> draft.context
    '{image#1} {image#2} {image#3} question: which page has the word log?'
    >>> len(draft.pictures), draft.choices, draft.response
    (3, ('first page', 'second page', 'third page'), 'second page')
    """
    words, kinds = c.some(WRITTEN_WORDS, 3), c.some(I4_KINDS, 3)
    asked = c.below(3)
    pictures = tuple(_titled(c, kind, word) for kind, word in zip(kinds, words, strict=True))
    context = f"{' '.join(image_marks(1, 3))} question: which page has the word {words[asked]}?"
    choices = [f"{ordinal} page" for ordinal in ORDINALS[:3]]
    return Draft(context, pictures, choices[asked], tuple(choices))


def price(c: SampleRandom) -> Draft:
    """The thing over a number (after DocVQA).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("price", 1, seed=0)
    >>> draft.context
    '{image#1} {image#2} {image#3} question: which thing is over the number 79?'
    >>> len(draft.pictures), draft.choices, draft.response
    (3, ('rocket', 'necktie', 'house', 'star'), 'necktie')
    """
    kinds, numbers = c.some(I4_KINDS, 4), _numbers(c, 3)
    asked = c.below(3)
    pictures = tuple(_titled(c, kind, number) for kind, number in zip(kinds, numbers, strict=False))
    context = f"{' '.join(image_marks(1, 3))} question: which thing is over the number {numbers[asked]}?"
    return Draft(context, pictures, kinds[asked], tuple(c.shuffled(kinds)))


# --- reasoning --------------------------------------------------------------------------------------------------


def both(c: SampleRandom) -> Draft:
    """Whether both pictures show a kind; one always does (after NLVR2).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("both", 1, seed=0)
    >>> draft.context
    '{image#1}{image#2} question: do both images show a guitar?'
    >>> len(draft.pictures), draft.choices, draft.response
    (2, ('yes', 'no'), 'yes')
    """
    kind, truth, where = c.pick(I4_KINDS), c.below(2), c.below(2)
    rest = [other for other in I4_KINDS if other != kind]
    pictures = []
    for k in range(2):
        kinds = [kind if truth or k == where else c.pick(rest)]
        kinds.append(c.pick([other for other in rest if other not in kinds]))
        cells = c.some(range(4), 2)
        items = [c.item(name, c.pick(COLOURS), cell) for name, cell in zip(kinds, cells, strict=True)]
        pictures.append(c.picture(items))
    context = f"{{image#1}}{{image#2}} question: do both images show {with_article(kind)}?"
    return Draft(context, tuple(pictures), ("no", "yes")[truth], ("yes", "no"))


def count(c: SampleRandom) -> Draft:
    """How many things all pictures show together (after VISION and nuScenes).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("count", 1, seed=0)
    >>> draft.context
    '{image#1} {image#2} {image#3} question: how many things are in all images together?'
    >>> len(draft.pictures), draft.choices, draft.response
    (3, ('six', 'seven', 'eight', 'nine'), 'six')
    """
    images = 2 + c.below(2)
    first = images + c.below(3 * images - 2)  # the four options in a row, all possible
    total = first + c.below(4)
    parts = [1] * images
    for _ in range(total - images):
        parts[c.pick([k for k in range(images) if parts[k] < 4])] += 1
    pictures = tuple(c.picture(c.items(part)) for part in parts)
    context = f"{' '.join(image_marks(1, images))} question: how many things are in all images together?"
    return Draft(context, pictures, NUMBERS[total - 2], NUMBERS[first - 2 : first + 2])


def odd_one(c: SampleRandom) -> Draft:
    """The picture that does not share what the other three do: a colour or a kind (after RecipeQA's coherence).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("odd_one", 1, seed=0)
    >>> draft.context
    "choice list: ['Image A: {image#1}', 'Image B: {image#2}', 'Image C: {image#3}', 'Image D: {image#4}']"
    >>> len(draft.pictures), draft.choices, draft.response
    (4, (), 'Image D')
    """
    odd = c.below(4)
    if c.below(2):
        kinds, (colour, other) = c.some(I4_KINDS, 4), c.some(COLOURS, 2)
        colours = [other if k == odd else colour for k in range(4)]
    else:
        colours, (kind, other) = c.some(COLOURS, 4), c.some(I4_KINDS, 2)
        kinds = [other if k == odd else kind for k in range(4)]
    pictures = tuple(c.alone(kind, colour, grid=1) for kind, colour in zip(kinds, colours, strict=True))
    return Draft(_options(1), pictures, f"Image {'ABCD'[odd]}")


def shared(c: SampleRandom) -> Draft:
    """What three pictures have in common: colour, kind or place (after MIT-States).

    >>> from vlws.data.emoji_world.i4 import drafts
    >>> (draft,) = drafts("shared", 1, seed=0)
    >>> draft.context
    '{image#1} {image#2} {image#3} question: what do the things share?'
    >>> len(draft.pictures), draft.choices, draft.response
    (3, ('colour', 'kind', 'place'), 'kind')
    """
    same = c.below(3)
    columns = [c.some(values, 3) for values in (COLOURS, I4_KINDS, range(4))]
    columns[same] = columns[same][:1] * 3
    pictures = tuple(c.alone(kind, colour, cell=cell) for colour, kind, cell in zip(*columns, strict=True))
    context = f"{' '.join(image_marks(1, 3))} question: what do the things share?"
    choices = ("colour", "kind", "place")
    return Draft(context, pictures, choices[same], choices)
