"""The page of eval.py --report in a real browser, opened from disk: the slider, the table, the viewer.

apt-get install chromium chromium-driver
python -m pytest -m browser
"""

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

import eval as program

pytestmark = pytest.mark.browser

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1200,1000"),
)
SIZE = 128


@pytest.fixture(scope="module")
def report(toy_checkpoint, tmp_path_factory):
    """A report on a red image, a wider and greener one, and one of an awkward name; at two qualities."""
    data, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("results") / "report"
    Image.new("RGB", (SIZE, SIZE), (250, 0, 0)).save(data / "image10.png")
    Image.new("RGB", (200, SIZE), (20, 200, 0)).save(data / "image9.png")
    Image.new("RGB", (64, 64), (0, 0, 90)).save(data / "<img src=x onerror=alert(1)>.png")
    flags = ["--data", data, "--report", folder, "--output", folder.parent / "r.json", "--quality", 20, 80]
    assert program.main([str(flag) for flag in ["--checkpoint", toy_checkpoint, *flags]]) == 0
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a window, with a profile of its own."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.fail("these tests need a browser: apt-get install chromium chromium-driver; or leave out -m browser")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        yield chrome


@pytest.fixture
def page(browser, report):
    """The page, freshly loaded, showing the red image."""
    browser.get((report / "index.html").as_uri())
    Select(browser.find_element(By.ID, "image")).select_by_visible_text("image10.png")
    wait_for_images(browser)
    return browser


def wait_for_images(page):
    """Until every picture is there; fails where one cannot be loaded."""
    widths = page.execute_async_script(
        "const done = arguments[0]; Promise.all([...document.images].map((image) => image.decode()"
        ".then(() => image.naturalWidth, () => 0))).then(done)"
    )
    assert len(widths) == 3 and all(widths)


def redness(page) -> np.ndarray:
    """Whether each column of the stage shows the red original, in the browser's own picture of it."""
    picture = Image.open(io.BytesIO(page.find_element(By.ID, "stage").screenshot_as_png)).convert("RGB")
    row = np.asarray(picture)[picture.height // 4].astype(int)
    return (abs(row - (250, 0, 0)) < 10).all(1)


def column(page, number: int) -> list[str]:
    return [row.find_elements(By.TAG_NAME, "td")[number].text for row in rows(page)]


def rows(page):
    return page.find_elements(By.CSS_SELECTOR, "#images tbody tr")


def click_heading(page, text: str):
    """Click a heading of the table; return its cell."""
    (cell,) = [c for c in page.find_elements(By.CSS_SELECTOR, "#images th") if c.text.split()[:1] == text.split()[:1]][
        :1
    ]
    cell.find_element(By.TAG_NAME, "button").click()
    return cell


def test_the_page_loads_without_errors_and_without_a_network(page):
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    requests = [entry["message"] for entry in page.get_log("performance") if 'requestWillBeSent"' in entry["message"]]
    assert requests and not [text for text in requests if '"url":"http' in text]
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert len(page.find_elements(By.CSS_SELECTOR, "svg[role=img] title")) == 2  # a tooltip a point; no MS-SSIM here


def test_dragging_the_line_shows_more_or_less_of_the_original(page):
    stage = page.find_element(By.ID, "stage")
    width = stage.size["width"]
    assert redness(page).mean() == pytest.approx(0.5, abs=0.02)
    for share in (0.8, 0.25):
        drag = ActionChains(page).move_to_element(stage).click_and_hold()
        drag.move_by_offset(round((share - 0.5) * width), 0).release().perform()
        shown = redness(page)
        assert shown.mean() == pytest.approx(share, abs=0.02)
        assert shown[: int((share - 0.02) * len(shown))].all() and not shown[int((share + 0.02) * len(shown)) :].any()
        assert float(page.find_element(By.ID, "slider").get_attribute("value")) == pytest.approx(100 * share, abs=1)
    ActionChains(page).move_to_element(stage).perform()  # no button held
    assert redness(page).mean() == pytest.approx(0.25, abs=0.02)


def test_the_slider_works_with_the_mouse_and_with_keys(page):
    slider = page.find_element(By.ID, "slider")
    ActionChains(page).drag_and_drop_by_offset(slider, round(0.3 * slider.size["width"]), 0).perform()
    assert redness(page).mean() == pytest.approx(0.8, abs=0.03)
    slider.send_keys(Keys.END)
    assert redness(page)[:-3].all()  # but for the line itself
    slider.send_keys(Keys.HOME)
    assert not redness(page).any()
    slider.send_keys(Keys.ARROW_RIGHT * 5)
    assert float(slider.get_attribute("value")) == pytest.approx(0.5)


def test_the_table_sorts_by_numbers_and_by_names(page):
    heading = click_heading(page, "image")
    assert heading.get_attribute("aria-sort") == "ascending"
    names = column(page, 0)
    assert names.index("image9.png") < names.index("image10.png") and sorted(names) != names
    for label, number in (("bpp", 3), ("PSNR", 6)):
        for order in ("ascending", "descending"):
            heading = click_heading(page, label)
            values = [float(text) for text in column(page, number)]
            assert values == sorted(values, reverse=order == "descending") and len(set(values)) > 2
            assert heading.get_attribute("aria-sort") == order
    sorted_headings = page.find_elements(By.CSS_SELECTOR, "#images th[aria-sort]")
    assert len(sorted_headings) == 1
    click_heading(page, "size")
    assert [text.split("×")[0] for text in column(page, 2)] == ["64", "64", "128", "128", "200", "200"]


def test_a_click_on_a_name_shows_that_image_at_that_point(page):
    click_heading(page, "size")
    row = rows(page)[-1]
    name, point = (cell.text for cell in row.find_elements(By.TAG_NAME, "td")[:2])
    row.find_element(By.TAG_NAME, "button").click()
    wait_for_images(page)
    selected = [Select(page.find_element(By.ID, id)).first_selected_option.text for id in ("image", "point")]
    assert selected == [name, point] == ["image9.png", point]
    assert row.get_attribute("aria-current") is not None
    bpp = row.find_elements(By.TAG_NAME, "td")[3].text
    assert page.find_element(By.ID, "numbers").text.startswith(f"{bpp} bpp")
    assert page.find_element(By.ID, "original").get_property("naturalWidth") == 200
    map_sides = [page.find_element(By.ID, "bits").get_property(f"natural{side}") for side in ("Width", "Height")]
    assert map_sides == [16, 8]  # 200 x 128 padded to 256 x 128
    assert page.find_element(By.ID, "top").text.endswith(" bits")


def test_previous_and_next_go_round_and_awkward_names_are_text(page):
    name = Select(page.find_element(By.ID, "image"))
    seen = []
    for _ in range(3):
        page.find_element(By.ID, "next").click()
        wait_for_images(page)
        seen.append(name.first_selected_option.text)
    assert seen[-1] == "image10.png" and "<img src=x onerror=alert(1)>.png" in seen and len(set(seen)) == 3
    page.find_element(By.ID, "previous").click()
    assert name.first_selected_option.text == seen[-2]
    assert len(page.find_elements(By.TAG_NAME, "img")) == 3


def test_full_size_shows_a_screen_pixel_a_pixel(page):
    page.find_element(By.ID, "pixels").click()
    assert page.find_element(By.ID, "stage").size == {"width": SIZE, "height": SIZE}


@pytest.mark.parametrize("scheme, bright", [("light", True), ("dark", False)])
def test_light_and_dark(page, scheme, bright):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    pixels = np.asarray(Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("L"))
    assert (np.median(pixels) > 200) == bright
    assert np.ptp(pixels[:200]) > 150  # text stands out
