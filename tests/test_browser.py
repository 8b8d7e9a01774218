"""The report in Debian's Chromium: `pytest -m browser`. A missing browser fails these tests."""

import json
import shutil

import pytest
from run_folders import write_run, write_selection
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from crgan.report import main

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def driver():
    browser, service = (shutil.which(name) for name in ("chromium", "chromedriver"))
    assert browser, "Chromium or its driver is not installed: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(service))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Write the page of each kind; names try to run a script."""
    root = tmp_path_factory.mktemp("pages")
    evil = "<script>alert(1)<img src=x onerror=alert(2)>"
    runs = [write_run(root / "sweep" / f"seed={seed}{evil}", seed=seed) for seed in (0, 1)]
    folders = {"run": runs[0], "sweep": root / "sweep"}
    names = [*map(str, runs), *(f"gone/model {i} {evil}" for i in range(18))]
    folders["selection"] = write_selection(root / "selection", names, groups=80)
    for folder in folders.values():
        main([str(folder)])
    return {name: (folder / "report.html").resolve().as_uri() for name, folder in folders.items()}


def show(driver, url, width=1400):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get_log("browser")  # empties it
    driver.get(url)
    if found(driver, ".explorer"):
        WebDriverWait(driver, 20).until(lambda d: found(d, ".explorer[data-ready]"))


def found(driver, selector):
    return driver.find_elements("css selector", selector)


def picture(driver):
    return driver.execute_script("return document.querySelector('canvas.image').toDataURL()")


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("kind", ["run", "selection", "sweep"])
def test_a_page_opens_from_disk(driver, pages, kind, width):
    show(driver, pages[kind], width)
    assert driver.get_log("browser") == []
    assert not found(driver, "h1 *, td script, img[src=x]")
    loaded = driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    inner, outer = driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert inner <= outer == width
    nameless = """return [...document.querySelectorAll("img, canvas, input, button, [role]")].filter((e) =>
        !e.closest("[aria-hidden]") && !e.alt && !e.ariaLabel && !e.labels?.length && !e.textContent.trim())
        .map((e) => e.outerHTML.slice(0, 80))"""
    assert driver.execute_script(nameless) == []
    seen = set()
    for scheme in ("light", "dark"):
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        seen.add(driver.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert len(seen) == 2


def test_each_slider_moves_the_picture_by_keyboard(driver, pages):
    show(driver, pages["run"])
    sliders = found(driver, "input[type=range]")
    assert len(sliders) == 4
    for number, slider in enumerate(sliders, 1):
        slider.send_keys(Keys.END, Keys.HOME)
        first = picture(driver)
        assert found(driver, ".state")[0].text == f"c{number} = −1.00"
        slider.send_keys(Keys.END)
        assert picture(driver) != first
        slider.send_keys(Keys.ARROW_LEFT)
        assert slider.get_attribute("aria-valuetext") == f"code {number} at 0.86"
    positions = json.loads(found(driver, ".explorer script")[0].get_attribute("textContent"))
    values = [int(slider.get_attribute("value")) for slider in sliders]
    assert values[:3] == positions["columns"][0][:3]  # the others return to the base image


def test_base_images_the_grid_and_play(driver, pages):
    show(driver, pages["run"])
    first, base = picture(driver), found(driver, "[name=base]")
    base[0].send_keys(Keys.ARROW_RIGHT)
    assert base[1].is_selected()
    assert picture(driver) != first
    strip, grid, play, state = (found(driver, name)[0] for name in (".strip canvas", ".grid", ".play", ".state"))
    assert strip.is_displayed()
    grid.send_keys(" ")
    assert not strip.is_displayed()
    before = state.text
    play.send_keys(" ")
    WebDriverWait(driver, 20).until(lambda d: state.text != before)
    play.send_keys(" ")
    assert "Play" in play.text


def test_hover_and_focus_show_a_pair(driver, pages):
    show(driver, pages["selection"])
    panel = found(driver, ".pair")[0]
    ActionChains(driver).move_to_element(found(driver, ".matrix tbody tr:nth-child(3) td")[4]).perform()
    names = json.loads(found(driver, ".matrix script")[0].get_attribute("textContent"))["names"]
    assert all(part in panel.text for part in (names[2], names[4], "Encoder of"))
    assert len(found(panel, "table")) == 2
    found(driver, ".matrix td[tabindex='0']")[0].send_keys(Keys.ARROW_RIGHT)
    driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert driver.switch_to.active_element.get_attribute("tabindex") == "0"
    assert "with itself" in panel.text
    assert len(found(driver, ".matrix td[tabindex='0']")) == 1


def test_a_heading_sorts_the_table(driver, pages):
    show(driver, pages["sweep"])
    names = "return [...document.querySelectorAll('tbody tr')].map((row) => row.cells[0].textContent.slice(0, 6))"
    button = found(driver, "thead th button")[0]
    assert button.text == "run"
    for order in (["seed=1", "seed=0"], ["seed=0", "seed=1"]):
        button.send_keys(" ")
        assert driver.execute_script(names) == order
    assert found(driver, "th[aria-sort]")[0].get_attribute("aria-sort") == "ascending"
