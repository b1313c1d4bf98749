"""A real Chromium with a microphone that plays a known tone, and ears for the page's audio."""

import math
import os
import shutil
import struct
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, Page, async_playwright

RATE_HZ = 48_000

FLAGS = [
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",  # grants the microphone
    "--autoplay-policy=no-user-gesture-required",
    "--allow-loopback-in-peer-connection",  # tests stay on 127.0.0.1, which browsers otherwise leave out
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

#: Returns {hz, level} of what the page's legs play now: the strongest bin of 2.7 Hz width, and its level in dB.
LISTEN = """
async () => {
  const legs = [...window.softphone.legs.values ? window.softphone.legs.values() : window.softphone.legs];
  const pc = legs.map(leg => leg.pc ?? leg).find(pc => pc.getReceivers);
  const context = window.__ears ??= new AudioContext({sampleRate: 44100});
  await context.resume();
  if (!window.__analyser || window.__analysed !== pc) {
    const source = context.createMediaStreamSource(new MediaStream([pc.getReceivers()[0].track]));
    window.__analyser = context.createAnalyser();
    window.__analyser.fftSize = 16384;
    window.__analyser.smoothingTimeConstant = 0;
    source.connect(window.__analyser);
    window.__analysed = pc;
    await new Promise(done => setTimeout(done, 400));
  }
  const bins = new Float32Array(window.__analyser.frequencyBinCount);
  window.__analyser.getFloatFrequencyData(bins);
  let best = 0;
  bins.forEach((level, n) => { if (level > bins[best]) best = n; });
  return {hz: best * 44100 / 16384, level: Number.isFinite(bins[best]) ? bins[best] : -1000};
}
"""


def chromium_path() -> str:
    """Return where Chromium is. Raises: RuntimeError with what to do."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        raise RuntimeError("the browser tests need Chromium: run `make browser`, or set CHROMIUM to its path")
    return found


def write_tone(path: Path, *, hz: int, seconds: int = 4) -> None:
    """Write a tone that Chromium plays as the microphone, in a loop; whole periods, so it loops without a click."""
    samples = (int(12_000 * math.sin(2 * math.pi * hz * n / RATE_HZ)) for n in range(RATE_HZ * seconds))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))


@asynccontextmanager
async def chromium(folder: Path, *, tone_hz: int) -> AsyncIterator[Browser]:
    """Yield a headless Chromium whose microphone plays the tone."""
    tone = folder / "tone.wav"
    write_tone(tone, hz=tone_hz)
    flags = [*FLAGS, f"--use-file-for-fake-audio-capture={tone}"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path(), headless=True, args=flags)
        try:
            yield browser
        finally:
            await browser.close()


async def log_in(page: Page, url: str, *, operator: str, key: str) -> None:
    """Log in at the softphone page as a person would, and wait until its legs are up."""
    await page.goto(url + "/")
    await page.get_by_test_id("login-name").fill(operator)
    await page.get_by_test_id("login-key").fill(key)
    await page.get_by_test_id("login-submit").click()
    await page.locator('[data-testid="legs-ready"][data-ready="true"]').wait_for(state="attached")


async def listen(page: Page) -> tuple[float, float]:
    """Return the strongest frequency that the page plays, in Hz, and its level in dB."""
    heard = await page.evaluate(LISTEN)
    return float(heard["hz"]), float(heard["level"])
