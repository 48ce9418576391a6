"""The readable text of an HTML page, in one pass whose time grows with the page's length alone.

No document tree is built: tags, comments and what is inside of scripts and styles go, a block's
border becomes a new line. What is opened and never closed is skipped over as far as its first
">", so that the text behind it stays. Syntax: the HTML standard, section 13.2.5 (tokenization).
"""

import html
import re

# Their content is nothing to read; it goes only up to the end tag, which may be missing.
SILENT = frozenset({"script", "style", "template", "noscript", "svg"})
# fmt: off
BLOCKS = frozenset({
    "p", "div", "br", "li", "ul", "ol", "dl", "dt", "dd", "tr", "table", "h1", "h2", "h3",
    "h4", "h5", "h6", "pre", "blockquote", "section", "article", "header", "footer", "main",
    "nav", "aside", "title", "hr",
})
# fmt: on
TAG_NAME = re.compile(r"</?([A-Za-z][^\s/>]*)")
# A quote counts only behind "=". Possessive: a tag without an end fails after one look at the rest.
TAG_REST = re.compile(r"""(?:[^>=]|=\s*(?:"[^"]*"|'[^']*')?)*+>""")
# `html.unescape` hands digits to int(), which refuses thousands of them; no character needs these.
HUGE_REFERENCE = re.compile(r"&#(?:[0-9]{8,}|[xX][0-9A-Fa-f]{8,});?")


def html_text(source: str) -> str:
    """Return the readable text of an HTML page, block by block, without scripts and styles."""
    text = HUGE_REFERENCE.sub("\ufffd", "".join(_Scan(source).parts()))
    lines = (" ".join(line.split()) for line in html.unescape(text).split("\n"))
    return "\n".join(line for line in lines if line)


class _Scan:
    """One pass over a page. An end that was looked for in vain is not looked for again."""

    def __init__(self, source: str):
        self._source = source
        self._missing: set[str] = set()

    def parts(self) -> list[str]:
        """Return the stretches of text, and a new line for each block's border."""
        source, parts, position = self._source, [], 0
        while (start := source.find("<", position)) >= 0:
            parts.append(source[position:start])
            tag = TAG_NAME.match(source, start)
            if tag is None:
                is_markup = source.startswith(("<!", "</", "<?"), start)
                position = self._after_comment(start) if is_markup else start + 1
                parts.append("" if is_markup else "<")
                continue
            name = tag[1].lower()
            position = self._after_tag(tag.end())
            parts.append("\n" if name in BLOCKS else "")
            is_empty = name == "svg" and source.endswith("/>", start, position)
            if name in SILENT and source[start + 1] != "/" and not is_empty:
                position = self._end_of(name, position)
        return [*parts, source[position:]]

    def _after_tag(self, start: int) -> int:
        """Return where a tag ends; quotes hide ">" as long as every one of them is closed."""
        if "quotes" not in self._missing:
            if rest := TAG_REST.match(self._source, start):
                return rest.end()
            self._missing.add("quotes")
        return self._find(">", start, otherwise=start)

    def _after_comment(self, start: int) -> int:
        bogus = self._find(">", start, otherwise=start + 2)
        if not self._source.startswith("<!--", start):
            return bogus
        return self._find("-->", start + 2, otherwise=bogus)

    def _end_of(self, name: str, start: int) -> int:
        """Return where an element's end tag begins; `start` where it has none."""
        if name in self._missing:
            return start
        end = re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE).search(self._source, start)
        if end is None:
            self._missing.add(name)
            return start
        return end.start()

    def _find(self, wanted: str, start: int, *, otherwise: int) -> int:
        """Return the position behind the next `wanted`; `otherwise` where there is none."""
        if wanted in self._missing:
            return otherwise
        found = self._source.find(wanted, start)
        if found < 0:
            self._missing.add(wanted)
            return otherwise
        return found + len(wanted)
