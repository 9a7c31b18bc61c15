"""What a wallet's services do with alipayplus-cancel, in Python: record, cancel, follow the feed, return the money.

    pip install -r requirements.txt
    python wallet.py --grpc 127.0.0.1:50051 --json http://127.0.0.1:8080/aps/api --keys .sandbox

Three of the wallet's services are in this file: the payment core, the executor of fund returns and the authorization
server. Alipay+ is played too, so that there is something to cancel: it signs its requests and trusts an answer only
once its signature verifies.
"""

import argparse
import base64
import datetime
import json
import pathlib
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
import uuid

import grpc
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding

PSP, ACQUIRER = "1022172000000000001", "1022188000000000001"
CLIENT = "SANDBOX_5YC47N2ZQHJ004124"
# A cancel is answered within 6.5 s and 3.5 s; whoever calls waits a little longer, and asks again with the same ids.
TIMEOUT = 8


def generated(proto):
    """Modules made from the contract; a real project makes them when it is built."""
    out = tempfile.mkdtemp()
    files = [str(path) for path in pathlib.Path(proto).rglob("*.proto")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto}", f"--python_out={out}", f"--grpc_python_out={out}"]
    subprocess.run(command + files, check=True)
    sys.path.insert(0, out)
    from alipayplus.cancel.v1 import feed_service_pb2, feed_service_pb2_grpc  # noqa: F401
    from alipayplus.cancel.v1 import payment_service_pb2, payment_service_pb2_grpc
    from alipayplus.cancel.v1 import token_service_pb2, token_service_pb2_grpc

    return (
        (payment_service_pb2, payment_service_pb2_grpc.PaymentServiceStub),
        (feed_service_pb2, feed_service_pb2_grpc.FeedServiceStub),
        (token_service_pb2, token_service_pb2_grpc.TokenServiceStub),
    )


class AlipayPlus:
    """The other side: signs what it sends, verifies what it gets."""

    def __init__(self, url, keys):
        self.url = url
        private = (keys / "alipayplus.private.pem").read_bytes()
        self.private = serialization.load_pem_private_key(private, None)
        self.wallet = serialization.load_pem_public_key((keys / "wallet.public.pem").read_bytes())

    def post(self, path, body):
        body = json.dumps(body).encode()
        target = urllib.parse.urlsplit(self.url).path + path
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        text = f"POST {target}\n{CLIENT}.{now}.".encode() + body
        signature = base64.b64encode(self.private.sign(text, padding.PKCS1v15(), hashes.SHA256()))
        signature = urllib.parse.quote(signature, safe="")
        headers = {
            "Content-Type": "application/json; charset=UTF-8",
            "Client-Id": CLIENT,
            "Request-Time": now,
            "Signature": f"algorithm=RSA256,keyVersion=1,signature={signature}",
        }
        request = urllib.request.Request(self.url + path, body, headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            answer = response.read()
            self.verify(target, response.headers, answer)
        return json.loads(answer)

    def verify(self, target, headers, answer):
        """Raises InvalidSignature unless the wallet signed exactly these bytes for this path, client and time."""
        signature = re.search("signature=([^,]+)$", headers["Signature"])[1]
        signature = base64.b64decode(urllib.parse.unquote(signature))
        text = f"POST {target}\n{headers['Client-Id']}.{headers['Response-Time']}.".encode() + answer
        self.wallet.verify(signature, text, padding.PKCS1v15(), hashes.SHA256())


class Executor:
    """Returns money. Its own ledger holds what it did by event, and where it is, in one transaction: events come at
    least once, money moves once."""

    def __init__(self, wire, stub, payments):
        (self.wire, self.feed), (self.payment_wire, self.payments) = (wire, stub), payments
        self.ledger = sqlite3.connect(":memory:")  # a real one is on a disk
        self.ledger.execute("CREATE TABLE done (event TEXT PRIMARY KEY, reference TEXT)")
        self.ledger.execute("CREATE TABLE place (part INTEGER PRIMARY KEY, position INTEGER, epoch INTEGER)")

    def run_until(self, payment):
        """Follows the feed until the money of this payment is back."""
        # what was kept tells the service whether it was restored from an older backup
        kept = self.ledger.execute("SELECT part, position, epoch FROM place").fetchall()
        subscribe = self.wire.SubscribeRequest(consumer="executor-in-python")
        if kept:
            subscribe.epoch = kept[0][2]
            subscribe.last_seen.extend(self.wire.PartitionPosition(partition=part, position=at) for part, at, _ in kept)
        stream = self.feed.Subscribe(subscribe)
        first = next(stream)  # names the subscription
        for message in stream:
            if not message.HasField("event"):
                continue  # a sign of life
            event = message.event
            due = event.kind == self.wire.EVENT_KIND_FUND_RETURN_DUE
            # the reference hangs on the event, so that the bank knows a repeat too
            reference = f"return-{event.event_id}"
            with self.ledger:  # one transaction
                place = (event.partition, event.position, message.epoch)
                self.ledger.execute("INSERT OR REPLACE INTO place VALUES (?, ?, ?)", place)
                if due:
                    self.ledger.execute("INSERT OR IGNORE INTO done VALUES (?, ?)", (event.event_id, reference))
            if due:
                self.give_back(event, reference)
            # a busy one acknowledges many at once
            at = self.wire.PartitionPosition(partition=event.partition, position=event.position)
            self.feed.Acknowledge(
                self.wire.AcknowledgeRequest(
                    consumer=subscribe.consumer, positions=[at], epoch=message.epoch, subscription_id=first.subscription_id
                ),
                timeout=TIMEOUT,
            )
            if due and event.payment_request_id == payment:
                stream.cancel()
                return event.amount

    def give_back(self, event, reference):
        # … here the user's account is credited, under this reference …
        returned = self.payment_wire.RecordFundReturnRequest(
            psp_id=event.psp_id, payment_request_id=event.payment_request_id, reference=reference
        )
        answer = self.payments.RecordFundReturn(returned, timeout=TIMEOUT).answer
        # anything else is for people to look at: the money may have gone back twice
        assert answer == self.payment_wire.RECORD_FUND_RETURN_ANSWER_ACCEPTED, event


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--grpc", default="127.0.0.1:50051")
    arguments.add_argument("--json", default="http://127.0.0.1:8080/aps/api")
    arguments.add_argument("--keys", type=pathlib.Path, default=pathlib.Path(".sandbox"))
    arguments.add_argument("--proto", default=pathlib.Path(__file__).parents[2] / "proto")
    arguments = arguments.parse_args()

    (payment_wire, payments), (feed_wire, feed), (token_wire, tokens) = generated(arguments.proto)
    # with TLS: grpc.secure_channel and the wallet's own certificate
    channel = grpc.insecure_channel(arguments.grpc)
    payments, feed, tokens = payments(channel), feed(channel), tokens(channel)
    alipay_plus = AlipayPlus(arguments.json, arguments.keys)

    # the payment core: nothing is debited without PROCEED
    payment = f"python-{uuid.uuid4()}"
    record = payment_wire.RecordPaymentRequest(psp_id=PSP, payment_request_id=payment, acquirer_id=ACQUIRER)
    record.initiated.amount.value, record.initiated.amount.currency = 1999, "EUR"
    record.initiated.initiated_at.FromSeconds(int(time.time()))
    answer = payments.RecordPayment(record, timeout=TIMEOUT).answer
    assert answer == payment_wire.RECORD_PAYMENT_ANSWER_PROCEED, answer
    # … here the user is debited …
    initiated = payment_wire.PaymentInitiated()
    initiated.CopyFrom(record.initiated)
    record.succeeded.amount.CopyFrom(initiated.amount)
    record.succeeded.initiated_at.CopyFrom(initiated.initiated_at)
    answer = payments.RecordPayment(record, timeout=TIMEOUT).answer
    assert answer == payment_wire.RECORD_PAYMENT_ANSWER_ACCEPTED, answer
    print(f"recorded {payment}")

    # Alipay+ cancels, and hears the same however often it asks
    cancel = {"pspId": PSP, "acquirerId": ACQUIRER, "paymentRequestId": payment}
    answers = [alipay_plus.post("/v1/payments/cancelPayment", cancel) for _ in range(2)]
    assert all(answer["result"]["resultStatus"] == "S" for answer in answers), answers
    print("cancelled, twice, and both signatures verify")

    executor = Executor(feed_wire, feed, (payment_wire, payments))
    amount = executor.run_until(payment)
    told = payments.GetPayment(payment_wire.GetPaymentRequest(psp_id=PSP, payment_request_id=payment), timeout=TIMEOUT)
    assert told.payment.funds == payment_wire.FUNDS_RETURNED, told
    print(f"returned {amount.value} {amount.currency} minor units; inquiryPayment answers {told.inquiry.result_code}")

    # the authorization server: a token leaves the wallet only after ACCEPTED
    token = f"token-{uuid.uuid4()}"
    record = token_wire.RecordTokenRequest(
        psp_id=PSP, acquirer_id=ACQUIRER, authorization_id=f"consent-{uuid.uuid4()}", token=token
    )
    record.kind = token_wire.TOKEN_KIND_ACCESS
    assert tokens.RecordToken(record, timeout=TIMEOUT).answer == token_wire.RECORD_TOKEN_ANSWER_ACCEPTED
    introspect = token_wire.IntrospectTokenRequest(psp_id=PSP, token=token)
    assert tokens.IntrospectToken(introspect, timeout=TIMEOUT).active
    cancel = {"pspId": PSP, "acquirerId": ACQUIRER, "accessToken": token}
    answer = alipay_plus.post("/v1/authorizations/cancelToken", cancel)
    assert answer["result"]["resultStatus"] == "S", answer
    assert not tokens.IntrospectToken(introspect, timeout=TIMEOUT).active
    print("a token was good, was cancelled, and is good no more")


if __name__ == "__main__":
    main()
