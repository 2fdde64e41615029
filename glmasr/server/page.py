"""The web page, made with Gradio and mounted into the application of `api.py`.

What is unusual here:
- Labels are in English and Chinese; Gradio picks by the browser's language. What is made later (progress, table) goes by the language
  that the browser asks for.
- Gradio sees no file, no address and no object that a client names: `fence.py` stands in front of it, and `uploads.py` keeps the files.
"""

import asyncio
import html
import importlib.util
import os
import sys
import time
from abc import ABCMeta
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import anyio
import gradio as gr
import gradio.queueing
import gradio.routes
from gradio.data_classes import FileData

from ..checkpoint.hub import BUILT_IN
from ..pipeline import FLAGS, Options
from ..transcription.language import NAMES, join
from ..writers.formats import WRITERS
from . import fence
from .problems import Problem
from .request_queue import Desk, Finished
from .uploads import KEEP, Uploads
from .worker import Began, Heard

SESSIONS = 64                   # that Gradio remembers; the functions here keep nothing in them
EVENTS = 200                    # calls that may be under way in Gradio at once
BARS = 400                      # columns of the waveform
FORMATS = ("txt", "srt", "vtt", "json")
CHOICES = {"auto": "Auto 自动", "zh": "普通话 Mandarin", "yue": "粤语 Cantonese", "en": "English 英语"}
IN_CHINESE = {"zh": "中文", "yue": "粤语", "en": "英语"}        # among many languages
TEXTS = {                       # name -> English, Chinese
    "intro": ("# Speech to text\n\nMandarin, Cantonese and English. Your recording stays on this server and is deleted when you close this page.",
              "# 语音转文字\n\n支持普通话、粤语和英语。录音只保存在本服务器上，关闭本页后即删除。"),
    "demo": ("**This demo knows spoken digits only; whatever else is said, it writes digits.**", "**此演示模型只认识数字的读音；无论说什么，它都只会写出数字。**"),
    "intro_of_others": ("# Speech to text\n\nYour recording stays on this server and is deleted when you close this page.",
                        "# 语音转文字\n\n录音只保存在本服务器上，关闭本页后即删除。"),
    "language": ("Language", "语言"),
    "task": ("Text in", "文本语言"),
    "transcribe": ("the language that is spoken", "录音的语言"),
    "translate": ("English (translated)", "英语（翻译）"),
    "more": ("Model and options", "模型与选项"),
    "model": ("Model", "模型"),
    "timestamps": ("Times from the model", "由模型给出时间"),
    "timestamps_info": ("Segments with their own times, to 0.02 s", "按模型的时间标记分段，精确到 0.02 秒"),
    "beams": ("Beams", "束宽"),
    "beams_info": ("More are slower and sometimes better; 0 is the model's own number", "数值越大越慢，有时更准；0 为模型默认值"),
    "fast": ("Faster for short recordings", "短录音加速"),
    "fast_info": ("Hears a second of silence at the end instead of a whole window; the text may differ", "结尾只补一秒静音，不补满整个窗口；结果可能略有不同"),
    "script": ("Chinese characters", "汉字字形"),
    "as_is": ("as recognised", "保持原样"),
    "simplified": ("simplified", "简体"),
    "traditional": ("traditional", "繁体"),
    "go": ("Transcribe", "开始识别"),
    "stop": ("Stop", "停止"),
    "text": ("Text", "文本"),
    "empty": ("The text appears here", "识别结果将显示在这里"),
    "nothing": ("First choose a file or record something.", "请先选择文件或录音。"),
    "waiting": ("Waiting for its turn …", "排队中……"),
    "working": ("Listening", "识别中"),
    "done": ("Done", "完成"),
    "silence": ("Nobody seems to speak in it.", "录音中似乎没有人说话。"),
    "failed": ("It didn't work", "出错了"),
    "heard": ("{seconds:.1f} s of sound, language: {language}", "音频 {seconds:.1f} 秒，语言：{language}"),
    "unknown": ("unknown", "未知"),
    "start": ("Start", "开始"),
    "end": ("End", "结束"),
}
CSS = """
.gradio-container { width: 100%; max-width: 1100px !important; margin: 0 auto !important; }
.glm-alert { border-left: 4px solid #dc2626; padding: .6em .9em; background: color-mix(in srgb, #dc2626 10%, transparent); overflow-wrap: anywhere; }
.glm-note { border-left: 4px solid #d97706; padding: .4em .9em; margin-top: .4em; background: color-mix(in srgb, #d97706 10%, transparent); }
.glm-status { padding: .2em 0; } .glm-status progress { width: 100%; height: .6em; accent-color: var(--color-accent); }
.glm-wave { width: 100%; height: 90px; display: block; background: var(--background-fill-secondary); border-radius: 6px; }
.glm-ends { display: flex; justify-content: space-between; font-size: .8em; color: var(--body-text-color-subdued); }
.glm-table { max-height: 22em; overflow-y: auto; margin-top: .5em; } .glm-table table { width: 100%; border-collapse: collapse; }
.glm-table table, .glm-table tr { border-width: 0 !important; }
.glm-table td, .glm-table th { text-align: left; padding: .35em .6em; vertical-align: top; border-width: 0 0 1px !important;
  border-color: var(--border-color-primary) !important; }
.glm-table td.time { white-space: nowrap; font-variant-numeric: tabular-nums; } .glm-table td:last-child { width: 100%; overflow-wrap: anywhere; }
.glm-table tr.doubt td { background: color-mix(in srgb, #d97706 12%, transparent); }
.glm-files { display: grid !important; grid-template-columns: repeat(4, 1fr); gap: .5em; }
@media (max-width: 640px) { .gradio-container { padding: 8px !important; } }
"""


def translations() -> gr.I18n:
    english, chinese = ({name: pair[index] for name, pair in TEXTS.items()} for index in (0, 1))
    return gr.I18n(en=english, zh=chinese, **{"zh-CN": chinese, "zh-TW": chinese})


def speaker(request: gr.Request | None) -> Callable[[str], str]:
    """name -> text, in the language that the browser asks for first."""
    wanted = request.headers.get("accept-language", "") if request else ""
    index = int(wanted.lower().startswith("zh"))
    return lambda name: TEXTS[name][index]


def labelled(languages: list[str]) -> list[tuple[str, str]]:
    """(label, code): of a model for Mandarin, Cantonese and English these; of one for more languages those first, then all by their names."""
    ours = [code for code in CHOICES if code in languages]
    others = sorted((NAMES.get(code, code).title(), code) for code in languages if code not in ours)
    if not others:
        return [(CHOICES[code], code) for code in ours]
    first = [(f"{NAMES[code].title()} {IN_CHINESE[code]}", code) for code in ours if code != "auto"]
    return [(CHOICES["auto"], "auto"), *((f"{name} ({code})", code) for name, code in [*first, *others])]


class Discreet:
    """In place of the module `traceback` in Gradio, which prints errors with their messages; and those may quote what a user sent."""

    @staticmethod
    def print_exc() -> None:
        Problem.of(sys.exc_info()[1])                   # logs the place


# ---- what comes in --------------------------------------------------------------------------------------------------------

def refused(message: str) -> gr.Error:
    return gr.Error(message, print_exception=False)     # the log is not for what users send


class Plain(type(gr.Audio)):
    """TRAP: Gradio's own metaclass writes a file .pyi beside the source of every new component."""

    def __new__(cls, name, bases, attributes):
        return ABCMeta.__new__(cls, name, bases, attributes)


class Input(gr.Audio, metaclass=Plain):
    """`gr.Audio` whose value is the path that `fence.checked_recording` gives, and stays it."""

    is_template = True                                  # the same for the browser
    data_model = None

    def api_info(self) -> dict:
        return FileData.model_json_schema()             # so that gradio_client uploads a file

    def preprocess(self, payload: str | None) -> str | None:
        return payload


async def ticking(events: AsyncIterator) -> AsyncIterator:
    """The same events, and None in every second without one. TRAP: Gradio looks whether a user is still there when a function yields, and
    at no other time."""
    task = None
    try:
        while True:
            task = task or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait([task], timeout=1.0)
            if done:
                task, found = None, task
                try:
                    yield found.result()
                except StopAsyncIteration:
                    return
            else:
                yield None
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await events.aclose()


# ---- what is shown --------------------------------------------------------------------------------------------------------

def alert(text: str) -> str:
    return f'<div class="glm-alert" role="alert">{html.escape(text)}</div>'


def progress(text: str, share: float | None) -> str:
    value = "" if share is None else f' value="{min(1.0, share):.3f}"'
    return f'<div class="glm-status" role="status">{html.escape(text)}<progress{value}></progress></div>'


def clock(seconds: float) -> str:
    """83.4 -> 1:23.4"""
    tenths = round(10 * seconds)
    return f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"


def waveform(peaks: list[float], segments: list, seconds: float) -> str:
    """The outline of the sound as SVG, with the segments as coloured stretches behind it."""
    if not peaks or not seconds:
        return ""
    step = max(1, -(-len(peaks) // BARS))
    bars = [max(peaks[start:start + step]) for start in range(0, len(peaks), step)]
    loudest = max(bars) or 1.0
    outline = "".join(f"M{index + .5} {50 - max(.5, 46 * bar / loudest):.1f}V{50 + max(.5, 46 * bar / loudest):.1f}" for index, bar in enumerate(bars))
    width = len(peaks) / step
    marks = "".join(
        f'<rect class="segment" x="{one.start / seconds * width:.2f}" width="{max(.5, (one.end - one.start) / seconds * width):.2f}" y="0" height="100" '
        f'fill="{"#d97706" if one.flags else "var(--color-accent)"}" opacity="{.35 if index % 2 else .22}"><title>{html.escape(one.text)}</title></rect>'
        for index, one in enumerate(segments))
    return (f'<svg class="glm-wave" viewBox="0 0 {width:.2f} 100" preserveAspectRatio="none" role="img">{marks}'
            f'<path d="{outline}" stroke="var(--body-text-color)" stroke-width=".7" fill="none"/></svg>'
            f'<div class="glm-ends"><span>0:00.0</span><span>{clock(seconds)}</span></div>')


def table(segments: list, say: Callable[[str], str]) -> str:
    rows = "".join(f'<tr{" class=doubt" if one.flags else ""} title="{html.escape("; ".join(FLAGS[flag] for flag in one.flags))}">'
                   f'<td class="time">{clock(one.start)}</td><td class="time">{clock(one.end)}</td><td>{html.escape(one.text)}</td></tr>' for one in segments)
    return (f'<div class="glm-table"><table><thead><tr><th>{say("start")}</th><th>{say("end")}</th><th>{say("text")}</th></tr></thead>'
            f"<tbody>{rows}</tbody></table></div>")


def result(found: Finished, name: str, say: Callable[[str], str]) -> tuple[str, str, str, dict[str, bytes]]:
    """Values for status, text and details, and the files to download."""
    transcript = found.transcript
    summary = say("heard").format(seconds=transcript.seconds, language=transcript.language or say("unknown"))
    notes = "".join(f'<div class="glm-note">{html.escape(warning)}</div>' for warning in transcript.warnings)
    told = f'<div class="glm-status" role="status">{html.escape(say("done") if transcript.text else say("silence"))} · {html.escape(summary)}</div>{notes}'
    details = waveform(found.peaks, transcript.segments, transcript.seconds) + table(transcript.segments, say)
    files = {f"{Path(name).stem}.{form}": WRITERS[form](transcript, name=name).encode() for form in FORMATS}
    return told, transcript.text, details, files


# ---- the page -------------------------------------------------------------------------------------------------------------

def add(app, desk: Desk, uploads: Uploads, name: str, *, most_bytes: int, max_duration: float) -> Callable[[], None]:
    """Mounts the page of a model called `name` at "/". -> a function that ends the streams to open pages, for the server's end."""
    gradio.queueing.traceback = gradio.routes.traceback = Discreet
    said, facts, ended = translations(), desk.facts, asyncio.Event()
    languages, translates = labelled(facts.languages), "translate" in facts.tasks
    nothing = (gr.update(value=None, interactive=False),) * len(FORMATS)
    fence.add_routes(app, uploads, ended)

    async def transcribe(recording: str | None, language: str = "auto", task: str = "transcribe") -> AsyncIterator[str]:
        """The text of a recording: an uploaded file, or a data URI."""
        if recording is None:
            raise refused("the recording is missing; expected an uploaded file, or a data URI as the first value")
        text = ""
        try:
            with uploads.use(recording):
                async with aclosing(ticking(desk.recognise(recording, language, Options(task, max_duration=max_duration)))) as events:
                    async for event in events:
                        if isinstance(event, Heard):
                            text = join([text, *(segment.text for segment in event.part.segments)])
                        yield event.transcript.text if isinstance(event, Finished) else text
        except Exception as error:
            raise refused(str(Problem.of(error))) from None

    async def show(recording: str | None, language: str, timestamps: bool, beams: float, fast: bool, script: str, task: str = "transcribe",
                   request: gr.Request = None):
        """The same with all that the page shows, while it works."""
        say, text, seconds, told = speaker(request), "", None, ""
        if recording is None:
            yield alert(say("nothing")), "", "", *nothing
            return
        options = Options(task, timestamps=timestamps or None, beams=int(beams) or None, pad_to="speech" if fast else "window", script=script or None,
                          max_duration=max_duration)
        yield progress(say("waiting"), None), "", "", *nothing
        try:
            with uploads.use(recording):
                async with aclosing(ticking(desk.recognise(recording, language, options))) as events:
                    async for event in events:
                        if event is None:
                            yield gr.skip()
                            continue
                        if isinstance(event, Finished):
                            *shown, files = await anyio.to_thread.run_sync(result, event, os.path.basename(recording), say)
                            paths = [uploads.keep(name, content, beside=recording) for name, content in files.items()]
                            yield *shown, *(gr.update(value=path, interactive=True) for path in paths)
                            return
                        if isinstance(event, Began):
                            seconds, place = event.seconds, 0.0
                        elif isinstance(event, Heard):
                            text, place = join([text, *(segment.text for segment in event.part.segments)]), event.part.end
                        told = f"{say('working')}: {clock(place)}" + (f" / {clock(seconds)}" if seconds else "")
                        yield progress(told, place / seconds if seconds else None), text, "", *nothing
        except Exception as error:
            yield alert(f"{say('failed')}: {Problem.of(error)}"), text, "", *nothing

    with gr.Blocks(title="glmasr", analytics_enabled=False) as blocks:
        gr.Markdown(said("intro" if set(facts.languages) == set(CHOICES) else "intro_of_others"))
        if name in BUILT_IN:
            gr.Markdown(said("demo"))
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320):
                recording = Input(sources=["upload", "microphone"], type="filepath", label="Recording 录音", elem_id="recording",       # TRAP: it alone can't be translated
                                  editable=False, buttons=[])
                choice = gr.Radio if len(languages) <= len(CHOICES) else gr.Dropdown          # the latter can be searched
                language = choice(languages, value="auto", label=said("language"), elem_id="language")
                task = [gr.Radio([(said(name), name) for name in facts.tasks], value="transcribe", label=said("task"), elem_id="task")] if translates else []
                with gr.Accordion(said("more"), open=False, elem_id="more"):
                    gr.Textbox(f"{name} ({facts.how['device']}, {facts.how['dtype']})", label=said("model"), interactive=False)
                    timestamps = gr.Checkbox(facts.timestamps, label=said("timestamps"), info=said("timestamps_info"), visible=facts.timestamps)
                    beams = gr.Slider(0, 10, 0, step=1, label=said("beams"), info=said("beams_info"))
                    fast = gr.Checkbox(False, label=said("fast"), info=said("fast_info"))
                    script = gr.Radio([(said("as_is"), ""), (said("simplified"), "simplified"), (said("traditional"), "traditional")], value="",
                                      label=said("script"), visible=importlib.util.find_spec("opencc") is not None)
                with gr.Row():
                    go = gr.Button(said("go"), variant="primary", elem_id="go")
                    stop = gr.Button(said("stop"), elem_id="stop")
            with gr.Column(min_width=320):
                status = gr.HTML(elem_id="status")
                text = gr.Textbox(label=said("text"), placeholder=said("empty"), lines=5, max_lines=15, buttons=["copy"], interactive=False, elem_id="text")
                details = gr.HTML(elem_id="details")
                with gr.Row(elem_classes="glm-files"):
                    files = [gr.DownloadButton(form, interactive=False, size="sm", min_width=50, elem_id=f"download-{form}") for form in FORMATS]
        # TRAP: the article's call names the function by its number, 0: this one has to be the first.
        gr.Button(visible=False).click(transcribe, [recording, language, *task], gr.Textbox(visible=False), api_name="transcribe", concurrency_limit=None,
                                       show_progress="hidden")
        run = go.click(show, [recording, language, timestamps, beams, fast, script, *task], [status, text, details, *files], api_visibility="private",
                       concurrency_limit=None, show_progress="hidden")
        stop.click(None, None, status, js="() => ''", cancels=[run], api_visibility="private")
        blocks.unload(lambda: None)                     # so that a page holds a connection while it is open: `fence.add_routes`
    blocks.queue(default_concurrency_limit=None, max_size=EVENTS)
    blocks.state_session_capacity = SESSIONS
    fonts = ["system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
    gr.mount_gradio_app(app, blocks, "/", theme=gr.themes.Soft(font=fonts, font_mono=["ui-monospace", "monospace"]), css=CSS, i18n=said,
                        max_file_size=most_bytes, run_history=False, ssr_mode=False, enable_monitoring=False, mcp_server=False, footer_links=["api"],
                        show_error=True, app_kwargs={"docs_url": None, "redoc_url": None})

    mounted = app.router.routes[-1]
    gradio_app, mounted.app = mounted.app, fence.Fence(mounted.app, uploads, {"language": facts.languages} | ({"task": facts.tasks} if translates else {}))

    def end() -> None:
        ended.set()
        blocks.is_running = False
        gradio_app.stop_event.set()
    return end


async def tidy(app, uploads: Uploads) -> None:
    """Drops what nobody needs any more, for ever: files, and what Gradio keeps of sessions that have left."""
    gradio_app, unread = app.router.routes[-1].app.app, {}
    while True:
        await asyncio.sleep(5)
        uploads.tidy()
        tidy_sessions(gradio_app.get_blocks()._queue, unread)


def tidy_sessions(waiting, unread: dict[str, float]) -> None:
    """`waiting`: Gradio's queue; `unread`: since when the messages of a session are unread. TRAP: of a client that leaves while it listens
    Gradio keeps a task that sends signs of life, and of one that never listens all messages; both for ever."""
    now = time.monotonic()
    for session, messages in list(waiting.pending_messages_per_session.items()):
        if messages.empty():
            unread.pop(session, None)
        elif now > unread.setdefault(session, now) + KEEP:
            del waiting.pending_messages_per_session[session]
            for event in waiting.pending_event_ids_session.pop(session, ()):
                waiting.event_ids_to_events.pop(event, None)
    for session in set(unread) - set(waiting.pending_messages_per_session):
        del unread[session]
    for task in asyncio.all_tasks():
        frame = task.get_coro().cr_frame if task.get_coro().__qualname__.endswith("queue_data_helper.<locals>.heartbeat") else None
        if frame and frame.f_locals["session_hash"] not in waiting.pending_messages_per_session:
            task.cancel()
