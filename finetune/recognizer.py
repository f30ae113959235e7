"""A trained recognizer, loaded from its folder: entities in posts, with character offsets, types and scores.

>>> recognizer = Recognizer.from_pretrained("runs/ner")                             # doctest: +SKIP
>>> recognizer.entities(["Jordan at last!"], [["desert", "camel"]])                 # doctest: +SKIP
[[Entity(text='Jordan', type='LOC', start=0, end=6, score=0.93)]]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedConfig

from finetune.crf import PENALTY, widest
from finetune.inputs import Inputs, Reader, longest_first
from finetune.post_words import PostWords, encodable
from finetune.scorer import spans
from finetune.systems.registry import STOCK, SYSTEMS
from finetune.tagger import Tagger
from finetune.tags import TagScheme, split_tag, tags_at
from launch.errors import InputError, first_line
from launch.loop import chosen_precision
from launch.pretrained import encoder_input, load_pretrained

READ_AT_ONCE = 64
"""Posts that go through the model together."""

RecognizerPrecision = Literal["auto", "bf16", "fp32", "int8"]
"""What a recognizer computes in; ``int8`` is bf16 with the encoder's linear layers in eight bits."""

ImageWords = Sequence[Sequence[str] | str | None]
"""For each post what is known of its image: words, or one text such as a caption, or nothing."""


@dataclass(frozen=True)
class Entity:
    """A named entity in a text."""

    text: str
    """``text[start:end]`` of the post."""
    type: str
    """PER, LOC, ORG or MISC, or what else the model was trained on."""
    start: int
    """Where it begins, in characters (Unicode code points, as Python counts them)."""
    end: int
    """Where it ends, exclusive."""
    score: float
    """The model's probability of exactly these words with this type: of their labels, and that the entity does not go
    on. With a CRF all labels of the other words are summed out; with a softmax it is the product over the words."""


@dataclass(frozen=True)
class Recognized:
    """What was found in one post."""

    entities: list[Entity]
    tags: list[str]
    """A BIO tag for each slot of the post (each token, if it was given as tokens); ``O`` for URLs and words cut off."""
    words_truncated: int
    """Words that did not fit the model's input, in which nothing was looked for."""


class Recognizer:
    """A model with what its texts must go through. Made by :meth:`from_pretrained`. Several threads may use it at once.

    ``tagger`` is the recognizer's own: two of one tagger would compute in the precision of the later one.
    ``reads_image_words`` says whether it was trained with image words; one that was not is never given any.
    """

    def __init__(
        self,
        tagger: Tagger,
        reader: Reader,
        scheme: TagScheme,
        reads_image_words: bool,
        device: str | None = None,
        precision: RecognizerPrecision = "fp32",
    ) -> None:
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self.tagger = tagger.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:  # what torch raises for a device that it has not
            raise InputError(
                f"device {device}: cannot be used ({first_line(error)}). Give one that torch has, as cpu."
            ) from None
        self.reader = reader
        self.scheme = scheme
        self.reads_image_words = reads_image_words
        in_eight_bits = self.tagger.use_eight_bits(precision == "int8" and self.device.type == "cpu")
        if precision == "int8" and not in_eight_bits:
            raise InputError(
                "precision int8: cannot be had here. It is for plain BERTs whose sizes are multiples of 64 (of heads, of 32), "
                "on the processor (device cpu), where that has AVX512-BF16, no AMX, and a C++ compiler. Give bf16 or auto."
            )
        self.autocast = precision == "int8" or chosen_precision(precision, self.device) == "bf16"

    @classmethod
    def from_pretrained(
        cls, model: str | Path, device: str | None = None, precision: RecognizerPrecision = "fp32"
    ) -> Recognizer:
        """Load a recognizer from the output folder of `finetune/ner.py`, or from the Hub by its id.

        ``device`` is torch's name for it; None takes the GPU if there is one. In the precision ``bf16`` larger models are
        two or three times faster on hardware that has it, and one to three entities in a thousand are others; ``auto``
        takes it where it is fast. ``int8`` computes the linear layers of a plain BERT in eight bits, on processors with
        AVX512-BF16 and without AMX: faster again; docs/recognizers.md says what it costs. Raises InputError for what is no
        such recognizer, and for ``int8`` where that cannot be had. Code that lies beside the weights is never run.
        """
        name = str(model)
        config = _read_config(name)
        system = SYSTEMS.get(config.get("model_type"), STOCK)
        loaded, _ = load_pretrained(system.model_class, name, ())
        scheme = _scheme_of(name, loaded.config)
        try:
            reader = system.load_reader(name, config)
        except (TypeError, ValueError) as error:
            raise _no_recognizer(name, f"msb_input in its config.json is not understood ({error})") from None
        return cls(system.tagger_class(loaded), reader, scheme, bool(config.get("msb_image_words")), device, precision)

    def entities(self, texts: Sequence[str], image_words: ImageWords | None = None) -> list[list[Entity]]:
        """The entities of raw texts, in order, not overlapping; places and spelling are those of the text as given."""
        return [found.entities for found in self.recognize([PostWords.of_text(text) for text in texts], image_words)]

    def tag(self, tokens_of_posts: Sequence[Sequence[str]], image_words: ImageWords | None = None) -> list[list[str]]:
        """BIO tags of posts given as tokens, one for each token; ``O`` for URLs and for words that do not fit."""
        posts = [PostWords.of_tokens(tokens) for tokens in tokens_of_posts]
        return [found.tags for found in self.recognize(posts, image_words)]

    def recognize(self, posts: Sequence[PostWords], image_words: ImageWords | None = None) -> list[Recognized]:
        """What is found in each post, in their order. ValueError if there are not as many image words as posts."""
        if image_words is None or not self.reads_image_words:
            words_of_images: list[list[str]] = [[] for _ in posts]
        elif len(image_words) != len(posts):
            raise ValueError(f"{len(posts)} posts, but image words for {len(image_words)}")
        else:
            words_of_images = [_as_list(words) for words in image_words]
        inputs = self.reader.read([post.words for post in posts], words_of_images)
        order = longest_first(inputs)
        results: list[Recognized | None] = [None] * len(posts)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast), self.tagger.unchanged():
            for start in range(0, len(order), READ_AT_ONCE):
                chosen = order[start : start + READ_AT_ONCE]
                found = self._recognize_batch([posts[i] for i in chosen], inputs, chosen)
                for index, result in zip(chosen, found, strict=True):
                    results[index] = result
        return results

    @torch.inference_mode()
    def _recognize_batch(self, posts: list[PostWords], inputs: Inputs, chosen: list[int]) -> list[Recognized]:
        """What is found in ``posts``, which are the ``chosen`` of the inputs."""
        batch = {name: x.to(self.device) for name, x in inputs.batch(chosen).items()}
        word_mask_BW = batch.pop("word_mask_BW")
        emissions_BWL = self.tagger.emissions(**batch)
        ids_of_posts = self.tagger.decode(emissions_BWL, word_mask_BW)
        tags_of_posts = [
            tags_at(post.slot_of, self.scheme.decode(ids), len(post.slots))
            for post, ids in zip(posts, ids_of_posts, strict=True)
        ]
        # Entities as (row of the batch, type, first slot, slot after the last).
        found = [
            (row, *span)
            for row, (post, tags) in enumerate(zip(posts, tags_of_posts, strict=True))
            for span in spans(tags, "conlleval")
        ]
        places = [
            (row, posts[row].slot_of.index(first), posts[row].slot_of.index(end - 1) + 1)
            for row, _, first, end in found
        ]
        with torch.autocast(self.device.type, enabled=False):
            scores = self._scores(emissions_BWL, word_mask_BW, ids_of_posts, places)
        entities: list[list[Entity]] = [[] for _ in posts]
        for (row, entity_type, first, end), score in zip(found, scores, strict=True):
            post = posts[row]
            begin, stop = post.slots[first][0], post.slots[end - 1][1]
            entities[row].append(Entity(post.text[begin:stop], entity_type, begin, stop, score))
        truncated = inputs.words_truncated
        return [Recognized(entities[row], tags_of_posts[row], truncated[i]) for row, i in enumerate(chosen)]

    def _scores(
        self,
        emissions_BWL: torch.Tensor,
        word_mask_BW: torch.Tensor,
        ids_of_posts: list[list[int]],
        places: list[tuple[int, int, int]],
    ) -> list[float]:
        """The probability of each entity, given as (row of the batch, first word, word after the last).

        It is Z' / Z, where Z' sums over the label sequences that hold the entity: all other labels of its words, and
        those of the next word that would continue it, are given a penalty. As the found labels y are among these
        sequences, Z' / Z = p(y) / p'(y).
        """
        if not places:
            return []
        label_names = self.scheme.labels
        labels_BW = np.zeros(word_mask_BW.shape, np.int64)
        for row, ids in enumerate(ids_of_posts):
            labels_BW[row, : len(ids)] = ids
        rows = np.array([row for row, _, _ in places])
        blocked_EWL = np.zeros((len(places), *emissions_BWL.shape[1:]), bool)
        for entity, (row, first, end) in enumerate(places):
            blocked_EWL[entity, first:end] = True
            last, entity_type = split_tag(label_names[labels_BW[row, end - 1]])
            continuing = [name in (f"I-{entity_type}", f"E-{entity_type}") for name in label_names]
            # After E- and S- nothing continues it; after a URL the next word may have such a label all the same.
            if end < len(ids_of_posts[row]) and last in "BI" and not continuing[labels_BW[row, end]]:
                blocked_EWL[entity, end] = continuing
        np.put_along_axis(blocked_EWL, labels_BW[rows][:, :, None], False, axis=2)
        # In double precision, where there is one: the two numbers are large beside their difference.
        inputs_EWL, mask_EW = emissions_BWL[rows].to(widest(self.device)), word_mask_BW[rows]
        labels_EW = torch.from_numpy(labels_BW[rows]).to(self.device)
        masked_EWL = inputs_EWL.masked_fill(torch.from_numpy(blocked_EWL).to(self.device), PENALTY)
        log_p_E = self.tagger.log_probability(inputs_EWL, mask_EW, labels_EW)
        log_p_E -= self.tagger.log_probability(masked_EWL, mask_EW, labels_EW)
        return log_p_E.exp().clamp(max=1.0).tolist()


def add_model_code(folder: Path) -> None:
    """Put the code of a model class of ours beside its weights, so that the folder loads anywhere.

    Does nothing for stock models. The modules become siblings, so their imports of one another become relative.
    """
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    system = SYSTEMS.get(config["model_type"], STOCK)
    if not system.code_files:
        return
    for name in system.code_files:
        source = (Path(__file__).parent / name).read_text(encoding="utf-8")
        (folder / Path(name).name).write_text(source.replace("from finetune.", "from ."), encoding="utf-8")
    module = Path(system.code_files[0]).stem
    config["auto_map"] = {
        "AutoConfig": f"{module}.{system.model_class.config_class.__name__}",
        "AutoModelForTokenClassification": f"{module}.{system.model_class.__name__}",
    }
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _as_list(words: Sequence[str] | str | None) -> list[str]:
    """Image words as a list of texts; a single text, such as a caption, is a list of one."""
    listed = [words] if isinstance(words, str) else list(words or [])
    return [encodable(word) for word in listed if word]


def _read_config(name: str) -> dict[str, Any]:
    """The raw ``config.json`` of a recognizer; InputError for anything else."""
    place = encoder_input(name)
    if isinstance(place, Path) and not (place / "config.json").is_file():
        raise _no_recognizer(name, "there is no config.json" if place.is_dir() else "there is no such folder")
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        raise _no_recognizer(name, f"its config.json cannot be read ({first_line(error)})") from None
    missing = [key for key in ("msb_input", "msb_scheme", "id2label") if key not in config]
    if missing:
        raise _no_recognizer(name, f"its config.json has no {', '.join(missing)}")
    return config


def _scheme_of(name: str, config: PreTrainedConfig) -> TagScheme:
    """The tag scheme of a model; InputError if its labels are not what its scheme makes of any types."""
    labels = [config.id2label.get(index) for index in range(len(config.id2label))]
    types = tuple(dict.fromkeys(split_tag(label)[1] for label in labels if label and label != "O"))
    try:
        scheme = TagScheme(config.msb_scheme, types)
    except ValueError as error:
        raise _no_recognizer(name, f"its labels are not understood ({error})") from None
    if scheme.labels != labels:
        raise _no_recognizer(name, f"its labels ({', '.join(map(str, labels))}) are not those of {scheme.name}")
    return scheme


def _no_recognizer(name: str, problem: str) -> InputError:
    return InputError(
        f"{name}: not a recognizer: {problem}. Give the output folder of finetune/ner.py, or the Hub id of one."
    )
