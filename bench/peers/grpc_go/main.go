// The contract of avapd on grpc-go, as one would write it by hand: generated stubs, a map, an interceptor for the key.
//
//	API_KEY=... grpc_go CATALOG
//
// CATALOG is a file that holds a serialized avap.CatalogResponse: what SyncCatalog of avapd answers, so that both serve
// the same bytes. It listens on a free loopback port and prints it.
package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"avapd/bench/grpc_go/avappb"
)

//go:generate sh -c "cd ../../.. && python -m grpc_tools.protoc -I proto --go_out=bench/peers/grpc_go --go-grpc_out=bench/peers/grpc_go --go_opt=module=avapd/bench/grpc_go,Mavap.proto=avapd/bench/grpc_go/avappb --go-grpc_opt=module=avapd/bench/grpc_go,Mavap.proto=avapd/bench/grpc_go/avappb avap.proto"

type engine struct {
	avappb.UnimplementedDefinitionEngineServer
	catalog  *avappb.CatalogResponse
	commands map[string]*avappb.CommandResponse
}

func load(path string) (*engine, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	catalog := &avappb.CatalogResponse{}
	if err := proto.Unmarshal(raw, catalog); err != nil {
		return nil, err
	}
	commands := make(map[string]*avappb.CommandResponse, len(catalog.Commands))
	for _, command := range catalog.Commands {
		commands[command.Name] = command
	}
	return &engine{catalog: catalog, commands: commands}, nil
}

func (e *engine) GetCommand(_ context.Context, request *avappb.CommandRequest) (*avappb.CommandResponse, error) {
	command, found := e.commands[request.Name]
	if !found {
		return nil, status.Errorf(codes.NotFound, "Command '%s' not found", request.Name)
	}
	return command, nil
}

func (e *engine) SyncCatalog(context.Context, *avappb.Empty) (*avappb.CatalogResponse, error) {
	return e.catalog, nil
}

// authenticate compares digests in constant time, as avapd does.
func authenticate(key string) grpc.UnaryServerInterceptor {
	accepted := sha256.Sum256([]byte(key))
	return func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		given := metadata.ValueFromIncomingContext(ctx, "x-avap-auth")
		if len(given) == 1 {
			digest := sha256.Sum256([]byte(given[0]))
			if subtle.ConstantTimeCompare(digest[:], accepted[:]) == 1 {
				return next(ctx, request)
			}
		}
		return nil, status.Error(codes.Unauthenticated, "Invalid Credentials")
	}
}

func main() {
	engine, err := load(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(authenticate(os.Getenv("API_KEY"))))
	avappb.RegisterDefinitionEngineServer(server, engine)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	log.Fatal(server.Serve(listener))
}
