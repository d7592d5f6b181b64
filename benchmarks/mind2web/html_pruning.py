"""Pruning of two web pages to the elements that differ between them, never inside a tag.

The same two pages and budget always give the same texts. Actions are not used, so state-only pairs are cut in the
same way as labelled ones.
"""

from __future__ import annotations

import heapq
import html
import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

VOID = frozenset(
    ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr")
)
UNKNOWN = "unknown"
"""Name given to an element whose own name is invalid (broken HTML)."""
DROPPED = frozenset(("backend_node_id", "bounding_box_rect", "data_pw_testid_buckeye"))
"""Attributes with which a recording tool numbered the elements."""
CUT = "…"
"""Text that marks a cut."""

Size = Callable[[str], int]

_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_MISSES = 200  # number of elements in a row that did not fit, after which the budget counts as spent


class Page:
    """Parsed page: its elements in document order, each with its own text.

    Args:
        source: HTML, however broken.

    Attributes:
        elements: names, opening tags, parents and children of each element.

    Raises:
        ImportError: lxml is not installed.
        ValueError: the source holds no element.
    """

    def __init__(self, source: str) -> None:
        root = _parse(source)
        self.names: list[str] = []
        self.tags: list[str] = []
        self.parents: list[int] = []
        self.children: list[list[int]] = []
        self.texts: list[list[str]] = []
        """Of each element: its text before the first child, and after each child."""
        place: dict[Any, int] = {}
        for node in root.iter():
            if not isinstance(node.tag, str):
                continue  # a comment
            index = place[node] = len(self.names)
            parent = node.getparent()
            attributes = "".join(
                f' {key}="{html.escape(_clean(value))}"'
                for key, value in node.attrib.items()
                if key not in DROPPED and _NAME.fullmatch(key)
            )
            name = node.tag if _NAME.fullmatch(node.tag) else UNKNOWN
            self.names.append(name)
            self.tags.append(f"<{name}{attributes}>")
            self.parents.append(-1 if parent is None else place[parent])
            self.children.append([])
            self.texts.append(_texts(node))
            if parent is not None:
                self.children[place[parent]].append(index)

    def __len__(self) -> int:
        return len(self.names)

    def signatures(self) -> list[str]:
        """Signature of each element, whatever its place: its tag with attributes, and its own text."""
        return [f"{tag}\0{' '.join(' '.join(texts).split())}" for tag, texts in zip(self.tags, self.texts, strict=True)]

    def cost(self, index: int, size: Size, longest: int) -> int:
        """Compute the size of an element's own tags and text."""
        closing = "" if self.names[index] in VOID else f"</{self.names[index]}>"
        text = "".join(self._text(index, slot, longest) for slot in range(len(self.texts[index])))
        return size(self.tags[index] + text + closing)

    def render(self, kept: set[int], longest: int) -> str:
        """Write the kept elements as HTML; texts beyond ``longest`` characters are cut between characters."""
        pieces: list[str] = []
        stack: list[tuple[int, int]] = [(0, 0)] if 0 in kept else []  # element, next child
        while stack:
            index, child = stack.pop()
            if child == 0:
                pieces.append(self.tags[index])
            pieces.append(self._text(index, child, longest))
            if child < len(self.children[index]):
                stack.append((index, child + 1))
                if (below := self.children[index][child]) in kept:
                    stack.append((below, 0))
            elif self.names[index] not in VOID:
                pieces.append(f"</{self.names[index]}>")
        return "".join(pieces)

    def _text(self, index: int, slot: int, longest: int) -> str:
        text = self.texts[index][slot]
        return html.escape(text if len(text) <= longest else text[:longest] + CUT, quote=False)


def prune(before: str, after: str, budget: int, size: Size = len) -> tuple[str, str]:
    """Prune both pages to the elements around those that differ.

    An element differs if the other page has fewer elements of the same tag, attributes and own text. From
    those outward along the tree, nearest in the document first, elements are kept with their ancestors until
    the budget is spent. Where nothing differs, the page is kept from its beginning.

    Args:
        before: HTML of x.
        after: HTML of y.
        budget: of each result, in units of ``size``.
        size: measures a piece of text, in characters or in tokens of some tokenizer.

    Returns:
        Well-formed HTML of at most ``budget``, x and y; empty where not even the root fits.

    Raises:
        ImportError: lxml is not installed.
        ValueError: a page holds no element.
    """
    one, other = _page(before), _page(after)
    first, second = one.signatures(), other.signatures()
    return (
        _cut(one, _changed(first, Counter(second)), budget, size),
        _cut(other, _changed(second, Counter(first)), budget, size),
    )


@lru_cache(maxsize=2)
def _page(source: str) -> Page:
    """The page after one step is the page before the next."""
    return Page(source)


def _changed(signatures: list[str], others: Counter[str]) -> list[int]:
    """Return the elements that the other page has fewer of; of several equal ones, the last."""
    left, changed = Counter(others), []
    for index, signature in enumerate(signatures):
        left[signature] -= 1
        if left[signature] < 0:
            changed.append(index)
    return changed


def _cut(page: Page, changed: list[int], budget: int, size: Size) -> str:
    longest = max(budget // 4, 1)
    whole = set(range(len(page)))
    if size is len and sum(map(len, page.tags)) < budget and len(text := page.render(whole, longest)) <= budget:
        return text
    kept = _select(page, changed, budget, size, longest)
    text = page.render(set(kept), longest)
    while kept and size(text) > budget:  # tokens of a whole can be more than those of its parts
        kept = kept[: len(kept) - max(len(kept) // 20, 1)]
        text = page.render(set(kept), longest)
    return text


def _select(page: Page, changed: list[int], budget: int, size: Size, longest: int) -> list[int]:
    """Return elements in the order in which they were taken, ancestors first."""
    smallest = len("<p></p>") if size is len else 1
    # steps along the tree from a changed element, elements between in document order, the element, its origin
    queue = [(0, 0, index, index) for index in changed] or [(0, 0, 0, 0)]
    heapq.heapify(queue)
    reached = {index for _, _, index, _ in queue}
    kept: dict[int, None] = {}
    misses = 0
    while queue and budget >= smallest and misses < _MISSES:
        distance, _, index, origin = heapq.heappop(queue)
        chain = []
        above = index
        while above >= 0 and above not in kept:
            chain.append(above)
            above = page.parents[above]
        cost = sum(page.cost(place, size, longest) for place in chain)
        misses += 1
        if cost <= budget:
            misses = 0
            budget -= cost
            kept.update(dict.fromkeys(reversed(chain)))
        for near in (page.parents[index], *page.children[index]):
            if near >= 0 and near not in reached:
                reached.add(near)
                heapq.heappush(queue, (distance + 1, abs(near - origin), near, origin))
    return list(kept)


def _texts(node: Any) -> list[str]:
    """Return the text before the first child element and after each; comments are left out, not the text after them."""
    texts = [_clean(node.text)]
    for child in node:
        if isinstance(child.tag, str):
            texts.append(_clean(child.tail))
        else:
            texts[-1] += _clean(child.tail)
    return texts


def _clean(text: str | None) -> str:
    """Replace runs of white space by one blank."""
    if not text:
        return ""
    words = " ".join(text.split())
    if not words:
        return ""
    return (" " if text[0].isspace() else "") + words + (" " if text[-1].isspace() else "")


def _parse(source: str) -> Any:
    try:
        from lxml import etree
        from lxml import html as lxml_html
    except ImportError as error:
        raise ImportError("Mind2Web needs lxml: pip install 'swirl-lightning[mind2web]'") from error
    try:
        parser = lxml_html.HTMLParser(huge_tree=True, remove_pis=True, encoding="utf-8")
        root = lxml_html.document_fromstring(source.encode("utf-8", "replace"), parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError) as error:
        raise ValueError(f"no HTML ({error})") from None
    return root
