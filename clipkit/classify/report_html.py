"""Write a report as a page that needs nothing beside itself, and as a table for notebooks.

Every name is escaped, since names of files and labels may come from anywhere.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from clipkit.classify.figures import ClassFigures, Confusion, Figures, Mistake
from clipkit.classify.report_diagram import reliability_diagram
from clipkit.classify.report_style import SCRIPT, STYLE
from clipkit.classify.report_text import (
    in_percent,
    interval_in_words,
    main_figures,
    obtained,
    sentences,
    weakest_first,
)
from clipkit.data.thumbnails import thumbnail
from clipkit.page import as_html, frame
from clipkit.plurals import number_of_classes

_CONFUSIONS = 30
_MISTAKES = 24
_FEW = 5  # rows in a notebook
_PARTS = 3  # of a path: all of it would tell strangers of the machine


def as_page(figures: Figures, title: str) -> str:
    """Return a whole page, with small copies of the images of the worst mistakes.

    Args:
        figures: what it shows.
        title: of the page.
    """
    skipped = [_shortened(name, problem) for name, problem in figures.estimate.skipped]
    figures = replace(figures, estimate=replace(figures.estimate, skipped=skipped))
    parts = [
        f"<h1>{as_html(title)}</h1>",
        f'<p class="how quiet">{as_html(sentences(figures))}</p>',
        _cards(figures),
        _classes(figures.classes),
        f'<div class="pair">{_confusions(figures)}{_reliability(figures)}</div>',
        _mistakes(figures),
        _skipped(figures.estimate.skipped),
    ]
    body = "\n".join(part for part in parts if part)
    head, foot = frame(title, style=STYLE, script=SCRIPT)
    return f"{head}{body}{foot}"


def as_table(figures: Figures) -> str:
    """Return a small table for notebooks: the main figures, the weakest classes, the confusions."""
    rows = [_row(name, value) for name, value in main_figures(figures).items()]
    rows.insert(1, _row("", interval_in_words(figures)))
    rows.append(_row("images", f"{figures.images:,}, {obtained(figures)}"))
    for row in weakest_first(figures.classes)[:_FEW]:
        rows.append(_row(f"recall of {row.label}", in_percent(row.recall)))
    for pair in figures.confusions[:_FEW]:
        rows.append(_row(f"true {pair.true}, predicted {pair.predicted}", f"{pair.count:,}"))
    return f"<table><caption>Report</caption><tbody>{''.join(rows)}</tbody></table>"


def _row(name: str, value: str) -> str:
    return (
        f"<tr><th style='text-align: left'>{as_html(name)}</th>"
        f"<td style='text-align: left'>{as_html(value)}</td></tr>"
    )


def _cards(figures: Figures) -> str:
    """Return the main figures, each in a card, the accuracy with its interval on a scale."""
    low, high = figures.interval
    values = main_figures(figures)
    accuracy = values.pop("accuracy")
    width = max(high - low, 0.005)  # or a narrow one would not be seen
    scale = (
        f'<div class="scale" aria-hidden="true"><span style="left:{low:.2%};width:{width:.2%}">'
        f'</span><i style="left:{figures.accuracy:.2%}"></i></div>'
    )
    measured = [row for row in figures.classes if row.images]
    cards = [
        f'<div class="figure wide"><span class="name">accuracy</span><strong>{accuracy}</strong>'
        f'{scale}<span class="more">{interval_in_words(figures)}</span></div>'
    ]
    cards += [_card(name, value) for name, value in values.items()]
    cards.append(_card("images", f"{figures.images:,}", f"of {number_of_classes(len(measured))}"))
    return f'<div class="figures">{"".join(cards)}</div>'


def _card(name: str, value: str, more: str = "") -> str:
    below = f'<span class="more quiet">{more}</span>' if more else ""
    return (
        f'<div class="figure"><span class="name">{name}</span><strong>{value}</strong>{below}</div>'
    )


def _classes(classes: Sequence[ClassFigures]) -> str:
    rows = [
        [
            _cell(row.label),
            _number(f"{row.images:,}", row.images),
            _share(row.precision),
            _share(row.recall),
        ]
        for row in weakest_first(classes)
    ]
    return _section(
        "Classes",
        "The weakest first. Recall: how many images of a class are found. Precision: how many of "
        "those that are taken for it are right. A head of a column sorts by it.",
        _table(["class"], ["images", "precision", "recall"], rows, is_sortable=True),
    )


def _confusions(figures: Figures) -> str:
    pairs = figures.confusions
    if not pairs:
        return _section("Confusions", "No image was taken for another class.", "")
    images = {row.label: row.images for row in figures.classes}
    rows = [_confusion(pair, images[pair.true]) for pair in pairs[:_CONFUSIONS]]
    shown = f" The first {_CONFUSIONS} of {len(pairs):,} pairs." if len(pairs) > len(rows) else ""
    return _section(
        "Confusions",
        "How many images of the true class, which their label says, the classifier predicted as "
        f"another one, and which share of the true class that is.{shown}",
        _table(["true", "predicted"], ["images", "share"], rows, is_sortable=True),
    )


def _confusion(pair: Confusion, images: int) -> list[str]:
    count = _number(f"{pair.count:,}", pair.count)
    return [_cell(pair.true), _cell(pair.predicted), count, _share(pair.count / images)]


def _reliability(figures: Figures) -> str:
    return _section(
        "Probabilities",
        "On the dashed line probabilities hold: of images that are said to be one class by 80%, "
        "80% are. Below it the classifier is too sure. Each dot is a range of probabilities, with "
        "its 95% interval; the bars below count its images.",
        reliability_diagram(figures.bins),
    )


def _mistakes(figures: Figures) -> str:
    """Return the worst mistakes, with their images where these can be read."""
    mistakes = figures.mistakes[:_MISTAKES]
    if not mistakes:
        return ""
    items = "".join(_mistake(mistake, _image(figures, mistake)) for mistake in mistakes)
    wrong = sum(pair.count for pair in figures.confusions)
    shown = "All mistakes" if wrong == len(mistakes) else f"The {len(mistakes)} of {wrong:,}"
    return _section(
        "Worst mistakes",
        f"{shown}, the surest first: the true class, which the label says, and the predicted one, "
        "with their probabilities. If the label is what is wrong, mend it and fit again.",
        f'<ul class="images">{items}</ul>',
    )


def _mistake(mistake: Mistake, uri: str | None) -> str:
    image = "" if uri is None else f'<img src="{uri}" alt="" loading="lazy">'
    name = f"image {mistake.index}"
    if mistake.path is not None:
        name = _end_of(mistake.path)
    return (
        f"<li>{image}<div>"
        f'<div class="said"><i>true</i><b>{as_html(mistake.true)}</b>'
        f"<span>{mistake.true_probability:.1%}</span></div>"
        f'<div class="said wrong"><i>predicted</i><b>{as_html(mistake.predicted)}</b>'
        f"<span>{mistake.predicted_probability:.1%}</span></div>"
        f'<div class="file">{as_html(name)}</div></div></li>'
    )


def _image(figures: Figures, mistake: Mistake) -> str | None:
    """Return a small copy of the image of a mistake as a data URI, if it can be read."""
    if figures.image_of is not None:
        return thumbnail(figures.image_of(mistake.index))
    return None if mistake.path is None else thumbnail(mistake.path)


def _end_of(path: str) -> str:
    """Return the last parts of a path."""
    return "/".join(PurePath(path).parts[-_PARTS:])


def _shortened(name: str, problem: str) -> tuple[str, str]:
    """Return the end of a path, and a problem in which it stands, as it is or with escapes."""
    end = _end_of(name)
    for path in (name, repr(name)[1:-1]):
        problem = problem.replace(path, end)
    return end, problem


def _skipped(skipped: Sequence[tuple[str, str]]) -> str:
    if not skipped:
        return ""
    rows = [[_cell(name), _cell(problem)] for name, problem in skipped]
    return _section("Left out", "", _table(["image", "why it cannot be read"], [], rows))


def _section(title: str, about: str, content: str) -> str:
    words = f'<p class="quiet">{about}</p>' if about else ""
    return f"<section><h2>{title}</h2>{words}{content}</section>"


def _table(
    texts: Sequence[str],
    numbers: Sequence[str],
    rows: Sequence[Sequence[str]],
    is_sortable: bool = False,
) -> str:
    """Return a table: columns of texts, then of numbers, and the cells of each row as HTML."""
    tag = 'button type="button"' if is_sortable else "span"
    end = "button" if is_sortable else "span"
    heads = [f'<th scope="col"><{tag}>{name}</{end}></th>' for name in texts]
    heads += [f'<th scope="col" class="number"><{tag}>{name}</{end}></th>' for name in numbers]
    lines = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{"".join(heads)}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )


def _cell(text: str) -> str:
    return f"<td>{as_html(text)}</td>"


def _number(shown: str, value: float) -> str:
    return f'<td class="number" data-value="{value:.6g}">{shown}</td>'


def _share(share: float | None) -> str:
    """Return a cell with a share and a bar behind it. One that there is none of sorts as lowest."""
    value = -1.0 if share is None else share
    return (
        f'<td class="number bar" data-value="{value:.6g}" style="--share:{max(value, 0):.1%}">'
        f"{in_percent(share)}</td>"
    )
