"""The web page in a real Chromium, driven by chromedriver. For screenshots.py and for the tests."""

import shutil
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE = 90  # seconds: a busy machine


class Page:
    """A browser of its own with one open page. `microphone`: a WAV file that its fake microphone plays; `ready`: what
    is there when it is loaded."""

    def __init__(
        self,
        url: str,
        language: str = "en-GB",
        width: int = 1100,
        height: int = 1000,
        microphone: str | None = None,
        ready: str = "#go",
    ):
        self.downloads = Path(tempfile.mkdtemp(prefix="glmasr-browser-"))
        options = Options()
        options.binary_location = shutil.which("chromium") or shutil.which("chromium-browser")
        # A container has no sandbox to give, and little shared memory.
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            f"--lang={language}",
            f"--user-data-dir={self.downloads / 'profile'}",
        ):
            options.add_argument(argument)
        if microphone:
            for argument in (
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-audio-capture={microphone}",
            ):
                options.add_argument(argument)
        options.add_experimental_option(
            "prefs",
            {"intl.accept_languages": f"{language},{language[:2]}", "download.default_directory": str(self.downloads)},
        )
        self.driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        self.driver.set_window_size(width, height)
        # TRAP: a window can't be narrower than 500 pixels; a phone has to be told as one.
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        self.driver.get(url)
        self.find(ready)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.driver.quit()
        shutil.rmtree(self.downloads, ignore_errors=True)

    def wait(self, condition, what: str = ""):
        return WebDriverWait(self.driver, PATIENCE, 0.1, ignored_exceptions=(Exception,)).until(
            lambda _: condition(), what
        )

    def find(self, selector: str):
        return self.wait(lambda: self.driver.find_element(By.CSS_SELECTOR, selector), selector)

    def upload(self, path: Path) -> None:
        self.find("#recording input[type=file]").send_keys(str(path))
        self.find("#recording audio, #recording #waveform")

    def record(self, seconds: float) -> None:
        self.find("#recording [aria-label='Record audio'], #recording button[aria-label*='icrophone']").click()
        self.find("#recording button.record-button, #recording .record-button").click()
        time.sleep(seconds)
        self.find("#recording button.stop-button, #recording .stop-button").click()
        self.find("#recording audio, #recording #waveform")

    def transcribe(self) -> str:
        """Presses the button and waits for the end: the text."""
        self.find("#go").click()
        return self.finished()

    def finished(self) -> str:
        self.wait(lambda: self.all("#details svg, #status .glm-alert"), "an end")
        return self.text

    def all(self, selector: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def script(self, source: str):
        return self.driver.execute_script(source)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def tab(self, handle: str = "", new: str = "") -> str:
        """Goes to a tab, or opens a new one; the handle of the one that is shown."""
        if new:
            self.driver.switch_to.new_window("tab")
            self.driver.get(new)
            self.find("#go")
        elif handle:
            self.driver.switch_to.window(handle)
        return self.driver.current_window_handle

    @property
    def text(self) -> str:
        return self.find("#text textarea").get_attribute("value")

    @property
    def alert(self) -> str:
        return self.find("#status .glm-alert").text

    def download(self, form: str, button: str = "download") -> Path:
        """The file that the button of a format gives."""
        self.find(f"#{button}-{form}").click()
        return self.wait(lambda: next(iter(self.downloads.glob(f"*.{form}"))), f"a file .{form}")

    def live(self) -> None:
        """Goes to the tab "Live"."""
        self.find("#live-button").click()
        self.wait(lambda: self.script("return window.glmLive") is not None, "the microphone")

    def listen(self) -> None:
        """Begins a live recording."""
        self.find("#live-record").click()
        self.wait(lambda: self.find("#live-stop").is_displayed(), "a recording")

    def stop_listening(self) -> None:
        """Ends it, and waits for the rest of its text and the files."""
        self.find("#live-stop").click()
        self.wait(lambda: self.find("#live-record").is_displayed(), "the end of the recording")
        self.wait(lambda: self.find("#live-download-srt").is_enabled(), "files")

    @property
    def said(self) -> str:
        """All of the text of the tab "Live", a line for each segment."""
        return self.find("#live-said").text

    def picture(self, path: Path) -> None:
        self.driver.save_screenshot(str(path))
