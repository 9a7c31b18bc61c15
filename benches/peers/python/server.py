"""What one writes for cancelPayment with Python in an afternoon: FastAPI, cryptography, sqlite3 or psycopg.

It verifies the request, decides once for each payment, commits durably, and signs every answer. It has none of the other
rules.

    PRIVATE_KEY=wallet.pem PUBLIC_KEY=client.pem CLIENT=ID DATABASE=state.db|postgres://… python server.py
"""

import base64
import json
import os
import re
import socket
import sqlite3
import threading
import time
import urllib.parse

import uvicorn
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

CLIENT = os.environ["CLIENT"]
PATH = "/aps/api/v1/payments/cancelPayment"
with open(os.environ["PRIVATE_KEY"], "rb") as file:
    private_key = serialization.load_pem_private_key(file.read(), None)
with open(os.environ["PUBLIC_KEY"], "rb") as file:
    public_key = serialization.load_pem_public_key(file.read())

SCHEMA = [
    """CREATE TABLE payment (psp_id TEXT, payment_request_id TEXT, acquirer_id TEXT, result TEXT, decided_at BIGINT,
         PRIMARY KEY (psp_id, payment_request_id))""",
    """CREATE TABLE event (position {serial} PRIMARY KEY, psp_id TEXT, payment_request_id TEXT, kind TEXT,
         decided_at BIGINT)""",
]


def sqlite(file):
    database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    for statement in SCHEMA:
        database.execute(statement.format(serial="INTEGER"))
    lock = threading.Lock()

    def decide(psp, payment, acquirer):
        with lock:
            database.execute("BEGIN IMMEDIATE")
            try:
                known = database.execute(
                    "SELECT acquirer_id, result FROM payment WHERE psp_id = ? AND payment_request_id = ?", (psp, payment)
                ).fetchone()
                if known is None:
                    now = int(time.time() * 1000)
                    database.execute("INSERT INTO payment VALUES (?, ?, ?, 'SUCCESS', ?)", (psp, payment, acquirer, now))
                    database.execute(
                        "INSERT INTO event (psp_id, payment_request_id, kind, decided_at) VALUES (?, ?, 'CANCELLED', ?)",
                        (psp, payment, now),
                    )
                    known = (acquirer, "SUCCESS")
                database.execute("COMMIT")
            except BaseException:
                database.execute("ROLLBACK")
                raise
        return known[1] if known[0] == acquirer else "ACCESS_DENIED"

    return decide


def postgres(url):
    from psycopg_pool import ConnectionPool

    pool = ConnectionPool(url, min_size=8, max_size=8)
    with pool.connection() as database:
        for statement in SCHEMA:
            database.execute(statement.format(serial="BIGSERIAL"))

    def decide(psp, payment, acquirer):
        with pool.connection() as database:
            now = int(time.time() * 1000)
            made = database.execute(
                "INSERT INTO payment VALUES (%s, %s, %s, 'SUCCESS', %s) ON CONFLICT DO NOTHING",
                (psp, payment, acquirer, now),
            )
            if made.rowcount == 1:
                database.execute(
                    "INSERT INTO event (psp_id, payment_request_id, kind, decided_at) VALUES (%s, %s, 'CANCELLED', %s)",
                    (psp, payment, now),
                )
                return "SUCCESS"
            known = database.execute(
                "SELECT acquirer_id, result FROM payment WHERE psp_id = %s AND payment_request_id = %s", (psp, payment)
            ).fetchone()
            return known[1] if known[0] == acquirer else "ACCESS_DENIED"

    return decide


url = os.environ["DATABASE"]
decide = postgres(url) if url.startswith("postgres") else sqlite(url)
app = FastAPI()
CODES = {
    "SUCCESS": ("S", "Success"),
    "ACCESS_DENIED": ("F", "Access is denied."),
    "INVALID_CLIENT": ("F", "Invalid client."),
    "INVALID_SIGNATURE": ("F", "Invalid signature."),
    "PARAM_ILLEGAL": ("F", "Illegal parameters."),
    "UNKNOWN_EXCEPTION": ("U", "Unknown exception."),
}


def answer(code):
    status, message = CODES[code]
    body = json.dumps(
        {"result": {"resultCode": code, "resultStatus": status, "resultMessage": message}}, separators=(",", ":")
    ).encode()
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    signed = f"POST {PATH}\n{CLIENT}.{now}.".encode() + body
    signature = base64.b64encode(private_key.sign(signed, padding.PKCS1v15(), hashes.SHA256())).decode()
    return Response(
        body,
        headers={
            "content-type": "application/json; charset=UTF-8",
            "client-id": CLIENT,
            "response-time": now,
            "signature": f"algorithm=RSA256,keyVersion=1,signature={urllib.parse.quote_plus(signature)}",
        },
    )


def work(headers, body):
    if headers.get("client-id") != CLIENT:
        return answer("INVALID_CLIENT")
    given = re.search("signature=([^,]+)", headers.get("signature", ""))
    signed = f"POST {PATH}\n{CLIENT}.{headers.get('request-time')}.".encode() + body
    try:
        signature = base64.b64decode(urllib.parse.unquote(given[1])) if given else b""
        public_key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, ValueError):
        return answer("INVALID_SIGNATURE")
    try:
        asked = json.loads(body)
        ids = [asked["pspId"], asked["paymentRequestId"], asked["acquirerId"]]
    except (ValueError, KeyError, TypeError):
        return answer("PARAM_ILLEGAL")
    if not all(isinstance(it, str) and 1 <= len(it) <= 64 for it in ids):
        return answer("PARAM_ILLEGAL")
    try:
        return answer(decide(*ids))
    except Exception as error:
        print(error, flush=True)
        return answer("UNKNOWN_EXCEPTION")


@app.post(PATH)
async def cancel_payment(request: Request):
    return await run_in_threadpool(work, request.headers, await request.body())


if __name__ == "__main__":
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print("%s:%d" % listener.getsockname(), flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])
