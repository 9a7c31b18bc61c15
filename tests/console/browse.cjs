// The console in a real browser: search, timeline, lists, hostile values, nothing from elsewhere, axe-core on every page.
// usage: node browse.cjs ADMIN_URL GRPC_ADDRESS PROTO_DIR CHROMIUM [FOLDER_FOR_PICTURES]
"use strict";
const assert = require("node:assert/strict");
const path = require("node:path");
const { chromium } = require("playwright-core");
const axe = require("axe-core").source;
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [url, address, protos, executablePath, pictures] = process.argv.slice(2);
const PSP = "1022172000000000001";
const HOSTILE = [
  `<script>window.hit=1</script>`,
  `"><img src=x onerror=window.hit=1>`,
  `'onmouseover='window.hit=1`,
  `</title><svg onload=window.hit=1>`,
  `&lt;b&gt;{{7*7}}\${7*7}`,
  `javascript:window.hit=1//`,
  `../../console?a=b&c=%3Cb%3E#d`,
  `\u202Eevil\u2066\uFEFFmore`,
];

const definition = loader.loadSync(
  ["payment_service", "token_service", "cancel_service", "feed_service"].map((it) => `alipayplus/cancel/v1/${it}.proto`),
  { includeDirs: [protos], keepCase: true, longs: String, enums: String, defaults: true },
);
const api = grpc.loadPackageDefinition(definition).alipayplus.cancel.v1;
const client = (name) => new api[name](address, grpc.credentials.createInsecure());
const [payments, tokens, cancels, feed] = ["PaymentService", "TokenService", "CancelService", "FeedService"].map(client);
const call = (service, method, request) =>
  new Promise((good, bad) => service[method](request, (error, answer) => (error ? bad(error) : good(answer))));

// a payment whose every text is hostile, an authorization, and a parked event
async function plant(text, nth) {
  const key = { psp_id: PSP, payment_request_id: text };
  const acquirer_id = `${text}`.slice(0, 64);
  const amount = { value: 100 + nth, currency: "EUR" };
  const seconds = Math.floor(Date.now() / 1000);
  await call(payments, "RecordPayment", { ...key, acquirer_id, succeeded: { amount, initiated_at: { seconds } } });
  await call(payments, "RecordPayment", { ...key, refund_started: { refund_id: text, amount: { value: 1, currency: "EUR" } } });
  await call(payments, "RecordPayment", { ...key, refund_failed: { refund_id: text } });
  await call(cancels, "CancelPayment", { ...key, acquirer_id });
  if (nth % 2 === 0) await call(payments, "RecordFundReturn", { ...key, reference: text });
  const authorization_id = `${text}`.slice(0, 60) + "auth";
  await call(tokens, "RecordToken", { psp_id: PSP, acquirer_id, authorization_id, token: `planted-${nth}-${text}`, kind: "TOKEN_KIND_ACCESS" });
  await call(tokens, "RevokeAuthorization", { psp_id: PSP, authorization_id });
  return authorization_id;
}

async function parkOne(consumer, reason) {
  const stream = feed.Subscribe({ consumer });
  let epoch, subscription_id;
  for await (const step of stream) {
    epoch = step.epoch;
    subscription_id = step.subscription_id || subscription_id;
    if (!step.event) continue;
    const { event_id, partition, position } = step.event;
    await call(feed, "Park", { consumer, event_id, reason, partition, position, epoch, subscription_id });
    break;
  }
  stream.destroy();
}

async function main() {
  const authorizations = [];
  for (const [nth, text] of HOSTILE.entries()) authorizations.push(await plant(text, nth));
  await parkOne("browser-test", HOSTILE[1]);

  const browser = await chromium.launch({
    executablePath,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync"],
  });
  const looks = [
    { name: "light", colorScheme: "light", viewport: { width: 1180, height: 860 } },
    { name: "dark", colorScheme: "dark", viewport: { width: 1180, height: 860 } },
    { name: "phone", colorScheme: "light", viewport: { width: 390, height: 844 } },
  ];
  let pages = 0;
  for (const { name, ...options } of looks) {
    // the console needs no script: one look has none at all
    const context = await browser.newContext({ ...options, javaScriptEnabled: name !== "dark" });
    const page = await context.newPage();
    const wrong = [];
    page.on("dialog", (dialog) => { wrong.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
    page.on("pageerror", (error) => wrong.push(`error: ${error}`));
    page.on("console", (message) => message.type() === "error" && !/404/.test(message.text()) && wrong.push(message.text()));
    page.on("request", (request) => request.url().startsWith(url) || wrong.push(`request to ${request.url()}`));
    const look = async (target) => {
      const answered = await page.goto(url + target);
      pages += 1;
      if (name === "dark") return answered;
      assert.equal(await page.evaluate(() => window.hit), undefined, `something ran on ${target}`);
      await page.evaluate(axe);
      const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
      const serious = found.violations.filter((it) => ["serious", "critical"].includes(it.impact));
      assert.deepEqual(serious.map((it) => `${it.id}: ${it.nodes[0].html}`), [], `${name} ${target}`);
      const over = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
      assert.ok(over <= 0, `${target} is ${over} px wider than a ${name} window`);
      return answered;
    };
    const shot = (file) => pictures && page.screenshot({ path: path.join(pictures, `console-${file}-${name}.png`), fullPage: true });

    // search, by keyboard alone
    await look("/console");
    await shot("overview");
    await page.keyboard.press("Tab");
    assert.equal(await page.locator(":focus").innerText(), "Skip to the page");
    await page.locator("#id").focus();
    await page.keyboard.type("demo-returned-1");
    await page.keyboard.press("Enter");
    await page.waitForURL(/console\/payment/);
    assert.equal(await page.locator("h1").innerText(), "Payment demo-returned-1");
    assert.match(await page.locator(".answer").innerText(), /Cancelled\. 49\.90 EUR went back to the user on /);
    const steps = await page.locator(".timeline li").allInnerTexts();
    assert.equal(steps.length, 5, steps.join("\n"));
    for (const [nth, words] of ["The payment began", "reported", "A cancel was decided", "Money is due back", "went back"].entries())
      assert.ok(steps[nth].includes(words), `${steps[nth]} has no ${words}`);
    assert.match(steps[2], /Asked by Alipay\+'s client SANDBOX_/);
    assert.match(await page.locator("dl").innerText(), /ORDER_IS_CLOSED/);
    await shot("payment");
    await look(`/console/payment?psp=${PSP}&id=demo-returned-1`);

    // what every other state says
    for (const [id, words] of [
      ["demo-due-1", /12\.50 EUR has to go back to the user, and no return was reported yet/],
      ["demo-late-success", /21\.99 USD has to go back/],
      ["demo-returned-2", /129900 JPY went back/],
      ["demo-never-seen", /Nothing was taken, and nothing will be/],
      ["demo-unresolved-1", /has not said yet what became of it/],
      ["demo-too-late", /Not cancelled: Alipay\+ asked after the time/],
      ["demo-refunded", /Not cancelled: it had been refunded/],
      ["demo-paid", /Paid, and nobody asked/],
    ]) {
      await look(`/console/payment?psp=${PSP}&id=${id}`);
      assert.match(await page.locator(".answer").innerText(), words, id);
    }
    await look(`/console/find?id=demo-consent-cancelled`);
    assert.match(await page.locator(".answer").innerText(), /Revoked: Alipay\+ asked/);
    await look(`/console/authorization?psp=${PSP}&id=demo-consent-revoked`);
    assert.match(await page.locator(".answer").innerText(), /the user or the wallet revoked it/);
    const missing = await look("/console/find?id=no-such-thing");
    assert.equal(missing.status(), 404);
    assert.match(await page.locator(".answer").innerText(), /Nothing is known of no-such-thing/);

    await look("/console/outstanding");
    const due = await page.locator("table").first().locator("tbody tr").allInnerTexts();
    const at = (id) => due.findIndex((row) => row.includes(id));
    assert.ok(at("demo-due-1") >= 0 && at("demo-due-1") < at("demo-late-success"), `oldest first: ${due}`);
    await shot("outstanding");
    await page.locator("a", { hasText: "demo-due-1" }).first().click();
    assert.equal(await page.locator("h1").innerText(), "Payment demo-due-1");
    await look("/console/consumers");
    assert.match(await page.locator("main").innerText(), /refund-executor/);
    await shot("consumers");
    await look("/console/parked?consumer=customer-notifier");
    assert.match(await page.locator("main").innerText(), /no e-mail address is known/);
    await look("/console/clients");
    assert.match(await page.locator("main").innerText(), /SANDBOX_5YC47N2ZQHJ004124/);

    // values that want to be more than text
    for (const [nth, text] of HOSTILE.entries()) {
      await look(`/console/find?id=${encodeURIComponent(text)}`);
      const shown = (await page.locator("dl dd").first().innerText()).trim();
      assert.equal(shown, text, "a value is shown as it is");
      assert.equal(await page.locator("main script, main img, main b, header svg").count(), 0);
      await look(`/console/authorization?psp=${PSP}&id=${encodeURIComponent(authorizations[nth])}`);
      assert.equal((await page.locator("dl dd").first().innerText()).trim(), authorizations[nth]);
      await look(`/console/find?psp=${encodeURIComponent(text)}&id=${encodeURIComponent(text + "?")}`.slice(0, 400));
      await look(`/console/parked?consumer=${encodeURIComponent(text)}`);
    }
    await look("/console/parked?consumer=browser-test");
    assert.ok((await page.locator("main").innerText()).includes(HOSTILE[1]));
    assert.deepEqual(wrong, [], name);
    await context.close();
  }
  await browser.close();
  console.log(`${pages} pages in ${looks.length} looks (light, dark without scripts, phone): well`);
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
