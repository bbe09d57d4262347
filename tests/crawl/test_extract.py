"""Text, charsets, metadata: wrong labels survive, binaries do not pass, structure stays."""

import gzip
import io
import time

import pytest
from pypdf import PdfWriter

from crawl.errors import ExtractionError
from crawl.extract import extract_html
from crawl.files import extract_file
from crawl.pages import Extracted, Heading, Reason
from crawl.sitemap import parse_sitemap
from crawl.text import clean, content_hash, decode

_URL = "http://a.example/docs/page"
_PROSE = "<p>A paragraph of some length, so that the main text is found without any doubt.</p>"


def extract(body: str, head: str = "") -> Extracted:
    page = f"<html><head>{head}</head><body><main>{body}</main></body></html>"
    return extract_html(page.encode(), url=_URL)


def failure(body: bytes, charset: str | None = None) -> Reason:
    with pytest.raises(ExtractionError) as caught:
        extract_html(body, url=_URL, charset=charset)
    return caught.value.reason


def test_structure_is_kept_as_markdown() -> None:
    found = extract(
        f"<h1>Title</h1>{_PROSE}<h2>Part<a class=headerlink href='#part'>¶</a></h2>{_PROSE}"
        "<ul><li>first</li><li>second</li></ul><pre><span>make</span>   <b>demo</b>\n  twice</pre>"
        f"<h3>Deep</h3>{_PROSE}<table><tr><th>a</th></tr><tr><td>cell</td></tr></table>"
    )
    lines = found.text.splitlines()
    for line in ("# Title", "## Part", "- first", "- second", "make   demo", "  twice", "### Deep"):
        assert line in lines
    assert "```" in lines
    assert "cell" in found.text
    assert found.headings == (Heading(1, "Title"), Heading(2, "Part"), Heading(3, "Deep"))


def test_headings_survive_without_an_element_named_main() -> None:
    sections = "".join(
        f"<div class=sect><div><h2>Part {n}</h2></div><p>Part {n}. {'More. ' * 40}</p></div>"
        for n in range(5)
    )
    page = f"<html><body><div class=chapter>{sections}</div></body></html>"
    text = extract_html(page.encode(), url=_URL).text
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        f"## Part {n}" for n in range(5)
    ]


def test_navigation_is_left_out() -> None:
    page = (
        f"<html><body><nav><p><a href=/x>Elsewhere</a></p></nav><main><h1>T</h1>"
        f"{_PROSE * 5}</main><footer>Copyright nobody</footer></body></html>"
    )
    text = extract_html(page.encode(), url=_URL).text
    assert "Elsewhere" not in text
    assert "Copyright" not in text


@pytest.mark.parametrize("body", ["<p>hi</p>", "Hello world", "<h1>Only</h1>", "<div>x<br>y</div>"])
def test_short_page_has_its_words(body: str) -> None:
    assert extract(body).text


def test_metadata_is_read() -> None:
    head = "<title> A \n title &amp; more</title><link rel=canonical href='../C?utm_source=x'>"
    page = f"<html lang=de-AT><head>{head}</head><body>{_PROSE}</body></html>"
    found = extract_html(page.encode(), url=_URL)
    assert (found.title, found.language) == ("A title & more", "de-AT")
    assert found.canonical == "http://a.example/C"


def test_heading_stands_in_for_a_missing_title() -> None:
    assert extract(f"<h1>The heading</h1>{_PROSE}").title == "The heading"


def test_links_are_canonical_once_and_only_pages() -> None:
    found = extract(
        _PROSE
        + "<a href='b'>1</a><a href='b#x'>2</a><a href=' c d '>3</a><a href='/e?utm_medium=1'>4</a>"
        "<a href='mailto:x@y'>5</a><a href='javascript:1'>6</a><a href='/i.PNG'>7</a>"
        "<a href='#'>8</a><a href='http://[bad/'>9</a>"
        "<a rel='me nofollow' href='/f'>9</a><a href='//o.example/g'>10</a>"
    )
    assert found.links == (
        "http://a.example/docs/b",
        "http://a.example/docs/c%20d",
        "http://a.example/e",
        "http://o.example/g",
    )


def test_base_is_honoured() -> None:
    assert extract("<a href=x>x</a>", "<base href='/other/'>").links == (
        "http://a.example/other/x",
    )


def test_number_of_links_is_bounded() -> None:
    page = "".join(f"<a href=/{n}>x</a>" for n in range(100)).encode()
    assert len(extract_html(page, url=_URL, links_max=10).links) == 10


@pytest.mark.parametrize(
    ("text", "encoding", "label", "meta"),
    [
        ("Grüße aus Köln — schön", "utf-8", "utf-8", ""),
        ("Grüße aus Köln — schön", "utf-8", "iso-8859-1", "iso-8859-1"),
        ("Grüße aus Köln, schön", "cp1252", "utf-8", "utf-8"),
        ("Grüße aus Köln, schön", "latin-1", None, "iso-8859-1"),
        ("“Quotes” of Windows", "cp1252", "iso-8859-1", ""),
        ("你好，世界，这是一个测试页面", "gb18030", "gb2312", ""),
        ("你好，世界，这是一个测试页面", "gb18030", None, "gbk"),
        ("你好，世界", "utf-8", "windows-1252", ""),
        ("こんにちは世界、これはテストです", "shift_jis", "shift_jis", ""),
        ("こんにちは世界、これはテストです", "iso2022_jp", "iso-2022-jp", ""),
        ("Привет, мир! Это проверка страницы", "koi8-r", "koi8-r", ""),
        ("Привет, мир! Это проверка страницы", "windows-1251", "no-such-charset", "windows-1251"),
        ("한국어 문서입니다 그리고 시험", "euc-kr", "euc-kr", ""),
        ("Emoji 🎉👩 and 你好", "utf-16", "utf-8", ""),
        ("Emoji 🎉 and 你好", "utf-16-le", "utf-16-le", ""),
        ("Emoji 🎉 and 你好", "utf-8-sig", "iso-8859-1", ""),
        ("plain words", "ascii", "utf-16", "utf-16"),
        ("plain words", "ascii", "utf-7", "rot13"),
        ("plain words", "ascii", "unicode_escape", ""),
        ("plain words", "ascii", "\x00 \ud800", ""),
    ],
)
def test_charset_is_found_whatever_the_label(
    text: str, encoding: str, label: str | None, meta: str
) -> None:
    page = f"<html><head><meta charset='{meta}'></head><body><p>{text}</p></body></html>"
    assert extract_html(page.encode(encoding), url=_URL, charset=label).text == text


def test_charset_that_nobody_names_is_guessed() -> None:
    text = (
        "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива "
        "по-своему. Всё смешалось в доме Облонских. Жена узнала, что муж был в связи. "
    )
    assert "смешалось в доме" in decode(text.encode("windows-1251"))


def test_control_characters_are_dropped_and_the_rest_survives() -> None:
    page = "<p>a\x00b\x01c\x1f d\u202ee\ufeff 🎉 你好\ufffe e\u0301 &#0; &#x1F; &#xD800; f</p>"
    found = extract_html(page.encode("utf-8", "surrogatepass"), url=_URL)
    assert "abc de 🎉 你好 é" in found.text
    assert not any(ord(character) < 32 and character != "\n" for character in found.text)
    found.text.encode()


def test_clean_is_idempotent() -> None:
    text = "a \r\n\r\n\r\n\r\nb\u2028c\u00a0\n\x00\x85d"
    assert clean(clean(text)) == clean(text) == "a\n\nb\nc\n\nd"


def test_hash_ignores_blanks_and_nothing_else() -> None:
    assert content_hash("a  b\n") == content_hash("a b")
    assert content_hash("a b") != content_hash("ab")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", Reason.EMPTY),
        (b" \r\n ", Reason.EMPTY),
        (b"<html></html>", Reason.EMPTY),
        (b"<!-- nothing -->", Reason.EMPTY),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", Reason.NOT_TEXT),
        (b"\xff\xd8\xff\xe0JFIF", Reason.NOT_TEXT),
        (b"PK\x03\x04rest", Reason.NOT_TEXT),
        (bytes(range(256)) * 64, Reason.NOT_TEXT),
        (b"\x00\x01\x02\x03" * 500, Reason.NOT_TEXT),
        (b"<html>" + b"\x07\x00" * 500, Reason.NOT_TEXT),
    ],
)
@pytest.mark.parametrize("charset", [None, "utf-8", "iso-8859-1"])
def test_what_is_no_text_is_typed(body: bytes, reason: Reason, charset: str | None) -> None:
    assert failure(body, charset) is reason


@pytest.mark.parametrize(
    "body",
    [
        "<div>" * 1000 + "deep",
        "<table><tr><td>" * 100 + "deep",
        "<p>" + "a" * 1_000_000,
        "<a href='" + "x" * 100_000 + "'>long</a><p>words</p>",
        "<![CDATA[<p>words</p>]]><p>words</p>",
        "<?xml version='1.0' encoding='utf-16'?><html><body><p>words</p></body></html>",
        "<p>words &bogus; &#99999999; &#xFFFFFFFFFF;</p>",
        "<svg><p>words</p></svg><math><mtext>more</mtext></math>",
        "<frameset><frame src=a><noframes>words</noframes></frameset>",
        "<!doctype html><!doctype html><html><html><body><body><p>words",
        "<script>if (a < b) {</script><p>words</p><style>p {",
    ],
)
def test_odd_html_is_read_in_reasonable_time(body: str) -> None:
    started = time.monotonic()
    found = extract_html(body.encode(), url=_URL)
    assert found.text or found.links
    assert time.monotonic() - started < 10


def _pdf(text: str, *, password: str | None = None) -> bytes:
    """Write the smallest PDF that shows a line of text."""
    stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Contents 4 0 R/Resources 5 0 R>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
        b"<</Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>",
    ]
    body, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(body))
        body += b"%d 0 obj%s endobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    end = b"xref\n0 6\n0000000000 65535 f \n%strailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF"
    plain = body + end % (table, len(body))
    if password is None:
        return plain
    writer = PdfWriter(clone_from=io.BytesIO(plain))
    writer.encrypt(password, algorithm="RC4-128")
    locked = io.BytesIO()
    writer.write(locked)
    return locked.getvalue()


def test_markdown_keeps_its_text_and_gives_its_title() -> None:
    body = (
        b"---\ntitle: 'The title'\ntags: [a]\n---\n# Head\r\n\r\ntext\x00 here\n"
        b"```\n# no\n```\n## Two ##\n"
    )
    found = extract_file(body, name="notes/a.md")
    assert found.title == "The title"
    assert found.text == "# Head\n\ntext here\n```\n# no\n```\n## Two ##"
    assert found.headings == (Heading(1, "Head"), Heading(2, "Two"))


@pytest.mark.parametrize(
    ("body", "name", "media_type", "title"),
    [
        (b"# Head\n\nwords", "a.md", None, "Head"),
        (b"# Head\n\nwords", "a.md", "text/plain; charset=utf-8", "Head"),
        (b"# no heading here", "plain.txt", None, "plain"),
        (b"<title>T</title><p>words</p>", "a.html", None, "T"),
        (b"<title>T</title><p>words</p>", "", "text/html", "T"),
        (_pdf("Hello world"), "paper.pdf", None, "paper"),
        (_pdf("Hello world"), "paper.bin", "application/octet-stream", "paper"),
    ],
)
def test_file_is_read_by_type_or_name(
    body: bytes, name: str, media_type: str | None, title: str
) -> None:
    found = extract_file(body, name=name, media_type=media_type)
    assert found.title == title
    assert found.text
    assert len(found.content_hash) == 64


def test_text_of_a_pdf_is_read() -> None:
    assert extract_file(_pdf("Hello world"), name="a.pdf").text == "Hello world"


@pytest.mark.parametrize(
    ("body", "name", "reason"),
    [
        (b"", "a.md", Reason.EMPTY),
        (b"\n\n", "a.txt", Reason.EMPTY),
        (b"---\ntitle: only\n---\n", "a.md", Reason.EMPTY),
        (b"words", "a.docx", Reason.UNSUPPORTED_TYPE),
        (b"words", "", Reason.UNSUPPORTED_TYPE),
        (b"\x89PNG\r\n\x1a\n", "a.txt", Reason.NOT_TEXT),
        (b"%PDF-1.4\nrubbish", "a.pdf", Reason.PARSE_FAILED),
        (_pdf("Hello")[:200], "a.pdf", Reason.PARSE_FAILED),
        (_pdf(""), "a.pdf", Reason.EMPTY),
        (_pdf("Secret", password="key"), "a.pdf", Reason.ENCRYPTED),
    ],
)
def test_file_that_gives_no_text_is_typed(body: bytes, name: str, reason: Reason) -> None:
    with pytest.raises(ExtractionError) as caught:
        extract_file(body, name=name)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    "attack",
    [
        b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>',
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY e "&a;&a;&a;&a;&a;&a;">]>',
        b'<!DOCTYPE x SYSTEM "http://127.0.0.1:1/x.dtd">',
    ],
)
def test_sitemap_resolves_no_entity(attack: bytes) -> None:
    body = attack + b"<urlset><url><loc>http://a.example/&e;</loc></url></urlset>"
    found = parse_sitemap(body, url="http://a.example/s.xml", urls_max=10, bytes_max=10_000)
    assert not any("root" in page or "aaaa" in page for page in found.pages)


def test_sitemap_bomb_is_refused() -> None:
    with pytest.raises(ExtractionError) as caught:
        parse_sitemap(
            gzip.compress(b"<urlset>" + b" " * 10_000_000), url=_URL, urls_max=10, bytes_max=10_000
        )
    assert caught.value.reason is Reason.TOO_LARGE


def test_sitemap_as_a_list_and_one_cut_short() -> None:
    listed = parse_sitemap(
        b"http://a.example/1\nhttp://a.example/2\nx", url=_URL, urls_max=9, bytes_max=999
    )
    assert listed.pages[:2] == ("http://a.example/1", "http://a.example/2")
    cut = b"<urlset><url><loc>http://a.example/1</loc></url><url><loc>http://a.ex"
    found = parse_sitemap(cut, url=_URL, urls_max=9, bytes_max=999)
    assert found.pages[0] == "http://a.example/1"
