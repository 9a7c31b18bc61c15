"""Plays both APIs with the signing and transport code of the official Alipay+ Python client.

Run by `run` beside this file. The client is made for merchants, so it knows neither path; the two request objects here
give it path and body, and everything else (string to sign, signature, headers, absolute-form target, TLS, reading and
verifying the answer) is its own.
"""

import http.client
import json
import sys

PORT = int(sys.argv[1])
FOLDER = sys.argv[2]

# the client always calls port 443, which only root may listen on
_connect = http.client.HTTPSConnection.__init__


def _connect_here(self, host, port=None, **more):
    _connect(self, host, port=PORT, **more)


http.client.HTTPSConnection.__init__ = _connect_here

from com.alipay.ams.api.default_alipay_client import DefaultAlipayClient  # noqa: E402
from com.alipay.ams.api.exception.exception import AlipayApiException  # noqa: E402
from com.alipay.ams.api.request.alipay_request import AlipayRequest  # noqa: E402

CLIENT_ID = "T_5YC47N2ZQHJ004124"
PREFIX = "/aps/api"


class Request(AlipayRequest):
    def __init__(self, tail, body, **json_options):
        super().__init__(PREFIX + tail)
        self.body, self.json_options = body, json_options

    def to_ams_json(self):
        return json.dumps(self.body, **self.json_options)


def read(name):
    with open(f"{FOLDER}/{name}", encoding="ascii") as file:
        return file.read().strip()


def bare(pem):
    return "".join(line for line in pem.splitlines() if "-----" not in line)


# bare base64 without markers, as the console shows it; the client wraps it itself
private = read("client.pkcs1.pem")
client = DefaultAlipayClient(f"https://localhost", CLIENT_ID, private, bare(read("wallet.public.pem")))


def ask(tail, body, expected, of=client, **json_options):
    answer = json.loads(of.execute(Request(tail, body, **json_options)))
    code = answer["result"]["resultCode"]
    assert code == expected, f"{tail}: {answer}, expected {expected}"
    print(f"ok: {tail} answers {code}, and the official client verifies it")
    return answer


PAYMENT = {"acquirerId": "1022188000000000001", "pspId": "1022172000000000001", "paymentRequestId": "2020010123456789"}
TOKEN = {"acquirerId": "102218800000001234", "pspId": "102208800000001230", "accessToken": "281010033AB2F588D14B"}
CANCEL_PAYMENT, CANCEL_TOKEN = "/v1/payments/cancelPayment", "/v1/authorizations/cancelToken"

ask(CANCEL_PAYMENT, PAYMENT, "SUCCESS", indent=3)  # as the client's own requests are written
ask(CANCEL_PAYMENT, PAYMENT, "SUCCESS")
ask(CANCEL_PAYMENT, dict(PAYMENT, memo="héllo \u0000 \U0001d11e"), "SUCCESS", ensure_ascii=False)
ask(CANCEL_PAYMENT, dict(PAYMENT, memo="héllo \U0001d11e"), "SUCCESS", ensure_ascii=True)
ask(CANCEL_TOKEN, TOKEN, "INVALID_TOKEN")
ask(CANCEL_TOKEN, dict(TOKEN, passThroughInfo=None), "INVALID_TOKEN")
ask(CANCEL_TOKEN, dict(TOKEN, passThroughInfo="x" * 20_001), "PARAM_ILLEGAL")
ask(CANCEL_PAYMENT, dict(PAYMENT, paymentRequestId=1), "PARAM_ILLEGAL")
ask(CANCEL_PAYMENT, dict(PAYMENT, pspId="another"), "ACCESS_DENIED")

# a request signed with another key: the client reads the refusal, which is signed for the registered Client-Id
stranger = DefaultAlipayClient(f"https://localhost", CLIENT_ID, read("stranger.pkcs1.pem"), bare(read("wallet.public.pem")))
ask(CANCEL_PAYMENT, PAYMENT, "INVALID_SIGNATURE", of=stranger)

# an answer signed with another key than the client expects
deceived = DefaultAlipayClient(f"https://localhost", CLIENT_ID, private, bare(read("stranger.public.pem")))
try:
    ask(CANCEL_PAYMENT, PAYMENT, "SUCCESS", of=deceived)
except AlipayApiException as refusal:
    print(f"ok: with another public key the client refuses the answer ({str(refusal)[:40]}…)")
else:
    sys.exit("the official client took an answer that another key had signed")
