"""The live page in a browser: what a person sees and does."""

import contextlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edge_mrcnn.runtime.sinks import SinkOptions
from edge_mrcnn.runtime.sinks.web import WebSink
from tests.runtime.sinks.web.client import NAMES, camera, found, frame, open_page, run_of, wait_until

pytest.importorskip("selenium", reason="selenium, which drives the browser, is not installed")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not (DRIVER and BROWSER), reason="chromium and chromedriver are not installed")


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    # Root, as in containers, has no sandbox; /dev/shm is small there.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """At a desktop's width, and on an empty page before and after."""
    chromium.get("about:blank")
    chromium.get_log("browser")
    resize(chromium, 1280, 900)
    yield chromium
    chromium.get("about:blank")


def resize(browser: webdriver.Chrome, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


class Cameras:
    """Cameras that film until the end of the test: a bar that moves."""

    def __init__(self, *names: str) -> None:
        self.status = run_of(*(camera(name, counts={"mug": 2, "bowl": 1}) for name in names))
        self.names = list(names)
        self.sink: WebSink | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._film)

    def open(self, uri: str = "mjpeg://127.0.0.1:0") -> WebSink:
        self.sink = WebSink(uri, SinkOptions(class_names=NAMES, status=lambda: self.status))
        return self.sink

    def _film(self) -> None:
        index = 0
        while not self._over.wait(0.03):
            index += 1
            for name in self.names:
                picture = np.full((48, 64, 3), 60, np.uint8)
                picture[:, 4 * index % 64 :][:, :8] = (255, 160, 40)
                with contextlib.suppress(Exception):  # closed in the middle of a test
                    if self.sink is not None:
                        self.sink.write(frame(camera=name, index=index), found(labels=(1, 1, 2)), picture)

    def __enter__(self) -> "Cameras":
        self.open()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self.sink is not None:
            self.sink.close()


def text_of(browser: webdriver.Chrome, selector: str) -> str:
    return str(browser.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector))


def wait_for_text(browser: webdriver.Chrome, selector: str, text: str) -> None:
    wait_until(lambda: text in text_of(browser, selector), f"{text!r} in {selector}")


def cards(browser: webdriver.Chrome) -> list[Any]:
    return browser.find_elements(By.CSS_SELECTOR, ".card")


def shown(browser: webdriver.Chrome) -> list[str]:
    return [card.find_element(By.CSS_SELECTOR, ".name").text for card in cards(browser) if card.is_displayed()]


def wait_for_motion(browser: webdriver.Chrome, name: str) -> None:
    """Until the picture of a camera on the screen is not what it was."""

    def shot() -> bytes | None:
        found = [card for card in cards(browser) if card.find_element(By.CSS_SELECTOR, ".name").text == name]
        return bytes(found[0].find_element(By.CSS_SELECTOR, "canvas").screenshot_as_png) if found else None

    wait_until(lambda: browser.find_elements(By.CSS_SELECTOR, ".card.painted"), "a first picture")
    first = wait_until(shot, f"camera {name}")
    wait_until(lambda: shot() != first, f"motion of camera {name}")


def complaints(browser: webdriver.Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def test_every_camera_moves_and_is_told_about(browser: webdriver.Chrome) -> None:
    names = ("front", "left", "rear")
    with Cameras(*names) as run:
        browser.get(run.sink.url)
        for name in names:
            wait_for_motion(browser, name)
        assert [card.find_element(By.CSS_SELECTOR, ".name").text for card in cards(browser)] == list(names)
        card = cards(browser)[0].text
        for text in (
            "live",
            "12.5",
            "40 / 60",
            "mug",
            "2",
            "64 \N{MULTIPLICATION SIGN} 48",
            "100 frames",
            "7 dropped",
            "3 reconnects",
        ):
            assert text in card, card
        chip = browser.find_element(By.CSS_SELECTOR, ".counts i").value_of_css_property("background-color")
        assert chip.replace(" ", "") in ("rgba(52,132,240,1)", "rgb(52,132,240)")  # the colour of its masks
        assert text_of(browser, "#model") == "tabletop"
        assert text_of(browser, "#health") == "All 3 cameras live"
        assert "infer" in text_of(browser, "#stages")
        assert complaints(browser) == []


def test_a_lost_camera_is_grey_and_says_since_when(browser: webdriver.Chrome) -> None:
    with Cameras("front", "left") as run:
        browser.get(run.sink.url)
        wait_for_motion(browser, "left")
        run.names.remove("left")
        run.status = run_of(camera("front"), camera("left", "lost", "no packet for 5 s"))
        wait_for_text(browser, ".card[data-state=lost] .veil", "no packet for 5 s")
        assert "lost for" in text_of(browser, ".card[data-state=lost] .state")
        assert text_of(browser, "#health") == "1 of 2 cameras lost"
        assert browser.title.endswith("1 of 2 cameras lost")
        grey = browser.find_element(By.CSS_SELECTOR, ".card[data-state=lost].painted canvas")
        wait_until(lambda: "grayscale(1)" in grey.value_of_css_property("filter"), "the last picture in grey")
        wait_for_motion(browser, "front")
        run.names.append("left")
        run.status = run_of(camera("front"), camera("left"))
        wait_for_text(browser, "#health", "Both cameras live")
        wait_for_motion(browser, "left")
        assert complaints(browser) == []


def test_a_camera_can_be_enlarged(browser: webdriver.Chrome) -> None:
    with Cameras("front", "left", "rear") as run:
        browser.get(run.sink.url)
        wait_for_motion(browser, "left")
        body = browser.find_element(By.TAG_NAME, "body")
        small = cards(browser)[1].find_element(By.CSS_SELECTOR, ".screen").size["width"]
        cards(browser)[1].find_element(By.CSS_SELECTOR, ".screen").click()
        wait_until(lambda: shown(browser) == ["left"], "left alone")
        assert cards(browser)[1].find_element(By.CSS_SELECTOR, ".screen").size["width"] > 1.8 * small
        wait_for_motion(browser, "left")
        for key, camera_name in ((Keys.ARROW_RIGHT, "rear"), (Keys.ARROW_RIGHT, "front"), ("2", "left")):
            body.send_keys(key)
            wait_until(lambda name=camera_name: shown(browser) == [name], f"{camera_name} alone")
        browser.refresh()  # the address remembers
        wait_until(lambda: shown(browser) == ["left"], "left alone after a reload")
        browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
        wait_until(lambda: len(shown(browser)) == 3, "all cameras")


def test_the_page_comes_back_when_the_server_does(browser: webdriver.Chrome) -> None:
    with Cameras("front") as run:
        browser.get(run.sink.url)
        wait_for_motion(browser, "front")
        run.sink.close()
        wait_for_text(browser, "#offline", "No connection since")
        run.open(run.sink.uri)
        wait_until(lambda: not browser.find_element(By.ID, "offline").is_displayed(), "a connection")
        wait_for_motion(browser, "front")


def test_nothing_is_encoded_for_a_page_in_the_background(browser: webdriver.Chrome) -> None:
    with Cameras("front") as run:
        browser.get(run.sink.url)
        wait_until(lambda: run.sink.wants_picture, "a viewer")
        hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
        browser.execute_script(hide % "true" + "document.dispatchEvent(new Event('visibilitychange'))")
        wait_until(lambda: not run.sink.wants_picture, "the page to give up its pictures")
        browser.execute_script(hide % "false" + "document.dispatchEvent(new Event('visibilitychange'))")
        wait_for_motion(browser, "front")


@pytest.mark.parametrize("width", [360, 800, 3840])
def test_it_fits_every_width(browser: webdriver.Chrome, width: int) -> None:
    resize(browser, width, 800)
    with Cameras(*(f"camera_{number}" for number in range(8))) as run:
        browser.get(run.sink.url)
        wait_until(lambda: len(cards(browser)) == 8, "eight cameras")
        wait_until(lambda: browser.find_elements(By.CSS_SELECTOR, ".card.painted"), "a picture")
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_the_token_is_typed_once(browser: webdriver.Chrome) -> None:
    with open_page("?token=a-token-of-more-than-16-characters", lambda: run_of(camera("front"))) as sink:
        browser.get(sink.url)
        for typed in ("wrong", "a-token-of-more-than-16-characters"):
            browser.find_element(By.ID, "token").send_keys(typed, Keys.ENTER)
            if typed == "wrong":
                wait_until(lambda: not typed_text(browser), "to be asked again")
        wait_until(lambda: len(cards(browser)) == 1, "the page")
        assert "token" not in browser.current_url
        browser.get(sink.url)
        wait_until(lambda: len(cards(browser)) == 1, "the page again")


def typed_text(browser: webdriver.Chrome) -> str:
    return str(browser.execute_script("return document.querySelector('#token')?.value ?? 'loading'"))


def test_names_and_errors_are_text(browser: webdriver.Chrome) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    status = run_of(camera(nasty, "lost", error=nasty, counts={nasty: 1}))
    with open_page(status=lambda: status) as sink:
        for _ in range(3):
            sink.write(frame(camera=nasty), found())
        browser.get(sink.url)
        wait_until(lambda: browser.find_elements(By.CSS_SELECTOR, ".card.painted"), "the picture")
        assert text_of(browser, ".name") == nasty
        assert nasty in text_of(browser, ".veil")
        assert not browser.find_elements(By.CSS_SELECTOR, ".card img")
        assert complaints(browser) == []
