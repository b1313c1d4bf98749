"""What an operator of the gateway can choose, as frozen values that were checked.

Responsible for the settings' types, defaults, descriptions and for what contradicts what. Not responsible for where
values come from (see `loading`, whose `load` is the way to make a `Settings`). Every field has a description,
which becomes the table in `deploy/README.md`, and says what it expects, which becomes the message about a wrong value.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from gateway.common.ids import PhoneNumberId
from gateway.config import values
from gateway.config.call_hours import HoursSettings
from media.engine import MediaConfig
from policy.pack import BUILT_IN, Pack, load_pack

#: Of environment variables.
PREFIX: Final = "GATEWAY_"

#: Short names for the first number.
SHORT_NAMES: Final[Mapping[str, str]] = {
    "phone_number_id": "phone_number_id",
    "phone_number": "phone_number",
    "number_name": "name",
}
#: Fields that are secret, or hold secrets.
SECRETS: Final = frozenset(
    {"app_secret", "app_secret_previous", "verify_token", "access_token", "api_key", "database_url"}
    | {"operators", "numbers"}
)


def _setting(text: str, expected: str, **more: Any) -> Any:
    """Declare a field: what it is for, and what a value looks like."""
    return Field(description=text, json_schema_extra={"expected": expected}, **more)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, hide_input_in_errors=True)


# --- a number ------------------------------------------------------------------------------------


class TemplateSettings(_Section):
    """The message template that asks for permission outside the customer service window."""

    name: str = _setting("Name of the template at Meta.", "a template's name", pattern=r"^[a-z0-9_]{1,512}$")
    language: str = _setting(
        "Its language.", "a language such as pt_BR", default="en_US", pattern=r"^[a-z]{2,3}(_[A-Za-z]{2,4})?$"
    )
    parameters: tuple[str, ...] = _setting("Values for {{1}}, {{2}} of its body.", "a list of texts", default=())


class NumberSettings(_Section):
    """One business number."""

    phone_number_id: str = _setting("Meta's id of the number.", "Meta's id, digits", pattern=r"^\d{1,32}$")
    phone_number: values.PhoneNumber = _setting(
        "The number itself, with country code.", "a number with its country code, such as +55 11 5555-0100"
    )
    name: str = _setting("What operators see.", "a text of at most 64 characters", default="", max_length=64)
    pack: Literal["guide", "meta", "sandbox"] = _setting(
        "Which rules hold: the guide's, Meta's newest, or those of a test number.",
        f"one of {', '.join(BUILT_IN)}",
        default="guide",
    )
    pack_file: values.PackFile | None = _setting("A pack of your own; wins over `pack`.", "a TOML file", default=None)
    incoming_slots: values.Slots | None = _setting(
        "Calls from users at a time; without it the rules' 1,000.", "a whole number from 0 to 100000", default=None
    )
    outgoing_slots: values.Slots | None = _setting(
        "Calls to users at a time; without it the rules' 1,000.", "a whole number from 0 to 100000", default=None
    )
    access_token: values.Secret | None = _setting("Token of this number.", "a token of Meta's", default=None)
    country: values.Country | None = _setting(
        "Its country, where the numbering plan is wrong about it.", "two letters such as BR", default=None
    )
    messaging_limit: int | None = _setting(
        "Messaging limit; without it what Meta tells.", "a whole number", default=None, ge=0
    )
    coexistence: bool | None = _setting(
        "Whether the number is also in the WhatsApp Business app: then it can carry no calls. Without it what Meta"
        " tells.",
        "true or false",
        default=None,
    )
    calling: Literal["ENABLED", "DISABLED"] | None = _setting(
        "Whether it may carry calls; without it what Meta tells.", "ENABLED or DISABLED", default=None
    )
    sip: bool | None = _setting("Whether it is in SIP mode; without it what Meta tells.", "true or false", default=None)
    call_hours: HoursSettings | None = _setting(
        "Call hours; without them those in Meta's settings.", "timezone, weekly and holidays", default=None
    )
    enforce_hours: tuple[Literal["USER_INITIATED", "BUSINESS_INITIATED"], ...] = _setting(
        "Which calls are refused outside the call hours; Meta itself keeps users from calling then.",
        "a list of USER_INITIATED, BUSINESS_INITIATED",
        default=(),
    )
    permission_text: str = _setting(
        "Text of a free-form permission request.",
        "a text of 1 to 1024 characters",
        default="May we call you here on WhatsApp?",
        min_length=1,
        max_length=1_024,
    )
    permission_template: TemplateSettings = _setting(
        "Template of a permission request.",
        "name, language and parameters of a template",
        default=TemplateSettings(name="call_permission_request"),
    )

    def pack_loaded(self) -> Pack:
        """Return the rules of this number. Raises: PackError, OSError if the file changed since the start."""
        return load_pack(self.pack) if self.pack_file is None else values.read_pack(self.pack_file)

    def slots(self, pack: Pack) -> tuple[int, int]:
        """Return the concurrent calls from users and to users: what is set here, else what the rules say (R14)."""
        incoming = pack.slots_user_initiated if self.incoming_slots is None else self.incoming_slots
        outgoing = pack.slots_business_initiated if self.outgoing_slots is None else self.outgoing_slots
        return incoming, outgoing


# --- all of them ---------------------------------------------------------------------------------


class Settings(_Section):
    """Everything that can be chosen. Secrets are shown by their accessors only, never by `repr`."""

    # Meta
    app_secret: values.Secret = _setting("The Meta app's secret: signs webhooks.", "the app secret from Meta's console")
    app_secret_previous: values.Secret | None = _setting(
        "The app secret before, while it is being changed: both are good.", "an app secret", default=None
    )
    verify_token: values.Secret = _setting(
        "The word that Meta repeats when the webhook is set up; choose one.", "a word of your choice"
    )
    access_token: values.Secret | None = _setting(
        "Token for the Graph API, for numbers without one of their own.", "a token of Meta's", default=None
    )
    graph_url: values.GraphUrl = _setting(
        "Where the Graph API is.",
        "an address with a version, such as https://graph.facebook.com/v26.0",
        default="https://graph.facebook.com/v26.0",
    )
    graph_timeout_s: float = _setting(
        "How long Meta may take to answer.", "seconds, from 0.1 to 60", default=5.0, ge=0.1, le=60
    )
    numbers: tuple[NumberSettings, ...] = _setting(
        "The business numbers, as a JSON list; or see GATEWAY_PHONE_NUMBER_ID.",
        'a list such as [{"phone_number_id": "…", "phone_number": "+55…"}]',
        min_length=1,
    )

    # People
    operators: dict[values.OperatorName, values.OperatorKey] = _setting(
        "Who may log in at the softphone, as JSON: name and key.",
        'names and keys of at least 8 characters, such as {"ana": "…"}',
        min_length=1,
    )
    api_key: values.Secret | None = _setting(
        "Key for the REST API; without one only operators use it.", "a key", default=None
    )

    # Where it listens
    host: values.Host = _setting("Address of webhooks, page and API.", "an address", default="127.0.0.1")
    port: values.Port = _setting("Its port; 0 is any free one.", "a port from 0 to 65535", default=8080)
    admin_host: values.Host = _setting(
        "Address of health and metrics; keep it private.", "an address", default="127.0.0.1"
    )
    admin_port: values.Port = _setting("Its port; 0 is any free one.", "a port from 0 to 65535", default=9090)
    public_origins: tuple[values.Origin, ...] = _setting(
        "Further origins whose pages may use the softphone's WebSocket.",
        "origins such as https://calls.example.com, with commas between them",
        default=(),
    )

    # Store
    database_url: values.PostgresUrl | None = _setting(
        "An external PostgreSQL; without one the gateway brings its own. DATABASE_URL is read as well.",
        "postgresql://user:password@host/database",
        default=None,
    )
    data_dir: Path = _setting(
        "Folder of the gateway's own database and of its spool; each gateway has its own.",
        "a folder",
        default_factory=values.default_data_dir,
    )
    spool_max_mb: int = _setting(
        "How much the spool may hold: webhooks that wait on disk while the database is away.",
        "a whole number of megabytes, from 1 to 100000",
        default=256,
        ge=1,
        le=100_000,
    )
    contact_cache: int = _setting(
        "How many names of contacts (most have two) are kept in memory; any other costs one read.",
        "a whole number, from 1000 to 10000000",
        default=50_000,
        ge=1_000,
        le=10_000_000,
    )

    # Ringing
    ring_timeout_s: float = _setting(
        "How long a user's call rings before it is declined, from Meta's timestamp; Meta gives up after 30 to 60 s.",
        "seconds, from 1 to 60",
        default=30.0,
        ge=1,
        le=60,
    )
    outgoing_ring_timeout_s: float = _setting(
        "How long a call to a user rings.", "seconds, from 1 to 300", default=60.0, ge=1, le=300
    )

    # How much, and how it stops
    max_setups_per_s: float = _setting(
        "Calls that may begin in a second, in and out together; more are refused at once.",
        "a number from 1 to 10000",
        default=100.0,
        ge=1,
        le=10_000,
    )
    max_loop_lag_ms: float = _setting(
        "How late the program may do things for a second before it refuses new calls; four times as late, and it"
        " refuses all but what calls need that are up.",
        "milliseconds, from 10 to 10000",
        default=50.0,
        ge=10,
        le=10_000,
    )
    drain_timeout_s: float = _setting(
        "How long a gateway that was told to stop waits for its calls to end before it ends them; 0: as long as they"
        " last.",
        "seconds, from 0 to 86400",
        default=0.0,
        ge=0,
        le=86_400,
    )

    # Media
    media_engine: Literal["workers", "null"] = _setting(
        "Who carries the audio; null answers with SDP and carries no audio: only for measuring signalling.",
        "workers or null",
        default="workers",
    )
    media_workers: int = _setting(
        "Worker processes for media.",
        "a whole number from 1 to 64",
        default_factory=lambda: max(1, (os.cpu_count() or 1) // 2),
        ge=1,
        le=64,
    )
    media_bind_address: values.AddressOrAuto = _setting(
        "Local address of all media; auto is the machine's own.", "an IP address, or auto", default="auto"
    )
    media_announced_address: values.Address | None = _setting(
        "Address that browsers are told, behind 1:1 NAT.", "an IP address", default=None
    )
    media_ports: values.MediaPorts = _setting(
        "UDP ports of media; 0 is any free ones.", "a range such as 50000-50999, or 0", default="50000-50999"
    )
    meta_candidate_networks: tuple[values.Network, ...] = _setting(
        "Networks besides the public internet in which Meta's relay may be: for simulators only.",
        "networks such as 203.0.113.0/24, with commas between them",
        default=(),
    )
    media_timeout_s: float = _setting(
        "A leg without any packet for so long has failed.",
        "seconds, from 1 to 120",
        default=8.0,
        ge=1,
        le=120,
    )

    # Logs
    log_level: values.LogLevel = _setting("How much is logged.", "one of debug, info, warning, error", default="info")
    log_format: values.LogFormat = _setting(
        "JSON lines or coloured text; auto goes by whether it is a terminal.",
        "one of auto, json, console",
        default="auto",
    )

    def app_secret_texts(self) -> tuple[str, ...]:
        """Return every app secret that is good now, the newest first."""
        both = (self.app_secret, self.app_secret_previous)
        return tuple(secret.get_secret_value() for secret in both if secret is not None)

    def verify_token_text(self) -> str:
        return self.verify_token.get_secret_value()

    def access_token_for(self, number_id: PhoneNumberId) -> str:
        """Return the token of a number. Raises: KeyError if there is none."""
        own = (number.access_token for number in self.numbers if number.phone_number_id == number_id)
        token = next(own, None) or self.access_token
        if token is None:
            raise KeyError(number_id)
        return token.get_secret_value()

    def operator_keys(self) -> dict[str, str]:
        return {name: key.get_secret_value() for name, key in self.operators.items()}

    def api_key_text(self) -> str | None:
        return None if self.api_key is None else self.api_key.get_secret_value()

    def secret_texts(self) -> Iterator[str]:
        """Yield every secret there is, whatever it is good for."""
        yield from (*self.app_secret_texts(), self.verify_token_text(), *self.operator_keys().values())
        tokens = (self.access_token, self.api_key, *(number.access_token for number in self.numbers))
        yield from (token.get_secret_value() for token in tokens if token is not None)
        password = urlsplit(self.database_url_text() or "").password
        if password is not None:
            yield unquote(password)

    def database_url_text(self) -> str | None:
        return None if self.database_url is None else self.database_url.get_secret_value()

    def media_config(self) -> MediaConfig:
        """Return what the media plane is told; `auto` becomes an address here."""
        auto = self.media_bind_address == "auto"
        return MediaConfig(
            workers=self.media_workers,
            bind_address=(values.primary_address() or "127.0.0.1") if auto else self.media_bind_address,
            announced_address=self.media_announced_address,
            ports=values.read_ports(self.media_ports),
            candidate_networks=self.meta_candidate_networks,
            media_timeout_s=self.media_timeout_s,
        )

    def warnings(self) -> tuple[str, ...]:
        """Return what works and is perhaps not meant, one sentence each."""
        found = []
        if self.media_engine == "null":
            found.append("No call has any audio: the media engine is the one for measuring signalling.")
        if self.media_bind_address == "auto" and values.primary_address() is None:
            found.append("This machine has no address but 127.0.0.1: browsers elsewhere will hear nothing.")
        if not values.is_loopback(self.admin_host):
            found.append(f"Health and metrics are open to others on {self.admin_host}:{self.admin_port}.")
        found.extend(
            f"{number.phone_number} is in the WhatsApp Business app as well: it can carry no calls."
            for number in self.numbers
            if number.coexistence
        )
        return tuple(found)


# --- the table -----------------------------------------------------------------------------------


def settings_table() -> Iterator[tuple[str, str, str]]:
    """Yield variable, default and description of every setting, for `deploy/README.md`."""
    for name, info in Settings.model_fields.items():
        text = info.description or ""
        if name in SECRETS:
            text += f" Or {PREFIX}{name.upper()}_FILE."
        yield PREFIX + name.upper(), _default(name, info), text
        if name == "numbers":
            for short, plain in SHORT_NAMES.items():
                described = NumberSettings.model_fields[plain].description or ""
                yield (
                    PREFIX + short.upper(),
                    "",
                    f"For a single number: {described[0].lower()}{described[1:]}",
                )


def _default(name: str, info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    if name == "data_dir":
        return f"~/.local/state/{values.STATE_FOLDER}"
    if name == "media_workers":
        return "half of the cores"
    return "" if info.default in (None, ()) else str(info.default)
