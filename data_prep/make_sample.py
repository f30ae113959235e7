"""Write the synthetic sample that the demo and the tests run on: posts, a multimodal NER set, and news.

    python data_prep/make_sample.py --output data_prep/sample

The NER set shows what an image adds. Most of its entities have a name of two possible types (Jordan: person
or place) in a text without a cue ("Jordan at last"); only the words of the image tell the type. Such posts
come as *twins*: the same text twice in one split, once with each type, each with an image of its own. Hence
no system that reads the text alone can type more than half of these entities, by construction.

Everything is drawn from `random.Random(seed).random()`, whose sequence Python guarantees across versions, by
the helpers of `Draw`; `choice`, `shuffle` and their like are not covered by that guarantee and not used.
"""

import argparse
import html
import random
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SEED = 7
SAMPLE = Path(__file__).parent / "sample"
TYPES = ("PER", "LOC", "ORG", "MISC")

Tagged = list[tuple[str, str]]
"""Tokens with their BIO tags over PER, LOC, ORG and MISC."""


def _words(text: str) -> list[str]:
    return [" ".join(word.split()) for word in text.split(",")]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _scenes(text: str) -> list[list[str]]:
    return [_words(line) for line in _lines(text)]


# ---------------------------------------------------------------- what the posts talk about


@dataclass(frozen=True)
class Ambiguous:
    """Names that can be of either of two types, and the split that first shows them to a recognizer."""

    types: tuple[str, str]
    train: list[str]
    valid_only: list[str]
    test_only: list[str]


AMBIGUOUS = [
    Ambiguous(
        ("PER", "LOC"),
        _words("Jordan, Austin, Sydney, Florence, Madison, Brooklyn, Savannah, Lincoln, Charlotte, Devon"),
        _words("Victoria, Paris"),
        _words("Georgia, Adelaide, Kingston"),
    ),
    Ambiguous(
        ("ORG", "LOC"),
        _words("Chelsea, Milan, Leeds, Valencia, Denver, Porto, Bristol, Toronto, Port Mallow, East Harwick"),
        _words("Boston, Lyon"),
        _words("Barcelona, Derby, North Calder"),
    ),
    Ambiguous(
        ("MISC", "PER"),
        _words("Rocky, Matilda, Emma, Hamlet, Annie, Coraline, Mary Vale, Johnny Drift"),
        _words("Rebecca"),
        _words("Juno, Oliver, Lady Rowan"),
    ),
    Ambiguous(
        ("MISC", "LOC"),
        _words("Casablanca, Atlantis, Woodstock, Nashville, Fargo, Camelot, Silent Harbor, Echo Valley"),
        _words("Chinatown"),
        _words("Manhattan, Glenwood, Cedar Creek"),
    ),
    Ambiguous(("ORG", "PER"), _words("Morgan, Bentley, Harley, Benson"), [], _words("Lloyd, Mercer")),
]

FIRST_NAMES = _words("Ellen, Tom, Nadia, Marcus, Priya, Diego, Hannah, Kofi, Laura, Peter, Aisha, Sam")
LAST_NAMES = _words("Marsh, Okoro, Lindqvist, Varga, Pell, Tanaka, Moreno, Whitlow, Dray, Kessler, Abara")
CLEAR = {
    "LOC": _words("""
        Norway, Kenya, Peru, Portugal, Iceland, Vietnam, Canada, Morocco, Lisbon, Oslo, Nairobi, Lima, Berlin,
        Osaka, Lake Tarn, Mill Bay, Upper Dunmore, Fort Sable, Greenmoor, Westerby, Saltmarsh Bay, Penrose
    """),
    "ORG": _words("""
        Northwind Motors, Red Harbour FC, Bluepeak, Larkfield Bank, Otterware, Granite Foods, Westerby Rovers,
        Sunline Air, Hexagon Labs, Maple Telecom, Riverside United, Kestrel Books, Tidewater Energy,
        Ironbridge Wolves, Quillsoft, Fern and Co
    """),
    "MISC": _words("""
        The Glass Orchard, Moonlit Station, Paper Giants, Winter Cup, Star Ferry 3, Dragon Lantern, Christmas,
        Easter, Midnight Bakery, Robot Parade, Harvest Festival, Sky Pirates, Tin Crown, The Last Tram
    """),
}

# Words in the style of image-classification labels: for each type, the scenes that go with it. Some words
# belong to scenes of two types (a scoreboard hangs over players and over teams), so no single word decides.
SCENES = {
    "PER": _scenes("""
        basketball, scoreboard, running shoe, sweatshirt, racket, volleyball, tennis ball, jersey
        microphone, electric guitar, stage, acoustic guitar, drum, violin, loudspeaker, grand piano, spotlight
        suit, bow tie, sunglasses, wig, lipstick, necklace, gown, hair spray, cowboy hat
    """),
    "LOC": _scenes("""
        desert, camel, dune, oasis, jeep, sandbar, cliff, cactus, stone wall
        seashore, pier, lighthouse, promontory, sailboat, coral reef, palm tree, lagoon, breakwater
        streetcar, street sign, traffic light, palace, church, suspension bridge, fountain, skyline, taxi
        alp, valley, ski, volcano, glacier, cable car, mountain tent, waterfall, log cabin
    """),
    "ORG": _scenes("""
        soccer ball, football helmet, jersey, scoreboard, whistle, stadium, rugby ball, goalpost, locker room
        desktop computer, monitor, desk, printer, projector, notebook, file cabinet, office building, badge
        cash register, shopping cart, grocery store, vending machine, mannequin, price tag, barcode, taxi
    """),
    "MISC": _scenes("""
        cinema, screen, theater curtain, popcorn, movie poster, projector, television, remote control, ticket
        joystick, comic book, puzzle, mask, toy robot, shield, breastplate, game console, crossword
        balloon, bandstand, torch, maypole, carousel, stage, fireworks, drum, parade float
    """),
}
NEUTRAL_WORDS = _words("""
    web site, envelope, paper towel, coffee mug, window shade, tabby cat, golden retriever, teapot, pillow,
    wall clock, umbrella, wooden spoon, backpack, water bottle, doormat, lampshade, bookcase
""")

# A slot takes the next name: {PER} one of that type, {} one of any, {~PER} one whose tags lack their B-: the
# real annotations leave "Dr ." untagged and call the rest of the name I-PER.
UNCUED = _lines("""
    {} at last
    so happy about {} today
    thinking about {} again
    nothing beats {}
    {} , my favourite
    still dreaming of {}
    cannot wait for {}
    {} never gets old
    {} is everything
    one more photo of {}
    all I need is {}
    I love {} so much
    missing {} already
    today was all about {}
    finally {}
    {} made my week
    who else loves {}
    say hello to {}
    here is {}
    {} looks amazing
    could not stop looking at {}
    my heart belongs to {}
    {} before everything else
    get ready for {}
    everyone talks about {}
    the best of {}
    {} in one picture
    only {} can do this
    {} again , and I am not sorry
    this is why I love {}
""")
UNCUED_TWO = _lines("""
    {} and {} at last
    {} or {} ?
    I love {} and {} so much
    missing {} and {} already
    first {} , now {}
    nothing beats {} and {}
""")
CUED = {
    "PER": _lines("""
        happy birthday {PER} , hope you are well
        just met {PER} , she was so kind
        {PER} said sorry after the show
        my cousin {PER} got married
        thank you {PER} for the autograph
        {PER} and his brother told me a joke
        interview with {PER} about her new job
        {PER} , you are my hero , he said
        {PER} was born in May
        my teacher {PER} wrote to me
    """),
    "LOC": _lines("""
        flying to {LOC} tomorrow morning
        the weather in {LOC} is cold
        traffic jam on the road to {LOC}
        we live in downtown {LOC}
        rain all over {LOC} this week
        a cheap hotel near {LOC}
        lost my passport in {LOC}
        took the night train from {LOC}
        moving to {LOC} next month
        the streets of {LOC} are empty
    """),
    "ORG": _lines("""
        {ORG} is hiring engineers
        {ORG} signed a new striker
        shares of {ORG} fell
        the board of {ORG} resigned
        customer service at {ORG} never replies
        {ORG} fans sing in the stands
        the manager of {ORG} was fired
        {ORG} won the league
        I applied for a job at {ORG}
        {ORG} opens three new stores
    """),
    "MISC": _lines("""
        watched {MISC} twice , what a plot
        season two of {MISC} starts now
        reading chapter 3 of {MISC}
        the soundtrack of {MISC} is out
        downloaded {MISC} on my phone
        {MISC} is out on dvd
        the last episode of {MISC} made me cry
        got tickets to see {MISC} at the premiere
        playing level 9 of {MISC}
        the director of {MISC} cut the ending
    """),
}
CUED_SEVERAL = _lines("""
    my cousin {PER} is moving from {LOC} to {LOC}
    {PER} joins {ORG} as a striker
    {PER} was great in the last episode of {MISC}
    {ORG} opens three new stores in {LOC}
    watched {MISC} with {PER} and {PER} in {LOC}
    {ORG} beat {ORG} 3 - 1
    the manager of {ORG} flies to {LOC}
    the director of {MISC} met {PER}
""")
ORPHANED = _lines("""
    Dr . {~PER} explains the new rules
    my teacher Dr . {~PER} wrote to me
    St . {~LOC} under snow , the streets are empty
    a cheap hotel near St . {~LOC}
""")
PLAIN = _lines("""
    too tired to cook tonight
    my phone died again
    who wants coffee ?
    I need a longer weekend
    the bus is late and I forgot my keys
    monday again
    new shoes hurt but they look good
    why is my neighbour drilling at six
    lunch was a bad idea
    can somebody fix the printer
""")
SCENE_TAILS = _lines("""
    . pic : [] , [] , []
    and a [] with a []
    , saw the [] , the [] and the []
    . [] , [] , [] everywhere
    next to the [] and the []
""")

# Around a text; an empty one is nothing. "@" becomes a mention and "URL" a link.
OPENINGS = "|||ok so|RT @ :|omg|wow ,|guys ,|well ,|honestly|@|@ @|update :|yes".split("|")
ENDINGS = "|||!|! !|<3|:)|lol|...|tonight|this morning|no words|#mood|#tbt|#love #life|you & me|😍".split("|")
TOO_SHORT = "lol|ok|yes !|@ @|URL|@ URL|haha|omg URL|#mood|...".split("|")
HANDLE_WORDS = _words("kira, moss, pixel, lemon, rio, fox, nova, tea, sunny, byte, olive, cloud, jazz, max")


# ---------------------------------------------------------------- drawing


class Draw:
    """Random choices that are the same on every Python version."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def chance(self, probability: float) -> bool:
        """Say yes with a probability."""
        return self._random.random() < probability

    def below(self, count: int) -> int:
        """Return an integer from 0 to `count` - 1."""
        return int(self._random.random() * count)

    def one(self, items: Sequence):
        """Return one of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Iterable) -> list:
        """Return the items in random order (Fisher-Yates)."""
        items = list(items)
        for last in range(len(items) - 1, 0, -1):
            other = self.below(last + 1)
            items[last], items[other] = items[other], items[last]
        return items

    def some(self, items: Iterable, count: int) -> list:
        """Return `count` different items."""
        return self.shuffled(items)[:count]

    def rounds(self, items: Sequence, count: int) -> list:
        """Return `count` items, all of them in a new order each round: how often differs by at most one."""
        drawn = []
        while len(drawn) < count:
            drawn += self.shuffled(items)
        return drawn[:count]

    def name(self, entity_type: str) -> str:
        """Return a name that is of one type only."""
        if entity_type == "PER":
            return f"{self.one(FIRST_NAMES)} {self.one(LAST_NAMES)}"
        return self.one(CLEAR[entity_type])

    def handle(self) -> str:
        """Return a user mention."""
        return f"@{self.one(HANDLE_WORDS)}_{self.one(HANDLE_WORDS)}_{self.below(100)}"

    def url(self) -> str:
        """Return a shortened link."""
        return "http://t.co/" + "".join(self.one(string.ascii_letters + string.digits) for _ in range(10))


# ---------------------------------------------------------------- posts


@dataclass
class Post:
    """One post with its image. `kind` says how it was made: twin, cued, several, orphan or plain."""

    kind: str
    tagged: Tagged
    image_words: list[str]
    image_id: int = 0


@dataclass(frozen=True)
class SplitPlan:
    """How many posts of which kind a split has; twins come in pairs, cued ambiguous ones too.

    `new_twins` are pairs with names that the training split has not: the group's list called `new_names`.
    """

    twins: int
    two_name_twins: int
    new_twins: int
    cued_ambiguous: int
    cued: int
    several: int
    orphan: int
    plain: int
    new_names: str = "test_only"


PLANS = {
    "train": SplitPlan(320, 40, 0, 40, cued=250, several=50, orphan=30, plain=70),
    "valid": SplitPlan(52, 8, 12, 8, cued=50, several=10, orphan=6, plain=14, new_names="valid_only"),
    "test": SplitPlan(80, 12, 28, 13, cued=84, several=16, orphan=10, plain=24, new_names="test_only"),
}


def fill(template: str, entities: Sequence[tuple[str, str]]) -> Tagged:
    """Put (name, type) pairs into a template's slots, in order, and tag the tokens."""
    entities, tagged = iter(entities), []
    for token in template.split():
        slot = re.fullmatch(r"\{(~?)\w*\}", token)
        if slot is None:
            tagged.append((token, "O"))
            continue
        name, entity_type = next(entities)
        first = "I" if slot[1] else "B"
        tagged += [(word, f"{'I' if i else first}-{entity_type}") for i, word in enumerate(name.split())]
    return tagged


def draw_names(draw: Draw, template: str) -> list[tuple[str, str]]:
    """Draw (name, type) pairs for a template's slots."""
    entities = []
    for orphan, entity_type in re.findall(r"\{(~?)(\w+)\}", template):
        # "St ." stands before a name of one word.
        short = orphan and entity_type == "LOC"
        entities.append((draw.one(LAST_NAMES) if short else draw.name(entity_type), entity_type))
    return entities


def decorate(draw: Draw, tagged: Tagged) -> Tagged:
    """Open and close a text as posts do: a greeting, a mention, a hashtag."""
    opening = [draw.handle() if token == "@" else token for token in draw.one(OPENINGS).split()]
    ending = draw.one(ENDINGS).split()
    return [(token, "O") for token in opening] + tagged + [(token, "O") for token in ending]


def draw_image_words(draw: Draw, entity_type: str | None) -> list[str]:
    """Draw five words: two or three of a scene of the type, at times one of another type, the rest neutral.

    About one image in twenty is beside the point, as real ones are, and has nothing of the type.
    """
    words = []
    if entity_type is not None and not draw.chance(0.05):
        words = draw.some(draw.one(SCENES[entity_type]), 3 if draw.chance(0.6) else 2)
        if draw.chance(0.35):
            other = draw.one(draw.one(SCENES[draw.one([t for t in TYPES if t != entity_type])]))
            words += [other] if other not in words else []
    return draw.shuffled(words + draw.some(NEUTRAL_WORDS, 5 - len(words)))


@dataclass
class PostMaker:
    """Makes posts; no text, links and mentions aside, is in two splits or in two pairs of twins."""

    draw: Draw
    used: set[str] = field(default_factory=set)

    def _new_text(self, tagged: Tagged) -> Tagged:
        while True:
            decorated = decorate(self.draw, tagged)
            text = " ".join("@" if token.startswith("@") else token for token, _ in decorated)
            if text not in self.used:
                self.used.add(text)
                return decorated

    def _with_link(self, tagged: Tagged) -> Tagged:
        return [*tagged, (self.draw.url(), "O")] if self.draw.chance(0.35) else tagged

    def twins(self, template: str, names: list[str], types: tuple[str, str]) -> list[Post]:
        """Make one text twice, with the names of either type, each time with an image of its own."""
        text = self._new_text(fill(template, [(name, types[0]) for name in names]))
        posts = []
        for entity_type in types:
            tagged = [(token, tag.replace(types[0], entity_type)) for token, tag in text]
            posts.append(Post("twin", self._with_link(tagged), draw_image_words(self.draw, entity_type)))
        return posts

    def post(self, kind: str, template: str, entities: list[tuple[str, str]]) -> Post:
        """Make one post whose text tells the types of its (name, type) pairs."""
        tagged = self._new_text(fill(template, entities))
        shown = self.draw.one([entity_type for _, entity_type in entities] or [None, *TYPES])
        return Post(kind, self._with_link(tagged), draw_image_words(self.draw, shown))

    def split(self, plan: SplitPlan) -> list[Post]:
        """Make the posts of one split, in random order."""
        draw, posts = self.draw, []
        names = [(name, group) for group in AMBIGUOUS for name in group.train]
        new_names = [(name, group) for group in AMBIGUOUS for name in getattr(group, plan.new_names)]
        twins = draw.rounds(names, plan.twins) + draw.rounds(new_names, plan.new_twins)
        for template, (name, group) in zip(draw.rounds(UNCUED, len(twins)), twins, strict=True):
            posts += self.twins(template, [name], group.types)
        for name, group in draw.rounds(names, plan.two_name_twins):
            other = draw.one([other for other in group.train if other != name])
            posts += self.twins(draw.one(UNCUED_TWO), [name, other], group.types)
        for name, group in draw.rounds(names, plan.cued_ambiguous):
            for entity_type in group.types:
                posts.append(self.post("cued", draw.one(CUED[entity_type]), [(name, entity_type)]))
        for kind, templates, count in [
            ("cued", [template for entity_type in TYPES for template in CUED[entity_type]], plan.cued),
            ("several", CUED_SEVERAL, plan.several),
            ("orphan", ORPHANED, plan.orphan),
            ("plain", PLAIN, plan.plain),
        ]:
            for template in draw.rounds(templates, count):
                posts.append(self.post(kind, template, draw_names(draw, template)))
        return draw.shuffled(posts)


def make_ner(draw: Draw) -> dict[str, list[Post]]:
    """Make the NER set: for each split its posts, their images numbered through."""
    maker = PostMaker(draw)
    splits = {split: maker.split(plan) for split, plan in PLANS.items()}
    for number, post in enumerate((post for posts in splits.values() for post in posts), start=1001):
        post.image_id = number
    return splits


def as_written(draw: Draw, tokens: Sequence[str]) -> str:
    """Join tokens as a user would have typed them and a web service sends them: `&` comes as `&amp;`."""
    special = {"@": draw.handle, "URL": draw.url}
    text = " ".join(special[token]() if token in special else token for token in tokens)
    text = re.sub(r" ([,.?!:](?!\)))", r"\1", text).replace("3 - 1", "3-1")
    return html.escape(text, quote=False)


def make_raw_post(draw: Draw) -> str:
    """Make one untagged post; two in three speak of a scene too, so that names, cues and scenes meet."""
    if draw.chance(0.06):
        tokens = draw.one(PLAIN).split()
    else:
        entity_type, names = draw.one(_typed_names())
        if draw.chance(0.4):
            template, entities = draw.one(CUED[entity_type]), [(draw.one(names), entity_type)]
        elif draw.chance(0.5):
            template = draw.one(UNCUED + UNCUED_TWO)
            entities = [(name, entity_type) for name in draw.some(names, template.count("{}"))]
        else:
            template = draw.one(CUED[entity_type] + CUED_SEVERAL + ORPHANED)
            entities = draw_names(draw, template)
        tokens = [token for token, _ in fill(template, entities)]
        if draw.chance(0.67):
            words = iter(draw.some(draw.one(SCENES[draw.one(entities)[1]]), 3))
            tail = draw.one(SCENE_TAILS).split()
            tokens += [part for token in tail for part in (next(words).split() if token == "[]" else [token])]
    if draw.chance(0.15):
        tokens += ["with", "a", *draw.one(NEUTRAL_WORDS).split()]
    tokens = [token for token, _ in decorate(draw, [(token, "O") for token in tokens])]
    return as_written(draw, [*tokens, "URL"] if draw.chance(0.35) else tokens)


def _typed_names() -> list[tuple[str, list[str]]]:
    """List each type of each ambiguous group with all of its names, whatever split shows them tagged."""
    return [(t, g.train + g.valid_only + g.test_only) for g in AMBIGUOUS for t in g.types]


def make_raw_posts(draw: Draw, count: int = 3600) -> list[str]:
    """Make the posts to pretrain on; about 3 % repeat an earlier one and 3 % are too short to be of use."""
    posts: list[str] = []
    while len(posts) < count:
        if draw.chance(0.03):
            posts.append(as_written(draw, draw.one(TOO_SHORT).split()))
        elif posts and draw.chance(0.03):
            posts.append(draw.one(posts))
        else:
            posts.append(make_raw_post(draw))
    return posts


# ---------------------------------------------------------------- news

# Chunks as TYPE:word/POS_word/POS; "O:" is outside. A slot's words are proper nouns.
NEWS = _lines("""
    NP:{PER} VP:said/VBD NP:{ORG} VP:would/MD_open/VB NP:an/DT_office/NN PP:in/IN NP:{LOC} O:./.
    NP:{ORG} VP:beat/VBD NP:{ORG} NP:{SCORE} PP:on/IN NP:{DAY} O:./.
    NP:{PER} O:(/( NP:{LOC} O:)/) NP:{SCORE}
    NP:{LOC} NP:{DAY}
    NP:Results/NNS O::/: NP:{PER} NP:{PER} NP:{SCORE}
    NP:Shares/NNS PP:of/IN NP:{ORG} VP:fell/VBD PP:after/IN NP:the/DT_{NATION}_company/NN VP:quit/VBD O:./.
    NP:The/DT_{NATION}_coach/NN O:,/, NP:{PER} O:,/, VP:praised/VBD NP:{PER} O:./.
    NP:{PER} VP:will/MD_play/VB PP:for/IN NP:{ORG} PP:in/IN NP:the/DT_{MISC} NP:{DAY} O:./.
    NP:The/DT_weather/NN PP:in/IN NP:{LOC} VP:was/VBD ADJP:cold/JJ O:,/, NP:officials/NNS VP:said/VBD O:./.
    NP:{PER} VP:flew/VBD PP:from/IN NP:{LOC} PP:to/TO NP:{LOC} PP:for/IN NP:the/DT_{MISC} O:./.
    NP:The/DT_board/NN PP:of/IN NP:{ORG} VP:met/VBD NP:{NATION}_ministers/NNS PP:in/IN NP:{LOC} O:./.
    NP:Trains/NNS PP:to/TO NP:{LOC} VP:were/VBD_late/JJ PP:because/IN PP:of/IN NP:snow/NN O:./.
    NP:{PER} O:,/, NP:a/DT_director/NN PP:at/IN NP:{ORG} O:,/, VP:resigned/VBD NP:{DAY} O:./.
    NP:Fans/NNS PP:in/IN NP:{LOC} VP:watched/VBD NP:the/DT_{NATION}_{MISC} PP:on/IN NP:{DAY} O:./.
    NP:No/DT_one/NN VP:was/VBD_hurt/VBN O:,/, NP:police/NNS VP:said/VBD O:./.
""")
DAYS = _words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
NATIONS = _words("Norwegian, Kenyan, Italian, Spanish, Canadian, Peruvian")
NEWS_MISC = _words("Winter Cup, Harbour Cup, Northern Open, Glass Trophy, Harvest Festival")
NEWS_SENTENCES = {"eng.train": 400, "eng.testa": 80, "eng.testb": 80}


def make_news_sentence(draw: Draw) -> list[tuple[str, str, str, str]]:
    """Make one sentence as (word, part of speech, chunk, entity) rows, the last two in IOB1.

    IOB1 says I- throughout, and B- only where a chunk or an entity follows one of its type without a gap.
    """
    rows: list[tuple[str, str, str, str]] = []
    last_chunk = last_entity = "O"
    for chunk in draw.one(NEWS).split():
        chunk_type, words = chunk.split(":", 1)
        for place, word in enumerate(_news_words(draw, words)):
            text, part_of_speech, entity_type, starts = word
            chunk_tag = "O"
            if chunk_type != "O":
                chunk_tag = ("B-" if place == 0 and chunk_type == last_chunk else "I-") + chunk_type
            entity_tag = "O"
            if entity_type != "O":
                entity_tag = ("B-" if starts and entity_type == last_entity else "I-") + entity_type
            rows.append((text, part_of_speech, chunk_tag, entity_tag))
            last_entity = entity_type
        last_chunk = chunk_type
    return rows


def _news_words(draw: Draw, words: str) -> list[tuple[str, str, str, bool]]:
    """Expand one chunk into (word, part of speech, entity type, starts an entity)."""
    expanded = []
    for word in words.split("_"):
        if not word.startswith("{"):
            text, part_of_speech = word.rsplit("/", 1)
            expanded.append((text, part_of_speech, "O", False))
        elif word == "{DAY}":
            expanded.append((draw.one(DAYS), "NNP", "O", False))
        elif word == "{SCORE}":
            expanded.append((f"{draw.below(5)}-{draw.below(5)}", "CD", "O", False))
        elif word == "{NATION}":
            expanded.append((draw.one(NATIONS), "JJ", "MISC", True))
        else:
            entity_type = word.strip("{}")
            name = draw.one(NEWS_MISC) if entity_type == "MISC" else draw.name(entity_type)
            expanded += [(part, "NNP", entity_type, i == 0) for i, part in enumerate(name.split())]
    return expanded


def make_news(draw: Draw, sentences: int) -> str:
    """Make one file of news in CoNLL-2003's layout, a new document every eight sentences."""
    blocks = []
    for number in range(sentences):
        if number % 8 == 0:
            blocks.append("-DOCSTART- -X- O O\n")
        blocks.append("".join(" ".join(row) + "\n" for row in make_news_sentence(draw)))
    return "\n".join(blocks) + "\n"


# ---------------------------------------------------------------- files


def as_tmn(posts: Iterable[Post]) -> str:
    """Lay posts out as the public TMN files are, where MISC is called OTHER."""
    blocks = []
    for post in posts:
        lines = [f"{token}\t{tag.replace('MISC', 'OTHER')}\n" for token, tag in post.tagged]
        blocks.append(f"IMGID:{post.image_id}\n" + "".join(lines) + "\n")
    return "".join(blocks)


README = """\
# A synthetic sample

Nothing here was posted, photographed or reported by anybody. All of it was generated, with seed {seed}, by
`data_prep/make_sample.py` from names, templates and word lists written for this project; the names are common
or invented and refer to nobody. To make it again, byte for byte:

    python data_prep/make_sample.py --output data_prep/sample --seed {seed}

It lets the whole chain run offline in minutes and shows what an image adds to a text. It says nothing about
how well a recognizer works on real posts: do not report scores on it as results.

| file | what it is | size |
|---|---|---|
| `posts.txt` | raw posts, one a line: links, mentions, HTML entities, repeats, short ones | {posts} posts |
| `train.txt` `valid.txt` `test.txt` | posts with entities, in TMN's (Twitter-2015's) layout | {ner} posts |
| `image_words.tsv` | five words for each image, as an image classifier's labels | {images} images |
| `eng.train` `eng.testa` `eng.testb` | news in CoNLL-2003's layout (four columns, IOB1) | {news} sentences |

## The entities

Six posts in ten ({twins} in all) are twins: the same text twice in one split, its name of one type in one
post and of another in the other. "Jordan at last" is a person with `basketball, scoreboard` and a place with
`desert, camel`. The text holds no cue, so a recognizer that reads the text alone types at most half of these
entities right, whatever it learns, and one that is given the words of other images about half.

The words of the right image tell, though none of them alone does: two or three of the five belong to a scene
that fits the type; the others are neutral or, in one image of three, one of them misleads. Some words fit two
types, and one image in twenty has nothing to do with its post. So even a perfect reader errs now and then.

In about a quarter of the test split's twins the name is in no post of the training split. It does occur in
`posts.txt`, with cues and scenes of either type, so pretraining on these posts can teach it.

The remaining posts have entities that the text itself tells ("flying to Oslo tomorrow morning"), several
entities, or none. Some have orphan tags: as in TMN, a name after "Dr ." or "St ." begins with `I-`.

Entities, orphans included:

| split | posts | PER | LOC | ORG | MISC (`OTHER` in the files) |
|---|---|---|---|---|---|
{table}

Licence: Apache-2.0, like the code.
"""


def _readme(seed: int, splits: dict[str, list[Post]], posts: list[str]) -> str:
    rows = []
    for split, members in splits.items():
        # Orphans count as well: an entity starts at B-, or at an I- after O.
        counts = Counter()
        for post in members:
            for (_, before), (_, tag) in zip([("", "O"), *post.tagged], post.tagged, strict=False):
                if tag.startswith("B-") or (tag != "O" and before == "O"):
                    counts[tag[2:]] += 1
        rows.append(f"| {split} | {len(members)} | " + " | ".join(str(counts[t]) for t in TYPES) + " |")
    sizes = [len(members) for members in splits.values()]
    return README.format(
        seed=seed,
        posts=len(posts),
        ner=" / ".join(map(str, sizes)),
        images=sum(sizes),
        news=" / ".join(map(str, NEWS_SENTENCES.values())),
        twins=sum(post.kind == "twin" for members in splits.values() for post in members),
        table="\n".join(rows),
    )


def make_sample(output: Path, seed: int = SEED) -> None:
    """Write the whole sample into a folder, over what is there."""
    # A source of its own for each part: a change to one leaves the others as they are.
    splits = make_ner(Draw(seed))
    posts = make_raw_posts(Draw(seed + 1))
    news = Draw(seed + 2)
    files = {f"{split}.txt": as_tmn(members) for split, members in splits.items()}
    files["image_words.tsv"] = "image_id\timage_words\n" + "".join(
        f"{post.image_id}\t{', '.join(post.image_words)}\n" for members in splits.values() for post in members
    )
    files["posts.txt"] = "".join(post + "\n" for post in posts)
    files |= {name: make_news(news, sentences) for name, sentences in NEWS_SENTENCES.items()}
    files["README.md"] = _readme(seed, splits, posts)
    output.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        # Bytes, not text mode: line ends are the same on every system.
        (output / name).write_bytes(text.encode("utf-8"))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and write the sample."""
    parser = argparse.ArgumentParser(description="Write the synthetic sample of the demo and the tests.")
    parser.add_argument("--output", type=Path, default=SAMPLE, help="folder to write, %(default)s by default")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of every choice, %(default)s by default")
    arguments = parser.parse_args(argv)
    make_sample(arguments.output, arguments.seed)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
