"""Labelled contact sheets, drawn with Pillow and its built-in font."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ..engines.errors import InputError

INK, PAPER, EMPTY = (32, 32, 32), (255, 255, 255), (228, 228, 228)
GAP = 4
MAX_CELLS = 400

Cell = Image.Image | str  # a picture, or why there is none


def contact_sheet(
    rows: Sequence[Sequence[Cell]], row_labels: Sequence[str], column_labels: Sequence[str], title: str = ""
) -> Image.Image:
    """One picture of all cells, labels left and above, the title on top.

    Small pictures are enlarged to 128 px or more, large ones reduced to 256 px. Raises InputError beyond 400 cells.
    """
    check_cells(len(rows), len(column_labels))
    side = _cell_side(rows)
    font = ImageFont.load_default(size=max(12, side // 10))
    line = round(font.size * 1.5) if isinstance(font, ImageFont.FreeTypeFont) else 16
    left = max((_width(font, label) for label in row_labels), default=0) + 3 * GAP
    top = line * bool(title) + line * any(column_labels) + GAP
    width = max(left + len(column_labels) * (side + GAP), _width(font, title) + 2 * GAP)
    sheet = Image.new("RGB", (width, top + len(rows) * (side + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, line // 2), title, INK, font, anchor="lm")
    for i, label in enumerate(column_labels):
        draw.text((left + i * (side + GAP) + side // 2, top - line // 2 - GAP // 2), label, INK, font, anchor="mm")
    for j, (label, row) in enumerate(zip(row_labels, rows, strict=True)):
        y = top + j * (side + GAP)
        draw.text((left - 2 * GAP, y + side // 2), label, INK, font, anchor="rm")
        for i, cell in enumerate(row):
            _draw_cell(sheet, draw, cell, (left + i * (side + GAP), y), side, font)
    return sheet


def tile(pictures: Sequence[Image.Image], labels: Sequence[str], title: str = "", columns: int = 8) -> Image.Image:
    """Pictures in reading order, `columns` to a row, labelled by the first label of the row and a count."""
    columns = min(columns, max(1, len(pictures)))
    rows: list[list[Cell]] = [list(pictures[i : i + columns]) for i in range(0, len(pictures), columns)]
    names = [labels[i] for i in range(0, len(pictures), columns)]
    return contact_sheet(rows, names, [f"+{i}" for i in range(columns)], title)


def check_cells(rows: int, columns: int) -> None:
    """InputError unless a sheet of rows x columns is bearable."""
    if not 1 <= rows * columns <= MAX_CELLS:
        raise InputError(f"a sheet of {rows} x {columns} cells; expected 1 to {MAX_CELLS} cells")


def _cell_side(rows: Sequence[Sequence[Cell]]) -> int:
    """A whole multiple of a small picture's side, so that enlarged pixels stay square."""
    side = max((cell.width for row in rows for cell in row if isinstance(cell, Image.Image)), default=128)
    return min(256, side * -(-128 // side))


def _draw_cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    cell: Cell,
    at: tuple[int, int],
    side: int,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    if isinstance(cell, Image.Image):
        sheet.paste(cell.resize((side, side), Image.Resampling.BICUBIC), at)
        return
    draw.rectangle((*at, at[0] + side - 1, at[1] + side - 1), EMPTY)
    draw.multiline_text((at[0] + side // 2, at[1] + side // 2), cell, INK, font, anchor="mm", align="center")


def _width(font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str) -> int:
    return int(font.getlength(text)) + 1 if text else 0
