// What a wallet's services do with alipayplus-cancel, in Node: record, cancel, follow the feed, return the money.
//
//     npm install
//     node wallet.js --grpc 127.0.0.1:50051 --json http://127.0.0.1:8080/aps/api --keys .sandbox
//
// Three of the wallet's services are in this file: the payment core, the executor of fund returns and the authorization
// server. Alipay+ is played too, so that there is something to cancel: it signs its requests and trusts an answer only
// once its signature verifies.

import assert from "node:assert/strict";
import { createPublicKey, randomUUID, sign, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";

import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const PSP = "1022172000000000001";
const ACQUIRER = "1022188000000000001";
const CLIENT = "SANDBOX_5YC47N2ZQHJ004124";
// A cancel is answered within 6.5 s and 3.5 s; whoever calls waits a little longer, and asks again with the same ids.
const TIMEOUT_MS = 8_000;

/** The services of the contract, with methods that promise. 64-bit numbers are BigInt-safe texts, enums their names. */
function connect(proto, address) {
  const files = ["payment", "feed", "token"].map((name) => `alipayplus/cancel/v1/${name}_service.proto`);
  const options = { includeDirs: [proto], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true };
  const services = grpc.loadPackageDefinition(loader.loadSync(files, options)).alipayplus.cancel.v1;
  const promising = (Service) => {
    // with TLS: grpc.credentials.createSsl and the wallet's own certificate
    const client = new Service(address, grpc.credentials.createInsecure());
    return new Proxy(client, {
      get: (_, method) => (request) =>
        client[method].requestStream || client[method].responseStream
          ? client[method](request)
          : new Promise((resolve, reject) => {
              const done = (error, answer) => (error ? reject(error) : resolve(answer));
              client[method](request, { deadline: Date.now() + TIMEOUT_MS }, done);
            }),
    });
  };
  return [services.PaymentService, services.FeedService, services.TokenService].map(promising);
}

/** The other side: signs what it sends, verifies what it gets. */
class AlipayPlus {
  constructor(url, keys) {
    this.url = url;
    this.privateKey = readFileSync(join(keys, "alipayplus.private.pem"));
    this.wallet = createPublicKey(readFileSync(join(keys, "wallet.public.pem")));
  }

  async post(path, content) {
    const body = JSON.stringify(content);
    const target = new URL(this.url + path).pathname;
    const now = new Date().toISOString();
    const text = `POST ${target}\n${CLIENT}.${now}.${body}`;
    const signature = encodeURIComponent(sign("sha256", text, this.privateKey).toString("base64"));
    const headers = {
      "Content-Type": "application/json; charset=UTF-8",
      "Client-Id": CLIENT,
      "Request-Time": now,
      Signature: `algorithm=RSA256,keyVersion=1,signature=${signature}`,
    };
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    const response = await fetch(this.url + path, { method: "POST", headers, body, signal });
    const answer = Buffer.from(await response.arrayBuffer());
    this.verify(target, response.headers, answer);
    return JSON.parse(answer);
  }

  /** Throws unless the wallet signed exactly these bytes for this path, client and time. */
  verify(target, headers, answer) {
    const signature = decodeURIComponent(headers.get("signature").match(/signature=([^,]+)$/)[1]);
    const head = `POST ${target}\n${headers.get("client-id")}.${headers.get("response-time")}.`;
    const text = Buffer.concat([Buffer.from(head), answer]);
    const good = verify("sha256", text, this.wallet, Buffer.from(signature, "base64"));
    assert(good, "the answer's signature does not verify: it is nobody's answer");
  }
}

/**
 * Returns money. Its own ledger holds what it did by event, and where it is, in one transaction: events come at least
 * once, money moves once. (A real ledger is a database.)
 */
class Executor {
  ledger = new Map();
  places = new Map();

  constructor(feed, payments) {
    Object.assign(this, { feed, payments, consumer: "executor-in-node" });
  }

  /** Follows the feed until the money of this payment is back. */
  async runUntil(payment) {
    const subscribe = { consumer: this.consumer };
    if (this.places.size > 0) {
      // what was kept tells the service whether it was restored from an older backup
      subscribe.epoch = this.epoch;
      subscribe.last_seen = [...this.places].map(([partition, position]) => ({ partition, position }));
    }
    const stream = this.feed.Subscribe(subscribe);
    let subscription;
    try {
      for await (const { event, epoch, subscription_id } of stream) {
        subscription ??= subscription_id; // the first message names it
        if (!event) continue; // a sign of life
        const due = event.kind === "EVENT_KIND_FUND_RETURN_DUE";
        // the reference hangs on the event, so that the bank knows a repeat too
        const reference = `return-${event.event_id}`;
        // one transaction
        if (due) this.ledger.set(event.event_id, reference);
        this.places.set(event.partition, event.position);
        this.epoch = epoch;
        if (due) await this.giveBack(event, reference);
        // a busy one acknowledges many at once
        const positions = [{ partition: event.partition, position: event.position }];
        const acknowledge = { consumer: this.consumer, positions, epoch, subscription_id: subscription };
        await this.feed.Acknowledge(acknowledge);
        if (due && event.payment_request_id === payment) return event.amount;
      }
    } finally {
      stream.on("error", () => {}); // that it was cancelled is no news
      stream.cancel();
    }
    throw new Error("the stream ended: subscribe again, at another replica");
  }

  async giveBack({ event_id, psp_id, payment_request_id }, reference) {
    // … here the user's account is credited, under this reference …
    const { answer } = await this.payments.RecordFundReturn({ psp_id, payment_request_id, reference });
    // anything else is for people to look at: the money may have gone back twice
    assert.equal(answer, "RECORD_FUND_RETURN_ANSWER_ACCEPTED", event_id);
  }
}

const { values: options } = parseArgs({
  options: {
    grpc: { type: "string", default: "127.0.0.1:50051" },
    json: { type: "string", default: "http://127.0.0.1:8080/aps/api" },
    keys: { type: "string", default: ".sandbox" },
    proto: { type: "string", default: join(import.meta.dirname, "../../proto") },
  },
});
const [payments, feed, tokens] = connect(options.proto, options.grpc);
const alipayPlus = new AlipayPlus(options.json, options.keys);

// the payment core: nothing is debited without PROCEED
const payment = `node-${randomUUID()}`;
const key = { psp_id: PSP, payment_request_id: payment };
const fact = {
  amount: { value: "1999", currency: "EUR" },
  initiated_at: { seconds: Math.floor(Date.now() / 1_000) },
};
let { answer } = await payments.RecordPayment({ ...key, acquirer_id: ACQUIRER, initiated: fact });
assert.equal(answer, "RECORD_PAYMENT_ANSWER_PROCEED");
// … here the user is debited …
({ answer } = await payments.RecordPayment({ ...key, acquirer_id: ACQUIRER, succeeded: fact }));
assert.equal(answer, "RECORD_PAYMENT_ANSWER_ACCEPTED");
console.log(`recorded ${payment}`);

// Alipay+ cancels, and hears the same however often it asks
for (let time = 0; time < 2; time++) {
  const cancel = { pspId: PSP, acquirerId: ACQUIRER, paymentRequestId: payment };
  const { result } = await alipayPlus.post("/v1/payments/cancelPayment", cancel);
  assert.equal(result.resultStatus, "S");
}
console.log("cancelled, twice, and both signatures verify");

const amount = await new Executor(feed, payments).runUntil(payment);
const told = await payments.GetPayment(key);
assert.equal(told.payment.funds, "FUNDS_RETURNED");
const inquiry = told.inquiry.result_code;
console.log(`returned ${amount.value} ${amount.currency} minor units; inquiryPayment answers ${inquiry}`);

// the authorization server: a token leaves the wallet only after ACCEPTED
const token = `token-${randomUUID()}`;
const grant = { psp_id: PSP, acquirer_id: ACQUIRER, authorization_id: `consent-${randomUUID()}` };
({ answer } = await tokens.RecordToken({ ...grant, token, kind: "TOKEN_KIND_ACCESS" }));
assert.equal(answer, "RECORD_TOKEN_ANSWER_ACCEPTED");
assert((await tokens.IntrospectToken({ psp_id: PSP, token })).active);
const { result } = await alipayPlus.post("/v1/authorizations/cancelToken", {
  pspId: PSP,
  acquirerId: ACQUIRER,
  accessToken: token,
});
assert.equal(result.resultStatus, "S");
assert(!(await tokens.IntrospectToken({ psp_id: PSP, token })).active);
console.log("a token was good, was cancelled, and is good no more");
process.exit(0); // open channels would keep it
