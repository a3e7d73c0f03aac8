"""Headless Chromium for tests of HTML pages, driven over its own pipe: nothing to install.

  with browser.page(path) as page:
    assert page.evaluate("document.title") == "..."
    assert not page.errors and not page.requests

Commands are the Chrome DevTools Protocol's, JSON ended by a zero byte, on descriptors 3 (to the
browser) and 4 (from it).
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
  "--headless",
  "--no-sandbox",  # which root cannot use; the pages are our own
  "--disable-gpu",
  "--disable-quic",
  "--disable-dev-shm-usage",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-extensions",
  "--no-first-run",
  "--hide-scrollbars",
  "--remote-debugging-pipe",
)
_LOCAL = ("file:", "data:", "blob:", "about:")


def executable() -> str:
  """The browser's path; skips the test where there is none."""
  for name in NAMES:
    if found := shutil.which(name):
      return found
  pytest.skip(f"no browser on PATH ({', '.join(NAMES)})")


class Page:
  """An open page.

  Attributes:
    errors: console errors and warnings, failed loads and uncaught exceptions, as text.
    requests: URLs that the page asked for, other than files, data: and blob:.
    files: file: URLs that it asked for, itself first.
  """

  def __init__(self, to_browser: int, from_browser: int, seconds: float):
    self._to, self._from, self._seconds = to_browser, from_browser, seconds
    self._buffer, self._last, self._session = b"", 0, None
    self.errors: list[str] = []
    self.requests: list[str] = []
    self.files: list[str] = []

  def evaluate(self, script: str) -> object:
    """The value of a JavaScript expression; a promise is awaited. AssertionError if it throws."""
    answer = self.send(
      "Runtime.evaluate",
      expression=script,
      returnByValue=True,
      awaitPromise=True,
      userGesture=True,
    )
    if problem := answer.get("exceptionDetails"):
      raise AssertionError(f"{_said(problem)}: {script}")
    return answer["result"].get("value")

  def press(self, key: str) -> None:
    """A real key press on what has the focus: Enter, Tab, Escape, an arrow or one character."""
    code = {"Enter": 13, "Tab": 9, "Escape": 27, " ": 32}
    code |= {f"Arrow{d}": 37 + i for i, d in enumerate(("Left", "Up", "Right", "Down"))}
    virtual = code.get(key, ord(key.upper()) if len(key) == 1 else 0)
    text = {"text": "\r" if key == "Enter" else key} if key == "Enter" or len(key) == 1 else {}
    common = {"key": key, "windowsVirtualKeyCode": virtual}
    self.send("Input.dispatchKeyEvent", type="keyDown", **common, **text)
    self.send("Input.dispatchKeyEvent", type="keyUp", **common)

  def mouse(self, kind: str, x: float, y: float, **more: object) -> None:
    """A mouse event: mousePressed, mouseReleased, mouseMoved or mouseWheel (deltaX, deltaY)."""
    if kind in ("mousePressed", "mouseReleased"):
      more = {"button": "left", "clickCount": 1} | more
    self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

  def click(self, selector: str) -> None:
    """A real click on the middle of the first element that matches, scrolled into view."""
    x, y = self.evaluate(
      f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
      "e.scrollIntoView({block: 'center', inline: 'center'}); const r = e.getBoundingClientRect();"
      "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    self.mouse("mousePressed", x, y)
    self.mouse("mouseReleased", x, y)

  def wait_for(self, script: str) -> object:
    """Evaluates until the value is true; gives it. AssertionError after the page's time limit."""
    end = time.monotonic() + self._seconds
    while not (value := self.evaluate(script)):
      if time.monotonic() > end:
        raise AssertionError(f"still not true after {self._seconds} s: {script}; {self.errors}")
      time.sleep(0.05)
    return value

  def screenshot(self, path: str | os.PathLike | None = None, full: bool = True) -> bytes:
    """PNG of the whole page or of the window; written to path too, where one is given."""
    size = self.send("Page.getLayoutMetrics")["cssContentSize"]
    clip = {"clip": {**size, "scale": 1}} if full else {}
    answer = self.send("Page.captureScreenshot", captureBeyondViewport=full, **clip)
    png = base64.b64decode(answer["data"])
    if path:
      Path(path).write_bytes(png)
    return png

  def send(self, method: str, **params: object) -> dict:
    """One DevTools command and its result."""
    self._last += 1
    message = {"id": self._last, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    data = json.dumps(message).encode() + b"\0"
    while data:
      data = data[os.write(self._to, data) :]
    while True:
      answer = self._receive()
      if answer.get("id") == self._last:
        if "error" in answer:
          raise AssertionError(f"{method}: {answer['error']['message']}")
        return answer["result"]

  def _receive(self) -> dict:
    end = time.monotonic() + self._seconds
    while b"\0" not in self._buffer:
      if not select.select([self._from], [], [], max(0, end - time.monotonic()))[0]:
        raise AssertionError(f"the browser said nothing for {self._seconds} s")
      if not (part := os.read(self._from, 1 << 20)):
        raise AssertionError("the browser has ended")
      self._buffer += part
    raw, self._buffer = self._buffer.split(b"\0", 1)
    message = json.loads(raw)
    self._notice(message.get("method"), message.get("params", {}))
    return message

  def _notice(self, event: str | None, params: dict) -> None:
    if event == "Runtime.exceptionThrown":
      self.errors.append(_said(params["exceptionDetails"]))
    elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
      said = (str(a.get("value", a.get("description", ""))) for a in params["args"])
      self.errors.append(" ".join(said))
    elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
      self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}".strip())
    elif event == "Network.requestWillBeSent":
      url = params["request"]["url"]
      if url.startswith("file:"):
        self.files.append(url)
      elif not url.startswith(_LOCAL):
        self.requests.append(url)

  def _attach(self) -> None:
    target = self.send("Target.createTarget", url="about:blank")["targetId"]
    answer = self.send("Target.attachToTarget", targetId=target, flatten=True)
    self._session = answer["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.send(f"{domain}.enable")

  def _open(self, url: str) -> None:
    answer = self.send("Page.navigate", url=url)
    assert not answer.get("errorText"), f"{url}: {answer['errorText']}"
    self.wait_for("document.readyState === 'complete'")


@contextlib.contextmanager
def page(
  path: str | os.PathLike,
  width: int = 1280,
  height: int = 900,
  dark: bool = False,
  media: str = "",
  fragment: str = "",
  flags: tuple[str, ...] = (),
  seconds: float = 30,
) -> Iterator[Page]:
  """Opens a local file, loaded to the end, in a browser of its own.

  Args:
    path: the HTML file.
    width, height: of the window, in CSS pixels.
    dark: prefers-color-scheme.
    media: "print" for the print layout.
    fragment: what follows # in the address.
    flags: more flags for the browser, such as --enable-unsafe-swiftshader for WebGL.
    seconds: how long any one answer may take.
  """
  program = executable()
  with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
    child_in, to_browser = os.pipe()
    from_browser, child_out = os.pipe()
    # High numbers, so that the shell's 3 and 4 cannot be these.
    ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (child_in, child_out)]
    plumbing = f'exec "$@" 3</dev/fd/{ends[0]} 4>/dev/fd/{ends[1]}'
    command = ["sh", "-c", plumbing, "sh", program, *_FLAGS, *flags, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
      command,
      pass_fds=ends,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      start_new_session=True,
    )
    for fd in (child_in, child_out, *ends):
      os.close(fd)
    try:
      shown = Page(to_browser, from_browser, seconds)
      shown._attach()
      features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
      shown.send("Emulation.setEmulatedMedia", media=media, features=features)
      shown.send(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=height,
        deviceScaleFactor=1,
        mobile=False,
      )
      url = Path(path).resolve().as_uri()
      shown._open(f"{url}#{fragment}" if fragment else url)
      yield shown
    finally:
      os.close(to_browser)  # the end of the pipe ends the browser
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
      with contextlib.suppress(ProcessLookupError):  # what it left of its own group
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
      os.close(from_browser)


def _said(problem: dict) -> str:
  return problem.get("exception", {}).get("description") or problem.get("text", "")
