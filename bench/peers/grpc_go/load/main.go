// A closed loop on grpc-go. JSON in (argv), JSON out, as ../../grpc_aio/load.py; each call has a deadline, as is usual.
//
//	load '{"port": 50051, "path": ..., "connections": 10, "streams": 10, "seconds": 2, ...}'
package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"math"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const deadline = 20 * time.Second

// plan is what is asked for.
type plan struct {
	Port        int               `json:"port"`
	Path        string            `json:"path"`
	Headers     map[string]string `json:"headers"`
	Message     string            `json:"message"`
	Connections int               `json:"connections"`
	Streams     int               `json:"streams"`
	Seconds     float64           `json:"seconds"`
	AnswerBytes int               `json:"answer_bytes"`
	Status      codes.Code        `json:"status"`
}

// done is what came of it.
type done struct {
	Calls   int     `json:"calls"`
	Failed  int     `json:"failed"`
	Seconds float64 `json:"seconds"`
	Mean    float64 `json:"mean"`
}

// raw sends bytes as they are, and counts those of an answer.
type raw struct{}

func (raw) Marshal(message any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(message.([]byte))}, nil
}

func (raw) Unmarshal(answer mem.BufferSlice, size any) error {
	*size.(*int) = answer.Len()
	return nil
}

// Name is what follows `application/grpc+` in the content type: nothing, as when stubs are called.
func (raw) Name() string { return "" }

// loop calls until end; it leaves Seconds out, and the sum of all times in Mean.
func (p *plan) loop(ctx context.Context, conn *grpc.ClientConn, message []byte, end time.Time) done {
	var d done
	for start := time.Now(); start.Before(end); start = time.Now() {
		if !p.call(ctx, conn, message) {
			d.Failed++
		}
		d.Calls++
		d.Mean += time.Since(start).Seconds()
	}
	return d
}

// call tells whether it ended as it should.
func (p *plan) call(ctx context.Context, conn *grpc.ClientConn, message []byte) bool {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	var size int
	err := conn.Invoke(ctx, p.Path, message, &size)
	return status.Code(err) == p.Status && (err != nil || size == p.AnswerBytes)
}

func (p *plan) run() (done, error) {
	message, err := hex.DecodeString(p.Message)
	if err != nil {
		return done{}, err
	}
	conns := make([]*grpc.ClientConn, p.Connections)
	for i := range conns {
		conn, err := connect(fmt.Sprintf("127.0.0.1:%d", p.Port))
		if err != nil {
			return done{}, err
		}
		defer conn.Close()
		conns[i] = conn
	}
	ctx := metadata.NewOutgoingContext(context.Background(), metadata.New(p.Headers))

	var (
		all  done
		lock sync.Mutex
		wait sync.WaitGroup
	)
	began := time.Now()
	end := began.Add(time.Duration(p.Seconds * float64(time.Second)))
	for _, conn := range conns {
		for range p.Streams {
			wait.Go(func() {
				d := p.loop(ctx, conn, message, end)
				lock.Lock()
				defer lock.Unlock()
				all.Calls += d.Calls
				all.Failed += d.Failed
				all.Mean += d.Mean
			})
		}
	}
	wait.Wait()
	all.Seconds = time.Since(began).Seconds()
	all.Mean /= float64(all.Calls)
	return all, nil
}

// connect returns a connection that is up.
func connect(target string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient(
		target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(raw{}), grpc.MaxCallRecvMsgSize(math.MaxInt)),
	)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			conn.Close()
			return nil, fmt.Errorf("no connection to %s: %w", target, ctx.Err())
		}
	}
	return conn, nil
}

func main() {
	log.SetFlags(0)
	var p plan
	if err := json.Unmarshal([]byte(os.Args[1]), &p); err != nil {
		log.Fatal(err)
	}
	d, err := p.run()
	if err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(d); err != nil {
		log.Fatal(err)
	}
}
