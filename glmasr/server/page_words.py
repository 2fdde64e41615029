"""Words with times on the page: a player, and the text in which the word that is played is marked, a click on a word
plays from there, and words that the model is not sure of are shaded.

What is unusual here: the player is one of the page's own. The `<audio>` behind Gradio's is in no document, so nothing
can be told about it.
"""

import html
from collections.abc import Callable

from ..transcription.results import Segment

# Below it, all other tokens together are more likely than those of the word: it is wrong more often than right.
SURE = 0.5
CSS = """
.glm-player { width: 100%; height: 2.6em; margin-top: .5em; display: block; color-scheme: light; }
.dark .glm-player { color-scheme: dark; }
.glm-word { cursor: pointer; border-radius: 3px; }
.glm-word:hover { text-decoration: underline; }
.glm-word.unsure { background: color-mix(in srgb, #d97706 30%, transparent); border-bottom: 1px dotted #d97706; }
.glm-word.now { background: color-mix(in srgb, var(--color-accent) 35%, transparent);
  box-shadow: 0 0 0 2px color-mix(in srgb, var(--color-accent) 35%, transparent); }
"""
# Of the component that shows the words, `element`, whose content comes and goes: so nothing is bound to the player.
# TRAP: events of a player do not bubble; all listeners are of the capturing kind.
SCRIPT = """
let words = [], starts = [], now = null, follows = true;
function read() {
  words = [...element.querySelectorAll(".glm-word")];
  starts = words.map(word => Number(word.dataset.start));
}
function mark(time) {
  let low = 0, high = words.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (starts[middle] <= time + 0.005) low = middle + 1;  // a player may stop a little before where it was sent
    else high = middle;
  }
  const last = words[low - 1], word = last && time < Number(last.dataset.end) ? last : null;
  if (word === now) return;
  if (now) now.classList.remove("now");
  now = word;
  if (word) {
    word.classList.add("now");
    if (follows) reveal(word);
  }
}
function reveal(word) {
  const box = word.closest(".glm-table"), frame = box.getBoundingClientRect(), place = word.getBoundingClientRect();
  if (place.top < frame.top || place.bottom > frame.bottom)
    box.scrollTop += place.top - frame.top - frame.height / 3;
}
function follow(player) {
  if (!player.isConnected) return;
  mark(player.currentTime);
  if (!player.paused) requestAnimationFrame(() => follow(player));
}
const on = (name, act) => element.addEventListener(name, act, true);
on("loadedmetadata", read);
on("play", event => { read(); follows = true; follow(event.target); });
on("seeking", event => { follows = true; follow(event.target); });
on("timeupdate", event => mark(event.target.currentTime));
for (const name of ["wheel", "touchmove"])  // whoever looks elsewhere in the text is left there
  element.addEventListener(name, () => { follows = false; }, { capture: true, passive: true });
on("click", event => {
  const word = event.target.closest(".glm-word"), player = element.querySelector(".glm-player");
  if (!word || !player || String(getSelection())) return;
  player.currentTime = Number(word.dataset.start);
  player.play().catch(() => {});  // the player itself says that it can't
});
"""


def player(source: str, say: Callable[[str], str]) -> str:
    """A player for the recording at an address, as HTML."""
    return (
        f'<audio class="glm-player" controls preload="metadata" src="{html.escape(source)}" '
        f'aria-label="{html.escape(say("player"))}"></audio>'
    )


def text(segment: Segment, say: Callable[[str], str]) -> str:
    """The text of a segment as HTML, with each of its words, if it has any, in an element of its own."""
    place, pieces = 0, []
    for word in segment.words:
        start = segment.text.find(word.text, place)
        if start < 0:
            return html.escape(segment.text)
        unsure, title = "", ""
        if word.probability < SURE:
            unsure = " unsure"
            title = f' title="{html.escape(say("unsure").format(share=word.probability))}"'
        pieces.append(
            f'{html.escape(segment.text[place:start])}<span class="glm-word{unsure}" data-start="{word.start:.3f}" '
            f'data-end="{word.end:.3f}"{title}>{html.escape(word.text)}</span>'
        )
        place = start + len(word.text)
    return "".join(pieces) + html.escape(segment.text[place:])
