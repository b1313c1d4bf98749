"""The softphone page as files: its words cover every code that it can be sent, and it obeys its own CSP."""

import json
import re
from enum import StrEnum
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gateway.callflow.effects import StopReason
from gateway.callflow.outcome import EndReason, Result
from gateway.wire import messages
from policy.decision import WarningCode
from policy.facts import Direction, RequestForm
from policy.reasons import Reason, Remedy

STATIC = Path(messages.__file__).parents[1] / "softphone" / "page"
LANGUAGES = ("en", "pt-BR")
PAGE = (STATIC / "index.html").read_text(encoding="utf-8")
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(STATIC.glob("*.js"))}
ALL_SCRIPTS = "\n".join(SCRIPTS.values())

#: What browser tests find the page's parts by; `{number_id}` is filled in by the page.
TEST_IDS = [
    "login-name",
    "login-key",
    "login-submit",
    "status",
    "me",
    "incoming-card",
    "incoming-name",
    "answer",
    "decline",
    "hangup",
    "mute",
    "hold",
    "keypad",
    "dial-input",
    "dial-check",
    "dial-call",
    "ask-permission",
    "ask-hint",
    "gate-answer",
    "call-card",
    "call-state",
    "call-timer",
    "recent-list",
    "notice",
    "lang",
    "logout",
    "legs-ready",
]

#: Codes that are plain strings in the messages, and words made by the page itself.
CALL_STATES = ("connecting", "ringing", "active", "held", "ending", "ended")
FAILED_CODES = [
    "bad_message",
    "unauthorized",
    "refused",
    "no_leg",
    "busy",
    "gone",
    "already_taken",
    "graph_error",
    "outcome_unknown",
    "unavailable",
    "offline",
    "timeout",
]
NOTICE_CODES = ("media_worker_restarted", "graph_error", "replaced", "draining", "store_down")

#: First words of keys that `words(...)` completes with a code at run time.
COMPLETED = [
    "reason",
    "figures",
    "remedy",
    "warning",
    "outcome",
    "result",
    "failed",
    "notice",
    "gone",
    "state",
    "microphone",
    "ask_form",
    "direction",
    "slots",
    "violation",
]


def table(language: str) -> dict[str, str]:
    """Read one string table; a key that stands there twice is a mistake that JSON readers hide."""

    def unique(pairs: list[tuple[str, str]]) -> dict[str, str]:
        assert len(pairs) == len({key for key, _ in pairs})
        return dict(pairs)

    text = (STATIC / f"strings.{language}.json").read_text(encoding="utf-8")
    strings: dict[str, str] = json.loads(text, object_pairs_hook=unique)
    return strings


def placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"\{(\w+)\}", text))


class Elements(HTMLParser):
    """Every start tag of the page with its attributes, and the text inside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self.feed(PAGE)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is not None:
            self.inline += data.strip()


def test_both_languages_have_the_same_keys() -> None:
    en, pt = (table(language) for language in LANGUAGES)
    assert en.keys() == pt.keys()


@pytest.mark.parametrize("key", table("en"))
def test_a_string_says_something_and_has_the_same_placeholders_in_both_languages(key: str) -> None:
    en, pt = (table(language)[key] for language in LANGUAGES)
    assert en.strip()
    assert pt.strip()
    assert placeholders(en) == placeholders(pt)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("prefix", "codes"),
    [
        ("reason", Reason),
        ("remedy", Remedy),
        ("warning", WarningCode),
        ("ask_form", RequestForm),
        ("outcome", EndReason),
        ("result", Result),
        ("direction", Direction),
        ("gone", StopReason),
    ],
)
def test_every_code_of_an_enum_has_words(language: str, prefix: str, codes: type[StrEnum]) -> None:
    assert [code.value for code in codes if f"{prefix}.{code.value}" not in table(language)] == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("prefix", "codes"), [("state", CALL_STATES), ("failed", FAILED_CODES), ("notice", NOTICE_CODES)]
)
def test_every_code_that_is_a_plain_string_has_words(language: str, prefix: str, codes: list[str]) -> None:
    assert [code for code in codes if f"{prefix}.{code}" not in table(language)] == []


def test_every_key_that_the_page_names_exists() -> None:
    elements = Elements().found
    in_page = {
        value for _, attrs in elements for name, value in attrs.items() if name.startswith("data-i18n") and value
    }
    in_scripts = set(re.findall(r"""\bt\(\s*"([\w./]+)"[,)]""", ALL_SCRIPTS))
    assert (in_page | in_scripts) - table("en").keys() == set()


def test_no_string_is_left_over() -> None:
    used = set(re.findall(r"""data-i18n[\w-]*="([\w./]+)\"""", PAGE)) | set(re.findall(r'"([\w./]+)"', ALL_SCRIPTS))
    left = {key for key in table("en") if key not in used and key.partition(".")[0] not in COMPLETED}
    assert left == set()


def test_every_figures_key_belongs_to_a_reason_or_a_rule() -> None:
    reasons = {reason.value for reason in Reason}
    named = {key.removeprefix("figures.") for key in table("en") if key.startswith("figures.")}
    assert {name for name in named if "/" not in name} - reasons == {"other"}


def test_nothing_visible_in_the_page_is_without_a_key() -> None:
    """Text that stands in the markup is only what is shown before the strings are there."""
    bare = re.findall(r"<(\w+)(?![^>]*data-i18n)[^>]*>([^<>]*[A-Za-z]{2}[^<>]*)<", PAGE.split("<body", 1)[1])
    assert [text for tag, text in bare if tag not in ("option", "noscript", "kbd")] == []


def test_the_page_has_no_inline_script_style_or_handler() -> None:
    elements = Elements()
    assert elements.inline == ""
    assert [tag for tag, _ in elements.found if tag == "style"] == []
    assert [attrs for tag, attrs in elements.found if tag == "script" and not attrs.get("src")] == []
    assert [attrs for _, attrs in elements.found if any(n == "style" or n.startswith("on") for n in attrs)] == []


def test_the_scripts_never_make_markup_or_code_out_of_text() -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\(\"style\""
    assert {name for name, text in SCRIPTS.items() if re.search(forbidden, text)} == set()


def test_everything_that_is_loaded_is_our_own_and_exists() -> None:
    texts = "\n".join([PAGE, ALL_SCRIPTS, (STATIC / "style.css").read_text(encoding="utf-8")])
    assert set(re.findall(r"https?://[^\s\"'`]+", texts)) <= {"http://www.w3.org/2000/svg"}
    loaded = set(re.findall(r"/static/([\w.-]+\.(?:js|css|svg|json))", texts))
    assert {name for name in loaded if not (STATIC / name).is_file()} == set()
    assert set(SCRIPTS) <= loaded


def test_every_icon_that_is_used_is_drawn() -> None:
    drawn = set(re.findall(r'<symbol id="([\w-]+)"', (STATIC / "icons.svg").read_text(encoding="utf-8")))
    used = set(re.findall(r"icons\.svg#([\w-]+)", PAGE)) | set(re.findall(r'\bicon\("([\w-]+)"\)', ALL_SCRIPTS))
    assert used - drawn == set()


def test_every_id_that_a_script_asks_for_is_in_the_page_once() -> None:
    ids = [value for _, attrs in Elements().found if (value := attrs.get("id"))]
    assert len(ids) == len(set(ids))
    asked = set(re.findall(r'(?:byId|getElementById)\("([\w-]+)"\)', ALL_SCRIPTS))
    assert asked - set(ids) == set()


@pytest.mark.parametrize("test_id", TEST_IDS)
def test_a_browser_test_finds_its_hook(test_id: str) -> None:
    in_page = [attrs for _, attrs in Elements().found if attrs.get("data-testid") == test_id]
    in_scripts = re.search(rf'testid: "{test_id}"', ALL_SCRIPTS)
    assert in_page or in_scripts


def test_the_slots_of_a_number_have_a_hook_for_each_direction() -> None:
    assert "testid: `slots-${number_id}-${direction}`" in SCRIPTS["lists.js"]


def test_every_field_has_a_label() -> None:
    elements = Elements().found
    labelled = {attrs.get("for") for tag, attrs in elements if tag == "label"}
    fields = [attrs for tag, attrs in elements if tag in ("input", "select")]
    unlabelled = [
        attrs["id"] for attrs in fields if attrs["id"] not in labelled and "data-i18n-aria-label" not in attrs
    ]
    assert unlabelled == ["shortcuts-on"]  # its label is around it


def test_every_message_that_the_page_sends_or_reads_is_on_the_wire() -> None:
    requests = {member.__struct_config__.tag for member in messages.Request.__args__}
    pushes = {member.__struct_config__.tag for member in messages.Push.__args__}
    sent = set(re.findall(r'(?:request|attempt|act)\("(\w+)"', ALL_SCRIPTS))
    assert sent == requests
    read = re.search(r"const PUSHES = \{(.*?)\n\};", SCRIPTS["app.js"], re.DOTALL)
    assert read is not None
    assert set(re.findall(r"^  (\w+): \(", read[1], re.MULTILINE)) == pushes


def test_the_page_knows_the_close_codes_that_it_acts_on() -> None:
    known = dict(re.findall(r"(\w+): (4\d{3})", SCRIPTS["wire.js"]))
    assert known == {
        "UNAUTHORIZED": str(messages.CLOSE_UNAUTHORIZED),
        "REPLACED": str(messages.CLOSE_REPLACED),
        "TOO_MANY": str(messages.CLOSE_TOO_MANY),
    }
