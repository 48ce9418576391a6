"""Wiki markup to plain text, in time by its length: what a reader sees, without tables and notes.

Templates are left out, not expanded. Markup: mediawiki.org, "Help:Formatting" and "Help:Links".
"""

import html
import re

from data_pipelines.html_text import HUGE_REFERENCE

NESTED = re.compile(r"\{\{|\}\}|\{\||\|\}")
LINK = re.compile(r"\[\[([^\[\]|]{0,500})(?:\|([^\[\]]{0,5000}))?\]\]")
OUTSIDE = re.compile(r"\[(?:https?:)?//[^\s\[\]]{1,2000}(?: ([^\[\]]{0,1000}))?\]")
TAG = re.compile(r"<[^<>]{0,1000}>")
QUOTES = re.compile(r"'{2,5}")
HEADING = re.compile(r"^(={1,6}) *([^=].{0,300}?) *\1\s*$")
SWITCH = re.compile(r"__[A-Z]{3,30}__")
# Their content is no text of the article.
SILENT = ("ref", "gallery", "timeline", "syntaxhighlight", "math", "imagemap", "score")
HIDDEN = frozenset({"file", "image", "category", "media"})  # English works on every wiki


def plain(markup: str, hidden: frozenset[str] = HIDDEN) -> str:
    """Return the text of an article.

    Args:
        markup: as its author wrote it.
        hidden: namespaces, in lower case, whose links are no text: files, categories.
    """

    def shown(link: re.Match) -> str:
        target, label = link[1], link[2]
        if target.partition(":")[0].strip().lower() in hidden and ":" in target:
            return ""
        return target.removeprefix(":") if label is None else label

    text = _without(markup, "<!--", "-->")
    for tag in SILENT:
        text = _without_element(text, tag)
    text = _without_nested(text)
    for _ in range(3):  # a picture's caption may hold links
        text, count = LINK.subn(shown, text)
        if not count:
            break
    text = OUTSIDE.sub(lambda link: link[1] or "", text)
    text = SWITCH.sub("", QUOTES.sub("", TAG.sub("", text)))
    text = html.unescape(HUGE_REFERENCE.sub("\ufffd", text))
    lines = (HEADING.sub(r"\2", line).lstrip("*#:; ").rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _without(text: str, start: str, end: str) -> str:
    """Leave out what stands between two marks; an opening one without its end hides nothing."""
    parts, at = [], 0
    while (first := text.find(start, at)) >= 0:
        last = text.find(end, first)
        if last < 0:
            break
        parts.append(text[at:first])
        at = last + len(end)
    return "".join([*parts, text[at:]])


def _without_element(text: str, tag: str) -> str:
    """Leave out elements of a name, with their content; `<ref name=x />` has none."""
    parts, at = [], 0
    opening = re.compile(rf"<{tag}(?=[\s/>])[^<>]{{0,500}}>", re.I)
    closing = re.compile(rf"</{tag}\s{{0,5}}>", re.I)
    while found := opening.search(text, at):
        parts.append(text[at : found.start()])
        at = found.end()
        if found[0].endswith("/>"):
            continue
        end = closing.search(text, at)
        if end is None:
            break
        at = end.end()
    return "".join([*parts, text[at:]])


def _without_nested(text: str) -> str:
    """Leave out templates and tables, whatever lies inside of them."""
    parts: list[str] = []
    depth = at = 0
    opened = 0
    for token in NESTED.finditer(text):
        if token[0] in ("{{", "{|"):
            if not depth:
                parts.append(text[at : token.start()])
                opened = token.end()
            depth += 1
        elif depth:
            depth -= 1
            at = token.end()
    # One that is never closed must not hide the rest of the article.
    return "".join([*parts, NESTED.sub("", text[opened:]) if depth else text[at:]])
