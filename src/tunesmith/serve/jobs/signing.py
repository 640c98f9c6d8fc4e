"""How a webhook is signed: HMAC-SHA256 over ``id.timestamp.body``, with a secret ``whsec_<base64>``.

Source: standard-webhooks; openai-python ``lib/_webhooks.py``, whose ``client.webhooks.unwrap`` checks it.
"""

import base64
import binascii
import hashlib
import hmac

PREFIX = "whsec_"


def signature(secret: str, event_id: str, timestamp: int, body: str) -> str:
    """The header ``webhook-signature``."""
    digest = hmac.new(_key(secret), f"{event_id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def is_secret(secret: str) -> bool:
    """Whether a secret can be signed with."""
    try:
        return bool(_key(secret))
    except binascii.Error:
        return False


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(PREFIX)) if secret.startswith(PREFIX) else secret.encode()
