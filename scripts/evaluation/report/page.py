# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from .figures import Picture
from .tables import Mark, Table

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1rem; background: #fff; color: #1b1f24;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: .6rem 0; border-block: 1px solid #d5dae0;
  font-size: .9rem; }
a { color: #0b57a4; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0 0 1rem; font-size: .9rem; }
dt { color: #57606a; }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { max-height: 85vh; overflow: auto; border: 1px solid #d5dae0; border-radius: 6px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e6e9ed; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead th { position: sticky; top: 0; background: #eef1f4; z-index: 1; }
thead th:first-child { background: #eef1f4; z-index: 2; }
tbody th { font-weight: 500; }
tbody tr:last-child > * { border-bottom: 0; }
tbody tr:hover > * { background: #f6f8fa; }
tbody tr.group > th { background: #eef1f4; font-weight: 400; font-style: italic; }
td.text { text-align: left; white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
u { text-underline-offset: .15em; }
.note, figcaption { color: #444c56; font-size: .85rem; margin: .5rem 0 0; max-width: 62rem; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0 2rem; }
figure img { display: block; max-width: 100%; height: auto; }
@media (max-width: 40rem) {
  body { padding: .6rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .4rem; }
  th, td { padding: .3rem .45rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 9pt; }
  nav { display: none; }
  .scroll { max-height: none; overflow: visible; border: 0; }
  table { font-size: 6.5pt; }
  th, td { padding: 1.5pt 3pt; white-space: normal; }
  th, td, thead th { position: static; }
  tr, figure { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""
_FORMS: dict[Mark | None, str] = {"best": "<b>{}</b>", "second": "<b><u>{}</u></b>", None: "{}"}


def page(
    title: str,
    facts: Sequence[tuple[str, str]],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    remarks: Sequence[str],
) -> str:
    """The report as HTML, with the pictures in it.

    Args:
        title: heading.
        facts: names and values of what was compared.
        tables: the tables in order.
        pictures: the pictures.
        remarks: what is missing and why.

    Returns:
        The text of the page.
    """
    links = [f'<a href="#{escape(table.name)}">{escape(table.title)}</a>' for table in tables]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            f"<h1>{escape(title)}</h1>",
            "<dl>",
            *(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts),
            "</dl>",
            "<nav>",
            *links,
            '<a href="#figures">Figures</a>',
            "</nav>",
            "<main>",
            *(_table(table) for table in tables),
            '<section id="figures">',
            "<h2>Figures</h2>",
            *(_figure(picture) for picture in pictures),
            *(f'<p class="note">{escape(remark)}</p>' for remark in remarks),
            "</section>",
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _table(table: Table) -> str:
    heading = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.heading)
    lines = []
    for row, texts in enumerate(table.rows):
        if row in table.groups:
            group = escape(table.groups[row])
            lines.append(f'<tr class="group"><th scope="rowgroup" colspan="{len(texts)}">{group}</th></tr>')
        cells = [f'<th scope="row">{escape(texts[0])}</th>']
        for column, text in enumerate(texts[1:], start=1):
            content = _FORMS[table.marks.get((row, column))].format(escape(text))
            kind = ' class="text"' if column in table.prose else ""
            cells.append(f"<td{kind}>{content}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join(
        [
            f'<section id="{escape(table.name)}">',
            f"<h2>{escape(table.title)}</h2>",
            '<div class="scroll" tabindex="0">',
            "<table>",
            f"<thead><tr>{heading}</tr></thead>",
            "<tbody>",
            *lines,
            "</tbody>",
            "</table>",
            "</div>",
            f'<p class="note">{escape(table.note)}</p>',
            "</section>",
        ]
    )


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    caption = escape(picture.caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )
