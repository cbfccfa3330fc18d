package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

const lanes = 20

// calls: each way a unary call can end, then many at once, all on one connection.
func calls() {
	conn, tap := connect()
	defer conn.Close()
	with := func(pairs ...string) context.Context {
		return metadata.AppendToOutgoingContext(context.Background(), pairs...)
	}
	right := authorized(context.Background())
	steps := []struct {
		name string
		ctx  context.Context
		path string
		text string
	}{
		{"found", right, "/avap.DefinitionEngine/GetCommand", *name},
		{"bearer", with("authorization", "Bearer "+*key), "/avap.DefinitionEngine/GetCommand", *name},
		{"binary metadata", metadata.AppendToOutgoingContext(right, "trace-bin", "\x00\xff\n"), "/avap.DefinitionEngine/GetCommand", *name},
		{"not found", right, "/avap.DefinitionEngine/GetCommand", "nöthing"},
		{"wrong key", with("x-avap-auth", "wrong"), "/avap.DefinitionEngine/GetCommand", *name},
		{"no key", context.Background(), "/avap.DefinitionEngine/GetCommand", *name},
		{"unknown method", right, "/avap.DefinitionEngine/Nothing", *name},
		{"unknown service", right, "/avap.Nothing/GetCommand", *name},
	}
	for _, step := range steps {
		began := time.Now()
		payload, err := invoke(step.ctx, conn, step.path, step.text)
		tell(ended(step.name, began, payload, err))
	}
	codes := round(lanes, *count/lanes, func(_, _ int) error {
		_, err := get(right, conn, *name)
		return err
	})
	tell(tap.seen(line{Step: "many", Codes: codes}))
}

// How much a client lets a server send: as grpc-go measures the path, or never more than HTTP/2 begins with.
var windows = map[string][]grpc.DialOption{
	"growing":  nil,
	"smallest": {grpc.WithStaticStreamWindowSize(65535), grpc.WithStaticConnWindowSize(65535)},
}

// large: the catalog three times, and small calls beside it.
func large() {
	for step, options := range windows {
		conn, tap := connect(options...)
		ctx := authorized(context.Background())
		var done atomic.Bool
		small := make(chan map[string]int)
		go func() {
			codes := map[string]int{}
			for first := true; first || !done.Load(); first = false {
				_, err := get(ctx, conn, *name)
				codes[outcome(err)]++
			}
			small <- codes
		}()
		for range 3 {
			began := time.Now()
			payload, err := syncCatalog(ctx, conn)
			tell(ended(step, began, payload, err))
		}
		done.Store(true)
		tell(tap.seen(line{Step: step + " beside", Codes: <-small}))
		conn.Close()
	}
}

// unzip is the gzip of grpc-go's own package, which would tell servers in every scenario that it is taken.
type unzip struct{}

func (unzip) Name() string                                 { return "gzip" }
func (unzip) Compress(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }
func (unzip) Decompress(r io.Reader) (io.Reader, error)    { return gzip.NewReader(r) }

// compressed: the catalog again and again, until it comes in half the octets that it has.
func compressed() {
	encoding.RegisterCompressor(unzip{})
	conn, tap := connect()
	defer conn.Close()
	for began, done := time.Now(), false; !done; {
		tap.came()
		payload, err := syncCatalog(authorized(context.Background()), conn)
		l := ended("compressed", began, payload, err)
		l.Octets = tap.came()
		tell(l)
		done = err != nil || l.Octets < l.Bytes/2 || time.Since(began).Seconds() > *seconds
	}
}

// crowd: many large answers at once on one connection.
func crowd() {
	for step, options := range windows {
		conn, tap := connect(options...)
		codes := round(lanes, *count/lanes, func(_, _ int) error {
			_, err := get(authorized(context.Background()), conn, *big)
			return err
		})
		tell(tap.seen(line{Step: step, Codes: codes}))
		conn.Close()
	}
}

// watch: a stream that is known and one that is not, both held, ended by us, and a call after them.
func watch() {
	conn, tap := connect()
	defer conn.Close()
	health := grpc_health_v1.NewHealthClient(conn)
	for _, service := range []string{"", "avap.DefinitionEngine", "nothing"} {
		ctx, stop := context.WithCancel(context.Background())
		began, l := time.Now(), line{}
		stream, err := health.Watch(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
		timer := time.AfterFunc(time.Duration(*seconds*float64(time.Second)), stop)
		var statuses []string
		for err == nil {
			var answer *grpc_health_v1.HealthCheckResponse
			if answer, err = stream.Recv(); err == nil {
				statuses = append(statuses, answer.GetStatus().String())
			}
		}
		timer.Stop()
		stop()
		l = ended("watch "+service, began, nil, err)
		l.Statuses = statuses
		tell(l)
	}
	answer, err := health.Check(context.Background(), &grpc_health_v1.HealthCheckRequest{})
	l := ended("check", time.Now(), nil, err)
	l.Statuses = []string{answer.GetStatus().String()}
	tell(tap.seen(l))
}

// cancel: the catalog given up after ever longer, then a call on the same connection.
func cancel() {
	conn, tap := connect()
	defer conn.Close()
	codes := round(4, *count/4, func(lane, number int) error {
		ctx, stop := context.WithCancel(authorized(context.Background()))
		defer stop()
		timer := time.AfterFunc(time.Duration(number*4+lane)*200*time.Microsecond, stop)
		defer timer.Stop()
		_, err := syncCatalog(ctx, conn)
		return err
	})
	tell(line{Step: "given up", Codes: codes})
	began := time.Now()
	payload, err := get(authorized(context.Background()), conn, *name)
	tell(tap.seen(ended("after", began, payload, err)))
}

// deadlines: always the same, inherited (each call has another time left), too short, and over before the call.
func deadlines() {
	conn, tap := connect()
	defer conn.Close()
	with := func(left time.Duration, call func(context.Context) error) error {
		ctx, stop := context.WithTimeout(authorized(context.Background()), left)
		defer stop()
		return call(ctx)
	}
	once := func(ctx context.Context) error {
		_, err := get(ctx, conn, *name)
		return err
	}
	fixed := round(lanes, *count/lanes, func(_, _ int) error { return with(2*time.Second, once) })
	tell(line{Step: "fixed", Codes: fixed})
	drifting := round(lanes, *count/lanes, func(_, _ int) error {
		return with(time.Second+rand.N(time.Second), once)
	})
	tell(line{Step: "drifting", Codes: drifting})
	parent, stop := context.WithTimeout(authorized(context.Background()), 20*time.Second)
	defer stop()
	inherited := round(1, *count/4, func(_, _ int) error { return once(parent) })
	tell(line{Step: "inherited", Codes: inherited})
	short := round(4, 10, func(lane, number int) error {
		return with(time.Duration(1+lane+4*number)*100*time.Microsecond, func(ctx context.Context) error {
			_, err := syncCatalog(ctx, conn)
			return err
		})
	})
	tell(line{Step: "too short", Codes: short})
	began := time.Now()
	tell(ended("over", began, nil, with(-time.Second, once)))
	began = time.Now()
	err := with(300*time.Millisecond, func(ctx context.Context) error {
		stream, err := grpc_health_v1.NewHealthClient(conn).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
		for err == nil {
			_, err = stream.Recv()
		}
		return err
	})
	tell(ended("of a stream", began, nil, err))
	payload, err := get(authorized(context.Background()), conn, *name)
	tell(tap.seen(ended("after", began, payload, err)))
}

// keepAlive: an idle connection on which grpc-go pings every ten seconds (its shortest interval), then a call on it.
func keepAlive() {
	conn, tap := connect(grpc.WithKeepaliveParams(keepalive.ClientParameters{
		Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true,
	}))
	defer conn.Close()
	ctx := authorized(context.Background())
	_, err := get(ctx, conn, *name)
	tell(ended("before", time.Now(), nil, err))
	time.Sleep(time.Duration(*seconds * float64(time.Second)))
	_, err = get(ctx, conn, *name)
	tell(tap.seen(ended("after", time.Now(), nil, err)))
}

// reload: calls on several connections, none repeated, until stdin ends.
func reload() {
	const connections = 4
	var stopped atomic.Bool
	var group sync.WaitGroup
	codes, taps := make([]map[string]int, connections), make([]*wiretap, connections)
	for i := range connections {
		conn, tap := connect()
		codes[i], taps[i] = map[string]int{}, tap
		group.Go(func() {
			defer conn.Close()
			for n := 0; !stopped.Load(); n++ {
				_, err := get(authorized(context.Background()), conn, *name)
				codes[i][outcome(err)]++
				if n == 100 {
					tell(tap.seen(line{Step: "running"}))
				}
			}
		})
	}
	if _, err := bufio.NewReader(os.Stdin).ReadByte(); !errors.Is(err, io.EOF) {
		panic(err)
	}
	stopped.Store(true)
	group.Wait()
	for i, tap := range taps {
		tell(tap.seen(line{Step: "stopped", Codes: codes[i]}))
	}
}

// probe: what a kubelet does, which is one Check on a new connection each time, within a second.
func probe() {
	codes := round(4, *count/4, func(_, _ int) error {
		conn, _ := connect(grpc.WithUserAgent("kube-probe/1.34"))
		defer conn.Close()
		ctx, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		_, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		return err
	})
	tell(line{Step: "probe", Codes: codes})
}

// descriptors: the FileDescriptorSet of the service that the interop client of this grpc-go calls.
func descriptors() {
	set := new(descriptorpb.FileDescriptorSet)
	for _, file := range []protoreflect.FileDescriptor{
		grpc_testing.File_grpc_testing_empty_proto, grpc_testing.File_grpc_testing_messages_proto,
	} {
		set.File = append(set.File, protodesc.ToFileDescriptorProto(file))
	}
	data, err := proto.Marshal(set)
	if err != nil {
		panic(err)
	}
	if _, err = os.Stdout.Write(data); err != nil {
		panic(err)
	}
}
