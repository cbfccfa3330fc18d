// A probe as a kubelet makes it (kubernetes/pkg/probe/grpc): a connection of its own in clear text, waited for, and one
// Check without a key, all within a timeout; whatever is not SERVING is a failure. Exit 0 for success, 1 for failure,
// and the reason on standard output.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

var (
	address = flag.String("address", "", "host:port of the container")
	service = flag.String("service", "", "the name to ask for")
	timeout = flag.Duration("timeout", time.Second, "timeoutSeconds of the probe")
)

func main() {
	flag.Parse()
	ctx, stop := context.WithTimeout(context.Background(), *timeout)
	defer stop()
	//nolint:staticcheck // what a kubelet calls, which waits for the connection and tells why there is none
	conn, err := grpc.DialContext(ctx, *address, grpc.WithBlock(), grpc.WithUserAgent("kube-probe/1.34"),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		end(1, fmt.Sprintf("no connection: %v", err))
	}
	defer conn.Close()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: *service})
	if err != nil {
		end(1, err.Error())
	}
	if answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		end(1, answer.GetStatus().String())
	}
	end(0, answer.GetStatus().String())
}

func end(code int, reason string) {
	fmt.Println(reason)
	os.Exit(code)
}
