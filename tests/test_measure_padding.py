"""scripts/measure_padding.py: at the quality that is wanted, or at the default one."""

import pytest

from scripts import measure_padding
from tests.toys import toy_image
from utils.cli import UserError
from utils.data.images import to_uint8, write_png


def test_the_quality_of_a_variable_rate_model(toy_checkpoint, tmp_path, capsys, monkeypatch):
    write_png(tmp_path / "images" / "a.png", to_uint8(toy_image(70, 90)))
    flags, used = [f"--data={tmp_path / 'images'}", f"--checkpoint={toy_checkpoint}"], []
    monkeypatch.setattr(measure_padding, "code", lambda model, x, mode, quality: used.append(quality) or 1)
    measure_padding.main(flags)
    assert set(used) == {50} and "evaluated at quality 50; --quality chooses" in capsys.readouterr().err
    measure_padding.main([*flags, "--quality", "30"])
    assert used[-1] == 30
    with pytest.raises(UserError, match="quality 500 is outside 1..100"):
        measure_padding.main([*flags, "--quality", "500"])
