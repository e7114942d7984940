"""Which choice a text settles on: by its letter or its words; none where it hedges, denies or contradicts itself.

A text is read statement by statement. A statement that says what the answer is ("the answer is B", "so (B)", "B is
correct") outranks a letter that merely stands there ("(B)", "B. It is green."); of the former the last counts, of the
latter all must agree. A denial takes back what it denies, a question takes back all that was said before it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from unigrpo.rewards.text.plain import without_format_signs

SEVERAL = ""
"""In place of a letter, where a statement names more than one."""
_CONTEXT = 120
"""Characters beside a letter that are looked at."""

_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathsf)\s*\{([^{}]*)\}")
_SET_OFF = re.compile(r"(?<!\w)(\*\*|__|[\"'`*_\[{(])\s*([A-Za-z])[.:)]?\s*(?:\1|[\"'`*_\]})])(?!\w)")
_LINE_MARK = re.compile(r"^[ \t]*(?:#{1,6}|[-*>\u2022])[ \t]+", re.MULTILINE)
_NAMED_LOWER = re.compile(
    r"\b(option|choice|letter)\s+\(?([A-Za-z])\b\)?(?!')|\b(answer(?:\s+is\b|\s*:))\s+([b-hj-z]|[ai](?=[).]))(?=\W*$)",
    re.IGNORECASE,
)
_LOWER_LABEL = re.compile(r"^\s*\(?[a-z][).:](?=\s)")
_ONLY_A_LETTER = re.compile(r"\W*([a-z])(?!\+\+|#)\W*")

_FILLER = (
    r"(?:or|and|nor|either|both|maybe|perhaps|possibly|probably|likely|also|even|else|alternatively|options?"
    r"|choices?|answers?|letters?|the|vs|versus|to|plus|as\ well\ as)\b"
)
_BETWEEN = r"(?:[\s,;:/&+|~).-]|\((?![A-Z]\)))*+"
"""Signs between two letters; the bracket of `(A)` is the letter's, so that a text is read in one way only."""
_GAP = rf"{_BETWEEN}(?:{_FILLER}{_BETWEEN})*+".replace(r"\ ", " ")
_AFTER_A = (
    r"(?:is|are|was|were|and|or|nor|and/or|because|since|as|seems|looks|would|could|can|cannot|must|should|has|does|rather"
    r"|instead|not|but|over|which|matches|fits|makes|due|given|if|unless|though|although|while|whereas|then|so|too|also"
    r"|here|only|vs|versus|than|appears|remains|maybe|perhaps|possibly|probably|either|to|plus|with|isn't|can't|doesn't)"
)
_LETTER = (
    r"(?:\([A-Z]\)|(?<![\w'-])(?:[B-HJ-Z](?![\w'#]|-\w|\+\+)"
    rf"|A(?![\w']|-\w|\s+(?!{_AFTER_A}\b)[a-z0-9])|I(?![\w']|-\w|\s+[a-z])))"
)
_MENTION = re.compile(rf"{_LETTER}(?:{_GAP}{_LETTER})*+")

_BOUNDARY = re.compile(
    r"[,;]|(?<!not):\s|\b(?:and|(?<!thing )(?<![Aa]ll )but|because|since|so|therefore|thus|hence|whereas|while|although"
    r"|though|then|yet|however)\b"
)
_RIGHT_BOUNDARY = re.compile(rf"{_BOUNDARY.pattern}|\b(?:which|that|as|if|when|where|for|by|due|given|with)\b")
_DENIED_BEFORE = re.compile(
    r"\b(?:not(?!\s+only)|never|neither|nor|cannot|except|exclud\w+|eliminat\w+|reject\w*|rul\w+\s+out|rather\s+than"
    r"|instead\s+of|other\s+than|unlike|(?:any|every)thing\s+but|all\s+but"
    r"|(?:wrong|incorrect|false)\s+\w+)\b|n't\b|(?<!no )\bdoubt\b",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(
    r"^\W*(?:(?:is|are|was|ca|could|does|did|wo|would|must)n't\b|cannot\b"
    r"|(?!not\b)\w[^,;]*?(?:\b(?:not(?!\s+only)|never|cannot|wrong|incorrect|false|impossible|eliminated|excluded|invalid"
    r"|unlikely|rejected|ruled\s+out|out)\b|n't\b))",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(?:could|might|may|possible|possibly|perhaps|maybe|also|equally|either|alternatively|likely|unless|otherwise|or)\b",
    re.IGNORECASE,
)
_UNSURE = re.compile(
    r"\b(?:could|might|may)\s+(?:\w+\s+)?be\b|\b(?:suppos|assum)(?:e|ing)\b|\bwhether\b|\b(?:i|my) guess\b",
    re.IGNORECASE,
)
_OPEN_END = re.compile(
    r"^[\s)]*(?:,?\s*(?:and/or|or)\b(?!\s+rather)|(?:,|/|&|,?\s*(?:and|nor|but)\b)\s*$"
    r"|[\s,(]*(?:possibly|perhaps|maybe|i guess|not sure)\W*$)",
    re.IGNORECASE,
)
_PAIR_BEGUN = re.compile(
    r"\b(?:either|both|between)\s+(?:(?:the|options?|choices?|answers?|letters?)\s+)*$", re.IGNORECASE
)

_FRESH = (
    r"(?:(?:therefore|thus|clearly|definitely|indeed|obviously|simply|most|likely|probably|the|letter|option|choice"
    r"|correct|right|best|either|both|answer|only|just)\b|[\s(:\"'-])*"
)
_SAID_BEFORE = re.compile(
    r"\b(?:(?:answer|option|choice|letter|response|solution|one)s?(?:,[^,]{1,30},|\s+(?:here|to\s+this|that\s+fits))?\s*"
    r"(?:is|was|are|(?:would|must|should|will|could|might|may|has\s+to)\s+be|being|:|=|->|\u2192)"
    r"|(?:choos|chose|pick|select|go(?:ing)?\s+with|went\s+with|settl\w*\s+(?:on|for)|vote\s+for|conclude|leav)\w*"
    r"|(?:it|that|this|which)(?:'s|\s+is|\s+(?:must|should|would|has\s+to)\s+be))"
    rf"\s*{_FRESH}$",
    re.IGNORECASE,
)
_NOUN_BEFORE = re.compile(r"\b(?:answer|option|choice|letter)\s*\(?$", re.IGNORECASE)
_TURN_BEFORE = re.compile(
    r"\b(?:so|therefore|thus|hence|then|but|rather|instead|no)\b[,:]?\s*(?:it's\s+|it\s+is\s+)?\(?$", re.IGNORECASE
)
_SAID_BEHIND = re.compile(
    r"^\s*(?:is|are|must\s+be|would\s+be|seems|looks|appears)\s+(?:to\s+be\s+)?(?:the\s+|most\s+|only\s+|clearly\s+|definitely\s+)*"
    r"(?:correct|right|best|true|answer|one)\b",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"(?:(?P<turn>so|therefore|thus|hence|then|finally|actually|no|wait|sorry|correction|in conclusion|in the end"
    r"|on reflection|on second thought|rather|instead|answers?|solution|response)"
    r"|yes|hmm+|well|okay|ok|oh|but|and|i think|i believe|i'd say|i would say|clearly|my|our|the|final|correct"
    r"|right|best|most likely|option|choice|letter|is|it's|it|that's|that|this|must|should|would|be|'s)(?![\w'])"
    r"(?:[\s,:;=.>]|-(?![\d.$]))*",
    re.IGNORECASE,
)
_RETRACTION = re.compile(
    r"(?:(?:wait|hmm+|oh|actually|sorry|but|well|hold on|no|nope)\b[\s,:;-]*)*(?:no|nope|i was wrong"
    r"|(?:scratch|strike|forget) that|never ?mind|i take (?:that|it) back"
    r"|i made a mistake|(?:that|this|it)(?:'s| is| was)? (?:all )?(?:wrong|incorrect|false"
    r"|not (?:right|correct|true|it))|(?:that|this|it) (?:isn't|cannot be|can't be) (?:right|correct|true|it)"
    r"|(?:they are |it's |it is )?(?:both|all|neither|none)\b[^.]{0,40})[\s.!,]*",
    re.IGNORECASE,
)
_TURN = re.compile(
    r"(?:on (?:second thought|reflection)"
    r"|wait|actually|hmm+|hold on|sorry|oops|correction|scratch that|no[,.!:;])(?!\w)",
    re.IGNORECASE,
)
_ADDITION = re.compile(r"(?:or|alternatively|maybe|perhaps|possibly)\b", re.IGNORECASE)
_STATEMENT_END = re.compile(r"(?<=[.!?;])\s+|(?<!\s),?\s+(?=(?:no,? wait|wait,? no|scratch that)\b)", re.IGNORECASE)
_AGREEMENT = re.compile(r"(?:yes|correct|right|indeed|exactly)\b", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:an?|the)\s+(?=\S)")
_LABELED = re.compile(r"^\s*\(?([A-Z])\)?[\s.):,-]+(\S.*)$", re.DOTALL)
_LABEL = re.compile(r"^\s*(?:\([A-Z]\)|[A-Z][).:])")


def named_choice(text: str, texts: Sequence[str] = ()) -> str | None:
    """Return the capital letter of the choice that a text settles on; None for none, and for more than one.

    Args:
        text: an answer, of a letter or some paragraphs.
        texts: of the choices, A first; empty where only letters are known.
    """
    by_words = _by_words(tuple(texts))
    letter = by_words.get(_words(_spelt(text)))
    if letter is not None:
        own = _ONLY_A_LETTER.fullmatch(_spelt(text).lower())
        return letter if own is None or len(texts) < _place(own[1]) or own[1].upper() == letter else None
    reading = _Reading(by_words=by_words)
    for statement, is_question in _statements(_spelt(text)):
        reading.take(statement, is_question=is_question)
    return reading.result


def choice_of_words(text: str, texts: Sequence[str]) -> str | None:
    """Return the letter of the choice whose words a text is; None where it is none's, or two have the same."""
    return _by_words(tuple(texts)).get(_words(_spelt(text)))


def _place(letter: str) -> int:
    return ord(letter.upper()) - ord("A") + 1


@dataclass(kw_only=True)
class _Reading:
    """What the statements so far have settled on."""

    by_words: Mapping[str, str]
    said: str | None = None
    """The letter that was said to be the answer; ``SEVERAL`` where that was taken back or more than one."""
    loose: set[str] = field(default_factory=set)
    """Letters that stand there."""
    asked: str | None = None
    """The letter of the question just before."""

    @property
    def result(self) -> str | None:
        if self.said is not None:
            return self.said or None
        return next(iter(self.loose)) if len(self.loose) == 1 and SEVERAL not in self.loose else None

    def take(self, statement: str, *, is_question: bool) -> None:
        """Read one more statement."""
        asked, self.asked = self.asked, None
        letter, is_said = self._whole(statement)
        mentions = [] if letter is not None else [_Mention.of(statement, match) for match in _matches(statement)]
        if is_question:
            named = {letter} if letter is not None else {one for mention in mentions for one in mention.letters}
            if named:
                self._clear()
                self.asked = named.pop() if len(named) == 1 else None
        elif asked and _AGREEMENT.match(statement) and not mentions and letter is None:
            self.said = asked
        elif _ADDITION.match(statement) and (self.said or self.loose) and mentions:
            self.said = SEVERAL
        elif letter is not None:
            self._settle(letter, is_said=is_said)
        elif not mentions and _RETRACTION.fullmatch(statement):
            self._clear()
        else:
            self._take_mentions(statement, mentions)

    def _clear(self) -> None:
        self.said = SEVERAL if self.said is not None or self.loose else None
        self.loose.clear()

    def _settle(self, letter: str, *, is_said: bool) -> None:
        if is_said:
            self.said = letter
        elif self.said is None:
            self.loose.add(letter)
        elif self.said != letter:
            self.said = SEVERAL

    def _whole(self, statement: str) -> tuple[str | None, bool]:
        """Return the letter of a statement that is nothing more, or its words, and whether a turn leads in to it."""
        rest, is_said = statement, False
        while rest:
            letter = self.by_words.get(_words(rest)) or self._labeled(rest)
            if letter is not None:
                return letter, is_said
            lead = _LEAD.match(rest)
            if lead is None:
                break
            rest, is_said = rest[lead.end() :], is_said or lead["turn"] is not None
        match = _MENTION.fullmatch(rest.strip(" .:;!)")) or _MENTION.fullmatch(rest.strip(" .:;!"))
        if match is None:
            return None, is_said
        letters = _letters(match[0])
        is_open = _PAIR_BEGUN.search(statement[: len(statement) - len(rest)]) is not None
        return (letters.pop() if len(letters) == 1 and not is_open else SEVERAL), is_said

    def _labeled(self, rest: str) -> str | None:
        """Return the letter in front of a choice's words; ``SEVERAL`` where they are another's."""
        match = _LABELED.match(rest)
        owner = self.by_words.get(_words(match[2].strip(" .()"))) if match else None
        if match is None or owner is None:
            return None
        return owner if owner == match[1] else SEVERAL

    def _take_mentions(self, statement: str, mentions: Sequence[_Mention]) -> None:
        affirmed = [mention for mention in mentions if not mention.is_denied]
        for mention in mentions:
            if mention.is_denied:
                self.loose -= mention.letters
                self.said = SEVERAL if self.said in mention.letters else self.said
        said = [mention for mention in affirmed if mention.is_said]
        strong = said or [mention for mention in affirmed if mention.is_set_off]
        letters = {letter for mention in strong for letter in mention.letters}
        if not letters:
            return
        later = [mention for mention in affirmed if mention.start > strong[-1].start]
        others = {letter for mention in later for letter in mention.letters} - letters
        is_hedged = any(mention.is_open for mention in strong) or (others and _HEDGE.search(statement))
        is_contradicted = any(self._contradicts(statement, mention) for mention in strong)
        chosen = letters.pop() if len(letters) == 1 and not is_hedged and not is_contradicted else SEVERAL
        if said:
            self.said = chosen
        elif self.said is None:
            self.loose |= {chosen} | letters

    def _contradicts(self, statement: str, mention: _Mention) -> bool:
        """Return whether a choice's words stand right behind or before the letter of another."""
        beside = (statement[mention.end :].strip(" .:,-()"), statement[: mention.start].strip(" .:,-()"))
        owners = {self.by_words.get(_words(words)) for words in beside if words}
        return bool(owners - {None} - mention.letters)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mention:
    """One letter of a statement, or several in a row."""

    letters: frozenset[str]
    start: int
    end: int
    is_denied: bool
    is_said: bool
    """Whether the statement says that it is the answer."""
    is_set_off: bool
    """Whether it is in brackets, or a label in front of the statement."""
    is_open: bool
    """Whether an alternative follows, or would have followed, or it is only supposed."""

    @classmethod
    def of(cls, statement: str, match: re.Match[str]) -> _Mention:
        letters = frozenset(_letters(match[0]))
        before = statement[max(0, match.start() - _CONTEXT) : match.start()]
        behind = statement[match.end() : match.end() + _CONTEXT]
        following = _MENTION.search(behind)
        clause = list(_BOUNDARY.finditer(before))
        near = before[clause[-1].end() :] if clause else before
        right = behind[: following.start()] if following else behind
        boundary = _RIGHT_BOUNDARY.search(right)
        right = right[: boundary.start()] if boundary else right
        is_alone = not right.strip(" .:!)")
        is_named = is_alone and (_NOUN_BEFORE.search(before) or _TURN_BEFORE.search(before)) is not None
        return cls(
            letters=letters,
            start=match.start(),
            end=match.end(),
            is_denied=_DENIED_BEFORE.search(near) is not None or _DENIED_BEHIND.match(right) is not None,
            is_said=is_named or _SAID_BEFORE.search(before) is not None or _SAID_BEHIND.match(behind) is not None,
            is_set_off="(" in match[0]
            or behind.startswith(")")
            or (match.start() == 0 and (is_alone or _LABEL.match(statement) is not None)),
            is_open=_OPEN_END.match(behind) is not None
            or _UNSURE.search(near) is not None
            or (len(letters) == 1 and _PAIR_BEGUN.search(before) is not None),
        )


def _matches(statement: str) -> Iterator[re.Match[str]]:
    return _MENTION.finditer(statement)


def _letters(mention: str) -> set[str]:
    return set(re.findall(r"(?<![A-Za-z])[A-Z](?![A-Za-z])", mention))


def _spelt(text: str) -> str:
    r"""Return a text without ``\text{}``, dollars and marks of emphasis; a letter that they set off is in brackets."""
    text = unicodedata.normalize("NFKC", without_format_signs(text)).replace("\u2019", "'")
    text = _WRAPPER.sub(r"\1", text.replace("$", "").replace("\\(", "").replace("\\)", ""))
    text = _SET_OFF.sub(lambda match: f"({match[2].upper()})", text)
    text = re.sub(r"[*`]+", "", _LINE_MARK.sub("", text))
    text = _LOWER_LABEL.sub(lambda match: match[0].upper(), text)
    only = _ONLY_A_LETTER.fullmatch(text)
    if only is not None:
        return only[1].upper()
    return _NAMED_LOWER.sub(lambda m: f"{m[1] or m[3]} ({(m[2] or m[4]).upper()})", text).strip()


def _words(text: str) -> str:
    """Return words as they are compared: without case, blanks at the ends, signs around them, and a leading article."""
    plain = " ".join(text.casefold().split()).strip(" .,:;!\"'")
    return _ARTICLE.sub("", plain)


@lru_cache(maxsize=256)
def _by_words(texts: tuple[str, ...]) -> dict[str, str]:
    """Return the letter of each choice by its words; nothing where two have the same."""
    words = [_words(_spelt(text)) for text in texts]
    if len(set(words)) < len(words):
        words = [" ".join(text.casefold().split()) for text in texts]
    is_clear = len(set(words)) == len(words) and len(words) <= 26
    return {one: chr(ord("A") + index) for index, one in enumerate(words) if one} if is_clear else {}


def _statements(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each statement and whether it is a question; the full stop of a label ends none."""
    for line in text.splitlines():
        held = ""
        for part in _STATEMENT_END.split(line.strip()):
            if held and _TURN.match(part):
                yield held, False
                held = ""
            part = f"{held} {part}" if held else part
            if re.fullmatch(r"\(?[A-Z]\)?[.)]+", part):
                held = part
                continue
            held = ""
            if part.strip():
                yield part.strip(), part.rstrip("\"') ").endswith("?")
        if held:
            yield held, False
