"""Reads a page as a strict reader would."""

from __future__ import annotations

import html.parser

VOID = {"meta", "link", "img", "br"}


class Page(html.parser.HTMLParser):
    """What is on a page; every element that is opened must be closed.

    Attributes:
        text: What is read aloud: text, and alternatives of pictures.
        rows: Cells of each table row.
        images: Sources of pictures.
        captions: Of the figures.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.captions: list[str] = []
        self._parts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._parts).replace("\N{NO-BREAK SPACE}", " ").split())

    @property
    def images(self) -> list[str]:
        return [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        self._parts += [value or "" for name, value in attributes if name in ("alt", "aria-label")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "figcaption":
            self.captions.append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self._parts.append(data)
        clean = data.replace("\N{NO-BREAK SPACE}", " ")
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += clean
        elif "figcaption" in self.open:
            self.captions[-1] += clean
