"""What unmarked prose claims in the end: one statement that is neither hedged, nor denied, nor taken back.

``The answer is 3 or 5.``, ``between 3 and 5``, ``3, maybe 5`` and ``it is not 5`` claim no number, though a search for
the last one finds some. The claim is the last sentence that says what "the answer" is, else the last with a number or
formula in it; what follows may take it back (``Wait, …``), and then claims in its place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from unigrpo.rewards.maths.number_words import NUMBER_WORD

_NUMBER = r"(?:[-+]?(?:\\?\$|[€£])?\s*(?:\d|\.\d)|\\[a-zA-Z({\[]|\$|[-+]?\(?[a-z]\s*=)"
"""How a number or formula begins."""
_LETTER = r"\(?[A-Z](?![A-Za-z'])\)?"
_MENTIONS = {"mathematics": re.compile(_NUMBER), "letter": re.compile(_LETTER), "words": re.compile(r"[^\W_]")}
_DISPLAYED = re.compile(r"\\\[.{0,1000}?\\\]|\$\$.{0,1000}?\$\$|\\begin\{.{0,1000}?\\end\{\w+\*?\}", re.DOTALL)
_BLANKS = re.compile(r"\s+")
"""Runs of blanks become one, which the other patterns rely on to take linear time."""
_STOP_IN_DISPLAY = re.compile(r"[.,]\s*(\\\]|\$\$)$")
_SPLIT = re.compile(r"(?<=[.!?])[*_\"')]*\s+|\n+")
_CARRIED = re.compile(r"(:[*_]*|\b(?:is|are|equals?|be|or|and|not)|[=≈]|\\\[|\$\$)[ \t]*\n\s*", re.IGNORECASE)
_LEAD = re.compile(
    r"(?i)^[\s*_]*(?:(?:no|nope|actually|wait|hmm+|so|oh|sorry|oops|well|yes|okay|ok|then|therefore|thus|hence|hold on"
    r"|correction|and|but|rather|instead)\b[\s,.:;!*_-]*)+"
)
_ANCHOR = re.compile(
    r"(?i)\b(?:answers?|results?|solutions?|options?|choices?)[*_]*\s*(?:(?:is|are|was|equals?|:|=)\s*)*[*_:]*\s*"
)
_STATES = re.compile(r"(?i)(?:answers?|results?|solutions?|option|choice)[*_]*\s*(?:is|are|was|equals?|:|=)")
_COPULA = re.compile(
    r"(?i)(?<![a-z])(?:(?:is|are|was|were|be|becomes?|equals?|totals?|comes? (?:out )?to|makes?|gives?)\b|'s\b)"
    r"(?:\s+(?:equal\s+to|exactly|simply|just|therefore|thus|then))*[\s:]*"
)
_SUBJECT = re.compile(
    r"(?i)^(.*?)\s+(?:is|are)\s+(?:the|our|my)\s+(?:\w+\s+)?(?:answers?|solutions?|results?|roots?|values?)\b"
)
_EQUALS = re.compile(r"(?<![<>!=\\])=(?!=)\s*")
_REVISION = re.compile(
    r"(?i)^[\s*_(]*(?:wait|actually|hmm+|hold on|sorry|oops|correction|alternatively|on (?:second thought|reflection)"
    r"|no[,.!:;]|no$|no wait|or\b|maybe|perhaps|possibly|(?:scratch|strike|forget) (?:that|it|this)|never ?mind"
    r"|i (?:take (?:that|it|this) back|made an? (?:mistake|error)|was wrong|meant?\b))"
)
_ADDITION = re.compile(r"(?i)^[\s*_(]*(?:or\b|alternatively|maybe|perhaps|possibly)")
_OPEN = re.compile(
    r"(?i)\b(?:maybe|perhaps|possibly|probably|not sure|not certain|unsure|uncertain|do(?:es)?(?: not|n't) know"
    r"|(?<!no )(?<!without )(?<!without a )doubt|(?:i|i'd|i'm|i would|my(?: best)?) guess(?:ing)?(?! that\b)"
    r"|unlikely|(?:might|may|could) not be(?=\W*$)|(?:is|it's|most) likely(?=\s+[-+$\\]*\d)|either way|(?:might|may"
    r"|could)(?: also| well| possibly| just)* (?:be|equal)"
    r"(?! (?:checked|verified|written|expressed|simplified|seen|found|shown))|no idea)\b"
    r"|\bis (?:one|a) (?:possibility|possible|candidate|guess)\b|,? if not\s+[-+$\\]*\d|\bunless\b|\belse\s+[-+$\\]*\d"
    r"|\d[\s,;(]+(?:alternatively|(?:no|wait|sorry|i mean|actually)[\s,]+[-+$\\]*\d)"
)
_SUPPOSED = re.compile(
    r"(?i)^[\s*_]*(?:suppose|assum(?:e|ing)|imagine|step\s+\d+\W*$"
    r"|let(?:'s| us)? (?:try|test|check|assume|suppose|say)\b"
    r"|let [a-z]\b|if\b[^,]*(?:,\D*)?$)|\bwhether\b"
)
"""What is tried, not claimed; an ``if`` whose consequence holds no number."""
_CONSEQUENCE = re.compile(r"(?i)[,;]\s*(?:so|then|thus|hence|therefore|we (?:get|have|find))\b|\bthen\b")
_ONLY_BOUND = re.compile(r"(?i)^[^\d\\$=]*\b(?:at (?:least|most)|(?:more|less|fewer) than)\s+-?\d[\d.,]*[^\d\\$=]*$")
"""A sentence whose one number is a bound."""
_RESTATES = re.compile(r"(?i)^(?:it|that|this)(?:'s| is)\b")
_OPERATION = re.compile(
    r"(?i)\b(?:twice|half|double|triple|root|reciprocal|opposite|divided by|multiplied by|power|ending (?:in|with))\s+"
    r"(?:of\s+)?[-+$\\]*\d|\d\s+(?:(?:times|less than|more than|fewer than)\s+[-+$\\]*\d|(?:squared|cubed)\b)"
)
"""Words around a number that make another of it."""
_FILLER = (
    r"(?:\s+(?:be|equals?|equal to|is|are|the|exactly|really|actually|necessarily|even|just|simply|a|an|answer|to))*"
)
_WRONG = r"(?:wrong|incorrect|false|impossible|ruled out|excluded|mistaken)"
_DENIAL = (
    r"(?i:\b(?:not|no longer|never|neither|nor|cannot|can not)\b|n't\b|\\neq?(?![a-zA-Z])|≠|!="
    r"|\b(?:anything|everything|all) but\b|(?<!none )(?<!no )\b(?:other|different) (?:than|from)\b|\bexceeds?\b"
    r"|\bnone of\b|\bexcept\b|\bfar from\b"
    r"|\brules? out\b)"
    rf"(?i:{_FILLER})[\s:*_]*"
)
_DENIED = re.compile(
    rf"(?i)(?:\b(?:is|are|was|be|'s)|not|n't)\s+(?:\w+ly\s+)?{_WRONG}\b"
    r"|\(wrong\b|\bno way\b|\b(?:nobody|no one) (?:says|said|thinks|claims)\b"
    r"|(?:can't|cannot) be\W*$|(?:\bnot|n't|cannot|never)\s+(?:say|think|believe|conclude|claim"
    r"|mean|follow|get)\b"
    r"|(?:\bnot|n't|cannot)\s+(?:be\s+)?(?:the\s+)?(?:right|correct|answer|solution|true|possible|case|it)\b"
)
_CONTRAST = re.compile(
    r"\s*[,(;\u2014-]?\s*\b(?i:and not|but not|(?<!if )not|rather than|instead of|as opposed to)\s+(?:just\s+)?"
    r"(?:(?:\\?\$)?-?\d[\d.,/]*(?<![.,])\$?\s*[a-z]{0,12}|\(?[A-Z])\)?(?=[\s.,;!]*$)"
)
_PREMISE = re.compile(
    r"(?i)^(?:(?:since|as|because|given that|although|though|while)\b[^,;]*,\s+(?:then\s+)?"
    r"|.*?[,;]\s*(?:and\s+)?(?:so|therefore|thus|hence|but|which means(?: that)?)\b[\s,]*)(?=\S)"
)
_REASON = re.compile(
    r"(?i)(?:\s(?:because|since)|,\s(?:as(?! far)|where)|,?\s[-\u2013\u2014]\s+(?:because|since)"
    r"|,\s(?:which|that) is (?:more|less|fewer|greater|larger|smaller|higher|lower) than"
    r"|\s\((?:because|since|as|reject\w*|we (?:reject|discard)|\$?\d[\d.,]*(?: \w+)? (?:from|in|for|of|on)))\s.*$"
    r"|(?<=[a-z])\s(?:between\s[^\s,]+\sand\s[^\s,]*\d|(?:that|who)\s(?:are|do|does|is|have)\s).*$"
)
"""Clauses beside the claim: what they deny or suppose is not the claim."""
_UNSURE = re.compile(r"(?i).{0,40}?\b(?:not (?:sure|certain)|i guess|guessing|doubt|that (?:is|are) wrong)")
_NOT_BUT = re.compile(
    r"(?i)(?:\bnot|n't)\s+(?!(?:but|sure|certain)\b)\S[^.,;]{0,40}?(?:,?\s+but\s+(?:rather\s+)?|[,;]\s+(?:it|that|this)(?:\s+is|'s)\s+)"
)
_EMPHASIS = re.compile(r"(?<![\w)}])(?:\*\*|__)|(?:\*\*|__)(?![\w({])")
_BOUND = re.compile(
    r"(?i)^\s*(?:(?:about|around|\w{3,12}ly|still|just|far|much)\s+)?"
    r"(?:at least|at most|nearly|almost|roughly|close to|exceeds?"
    r"|no more than|no less than|no fewer than|(?:more|less|fewer"
    r"|greater|larger|smaller"
    r"|higher|lower|bigger) than|over|under|above|below|up to|between|somewhere|within|from)\b"
)
_BOUND_BEHIND = re.compile(
    r"(?i)\d[\s$)]*(?:\s[a-z]+)?\s(?:or\s(?:more|less|fewer|so|higher|lower|greater|larger|smaller|above|below|over|under|thereabouts"
    rf"|{NUMBER_WORD})\b|at\s(?:most|least)\b|and\s(?:up|above|below|more|over)\b)"
)
_ALTERNATIVES = re.compile(
    rf"{_NUMBER}.{{0,60}}?(?<![a-zA-Z])or(?![a-zA-Z])(?:\s+[a-zA-Z']+){{0,4}}[\s$]*{_NUMBER}", re.DOTALL
)
_LIST_NUMBER = re.compile(r"(?m)^[\s*_]*(\d{1,2})[.)](?=\s|$)")
_CLOSED_EMPHASIS = re.compile(r"(?<![\w)}])([*_]{1,3})(?=[^\s*_])([^*_]*)\1\s*$")
_MONEY = re.compile(r"\$\s*-?\d[\d,.]*(?=\s*(?:[.,;:!?)*]|$)|\s+(?:[a-zA-Z]{2,}|a)(?![a-zA-Z]))")
"""An amount, by what follows: words, a mark or the end, where a formula would go on."""
_CALCULATION = re.compile(r"<<[^<>]{0,200}>>")
"""GSM8K's notes for a calculator, ``9*2=<<9*2=18>>18``."""
_UNFINISHED = re.compile(
    r"(?:[-+*/=^_(<,]|\\(?:times|cdot|div|frac|dfrac|tfrac|sqrt|pm|le|ge|leq|geq|text|mathrm)|\\?[dt]?frac\s*\{[^{}]*\})\s*$"
)


@dataclass(frozen=True, slots=True)
class Claim:
    """What prose says in the end."""

    sentence: str
    """All of the sentence."""
    predicate: str
    """What it says of its subject: behind "the answer is", the first "is" or "equals"."""
    value: str
    """Behind the last of those, or the last sign of equality."""


def find_claim(text: str, kind: Literal["mathematics", "letter", "words"] = "mathematics") -> Claim | None:
    """Return what prose claims; None where it claims nothing, or leaves it open, denies it, or is cut off.

    Args:
        text: unmarked prose.
        kind: what is looked for: a number or formula, the letter of a choice, or words.
    """
    mention = _MENTIONS[kind]
    sentences = _sentences(text)
    claimed = _claimed(sentences, mention)
    if claimed is None:
        return None
    sentence, is_last = claimed
    if is_last and is_cut_off(sentence):
        return None
    body = _main_clause(_without_contrast(_LEAD.sub("", sentence)), mention)
    anchors = list(_ANCHOR.finditer(body))
    start = anchors[-1].end() if anchors and mention.search(body, anchors[-1].end()) else None
    subject = _SUBJECT.match(body) if start is None else None
    if start is None:
        copula = _COPULA.search(body)
        start = copula.end() if copula and mention.search(body, copula.end()) else 0
    predicate = subject[1] if subject and mention.search(subject[1]) else body[start:].strip()
    last = [match.end() for pattern in (_COPULA, _EQUALS) for match in pattern.finditer(predicate)]
    value = predicate[max(last, default=0) :]
    if _is_refused(body, predicate, mention.pattern) or _is_supposed(sentence) or _OPERATION.search(value):
        return None
    return Claim(body, _bare(predicate), _bare(value))


def is_cut_off(text: str) -> bool:
    r"""Return whether a text visibly ends within a formula: an open brace or bracket, ``\frac{1}``, a last sign."""
    bare = _CLOSED_EMPHASIS.sub(r"\2", re.sub(r"\\[{}$\\]", "", text))
    if bare.count("{") > bare.count("}") or _UNFINISHED.search(bare):
        return True
    if any(text.count(opening) > text.count(closing) for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]"))):
        return True
    return bare.count("$") % 2 == 1 and _MONEY.sub("", bare).count("$") % 2 == 1


def _sentences(text: str) -> list[str]:
    text = _BLANKS.sub(lambda match: "\n" if "\n" in match[0] else " ", _CALCULATION.sub("", text))
    text = _DISPLAYED.sub(lambda match: _STOP_IN_DISPLAY.sub(r" \1", " ".join(match[0].split())), text)
    text = _without_list_numbers(_CARRIED.sub(r"\1 ", _EMPHASIS.sub("", text.replace("\u2019", "'"))))
    return [sentence.strip() for sentence in _SPLIT.split(text) if sentence.strip()]


def _without_list_numbers(text: str) -> str:
    """Return a text without the numbers of a list that counts from 1: ``3.`` at a line's start claims no 3."""
    num_items = 0

    def drop(match: re.Match[str]) -> str:
        nonlocal num_items
        if int(match[1]) != num_items + 1:
            return match[0]
        num_items += 1
        return "\n" if match[0].startswith("\n") else ""

    return _LIST_NUMBER.sub(drop, text)


def _claimed(sentences: list[str], mention: re.Pattern[str]) -> tuple[str, bool] | None:
    """Return the sentence that claims something in the end, and whether it is the last one."""
    telling = [index for index, sentence in enumerate(sentences) if mention.search(sentence)]
    stating = [index for index in telling if _STATES.search(sentences[index])]
    if not telling:
        return None
    index = (stating or telling)[-1]
    for later in range(index + 1, len(sentences)):
        sentence = sentences[later]
        if _ADDITION.match(sentence) or _OPEN.search(sentence) or _denies(sentence, sentences[index]):
            return None
        if _REVISION.match(sentence):
            if later not in telling:
                # `No. It is 4.`: what follows tells.
                if not any(other > later for other in telling):
                    return None
                continue
            index = later
        elif later in telling and (
            _REVISION.match(sentences[later - 1])
            or (_RESTATES.match(sentence) and re.search(_DENIAL + mention.pattern, sentences[later - 1]))
        ):
            index = later
    return sentences[index], index == len(sentences) - 1


def _denies(sentence: str, claim: str) -> bool:
    """Return whether a later sentence denies a claim, rather than a number that the claim does not hold."""
    other = re.match(r"-?\d+(?=\s)", sentence)
    return _DENIED.search(sentence) is not None and (other is None or other[0] in re.findall(r"-?\d+", claim))


def _main_clause(sentence: str, mention: re.Pattern[str]) -> str:
    """Return a sentence without its premise and its reason, where what is left claims something."""
    premise = None if _UNSURE.match(sentence) else _PREMISE.match(sentence)
    rest = sentence[premise.end() :] if premise else sentence
    if mention.search(rest) and (_STATES.search(rest) or not _STATES.search(sentence)):
        sentence = rest
    reason = _REASON.search(sentence)
    claim = sentence[: reason.start()] if reason and not _UNSURE.search(sentence[reason.start() :]) else sentence
    return claim if mention.search(claim) else sentence


def _without_contrast(sentence: str) -> str:
    """Return a sentence without what it sets the claim off from: ``5, not 4``, ``not 4 but 5``."""
    return _CONTRAST.sub("", _NOT_BUT.sub(" ", sentence))


def _is_refused(sentence: str, predicate: str, mention: str) -> bool:
    """Return whether a sentence asks, hedges or denies rather than claims."""
    if sentence.rstrip("*_\"') ").endswith("?") or _OPEN.search(sentence) or _DENIED.search(sentence):
        return True
    return (
        re.search(_DENIAL + mention, sentence) is not None
        or _BOUND.match(predicate) is not None
        or _ONLY_BOUND.match(predicate) is not None
        or _BOUND_BEHIND.search(predicate) is not None
        or re.search(rf"{mention}[^.;:?!\n]{{0,40}}\bto\s+(?:\\?\$)?\d", predicate) is not None
        or re.search(r"\d\s*[\u2013\u2014]\s*\d", predicate) is not None
    )


def _is_supposed(sentence: str) -> bool:
    """Return whether a sentence only tries a value, without a word of what follows from it."""
    return _SUPPOSED.search(sentence) is not None and _CONSEQUENCE.search(sentence) is None


def is_formula(piece: str) -> bool:
    """Return whether a piece of prose is nothing but mathematics."""
    return re.search(r"[A-Za-z]{2,}", re.sub(r"\\[a-zA-Z]+", " ", piece)) is None


def leaves_open(predicate: str) -> bool:
    """Return whether a predicate offers one number or another."""
    return _ALTERNATIVES.search(predicate) is not None


def _bare(text: str) -> str:
    """Return a piece of a sentence without its end: a full stop, closing marks of LaTeX and Markdown."""
    text = text.strip().rstrip(".!,; \u2713\u2714\u2705\ufe0f")
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$"), ("**", "**")):
        if text.endswith(closing) and text.count(opening) < text.count(closing) + (opening == closing):
            if opening != closing or text.count(opening) % 2:
                text = text[: -len(closing)].rstrip(". ")
    return text
