"""Headless Chromium, driven through the pipe that it offers for that: no driver whose version would have to match."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Chromium takes commands from file 3 and answers in file 4.
LAUNCH = """
import fcntl, os, sys
for place, number in enumerate([fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3]], start=3):
    os.dup2(number, place)
os.execvp(sys.argv[3], sys.argv[3:])
"""
# The sandbox does not start for root, and containers have little shared memory; the pages are ours.
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--remote-debugging-pipe")
PATIENCE = 60.0
LOUD = ("error", "warning", "assert")


def program():
    """Chromium's path; None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One tab. Called with a method of the DevTools protocol and its parameters, it returns the answer."""

    def __init__(self, program, profile):
        self._numbers, self._unread, self._events = itertools.count(1), b"", []
        (read, self._to), (self._from, write) = os.pipe(), os.pipe()
        launch = [sys.executable, "-c", LAUNCH, str(read), str(write), program, *OPTIONS, f"--user-data-dir={profile}"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([*launch, "about:blank"], pass_fds=(read, write), **quiet)
        os.close(read)
        os.close(write)
        self._session = None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method, **parameters):
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": number, "method": method, "params": parameters, **session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self._events.append(answer)

    def open(self, path, width=1000, height=800, dark=False, finger=False):
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=finger)
        self("Emulation.setTouchEmulationEnabled", enabled=finger)
        self.prefer(dark=dark)
        self._events.clear()
        self("Page.navigate", url=Path(path).resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())

    def prefer(self, *, dark):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])

    def ask(self, expression):
        """The value of an expression in the page."""
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression):
        """Until an expression is true; the page may still be drawing."""
        end = time.monotonic() + PATIENCE
        while not self.ask(f"Boolean({expression})"):
            assert time.monotonic() < end, f"never true: {expression}; {self.complaints()}"

    def complaints(self):
        """Errors and warnings on the console, exceptions, and what the page's own policy forbade."""
        self.ask("0")
        found = []
        for event in self._events:
            method, content = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(content["exceptionDetails"])
            elif method == "Log.entryAdded" and content["entry"]["level"] in LOUD:
                found.append(content["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and content["type"] in LOUD:
                found.append([each.get("value", each.get("description")) for each in content["args"]])
        return found

    def centre(self, selector):
        """Of an element that is scrolled into view."""
        return self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); const box = e.getBoundingClientRect(); "
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )

    def mouse(self, kind, x, y, **more):
        self("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def drag(self, start, end):
        held = {"button": "left", "buttons": 1}
        self.mouse("mouseMoved", *start)
        self.mouse("mousePressed", *start, clickCount=1, **held)
        for share in (0.3, 0.6, 1.0):
            self.mouse("mouseMoved", *(a + share * (b - a) for a, b in zip(start, end, strict=True)), **held)
        self.mouse("mouseReleased", *end, clickCount=1, button="left")

    def click(self, selector):
        place = self.centre(selector)
        self.drag(place, place)

    def press(self, key, code):
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def screenshot(self, path):
        """Of the whole page."""
        picture = self("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(picture))

    def close(self):
        self._session = None
        self("Browser.close")
        self._process.wait(PATIENCE)
        os.close(self._to)
        os.close(self._from)

    def _read(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(self._from, 1 << 20) if ready else b""
            assert piece, "Chromium has ended or does not answer"
            self._unread += piece
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)
