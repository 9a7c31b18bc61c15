import alipayplus.cancel.v1.AcknowledgeRequest;
import alipayplus.cancel.v1.Amount;
import alipayplus.cancel.v1.CancellationEvent;
import alipayplus.cancel.v1.EventKind;
import alipayplus.cancel.v1.FeedServiceGrpc;
import alipayplus.cancel.v1.Funds;
import alipayplus.cancel.v1.GetPaymentRequest;
import alipayplus.cancel.v1.IntrospectTokenRequest;
import alipayplus.cancel.v1.PartitionPosition;
import alipayplus.cancel.v1.PaymentInitiated;
import alipayplus.cancel.v1.PaymentServiceGrpc;
import alipayplus.cancel.v1.PaymentSucceeded;
import alipayplus.cancel.v1.RecordFundReturnAnswer;
import alipayplus.cancel.v1.RecordFundReturnRequest;
import alipayplus.cancel.v1.RecordPaymentAnswer;
import alipayplus.cancel.v1.RecordPaymentRequest;
import alipayplus.cancel.v1.RecordTokenAnswer;
import alipayplus.cancel.v1.RecordTokenRequest;
import alipayplus.cancel.v1.SubscribeRequest;
import alipayplus.cancel.v1.SubscribeResponse;
import alipayplus.cancel.v1.TokenKind;
import alipayplus.cancel.v1.TokenServiceGrpc;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.Timestamp;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.netty.NettyChannelBuilder;
import java.net.URI;
import java.net.URLDecoder;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyFactory;
import java.security.PrivateKey;
import java.security.PublicKey;
import java.security.Signature;
import java.security.spec.PKCS8EncodedKeySpec;
import java.security.spec.X509EncodedKeySpec;
import java.time.Duration;
import java.time.OffsetDateTime;
import java.time.temporal.ChronoUnit;
import java.util.Base64;
import java.util.HashMap;
import java.util.Iterator;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.TimeUnit;

/**
 * What a wallet's services do with alipayplus-cancel, in Java: record, cancel, follow the feed, return the money.
 *
 * <pre>java Wallet --grpc 127.0.0.1:50051 --json http://127.0.0.1:8080/aps/api --keys .sandbox</pre>
 *
 * <p>Three of the wallet's services are in this file: the payment core, the executor of fund returns and the
 * authorization server. Alipay+ is played too, so that there is something to cancel: it signs its requests and trusts an
 * answer only once its signature verifies.
 */
public final class Wallet {
    private static final String PSP = "1022172000000000001";
    private static final String ACQUIRER = "1022188000000000001";
    private static final String CLIENT = "SANDBOX_5YC47N2ZQHJ004124";
    /** A cancel is answered within 6.5 s and 3.5 s; whoever calls waits a little longer, and asks again with the same ids. */
    private static final Duration TIMEOUT = Duration.ofSeconds(8);

    /** The other side: signs what it sends, verifies what it gets. */
    private static final class AlipayPlus {
        private final String url;
        private final PrivateKey key;
        private final PublicKey wallet;
        private final HttpClient http = HttpClient.newHttpClient();

        AlipayPlus(String url, Path keys) throws Exception {
            this.url = url;
            KeyFactory rsa = KeyFactory.getInstance("RSA");
            key = rsa.generatePrivate(new PKCS8EncodedKeySpec(pem(keys.resolve("alipayplus.private.pem"))));
            wallet = rsa.generatePublic(new X509EncodedKeySpec(pem(keys.resolve("wallet.public.pem"))));
        }

        private static byte[] pem(Path file) throws Exception {
            return Base64.getMimeDecoder().decode(Files.readString(file).replaceAll("-----[^-]+-----", ""));
        }

        JsonObject post(String path, JsonObject content) throws Exception {
            byte[] body = content.toString().getBytes(StandardCharsets.UTF_8);
            URI address = URI.create(url + path);
            String now = OffsetDateTime.now().truncatedTo(ChronoUnit.SECONDS).toString();
            Signature signer = Signature.getInstance("SHA256withRSA");
            signer.initSign(key);
            signer.update(head(address, CLIENT, now));
            signer.update(body);
            String signature = Base64.getEncoder().encodeToString(signer.sign());
            HttpRequest request =
                    HttpRequest.newBuilder(address)
                            .timeout(TIMEOUT)
                            .version(HttpClient.Version.HTTP_1_1)
                            .header("Content-Type", "application/json; charset=UTF-8")
                            .header("Client-Id", CLIENT)
                            .header("Request-Time", now)
                            .header(
                                    "Signature",
                                    "algorithm=RSA256,keyVersion=1,signature="
                                            + URLEncoder.encode(signature, StandardCharsets.UTF_8))
                            .POST(HttpRequest.BodyPublishers.ofByteArray(body))
                            .build();
            HttpResponse<byte[]> response = http.send(request, HttpResponse.BodyHandlers.ofByteArray());
            verify(address, response);
            return JsonParser.parseString(new String(response.body(), StandardCharsets.UTF_8)).getAsJsonObject();
        }

        /** Throws unless the wallet signed exactly these bytes for this path, client and time. */
        private void verify(URI address, HttpResponse<byte[]> response) throws Exception {
            String header = response.headers().firstValue("signature").orElseThrow();
            String value = header.substring(header.indexOf("signature=") + "signature=".length());
            Signature verifier = Signature.getInstance("SHA256withRSA");
            verifier.initVerify(wallet);
            String client = response.headers().firstValue("client-id").orElseThrow();
            String time = response.headers().firstValue("response-time").orElseThrow();
            verifier.update(head(address, client, time));
            verifier.update(response.body());
            byte[] signature = Base64.getDecoder().decode(URLDecoder.decode(value, StandardCharsets.UTF_8));
            expect(verifier.verify(signature), "the answer's signature does not verify: it is nobody's answer");
        }

        private static byte[] head(URI address, String client, String time) {
            String text = "POST " + address.getRawPath() + "\n" + client + "." + time + ".";
            return text.getBytes(StandardCharsets.UTF_8);
        }
    }

    /**
     * Returns money. Its own ledger holds what it did by event, and where it is, in one transaction: events come at
     * least once, money moves once. (A real ledger is a database.)
     */
    private static final class Executor {
        private static final String CONSUMER = "executor-in-java";
        private final FeedServiceGrpc.FeedServiceBlockingStub feed;
        private final PaymentServiceGrpc.PaymentServiceBlockingStub payments;
        private final Map<String, String> ledger = new HashMap<>();
        private final Map<Integer, Long> places = new HashMap<>();
        private long epoch;

        Executor(ManagedChannel channel) {
            feed = FeedServiceGrpc.newBlockingStub(channel);
            payments = PaymentServiceGrpc.newBlockingStub(channel);
        }

        /** Follows the feed until the money of this payment is back. */
        Amount runUntil(String payment) throws Exception {
            SubscribeRequest.Builder subscribe = SubscribeRequest.newBuilder().setConsumer(CONSUMER);
            if (!places.isEmpty()) {
                // what was kept tells the service whether it was restored from an older backup
                subscribe.setEpoch(epoch);
                places.forEach((partition, position) -> subscribe.addLastSeen(place(partition, position)));
            }
            Context.CancellableContext context = Context.current().withCancellation();
            Context before = context.attach();
            try {
                Iterator<SubscribeResponse> stream = feed.subscribe(subscribe.build());
                String subscription = stream.next().getSubscriptionId();
                while (stream.hasNext()) {
                    SubscribeResponse message = stream.next();
                    if (!message.hasEvent()) {
                        continue; // a sign of life
                    }
                    CancellationEvent event = message.getEvent();
                    boolean due = event.getKind() == EventKind.EVENT_KIND_FUND_RETURN_DUE;
                    // the reference hangs on the event, so that the bank knows a repeat too
                    String reference = "return-" + event.getEventId();
                    // one transaction
                    if (due) {
                        ledger.put(event.getEventId(), reference);
                    }
                    places.put(event.getPartition(), event.getPosition());
                    epoch = message.getEpoch();
                    if (due) {
                        giveBack(event, reference);
                    }
                    // a busy one acknowledges many at once
                    feed.withDeadlineAfter(TIMEOUT.toSeconds(), TimeUnit.SECONDS)
                            .acknowledge(
                                    AcknowledgeRequest.newBuilder()
                                            .setConsumer(CONSUMER)
                                            .addPositions(place(event.getPartition(), event.getPosition()))
                                            .setEpoch(epoch)
                                            .setSubscriptionId(subscription)
                                            .build());
                    if (due && event.getPaymentRequestId().equals(payment)) {
                        return event.getAmount();
                    }
                }
                throw new IllegalStateException("the stream ended: subscribe again, at another replica");
            } finally {
                context.detach(before);
                context.cancel(null);
            }
        }

        private static PartitionPosition place(int partition, long position) {
            return PartitionPosition.newBuilder().setPartition(partition).setPosition(position).build();
        }

        private void giveBack(CancellationEvent event, String reference) {
            // … here the user's account is credited, under this reference …
            RecordFundReturnRequest returned =
                    RecordFundReturnRequest.newBuilder()
                            .setPspId(event.getPspId())
                            .setPaymentRequestId(event.getPaymentRequestId())
                            .setReference(reference)
                            .build();
            RecordFundReturnAnswer answer =
                    payments.withDeadlineAfter(TIMEOUT.toSeconds(), TimeUnit.SECONDS)
                            .recordFundReturn(returned)
                            .getAnswer();
            expect(
                    answer == RecordFundReturnAnswer.RECORD_FUND_RETURN_ANSWER_ACCEPTED,
                    "for people to look at: the money may have gone back twice");
        }
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, String> options = new HashMap<>();
        options.put("--grpc", "127.0.0.1:50051");
        options.put("--json", "http://127.0.0.1:8080/aps/api");
        options.put("--keys", ".sandbox");
        for (int at = 0; at + 1 < arguments.length; at += 2) {
            options.put(arguments[at], arguments[at + 1]);
        }
        // with TLS: useTransportSecurity and the wallet's own certificate
        ManagedChannel channel = NettyChannelBuilder.forTarget(options.get("--grpc")).usePlaintext().build();
        try {
            run(channel, new AlipayPlus(options.get("--json"), Path.of(options.get("--keys"))));
        } finally {
            channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
        }
    }

    private static void run(ManagedChannel channel, AlipayPlus alipayPlus) throws Exception {
        PaymentServiceGrpc.PaymentServiceBlockingStub payments = PaymentServiceGrpc.newBlockingStub(channel);
        TokenServiceGrpc.TokenServiceBlockingStub tokens = TokenServiceGrpc.newBlockingStub(channel);

        // the payment core: nothing is debited without PROCEED
        String payment = "java-" + UUID.randomUUID();
        Amount amount = Amount.newBuilder().setValue(1999).setCurrency("EUR").build();
        Timestamp begun = Timestamp.newBuilder().setSeconds(System.currentTimeMillis() / 1000).build();
        RecordPaymentRequest.Builder record =
                RecordPaymentRequest.newBuilder().setPspId(PSP).setPaymentRequestId(payment).setAcquirerId(ACQUIRER);
        record.setInitiated(PaymentInitiated.newBuilder().setAmount(amount).setInitiatedAt(begun));
        RecordPaymentAnswer recorded = payments.recordPayment(record.build()).getAnswer();
        expect(recorded == RecordPaymentAnswer.RECORD_PAYMENT_ANSWER_PROCEED, recorded);
        // … here the user is debited …
        record.setSucceeded(PaymentSucceeded.newBuilder().setAmount(amount).setInitiatedAt(begun));
        recorded = payments.recordPayment(record.build()).getAnswer();
        expect(recorded == RecordPaymentAnswer.RECORD_PAYMENT_ANSWER_ACCEPTED, recorded);
        System.out.println("recorded " + payment);

        // Alipay+ cancels, and hears the same however often it asks
        JsonObject cancel = cancel();
        cancel.addProperty("paymentRequestId", payment);
        for (int time = 0; time < 2; time++) {
            expect(status(alipayPlus.post("/v1/payments/cancelPayment", cancel)).equals("S"), cancel);
        }
        System.out.println("cancelled, twice, and both signatures verify");

        Amount back = new Executor(channel).runUntil(payment);
        var told =
                payments.getPayment(
                        GetPaymentRequest.newBuilder().setPspId(PSP).setPaymentRequestId(payment).build());
        expect(told.getPayment().getFunds() == Funds.FUNDS_RETURNED, told);
        System.out.printf(
                "returned %d %s minor units; inquiryPayment answers %s%n",
                back.getValue(), back.getCurrency(), told.getInquiry().getResultCode());

        // the authorization server: a token leaves the wallet only after ACCEPTED
        String token = "token-" + UUID.randomUUID();
        RecordTokenRequest grant =
                RecordTokenRequest.newBuilder()
                        .setPspId(PSP)
                        .setAcquirerId(ACQUIRER)
                        .setAuthorizationId("consent-" + UUID.randomUUID())
                        .setToken(token)
                        .setKind(TokenKind.TOKEN_KIND_ACCESS)
                        .build();
        RecordTokenAnswer granted = tokens.recordToken(grant).getAnswer();
        expect(granted == RecordTokenAnswer.RECORD_TOKEN_ANSWER_ACCEPTED, granted);
        IntrospectTokenRequest introspect =
                IntrospectTokenRequest.newBuilder().setPspId(PSP).setToken(token).build();
        expect(tokens.introspectToken(introspect).getActive(), "a new token is good");
        cancel = cancel();
        cancel.addProperty("accessToken", token);
        expect(status(alipayPlus.post("/v1/authorizations/cancelToken", cancel)).equals("S"), "a cancel succeeds");
        expect(!tokens.introspectToken(introspect).getActive(), "a cancelled token is good no more");
        System.out.println("a token was good, was cancelled, and is good no more");
    }

    private static JsonObject cancel() {
        JsonObject cancel = new JsonObject();
        cancel.addProperty("pspId", PSP);
        cancel.addProperty("acquirerId", ACQUIRER);
        return cancel;
    }

    private static String status(JsonObject answer) {
        return answer.getAsJsonObject("result").get("resultStatus").getAsString();
    }

    private static void expect(boolean is, Object told) {
        if (!is) {
            throw new IllegalStateException("not as it should be: " + told);
        }
    }
}
