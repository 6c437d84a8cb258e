"""From the bytes of a page to text: encodings, and HTML to Markdown without navigation and boilerplate."""

import html
import re
from collections import Counter

# Opening and closing tags of elements that nest; those whose end may be left out do not. Here and below `*+` and `++` give
# nothing back, so that what is never closed costs neither time nor memory.
_NESTING = re.compile(
    r"<(/?)(?!(?:p|li|td|th|tr|dt|dd|thead|tbody|tfoot|option|br|hr|img|meta|link|input|col|source|wbr|area|base|embed|track|param)\b)([a-z][a-z0-9-]*+)[^<>]*?(/?)>",
    re.IGNORECASE,
)
MAX_DEPTH = 500
"""Deeper pages are damage; finding the main content takes a time that grows with the square of the depth."""

MOST_LINKS = 0.7
"""A list with a larger share of its text in links is a menu or a table of contents."""

# What sites call their tables of contents, menus and footers, beside what the library knows.
_SKIP = [
    "nav", ".toc", "#toc", ".table-of-contents", ".tableofcontents", ".contents", ".docnav", ".navheader",
    ".navfooter", ".navbar", ".navigation", ".breadcrumb", ".breadcrumbs", ".pagination", ".footnotes", ".indexterm",
    ".index", "[role=navigation]", "[role=search]",
]

# In XHTML an empty element may close itself; in HTML it stays open, and an anchor would make a link of all that follows.
_EMPTY = re.compile(r"<(a|abbr|b|code|div|em|i|p|span|strong|td|th|li|dd|dt|script|iframe|textarea|title)\b([^<>]*)/>", re.IGNORECASE)

_BODY = re.compile(r"<body\b[^<>]*>|$", re.IGNORECASE)

# A list that holds no other, and a link.
_LIST = re.compile(r"<(ul|ol|dl)\b[^<>]*>((?:[^<]++|<(?!/?(?:ul|ol|dl)\b))*+)</\1>", re.IGNORECASE)
_LINK = re.compile(r"<a\b(?=[^<>]*+>)[^<>]*?\bhref\b[^<>]*+>((?:[^<]++|<(?!/?a\b))*+)", re.IGNORECASE)
_ANY_TAG = re.compile(r"<[^<>]*>")

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\ufffe\uffff]")
_PRE = re.compile(r"^[ \t]*<pre>(.*?)</pre>", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"<h([1-6])>(.*?)</h\1>", re.DOTALL)
_ITEM = re.compile(r"^( *)<li>\s*(?:<p>)?\s*", re.MULTILINE)
_TAG = re.compile(r"</?(?:p|ul|ol|li|blockquote|br|pre|h[1-6])\b[^<>]*>")
_LISTED = re.compile(r" *- |\| ")
_FENCE = "```"


class PageError(ValueError):
    """A page that no text can be taken from; the message begins with the reason code."""


def decode(data: bytes) -> str:
    """Text of bytes in whatever encoding: UTF-8, what an HTML page declares, or what resiliparse detects.

    Raises PageError for what is no text at all.
    """
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = bytes_to_str(data, detect_encoding(data, from_html_meta=True) or "utf-8", errors="replace")
    if len(_CONTROL.findall(text[:10_000])) > len(text[:10_000]) // 20:
        raise PageError("binary: more control characters than a text has")
    return text


def clean(text: str) -> str:
    """`text` with line feeds alone as line ends, and without control characters."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def _depth(page: str) -> int:
    """How deep elements are nested at most: an end tag ends the last element of its name with all in it, if there is one."""
    deepest, inside, names = 0, list[str](), Counter[str]()
    for match in _NESTING.finditer(page):
        closing, name, alone = match.groups()
        name = name.lower()
        if not closing and not alone:
            inside.append(name)
            names[name] += 1
            deepest = max(deepest, len(inside))
        while closing and names[name]:
            names[last := inside.pop()] -= 1
            if last == name:
                break
    return deepest


def _without_menu(found: re.Match[str]) -> str:
    """A list, or nothing where it is made of links."""
    said = len("".join(_ANY_TAG.sub(" ", found[2]).split()))
    links = sum(len("".join(_ANY_TAG.sub(" ", link).split())) for link in _LINK.findall(found[2]))
    return "" if links > MOST_LINKS * said else found[0]


def markdown(page: str) -> str:
    """The main content of an HTML page as Markdown: headers, paragraphs, lists, fenced code.

    Scripts, menus, tables of contents, footers and other boilerplate are left out, by resiliparse's rules for the
    main content and by what sites usually call such parts. Broken HTML is read as a browser reads it.

    A list of links goes by `MOST_LINKS`.

    Raises PageError when the page is nested deeper than `MAX_DEPTH`.
    """
    from resiliparse.extract.html2text import extract_plain_text

    if "xhtml" in page[:1000].lower():
        page = _EMPTY.sub(r"<\1\2></\1>", page)
    if (depth := _depth(page)) > MAX_DEPTH:
        raise PageError(f"too_deep: elements nested {depth} deep")
    # Half surrogates cannot be encoded for the parser. The library takes a list high up in the tree for a menu, which on
    # simple pages it is not: so everything lies deeper, and menus are told by their links.
    page = _BODY.sub(lambda m: f"{m[0]}<div><div><div>", page.encode("utf-8", "replace").decode(), count=1)
    # Menus may lie in menus.
    for _ in range(4):
        page = _LIST.sub(_without_menu, page)
    text = extract_plain_text(
        page,
        preserve_formatting="minimal_html",
        main_content=True,
        alt_texts=False,
        comments=False,
        skip_elements=_SKIP,
    )
    pieces, at = [], 0
    for match in _PRE.finditer(text):
        code = html.unescape(match[1]).strip("\n")
        fence = _FENCE
        while fence in code:
            fence += "`"
        pieces += [_prose(text[at : match.start()]), f"{fence}\n{code}\n{fence}" if code.strip() else ""]
        at = match.end()
    pieces.append(_prose(text[at:]))
    return "\n\n".join(piece for piece in pieces if piece)


def _prose(text: str) -> str:
    """Markdown of a part without code; each line that is no list item or row of a table is a paragraph of its own."""
    text = _HEADING.sub(lambda m: f"\n{'#' * int(m[1])} {' '.join(_TAG.sub('', m[2]).split())}\n", text)
    # A break is a new line of the same paragraph, but none stands between a table and what follows it.
    text = re.sub(r"[ \t]*<br>(?:[ \t]*\n)?(?![\s<]|$)", "\0", text)
    text = _TAG.sub("", _ITEM.sub(lambda m: f"{m[1]}- ", text))
    lines = [html.unescape(line).rstrip() for line in text.split("\n")]
    out: list[str] = []
    for line in lines:
        if _LISTED.match(line):
            line = line.removeprefix("  ")
        elif "\t\t" in line.strip():
            cells = [" ".join(cell.split()) for cell in line.strip().split("\t\t")]
            line = f"| {' | '.join(cells)} |"
        else:
            line = " ".join(line.split())
        if not line.strip(" -|"):
            continue
        if out and not (_LISTED.match(line) and _LISTED.match(out[-1])):
            out.append("")
        out.append(line)
    return "\n".join(out).replace("\0", "\n")
