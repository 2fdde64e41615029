"""The page at /docs: the OpenAPI document as people read it, with an example of each call.

What is unusual here: it is one file of HTML that fetches nothing, so it works without the network and within a strict
content policy. Its only script puts the address that the reader's browser uses into the examples.
"""

import base64
import hashlib
import html
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from .gate import REALTIME
from .problems import ModelNotFound

SERVER = "http://127.0.0.1:7860"  # in the examples, where the browser runs no script
STYLE = """
:root { color-scheme: light dark; --soft: color-mix(in srgb, CanvasText 7%, Canvas);
  --line: color-mix(in srgb, CanvasText 20%, Canvas); }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif;
  background: Canvas; color: CanvasText; overflow-wrap: break-word; }
h2 { margin-top: 2.5rem; padding-top: .5rem; border-top: 1px solid var(--line); font-size: 1.2rem; }
code, pre { font: .9rem/1.5 ui-monospace, monospace; background: var(--soft); border-radius: 4px; }
code { padding: .1em .3em; }
pre { padding: .7rem; overflow-x: auto; } pre b { font-weight: inherit; }
h2 code { background: none; padding: 0; font-size: 1em; }
table { display: block; overflow-x: auto; border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem .35rem 0;
  border-bottom: 1px solid var(--line); }
"""
SCRIPT = 'for (const place of document.querySelectorAll("b")) place.textContent = location.origin'


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# A line of Python with OpenAI's client for each of its routes; the others are read as they are.
CLIENT = {
    "/v1/audio/transcriptions": 'client.audio.transcriptions.create(file=open("talk.wav", "rb"), model=MODEL).text',
    "/v1/audio/translations": 'client.audio.translations.create(file=open("talk.wav", "rb"), model=MODEL).text',
    "/v1/models": "[model.id for model in client.models.list()]",
    "/v1/models/{name}": "client.models.retrieve(MODEL)",
}


def page(
    schema: dict[str, Any],
    *,
    model: str,
    key: bool,
    most_bytes: int,
    max_duration: float,
    languages: Sequence[str] = (),
    translates: bool = True,
) -> str:
    """HTML.

    schema                    the OpenAPI document
    model                     its name in the examples
    key                       requests need one
    most_bytes, max_duration  limits of a recording, in bytes and seconds
    languages, translates     what the model supports
    """
    calls = [
        (method.upper(), path, call) for path, methods in schema["paths"].items() for method, call in methods.items()
    ]
    errors = {
        status: answer["description"]
        for *_, call in reversed(calls)
        for status, answer in call["responses"].items()
        if status >= "400"
    }
    wrong = ModelNotFound(f"model is 'gpt-9', but this server has {model}", "model").content()
    links = "".join(
        f'<li><a href="#{_anchor(method, path)}"><code>{method} {_text(path)}</code></a> '
        f"{_text(call['description'])}</li>"
        for method, path, call in calls
    )
    known = [f"<code>{_text(name)}</code>" for name in languages if name != "auto"]
    known_text = (
        f"<p>This model supports the languages {', '.join(known)}{'' if translates else ', and doesn’t translate'}.</p>"
        if known
        else ""
    )
    locked = (
        "<p>Requests need the API key of this server, but for <code>/healthz</code>: put it in the place of "
        "<code>KEY</code>.</p>"
        if key
        else ""
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(schema["info"]["title"])}: API</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<h1>{_text(schema["info"]["title"])}: API</h1>
<p>{_text(schema["info"]["description"])} For tools: <a href="openapi.json">openapi.json</a>.</p>
<p>A recording may have {most_bytes / 2**20:g} MiB and {max_duration:g} seconds. What this server
can't do is an error that says so: no field is accepted and ignored.</p>
{known_text}
{locked}
<p>Text while somebody speaks comes through a WebSocket, <code>{REALTIME}?intent=transcription</code>, with the events
of OpenAI's transcription sessions: <code>AsyncOpenAI(...).realtime.connect(extra_query={{"intent":
"transcription"}})</code>.</p>
<ul>{links}</ul>
{"".join(_call(schema, *one, model, key) for one in calls)}
<h2 id="errors">Errors</h2>
<pre>{_text(json.dumps(wrong, indent=2))}</pre>
<p><code>param</code> is the field that caused it, or null. <code>message</code> says what was expected.</p>
{_table(("status", "when"), ((f"<code>{status}</code>", _text(errors[status])) for status in sorted(errors)))}
<script>{SCRIPT}</script>
</body>
</html>
"""


def _call(schema: dict[str, Any], method: str, path: str, call: dict[str, Any], model: str, key: bool) -> str:
    kinds = ", ".join(f"<code>{_text(kind)}</code>" for kind in call["responses"]["200"].get("content", {}))
    wrong = ", ".join(f'<a href="#errors">{status}</a>' for status in sorted(call["responses"]) if status >= "400")
    return (
        f'<h2 id="{_anchor(method, path)}"><code>{method} {_text(path)}</code></h2>\n'
        + f"<p>{_text(call['description'])}</p>\n"
        + _table(("field", "type", "default", "meaning"), _fields(schema, call))
        + f"<pre>{_curl(path, call, model, key)}</pre>\n<pre>{_python(path, model, key)}</pre>\n"
        + f"<p>Answers: {kinds}{'; errors: ' if wrong else ''}{wrong}</p>\n"
    )


def _fields(schema: dict[str, Any], call: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Cells of the table of fields: those in the address, and those of the form."""
    for field in call.get("parameters", ()):
        yield (
            f"<code>{_text(field['name'])}</code> in the path",
            _kind(field["schema"]),
            "required",
            _text(field.get("description", "")),
        )
    for body in call.get("requestBody", {}).get("content", {}).values():
        form = schema["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]
        for name, field in form["properties"].items():
            default = "required" if name in form["required"] else f"<code>{_text(json.dumps(field['default']))}</code>"
            yield f"<code>{_text(name)}</code>", _kind(field), default, _text(field.get("description", ""))


def _kind(field: dict[str, Any]) -> str:
    """What may stand in a field, in words."""
    if "contentMediaType" in field:
        return "file"
    if "enum" in field:
        return ", ".join(f"<code>{_text(value)}</code>" for value in field["enum"])
    if field["type"] == "array":
        return f"list: {_kind(field['items'])}"
    limits = {"maxLength": "at most {} characters", "minimum": "from {}", "maximum": "to {}"}
    return " ".join(
        [
            {"string": "text", "boolean": "true, false"}.get(field["type"], field["type"]),
            *(words.format(f"{field[name]:g}") for name, words in limits.items() if name in field),
        ]
    )


def _curl(path: str, call: dict[str, Any], model: str, key: bool) -> str:
    secret = " -H 'Authorization: Bearer KEY'" if key and path != "/healthz" else ""
    form = f" -F file=@talk.wav -F {shlex.quote(f'model={model}')}" if "requestBody" in call else ""
    return _example(f"curl {SERVER}{path.replace('{name}', quote(model))}{secret}{form}")


def _python(path: str, model: str, key: bool) -> str:
    if path in CLIENT:
        return _example(
            "from openai import OpenAI\n"
            f'client = OpenAI(base_url="{SERVER}/v1", api_key="{"KEY" if key else "none"}")\n'
            f"print({CLIENT[path].replace('MODEL', json.dumps(model))})"
        )
    secret = ', headers={"Authorization": "Bearer KEY"}' if key and path != "/healthz" else ""
    return _example(
        "from urllib.request import Request, urlopen\n"
        f'print(urlopen(Request("{SERVER}{path}"{secret})).read().decode())'
    )


def _example(code: str) -> str:
    """With the server's address marked, for the script."""
    return html.escape(code, quote=False).replace(SERVER, f"<b>{SERVER}</b>")


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    titles = "".join(f"<th>{name}</th>" for name in head)
    return f"<table><thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody></table>\n" if body else ""


def _anchor(method: str, path: str) -> str:
    return re.sub(r"\W+", "-", f"{method}{path}").strip("-").lower()


def _text(text: str) -> str:
    """Escaped; what stands in backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
