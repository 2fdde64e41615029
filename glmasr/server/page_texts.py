"""What the page says, in English and Chinese. Gradio picks by the browser's language; what is made later (progress,
table) goes by the language that the browser asks for."""

from collections.abc import Callable

import gradio as gr

from ..transcription.language import NAMES

CHOICES = {"auto": "Auto 自动", "zh": "普通话 Mandarin", "yue": "粤语 Cantonese", "en": "English 英语"}
IN_CHINESE = {"zh": "中文", "yue": "粤语", "en": "英语"}  # among many languages
TEXTS = {  # name -> English, Chinese
    "intro": (
        "# Speech to text\n\nMandarin, Cantonese and English. Your recording stays on this server and is deleted when "
        "you close this page.",
        "# 语音转文字\n\n支持普通话、粤语和英语。录音只保存在本服务器上，关闭本页后即删除。",
    ),
    "demo": (
        "**This demo knows spoken digits only; whatever else is said, it writes digits.**",
        "**此演示模型只认识数字的读音；无论说什么，它都只会写出数字。**",
    ),
    "intro_of_others": (
        "# Speech to text\n\nYour recording stays on this server and is deleted when you close this page.",
        "# 语音转文字\n\n录音只保存在本服务器上，关闭本页后即删除。",
    ),
    "language": ("Language", "语言"),
    "task": ("Text in", "文本语言"),
    "transcribe": ("the language that is spoken", "录音的语言"),
    "translate": ("English (translated)", "英语（翻译）"),
    "more": ("Model and options", "模型与选项"),
    "model": ("Model", "模型"),
    "timestamps": ("Times from the model", "由模型给出时间"),
    "timestamps_info": ("Segments with their own times, to 0.02 s", "按模型的时间标记分段，精确到 0.02 秒"),
    "words": ("Word times", "逐词时间"),
    "words_info": (
        "The word being played is marked, a click on a word plays from there, unsure words are shaded",
        "播放时标出当前的词，点击词语可从该处播放，没有把握的词加底色",
    ),
    "beams": ("Beams", "束宽"),
    "beams_info": (
        "More are slower and sometimes better; 0 is the model's own number",
        "数值越大越慢，有时更准；0 为模型默认值",
    ),
    "fast": ("Faster for short recordings", "短录音加速"),
    "fast_info": (
        "Pads the end with a second of silence instead of a whole window; the text may differ",
        "结尾只补一秒静音，不补满整个窗口；结果可能略有不同",
    ),
    "script": ("Chinese characters", "汉字字形"),
    "as_is": ("as recognized", "保持原样"),
    "simplified": ("simplified", "简体"),
    "traditional": ("traditional", "繁体"),
    "hotwords": ("Names to spell right", "热词"),
    "hotwords_info": (
        "Between commas or a line each; a number after a colon makes one count more: GLM-ASR, Kowloon Tong:2",
        "用逗号或换行分隔；冒号后的数字为权重，例如：GLM-ASR, 张小明:2",
    ),
    "go": ("Transcribe", "开始识别"),
    "stop": ("Stop", "停止"),
    "text": ("Text", "文本"),
    "empty": ("The text appears here", "识别结果将显示在这里"),
    "nothing": ("First choose a file or record something.", "请先选择文件或录音。"),
    "waiting": ("Waiting for its turn …", "排队中……"),
    "working": ("Listening", "识别中"),
    "done": ("Done", "完成"),
    "silence": ("No speech was found in it.", "录音中似乎没有人说话。"),
    "failed": ("It didn't work", "出错了"),
    "summary": ("{seconds:.1f} s of sound, language: {language}", "音频 {seconds:.1f} 秒，语言：{language}"),
    "unknown": ("unknown", "未知"),
    "start": ("Start", "开始"),
    "end": ("End", "结束"),
    "tab_recording": ("Recording", "录音文件"),
    "tab_live": ("Live", "实时"),
    "live_intro": (
        "Speak, and read along; what may still change is grey. Stop whenever you like: the next recording goes on with "
        "the same text.",
        "边说边看文字，灰色部分还可能变化。可随时停止，再次录音会接在后面。",
    ),
    "live_record": ("Record", "开始录音"),
    "live_denied": (
        "There is no microphone, or the browser doesn't let this page use it. It never does where the page's address "
        "begins with http:// and is not this machine's own.",
        "没有麦克风，或浏览器不允许本页使用麦克风（以 http:// 打开的非本机页面一律不允许）。",
    ),
    "live_listens": ("Listening", "正在听"),
    "live_stopped": ("Stopped", "已停止"),
    "copy": ("Copy", "复制"),
    "fresh": ("New text", "清空重来"),
    "player": ("The recording, word by word", "录音（逐词播放）"),
    "unsure": ("unsure: {share:.0%}", "没有把握：{share:.0%}"),
}


def translations() -> gr.I18n:
    """For Gradio."""
    english, chinese = ({name: pair[index] for name, pair in TEXTS.items()} for index in (0, 1))
    return gr.I18n(en=english, zh=chinese, **{"zh-CN": chinese, "zh-TW": chinese})


def translator(request: gr.Request | None) -> Callable[[str], str]:
    """name -> text, in the language that the browser asks for first."""
    wanted = request.headers.get("accept-language", "") if request else ""
    index = int(wanted.lower().startswith("zh"))
    return lambda name: TEXTS[name][index]


def labeled(languages: list[str]) -> list[tuple[str, str]]:
    """(label, code): of a model for Mandarin, Cantonese and English these; of one for more languages those first, then
    all by their names."""
    ours = [code for code in CHOICES if code in languages]
    others = sorted((NAMES.get(code, code).title(), code) for code in languages if code not in ours)
    if not others:
        return [(CHOICES[code], code) for code in ours]
    first = [(f"{NAMES[code].title()} {IN_CHINESE[code]}", code) for code in ours if code != "auto"]
    return [(CHOICES["auto"], "auto"), *((f"{name} ({code})", code) for name, code in [*first, *others])]
