# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The tables as Markdown and as LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..wording import markdown_table, markdown_text
from .figures import Picture
from .tables import Mark, Table

_MARKDOWN: dict[Mark | None, str] = {"best": "**{}**", "second": "**<ins>{}</ins>**", None: "{}"}
_LATEX: dict[Mark | None, str] = {"best": r"\textbf{{{}}}", "second": r"\textbf{{\underline{{{}}}}}", None: "{}"}
_LATEX_CHARACTERS = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "\N{DAGGER}": r"$\dagger$",
        "\N{MINUS SIGN}": "$-$",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)


def markdown(
    title: str,
    facts: Sequence[tuple[str, str]],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    remarks: Sequence[str],
) -> str:
    """The report as Markdown, with the pictures beside it.

    Args:
        title: heading.
        facts: names and values of what was compared.
        tables: the tables in order.
        pictures: the pictures, in the folder of the report.
        remarks: what is missing and why.

    Returns:
        The text.
    """
    blocks = [f"# {markdown_text(title)}"]
    blocks.append("\n".join(f"- {markdown_text(name)}: {markdown_text(value)}" for name, value in facts))
    for table in tables:
        lines = []
        for row, line in enumerate(_marked(table, markdown_text, _MARKDOWN)):
            if row in table.groups:
                lines.append([f"*{markdown_text(table.groups[row])}*", *[""] * (len(line) - 1)])
            lines.append(line)
        blocks.append(f"## {markdown_text(table.title)}")
        blocks.append(markdown_table([markdown_text(text) for text in table.heading], lines))
        blocks.append(markdown_text(table.note))
    blocks.append("## Figures")
    blocks += [f"![{markdown_text(picture.caption)}]({picture.path.name})" for picture in pictures]
    blocks += [markdown_text(remark) for remark in remarks]
    return "\n\n".join(blocks) + "\n"


def latex(tables: Sequence[Table]) -> str:
    """The tables as LaTeX, to be read into a document that loads booktabs and graphicx.

    Args:
        tables: the tables in order.

    Returns:
        The text: a table environment each, no wider than the text.
    """
    blocks = [r"% \usepackage{booktabs,graphicx}"]
    for table in tables:
        lines = []
        for row, line in enumerate(_marked(table, latex_text, _LATEX)):
            if row in table.groups:
                group = latex_text(table.groups[row])
                lines += [r"\midrule", rf"\multicolumn{{{len(line)}}}{{l}}{{\emph{{{group}}}}} \\"]
            lines.append(" & ".join(line) + r" \\")
        columns = ["p{0.5\\textwidth}" if column in table.prose else "r" for column in range(1, len(table.heading))]
        blocks.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{latex_text(table.title)}. {latex_text(table.note)}}}",
                    rf"\label{{tab:{table.name.removeprefix('table_').replace('_', '-')}}}",
                    r"\resizebox{\textwidth}{!}{%",
                    rf"\begin{{tabular}}{{l{''.join(columns)}}}",
                    r"\toprule",
                    " & ".join(latex_text(name) for name in table.heading) + r" \\",
                    r"\midrule",
                    *lines,
                    r"\bottomrule",
                    r"\end{tabular}}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(blocks) + "\n"


def latex_text(text: str) -> str:
    """A text with the characters escaped that LaTeX reads as commands.

    Args:
        text: any text.

    Returns:
        The escaped text.
    """
    return text.translate(_LATEX_CHARACTERS)


def _marked(table: Table, escape: Callable[[str], str], forms: dict[Mark | None, str]) -> list[list[str]]:
    return [
        [forms[table.marks.get((row, column))].format(escape(text)) for column, text in enumerate(line)]
        for row, line in enumerate(table.rows)
    ]
