"""The images of a request: fetched or refused, measured, and made smaller."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import socket
import time
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from builders import entry
from fakes import FakeResolver
from gateway.image_servers import ImageServer, image_server, png, reply
from rolecall.core.long_text import LongText
from rolecall.core.transforms import read_facts
from rolecall.errors import BadRequest, BodyTooLarge, InvalidImage, InvalidImageUrl, InvalidMediaUrl
from rolecall.gateway.image_fetch import ImageFetcher
from rolecall.gateway.images import Images
from rolecall.gateway.pictures import Pictures
from rolecall.gateway.pixels import image_size
from rolecall.settings import Settings, load_settings

CHAT = "/v1/chat/completions"


def uri(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def shows(*urls: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "auto"}} for url in urls]
    return {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, *parts]}]}


def url_of(body: Any, number: int = 0) -> str:
    url: str = body["messages"][0]["content"][1 + number]["image_url"]["url"]
    return url


def settings(tmp_path: Path, **given: Any) -> Settings:
    return load_settings({"config_dir": tmp_path, "state_dir": tmp_path, **given}, {})


async def admitted(made: Images, body: dict[str, Any], endpoint: str = CHAT) -> Any:
    admitted, _ = await made.admit(body, read_facts(body, endpoint, max_image_bytes=10**9))
    return admitted


# -- addresses


class Web:
    """A server of images, and what fetches from it."""

    def __init__(self, server: ImageServer, folder: Path) -> None:
        self.server = server
        self._folder = folder
        self._made: list[Images] = []

    def images(self, **given: Any) -> Images:
        """Return what handles images with these settings, and can fetch from the server."""
        chosen = settings(self._folder, **given)
        hosts = [f"cat.example:{self.server.port}"]
        fetcher = ImageFetcher(hosts=hosts, resolver=FakeResolver(cat_example=[["127.0.0.1"]]))
        self._made.append(Images(chosen, fetcher))
        return self._made[-1]

    async def aclose(self) -> None:
        """Close all of them."""
        for made in self._made:
            await made.aclose()


@pytest.fixture
async def web(tmp_path: Path) -> AsyncIterator[Web]:
    """Run a server that answers with a picture."""
    with image_server(reply(png())) as server:
        made = Web(server, tmp_path)
        yield made
        await made.aclose()


async def test_addresses_become_data_uris(web: Web) -> None:
    """Of what is sent on only the addresses differ, and the request that came is not changed."""
    body = shows(uri(png(9, 9)), web.server.url, web.server.url + "?2")
    before = copy.deepcopy(body)
    after = await admitted(web.images(), body)
    assert [url_of(after, number) for number in range(3)] == [uri(png(9, 9)), uri(png()), uri(png())]
    assert body == before
    assert after["messages"][0]["content"][1] is body["messages"][0]["content"][1]
    assert {**after, "messages": 0} == {**body, "messages": 0}


async def test_an_anthropic_source_becomes_base64(web: Web) -> None:
    """In the form that /v1/messages has for it, in the answer of a tool as well."""
    image = {"type": "image", "source": {"type": "url", "url": web.server.url}}
    body = {"model": "m", "messages": [{"role": "user", "content": [{"type": "tool_result", "content": [image]}]}]}
    after = await admitted(web.images(), body, "/v1/messages")
    assert after["messages"][0]["content"][0]["content"][0]["source"] == {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(png()).decode(),
    }


async def test_an_address_is_fetched_once_for_a_request(web: Web) -> None:
    """Conversations repeat their images."""
    after = await admitted(web.images(), shows(*[web.server.url] * 5))
    assert {url_of(after, number) for number in range(5)} == {uri(png())}
    assert len(web.server.requests) == 1


async def test_a_body_without_addresses_is_the_very_same(web: Web) -> None:
    """Nothing is copied."""
    body = shows(uri(png()))
    assert await admitted(web.images(), body) is body


async def test_addresses_can_be_passed(web: Web) -> None:
    """To engines that are trusted to fetch: whatever they are."""
    body = shows(web.server.url, "file:///x")
    assert await admitted(web.images(image_urls="pass"), body) is body
    assert web.server.connections == 0


async def test_addresses_can_be_refused(web: Web) -> None:
    """The first one is named, with its index and place and the setting."""
    with pytest.raises(InvalidImageUrl) as caught:
        await admitted(web.images(image_urls="refuse"), shows(uri(png()), web.server.url))
    error = caught.value
    assert error.message == (
        "Image 1 at messages[0].content[2] is not fetched: its URL is refused here; send it as a data URI "
        "(setting image_urls)."
    )
    assert (error.status, error.code, error.param) == (400, "invalid_image_url", "messages[0].content[2]")
    assert web.server.connections == 0


@pytest.mark.parametrize(
    "address",
    ["file:///etc/passwd", "http://127.0.0.1/", "http://localhost./", "HTTP://2130706433", "//x", "ftp://x", "http:x"],
)
async def test_no_other_address_reaches_an_engine(web: Web, address: str) -> None:
    """It is a 400 that names the image, and the good ones beside it are not sent either."""
    with pytest.raises(InvalidImageUrl, match=r"^Image 0 at messages\[0\].content\[1\] is not fetched: its URL "):
        await admitted(web.images(), shows(address, web.server.url))


@pytest.mark.parametrize("policy", ["fetch", "refuse"])
@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "input_audio", "input_audio": {"data": "http://127.0.0.1/x"}}, "audio"),
        ({"type": "video_url", "video_url": {"url": "https://example.org/x.mp4"}}, "video"),
        ({"type": "input_file", "file_url": "https://example.org/x.pdf"}, "file"),
        ({"type": "hologram", "hologram_url": "https://example.org/x"}, "file"),
    ],
)
async def test_only_images_are_fetched(web: Web, policy: str, part: dict[str, Any], kind: str) -> None:
    """Audio, video, files and what nobody knows are refused by their place."""
    body = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
    with pytest.raises(InvalidMediaUrl) as caught:
        await admitted(web.images(image_urls=policy), body)
    assert caught.value.message.startswith(f"The {kind} at messages[0].content[0] is given by an address")
    assert (caught.value.code, caught.value.param) == ("invalid_media_url", "messages[0].content[0]")


async def test_an_address_in_the_place_of_base64_is_refused(web: Web) -> None:
    """No API has one there; an engine may follow it all the same."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": web.server.url}}
    with pytest.raises(InvalidImageUrl, match="stands where base64 belongs"):
        await admitted(web.images(), {"model": "m", "messages": [{"role": "user", "content": [image]}]})
    assert web.server.connections == 0


async def test_an_image_that_is_none_is_named(web: Web) -> None:
    """By its index among all images; what came instead is not repeated."""
    web.server.answer = reply(b"secret words of a server")
    with pytest.raises(InvalidImageUrl) as caught:
        await admitted(web.images(), shows(uri(png()), uri(png()), web.server.url))
    assert caught.value.message == (
        "Image 2 at messages[0].content[3] is not fetched: its URL holds no image of a known kind."
    )


async def test_one_failure_ends_the_other_fetches(web: Web) -> None:
    """A request that cannot be served does not wait for its slow images."""

    def answer(connection: socket.socket, request: bytes) -> None:
        if b"slow" in request:
            connection.recv(1)
        else:
            reply(b"")(connection, request)

    web.server.answer = answer
    began = time.monotonic()
    with pytest.raises(InvalidImageUrl):
        await admitted(web.images(), shows(*(f"{web.server.url}?slow{number}" for number in range(3)), web.server.url))
    assert time.monotonic() - began < 5


async def test_fetched_images_are_measured(web: Web) -> None:
    """One by one, and together, so that few bytes of addresses do not become gigabytes."""
    web.server.answer = reply(png() + bytes(10_000))
    with pytest.raises(InvalidImageUrl, match="more than 5000 bytes"):
        await admitted(web.images(max_image_bytes=5000), shows(web.server.url))
    with pytest.raises(BodyTooLarge, match="more than 50000 bytes together"):
        await admitted(web.images(max_body_bytes=50_000), shows(*(f"{web.server.url}?{n}" for n in range(6))))
    with pytest.raises(BodyTooLarge, match="together"):
        await admitted(web.images(max_body_bytes=50_000), shows(*[web.server.url] * 6))


# -- smaller images


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Images]:
    """Run what handles images with the settings as they are shipped."""
    images = Images(settings(tmp_path))
    yield images
    await images.aclose()


NOISE = Image.effect_noise((400, 300), 60).convert("RGB")
SHAPES: dict[str, tuple[bytes, str, str]] = {
    "photograph": (encoded(NOISE, "JPEG"), "JPEG", "RGB"),
    "grey photograph": (encoded(NOISE.convert("L"), "JPEG"), "JPEG", "L"),
    "print": (encoded(NOISE.convert("CMYK"), "JPEG"), "JPEG", "RGB"),
    "screenshot": (encoded(NOISE, "PNG"), "PNG", "RGB"),
    "palette": (encoded(NOISE.convert("P"), "PNG"), "PNG", "RGB"),
    "logo": (encoded(NOISE.convert("RGBA"), "PNG"), "PNG", "RGBA"),
    "black and white": (encoded(NOISE.convert("1"), "PNG"), "PNG", "RGB"),
    "16 bits": (encoded(NOISE.convert("L").convert("I").point(lambda v: v * 257).convert("I;16"), "PNG"), "PNG", "L"),
    "animation": (encoded(NOISE, "GIF", save_all=True, append_images=[Image.new("RGB", (400, 300))]), "PNG", "RGB"),
    "bitmap": (encoded(NOISE, "BMP"), "PNG", "RGB"),
    "webp": (encoded(NOISE, "WEBP"), "JPEG", "RGB"),
    "webp with alpha": (encoded(Image.new("RGBA", (400, 300), (9, 9, 9, 9)), "WEBP"), "PNG", "RGBA"),
    "tiff": (encoded(NOISE, "TIFF"), "JPEG", "RGB"),
    "avif": (encoded(NOISE, "AVIF"), "JPEG", "RGB"),
}


@pytest.mark.parametrize("kind", SHAPES)
async def test_a_large_image_is_made_smaller(made: Images, kind: str) -> None:
    """With its proportions, and in a format that fits it: what was lossless or has an alpha channel stays lossless."""
    data, became, mode = SHAPES[kind]
    body = shows(uri(data))
    before = copy.deepcopy(body)
    after = await made.shrink(body, entry(max_image_pixels=30_000))
    with decoded(url_of(after)) as image:
        assert (image.size, image.format, image.mode) == ((200, 150), became, mode)
        assert url_of(after).startswith(f"data:image/{became.lower()};base64,")
    assert body == before


async def test_grey_of_16_bits_keeps_its_greys(made: Images) -> None:
    """It becomes 8 bits without turning white."""
    ramp = Image.linear_gradient("L")
    data = encoded(ramp.convert("I").point(lambda value: value * 257).convert("I;16"), "PNG")
    after = await made.shrink(shows(uri(data)), entry(max_image_pixels=64 * 64))
    assert [decoded(url_of(after)).getpixel((9, y)) for y in (0, 32, 63)] == pytest.approx([2, 130, 254], abs=3)


async def test_the_first_frame_of_an_animation_is_taken(made: Images) -> None:
    """The others are not decoded."""
    frames = [Image.new("RGB", (400, 300), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    after = await made.shrink(shows(uri(data)), entry(max_image_pixels=30_000))
    assert decoded(url_of(after)).getpixel((9, 9)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
async def test_orientation_is_kept(made: Images, kind: str) -> None:
    """A picture that was turned by its EXIF stands upright, and is not turned again."""
    image = Image.new("RGB", (400, 200), "red")
    image.paste("blue", (0, 0, 200, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    after = await made.shrink(shows(uri(encoded(image, kind, exif=exif))), entry(max_image_pixels=5000))
    with decoded(url_of(after)) as small:
        assert small.size == (50, 100)
        red, _, blue = small.convert("RGB").getpixel((25, 20))  # type: ignore[misc] # three numbers in this mode
        assert blue > red
        assert 0x0112 not in small.getexif()


async def test_what_is_small_enough_is_left_alone(made: Images) -> None:
    """Byte by byte, and so is everything for a model without a limit."""
    body = shows(uri(SHAPES["photograph"][0]), "https://example.org/x")
    assert await made.shrink(body, entry(max_image_pixels=120_000)) is body
    assert await made.shrink(body, entry()) is body


async def test_only_large_images_are_changed(made: Images) -> None:
    """The others of the request are the very same."""
    body = shows(uri(png()), uri(SHAPES["photograph"][0]), uri(png(5, 5)))
    after = await made.shrink(body, entry(max_image_pixels=10_000))
    parts, came = after["messages"][0]["content"], body["messages"][0]["content"]
    assert [parts[n] is came[n] for n in range(4)] == [True, True, False, True]


async def test_quality_is_that_of_the_entry(made: Images) -> None:
    """A lower one gives fewer bytes."""
    body = shows(uri(SHAPES["photograph"][0]))
    sizes = [
        len(url_of(await made.shrink(body, entry(max_image_pixels=100_000, image_jpeg_quality=quality))))
        for quality in (20, 90)
    ]
    assert sizes[0] < sizes[1] / 2


async def test_base64_of_other_apis_stays_base64(made: Images) -> None:
    """An Anthropic source gets its new media type; a bare string stays bare."""
    coded = base64.b64encode(SHAPES["webp"][0]).decode()
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/webp", "data": coded}}
    body = {"model": "m", "messages": [{"role": "user", "content": [image], "images": [coded]}]}
    after: Any = await made.shrink(body, entry(max_image_pixels=30_000))
    source = after["messages"][0]["content"][0]["source"]
    assert (source["type"], source["media_type"]) == ("base64", "image/jpeg")
    for text in (source["data"], after["messages"][0]["images"][0]):
        assert Image.open(io.BytesIO(base64.b64decode(text, validate=True))).size == (200, 150)


@pytest.mark.parametrize("kind", ["photograph", "screenshot", "bitmap", "tiff"])
async def test_an_image_that_is_cut_off_is_named(made: Images, kind: str) -> None:
    """Where it has to be decoded; the error says which one it is."""
    data = SHAPES[kind][0]
    with pytest.raises(InvalidImage) as caught:
        await made.shrink(shows(uri(png()), uri(data[: len(data) // 2])), entry(max_image_pixels=30_000))
    assert caught.value.message == ("Image 1 at messages[0].content[2] cannot be decoded, it is cut off or damaged.")
    assert (caught.value.status, caught.value.param) == (400, "messages[0].content[2]")
    assert isinstance(caught.value, BadRequest)


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,bm8gaW1hZ2U=",
        "data:image/png;base64,",
        "data:image/png;base64,A",
        "data:image/png,%89PNG",
        "data:image/png;base64,ü",
        "data:",
        "data:image/svg+xml;base64," + base64.b64encode(b"<svg width='9999' height='9999'/>").decode(),
        uri(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n"),
        uri(b"no image" * 10_000),
    ],
)
async def test_what_cannot_be_read_is_the_engines_to_judge(made: Images, url: str) -> None:
    """Its size is not known, so nothing says that it has to be smaller."""
    body = shows(url)
    assert await made.shrink(body, entry(max_image_pixels=1)) is body
    assert image_size(url) is None


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that claims to be large."""
    data = bytearray(png())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


async def test_decode_bombs_are_refused(made: Images) -> None:
    """By what they claim, before a pixel is decoded."""
    began = time.monotonic()
    with pytest.raises(InvalidImage, match=r"Image 0 at .* has 11000 × 11000 pixels, more than the 100000000"):
        await made.shrink(shows(uri(bomb(11_000, 11_000))), entry(max_image_pixels=1_000_000))
    with pytest.raises(InvalidImage, match=r"Image 0 at .* has more pixels than can be read"):
        await made.shrink(shows(uri(bomb(60_000, 60_000))), entry(max_image_pixels=1_000_000))
    assert image_size(uri(bomb(60_000, 60_000))) is None
    assert time.monotonic() - began < 5


async def test_a_large_photograph_is_decoded_at_a_fraction(made: Images) -> None:
    """A JPEG of more pixels than may be decoded is no bomb: it is decoded smaller."""
    data = encoded(Image.new("RGB", (12_000, 10_000), "red"), "JPEG")
    after = await made.shrink(shows(uri(data)), entry(max_image_pixels=1_000_000))
    assert decoded(url_of(after)).size == (1095, 912)


# -- sizes


async def test_sizes_are_told_for_each_message(made: Images) -> None:
    """In order; None where it cannot be told; as an engine gets them if they are made smaller for it."""
    messages: list[Any] = [
        {"role": "user", "content": "words"},
        *shows(uri(png(7, 5)), "https://example.org/x", uri(SHAPES["webp"][0]))["messages"],
        {"role": "user", "content": [{"type": "image_url", "image_url": None}, "odd", {"image_url": uri(png(3, 2))}]},
        "odd",
    ]
    sizes = Pictures().sizes()
    assert await sizes.of(messages) == [[], [(7, 5), None, (400, 300)], [None, (3, 2)], []]
    assert await sizes.of(messages[1:2], 30_000) == [[(7, 5), None, (200, 150)]]


@pytest.mark.parametrize("kind", SHAPES)
async def test_sizes_of_all_formats(made: Images, kind: str) -> None:
    """Whatever the format, with line breaks in the base64 too."""
    coded = base64.encodebytes(SHAPES[kind][0]).decode()
    assert image_size(f"data:image/x;base64,{coded}") == (400, 300)
    assert image_size(coded) == (400, 300)


def test_a_size_behind_long_headers_is_found() -> None:
    """A camera's thumbnail and notes stand before it."""
    exif = Image.Exif()
    exif[0x927C] = "x" * 60_000
    out = encoded(NOISE, "JPEG", exif=exif, icc_profile=bytes(200_000))
    assert image_size(uri(out)) == (400, 300)


def test_a_size_is_told_without_decoding() -> None:
    """A PNG's size comes from its first bytes, of however many."""
    large = uri(png(400, 300) + bytes(20_000_000))
    began = time.process_time()
    assert image_size(large) == (400, 300)
    assert time.process_time() - began < 0.02


def test_what_is_no_image_is_not_decoded_to_its_end() -> None:
    """Its first bytes say so, of however many."""
    looked_at: list[slice] = []

    class Watched(LongText):
        """A text that notes what is read of it."""

        def __getitem__(self, places: slice) -> str:
            """Note it."""
            looked_at.append(places)
            return super().__getitem__(places)

    text = base64.b64encode(b"no image" * 1_000_000)
    assert image_size(Watched([b"data:image/png;base64,", text])) is None
    assert max(places.stop for places in looked_at) < 100_000


# -- the loop goes on


async def test_the_loop_is_never_blocked(made: Images, web: Web) -> None:
    """Not for 50 ms while bodies of 10 MB are measured, made smaller and fetched; what is, is in every round."""
    photograph = encoded(Image.effect_noise((4000, 2500), 100).convert("RGB"), "JPEG", quality=75)
    assert 3_500_000 < len(photograph) < 9_000_000
    body = shows(uri(photograph), uri(photograph + b"x"))
    web.server.answer = reply(photograph)
    rounds = [await longest_pause(lambda: all_work(made, web, body)) for _ in range(5)]
    assert min(rounds) < 0.05, rounds


async def all_work(made: Images, web: Web, body: dict[str, Any]) -> None:
    await Pictures().sizes().of(body["messages"])
    await made.shrink(body, entry(max_image_pixels=1_000_000))
    await admitted(web.images(), shows(*(f"{web.server.url}?{number}" for number in range(2))))


async def longest_pause(work: Callable[[], Coroutine[Any, Any, None]]) -> float:
    """Return the longest time, in seconds, for which the loop did nothing else while some work was done.

    The time for which this thread waited for a processor is other processes' doing, and left out.
    """
    working = asyncio.create_task(work())
    longest = 0.0
    while not working.done():
        before = time.perf_counter() - waited_s()
        await asyncio.sleep(0.001)
        longest = max(longest, time.perf_counter() - waited_s() - before)
    await working
    return longest


def waited_s() -> float:
    """Return for how long this thread has waited for a processor so far; 0 where the kernel does not tell."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
