"""Keywords and a description in XMP: merged into what other programs wrote, without touching it.

Nothing changes but ``dc:subject`` and ``dc:description``: expat tells where in the bytes the elements stand, and the
new text is put between them. A library that reads the tree and writes it anew would touch white space, prefixes and
quotes of other programs' fields; the well-kept ones for XMP also need a C library (exempi) or an RDF store.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from xml.sax.saxutils import escape

from rolecall import __version__
from rolecall.vision.xmp_reader import DC, RDF, Element, Xmp, XmpError

EMPTY = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="rolecall {__version__}">
 <rdf:RDF xmlns:rdf="{RDF}">
  <rdf:Description rdf:about=""/>
 </rdf:RDF>
</x:xmpmeta>
""".encode()
"""XMP that says nothing."""

_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def merge(
    data: bytes, keywords: Iterable[str], description: str | None, *, replace: bool = False
) -> tuple[bytes, tuple[tuple[str, ...], bool]]:
    """Return XMP with keywords and description added, the keywords that are new, and whether the description is in.

    Keywords that differ only in case are one. All other bytes stay. Raises ``XmpError``.
    """
    found = Xmp(data)
    added = _unknown(keywords, found.subjects)
    text = _clean(description or "")
    describes = bool(text) and (found.description is None or (replace and found.description != text))
    children = _new_subjects(found, added)
    edits = []
    if describes and found.default is not None:
        edits = [_filled(data, found.default, escape(text))]
    elif describes:
        children += _new_description(found, text)
    edits += _edits(found, _with_node(found, children))
    result = _spliced(data, edits)
    if edits:
        _check(result, [*found.subjects, *added], text if describes else found.description)
    return result, (added, describes)


def _unknown(keywords: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    seen = {word.casefold() for word in known}
    fresh: dict[str, str] = {}
    for word in map(_clean, keywords):
        if word and word.casefold() not in seen:
            fresh.setdefault(word.casefold(), word)
    return tuple(fresh.values())


def _clean(text: str) -> str:
    """Return a text without what XML has no way to write."""
    return _NO_XML.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def _check(data: bytes, subjects: Sequence[str], description: str | None) -> None:
    """Read what would be written: a form of XMP that was misunderstood is better left alone."""
    result = Xmp(data)
    if result.subjects != list(subjects) or result.description != description:
        raise XmpError("its form of XMP is not understood")


@dataclass(frozen=True, slots=True)
class _Edit:
    """Bytes from ``start`` to ``end`` that become ``text``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class _Child:
    """An element that is to be put behind the others in ``parent``: its tag with attributes, and what is in it."""

    parent: Element
    tag: str
    content: str | tuple[_Child, ...] = ""


def _edits(found: Xmp, children: Sequence[_Child]) -> list[_Edit]:
    """Return one edit for each parent, so that an empty tag is opened once."""
    parents = {child.parent.start: child.parent for child in children}
    return [
        _appended(found.data, parent, [child for child in children if child.parent is parent])
        for parent in parents.values()
    ]


def _spliced(data: bytes, edits: Iterable[_Edit]) -> bytes:
    for edit in sorted(edits, key=lambda each: each.start, reverse=True):
        data = data[: edit.start] + edit.text.encode() + data[edit.end :]
    return data


def _new_subjects(found: Xmp, added: Sequence[str]) -> list[_Child]:
    if not added:
        return []
    rdf = _prefix(found)
    parent = found.bag or found.subject or _node(found)
    items = tuple(_Child(parent, f"{rdf}li", escape(word)) for word in added)
    if found.bag is not None:
        return list(items)
    bag = _Child(parent, f"{rdf}Bag", items)
    if found.subject is None:
        return [_Child(parent, f'dc:subject xmlns:dc="{DC}"', (bag,))]
    _must_be_bare(found.subject, "dc:subject is no list in it")
    return [bag]


def _new_description(found: Xmp, text: str) -> list[_Child]:
    rdf = _prefix(found)
    parent = found.texts or found.about or _node(found)
    item = _Child(parent, f'{rdf}li xml:lang="x-default"', escape(text))
    if found.texts is not None:
        return [item]
    texts = _Child(parent, f"{rdf}Alt", (item,))
    if found.description is not None:
        raise XmpError("dc:description has no languages in it")
    if found.about is None:
        return [_Child(parent, f'dc:description xmlns:dc="{DC}"', (texts,))]
    _must_be_bare(found.about, "dc:description has no languages in it")
    return [texts]


def _must_be_bare(element: Element, otherwise: str) -> None:
    if element.text.strip() or element.last_child is not None:
        raise XmpError(otherwise)


def _prefix(found: Xmp) -> str:
    """Return what stands before the names of RDF's elements, such as ``rdf:``."""
    assert found.rdf is not None  # noqa: S101 - read with success
    return _tag(found.data, found.rdf).rpartition("RDF")[0]


def _node(found: Xmp) -> Element:
    """Return what new properties are put into; where there is no ``rdf:Description`` that is made by ``_with_node``."""
    node = found.node or found.rdf
    assert node is not None  # noqa: S101 - read with success
    return node


def _with_node(found: Xmp, children: Sequence[_Child]) -> Sequence[_Child]:
    """Return what is to be put into XMP that may have no ``rdf:Description`` yet."""
    apart = [child for child in children if child.parent is found.rdf]
    if not apart:
        return children
    rdf, node = _prefix(found), _node(found)
    others = [child for child in children if child.parent is not found.rdf]
    return [*others, _Child(node, f'{rdf}Description {rdf}about=""', tuple(apart))]


def _appended(data: bytes, parent: Element, children: Sequence[_Child]) -> _Edit:
    """Put children behind the last one that is there, indented like it."""
    line = _line_inside(data, parent)
    text = "".join(map(partial(_written, line=line), children))
    if _is_empty_tag(data, parent):
        return _Edit(parent.end - 2, parent.end, f">{text}{_line_of(data, parent.start)}</{_tag(data, parent)}>")
    at = parent.end - len(_space_before(data, parent.end))
    return _Edit(at, at, text)


def _written(child: _Child, line: str) -> str:
    """Return a child as text; ``line`` is the line end and indentation before it, empty where all is in one line."""
    name = child.tag.split(" ")[0]
    if isinstance(child.content, str):
        return f"{line}<{child.tag}>{child.content}</{name}>"
    inside = "".join(_written(each, line and line + " ") for each in child.content)
    return f"{line}<{child.tag}>{inside}{line}</{name}>"


def _filled(data: bytes, element: Element, text: str) -> _Edit:
    """Put a text in the place of all that is in an element."""
    if _is_empty_tag(data, element):
        return _Edit(element.end - 2, element.end, f">{text}</{_tag(data, element)}>")
    # `>` is the end of the start tag unless an attribute holds one, which of an rdf:li none does.
    return _Edit(data.index(b">", element.start) + 1, element.end, text)


def _is_empty_tag(data: bytes, element: Element) -> bool:
    return element.last_child is None and not element.text and data[element.end - 2 : element.end] == b"/>"


def _tag(data: bytes, element: Element) -> str:
    """Return the name of an element as it is written, with its prefix."""
    return re.split(rb"[\s/>]", data[element.start + 1 :], maxsplit=1)[0].decode()


def _line_inside(data: bytes, element: Element) -> str:
    """Return the line end and indentation before a child of an element; empty where all is in one line."""
    if element.last_child is not None:
        return _line_of(data, element.last_child)
    line = _line_of(data, element.start)
    return line and line + " "


def _line_of(data: bytes, at: int) -> str:
    """Return the line end and indentation right before a place; empty if something else stands before it."""
    before, newline, indent = _space_before(data, at).rpartition("\n")
    return ("\r" if before.endswith("\r") else "") + newline + indent if newline else ""


def _space_before(data: bytes, at: int) -> str:
    start = len(data[:at].rstrip(b" \t\r\n"))
    return data[start:at].decode()
