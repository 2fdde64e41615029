"""The page's tab "Live": the text grows while its user speaks into the microphone.

    click on Record -> the microphone's sound goes to /live/KEY, a quarter of a second at a time   (SCRIPT, add_route)
                    -> Gradio's function `listen` shows what is known, until the sound has ended    (Handlers)

What is unusual here: the microphone is one of the page's own; `talks.py` says why.
"""

import html
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import gradio as gr
from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import Response

from ..transcription.results import Segment
from ..writers.formats import WRITERS
from .calls import KEY
from .messages import LiveSettings
from .page_texts import translations, translator
from .page_views import FORMATS, alert, clock
from .problems import Busy, as_problem
from .request_queue import RequestQueue
from .talks import Talk, Talks
from .ticking import ticking

CSS = """
#live-denied, #live-stop, .glm-speaks #live-record { display: none; }
.glm-denied #live-denied, .glm-speaks #live-stop { display: flex; }
.glm-speaks #live-language, .glm-speaks #live-fresh { pointer-events: none; opacity: .5; }
#live-said { box-shadow: inset 0 -4px color-mix(in srgb, var(--color-accent) calc(100% * var(--level, 0)), transparent);
  display: block; min-height: 9em; max-height: 24em; overflow-y: auto; padding: .6em .9em; border-radius: 6px;
  border: 1px solid var(--border-color-primary); background: var(--input-background-fill); }
#live-said .html-container { padding: 0 !important; }
#live-said p { margin: 0 0 .4em; overflow-wrap: anywhere; font-size: 1.1em; line-height: 1.5; }
#live-said .glm-maybe { color: var(--body-text-color-subdued); }
"""
# A piece of sound waits until the one before has arrived, and says which sample it begins with. So where the network is
# slow or away for a moment, the text comes later and is whole.
SCRIPT = """
const TAP = `registerProcessor("tap", class extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(sampleRate / 4);
    this.count = 0;
    this.port.onmessage = () => { this.flush(); this.port.postMessage(null); };
  }
  flush() {
    this.port.postMessage(this.block.slice(0, this.count));
    this.count = 0;
  }
  process([channels]) {
    for (let index = 0; index < (channels[0] || []).length; index++) {
      const sum = channels.reduce((sum, channel) => sum + channel[index], 0);
      this.block[this.count++] = Math.max(-1, Math.min(1, sum / channels.length)) * 32767;
      if (this.count === this.block.length) this.flush();
    }
    return true;
  }
})`;
const MOST = 30000;  // samples in a request: the server takes no larger ones
const box = document.querySelector("#live-box"), said = document.querySelector("#live-said");
const pause = time => new Promise(resume => setTimeout(resume, time));
const random = () => [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, "0"));
let now = null;  // the recording that is under way

async function start() {
  if (now) return;
  const recording = now = { key: random().join(""), blocks: [], sent: 0, ended: false };
  box.classList.remove("glm-denied");
  try {
    recording.stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    recording.stream.getTracks()[0].onended = stop;  // it was pulled out
    const context = recording.context = new AudioContext();
    await context.audioWorklet.addModule(URL.createObjectURL(new Blob([TAP], { type: "text/javascript" })));
    recording.tap = new AudioWorkletNode(context, "tap");
    recording.tap.port.onmessage = event => take(recording, event.data);
    context.createMediaStreamSource(recording.stream).connect(recording.tap).connect(context.destination);  // silent
  } catch (error) {
    console.warn(error);
    box.classList.add("glm-denied");
    close(recording);
    return;
  }
  box.classList.add("glm-speaks");
  navigator.wakeLock?.request("screen").then(lock => { recording.lock = lock; }, () => {});  // phones go to sleep
  document.querySelector("#live-go").click();
  send(recording);
}
function take(recording, block) {
  if (block === null) recording.ended = true;
  else recording.blocks.push(block);
  const loudest = (block || []).reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
  box.style.setProperty("--level", Math.sqrt(loudest / 32768).toFixed(2));
}
async function send(recording) {
  for (let last = false; !last;) {
    if (!recording.blocks.length && !recording.ended) { await pause(50); continue; }
    let count = 0, length = 0;
    while (count < recording.blocks.length && length + recording.blocks[count].length <= MOST)
      length += recording.blocks[count++].length;
    const end = recording.ended && count === recording.blocks.length;
    try {
      const answer = await fetch(`live/${recording.key}?at=${recording.sent}&last=${end}`, {
        method: "POST",
        headers: { "Content-Type": "application/octet-stream" },
        body: new Blob(recording.blocks.slice(0, count)),
      });
      if (answer.ok) {
        recording.blocks.splice(0, count);
        recording.sent += length;
        last = end;
        continue;
      }
      if (answer.status < 500) break;  // nobody listens; the page says why
    } catch (error) {}  // no network, for now
    await pause(200);
  }
  close(recording);
}
function stop() {
  if (now && now.tap && !now.stopped) {
    now.stopped = true;
    const recording = now;
    recording.tap.port.postMessage("end");
    setTimeout(() => { recording.ended = true; }, 1000);  // where the browser has put the tap to sleep
  }
}
function close(recording) {
  recording.stream?.getTracks().forEach(track => track.stop());
  recording.context?.close();
  recording.lock?.release();
  box.classList.remove("glm-speaks");
  box.style.removeProperty("--level");
  now = null;
}
window.glmLive = { start, stop, key: () => now?.key ?? "", rate: () => now?.context?.sampleRate ?? 0 };
said.setAttribute("role", "log");
new MutationObserver(() => { said.scrollTop = said.scrollHeight; })
  .observe(said, { childList: true, subtree: true, characterData: true });
"""
COPY = """
() => {
  const lines = [...document.querySelectorAll("#live-said p")].map(line => line.firstChild.textContent.trim());
  navigator.clipboard.writeText(lines.filter(Boolean).join("\\n"));
}
"""


def add(queue: RequestQueue, talks: Talks, languages: list[tuple[str, str]]) -> None:
    """Puts the tab's content into Gradio's Blocks. `languages`: label and code of each."""
    say, handlers = translations(), Handlers(queue, talks)
    quiet: Any = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
    with gr.Column(elem_id="live-box"):
        gr.Markdown(say("live_intro"))
        language = gr.Dropdown(languages, value="auto", label=say("language"), elem_id="live-language")
        record = gr.Button(say("live_record"), variant="primary", elem_id="live-record")
        stop = gr.Button(say("stop"), variant="stop", elem_id="live-stop")
        gr.Markdown(say("live_denied"), elem_id="live-denied", elem_classes="glm-note")
        status = gr.HTML(elem_id="live-status")
        with gr.Column(elem_id="live-said"):
            said = gr.HTML(elem_id="live-complete", js_on_load=SCRIPT)
            now = gr.HTML(elem_id="live-now")
        with gr.Row(elem_classes="glm-files"):
            files = [
                gr.DownloadButton(form, interactive=False, size="sm", min_width=50, elem_id=f"live-download-{form}")
                for form in FORMATS
            ]
        with gr.Row():
            copy = gr.Button(say("copy"), size="sm", min_width=80, elem_id="live-copy")
            fresh = gr.Button(say("fresh"), size="sm", min_width=80, elem_id="live-fresh")
    go = gr.Button(visible="hidden", elem_id="live-go")  # clicked by SCRIPT
    key, rate = gr.Textbox("", visible=False), gr.Number(0, visible=False)
    shown = [status, said, now, *files]
    go.click(
        handlers.listen,
        [key, rate, language],
        shown,
        js="(key, rate, language) => [glmLive.key(), glmLive.rate(), language]",
        **quiet,
    )
    fresh.click(handlers.fresh, None, shown, **quiet)
    for button, script in ((record, "() => glmLive.start()"), (stop, "() => glmLive.stop()"), (copy, COPY)):
        button.click(None, None, None, js=script, api_visibility="private")


def add_route(app: FastAPI, talks: Talks) -> None:
    """Where the page sends what its microphone hears."""

    @app.post("/live/{key}", include_in_schema=False)
    async def hear(
        request: Request,
        key: Annotated[str, Path(pattern=f"^{KEY}$")],
        at: Annotated[int, Query(ge=0)],
        last: bool = False,
    ) -> Response:
        """Samples of one channel, int16, little-endian; `at`: the number of the first one; `last`: no more follow."""
        talk = await talks.find(key)
        await talk.hear(at, await request.body(), last)
        return Response(status_code=204)


class Handlers:
    """The functions of the tab."""

    def __init__(self, queue: RequestQueue, talks: Talks):
        self.queue, self.talks = queue, talks

    async def listen(self, key: str, rate: float, language: str, request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
        """What is known by now, until the sound with this key has ended; then the files as well."""
        say, kept = translator(request), (gr.skip(),) * len(FORMATS)
        try:
            talk = self.talks.of(page(request))
        except Busy as error:
            yield alert(str(error)), gr.skip(), gr.skip(), *kept
            return
        shown = -1  # segments that the page has: there may be an hour of them
        try:
            async for _ in ticking(talk.listen(self.queue, key, LiveSettings(language, round(rate)))):
                said = gr.skip() if shown == len(talk.segments) else paragraphs(talk.segments)
                shown = len(talk.segments)
                yield progress(talk, say("live_listens")), said, spoken(talk.committed, talk.tentative), *kept
            status = progress(talk, say("live_stopped"))
        except Exception as error:
            status = alert(f"{say('failed')}: {as_problem(error)}")
        files = await self.files(talk, page(request)) if talk.segments else kept
        yield status, paragraphs(talk.segments), "", *files

    async def fresh(self, request: gr.Request) -> tuple[Any, ...]:
        """Forgets the text."""
        self.talks.of(page(request)).clear()
        self.talks.uploads.keep_last({}, page(request))
        return "", "", "", *(gr.update(value=None, interactive=False) for _ in FORMATS)

    async def files(self, talk: Talk, page: str) -> list[Any]:
        """New values of the download buttons."""
        transcript = talk.transcript(self.queue.facts.runtime if self.queue.facts else {})

        def written() -> dict[str, bytes]:
            return {f"live.{form}": WRITERS[form](transcript, name="live").encode() for form in FORMATS}

        files = await anyio.to_thread.run_sync(written)
        return [gr.update(value=path, interactive=True) for path in self.talks.uploads.keep_last(files, page)]


def page(request: gr.Request) -> str:
    """Gradio's name of the session of a page."""
    assert request.session_hash, "the fence lets no call through without one"
    return request.session_hash


def progress(talk: Talk, state: str) -> str:
    """The state of a talk as HTML, with what its user should know."""
    notes = "".join(f'<div class="glm-note">{html.escape(notice)}</div>' for notice in talk.notices)
    return f'<div class="glm-status">{html.escape(state)} · {clock(talk.seconds)}</div>{notes}'


def paragraphs(segments: list[Segment]) -> str:
    """Complete segments as HTML, with their times as tooltips."""
    return "".join(
        f'<p title="{clock(segment.start)} – {clock(segment.end)}">{html.escape(segment.text)}</p>'
        for segment in segments
    )


def spoken(committed: str, tentative: str) -> str:
    """What is being spoken as HTML: what is certain, and what may still change."""
    if not committed and not tentative:
        return ""
    return f'<p><span>{html.escape(committed)}</span><span class="glm-maybe">{html.escape(tentative)}</span></p>'
