"""What stands in an XMP file, and at which of its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from xml.parsers import expat

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
XML = "http://www.w3.org/XML/1998/namespace"


class XmpError(Exception):
    """XMP that cannot be read or added to; the message is the reason."""


@dataclass(slots=True)
class Element:
    """An element in the bytes: of its start tag the first byte, of its end the first byte of the end tag."""

    name: str
    start: int
    attributes: dict[str, str]
    end: int = 0
    text: str = ""
    last_child: int | None = None
    """Where the start tag of its last child stands."""


class Xmp:
    """What is asked of an XMP file: its keywords, its description, and where they stand."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.subjects: list[str] = []
        self.rdf: Element | None = None
        self.node: Element | None = None
        """The first ``rdf:Description``."""
        self.subject: Element | None = None
        self.bag: Element | None = None
        self.about: Element | None = None
        """``dc:description``."""
        self.texts: Element | None = None
        """Its ``rdf:Alt``."""
        self.default: Element | None = None
        """The text of ``x-default``, or the first one."""
        self._open: list[Element] = []
        self._shorthand: str | None = None
        self._parse()

    @property
    def description(self) -> str | None:
        """The description there is; an empty one is none."""
        text = self._shorthand if self.default is None else self.default.text.strip()
        return text or None

    def _parse(self) -> None:
        if self.data[:2] in (b"\xfe\xff", b"\xff\xfe"):
            raise XmpError("it is not UTF-8")
        parser = expat.ParserCreate(namespace_separator="")
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declared
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = lambda name, given: self._begin(name, given, parser.CurrentByteIndex)
        parser.EndElementHandler = lambda _: self._finish(parser.CurrentByteIndex)
        parser.CharacterDataHandler = self._characters
        try:
            parser.Parse(self.data, True)  # noqa: FBT003 - expat's way to say that this is all
        except expat.ExpatError as error:
            raise XmpError(f"it is no XML: {error}") from None
        if self.rdf is None:
            raise XmpError("it is no XMP: there is no rdf:RDF in it")

    @staticmethod
    def _declared(_version: str, encoding: str | None, _standalone: int) -> None:
        if encoding is not None and encoding.lower() not in ("utf-8", "us-ascii"):
            raise XmpError(f"it is not UTF-8 but {encoding}")

    @staticmethod
    def _doctype(*_: object) -> None:
        raise XmpError("it has a document type, which XMP has not")

    def _begin(self, name: str, given: dict[str, str], at: int) -> None:
        element = Element(name, at, given)
        if self._open:
            self._open[-1].last_child = at
        path = [each.name for each in self._open]
        self._open.append(element)
        if name == RDF + "RDF" and self.rdf is None:
            self.rdf = element
        elif path[-1:] == [RDF + "RDF"] and name == RDF + "Description":
            self.node = self.node or element
            self._property_attributes(given)
        elif path[-2:-1] == [RDF + "RDF"]:
            self._property(element)
        elif path[-3:-2] == [RDF + "RDF"]:
            self._container(path[-1], element)

    def _property_attributes(self, given: dict[str, str]) -> None:
        if DC + "subject" in given:
            raise XmpError("dc:subject is no list in it")
        self._shorthand = given.get(DC + "description", self._shorthand)

    def _property(self, element: Element) -> None:
        if element.name == DC + "subject":
            if self.subject is not None:
                raise XmpError("dc:subject is in it twice")
            self.subject = element
        elif element.name == DC + "description":
            self.about = element

    def _container(self, parent: str, element: Element) -> None:
        if parent == DC + "subject" and element.name in (RDF + "Bag", RDF + "Seq"):
            self.bag = element
        elif parent == DC + "description" and element.name == RDF + "Alt":
            self.texts = element

    def _characters(self, text: str) -> None:
        self._open[-1].text += text

    def _finish(self, at: int) -> None:
        element = self._open.pop()
        element.end = at
        above = self._open[-1] if self._open else None
        if element.name != RDF + "li" or above is None:
            return
        if above is self.bag:
            self.subjects.append(element.text.strip())
        elif above is self.texts and (
            self.default is None or element.attributes.get(XML + "lang", "").lower() == "x-default"
        ):
            self.default = element
