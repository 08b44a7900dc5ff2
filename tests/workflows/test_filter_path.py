import numpy as np
import pytest
from PIL import Image
from skimage import data

from repertory.data.pictures import read_picture, write_picture
from repertory.workflows.filtering import filter_path


def photograph(height=40, width=48):
    return data.astronaut()[: height * 4 : 4, : width * 4 : 4]


@pytest.fixture
def radiance():
    """Linear radiance merged from four exposures of a photograph, each clipped to 8 bits."""
    scene = (photograph() / 255.0) ** 2.2 * np.geomspace(0.1, 20, 48)[None, :, None]
    total, weight = 0.0, 0.0
    for exposure in (0.05, 0.25, 1.0, 4.0):
        shot = np.rint(np.clip(scene * exposure, 0, 1) * 255) / 255
        trust = 1e-3 + np.where((shot > 0.02) & (shot < 0.98), 1.0, 0.0)
        total, weight = total + trust * shot / exposure, weight + trust
    return (total / weight).astype(np.float32)


@pytest.mark.parametrize("ending", [".hdr", ".exr"])
def test_high_dynamic_range_is_read_back_and_tone_mapped(tmp_path, radiance, ending):
    if ending == ".exr":
        pytest.importorskip("OpenEXR")
    write_picture(tmp_path / f"scene{ending}", radiance)
    np.testing.assert_allclose(read_picture(tmp_path / f"scene{ending}"), radiance, atol=radiance.max() / 100)
    (written,) = filter_path(tmp_path / f"scene{ending}", tmp_path / "out", application="tonemap", levels=5)
    mapped = read_picture(written)
    assert written.suffix == ".png"
    assert mapped.dtype == np.uint8
    assert mapped.std() > 20


@pytest.mark.parametrize("application", ["detail", "abstraction", "tonemap", "dehalftone", "enhance"])
def test_every_application_writes_a_changed_picture(tmp_path, application):
    write_picture(tmp_path / "a.png", photograph())
    (written,) = filter_path(tmp_path / "a.png", tmp_path / "b.png", application=application, levels=4)
    assert read_picture(written).shape == photograph().shape
    assert not np.array_equal(read_picture(written), photograph())


def test_sixteen_bits_and_alpha_survive(tmp_path):
    picture = np.random.default_rng(0).integers(0, 65536, (30, 32, 4)).astype(np.uint16)
    write_picture(tmp_path / "a.png", picture)
    assert np.array_equal(read_picture(tmp_path / "a.png"), picture)
    (written,) = filter_path(tmp_path / "a.png", tmp_path / "b.png")
    assert read_picture(written).dtype == np.uint16
    assert np.array_equal(read_picture(written)[..., 3], picture[..., 3])


def test_a_folder_is_filtered_with_progress_and_comparison(tmp_path):
    for name in ("in/a.png", "in/deeper/b.jpg"):
        write_picture(tmp_path / name, photograph())
    seen = []
    written = filter_path(
        tmp_path / "in", tmp_path / "out", levels=3, compare=True, progress=lambda d, t: seen.append((d, t))
    )
    names = [str(path.relative_to(tmp_path / "out")) for path in written]
    assert names == ["a.png", "a-compare.png", "deeper/b.jpg", "deeper/b-compare.jpg"]
    assert read_picture(written[1]).shape == (40, 96, 3)
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_bad_input_meets_one_sentence(tmp_path):
    out = tmp_path / "out.png"
    with pytest.raises(FileNotFoundError, match="is not there"):
        filter_path(tmp_path / "none.png", out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no picture in"):
        filter_path(tmp_path / "empty", tmp_path / "out")
    Image.fromarray(photograph()).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:700])
    with pytest.raises(ValueError, match=r"cannot read the picture .*cut\.jpg"):
        filter_path(tmp_path / "cut.jpg", out)
    write_picture(tmp_path / "one.png", np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(ValueError, match=r"one\.png: levels is 11, but an image of 1x1"):
        filter_path(tmp_path / "one.png", out)
    write_picture(tmp_path / "nan.tif", np.full((30, 30), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"nan\.tif: it holds NaN"):
        filter_path(tmp_path / "nan.tif", out)
    with pytest.raises(ValueError, match="did you mean detail"):
        filter_path(tmp_path / "one.png", out, application="details")
    with pytest.raises(ValueError, match="is the input itself"):
        filter_path(tmp_path / "one.png", tmp_path / "one.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write"):
        filter_path(tmp_path / "whole.jpg", tmp_path / "file" / "out.png", levels=2)
    assert not out.exists()
