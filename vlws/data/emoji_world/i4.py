"""A small I4: the seven categories of DEMON as 19 tasks over emoji scenes, with one true answer each.

    task = i4.make("spot_difference", 200, seed=0)  # a demon.Task: prompts, pictures, options, answers
    demon.write_demon(folder, i4.make_all(200, seed=0))  # the benchmark's own files

Every picture shows things, an emoji in one of five colours each, in the cells of a grid; some bear a written word or
number. Every answer follows from the pictures (and from what Unicode files an emoji under); none follows from the
text alone better than by guessing. Words are few (`vocabulary`), templates closed, ten instructions per task.

All randomness comes from `PCG64.random_raw`: the same seed gives the same samples on every machine, and the first k of
n samples do not depend on n. Seeds as in `scenes`: training corpora from 1,000,000.

Its speed, on one core (0.2 s for 380 samples where this was written):
python -m timeit -s "from vlws.data.emoji_world import i4" "i4.make_all(20, 0)"
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from einops import rearrange

from vlws.data.demon import CATEGORIES, CHOICE, OPEN, Sample, Task
from vlws.data.emoji_world import i4_tasks as draw
from vlws.data.emoji_world.captions import ORDINALS
from vlws.data.emoji_world.i4_pictures import I4_KINDS, NUMBERS, SORTS, WRITTEN_WORDS, SampleRandom, render
from vlws.data.emoji_world.i4_tasks import Draft
from vlws.data.emoji_world.scenes import COLOURS, POSITIONS, backgrounds, draws
from vlws.data.emoji_world.scenes import poses as draw_poses
from vlws.errors import InputError

LEADS = (
    "",
    "look at the images. ",
    "here are some images. ",
    "the images belong together. ",
    "read the images and the text. ",
)


@dataclass(frozen=True)
class Spec:
    """A task: its category, question type, two wordings (ten instructions with LEADS), and how a sample is drawn.

    >>> spec = TASKS["count"]
    >>> spec.question_type, len(spec.instructions), spec.instructions[0]
    ('multi-choice', 10, 'answer the question. ')
    """

    category: str
    question_type: str
    wordings: tuple[str, str]
    draw: Callable[[SampleRandom], Draft]

    @property
    def instructions(self) -> tuple[str, ...]:
        """The ten instructions: each wording after each of LEADS."""
        return tuple(f"{lead}{wording} " for wording in self.wordings for lead in LEADS)


_DIALOGUE, _STORY, _RELATION, _CLOZE, _KNOWLEDGE, _TEXT, _REASONING = CATEGORIES
TASKS: dict[str, Spec] = {
    spec.draw.__name__: spec
    for spec in (
        Spec(_DIALOGUE, OPEN, ("say what to do now.", "tell the next step."), draw.next_step),
        Spec(_DIALOGUE, OPEN, ("answer the last question.", "go on with the conversation."), draw.conversation),
        Spec(_STORY, OPEN, ("tell how the story ends.", "finish the story."), draw.arrivals),
        Spec(_STORY, OPEN, ("tell where the journey ends.", "finish the journey."), draw.journey),
        Spec(
            _RELATION, OPEN, ("describe the difference.", "say what is different in the second."), draw.spot_difference
        ),
        Spec(
            _RELATION, OPEN, ("say how to edit the first image.", "write the request for this edit."), draw.edit_request
        ),
        Spec(_RELATION, OPEN, ("compare the images.", "say what the first and the second show."), draw.comparison),
        Spec(_CLOZE, CHOICE, ("choose the image that comes next.", "which image is unknown?"), draw.panel_cloze),
        Spec(_CLOZE, CHOICE, ("choose the caption that is unknown.", "which text is unknown?"), draw.caption_cloze),
        Spec(_KNOWLEDGE, CHOICE, ("answer the question.", "choose the colour."), draw.sort_colour),
        Spec(_KNOWLEDGE, CHOICE, ("answer the question.", "choose one more of the same sort."), draw.same_sort),
        Spec(_KNOWLEDGE, CHOICE, ("answer the question.", "choose the number in the table."), draw.table_lookup),
        Spec(_TEXT, CHOICE, ("answer the question.", "choose the word."), draw.title),
        Spec(_TEXT, CHOICE, ("answer the question.", "choose the page."), draw.page),
        Spec(_TEXT, CHOICE, ("answer the question.", "choose the thing."), draw.price),
        Spec(_REASONING, CHOICE, ("answer the question.", "say yes or no."), draw.both),
        Spec(_REASONING, CHOICE, ("answer the question.", "choose the number."), draw.count),
        Spec(_REASONING, CHOICE, ("choose the image that does not belong.", "which image is different?"), draw.odd_one),
        Spec(_REASONING, CHOICE, ("answer the question.", "choose what is the same."), draw.shared),
    )
}


def drafts(name: str, n: int, seed: int) -> list[Draft]:
    """n samples of a task as specifications; InputError for an unknown task.

    >>> (draft,) = drafts("count", 1, seed=0)
    >>> draft.response in draft.choices
    True
    """
    if name not in TASKS:
        raise InputError(f"There is no task {name!r}; the tasks are {', '.join(TASKS)}.")
    words = draws(n, 184, seed * 32 + list(TASKS).index(name))
    words, grounds, poses = np.split(words, [96, 120], axis=1)  # 4 backgrounds of 6 words, 16 poses of 4
    grounds = backgrounds(rearrange(grounds, "n (k six) -> (n k) six", six=6), muted=True)
    poses = {grid: np.stack(draw_poses(poses, grid), axis=-1).tolist() for grid in (1, 2, 3)}
    return [
        TASKS[name].draw(SampleRandom(row, {grid: poses[grid][i] for grid in poses}, grounds[4 * i : 4 * i + 4]))
        for i, row in enumerate(words.tolist())
    ]


def make(name: str, n: int, seed: int, size: int = 64) -> Task:
    """n samples of a task, their pictures uint8 "size size 3" (64, 32 or 16 pixels).

    Raises:
        InputError: an unknown task, n or seed below 0, another size.

    >>> task = make("count", 2, seed=0, size=32)
    >>> task.name, len(task.samples), task.samples[0].images[0].shape
    ('count', 2, (32, 32, 3))
    """
    spec, found = TASKS.get(name), drafts(name, n, seed)
    pictures = iter(render([picture for draft in found for picture in draft.pictures], size))
    turn = draws(n, 1, seed * 32 + 31)[:, 0].tolist()
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
    """n samples of each task.

    >>> [task.name for task in make_all(1, seed=0, size=16)] == list(TASKS)
    True
    """
    return [make(name, n, seed, size) for name in TASKS]


def corpus(seed: int, n: int) -> Iterator[str]:
    """n texts, prompt and answer, the tasks in turn: what a tokenizer or a language model can be trained on.

    >>> len(list(corpus(seed=0, n=5)))
    5
    >>> next(corpus(seed=0, n=1)).split(" <image> ")[:2]
    ['say what to do now. goal: take all things in reading order.', 'first step: take the purple pear.']
    """
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
    """Every word (lower case, without marks) of every text that these tasks can hold, sorted.

    >>> "cat" in vocabulary(), vocabulary() == tuple(sorted(vocabulary()))
    (True, True)
    """
    texts = [text for spec in TASKS.values() for text in spec.instructions]
    texts += [*I4_KINDS, *COLOURS, *SORTS, *WRITTEN_WORDS, *NUMBERS, *ORDINALS, *POSITIONS[2], *POSITIONS[3]]
    texts += [str(number) for number in range(10, 100)]
    texts += list(corpus(0, 100 * len(TASKS)))
    return tuple(sorted({word for text in texts for word in re.findall(r"\w+", text.lower())}))
