"""The web page, made with Gradio and mounted into the application of `api.py`.

What it says is in `page_texts.py`, what it shows of a recording in `page_views.py`; the tab "Live" is `page_live.py`.

What is unusual here: Gradio sees no file, no address and no object that a client names: `fence.py` stands in front of
it, and `uploads.py` keeps the files.
"""

import asyncio
import importlib.util
import os
import sys
from abc import ABCMeta
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

import anyio
import gradio as gr
import gradio.queueing
import gradio.routes
from fastapi import FastAPI
from gradio.component_meta import ComponentMeta
from gradio.data_classes import FileData

from ..checkpoint.built_in import BUILT_IN
from ..transcription.hotwords import listed, parse
from ..transcription.language import join
from ..transcription.options import Options
from . import page_live, page_words
from .fence import Fence
from .file_routes import add_file_routes
from .messages import Began, PartReady, Ready
from .page_texts import CHOICES, labeled, translations, translator
from .page_views import CSS, FORMATS, alert, clock, progress, result
from .problems import as_problem
from .request_queue import Finished, RequestQueue
from .talks import Talks
from .ticking import ticking
from .uploads import Uploads

SESSIONS = 64  # that Gradio remembers; the functions here keep nothing in them
EVENTS = 200  # calls that may be under way in Gradio at once
FONTS = ["system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]


def add(
    app: FastAPI, queue: RequestQueue, uploads: Uploads, name: str, *, most_bytes: int, max_duration: float
) -> Callable[[], None]:
    """Mounts the page of a model called `name` at "/". -> a function that ends the streams to open pages, for the
    server's end."""
    # TRAP: Gradio prints the traceback of any error with its message, and has no setting for that.
    for module in (gradio.queueing, gradio.routes):
        vars(module)["traceback"] = Discreet
    facts, ended = queue.facts, asyncio.Event()
    assert facts is not None, "the page is made when the model is loaded"
    add_file_routes(app, uploads, ended)
    talks = app.state.talks = Talks(uploads, max_duration)
    page_live.add_route(app, talks)
    blocks = layout(name, queue, Handlers(queue, uploads, max_duration), talks)
    blocks.queue(default_concurrency_limit=None, max_size=EVENTS)
    blocks.state_session_capacity = SESSIONS
    gr.mount_gradio_app(
        app,
        blocks,
        "/",
        theme=gr.themes.Soft(font=FONTS, font_mono=["ui-monospace", "monospace"]),
        css=CSS + page_words.CSS + page_live.CSS,
        i18n=translations(),
        max_file_size=most_bytes,
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        footer_links=["api"],
        show_error=True,
        app_kwargs={"docs_url": None, "redoc_url": None},
    )
    mounted: Any = app.router.routes[-1]
    gradio_app = mounted.app
    choices = {"language": facts.languages} | ({"task": facts.tasks} if "translate" in facts.tasks else {})
    mounted.app = Fence(gradio_app, uploads, choices)

    def end() -> None:
        ended.set()
        blocks.is_running = False
        gradio_app.stop_event.set()

    return end


class Discreet:
    """In place of the module `traceback` in Gradio, which prints errors with their messages; and those may quote what a
    user sent."""

    @staticmethod
    def print_exc() -> None:
        """Logs where the current exception, if any, was raised, but not its message."""
        if error := sys.exc_info()[1]:
            as_problem(error)  # logs the place


# ---- what stands where -----------------------------------------------------------------------------------------------


def layout(name: str, queue: RequestQueue, handlers: "Handlers", talks: Talks) -> Any:
    """Gradio's Blocks."""
    facts, say = queue.facts, translations()
    assert facts is not None
    with gr.Blocks(title="glmasr", analytics_enabled=False) as blocks:
        gr.Markdown(say("intro" if set(facts.languages) == set(CHOICES) else "intro_of_others"))
        if name in BUILT_IN:
            gr.Markdown(say("demo"))
        with gr.Tab(say("tab_recording")):
            add_recording(name, facts, handlers)
        blocks.unload(lambda: None)  # so that a page holds a connection while it is open: `file_routes.py`
        with gr.Tab(say("tab_live"), elem_id="live"):
            page_live.add(queue, talks, labeled(facts.languages))
    return blocks


def add_recording(name: str, facts: Ready, handlers: "Handlers") -> None:
    """Puts the tab "Recording" into Gradio's Blocks."""
    say, languages, translates = translations(), labeled(facts.languages), "translate" in facts.tasks
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            # TRAP: this label alone can't be translated.
            recording = Input(
                sources=["upload", "microphone"],
                type="filepath",
                label="Recording 录音",
                elem_id="recording",
                editable=False,
                buttons=[],
            )
            choice = gr.Radio if len(languages) <= len(CHOICES) else gr.Dropdown  # the latter can be searched
            language = choice(languages, value="auto", label=say("language"), elem_id="language")
            task = []
            if translates:
                names = [(say(task), task) for task in facts.tasks]
                task = [gr.Radio(names, value="transcribe", label=say("task"), elem_id="task")]
            with gr.Accordion(say("more"), open=False, elem_id="more"):
                model = f"{name} ({facts.runtime['device']}, {facts.runtime['dtype']})"
                gr.Textbox(model, label=say("model"), interactive=False)
                timestamps = gr.Checkbox(
                    facts.timestamps,
                    label=say("timestamps"),
                    info=say("timestamps_info"),
                    visible=facts.timestamps,
                )
                words = gr.Checkbox(False, label=say("words"), info=say("words_info"), elem_id="words")
                beams = gr.Slider(0, 10, 0, step=1, label=say("beams"), info=say("beams_info"))
                fast = gr.Checkbox(False, label=say("fast"), info=say("fast_info"))
                script = gr.Radio(
                    [
                        (say("as_is"), ""),
                        (say("simplified"), "simplified"),
                        (say("traditional"), "traditional"),
                    ],
                    value="",
                    label=say("script"),
                    visible=importlib.util.find_spec("opencc") is not None,
                )
                hotwords = gr.Textbox(
                    "",  # TRAP: an empty one without a value sends null
                    label=say("hotwords"),
                    info=say("hotwords_info"),
                    lines=2,
                    max_lines=8,
                    elem_id="hotwords",
                )
            with gr.Row():
                go = gr.Button(say("go"), variant="primary", elem_id="go")
                stop = gr.Button(say("stop"), elem_id="stop")
        with gr.Column(min_width=320):
            status = gr.HTML(elem_id="status")
            text = gr.Textbox(
                label=say("text"),
                placeholder=say("empty"),
                lines=5,
                max_lines=15,
                buttons=["copy"],
                interactive=False,
                elem_id="text",
            )
            details = gr.HTML(elem_id="details", js_on_load=page_words.SCRIPT)
            with gr.Row(elem_classes="glm-files"):
                files = [
                    gr.DownloadButton(form, interactive=False, size="sm", min_width=50, elem_id=f"download-{form}")
                    for form in FORMATS
                ]
    # TRAP: the article's call names the function by its number, 0: this one has to be the first.
    gr.Button(visible=False).click(
        handlers.transcribe,
        [recording, language, *task],
        gr.Textbox(visible=False),
        api_name="transcribe",
        concurrency_limit=None,
        show_progress="hidden",
    )
    run = go.click(
        handlers.show,
        [recording, language, timestamps, words, beams, fast, script, hotwords, *task],
        [status, text, details, *files],
        api_visibility="private",
        concurrency_limit=None,
        show_progress="hidden",
    )
    stop.click(None, None, status, js="() => ''", cancels=[run], api_visibility="private")


class Plain(ComponentMeta):
    """TRAP: Gradio's own metaclass writes a file .pyi beside the source of every new component."""

    def __new__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> "Plain":
        """Creates the class as `abc.ABCMeta` does, and writes nothing."""
        return ABCMeta.__new__(cls, name, bases, attributes)


class Input(gr.Audio, metaclass=Plain):
    """`gr.Audio` whose value is the path that `calls.checked_recording` returns, unchanged."""

    is_template = True  # the same for the browser
    data_model = None  # type: ignore[assignment]  # of Gradio's components most have none

    def api_info(self) -> dict[str, Any]:
        """The schema of a file, so that gradio_client uploads one."""
        return FileData.model_json_schema()

    def preprocess(self, payload: str | None) -> str | None:  # type: ignore[override]  # goes with `data_model`
        """The path, unchanged; None without a recording. `gr.Audio` would decode the file here."""
        return payload


# ---- what happens ----------------------------------------------------------------------------------------------------


class Handlers:
    """The functions of the page."""

    def __init__(self, queue: RequestQueue, uploads: Uploads, max_duration: float):
        self.queue, self.uploads, self.max_duration = queue, uploads, max_duration

    async def transcribe(
        self, recording: str | None, language: str = "auto", task: str = "transcribe"
    ) -> AsyncIterator[str]:
        """The text of a recording: an uploaded file, or a data URI."""
        if recording is None:
            raise refused("the recording is missing; expected an uploaded file, or a data URI as the first value")
        text = ""
        options = Options(task, max_duration=self.max_duration)
        try:
            with self.uploads.use(recording):
                async with aclosing(ticking(self.queue.recognize(recording, language, options))) as events:
                    async for event in events:
                        if isinstance(event, PartReady):
                            text = extended(text, event)
                        yield event.transcript.text if isinstance(event, Finished) else text
        except Exception as error:
            raise refused(str(as_problem(error))) from None

    async def show(
        self,
        recording: str | None,
        language: str,
        timestamps: bool,
        words: bool,
        beams: float,
        fast: bool,
        script: str,
        hotwords: str,
        task: str = "transcribe",
        request: gr.Request | None = None,
    ) -> AsyncIterator[Any]:
        """The same with all that the page shows, while it works."""
        say, text = translator(request), ""
        nothing = (gr.update(value=None, interactive=False),) * len(FORMATS)
        if recording is None:
            yield alert(say("nothing")), "", "", *nothing
            return
        seconds: float | None = None
        place = 0.0
        yield progress(say("waiting"), None), "", "", *nothing
        try:
            options = Options(
                task,
                timestamps=timestamps or None,
                words=words,
                beams=int(beams) or None,
                pad_to="speech" if fast else "window",
                script=script or None,
                max_duration=self.max_duration,
                hotwords=parse(listed(hotwords)),
            )
            with self.uploads.use(recording):
                async with aclosing(ticking(self.queue.recognize(recording, language, options))) as events:
                    async for event in events:
                        if event is None:
                            yield gr.skip()
                            continue
                        if isinstance(event, Finished):
                            yield await self.finished(event, recording, say)
                            return
                        if isinstance(event, Began):
                            seconds = event.seconds
                        else:
                            text, place = extended(text, event), event.part.end
                        status = f"{say('working')}: {clock(place)}" + (f" / {clock(seconds)}" if seconds else "")
                        yield progress(status, place / seconds if seconds else None), text, "", *nothing
        except Exception as error:
            yield alert(f"{say('failed')}: {as_problem(error)}"), text, "", *nothing

    async def finished(self, event: Finished, recording: str, say: Callable[[str], str]) -> tuple[Any, ...]:
        """The final values of the page's outputs and download buttons; files are kept while it shows `recording`."""
        name = os.path.basename(recording)
        source = f"gradio_api/file={quote(recording)}"  # relative: the page may stand behind a proxy's prefix
        *shown, files = await anyio.to_thread.run_sync(result, event, name, say, source)
        paths = [self.uploads.keep(name, content, beside=recording) for name, content in files.items()]
        return (*shown, *(gr.update(value=path, interactive=True) for path in paths))


def extended(text: str, event: PartReady) -> str:
    """The text so far, and that of the part which has just been recognized."""
    return join([text, *(segment.text for segment in event.part.segments)])


def refused(message: str) -> Exception:
    """The error that the page shows to its user and that isn't logged."""
    return gr.Error(message, print_exception=False)  # the log is not for what users send
