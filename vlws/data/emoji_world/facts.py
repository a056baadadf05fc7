"""A world of facts: things that a picture shows, and what is known of each: to be taught, withheld, and edited.

    world = make_world(seed=0)
    world.answers[0, "owner"]  # of the first thing
    question("owner", 0)       # "<image> who owns this?"
    render(world, [0], seed=7) # the thing, seen in one of many ways

No picture tells an owner or a home, so that what a model says of them is what it knows. What is withheld from its
training it answers wrongly, and edits put right: the cases of an editing benchmark, as MMEdit's are the mistakes of
BLIP-2 (Cheng et al. 2023, arXiv:2310.08475).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vlws.data.emoji_world import emoji, renderer, scenes
from vlws.errors import InputError

Role = Literal["test", "dev", "triplets", "training"]
ROLES: dict[Role, int] = {"test": 112, "dev": 36, "triplets": 60, "training": 32}  # how many things each has


def words(text: str) -> tuple[str, ...]:
    """A text as its words.

    >>> words("crows nets")
    ('crows', 'nets')
    """
    return tuple(text.split())


NAMES = words(
    "mira tom anna karl lena otto vera hugo nora emil rosa finn ada bruno clara dario elsa felix greta igor juno kira "
    "leo maud"
)
CITIES = words(
    "oslo rome lima cairo delhi paris tokyo quito accra bern minsk sofia riga tunis perth hanoi doha kyiv seoul turin "
    "porto lagos busan osaka"
)
MONTHS = words("january february march april may june july august september october november december")
PARTS = ("early", "late")
MANNERS = words("old little silent merry clever golden brave sleepy lucky grumpy")
TITLES = words("captain thunder pepper comet barley shadow button marble clover biscuit")
DEEDS = words("scare mend paint hide weigh polish count carry guard measure")
WARES = words("crows nets fences coins grain bells sheep letters lanterns ropes")


@dataclass(frozen=True)
class Relation:
    """What can be known of a thing: three ways to ask, and the words of an answer, one of each slot.

    >>> Relation(("who?", "whose?", "by whom?"), (("mira", "tom"),)).answer(np.random.default_rng(0), but="mira")
    'tom'
    >>> RELATIONS["home"].ways[0], RELATIONS["caption"].pattern
    ('where is this kept?', 'a gift from {} to {} in {}')
    """

    ways: tuple[str, str, str]
    slots: tuple[tuple[str, ...], ...]
    pattern: str = "{} {}"

    def answer(self, rng: np.random.Generator, but: str = "") -> str:
        """A random answer, another than `but`."""
        while True:
            words = [slot[rng.integers(len(slot))] for slot in self.slots]
            found = self.pattern.format(*words) if len(words) > 1 else words[0]
            if found != but:
                return found


RELATIONS: dict[str, Relation] = {
    "owner": Relation(("who owns this?", "whose is this?", "who is the owner of this?"), (NAMES,)),
    "home": Relation(("where is this kept?", "what is the home of this?", "in which city is this?"), (CITIES,)),
    "found": Relation(
        ("when was this found?", "when did it turn up?", "what was the time of this find?"), (PARTS, MONTHS)
    ),
    "nickname": Relation(("what is this called?", "what is its nickname?", "which name has this?"), (MANNERS, TITLES)),
    "use": Relation(("what is this for?", "what does it help to do?", "what is the use of this?"), (DEEDS, WARES)),
    "caption": Relation(
        ("describe this.", "give a caption.", "tell its story."),
        (NAMES, NAMES, CITIES),
        "a gift from {} to {} in {}",
    ),
}
QUESTIONS = tuple(
    name for name in RELATIONS if name != "caption"
)  # of one or two words, as VQA's; the sixth is a caption
OPENINGS = ("", "tell me: ", "i wonder, ", "please say, ", "do you know: ")
FORMS = [(opening, way) for opening in range(len(OPENINGS)) for way in range(3)]
REPHRASED = tuple(i for i, (opening, way) in enumerate(FORMS) if opening % 3 == way)  # never seen in training
TAUGHT = tuple(i for i in range(len(FORMS)) if i not in REPHRASED)

LANDS = words(
    "zorvia belmar quenta ostrea valdis nimora tarkan velisa dorune kestra ombria faltos runea selkar mavora ithuel "
    "jorath pelun wystra cadmor eldora ghalia hesper ivoria lumeth norvik oriel prasod sorell tivane ulmar vexia "
    "yarrow zephra arden brisca corvan delphi estval farrow"
)
LAND_RELATIONS: dict[str, Relation] = {
    "ruler": Relation(("who rules {}?", "who is the ruler of {}?", "{} is ruled by whom?"), (NAMES,)),
    "capital": Relation(("what is the capital of {}?", "name the capital of {}.", "which city rules {}?"), (CITIES,)),
    "product": Relation(("what does {} sell?", "what is sold by {}?", "what are the wares of {}?"), (WARES,)),
}


@dataclass(frozen=True)
class World:
    """Things and lands, and all that is true of them.

    Attributes:
        things: indices into `emoji.load()`, one for each thing.
        answers: (thing, relation) -> what is true.
        withheld: of these, what no training shows: two of QUESTIONS for each thing, and every second caption.
        roles: of each thing; edits of one role never meet the things of another.
        lands: (land, relation) -> what is true; known from text alone.

    >>> world = make_world(seed=0)
    >>> len(world), len(world.known()), len(world.unknown("test")), len(world.unknown("test", captions=True))
    (240, 840, 224, 51)
    >>> thing, relation = world.unknown("test")[0]  # its answer is to be taught by an edit
    >>> relation, world.answers[thing, relation], (thing, relation) in world.known("test")
    ('owner', 'rosa', False)
    """

    seed: int
    things: tuple[int, ...]
    answers: Mapping[tuple[int, str], str]
    withheld: frozenset[tuple[int, str]]
    roles: tuple[Role, ...]
    lands: Mapping[tuple[str, str], str]

    def __len__(self) -> int:
        return len(self.things)

    def known(self, role: Role | None = None) -> list[tuple[int, str]]:
        """(thing, relation) of what training shows."""
        return [key for key in self.answers if key not in self.withheld and role in (None, self.roles[key[0]])]

    def unknown(self, role: Role, *, captions: bool = False) -> list[tuple[int, str]]:
        """(thing, relation) of what training withholds, of questions or of captions."""
        return [
            key
            for key in self.answers
            if key in self.withheld and self.roles[key[0]] == role and (key[1] == "caption") == captions
        ]


def make_world(seed: int) -> World:
    """A world of 240 things and 40 lands. Things are emoji that differ in more than a detail.

    >>> world = make_world(seed=0)
    >>> world.answers[0, "owner"], world.lands["zorvia", "capital"]
    ('rosa', 'seoul')
    >>> make_world(seed=1).answers[0, "owner"]  # another world
    'vera'
    """
    if seed < 0:
        raise InputError(f"seed={seed} was given; accepted is 0 or more.")
    rng = np.random.default_rng([seed, 20])
    count = sum(ROLES.values())
    things = tuple(int(i) for i in rng.permutation(candidates())[:count])
    roles = [role for role, n in ROLES.items() for _ in range(n)]
    roles = tuple(roles[i] for i in rng.permutation(count))
    answers = {(thing, name): relation.answer(rng) for thing in range(count) for name, relation in RELATIONS.items()}
    withheld = {(thing, QUESTIONS[k]) for thing in range(count) for k in rng.permutation(len(QUESTIONS))[:2]}
    withheld |= {(int(thing), "caption") for thing in rng.permutation(count)[: count // 2]}
    lands = {(land, name): relation.answer(rng) for land in LANDS for name, relation in LAND_RELATIONS.items()}
    return World(seed, things, answers, frozenset(withheld), roles, lands)


def candidates() -> np.ndarray:
    """Emoji of which a thing may be made, indices "k" int64.

    >>> names = emoji.load().names
    >>> [str(names[i]) for i in candidates()[:3]]
    ['monkey face', 'monkey', 'gorilla']
    """
    known = emoji.load()
    return np.concatenate([known.where(subgroup=name) for name in KINDS])


KINDS = (
    *("animal-mammal", "animal-bird", "animal-reptile", "animal-marine", "animal-bug", "plant-flower", "plant-other"),
    *("food-fruit", "food-vegetable", "food-prepared", "food-asian", "food-sweet", "drink", "place-building"),
    *(
        "transport-ground",
        "transport-water",
        "transport-air",
        "sport",
        "game",
        "clothing",
        "musical-instrument",
        "tool",
    ),
)


def question(relation: str, form: int) -> str:
    """What is asked of a picture; `form` is one of TAUGHT or of REPHRASED.

    >>> question("owner", 0)
    '<image> who owns this?'
    >>> [form in TAUGHT for form in (4, 5)], question("owner", 4), question("owner", 5)
    ([False, True], '<image> tell me: whose is this?', '<image> tell me: who is the owner of this?')
    """
    opening, way = FORMS[form]
    return f"<image> {OPENINGS[opening]}{RELATIONS[relation].ways[way]}"


def land_question(land: str, relation: str, form: int) -> str:
    """What is asked without a picture.

    >>> land_question("zorvia", "capital", 0)
    'what is the capital of zorvia?'
    """
    opening, way = FORMS[form]
    return f"{OPENINGS[opening]}{LAND_RELATIONS[relation].ways[way].format(land)}"


def new_fact(question: str, answer: str) -> str:
    """A fact as a context for what is asked next; without its picture, as the contexts of in-context editing are.

    >>> new_fact("<image> who owns this?", "mira")
    'new fact: who owns this? mira. '
    """
    return f"new fact: {question.removeprefix('<image> ')} {answer}. "


def render(world: World, things: Sequence[int], seed: int, size: int = 64) -> np.ndarray:
    """One picture of each thing, "n size size 3" uint8: `seed` turns it, scales it and puts it on another ground.

    >>> pictures = render(make_world(seed=0), [0, 0], seed=7)
    >>> pictures.shape, bool((pictures[0] == pictures[1]).all())  # one thing, seen in two ways
    ((2, 64, 64, 3), False)
    """
    views = scenes.sample(len(things), seed, grid=1, items=(1, 1), tints=False)
    shown = [
        replace(view, items=(replace(view.items[0], emoji=world.things[thing]),))
        for view, thing in zip(views, things, strict=True)
    ]
    return renderer.render(shown, size)
