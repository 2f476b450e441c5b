"""The same reports for Discord: what another service takes is its own last step, nothing else.

A team on Microsoft Teams, Google Chat or a relay of its own writes a class like this one.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from .slack import SlackProgress
from .slack_messages import Message, fenced, fitted

_ESCAPES = {character: f"\\{character}" for character in "\\*_~`|<>[]#@"}


class DiscordProgress(SlackProgress):
    """Report the progress of a run to a Discord channel; arguments and cadence are `SlackProgress`'s.

    The webhook's address is read from DISCORD_WEBHOOK_URL. `mention` takes "here", "everyone" or a user's number.
    """

    service = "Discord"
    environment = "DISCORD_WEBHOOK_URL"
    mentions = ((r"@?(here|everyone)", "@{}"), (r"<?@?(\d{5,25})>?", "<@{}>"))

    def payload(self, message: Message) -> dict[str, Any]:
        """Return a message as one embed, within Discord's limits (256 the title, 4096 the text, 6000 in all)."""
        bar = f"`{message.bar}`" if message.bar else ""
        facts = [f"**{label}**  {_value(value)}" for label, value in message.facts]
        code = (fenced(part, 1200, {}, keep_end=True) for part in (message.table, message.traceback))
        text = "\n".join(filter(None, (bar, *facts, *code)))
        embed: dict[str, Any] = {"title": fitted(message.title, 256, {}), "description": text}
        if message.link and re.match(r"https?://\S{1,2000}$", message.link[1]):
            embed["url"] = message.link[1]
        embed["footer"] = {"text": fitted(message.footer, 500, {})}
        user = re.fullmatch(r"<@(\d+)>", message.mention)
        # What may ping: the mention that was asked for, nothing that a metric's name or an error says.
        allowed = {"parse": ["everyone"] if message.mention and not user else [], "users": [user[1]] if user else []}
        return {"content": message.mention, "embeds": [embed], "allowed_mentions": allowed}


def _value(value: str | datetime) -> str:
    if isinstance(value, datetime):
        return f"<t:{value.timestamp():.0f}:f>"
    return fitted(" ".join(value.split()), 150, _ESCAPES)
