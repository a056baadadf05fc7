"""DEMON (I4): demonstrative instructions over several pictures, read and written in the benchmark's files, and scored.

    tasks = read_demon("DEMON-Core")  # a real folder, unchanged: one task or many
    texts = mllm.generate(mllm.encode([s.prompt for s in batch], [s.pictures() for s in batch], "left"), 30)
    table = summary({task: score(task, texts)})

Source: Li et al., "Fine-tuning Multimodal LLMs to Follow Zero-shot Demonstrative Instructions", ICLR 2024,
arXiv:2308.04152, section 3 and appendix; the files as in github.com/DCDmllm/Cheetah, "DEMON Benchmark".

Scores follow the benchmark's rules (open-ended: ROUGE-L F1; options: exact, else the nearest by TF-IDF; pictures as
options: the answer begins with the right one and names no other), and not these faults of its script: a task without
a question type counts as open-ended (ALFRED); options that are pictures are known by their names, not by a list of
tasks that spells one of them otherwise (RecipeQA_VisualCloze); an answer that is near no option, or as near to
several, is wrong (the script gives it the first); a category is the mean of its own tasks (the script's reads the last
task's file for each); "image at the left" does not name "image a". ROUGE-L is by its definition; the package `rouge`
that the script calls counts repeated words once.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm import tqdm

from vlws.data.images import find_file, is_hidden, open_image
from vlws.data.text import read_json
from vlws.errors import InputError
from vlws.files import write_json

OPEN, CHOICE = "open-ended", "multi-choice"
MARK = "<image>"  # stands for one picture in a prompt
CATEGORIES: dict[str, tuple[str, ...]] = {
    "Multi-Modal Dialogue": ("ALFRED", "MMCoQA"),
    "Visual Storytelling": ("AESOP", "PororoSV", "FlintstonesSV", "VIST", "DiDeMoSV"),
    "Visual Relation Inference": ("Spot-the-Diff", "CLEVR-Change", "IEdit", "Birds-to-Words"),
    "Multi-Modal Cloze": ("COMICS_Dialogue", "COMICS_Panel", "RecipeQA_TextCloze", "RecipeQA_VisualCloze"),
    "Knowledge Grounded QA": ("WebQA", "TQA", "MMQA", "MultiModalQA", "ManyModalQA"),
    "Text-Rich Images QA": ("SlideVQA", "OCR-VQA", "DocVQA"),
    "Multi-Image Reasoning": (
        *("Gibson", "nuScenes", "VISION", "Fashion200K", "MIT-States_PropertyCoherence", "MIT-States_StateCoherence"),
        *("RecipeQA_ImageCoherence", "NLVR2", "VizWiz"),
    ),
}
_PLACE = re.compile(r"\{(?:image|table)#([^}]*)\}")
_IMAGE_OPTION = re.compile(r"image [a-z]\b")


@dataclass(frozen=True, eq=False)
class Sample:
    """One instruction. `context` marks its pictures by {image#i} or {table#i}, i counted from 1.

    Attributes:
        images: files, or uint8 RGB "h w 3".
        choices: the options of a multi-choice question, right one among them; empty for open-ended ones, and where
            the options are pictures that the context names "Image A: {image#4}".

    >>> picture = np.zeros((8, 8, 3), np.uint8)
    >>> sample = Sample(0, 0, "Answer.", "{image#1} Which colour?", (picture,), ("red", "blue"), "red")
    >>> sample.prompt
    "Answer.<image> Which colour?Choice list:['red', 'blue']. Your answer is:"
    >>> [picture.shape for picture in sample.pictures()]
    [(8, 8, 3)]
    """

    sample_id: int | str
    instruction_id: int
    instruction: str
    context: str
    images: tuple[Path | np.ndarray, ...]
    choices: tuple[str, ...]
    response: str

    @property
    def prompt(self) -> str:
        """Instruction, context and options as the authors join them; "<image>" stands for each picture."""
        options = "Choice list:[" + ", ".join(f"'{choice}'" for choice in self.choices) + "]. Your answer is:"
        text = f"{self.instruction}{self.context}{options if self.choices else ''}"
        return _PLACE.sub(MARK, text.replace(MARK, "image"))

    def pictures(self) -> list[Image.Image | np.ndarray]:
        """The pictures in the order of their marks in the prompt; InputError for one that cannot be read."""
        order = [int(place) - 1 for place in _PLACE.findall(self.instruction + self.context)]
        return [open_image(self.images[i]) if isinstance(self.images[i], Path) else self.images[i] for i in order]


@dataclass(frozen=True, eq=False)
class Task:
    """`question_type` is OPEN or CHOICE; `instructions` are the task's templates.

    >>> sample = Sample(0, 0, "Answer.", "What is it?", (), (), "a cat")
    >>> task = Task("naming", "Knowledge", OPEN, ("Answer.",), (sample,))
    >>> score(task, ["A cat!"]).tolist()
    [1.0]
    """

    name: str
    category: str
    question_type: str
    instructions: tuple[str, ...]
    samples: tuple[Sample, ...]


# --- files ------------------------------------------------------------------------------------------------------


def read_demon(folder: str | Path) -> list[Task]:
    """Every task below a folder: `<task>/core/core.json` (or full/full.json) with its pictures in `images/` beside it.

    The category comes from the task's name, else from a folder above it that bears a category's name, else it is the
    task's own name.

    Raises:
        InputError: no task, broken JSON, a missing field or picture, a placeholder without a picture, an instruction
            out of range, a response that is not among its options, two tasks of one name.

    >>> import tempfile
    >>> picture = np.zeros((8, 8, 3), np.uint8)
    >>> sample = Sample(0, 0, "Answer.", "{image#1} What is it?", (picture,), (), "a cat")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (task,) = read_demon(write_demon(folder, [Task("naming", "Knowledge", OPEN, ("Answer.",), (sample,))]))
    >>> task.name, task.question_type, task.samples[0].prompt
    ('naming', 'open-ended', 'Answer.<image> What is it?')
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"The DEMON folder {folder} does not exist; give one that holds <task>/core/core.json.")
    files = sorted(
        path for name in ("core.json", "full.json") for path in folder.rglob(name) if not is_hidden(path, folder)
    )
    if not files:
        raise InputError(f"{folder} holds no core.json; a DEMON task is a folder with core.json and images/.")
    tasks = [_read_task(path) for path in tqdm(files, desc="tasks", leave=False, disable=len(files) < 5)]
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{folder} holds the task {name} {names.count(name)} times; give one of its folders.")
    return tasks


def _read_task(path: Path) -> Task:
    content = read_json(path)
    try:
        metadata, rows = content["metadata"], content["data"]
        name, instructions = str(metadata["dataset"]), _texts(metadata["task_instruction"], "task_instruction", path)
        kind = metadata["question_type"] or OPEN
        if kind not in (OPEN, CHOICE):
            raise InputError(f"{path}: question_type={kind!r}; accepted are {OPEN}, {CHOICE} and none ({OPEN}).")
        root = path.parent / "images" if (path.parent / "images").is_dir() else path.parent
        samples = tuple(_read_sample(row, root, instructions, kind, path) for row in rows)
    except KeyError as error:
        raise InputError(f"{path} lacks the field {error}; see the data format of DEMON.") from error
    except (TypeError, AttributeError) as error:
        raise InputError(f"{path} does not have DEMON's structure ({error}).") from error
    if not samples:
        raise InputError(f"{path} holds no sample.")
    return Task(name, _category(name, path), kind, instructions, samples)


def _texts(given: Any, field: str, path: Path) -> tuple[str, ...]:
    """A field's list of texts; one text is a list of one."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{path}: {field}={given!r}; accepted is a text, or a list of texts.")
    return tuple(texts)


def _read_sample(row: Mapping, root: Path, instructions: Sequence[str], kind: str, path: Path) -> Sample:
    at, instance, chosen = f"{path}, sample {row['sample_id']}", row["task_instance"], row["task_instruction_id"]
    if not isinstance(chosen, int) or not 0 <= chosen < len(instructions):
        raise InputError(
            f"{at}: task_instruction_id={chosen!r}; the task has instructions 0 to {len(instructions) - 1}."
        )
    images = tuple(
        find_file(root, name) or root / name for name in _texts(instance["images_path"], "images_path", path)
    )
    for place in _PLACE.finditer(instance["context"]):
        if not place[1].isdecimal() or not 1 <= int(place[1]) <= len(images):
            raise InputError(f"{at}: the context names {place[0]}, but images_path lists {len(images)} pictures.")
    for image in images:
        if not image.is_file():
            raise InputError(f"{at}: the picture {image} is missing.")
    response = str(row["response"])
    listed = instance.get("choice_list") or _choices_in(instance["context"])
    if not isinstance(listed, list):
        raise InputError(f"{at}: choice_list={listed!r}; accepted is a list of options.")
    choices = tuple(map(str, listed)) if kind == CHOICE else ()
    if all(_IMAGE_OPTION.match(normalise(choice)) for choice in choices):
        choices = ()  # they stand in the context, picture by picture
    if kind == CHOICE:
        _check_response(response, choices, at)
    return Sample(row["sample_id"], chosen, instructions[chosen], instance["context"], images, choices, response)


def _choices_in(context: str) -> list[str]:
    """The options that a context lists itself: "Choice List:['red', 'blue']"."""
    found = re.search(r"choice list:\s*(\[.*?\])", context, re.IGNORECASE | re.DOTALL)
    try:
        return list(ast.literal_eval(found[1])) if found else []
    except (ValueError, SyntaxError):
        return []


def _check_response(response: str, choices: Sequence[str], at: str) -> None:
    known = [normalise(choice) for choice in choices]
    if choices and normalise(response) not in known:
        raise InputError(f"{at}: the response {response!r} is none of its choices ({', '.join(choices)}).")
    if not choices and not _IMAGE_OPTION.match(normalise(response)):
        raise InputError(f"{at}: a multi-choice sample needs a choice_list, or a response such as 'Image A'.")


def _category(name: str, path: Path) -> str:
    def plain(text: str) -> str:
        return re.sub("[^a-z0-9]", "", text.lower().removeprefix("recipeqa-"))

    for category, names in CATEGORIES.items():
        if plain(name) in map(plain, names) or plain(category) in map(plain, path.parts[:-1]):
            return category
    return name


def write_demon(folder: str | Path, tasks: Sequence[Task]) -> Path:
    """Write `<category>/<task>/core/core.json` and its pictures as PNG files in `images/`; core.json comes last.

    >>> import tempfile
    >>> sample = Sample(0, 0, "Answer.", "{image#1} What is it?", (np.zeros((8, 8, 3), np.uint8),), (), "a cat")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_demon(folder, [Task("naming", "Knowledge", OPEN, ("Answer.",), (sample,))])
    ...     print([path.relative_to(folder).as_posix() for path in sorted(Path(folder).rglob("*.*"))])
    ['Knowledge/naming/core/core.json', 'Knowledge/naming/core/images/0_1.png']
    """
    folder = Path(folder)
    for task in tasks:
        root = folder / task.category / task.name / "core"
        (root / "images").mkdir(parents=True, exist_ok=True)
        data = []
        for sample in task.samples:
            names = [f"{sample.sample_id}_{i}.png" for i in range(1, len(sample.images) + 1)]
            for name, image in zip(names, sample.images, strict=True):
                picture = open_image(image) if isinstance(image, Path) else Image.fromarray(image)
                picture.save(root / "images" / name)
            instance = {"context": sample.context, "images_path": names}
            if sample.choices:
                instance["choice_list"] = list(sample.choices)
            entry = {"sample_id": sample.sample_id, "task_instruction_id": sample.instruction_id}
            data.append({**entry, "task_instance": instance, "response": sample.response})
        metadata = {"dataset": task.name, "split": "core", "num_sample": len(data)}
        metadata |= {"task_instruction": list(task.instructions), "question_type": task.question_type}
        write_json(root / "core.json", {"metadata": metadata, "data": data})
    return folder


def write_predictions(folder: str | Path, task: Task, texts: Sequence[str]) -> Path:
    """Write `<task>/pred.json` for the benchmark's script: a list of {sample_id, pred_response, gt_response}.

    >>> import json, tempfile
    >>> task = Task("naming", "Knowledge", OPEN, ("",), (Sample(7, 0, "", "What is it?", (), (), "a cat"),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     json.loads(write_predictions(folder, task, ["a dog"]).read_text())
    [{'sample_id': 7, 'pred_response': 'a dog', 'gt_response': 'a cat'}]
    """
    _check_length(task, texts)
    path = Path(folder) / task.name / "pred.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"sample_id": sample.sample_id, "pred_response": text, "gt_response": sample.response}
        for sample, text in zip(task.samples, texts, strict=True)
    ]
    write_json(path, rows)
    return path


def read_predictions(folder: str | Path, task: Task) -> list[str]:
    """The answers of `<task>/pred.json` in the order of the task's samples.

    Raises:
        InputError: no such file, broken JSON, or a sample without an answer.

    >>> import tempfile
    >>> task = Task("naming", "Knowledge", OPEN, ("",), (Sample(7, 0, "", "What is it?", (), (), "a cat"),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_predictions(folder, task, ["a dog"])
    ...     read_predictions(folder, task)
    ['a dog']
    """
    path = Path(folder) / task.name / "pred.json"
    rows = read_json(path)
    try:
        found = {str(row["sample_id"]): str(row["pred_response"]) for row in rows}
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no list of sample_id and pred_response ({type(error).__name__}: {error})."
        ) from error
    for sample in task.samples:
        if str(sample.sample_id) not in found:
            raise InputError(f"{path} has no answer to sample {sample.sample_id} of {task.name}.")
    return [found[str(sample.sample_id)] for sample in task.samples]


# --- scores -----------------------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """Lower case without punctuation, as VQA scripts do: a mark that touches a space anywhere in the text goes, one
    that joins words becomes a space; full stops go unless a digit follows.

    >>> normalise("A well-known Cat.")
    'a well known cat'
    """
    text = re.sub(r"[\n\t]", " ", text).strip()
    thousands = re.search(r"\d,\d", text) is not None
    clean = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        loose = thousands or f"{mark} " in text or f" {mark}" in text
        clean = clean.replace(mark, "" if loose else " ")
    clean = re.sub(r"\.(?!\d)", "", clean)
    return clean.strip("'").strip('"').strip().lower()


def rouge_l(candidate: str, reference: str) -> float:
    """ROUGE-L F1 of two normalised texts: the harmonic mean of LCS / words of each (Lin 2004, eqs. 2-4, beta = 1).

    >>> round(rouge_l("a red cat", "a cat"), 2)  # LCS 2, of 3 and of 2 words
    0.8
    """
    a, b = candidate.split(), reference.split()
    common = lcs(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


def lcs(a: Sequence, b: Sequence) -> int:
    """Length of the longest common subsequence, bit-parallel: the zeros that rows of the table leave (Hyyrö 2004).

    >>> lcs("a red cat sleeps".split(), "a cat sleeps".split())
    3
    """
    places: dict = {}
    for i, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for item in b:
        match = row & places.get(item, 0)
        row = (row + match | row - match) & full
    return len(a) - row.bit_count()


def chosen(answer: str, choices: Sequence[str]) -> str | None:
    """Which of the normalised choices a normalised answer means: an equal one, else the nearest by TF-IDF cosine.

    None where no choice is nearer than all others.

    >>> chosen("it is red", ["red", "blue"])
    'red'
    >>> chosen("green", ["red", "blue"]) is None
    True
    """
    choices = list(dict.fromkeys(choices))
    if answer in choices:
        return answer
    try:
        rows = TfidfVectorizer().fit_transform([answer, *choices])  # unit norm
    except ValueError:  # no word of two letters anywhere
        return None
    cosine = (rows[1:] @ rows[0].T).toarray().ravel()
    best = np.flatnonzero(np.isclose(cosine, cosine.max()))
    return choices[best[0]] if len(best) == 1 and cosine.max() > 0 else None


def score_sample(sample: Sample, question_type: str, text: str) -> float:
    """One answer, 0 to 1, by the rule that fits its sample.

    >>> score_sample(Sample(0, 0, "", "Which colour?", (), ("red", "blue"), "red"), CHOICE, "It is red.")
    1.0
    >>> score_sample(Sample(0, 0, "", "What is it?", (), (), "a cat"), OPEN, "a red cat")
    0.8
    """
    answer, truth = normalise(text), normalise(sample.response)
    if question_type == OPEN:
        return rouge_l(answer, truth)
    if sample.choices:
        return float(chosen(answer, [normalise(choice) for choice in sample.choices]) == truth)
    named = set(re.findall(r"\bimage [a-d]\b", answer))
    return float(named == {truth[:7]} and answer.startswith(truth[:7]))


def score(task: Task, texts: Sequence[str]) -> np.ndarray:
    """ "sample" float64: the score of each answer, in the order of the task's samples.

    >>> sample = Sample(0, 0, "", "What is it?", (), (), "a cat")
    >>> score(Task("naming", "Knowledge", OPEN, ("",), (sample, sample)), ["a cat", "a dog"]).tolist()
    [1.0, 0.5]
    """
    _check_length(task, texts)
    return np.array([score_sample(s, task.question_type, t) for s, t in zip(task.samples, texts, strict=True)])


def summary(scores: Mapping[Task, np.ndarray]) -> pd.DataFrame:
    """Scores of tasks -> one row a category, x 100, with its tasks, and the row "mean" over the categories.

    A category is the unweighted mean over its tasks, whatever their sizes.

    >>> one, two = (Task(name, "Knowledge", OPEN, ("",), ()) for name in ("naming", "counting"))
    >>> summary({one: np.array([1.0, 0.0]), two: np.array([1.0])}).loc["Knowledge"].tolist()  # tasks, score
    [2.0, 75.0]
    """
    rows = [(task.category, task.name, 100 * float(np.mean(values))) for task, values in scores.items()]
    table = pd.DataFrame(rows, columns=["category", "task", "score"])
    order = [*(name for name in CATEGORIES if name in set(table.category)), *table.category]
    means = table.groupby("category").agg(tasks=("task", "nunique"), score=("score", "mean"))
    means = means.loc[list(dict.fromkeys(order))]
    means.loc["mean"] = {"tasks": means.tasks.sum(), "score": means.score.mean()}
    return means.astype({"tasks": int})


def _check_length(task: Task, texts: Sequence[str]) -> None:
    if len(texts) != len(task.samples):
        raise InputError(f"{len(texts)} answers were given to {task.name}; it has {len(task.samples)} samples.")
