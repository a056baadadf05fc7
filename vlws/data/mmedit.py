"""Cases of knowledge editing: what is to be known, how else it is asked, and what must stay as it was.

A case has the fields of MMEdit (Cheng et al. 2023, arXiv:2310.08475), and beside its far questions near ones. Files of
the benchmark are read and written.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlws.data.images import find_file, open_image
from vlws.data.text import read_json
from vlws.errors import InputError
from vlws.files import write_atomically

GENERALITY = ("text_generality", "image_generality")
LOCALITY = ("text_locality", "image_locality")
KINDS = ("reliability", *GENERALITY, *LOCALITY, "near")


@dataclass(frozen=True)
class Question:
    """A question and its answer.

    Attributes:
        text: with a placeholder "<image>" for each picture.
        images: PIL pictures, arrays "h w 3" uint8, or rows of a tower's features.
        answer: for the edit and its generality, the new one; for locality, the one that scores are read at.

    >>> question = Question("<image> who made this?", (np.zeros((8, 8, 3), np.uint8),), "mira")
    >>> question.text.count("<image>") == len(question.images)
    True
    """

    text: str
    images: Sequence[Any]
    answer: str


@dataclass(frozen=True)
class EditCase:
    """An edit, and the questions by which it is judged.

    Attributes:
        edit: what is taught.
        text_generality: the same, asked in other words; image_generality: asked of another picture of the same thing.
        text_locality: about something else, without a picture; image_locality: about another picture.
        near: about the same picture, or the same of another: nearer than MMEdit's, which are drawn at random.
        predicted: what the model said before.

    >>> picture = (np.zeros((8, 8, 3), np.uint8),)
    >>> made, far = Question("<image> who made this?", picture, "mira"), Question("where is oslo?", (), "norway")
    >>> case = EditCase(made, made, made, far, Question("<image> what is this?", picture, "a plate"))
    >>> [kind for kind, question in case.questions() if question.answer == "mira"]
    ['reliability', 'text_generality', 'image_generality']
    """

    edit: Question
    text_generality: Question
    image_generality: Question
    text_locality: Question
    image_locality: Question
    near: tuple[Question, ...] = ()
    predicted: str = ""

    def questions(self) -> Iterator[tuple[str, Question]]:
        """(one of KINDS, question) of all that the case asks."""
        named: Mapping[str, Question] = {"reliability": self.edit} | {
            kind: getattr(self, kind) for kind in (*GENERALITY, *LOCALITY)
        }
        yield from named.items()
        yield from (("near", question) for question in self.near)


# --- files of MMEdit --------------------------------------------------------------------------------------------------

VQA_PROMPT = "Question: {} Short answer:"  # E-VQA's, of both questions about pictures, as EasyEdit puts it
FIELDS = ("src", "pred", "alt", "rephrase", "image", "image_rephrase", "loc", "loc_ans", "m_loc", "m_loc_q", "m_loc_a")
NEAR = ("image", "question", "answer")  # of the optional field "near"
PLACEHOLDER = "<image>"


def read_mmedit(
    json_path: str | Path,
    image_root: str | Path,
    *,
    prompt: str = VQA_PROMPT,
    locality_prompt: str = VQA_PROMPT,
    keep_known: bool = False,
    n: int | None = None,
) -> list[EditCase]:
    """The cases of a JSON file of MMEdit, E-VQA or E-IC, with their pictures as PIL, RGB.

    The file is one list of records {"src": question, "pred": what the model says, "alt": the target, "rephrase": the
    question in other words, "image", "image_rephrase", "loc", "loc_ans": question and answer without a picture,
    "m_loc", "m_loc_q", "m_loc_a": picture, question and answer}. Beside MMEdit's fields a record may have "near": a
    list of {"image", "question", "answer"}.

    Args:
        image_root: folder that the names of pictures start from.
        prompt, locality_prompt: what is put around a question about a picture, of the edit and of `m_loc_q`; the
            picture stands before it, `loc` stands alone. "{}" for E-IC's edits, and for a model taught bare questions.
        keep_known: accepts records whose target is what the model says already.
        n: only the first n records; about 1 MB of memory for each picture of COCO.

    Raises:
        InputError: a file that is no such list; a record with a field missing, empty or no text ("pred" may be empty),
            a target that is the prediction, a picture that is missing or cannot be read, a placeholder "<image>" in a
            question; an edit that stands twice. The sentence names file and record, counted from 0.

    >>> import tempfile
    >>> from vlws.data.emoji_world import edit_cases, facts
    >>> made = edit_cases.imagined(facts.make_world(seed=0), "training", n=2, seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_mmedit(f"{folder}/edits.json", folder, made)
    ...     (case,) = read_mmedit(f"{folder}/edits.json", folder, n=1)
    >>> case.edit.text, case.edit.images[0].size
    ('<image> Question: please say, what was the time of this find? Short answer:', (64, 64))
    """
    path, root = Path(json_path).expanduser(), Path(image_root).expanduser()
    _check_prompts(prompt, locality_prompt)
    if n is not None and n < 1:
        raise InputError(f"n={n} was given; accepted is 1 or more, or None for all records.")
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise InputError(f"{path} is no list of records; accepted is [{{{', '.join(map(repr, FIELDS))}}}, ...].")
    records = records[:n]
    seen: dict[tuple[str, Path], int] = {}
    for i, record in enumerate(records):  # all is looked at before a picture is opened
        where = f"{path}, record {i},"
        _check_record(record, where, keep_known)
        key = record["src"].strip(), _picture(record, root, where, "image")
        if key in seen:
            raise InputError(
                f"{path}, records {seen[key]} and {i}, ask the same of the same picture; accepted is one edit of each."
            )
        seen[key] = i
        for part, name in ((record, "image_rephrase"), (record, "m_loc"), *((near, "image") for near in _near(record))):
            _picture(part, root, where, name)
    return [_case(record, root, prompt, locality_prompt) for record in records]


def read_folder(folder: str | Path, *, prompt: str = VQA_PROMPT) -> list[EditCase]:
    """The cases of `edits.json` in a folder, with the folder's pictures (`read_mmedit`).

    Raises:
        InputError: no such file, and what `read_mmedit` refuses.

    >>> import tempfile
    >>> from vlws.data.emoji_world import edit_cases, facts
    >>> made = edit_cases.imagined(facts.make_world(seed=0), "training", n=2, seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_mmedit(f"{folder}/edits.json", folder, made)
    ...     cases = read_folder(folder, prompt="{}")
    >>> len(cases), cases[0].edit.text == made[0].edit.text
    (2, True)
    """
    path = Path(folder).expanduser() / "edits.json"
    if not path.is_file():
        raise InputError(
            f"{folder} holds no edits.json; accepted is a folder with that file of MMEdit's form, and pictures."
        )
    return read_mmedit(path, path.parent, prompt=prompt, locality_prompt=prompt)


def _check_prompts(*prompts: str) -> None:
    for prompt in prompts:
        if prompt.count("{}") != 1 or PLACEHOLDER in prompt:
            raise InputError(
                f"The prompt {prompt!r} was given; accepted is a text with one {{}}, where the question goes, and no "
                f"{PLACEHOLDER}."
            )


def _check_record(record: Any, where: str, keep_known: bool) -> None:
    if not isinstance(record, dict):
        raise InputError(f"{where} is a {type(record).__name__}; accepted is an object with {', '.join(FIELDS)}.")
    if missing := [name for name in FIELDS if name not in record]:
        raise InputError(f"{where} lacks {', '.join(missing)}; accepted are records with {', '.join(FIELDS)}.")
    near = record.get("near", [])
    if not isinstance(near, list) or not all(isinstance(q, dict) and set(NEAR) <= set(q) for q in near):
        raise InputError(f'{where} has another "near" than [{{"image": ..., "question": ..., "answer": ...}}, ...].')
    texts = {name: record[name] for name in FIELDS}
    texts |= {f"near {name} {k}": q[name] for k, q in enumerate(near) for name in NEAR}
    for name, text in texts.items():
        if not isinstance(text, str) or not (text.strip() or name == "pred"):
            given = f"{json.dumps(text)[:40]} as its {name}"
            raise InputError(f"{where} has {given}; accepted is a text of a word or more.")
        if PLACEHOLDER in text:
            remedy = "its question has no picture" if name == "loc" else "the picture is put before the question"
            raise InputError(f"{where} holds {PLACEHOLDER} in its {name}; write the question alone, since {remedy}.")
    if not keep_known and record["alt"].split() == record["pred"].split():
        raise InputError(
            f"{where} has the target {record['alt']!r}, which the model says already; remove the record, or pass "
            "keep_known=True."
        )


def _near(record: Mapping[str, Any]) -> list[dict[str, str]]:
    return record.get("near", [])


def _picture(record: Mapping[str, Any], root: Path, where: str, name: str) -> Path:
    path = find_file(root, record[name])
    if path is None:
        raise InputError(f"{where} names the picture {record[name]}, which is not in {root}.")
    return path


def _case(record: Mapping[str, Any], root: Path, prompt: str, locality_prompt: str) -> EditCase:
    def ask(text: str, picture: str, answer: str, around: str) -> Question:
        image = open_image(_picture({"": picture}, root, "", ""))
        return Question(f"{PLACEHOLDER} {around.replace('{}', text.strip())}", (image,), answer.strip())

    edit = ask(record["src"], record["image"], record["alt"], prompt)
    rephrased = f"{PLACEHOLDER} {prompt.replace('{}', record['rephrase'].strip())}"
    return EditCase(
        edit=edit,
        text_generality=Question(rephrased, edit.images, edit.answer),
        image_generality=ask(record["src"], record["image_rephrase"], record["alt"], prompt),
        text_locality=Question(record["loc"].strip(), (), record["loc_ans"].strip()),
        image_locality=ask(record["m_loc_q"], record["m_loc"], record["m_loc_a"], locality_prompt),
        near=tuple(ask(q["question"], q["image"], q["answer"], locality_prompt) for q in _near(record)),
        predicted=record["pred"].strip(),
    )


def write_mmedit(
    json_path: str | Path,
    image_root: str | Path,
    cases: Sequence[EditCase],
    *,
    prompt: str = VQA_PROMPT,
    locality_prompt: str = VQA_PROMPT,
) -> None:
    """Write cases as a JSON file of MMEdit and its pictures as PNG; `read_mmedit` with the same prompts reads them.

    The prompts are taken off the questions that have them. Pictures are named after the case and the question.

    >>> import tempfile
    >>> edit = Question("<image> who made this?", (np.zeros((8, 8, 3), np.uint8),), "mira")
    >>> case = EditCase(edit, edit, edit, Question("where is oslo?", (), "norway"), edit)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_mmedit(f"{folder}/edits.json", folder, [case])
    ...     read_mmedit(f"{folder}/edits.json", folder)[0].edit.text
    '<image> Question: who made this? Short answer:'

    Raises:
        InputError: no cases; a case that MMEdit's fields cannot hold: pictures that are no PIL and no arrays, another
            number of them than one (none of a text locality), a generality with another answer or picture (text) or
            other words (image) than its edit.
        OSError: the disk refuses.
    """
    path, root = Path(json_path).expanduser(), Path(image_root).expanduser()
    _check_prompts(prompt, locality_prompt)
    if not cases:
        raise InputError("No cases were given to be written; accepted is one or more.")
    for i, case in enumerate(cases):
        _check_case(case, i)
    path.parent.mkdir(parents=True, exist_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    records = []
    for i, case in enumerate(cases):
        pictures = {"image": case.edit, "image_rephrase": case.image_generality, "m_loc": case.image_locality}
        pictures |= {f"near{k}": question for k, question in enumerate(case.near)}
        names = {}
        for name, question in pictures.items():
            names[name] = f"{i:05}-{name}.png"
            open_image(question.images[0]).save(root / names[name])
        near = [
            {"image": names[f"near{k}"], "question": _bare(q, locality_prompt), "answer": q.answer}
            for k, q in enumerate(case.near)
        ]
        records.append(
            {"src": _bare(case.edit, prompt), "pred": case.predicted, "alt": case.edit.answer}
            | {"rephrase": _bare(case.text_generality, prompt), "image": names["image"]}
            | {"image_rephrase": names["image_rephrase"]}
            | {"loc": case.text_locality.text, "loc_ans": case.text_locality.answer, "m_loc": names["m_loc"]}
            | {"m_loc_q": _bare(case.image_locality, locality_prompt), "m_loc_a": case.image_locality.answer}
            | ({"near": near} if near else {})
        )
    write_atomically(path, (json.dumps(records, indent=1, ensure_ascii=False) + "\n").encode())


def _bare(question: Question, prompt: str) -> str:
    """The question without its placeholder and its prompt."""
    text = question.text.removeprefix(PLACEHOLDER).strip()
    before, after = prompt.split("{}")
    if text.startswith(before) and text.endswith(after):
        text = text[len(before) : len(text) - len(after)]
    return text.strip()


def _check_case(case: EditCase, i: int) -> None:
    for kind, question in case.questions():
        wanted = 0 if kind == "text_locality" else 1
        marks = question.text.count(PLACEHOLDER), question.text.startswith(PLACEHOLDER)
        if len(question.images) != wanted or marks != (wanted, bool(wanted)):
            held = f"one picture, {PLACEHOLDER} before the question" if wanted else "no picture"
            raise InputError(
                f"Case {i} has {len(question.images)} pictures for {question.text!r}, its {kind}; MMEdit holds {held}."
            )
        if wanted and not isinstance(question.images[0], Image.Image | np.ndarray):
            found = type(question.images[0]).__name__
            raise InputError(f"The picture of case {i}'s {kind} is a {found}; accepted are PIL pictures and arrays.")
    edit, text, image = case.edit, case.text_generality, case.image_generality
    if not edit.answer == text.answer == image.answer:
        raise InputError(f"Case {i} has another answer for its generality than for its edit; MMEdit holds one.")
    if image.text != edit.text or not np.array_equal(np.asarray(text.images[0]), np.asarray(edit.images[0])):
        raise InputError(
            f"Case {i} has a text generality with another picture than its edit, or an image generality in other "
            "words; MMEdit holds the edit's picture for the first, and the edit's question for the second."
        )
