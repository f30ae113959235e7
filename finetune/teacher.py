"""Teachers for knowledge distillation: recognizers whose scores are averaged, and the CRF that their average is.

Shapes: B texts, W words of the longest, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from finetune.crf import LinearChainCRF
from finetune.inputs import longest_first
from finetune.recognizer import Recognizer
from finetune.tags import TagScheme
from launch.errors import InputError
from launch.files import sync_to_disk

TEACHER_FILE = "teacher.safetensors"
READ_AT_ONCE = 128
"""Texts that go through a teacher together."""


class Teacher:
    """One recognizer, or several whose scores are averaged: the normalised geometric mean of their distributions.

    Raises InputError for recognizers that do not have the same labels.
    """

    def __init__(self, recognizers: Sequence[Recognizer], names: Sequence[str]) -> None:
        self.recognizers = recognizers
        self.scheme = recognizers[0].scheme
        for recognizer, name in zip(recognizers, names, strict=True):
            if recognizer.scheme != self.scheme:
                raise InputError(
                    f"{name}: has other labels ({', '.join(recognizer.scheme.labels)}) than {names[0]} "
                    f"({', '.join(self.scheme.labels)}). Teachers must have the same."
                )
        self.crf = mean_crf([recognizer.tagger.model for recognizer in recognizers], self.scheme)

    def scores(self, words: Sequence[Sequence[str]], image_words: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Mean scores [words that every teacher reads, L] of each text, in fp32."""
        of_teachers = [scores_of(recognizer, words, image_words) for recognizer in self.recognizers]
        means = []
        for of_text in zip(*of_teachers, strict=True):
            kept = min(len(scores_WL) for scores_WL in of_text)
            means.append(np.mean([scores_WL[:kept] for scores_WL in of_text], axis=0, dtype=np.float32))
        return means


@torch.inference_mode()
def scores_of(
    recognizer: Recognizer, words: Sequence[Sequence[str]], image_words: Sequence[Sequence[str]]
) -> list[np.ndarray]:
    """Scores [words that it reads, L] of each text by one recognizer: emissions, or log-probabilities of a softmax."""
    if not recognizer.reads_image_words:
        image_words = [[] for _ in words]
    inputs = recognizer.reader.read(words, image_words)
    order = longest_first(inputs)
    found: list[np.ndarray] = [np.zeros((0, 0), np.float32)] * len(words)
    autocast = torch.autocast(recognizer.device.type, torch.bfloat16, enabled=recognizer.autocast)
    with autocast, recognizer.tagger.unchanged():
        for start in range(0, len(order), READ_AT_ONCE):
            chosen = order[start : start + READ_AT_ONCE]
            batch = {name: tensor.to(recognizer.device) for name, tensor in inputs.batch(chosen).items()}
            words_B = batch.pop("word_mask_BW").sum(dim=1).tolist()
            emissions_BWL = recognizer.tagger.emissions(**batch)
            scores_BWL = emissions_BWL if recognizer.tagger.has_crf else emissions_BWL.log_softmax(dim=2)
            for text, scores_WL, count in zip(chosen, scores_BWL.float().cpu().numpy(), words_B, strict=True):
                found[text] = scores_WL[:count].copy()
    return found


def mean_crf(models: Sequence[torch.nn.Module], scheme: TagScheme) -> LinearChainCRF:
    """The CRF whose scores are the mean of the models'; those of a softmax are zero. It forbids what the scheme does."""
    crf = LinearChainCRF(len(scheme.labels), scheme.allowed_transitions(), scheme.allowed_start(), scheme.allowed_end())
    with torch.no_grad():
        for name, parameter in crf.named_parameters():
            own = [getattr(model.crf, name).cpu() for model in models if getattr(model, "crf", None) is not None]
            parameter.copy_(torch.stack(own).sum(dim=0) / len(models) if own else torch.zeros_like(parameter))
    return crf


def save_crf(folder: Path, crf: LinearChainCRF, scheme: TagScheme) -> None:
    """Write the teacher's CRF beside its scores."""
    # One entry: several are written in an order that changes from run to run, and with it the file's content hash.
    told = {"scheme": " ".join([scheme.name, *scheme.types])}
    save_file(crf.state_dict(), str(folder / TEACHER_FILE), metadata=told)
    sync_to_disk(folder / TEACHER_FILE)


def load_crf(folder: Path) -> tuple[LinearChainCRF, TagScheme]:
    """Read what :func:`save_crf` wrote. Raises InputError where it is missing or no such file."""
    path = folder / TEACHER_FILE
    if not path.is_file():
        raise InputError.at(path, None, "not there", "Give the output folder of finetune/soft_labels.py.")
    try:
        with safe_open(str(path), "pt") as file:
            told = file.metadata() or {}
        name, *types = f"{told['scheme']} {told.get('types', '')}".split()  # older files tell the types apart
        scheme = TagScheme(name, tuple(types))
        crf = LinearChainCRF(len(scheme.labels))  # what it forbids is in the file
        crf.load_state_dict(load_file(str(path)))
    except (KeyError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise InputError.at(path, None, f"not a teacher's CRF ({error})", "Label the corpus again.") from None
    return crf, scheme
