// What a wallet's services do with alipayplus-cancel, in Go: record, cancel, follow the feed, return the money.
//
//	./generate && go run . --grpc 127.0.0.1:50051 --json http://127.0.0.1:8080/aps/api --keys .sandbox
//
// Three of the wallet's services are in this file: the payment core, the executor of fund returns and the authorization
// server. Alipay+ is played too, so that there is something to cancel: it signs its requests and trusts an answer only
// once its signature verifies.
package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "wallet/cancelv1"
)

const (
	psp      = "1022172000000000001"
	acquirer = "1022188000000000001"
	client   = "SANDBOX_5YC47N2ZQHJ004124"
	// A cancel is answered within 6.5 s and 3.5 s; whoever calls waits a little longer, and asks again with the same
	// ids.
	timeout = 8 * time.Second
)

// alipayPlus is the other side: it signs what it sends and verifies what it gets.
type alipayPlus struct {
	url     string
	private *rsa.PrivateKey
	wallet  *rsa.PublicKey
	http    http.Client
}

func newAlipayPlus(address, keys string) *alipayPlus {
	private := must(x509.ParsePKCS8PrivateKey(readPEM(filepath.Join(keys, "alipayplus.private.pem"))))
	public := must(x509.ParsePKIXPublicKey(readPEM(filepath.Join(keys, "wallet.public.pem"))))
	return &alipayPlus{address, private.(*rsa.PrivateKey), public.(*rsa.PublicKey), http.Client{Timeout: timeout}}
}

// answer is what both APIs have in common.
type answer struct {
	Result struct {
		ResultCode, ResultStatus, ResultMessage string
	}
}

func (side *alipayPlus) post(path string, content map[string]string) (answer, error) {
	var told answer
	body, err := json.Marshal(content)
	if err != nil {
		return told, err
	}
	request, err := http.NewRequest(http.MethodPost, side.url+path, bytes.NewReader(body))
	if err != nil {
		return told, err
	}
	now := time.Now().Format(time.RFC3339)
	text := fmt.Sprintf("POST %s\n%s.%s.%s", request.URL.Path, client, now, body)
	hash := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, side.private, crypto.SHA256, hash[:])
	if err != nil {
		return told, err
	}
	request.Header.Set("Content-Type", "application/json; charset=UTF-8")
	request.Header.Set("Client-Id", client)
	request.Header.Set("Request-Time", now)
	request.Header.Set("Signature", "algorithm=RSA256,keyVersion=1,signature="+
		url.QueryEscape(base64.StdEncoding.EncodeToString(signature)))
	response, err := side.http.Do(request)
	if err != nil {
		return told, err
	}
	defer response.Body.Close()
	received, err := io.ReadAll(response.Body)
	if err != nil {
		return told, err
	}
	if err := side.verify(request.URL.Path, response.Header, received); err != nil {
		return told, err
	}
	return told, json.Unmarshal(received, &told)
}

// verify fails unless the wallet signed exactly these bytes for this path, client and time.
func (side *alipayPlus) verify(path string, header http.Header, body []byte) error {
	_, value, _ := strings.Cut(header.Get("Signature"), "signature=")
	value, err := url.PathUnescape(value)
	if err != nil {
		return err
	}
	signature, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("POST %s\n%s.%s.%s", path, header.Get("Client-Id"), header.Get("Response-Time"), body)
	hash := sha256.Sum256([]byte(text))
	return rsa.VerifyPKCS1v15(side.wallet, crypto.SHA256, hash[:], signature)
}

// executor returns money. Its own ledger holds what it did by event, and where it is, in one transaction: events come
// at least once, money moves once. (A real ledger is a database.)
type executor struct {
	feed     pb.FeedServiceClient
	payments pb.PaymentServiceClient
	ledger   map[string]string
	places   map[uint32]uint64
	epoch    uint64
}

const consumer = "executor-in-go"

// runUntil follows the feed until the money of this payment is back.
func (one *executor) runUntil(ctx context.Context, payment string) (*pb.Amount, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	subscribe := &pb.SubscribeRequest{Consumer: consumer}
	if len(one.places) > 0 {
		// what was kept tells the service whether it was restored from an older backup
		subscribe.Epoch = &one.epoch
		for partition, position := range one.places {
			place := &pb.PartitionPosition{Partition: partition, Position: position}
			subscribe.LastSeen = append(subscribe.LastSeen, place)
		}
	}
	stream, err := one.feed.Subscribe(ctx, subscribe)
	if err != nil {
		return nil, err
	}
	first, err := stream.Recv() // names the subscription
	if err != nil {
		return nil, err
	}
	for {
		message, err := stream.Recv()
		if err != nil {
			return nil, err // subscribe again, at another replica
		}
		event := message.GetEvent()
		if event == nil {
			continue // a sign of life
		}
		due := event.GetKind() == pb.EventKind_EVENT_KIND_FUND_RETURN_DUE
		// the reference hangs on the event, so that the bank knows a repeat too
		reference := "return-" + event.GetEventId()
		// one transaction
		if due {
			one.ledger[event.GetEventId()] = reference
		}
		one.places[event.GetPartition()], one.epoch = event.GetPosition(), message.GetEpoch()
		if due {
			if err := one.giveBack(ctx, event, reference); err != nil {
				return nil, err
			}
		}
		// a busy one acknowledges many at once
		place := &pb.PartitionPosition{Partition: event.GetPartition(), Position: event.GetPosition()}
		subscription := first.GetSubscriptionId()
		acknowledge := &pb.AcknowledgeRequest{
			Consumer: consumer, Positions: []*pb.PartitionPosition{place}, Epoch: one.epoch, SubscriptionId: &subscription,
		}
		if _, err := one.feed.Acknowledge(ctx, acknowledge); err != nil {
			return nil, err
		}
		if due && event.GetPaymentRequestId() == payment {
			return event.GetAmount(), nil
		}
	}
}

func (one *executor) giveBack(ctx context.Context, event *pb.CancellationEvent, reference string) error {
	// … here the user's account is credited, under this reference …
	returned := &pb.RecordFundReturnRequest{
		PspId: event.GetPspId(), PaymentRequestId: event.GetPaymentRequestId(), Reference: reference,
	}
	answer, err := one.payments.RecordFundReturn(ctx, returned)
	if err == nil && answer.GetAnswer() != pb.RecordFundReturnAnswer_RECORD_FUND_RETURN_ANSWER_ACCEPTED {
		err = errors.New("for people to look at: the money may have gone back twice")
	}
	return err
}

func main() {
	log.SetFlags(0)
	address := flag.String("grpc", "127.0.0.1:50051", "host and port of gRPC")
	json := flag.String("json", "http://127.0.0.1:8080/aps/api", "URL of the signed JSON, with its prefix")
	keys := flag.String("keys", ".sandbox", "folder of the sandbox's keys")
	flag.Parse()

	ctx, cancel := context.WithTimeout(context.Background(), 5*timeout)
	defer cancel()
	// with TLS: credentials.NewTLS and the wallet's own certificate
	channel := must(grpc.DialContext(ctx, *address, grpc.WithInsecure()))
	payments, feed := pb.NewPaymentServiceClient(channel), pb.NewFeedServiceClient(channel)
	tokens := pb.NewTokenServiceClient(channel)
	plus := newAlipayPlus(*json, *keys)

	// the payment core: nothing is debited without PROCEED
	payment, acquirer := "go-"+unique(), acquirer
	amount, begun := &pb.Amount{Value: 1999, Currency: "EUR"}, timestamppb.Now()
	record := &pb.RecordPaymentRequest{PspId: psp, PaymentRequestId: payment, AcquirerId: &acquirer}
	record.Fact = &pb.RecordPaymentRequest_Initiated{
		Initiated: &pb.PaymentInitiated{Amount: amount, InitiatedAt: begun},
	}
	recorded := must(payments.RecordPayment(ctx, record))
	expect(recorded.GetAnswer() == pb.RecordPaymentAnswer_RECORD_PAYMENT_ANSWER_PROCEED, recorded)
	// … here the user is debited …
	record.Fact = &pb.RecordPaymentRequest_Succeeded{
		Succeeded: &pb.PaymentSucceeded{Amount: amount, InitiatedAt: begun},
	}
	recorded = must(payments.RecordPayment(ctx, record))
	expect(recorded.GetAnswer() == pb.RecordPaymentAnswer_RECORD_PAYMENT_ANSWER_ACCEPTED, recorded)
	fmt.Println("recorded", payment)

	// Alipay+ cancels, and hears the same however often it asks
	for time := 0; time < 2; time++ {
		told := must(plus.post("/v1/payments/cancelPayment", map[string]string{
			"pspId": psp, "acquirerId": acquirer, "paymentRequestId": payment,
		}))
		expect(told.Result.ResultStatus == "S", told)
	}
	fmt.Println("cancelled, twice, and both signatures verify")

	one := &executor{feed: feed, payments: payments, ledger: map[string]string{}, places: map[uint32]uint64{}}
	back := must(one.runUntil(ctx, payment))
	told := must(payments.GetPayment(ctx, &pb.GetPaymentRequest{PspId: psp, PaymentRequestId: payment}))
	expect(told.GetPayment().GetFunds() == pb.Funds_FUNDS_RETURNED, told)
	inquiry := told.GetInquiry().GetResultCode()
	fmt.Printf("returned %d %s minor units; inquiryPayment answers %s\n", back.GetValue(), back.GetCurrency(), inquiry)

	// the authorization server: a token leaves the wallet only after ACCEPTED
	token := "token-" + unique()
	granted := must(tokens.RecordToken(ctx, &pb.RecordTokenRequest{
		PspId: psp, AcquirerId: acquirer, AuthorizationId: "consent-" + unique(), Token: token,
		Kind: pb.TokenKind_TOKEN_KIND_ACCESS,
	}))
	expect(granted.GetAnswer() == pb.RecordTokenAnswer_RECORD_TOKEN_ANSWER_ACCEPTED, granted)
	introspect := &pb.IntrospectTokenRequest{PspId: psp, Token: token}
	expect(must(tokens.IntrospectToken(ctx, introspect)).GetActive(), "a new token is good")
	cancelled := must(plus.post("/v1/authorizations/cancelToken", map[string]string{
		"pspId": psp, "acquirerId": acquirer, "accessToken": token,
	}))
	expect(cancelled.Result.ResultStatus == "S", cancelled)
	expect(!must(tokens.IntrospectToken(ctx, introspect)).GetActive(), "a cancelled token is good no more")
	fmt.Println("a token was good, was cancelled, and is good no more")
}

func readPEM(file string) []byte {
	block, _ := pem.Decode(must(os.ReadFile(file)))
	if block == nil {
		log.Fatalf("%s holds no PEM", file)
	}
	return block.Bytes
}

func unique() string {
	id := make([]byte, 16)
	must(rand.Read(id))
	return hex.EncodeToString(id)
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func expect(is bool, told any) {
	if !is {
		log.Fatalf("not as it should be: %v", told)
	}
}
