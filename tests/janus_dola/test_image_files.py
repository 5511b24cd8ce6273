import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from janus_dola import DoLaConfig
from janus_dola.image_files import Recipe, file_name, read_recipe, save_image

RECIPE = Recipe("mini", 'ein roter Kreis, 赤い円 😀\n"x"', 2**62, 5.0, 0.7, DoLaConfig([2, 4], 0.25), "float32")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("dola", [None, DoLaConfig(), DoLaConfig([2, 4], 0.25), DoLaConfig(premature_layer="final")])
def test_recipe_survives_in_every_format(ending, dola, tmp_path):
    recipe = Recipe(RECIPE.model, RECIPE.prompt, RECIPE.seed, 5.0, 0.7, dola, "float32")
    path = tmp_path / f"a.{ending}"
    save_image(Image.new("RGB", (64, 64), "red"), path, recipe)
    assert read_recipe(path) == recipe
    assert Image.open(path).size == (64, 64)


@given(prompt=st.text(max_size=3000), index=st.integers(0, 10**7))
def test_file_names_are_safe_for_any_prompt(prompt, index):
    name = file_name(index, prompt, 3)
    assert name.startswith(f"{index}_")
    assert name.endswith("_p3.jpg")
    assert not set(name) & set('/\\:*?"<>|\0\n\r')
    assert len(name.encode()) < 250
    assert "_p3" in name


def test_file_names_are_readable():
    assert file_name(7, "A large red circle, on white!", 0) == "7_A_large_red_circle_on_white_p0.jpg"
    assert file_name(0, "../..", 1, "png") == "0_image_p1.png"


def test_unknown_format(tmp_path):
    with pytest.raises(ValueError, match=r"format must be one of \['jpg', 'png', 'webp'\], got 'gif'"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / "a.gif", RECIPE)


def test_files_without_a_recipe(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="carries no recipe"):
        read_recipe(tmp_path / "a.png")
    exif = Image.Exif()
    exif[270] = "holiday"
    Image.new("RGB", (8, 8)).save(tmp_path / "b.jpg", exif=exif)
    with pytest.raises(ValueError, match="not a recipe of janus-dola: 'holiday'"):
        read_recipe(tmp_path / "b.jpg")
    (tmp_path / "c.png").write_text("text")
    with pytest.raises(ValueError, match="is not an image"):
        read_recipe(tmp_path / "c.png")
