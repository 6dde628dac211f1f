"""Studies with real clips, and a Chromium that is driven through its debugging pipe."""

import base64
import json
import os
import shutil
import subprocess
import time

import pytest
import torch

from longtake.core.video import write_mp4, write_png
from longtake.evaluation.ratings import Sample, read_samples, write_samples

EVIL = '</script><script>window.owned = 1</script><!-- & "quoted" \u2028 caf\u00e9'
MODELS = ("wan", "veo")


@pytest.fixture
def evil():
    return EVIL


@pytest.fixture
def make_list(tmp_path):
    """A list of samples whose ids, folders and file names all name the models."""

    def make(prompts=2, image=False):
        samples = []
        for number in range(prompts):
            for model in MODELS:
                name = f"{model}-clips/{model}-{number}.mp4"
                rng = torch.Generator().manual_seed(7 * number + len(model))
                write_mp4(torch.rand((6, 3, 32, 48), generator=rng), tmp_path / name, 12.0)
                samples.append(
                    Sample(
                        sample=f"{model}-{number}",
                        model=model,
                        prompt=f"p{number}",
                        caption=f"{EVIL} {number}",
                        video=name,
                        image=f"{model}-{number}.png" if image else "",
                    )
                )
                if image:
                    picture = torch.full((8, 8, 3), number, dtype=torch.uint8)
                    write_png(picture, tmp_path / f"{model}-{number}.png")
        return read_samples(write_samples(tmp_path / "samples.csv", samples))

    return make


class Browser:
    """One page in a headless Chromium; messages go through file descriptors 3 and 4 of it."""

    def __init__(self, folder, size="1280,900", *more):
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True, exist_ok=True)
        arguments = [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={folder / 'profile'}", f"--window-size={size}", *more),
            *("--remote-debugging-pipe", "about:blank"),
        ]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "-", *arguments],
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._rest, self._session = 0, b"", ""
        self.errors: list[str] = []
        (target,) = [
            t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"
        ]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        self.call("Runtime.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))

    def call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session and not method.startswith(("Browser.", "Target.")):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                part = os.read(self._in, 1 << 20)
                assert part, "the browser has ended"
                self._rest += part
            line, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(answer["params"]["exceptionDetails"]))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def open(self, path):
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete' && typeof study === 'object'")

    def value(self, expression):
        """What JavaScript says."""
        done = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, expression, seconds=20.0):
        end = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def press(self, *keys):
        for key in keys:
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, text=text)

    def click(self, selector):
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def picture(self, path):
        shot = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def saved(self):
        """Save to a file and read it."""
        before = set(self.downloads.iterdir())
        self.click("header .save")
        end = time.monotonic() + 10
        while time.monotonic() < end:
            new = {p for p in self.downloads.iterdir() if p.suffix == ".jsonl"} - before
            if new:
                (self.file,) = new
                return [json.loads(line) for line in self.file.read_text().splitlines()]
            time.sleep(0.05)
        raise AssertionError("nothing was saved")

    def close(self):
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        self._process.wait(10)


@pytest.fixture
def browser(tmp_path):
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    opened = Browser(tmp_path / "browser")
    yield opened
    opened.close()
