"""XMP sidecars: what is found in them, what is added, and that all else stays as other programs wrote it."""

from __future__ import annotations

import os
import stat
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import DEADLINE_S
from rolecall.vision.sidecar import Neighbours, SidecarError, sidecar_path, write_sidecar
from rolecall.vision.xmp import merge
from rolecall.vision.xmp_reader import DC, RDF, XML, XmpError

DARKTABLE = b"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:exif="http://ns.adobe.com/exif/1.0/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:darktable="http://darktable.sf.net/"
   exif:DateTimeOriginal="2024:05:01 10:11:12.000"
   xmp:Rating="4"
   darktable:history_end="9">
   <dc:creator>
    <rdf:Seq>
     <rdf:li>A. Person</rdf:li>
    </rdf:Seq>
   </dc:creator>
   <dc:subject>
    <rdf:Bag>
     <rdf:li>Family</rdf:li>
     <rdf:li>caf\xc3\xa9 &amp; bar</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <darktable:history>
    <rdf:Seq>
     <rdf:li
      darktable:num="0"
      darktable:params='gz02eJxjYGBg&#x41;'/>
    </rdf:Seq>
   </darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
LIGHTROOM = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0-c000">\r\n'
    b' <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\r\n'
    b'  <rdf:Description rdf:about=""\r\n'
    b'    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"\r\n'
    b'   crs:Version="15.0">\r\n'
    b"   <crs:ToneCurve>\r\n    <rdf:Seq>\r\n     <rdf:li>0, 0</rdf:li>\r\n    </rdf:Seq>\r\n   </crs:ToneCurve>\r\n"
    b"  </rdf:Description>\r\n </rdf:RDF>\r\n</x:xmpmeta>\r\n"
)
ONE_LINE = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    f'<R:RDF xmlns:R="{RDF}"><!-- mine --><R:Description R:about="uuid:1" xmlns:d="{DC}"><d:subject/>'
    '<d:description><R:Alt><R:li xml:lang="de-DE">Ein Hof</R:li><R:li xml:lang="x-default">A yard</R:li></R:Alt>'
    "</d:description></R:Description></R:RDF></x:xmpmeta>" + " " * 50 + '<?xpacket end="w"?>'
).encode()


def subjects(data: bytes) -> list[str]:
    """Read the keywords with another parser than the one under test."""
    root = ET.fromstring(data)  # noqa: S314 - our own
    return [item.text or "" for item in root.findall(f".//{{{DC}}}subject/*/{{{RDF}}}li")]


def descriptions(data: bytes) -> dict[str, str]:
    """Read the description in each language."""
    root = ET.fromstring(data)  # noqa: S314 - our own
    items = root.findall(f".//{{{DC}}}description/{{{RDF}}}Alt/{{{RDF}}}li")
    return {item.get(f"{{{XML}}}lang", ""): item.text or "" for item in items}


def without(data: bytes, *texts: bytes) -> bytes:
    """Return data with each text, which must be there once, taken out."""
    for text in texts:
        assert data.count(text) == 1, (text, data)
        data = data.replace(text, b"")
    return data


def test_keywords_join_those_of_darktable_and_no_other_byte_changes() -> None:
    """New keywords stand behind the old ones with the same indentation; those there are already are not repeated."""
    after, (added, described) = merge(DARKTABLE, ["family", "Dog", "dog", "CAFÉ & bar", "a < b"], None)
    assert added == ("Dog", "a < b")
    assert not described
    assert subjects(after) == ["Family", "café & bar", "Dog", "a < b"]
    lines = b"\n     <rdf:li>Dog</rdf:li>", b"\n     <rdf:li>a &lt; b</rdf:li>"
    assert without(after, *lines) == DARKTABLE


def test_a_file_without_our_fields_gets_them_in_its_own_line_ends() -> None:
    """Lightroom's sidecar keeps its CRLF and every byte; keywords and description come last in its description."""
    after, (added, described) = merge(LIGHTROOM, ["sea"], "A boat.")
    assert (added, described) == (("sea",), True)
    assert (subjects(after), descriptions(after)) == (["sea"], {"x-default": "A boat."})
    assert b"\n" not in after.replace(b"\r\n", b"")
    head, _, rest = after.partition(b"\r\n   <dc:subject ")
    assert head + rest[rest.index(b"</dc:description>") + len(b"</dc:description>") :] == LIGHTROOM


def test_a_description_that_somebody_wrote_stays() -> None:
    """Only on request it is replaced, in the default language alone."""
    after, (_, described) = merge(ONE_LINE, ["yard"], "A courtyard.")
    assert not described
    assert subjects(after) == ["yard"]
    assert descriptions(after) == {"de-DE": "Ein Hof", "x-default": "A yard"}
    replaced, (_, described) = merge(ONE_LINE, [], "A courtyard & a cat.", replace=True)
    assert described
    assert replaced == ONE_LINE.replace(b"A yard", b"A courtyard &amp; a cat.")


def test_comments_prefixes_packets_and_one_line_files_are_kept() -> None:
    """An empty element is opened with the file's own prefix, and no line end comes in."""
    after, _ = merge(ONE_LINE, ["yard"], None)
    assert after == ONE_LINE.replace(b"<d:subject/>", b"<d:subject><R:Bag><R:li>yard</R:li></R:Bag></d:subject>")


@pytest.mark.parametrize(
    "property_",
    [
        "<dc:subject></dc:subject>",
        "<dc:subject>\n  </dc:subject>",
        "<dc:subject><rdf:Bag/></dc:subject>",
        "<dc:subject><rdf:Bag></rdf:Bag></dc:subject>",
        "<dc:subject><rdf:Seq><rdf:li>yard</rdf:li></rdf:Seq></dc:subject>",
        "<dc:description/>",
        "<dc:description><rdf:Alt/></dc:description>",
        "<dc:description><rdf:Alt><rdf:li/></rdf:Alt></dc:description>",
        '<dc:description><rdf:Alt><rdf:li xml:lang="x-default"></rdf:li></rdf:Alt></dc:description>',
        "",
    ],
)
def test_every_empty_form_is_filled(property_: str) -> None:
    """However an element without content is written, the keywords and the description are there afterwards."""
    data = f'<rdf:RDF xmlns:rdf="{RDF}" xmlns:dc="{DC}"><rdf:Description>{property_}</rdf:Description></rdf:RDF>'
    after, _ = merge(data.encode(), ["yard", "cat"], "Both.")
    assert subjects(after) == ["yard", "cat"]
    assert list(descriptions(after).values()) == ["Both."]
    assert merge(after, ["yard", "cat"], "Both.") == (after, ((), False))


@pytest.mark.parametrize("inside", ["/>", "></r:RDF>", ">\n</r:RDF>", "><!-- nothing yet --></r:RDF>"])
def test_xmp_without_a_description_element_gets_one(inside: str) -> None:
    """XMP that says nothing at all is XMP still."""
    data = f'<x:xmpmeta xmlns:x="adobe:ns:meta/">\n <r:RDF xmlns:r="{RDF}"{inside}\n</x:xmpmeta>\n'.encode()
    after, (added, described) = merge(data, ["yard", "cat"], "Both.")
    assert (added, described) == (("yard", "cat"), True)
    assert (subjects(after), descriptions(after)) == (["yard", "cat"], {"x-default": "Both."})
    nodes = ET.fromstring(after).findall(f".//{{{RDF}}}Description")  # noqa: S314 - our own
    assert [node.attrib for node in nodes] == [{f"{{{RDF}}}about": ""}]
    assert merge(after, ["yard", "cat"], "Both.") == (after, ((), False))


def test_a_description_as_attribute_counts() -> None:
    """The short form is read, and not written over."""
    data = f'<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description xmlns:dc="{DC}" dc:description="Old"/></rdf:RDF>'.encode()
    after, (_, described) = merge(data, ["cat"], "New")
    assert not described
    assert (subjects(after), descriptions(after)) == (["cat"], {})
    with pytest.raises(XmpError, match="no languages"):
        merge(data, [], "New", replace=True)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no XML"),
        (b"\xff\xd8\xff\xe0 a JPEG", "no XML"),
        (DARKTABLE[:-40], "no XML"),
        (DARKTABLE.replace(b"<rdf:Bag>", b"<rdf:Bag"), "no XML"),
        (b"<html/>", "no rdf:RDF"),
        (b'<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>', "document type"),
        (LIGHTROOM.decode().encode("utf-16"), "not UTF-8"),
        (b'<?xml version="1.0" encoding="ISO-8859-1"?>' + LIGHTROOM, "not UTF-8"),
        (DARKTABLE.replace(b"<rdf:Bag>", b"<rdf:Alt>").replace(b"</rdf:Bag>", b"</rdf:Alt>"), "no list"),
        (DARKTABLE.replace(b' xmp:Rating="4"', b' dc:subject="x"'), "no list"),
        (DARKTABLE.replace(b"dc:creator>", b"dc:subject>"), "twice"),
    ],
)
def test_what_is_no_xmp_is_refused_and_stays(data: bytes, reason: str, tmp_path: Path) -> None:
    """A sidecar that cannot be understood is reported by name and reason, and not one byte of it changes."""
    path = tmp_path / "a.jpg.xmp"
    path.write_bytes(data)
    with pytest.raises(SidecarError, match=reason if data else "empty") as raised:
        write_sidecar(tmp_path / "a.jpg", ["cat"], "A cat.")
    assert str(path) in str(raised.value)
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_sidecar_has_both_fields(tmp_path: Path) -> None:
    """Beside a picture without a sidecar ``NAME.jpg.xmp`` appears; a second time it stays as it is."""
    first = write_sidecar(tmp_path / "a.jpg", ["cat", "sofa"], 'A <cat> & "sofa".\x00')
    assert (first.path, first.added, first.described) == (tmp_path / "a.jpg.xmp", ("cat", "sofa"), True)
    data = first.path.read_bytes()
    assert (subjects(data), descriptions(data)) == (["cat", "sofa"], {"x-default": 'A <cat> & "sofa".'})
    time = first.path.stat().st_mtime_ns
    again = write_sidecar(tmp_path / "a.jpg", ["Cat"], "Another one.")
    assert (again.added, again.described) == ((), False)
    assert (first.path.read_bytes(), first.path.stat().st_mtime_ns) == (data, time)


def test_nothing_to_say_makes_no_file(tmp_path: Path) -> None:
    """Without keywords and description no sidecar appears."""
    write_sidecar(tmp_path / "a.jpg", [" ", ""], " ")
    assert list(tmp_path.iterdir()) == []


def test_mode_and_links_are_kept(tmp_path: Path) -> None:
    """A sidecar that is a symbolic link stays one, and the file behind it keeps its mode."""
    real, link = tmp_path / "real", tmp_path / "a.jpg.xmp"
    real.write_bytes(DARKTABLE)
    real.chmod(0o640)
    link.symlink_to(real)
    write_sidecar(tmp_path / "a.jpg", ["cat"])
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert b">cat<" in real.read_bytes()


def test_no_word_is_lost_where_several_write_at_once(tmp_path: Path) -> None:
    """Whoever reads a sidecar that another one replaces meanwhile adds to the new one."""
    names = [[f"{who}-{number}" for number in range(20)] for who in "abcdef"]
    begin = threading.Barrier(len(names))

    def add(words: list[str]) -> None:
        begin.wait(DEADLINE_S)
        for word in words:
            write_sidecar(tmp_path / "a.jpg", [word])

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(add, names))
    assert set(subjects((tmp_path / "a.jpg.xmp").read_bytes())) == {word for words in names for word in words}
    assert names_in(tmp_path) == ["a.jpg.xmp"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    """A named pipe that nobody writes to is not waited for, and a folder is none either."""
    path = tmp_path / "a.jpg.xmp"
    make(path)
    with pytest.raises(SidecarError, match=r"a\.jpg\.xmp cannot be read: "):
        write_sidecar(tmp_path / "a.jpg", ["cat"])
    assert names_in(tmp_path) == ["a.jpg.xmp"]


@pytest.mark.parametrize("target", ["no/such/folder/real", "a.jpg.xmp"])
def test_a_link_that_leads_nowhere_is_named(target: str, tmp_path: Path) -> None:
    """The message has the name of the sidecar, not that of a file that nobody knows."""
    (tmp_path / "a.jpg.xmp").symlink_to(target)
    with pytest.raises((SidecarError, OSError)) as raised:
        write_sidecar(tmp_path / "a.jpg", ["cat"])
    assert str(tmp_path / "a.jpg.xmp") in str(raised.value)
    assert ".tmp" not in str(raised.value)
    assert names_in(tmp_path) == ["a.jpg.xmp"]


def test_a_folder_is_listed_once_for_all_pictures(tmp_path: Path) -> None:
    """What is known of a folder is not asked again for the next picture in it, or ten thousand would take minutes."""
    for name in ("a.jpg", "a.xmp", "b.jpg", "b.xmp", "c.jpg", "c.xmp", "c.cr2"):
        (tmp_path / name).touch()
    neighbours = Neighbours()
    assert sidecar_path(tmp_path / "a.jpg", neighbours).name == "a.xmp"
    (tmp_path / "b.cr2").touch()
    assert sidecar_path(tmp_path / "b.jpg", neighbours).name == "b.xmp"
    assert sidecar_path(tmp_path / "c.jpg", neighbours).name == "c.jpg.xmp"
    assert sidecar_path(tmp_path / "b.jpg").name == "b.jpg.xmp"


def names_in(folder: Path) -> list[str]:
    """Return the names of all that is in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ((), "a.jpg.xmp"),
        (("a.jpg.xmp",), "a.jpg.xmp"),
        (("a.jpg.XMP",), "a.jpg.XMP"),
        (("a.xmp",), "a.xmp"),
        (("a.XMP",), "a.XMP"),
        (("a.xmp", "a.jpg.xmp"), "a.jpg.xmp"),
        (("a.xmp", "a.cr2"), "a.jpg.xmp"),
        (("a.xmp", "b.cr2"), "a.xmp"),
    ],
)
def test_where_a_sidecar_is(there: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    """The full name goes first; the short one counts if it is there and no other file could be meant by it."""
    for name in ("a.jpg", *there):
        (tmp_path / name).touch()
    assert sidecar_path(tmp_path / "a.jpg").name == expected


@given(st.lists(st.text(), max_size=4), st.text(), st.sampled_from([DARKTABLE, LIGHTROOM, ONE_LINE]))
def test_any_words_can_be_added(words: list[str], text: str, data: bytes) -> None:
    """Whatever a model says, the result is XML, holds all old keywords, and adding it again changes nothing."""
    after, (added, _) = merge(data, words, text)
    assert subjects(after) == [*subjects(data), *added]
    assert merge(after, words, text)[0] == after
