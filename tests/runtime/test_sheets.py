"""Contact sheets: the drawing, and what stands in the cells."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime import grids, sheets


@pytest.fixture
def w(editor, photo):
    return editor.invert(editor.photo(photo))


def coloured_cells(sheet: Image.Image) -> set[tuple[int, int, int]]:
    return {colour for _, colour in sheet.getcolors(1 << 20)}


def test_every_cell_is_drawn_with_its_labels():
    colours = [["red", "lime"], ["blue", "yellow"]]
    cells = [[Image.new("RGB", (64, 64), c) for c in row] for row in colours]
    sheet = sheets.contact_sheet(cells, ["beta 0.1", "beta 0.2"], ["alpha 1", "alpha 2"], "purple hair")
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), sheets.PAPER} <= coloured_cells(sheet)
    assert sheet.width > 2 * 128
    assert sheet.height > 2 * 128
    assert np.asarray(sheet)[:12].min() < 128  # the title is ink


def test_a_missing_picture_is_grey_and_says_why():
    sheet = sheets.contact_sheet([[Image.new("RGB", (8, 8), "red"), "no channel\nleft"]], ["a"], ["b", "c"])
    assert {(255, 0, 0), sheets.EMPTY} <= coloured_cells(sheet)


def test_large_pictures_are_reduced_and_counts_are_limited():
    sheet = sheets.contact_sheet([[Image.new("RGB", (1024, 1024))]], ["a"], ["b"])
    assert max(sheet.size) < 400
    with pytest.raises(InputError, match="400"):
        sheets.check_cells(21, 20)


def test_tiles_fill_rows():
    faces = [Image.new("RGB", (64, 64), (i * 20, 0, 0)) for i in range(11)]
    sheet = sheets.tile(faces, [str(i) for i in range(11)], columns=4)
    assert sheet.height > 3 * 128
    assert {(i * 20, 0, 0) for i in range(11)} <= coloured_cells(sheet)


def test_the_grid_of_alpha_and_beta(editor, w):
    grid = grids.beta_grid(editor, w, "glasses", alphas=(-3, 0, 3), betas=(0.05, 0.2, 1))
    assert [row.label for row in grid.rows] == ["beta 0.05", "beta 0.2", "beta 1"]
    assert grid.rows[0].channels > grid.rows[1].channels > grid.rows[2].channels == 0
    assert grid.rows[2].styles is None
    np.testing.assert_array_equal(grid.rows[0].styles[1], editor.styles(w)[0])
    assert sheets.EMPTY in coloured_cells(grid.image)


def test_a_grid_without_betas_goes_around_the_recommended_one(editor, w):
    grid = grids.beta_grid(editor, w, "glasses")
    assert [row.step.beta for row in grid.rows] == [0.03, 0.06, 0.09, 0.12]
    assert grid.alphas == grids.DEFAULT_ALPHAS


def test_a_grid_in_which_no_beta_leaves_a_channel_is_an_error(editor, w):
    with pytest.raises(InputError, match="largest relevance"):
        grids.beta_grid(editor, w, "glasses", betas=(0.99, 1))


def test_the_grid_of_prompts(editor, w):
    grid = grids.prompt_grid(editor, w, ["purple hair", "glasses"], alphas=(0, 2))
    assert [row.label for row in grid.rows] == ["purple-hair", "glasses"]
    mapped = grids.prompt_grid(editor, w, ["glasses"], alphas=(0, 1), method="mapper")
    np.testing.assert_array_equal(mapped.rows[0].styles[0], editor.styles(w)[0])


def test_a_beta_out_of_range_is_refused_in_a_grid(editor, w):
    with pytest.raises(InputError, match="0 to 1"):
        grids.beta_grid(editor, w, "glasses", betas=(0.1, 3))
