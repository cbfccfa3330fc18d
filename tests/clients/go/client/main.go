// A client of avapd on grpc-go, in scenarios. Each run is one scenario on connections of its own; it prints a JSON
// object a line and judges nothing: tests/clients/test_go_client.py does.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

var (
	address = flag.String("address", "", "host:port of the server")
	key     = flag.String("key", "", "the right key")
	name    = flag.String("name", "", "a small definition")
	big     = flag.String("big", "", "a large one")
	count   = flag.Int("count", 1000, "calls of a round")
	seconds = flag.Float64("seconds", 1, "how long to hold something")
)

var scenarios = map[string]func(){
	"calls":       calls,
	"large":       large,
	"compressed":  compressed,
	"crowd":       crowd,
	"watch":       watch,
	"cancel":      cancel,
	"deadlines":   deadlines,
	"keepalive":   keepAlive,
	"reload":      reload,
	"probe":       probe,
	"descriptors": descriptors,
}

func main() {
	flag.Parse()
	scenario, known := scenarios[flag.Arg(0)]
	if !known {
		fmt.Fprintln(os.Stderr, "no such scenario:", flag.Arg(0))
		os.Exit(2)
	}
	scenario()
}

// line is what a step tells.
type line struct {
	Step         string         `json:"step"`
	Code         string         `json:"code"`
	Message      string         `json:"message"`
	Bytes        int            `json:"bytes"`
	Octets       int            `json:"octets"` // that came for it, frames and all
	Hash         string         `json:"hash"`   // SHA-256 of the answer
	Codes        map[string]int `json:"codes"`
	Milliseconds float64        `json:"milliseconds"`
	Dials        int            `json:"dials"`
	Acks         int            `json:"acks"`
	Goaways      []string       `json:"goaways"`
	Statuses     []string       `json:"statuses"`
}

var printing sync.Mutex

func tell(l line) {
	printing.Lock()
	defer printing.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(l); err != nil {
		panic(err)
	}
}

// connect makes a connection that counts what happens below it.
func connect(options ...grpc.DialOption) (*grpc.ClientConn, *wiretap) {
	tap := new(wiretap)
	options = append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(tap.dial),
		grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1 << 30)),
	}, options...)
	conn, err := grpc.NewClient("passthrough:///"+*address, options...)
	if err != nil {
		panic(err)
	}
	return conn, tap
}

func authorized(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "x-avap-auth", *key)
}

// invoke makes a unary call. A CommandRequest looks like a StringValue on the wire, and an Empty keeps what it does not
// know, so no generated code is needed.
func invoke(ctx context.Context, conn *grpc.ClientConn, path, text string) ([]byte, error) {
	answer := new(emptypb.Empty)
	if err := conn.Invoke(ctx, path, wrapperspb.String(text), answer); err != nil {
		return nil, err
	}
	return answer.ProtoReflect().GetUnknown(), nil
}

func get(ctx context.Context, conn *grpc.ClientConn, text string) ([]byte, error) {
	return invoke(ctx, conn, "/avap.DefinitionEngine/GetCommand", text)
}

func syncCatalog(ctx context.Context, conn *grpc.ClientConn) ([]byte, error) {
	return invoke(ctx, conn, "/avap.DefinitionEngine/SyncCatalog", "")
}

func ended(step string, began time.Time, payload []byte, err error) line {
	hash := sha256.Sum256(payload)
	found := status.Convert(err)
	return line{
		Step: step, Code: found.Code().String(), Message: found.Message(), Bytes: len(payload),
		Hash: hex.EncodeToString(hash[:]), Milliseconds: float64(time.Since(began).Microseconds()) / 1000,
	}
}

// round makes calls in `lanes` goroutines and counts how they end: by code, and by message where a test expects none.
func round(lanes, each int, call func(lane, number int) error) map[string]int {
	ends := make([]map[string]int, lanes)
	var group sync.WaitGroup
	for lane := range lanes {
		ends[lane] = map[string]int{}
		group.Go(func() {
			for number := range each {
				ends[lane][outcome(call(lane, number))]++
			}
		})
	}
	group.Wait()
	return sum(ends)
}

func outcome(err error) string {
	switch code := status.Code(err); code {
	case codes.OK, codes.Canceled, codes.DeadlineExceeded:
		return code.String()
	default:
		return status.Convert(err).String()
	}
}

func sum(parts []map[string]int) map[string]int {
	total := map[string]int{}
	for _, part := range parts {
		for code, n := range part {
			total[code] += n
		}
	}
	return total
}
