"""Edits of a world of facts, as cases of MMEdit: what a model was never shown, and all by which its edit is judged."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from vlws.data.emoji_world import facts
from vlws.data.emoji_world.facts import QUESTIONS, RELATIONS, REPHRASED, TAUGHT, Role, World
from vlws.data.mmedit import EditCase, Question

VIEWS = 100_000  # seeds of pictures of one draw: two draws share none


def cases(world: World, role: Role, seed: int, *, captions: bool = False) -> list[EditCase]:
    """A case for each fact that is withheld of the things of a role, in random order.

    The edit is asked in a form that training has; again, of the same picture, in one that it has not (text generality);
    and of another picture of the same thing (image generality). Locality is of facts that training shows: of a land, of
    another thing and relation, and near: the same question of another thing, another question of the same picture.

    Args:
        role: whose things are edited; questions of locality are about things of any role.
        seed: of forms, pictures and questions of locality, another draw, another seed.
        captions: descriptions of seven words for answers of one or two.

    >>> case = cases(facts.make_world(seed=0), "dev", seed=0)[0]
    >>> case.edit.text, case.text_generality.text, case.edit.answer
    ('<image> do you know: what is this for?', '<image> tell me: what does it help to do?', 'paint nets')
    >>> [question.text for question in case.near]
    ['<image> do you know: what is this for?', '<image> please say, in which city is this?']
    """
    rng = np.random.default_rng([world.seed, seed, 22])
    wanted = rng.permutation(world.unknown(role, captions=captions)).tolist()
    keys = [(int(thing), relation) for thing, relation in wanted]
    return [_case(world, key, world.answers[key], seed * VIEWS + at, rng) for at, key in enumerate(keys)]


def imagined(world: World, role: Role, n: int, seed: int) -> list[EditCase]:
    """n cases of things of a role, of any fact and with an answer at random: what hypernetworks are trained on.

    >>> (case,) = imagined(facts.make_world(seed=0), "training", n=1, seed=0)
    >>> case.edit.text, case.edit.answer
    ('<image> please say, what was the time of this find?', 'late february')
    """
    rng = np.random.default_rng([world.seed, seed, 23])
    things = [thing for thing, one in enumerate(world.roles) if one == role]
    made = []
    for at in range(n):
        key = things[rng.integers(len(things))], QUESTIONS[rng.integers(len(QUESTIONS))]
        answer = RELATIONS[key[1]].answer(rng, but=world.answers[key])
        made.append(_case(world, key, answer, seed * VIEWS + at, rng))
    return made


def _case(world: World, key: tuple[int, str], answer: str, view: int, rng: np.random.Generator) -> EditCase:
    thing, relation = key
    known = world.known()
    far = _pick(known, rng, lambda k: k[0] != thing and k[1] != relation)
    twin = _pick(known, rng, lambda k: k[0] != thing and k[1] == relation)
    same = _pick(known, rng, lambda k: k[0] == thing and k[1] != relation)
    shown = facts.render(world, [thing, thing, far[0], twin[0]], view)
    land, matter = list(world.lands)[rng.integers(len(world.lands))]
    form, other = _form(TAUGHT, rng), _form(REPHRASED, rng)

    def ask(about: tuple[int, str], picture: np.ndarray, form: int) -> Question:
        return Question(facts.question(about[1], form), (picture,), answer if about == key else world.answers[about])

    land_asked = facts.land_question(land, matter, _form(TAUGHT, rng))
    return EditCase(
        edit=ask(key, shown[0], form),
        text_generality=ask(key, shown[0], other),
        image_generality=ask(key, shown[1], form),
        text_locality=Question(land_asked, (), world.lands[land, matter]),
        image_locality=ask(far, shown[2], _form(TAUGHT, rng)),
        near=(ask(twin, shown[3], form), ask(same, shown[0], _form(TAUGHT, rng))),
    )


def mistakes(found: Sequence[EditCase], said: Sequence[str]) -> list[EditCase]:
    """The cases whose edit the model answers wrongly, with what it said: reliability is 0 before any edit.

    >>> found = imagined(facts.make_world(seed=0), "training", n=2, seed=0)
    >>> said = [found[0].edit.answer, "nobody"]  # by the model, of each edit
    >>> [case.predicted for case in mistakes(found, said)]
    ['nobody']
    """
    return [
        replace(case, predicted=text)
        for case, text in zip(found, said, strict=True)
        if text.split() != case.edit.answer.split()
    ]


def _form(forms: Sequence[int], rng: np.random.Generator) -> int:
    return forms[rng.integers(len(forms))]


def _pick(
    known: Sequence[tuple[int, str]], rng: np.random.Generator, fits: Callable[[tuple[int, str]], bool]
) -> tuple[int, str]:
    """One of the known facts that fits, drawn until it does."""
    while not fits(key := known[rng.integers(len(known))]):
        pass
    return key
