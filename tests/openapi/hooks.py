"""What schemathesis needs to know of the endpoint: how requests are signed, and what an answer must be.

The HTTP status is always 200, so what it would tell by 4xx is told by the result: a body that the document does not
allow must be PARAM_ILLEGAL, one that it allows must be decided.
"""

import base64
import datetime
import json
import os
import pathlib
import re
import urllib.parse

import requests
import schemathesis
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from schemathesis.core.failures import Failure

KEYS = pathlib.Path(os.environ["KEYS"])
CLIENT = "SANDBOX_5YC47N2ZQHJ004124"
PRIVATE = serialization.load_pem_private_key((KEYS / "alipayplus.private.pem").read_bytes(), None)
WALLET = serialization.load_pem_public_key((KEYS / "wallet.public.pem").read_bytes())
DECIDED = {"SUCCESS", "INVALID_TOKEN", "ACCESS_DENIED", "CANCEL_WINDOW_EXCEED", "PROCESS_FAIL"}


class Signed(requests.auth.AuthBase):
    """Signs the bytes that are sent, whatever they are."""

    def __call__(self, request):
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else body
        text = f"{request.method} {request.path_url}\n{CLIENT}.{now}.".encode() + body
        signature = base64.b64encode(PRIVATE.sign(text, padding.PKCS1v15(), hashes.SHA256()))
        request.headers["Client-Id"] = CLIENT
        request.headers["Request-Time"] = now
        request.headers["Signature"] = (
            f"algorithm=RSA256,keyVersion=1,signature={urllib.parse.quote(signature, safe='')}"
        )
        return request


@schemathesis.hook
def before_call(context, case, kwargs):
    if os.environ.get("SIGN") == "1":
        kwargs["auth"] = Signed()


def told(response):
    return json.loads(response.content)["result"]


@schemathesis.check
def the_answer_is_signed(context, response, case):
    """With a registered client and a path without query every answer to a POST is."""
    if os.environ.get("SIGN") != "1" or response.request.method != "POST":
        return
    signature = re.search("signature=([^,]+)$", response.headers["signature"][0])[1]
    path = urllib.parse.urlsplit(response.request.url).path
    text = f"POST {path}\n{response.headers['client-id'][0]}.{response.headers['response-time'][0]}."
    signature = base64.b64decode(urllib.parse.unquote(signature))
    # raises if it does not verify
    WALLET.verify(signature, text.encode() + response.content, padding.PKCS1v15(), hashes.SHA256())


@schemathesis.check
def what_is_allowed_is_decided_and_nothing_else(context, response, case):
    code = told(response)["resultCode"]
    if os.environ.get("SIGN") != "1" or response.request.method != "POST":
        if code in DECIDED:
            raise Failure(operation=case.operation.label, title="Decided without proof", message=code)
        return
    media_type = response.request.headers.get("Content-Type", "application/json")
    if code == "MEDIA_TYPE_NOT_ACCEPTABLE" and media_type.split(";")[0] != "application/json":
        return
    body = case.meta and case.meta.components.get(schemathesis.core.parameters.ParameterLocation.BODY)
    if not body:
        return
    if body.mode.is_positive and code not in DECIDED:
        raise Failure(operation=case.operation.label, title="Refused although it is allowed", message=f"{code}: {case.body!r}")
    if body.mode.is_negative and code in DECIDED:
        raise Failure(operation=case.operation.label, title="Decided although it is not allowed", message=f"{code}: {case.body!r}")
